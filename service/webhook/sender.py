"""One attempt: one signed HTTP request, from values to an outcome.

The laws: whatever a receiver does becomes an `Outcome`, never an exception; nothing takes longer than
the subscription's timeout or more memory than a small bound; redirects, cookies, compression and the
environment's proxies are not followed.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from yarl import URL

from service.clock import Clock, SystemClock
from service.core.address import EgressRules
from service.core.delivery import Answered, Failed, FailureKind, Forbidden, Outcome
from service.core.retry_after import retry_after
from service.core.subscription import Subscription, Target
from service.webhook.egress import Door, EgressConnector
from service.webhook.exchange import Answer, exchange, head
from service.webhook.failures import failure, let_go, one_line
from service.webhook.formats import Content
from service.webhook.protocol import Observation
from service.webhook.route import Route, Routes
from service.webhook.tls import TlsContexts, not_read_in_time

_START_LENGTH = 512  # characters of an answer's body that are kept
_ASLEEP = 1.0  # seconds of a stop of ours from which on a timeout tells nothing of the target
_PRINTABLE = re.compile(r"[ -~]*", re.ASCII)


class WebhookSender:
    """Sends webhook requests over shared, pooled connections.

    An async context manager.  `proxy` is the URL of an HTTP proxy (with credentials where it wants
    them) that all requests go through: `https` by CONNECT.  The proxy's own address is exempt from
    `rules`.  Behind it a target that is written as an address is still judged, but a name is not: only
    the proxy resolves it, so the proxy has to keep the rules for names.
    """

    def __init__(
        self, *, rules: EgressRules, proxy: str | None = None, clock: Clock | None = None
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._rules = None if proxy else rules
        self._proxy = None if proxy is None else URL(proxy)
        self._routes = Routes(rules, self._proxy)
        self._tls = TlsContexts(self._clock)
        self._connector: EgressConnector

    async def __aenter__(self) -> Self:
        self._connector = EgressConnector(self._rules, self._tls.default, self._proxy)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connector.close()

    def keep(self, current: Callable[[str], Subscription | None]) -> None:
        """Forget what was prepared for subscriptions that are not what they were.

        Connections stay in the pool: who may use one depends on its host and certificates alone.
        """
        self._routes.keep(current)

    async def send(
        self,
        *,
        subscription: Subscription,
        target: Target,
        webhook_id: str,
        content: Content,
        timestamp: int,
        traceparent: str | None,
        tracestate: str | None,
    ) -> Outcome:
        """Make one attempt at `target`; `timestamp` in whole Unix seconds.

        Ends within `subscription.timeout`.  Raises nothing but the cancellation of its caller.
        """
        started = self._clock.monotonic()
        try:
            route = self._routes.get(subscription, target)
            start = _head(route, webhook_id, content, timestamp, traceparent, tracestate)
        except ValueError as error:
            return Failed(FailureKind.PROTOCOL, one_line(str(error)), 0.0)
        if route.forbidden is not None:
            return Forbidden(one_line(route.forbidden))
        return await self._attempt(route, start, content.body, started)

    async def _attempt(self, route: Route, start: bytes, body: bytes, started: float) -> Outcome:
        """Send the request and read its answer, whatever comes."""
        seen, began, door = Observation(), asyncio.get_running_loop().time(), route.door
        try:
            async with asyncio.timeout(route.timeout):
                door = door or await self._door(route)
                connection = await self._connector.reach(door, route.connecting, seen)
                answer = await exchange(connection, start, body)
        except Exception as error:  # noqa: BLE001 - a receiver must not be able to raise into a round
            let_go(error)
            duration = self._clock.monotonic() - started
            asleep = asyncio.get_running_loop().time() - began - duration
            if isinstance(error, TimeoutError) and asleep > _ASLEEP:
                detail = f"this process was stopped for {asleep:.0f} s"
                return Failed(FailureKind.LOCAL, detail, duration, stale_connection=True)
            if isinstance(error, TimeoutError) and door is None:
                error = not_read_in_time()
            failed = failure(error, seen, place=route.place, duration=duration)
            if isinstance(failed, Failed) and failed.stale_connection and door:
                # What put an end to this one may have put one to those beside it: the repeat needs a new one.
                self._connector.drop_idle(door)
            return failed
        else:
            return self._answered(answer, started)
        finally:
            seen.finish()

    async def _door(self, route: Route) -> Door:
        """Return where the route's connections begin; with files of its own, as these are now."""
        if route.tls is not None:
            return self._connector.door(route.url, await self._tls.get(route.tls))
        route.door = self._connector.door(route.url, tls=True)
        return route.door

    def _answered(self, answer: Answer, started: float) -> Answered:
        asked, start = answer.retry_after, answer.start
        return Answered(
            answer.status,
            self._clock.monotonic() - started,
            None if asked is None else retry_after(asked, self._clock.now()),
            one_line(start.decode("utf-8", "replace"), _START_LENGTH) if start else "",
        )


def _head(
    route: Route,
    webhook_id: str,
    content: Content,
    timestamp: int,
    traceparent: str | None,
    tracestate: str | None,
) -> bytes:
    """Return the request's head; raises `ValueError` for what cannot stand in one."""
    body = content.body
    signer = route.signer
    lines = [
        _with(route, content.headers) if content.headers else route.head,
        f"Content-Type: {content.content_type}\r\nContent-Length: {len(body)}\r\n",
        f"webhook-id: {webhook_id}\r\nwebhook-timestamp: {timestamp}\r\n",
    ]
    if not (_PRINTABLE.fullmatch(webhook_id) and _PRINTABLE.fullmatch(content.content_type)):
        raise ValueError("the event's id or content type cannot be a header's value")
    if signer.header is not None:
        lines.append(f"{signer.header}: {signer.sign(webhook_id, timestamp, body)}\r\n")
    # A trace context that cannot be a header's value is not worth a failed attempt.
    if traceparent and _PRINTABLE.fullmatch(traceparent):
        lines.append(f"traceparent: {traceparent}\r\n")
        if tracestate and _PRINTABLE.fullmatch(tracestate):
            lines.append(f"tracestate: {tracestate}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


def _with(route: Route, more: Iterable[tuple[str, str]]) -> str:
    """Return the route's head with the headers of a format, which win over those of the subscription."""
    headers = route.headers.copy()
    headers.update(more)
    return head(route.request_line, headers.items())
