"""The command line: `python -m tests.bench [--quick] [--only PART] [--load N] [--ways WAY,…] [--json FILE]`.

Uses the broker at AMQP_URL, or a private one.  Exit status 0 done, 1 it could not be measured.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from service.errors import BrokerError
from service.rabbitmq import SMALL_LOG, USUAL_LOG, PrivateBroker
from tests.bench.measure import measure
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.processes import MeasuringError
from tests.bench.report import Report

FIGURES: Final = "figures"
ISOLATION: Final = "isolation"
PARTS: Final = (FIGURES, ISOLATION)
_LOG_SIZES: Final = {FIGURES: USUAL_LOG, ISOLATION: SMALL_LOG}
"""Isolation compares seconds: each of its windows must hold some splits of the broker's log, or none does."""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure.")
    parser.add_argument("--quick", action="store_true", help="a few minutes, less exact")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument(
        "--load", type=_load, default=0, metavar="N", help="isolation: events a second"
    )
    parser.add_argument(
        "--ways", type=_ways, metavar="WAY,…", help=f"isolation: some of {','.join(FULL.ways)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    told = parser.parse_args()
    plan = QUICK if told.quick else FULL
    plan = replace(plan, load=told.load, ways=told.ways or plan.ways)
    try:
        report = _measure(plan, [told.only] if told.only else PARTS)
    except (MeasuringError, BrokerError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    sys.stdout.write(f"{report.text()}\n")
    if told.json:
        told.json.write_bytes(report.json())
    return 0


def _load(text: str) -> float:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no load: write events a second, such as 500")
    return float(text)


def _ways(text: str) -> tuple[str, ...]:
    ways = tuple(text.split(","))
    for way in ways:
        if way not in FULL.ways:
            known = ", ".join(FULL.ways)
            raise argparse.ArgumentTypeError(f"{way!r} is no way to be sick: take some of {known}")
    return ways


def _measure(plan: Plan, parts: Sequence[str]) -> Report:
    report: Report | None = None
    for part in parts:
        with _broker(_LOG_SIZES[part]) as url:
            found = uvloop.run(_until_interrupted(url, plan, part))
        if report is None:
            report = found
        else:
            report.isolation = found.isolation
    assert report is not None
    return report


@contextmanager
def _broker(log_size: int) -> Iterator[str]:
    if url := os.environ.get("AMQP_URL"):
        yield url
        return
    with PrivateBroker(log_size=log_size) as broker:
        yield broker.url


async def _until_interrupted(url: str, plan: Plan, part: str) -> Report:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await measure(url, plan, _tell, figures=part == FIGURES, isolation=part == ISOLATION)


def _tell(what: str) -> None:
    sys.stderr.write(f"measuring: {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
