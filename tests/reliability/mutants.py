"""Mutation testing of the C++ kernels: what tests the tests.

    python tests/reliability/mutants.py --count 200 --seed 0 --json results.json

Each mutant is one small change of a source: an operator, a constant, a condition, a dropped
statement. It is compiled for one instruction set and judged by what a user has, ``verify`` (every
case of the family's ops, then random calls of its fuzzer), and, where that finds nothing, by the
family's tests. A mutant whose object file is that of the unchanged source is the same program and
is not counted, and neither is one that does not compile.

The run goes on where it was stopped: every judgment is a line of ``build/mutants/judged.jsonl``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import operator
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from flavors import ROOT, lay_out

QUIET = subprocess.DEVNULL
SCRATCH = ROOT / "build" / "mutants"
ISA = "avx512"
LANES = 512
# A mutant of a header that half the library includes costs minutes, and everything finds it.
MOST_OBJECTS = 4
RANDOM_CALLS = 60  # of every op of the family
PATIENCE = 240  # seconds of the processor for one judgment: a hang is found too

FAMILIES = {
    "cross": ("low_rank_cross", "attention_cross", "outer_attention", "residual_cross"),
    "hashed_embedding": ("hashed_embedding", "quantized_hashed_embedding", "fused_"),
    "quantized_embedding": ("quantize", "dequantize", "pack", "unpack", "quantized_embedding"),
    "hashing": ("murmur_hash", "hash_strings"),
    "isotonic": ("isotonic",),
    "static_vocabulary": ("vocabulary_lookup",),
    "bags": ("quantized_", "hashed_"),
    "convert": ("low_rank_cross", "outer_attention"),
}
# Lines that change speed alone: when memory is fetched, how work is shared among threads.
SPEED = re.compile(r"prefetch|grain|huge|__builtin_expect|unroll|kAhead|kOneThread|PerTask|_tile_")
SKIPPED = re.compile(
    r"^\s*(#|//|template|using|static_assert|namespace|\}|typename)|m\.(def|impl)\("
)

COMPARE = {"==": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt}
SWAPS = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " && ": " || ",
    " || ": " && ",
    " & ": " | ",
    " << ": " >> ",
    " >> ": " << ",
    " += ": " = ",
    "min(": "max(",
    "max(": "min(",
    "true": "false",
    "false": "true",
}
STATEMENT = re.compile(
    r"^\s*[\w.\->\[\]()+* ]+ ([-+*/|&^]|<<|>>)?= [^;]*;$|^\s*[\w:.\->]+\([^;]*\);$"
)
DECLARED = re.compile(r"^\s*(const|auto|int|int64_t|uint\w+|float|double|bool|T|V|return)\b")


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""

    file: str
    line: int
    old: str
    new: str

    @property
    def name(self) -> str:
        text = f"{self.file}\n{self.line}\n{self.old}\n{self.new}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def changes(code: str) -> Iterator[str]:
    """Every changed form of a line of C++."""
    bare, comment = (code + "  ").split("  //")[0].rstrip(), '"' in code
    if comment or SKIPPED.search(code) or SPEED.search(code) or "//" in bare:
        return
    for old, new in SWAPS.items():
        for at in (m.start() for m in re.finditer(re.escape(old), bare)):
            yield bare[:at] + new + bare[at + len(old) :]
    for m in re.finditer(r"(?<![\w.])(\d+)(?![\w.])", bare):
        yield bare[: m.start()] + str(int(m.group()) + 1) + bare[m.end() :]
    for m in re.finditer(r"\bif \((.+)\)", bare):
        if m.group(1).count("(") == m.group(1).count(")") and "constexpr" not in bare:
            yield f"{bare[: m.start(1)]}!({m.group(1)}){bare[m.end(1) :]}"
    if STATEMENT.match(bare) and not DECLARED.match(bare):
        yield re.match(r"\s*", bare).group() + ";"


def compiled_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that a build for the one instruction set compiles, with their numbers."""
    active: list[bool] = []
    taken: list[bool] = []
    for number, line in enumerate(text.splitlines()):
        words = line.strip()
        if words.startswith(("#if", "#elif")):
            condition = re.search(r"LIRANK_ISA (==|>|>=|<) (\d+)", words)
            value = (
                eval(f"{LANES} {condition[1]} {condition[2]}") if condition else "ndef" not in words
            )
            if words.startswith("#if"):
                active.append(value)
                taken.append(value)
            else:
                active[-1] = value and not taken[-1]
                taken[-1] |= value
        elif words.startswith("#else"):
            active[-1] = not taken[-1]
        elif words.startswith("#endif"):
            active.pop()
            taken.pop()
        elif all(active):
            yield number, line


