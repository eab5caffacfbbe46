"""What a delivery costs that does not end in its first attempt, beside one that does.

Fails once: the receiver answers 404, so the delivery is peeled off, goes up the delay ladder for a second,
comes back on the backlog lane and is delivered.  Busy: far more events wait for one target than it may
have in flight by default.
"""

from dataclasses import dataclass

from tests.bench.cost import Turn, deliver, dispatcher_for, ratios
from tests.bench.plan import Plan
from tests.bench.receiver import Receiver
from tests.bench.station import Station


@dataclass(frozen=True, slots=True)
class Detour:
    """Turns on the way in question and on the direct one; `deferrals` for each delivery."""

    turns: list[Turn]
    direct: list[Turn]
    deferrals: float

    @property
    def ratios(self) -> tuple[float, ...]:
        """Return how often as much CPU time the detour took, pair by pair."""
        return ratios(self.turns, self.direct)


async def measure_detour(station: Station, tenant: str, hook: Receiver, plan: Plan) -> Detour:
    """Measure the events of a tenant and those that are delivered directly, in turns."""
    ours, direct = dispatcher_for(station, tenant), dispatcher_for(station, "direct")
    detour = Detour([], [], 0.0)
    deferred = 0
    for _ in range(plan.detour_pairs):
        await deliver(direct, hook, plan.warm_up)
        detour.direct.append(await deliver(direct, hook, plan.detours))
        before = station.dispatcher.lines("delivery.deferred")
        detour.turns.append(await deliver(ours, hook, plan.detours))
        deferred += station.dispatcher.lines("delivery.deferred") - before
    return Detour(detour.turns, detour.direct, deferred / plan.detours / plan.detour_pairs)
