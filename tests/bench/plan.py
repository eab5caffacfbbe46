"""How much is measured: more takes longer and wavers less."""

from dataclasses import dataclass
from typing import Final

IN_FLIGHT: Final = 512
"""Requests under way at once, in the dispatcher (its own default) and in the bare loops alike."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the measurements; `idle` and `latency` in seconds.

    `pairs` is how often dispatcher and bare loops take turns, `deliveries` what each does in one turn
    after `warm_up` deliveries that do not count; both are multiples of a hundred, and workers take as many.  `detours` are the
    deliveries that fail once, and those whose target is busy.  `reloads` are the changes of the file of
    very many subscriptions.  Isolation: `well` are the seconds before, `ill` those of each number of `sick`
    subscribers, in each of the `ways`; `backlog` is how many deliveries are put off beforehand, `load` how
    many events come a second, where 0 means half of what the process can do.
    """

    deliveries: int = 10_000
    warm_up: int = 1_000
    pairs: int = 5
    detours: int = 3_000
    detour_pairs: int = 3
    latency: float = 4.0
    idle: float = 5.0
    subscriptions: int = 100_000
    matches: int = 5_000
    reloads: int = 5
    ways: tuple[str, ...] = ("nobody", "hang", "refuse", "fail", "slow", "throttle", "backlog")
    sick: tuple[int, ...] = (1, 3, 5)
    well: float = 12.0
    ill: float = 12.0
    backlog: int = 100_000
    load: float = 0.0


FULL: Final = Plan()
QUICK: Final = Plan(
    deliveries=2_000,
    pairs=2,
    detours=1_000,
    detour_pairs=1,
    latency=2.0,
    idle=1.0,
    matches=2_000,
    reloads=2,
    sick=(3,),
    well=5.0,
    ill=5.0,
    backlog=5_000,
)
