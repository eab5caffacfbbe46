"""The egress rules: which addresses, ports and schemes a webhook request may go to.

Everything that keeps a target's URL from reaching into the operator's own network is decided here;
`service.webhook.egress` asks at every connect.  `ipaddress.is_global` is not relied on: it is wrong
for NAT64, 6to4, multicast and others.  The ranges are those of the IANA special-purpose registries; of IPv6
whatever else is not global unicast is forbidden as well.

An IPv6 address may wrap an IPv4 address, and is then judged by it:

- IPv4-mapped (`::ffff:0:0/96`) is the IPv4 address, in everything;
- NAT64 (`64:ff9b::/96`), 6to4 (`2002::/16`) and IPv4-translated (`::ffff:0:0:0/96`) lead through a gateway,
  and are forbidden unless the embedded address is allowed by name, or the range itself is and the embedded
  address is not special.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SPECIAL: dict[Network, str] = {
    ip_network(network): kind
    for network, kind in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (carrier-grade NAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "a cloud platform's own service",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved for protocols",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "::1/128": "loopback",
        "::/96": "unspecified or IPv4-compatible",
        "::ffff:0:0:0/96": "IPv4-translated",
        "64:ff9b::/96": "NAT64",
        "64:ff9b:1::/48": "local NAT64",
        "100::/64": "discard-only",
        "100:0:0:1::/64": "dummy",
        "2001::/32": "Teredo",
        "2001:2::/48": "benchmarking",
        "2001:10::/28": "ORCHID",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "3fff::/20": "documentation",
        "5f00::/16": "segment routing",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
}
"""Ranges that are never called unless allowed, and what they are; the narrower of two comes first."""

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""What IANA gives out of IPv6: nothing outside of it is called unless allowed."""

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")


@dataclass(frozen=True, slots=True)
class EgressRules:
    """What the operator allows and denies; every check returns a reason to refuse, or None.

    `deny` beats `allow`, and `allow` beats the built-in list `SPECIAL`.  An empty `ports` allows any
    port.  `allow_http` permits targets without TLS.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()
    allow_http: bool = False

    def __post_init__(self) -> None:
        """Read IPv4-mapped networks as IPv4, as addresses are."""
        object.__setattr__(self, "allow", tuple(map(_unmapped_network, self.allow)))
        object.__setattr__(self, "deny", tuple(map(_unmapped_network, self.deny)))

    def check(self, ip: str, port: int) -> str | None:
        """Judge an address as text (a scope such as `%eth0` is ignored) and a port."""
        try:
            address = ip_address(ip.partition("%")[0])
        except ValueError:
            return f"{ip!r} is not an IP address"
        return self.check_port(port) or self._check_address(address)

    def check_port(self, port: int) -> str | None:
        """Judge a port alone."""
        if not self.ports or port in self.ports:
            return None
        return f"port {port} is not an allowed port"

    def check_scheme(self, scheme: str) -> str | None:
        """Judge the scheme of a URL, in lower case."""
        if scheme == "https" or (scheme == "http" and self.allow_http):
            return None
        if scheme == "http":
            return "http is not allowed, only https"
        return f"scheme {scheme!r} is not allowed, only https"

    def _check_address(self, written: Address) -> str | None:
        address = _unmapped(written)
        gateway, embedded = _embedded(address)
        judged = embedded or address
        if denied := _first(self.deny, address) or _first(self.deny, judged):
            return f"{written} is denied ({denied})"
        if _first(self.allow, judged):
            return None
        if gateway is None or _first(self.allow, address):
            return _special(written, judged)
        return f"{written} is {SPECIAL[gateway]} of {judged} ({gateway})"


def _special(written: Address, judged: Address) -> str | None:
    network = _first(SPECIAL, judged)
    if network is not None:
        return f"{written} is {SPECIAL[network]} ({network})"
    if judged.version == 6 and judged not in GLOBAL_UNICAST:
        return f"{written} is not global unicast ({GLOBAL_UNICAST})"
    return None


def _first(candidates: Iterable[Network], address: Address) -> Network | None:
    return next((network for network in candidates if address in network), None)


def _unmapped(address: Address) -> Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _unmapped_network(network: Network) -> Network:
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        embedded = int(network.network_address) & 0xFFFFFFFF
        return IPv4Network((embedded, network.prefixlen - _MAPPED.prefixlen))
    return network


def _embedded(address: Address) -> tuple[Network | None, IPv4Address | None]:
    """Return the gateway range that `address` goes through, and the IPv4 address behind it."""
    if isinstance(address, IPv6Address):
        for gateway in (_NAT64, _TRANSLATED):
            if address in gateway:
                return gateway, IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _6TO4:
            return _6TO4, IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None, None
