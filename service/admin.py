"""The admin port: is it alive, is it ready, what has it counted, how is each target.

Bound to loopback unless told otherwise; it shows no secrets, and it changes nothing.
"""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson
from aiohttp import web

from service.errors import ConfigurationError


class AdminPages(Protocol):
    """What the admin port shows."""

    async def not_ready(self) -> list[str]:
        """Return what readiness still waits for, nothing when ready."""

    async def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4."""

    async def status(self) -> dict[str, Any]:
        """Return what is known of lanes, targets and the broker, as JSON values."""


@asynccontextmanager
async def admin_port(
    host: str, port: int, pages: AdminPages, listening: socket.socket | None = None
) -> AsyncIterator[None]:
    """Serve the admin port while the context lasts, on a socket that listens already if there is one.

    Raises ConfigurationError where the port cannot be had.
    """
    runner = web.AppRunner(_application(pages), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        if listening is not None:
            await web.SockSite(runner, listening).start()
        else:
            await _listen(runner, host, port)
        yield
    finally:
        await runner.cleanup()


def _application(pages: AdminPages) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = await pages.not_ready()
        if missing:
            return web.Response(status=503, text=f"not ready: {', '.join(missing)}\n")
        return web.Response(text="ready\n")

    async def metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=await pages.metrics(), headers=headers)

    async def status(_: web.Request) -> web.Response:
        body = orjson.dumps(await pages.status(), option=orjson.OPT_INDENT_2)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/status", status)
    return app


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "choose another port, or stop what uses it"
    if error.errno == errno.EACCES:
        return "choose a port above 1023"
    return "write an address of this machine, such as 0.0.0.0 for all of them"


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ConfigurationError(
            f"DISPATCHER_ADMIN_HOST, DISPATCHER_ADMIN_PORT: cannot listen on {host}:{port}"
            f" ({error.strerror}): {_advice(error)}"
        ) from error
