"""The command line: `python -m tests.faults`; exit status 1 when anything is lost or unexplained."""

import argparse
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson

from tests.dispatcher import ROOT
from tests.faults.image import ImageError, prepare
from tests.faults.play import Row
from tests.faults.run import Plan, ordinary_tests, run_on
from tests.faults.scenarios import ALL
from tests.faults.scenarios.base import Form
from tests.faults.table import table, verdicts

INSTALLED = Path("/")


def main() -> int:
    """Run what was asked for and print the table."""
    told = _arguments()
    # The library tells of every connection that is lost, and here they are meant to be.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if told.list:
        for scenario in ALL:
            sys.stdout.write(f"{scenario.name:20} {scenario.what}\n")
        return 0
    scenarios = [one for one in ALL if not told.only or one.name in told.only]
    form = Form.QUICK if told.quick else Form.FULL
    plan = Plan(scenarios, form, told.seed, told.times)
    _tell(f"seed {told.seed}: `--seed {told.seed}` does the same again")
    try:
        rows, failures = _run(plan, told)
    except KeyboardInterrupt:
        return 130
    failures += verdicts(rows)
    sys.stdout.write(f"{table(rows)}\n")
    sys.stdout.writelines(f"FAILED {failure}\n" for failure in failures)
    if told.json:
        lines = [orjson.dumps(row.as_json() | {"seed": told.seed}) for row in rows]
        told.json.write_bytes(b"\n".join([*lines, b""]))
    return 1 if failures else 0


def _run(plan: Plan, told: argparse.Namespace) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    failures: list[str] = []
    if told.broker in ("installed", "both"):
        rows, failures = run_on(INSTALLED, plan, _tell)
    if told.broker in ("4.0", "both"):
        try:
            with _cache(told.cache) as cache:
                root = prepare(cache)
                if not told.only:
                    failures += filter(None, [ordinary_tests(root, _tell)])
                more, problems = run_on(root, plan, _tell)
        except ImageError as error:
            failures.append(f"NOT RUN: RabbitMQ 4.0 cannot be had here: {error}")
        else:
            rows += more
            failures += problems
    return rows, failures


@contextlib.contextmanager
def _cache(given: Path | None) -> Iterator[Path]:
    """Give the folder that Debian 13 is kept in: below `.venv`, which `make clean` removes."""
    if given is not None or (ROOT / ".venv").is_dir():
        yield (given or ROOT / ".venv").resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="faults-cache-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Faults under load, and an account of every event.",
    )
    names = [scenario.name for scenario in ALL]
    add = parser.add_argument
    add("--quick", action="store_true", help="each fault a few times: minutes instead of an hour")
    add("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="repeats a run")
    add("--only", action="append", choices=names, metavar="NAME", help="this scenario (--list)")
    add("--times", type=int, metavar="N", help="how often, instead of the scenario's own number")
    add("--json", type=Path, metavar="FILE", help="also write the figures, a JSON object a line")
    add(
        "--broker",
        choices=("installed", "4.0", "both"),
        help="which RabbitMQ; both, or quick: installed",
    )
    add("--cache", type=Path, metavar="FOLDER", help="where RabbitMQ 4.0 is kept (.venv)")
    add("--list", action="store_true", help="list the scenarios")
    told = parser.parse_args()
    told.broker = told.broker or ("installed" if told.quick else "both")
    return told


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
