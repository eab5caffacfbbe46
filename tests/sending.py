"""What the tests of the sender share: subscriptions, attempts, and both event loops."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest
import uvloop

from service.core.address import EgressRules, Network
from service.core.subscription import Scheme, Signing, Subscription, Target
from service.webhook.formats import Content
from service.webhook.sender import WebhookSender
from tests.receivers import Behaviour, Hostile, Server


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


KEY = b"k" * 32
BODY = b'{"type":"order.created","timestamp":"2026-01-02T03:04:05Z","data":{"a":1}}'
ID = "evt_0123456789abcdef"
LOOPBACK = EgressRules(allow=networks("127.0.0.0/8", "::1"), allow_http=True)
TIMEOUT = 5.0
"""Seconds for an attempt, where a test does not say how many."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


both_loops = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
"""For `pytestmark`, beside an import of `event_loop_policy`: the tests run on both event loops.

The hook that is to replace that fixture would change the loop of all other tests as well.
"""


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"]
)
def event_loop_policy(request: pytest.FixtureRequest) -> Any:
    return request.param()


def subscribe(url: str, **settings: Any) -> Subscription:
    settings = {"signing": Signing(Scheme.STANDARD, (KEY,)), "timeout": TIMEOUT, **settings}
    target = Target(url)
    return Subscription("sub", ("#",), (target,), **settings)


async def send(sender: WebhookSender, subscription: Subscription, **request: Any) -> Any:
    request = {
        "webhook_id": ID,
        "content": Content(BODY),
        "timestamp": int(time.time()),
        "traceparent": None,
        "tracestate": None,
        **request,
    }
    return await sender.send(subscription=subscription, target=subscription.targets[0], **request)


async def attempt(
    url: str, *, rules: EgressRules = LOOPBACK, proxy: str | None = None, **settings: Any
) -> Any:
    async with WebhookSender(rules=rules, proxy=proxy) as sender:
        return await send(sender, subscribe(url, **settings))


async def attempt_at(behaviour: Behaviour, **settings: Any) -> Any:
    """Attempt once at a receiver that behaves so, and see that it is over in good time."""
    async with Hostile(behaviour) as receiver:
        started = time.monotonic()
        outcome = await attempt(receiver.url, **settings)
        assert time.monotonic() - started < TIMEOUT
        return outcome


@asynccontextmanager
async def sender_to(
    receiver: Server, **settings: Any
) -> AsyncIterator[tuple[WebhookSender, Subscription]]:
    async with receiver, WebhookSender(rules=LOOPBACK) as sender:
        yield sender, subscribe(receiver.url, **settings)


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:  # noqa: ASYNC109
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
