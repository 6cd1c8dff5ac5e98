"""The Triton launchers of one family on CPU tensors, under Triton's interpreter.

``TRITON_INTERPRET=1 LIRANK_NO_EXT=1 python tests/triton_interpreted.py <family>``: every launcher
is registered under the CPU key, so that the cases run through dispatcher and autograd as they do
on a GPU. The cases take the configurations of a launcher in turn; ``<family> 0`` and
``<family> 1`` run all cases in the first, and in the second. Prints the failures as JSON.
"""

from __future__ import annotations

import json
import sys

from lirank_ext.kernels import launch
from lirank_ext.library import gpu, load
from lirank_ext.library.device_errors import check_errors
from lirank_ext.library.op import OPS
from lirank_ext.verify import check_case
from lirank_ext.verify.cases import all_cases


def register(family: str) -> list[str]:
    """The family's ops that have a launcher, now serving CPU tensors."""
    ops = [op for op in OPS.values() if op.family == family and gpu.has_launcher(op)]
    for op in ops:
        load.library.impl(op.name, gpu.launcher(op), "CPU")
    return [op.name for op in ops]


def implementation(name: str):
    """The op; what its kernels found wrong is raised at once."""

    def call(*args):
        result = OPS[name].overload(*args)
        check_errors()
        return result

    return call


def main(family: str, turn: int | None = None) -> None:
    assert launch.INTERPRETED, "set TRITON_INTERPRET=1"
    names, failures, ran = register(family), [], 0
    for name in names:
        if OPS[name].internal and not OPS[name].mutated:
            continue
        for case in all_cases(name):
            if case.big:
                continue
            with launch.turn(ran if turn is None else turn):
                outcome = check_case(case, implementation(name))
            ran += 1
            if not outcome.passed:
                failures.append(f"{name}: {case.label}: {outcome.problem}")
    print(json.dumps({"ops": names, "ran": ran, "failures": failures}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
