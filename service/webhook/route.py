"""What is the same in every attempt at one target, worked out once.

The URL is parsed, headers that never change are laid out, keys are prepared, and what can be said
about the address before a name is resolved is said.
"""

import re
import socket
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from aiohttp import ClientTimeout
from multidict import CIMultiDict
from yarl import URL

from service import __version__
from service.core.address import EgressRules
from service.core.signature import Signer, signer
from service.core.subscription import Subscription, Target, TlsFiles
from service.webhook.egress import Door
from service.webhook.exchange import head

_ROUTES = 32_768  # that are kept: about 3 kB each
_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?", re.ASCII | re.IGNORECASE)
# Headers that a subscription cannot set: they frame the request, or say what it is and who it is from.
_RESERVED = frozenset(
    {
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection",
        "keep-alive", "te", "trailer", "upgrade", "expect", "accept-encoding", "proxy-authorization",
        "proxy-connection", "webhook-id", "webhook-timestamp", "webhook-signature",
        "x-hub-signature-256", "traceparent", "tracestate",
    }
)  # fmt: skip


@dataclass(slots=True)
class Route:
    """One target of one subscription, ready to be sent to; nothing of it changes but `door`.

    `head` is the text that every request begins with: the request line and `headers`.  `timeout` is that
    of the whole attempt in seconds, `connecting` that of a connect.  `forbidden` is why the egress rules forbid it whatever its name
    resolves to; `tls` is None where the default context serves; `place` is host and port, for texts.
    `door` is what the connector made of it, once it has been asked.
    """

    url: URL
    place: str
    request_line: str
    headers: CIMultiDict[str]
    head: str
    timeout: float
    connecting: ClientTimeout
    signer: Signer
    tls: TlsFiles | None
    forbidden: str | None
    door: Door | None = None


class Routes:
    """The routes in use.

    Found by the identity of the target, as hashing its value would cost more than all else here; the
    values are held, so that an identity is not used again.
    """

    def __init__(self, rules: EgressRules, proxy: URL | None) -> None:
        self._rules = rules
        self._proxy = proxy
        self._kept: dict[int, tuple[Subscription, Target, Route]] = {}

    def get(self, subscription: Subscription, target: Target) -> Route:
        """Return the route to `target`; raises `ValueError` where its URL or keys cannot be used."""
        kept = self._kept.get(id(target))
        if kept is not None and kept[1] is target and kept[0] is subscription:
            return kept[2]
        route = build(subscription, target, self._rules, self._proxy)
        if len(self._kept) >= _ROUTES:
            self._kept.pop(next(iter(self._kept)))
        self._kept[id(target)] = subscription, target, route
        return route

    def keep(self, current: Callable[[str], Subscription | None]) -> None:
        """Forget the routes of subscriptions that are not what they were."""
        self._kept = {
            key: kept for key, kept in self._kept.items() if current(kept[0].id) is kept[0]
        }


def build(
    subscription: Subscription, target: Target, rules: EgressRules, proxy: URL | None
) -> Route:
    """Work out the route to `target`; raises `ValueError` without the URL in its text."""
    url = _parsed(target.url)
    if not url.host:
        raise ValueError("the target's URL names no host")
    bare = url.with_user(None).with_fragment(None)
    headers = _headers(subscription, url)
    request_target = bare.raw_path_qs
    if proxy is not None and url.scheme == "http":  # RFC 9112, 3.2.2: the whole URL
        request_target = str(bare)
        if proxy.user is not None or proxy.password is not None:
            headers["Proxy-Authorization"] = _basic(proxy)
    request_line = f"POST {request_target} HTTP/1.1"
    return Route(
        url=bare,
        place=f"{url.host_subcomponent}:{url.port}",
        request_line=request_line,
        headers=headers,
        head=head(request_line, headers.items()),
        timeout=subscription.timeout,
        connecting=ClientTimeout(
            connect=min(subscription.connect_timeout, subscription.timeout),
            ceil_threshold=inf,  # otherwise rounded up to whole seconds from 5 s on
        ),
        signer=signer(subscription.signing),
        tls=None if subscription.tls == TlsFiles() else subscription.tls,
        forbidden=_forbidden(url, rules, behind_proxy=proxy is not None),
    )


def _parsed(text: str) -> URL:
    try:
        return URL(text)
    except ValueError:
        raise ValueError("the target's URL cannot be read") from None


def _headers(subscription: Subscription, url: URL) -> CIMultiDict[str]:
    headers = CIMultiDict({"Host": url.host_port_subcomponent or ""})
    headers["User-Agent"] = f"webhook-dispatcher/{__version__}"
    headers["Accept"] = "*/*"
    for name, value in subscription.headers.items():
        if name.lower() not in _RESERVED:
            headers[name] = value
    headers["Accept-Encoding"] = "identity"
    if url.user is not None or url.password is not None:
        headers["Authorization"] = _basic(url)
    return headers


def _basic(url: URL) -> str:
    """Return the credentials of a URL as a header's value; RFC 7617."""
    credentials = f"{url.user or ''}:{url.password or ''}".encode()
    return f"Basic {b64encode(credentials).decode('ascii')}"


def _forbidden(url: URL, rules: EgressRules, *, behind_proxy: bool) -> str | None:
    """Judge what the URL itself shows: scheme, port, and a host that is an address.

    Addresses behind names are judged at the connect; behind a proxy, which resolves them itself, they
    cannot be.
    """
    host, port = url.raw_host or "", url.port or 0
    refused = rules.check_scheme(url.scheme) or rules.check_port(port)
    if refused is not None:
        return refused
    if ":" in host:
        return rules.check(host, port)
    if _NUMERIC.fullmatch(host):
        return rules.check(host, port) if _is_canonical(host) else f"{host} is no canonical address"
    if behind_proxy and host.rstrip(".").rpartition(".")[2].lower() == "localhost":
        return rules.check("127.0.0.1", port)
    return None


def _is_canonical(host: str) -> bool:
    """Tell decimal dotted quads from the other spellings that the system's resolver takes."""
    try:
        return socket.inet_ntoa(socket.inet_pton(socket.AF_INET, host)) == host
    except OSError:
        return False
