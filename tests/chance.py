"""Chance whose seed is printed. A run repeats the one before it, so that red means changed; CDC_SEED=n is another one,
CDC_SEED=random explores (the long runs of the Makefile do).
"""

from __future__ import annotations

import os
import random
import secrets

GIVEN = os.environ.get("CDC_SEED") or "1"


def seeded(what: str = "") -> random.Random:
    """A generator of this run's seed."""
    seed = secrets.randbits(32) if GIVEN == "random" else int(GIVEN)
    print(f"{what}: CDC_SEED={seed}")
    return random.Random(seed)
