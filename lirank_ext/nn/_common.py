"""Argument checks and buffer handling shared by the modules of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def refuse(
    owner: str, argument: str, wanted: str, got: Any, error: type[Exception] = ValueError
) -> NoReturn:
    """Raise ``owner: argument 'name': wanted ..., got ...``."""
    raise error(f"{owner}: argument '{argument}': wanted {wanted}, got {got}")


def check_positive(owner: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            refuse(owner, name, "a positive whole number", repr(size))


def check_number(
    owner: str, argument: str, value: float, wanted: str, low: float, high: float, edges: str = "()"
) -> None:
    """Refuse unless ``value`` is a number in the interval.

    ``edges`` is written as in mathematics: ``"[)"`` includes ``low`` and excludes ``high``.
    """
    inside = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = inside and (value >= low if edges[0] == "[" else value > low)
    inside = inside and (value <= high if edges[1] == "]" else value < high)
    if not inside:
        refuse(owner, argument, wanted, repr(value))


def check_dims(owner: str, argument: str, dims: Sequence[int], least: int) -> None:
    """Refuse unless ``dims`` is a sequence of at least ``least`` positive whole numbers."""
    good = isinstance(dims, (list, tuple)) and len(dims) >= least
    if not good or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in dims):
        refuse(owner, argument, f"at least {least} positive whole numbers", repr(dims))


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(owner: str, argument: str, value: Any, choices: Sequence[str | None]) -> None:
    if value not in choices:
        hint = did_you_mean(value, (c for c in choices if c is not None))
        text = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        refuse(owner, argument, text, f"{value!r}{hint}")


def check_shape(owner: str, argument: str, t: Tensor, *wanted: int | str) -> None:
    """Refuse unless the shape fits. A word such as ``"B"`` accepts any size."""
    fits = t.dim() == len(wanted)
    fits = fits and all(isinstance(w, str) or w == n for w, n in zip(wanted, t.shape, strict=True))
    if not fits:
        text = "(" + ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "") + ")"
        refuse(owner, argument, f"shape {text}", tuple(t.shape))


def check_finite(owner: str, argument: str, t: Tensor) -> None:
    bad = ~t.isfinite()
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        refuse(owner, argument, "finite numbers", f"{t[at].item()} at {at}")


class ResizingBuffers(nn.Module):
    """A module whose buffers are resized to fit the state dict that is loaded."""

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        for name, old in list(self._buffers.items()):
            new = state_dict.get(prefix + name)
            if old is not None and new is not None and new.shape != old.shape:
                setattr(self, name, old.new_empty(new.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def keep_axis(module: nn.Module, name: str, state_dict: dict, prefix: str) -> None:
    """Let a parameter of shape (1,) load from a state dict that holds it without an axis.

    Sharding over processes takes no parameter without an axis.
    """
    given = state_dict.get(prefix + name)
    if isinstance(given, Tensor) and given.dim() == 0 and module._parameters.get(name) is not None:
        state_dict[prefix + name] = given.reshape(1)


class ConstantBuffers(nn.Module):
    """A module with buffers that its constructor's arguments determine.

    They are not saved. A module that was built on the meta device has them once it is moved to a
    device, by ``to_empty`` or by loading a state dict with ``assign=True``.
    """

    def constant(self, name: str, values: Sequence[int] | Sequence[bool]) -> None:
        """Register a buffer that holds these values."""
        kept = self.__dict__.setdefault("_constants", {})
        kept[name] = torch.tensor(list(values), device="cpu")
        self.register_buffer(name, torch.tensor(list(values)), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._fill_constants(None)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        held = (t for k, t in state_dict.items() if k.startswith(prefix))
        given = (t.device for t in held if isinstance(t, Tensor))
        self._fill_constants(next(given, None))

    def _fill_constants(self, device: torch.device | None) -> None:
        """Give every constant its values, on ``device`` if it has no memory yet."""
        for name, values in self._constants.items():
            old = self._buffers[name]
            if type(old) is not Tensor:  # a fake tensor has no values
                continue
            if old.is_meta and device is not None:
                self._buffers[name] = values.to(device)
            elif not old.is_meta and not torch.equal(old, values.to(old.device)):
                old.copy_(values)


class Float64Buffers(nn.Module):
    """A module whose buffers keep their dtype: ``.half()`` and ``.float()`` do not cast them."""

    def _apply(self, fn, recurse=True):
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in kept.items():
            if old is not None and self._buffers[name].dtype != old.dtype:
                self._buffers[name] = old.to(self._buffers[name].device)
        return self
