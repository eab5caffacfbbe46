"""How a connection to a broker opens and closes, and what its errors are called.

Each of these is bounded, and none of the texts shows a password.
"""

import asyncio
import ssl
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractConnection
from aiormq.connection import exception_by_code
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ConnectionNotAllowed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from service.broker.frames import FrameTransport, register
from service.errors import BrokerError, ConfigurationError, TopologyError

HEARTBEAT: Final = 15
OPEN_TIMEOUT: Final = 20.0
CLOSE_TIMEOUT: Final = 3.0

TROUBLE = (AMQPError, OSError, RuntimeError, TimeoutError, BrokerError)
REFUSALS: Final = (AuthenticationError, ProbableAuthenticationError, ConnectionNotAllowed)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn whatever goes wrong in talking to a broker into BrokerError; our own cancellation passes.

    The library raises bare exceptions, and cancels what waits for it when a connection breaks, though
    nobody has cancelled us: neither may end the supervisor.
    """
    try:
        yield
    except BrokerError:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerError("the connection broke") from error
    except Exception as error:
        raise BrokerError(error_text(error)) from error


@dataclass(slots=True)
class Address:
    """Where a broker is: URLs tried in turn, and the CA to trust for `amqps`."""

    urls: Sequence[str] = field(repr=False)
    ca_file: Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS context, or None for the library's own; raises ConfigurationError."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"DISPATCHER_AMQP_CA_FILE: {self.ca_file} cannot be read as PEM certificates: {error}"
            ) from error


async def open_connection(url: str, address: Address, name: str) -> AbstractConnection:
    """Return an open AMQP connection.  Raises one of TROUBLE; the texts show no password.

    Where the broker refuses, its own words are told.
    """
    parsed = URL(url)
    if "heartbeat" not in parsed.query:
        parsed = parsed.update_query(heartbeat=str(HEARTBEAT))
    connection = aio_pika.Connection(
        parsed, ssl_context=address.context(), client_properties={"connection_name": name}
    )
    transport = FrameTransport()
    connection.kwargs["transport_factory"] = transport
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            await connection.connect()
    except BaseException as error:
        # Else it starts a task for that when it is freed, in whatever loop.
        await close_connection(connection)
        farewell = transport.reader.farewell if transport.reader else None
        if isinstance(error, InvalidFrameError) and farewell is not None:
            raise exception_by_code(farewell) from error
        raise
    if connection.transport is None:
        raise BrokerError("the connection closed while it was being opened")
    opened = connection.transport.connection
    register(opened, transport)
    return opened


async def open_first(
    address: Address, name: str, seconds: float = OPEN_TIMEOUT
) -> AbstractConnection:
    """Return an open AMQP connection to the first broker that takes us, each within so many `seconds`.

    Raises BrokerError, in words for a person.
    """
    failures, is_refused = [], False
    for url in address.urls:
        try:
            async with asyncio.timeout(seconds):
                return await open_connection(url, address, name)
        except TROUBLE as error:
            is_refused = is_refused or isinstance(error, REFUSALS)
            failures.append(f"{_where(URL(url))}: {error_text(error)}")
    if is_refused:
        what, advice = "refuses the connection", "the user, password and virtual host of its URL"
    else:
        what, advice = "cannot be reached", "its URL, and that RabbitMQ runs there"
    raise BrokerError(f"the broker {what} ({'; '.join(failures)}): check {advice}")


async def close_connection(connection: AbstractConnection | aio_pika.Connection) -> None:
    """Close a connection, politely if the broker still answers."""
    with suppress(BrokerError), broker_errors():
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await connection.close()


_left_alone: set["asyncio.Task[None]"] = set()


async def wait_for_answer(call: Coroutine[Any, Any, Any], seconds: float) -> None:
    """Wait so many seconds for a call to the broker, and let it go on where the answer is late.

    The library closes the channel of a call that is cancelled, and closes one twice that way.
    """
    calling = asyncio.create_task(_ended(call))
    _left_alone.add(calling)
    calling.add_done_callback(_left_alone.discard)
    await asyncio.wait([calling], timeout=seconds)


async def _ended(call: Coroutine[Any, Any, Any]) -> None:
    with suppress(BrokerError), broker_errors():
        await call


def error_text(error: BaseException) -> str:
    """Return an error of the broker, or of the way to it, as one line for a person."""
    match error:
        case TimeoutError():
            return "the broker did not answer in time"
        case TopologyError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(": ")


def _where(url: URL) -> str:
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
