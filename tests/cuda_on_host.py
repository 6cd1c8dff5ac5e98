"""verify's cases on the CUDA kernels, run on the host: python cuda_on_host.py LIBRARY OP..."""

import ctypes
import itertools
import os
import sys

os.environ["LIRANK_NO_EXT"] = "1"  # Python defines the ops; LIBRARY serves their CPU tensors

import torch
from cuda_cases import cases as own_cases

from lirank_ext.library import device_errors
from lirank_ext.library.op import OPS
from lirank_ext.verify import Outcome, compare
from lirank_ext.verify.cases import all_cases

SPARSE = "hashed_embedding_bag_backward_sparse"  # verify reaches it by no case: sparse=True does


def sparse_calls():
    """A case and arguments of the sparse backward, from every case whose dense one is checked."""
    for case in all_cases("hashed_embedding_bag", 0):
        if not case.grad:
            continue
        a = OPS[case.op].call(*case.call)
        bags, dim = torch.ops.lirank.hashed_embedding_bag(*a).shape[0], a.quotient_b.shape[1]
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(bags, dim, generator=generator).to(a.quotient_b.dtype)
        rule = (a.num_buckets, a.remainder_b.shape[0], a.seed, a.mode, a.include_last_offset)
        bag = (a.ids, a.offsets, a.per_sample_weights)
        for dtype in (grad.dtype, torch.float16):
            case.tolerance = 4.0 if dtype == torch.float16 else case.tolerance
            yield case, (grad.to(dtype), *bag, *rule, a.prehashed)
    for case in own_cases(SPARSE):
        yield case, case.call


def sparse_outcomes() -> list[Outcome]:
    """The sparse gradients; by hand, as meta tensors cannot say how many rows there will be."""
    op, found = OPS[SPARSE], []
    for case, (grad, *rest) in sparse_calls():
        got, wanted = op.overload(grad, *rest), op.reference(grad.double(), *rest)
        label = f"output of {grad.dtype}"
        found += [
            compare._compare(a, b, case, False, label) for a, b in zip(got, wanted, strict=True)
        ]
    return found


def main(path: str, *names: str) -> int:
    torch.ops.load_library(path)
    library, failed = ctypes.CDLL(path), 0
    for name in names:
        op = OPS[name].overload
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lirank::{name}", "CPU"):
            print(f"{name}: no kernel registered")
            failed += 1
            continue

        def call(*args, op=op):
            out = op(*args)
            found = device_errors._take(library, 0)
            if found[0]:
                raise device_errors._describe(found)
            return out

        if name == SPARSE:
            outcomes = sparse_outcomes()
        else:
            cases = itertools.chain(all_cases(name, 0), own_cases(name))
            outcomes = [compare.check_case(case, call) for case in cases]
        bad = [o for o in outcomes if not o.passed]
        for outcome in bad:
            print(f"{name}, {outcome.case.label}: {outcome.problem}")
        print(f"{name}: {len(outcomes)} cases, {len(bad)} failed", flush=True)
        failed += len(bad) + (not outcomes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
