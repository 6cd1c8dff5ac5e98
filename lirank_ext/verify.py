"""Compare every backend of every op with the float64 reference.

The reference is plain PyTorch, a few lines beside each op (``lirank_ext/ops``), and is run
in float64 on the same numbers. Integer results (hashes, codes, rows) must be equal to the
bit. A result is also wrong if its shape or dtype is not what the fake kernel promises, if an
input was changed, or if a refused input was not refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._library import OPS, implementations
from .cases import Case, all_cases

EPSILON = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)


@dataclass
class Outcome:
    """What one case showed: the error as a share of what is allowed, and what was wrong."""

    case: Case
    error: float = 0.0
    allowed: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass
class Row:
    """One op on one backend."""

    op: str
    backend: str
    outcomes: list[Outcome] = field(default_factory=list)
    absent: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.outcomes) and all(o.passed for o in self.outcomes)

    @property
    def worst(self) -> Outcome:
        """The first failure, else the outcome that comes closest to its allowance."""
        failed = [o for o in self.outcomes if not o.passed]
        return failed[0] if failed else max(self.outcomes, key=lambda o: o.error / (o.allowed or 1))


def _map(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(v, function) for v in value)
    return value


def _widen(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _poison(outputs: list[Tensor]) -> None:
    """Leave NaN in the blocks the allocator is about to hand out again."""
    for t in outputs:
        if t.device.type != "meta" and t.is_floating_point():
            torch.full_like(t, float("nan"))


def _compare(got: Tensor, wanted: Tensor, case: Case, exact: bool, what: str) -> Outcome:
    if got.is_sparse:
        got = got.to_dense()
    if got.shape != wanted.shape:
        text = f"{what}: shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
        return Outcome(case, problem=text)
    if exact or not got.is_floating_point():
        same = torch.equal(got, wanted)
        return Outcome(case, problem="" if same else f"{what}: not bit-equal")
    got64, wanted64 = got.double(), wanted.double()
    finite = wanted64.isfinite()
    odd = ~finite & ~((got64 == wanted64) | (got64.isnan() & wanted64.isnan()))
    if odd.any():
        return Outcome(case, problem=f"{what}: {int(odd.sum())} values differ from inf or NaN")
    if not finite.any():
        return Outcome(case)
    allowed = case.tolerance * EPSILON[got.dtype] * float(wanted64[finite].abs().max())
    allowed = max(allowed, torch.finfo(got.dtype).tiny)
    error = float((got64 - wanted64)[finite].abs().max())
    problem = "" if error <= allowed else f"{what}: error {error:.2e}, allowed {allowed:.2e}"
    return Outcome(case, error, allowed, problem)


def _worse(outcomes: list[Outcome]) -> Outcome:
    for outcome in outcomes:
        if not outcome.passed:
            return outcome
    return max(outcomes, key=lambda o: o.error / (o.allowed or 1.0))


def _check_refusal(case: Case, implementation: Callable[..., Any], args: tuple) -> Outcome:
    try:
        implementation(*args)
    except REFUSALS as error:
        if case.raises in str(error):
            return Outcome(case)
        return Outcome(case, problem=f"refused with another message: {error}")
    return Outcome(case, problem="bad input was accepted")


def _with_grad(case: Case, args: tuple, wide: bool) -> tuple:
    """Fresh leaves for the arguments whose gradients are wanted."""
    made = list(args)
    for i in case.grad:
        leaf = _widen(args[i]) if wide else args[i]
        made[i] = leaf.detach().clone().requires_grad_()
    return tuple(made)


def _check_backward(case: Case, reference, implementation, args: tuple, wide: tuple) -> Outcome:
    fast, slow = _with_grad(case, args, False), _with_grad(case, wide, True)
    out, wanted = _outputs(implementation(*fast))[0], _outputs(reference(*slow))[0]
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device)
    g = g.to(out.dtype)
    got = torch.autograd.grad(out, [fast[i] for i in case.grad], g, allow_unused=True)
    need = torch.autograd.grad(wanted, [slow[i] for i in case.grad], g.double(), allow_unused=True)
    outcomes = []
    for i, a, b in zip(case.grad, got, need, strict=True):
        b = torch.zeros_like(slow[i]) if b is None else b
        if a is None:
            outcomes.append(Outcome(case, problem=f"gradient of argument {i} is missing"))
        else:
            outcomes.append(_compare(a, b, case, False, f"gradient of argument {i}"))
    return _worse(outcomes)


def check_case(case: Case, implementation: Callable[..., Any], device: str = "cpu") -> Outcome:
    """Run one case through one backend, forward and backward."""
    op = OPS[case.op]
    args = tuple(_map(a, lambda t: t.to(device)) for a in case.args)
    before = [_map(a, torch.clone) for a in args]
    if case.raises is not None:
        outcome = _check_refusal(case, implementation, args)
    else:
        wide = args if case.exact else tuple(_map(a, _widen) for a in args)
        wanted = _outputs(op.reference(*wide))
        promised = _outputs(op.overload(*(_map(a, lambda t: t.to("meta")) for a in case.args)))
        _poison(wanted)
        got = _outputs(implementation(*args))
        outcomes = []
        for i, (a, b, fake) in enumerate(zip(got, wanted, promised, strict=True)):
            what = "result" if len(got) == 1 else f"result {i}"
            if a.dtype != fake.dtype or a.shape != fake.shape:
                text = f"{what}: {a.dtype} {tuple(a.shape)}, the fake kernel promised "
                text += f"{fake.dtype} {tuple(fake.shape)}"
                outcomes.append(Outcome(case, problem=text))
            outcomes.append(_compare(a, b, case, case.exact, what))
        if case.grad:
            outcomes.append(_check_backward(case, op.reference, implementation, args, wide))
        outcome = _worse(outcomes)
    for a, b in zip(args, before, strict=True):
        if isinstance(a, Tensor) and not torch.equal(a.nan_to_num(), b.nan_to_num()):
            return Outcome(case, problem="an input was changed")
    return outcome


def verify(op: str | None = None, device: str = "cpu", seed: int = 0) -> list[Row]:
    """Every public op (or one) on every backend usable for ``device``.

    Args:
        op: name of one op, or None for all.
        device: ``"cpu"`` or ``"cuda"``.
        seed: of the random inputs.

    Returns:
        One Row per op and backend; a backend that is not there has ``absent`` set and
        counts as not run.
    """
    wanted = "cpu" if device == "cpu" else "cuda"
    rows = []
    for name in [name for name, o in OPS.items() if not o.internal and op in (None, name)]:
        cases = list(all_cases(name, seed))
        usable = implementations(name)
        backends = ["reference", "cpu"] if wanted == "cpu" else ["reference", "triton", "cuda"]
        for backend in backends:
            row = Row(name, backend)
            rows.append(row)
            if backend not in usable:
                row.absent = "not built or not usable here"
                continue
            row.outcomes = [check_case(c, usable[backend], device) for c in cases]
    return rows
