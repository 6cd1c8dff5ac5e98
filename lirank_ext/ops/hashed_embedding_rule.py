"""What the look-ups in hashed tables share: the rule from an id to four rows, and its checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..library.checks import check, check_dtype, check_index_dtype, refuse, shape
from .bags import check_bags
from .hashing import murmur, murmur_hash

TABLES = ("quotient_b", "remainder_b", "quotient_c", "remainder_c")
HALF = 0xFFFFFFFF


def tables_of(a: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return a.quotient_b, a.remainder_b, a.quotient_c, a.remainder_c


def rows_of(
    ids: Tensor, num_buckets: int, num_remainders: int, seed: int, prehashed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(quotient_b, remainder_b, quotient_c, remainder_c) rows of each id, int64.

    Integer division throughout: a float32 one picks the wrong quotient for 8.5 % of ids.
    """
    hashes = ids if prehashed else murmur(ids.long(), seed)
    rows = []
    for half in (hashes & HALF, (hashes >> 32) & HALF):
        bucket = half % num_buckets
        rows += [bucket // num_remainders, bucket % num_remainders]
    return tuple(rows)


def hashed_rows(
    ids: Tensor,
    num_buckets: int = 2**32,
    num_remainders: int = 1000,
    seed: int = 0,
    prehashed: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that an id has in the four tables of a hashed vocabulary.

    For code that looks them up by other means, such as an engine that spreads tables over devices:
    an id's vector is the sum of these four rows.

    Args:
        ids: int64 or int32, any shape; int64 hashes with ``prehashed``.
        num_buckets: number of buckets for each half of a hash, 1 to 2^32.
        num_remainders: rows of a remainder table, 1 to 2^32 - 1.
        seed: seed of the hash, 0 to 2^32 - 1.
        prehashed: the ids are already hashes, such as those of ``hash_strings``.

    Returns:
        int64 rows in ``quotient_b``, ``remainder_b``, ``quotient_c`` and ``remainder_c``, each in
        the shape of ``ids``.

    Raises:
        ValueError: a size or the seed is out of range.
        TypeError: the ids have another dtype.
    """
    op = "hashed_rows"
    check(0 < num_buckets <= 1 << 32, op, "num_buckets", "1 to 2^32", num_buckets)
    check(0 < num_remainders <= HALF, op, "num_remainders", "1 to 2^32 - 1", num_remainders)
    kinds = (torch.int64,) if prehashed else (torch.int64, torch.int32)
    if ids.dtype not in kinds:
        refuse(op, "ids", f"wanted {' or '.join(map(str, kinds))}, got {ids.dtype}", TypeError)
    hashes = ids if prehashed else murmur_hash(ids, seed)
    return rows_of(hashes, num_buckets, num_remainders, seed, True)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is summed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_rule(a: Any) -> None:
    check(0 < a.num_buckets <= 1 << 32, a, "num_buckets", "1 to 2^32")
    check(0 <= a.seed <= HALF, a, "seed", "0 to 2^32 - 1")


def check_ids(a: Any, device: torch.device) -> None:
    # Ids of 32 bits are hashed as the same numbers of 64. Hashes have 64.
    if a.prehashed:
        check_dtype(a, "ids", torch.int64)
    check_index_dtype(a, "ids")
    check_bags(a, device)


def check_heights(a: Any) -> None:
    """Rows of the four tables against the rule."""
    remainders = a.remainder_b.shape[0]
    check(0 < remainders <= HALF, a, "remainder_b", "1 to 2^32 - 1 rows", remainders)
    quotients = -(-a.num_buckets // remainders)
    for name in TABLES:
        rows = quotients if name.startswith("quotient") else remainders
        wanted = f"{rows} rows for {a.num_buckets} buckets and {remainders} remainders"
        t = getattr(a, name)
        check(t.shape[0] == rows, a, name, wanted, shape(t))
