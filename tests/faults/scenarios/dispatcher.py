"""The dispatcher dies."""

import asyncio
import signal

from tests.dispatcher import write_subscriptions
from tests.faults.proxy import ACK, Link, Seen
from tests.faults.replica import Replica
from tests.faults.scenarios.base import Scenario, Times
from tests.faults.stage import Stage


class KilledAnyTime(Scenario):
    """SIGKILL at random instants, also while it starts."""

    name = "dispatcher-killed"
    what = "dispatcher killed (SIGKILL) at a random instant"
    times = Times(50, 4)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        if number % 5 == 4:
            await stage.moments(0.0, 1.5)  # perhaps before it consumes
        else:
            await stage.ready(replica)
            await stage.moments(0.1, 1.0)
        await stage.kill(replica)
        await stage.replica(wait=False)


class KilledAfterConfirm(Scenario):
    """SIGKILL when the broker has confirmed what a message owed, and has no ack for it."""

    name = "killed-before-ack"
    what = "dispatcher killed between a confirm and the ack"
    times = Times(25, 4)

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.ready(replica)
        await stage.progress()
        confirmed = asyncio.Event()

        def watch(link: Link, seen: Seen, to_broker: bool) -> bool:  # noqa: FBT001
            if seen.method != ACK:
                return True
            if to_broker:
                return not confirmed.is_set()
            confirmed.set()
            return True

        stage.proxy.watch = watch
        await stage.until(confirmed.is_set, "a confirm")
        await stage.moments(0.0, 0.05)
        await stage.kill(replica)
        stage.proxy.reset()
        await stage.replica(wait=False)


class KilledInReload(Scenario):
    """SIGKILL while changed subscriptions are read and taken up."""

    name = "killed-in-reload"
    what = "dispatcher killed while it takes up changed subscriptions"
    times = Times(25, 3)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.ready(replica)
        await stage.progress()
        loaded = replica.counts["subscriptions.loaded"]
        write_subscriptions(stage.station.folder, *self._changed(stage, number))
        if number % 2:
            await stage.until(
                lambda: replica.counts["subscriptions.loaded"] > loaded, "the change is taken up"
            )
            await stage.moments(0.0, 0.1)
        else:
            await stage.moments(0.0, 1.2)
        await stage.kill(replica)
        await stage.replica(wait=False)

    @staticmethod
    def _changed(stage: Stage, number: int) -> list[dict[str, object]]:
        kept = stage.subscriptions()
        for subscription in kept:
            subscription["description"] = f"change {number}"
        others = [
            {**kept[0], "id": f"other-{n}-{number}", "event_types": [f"other.{n}"]}
            for n in range(300)
        ]
        return [*kept, *others]


class KilledInDrain(Scenario):
    """SIGTERM, and SIGKILL before it has drained, as an impatient supervisor does."""

    name = "killed-in-drain"
    what = "dispatcher killed while it drains"
    times = Times(25, 3)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.ready(replica)
        stage.receivers.slow = 30.0
        await stage.progress()
        replica.send(signal.SIGTERM)
        await stage.moments(0.0, 0.8)
        drained = not replica.runs
        replica.send(signal.SIGKILL)
        await replica.ended()
        stage.deaths += not drained
        stage.receivers.slow = 1.0
        await stage.replica(wait=False)


class Drained(Scenario):
    """SIGTERM, as at every rollout: it drains, ends with 0, and nothing at all is doubled."""

    name = "drained"
    what = "dispatcher stopped by SIGTERM and started again"
    times = Times(25, 3)
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        replica = stage.replicas[-1]
        await stage.ready(replica)
        await stage.progress()
        await stage.moments(0.0, 0.3)
        replica.send(signal.SIGTERM)
        if await replica.ended() != 0 or replica.of("service.stopped")[-1]["left"]:
            stage.problems.append(f"strike {number + 1}: it did not drain: {replica.raw[-1]}")
        await stage.replica(wait=False)


class OneOfTwoKilled(Scenario):
    """Two replicas share the work; one is killed and started again, then the other."""

    name = "one-of-two-killed"
    what = "two replicas, one killed"
    times = Times(30, 4)
    direct = True

    async def begin(self, stage: Stage) -> None:
        await stage.replica()
        await stage.replica()

    async def strike(self, stage: Stage, number: int) -> None:
        first, second = _alive(stage)
        await asyncio.gather(stage.ready(first), stage.ready(second))
        await stage.moments(0.1, 1.0)
        await stage.kill(stage.chance.choice([first, second]))
        await stage.progress()
        await stage.replica(wait=False)


def _alive(stage: Stage) -> list[Replica]:
    return [replica for replica in stage.replicas if replica.runs]
