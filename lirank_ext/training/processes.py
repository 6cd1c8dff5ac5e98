"""One training by several processes: who this process is, and what all of them agree on."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..data.errors import DataError
from ..errors import UserError
from ..models import LiRank
from ..nn.hashed_embedding import HashedParameters
from .global_gradients import sum_gradients
from .global_norms import share_statistics

T = TypeVar("T")

# How long a process waits for the others: rank 0 may sort many rows for a metric, or write large
# tables, before it comes to the next exchange. A process that dies is noticed at once.
TIMEOUT = timedelta(minutes=30)
# What a process whose exchange failed gives the others to say why.
SECONDS_TO_EXPLAIN = 3.0
STARTED, FAILED, SAID = "lirank_ext/started", "lirank_ext/failed", "lirank_ext/said"


class ProcessLost(UserError):
    """Another process of the training is gone."""

    exit_code = 1


class Processes:
    """A training by one process, which has nobody to agree with.

    Attributes:
        rank, size: the number of this process, from 0 on, and of all.
    """

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def prepare(self, model: LiRank) -> None:
        """Make a model compute over the batches of all processes."""

    def seed(self, seed: int, step: int) -> None:
        """Set the random numbers of a step."""

    def sum_gradients(
        self, parameters: Sequence[Tensor], loss: Tensor, received: int = 0
    ) -> Tensor:
        """Add up the gradients of all processes; gives the sum of their losses.

        Args:
            parameters: with this process's gradients, dense or sparse.
            loss: this process's share.
            received: number of a signal that it received, or 0.
        """
        return loss

    def agreed(self, received: int) -> int:
        """The signal that all processes know of; 0 for none."""
        return received

    def check_equal(self, model: LiRank, received: int = 0) -> None:
        """Refuse to go on with models that are not the same in all processes.

        Raises:
            DataError: they are not.
        """

    def require_same(self, what: str, value: Any) -> None:
        """Wait for all processes, and refuse values that differ between them.

        Raises:
            DataError: they do.
        """

    def wait(self) -> None:
        """Wait for all processes."""

    def takes(self, number: int) -> bool:
        """Whether this process scores the batch of that number."""
        return True

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return values

    def from_first(self, call: Callable[[], T]) -> T:
        """What ``call`` gives in the first process, which alone calls it."""
        return call()

    def load_from_first(
        self, call: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        """:meth:`from_first` for tensors by name and plain values."""
        return call()

    def note_started(self, folder: Path) -> None:
        """Note that this launch has begun the run in a folder."""

    def has_started(self, folder: Path) -> bool:
        """Whether this launch has begun the run in a folder, and then lost a process."""
        return False

    def leave(self) -> None:
        """End the exchange, where only the first process has something left to do."""


ONE = Processes()


class SeveralProcesses(Processes):
    """The processes of ``torchrun``, or of another launcher that sets the same variables.

    As a context manager it sees to it that of the processes that fail one says why, and that all
    others end with its exit code.

    Args:
        backend: "gloo", or "cpu:gloo,cuda:nccl" for models on GPUs.
        timeout: how long a process waits for the others.
    """

    _trainings = itertools.count()

    def __init__(self, backend: str = "gloo", timeout: timedelta = TIMEOUT) -> None:
        # Modules that optimizers import later take the default group as the default of an argument
        # and keep it: its threads would outlive destroy_process_group, and may abort Python's end.
        import torch._dynamo  # noqa: F401
        from torch.distributed.rendezvous import rendezvous

        self._launch, self.rank, self.size = next(rendezvous("env://", timeout=timeout))
        # The launcher's store outlives the processes, and what an earlier attempt or training left
        # in it would lead nowhere.
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(self._trainings)}"
        self._store = dist.PrefixStore(f"lirank_ext/attempt {attempt}", self._launch)
        self._signal, self._timeout = 0, timeout
        dist.init_process_group(
            backend, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
        )
        if not self.first:
            warnings.simplefilter("ignore")  # the first process gives the same ones

    # Errors

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.leave()
        elif not isinstance(error, SystemExit):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Let the first process that fails say why, and end the others with its exit code."""
        code = error.exit_code if isinstance(error, UserError) else 1
        try:
            number = self._store.add(FAILED, 1)
            if number == 1:
                self._store.set(f"{FAILED} code", str(code))
                atexit.register(self._store.set, SAID, "")
            elif isinstance(error, UserError):
                # A launcher stops all processes when one ends: the other has to speak first.
                self._store.wait([f"{FAILED} code", SAID], timedelta(seconds=10))
                code = int(self._store.get(f"{FAILED} code"))
        except RuntimeError:
            return  # the launcher is gone: each process speaks for itself
        if number > 1 and isinstance(error, UserError):
            raise SystemExit(code)

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Turns the failure of an exchange into a sentence."""
        try:
            yield
        except RuntimeError as error:
            self._await_reason()
            reason = str(error).strip().splitlines()[0] if str(error) else "no answer"
            raise ProcessLost(
                f"process {self.rank} of {self.size} lost another one, which was killed, ran out "
                f"of memory or did not answer within {self._timeout.total_seconds():.0f} s "
                f"({reason})"
            ) from None

    def _await_reason(self) -> None:
        end = time.monotonic() + SECONDS_TO_EXPLAIN
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end and not self._store.check([FAILED]):
                time.sleep(0.05)

    # Exchanges

    def gather(self, values: Tensor) -> Tensor:
        """(...) -> (size, ...), the values of all processes by rank."""
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(parts, values)
        return torch.stack(parts)

    def sum(self, values: Tensor) -> Tensor:
        with self._exchange():
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        self.gather(torch.zeros(1))

    def from_first(self, call: Callable[[], T]) -> T:
        box = [call() if self.first else None]
        with self._exchange():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def load_from_first(
        self, call: Callable[[], tuple[dict[str, Tensor], Any]]
    ) -> tuple[dict[str, Tensor], Any]:
        tensors, content = call() if self.first else ({}, None)
        kinds = {name: (t.shape, t.dtype) for name, t in tensors.items()}
        kinds, content = self.from_first(lambda: (kinds, content))
        if not self.first:
            tensors = {name: torch.empty(*kind[:1], dtype=kind[1]) for name, kind in kinds.items()}
        for tensor in tensors.values():
            if tensor.numel():
                with self._exchange():
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
        return tensors, content

    def note_started(self, folder: Path) -> None:
        self._launch.set(f"{STARTED} {folder.resolve()}", "")

    def has_started(self, folder: Path) -> bool:
        return self._launch.check([f"{STARTED} {folder.resolve()}"])

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    # A training

    def prepare(self, model: LiRank) -> None:
        share_statistics(model, self.gather, self.sum)
        for module in model.modules():
            if isinstance(module, HashedParameters) and module.sparse is True:
                module.sparse = "always"  # they are added up by sum_gradients

    def seed(self, seed: int, step: int) -> None:
        # By the step and not by what was drawn before: a training goes on from a checkpoint, which
        # knows nothing of the processes, as if it had not been stopped.
        digest = hashlib.blake2b(f"{seed} {step} {self.rank}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> 1
        # torch.manual_seed queues a call, with its stack, for each kind of device not in use yet:
        # milliseconds of every step, and memory that grows.
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(number)

    def takes(self, number: int) -> bool:
        return number % self.size == self.rank

    def sum_gradients(
        self, parameters: Sequence[Tensor], loss: Tensor, received: int = 0
    ) -> Tensor:
        total, self._signal = sum_gradients(parameters, loss, received, self.gather, self.sum)
        return total

    def agreed(self, received: int) -> int:
        return self._signal

    def check_equal(self, model: LiRank, received: int = 0) -> None:
        state = model.state_dict()
        sums = self.gather(torch.tensor([received, *map(_checksum, state.values())]))
        self._signal = int(sums[:, 0].max())
        for name, column in zip(state, sums[:, 1:].T, strict=True):
            self._refuse_difference(f"weights '{name}'", column)

    def require_same(self, what: str, value: Any) -> None:
        text = json.dumps(value, sort_keys=True, default=str)
        self._refuse_difference(what, self.gather(torch.tensor([zlib.crc32(text.encode())]))[:, 0])

    def _refuse_difference(self, what: str, numbers: Tensor) -> None:
        other = numbers.ne(numbers[0]).nonzero()
        if len(other):
            raise DataError(
                f"process {int(other[0])} of {self.size} has other {what} than process 0: all need "
                "the same files, options, packages and kind of machine"
            )


def _checksum(values: Tensor) -> int:
    """The sum of the bits in whole numbers, which does not depend on the order."""
    flat = values.detach().contiguous().reshape(-1)
    kind = torch.int32 if flat.element_size() % 4 == 0 else torch.uint8
    return int(flat.view(kind).sum(dtype=torch.int64)) if flat.numel() else 0


def from_environment(device: str | None = None) -> Processes:
    """The processes that a launcher such as ``torchrun`` started; :data:`ONE` where none did.

    Args:
        device: "cpu", "cuda", or None for the GPU of this process where there is one.

    Raises:
        UserError: a variable is missing, or there are more processes than GPUs.
    """
    if size_of_launch() == 1:
        return ONE
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {name} is not set: start several "
                "processes with torchrun"
            )
    if device == "cpu" or not torch.cuda.is_available():
        return SeveralProcesses("gloo")
    local, there = local_rank(), torch.cuda.device_count()
    if local >= there:
        raise UserError(
            f"wanted a CUDA device for each process, got {there} devices for process {local + 1} "
            "of this machine: start fewer, or give --device cpu"
        )
    torch.cuda.set_device(local)
    return SeveralProcesses("cpu:gloo,cuda:nccl")


def size_of_launch() -> int:
    """The number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ["RANK"])


def threads_of_each() -> int:
    """CPU threads for each of the processes of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or size_of_launch()))
