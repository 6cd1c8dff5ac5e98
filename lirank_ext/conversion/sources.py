"""The module types that ``swap`` knows, and how each of them is converted.

They come from this package, TorchRec, FuxiCTR, DeepCTR-Torch, Torch-RecHub and TorchEasyRec. Types
of other packages are recognized by package and class name, so none of them is imported here. The
new modules hold the same parameter objects under the same names and in the same order, so
optimizers, their saved states, checkpoints and frozen layers are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.cross import AttentionCross, LowRankCross, ResidualCrossNet
from ..nn.cross_net import FullRankCrossNet, LowRankCrossNet, MixtureCrossNet
from ..nn.hashed_embedding import HashedEmbeddingBag
from ..nn.isotonic import IsotonicCalibration
from ..nn.reference_cross import (
    ReferenceAttentionCross,
    ReferenceLowRankCross,
    ReferenceResidualCrossNet,
)
from ..nn.reference_hashed_embedding import ReferenceHashedEmbeddingBag
from ..nn.reference_isotonic import ReferenceIsotonicCalibration
from .surgery import Leave

Convert = Callable[[nn.Module], nn.Module]

# Maps a reference module to its fast twin. Both have the same parameters and attributes, so only
# the class changes.
TWINS: dict[type[nn.Module], type[nn.Module]] = {
    ReferenceLowRankCross: LowRankCross,
    ReferenceAttentionCross: AttentionCross,
    ReferenceResidualCrossNet: ResidualCrossNet,
    ReferenceIsotonicCalibration: IsotonicCalibration,
    ReferenceHashedEmbeddingBag: HashedEmbeddingBag,
}

ELEMENTWISE = (
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.tanh, F.sigmoid, F.gelu, F.silu),
    *(F.leaky_relu, F.elu, F.softplus, F.relu6),
)
ELEMENTWISE_MODULES = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU)

# Names of types that a user may expect ``swap`` to replace.
CANDIDATE = re.compile(r"cross_?(net|layer)|dcn|low_?rank|isotonic|hash\w*embedding", re.I)


def name_of(module: nn.Module) -> str:
    """Package and class of a module's type, without the file, which may differ by version."""
    return _name(type(module))


def _name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def known_base(module: nn.Module, user_types: tuple[type, ...]) -> type | None:
    """The known type that the module's type derives from, or None."""
    for kind in type(module).__mro__[1:]:
        if kind in TWINS or kind in user_types or _name(kind) in FOREIGN:
            return kind
    return None


def _expect(fits: bool, what: str) -> None:
    if not fits:
        raise Leave(f"its parameters differ from those that swap expects: {what}")


def _stack(module: nn.Module, name: str, dims: int) -> list[Tensor]:
    """The tensors of a ParameterList, or of one stacked parameter; they must have ``dims``."""
    held = getattr(module, name, None)
    _expect(isinstance(held, (nn.ParameterList, nn.Parameter)), f"no '{name}'")
    tensors = [held[i] for i in range(len(held))]
    _expect(len(tensors) > 0 and all(t.dim() == dims for t in tensors), f"'{name}'")
    return tensors


def _stacked(module: nn.Module, *names: str) -> list[tuple[Tensor, ...]]:
    """One tuple of tensors for each layer, from lists or stacked parameters of these names."""
    return list(zip(*([*getattr(module, name)] for name in names), strict=True))


def _linears(module: nn.Module, name: str) -> nn.ModuleList:
    held = getattr(module, name, None)
    fits = isinstance(held, nn.ModuleList) and all(type(layer) is nn.Linear for layer in held)
    _expect(fits and len(held) > 0, f"no linear layers '{name}'")
    return held


def _of_torchrec(module: nn.Module) -> list[tuple[Tensor, ...]]:
    return _stacked(module, "V_kernels", "W_kernels", "bias")


def _low_rank(module: nn.Module) -> nn.Module:
    """TorchRec's LowRankCrossNet: W_kernels (d, r), V_kernels (r, d), bias (d,)."""
    w, v = _stack(module, "W_kernels", 2), _stack(module, "V_kernels", 2)
    bias = _stack(module, "bias", 1)
    dim, rank = w[0].shape
    for tensors, shape in ((w, (dim, rank)), (v, (rank, dim)), (bias, (dim,))):
        _expect(len(tensors) == len(w) and all(t.shape == shape for t in tensors), f"{shape}")
    return LowRankCrossNet.on(module, _of_torchrec)


def _of_easyrec(module: nn.Module) -> list[tuple[Tensor, ...]]:
    pairs = zip(module.u_kernels, module.v_kernels, strict=True)
    return [(first.weight, second.weight, second.bias) for first, second in pairs]


def _low_rank_linears(module: nn.Module) -> nn.Module:
    """TorchEasyRec's CrossV2: u_kernels are Linear(d, r) without, v_kernels (r, d) with bias."""
    first, second = _linears(module, "u_kernels"), _linears(module, "v_kernels")
    _expect(len(first) == len(second), "'v_kernels'")
    for down, up in zip(first, second, strict=True):
        fits = up.weight.shape == down.weight.shape[::-1] and down.bias is None
        _expect(fits and up.bias is not None, "kernels or biases of other shapes")
    return LowRankCrossNet.on(module, _of_easyrec)


