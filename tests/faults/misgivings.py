"""What a soak may not show: a loss, more doubles than its faults explain, a witness that grows."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.faults.ledger import Account

MEMORY_GROWTH: Final = 1.10
"""By how much the last quarter's memory may exceed the second's: the allocator's breath, no leak."""
SPARE_DESCRIPTORS: Final = 16
POOLED_THREADS: Final = 4 + min(32, (os.cpu_count() or 1) + 4)
"""Threads of the pools: those of libuv, and those of asyncio, which gets one more whenever none is idle."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the witness holds; `memory` in bytes."""

    at: float
    memory: int
    descriptors: int
    threads: int
    in_flight: int


def middle(samples: Sequence[Sample], low: float, high: float) -> Sample:
    """Return the medians of the samples of a part of the time, `low` to `high` as shares of it."""
    count = len(samples)
    found = samples[int(low * count) : int(high * count)] or samples[-1:]
    return Sample(
        found[0].at,
        *(
            int(statistics.median(getattr(sample, name) for sample in found))
            for name in ("memory", "descriptors", "threads", "in_flight")
        ),
    )


def misgivings(
    account: Account, bound: int, before: Sample, after: Sample, at_rest: Sample
) -> list[str]:
    """Return what is wrong; `bound` is how many doubles the faults explain, the samples are the witness's."""
    wrong = {
        f"{account.lost} lost": account.lost,
        f"the sums do not agree: {account}": not account.agrees,
        f"{account.strange} that nobody published": account.strange,
        f"{account.doubled} doubled, {bound} explained": account.doubled > bound,
        "memory grows": after.memory > before.memory * MEMORY_GROWTH,
        "threads grow": after.threads > max(before.threads, 1 + POOLED_THREADS),
        "descriptors are left open": at_rest.descriptors > before.descriptors + SPARE_DESCRIPTORS,
        "something is in flight at rest": at_rest.in_flight,
    }
    return [text for text, found in wrong.items() if found]
