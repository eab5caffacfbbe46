"""Settings: defaults, what is read, what is refused, and that no password is ever shown."""

import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ConfigurationError
from service.settings import LogFormat, LogLevel, Settings, known_names, unknown_names
from tests.certificates import Authority


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environ)
    return str(caught.value).splitlines()


def test_defaults_are_those_of_the_documentation() -> None:
    settings = Settings.load({})
    assert settings.amqp_urls == ("amqp://guest:guest@127.0.0.1:5672/",)
    assert settings.subscriptions == Path("subscriptions.yaml")
    assert settings.schemas is None
    assert settings.events_exchange == "events"
    assert settings.bindings == ("#",)
    assert settings.prefix == "webhooks"
    assert settings.declare_topology is True
    assert settings.max_event_bytes == 262144
    assert (settings.intake_prefetch, settings.backlog_prefetch) == (1024, 512)
    assert settings.egress_allow == settings.egress_deny == settings.egress_ports == ()
    assert settings.allow_http is False
    assert settings.egress_proxy_url is None
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 8080)
    assert settings.drain_timeout == 25.0
    assert (settings.log_level, settings.log_format) == (LogLevel.INFO, LogFormat.JSON)
    assert (settings.replicas, settings.publish_timeout) == (1, 30.0)


def test_an_empty_list_that_is_written_out_is_none() -> None:
    names = ("DISPATCHER_EGRESS_PORTS", "DISPATCHER_EGRESS_ALLOW", "DISPATCHER_EGRESS_DENY")
    settings = Settings.load(dict.fromkeys(names, "[]"))
    assert settings.egress_ports == settings.egress_allow == settings.egress_deny == ()


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_everything_can_be_set(tmp_path: Path) -> None:
    ca_file = Authority(tmp_path).ca_file
    settings = Settings.load(
        {
            "DISPATCHER_AMQP_URL": "amqps://a:b@one/v%2Fh, amqp://two:5673/",
            "DISPATCHER_AMQP_CA_FILE": str(ca_file),
            "DISPATCHER_SUBSCRIPTIONS": "/etc/subscriptions",
            "DISPATCHER_SCHEMAS": "/etc/schemas",
            "DISPATCHER_EVENTS_EXCHANGE": "domain events",
            "DISPATCHER_BINDINGS": '["order.*", "payment.#"]',
            "DISPATCHER_PREFIX": "team-a.webhooks",
            "DISPATCHER_DECLARE_TOPOLOGY": "false",
            "DISPATCHER_MAX_EVENT_BYTES": "1MiB",
            "DISPATCHER_INTAKE_PREFETCH": "64",
            "DISPATCHER_BACKLOG_PREFETCH": "32",
            "DISPATCHER_EGRESS_ALLOW": "10.0.0.0/8, 192.0.2.7,fd00::/8",
            "DISPATCHER_EGRESS_DENY": '["203.0.113.0/24"]',
            "DISPATCHER_EGRESS_PORTS": "443,8443",
            "DISPATCHER_ALLOW_HTTP": "true",
            "DISPATCHER_EGRESS_PROXY": "http://u:p@proxy:3128",
            "DISPATCHER_ADMIN_HOST": "::",
            "DISPATCHER_ADMIN_PORT": "0",
            "DISPATCHER_DRAIN_TIMEOUT": "2m",
            "DISPATCHER_LOG_LEVEL": "Warning",
            "DISPATCHER_LOG_FORMAT": "console",
            "DISPATCHER_REPLICAS": "3",
            "DISPATCHER_PUBLISH_TIMEOUT": "1500ms",
        }
    )
    assert settings.amqp_urls == ("amqps://a:b@one/v%2Fh", "amqp://two:5673/")
    assert settings.bindings == ("order.*", "payment.#")
    assert settings.max_event_bytes == 1024**2
    assert ipaddress.ip_network("192.0.2.7/32") in settings.egress_allow
    assert settings.egress_ports == (443, 8443)
    assert settings.egress_proxy_url == "http://u:p@proxy:3128"
    assert settings.drain_timeout == 120
    assert settings.publish_timeout == 1.5
    assert settings.log_level is LogLevel.WARNING


def test_an_empty_variable_counts_as_not_set() -> None:
    assert Settings.load(dict.fromkeys(known_names(), "")) == Settings.load({})


