"""Loki's own engine and Promtail's own stages, asked through a small Go program (`engine/`).

Built once and kept in the user's cache: `python -m tests.monitoring.loki` builds it ahead of the tests.
The first build compiles much of Loki, which takes some minutes.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).parent / "engine"
NANOS = 1_000_000_000


class NotToBeHadError(Exception):
    """The engine cannot be built here; says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line with what Loki stores beside it; `at` in nanoseconds of Unix time."""

    at: int
    line: str
    labels: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def place() -> Path:
    """Return where the program is, or will be: it is built anew when its source changes."""
    sources = sorted(path for path in ENGINE.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "webhook-dispatcher" / f"loki-{digest}"


@functools.cache
def engine() -> Path:
    """Return the program; builds it where it is not yet.  Raises NotToBeHadError."""
    built = place()
    if built.exists():
        return built
    go = shutil.which("go")
    if go is None:
        raise NotToBeHadError("Go, to build Loki's engine with, is not installed")
    # This much needs sources and no compiler: it fails where Go is too old or modules cannot be had.
    listed = _run(go, "list", "-deps", ".")
    if listed.returncode:
        raise NotToBeHadError(f"Loki's engine cannot be built: {listed.stderr.strip()[-300:]}")
    built.parent.mkdir(parents=True, exist_ok=True)
    fresh = built.with_name(f"{built.name}.{os.getpid()}")
    made = _run(go, "build", "-ldflags=-s -w", "-o", str(fresh), ".")
    if made.returncode:
        raise AssertionError(made.stderr)
    fresh.replace(built)
    return built


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ENGINE, capture_output=True, text=True, check=False)


def _ask(**question: Any) -> dict[str, Any]:
    asked = json.dumps(question, default=asdict)
    told = subprocess.run(
        [engine()], input=asked, capture_output=True, text=True, timeout=120, check=False
    )
    assert told.returncode == 0, told.stderr
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


def faults(queries: list[str]) -> dict[str, str]:
    """Return what Loki's parser says against each query that it does not take."""
    said = _ask(parse=queries)["parsed"]
    return {query: fault for query, fault in zip(queries, said, strict=True) if fault}


def through(pipeline: str, entries: list[Entry]) -> list[Entry]:
    """Run entries through Promtail's stages, given as the YAML of its `pipeline_stages`."""
    return [Entry(**one) for one in _ask(pipeline=pipeline, entries=entries)["entries"]]


def ask(
    entries: list[Entry], queries: list[str], start: int, end: int, step: int = 0
) -> list[dict[str, Any]]:
    """Run queries over entries; instant ones, at `end`, where the step is 0.  Times in nanoseconds.

    An answer has `series` (each with `labels` and `points` of time and value) or `lines`.
    """
    asked = [
        {"query": query, "start": start if step else end, "end": end, "step": step}
        for query in queries
    ]
    results: list[dict[str, Any]] = _ask(entries=entries, queries=asked)["results"]
    for query, result in zip(queries, results, strict=True):
        assert "error" not in result, (query, result)
    return results


def alerts(
    entries: list[Entry], rules: str, start: int, end: int, interval: int = 60 * NANOS
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run alert rules over entries, at every interval.

    Returns every alert at every time that it fires, and the rules that could not be evaluated.
    """
    told = _ask(entries=entries, rules=rules, start=start, end=end, interval=interval)
    return told.get("alerts") or [], told.get("faults") or {}


def _main() -> None:
    if not place().exists():
        print("Building Loki's engine for tests, once: some minutes", flush=True)  # noqa: T201
    try:
        engine()
    except NotToBeHadError as error:
        print(f"Tests without Loki's engine: {error}")  # noqa: T201


if __name__ == "__main__":
    _main()
