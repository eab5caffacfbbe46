"""Subscriptions from files: what is accepted, what is refused and how, and how changes are taken up."""

import asyncio
import base64
import errno
import json
import os
import ssl
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.clock import SystemClock
from service.core.event import Event
from service.core.subscription import (
    STANDARD_SCHEDULE,
    Balance,
    Format,
    RetryPolicy,
    Scheme,
    Signing,
    Subscription,
    Target,
)
from service.subscriptions import (
    Changes,
    Problem,
    Snapshot,
    SubscriptionsError,
    SubscriptionWatcher,
    changes,
    json_schema,
    load,
    watch,
)
from service.subscriptions.files import changed as files_changed
from service.subscriptions.load import read as load_read
from tests.certificates import Authority

KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
ENVIRON = {"SECRET": SECRET, "OTHER": "whsec_" + base64.b64encode(KEY * 2).decode()}

FULL = """\
defaults:
  connect_timeout: 250ms
subscriptions:
  - id: billing
    description: Billing system
    enabled: true
    tenant: acme
    event_types: ["payment.*", "invoice.#"]
    filter: data.amount > 1000 && data.currency == "EUR"
    balance: failover
    targets:
      - url: https://billing-a.example.com/hooks
        weight: 3
        max_in_flight: 8
      - url: https://user:pass@billing-b.example.com:8443/hooks?a=b
      - url: https://billing-dr.example.com/hooks
        backup: true
    format: cloudevents-binary
    signing:
      scheme: standard
      secrets: [{env: SECRET}, {file: old-secret}]
    headers: {X-Team: billing}
    timeout: 15s
    retry:
      schedule: [0, 5s, 5m, 1.5h]
      jitter: 0.1
      max_age: 5d
      permanent_statuses: [422]
    rate_limit: 100/s
"""


Load = Callable[..., Snapshot]
Refuse = Callable[..., str]


def entry(**changed: Any) -> Any:
    values = {
        "id": "a",
        "event_types": ["order.*"],
        "targets": [{"url": "https://a.example.com"}],
        "signing": {"scheme": "none"},
    }
    return {name: value for name, value in (values | changed).items() if value is not ...}


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """Write a document and load it."""

    def loaded(document: Any, name: str = "subscriptions.yaml", *, allow_http: bool = False) -> Any:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return load(path, allow_http=allow_http, environ=ENVIRON)

    return loaded


@pytest.fixture
def refused(loaded: Load, tmp_path: Path) -> Any:
    """Return the problems of a document, without the folder's name."""

    def refused(document: Any, name: str = "subscriptions.yaml", **flags: Any) -> Any:
        with pytest.raises(SubscriptionsError) as caught:
            loaded(document, name, **flags)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return refused


def one(snapshot: Any) -> Any:
    (subscription,) = snapshot
    return subscription


def test_every_field_of_a_file_becomes_its_value(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "old-secret").write_text(ENVIRON["OTHER"] + "\n")
    found = one(loaded(FULL))
    assert found == Subscription(
        id="billing",
        description="Billing system",
        tenant="acme",
        event_types=("payment.*", "invoice.#"),
        filter='data.amount > 1000 && data.currency == "EUR"',
        balance=Balance.FAILOVER,
        targets=(
            Target("https://billing-a.example.com/hooks", weight=3, max_in_flight=8),
            Target("https://user:pass@billing-b.example.com:8443/hooks?a=b"),
            Target("https://billing-dr.example.com/hooks", backup=True),
        ),
        format=Format.CLOUDEVENTS_BINARY,
        signing=Signing(Scheme.STANDARD, (KEY, KEY * 2)),
        headers={"X-Team": "billing"},
        connect_timeout=0.25,
        retry=RetryPolicy((0.0, 5.0, 300.0, 5400.0), 0.1, 432000.0, frozenset({422})),
        rate_limit=100.0,
    )


def test_yaml_and_json_say_the_same(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "old-secret").write_text(ENVIRON["OTHER"])
    assert list(loaded(FULL)) == list(loaded(yaml.safe_load(FULL), "subscriptions.json"))


def test_what_a_file_leaves_out_takes_the_defaults_of_the_core(loaded: Load) -> None:
    found = one(loaded({"subscriptions": [entry()]}))
    assert found == Subscription(
        "a", ("order.*",), (Target("https://a.example.com"),), signing=Signing(Scheme.NONE)
    )
    assert found.retry.schedule == STANDARD_SCHEDULE


def test_no_subscriptions_is_a_valid_file(loaded: Load) -> None:
    assert len(loaded("subscriptions: []")) == 0


