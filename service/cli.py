"""The command line: arguments → settings → run.

Exit status 0 done, 1 the thing asked for failed, 2 bad usage or bad configuration, 130 interrupted, 141
nobody reads the output any more (as a shell tells of SIGPIPE; `stats` ends with 0 then, `demo` goes on).
An error is one clear line on standard error.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import orjson

from service import __version__
from service.commands.output import drop_output, watch_output
from service.commands.parked import dead, rejected
from service.core.units import parse_duration
from service.errors import ConfigurationError, DispatcherError, OutputLost, ReaderGone
from service.log import quiet_libraries
from service.settings import Settings

NAME = "webhook-dispatcher"
Result = TypeVar("Result")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=NAME)
def cli() -> None:
    """Deliver events from RabbitMQ to webhooks: at least once, balanced, signed.

    Settings come from the environment (DISPATCHER_…); the README lists them.
    """


@cli.command()
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes on this machine.")
@click.option("--admin-fd", type=int, hidden=True)
@click.option("--lifeline-fd", type=int, hidden=True)
def run(workers: int, admin_fd: int | None, lifeline_fd: int | None) -> None:
    """Run the dispatcher until SIGTERM or SIGINT, then drain."""
    import uvloop  # noqa: PLC0415 - other commands start faster without it

    from service import app  # noqa: PLC0415
    from service.workers import run_workers  # noqa: PLC0415

    settings = Settings.load(os.environ)
    if workers > 1:
        uvloop.run(run_workers(workers, settings, os.environ))
    else:
        uvloop.run(app.run(settings, os.environ, app.Inherited(admin_fd, lifeline_fd)))


@cli.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards, and say how to publish.")
def demo(*, keep: bool) -> None:
    """Show it all: events in, signed deliveries out, failover, retry, dead letter."""
    from service.demo import run_demo  # noqa: PLC0415

    sys.exit(run_demo(keep=keep))


@cli.command()
def broker() -> None:
    """Run a private RabbitMQ in the foreground; its URL is the first line."""
    from service.rabbitmq import serve_forever  # noqa: PLC0415

    serve_forever()


@cli.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
def check(path: Path | None) -> None:
    """Validate settings, subscriptions (PATH, or DISPATCHER_SUBSCRIPTIONS) and event schemas."""
    from service.commands.check import check_everything  # noqa: PLC0415

    sys.exit(check_everything(path, os.environ))


@cli.command()
@click.argument("event_type", metavar="TYPE")
@click.option(
    "--data", default="{}", help="JSON, @FILE, or - for standard input.", show_default=True
)
@click.option("--id", "event_id", help="The event's id; made when not given.")
@click.option("--subject", help="What in the source the event is about.")
@click.option("--tenant", help="Whose event it is.")
@click.option("--source", help="Who tells it.")
@click.option("--json", "as_json", is_flag=True, help="Print the id as a JSON object.")
def publish(
    event_type: str,
    data: str,
    event_id: str | None,
    subject: str | None,
    tenant: str | None,
    source: str | None,
    *,
    as_json: bool,
) -> None:
    """Publish one event and wait for the broker's confirm; prints the event's id."""
    from service.publish import DEFAULT_SOURCE, Publisher  # noqa: PLC0415

    settings = Settings.load(os.environ)
    body = _read(data, settings.max_event_bytes + 1)

    async def send() -> str:
        async with Publisher(
            settings.amqp_urls,
            settings.events_exchange,
            source=source or DEFAULT_SOURCE,
            ca_file=settings.amqp_ca_file,
            timeout=settings.publish_timeout,
            max_bytes=settings.max_event_bytes,
        ) as publisher:
            return await publisher.publish(
                event_type, body, id=event_id, subject=subject, tenant=tenant
            )

    found = run_async(send())
    click.echo(orjson.dumps({"event_id": found}).decode() if as_json else found)


@cli.command()
@click.option("--follow", is_flag=True, help="Show what there is so far while lines come.")
@click.option("--interval", metavar="DURATION", help="How often, with --follow.  [default: 1s]")
@click.option("--plot", is_flag=True, help="Draw attempts and durations over time as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def stats(interval: str | None, *, follow: bool, plot: bool, as_json: bool) -> None:
    """Make a table from the dispatcher's JSON log lines on standard input."""
    from service.commands.stats import Wish, print_stats  # noqa: PLC0415

    if plot and as_json:
        raise click.UsageError("--plot draws for people, --json writes for programs: choose one")
    if interval is not None and not follow:
        raise click.UsageError("--interval goes with --follow")
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed: pipe the dispatcher's log into it")
    seconds = _interval(interval or "1s") if follow else None
    print_stats(sys.stdin.fileno(), Wish(as_json=as_json, plot=plot, follow=seconds))


cli.add_command(dead)
cli.add_command(rejected)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's asynchronous part."""
    return asyncio.run(work)


def _interval(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--interval") from error
    if seconds < 0.1:
        raise click.BadParameter("at least 100ms", param_hint="--interval")
    return seconds


def _read(data: str, most: int) -> bytes:
    """Return the data of an event, or as much of it as shows that it is too large."""
    if data == "-":
        return _standard_input(most)
    if not data.startswith("@"):
        return data.encode(errors="surrogateescape")  # as it was given
    try:
        with Path(data[1:]).open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ConfigurationError(f"--data: {data[1:]} cannot be read: {error.strerror}") from error


def _standard_input(most: int) -> bytes:
    if sys.stdin is None:
        raise ConfigurationError("--data: standard input is closed: pipe the data into it")
    try:
        return sys.stdin.buffer.read(most)
    except OSError as error:
        raise ConfigurationError(
            f"--data: standard input cannot be read: {error.strerror}"
        ) from error


def main() -> NoReturn:
    """Run the command line; never returns, and never shows a traceback for what a person can mend."""
    _fill_descriptors()
    watch_output()
    quiet_libraries()
    try:
        status = cli.main(prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ReaderGone:
        drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except OutputLost as error:
        drop_output()
        _fail(error, 1)
    except OSError as error:
        _fail(DispatcherError(f"{type(error).__name__}: {error}"), 1)
    except ConfigurationError as error:
        _fail(error, 2)
    except DispatcherError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fill_descriptors() -> None:
    """Open what a caller has closed of standard input, output and errors, before a socket comes to be one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        # Who reads tells a person that there is nothing to read.
        if name != "stdin" and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _fail(error: DispatcherError, status: int) -> NoReturn:
    with suppress(OSError):  # where standard error takes nothing, the exit status tells
        for line in str(error).splitlines():
            click.echo(f"{NAME}: {line}", err=True)
    sys.exit(status)
