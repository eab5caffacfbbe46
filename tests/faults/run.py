"""A whole run: the scenarios on one RabbitMQ after the other, each with a seed of its own."""

import asyncio
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.errors import BrokerError
from service.rabbitmq import PrivateBroker
from tests.dispatcher import ROOT
from tests.faults.cluster import Cluster
from tests.faults.node import FaultyNode, Node
from tests.faults.play import Row, play
from tests.faults.scenarios.base import Form, Host, Scenario

ORDINARY: Final = ("test_broker.py", "test_parked.py", "test_publish.py", "test_end_to_end.py")
"""The ordinary tests that are about the broker."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run; `times` overrides how often."""

    scenarios: Sequence[type[Scenario]]
    form: Form
    seed: int
    times: int | None = None

    def times_of(self, scenario: type[Scenario]) -> int:
        """Return how often a scenario strikes in this run."""
        return scenario.times.of(self.form) if self.times is None else self.times


def run_on(root: Path, plan: Plan, tell: Tell) -> tuple[list[Row], list[str]]:
    """Run a plan on the RabbitMQ below `root`; returns the rows, and what could not be run."""
    rows: list[Row] = []
    failures: list[str] = []
    for host in Host:
        wanted = [one for one in plan.scenarios if one.host is host and plan.times_of(one)]
        if not wanted:
            continue
        try:
            with _started(host, root) as (broker, urls):
                version = _version(broker)
                rows += (_play(scenario, plan, broker, urls, version, tell) for scenario in wanted)
        except BrokerError as error:
            failures.append(f"{host}: {error}")
    return rows, failures


def ordinary_tests(root: Path, tell: Tell) -> str | None:
    """Run the ordinary tests about the broker on the RabbitMQ below `root`; returns what failed."""
    with PrivateBroker(root=root) as broker:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short"]
        done = subprocess.run(
            [*command, *(str(ROOT / "tests" / name) for name in ORDINARY)],
            cwd=ROOT,
            env=os.environ | {"AMQP_URL": broker.url, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        tell(f"ordinary tests on {_version(broker)}: {_last_line(done.stdout)}")
    return None if done.returncode == 0 else f"ordinary tests: {done.stdout[-3000:]}"


def _play(
    scenario: type[Scenario], plan: Plan, broker: Node, urls: list[str], version: str, tell: Tell
) -> Row:
    times = plan.times_of(scenario)
    # The name, not the place in the list: a scenario that is run alone does the same again.
    chance = random.Random(f"{plan.seed} {scenario.name}")
    row = asyncio.run(
        play(scenario(), times, broker, urls, version=version, chance=chance, tell=tell)
    )
    verdict = "passed" if row.passed else "FAILED"
    tell(
        f"{scenario.name} on {version}: {verdict} in {row.seconds:.0f} s,"
        f" {row.account.lost} lost, {row.account.doubled} doubled"
    )
    return row


@contextmanager
def _started(host: Host, root: Path) -> Iterator[tuple[Node, list[str]]]:
    match host:
        case Host.NODE:
            with FaultyNode(root=root) as broker:
                yield broker, [broker.url]
        case Host.CLUSTER:
            with Cluster(root) as cluster:
                yield cluster, cluster.urls


def _version(broker: Node) -> str:
    found = re.search(r"\d+\.\d+\.\d+", broker.ctl("version"))
    return found[0] if found else "?"


def _last_line(text: str) -> str:
    return text.strip().rsplit("\n", 1)[-1]
