"""Prints a digest of what every op gives on fixed inputs, for comparison between processes.

``test_exactness.py`` starts it with another instruction set in LIRANK_ISA, and with other numbers
of threads as arguments.
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch

from lirank_ext.library.build_info import build_info
from lirank_ext.library.op import OPS, implementations
from lirank_ext.verify import checked_ops
from lirank_ext.verify.compare import _bits, _outputs
from lirank_ext.verify.random_calls import GENERATORS, random_call

CALLS = 30


def arguments(op: str, seed: int, **changed: object) -> list:
    """Those of a random call; the strings of hash_strings are a pair of tensors."""
    call = OPS[op].call(**random_call(op, seed) | changed)
    return [a for a in call if op != "hash_strings" or a is not None]


def digest(op: str, **changed: object) -> str:
    """Of the results of random calls; a refusal counts by its words."""
    total = hashlib.sha256()
    for seed in range(CALLS):
        args = arguments(op, seed, **changed)
        try:
            outputs = _outputs(implementations(op)["cpu"](*args))
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            total.update(str(error).splitlines()[0].encode())
            continue
        for bits in _bits(tuple(outputs)):
            total.update(bits.numpy().tobytes())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    found = {}
    for threads in map(int, sys.argv[1:]):
        torch.set_num_threads(threads)
        found[threads] = {op: digest(op) for op in checked_ops() if op in GENERATORS}
        unweighted = digest("hashed_embedding_bag", per_sample_weights=None)
        found[threads]["hashed_embedding_bag without weights"] = unweighted
    print(json.dumps({"cpu": build_info()["cpu"], "threads": found}))
