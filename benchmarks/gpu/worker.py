"""Checks and times the targets of one subject in a process of its own.

``python -m lirank_ext.benchmarks.gpu.worker SUBJECT --results FILE [--lock FILE]``. Several
workers run at once: whatever needs the GPU to itself happens while the worker holds the lock, and
inputs and compiled code are made while another one holds it. Every reading is a JSON line,
appended as soon as it is there, so that a crash costs what came after it and nothing else.

A result is compared with float64 before it is timed, over memory that was filled with NaN. Times
are taken by replaying a CUDA graph that calls the op once on each of several input sets: that
leaves out the host and finds no input in the cache. ``host_us`` is what a call costs the host.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from lirank_ext.benchmarks.ceilings import seconds_of
from lirank_ext.benchmarks.gpu import targets_cross, targets_tables
from lirank_ext.benchmarks.gpu.target import Place, Target
from lirank_ext.benchmarks.harness import disagreement, tensors

OURS = "lirank"
SAMPLES, SAMPLE_SECONDS = 9, 0.012

SUBJECTS: dict[str, Callable[[Place], Iterator[Target]]] = {
    "quantized_bag": targets_tables.quantized_bag,
    "quantized_bags": targets_tables.quantized_bags,
    "hashed": targets_tables.hashed,
    "low_rank": targets_cross.low_rank,
    "attention": targets_cross.attention,
    "net": targets_cross.net,
    "score": targets_cross.score,
    "ranker": targets_cross.ranker,
    "hashed_packed": targets_tables.hashed_packed,
    "hashed_backward": targets_tables.hashed_backward,
    "low_rank_step": targets_cross.low_rank_step,
    "isotonic": targets_cross.isotonic,
    "hashing": targets_tables.hashing,
    "vocabulary": targets_tables.vocabulary,
    "quantizing": targets_tables.quantizing,
}


@dataclass
class Worker:
    """Where readings go, and the lock that stands for the GPU."""

    subject: str
    place: Place
    results: str
    lock: str | None = None
    check_only: bool = False

    def keep(self, **line: Any) -> None:
        text = json.dumps({"subject": self.subject, **line})
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else uses the GPU meanwhile."""
        if self.lock is None:
            yield
            return
        with open(self.lock, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if self.place.device == "cuda":
                    torch.cuda.synchronize()
                fcntl.flock(file, fcntl.LOCK_UN)


# ---- before timing -----------------------------------------------------------------------


def precompile(call: Callable[[], Any]) -> int:
    """Compile every Triton kernel that this call may choose, without running one."""
    try:
        from lirank_ext.kernels import launch as launching
    except ImportError:
        return 0
    major, minor = torch.cuda.get_device_capability()
    with launching.recording(10 * major + minor) as recorded:
        call()
    for one in recorded:
        one.kernel.warmup(*one.args, grid=(1,), **(launching.FUSION | one.constants))
    return len(recorded)


def poison(result: Any) -> None:
    """Leave NaN in the blocks that the allocator is about to hand out again."""
    for t in tensors(result):
        if t.is_floating_point():
            torch.full_like(t, float("nan"))


def problem_of(call: Callable[[], Any], wanted: Any, tolerance: float) -> str:
    """Why this result is not to be timed; empty where it agrees. A lost device is raised."""
    try:
        poison(wanted)
        return disagreement(call(), wanted, tolerance)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


# ---- timing ------------------------------------------------------------------------------


def captured(call: Callable[..., Any], sets: list[tuple]) -> Callable[[], Any]:
    """A replay of the call on every set."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for given in sets[:2]:
            call(*given)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for given in sets:
            call(*given)
    return graph.replay


def interleaved(calls: dict[str, Callable[[], Any]], device: str) -> dict[str, list[float]]:
    """Seconds a call; the samples of all calls alternate."""
    times = {}
    for name, call in calls.items():
        once = min(seconds_of(call, device, 1) for _ in range(3))
        times[name] = max(1, int(SAMPLE_SECONDS / max(once, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SAMPLES):
        for name, call in calls.items():
            found[name].append(seconds_of(call, device, times[name]) / times[name])
    return found


def host_seconds(call: Callable[..., Any], sets: list[tuple], device: str) -> float:
    """What a call costs the host, the GPU's work not waited for."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        for given in sets:
            call(*given)
        found.append((time.perf_counter() - start) / len(sets))
        if device == "cuda":
            torch.cuda.synchronize()
    return statistics.median(found)


@dataclass
class Timed:
    """A provider made ready for timing."""

    replay: Callable[[], Any]
    calls: int
    by: str
    host: float


def ready(call: Callable[..., Any], target: Target, device: str) -> Timed:
    host = host_seconds(call, target.sets, device)
    if device == "cuda" and target.captured:
        return Timed(captured(call, target.sets), len(target.sets), "graph", host)

    def loop():
        for given in target.sets:
            call(*given)

    return Timed(loop, len(target.sets), "events", host)


def report(worker: Worker, target: Target, timed: dict[str, Timed], stage: str) -> None:
    samples = interleaved({n: t.replay for n, t in timed.items()}, worker.place.device)
    for name, values in samples.items():
        each = [v / timed[name].calls * 1e6 for v in values]
        worker.keep(
            op=target.op,
            label=target.label,
            provider=name,
            stage=stage,
            us=round(statistics.median(each), 3),
            least=round(min(each), 3),
            most=round(max(each), 3),
            by=timed[name].by,
            host_us=round(timed[name].host * 1e6, 2),
            sets=timed[name].calls,
            bytes=target.bytes,
            flops=target.flops,
            exps=target.exps,
        )


def keep_candidates(worker: Worker, stated: dict[str, str]) -> None:
    """What the configurations took among which the launchers of this target chose."""
    try:
        from lirank_ext.kernels import launch as launching
    except ImportError:
        return
    for key, found in launching.measured.items():
        rounded = {name: round(us, 2) for name, us in found.items()}
        worker.keep(**stated, provider=OURS, note=f"candidates of {key}", candidates=rounded)
    launching.measured.clear()


# ---- one target --------------------------------------------------------------------------


def measure(worker: Worker, target: Target) -> bool:
    """Check and time one target; whether ours agreed."""
    device, first = worker.place.device, target.sets[0]
    stated = {"op": target.op, "label": target.label}
    if device == "cuda":
        try:
            precompile(lambda: target.ours(*first))
        except Exception as error:  # the call below says what is wrong, and where
            worker.keep(**stated, provider=OURS, note=f"not precompiled: {error!s:.300}")
    with worker.alone():
        wanted = target.expect(*first)
        problem = problem_of(lambda: target.ours(*first), wanted, target.tolerance)
        worker.keep(**stated, provider=OURS, problem=problem)
        if worker.check_only or problem:
            return not problem
        timed = {OURS: ready(target.ours, target, device)}
        report(worker, target, timed, "alone")
        keep_candidates(worker, stated)
    if device == "cuda":
        torch.compiler.reset()
    peers = target.floors | target.peers | {n: make() for n, make in target.compiled.items()}
    for name, call in peers.items():
        problem = ""
        if name not in target.floors:
            problem = problem_of(lambda call=call: call(*first), wanted, target.tolerance)
        try:
            if not problem:
                with worker.alone():
                    timed[name] = ready(call, target, device)
                continue
        except torch.AcceleratorError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        worker.keep(**stated, provider=name, problem=problem)
    with worker.alone():
        report(worker, target, timed, "interleaved")
    return True


def ceilings(worker: Worker) -> None:
    """What this GPU reaches: a copy of 1 GB, a bfloat16 product, and an empty graph node."""
    with worker.alone():
        source = worker.place.randn(1 << 27)
        target = torch.empty_like(source)
        # A copy in a graph is the driver's; the kernel of an addition moves as many bytes.
        copies = {
            "driver": captured(lambda: target.copy_(source), [()]),
            "kernel": captured(lambda: torch.add(source, 1.0, out=target), [()]),
        }
        found = interleaved(copies, "cuda")
        seconds = min(statistics.median(samples) for samples in found.values())
        worker.keep(ceiling="copy, bytes/s", rate=2 * source.numel() * 4 / seconds)
        a, b = (worker.place.randn(8192, 8192, seed=i, dtype=torch.bfloat16) for i in range(2))
        product = captured(lambda: a @ b, [()])
        seconds = statistics.median(interleaved({"product": product}, "cuda")["product"])
        worker.keep(ceiling="bfloat16 product, flop/s", rate=2 * 8192**3 / seconds)
        properties = torch.cuda.get_device_properties(0)
        clock = getattr(properties, "clock_rate", 1_980_000) * 1e3
        rate = 16 * properties.multi_processor_count * clock
        worker.keep(ceiling="exponentials/s by the programming guide", rate=rate)
        small = worker.place.randn(16)
        calls = captured(lambda: [small.mul_(1.0) for _ in range(100)], [()])
        seconds = statistics.median(interleaved({"small": calls}, "cuda")["small"])
        worker.keep(ceiling="seconds a kernel in a graph takes at least", rate=seconds / 100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=("ceilings", *SUBJECTS))
    parser.add_argument("--results", required=True, metavar="FILE")
    parser.add_argument("--lock", metavar="FILE")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes")
    parser.add_argument("--check", action="store_true", help="compare only, time nothing")
    options = parser.parse_args()
    place = Place(options.device, options.scale)
    worker = Worker(options.subject, place, options.results, options.lock, options.check)
    if options.subject == "ceilings":
        ceilings(worker)
        return 0
    good = True
    started = time.monotonic()
    with torch.no_grad() if options.device == "cuda" else nullcontext():
        for target in SUBJECTS[options.subject](place):
            good = measure(worker, target) and good
    worker.keep(done=True, seconds=round(time.monotonic() - started, 1))
    sys.stdout.flush()
    os._exit(0 if good else 1)  # a graph's memory is not given back one by one


if __name__ == "__main__":
    sys.exit(main())
