"""How long a model takes for a request on this machine."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..data.features import Converter, Rows
from ..library import processor
from ..models import LiRank

REQUESTS = {1: 300, 64: 150}  # rows of a request, and how many requests are timed
WARM_UP = 10


@dataclass
class Latency:
    """Times of requests, one after the other.

    Attributes:
        seconds: by rows of a request, the time of each.
        machine: the processor or the GPU, in words.
        threads: of the CPU.
        disturbed: whether other processes took part of the cores meanwhile.
    """

    seconds: dict[int, np.ndarray]
    machine: str
    threads: int
    disturbed: bool

    def quantile(self, rows: int, share: float) -> float:
        """In milliseconds."""
        return float(np.quantile(self.seconds[rows], share)) * 1e3

    def as_json(self) -> dict[str, Any]:
        """The quantiles in milliseconds."""
        values = {
            rows: {f"p{share}": self.quantile(rows, share / 100) for share in (50, 90, 99)}
            for rows in self.seconds
        }
        return {**asdict(self), "seconds": None, "milliseconds": values}


def time_model(model: LiRank, rows: Rows, converter: Converter, device: str) -> Latency:
    """The time from hashed features, on the CPU, to probabilities there."""
    rng, watch = np.random.default_rng(0), processor.Watch()
    seconds = {}
    for size, count in REQUESTS.items():
        taken = []
        for _ in range(count + WARM_UP):
            drawn = converter.batch(rows.take(rng.integers(0, len(rows), size)))
            start = time.perf_counter()
            with torch.inference_mode():
                model.predict(drawn.to(torch.device(device)).features).cpu()
            taken.append(time.perf_counter() - start)
        seconds[size] = np.array(taken[WARM_UP:])
    threads = torch.get_num_threads()
    return Latency(seconds, _machine(device), threads, watch.read().disturbs(threads))


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{processor.name()}, {os.cpu_count()} cores"
