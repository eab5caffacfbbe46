"""A dispatcher process, as it may be killed at any instant: what it said until then, and how it ended."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import orjson

from service.ports import free_port
from service.watchdog import Watchdog
from tests.dispatcher import ROOT, Dispatcher

_SCHEMAS: Final = {
    path.stem: jsonschema_rs.validator_for(orjson.loads(path.read_bytes()), validate_formats=True)
    for path in (ROOT / "schemas" / "log").glob("*.json")
}
_MANY: Final = (
    "attempt.succeeded",
    "attempt.failed",
    "delivery.deferred",
    "delivery.dead_lettered",
)
_NOBODY_THERE: Final = ("Errno 111", "Connect call failed", "refused")


class Replica(Dispatcher):
    """A dispatcher of a scenario.  Its lines are checked like in every test; the many are only counted."""

    def __init__(self, environ: dict[str, str], folder: Path, watchdog: Watchdog) -> None:
        super().__init__(environ, folder)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.lost_sessions = 0
        self._watchdog = watchdog

    async def launch(self) -> None:
        port = free_port()
        self.admin = f"http://127.0.0.1:{port}"
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "run"),
            cwd=ROOT,
            env=self.environ | {"DISPATCHER_ADMIN_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            limit=2**22,
        )
        self._watchdog.watch(self.pid)
        self._readers = [
            asyncio.create_task(self._read_stdout()),
            asyncio.create_task(self._read_stderr()),
        ]

    @property
    def runs(self) -> bool:
        return self._process.returncode is None

    @property
    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.runs:
            self._process.send_signal(number)

    async def ended(self, seconds: float = 60) -> int:
        status = await super().ended(seconds)
        self._watchdog.forget(self.pid)
        if "Traceback" in self.stderr:
            self.problems.append(f"stderr: {self.stderr[-2000:]}")
        return status

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            # The last line of a process that was killed may be cut off.
            if line.endswith(b"\n"):
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            told: dict[str, Any] = orjson.loads(line)
            _SCHEMAS[told["message"]].validate(told)
        except (ValueError, KeyError) as error:
            self.problems.append(f"no valid line: {line[:500]!r} ({error!r:.200})")
            return
        self.counts[told["message"]] += 1
        if told["message"] in _MANY:
            return
        self.lines.append(told)
        self.raw.append(line.decode().rstrip())
        match told["message"]:
            case "broker.disconnected" if not any(e in told["error"] for e in _NOBODY_THERE):
                self.lost_sessions += 1
            case "service.fault":
                self.problems.append(line.decode().rstrip())
