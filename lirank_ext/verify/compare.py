"""Compare every backend of every op with the float64 reference.

The reference is plain PyTorch, a few lines beside each op (``lirank_ext/ops``), and is run
in float64 on the same numbers. Integer results (hashes, codes, rows) must be equal to the
bit. Where an op changes tensors in place, these are its results. A result is also wrong if its
shape or dtype is not what the fake kernel promises, if another input was changed, or if a refused
input was not refused. An exception where a result was wanted, even in the reference or in the
making of the inputs, is a failure of that row.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..library.build_info import planned_backend, why_absent
from ..library.op import OPS, implementations
from .cases import Case, all_cases
from .outcome import Outcome, Row, map_tensors, worse

EPSILON = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
# A gradient of outer_attention at rank 256, in plain C++, needs 1 / 25: a difference of large sums.
SMALLEST_ROW = 1 / 16
REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)


def _widen(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t


def _outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _results(case: Case, implementation: Callable[..., Any], args: tuple) -> list[Tensor]:
    """What a call gives: its outputs, or the tensors that the op changes in place."""
    given, mutated = implementation(*args), OPS[case.op].mutated
    if not mutated:
        return _outputs(given)
    return [args[i] for i in mutated if i < len(args) and args[i] is not None]


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
    error, largest = _worst_row(got64 - wanted64, wanted64, finite)
    allowed = case.tolerance * EPSILON[got.dtype] * largest
    allowed = max(allowed, torch.finfo(got.dtype).tiny)
    problem = "" if error <= allowed else f"{what}: error {error:.2e}, allowed {allowed:.2e}"
    return Outcome(case, error, allowed, problem)


def _worst_row(difference: Tensor, wanted: Tensor, finite: Tensor) -> tuple[float, float]:
    """The error of the row that is worst for its size, and the size by which it is judged.

    A row is judged by its own largest value, so that a large row hides no wrong small one; but by
    no less than a share of the largest value of all, since small rows may be differences of large
    numbers. A result of one dimension is one row.
    """
    rows = (-1, *wanted.shape[1:]) if wanted.dim() > 1 else (1, -1)
    error, size = (
        torch.where(finite, t.abs(), 0.0).reshape(rows).flatten(1).amax(1)
        for t in (difference, wanted)
    )
    size = size.clamp(min=float(size.max()) * SMALLEST_ROW)
    worst = int((error / size.clamp(min=torch.finfo(size.dtype).tiny)).argmax())
    return float(error[worst]), float(size[worst])


def _check_refusal(case: Case, implementation: Callable[..., Any], args: tuple) -> Outcome:
    try:
        implementation(*args)
        _raise_late_errors(args)
    except REFUSALS as error:
        if case.raises in str(error):
            return Outcome(case)
        return Outcome(case, problem=f"refused with another message: {error}")
    return Outcome(case, problem="bad input was accepted")


def _raise_late_errors(args: tuple) -> None:
    """On a GPU an index out of range is counted, and raised by ``check_errors()``."""
    import lirank_ext

    if any(t.is_cuda for t in _tensors(args)):
        lirank_ext.check_errors()


def _with_grad(case: Case, args: tuple, wide: bool) -> tuple:
    """Fresh leaves for the arguments whose gradients are wanted."""
    made = list(args)
    for i in case.trained:
        leaf = _widen(args[i]) if wide else args[i]
        made[i] = leaf.detach().clone().requires_grad_()
    return tuple(made)


def _check_backward(case: Case, reference, implementation, args: tuple, wide: tuple) -> Outcome:
    fast, slow = _with_grad(case, args, False), _with_grad(case, wide, True)
    out, wanted = _outputs(implementation(*fast))[0], _outputs(reference(*slow))[0]
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device)
    g = g.to(out.dtype)
    got = torch.autograd.grad(out, [fast[i] for i in case.trained], g, allow_unused=True)
    need = torch.autograd.grad(
        wanted, [slow[i] for i in case.trained], g.double(), allow_unused=True
    )
    outcomes = []
    for name, i, a, b in zip(case.grad, case.trained, got, need, strict=True):
        b = torch.zeros_like(slow[i]) if b is None else b
        if a is None:
            outcomes.append(Outcome(case, problem=f"gradient of argument {name!r} is missing"))
        else:
            outcomes.append(_compare(a, b, case, False, f"gradient of argument {name!r}"))
    return worse(outcomes)


def _check_forward(case: Case, reference, implementation, args: tuple, wide: tuple) -> Outcome:
    wanted = _results(case, reference, wide)
    meta = tuple(map_tensors(a, lambda t: t.to("meta")) for a in case.call)
    promised = _results(case, OPS[case.op].overload, meta)
    _poison(wanted)
    got = _results(case, implementation, args)
    if len(got) != len(wanted):
        return Outcome(case, problem=f"{len(got)} results, wanted {len(wanted)}")
    outcomes = []
    for i, (a, b, fake) in enumerate(zip(got, wanted, promised, strict=True)):
        what = "result" if len(got) == 1 else f"result {i}"
        if a.dtype != fake.dtype or a.shape != fake.shape:
            text = f"{what}: {a.dtype} {tuple(a.shape)}, the fake kernel promised "
            text += f"{fake.dtype} {tuple(fake.shape)}"
            outcomes.append(Outcome(case, problem=text))
        else:
            outcomes.append(_compare(a, b, case, case.exact, what))
    return worse(outcomes)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _bits(args: tuple) -> list[Tensor]:
    """Copies of the tensors as bytes, in which NaN equals NaN."""
    copies = (t.detach().clone(memory_format=torch.contiguous_format) for t in _tensors(args))
    return [t.view(-1, 1).view(torch.uint8) for t in copies]


def _check(case: Case, implementation: Callable[..., Any], args: tuple) -> Outcome:
    if case.raises is not None:
        return _check_refusal(case, implementation, args)
    reference = OPS[case.op].reference
    wide = args if case.exact else tuple(map_tensors(a, _widen) for a in args)
    if OPS[case.op].mutated:
        wide = copy.deepcopy(wide)
    outcome = _check_forward(case, reference, implementation, args, wide)
    if case.grad and outcome.passed:
        backward = _check_backward(case, reference, implementation, args, wide)
        outcome = worse([outcome, backward])
    return outcome


def check_case(case: Case, implementation: Callable[..., Any], device: str = "cpu") -> Outcome:
    """Run one case through one backend, forward and backward.

    Args:
        case: the input, and what is expected of it.
        implementation: one of ``implementations(case.op)``.
        device: where the input is put.

    Returns:
        The outcome; an exception where a result was wanted is a failure.
    """
    # A copy with strides and shared storage kept: what changes it must not spoil the next row.
    args = _on_device(copy.deepcopy(case.call), device)
    kept = tuple(a for i, a in enumerate(args) if i not in OPS[case.op].mutated)
    before = _bits(kept)
    try:
        outcome = _check(case, implementation, args)
    except Exception as error:
        outcome = Outcome(case, problem=f"raised {type(error).__name__}: {_first_line(error)}")
    if not all(map(torch.equal, _bits(kept), before)):
        return Outcome(case, problem="an input was changed")
    return outcome


def _on_device(call: Iterable[Any], device: str) -> tuple:
    """The arguments of a call on a device, with offsets, strides and shared storage kept.

    ``Tensor.to`` would make strided and misaligned tensors contiguous, and a kernel would never
    see them.
    """
    moved: dict[int, torch.UntypedStorage] = {}

    def move(t: Tensor) -> Tensor:
        if t.device.type == device or t.layout != torch.strided:
            return t.to(device)
        storage = t.untyped_storage()
        if storage.data_ptr() not in moved:
            raw = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
            moved[storage.data_ptr()] = raw.to(device).untyped_storage()
        empty = torch.empty(0, dtype=t.dtype, device=device)
        kept = moved[storage.data_ptr()]
        return empty.set_(kept, t.storage_offset(), t.shape, t.stride()).requires_grad_(
            t.requires_grad
        )

    return tuple(map_tensors(a, move) for a in call)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def public_ops() -> list[str]:
    """The ops for users."""
    return [name for name, op in OPS.items() if not op.internal]


def checked_ops() -> list[str]:
    """The ops of every comparison: the public ones, and those that modules alone call.

    Backward ops are left out: the gradients of a public op show what they do.
    """
    return [name for name, op in OPS.items() if not op.internal or name in _covered()]


@functools.cache
def _covered() -> set[str]:
    """The ops that have cases."""
    return {case.op for case in all_cases()}


def _backends(name: str, device: str | None) -> list[tuple[str, str]]:
    """(backend, device) of the rows of one op; one GPU backend is registered for an op."""
    served = [b for b in ("triton", "cuda") if b in implementations(name)]
    absent = planned_backend(OPS[name]) or "triton"
    on_gpu = [(b, "cuda") for b in served or [absent]]
    if device == "cuda":
        return [("reference", "cuda"), *on_gpu]
    on_cpu = [("reference", "cpu"), ("cpu", "cpu")]
    return on_cpu if device == "cpu" else on_cpu + on_gpu


def _cases(name: str, seed: int) -> tuple[list[Case], list[Outcome]]:
    """The cases of an op, or what went wrong in making them."""
    try:
        return list(all_cases(name, seed)), []
    except Exception as error:
        text = f"raised {type(error).__name__}: {_first_line(error)}"
        return [], [Outcome(Case(name, "making the inputs", ()), problem=text)]


def verify(
    op: str | None = None,
    device: str | None = None,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Every public op (or one) on every backend.

    Args:
        op: name of one op, or None for all.
        device: ``"cpu"`` or ``"cuda"`` for the backends of one; None for those of both.
        seed: of the random inputs.
        tell: called after each op.

    Returns:
        One Row per op and backend; a backend that is not there has ``absent`` set and
        counts as not run.

    Raises:
        ValueError: no op of that name, or no such device.
    """
    if op is not None:
        implementations(op)  # names the known ops where it refuses
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"verify: argument 'device': wanted 'cpu' or 'cuda', got {device!r}")
    rows = []
    for name in checked_ops() if op is None else [op]:
        cases, problems = _cases(name, seed)
        usable = implementations(name)
        for backend, where in _backends(name, device):
            row = Row(name, backend, where)
            rows.append(row)
            if backend not in usable or (where == "cuda" and not torch.cuda.is_available()):
                row.absent = why_absent(backend)
                continue
            row.outcomes = problems + [check_case(c, usable[backend], where) for c in cases]
        tell()
    return rows