def test_a_subscription_overrides_defaults_key_by_key(loaded: Load) -> None:
    defaults = {
        "timeout": "3s",
        "tenant": "acme",
        "rate_limit": "60/m",
        "event_types": ["a.b"],
        "signing": {"secrets": [{"env": "SECRET"}]},
        "headers": {"X-Team": "one", "X-Env": "test", "X-Gone": "yes"},
        "retry": {"schedule": ["1s"], "jitter": 0},
    }
    plain = entry(id="plain", event_types=..., signing=...)
    own = entry(
        id="own",
        tenant=None,
        timeout="4s",
        signing={"secrets": [{"env": "OTHER"}]},
        headers={"x-team": "two", "x-gone": None},
        retry={"max_age": "1h"},
    )
    snapshot = loaded({"defaults": defaults, "subscriptions": [plain, own]})
    first, second = snapshot
    assert (first.timeout, first.tenant, first.rate_limit) == (3.0, "acme", 1.0)
    assert first.event_types == ("a.b",)
    assert first.signing.keys == (KEY,)
    assert (second.timeout, second.tenant, second.rate_limit) == (4.0, None, 1.0)
    assert second.signing.keys == (KEY * 2,)
    assert dict(second.headers) == {"x-team": "two", "X-Env": "test"}
    assert second.retry == RetryPolicy((1.0,), 0.0, 3600.0)


def test_another_signing_scheme_does_not_inherit_the_secrets_of_defaults(
    loaded: Load, refused: Refuse
) -> None:
    defaults = {"signing": {"secrets": [{"env": "SECRET"}]}}
    assert one(loaded({"defaults": defaults, "subscriptions": [entry()]})).signing == Signing(
        Scheme.NONE
    )
    hub = entry(signing={"scheme": "hub-sha256"})
    assert "needs secrets" in refused({"defaults": defaults, "subscriptions": [hub]})


