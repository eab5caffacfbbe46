"""Who is delivered to: nginx, which answers 200, or in its stead the small program `hook`.

Both keep connections alive and count what they answered: that count is how a measurement knows that all
of its deliveries have arrived, the same way for everything that is measured.
"""

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from service.ports import free_port
from tests.bench.processes import MeasuringError, line_from, module_environ, started

_POLL = 0.02
_READY_TIMEOUT = 10.0

_NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200; }}
        location = /count {{ stub_status; }}
    }}
}}
"""


class Receiver:
    """A receiver that runs, on the loopback interface."""

    def __init__(self, name: str, port: int, session: aiohttp.ClientSession) -> None:
        self.name = name
        self._base = f"http://127.0.0.1:{port}"
        self._session = session

    def url(self, path: str = "/hook") -> str:
        """Return the URL that deliveries go to."""
        return self._base + path

    async def get(self, path: str) -> str:
        """Ask for something else than a delivery."""
        try:
            async with self._session.get(self._base + path) as answer:
                return await answer.text()
        except aiohttp.ClientError as error:
            raise MeasuringError(f"{self.name} does not answer: {error}") from error

    async def count(self) -> int:
        """Return how many deliveries were answered with 200 since the start."""
        return int(await self.get("/count"))

    async def taken(self, count: int, seconds: float) -> None:
        """Wait until `count` deliveries were answered since the start.

        Raises MeasuringError where they do not come in time, or where there are more.
        """
        deadline = time.monotonic() + seconds
        while (seen := await self.count()) < count:
            if time.monotonic() > deadline:
                raise MeasuringError(f"{count - seen} deliveries did not arrive in {seconds:g} s")
            await asyncio.sleep(_POLL)
        if seen > count:
            raise MeasuringError(f"{seen - count} deliveries arrived twice")

    async def ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _READY_TIMEOUT
        while True:
            try:
                await self.count()
            except MeasuringError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_POLL)
            else:
                return


class Nginx(Receiver):
    """nginx, whose own count includes the questions for it."""

    _asked = 0

    async def count(self) -> int:
        """Return how many deliveries were answered since the start."""
        text = await self.get("/count")
        self._asked += 1
        requests = re.search(r"\n (\d+) (\d+) (\d+)", text)
        if requests is None:
            raise MeasuringError(f"nginx does not count: {text[:200]!r}")
        return int(requests[3]) - self._asked


@asynccontextmanager
async def fastest() -> AsyncIterator[Receiver]:
    """Run nginx, or `hook` where there is none."""
    program = _nginx_program()
    if program is None:
        async with hook("a Python receiver, as nginx is not installed") as receiver:
            yield receiver
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        command = (
            program,
            "-p",
            folder,
            "-e",
            f"{folder}/error.log",
            "-c",
            _configure(folder, port),
        )
        async with (
            started(*command, environ=module_environ()),
            aiohttp.ClientSession() as session,
        ):
            receiver = Nginx(_version(program), port, session)
            await receiver.ready()
            yield receiver


@asynccontextmanager
async def hook(name: str = "hook") -> AsyncIterator[Receiver]:
    """Run the small receiver."""
    command = (sys.executable, "-m", "tests.bench.hook")
    async with (
        started(*command, environ=module_environ()) as process,
        aiohttp.ClientSession() as session,
    ):
        yield Receiver(name, int(await line_from(process)), session)


def _configure(folder: str, port: int) -> str:
    path = Path(folder, "nginx.conf")
    path.write_text(_NGINX.format(folder=folder, port=port))
    return str(path)


def _nginx_program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def _version(program: str) -> str:
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return told.strip().rpartition(" ")[2] or "nginx"
