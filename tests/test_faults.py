"""The account of every event, and some of the faults in a very short form.

`make test-faults` is the whole suite.
"""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pamqp.common import FieldValue

from service.broker.opening import Address, open_connection
from service.broker.topology import Names
from service.rabbitmq import PrivateBroker
from tests.broker_contract import until
from tests.faults.ledger import REJECTED, Account, Ledger, Place
from tests.faults.misgivings import (
    MEMORY_GROWTH,
    POOLED_THREADS,
    SPARE_DESCRIPTORS,
    Sample,
    middle,
    misgivings,
)
from tests.faults.play import Row, play
from tests.faults.remains import Remains
from tests.faults.scenarios import ALL
from tests.faults.scenarios.base import Scenario
from tests.faults.scenarios.broker import NodeKilled
from tests.faults.scenarios.connection import ChannelClosed, Cut
from tests.faults.scenarios.dispatcher import KilledAfterConfirm, KilledAnyTime, OneOfTwoKilled
from tests.faults.soak import soak
from tests.faults.soak import table as soak_table
from tests.faults.stage import HangError, Stage
from tests.faults.table import table, verdicts

SHORT = (
    KilledAnyTime,
    KilledAfterConfirm,
    OneOfTwoKilled,
    Cut,
    ChannelClosed,
    NodeKilled,
)
"""What is played here, once each."""


def row(account: Account, bound: int = 0) -> Row:
    return Row("4.0.5", "name", "what was done", 3, 1.0, account, bound, ())


def test_an_account_agrees_when_every_debt_is_seen():
    ledger = Ledger()
    ledger.confirm("1", ("a", "b"))
    ledger.confirm("2", (REJECTED,))
    ledger.see(Place.DELIVERED, ("1", "a"))
    ledger.see(Place.WAITING, ("1", "b"))
    ledger.see_event(Place.REJECTED, "2")
    account = ledger.account()
    assert (account.events, account.owed, account.lost, account.doubled) == (2, 3, 0, 0)
    assert account.agrees
    assert verdicts([row(account)]) == []
    assert row(account).passed


def test_what_is_seen_nowhere_is_lost_and_fails_the_run():
    ledger = Ledger()
    ledger.confirm("1", ("a", "b"))
    ledger.see(Place.DELIVERED, ("1", "a"))
    account = ledger.account()
    assert (account.lost, account.missing) == (1, (("1", "b"),))
    assert account.agrees
    assert not row(account).passed
    assert "1 lost: 1/b" in verdicts([row(account)])[0]


def test_an_event_without_a_confirm_is_owed_as_a_whole_once_any_of_it_is_seen():
    ledger = Ledger()
    ledger.doubt("1", ("a", "b"))
    ledger.doubt("2", ("a", "b"))
    assert ledger.account().owed == 0
    ledger.see(Place.DELIVERED, ("2", "b"))
    assert ledger.account().missing == (("2", "a"),)


def test_doubles_are_counted_and_bounded():
    ledger = Ledger()
    ledger.confirm("1", ("a",))
    for place in (Place.DELIVERED, Place.DELIVERED, Place.DEAD):
        ledger.see(place, ("1", "a"))
    account = ledger.account()
    assert account.doubled == 2
    assert account.agrees
    assert row(account, bound=2).passed
    assert not row(account, bound=1).passed


def test_only_what_was_in_a_deleted_queue_may_be_missing():
    ledger = Ledger()
    ledger.confirm("1", ("a",))
    ledger.destroy(ledger.unpaid())
    ledger.confirm("2", ("a",))
    account = ledger.account()
    assert (account.destroyed, account.lost) == (1, 1)
    assert account.agrees


def test_another_body_or_an_event_that_nobody_published_is_strange():
    ledger = Ledger()
    ledger.confirm("1", ("a",))
    assert ledger.attempt(("1", "a"), b"body") == 1
    assert ledger.attempt(("1", "a"), b"another") == 2
    ledger.see(Place.DELIVERED, ("1", "a"))
    ledger.see(Place.DELIVERED, ("2", "a"))
    assert ledger.account().strange == 2
    assert not row(ledger.account()).passed