def test_equal_parts_are_shared(loaded: Load) -> None:
    policy = {"retry": {"schedule": ["1s"]}, "headers": {"X-Team": "a"}}
    signing = {"secrets": [{"env": "SECRET"}]}
    first, second = loaded(
        {"subscriptions": [entry(id=name, signing=signing, **policy) for name in "ab"]}
    )
    assert first.retry is second.retry
    assert first.headers is second.headers
    assert first.signing is second.signing


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"id": "a b"}, "[0].id: must be 1 to 64 characters"),
        ({"id": 7}, "[0].id: must be a text"),
        ({"id": ...}, "[0].id: is required"),
        ({"event_types": ...}, "[0].event_types: is required, here or in defaults"),
        ({"event_types": "a.b"}, "[0].event_types: must be a list"),
        ({"event_types": []}, "[0].event_types: must have at least 1"),
        ({"event_types": ["a", "pay*"]}, "[0].event_types[1]: must use * and # only as whole"),
        ({"filter": "data.x >"}, "[0].filter: line 1, column 9: Syntax error"),
        ({"filter": "1"}, "[0].filter: must be true or false"),
        ({"enabled": "yes"}, "[0].enabled: must be true or false"),
        ({"balance": "random"}, "[0].balance: must be weighted_round_robin, weighted_random or"),
        ({"timeout": 15}, "[0].timeout: must be a duration with its unit"),
        ({"timeout": "15"}, "[0].timeout: must be a duration with its unit"),
        ({"timeout": True}, "[0].timeout: must be a duration with its unit"),
        ({"timeout": 0}, "[0].timeout: must be from 100ms to 10m"),
        ({"timeout": "1h"}, "[0].timeout: must be from 100ms to 10m"),
        ({"retry": {"schedule": ["5s", "2d"]}}, "[0].retry.schedule[1]: must be from 0s to 36h"),
        ({"retry": {"jitter": 2}}, "[0].retry.jitter: must be at most 1"),
        ({"retry": {"jitter": "0.2"}}, "[0].retry.jitter: must be a number"),
        ({"retry": {"permanent_statuses": [99]}}, "permanent_statuses[0]: must be at least 100"),
        ({"rate_limit": 100}, "[0].rate_limit: must be a rate"),
        ({"rate_limit": "0/s"}, "[0].rate_limit: must be a rate above zero"),
        ({"tiemout": "5s"}, "[0].tiemout: is not a known key; did you mean timeout?"),
        ({"retry": {"schedul": []}}, "[0].retry.schedul: is not a known key; did you mean schedule?"),
        ({"headers": {"Content-Length": "1"}}, "[0].headers: must not set Content-Length"),
        ({"headers": {"webhook-ID": "1"}}, "[0].headers: must not set webhook-ID"),
        ({"headers": {"a b": "1"}}, "[0].headers: must be header names"),
        ({"headers": {"A": "x\r\nB: y"}}, "[0].headers: A: must be printable ASCII"),
        ({"headers": {"A": "x", "a": "y"}}, "[0].headers: must not name a header twice"),
        ({"headers": {"A": 1}}, "[0].headers.A: must be a text"),
        ({"targets": []}, "[0].targets: must have at least 1"),
        ({"targets": ["https://a"]}, "[0].targets[0]: must be a map"),
        ({"signing": ...}, "[0].signing: needs secrets"),
        ({"signing": {"scheme": "none", "secrets": [{"env": "SECRET"}]}}, "secrets: must be empty"),
        ({"signing": {"scheme": "md5"}}, "[0].signing.scheme: must be standard, ed25519, hub-sha256 or"),
        ({"signing": {"secrets": [{}]}}, "secrets[0]: must be either {env: NAME} or {file: PATH}"),
        ({"signing": {"secrets": [{"env": "NO"}]}}, "secrets[0].env: names an environment variable that"),
        ({"signing": {"secrets": [{"file": "no"}]}}, "secrets[0].file: cannot be read: No such file"),
        ({"signing": {"secrets": [{"file": "x\0"}]}}, "secrets[0].file: cannot be read: Not a file"),
        ({"tls": {"ca_file": "no.pem"}}, "[0].tls.ca_file: cannot be read: No such file"),
        ({"tls": {"ca_file": "subscriptions.json"}}, "[0].tls.ca_file: must hold certificates"),
        ({"tls": {"client_key_file": "subscriptions.json"}}, "client_key_file: needs a client_cert_file"),
        ({"tls": {"client_cert_file": "subscriptions.json"}}, "client_cert_file: must hold a cert"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_with_its_field(
    refused: Refuse, changed: Any, problem: str
) -> None:
    message = refused({"subscriptions": [entry(**changed)]}, "subscriptions.json")
    assert problem in message
    assert message.startswith("subscriptions.json:1: subscriptions[0]")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example.com", "HTTPS://a.example.com", "//a.example.com", "a.example.com", "https://",
        "https:///path", "https://a.example.com/#part", "https://a.example.com:0", "https://a:99999",
        "https://a.example.com:x", "https://a b", "https://a/\n", "https://a\\@b", "https://[::1",
        "https://user@a@b", "https://ä.example.com", "https://?x", "https://user:pass@", "",
        "https://user:pa[ss@a.example.com", "https://user:p]ss@a", "https://[1:2]/", "https://[.]", "https://[127.0.0.1]",
        "https://a..example.com", "https://.a.example.com", f"https://{'a' * 64}.example.com", "https://%31.example.com",
        "https://xn--a", "https://xn--abc/", "https://me@a.XN--A.example.com:8443/hooks",
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused_and_never_quoted(refused: Refuse, url: str) -> None:
    message = refused({"subscriptions": [entry(targets=[{"url": url}])]})
    assert "targets[0].url: must" in message
    assert not url or url not in message


def test_a_url_with_a_user_and_an_authorization_header_exclude_each_other(
    loaded: Load, refused: Refuse
) -> None:
    targets = [{"url": "https://a.example.com/@"}, {"url": "https://me:sesame@b.example.com"}]
    document = {
        "defaults": {"headers": {"authorization": "Bearer x"}},
        "subscriptions": [entry(targets=targets)],
    }
    (told,) = refused(document).splitlines()
    assert "targets[1].url: must hold no user or password beside the header" in told
    assert "sesame" not in told
    document["subscriptions"] = [entry(targets=targets, headers={"Authorization": None})]
    assert not one(loaded(document)).headers


def test_a_host_in_punycode_may_be_called(loaded: Load) -> None:
    url = "https://xn--bcher-kva.example.com/"
    (target,) = one(loaded({"subscriptions": [entry(targets=[{"url": url}])]})).targets
    assert target.url == url


def test_brackets_in_a_password_are_told_to_be_what_is_wrong(refused: Refuse) -> None:
    message = refused(
        {"subscriptions": [entry(targets=[{"url": "https://me:pa[ss@a.example.com/"}])]}
    )
    assert "brackets in the user or password percent-encoded: %5B and %5D" in message


def test_plain_http_is_refused_unless_allowed(loaded: Load, refused: Refuse) -> None:
    document = {"subscriptions": [entry(targets=[{"url": "http://a.example.com"}])]}
    assert "targets[0].url: must be https; DISPATCHER_ALLOW_HTTP=true" in refused(document)
    assert one(loaded(document, allow_http=True)).targets == (Target("http://a.example.com"),)


def test_a_url_may_stand_once_in_a_subscription(refused: Refuse) -> None:
    targets = [{"url": "https://a.example.com"}, {"url": "https://a.example.com"}]
    assert "targets[1].url: stands twice" in refused({"subscriptions": [entry(targets=targets)]})


def test_targets_that_are_all_drained_are_a_warning(loaded: Load) -> None:
    document = {"subscriptions": [entry(targets=[{"url": "https://a.example.com", "weight": 0}])]}
    (warning,) = loaded(document).warnings
    assert (warning.line, warning.field) == (1, "subscriptions[0].targets")


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(refused: Refuse) -> None:
    broken = (
        FULL.replace("weight: 3", "wieght: 3")
        .replace("timeout: 15s", "timeout: 15")
        .replace('"payment.*"', "pay*")
        .replace("file: old-secret", "value: whsec_c2VjcmV0")
    )
    places = [line.split(": ")[:2] for line in refused(broken).splitlines()]
    assert places == [
        ["subscriptions.yaml:8", "subscriptions[0].event_types[0]"],
        ["subscriptions.yaml:13", "subscriptions[0].targets[0].wieght"],
        ["subscriptions.yaml:21", "subscriptions[0].signing.secrets[1]"],
        ["subscriptions.yaml:23", "subscriptions[0].timeout"],
    ]


def test_a_file_full_of_problems_tells_the_first_twenty(refused: Refuse) -> None:
    lines = refused({"subscriptions": [entry(id="?")] * 1000}).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "subscriptions.yaml: may have more problems; these come first"


def test_json_problems_name_their_line(refused: Refuse) -> None:
    document = {
        "$schema": "x",
        "defaults": {},
        "subscriptions": [entry(), entry(id="b", timeout=5)],
    }
    text = json.dumps(document, indent=1)
    line = text.splitlines().index('   "timeout": 5') + 1
    assert refused(text, "s.json").startswith(f"s.json:{line}: subscriptions[1].timeout: must be")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("s.yaml", "a:\n\tb: 1", "s.yaml:2: is not YAML: found character that cannot start any token"),
        ("s.yaml", "a: 'x", "s.yaml:1: is not YAML"),
        ("s.yaml", "a: b\n\0", "s.yaml:2: is not YAML: control characters"),
        ("s.yaml", "", "s.yaml:1: is empty; write `subscriptions: []`"),
        ("s.yaml", "# nothing\n", "s.yaml:1: is empty"),
        ("s.yaml", "[]", "s.yaml:1: must be a map with the key subscriptions"),
        ("s.yaml", "subscriptions: []\n---\na: 1", "s.yaml:2: holds more than one document"),
        ("s.yaml", "a:\n  b: 1\n  b: 2", "s.yaml:3: a: 'b' stands twice in this map"),
        ("s.yaml", "a: 1\nb: !!python/name:os.system x", "s.yaml:2: b: tags are not supported"),
        ("s.yaml", "a: !x {b: 1}", "s.yaml:1: a: tags are not supported"),
        ("s.yaml", "a: &a {b: 1}\nc:\n  <<: *a", "s.yaml:3: c: merge keys (<<) are not supported"),
        ("s.yaml", "a: &a [*a]", "s.yaml:1: a[0]: an alias"),
        ("s.yaml", "? [a]\n: 1", "s.yaml:1: a key must be a text"),
        ("s.yaml", "[" * 200_000, "s.yaml:1: is nested too deeply"),
        ("s.yaml", "subscriptions: 1", "s.yaml:1: subscriptions: must be a list"),
        ("s.yaml", "subscription: []", "did you mean subscriptions?"),
        ("s.yaml", "subscriptions: []\nid: a", "s.yaml:2: id: belongs in an entry of subscriptions"),
        ("s.yaml", "subscriptions: []\ndefaults: {id: a}", "defaults.id: belongs in a subscription"),
        ("s.yaml", "subscriptions: []\ndefaults: {timeout: 5}", "s.yaml:2: defaults.timeout: must be"),
        ("s.json", "", "s.json:1: is empty"),
        ("s.json", '{"a": 1,\n}', "s.json:2: is not JSON"),
        ("s.json", '{"a": NaN}', "s.json: is not JSON: NaN"),
        ("s.json", '{"a":' * 100_000, "s.json: is nested too deeply"),
        ("s.json", '{"a": [\n{"b": 1,\n"b": 2}]}', "s.json:3: a[0]: 'b' stands twice in this map"),
        ("s.json", '{"a": {"b": 1, "b": 1},\n"a": 2}', "s.json:2: 'a' stands twice in this map"),
        ("s.json", '{"a": ' + "9" * 6000 + "}", "s.json:1: a: is not a known key"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_line(
    refused: Refuse, name: str, text: str, problem: str
) -> None:
    assert problem in refused(text, name)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"# one\n# \xe9\n")
    with pytest.raises(SubscriptionsError) as caught:
        load(path, allow_http=False, environ={})
    assert caught.value.problems == (Problem(str(path), 2, "", "is not UTF-8 text"),)


def test_yaml_aliases_share_what_they_name_instead_of_copying_it(refused: Refuse) -> None:
    bomb = ["a0: &a0 [x, x]"]
    bomb += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
    started = time.process_time()
    assert "is not a known key" in refused("\n".join([*bomb, "subscriptions: *a29"]))
    assert time.process_time() - started < 2


def test_yaml_words_mean_what_yaml_1_2_says(loaded: Load) -> None:
    document = json.dumps(entry(tenant="@")).replace('"@"', "no")
    assert one(loaded(f"subscriptions: [{document}]")).tenant == "no"


def test_yaml_aliases_may_be_used(loaded: Load) -> None:
    text = "subscriptions:\n- &first " + json.dumps(entry(targets=[{"url": "https://a"}]))
    text += "\n- id: b\n  event_types: &types [x, 'y.*']\n  targets: [{url: https://b}]\n  signing: {scheme: none}"
    text += (
        "\n- id: c\n  event_types: *types\n  targets: [{url: https://b}]\n  signing: {scheme: none}"
    )
    assert [found.event_types for found in loaded(text)][1:] == [("x", "y.*")] * 2


def test_ids_are_unique_over_all_files(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.json"):
        (tmp_path / name).write_text(json.dumps({"subscriptions": [entry()]}))
    with pytest.raises(SubscriptionsError) as caught:
        load(tmp_path, allow_http=False, environ={})
    (problem,) = caught.value.problems
    assert (Path(problem.file).name, problem.field) == ("b.json", "subscriptions[0].id")
    assert "already used by subscriptions[0] in" in problem.message
    assert problem.message.endswith("a.yaml")


def test_a_folder_is_read_in_the_order_of_names_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.json", "c.yml"):
        (tmp_path / name).write_text(json.dumps({"subscriptions": [entry(id=name)]}))
    for name in (".hidden.yaml", "notes.txt", "d.yaml~"):
        (tmp_path / name).write_text("{")
    snapshot = load(tmp_path, allow_http=False, environ={})
    assert [found.id for found in snapshot] == ["a.json", "b.yaml", "c.yml"]


def test_a_folder_without_files_is_refused_since_it_was_hardly_meant(tmp_path: Path) -> None:
    with pytest.raises(SubscriptionsError, match="holds no file"):
        load(tmp_path, allow_http=False, environ={})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubscriptionsError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml", allow_http=False, environ={})


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SubscriptionsError, match="cannot be read: It is a named pipe, not a file"):
        load(tmp_path / "pipe.yaml", allow_http=False, environ={})


ED_SEED = bytes(range(32))
ED_PUBLIC = Ed25519PrivateKey.from_private_bytes(ED_SEED).public_key().public_bytes_raw()


def b64(prefix: str, key: bytes) -> Any:
    return prefix + base64.b64encode(key).decode()


@pytest.mark.parametrize(
    ("scheme", "secret", "key"),
    [
        ("standard", b64("whsec_", KEY), KEY),
        ("standard", b64("", KEY), KEY),
        ("standard", b64("whsec_", bytes(64)), bytes(64)),
        ("ed25519", b64("whsk_", ED_SEED), ED_SEED),
        ("ed25519", b64("whsk_", ED_SEED + ED_PUBLIC), ED_SEED),
        ("hub-sha256", "It's a secret ", b"It's a secret "),
    ],
)
def test_a_secret_file_becomes_its_key(
    loaded: Load, tmp_path: Path, scheme: str, secret: str, key: bytes
) -> None:
    (tmp_path / "secret").write_text(secret + "\n")
    signing = {"scheme": scheme, "secrets": [{"file": "secret"}]}
    assert one(loaded({"subscriptions": [entry(signing=signing)]})).signing.keys == (key,)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_is_the_same_key_by_variable_as_by_file(tmp_path: Path, end: str) -> None:
    (tmp_path / "secret").write_bytes(f"hush{end}".encode())
    secrets = [{"env": "HUSH"}, {"file": "secret"}]
    write(tmp_path / "s.yaml", entry(signing={"scheme": "hub-sha256", "secrets": secrets}))
    snapshot = load(tmp_path / "s.yaml", allow_http=False, environ={"HUSH": f"hush{end}"})
    assert one(snapshot).signing.keys == (b"hush", b"hush")
    assert not snapshot.warnings


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("\n", "is empty"),
        ("  \r\n", "is empty"),
        ("\ufeffhush", "begins with a byte order mark"),
    ],
)
def test_a_variable_that_holds_no_secret_is_refused(
    tmp_path: Path, secret: str, problem: str
) -> None:
    signing = {"scheme": "hub-sha256", "secrets": [{"env": "HUSH"}]}
    write(tmp_path / "s.yaml", entry(signing=signing))
    with pytest.raises(SubscriptionsError, match=f"secrets\\[0\\].env: {problem}"):
        load(tmp_path / "s.yaml", allow_http=False, environ={"HUSH": secret})


