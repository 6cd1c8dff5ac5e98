"""What else the processor does while something is timed.

Other processes do not only slow a benchmark down: they turn its ratios. A provider that waits for
all of its threads loses more to a busy core than one that does not, and repeats agree with one
another all the while. So the benchmark reads how much of the processor others used, and says so
beside every figure for which there was not enough.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")  # processor time of the whole machine, Linux only
# Cores by which the threads may exceed what is free. The timer's own ticks and the kernel's work
# are read as up to 0.05.
TOLERATED = 0.15
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: not idle and not iowait


@dataclass(frozen=True)
class Disturbance:
    """What a :class:`Watch` saw.

    Attributes:
        others: cores that others used on average, virtual machines beside this one included. None
            where the system does not tell.
        preempted: how often a second this process had to leave a core.
    """

    others: float | None
    preempted: float

    def disturbs(self, threads: int) -> bool:
        """Whether so many threads had to share cores with others."""
        if self.others is None:
            return False
        return self.others > len(_cores()) - threads + TOLERATED


class Watch:
    """Reads, from when it is made, how much of the processor others use."""

    def __init__(self) -> None:
        self._start = _now()

    def read(self) -> Disturbance:
        """Since the watch was made; at least some tenths of a second ago."""
        before, now = self._start, _now()
        passed = max(now[0] - before[0], 1e-9)
        preempted = (now[3] - before[3]) / passed
        if now[1] is None or before[1] is None:
            return Disturbance(None, preempted)
        others = (now[1] - before[1]) - (now[2] - before[2])
        return Disturbance(max(0.0, others / passed), preempted)


def free_threads(seconds: float = 0.5) -> tuple[int, Disturbance]:
    """How many threads find a core of their own now, at least one; and what was seen."""
    watch = Watch()
    time.sleep(seconds)
    seen = watch.read()
    cores = len(_cores())
    return max(1, cores - round(seen.others or 0.0)), seen


def name() -> str:
    """The processor in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cores() -> set[int]:
    """The cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _now() -> tuple[float, float | None, float, int]:
    """The clock, busy seconds of the cores, those of this process, and its preemptions."""
    own = os.times()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return time.perf_counter(), _busy(), own.user + own.system, switches


def _busy() -> float | None:
    if not STAT.exists():
        return None
    ticks, cores = 0, _cores()
    for line in STAT.read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            ticks += sum(int(numbers[i]) for i in BUSY if i < len(numbers))
    return ticks / os.sysconf("SC_CLK_TCK")
