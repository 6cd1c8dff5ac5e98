"""Coverage-guided fuzzing of everything that reads bytes or raw integers (targets.py).

    make fuzz-bytes SECONDS=600
    python tests/reliability/fuzz_bytes.py --seconds 600 --target checkpoint_file --json found.json

libFuzzer (by the package atheris) sees which lines of Python and, in a library that clang compiled
for it, which branches of C++ an input reaches, and keeps those that reach new ones. What it finds
lies in ``build/fuzz/TARGET/found``; a finding becomes a seed in targets.py and so a test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

CORPUS = HERE.parents[1] / "build" / "fuzz"
SEED = 1
MEMORY = 6000  # MiB, of a process


def run(name: str, seconds: int, seed: int, package: Path | None) -> dict:
    """One target in a process of its own."""
    corpus, found = CORPUS / name / "corpus", CORPUS / name / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "fuzz_bytes.py"), "--serve", name, str(corpus)]
    command += [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={found}/"]
    command += ["-print_final_stats=1", f"-rss_limit_mb={MEMORY}", "-max_len=4096", "-timeout=60"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    if package:
        import atheris

        runtime = Path(atheris.path()) / "asan_with_fuzzer.so"
        variables |= {"PYTHONPATH": str(package)}
        if os.environ.get("LIRANK_FUZZ_ASAN") == "1":
            variables |= {"LD_PRELOAD": str(runtime), "ASAN_OPTIONS": "detect_leaks=0"}
    began = time.monotonic()
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    clean = done.returncode == 0 and units is not None
    lines = [x for x in done.stderr.splitlines() if re.search(r"Finding|Error|ERROR|==\d+==", x)]
    return {
        "target": name,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "executions": int(units[1]) if units else 0,
        "covered": int(covered[-1]) if covered else 0,
        "kept": len(list(corpus.iterdir())),
        "finding": "" if clean else "; ".join(lines[:3])[:500] or done.stderr[-500:],
    }


def serve(arguments: list[str]) -> None:
    """What a process of one target does: import with coverage, then libFuzzer's loop."""
    import atheris
    import torch

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["lirank_ext", "targets", "yaml"]):
        import targets

        name, corpus, *flags = arguments
        # What a target imports when it runs is to be counted too.
        for number, seed in enumerate(targets.SEEDS[name]()):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
            targets.TARGETS[name](seed)
    atheris.Setup([sys.argv[0], *flags, corpus], targets.TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600, help="of every target (default 600)")
    parser.add_argument("--target", action="append", help="one target (default: all)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of libFuzzer (default {SEED})")
    parser.add_argument("--python", action="store_true", help="the library as it is installed")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    from flavors import COVERAGE, build

    package = None
    if not args.python:
        if not shutil.which(COVERAGE.compiler) and "CXX" not in os.environ:
            sys.exit(
                f"fuzz-bytes: wanted {COVERAGE.compiler} for coverage of C++, which is not there: "
                "install it, name a clang in CXX, or ask with --python for coverage of Python alone"
            )
        package = build(COVERAGE, "plain")
    import targets

    records = []
    for name in args.target or targets.TARGETS:
        found = run(name, args.seconds, args.seed, package)
        records.append(found)
        said = found["finding"] or "no finding"
        print(
            f"{name}: {found['executions']} executions in {found['seconds']} s from seed "
            f"{args.seed}, {found['covered']} places reached: {said}",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps({"targets": records}, indent=1) + "\n")
    return 1 if any(r["finding"] for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
