"""Benchmarks of the hashes of ids and strings.

An id moves 16 bytes. A string moves its text and 16 bytes for its offset and its hash. A list of
str also moves the pointers and the headers of the objects, which are not counted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lirank_ext import hash_strings, murmur_hash
from lirank_ext.benchmarks.harness import Workload
from lirank_ext.library.op import OPS

SIZES = (4096, 1 << 18, 1 << 22)
# mmh3 in a Python loop and the peers that read objects take 0.2 to 1 us per key, so they are not
# measured beyond this many keys.
MOST_OBJECTS = 1 << 18
PEERS = {"mmh3": "mmh3", "sklearn": "scikit-learn FeatureHasher", "pandas": "pandas hash_array"}


def absent_peers() -> list[str]:
    return [text for name, text in PEERS.items() if importlib.util.find_spec(name) is None]


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    for size in SIZES[:2] if quick else SIZES:
        yield _ids(size, device)
        keys = _keys(size)
        yield _pair(keys, device)
        if device == "cpu" and size <= MOST_OBJECTS:
            yield _objects(keys, peers)


def _ids(size: int, device: str) -> Workload:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(-(1 << 62), 1 << 62, (size,), generator=generator).to(device)
    compiled = torch.compile(OPS["murmur_hash"].reference)
    return Workload(
        "murmur_hash",
        f"{size} ids",
        {
            "lirank": lambda: murmur_hash(ids),
            "eager": lambda: OPS["murmur_hash"].reference(ids),
            "compile": lambda: compiled(ids),
        },
        expect=lambda: OPS["murmur_hash"].reference(ids),
        bytes=16 * size,
        items=size,
        unit="id",
    )


def _keys(size: int) -> list[str]:
    """Member ids as LiRank hashes them, such as "member:1234", of 8 to 16 bytes."""
    generator = torch.Generator().manual_seed(size)
    return [f"member:{i}" for i in torch.randint(0, 10**9, (size,), generator=generator).tolist()]


def _tensors(keys: list[str], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = [k.encode() for k in keys]
    data = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
    return data.to(device), torch.tensor([0, *map(len, encoded)]).cumsum(0).to(device)


def _pair(keys: list[str], device: str) -> Workload:
    data, offsets = _tensors(keys, device)
    providers = {"lirank": lambda: hash_strings((data, offsets))}
    if len(keys) <= MOST_OBJECTS:
        providers["eager"] = lambda: OPS["hash_strings"].reference(data, offsets)
    return Workload(
        "hash_strings",
        f"{len(keys)} keys, bytes and offsets",
        providers,
        expect=lambda: OPS["hash_strings"].reference(data, offsets),
        bytes=16 * len(keys) + data.numel(),
        items=len(keys),
        unit="key",
    )


def _objects(keys: list[str], peers: bool) -> Workload:
    wanted = OPS["hash_strings"].reference(*_tensors(keys, "cpu"))
    providers = {"lirank": lambda: hash_strings(keys)}
    if peers:
        providers |= _peers(keys, wanted)
    return Workload(
        "hash_strings",
        f"{len(keys)} keys, list of str",
        providers,
        expect=lambda: wanted,
        bytes=16 * len(keys) + sum(map(len, keys)),
        items=len(keys),
        unit="key",
    )


def _peers(keys: list[str], wanted: torch.Tensor) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    absent = absent_peers()
    if PEERS["mmh3"] not in absent:
        import mmh3

        found["mmh3 per key"] = lambda: [[mmh3.hash64(k, 0, signed=True)[0] for k in keys]]
    # These two use another hash function, so their results cannot be compared. They are timed and
    # return the wanted result.
    if PEERS["sklearn"] not in absent:
        from sklearn.feature_extraction import FeatureHasher

        hasher = FeatureHasher(1 << 20, input_type="string", alternate_sign=False)
        found["FeatureHasher (other hash)"] = lambda: (
            hasher.transform([k] for k in keys),
            wanted,
        )[1]
    if PEERS["pandas"] not in absent:
        import numpy as np
        from pandas.util import hash_array

        array = np.array(keys, dtype=object)
        found["pandas hash_array (other hash)"] = lambda: (
            hash_array(array, categorize=False),
            wanted,
        )[1]
    return found
