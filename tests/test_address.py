"""The egress rules: what is forbidden, at every edge, in every disguise."""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.address import SPECIAL, EgressRules, Network

NOTHING_SAID = EgressRules()
FORBIDDEN = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "255.255.255.255/32", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/32",
    "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10",
    "ff00::/8", "2001:2::/48", "2001:10::/28", "100:0:0:1::/64", "::ffff:0:0:0/96", "::1:0:0:0/128",
    "64:ff9b::1:0:0/128", "200::/7", "400::/6", "1fff::/16", "4000::/2", "8000::/2", "fe00::/9",
]  # fmt: skip
# The neighbours of each range that are themselves outside every range.
PERMITTED = [
    "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
    "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.1.255", "192.0.3.0",
    "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255",
    "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0",
    "223.255.255.255", "8.8.8.8", "2000::", "2001:1::", "2001:2:1::", "2001:f::", "2001:20::",
    "2001:db7::1", "2001:db9::", "2003::", "3ffe::1", "3fff:1000::", "3fff:ffff::",
    "2606:4700::1111",
]  # fmt: skip


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def allowing(*texts: str, **others: Any) -> EgressRules:
    return EgressRules(allow=networks(texts), **others)


@pytest.mark.parametrize("text", FORBIDDEN)
def test_both_ends_of_every_special_range_are_forbidden(text: str) -> None:
    network = ip_network(text)
    for address in (network[0], network[-1]):
        assert NOTHING_SAID.check(str(address), 443) is not None


@pytest.mark.parametrize("address", PERMITTED)
def test_the_neighbours_of_special_ranges_are_permitted(address: str) -> None:
    assert NOTHING_SAID.check(address, 443) is None


@given(st.sampled_from(sorted(SPECIAL, key=str)), st.data())
def test_every_address_of_a_special_range_is_forbidden_and_said_to_be(
    network: Network, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, network.num_addresses - 1))
    address = str(network[offset])
    reason = NOTHING_SAID.check(address, 443)
    assert reason is not None
    assert reason.startswith(address)


def test_the_reason_names_address_and_range() -> None:
    assert NOTHING_SAID.check("10.1.2.3", 443) == "10.1.2.3 is private (10.0.0.0/8)"
    assert NOTHING_SAID.check("::1", 443) == "::1 is loopback (::1/128)"


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_one_it_maps(address: IPv4Address) -> None:
    plain = NOTHING_SAID.check(str(address), 443)
    mapped = NOTHING_SAID.check(f"::ffff:{address}", 443)
    assert (plain is None) == (mapped is None)


def nat64(address: str) -> str:
    return f"64:ff9b::{address}"


def translated(address: str) -> str:
    return f"::ffff:0:{address}"


def six_to_four(address: str) -> str:
    number = int(IPv4Address(address))
    return f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1"


@pytest.mark.parametrize("wrapped", [nat64, six_to_four, translated])
def test_gateways_are_forbidden_unless_allowed(wrapped: Callable[[str], str]) -> None:
    assert NOTHING_SAID.check(wrapped("8.8.8.8"), 443) is not None


@pytest.mark.parametrize("wrapped", [nat64, six_to_four, translated])
def test_an_allowed_gateway_leads_to_no_private_network(wrapped: Callable[[str], str]) -> None:
    rules = allowing("64:ff9b::/96", "2002::/16", "::ffff:0:0:0/96")
    assert rules.check(wrapped("8.8.8.8"), 443) is None
    assert rules.check(wrapped("10.0.0.1"), 443) is not None
    assert rules.check(wrapped("127.0.0.1"), 443) is not None
    assert rules.check(wrapped("169.254.169.254"), 443) is not None


@pytest.mark.parametrize("wrapped", [nat64, six_to_four, translated, "::ffff:{}".format])
def test_every_form_of_an_allowed_network_is_allowed(wrapped: Callable[[str], str]) -> None:
    rules = allowing("10.0.0.0/8")
    assert rules.check(wrapped("10.0.0.1"), 443) is None
    assert rules.check(wrapped("192.168.0.1"), 443) is not None


@pytest.mark.parametrize("wrapped", [nat64, six_to_four, translated, "::ffff:{}".format])
def test_every_form_of_a_denied_network_is_denied(wrapped: Callable[[str], str]) -> None:
    rules = allowing("0.0.0.0/0", "::/0", deny=networks(["8.8.8.0/24"]))
    assert "denied" in (rules.check(wrapped("8.8.8.8"), 443) or "")
    assert rules.check(wrapped("8.8.9.8"), 443) is None


def test_deny_beats_allow_and_allow_beats_the_list() -> None:
    rules = allowing("10.0.0.0/8", deny=networks(["10.1.0.0/16"]))
    assert rules.check("10.0.0.1", 443) is None
    assert rules.check("10.1.0.1", 443) == "10.1.0.1 is denied (10.1.0.0/16)"


def test_public_addresses_can_be_denied() -> None:
    assert EgressRules(deny=networks(["8.8.8.8"])).check("8.8.8.8", 443) is not None


def test_what_is_not_global_unicast_can_be_allowed() -> None:
    assert NOTHING_SAID.check("200::1", 443) == "200::1 is not global unicast (2000::/3)"
    assert allowing("200::/7").check("200::1", 443) is None


def test_mapped_networks_in_the_rules_mean_ipv4() -> None:
    rules = allowing("::ffff:10.0.0.0/104", deny=networks(["::ffff:10.1.0.0/112"]))
    assert rules.check("10.0.0.1", 443) is None
    assert rules.check("::ffff:10.0.0.1", 443) is None
    assert rules.check("10.1.0.1", 443) == "10.1.0.1 is denied (10.1.0.0/16)"


@pytest.mark.parametrize("scope", ["%eth0", "%2"])
def test_a_scope_changes_nothing(scope: str) -> None:
    assert NOTHING_SAID.check(f"fe80::1{scope}", 443) is not None
    assert allowing("fe80::/10").check(f"fe80::1{scope}", 443) is None


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "2130706433", "0x7f.1", "127.0.0.1.", "010.0.0.1"]
)
def test_what_is_no_address_is_forbidden(text: str) -> None:
    assert "not an IP address" in (allowing("0.0.0.0/0", "::/0").check(text, 443) or "")


@given(st.text())
def test_every_text_is_judged(text: str) -> None:
    assert NOTHING_SAID.check(text, 443) is None or isinstance(NOTHING_SAID.check(text, 443), str)


@given(st.ip_addresses())
def test_whatever_is_denied_stays_forbidden_under_any_allowance(
    address: IPv4Address | IPv6Address,
) -> None:
    rules = allowing("0.0.0.0/0", "::/0", deny=networks([str(address)]))
    assert rules.check(str(address), 443) is not None


def test_only_listed_ports_are_allowed() -> None:
    rules = EgressRules(ports=frozenset({443, 8443}))
    assert rules.check("8.8.8.8", 8443) is None
    assert rules.check("8.8.8.8", 22) == "port 22 is not an allowed port"


def test_any_port_is_allowed_where_none_is_listed() -> None:
    assert NOTHING_SAID.check("8.8.8.8", 22) is None


@pytest.mark.parametrize(
    ("scheme", "allow_http", "allowed"),
    [("https", False, True), ("http", False, False), ("http", True, True), ("ftp", True, False)],
)
def test_http_has_to_be_allowed(scheme: str, *, allow_http: bool, allowed: bool) -> None:
    assert (EgressRules(allow_http=allow_http).check_scheme(scheme) is None) is allowed