def test_spaces_around_a_secret_are_a_warning(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush \n")
    signing = {"scheme": "hub-sha256", "secrets": [{"file": "secret"}]}
    (warning,) = loaded({"subscriptions": [entry(signing=signing)]}).warnings
    assert warning.field == "subscriptions[0].signing.secrets[0].file"
    assert "spaces" in warning.message


@pytest.mark.parametrize(
    ("scheme", "secret", "problem"),
    [
        ("standard", b64("whsec_", bytes(range(23))), "24 to 64 random bytes, but has 23"),
        ("standard", b64("whsec_", bytes(range(65))), "24 to 64 random bytes, but has 65"),
        ("standard", "correct horse battery staple", "must be whsec_ and base64"),
        ("standard", b64("whsec_", KEY)[:-1] + "!", "must be whsec_ and base64"),
        ("standard", b64("whsk_", ED_SEED), "is a key for the scheme ed25519"),
        ("ed25519", b64("whsec_", ED_SEED), "must be a private key: whsk_"),
        ("ed25519", b64("whpk_", ED_SEED), "must be a private key: whsk_"),
        ("ed25519", b64("whsk_", ED_SEED[1:]), "must be base64 of 32 bytes"),
        ("ed25519", b64("whsk_", ED_SEED + bytes(32)), "public half that does not belong"),
        ("hub-sha256", "", "is empty"),
    ],
)
def test_a_wrong_secret_is_refused_and_never_quoted(
    refused: Refuse, tmp_path: Path, scheme: str, secret: str, problem: str
) -> None:
    (tmp_path / "secret").write_text(secret)
    message = refused(
        {"subscriptions": [entry(signing={"scheme": scheme, "secrets": [{"file": "secret"}]})]}
    )
    assert "subscriptions.yaml:1: subscriptions[0].signing.secrets[0].file: " in message
    assert problem in message
    assert not secret or secret not in message


@pytest.mark.parametrize(
    "signing",
    [
        {"secrets": [SECRET]},
        {"secrets": SECRET},
        {"secrets": [{SECRET: None}]},
        {"secrets": [{"value": SECRET}]},
        {"secrets": [{"env": SECRET}]},
        {"secrets": [{"file": SECRET}]},
        {"secrets": [{"env": {"name": SECRET}}]},
        {"scheme": SECRET},
        SECRET,
    ],
)
def test_a_secret_in_a_wrong_place_is_refused_and_never_quoted(
    refused: Refuse, signing: Any
) -> None:
    for name in ("s.yaml", "s.json"):
        for document in (
            {"subscriptions": [entry(signing=signing)]},
            {"defaults": {"signing": signing}, "subscriptions": [entry(signing=...)]},
        ):
            message = refused(document, name)
            assert SECRET not in message
            assert SECRET[6:] not in message


def test_a_snapshot_never_shows_its_keys(loaded: Load) -> None:
    found = one(loaded({"subscriptions": [entry(signing={"secrets": [{"env": "SECRET"}]})]}))
    assert str(KEY) not in repr(found)


# --- snapshot ----------------------------------------------------------------------------------------


def event(event_type: str = "order.created", tenant: Any = None, data: Any = b"{}") -> Any:
    return Event("evt-1", event_type, "shop", "2026-01-02T03:04:05Z", 0.0, data, tenant=tenant)


def test_a_snapshot_gives_those_whose_patterns_and_filter_match(loaded: Load) -> None:
    snapshot = loaded(
        {
            "subscriptions": [
                entry(id="all", event_types=["#"]),
                entry(id="dear", filter="data.amount > 10"),
                entry(id="cheap", filter="data.amount <= 10"),
                entry(id="theirs", tenant="acme"),
                entry(id="invoices", event_types=["invoice.#"]),
            ]
        }
    )

    def wanted(data: Any, **attributes: Any) -> Any:
        return [found.id for found in snapshot.match(event(**attributes), data)]

    assert wanted({"amount": 11}) == ["all", "dear"]
    assert wanted({"amount": 10}, tenant="acme") == ["all", "cheap", "theirs"]
    assert wanted({}, event_type="invoice.paid") == ["all", "invoices"]
    assert snapshot.get("dear") in list(snapshot)
    assert snapshot.get("other") is None
    assert len(snapshot) == 5


def test_a_filter_that_cannot_decide_is_reported_once_and_does_not_match(tmp_path: Path) -> None:
    path, reports = tmp_path / "s.json", []
    path.write_text(json.dumps({"subscriptions": [entry(filter="data.amount > 10")]}))

    def read() -> Any:
        return load(
            path, allow_http=False, environ={}, on_undecided=lambda *report: reports.append(report)
        )

    snapshot = read()
    assert [list(snapshot.match(event(), {})) for _ in range(3)] == [[], [], []]
    assert reports == [("a", "the key 'amount' is missing")]
    read().match(event(), {})
    assert len(reports) == 2  # a reload reports anew


def test_the_version_tells_contents_apart(loaded: Load) -> None:
    first, again, other = (
        loaded({"subscriptions": [entry(id=name)]}).version for name in ("a", "a", "b")
    )
    assert first == again != other


def test_changes_name_what_differs() -> None:
    def snapshot(*subscriptions: Any) -> Any:
        return Snapshot(subscriptions, version="", loaded_at=0.0)

    def made(name: str, **values: Any) -> Any:
        return Subscription(name, ("#",), (Target("https://a"),), **values)

    before = snapshot(made("same"), made("gone"), made("other"))
    after = snapshot(made("new"), made("same"), made("other", timeout=1.0))
    assert changes(before, after) == Changes(("new",), ("gone",), ("other",))
    assert changes(None, after).added == ("new", "same", "other")


# --- watching ----------------------------------------------------------------------------------------


class Watched:
    """A watcher at work, and what it has told."""

    def __init__(self, source: Path, environ: Any = ENVIRON, clock: Any = None) -> None:
        self.loaded: list[tuple[Snapshot, Changes]] = []
        self.refused: list[SubscriptionsError] = []
        self.watcher = SubscriptionWatcher(
            source,
            allow_http=False,
            environ=environ,
            on_loaded=lambda snapshot, found: self.loaded.append((snapshot, found)),
            on_refused=self.refused.append,
            interval=0.02,
            clock=clock,
        )

    async def until(self, condition: Any, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watching(source: Path, **options: Any) -> Any:
    watched = Watched(source, **options)
    await watched.watcher.start()
    task = asyncio.create_task(watched.watcher.run())
    try:
        yield watched
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def failing_to(patch: pytest.MonkeyPatch, call: str, path: Path) -> Any:
    """Let a function of `os` fail for one path, as a broken disk does; returns its calls so far."""
    calls: list[object] = []
    real = getattr(os, call)

    def failing(asked: Any, *args: Any, **options: Any) -> Any:
        if str(asked) == str(path):
            calls.append(asked)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(asked, *args, **options)

    patch.setattr(os, call, failing)
    return calls


def write(path: Path, *entries: Any) -> None:
    path.write_text(json.dumps({"subscriptions": list(entries)}))


def rewrite(path: Path, *entries: Any) -> None:
    """Put another file in the place of one.

    Written in place, a file of the same size would look the same within a tick of the kernel's clock.
    """
    fresh = path.with_suffix(".fresh")
    write(fresh, *entries)
    fresh.replace(path)


async def test_the_first_reading_refuses_bad_files(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "none.yaml")
    with pytest.raises(SubscriptionsError):
        await watched.watcher.start()
    with pytest.raises(RuntimeError):
        _ = watched.watcher.current


async def test_a_changed_file_becomes_the_current_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"), entry(id="b"))
    async with watching(path) as watched:
        write(path, entry(id="b", timeout="1s"), entry(id="c"))
        await watched.until(lambda: len(watched.loaded) == 2)
        assert [found.id for found in watched.watcher.current] == ["b", "c"]
        assert watched.loaded[1] == (
            watched.watcher.current,
            Changes(("c",), ("a",), ("b",)),
        )


async def test_a_bad_file_never_replaces_a_good_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    async with watching(path) as watched:
        good = watched.watcher.current
        path.write_text("subscriptions: [{id: '?'}]")
        await watched.until(lambda: watched.refused)
        assert watched.watcher.current is good
        assert "subscriptions[0].id" in str(watched.refused[0])
        write(path, entry(id="b"))
        await watched.until(lambda: watched.watcher.current is not good)
        assert [found.id for found in watched.watcher.current] == ["b"]
        assert len(watched.refused) == 1  # told once, not at every look


async def test_a_deleted_file_is_refused_and_taken_up_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    async with watching(path) as watched:
        path.unlink()
        await watched.until(lambda: watched.refused)
        assert [found.id for found in watched.watcher.current] == ["a"]
        write(path, entry(id="b"))
        await watched.until(lambda: len(watched.loaded) == 2)


async def test_a_rotated_secret_file_is_taken_up(tmp_path: Path) -> None:
    path, secret = tmp_path / "s.yaml", tmp_path / "secret"
    secret.write_text(SECRET)
    write(path, entry(signing={"secrets": [{"file": "secret"}]}))
    async with watching(path) as watched:
        secret.write_text(ENVIRON["OTHER"])
        await watched.until(lambda: len(watched.loaded) == 2)
        assert one(watched.watcher.current).signing.keys == (KEY * 2,)
        assert watched.loaded[1][1] == Changes(changed=("a",))


async def test_a_secret_file_that_appears_mends_a_refused_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    write(path)
    async with watching(path) as watched:
        write(path, entry(signing={"secrets": [{"file": "secret"}]}))
        await watched.until(lambda: watched.refused)
        (tmp_path / "secret").write_text(SECRET)
        await watched.until(lambda: len(watched.loaded) == 2)


async def test_new_files_in_a_folder_are_taken_up(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", entry(id="a"))
    async with watching(tmp_path) as watched:
        write(tmp_path / "b.yaml", entry(id="b"))
        await watched.until(lambda: len(watched.watcher.current) == 2)
        (tmp_path / "a.yaml").unlink()
        await watched.until(lambda: [found.id for found in watched.watcher.current] == ["b"])


def publish_config_map(folder: Path, name: str, *entries: Any) -> None:
    """Put files into a mounted ConfigMap as the kubelet does: a new folder, then one rename."""
    (folder / name).mkdir()
    write(folder / name / "subscriptions.yaml", *entries)
    (folder / "..data_tmp").symlink_to(name)
    (folder / "..data_tmp").rename(folder / "..data")


@pytest.mark.parametrize("watched_name", ["", "subscriptions.yaml"])
async def test_a_swapped_config_map_is_taken_up(tmp_path: Path, watched_name: str) -> None:
    publish_config_map(tmp_path, "..2026_01_01", entry(id="a"))
    (tmp_path / "subscriptions.yaml").symlink_to("..data/subscriptions.yaml")
    async with watching(tmp_path / watched_name) as watched:
        publish_config_map(tmp_path, "..2026_01_02", entry(id="b"))
        await watched.until(lambda: len(watched.loaded) == 2)
        assert [found.id for found in watched.watcher.current] == ["b"]
        assert not watched.refused


async def test_a_file_that_is_still_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    whole = json.dumps({"subscriptions": [entry(id="b"), entry(id="c")]})
    parts = iter([whole[:10], whole[:50], whole])

    def look_at_and_write_on(paths: Any, look_at: Any = watch._look_at) -> Any:
        seen = look_at(paths)
        if (part := next(parts, None)) is not None:
            path.write_text(part)
        return seen

    async with watching(path) as watched:
        monkeypatch.setattr(watch, "_look_at", look_at_and_write_on)
        path.write_text("")
        await watched.until(lambda: len(watched.watcher.current) == 2)
        assert len(watched.loaded) == 2
        assert not watched.refused


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    later = iter([[entry(id="c"), entry(id="d")]])

    def read_and_write(*args: Any, read: Any = load_read, **options: Any) -> Any:
        reading = read(*args, **options)
        for entries in later:
            write(path, *entries)
        return reading

    async with watching(path) as watched:
        monkeypatch.setattr(watch, "read", read_and_write)
        rewrite(path, entry(id="b"))
        await watched.until(lambda: len(watched.loaded) == 2)
        assert [found.id for found in watched.watcher.current] == ["c", "d"]


async def test_what_is_no_file_is_told_once_and_the_rest_is_taken_up_when_it_is_gone(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.yaml", entry(id="a"))
    async with watching(tmp_path) as watched:
        (tmp_path / "b.yaml").mkdir()
        await watched.until(lambda: watched.refused)
        assert "b.yaml: cannot be read: Is a directory" in str(watched.refused[0])
        (tmp_path / "b.yaml").rmdir()
        write(tmp_path / "a.yaml", entry(id="c"))
        await watched.until(lambda: watched.watcher.current.get("c"))
        assert len(watched.refused) == 1


async def test_a_file_that_cannot_be_read_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    async with watching(path) as watched:
        with monkeypatch.context() as failing:
            tried = failing_to(failing, "open", path)
            rewrite(path, entry(id="b"))
            await watched.until(lambda: len(tried) > 2)
            assert [found.id for found in watched.watcher.current] == ["a"]
        await watched.until(lambda: len(watched.loaded) == 2)
        assert [str(told) for told in watched.refused] == [
            f"{path}: cannot be read: Input/output error"
        ]


@pytest.mark.parametrize("call", ["stat", "listdir"])
async def test_a_folder_that_cannot_be_read_for_a_while_is_watched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(tmp_path / "a.yaml", entry(id="a"))
    async with watching(tmp_path) as watched:
        with monkeypatch.context() as failing:
            failing_to(failing, call, tmp_path)
            write(tmp_path / "b.yaml", entry(id="b"))
            await watched.until(lambda: watched.refused)
            assert f"{tmp_path}: cannot be read: Input/output error" in str(watched.refused[0])
        await watched.until(lambda: len(watched.watcher.current) == 2)
        write(tmp_path / "b.yaml", entry(id="c"))
        await watched.until(lambda: watched.watcher.current.get("c"))


async def test_a_certificate_that_cannot_be_read_is_not_called_wrong_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, certificate = tmp_path / "s.yaml", Path(Authority(tmp_path).ca_file)
    write(path, entry(id="a"))
    async with watching(path) as watched:
        tried = []

        def load_verify_locations(_: object, asked: str) -> None:
            tried.append(asked)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as failing:
            failing.setattr(ssl.SSLContext, "load_verify_locations", load_verify_locations)
            write(path, entry(id="b", tls={"ca_file": certificate.name}))
            await watched.until(lambda: len(tried) > 1)
            assert "tls.ca_file: cannot be read: Too many open files" in str(watched.refused[0])
        await watched.until(lambda: watched.watcher.current.get("b"))
        assert len(watched.refused) == 1


class LeapingClock(SystemClock):
    """Ten minutes go by between any two looks at it."""

    def __init__(self) -> None:
        self.now_is = 0.0

    def monotonic(self) -> float:
        self.now_is += 600.0
        return self.now_is


async def test_waiting_for_a_file_server_makes_no_later_look_rarer(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    clock = LeapingClock()
    async with watching(path, clock=clock) as watched:
        await watched.until(lambda: clock.now_is > 0)
        rewrite(path, entry(id="b"))
        await watched.until(lambda: len(watched.loaded) == 2)


def test_looks_that_take_much_computing_are_rarer_but_half_a_minute_apart_at_most() -> None:
    assert [watch._pause(1.0, looking) for looking in (0.0, 0.2, 600.0)] == [1.0, 4.0, 30.0]


async def test_an_unchanged_file_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    write(path, entry(id="a"))
    looks = []

    def counted(seen: Any, changed: Any = files_changed) -> Any:
        looks.append(seen)
        return changed(seen)

    monkeypatch.setattr(watch, "changed", counted)
    async with watching(path) as watched:
        await watched.until(lambda: len(looks) > 3)
        assert len(watched.loaded) == 1


# --- schema ------------------------------------------------------------------------------------------

SCHEMA = Path(__file__).parent.parent / "schemas" / "subscriptions.schema.json"


def test_the_schema_in_the_repository_is_the_one_of_the_models() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), (
        "run: python -m service.subscriptions > schemas/subscriptions.schema.json"
    )


def test_the_schema_is_a_proper_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize(
    "document",
    [
        yaml.safe_load(FULL),
        {"subscriptions": []},
        {
            "$schema": "./subscriptions.schema.json",
            "subscriptions": [entry(tenant=None, filter=None)],
        },
        {
            "defaults": {"timeout": "1.5s", "retry": {"schedule": [0, "5s"]}},
            "subscriptions": [entry()],
        },
    ],
)
def test_valid_documents_pass_the_schema(document: Any) -> None:
    jsonschema.validate(document, json_schema())


@pytest.mark.parametrize(
    "changed",
    [
        {"id": "a b"}, {"id": ...}, {"targets": ...}, {"targets": []}, {"event_types": ["a..b"]},
        {"event_types": ["pay*"]}, {"timeout": 15}, {"timeout": "15 s"}, {"rate_limit": "100"},
        {"balance": "random"}, {"unknown": 1}, {"targets": [{"url": "ftp://a"}]}, {"enabled": "yes"},
        {"targets": [{"url": "https://a", "weight": 1001}]}, {"retry": {"permanent_statuses": [99]}},
        {"signing": {"secrets": ["whsec_x"]}}, {"signing": {"secrets": [{"env": "A", "file": "b"}]}},
    ],
)  # fmt: skip
def test_invalid_documents_fail_the_schema(refused: Refuse, changed: Any) -> None:
    document = {"subscriptions": [entry(**changed)]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())
    assert refused(document)  # and the loader agrees
