"""Every preset, float and quantized, through AOTInductor: ``python tests/aoti_presets.py``.

A package takes a minute to compile, so the suite compiles a few models and this script the rest:
``--preset feed`` and ``--bits 0`` (floats), 8 or 4 choose among them. It prints, for each model,
the largest difference from eager on a row, on rows without ids, on 300 rows and on histories of
several lengths, and ends with 1 where one is above a ten-thousandth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rankers import PRESETS, make_features, small

import lirank_ext
from lirank_ext.models import LiRank
from lirank_ext.training.export import (
    TOLERANCE,
    compile_package,
    difference,
    load_package,
    with_steps,
    without_ids,
)


def differences(name: str, bits: int) -> dict[str, float]:
    """The package of a small model of a preset beside eager, by batch."""
    torch.manual_seed(0)
    config = small(name)
    config.embedding.dim = 24  # narrower rows are no smaller in 8 bits
    model = LiRank(config).eval()
    if bits and not lirank_ext.quantize(model, bits).replaced:
        raise SystemExit(f"{name}: no table was quantized")
    features = {k: v for k, v in make_features(config, 4).items() if _is_read(config, k)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        compile_package(model, features, path)
        run = load_package(path, list(features))
        batches = {
            "1 row": make_features(config, 1),
            "no ids": without_ids(make_features(config, 5)),
            "300 rows": make_features(config, 300),
        }
        if config.schema.history:
            for steps in (2, 50):
                batches[f"{steps} steps"] = with_steps(make_features(config, 9), steps)
        return {batch: difference(run, model, given) for batch, given in batches.items()}


def _is_read(config, feature: str) -> bool:
    return feature != "popularity" or bool(config.schema.popularity)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, action="append")
    parser.add_argument("--bits", type=int, choices=(0, 8, 4), action="append")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    args = parser.parse_args()
    worst = 0.0
    for name in args.preset or PRESETS:
        for bits in args.bits or (0, 8):
            found = differences(name, bits)
            worst = max(worst, *found.values())
            if args.json:
                print(json.dumps({"preset": name, "bits": bits, **found}), flush=True)
                continue
            texts = ", ".join(f"{batch} {value:.1e}" for batch, value in found.items())
            print(f"{name}, {f'int{bits}' if bits else 'float'}: {texts}", flush=True)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
