"""The admin port: is it alive, is it ready, what has it counted, how is each target.

Bound to loopback unless told otherwise; it shows no secrets, and it changes nothing.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from service.errors import ConfigurationError


@asynccontextmanager
async def admin_port(
    host: str,
    port: int,
    *,
    not_ready: Callable[[], list[str]],
    metrics: Callable[[], bytes],
    status: Callable[[], dict[str, Any]],
) -> AsyncIterator[int]:
    """Serve the admin port while the context lasts; gives the port, which matters where 0 was asked.

    `not_ready` returns what readiness still waits for, nothing when ready.  Raises ConfigurationError
    where the port cannot be had.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = not_ready()
        if missing:
            return web.Response(status=503, text=f"not ready: {', '.join(missing)}\n")
        return web.Response(text="ready\n")

    async def show_metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=metrics(), headers=headers)

    async def show_status(_: web.Request) -> web.Response:
        body = orjson.dumps(status(), option=orjson.OPT_INDENT_2)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/status", show_status)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ConfigurationError(
            f"DISPATCHER_ADMIN_HOST, DISPATCHER_ADMIN_PORT: cannot listen on {host}:{port}"
            f" ({error.strerror}): choose another port, or stop what uses it"
        ) from error
