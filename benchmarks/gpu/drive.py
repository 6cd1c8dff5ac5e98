"""Runs everything that a GPU has to show within a time limit, and prints what came of it.

``python -m lirank_ext.benchmarks.gpu.drive --out FOLDER [--seconds 290]``. In this order:

1. What the machine is, and its ceilings.
2. A worker for every subject, all at once; they take turns on the GPU. A worker that crashes
   costs its own subject: it is run again, small, under compute-sanitizer.
3. Counters of three kernels.
4. Beside one another: ``verify`` for every op, the graph tests, memcheck and racecheck over a small
   call of every CUDA kernel, then memcheck over ``verify`` for every op that has one.

FOLDER then holds summary.json, which is worth keeping, and what it is made of: env.json,
results.jsonl, verify.json, tests.log, sanitizer.log, ncu.csv and run.log. The exit code is 1 where
anything failed; a test that was skipped for want of CUDA kernels is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lirank_ext import build_info, implementations
from lirank_ext._table import print_line, print_table
from lirank_ext.benchmarks.gpu.worker import OURS, SUBJECTS
from lirank_ext.verify import public_ops

COLUMNS = ("op", "shape", ">us", ">floor", ">of floor", "bound by", ">host us", ">others")
# The workers' share of the time; verify and the sanitizers get the rest.
TIMING_SHARE = 0.55
PARTS = ("timing", "counters", "verify", "memcheck")
NCU_METRICS = (
    "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread"
)
NCU_SUBJECTS = ("quantized_bag", "hashed", "attention")


@dataclass
class Job:
    """A process with its log."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None
    began: float = 0.0
    log: Path | None = None

    def start(self, folder: Path) -> None:
        self.began, self.log = time.monotonic(), folder / f"{self.name}.log"
        with open(self.log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()

    def text(self) -> str:
        return "" if self.log is None else self.log.read_text(errors="replace")


class Drive:
    """The whole run."""

    def __init__(
        self, out: Path, seconds: float, device: str, scale: int, skip: tuple[str, ...] = ()
    ) -> None:
        self.out, self.device, self.scale = out, device, scale
        self.started, self.end = time.monotonic(), time.monotonic() + seconds
        self.seconds, self.skip = seconds, skip
        self.scratch = out / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.results, self.lock = out / "results.jsonl", self.scratch / "lock"
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.started:6.1f} s  {text}"
        print(line, flush=True)
        with open(self.out / "run.log", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self, jobs: list[Job], at_once: int, until: float) -> list[Job]:
        """Run jobs beside one another; those not done by then are stopped. The ones that failed."""
        waiting, running, bad = list(jobs), [], []
        while waiting or running:
            while waiting and len(running) < at_once and time.monotonic() < until:
                job = waiting.pop(0)
                job.start(self.scratch)
                running.append(job)
            for job in [j for j in running if j.code is not None]:
                running.remove(job)
                took = time.monotonic() - job.began
                self.say(f"{job.name}: {'passed' if job.code == 0 else f'FAILED ({job.code})'}"
                         f" in {took:.0f} s")  # fmt: skip
                if job.code != 0:
                    bad.append(job)
            if time.monotonic() > until:
                for job in running:
                    job.stop()
                    self.say(f"{job.name}: stopped, its time is over")
                for job in waiting:
                    self.say(f"{job.name}: not run, the time is over")
                self.failed += [f"{j.name} (time)" for j in running + waiting]
                return bad
            time.sleep(0.05)
        return bad

    # ---- the parts -------------------------------------------------------------------------

    def environment(self) -> None:
        found: dict[str, Any] = {"build": build_info(), "python": sys.version.split()[0]}
        if self.device == "cuda":
            query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm"
            command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
            found["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True).stdout
            p = torch.cuda.get_device_properties(0)
            found["device"] = {"name": p.name, "multiprocessors": p.multi_processor_count,
                               "l2": getattr(p, "L2_cache_size", 0)}  # fmt: skip
        found["served_by"] = {op: list(implementations(op)) for op in public_ops()}
        (self.out / "env.json").write_text(json.dumps(found, indent=1, default=str))
        if self.device == "cuda" and "cuda" not in implementations("quantized_embedding_bag"):
            self.failed.append("CUDA kernels are not in use: " + str(found["build"].get("cuda")))
            self.say(self.failed[-1])

    def worker(self, subject: str, *more: str) -> list[str]:
        command = [sys.executable, "-m", "lirank_ext.benchmarks.gpu.worker", subject]
        command += ["--device", self.device, "--results", str(self.results)]
        return [*command, "--scale", str(self.scale), "--lock", str(self.lock), *more]

    def timings(self, subjects: list[str]) -> None:
        jobs = [Job(s, self.worker(s)) for s in subjects]
        if self.device == "cuda":
            jobs.insert(0, Job("ceilings", self.worker("ceilings")))
        until = self.started + self.seconds * TIMING_SHARE
        bad = self.run(jobs, 20, until)
        self.failed += [f"worker {j.name}" for j in bad]
        for job in bad:
            self.say(f"{job.name}: {job.text()[-1500:]}")
        if bad and shutil.which("compute-sanitizer"):
            again = []
            for job in bad:
                command = [*_sanitizer("memcheck"), *self.worker(job.name, "--check")]
                command[command.index("--scale") + 1] = "64"
                again.append(Job(f"memcheck-{job.name}", command, _SANITIZED))
            for job in self.run(again, 6, time.monotonic() + 45):
                self.say(f"{job.name}: {job.text()[-1500:]}")

    def verifications(self) -> None:
        module = [sys.executable, "-m", "lirank_ext", "verify", "--device", self.device, "--op"]
        jobs = []
        for op in public_ops():
            file = self.scratch / f"verify-{op}.json"
            jobs.append(Job(f"verify-{op}", [*module, op, "--json", str(file)]))
        if self.device == "cuda":
            test = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_cuda_graph.py"]
            jobs.append(Job("tests", test))
            if shutil.which("compute-sanitizer"):
                script = [sys.executable, "tests/test_cuda_graph.py"]  # a small call of every op
                for tool in ("racecheck", "memcheck"):
                    jobs.insert(0, Job(f"{tool}-calls", [*_sanitizer(tool), *script], _SANITIZED))
                if "memcheck" not in self.skip:
                    for op in public_ops():
                        if "cuda" in implementations(op):
                            command = [*_sanitizer("memcheck"), *module, op]
                            jobs.append(Job(f"memcheck-{op}", command, _SANITIZED))
            else:
                self.failed.append("no compute-sanitizer on PATH")
        bad = self.run(jobs, max(4, (os.cpu_count() or 4)), self.end)
        for job in bad:
            self.failed.append(job.name)
            self.say(f"{job.name}: {job.text()[-1200:]}")
        self._keep(jobs)

    def _keep(self, jobs: list[Job]) -> None:
        rows = []
        for file in sorted(self.scratch.glob("verify-*.json")):
            rows += json.loads(file.read_text())["rows"]
        (self.out / "verify.json").write_text(json.dumps(rows, indent=1))
        with open(self.out / "sanitizer.log", "w", encoding="utf-8") as out:
            for job in jobs:
                if "check-" in job.name and job.log is not None:
                    out.write(f"==== {job.name} ({job.code})\n{job.text()[-20_000:]}\n")
        for job in jobs:
            if job.name == "tests":
                (self.out / "tests.log").write_text(job.text())
                if " skipped" in job.text() and job.code == 0:
                    self.failed.append("tests (skipped ones: see tests.log)")

    def counters(self) -> None:
        """Nsight Compute's counters of three of our kernels, small."""
        if shutil.which("ncu") is None:
            self.failed.append("no ncu on PATH")
            return
        with open(self.out / "ncu.csv", "w", encoding="utf-8") as out:
            for subject in NCU_SUBJECTS:
                command = ["ncu", "--csv", "--clock-control", "none", "--metrics", NCU_METRICS]
                command += ["--kernel-name", "regex:pool_kernel|hashed_kernel|_attend"]
                command += ["--launch-count", "4", *self.worker(subject, "--check")]
                job = Job(f"ncu-{subject}", command)
                self.run([job], 1, min(self.end, time.monotonic() + 25))
                out.write(f"==== {subject}\n{job.text()}\n")

    # ---- what came of it -------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        if not self.results.is_file():
            return []
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def summary(self) -> None:
        """Everything that is worth keeping, in one file."""
        env = json.loads((self.out / "env.json").read_text())
        verified = self.out / "verify.json"
        found = {"environment": env, "failed": self.failed, "readings": self.lines()}
        found["verify"] = json.loads(verified.read_text()) if verified.is_file() else []
        text = json.dumps(found)
        text = text.replace('{"subject"', '\n{"subject"').replace('{"op"', '\n{"op"')
        (self.out / "summary.json").write_text(text + "\n")

    def show(self) -> None:
        lines = self.lines()
        rates = {line["ceiling"].split(",")[0]: line["rate"] for line in lines if "ceiling" in line}
        rows, marks = [], []
        for row in table(lines, rates):
            rows.append(row)
            marks.append("bad" if "WRONG" in row else "")
        print_table("", COLUMNS, rows, marks)
        for name, rate in rates.items():
            print_line(f"ceiling: {name}: {rate:.4g}")
        for failure in self.failed:
            print_line(f"FAILED: {failure}")


_SANITIZED = {
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # or a block of 2 MiB hides what is out of bounds
    "CUDA_LAUNCH_BLOCKING": "1",
    "LIRANK_TRITON_CANDIDATE": "0",  # nothing is tuned under a sanitizer
}


def _sanitizer(tool: str) -> list[str]:
    return ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]


