"""The dispatcher as its users have it: a process, started by the command, seen through its outside.

Every line that it logs is validated against the JSON Schemas in `schemas/log/`; a line without a schema,
or one that breaks it, fails the test that caused it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import jsonschema
import yaml

from service.ports import free_port

ROOT = Path(__file__).parent.parent
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

_SHORT_WAITS = """\
import service.core.health, service.core.schedule, service.heartbeat
service.core.health.EJECTION_BASE = 1.0
service.core.schedule.EJECTED_BASE = 2.0
service.heartbeat.EVERY = 1.0
"""

_SCHEMAS = {
    path.stem: jsonschema.Draft202012Validator(
        json.loads(path.read_text()), format_checker=jsonschema.FormatChecker()
    )
    for path in (ROOT / "schemas" / "log").glob("*.json")
}


def validate_line(line: str) -> dict[str, Any]:
    """Return a log line as a dictionary; fails where its schema is missing or broken."""
    told: dict[str, Any] = json.loads(line)
    assert told["message"] in _SCHEMAS, f"no schema for {line}"
    _SCHEMAS[told["message"]].validate(told)
    return told


class Dispatcher:
    """A running `webhook-dispatcher run`."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.environ = dict(environ)
        self.folder = folder
        self.arguments: tuple[str, ...] = ()
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self.stderr = ""
        self.admin = ""
        self._process: asyncio.subprocess.Process
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> Self:
        """Start the process and wait until it is ready."""
        await self.launch()
        await self.until(self.is_ready, 30)
        return self

    @property
    def command(self) -> tuple[str, ...]:
        """Return the program and its arguments."""
        return sys.executable, "-m", "service", "run", *self.arguments

    async def launch(self) -> None:
        """Start the process."""
        port = free_port()
        self.admin = f"http://127.0.0.1:{port}"
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=ROOT,
            env=self.environ | {"DISPATCHER_ADMIN_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=2**22,
        )
        self._readers = [
            asyncio.create_task(self._read_stdout()),
            asyncio.create_task(self._read_stderr()),
        ]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self._process.send_signal(number)
        return await self.ended()

    async def ended(self, seconds: float = 40) -> int:
        """Wait for the end; returns the exit status."""
        async with asyncio.timeout(seconds):
            status = await self._process.wait()
            await asyncio.gather(*self._readers)
        return status

    async def close(self) -> None:
        """Make sure that the process is gone."""
        if self._process.returncode is None:
            self._process.kill()
            await self.ended()

    def of(self, message: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines of one kind with these fields."""
        return [
            line
            for line in self.lines
            if line["message"] == message and all(line.get(k) == v for k, v in fields.items())
        ]

    async def line(self, message: str, count: int = 1, seconds: float = 20, **fields: Any) -> Any:
        """Wait for log lines of one kind; returns the last of them."""
        await self.until(lambda: len(self.of(message, **fields)) >= count, seconds)
        return self.of(message, **fields)[-1]

    async def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        """Wait until a condition holds; fails with the last log lines when it does not."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert time.monotonic() < deadline, self._told()
            await asyncio.sleep(0.02)

    async def get(self, path: str) -> tuple[int, str]:
        """Ask the admin port."""
        async with aiohttp.ClientSession() as session, session.get(self.admin + path) as answer:
            return answer.status, await answer.text()

    async def is_ready(self) -> bool:
        assert self._process.returncode is None, self._told()
        try:
            return (await self.get("/readyz"))[0] == 200
        except aiohttp.ClientError:
            return False

    def _told(self) -> str:
        return "\n".join([*self.raw[-15:], self.stderr])

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.raw.append(line.decode().rstrip())
            self.lines.append(validate_line(self.raw[-1]))

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        self.stderr += (await self._process.stderr.read()).decode()


def subscription(name: str, *urls: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a subscription for the file; wants everything and is signed unless told otherwise."""
    return {
        "id": name,
        "event_types": ["#"],
        "targets": [{"url": url} if isinstance(url, str) else url for url in urls],
        "signing": {"scheme": "standard", "secrets": [{"env": "TEST_SECRET"}]},
        **more,
    }


def write_subscriptions(folder: Path, *subscriptions: dict[str, Any]) -> Path:
    """Write the file as a whole, as an editor does."""
    path = folder / "subscriptions.yaml"
    fresh = folder / ".fresh.yaml"
    fresh.write_text(yaml.safe_dump({"subscriptions": list(subscriptions)}))
    fresh.rename(path)
    return path


class Station:
    """Names, environment and commands around dispatchers that share a broker, a prefix and a file."""

    def __init__(self, amqp_url: str, prefix: str, exchange: str, folder: Path) -> None:
        self.amqp_url, self.prefix, self.exchange = amqp_url, prefix, exchange
        self.folder = folder
        self._started: list[Dispatcher] = []
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "DISPATCHER_AMQP_URL": amqp_url,
            "DISPATCHER_PREFIX": prefix,
            "DISPATCHER_EVENTS_EXCHANGE": exchange,
            "DISPATCHER_SUBSCRIPTIONS": str(folder / "subscriptions.yaml"),
            "DISPATCHER_ALLOW_HTTP": "true",
            "DISPATCHER_EGRESS_ALLOW": "127.0.0.0/8",
            "TEST_SECRET": SECRET,
        }

    async def dispatcher(self, *subscriptions: dict[str, Any], **environ: str) -> Dispatcher:
        """Start a dispatcher with these subscriptions and wait until it is ready."""
        return await self.new(*subscriptions, **environ).start()

    def new(self, *subscriptions: dict[str, Any], **environ: str) -> Dispatcher:
        """Make a dispatcher, not started."""
        if subscriptions:
            write_subscriptions(self.folder, *subscriptions)
        told = {f"DISPATCHER_{name}": value for name, value in environ.items()}
        dispatcher = Dispatcher(self.environ | told, self.folder)
        self._started.append(dispatcher)
        return dispatcher

    def shorten_waits(self) -> None:
        """Have ejections, deferrals and heartbeats take seconds, not half a minute, in what is started next."""
        self.begin_with(_SHORT_WAITS)

    def begin_with(self, code: str) -> None:
        """Have what is started next run this first."""
        (self.folder / "sitecustomize.py").write_text(code)
        self.environ["PYTHONPATH"] = f"{self.folder}:{self.environ['PYTHONPATH']}"

    async def close(self) -> None:
        for dispatcher in self._started:
            if hasattr(dispatcher, "_process"):
                await dispatcher.close()

    async def command(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> str:
        """Run a command and return its output; fails where the exit status is another."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", *arguments),
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate(stdin)
        assert process.returncode == status, (process.returncode, out, err)
        return (out + err if status else out).decode()

    async def parked(self, which: str) -> list[dict[str, Any]]:
        """Return what `dead list --json` or `rejected list --json` says."""
        told = await self.command(which, "list", "--json")
        return [json.loads(line) for line in told.split("\n") if line]

    async def until_parked(self, which: str, count: int) -> list[dict[str, Any]]:
        """Return what is parked, once there are so many: the broker takes its time to park what is large."""
        deadline = time.monotonic() + 20
        while len(found := await self.parked(which)) < count:
            assert time.monotonic() < deadline, found
        return found


@asynccontextmanager
async def station(
    amqp_url: str, prefix: str, exchange: str, folder: Path
) -> AsyncIterator[Station]:
    it = Station(amqp_url, prefix, exchange, folder)
    try:
        yield it
    finally:
        await it.close()
