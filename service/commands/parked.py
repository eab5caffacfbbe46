"""The commands `dead` and `rejected`: list, show, redrive, purge.

Both work on a queue of parked messages and differ in what a message tells and where it goes back to.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import click
from aiormq.exceptions import AMQPChannelError

from service.broker.opening import TROUBLE, Address
from service.broker.parked import Parked, ParkedQueue, Place, Route, Stays, Why, connected
from service.broker.rejected import EXPIRED
from service.broker.topology import Names
from service.commands.terminal import blanked, counted, json_text
from service.core.delivery import Reason
from service.core.matching import pattern_problem
from service.core.units import parse_duration
from service.errors import REJECTED_REASONS, BrokerError, DispatcherError
from service.redrive import (
    UNREADABLE,
    Tell,
    Wanted,
    redrive_dead_letter,
    redrive_rejected,
    tell_dead_letter,
    tell_rejected,
)
from service.settings import Settings

Command = Callable[..., Any]
SHOWN_IDS = 3
UNSEEN = " (those that another command holds at this moment are not seen)"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list for people: a field, and how wide it usually is."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What `dead` and `rejected` differ in."""

    name: str
    what: str
    columns: tuple[Column, ...]
    reasons: tuple[str, ...]
    tell: Tell
    queue: Callable[[Names], str]
    route: Callable[[Names], Callable[[Parked], Place | Stays]]


DEAD = Kind(
    "dead",
    "dead letters",
    (
        Column("dead_lettered_at", 24),
        Column("subscription_id", 16),
        Column("event_type", 20),
        Column("event_id", 36),
        Column("reason", 10),
        Column("attempts", 8),
        Column("last_error", 0),
    ),
    (*(reason.value for reason in Reason), UNREADABLE),
    tell_dead_letter,
    lambda names: names.dead,
    lambda names: redrive_dead_letter(names, time.time()),
)
REJECTED = Kind(
    "rejected",
    "rejected events",
    (
        Column("rejected_at", 24),
        Column("reason", 16),
        Column("routing_key", 20),
        Column("event_id", 36),
        Column("bytes", 8),
        Column("detail", 0),
    ),
    (*REJECTED_REASONS, EXPIRED),
    tell_rejected,
    lambda names: names.rejected,
    redrive_rejected,
)


