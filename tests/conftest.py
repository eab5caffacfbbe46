"""The broker that tests talk to, and names on it that no other test uses."""

import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

import pika  # type: ignore[import-untyped]
import pytest
from hypothesis import settings

from service import ports
from service.rabbitmq import PrivateBroker
from tests.faults.node import FaultyNode

_QUEUES = ("intake", "deliveries", "dead", "rejected", "unrouted")
_DELAY_LEVELS = 17
SETTLED = 3.0
"""Seconds in which the processes of a queue have started."""
_BROKER_LOG_SHOWN = 20_000  # characters
_BROKER_LOGS = pytest.StashKey[list[str]]()


def pytest_configure() -> None:
    """Have SIGINT not ignored: a shell that runs the tests in the background has children inherit that.

    And have no example fail for what else the machine does, and test processes draw from different free ports: what
    one has drawn and not yet listened on is free to the other.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports._PORTS = ports._PORTS[worker % workers :: workers]  # type: ignore[misc]
    settings.register_profile("tests", deadline=None)
    settings.load_profile("tests")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ForeignBroker:
    """The broker that AMQP_URL names: it is there, and not ours to stop."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[PrivateBroker | ForeignBroker]:
    """A RabbitMQ for the whole run: the one at AMQP_URL, else a private node of each test process.

    When tests have failed, the end of the node's own log goes to the terminal: it may tell why.
    """
    if url := os.environ.get("AMQP_URL"):
        yield ForeignBroker(url)
        return
    with FaultyNode() as private:
        yield private
        if request.session.testsfailed:
            log = (private.folder / "rabbitmq.log").read_text(errors="replace")
            _keep(request.config, f"{private.output}\n{log}"[-_BROKER_LOG_SHOWN:])


def _keep(config: pytest.Config, log: str) -> None:
    """Have a log shown at the end, by the process that owns the terminal."""
    if hasattr(config, "workeroutput"):  # pytest-xdist carries it over from a process of its own
        config.workeroutput["broker_log"] = log
    else:
        config.stash.setdefault(_BROKER_LOGS, []).append(log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a test process that has ended wants shown."""
    if log := getattr(node, "workeroutput", {}).get("broker_log"):
        _keep(node.config, log)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show what the broker said of a run that failed."""
    for log in config.stash.get(_BROKER_LOGS, []):
        terminalreporter.section("the broker's log")
        terminalreporter.write_line(log)


@pytest.fixture
def amqp_url(broker: PrivateBroker | ForeignBroker) -> str:
    return broker.url


class Leftovers:
    """What tests have declared and are done with; it is deleted some seconds later.

    RabbitMQ 3.10 does not survive it sooner: a queue that is deleted while the process starts that passes its
    dead letters on takes the supervisor of all of these with it, and no such queue works after that.
    These processes start anew with the broker.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._kept = False
        self._waiting: deque[tuple[float, list[str], list[str]]] = deque()

    def add(self, queues: list[str], exchanges: list[str]) -> None:
        """Have these deleted, where they exist, and now what was added long enough ago."""
        self.delete()
        self._waiting.append((time.monotonic(), queues, exchanges))

    def keep(self) -> None:
        """Delete nothing until `begin_again`: the broker may start at any time."""
        self._kept = True

    def begin_again(self) -> None:
        """Wait for all of them from now on: the broker may have started a moment ago."""
        self._kept = False
        now = time.monotonic()
        self._waiting = deque((now, queues, exchanges) for _, queues, exchanges in self._waiting)

    def delete(self) -> None:
        """Delete what was added long enough ago."""
        queues: list[str] = []
        exchanges: list[str] = []
        while not self._kept and self._waiting and self._waiting[0][0] + SETTLED < time.monotonic():
            _, some_queues, some_exchanges = self._waiting.popleft()
            queues += some_queues
            exchanges += some_exchanges
        if queues:
            _delete(self._url, queues=queues, exchanges=exchanges)


@pytest.fixture(scope="session")
def leftovers(broker: PrivateBroker | ForeignBroker) -> Iterator[Leftovers]:
    """What is deleted later; a private node takes the rest with it."""
    leftovers = Leftovers(broker.url)
    yield leftovers
    if isinstance(broker, ForeignBroker):
        time.sleep(SETTLED + 0.1)  # nothing tells when those processes have started
        leftovers.delete()


@pytest.fixture
def node(broker: PrivateBroker | ForeignBroker, leftovers: Leftovers) -> Iterator[PrivateBroker]:
    """The broker for tests that stop, kill or administer it; it runs again after each."""
    if isinstance(broker, ForeignBroker):
        pytest.skip("needs to stop the broker, and the one at AMQP_URL is not ours to stop")
    leftovers.keep()
    yield broker
    broker.start()
    leftovers.begin_again()


@pytest.fixture
def prefix(leftovers: Leftovers) -> Iterator[str]:
    """A PREFIX of the test's own; what the dispatcher declares with it is deleted afterwards."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    yield prefix
    levels = [f"{prefix}.delay.{level:02}" for level in range(_DELAY_LEVELS)]
    queues = [f"{prefix}.{name}" for name in _QUEUES] + levels
    leftovers.add(queues, queues)


@pytest.fixture
def events_exchange(amqp_url: str) -> Iterator[str]:
    """An EVENTS_EXCHANGE of the test's own; deleted afterwards, whoever declared it."""
    exchange = f"test-events-{uuid.uuid4().hex[:12]}"
    yield exchange
    _delete(amqp_url, queues=[], exchanges=[exchange])


def _delete(amqp_url: str, *, queues: list[str], exchanges: list[str]) -> None:
    """Delete these, where they exist: for RabbitMQ it is no error when they do not."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        channel = connection.channel()
        for queue in queues:
            channel.queue_delete(queue)
        for exchange in exchanges:
            channel.exchange_delete(exchange)
    finally:
        connection.close()
