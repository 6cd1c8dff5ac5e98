"""verify's cases on the CUDA kernels, run on the host: python cuda_on_host.py LIBRARY OP..."""

import ctypes
import os
import sys

os.environ["LIRANK_NO_EXT"] = "1"  # Python defines the ops; LIBRARY serves their CPU tensors

import torch

from lirank_ext import _errors, _library, verify
from lirank_ext.cases import all_cases


def main(path: str, *names: str) -> int:
    torch.ops.load_library(path)
    library, failed = ctypes.CDLL(path), 0
    for name in names:
        op = _library.OPS[name].overload
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{name}", "CPU"):
            print(f"{name}: no kernel registered")
            failed += 1
            continue

        def call(*args, op=op):
            out = op(*args)
            found = _errors._take(library)
            if found[0]:
                raise _errors._describe(found)
            return out

        outcomes = [verify.check_case(case, call) for case in all_cases(name, 0)]
        bad = [o for o in outcomes if not o.passed]
        for outcome in bad:
            print(f"{name}, {outcome.case.label}: {outcome.problem}")
        print(f"{name}: {len(outcomes)} cases, {len(bad)} failed", flush=True)
        failed += len(bad) + (not outcomes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
