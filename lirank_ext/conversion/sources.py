"""The module types that ``swap`` knows, and how each of them is converted.

They come from this package, TorchRec, FuxiCTR and DeepCTR-Torch. Types of other packages are
recognized by package and class name, so none of them is imported here. The new modules hold the
same parameter objects, so optimizers and frozen layers are not affected.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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


def _low_rank(module: nn.Module) -> nn.Module:
    """TorchRec's LowRankCrossNet: W_kernels (d, r), V_kernels (r, d), bias (d,)."""
    w, v = _stack(module, "W_kernels", 2), _stack(module, "V_kernels", 2)
    bias = _stack(module, "bias", 1)
    dim, rank = w[0].shape
    for tensors, shape in ((w, (dim, rank)), (v, (rank, dim)), (bias, (dim,))):
        _expect(len(tensors) == len(w) and all(t.shape == shape for t in tensors), f"{shape}")
    with torch.device("meta"):  # takes no memory and draws no random numbers
        net = LowRankCrossNet(dim, rank, len(w))
    for layer, *tensors in zip(net.layers, v, w, bias, strict=True):
        layer.v, layer.u, layer.bias = tensors
    return net


def _full_rank(module: nn.Module) -> nn.Module:
    """TorchRec's and DeepCTR-Torch's CrossNet: kernels (d, d), bias (d, 1)."""
    if getattr(module, "parameterization", "matrix") == "vector":
        raise Leave("its kernels are vectors and its bias is outside the product (DCN-V1)")
    kernels, bias = _stack(module, "kernels", 2), _stack(module, "bias", 2)
    dim = kernels[0].shape[0]
    _expect(all(k.shape == (dim, dim) for k in kernels), "kernels that are not square")
    _expect(all(b.shape == (dim, 1) for b in bias) and len(bias) == len(kernels), "'bias'")
    with torch.device("meta"):
        net = FullRankCrossNet(dim, len(kernels))
    return _hand_over(net, kernels=module.kernels, bias=module.bias)


def _mixture(module: nn.Module) -> nn.Module:
    """TorchRec's LowRankMixtureCrossNet, FuxiCTR's and DeepCTR-Torch's CrossNetMix."""
    theirs = hasattr(module, "U_kernels")
    names = ("U_kernels", "V_kernels", "C_kernels") if theirs else ("U_list", "V_list", "C_list")
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
        gates = None
        _expect(experts == 1 and theirs, "the gates")
    with torch.device("meta"):
        net = MixtureCrossNet(dim, rank, len(u), experts, activation)
    held = {"u": names[0], "v": names[1], "c": names[2], "bias": "bias"}
    net = _hand_over(net, **{ours: getattr(module, name) for ours, name in held.items()})
    net.gates = nn.ModuleList() if gates is None else gates
    net.v_is_transposed = not theirs
    return net


def _hand_over(net: nn.Module, **held: nn.Module | nn.Parameter) -> nn.Module:
    """Replace the new net's parameter lists by those of the source."""
    for name, value in held.items():
        delattr(net, name)
        setattr(net, name, value)
    return net


def _already_fast(module: nn.Module) -> nn.Module:
    raise Leave("its layers are one matrix product each, and nothing here is faster")


def _vector(module: nn.Module) -> nn.Module:
    raise Leave("its kernels are vectors and its bias is outside the product (DCN-V1)")


FOREIGN: dict[str, Convert] = {
    "torchrec.LowRankCrossNet": _low_rank,
    "torchrec.CrossNet": _full_rank,
    "torchrec.LowRankMixtureCrossNet": _mixture,
    "torchrec.VectorCrossNet": _vector,
    "fuxictr.CrossNetMix": _mixture,
    "fuxictr.CrossNetV2": _already_fast,
    "fuxictr.CrossNet": _vector,
    "deepctr_torch.CrossNet": _full_rank,
    "deepctr_torch.CrossNetMix": _mixture,
}

ONE_ROW = "keeps the batch axis of a single row, which the original drops"
NOTES = {"fuxictr.CrossNetMix": ONE_ROW, "deepctr_torch.CrossNetMix": ONE_ROW}
