"""What ``torch_releases.py`` runs on every release: compile, train, export, save, strings.

``python torch_releases_smoke.py FILE`` writes what passed to FILE, and ends with a traceback at the
first that fails. It needs torch, numpy and lirank_ext only.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import lirank_ext
from lirank_ext.library import load

# MurmurHash3_x64_128, first half, as the package mmh3 gives it for seed 0.
KNOWN = {"": 0, "member:1234": 8638187055353375445, "λ": -4776238778319520290}


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids = lirank_ext.nn.HashedEmbeddingBag(16, 500, 10, sparse=False)
        self.items = nn.EmbeddingBag(300, 16, mode="sum")
        self.cross = lirank_ext.nn.ResidualCrossNet(32, 4)
        self.score = nn.Linear(32, 1)
        self.calibration = lirank_ext.nn.IsotonicCalibration(-4.0, 4.0, 0.5)

    def forward(self, ids, offsets):
        features = torch.cat([self.ids(ids, offsets), self.items(ids % 300, offsets)], 1)
        return self.calibration(self.score(self.cross(features))[:, 0])


def bags(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(3 * count), torch.arange(count) * 3


def the_library() -> None:
    assert load.extension is not None, load.why_no_extension


def strings() -> None:
    assert lirank_ext.hash_strings(list(KNOWN)).tolist() == list(KNOWN.values())
    many = [f"member:{i}" for i in range(70_000)]
    table = lirank_ext.nn.StaticVocabulary.build(many)
    assert table(many).sort().values.equal(torch.arange(len(many)))


def compiled(model: nn.Module) -> None:
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (3, 8, 17):
        torch.testing.assert_close(fast(*bags(count)), model(*bags(count)))


def trained(model: nn.Module) -> None:
    fast = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    gradients = []
    for one in (model, fast):
        model.zero_grad()
        one(*bags(9)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 5
    torch.testing.assert_close(*gradients)


def exported(model: nn.Module) -> None:
    batch, total = torch.export.Dim("batch"), torch.export.Dim("total")
    with torch.no_grad():
        program = torch.export.export(
            model, bags(5), dynamic_shapes={"ids": {0: total}, "offsets": {0: batch}}
        )
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, Path(folder) / "model.pt2")
        program = torch.export.load(Path(folder) / "model.pt2")
    torch.testing.assert_close(program.module()(*bags(31)), model(*bags(31)))


def quantized(model: nn.Module) -> None:
    lirank_ext.quantize(model, bits=8)
    compiled(model)
    exported(model)


def opcheck() -> None:
    x, v, u = torch.randn(5, 16), torch.randn(4, 16), torch.randn(16, 4)
    arguments = [t.requires_grad_() for t in (x, x.clone(), v, u, torch.randn(16))]
    torch.library.opcheck(torch.ops.lirank.low_rank_cross.default, tuple(arguments))


def main() -> int:
    torch.manual_seed(0)
    model, passed = Ranker(), []
    for check, given in (
        (the_library, ()),
        (strings, ()),
        (opcheck, ()),
        (trained, (model,)),
        (compiled, (model.eval(),)),
        (exported, (model,)),
        (quantized, (model,)),
    ):
        check(*given)
        passed.append(check.__name__.replace("_", " "))
    report = {"torch": torch.__version__, "way": load.extension.way, "passed": passed}
    Path(sys.argv[1]).write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
