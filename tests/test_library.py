"""Tests that every op must pass: parts, equal schemas, opcheck, torch.compile and ``verify``."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from conftest import REPOSITORY, needs_library

import lirank_ext
from lirank_ext import verify
from lirank_ext.library import autograd
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify.cases import all_cases

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


FAMILIES = sorted({op.family for op in OPS.values()})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_all_its_parts(family):
    for part in (
        f"lirank_ext/ops/{family}.py",
        f"lirank_ext/verify/cases/{family}.py",
        f"tests/test_{family}.py",
        f"csrc/{family}.cpp",
        f"kernels/{family}.py",
        f"benchmarks/bench_{family}.py",
    ):
        assert (REPOSITORY / part).is_file(), f"{family} lacks {part}"


@pytest.mark.parametrize(
    ("folder", "shared"),
    [
        ("lirank_ext/ops", {"__init__", "bags", "decompositions"}),
        ("lirank_ext/verify/cases", {"__init__"}),
        ("kernels", {"__init__", "bags", "errors", "launch"}),
    ],
)
def test_the_name_of_a_file_tells_its_family(folder, shared):
    for path in (REPOSITORY / folder).glob("*.py"):
        families = [f for f in FAMILIES if path.stem == f or path.stem.startswith(f"{f}_")]
        assert families or path.stem in shared, f"{path}: of no family"


def test_kernels_import_nothing_from_the_package():
    for path in (REPOSITORY / "kernels").glob("*.py"):
        found = re.findall(r"^\s*(?:from|import) (?:lirank_ext|\.\.).*", path.read_text(), re.M)
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize("arguments", ["Tensor[] x", "Tensor x, *, float scale=1.0"])
def test_a_backward_that_would_miss_arguments_is_refused(arguments):
    library = torch.library.Library("lirank", "FRAGMENT")
    name = "never_" + re.sub(r"\W", "", arguments)
    library.define(f"{name}({arguments}) -> Tensor")
    never = SimpleNamespace(name=name, overload=getattr(torch.ops.lirank, name).default)
    with pytest.raises(TypeError, match=f"lirank::{name}: argument '(x|scale)': wanted no list"):
        autograd.register(library, never, lambda a, grad: {}, saves=())


def test_every_op_has_cases_and_a_fake_kernel_and_is_named_after_its_file():
    covered = {c.op for c in all_cases()}
    for name, op in OPS.items():
        assert op.internal or name in covered, f"no cases for {name}"
        registered = torch._library.simple_registry.singleton.find(f"lirank::{name}")
        assert registered.fake_impl.kernel is not None, f"no fake kernel for {name}"
        assert f"{op.module}_".startswith(f"{op.family}_"), f"{name} is in {op.module}.py"


@needs_library
@pytest.mark.parametrize("name", OPS)
def test_python_schema_is_the_compiled_one(name):
    op = OPS[name]
    written = torch._C.parse_schema(f"lirank::{op.schema}")
    assert str(written) == str(op.overload._schema)


@needs_library
def test_cpp_defines_no_op_that_python_does_not_know():
    source = "".join(p.read_text() for p in sorted((REPOSITORY / "csrc").iterdir()) if p.is_file())
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
        for i, a in enumerate(copy.deepcopy(case.call))
    )
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("case", few(GOOD, 5), ids=identify)
def test_compiled_in_one_graph_gives_the_same(case):
    torch.compiler.reset()  # one code object for all cases: its recompilations are limited
    op = OPS[case.op].overload
    compiled = torch.compile(lambda *args: op(*args), fullgraph=True, backend="aot_eager")
    given, same = copy.deepcopy(case.call), copy.deepcopy(case.call)
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}
    got, wanted = compiled(*given), op(*same)
    if OPS[case.op].mutated:  # such an op returns nothing
        got, wanted = (
            [a[i] for i in OPS[case.op].mutated if i < len(a) and a[i] is not None]
            for a in (given, same)
        )
    torch.testing.assert_close(got, wanted, **exact)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_is_exported_and_documented(name):
    import lirank_ext

    function = getattr(lirank_ext, name)
    assert name in lirank_ext.__all__
    for heading in ("Args:", "Returns:", "Raises:"):
        assert heading in function.__doc__, f"{name}: docstring lacks {heading}"


def test_the_function_keeps_signature_and_docstring():
    function = lirank_ext.isotonic_calibration
    parameters = inspect.signature(function).parameters
    assert list(parameters) == list(function.op.call._fields)
    assert parameters["embedding"].default is None
    assert function.__doc__ == function.__wrapped__.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


def test_arguments_go_by_position_or_by_name_and_defaults_may_be_left_out():
    x, w, b = torch.randn(5), torch.randn(3), torch.zeros(())
    wanted = lirank_ext.isotonic_calibration(x, w, b, -1.0, 0.5, None)
    got = lirank_ext.isotonic_calibration(step=0.5, lower=-1.0, bias=b, weight=w, logits=x)
    assert torch.equal(got, wanted)
    assert torch.equal(lirank_ext.isotonic_calibration(x, w, b, -1.0, step=0.5), wanted)


@pytest.mark.parametrize("name", PUBLIC)
def test_bad_input_raises_the_same_error_with_and_without_the_library(name):
    """C++ ops can only raise RuntimeError; users see what the reference raises."""
    function = getattr(lirank_ext, name)
    for case in all_cases(name):
        if case.raises is None:
            continue
        kinds = []
        for call in (function, OPS[name].reference):
            args = case.call
            if call is lirank_ext.hash_strings:  # the op takes the pair as two arguments
                args = (args[:2], *args[2:])
            with pytest.raises((ValueError, TypeError, IndexError)) as caught:
                call(*args)
            kinds.append(caught.type)
        assert kinds[0] is kinds[1], case.label


def test_saved_tensors_are_read_once():
    """Non-reentrant activation checkpointing allows no more."""
    for name in PUBLIC:
        case = next((c for c in GOOD if c.op == name and c.grad and numel(c)), None)
        if case is None:
            continue
        args, again = (
            [
                a.detach().clone().requires_grad_() if i in case.trained else a
                for i, a in enumerate(case.call)
            ]
            for _ in range(2)
        )
        wanted = OPS[name].overload(*args)
        grad = torch.randn_like(wanted)
        wanted.backward(grad)
        got = torch.utils.checkpoint.checkpoint(OPS[name].overload, *again, use_reentrant=False)
        got.backward(grad)
        for i in case.trained:
            torch.testing.assert_close(again[i].grad, args[i].grad, rtol=0, atol=0, equal_nan=True)
