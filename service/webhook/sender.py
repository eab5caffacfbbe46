"""One attempt: one signed HTTP request, from values to an outcome.

The laws: whatever a receiver does becomes an `Outcome`, never an exception; nothing takes longer than
the subscription's timeout or more memory than a small bound; redirects, cookies, compression and the
environment's proxies are not followed.
"""

import re
from contextlib import AsyncExitStack
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from multidict import CIMultiDict

from service.clock import Clock, SystemClock
from service.core.address import EgressRules
from service.core.delivery import Answered, Failed, FailureKind, Forbidden, Outcome
from service.core.retry_after import retry_after
from service.core.subscription import Subscription, Target
from service.webhook.egress import EgressConnector, Observation, observation
from service.webhook.failures import failure, one_line
from service.webhook.formats import Content
from service.webhook.route import Route, Routes
from service.webhook.tls import TlsContexts

_READ_LIMIT = 65_536  # bytes of an answer's body, after which the connection is closed
_WHOLE_LIMIT = 2**20  # bytes of a body that go out in one piece; more would hold up the loop
_START_LENGTH = 512  # characters of it that are kept
_LINE_LIMIT = 16_384  # bytes of one header of an answer; some send long security policies
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
        self._rules = rules
        self._proxy = proxy
        self._routes = Routes(rules, behind_proxy=proxy is not None)
        self._tls = TlsContexts(self._clock)
        self._stack = AsyncExitStack()
        self._connector: EgressConnector
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._connector = EgressConnector(None if self._proxy else self._rules, self._tls.default)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                connector=self._connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=PreparedRequest,
                auto_decompress=False,
                trust_env=False,
                proxy=self._proxy,
                max_line_size=_LINE_LIMIT,
                max_field_size=_LINE_LIMIT,
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def close_idle(self) -> None:
        """Drop pooled connections and prepared routes, as when subscriptions or rules have changed."""
        self._routes.clear()
        self._connector.close_idle()

    async def send(
        self,
        *,
        subscription: Subscription,
        target: Target,
        event_id_header: str,
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
            headers = _headers(route, event_id_header, content, timestamp)
        except ValueError as error:
            return Failed(FailureKind.PROTOCOL, one_line(str(error)), 0.0)
        if route.forbidden is not None:
            return Forbidden(one_line(route.forbidden))
        _trace(headers, traceparent, tracestate)
        return await self._exchange(route, headers, content.body, started)

    async def _exchange(
        self, route: Route, headers: CIMultiDict[str], body: bytes, started: float
    ) -> Outcome:
        """Send the request and read its answer, whatever comes."""
        seen = Observation()
        token = observation.set(seen)
        response = None
        try:
            response = await self._session.post(
                route.url,
                data=body if len(body) <= _WHOLE_LIMIT else BytesIO(body),
                headers=headers,
                timeout=route.timeout,
                ssl=True if route.tls is None else await self._tls.get(route.tls),
                allow_redirects=False,
            )
            start = await _read_start(response)
        except Exception as error:  # noqa: BLE001 - a receiver must not be able to raise into a round
            return failure(
                error,
                seen,
                place=route.place,
                status=None if response is None else response.status,
                duration=self._clock.monotonic() - started,
            )
        else:
            return self._answered(response, start, started)
        finally:
            if response is not None and response.connection is not None:
                response.close()  # not read to its end, so not fit for another request
            seen.finish()
            observation.reset(token)

    def _answered(self, response: aiohttp.ClientResponse, start: str, started: float) -> Answered:
        asked = response.headers.get("Retry-After")
        return Answered(
            response.status,
            self._clock.monotonic() - started,
            None if asked is None else retry_after(asked, self._clock.now()),
            start,
        )


class PreparedRequest(ClientRequest):
    """A request whose headers are complete: aiohttp need not copy them once more."""

    def update_headers(self, headers: CIMultiDict[str]) -> None:  # type: ignore[override]
        """Take the headers, which the session has copied for this request."""
        self.headers = headers


def _headers(
    route: Route, event_id_header: str, content: Content, timestamp: int
) -> CIMultiDict[str]:
    headers = route.headers.copy()
    headers["Content-Type"] = content.content_type
    headers["webhook-id"] = event_id_header
    headers["webhook-timestamp"] = str(timestamp)
    signer = route.signer
    if signer.header is not None:
        headers[signer.header] = signer.sign(event_id_header, timestamp, content.body)
    if content.headers:
        headers.update(content.headers)
    return headers


def _trace(headers: CIMultiDict[str], traceparent: str | None, tracestate: str | None) -> None:
    """Pass the trace context on; what cannot be a header's value is not worth a failed attempt."""
    if traceparent and _PRINTABLE.fullmatch(traceparent):
        headers["traceparent"] = traceparent
        if tracestate and _PRINTABLE.fullmatch(tracestate):
            headers["tracestate"] = tracestate


async def _read_start(response: aiohttp.ClientResponse) -> str:
    """Read the body to its end or to the limit, and return how it starts."""
    content = response.content
    if content.is_eof():
        body = content.read_nowait()
    else:
        body = await content.read(_READ_LIMIT)
        size = len(body)
        while size < _READ_LIMIT and not content.at_eof():
            chunk = await content.read(_READ_LIMIT - size)
            size += len(chunk)
            if len(body) < _START_LENGTH * 4:
                body += chunk
    if not body:
        return ""
    return one_line(body[: _START_LENGTH * 4].decode("utf-8", "replace"), _START_LENGTH)
