"""Runs ``verify`` and its fuzzer on libraries that watch their own memory and threads.

    python tests/reliability/sanitize.py --json results.json          # make sanitize
    python tests/reliability/sanitize.py --only address --isa avx512 --seconds 600

- address: AddressSanitizer and UndefinedBehaviorSanitizer, one instruction set at a time, over
  ``verify`` and random calls.
- threads: ThreadSanitizer over ``verify`` and random calls, with four threads. PyTorch's
  parallel_for is replaced by one of std::thread (threads.cpp), since ThreadSanitizer reports every
  loop of libgomp.
- memcheck: Valgrind over a few cases of every op on the library of the checkout. It sees reads of
  memory that nobody wrote, which no sanitizer of GCC does. It knows no AVX-512, so AVX2 runs.

Only reports with a frame of this library count: CPython and libtorch are not compiled for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from flavors import ASAN, FOLDER, ROOT, TSAN, build, environment, processor

REPORT = re.compile(
    r"ERROR: AddressSanitizer: [\w-]+|WARNING: ThreadSanitizer: [^(\n]+|\S+: runtime error: .*"
)
# Frames of this library, also those inlined from its sources; PyTorch has a folder csrc too.
OWN = re.compile(r"liblirank\.so|_C\.cpython|(?<!torch/)\bcsrc/")
KINDS = ("address", "threads", "memcheck")


def watched(name: str, command: list[str], variables: dict[str, str]) -> dict:
    """Run a command of a flavor's Python.

    Args:
        name: of the run, and of the file that its reports go to.
        command: what follows the interpreter.
        variables: the environment.

    Returns:
        Its exit code, seconds, last line, and the distinct reports about this library.
    """
    logs = FOLDER / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob(f"{name}.*"):
        old.unlink()
    log = logs / name
    options = f"log_path={log}:detect_leaks=0:allocator_may_return_null=1"
    variables |= {
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"log_path={log}:ignore_noninstrumented_modules=1:exitcode=0",
    }
    began = time.monotonic()
    # ThreadSanitizer has fixed places for its shadow memory.
    fixed = ["setarch", "-R"] if name.startswith("threads") else []
    done = subprocess.run(
        [*fixed, sys.executable, *command],
        env=variables,
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr + "".join(p.read_text() for p in logs.glob(f"{name}.*"))
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    found = {
        "run": name,
        "exit": done.returncode,
        "seconds": round(time.monotonic() - began),
        "last": last.strip(),
        "reports": reports(text),
    }
    print(f"{name}: exit {done.returncode}, {len(found['reports'])} reports. {last}", flush=True)
    for report in found["reports"]:
        print(f"  {report}", flush=True)
    if done.returncode and not found["reports"]:
        print("\n".join(done.stderr.splitlines()[-8:]), flush=True)
    return found


def reports(text: str) -> list[str]:
    """The distinct reports that name this library in the lines that follow them."""
    starts = [*REPORT.finditer(text)]
    ends = [*(m.start() for m in starts[1:]), len(text)][: len(starts)]
    found = {}
    for start, end in zip(starts, ends, strict=True):
        body = text[start.start() : min(end, start.start() + 6000)]
        if place := OWN.search(body):
            line = next(x for x in body.splitlines() if place.group() in x)
            found[f"{start.group()} {line.strip()}"[:300]] = None
    return list(found)


def address(isa: str, seconds: float) -> list[dict]:
    made = build(ASAN, isa)
    return both(f"address-{isa}", environment(ASAN, made), seconds)


def both(name: str, variables: dict[str, str], seconds: float) -> list[dict]:
    """``verify`` and then random calls; without seconds, a few cases of every op."""
    if not seconds:
        found = watched(f"{name}-few", ["-c", FEW, "4"], variables)
        return [found | {"cases": int(found["last"]) if found["last"].isdigit() else 0}]
    found = []
    for kind, options in (
        ("verify", ["--device", "cpu"]),
        ("fuzz", ["--fuzz", str(seconds)]),
    ):
        record = FOLDER / f"{name}-{kind}.json"
        command = ["-m", "lirank_ext", "verify", *options, "--json", str(record)]
        found.append(watched(f"{name}-{kind}", command, dict(variables)) | counted(record))
    return found


def threads(isa: str, seconds: float) -> list[dict]:
    made = build(TSAN, isa)
    library = FOLDER / "threads.so"
    compiler = [os.environ.get("CXX", TSAN.compiler), *TSAN.flags.split(), "-std=c++17", "-fPIC"]
    source = ROOT / "tests" / "reliability" / "threads.cpp"
    subprocess.run([*compiler, "-shared", str(source), "-o", str(library)], check=True)
    variables = environment(TSAN, made, LD_PRELOAD=str(library), OMP_NUM_THREADS="1")
    return both(f"threads-{isa}", variables, seconds)


def counted(record: Path) -> dict:
    """Cases or calls of a run, from the JSON that the command wrote."""
    if not record.exists():
        return {"cases": 0}
    said = json.loads(record.read_text())
    record.unlink()
    if "calls" in said:
        return {"cases": sum(said["calls"].values()), "findings": said["findings"]}
    rows = [row for row in said["rows"] if row["backend"] == "cpu"]
    return {"cases": sum(r["cases"] for r in rows), "passed": all(r["passed"] for r in rows)}


FEW = """
import sys
import torch
torch.set_num_threads(1)
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify import check_case, checked_ops
from lirank_ext.verify.cases import all_cases
count = 0
for op in checked_ops():
    small = [c for c in all_cases(op) if not c.big and c.raises is None][:int(sys.argv[1])]
    for case in small:
        outcome = check_case(case, implementations(op)["cpu"])
        assert outcome.passed, (op, case.label, outcome.problem)
        count += 1
