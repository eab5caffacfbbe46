"""What is the same in every attempt at a target is worked out once."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from service.core.address import EgressRules
from service.core.health import TargetState
from service.core.subscription import Scheme, Signing, Subscription, Target, TlsFiles
from service.subscriptions import values
from service.webhook import route
from service.webhook.route import Routes, build

RULES = EgressRules()
TARGET = Target("https://user:word@hooks.example.com:8443/in?token=secret#part")
SUBSCRIPTION = Subscription(
    "sub", ("#",), (TARGET,), signing=Signing(Scheme.NONE), timeout=7.5, connect_timeout=9.0
)


def made(target: Target = TARGET, subscription: Subscription = SUBSCRIPTION) -> route.Route:
    return build(subscription, target, RULES, proxy=None)


def test_the_url_is_sent_without_userinfo_and_fragment() -> None:
    assert str(made().url) == "https://hooks.example.com:8443/in?token=secret"
    assert made().headers["Host"] == "hooks.example.com:8443"
    assert made().headers["Authorization"] == "Basic dXNlcjp3b3Jk"


@given(
    st.from_regex(
        r"https?://([a-z:%@[\]]{0,4}@)?(\[[0-9a-f:.]{0,9}\]|[a-z0-9._%~-]{1,9})(:[0-9]{1,5})?([/?][!-~]{0,9})?",
        fullmatch=True,
    )
)
@example("https://me:%5Bword%5D@[::ffff:127.0.0.1]:8443/in?a=%zz")
def test_a_url_that_a_file_may_hold_can_be_shown_and_sent_to(url: str) -> None:
    try:
        target = Target(values.url(url))
    except ValueError:
        return
    assert TargetState(target).host
    assert made(target).place


def test_the_place_holds_host_and_port_alone() -> None:
    assert made().place == "hooks.example.com:8443"
    assert made(Target("https://[2001:db8::1]/x?y")).place == "[2001:db8::1]:443"


def test_a_connect_may_take_no_longer_than_the_whole_and_is_not_rounded_up() -> None:
    connecting = made().connecting
    assert (made().timeout, connecting.connect, connecting.ceil_threshold) == (7.5, 7.5, inf)


def test_a_proxy_is_asked_for_the_whole_url_and_told_who_asks() -> None:
    proxy = URL("http://user:word@proxy.example.com:3128")
    plain = build(SUBSCRIPTION, Target("http://hooks.example.com/in"), RULES, proxy)
    assert plain.head.startswith("POST http://hooks.example.com/in HTTP/1.1\r\n")
    assert plain.headers["Proxy-Authorization"] == "Basic dXNlcjp3b3Jk"
    tunnelled = build(SUBSCRIPTION, Target("https://hooks.example.com/in"), RULES, proxy)
    assert tunnelled.head.startswith("POST /in HTTP/1.1\r\n")
    assert "Proxy-Authorization" not in tunnelled.headers


def test_what_would_end_a_header_early_is_refused_without_being_repeated() -> None:
    to = replace(SUBSCRIPTION, headers={"X-Team": "billing\r\nX-Forged: secret"})
    with pytest.raises(ValueError, match="line break") as caught:
        made(subscription=to)
    assert "secret" not in str(caught.value)


def test_the_shared_tls_context_serves_where_there_are_no_files() -> None:
    assert made().tls is None
    files = TlsFiles(ca_file="/ca.pem")
    assert (
        made(subscription=Subscription("s", (), (), signing=Signing(Scheme.NONE), tls=files)).tls
        == files
    )


def test_a_route_is_made_once_until_the_subscription_changes() -> None:
    routes = Routes(RULES, proxy=None)
    first = routes.get(SUBSCRIPTION, TARGET)
    routes.keep({"sub": SUBSCRIPTION}.get)
    assert routes.get(SUBSCRIPTION, TARGET) is first
    changed = Subscription("sub", ("#",), (TARGET,), signing=Signing(Scheme.NONE), timeout=1.0)
    assert routes.get(changed, TARGET).timeout == 1.0
    routes.keep({"sub": SUBSCRIPTION}.get)
    assert not routes._kept


def test_the_number_of_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_ROUTES", 3)
    routes = Routes(RULES, proxy=None)
    for number in range(10):
        routes.get(SUBSCRIPTION, Target(f"https://{number}.example.com/"))
    assert len(routes._kept) == 3


@pytest.mark.parametrize("url", ["https://user:word@", "https://user:word@[::1/", "user:word"])
def test_the_error_of_a_bad_url_does_not_repeat_it(url: str) -> None:
    with pytest.raises(ValueError, match="the target's URL") as caught:
        made(Target(url))
    assert "word" not in str(caught.value)