class Moment(click.ParamType[float]):
    """RFC 3339 text, or a duration that means so long ago; gives Unix seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return Unix seconds."""
        if isinstance(value, float):
            return value
        try:
            return time.time() - parse_duration(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time: write 2026-01-31T12:00:00Z, or 2h for two hours ago",
                param,
                ctx,
            )
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _selecting(kind: Kind) -> Callable[[Command], Command]:
    """Add the filters."""
    options = [
        click.option(
            "--type",
            "event_type",
            callback=_pattern,
            help="Event type or pattern, such as payment.#",
        ),
        click.option("--reason", type=click.Choice(kind.reasons), help="Why it was parked."),
        click.option(
            "--since", type=Moment(), help="Parked at or after: a time, or 2h for 2 h ago."
        ),
        click.option("--until", type=Moment(), help="Parked before."),
        click.option("--limit", type=click.IntRange(min=1), help="No more than so many."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
        click.argument("event_id", required=False),
    ]
    if kind is DEAD:
        options.insert(0, click.option("--subscription", help="Only of this subscription."))

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _pattern(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    problem = None if value is None else pattern_problem(value)
    if problem:
        raise click.BadParameter(f"{value!r} {problem}")
    return value


def _group(kind: Kind) -> click.Group:
    """Return the group of commands for one kind of parked message."""
    group = click.Group(kind.name, help=f"Look into {kind.what}, and put them back to work.")

    @group.command("list", help=f"List {kind.what} as they lie; the queue stays as it is.")
    @_selecting(kind)
    def list_(limit: int | None, *, as_json: bool, **wanted: Any) -> None:
        _run(_print(kind, Wanted(**wanted), limit, as_json=as_json, everything=False))

    @group.command(
        "show", help=f"Show {kind.what} with everything known; the queue stays as it is."
    )
    @_selecting(kind)
    def show(limit: int | None, *, as_json: bool, **wanted: Any) -> None:
        _run(_print(kind, Wanted(**wanted), limit, as_json=as_json, everything=True))

    @group.command("redrive", help=f"Put {kind.what} back to work.")
    @click.option("--dry-run", is_flag=True, help="Only say what would be done.")
    @_selecting(kind)
    def redrive(limit: int | None, *, as_json: bool, dry_run: bool, **wanted: Any) -> None:
        work = _work(kind, Wanted(**wanted), limit, "redriven", as_json=as_json, dry_run=dry_run)
        _run(work)

    @group.command("purge", help=f"Throw {kind.what} away, for ever.")
    @click.option("--dry-run", is_flag=True, help="Only say what would be done.")
    @_selecting(kind)
    def purge(limit: int | None, *, as_json: bool, dry_run: bool, **wanted: Any) -> None:
        work = _work(kind, Wanted(**wanted), limit, "purged", as_json=as_json, dry_run=dry_run)
        _run(work)

    return group


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except asyncio.CancelledError as error:  # the library's word for a channel that ends meanwhile
        raise BrokerError("the broker is gone: try again") from error
    except TROUBLE as error:
        if isinstance(error, DispatcherError):
            raise
        if isinstance(error, AMQPChannelError):
            raise BrokerError(f"the broker refuses: {error}") from error
        raise BrokerError(f"the broker is gone ({type(error).__name__}): try again") from error


async def _print(
    kind: Kind, wanted: Wanted, limit: int | None, *, as_json: bool, everything: bool
) -> None:
    settings = Settings.load(os.environ)
    shown = 0

    def show(parked: Parked) -> bool:
        nonlocal shown
        told, at = kind.tell(parked, everything)
        if wanted.fits(told, at):
            _echo(kind, told, first=shown == 0, as_json=as_json, everything=everything)
            shown += 1
        return shown != limit

    async with connected(Address(settings.amqp_urls, settings.amqp_ca_file)) as connection:
        unseen = await ParkedQueue(connection, kind.queue(Names(settings.prefix))).look(show)
    _tell_unseen(unseen, kind)
    if everything and wanted.event_id is not None and not shown:
        raise DispatcherError(
            f"none of the {kind.what} that are meant is of event {wanted.event_id}"
        )
    if not as_json:
        click.echo(f"{counted(shown, kind.what)}{'' if shown else UNSEEN}", err=True)


def _tell_unseen(unseen: int, kind: Kind) -> None:
    if unseen:
        click.echo(
            f"{counted(unseen, kind.what)} more could not be seen: another holds them now", err=True
        )


def _echo(
    kind: Kind, told: dict[str, Any], *, first: bool, as_json: bool, everything: bool
) -> None:
    if as_json:
        click.echo(json_text(told))
    elif everything:
        click.echo(json_text(told, indent=True))
    else:
        if first:
            click.echo(_row(kind, [column.name for column in kind.columns]))
        click.echo(_row(kind, [told.get(column.name) for column in kind.columns]))


def _row(kind: Kind, values: list[Any]) -> str:
    """Return the values in columns; one that is too long pushes the rest of its row aside."""
    texts = ["-" if value is None else blanked(str(value)) for value in values]
    cells = [f"{text:{column.width}}" for text, column in zip(texts, kind.columns, strict=True)]
    return " ".join(cells).rstrip()


async def _work(
    kind: Kind, wanted: Wanted, limit: int | None, word: str, *, as_json: bool, dry_run: bool
) -> None:
    settings = Settings.load(os.environ)
    names = Names(settings.prefix)
    route = kind.route(names) if word == "redriven" else _nowhere

    left = _Left(kind)

    def chosen(parked: Parked) -> bool:
        told, at = kind.tell(parked, False)
        return wanted.fits(told, at) and not (word == "redriven" and told["reason"] == UNREADABLE)

    async with connected(Address(settings.amqp_urls, settings.amqp_ca_file)) as connection:
        queue = ParkedQueue(connection, kind.queue(names))
        if dry_run:
            count, unseen = await _count(queue, chosen, route, limit)
            _tell_unseen(unseen, kind)
        else:
            count = await queue.work(chosen, route, limit, left.note)
    if as_json:
        click.echo(json_text({word: count, "dry_run": dry_run}))
    else:
        would = "would be " if dry_run else ""
        click.echo(f"{would}{word}: {counted(count, kind.what)}{'' if count else UNSEEN}")
    left.tell()


_REASONS = {
    Why.LOSES: "their headers cannot be written again (undecodable, nested too deep, or too large); purge can throw"
    " them away",
    Why.FULL: "their queue is full and takes no copies; they keep their places",
    Why.REFUSED: "a queue refuses them (it is full, or cannot be written now): try again later",
}


@dataclass(slots=True)
class _Group:
    """Messages that were left where they are for one reason; the ids of the first few."""

    count: int = 0
    ids: list[str] = field(default_factory=list)
    were_meant: bool = False


class _Left:
    """The messages that were left where they are, by the reason."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._groups: dict[Why, _Group] = {}

    def note(self, parked: Parked, was_meant: bool, why: Why) -> None:  # noqa: FBT001 - a callback
        """Take one in."""
        group = self._groups.setdefault(why, _Group())
        group.count += 1
        group.were_meant = group.were_meant or was_meant
        event_id = self._kind.tell(parked, False)[0].get("event_id")
        if event_id and len(group.ids) < SHOWN_IDS:
            group.ids.append(blanked(event_id))

    def tell(self) -> None:
        """Say how many there are; raises DispatcherError where one should have been put back to work."""
        problems = []
        for why, group in self._groups.items():
            more = ", …" if group.count > len(group.ids) else ""
            ids = f" ({', '.join(group.ids)}{more})" if group.ids else ""
            line = (
                f"{counted(group.count, self._kind.what)} left where they are{ids}: {_REASONS[why]}"
            )
            if group.were_meant:
                problems.append(line)
            else:
                click.echo(line, err=True)
        if problems:
            raise DispatcherError("; ".join(problems))


async def _count(
    queue: ParkedQueue, chosen: Callable[[Parked], bool], route: Route, limit: int | None
) -> tuple[int, int]:
    """Return how many would be dealt with, and how many could not be looked at."""
    count = 0

    def visit(parked: Parked) -> bool:
        nonlocal count
        count += chosen(parked) and not isinstance(route(parked), Stays)
        return count != limit

    unseen = await queue.look(visit)
    return count, unseen


def _nowhere(_: Parked) -> None:
    return None


dead = _group(DEAD)
rejected = _group(REJECTED)
