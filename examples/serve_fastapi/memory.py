"""Memory of 1, 2 and 4 workers that serve one model, with shared weights and with copies.

``python memory.py`` makes a model with large int8 tables and prints, for every number of workers,
the sums of RSS (which counts shared pages in every process) and of PSS (which divides them). Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from lirank_ext.conversion.quantize import quantize
from lirank_ext.models import LiRank, LiRankConfig
from lirank_ext.training.session import save_model
from lirank_ext.training.settings import Config, Settings

HERE = Path(__file__).parent


def make_models(root: Path, megabytes: int) -> None:
    """A quantized Jobs model whose tables have about this size, and the link to it."""
    config = LiRankConfig.preset("jobs")
    row = 48  # bytes of an int8 row of 30 numbers with its scale and middle
    tables = len(config.schema.tables())
    config.embedding.tables.clear()
    # Two quotient tables a table; the 1,000 remainder rows are few beside them.
    config.embedding.num_buckets = megabytes * 1_000_000 // (2 * row * tables) * 1000
    model = LiRank(config).eval()
    quantize(model)
    folder = root / "model"
    folder.mkdir()
    save_model(folder, model, Config(config, Settings()))
    (root / "current").symlink_to("model")


def memory_of(pid: int) -> tuple[int, int]:
    """RSS and PSS in kB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return found["Rss"], found["Pss"]


def workers_of(url: str, wanted: int, patience: float) -> set[int]:
    """Process numbers of the workers, once all of them have answered."""
    seen: set[int] = set()
    end = time.monotonic() + patience
    while len(seen) < wanted and time.monotonic() < end:
        try:
            # A new connection each time, so that any worker may take it.
            seen.add(httpx.get(f"{url}/health", timeout=5).json()["worker"])
            rows = httpx.get(f"{url}/columns", timeout=5).json()["rows"]
            httpx.post(f"{url}/score", json=rows * 50, timeout=30).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
    if len(seen) < wanted:
        raise SystemExit(f"only {len(seen)} of {wanted} workers answered in {patience:g} seconds")
    return seen


def measure(root: Path, workers: int, port: int, options: list[str]) -> tuple[int, int]:
    """Sums of RSS and PSS of all workers, in kB."""
    command = [sys.executable, HERE / "serve.py", root, "--workers", workers, "--port", port]
    process = subprocess.Popen([*map(str, command), *options], stderr=subprocess.DEVNULL)
    try:
        pids = workers_of(f"http://127.0.0.1:{port}", workers, 120)
        figures = [memory_of(pid) for pid in pids]
        return sum(rss for rss, _ in figures), sum(pss for _, pss in figures)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Print a line for every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500, help="size of the tables")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_models(root, args.megabytes)
        size = os.path.getsize(root / "model" / "model.safetensors")
        print(f"model file: {size / 1e6:,.0f} MB")
        print("workers  weights  sum of RSS, MB  sum of PSS, MB")
        for options in ([], ["--copy"]):
            for workers in args.workers:
                rss, pss = measure(root, workers, args.port, options)
                kind = "copied" if options else "shared"
                print(f"{workers:7}  {kind:7}  {rss / 1e3:14,.0f}  {pss / 1e3:14,.0f}", flush=True)


if __name__ == "__main__":
    main()
