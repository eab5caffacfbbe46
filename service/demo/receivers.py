"""The subscribers' side: small HTTP servers on loopback that check every signature.

They use the verification that the project offers to receivers (`service.core.signature`), and answer 401
to a request whose signature is not theirs.
"""

import asyncio
import base64
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Final

from aiohttp import web

from service.core.signature import STANDARD_HEADER, verify_standard

HOST: Final = "127.0.0.1"
OK: Final = 200
UNAUTHORIZED: Final = 401


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the receiver saw it; `at` in seconds of `time.monotonic`."""

    webhook_id: str
    valid: bool
    status: int
    at: float

    @property
    def accepted(self) -> bool:
        """Whether the receiver took it."""
        return self.valid and self.status == OK


@dataclass(slots=True)
class Receiver:
    """One target: its subscription, the secret that they share, how it answers, what it saw.

    `answers` are the statuses of the requests to come; while `open_` is not set, requests wait.
    """

    name: str
    subscription: str
    secret: str
    answers: Iterator[int] = field(default_factory=lambda: repeat(OK))
    open_: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    @property
    def accepted(self) -> list[Seen]:
        """What it took."""
        return [seen for seen in self.seen if seen.accepted]

    def answer(self, *statuses: int) -> None:
        """Answer the next requests with these statuses, and all after them with 200."""
        self.answers = chain(statuses, repeat(OK))

    def fail_with(self, status: int) -> None:
        """Answer every request with this status."""
        self.answers = repeat(status)

    async def on_request(self, request: web.Request) -> web.Response:
        """Check, note and answer one webhook request."""
        seen = self._check(request, await request.read())
        self.seen.append(seen)
        await self.open_.wait()
        return web.Response(status=seen.status)

    def _check(self, request: web.Request, body: bytes) -> Seen:
        message_id = request.headers.get("webhook-id", "")
        valid = verify_standard(
            base64.b64decode(self.secret.removeprefix("whsec_")),
            message_id=message_id,
            timestamp=request.headers.get("webhook-timestamp", ""),
            body=body,
            signatures=request.headers.get(STANDARD_HEADER, ""),
            now=time.time(),
        )
        status = next(self.answers) if valid else UNAUTHORIZED
        return Seen(message_id, valid, status, time.monotonic())


def new_secret() -> str:
    """Return a fresh secret, as Standard Webhooks writes them."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


@asynccontextmanager
async def serving(receivers: Iterable[Receiver]) -> AsyncIterator[None]:
    """Serve all of them, each on a free port of its own, and set their URLs."""
    async with AsyncExitStack() as stack:
        for receiver in receivers:
            receiver.open_.set()
            port = await stack.enter_async_context(_server(receiver))
            receiver.url = f"http://{HOST}:{port}/{receiver.name}"
        yield


@asynccontextmanager
async def _server(receiver: Receiver) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_post(f"/{receiver.name}", receiver.on_request)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@contextmanager
def refusing(name: str) -> Iterator[str]:
    """Give the URL of a target that refuses connections: its port is ours, and nothing listens."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield f"http://{HOST}:{held.getsockname()[1]}/{name}"