def test_the_table_has_a_line_for_each_scenario():
    ledger = Ledger()
    ledger.confirm("1", ("a",))
    lines = table([row(ledger.account(), bound=1234)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 3
    assert lines[2].endswith(" 1,234 |")


def test_every_scenario_has_a_name_of_its_own():
    assert len({scenario.name for scenario in ALL}) == len(ALL)


@pytest.mark.parametrize("scenario", SHORT)
async def test_no_event_is_lost(node: PrivateBroker, scenario: type[Scenario]):
    told = await play(
        scenario(),
        scenario.times.brief,
        node,
        [node.url],
        version="",
        chance=random.Random(scenario.name),
        tell=lambda _: None,
    )
    assert verdicts([told]) == []
    assert told.account.owed > 0


async def test_what_has_expired_and_nobody_confirmed_is_still_held(
    node: PrivateBroker, prefix: str
):
    queue = Names(prefix).delay(0)
    arguments: dict[str, FieldValue] = {
        "x-queue-type": "quorum",
        "x-message-ttl": 1,
        "x-dead-letter-exchange": f"{prefix}.nowhere",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    connection = await open_connection(node.url, Address([node.url]), "test")
    try:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments=arguments)
        await channel.basic_publish(b"{}", routing_key=queue)

        async def has_expired() -> bool:
            return (await channel.queue_declare(queue, passive=True)).message_count == 0

        await until(has_expired)
    finally:
        await connection.close()
    assert await Remains(prefix).held(node) == {queue: 1}


class Hopeless(KilledAnyTime):
    """A scenario that does not see what it waits for."""

    name = "hopeless"

    async def strike(self, stage: Stage, number: int) -> None:
        raise HangError("it never comes")


async def test_what_fails_says_so_and_keeps_the_logs(node: PrivateBroker):
    told: list[str] = []
    row = await play(
        Hopeless(), 1, node, [node.url], version="", chance=random.Random(1), tell=told.append
    )
    assert not row.passed
    assert "it never comes" in verdicts([row])[0]
    folder = Path(told[-1].rpartition(" ")[2])
    try:
        assert "service.started" in (folder / "dispatcher-0.log").read_text()
        assert "RabbitMQ" in (folder / "rabbitmq.log").read_text()
    finally:
        shutil.rmtree(folder)


FLAT = Sample(at=900.0, memory=70 * 2**20, descriptors=32, threads=7, in_flight=3)
AT_REST = replace(FLAT, in_flight=0)
ALL_PAID = Account(1, 2, {Place.DELIVERED: 2}, destroyed=0, lost=0, doubled=0, strange=0)


def test_nothing_speaks_against_a_soak_at_whose_end_all_is_as_before():
    assert misgivings(ALL_PAID, 0, FLAT, FLAT, AT_REST) == []


@pytest.mark.parametrize(
    ("account", "after", "at_rest", "told"),
    [
        (replace(ALL_PAID, owed=3, lost=1), FLAT, AT_REST, "1 lost"),
        (replace(ALL_PAID, owed=3), FLAT, AT_REST, "the sums do not agree"),
        (replace(ALL_PAID, strange=1), FLAT, AT_REST, "1 that nobody published"),
        (replace(ALL_PAID, owed=1, doubled=1), FLAT, AT_REST, "1 doubled, 0 explained"),
        (ALL_PAID, replace(FLAT, memory=80 * 2**20), AT_REST, "memory grows"),
        (ALL_PAID, replace(FLAT, threads=2 + POOLED_THREADS), AT_REST, "threads grow"),
        (ALL_PAID, FLAT, replace(AT_REST, descriptors=50), "descriptors are left open"),
        (ALL_PAID, FLAT, FLAT, "something is in flight at rest"),
    ],
)
def test_a_soak_says_what_speaks_against_it(
    account: Account, after: Sample, at_rest: Sample, told: str
):
    [found] = misgivings(account, 0, FLAT, after, at_rest)
    assert found.startswith(told)


def test_a_soak_grants_its_witness_what_an_allocator_and_the_pools_of_threads_take():
    after = replace(FLAT, memory=int(FLAT.memory * MEMORY_GROWTH), threads=1 + POOLED_THREADS)
    at_rest = replace(AT_REST, descriptors=FLAT.descriptors + SPARE_DESCRIPTORS)
    assert misgivings(ALL_PAID, 0, FLAT, after, at_rest) == []


def test_a_part_of_a_soak_is_told_by_its_medians():
    samples = [replace(FLAT, at=float(at), memory=at * at) for at in range(8)]
    assert middle(samples, 0.25, 0.5) == replace(FLAT, at=2.0, memory=6)


@pytest.mark.usefixtures(
    "node"
)  # the soak starts one of its own, which only a machine with RabbitMQ can
async def test_a_short_soak_loses_nothing_and_says_what_it_saw():
    found = await soak(0.2, 40.0, 7)
    # So soon after its start a witness grows by what it needs for its work.
    assert set(found.problems) <= {"memory grows"}
    assert found.account.events
    assert found.account.agrees
    assert f"{found.account.events:,} events" in soak_table(found)
