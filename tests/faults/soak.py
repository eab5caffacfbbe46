"""An hour of steady load and random faults: `python -m tests.faults.soak`; exit status 1 when it fails.

Two dispatchers share the work.  One, the witness, is never killed and talks to the broker directly: what
it takes in memory, descriptors and threads must be as flat at the end as it was at the beginning.  The
other suffers whatever the scenarios do.  Then the load stops, everything comes to rest, and every event is
accounted for.
"""

import argparse
import asyncio
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.errors import BrokerError
from tests.faults.ledger import Account
from tests.faults.misgivings import Sample, middle, misgivings
from tests.faults.node import FaultyNode
from tests.faults.play import START_TIMEOUT
from tests.faults.replica import Replica
from tests.faults.scenarios import broker, connection, dispatcher
from tests.faults.scenarios.base import Scenario, Times
from tests.faults.stage import HEARTBEAT, HangError, Stage, in_flight, stage

PAUSE: Final = 12.0
"""Seconds between two faults, on average."""
SAMPLE_EVERY: Final = 5.0
WARM: Final = 0.25
"""The share of the time after which memory is expected to be what it will be."""
REST_TIMEOUT: Final = 900.0
"""Seconds for what the faults of an hour have put in the way."""
READ_TIMEOUT: Final = 900.0
"""Seconds in which what an hour leaves in the queues is read: some ten thousand dead letters."""


class ReceiversSlow(Scenario):
    """All receivers take up to three seconds for an answer, for a while."""

    name = "receivers-slow"
    what = "receivers slow (up to 3 s)"
    times = Times(0, 0)

    async def strike(self, stage: Stage, number: int) -> None:
        stage.receivers.slow = 100.0
        await stage.moments(3.0, 8.0)
        stage.receivers.slow = 1.0
        await stage.progress()


FAULTS: Final[Sequence[tuple[type[Scenario], int]]] = (
    (ReceiversSlow, 3),
    (dispatcher.KilledAnyTime, 4),
    (dispatcher.KilledInReload, 3),
    (dispatcher.KilledInDrain, 2),
    (dispatcher.Drained, 2),
    (connection.Cut, 4),
    (connection.CutWhileConnecting, 3),
    (connection.HalfOpen, 2),
    (connection.Slow, 2),
    (connection.ChannelClosed, 3),
    (connection.ConsumerCancelled, 3),
    (broker.NodeKilled, 1),
    (broker.NodeRestarted, 1),
    (broker.MemoryAlarm, 2),
)
"""What strikes, and how often among the others."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a soak found; `seconds` of load."""

    seconds: float
    faults: dict[str, int]
    account: Account
    bound: int
    second_quarter: Sample
    last_quarter: Sample
    at_rest: Sample
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        told = asdict(self)
        told["account"].pop("missing")
        return told


