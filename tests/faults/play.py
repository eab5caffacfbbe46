"""Plays a scenario: load, strikes, quiet, the end of the dispatchers, the account."""

import asyncio
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from service.broker.opening import TROUBLE
from service.errors import BrokerError
from tests.faults.ledger import Account, Place
from tests.faults.node import Node
from tests.faults.scenarios.base import Scenario
from tests.faults.stage import HangError, Stage, stage

START_TIMEOUT: Final = 120.0
READ_TIMEOUT: Final = 120.0
RATE: Final = 80.0
"""Events a second: steady, and far below what saturates a small machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario's line in the table."""

    broker: str
    scenario: str
    what: str
    times: int
    seconds: float
    account: Account
    bound: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether nothing is lost, unexplained, or doubled beyond the bound."""
        told = self.account
        return (
            told.agrees
            and not told.lost
            and not told.strange
            and told.doubled <= self.bound
            and not self.problems
        )

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        told = self.account
        return {
            "broker": self.broker,
            "scenario": self.scenario,
            "what": self.what,
            "times": self.times,
            "seconds": round(self.seconds, 1),
            "published": told.events,
            "owed": told.owed,
            **{place.value: told.seen[place] for place in Place},
            "destroyed": told.destroyed,
            "lost": told.lost,
            "doubled": told.doubled,
            "bound": self.bound,
            "strange": told.strange,
            "passed": self.passed,
            "problems": list(self.problems),
        }


async def play(
    scenario: Scenario,
    times: int,
    broker: Node,
    urls: list[str],
    *,
    version: str,
    chance: random.Random,
    tell: Callable[[str], None],
    rate: float = RATE,
) -> Row:
    """Play a scenario and return its row; a hang or a crash is a problem in the row."""
    started = time.monotonic()
    problems: list[str] = []
    async with stage(broker, urls, chance, rate=rate, direct=scenario.direct) as it:
        done = 0
        try:
            await scenario.begin(it)
            await asyncio.to_thread(broker.flush)
            it.producer.start()
            await it.progress()
            for number in range(times):
                await scenario.strike(it, number)
                done += 1
                tell(f"{scenario.name} {done}/{times}: {it.ledger.delivered} delivered")
        except (HangError, AssertionError, OSError, BrokerError) as error:
            problems.append(f"strike {done + 1}: {_told(error)}")
            tell(problems[-1])
        it.proxy.reset()
        await asyncio.to_thread(broker.start, START_TIMEOUT)
        problems += await _end(it)
        account = it.ledger.account()
        problems += it.problems
        if account.destroyed > it.destroyable:
            problems.append(f"missing since a queue was deleted that held {it.destroyable} at most")
        problems += it.producer.faults[:5]
        for replica in it.replicas:
            problems += replica.problems[:5]
        row = Row(
            version,
            scenario.name,
            scenario.what,
            done,
            time.monotonic() - started,
            account,
            it.bound,
            tuple(problems),
        )
        if not row.passed:
            tell(f"{scenario.name}: logs are kept in {it.keep_logs(scenario.name)}")
        await it.remains.delete(broker.url, it.station.exchange)
    return row


async def _end(it: Stage) -> list[str]:
    """Bring everything to rest, stop the dispatchers, take out what is left."""
    problems = []
    try:
        await it.producer.stop()
        running = [replica for replica in it.replicas if replica.runs]
        if not running:
            running = [await it.replica(wait=False)]
        for replica in running:
            await it.ready(replica)
        await it.settle()
    except (HangError, AssertionError) as error:
        problems.append(_told(error))
    for replica in it.replicas:
        if replica.runs:
            try:
                status = await replica.stop()
            except TimeoutError:
                problems.append("SIGTERM: the dispatcher did not end in time")
                continue
            if status != 0:
                problems.append(f"SIGTERM: exit status {status}, {replica.stderr[-500:]}")
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            await it.remains.take_all(it.broker, it.ledger)
    except TROUBLE as error:
        problems.append(f"what is left could not be read: {_told(error)}")
    return problems


def _told(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(where) if "scenarios" in frame.filename), None)
    line = f" (line {place.lineno} of {place.filename.rsplit('/', 1)[1]})" if place else ""
    return f"{type(error).__name__}: {str(error)[-1500:]}{line}"
