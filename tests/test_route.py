"""What is the same in every attempt at a target is worked out once."""

from math import inf

import pytest

from service.core.address import EgressRules
from service.core.subscription import Scheme, Signing, Subscription, Target, TlsFiles
from service.webhook import route
from service.webhook.route import Routes, build

RULES = EgressRules()
TARGET = Target("https://user:word@hooks.example.com:8443/in?token=secret#part")
SUBSCRIPTION = Subscription(
    "sub", ("#",), (TARGET,), signing=Signing(Scheme.NONE), timeout=7.5, connect_timeout=9.0
)


def made(target: Target = TARGET, subscription: Subscription = SUBSCRIPTION) -> route.Route:
    return build(subscription, target, RULES, behind_proxy=False)


def test_the_url_is_sent_without_userinfo_and_fragment() -> None:
    assert str(made().url) == "https://hooks.example.com:8443/in?token=secret"
    assert made().headers["Host"] == "hooks.example.com:8443"
    assert made().headers["Authorization"] == "Basic dXNlcjp3b3Jk"


def test_the_place_holds_host_and_port_alone() -> None:
    assert made().place == "hooks.example.com:8443"
    assert made(Target("https://[2001:db8::1]/x?y")).place == "[2001:db8::1]:443"


def test_timeouts_are_exact_also_from_five_seconds_on() -> None:
    timeout = made().timeout
    assert (timeout.total, timeout.connect, timeout.ceil_threshold) == (7.5, 7.5, inf)


def test_the_shared_tls_context_serves_where_there_are_no_files() -> None:
    assert made().tls is None
    files = TlsFiles(ca_file="/ca.pem")
    assert (
        made(subscription=Subscription("s", (), (), signing=Signing(Scheme.NONE), tls=files)).tls
        == files
    )


def test_a_route_is_made_once_until_the_subscription_changes() -> None:
    routes = Routes(RULES, behind_proxy=False)
    first = routes.get(SUBSCRIPTION, TARGET)
    assert routes.get(SUBSCRIPTION, TARGET) is first
    changed = Subscription("sub", ("#",), (TARGET,), signing=Signing(Scheme.NONE), timeout=1.0)
    assert routes.get(changed, TARGET).timeout.total == 1.0
    routes.clear()
    assert routes.get(SUBSCRIPTION, TARGET) is not first


def test_the_number_of_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_ROUTES", 3)
    routes = Routes(RULES, behind_proxy=False)
    for number in range(10):
        routes.get(SUBSCRIPTION, Target(f"https://{number}.example.com/"))
    assert len(routes._kept) == 3


@pytest.mark.parametrize("url", ["https://user:word@", "https://user:word@[::1/", "user:word"])
def test_the_error_of_a_bad_url_does_not_repeat_it(url: str) -> None:
    with pytest.raises(ValueError, match="the target's URL") as caught:
        made(Target(url))
    assert "word" not in str(caught.value)
