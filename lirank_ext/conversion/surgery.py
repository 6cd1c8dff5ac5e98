"""What ``swap`` and ``quantize`` share: finding modules by path and exchanging them."""

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
    """A module stays as it is; the message says why."""


@dataclass(frozen=True)
class Found:
    """A module of a model and every path that leads to it; the model itself has the path ""."""

    module: nn.Module
    paths: tuple[str, ...]


def find(model: nn.Module) -> list[Found]:
    """Every module once, parents before their children, with all its paths."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return [Found(module, tuple(found)) for module, found in paths.items()]


def exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put ``new[module]`` wherever ``module`` stood below ``model``."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                # Not setattr: a container such as ParameterList has its own, and the child's
                # place in the order stays.
                parent._modules[name] = new[child]


def refuse_hooks(module: nn.Module) -> None:
    """Leave a module with hooks alone: they hold what is about to go."""
    for path, inner in module.named_modules():
        for kind in HOOKS:
            # A ParameterList and the like have none of their own; a pruned module has.
            if getattr(inner, kind, None):
                where = f" (in '{path}')" if path else ""
                raise Leave(f"it has {kind.strip('_').replace('_', ' ')}{where}; remove them first")


def type_name(module: nn.Module | type) -> str:
    """The class with its package: ``torchrec.LowRankCrossNet``; plain for torch's and ours."""
    kind = module if isinstance(module, type) else type(module)
    package, name = kind.__module__.split(".")[0], kind.__qualname__.rpartition(".")[2]
    return name if package in ("torch", "lirank_ext") else f"{package}.{name}"
