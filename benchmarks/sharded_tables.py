"""What one table of ids costs a device where it is spread over many: memory, and bytes sent a step.

``python -m lirank_ext.benchmarks.sharded_tables`` prints the table of docs/guides/many-gpus.md. It
is arithmetic, not a measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

DEVICES = (8, 16, 32, 64, 128, 256, 512)
ID, NUMBER = 8, 4  # bytes of an id or a row number, and of a float32


@dataclass(frozen=True)
class Load:
    """One feature and its batch.

    Attributes:
        ids: how many different ids there are.
        dim: width of a vector.
        batch: bags of a device and step.
        bag: ids of a bag.
        buckets, remainders: of the hashed tables.
    """

    ids: int = 4_000_000_000
    dim: int = 64
    batch: int = 4096
    bag: int = 20
    buckets: int = 2**32
    remainders: int = 1000

    @property
    def row(self) -> int:
        """Bytes of a row, and of the one sum that row-wise AdaGrad keeps for it."""
        return NUMBER * self.dim + NUMBER

    @property
    def sums(self) -> int:
        """Bytes of the pooled vectors of one device's batch."""
        return NUMBER * self.batch * self.dim

    @property
    def numbers(self) -> int:
        """Bytes of the ids, or of one row number each, of one device's batch."""
        return ID * self.batch * self.bag


def a_row_for_each_id(load: Load, w: int) -> tuple[float, float]:
    """One table of all ids, row-wise in TorchRec.

    memory = ids * row / w; sent = numbers * (w - 1) / w + 2 * (w - 1) * sums
    """
    sent = load.numbers * (w - 1) / w + 2 * (w - 1) * load.sums
    return load.ids * load.row / w, sent


def hashed_by_rows(load: Load, w: int) -> tuple[float, float]:
    """The quotient tables row-wise, the remainder tables whole on one device each, in TorchRec.

    memory = (2 * quotients / w + remainders) * row on a device that holds a remainder table;
    sent = 4 * numbers * (w - 1) / w + 2 * 2 * (w - 1) * sums + 2 * 2 * sums * (w - 1) / w

    The second term is what the row-wise tables send forward and backward. The third is that of the
    remainder tables, the average of all devices.
    """
    share = (w - 1) / w
    quotients = -(-load.buckets // load.remainders)
    memory = (2 * quotients / w + load.remainders) * load.row
    return memory, 4 * load.numbers * share + 4 * (w - 1) * load.sums + 4 * load.sums * share


def hashed_whole(load: Load, w: int) -> tuple[float, float]:
    """Each of the four tables whole on one device, in TorchRec.

    memory = quotients * row on a device that holds a quotient table;
    sent = 4 * numbers * (w - 1) / w + 2 * 4 * sums * (w - 1) / w, the average of all devices
    """
    share = (w - 1) / w
    quotients = -(-load.buckets // load.remainders)
    return quotients * load.row, 4 * load.numbers * share + 8 * load.sums * share


def hashed_by_shard_rows(load: Load, w: int) -> tuple[float, float]:
    """``nn.shard_rows``: all ids to all devices, and the four rows of an id added before they go.

    memory = 2 * (quotients + remainders) * row / w; sent = (w - 1) * (numbers + 2 * sums)
    """
    rows = 2 * (-(-load.buckets // load.remainders) + load.remainders)
    return rows * load.row / w, (w - 1) * (load.numbers + 2 * load.sums)


PLANS = {
    "a row for each id": a_row_for_each_id,
    "hashed, by rows": hashed_by_rows,
    "hashed, whole tables": hashed_whole,
    "hashed, `shard_rows`": hashed_by_shard_rows,
}


def lines(load: Load) -> Iterator[str]:
    """The table, in Markdown."""
    yield f"| GPUs | {' | '.join(PLANS)} |"
    yield "|---:|" + "---:|" * len(PLANS)
    for w in DEVICES:
        cells = []
        for plan in PLANS.values():
            memory, sent = plan(load, w)
            cells.append(f"{memory / 1e9:.3g} GB, {sent / 1e6:.3g} MB")
        yield f"| {w} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in Load.__dataclass_fields__:
        default = getattr(Load, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default:,}")
    print("\n".join(lines(Load(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
