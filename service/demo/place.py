"""Where the demo plays: a broker, names on it, an environment for the processes, a temporary folder.

Without AMQP_URL (or DISPATCHER_AMQP_URL) the broker is a private one that ends with the demo.  With it,
the demo uses names that nobody else has, and deletes all of them at its end.
"""

import asyncio
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiormq.abc import AbstractConnection

import service
from service.broker.opening import TROUBLE, Address
from service.broker.parked import connected
from service.broker.topology import topology
from service.demo.screen import Screen
from service.errors import DispatcherError
from service.rabbitmq import PrivateBroker
from service.settings import PREFIX, Settings

CODE: Final = Path(service.__file__).parent.parent
"""Where `python -m service` finds the program."""

COMMAND_TIMEOUT: Final = 30.0
DELETE_TIMEOUT: Final = 20.0
_KEPT: Final = ("AMQP_URL", "AMQP_URL_FILE", "AMQP_CA_FILE")


class DemoFailed(DispatcherError):  # noqa: N818 - it says what happened, as its siblings do
    """Something that the demo promised did not happen."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the dispatcher, the commands and the demo itself have in common.

    `settings` are the dispatcher's variables, `environ` is a whole environment with them in it.
    """

    folder: Path
    settings: Mapping[str, str]
    environ: Mapping[str, str]
    shared: bool

    @property
    def prefix(self) -> str:
        """The PREFIX of the demo's queues."""
        return self.settings[f"{PREFIX}PREFIX"]

    @property
    def exchange(self) -> str:
        """The exchange that events are published to."""
        return self.settings[f"{PREFIX}EVENTS_EXCHANGE"]

    @property
    def address(self) -> Address:
        """The broker; raises ConfigurationError for an address that is none."""
        settings = Settings.load(self.environ)
        return Address(settings.amqp_urls, settings.amqp_ca_file)

    @property
    def log_file(self) -> Path:
        """Where the dispatcher's lines are written to as well."""
        return self.folder / "dispatcher.log"

    @property
    def subscriptions(self) -> Path:
        """The subscriptions file."""
        return self.folder / "subscriptions.yaml"

    async def command(self, *arguments: str) -> list[dict[str, Any]]:
        """Run one of the program's commands with `--json`, and return the objects that it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", *arguments, "--json"),
            cwd=CODE,
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                out, err = await process.communicate()
        except TimeoutError:
            raise DemoFailed(
                f"`{' '.join(arguments)}` took longer than {COMMAND_TIMEOUT:g} s"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise DemoFailed(f"`{' '.join(arguments)}` failed: {err.decode().strip()}")
        return [json.loads(line) for line in out.splitlines()]


@contextmanager
def open_place(environ: Mapping[str, str], screen: Screen) -> Iterator[Place]:
    """Give a place, and clear it away afterwards.

    Raises BrokerError where there is no broker to play with, ConfigurationError for a bad address.
    """
    with tempfile.TemporaryDirectory(prefix="webhook-demo-") as name:
        folder = Path(name)
        given = _given(environ)
        if given:
            with _on_shared_broker(environ, given, folder, screen) as where:
                yield where
            return
        started = time.monotonic()
        screen.line("Starting a private RabbitMQ: this takes some seconds.")
        with PrivateBroker() as broker:
            took = time.monotonic() - started
            screen.fact(
                "RabbitMQ", f"a private node on 127.0.0.1:{broker.port}, up in {took:.1f} s"
            )
            names = {"AMQP_URL": broker.url, "PREFIX": "webhooks", "EVENTS_EXCHANGE": "events"}
            yield _new(environ, names, folder, shared=False)


@contextmanager
def _on_shared_broker(
    environ: Mapping[str, str], given: Mapping[str, str], folder: Path, screen: Screen
) -> Iterator[Place]:
    prefix = f"demo-{uuid.uuid4().hex[:10]}"
    names = {**given, "PREFIX": prefix, "EVENTS_EXCHANGE": f"{prefix}.events"}
    where = _new(environ, names, folder, shared=True)
    address = where.address
    asyncio.run(_try(address))
    hosts = ", ".join(urlsplit(url).hostname or "" for url in address.urls)
    screen.fact(
        "RabbitMQ", f"yours on {hosts}; all names begin with {prefix} and are deleted later"
    )
    try:
        yield where
    finally:
        asyncio.run(_delete(where, address))


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """Return how the environment names a broker; empty where it names none."""
    found = {name: environ[PREFIX + name] for name in _KEPT if environ.get(PREFIX + name)}
    if environ.get("AMQP_URL"):
        found.pop("AMQP_URL_FILE", None)
        found["AMQP_URL"] = environ["AMQP_URL"]
    return found if "AMQP_URL" in found or "AMQP_URL_FILE" in found else {}


def _new(
    environ: Mapping[str, str], names: Mapping[str, str], folder: Path, *, shared: bool
) -> Place:
    settings = {
        **names,
        "SUBSCRIPTIONS": str(folder / "subscriptions.yaml"),
        # The receivers of the demo are on loopback and speak HTTP: both are refused by default.
        "ALLOW_HTTP": "true",
        "EGRESS_ALLOW": "127.0.0.0/8",
        "ADMIN_PORT": "0",
    }
    told = {PREFIX + name: value for name, value in settings.items()}
    # The demo shows what it means to show, whatever the person has set for other purposes.
    inherited = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    return Place(folder, told, inherited | told, shared)


async def _try(address: Address) -> None:
    async with connected(address):
        pass


async def _delete(where: Place, address: Address) -> None:
    """Delete everything that the dispatcher has declared."""
    try:
        async with asyncio.timeout(DELETE_TIMEOUT), connected(address) as connection:
            await _delete_all(connection, where)
    except TROUBLE as error:
        raise DemoFailed(
            f"the queues and exchanges that begin with {where.prefix!r} could not be deleted: {error}"
        ) from error


async def _delete_all(connection: AbstractConnection, where: Place) -> None:
    wanted = topology(where.prefix, where.exchange, ["#"])
    channel = await connection.channel()
    # For RabbitMQ it is no error to delete what is not there.
    for queue in wanted.queues:
        await channel.queue_delete(queue.name)
    for exchange in (wanted.events, *wanted.exchanges):
        await channel.exchange_delete(exchange.name)


def program() -> str:
    """Return the command as the person has called it."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "webhook-dispatcher" else f"{sys.executable} -m service"
