"""Tests that every op must pass: parts, equal schemas, opcheck, torch.compile and ``verify``."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY, needs_library

from lirank_ext import verify
from lirank_ext.library import autograd
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify.cases import STEMS, all_cases

PUBLIC = [name for name, op in OPS.items() if not op.internal]
CASES = [c for c in all_cases() if not c.big]
GOOD = [c for c in CASES if c.raises is None]
BACKENDS = [(op, b) for op in PUBLIC for b in implementations(op)]


def identify(value):
    return f"{value.op}: {value.label}" if hasattr(value, "label") else str(value)


def few(cases, each=4):
    """The first cases of every op, for checks that cost seconds each."""
    kept: dict[str, list] = {}
    for case in cases:
        kept.setdefault(case.op, []).append(case)
    return [case for group in kept.values() for case in group[:each]]


def holds_nan(case):
    """opcheck takes NaN for unequal to itself."""
    return any(a.isnan().any() for a in case.call if isinstance(a, torch.Tensor))


def numel(case):
    return sum(a.numel() for a in case.call if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("stem", STEMS)
def test_every_family_has_all_its_parts(stem):
    for part in (
        f"lirank_ext/ops/{stem}.py",
        f"lirank_ext/verify/cases/{stem}.py",
        f"tests/test_{stem}.py",
        f"csrc/{stem}.cpp",
        f"benchmarks/bench_{stem}.py",
    ):
        assert (REPOSITORY / part).is_file(), f"{stem} lacks {part}"


@pytest.mark.parametrize("arguments", ["Tensor[] x", "Tensor x, *, float scale=1.0"])
def test_a_backward_that_would_miss_arguments_is_refused(arguments):
    library = torch.library.Library("lirank", "FRAGMENT")
    name = "never_" + re.sub(r"\W", "", arguments)
    library.define(f"{name}({arguments}) -> Tensor")
    never = SimpleNamespace(name=name, overload=getattr(torch.ops.lirank, name).default)
    with pytest.raises(TypeError, match=f"lirank::{name}: argument '(x|scale)': wanted no list"):
        autograd.register(library, never, lambda a, grad: {}, saves=())


def test_every_op_belongs_to_a_family_and_has_cases():
    covered = {c.op for c in all_cases()}
    for name, op in OPS.items():
        assert op.family in STEMS
        assert op.internal or name in covered, f"no cases for {name}"


@needs_library
@pytest.mark.parametrize("name", OPS)
def test_python_schema_is_the_compiled_one(name):
    op = OPS[name]
    written = torch._C.parse_schema(f"lirank::{op.schema}")
    assert str(written) == str(op.overload._schema)


@needs_library
def test_cpp_defines_no_op_that_python_does_not_know():
    source = "".join(p.read_text() for p in (REPOSITORY / "csrc").glob("*.cpp"))
    defined = set(re.findall(r'm\.def\(\s*"(\w+)\(', source))
    assert defined == set(OPS)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_backend_agrees_with_the_float64_reference(op, backend):
    implementation = implementations(op)[backend]
    for case in all_cases(op):
        outcome = verify.check_case(case, implementation)
        assert outcome.passed, f"{case.label}: {outcome.problem}"


SMALL = [c for c in GOOD if numel(c) < 2000 and not holds_nan(c)]


@pytest.mark.parametrize("case", few(SMALL, 6), ids=identify)
def test_opcheck(case):
    op = OPS[case.op].overload
    args = tuple(
        a.detach().clone().requires_grad_() if i in case.trained else a
        for i, a in enumerate(case.call)
    )
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("case", few(GOOD, 5), ids=identify)
def test_compiled_in_one_graph_gives_the_same(case):
    torch.compiler.reset()  # one code object for all cases: its recompilations are limited
    op = OPS[case.op].overload
    compiled = torch.compile(lambda *args: op(*args), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case.call), op(*case.call), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_is_exported_and_documented(name):
    import lirank_ext

    function = getattr(lirank_ext, name)
    assert name in lirank_ext.__all__
    for heading in ("Args:", "Returns:", "Raises:"):
        assert heading in function.__doc__, f"{name}: docstring lacks {heading}"
