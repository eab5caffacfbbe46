"""Very many subscriptions in one process: how long they load, what they weigh, how fast one event is matched.

    python -m tests.bench.scale FILE MATCHES

loads a file made by `write_file` as the dispatcher does, and prints a `Scale` as JSON.  The subscriptions
come in groups of ten that want the same events: half of the groups belong to one of many tenants, and in
each group patterns are exact, with `*` and with `#`.  Every tenth group has filters, which look into the
event's data.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from service.core.event import Event
from service.subscriptions import Snapshot, load
from tests.bench.processes import line_from, module_environ, resident_bytes, say, started

GROUP: Final = 10
_TENANTS: Final = 1_000
_PATTERNS: Final = ("{0}.order.created", "{0}.order.*", "{0}.#", "{0}.*.created")
_LOAD_TIMEOUT: Final = 300.0
_DATA: Final = {"amount": 12900, "currency": "EUR", "items": [{"sku": "KB-60-DE", "quantity": 1}]}


@dataclass(frozen=True, slots=True)
class Scale:
    """`load` in seconds, `resident` in bytes (of the whole process), matching in microseconds."""

    subscriptions: int
    load: float
    resident: int
    uncached: float
    cached: float
    filtered: float


async def measure_scale(subscriptions: int, matches: int) -> Scale:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder, "subscriptions.json")
        write_file(path, subscriptions)
        command = (sys.executable, "-m", "tests.bench.scale", str(path), str(matches))
        async with started(*command, environ=module_environ()) as process:
            return Scale(**orjson.loads(await line_from(process, _LOAD_TIMEOUT)))


def write_file(path: Path, subscriptions: int) -> None:
    """Write a file of so many subscriptions."""
    path.write_bytes(orjson.dumps({"subscriptions": entries(subscriptions)}))


def entries(subscriptions: int) -> list[dict[str, Any]]:
    """Return so many entries of a subscriptions file."""
    return [_entry(number) for number in range(subscriptions)]


def _entry(number: int) -> dict[str, Any]:
    group, place = divmod(number, GROUP)
    entry: dict[str, Any] = {
        "id": f"subscription-{number}",
        "event_types": [_PATTERNS[place % len(_PATTERNS)].format(_domain(group))],
        "targets": [{"url": f"https://hooks-{number % 5000}.example.com/{number}"}],
        "signing": {"scheme": "standard", "secrets": [{"env": f"BENCH_SECRET_{group % 100}"}]},
    }
    if (tenant := _tenant(group)) is not None:
        entry["tenant"] = tenant
    if _has_filter(group):
        entry["filter"] = f"data.amount > {100 + place} && event.type != 'x'"
    return entry


def _domain(group: int) -> str:
    return f"{('shop', 'bank', 'fleet', 'lab')[group % 4]}-{group}"


def _tenant(group: int) -> str | None:
    return f"tenant-{group // 2 % _TENANTS}" if group % 2 else None


def _has_filter(group: int) -> bool:
    return group % 10 == 9


def _event(group: int) -> Event:
    return Event(
        id="0d3bd3f2-5d37-4ac3-9a4b-7d2ed0d1c3a5",
        type=f"{_domain(group)}.order.created",
        source="/shop",
        time="2030-01-31T12:00:00Z",
        time_unix=1896091200.0,
        data=orjson.dumps(_DATA),
        tenant=_tenant(group),
    )


def secrets() -> dict[str, str]:
    """Return the variables that the entries name."""
    return {f"BENCH_SECRET_{n}": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" for n in range(100)}


def _timed(snapshot: Snapshot, events: Iterable[Event]) -> float:
    """Return the median time of matching an event, in microseconds."""
    taken = []
    for event in events:
        start = time.perf_counter_ns()
        found = snapshot.match(event, _DATA)
        taken.append((time.perf_counter_ns() - start) / 1000)
        assert len(found) == GROUP, f"{event.type} is wanted by {len(found)}"
    return median(taken)


def _measured(path: Path, matches: int) -> Scale:
    start = time.monotonic()
    snapshot = load(path, allow_http=False, environ=secrets())
    took = time.monotonic() - start
    resident = resident_bytes(os.getpid())
    groups = range(len(snapshot) // GROUP)
    plain = [_event(group) for group in groups if not _has_filter(group)][:matches]
    filtered = [_event(group) for group in groups if _has_filter(group)]
    return Scale(
        subscriptions=len(snapshot),
        load=took,
        resident=resident,
        uncached=_timed(snapshot, plain),
        cached=_timed(snapshot, plain[-1:] * matches),
        filtered=_timed(snapshot, filtered[-1:] * matches),
    )


if __name__ == "__main__":
    _, _file, _matches = sys.argv
    say(orjson.dumps(asdict(_measured(Path(_file), int(_matches)))).decode())
