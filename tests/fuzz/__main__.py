"""Fuzz for a bounded time: `python -m tests.fuzz --seconds 60 [--target decode ...]`.

Needs `atheris`, which is no dependency of the tests, because it exists for few versions of Python.  The
time is shared among the targets, each in a process of its own.  Exit status 0: nothing found; 1: found,
with the input to look at; 2: cannot run.
"""

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("decode", "deliveries", "json", "retry_after", "properties")
MAX_LENGTH = 8192
MEMORY = 1024
"""Megabytes of a target's process."""
LONGEST = 5
"""Seconds for one input, after which it counts as a hang."""


def main() -> int:
    """Run what the arguments ask for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--target", choices=NAMES, action="append", help="only these")
    parser.add_argument("--inside", choices=NAMES, help=argparse.SUPPRESS)
    told, rest = parser.parse_known_args()
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed: pip install atheris (Linux, CPython)\n")
        return 2
    if told.inside:
        fuzz(told.inside, rest)
        return 0
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    chosen = told.target or NAMES
    share = max(1, told.seconds // len(chosen))
    return 1 if sum([found_something(name, share) for name in chosen]) else 0


def fuzz(name: str, arguments: list[str]) -> None:
    """Hand a target to the fuzzer, which ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["service", "tests.fuzz.targets"]):
        targets = importlib.import_module("tests.fuzz.targets")
    atheris.Setup([f"fuzz-{name}", *arguments], targets.TARGETS[name])
    atheris.Fuzz()


def found_something(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own, and tell what came of it."""
    from tests.fuzz.targets import SEEDS  # noqa: PLC0415 - the fuzzed process imports it instrumented

    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]):
            (corpus / f"seed-{number}").write_bytes(seed)
        run = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz", "--inside", name, str(corpus)),
                f"-max_total_time={seconds}",
                f"-max_len={MAX_LENGTH}",
                f"-rss_limit_mb={MEMORY}",
                f"-timeout={LONGEST}",
                f"-artifact_prefix={place}/found-",
                "-print_final_stats=1",
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds + 60,
        )
        said = run.stdout + run.stderr
        reached = f"{name:12} {_count(said)} inputs, {_coverage(said)} branches"
        if run.returncode == 0:
            _say(f"{reached}, nothing found")
            return False
        _say(f"{reached}, FOUND SOMETHING (exit status {run.returncode})")
        for found in sorted(Path(place).glob("found-*")):
            _say(
                f"  {found.name.partition('-')[2].partition('-')[0]}: {found.read_bytes()[:2000]!r}"
            )
        _say("  " + "\n  ".join(_trouble(said)))
        return True


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _count(said: str) -> str:
    found = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    if found is None:
        found = re.search(r"(?s).*#(\d+)\t", said)
    return found[1] if found else "no"


def _coverage(said: str) -> str:
    found = re.findall(r"\bcov: (\d+)", said)
    return found[-1] if found else "?"


def _trouble(said: str) -> list[str]:
    """Return the traceback, or the end of what was said."""
    lines = said.splitlines()
    starts = [n for n, line in enumerate(lines) if "Python exception" in line or "ERROR:" in line]
    return lines[starts[0] : starts[0] + 30] if starts else lines[-10:]


if __name__ == "__main__":
    sys.exit(main())