def test_the_process_environment_and_env_files_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DISPATCHER_PREFIX=from-a-file\n")
    monkeypatch.setenv("DISPATCHER_PREFIX", "from-the-process")
    assert Settings.load({}).prefix == "webhooks"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load({}).prefix = "other"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("AMQP_URL", "localhost:5672", "does not begin with amqp:// or amqps://"),
        ("AMQP_URL", "amqp://", "names no host"),
        ("AMQP_URL", "amqp://h:port/", "cannot be read"),
        ("AMQP_URL", ",", "write at least one"),
        ("BINDINGS", ",", "lists nothing"),
        ("BINDINGS", "[" * 5000, "is not a JSON list (nested too deep)"),
        ("EGRESS_DENY", " , ", "lists nothing"),
        ("EGRESS_PORTS", ",", "lists nothing"),
        ("BINDINGS", "[]", "lists nothing"),
        ("EGRESS_PORTS", "[true]", "is not a port"),
        ("EGRESS_ALLOW", "[true]", "is not text"),
        ("EGRESS_ALLOW", "[1]", "is not text"),
        ("ADMIN_HOST", "a..b", "is no name of a host"),
        ("ADMIN_HOST", "a" * 64, "is no name of a host"),
        ("REPLICAS", "9" * 300, "less than or equal to 10000"),
        ("REPLICAS", "9" * 5000, "write a whole number"),
        ("AMQP_CA_FILE", "/nowhere/ca.pem", "is no file"),
        ("EVENTS_EXCHANGE", "a\nb", "printable"),
        ("BINDINGS", "[1]", "valid string"),
        ("BINDINGS", '["a"', "is not a JSON list"),
        ("PREFIX", "a b", "A-Z a-z 0-9"),
        ("PREFIX", "amq.x", "amq."),
        ("DECLARE_TOPOLOGY", "perhaps", "write true or false"),
        ("EGRESS_PORTS", "https", "write a whole number"),
        ("MAX_EVENT_BYTES", "1 parsec", "unknown unit"),
        ("MAX_EVENT_BYTES", "0", "greater than or equal to 1"),
        ("INTAKE_PREFETCH", "0", "greater than or equal to 1"),
        ("BACKLOG_PREFETCH", "65536", "less than or equal to 65535"),
        ("EGRESS_ALLOW", "10.0.0.1/8", "write 10.0.0.0/8"),
        ("EGRESS_DENY", "example.com", "is not an address or CIDR"),
        ("EGRESS_PORTS", "443,0", "greater than or equal to 1"),
        ("EGRESS_PROXY", "socks5://h", "http:// or https://"),
        ("EGRESS_PROXY", "http://CORP\\svc:pw@proxy:3128", "has a backslash"),
        ("EGRESS_PROXY", "http://[::1]x:80", "cannot be read"),
        ("EGRESS_PROXY", "http://pro\u200bxy:80", "cannot be read"),
        ("EGRESS_PROXY", "http://a..b:80", "cannot be read"),
        ("AMQP_URL", "amqp://CORP\\svc:pw@host/", "has a backslash"),
        ("ADMIN_PORT", "65536", "less than or equal to 65535"),
        ("DRAIN_TIMEOUT", "25", "write 25s"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'json' or 'console'"),
        ("REPLICAS", "0", "greater than or equal to 1"),
        ("PUBLISH_TIMEOUT", "999ms", "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    name: str, value: str, hint: str
) -> None:
    lines = problems({f"DISPATCHER_{name}": value})
    assert len(lines) == 1
    assert lines[0].startswith(f"DISPATCHER_{name}: ")
    assert hint in lines[0]


def test_all_problems_are_told_at_once() -> None:
    lines = problems({"DISPATCHER_ADMIN_PORT": "x", "DISPATCHER_DRAIN_TIMEOUT": "y"})
    assert [line.split(":")[0] for line in lines] == [
        "DISPATCHER_ADMIN_PORT",
        "DISPATCHER_DRAIN_TIMEOUT",
    ]


def test_a_ca_file_that_holds_no_certificates_is_refused(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")
    url = {"DISPATCHER_AMQP_URL": "amqps://host/"}
    [told] = problems(url | {"DISPATCHER_AMQP_CA_FILE": str(ca_file)})
    assert told.startswith("DISPATCHER_AMQP_CA_FILE: ")
    assert "no certificates" in told


def test_a_ca_file_without_tls_is_refused(tmp_path: Path) -> None:
    ca_file = Authority(tmp_path).ca_file
    assert "begins with amqps://" in problems({"DISPATCHER_AMQP_CA_FILE": str(ca_file)})[0]


def test_a_secret_is_read_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("amqp://u:p@h/\n")
    assert Settings.load({"DISPATCHER_AMQP_URL_FILE": str(secret)}).amqp_urls == ("amqp://u:p@h/",)


def test_a_secret_and_its_file_exclude_each_other(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("http://proxy\n")
    environ = {
        "DISPATCHER_EGRESS_PROXY": "http://p",
        "DISPATCHER_EGRESS_PROXY_FILE": str(secret),
    }
    assert "set one of them" in problems(environ)[0]


def test_a_secret_file_that_is_missing_or_binary_is_refused(tmp_path: Path) -> None:
    assert "No such file" in problems({"DISPATCHER_AMQP_URL_FILE": str(tmp_path / "no")})[0]
    (tmp_path / "binary").write_bytes(b"\xff")
    assert "UTF-8" in problems({"DISPATCHER_AMQP_URL_FILE": str(tmp_path / "binary")})[0]


@pytest.mark.parametrize(
    "url",
    [
        "amqp://user:sesame@host:99999/",
        "amqp://user:1/sesame@host/",
        "amqp://user:1#sesame@host/",
        "amqp://user:1?sesame@host/",
        "amqp://user:sesame,@host/",
        "amqp://user:se[same@host/",
        "amqp://user:\\sesame@host/",
        "amqp://user:sesame@[::1]x/",
        "sesame",
        '["sesame"',
        "[1, true]",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    for name in ("AMQP_URL", "AMQP_URL_FILE", "EGRESS_PROXY", "EGRESS_PROXY_FILE"):
        for line in problems({f"DISPATCHER_{name}": url}):
            assert "same" not in line
    with pytest.raises(ConfigurationError) as caught:
        Settings.load({"DISPATCHER_AMQP_URL": url})
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(st.text(st.characters(codec="ascii"), min_size=1))
def test_whatever_a_password_holds_it_is_not_in_the_log(password: str) -> None:
    url = f"amqp://user:xyzzy{password}xyzzy@host/"
    try:
        settings = Settings.load({"DISPATCHER_AMQP_URL": url})
    except ConfigurationError as error:
        assert "xyzzy" not in str(error)  # noqa: PT017
    else:
        assert "xyzzy" not in repr(settings.for_log())
        assert "xyzzy" not in repr(settings)


def test_the_log_shows_where_the_broker_is_and_not_who_asks() -> None:
    shown = Settings.load(
        {
            "DISPATCHER_AMQP_URL": "amqp://u:p@h/v?x=secret,amqps://q:r@[::1]:5671/",
            "DISPATCHER_EGRESS_PROXY": "http://u:p@proxy:3128",
        }
    ).for_log()
    assert shown["amqp_url"] == ["amqp://h/v", "amqps://[::1]:5671/"]
    assert shown["egress_proxy"] == "http://proxy:3128"
    assert shown["subscriptions"] == "subscriptions.yaml"
    assert set(shown) == set(Settings.model_fields)


def test_an_unknown_name_is_told_with_the_nearest_known_one() -> None:
    environ = {
        "DISPATCHER_AMQP_URI": "x",
        "DISPATCHER_PREFIX": "x",
        "DISPATCHER_AMQP_URL_FILE": "x",
        "DISPATCHER_SECRET_OF_ACME": "x",
        "DISPATCHER_PORT_8080_TCP_PROTO": "tcp",
        "dispatcher_prefix": "x",
        "PATH": "x",
    }
    assert unknown_names(environ, also_read={"DISPATCHER_SECRET_OF_ACME"}) == [
        ("DISPATCHER_AMQP_URI", "DISPATCHER_AMQP_URL"),
        ("DISPATCHER_PORT_8080_TCP_PROTO", None),
        ("dispatcher_prefix", "DISPATCHER_PREFIX"),
    ]


def test_names_are_upper_case() -> None:
    assert all(re.fullmatch(r"DISPATCHER_[A-Z_]+", name) for name in known_names())
