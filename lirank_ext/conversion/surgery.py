"""Finds the modules of a model by path and exchanges them, for ``swap`` and ``quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Leave(Exception):
    """Raised to leave a module as it is. The message says why."""


@dataclass(frozen=True)
class Found:
    """A module of a model and every path that leads to it. The model itself has the path ""."""

    module: nn.Module
    paths: tuple[str, ...]


def find(model: nn.Module) -> list[Found]:
    """List every module once, with all its paths. Parents come before their children."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return [Found(module, tuple(found)) for module, found in paths.items()]


def exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace ``module`` by ``new[module]`` everywhere in ``model``."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                # Not setattr, because containers such as ParameterList define their own. This also
                # preserves the order of the children.
                parent._modules[name] = new[child]


def refuse_hooks(module: nn.Module) -> None:
    """Leave a module that has hooks, because they refer to the module that would be replaced."""
    for path, inner in module.named_modules():
        for kind in HOOKS:
            # Pruning adds such hooks. Some containers do not have every attribute.
            if getattr(inner, kind, None):
                where = f" (in '{path}')" if path else ""
                raise Leave(f"it has {kind.strip('_').replace('_', ' ')}{where}; remove them first")


def type_name(module: nn.Module | type) -> str:
    """The class with its package, as in ``torchrec.LowRankCrossNet``.

    Classes of torch and of this package have no prefix.
    """
    kind = module if isinstance(module, type) else type(module)
    package, name = kind.__module__.split(".")[0], kind.__qualname__.rpartition(".")[2]
    return name if package in ("torch", "lirank_ext") else f"{package}.{name}"