def family_of(path: Path) -> str | None:
    return next((f for f in FAMILIES if path.name.startswith(f)), None)


def sources() -> list[Path]:
    """The files that are changed: those of the op families, without their CUDA side."""
    found = sorted((ROOT / "csrc").rglob("*"))
    return [
        p.relative_to(ROOT)
        for p in found
        if p.suffix in (".h", ".cpp") and family_of(p) and "cuda" not in str(p.relative_to(ROOT))
    ]


def all_mutants() -> list[Mutant]:
    found = []
    for path in sources():
        for number, line in compiled_lines((ROOT / path).read_text()):
            found += [Mutant(str(path), number, line, new) for new in changes(line) if new != line]
    return found


class Workshop:
    """A copy of the sources in which one mutant at a time is compiled.

    All other objects are those of the checkout's own build, which stays as it is.
    """

    def __init__(self) -> None:
        self.built = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}"
        self.shipped = os.path.relpath(ROOT / "lirank_ext" / "liblirank.so", self.built)
        self._check_built()
        self.root = SCRATCH / "tree"
        for name in ("csrc", "kernels"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            shutil.copytree(ROOT / name, self.root / name)
        # The commands name sources relative to the folder of the build.
        self.work = self.root / "build" / self.built.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.made = SCRATCH / "package"
        lay_out(self.made / "lirank_ext")
        for module in (ROOT / "lirank_ext").glob("_C.*.so"):
            shutil.copyfile(module, self.made / "lirank_ext" / module.name)
        self.library = self.made / "lirank_ext" / "liblirank.so"
        self.depends = self._dependents()
        self.compiling, self.linking = self._commands()
        self.link({})
        self.passing: set[str] = set()  # families whose unchanged kernels were judged

    def ninja(self, *options: str) -> str:
        command = [sys.executable, "-m", "ninja", "-C", str(self.built), *options]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def _check_built(self) -> None:
        if "no work to do" not in self.ninja("-n", self.shipped):
            sys.exit(
                f"mutants: {self.built} is not of these sources: run "
                "'python setup.py build_ext --inplace' first"
            )

    def _dependents(self) -> dict[str, list[str]]:
        """The objects that include each source, by its path; of kernels, those of one set."""
        found: dict[str, list[str]] = {}
        for block in self.ninja("-t", "deps").split("\n\n"):
            lines = [line for line in block.splitlines() if line and not line.startswith("ninja:")]
            if not lines:
                continue
            target = lines[0].split(":")[0]
            # The bindings are another library, which stays as it is.
            if target.startswith("bindings") or re.search(r"\.(0|256)\.o$", target):
                continue
            for line in lines[1:]:
                path = (self.built / line.strip()).resolve()
                if path.is_relative_to(ROOT):
                    found.setdefault(str(path.relative_to(ROOT)), []).append(target)
        return found

    def _commands(self) -> tuple[dict[str, str], str]:
        """The command that compiles each object, and the one that links them."""
        lines = [x for x in self.ninja("-t", "commands", self.shipped).splitlines() if " -o " in x]
        # Mutants and what they are compared with are compiled faster than what is shipped.
        found = {line.split(" -o ")[-1]: f"{line} -O1" for line in lines[:-1]}
        return found, lines[-1].rsplit(" -o ", 1)[0]

    def _compile(self, names: list[str], folder: str) -> bool:
        (self.work / folder).mkdir(exist_ok=True)
        commands = [self.compiling[n].replace(f"-o {n}", f"-o {folder}/{n}") for n in names]
        running = [subprocess.Popen(c, shell=True, cwd=self.work, stderr=QUIET) for c in commands]
        return not any([process.wait() for process in running])

    def link(self, changed: dict[str, Path]) -> bool:
        link = f"{self.linking} "
        for name in self.compiling:
            link = link.replace(f" {name} ", f" {changed.get(name, self.built / name)} ")
        command = f"{link} -o {self.library}"
        return subprocess.run(command, shell=True, cwd=self.work, stderr=QUIET).returncode == 0

    def unchanged(self, file: str) -> None:
        """Compile what a source is part of as it is, for comparison, if that was not done yet."""
        names = self.depends[file]
        if not all((self.work / "unchanged" / name).exists() for name in names):
            self._compile(names, "unchanged")

    def compile(self, file: str) -> str:
        """Compile what a changed source is part of.

        Returns:
            Why there is no library to judge, or "".
        """
        names = self.depends[file]
        if not self._compile(names, "changed"):
            return "does not compile"
        changed = {name: self.work / "changed" / name for name in names}
        same = (self.work / "unchanged" / n for n in names)
        if all(
            a.read_bytes() == b.read_bytes() for a, b in zip(same, changed.values(), strict=True)
        ):
            return "the same program"
        return "" if self.link(changed) else "does not compile"


def judge(mutant: Mutant, shop: Workshop, tests: bool) -> dict:
    """Compile a mutant and see what notices it."""
    path = shop.root / mutant.file
    whole = (ROOT / mutant.file).read_text()
    check_unchanged(family_of(Path(mutant.file)), shop, tests)
    shop.unchanged(mutant.file)
    lines = whole.splitlines(keepends=True)
    lines[mutant.line] = mutant.new + "\n"
    began, by = time.monotonic(), ""
    try:
        path.write_text("".join(lines))
        verdict = shop.compile(mutant.file)
    finally:
        path.write_text(whole)
    if not verdict:
        by = noticed(mutant, shop, tests)
        verdict = "caught" if by else "survived"
    seconds = round(time.monotonic() - began, 1)
    return {"name": mutant.name, **asdict(mutant), "verdict": verdict, "by": by} | {
        "seconds": seconds,
        "tests": tests,
    }


def check_unchanged(family: str, shop: Workshop, tests: bool) -> None:
    """Nothing is caught by a judge that finds fault with the kernels as they are."""
    if family in shop.passing:
        return
    shop.link({})
    said = noticed_by_verify(FAMILIES[family], shop)
    if said or (tests and (said := _verdict_of_tests(family, shop.made))):
        sys.exit(f"mutants: the unchanged kernels of {family} do not pass: {said}")
    shop.passing.add(family)


def noticed(mutant: Mutant, shop: Workshop, tests: bool) -> str:
    """What caught a mutant, in a few words, or ""."""
    family = family_of(Path(mutant.file))
    said = noticed_by_verify(FAMILIES[family], shop)
    if said:
        return f"verify: {said}"
    return _verdict_of_tests(family, shop.made) if tests else ""


def noticed_by_verify(ops: Sequence[str], shop: Workshop) -> str:
    """What ``verify`` says of the ops whose names begin so, in a process of its own."""
    report = SCRATCH / "report"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        os.dup2(os.open(SCRATCH / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            report.write_text(_verdict_of_verify(tuple(ops), shop.made))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return report.read_text() if report.exists() else "an exception outside of a case"


def _verdict_of_verify(prefixes: tuple[str, ...], package: Path) -> str:
    """Runs in a process of its own, which loads the mutant's library."""
    sys.path.insert(0, str(package))
    from lirank_ext.library.op import implementations
    from lirank_ext.verify import check_case, checked_ops, fuzz
    from lirank_ext.verify.cases import all_cases

    ops = [op for op in checked_ops() if op.startswith(prefixes)]
    for op in ops:
        kernel = implementations(op)["cpu"]
        for case in sorted(all_cases(op), key=lambda c: c.big):
            outcome = check_case(case, kernel)
            if not outcome.passed:
                return f"{op}: {case.label}"
    for op in set(ops) & set(fuzz.GENERATORS):
        for seed in range(RANDOM_CALLS):
            if problem := fuzz.judge(op, seed):
                return f"random call {op}:{seed}: {problem}"[:200]
    return ""


def _verdict_of_tests(family: str, package: Path) -> str:
    stem = {"bags": "quantized_embedding"}.get(family, family)
    files = sorted(str(p) for p in (ROOT / "tests").glob(f"test_{stem}*.py"))
    files += [str(ROOT / "tests/test_request_sharing.py")] if family == "cross" else []
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    try:
        done = subprocess.run(
            command, cwd=SCRATCH, env=environment, capture_output=True, text=True, timeout=1200
        )
    except subprocess.TimeoutExpired:
        return "tests: no end after 20 minutes"
    if done.returncode == 0:
        return ""
    if done.returncode in (2, 3, 4, 5):  # stopped, or nothing could be run
        sys.exit(f"mutants: the tests of {family} could not be run: {done.stdout[-2000:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?(test_\S+)", done.stdout, re.M)
    return f"tests: {failed[0] if failed else 'the process died'}"


def drawn(count: int, seed: int, depends: dict[str, list[str]]) -> list[Mutant]:
    """Mutants by chance: a file first, so that long files do not take all of them."""
    by_file: dict[str, list[Mutant]] = {}
    for mutant in all_mutants():
        if 0 < len(depends.get(mutant.file, [])) <= MOST_OBJECTS:
            by_file.setdefault(mutant.file, []).append(mutant)
    draw, found = random.Random(seed), {}
    # As many of a file as the root of its length, at random within it.
    weights = {file: len(each) ** 0.5 for file, each in by_file.items()}
    while len(found) < count:
        file = draw.choices(list(weights), list(weights.values()))[0]
        mutant = draw.choice(by_file[file])
        found[mutant.name] = mutant
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="mutants to draw (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--again", metavar="NAME", nargs="*", help="judge these once more")
    parser.add_argument(
        "--no-tests",
        dest="tests",
        action="store_false",
        help="judge by verify alone; a later run without this judges what survived by the tests",
    )
    parser.add_argument("--json", type=Path, help="where the counts and the survivors go")
    args = parser.parse_args()
    shop = Workshop()
    import torch  # before the first fork: every child has it

    torch.set_num_threads(2)
    judged_file = SCRATCH / "judged.jsonl"
    lines = judged_file.read_text().splitlines() if judged_file.exists() else []
    judged = {each["name"]: each for each in map(json.loads, lines)}
    mutants = drawn(args.count, args.seed, shop.depends)
    for number, mutant in enumerate(mutants):
        known = judged.get(mutant.name)
        open_still = known and known["verdict"] == "survived" and not known["tests"] and args.tests
        if known and not open_still and mutant.name not in (args.again or ()):
            continue
        if args.again and mutant.name not in args.again:
            continue
        found = judge(mutant, shop, args.tests)
        judged[mutant.name] = found
        with judged_file.open("a") as file:
            file.write(json.dumps(found) + "\n")
        where = f"{mutant.file}:{mutant.line + 1}"
        print(f"{number + 1}/{len(mutants)} {where} {found['verdict']} {found['by']}", flush=True)
        write(args, mutants, judged)
    counted = write(args, mutants, judged)
    print(summary(counted, args))
    return 0


def write(args: argparse.Namespace, mutants: list[Mutant], judged: dict[str, dict]) -> list[dict]:
    """Put the figures of what has been judged so far into the file that was asked for."""
    counted = [judged[m.name] for m in mutants if m.name in judged]
    if args.json:
        args.json.write_text(json.dumps(figures(counted, args), indent=1) + "\n")
    return counted


def figures(judged: list[dict], args: argparse.Namespace) -> dict:
    count = {v: sum(j["verdict"] == v for j in judged) for v in VERDICTS}
    survivors = [j for j in judged if j["verdict"] == "survived"]
    by = {w: sum(j["by"].startswith(w) for j in judged) for w in ("verify", "tests")}
    untested = sum(not s["tests"] for s in survivors)
    return {
        "isa": ISA,
        "untested": untested,
        "seed": args.seed,
        "drawn": args.count,
        "verdicts": count,
        "by": by,
    } | {
        "survivors": [{k: s[k] for k in ("name", "file", "line", "old", "new")} for s in survivors]
    }


VERDICTS = ("caught", "survived", "the same program", "does not compile")


def summary(judged: list[dict], args: argparse.Namespace) -> str:
    count = figures(judged, args)["verdicts"]
    return f"{sum(count.values())} of {args.count} mutants judged: " + ", ".join(
        f"{n} {verdict}" for verdict, n in count.items()
    )


if __name__ == "__main__":
    sys.exit(main())
