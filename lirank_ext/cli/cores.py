"""How PyTorch's CPU threads wait for one another, on a machine that others use too."""

from __future__ import annotations

import os
import sys

# A thread that waits turns in a loop, by default for about a millisecond. Where another process has
# the core of the thread that is waited for, every wait takes that long and keeps a core from those
# who would use it. After so many turns it sleeps instead.
TURNS = "1000"
# What says how threads wait, in PyTorch's build with libgomp.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def share() -> None:
    """Let threads that wait sleep soon. PyTorch reads this when it is first imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = TURNS
