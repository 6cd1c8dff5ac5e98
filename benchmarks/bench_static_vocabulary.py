"""Benchmarks of look-ups in static vocabularies of up to 10 million keys. All keys are known.

A look-up reads its key, one pilot and one tag, and writes its row. Pilots and tags of 10 million
keys take 13 MB, so the ceiling is that of reading random rows of 64 bytes. A look-up touches two of
them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lirank_ext.benchmarks.harness import Workload
from lirank_ext.nn import StaticVocabulary
from lirank_ext.ops.static_vocabulary import vocabulary_lookup

SIZES = (100_000, 10_000_000)
LOOK_UPS = 1 << 18
# With more keys, Python's dict would take minutes or gigabytes.
MOST_OBJECTS = 1_000_000

UNORDERED_MAP = r"""
#include <cstdint>
#include <thread>
#include <unordered_map>
#include <vector>
using Map = std::unordered_map<int64_t, int64_t>;
extern "C" void* build(const int64_t* keys, const int64_t* rows, int64_t n) {
  Map* map = new Map;
  map->reserve(n);
  for (int64_t i = 0; i < n; ++i) map->emplace(keys[i], rows[i]);
  return map;
}
extern "C" void find(const void* handle, const int64_t* keys, int64_t n, int64_t* out, int count) {
  const Map& map = *static_cast<const Map*>(handle);
  std::vector<std::thread> threads;
  for (int t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      for (int64_t i = n * t / count; i < n * (t + 1) / count; ++i) {
        const auto found = map.find(keys[i]);
        out[i] = found == map.end() ? -1 : found->second;
      }
    });
  for (auto& t : threads) t.join();
}
extern "C" void drop(void* handle) { delete static_cast<Map*>(handle); }
"""


@functools.cache
def _unordered_map_library() -> ctypes.CDLL | None:
    """Compiles the C++ peer. The result is None if there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "map.cpp"), Path(folder, "map.so")
        source.write_text(UNORDERED_MAP)
        command = [compiler, "-O3", "-shared", "-fPIC", "-pthread", source, "-o", library]
        subprocess.run(command, check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.build.restype = ctypes.c_void_p
    return loaded


class _UnorderedMap:
    """std::unordered_map from key to row. Look-ups use as many threads as PyTorch."""

    def __init__(self, library: ctypes.CDLL, keys: torch.Tensor, rows: torch.Tensor) -> None:
        self.library = library
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (keys, rows))
        self.handle = ctypes.c_void_p(library.build(*pointers, ctypes.c_int64(len(keys))))

    def __del__(self) -> None:
        self.library.drop(self.handle)

    def lookup(self, keys: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(keys)
        into, threads = ctypes.c_void_p(out.data_ptr()), torch.get_num_threads()
        given = ctypes.c_void_p(keys.data_ptr()), ctypes.c_int64(len(keys))
        self.library.find(self.handle, *given, into, threads)
        return out


def absent_peers() -> list[str]:
    absent = [] if importlib.util.find_spec("pandas") else ["pandas Index"]
    return absent + ([] if shutil.which("g++") else ["std::unordered_map"])


def workloads(device: str, peers: bool, quick: bool) -> Iterator[Workload]:
    for size in SIZES[:1] if quick else SIZES:
        yield _ids(size, device, peers)
    yield _strings(SIZES[0], device, peers)


def _workload(label: str, size: int, table: int, providers: dict, expect: Callable) -> Workload:
    return Workload(
        "vocabulary_lookup",
        label,
        providers,
        expect=expect,
        bytes=2 * 64 * size,
        items=size,
        unit="key",
        ceiling="gather",
        gather=(64, table),
    )


def _ids(size: int, device: str, peers: bool) -> Workload:
    generator = torch.Generator().manual_seed(size)
    # Multiplying by an odd factor is one to one on 64 bits. The ids are distinct and unordered.
    keys = torch.arange(size) * 0x5851F42D4C957F2D
    vocabulary = StaticVocabulary.build(keys)
    rows = vocabulary.lookup(keys)
    chosen = torch.randint(0, size, (LOOK_UPS,), generator=generator)
    wanted, asked = rows[chosen], keys[chosen]
    here, there = vocabulary.to(device), asked.to(device)
    providers: dict[str, Callable[[], Any]] = {
        "lirank": lambda: here.lookup(there),
        "eager": lambda: vocabulary_lookup.op.reference(there, here.table),
    }
    if peers and device == "cpu":
        providers |= _peers(keys, rows, asked)
    label = f"{size} ids, {LOOK_UPS} look-ups"
    return _workload(label, LOOK_UPS, vocabulary.table.numel(), providers, lambda: wanted)


def _peers(keys: torch.Tensor, rows: torch.Tensor, asked: torch.Tensor) -> dict[str, Callable]:
    found: dict[str, Callable[[], Any]] = {}
    absent = absent_peers()
    if "std::unordered_map" not in absent:
        held = _UnorderedMap(_unordered_map_library(), keys, rows)
        found["std::unordered_map"] = lambda: held.lookup(asked)
    if "pandas Index" not in absent:
        import pandas as pd

        index, row = pd.Index(keys.numpy()), rows.numpy()
        found["pandas Index"] = lambda: torch.from_numpy(row[index.get_indexer(asked.numpy())])
    if len(keys) <= MOST_OBJECTS:
        table, listed = dict(zip(keys.tolist(), rows.tolist(), strict=True)), asked.tolist()
        found["dict"] = lambda: [[table[k] for k in listed]]
    return found


def _strings(size: int, device: str, peers: bool) -> Workload:
    keys = [f"member:{i}" for i in range(size)]
    vocabulary = StaticVocabulary.build(keys)
    rows = vocabulary.lookup(keys)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    asked, wanted = [keys[i] for i in order.tolist()], rows[order]
    here = vocabulary.to(device)
    providers: dict[str, Callable[[], Any]] = {"lirank": lambda: here.lookup(asked)}
    if peers:
        table = dict(zip(keys, rows.tolist(), strict=True))
        providers["dict"] = lambda: [[table[k] for k in asked]]
    label = f"{size} strings, list of str"
    return _workload(label, size, vocabulary.table.numel(), providers, lambda: wanted)
