"""What a refused call says: one table of every message, the same on every backend.

``messages.txt`` holds a line for each bad input among the cases of ``verify``. After a message has
changed on purpose, ``python tests/test_messages.py`` writes the table anew.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch

from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify import check_case, checked_ops
from lirank_ext.verify.cases import Case, all_cases

TABLE = Path(__file__).with_name("messages.txt")
REFUSED = [c for op in checked_ops() for c in all_cases(op) if c.raises is not None]


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def said(call, args) -> str:
    """The message of a call that has to be refused."""
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)) as caught:
        call(*args)
    return first_line(caught.value)


def line(case: Case) -> str:
    message = said(implementations(case.op)["reference"], copy.deepcopy(case.call))
    return f"{case.op} | {case.label} | {message}"


def known() -> dict[tuple[str, str], str]:
    lines = (row.split(" | ", 2) for row in TABLE.read_text("utf-8").splitlines())
    return {(op, label): message for op, label, message in lines}


def test_the_table_is_whole():
    assert set(known()) == {(c.op, c.label) for c in REFUSED}


@pytest.mark.parametrize("op", checked_ops())
def test_every_backend_says_what_the_table_says(op):
    wanted = known()
    for case in (c for c in REFUSED if c.op == op):
        message = wanted[op, case.label]
        assert message.startswith(f"lirank::{op}: "), "names its op"
        assert "argument '" in message or " is out of range for " in message
        for backend in ("reference", "cpu"):
            if backend in implementations(op):
                call = implementations(op)[backend]
                assert said(call, copy.deepcopy(case.call)) == message, (backend, case.label)


@pytest.mark.parametrize("op", checked_ops())
def test_a_fake_kernel_says_it_or_cannot_know_the_values(op):
    """Values of ids and offsets are not there; every other condition is, and says the same."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    wanted, refused = known(), 0
    for case in (c for c in REFUSED if c.op == op):
        mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
        args = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in case.call]
        try:
            with mode:
                OPS[op].overload(*args)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            assert first_line(error) == wanted[op, case.label], case.label
            refused += 1
    assert refused or not any(c.op == op for c in REFUSED)


@pytest.mark.parametrize("op", checked_ops())
def test_compiled_and_exported_calls_say_it(op, caplog):
    """PyTorch puts words of its own around a message, and the message is among them whole."""
    caplog.set_level(logging.CRITICAL)  # fake tensors log every refusal with its stack
    wanted = known()
    for case in [c for c in REFUSED if c.op == op][:5]:
        torch.compiler.reset()
        message = wanted[op, case.label]
        compiled = torch.compile(
            lambda *a: OPS[op].overload(*a), fullgraph=True, backend="aot_eager"
        )
        with pytest.raises(Exception) as caught:
            compiled(*copy.deepcopy(case.call))
        assert message in str(caught.value).replace("\\'", "'"), case.label

        class Exported(torch.nn.Module):
            def __init__(self, case):
                super().__init__()
                self.rest = case.call

            def forward(self, *tensors):
                tensors = iter(tensors)
                args = [next(tensors) if isinstance(a, torch.Tensor) else a for a in self.rest]
                return OPS[op].overload(*args)

        tensors = tuple(a for a in copy.deepcopy(case.call) if isinstance(a, torch.Tensor))
        with pytest.raises(Exception) as caught:
            torch.export.export(Exported(case), tensors).module()(*tensors)
        assert message in str(caught.value).replace("\\'", "'"), case.label


def test_no_message_names_a_file_of_the_build():
    for message in known().values():
        assert "/" not in message and ".h" not in message, message


def test_refusals_are_outcomes_of_verify():
    """``verify`` compares the words that a case names; these are in the table too."""
    wanted = known()
    for case in REFUSED:
        assert case.raises in wanted[case.op, case.label]
        assert check_case(case, implementations(case.op)["reference"]).passed


if __name__ == "__main__":
    TABLE.write_text("".join(f"{line(case)}\n" for case in REFUSED), "utf-8")