class Soak:
    """One soak on a stage: the load, the faults, the samples."""

    def __init__(self, it: Stage, seconds: float, witness: Replica) -> None:
        self._it = it
        self._seconds = seconds
        self._witness = witness
        self._struck: Counter[str] = Counter()
        self._samples: list[Sample] = []
        self._problems: list[str] = []

    async def run(self) -> Findings:
        """Run it, bring everything to rest, and account."""
        it, started = self._it, time.monotonic()
        await it.replica()
        it.producer.start()
        await it.progress()
        watching = asyncio.create_task(self._watch(started))
        await self._strike_until(started + self._seconds)
        loaded = time.monotonic() - started
        it.proxy.reset()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await self._rest()
        at_rest = await self._sample(started)
        await self._stop()
        account = it.ledger.account()
        before, after = middle(self._samples, WARM, 0.5), middle(self._samples, 0.75, 1.0)
        return Findings(
            loaded,
            dict(sorted(self._struck.items())),
            account,
            it.bound,
            before,
            after,
            at_rest,
            (
                *self._problems,
                *it.problems,
                *it.producer.faults[:5],
                *misgivings(account, it.bound, before, after, at_rest),
            ),
        )

    async def _strike_until(self, end: float) -> None:
        it = self._it
        kinds, weights = zip(*FAULTS, strict=True)
        while time.monotonic() < end and not self._problems:
            await asyncio.sleep(
                min(it.chance.expovariate(1 / PAUSE), max(0.0, end - time.monotonic()))
            )
            [kind] = it.chance.choices(kinds, weights)
            self._retire()
            _tell(
                f"{time.monotonic() - end + self._seconds:6.0f} s: {kind.what}; {it.ledger.delivered} delivered"
            )
            try:
                await kind().strike(it, self._struck[kind.name])
            except (HangError, AssertionError, OSError, BrokerError) as error:
                self._problems.append(f"{kind.name}: {type(error).__name__}: {str(error)[-1500:]}")
            self._struck[kind.name] += 1

    def _retire(self) -> None:
        """Leave only the one that runs to the scenarios, which know of no other."""
        it = self._it
        for replica in [one for one in it.replicas if not one.runs]:
            it.deaths += replica.lost_sessions
            self._problems += replica.problems[:5]
            it.replicas.remove(replica)

    async def _watch(self, started: float) -> None:
        while True:
            self._samples.append(await self._sample(started))
            await asyncio.sleep(SAMPLE_EVERY)

    async def _sample(self, started: float) -> Sample:
        told = (Path("/proc") / str(self._witness.pid) / "status").read_text()
        fields = dict(line.split(":", 1) for line in told.splitlines())
        return Sample(
            round(time.monotonic() - started, 1),
            1024 * int(fields["VmRSS"].split()[0]),
            self._witness.descriptors,
            int(fields["Threads"]),
            await in_flight(self._witness),
        )

    async def _rest(self) -> None:
        """Wait until nothing is under way: the queues are empty but for what waits for hours."""
        it = self._it
        try:
            await it.producer.stop()
            await asyncio.to_thread(it.broker.start, START_TIMEOUT)
            self._retire()
            it.replicas.append(self._witness)
            for replica in it.replicas:
                await it.ready(replica)
            await it.settle(REST_TIMEOUT)
        except (HangError, AssertionError) as error:
            self._problems.append(f"at the end: {error}")

    async def _stop(self) -> None:
        it = self._it
        for replica in it.replicas:
            if replica.runs and await replica.stop() != 0:
                self._problems.append(f"SIGTERM: {replica.stderr[-500:]}")
            self._problems += replica.problems[:5]
        async with asyncio.timeout(READ_TIMEOUT):
            await it.remains.take_all(it.broker, it.ledger)


def table(found: Findings) -> str:
    """Return the figures as a table in Markdown, and the faults below it."""
    account = found.account
    parts = {
        "second quarter": found.second_quarter,
        "last quarter": found.last_quarter,
        "at rest": found.at_rest,
    }
    lines = [
        "| witness | memory | descriptors | threads | in flight |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {sample.memory / 2**20:.1f} MiB | {sample.descriptors} | {sample.threads} | {sample.in_flight} |"
        for name, sample in parts.items()
    ]
    struck = ", ".join(f"{name} {count}" for name, count in found.faults.items())
    lines += [
        "",
        f"{found.seconds / 60:.0f} min of load, {account.events:,} events, {account.owed:,} owed.",
        f"{account.lost} lost, {account.doubled} doubled (at most {found.bound:,} explained).",
        f"{sum(found.faults.values())} faults: {struck}.",
    ]
    return "\n".join(lines)


async def soak(minutes: float, rate: float, seed: int) -> Findings:
    """Run a soak on a private broker of its own."""
    chance = random.Random(seed)
    with FaultyNode() as node:
        async with stage(node, [node.url], chance, rate=rate) as it:
            witness = Replica(
                it.station.environ | {"DISPATCHER_AMQP_URL": f"{node.url}?heartbeat={HEARTBEAT}"},
                it.station.folder,
                it.watchdog,
            )
            try:
                await witness.launch()
                await it.ready(witness)
                return await Soak(it, 60 * minutes, witness).run()
            finally:
                await witness.close()


def main() -> int:
    """Run what was asked for and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of load (60)")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second (100)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    told = parser.parse_args()
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _tell(f"seed {told.seed}")
    found = asyncio.run(soak(told.minutes, told.rate, told.seed))
    sys.stdout.write(f"{table(found)}\n")
    sys.stdout.writelines(f"FAILED {problem}\n" for problem in found.problems)
    if told.json:
        told.json.write_bytes(orjson.dumps(found.as_json(), option=orjson.OPT_NON_STR_KEYS))
    return 1 if found.problems else 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