def floor_of(line: dict[str, Any], rates: dict[str, float]) -> tuple[float, str]:
    """The least time in microseconds by what binds: bytes, products or exponentials."""
    kinds = (
        ("bytes", "copy", "bytes"),
        ("flops", "bfloat16 product", "products"),
        ("exps", "exponentials/s by the programming guide", "exponentials"),
    )
    found = [
        (line[amount] / rates[rate] * 1e6, name)
        for amount, rate, name in kinds
        if rate in rates and line.get(amount)
    ]
    return max(found, default=(0.0, ""))


def table(lines: list[dict[str, Any]], rates: dict[str, float]) -> list[list[str]]:
    """A row for every target: ours, its floor, and the others."""
    targets: dict[tuple[str, str], dict[str, dict]] = {}
    for line in lines:
        if "op" not in line or "note" in line:
            continue
        by = targets.setdefault((line["op"], line["label"]), {})
        by[line["provider"]] = by.get(line["provider"], {}) | line
    rows = []
    for (op, label), by in targets.items():
        ours = by.get(OURS, {})
        if "us" not in ours:
            rows.append([op, label, "WRONG", "", "", ours.get("problem", "")[:60], "", ""])
            continue
        floor, bound = floor_of(ours, rates)
        others = []
        for name, line in by.items():
            if name == OURS:
                continue
            if "us" in line:
                others.append(f"{name} {line['us']:.1f}")
            elif line.get("problem"):
                others.append(f"{name}: {line['problem'][:60]}")
        share = f"{floor / ours['us']:.0%}" if floor else ""
        cells = [f"{ours['us']:.1f}", f"{floor:.1f}" if floor else "", share, bound]
        rows.append([op, label, *cells, f"{ours['host_us']:.0f}", "; ".join(others)])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=290.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes")
    parser.add_argument("--subjects", nargs="*", choices=tuple(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[], metavar="PART")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    drive = Drive(
        options.out.resolve(), options.seconds, options.device, options.scale, tuple(options.skip)
    )
    drive.environment()
    if "timing" not in options.skip:
        drive.timings(options.subjects)
        drive.show()  # once here, in case the rest is cut off
    if "counters" not in options.skip and options.device == "cuda":
        drive.counters()
    if "verify" not in options.skip:
        drive.verifications()
    drive.show()
    drive.summary()
    shutil.rmtree(drive.scratch, ignore_errors=True)
    return 1 if drive.failed else 0


if __name__ == "__main__":
    sys.exit(main())