print(count)
"""


def memcheck(each: int) -> list[dict]:
    log = FOLDER / "memcheck.log"
    FOLDER.mkdir(parents=True, exist_ok=True)
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONMALLOC": "malloc",
        "LIRANK_ISA": "avx2",
        "OMP_NUM_THREADS": "1",
    }
    command = ["valgrind", "--tool=memcheck", "--leak-check=no", f"--log-file={log}", "-q"]
    command += ["--error-limit=no", sys.executable, "-c", FEW, str(each)]
    began = time.monotonic()
    done = subprocess.run(command, env=variables, cwd=FOLDER, capture_output=True, text=True)
    errors = re.split(r"==\d+== \n", log.read_text()) if log.exists() else []
    # An error belongs to this library if it was in it, or in what it called, that it happened.
    own = [e for e in errors if OWN.search("\n".join(e.splitlines()[1:7]))]
    lines = done.stdout.split()
    found = {
        "run": "memcheck-avx2",
        "exit": done.returncode,
        "seconds": round(time.monotonic() - began),
        "cases": int(lines[-1]) if lines and lines[-1].isdigit() else 0,
        "reports": [e.strip()[:600] for e in own],
    }
    print(f"memcheck: exit {done.returncode}, {found['cases']} cases, {len(own)} reports")
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-8:]))
    return [found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind of run")
    parser.add_argument("--isa", choices=("plain", "avx2", "avx512"), action="append")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="of random calls (default 60); 0: a few cases alone",
    )
    parser.add_argument("--cases", type=int, default=3, help="of every op under Valgrind (3)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    kinds, isas = args.only or KINDS, args.isa or processor()
    runs = []
    for isa in isas if "address" in kinds else ():
        runs += address(isa, args.seconds)
    if "threads" in kinds:  # what runs in parallel is the same for every instruction set
        runs += threads(isas[0], args.seconds)
    if "memcheck" in kinds:
        runs += memcheck(args.cases)
    if args.json:
        args.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    bad = [r for r in runs if r["exit"] or r["reports"] or not r["cases"]]
    print(f"{len(runs)} runs, {len(bad)} with a finding.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