def _of_kernels(module: nn.Module) -> list[tuple[Tensor, ...]]:
    return _stacked(module, "kernels", "bias")


def _full_rank(module: nn.Module) -> nn.Module:
    """TorchRec's and DeepCTR-Torch's CrossNet: kernels (d, d), bias (d, 1)."""
    if getattr(module, "parameterization", "matrix") == "vector":
        raise Leave("its kernels are vectors and its bias is outside the product (DCN-V1)")
    kernels, bias = _stack(module, "kernels", 2), _stack(module, "bias", 2)
    dim = kernels[0].shape[0]
    _expect(all(k.shape == (dim, dim) for k in kernels), "kernels that are not square")
    _expect(all(b.shape == (dim, 1) for b in bias) and len(bias) == len(kernels), "'bias'")
    return FullRankCrossNet.on(module, _of_kernels)


def _of_cross_layers(module: nn.Module) -> list[tuple[Tensor, ...]]:
    return [(layer.weight, layer.bias) for layer in module.cross_layers]


def _full_rank_linears(module: nn.Module) -> nn.Module:
    """FuxiCTR's CrossNetV2: cross_layers are Linear(d, d). Ours takes about the same time."""
    for layer in _linears(module, "cross_layers"):
        square = layer.in_features == layer.out_features
        _expect(square and layer.bias is not None, "layers that are not square or lack a bias")
    return FullRankCrossNet.on(module, _of_cross_layers)


Mixed = tuple[list[tuple[Tensor, ...]], Any]


def _of_kernel_mixture(module: nn.Module) -> Mixed:
    layers = _stacked(module, "V_kernels", "C_kernels", "U_kernels", "bias")
    return layers, getattr(module, "gates", None) or ()


def _of_list_mixture(module: nn.Module) -> Mixed:
    upper = hasattr(module, "U_list")
    names = ("V_list", "C_list", "U_list") if upper else ("v_list", "c_list", "u_list")
    return _stacked(module, *names, "bias"), module.gating


def _mixture(module: nn.Module) -> nn.Module:
    """TorchRec's LowRankMixtureCrossNet; CrossNetMix of FuxiCTR, DeepCTR-Torch, Torch-RecHub."""
    theirs = hasattr(module, "U_kernels")
    names = ("U_kernels", "V_kernels", "C_kernels") if theirs else ("U_list", "V_list", "C_list")
    if not hasattr(module, names[0]):
        names = tuple(name.lower() for name in names)  # Torch-RecHub
    u, v, c = (_stack(module, name, 3) for name in names)
    bias = _stack(module, "bias", 2)
    experts, dim, rank = u[0].shape
    v_shape = (experts, rank, dim) if theirs else (experts, dim, rank)
    _expect(all(t.shape == v_shape for t in v), f"'{names[1]}'")
    _expect(all(t.shape == (experts, rank, rank) for t in c), f"'{names[2]}'")
    _expect(all(t.shape == (dim, 1) for t in bias), "'bias'")
    activation = getattr(module, "_activation", torch.relu) if theirs else torch.tanh
    if activation not in ELEMENTWISE and type(activation) not in ELEMENTWISE_MODULES:
        raise Leave(f"its activation {activation!r} is not known to be elementwise")
    gates = getattr(module, "gates" if theirs else "gating", None)
    if gates is None or len(gates) != experts:
        _expect(experts == 1 and theirs, "the gates")
    held = _of_kernel_mixture if theirs else _of_list_mixture
    options = {"activation": activation, "v_is_transposed": not theirs}
    return MixtureCrossNet.on(module, held, **options)


def _outside(module: nn.Module) -> nn.Module:
    raise Leave("its bias is outside the product; its layers are one matrix product each already")


def _vector(module: nn.Module) -> nn.Module:
    raise Leave("its kernels are vectors and its bias is outside the product (DCN-V1)")


FOREIGN: dict[str, Convert] = {
    "torchrec.LowRankCrossNet": _low_rank,
    "torchrec.CrossNet": _full_rank,
    "torchrec.LowRankMixtureCrossNet": _mixture,
    "torchrec.VectorCrossNet": _vector,
    "fuxictr.CrossNetMix": _mixture,
    "fuxictr.CrossNetV2": _full_rank_linears,
    "fuxictr.CrossNet": _vector,
    "deepctr_torch.CrossNet": _full_rank,
    "deepctr_torch.CrossNetMix": _mixture,
    "torch_rechub.CrossNetMix": _mixture,
    "torch_rechub.CrossNetV2": _outside,
    "torch_rechub.CrossNetwork": _vector,
    "tzrec.CrossV2": _low_rank_linears,
}

ONE_ROW = "keeps the batch axis of a single row, which the original drops"
NOTES = {"fuxictr.CrossNetMix": ONE_ROW, "deepctr_torch.CrossNetMix": ONE_ROW}
NOTES["torch_rechub.CrossNetMix"] = ONE_ROW
