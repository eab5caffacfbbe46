"""The only reader of the environment: every `DISPATCHER_…` variable, its default and its meaning.

The law here: a wrong setting is found at the start and all at once, one line each, with the name of
the variable and what to write instead; and no message or log line ever shows the value of a variable
that may hold a password.
"""

import difflib
import ipaddress
import json
import re
import ssl
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from yarl import URL

from service.core.units import parse_duration, parse_size
from service.errors import ConfigurationError

PREFIX: Final = "DISPATCHER_"
ALLOW_HTTP: Final = f"{PREFIX}ALLOW_HTTP"
SECRET_FIELDS: Final = ("amqp_url", "egress_proxy")
"""Fields that may hold a password: read from a file with `…_FILE` too, and never shown."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PLAIN: Final = {
    "bool_parsing": "write true or false",
    "int_parsing": "write a whole number",
    "int_parsing_size": "write a whole number that is not so long",
    "too_short": "write at least one",
}
"""What to do, in place of pydantic's words for what is wrong."""
_MAX_WORD = 255  # bytes of a routing key and of a name in AMQP 0-9-1


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """JSON for programs, or text for people."""

    JSON = "json"
    CONSOLE = "console"


def _listed(value: object) -> object:
    """Split `a,b` or decode `["a", "b"]`; anything that is not text is left to the field's type.

    Commas alone are refused: no ports mean any, which has to be written as `[]`.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _decoded(value)
    listed = [part.strip() for part in value.split(",") if part.strip()]
    if not listed:
        raise ValueError("lists nothing: write at least one, or leave the variable empty")
    return listed


def _some(listed: tuple[str, ...]) -> tuple[str, ...]:
    if not listed:
        raise ValueError("lists nothing: write at least one")
    return listed


def _decoded(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f'is not a JSON list ({problem}): write ["a", "b"] or a,b') from None


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _url_problem(url: str, schemes: Collection[str]) -> str | None:
    """Return what is wrong with a URL that may hold a password, without quoting any of it."""
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(url)
        _ = parts.port, url.encode()  # bytes that are no UTF-8 came as surrogates
        _ = URL(url).host, (parts.hostname or "").encode("idna")  # as who connects will read it
    except ValueError:  # UnicodeError is one
        if "\\" in url:
            return "has a backslash that is not percent-encoded (%5C)"
        return "has a host or port that cannot be read"
    if parts.scheme not in schemes:
        return f"does not begin with {wanted}"
    if not parts.hostname:
        return "names no host"
    # A raw / ? or # in a password ends the authority early: the rest of it would pass for a path.
    if parts.fragment or "@" in parts.path + parts.query:
        return "has a / ? # or @ that is not percent-encoded"
    return None


def _broker_url(value: SecretStr) -> SecretStr:
    problem = _url_problem(value.get_secret_value(), ("amqp", "amqps"))
    if problem:
        raise ValueError(
            f"{problem}: write amqp://user:password@host:5672/vhost, with special characters of the"
            " password percent-encoded (a comma is %2C)"
        )
    return value


def _proxy_url(value: SecretStr) -> SecretStr:
    problem = _url_problem(value.get_secret_value(), ("http", "https"))
    if problem:
        raise ValueError(f"{problem}: write http://host:port")
    return value


def _network(value: object) -> object:
    """Read a CIDR or a bare address; a CIDR with host bits is refused, for it may be a slip."""
    if isinstance(value, Network):
        return value
    if not isinstance(value, str):  # a number is an address to `ipaddress`
        raise ValueError("is not text: write 10.0.0.0/8 or fd00::/8")  # noqa: TRY004 - for pydantic
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("is not an address or CIDR: write 10.0.0.0/8 or fd00::/8") from None
    raise ValueError(f"has bits set behind its prefix: write {meant}")


def _port(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("is not a port: write a whole number")  # noqa: TRY004 - for pydantic
    return value


def _host(value: str) -> str:
    try:
        value.encode("idna")  # as whoever looks it up does
    except UnicodeError:
        raise ValueError("is no name of a host: write an address, such as 0.0.0.0") from None
    return value


def _pattern(value: str) -> str:
    if not value or len(value.encode()) > _MAX_WORD:
        raise ValueError(
            f"a routing-key pattern has 1 to {_MAX_WORD} bytes: write # for every event"
        )
    return value


def _prefix(value: str) -> str:
    if not _NAME.fullmatch(value) or value.startswith("amq."):
        raise ValueError(
            "is no prefix of a queue: write 1 to 100 of A-Z a-z 0-9 . _ - that do not begin with amq."
        )
    return value


def _exchange(value: str) -> str:
    if not value.isprintable() or len(value.encode()) > _MAX_WORD:
        raise ValueError(f"is no name of an exchange: write 1 to {_MAX_WORD} printable characters")
    return value


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _authorities(value: Path) -> Path:
    if not value.is_file():
        raise ValueError("is no file: write the path of a PEM file")
    try:
        ssl.create_default_context(cafile=value)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"holds no certificates in PEM that can be read: {error}") from None
    return value


BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]
ProxyUrl = Annotated[SecretStr, AfterValidator(_proxy_url)]
Cidr = Annotated[Network, BeforeValidator(_network)]
Port = Annotated[int, BeforeValidator(_port), Field(ge=1, le=65535)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Prefetch = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, allow_inf_nan=False)]
_LIST: Final = (NoDecode, BeforeValidator(_listed))


class Settings(BaseSettings):
    """What the operator sets; durations in seconds, sizes in bytes.

    Immutable.  Made by `load` from a mapping; nothing is read from the process or from `.env` files
    behind the caller's back.  An empty variable counts as not set.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    amqp_url: Annotated[tuple[BrokerUrl, ...], *_LIST, Field(min_length=1)] = Field(
        default=(SecretStr("amqp://guest:guest@127.0.0.1:5672/"),),
        description="The broker; several URLs, comma-separated, are tried in turn.",
    )
    amqp_ca_file: Annotated[Path, AfterValidator(_authorities)] | None = Field(
        default=None,
        description="PEM file of the authority that signed the broker's certificate (amqps).",
    )
    subscriptions: Path = Field(
        default=Path("subscriptions.yaml"),
        description="A file of subscriptions, or a folder of such files.",
    )
    schemas: Path | None = Field(
        default=None,
        description="Folder of event data schemas, <type>.json; the packaged ones when not set.",
    )
    events_exchange: Annotated[str, AfterValidator(_exchange)] = Field(
        default="events", description="The topic exchange that producers publish to."
    )
    bindings: Annotated[tuple[Pattern, ...], *_LIST, AfterValidator(_some)] = Field(
        default=("#",), description="Routing-key patterns that the intake queue is bound with."
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="webhooks", description="Of every queue and exchange the dispatcher owns."
    )
    declare_topology: bool = Field(
        default=True, description="false: only check that queues and exchanges exist."
    )
    max_event_bytes: Annotated[int, BeforeValidator(_size), Field(ge=1, le=128 * 1024**2)] = Field(
        default=262144, description="Events with a larger body are rejected; bytes or 256KiB."
    )
    intake_prefetch: Prefetch = Field(
        default=1024, description="Unsettled messages of the intake lane in one process."
    )
    backlog_prefetch: Prefetch = Field(
        default=512, description="Unsettled messages of the backlog lane in one process."
    )
    egress_allow: Annotated[tuple[Cidr, ...], *_LIST] = Field(
        default=(), description="CIDRs that may be delivered to although they are special."
    )
    egress_deny: Annotated[tuple[Cidr, ...], *_LIST] = Field(
        default=(), description="CIDRs that are never delivered to."
    )
    egress_ports: Annotated[tuple[Port, ...], *_LIST] = Field(
        default=(), description="Ports that may be delivered to; none listed: any."
    )
    allow_http: bool = Field(default=False, description="true: targets without TLS are accepted.")
    egress_proxy: ProxyUrl | None = Field(
        default=None, description="URL of the HTTP proxy that all deliveries go through."
    )
    admin_host: Annotated[str, AfterValidator(_host), Field(min_length=1)] = Field(
        default="127.0.0.1", description="Address of /livez, /readyz, /metrics and /status."
    )
    admin_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8080,
        description="Port of /livez, /readyz, /metrics and /status; 0: any that is free.",
    )
    drain_timeout: Seconds = Field(
        default=25.0, description="How long SIGTERM waits for what is in flight; 25s."
    )
    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = Field(
        default=LogLevel.INFO, description="debug, info, warning or error."
    )
    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = Field(
        default=LogFormat.JSON, description="json for programs, console for people."
    )
    replicas: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1,
        description="Replicas that share the work, workers not counted; a rate limit is divided by it.",
    )
    publish_timeout: Annotated[Seconds, Field(ge=1)] = Field(
        default=30.0,
        description="How long a publish waits for the broker's confirm; 30s, at least 1s.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller only: not from `os.environ`, `.env` files or secret folders."""
        return (init_settings,)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from an environment.

        Raises ConfigurationError with one line for each problem: the variable, what is wrong with
        it, what to write.
        """
        values, problems = _with_files(environ)
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): value for name, value in values.items()}
        try:
            settings = cls(**source())
        except ValidationError as error:
            # The cause would carry the values, and with them passwords, into a traceback.
            problems += [_problem(detail) for detail in error.errors(include_url=False)]
        else:
            problems += settings._contradictions()
            if not problems:
                return settings
        raise ConfigurationError("\n".join(dict.fromkeys(problems)))

    @property
    def amqp_urls(self) -> tuple[str, ...]:
        """The broker's URLs in the order they are tried, passwords included: never log them."""
        return tuple(url.get_secret_value() for url in self.amqp_url)

    @property
    def egress_proxy_url(self) -> str | None:
        """The proxy's URL, password included: never log it."""
        return self.egress_proxy.get_secret_value() if self.egress_proxy else None

    def for_log(self) -> dict[str, object]:
        """Return every setting as JSON values; of a URL only scheme, host, port and virtual host."""
        shown: dict[str, object] = self.model_dump(mode="json")
        shown["amqp_url"] = [_without_secrets(url) for url in self.amqp_urls]
        if self.egress_proxy_url:
            shown["egress_proxy"] = _without_secrets(self.egress_proxy_url)
        return shown

    def _contradictions(self) -> list[str]:
        """Return the problems that lie between two settings."""
        if self.amqp_ca_file and not any(url.startswith("amqps:") for url in self.amqp_urls):
            return [f"{PREFIX}AMQP_CA_FILE: is set, but no broker URL begins with amqps://"]
        return []


def known_names() -> frozenset[str]:
    """Return every variable that `Settings.load` reads, `…_FILE` variants included."""
    fields = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    return frozenset(fields | {f"{PREFIX}{field.upper()}_FILE" for field in SECRET_FIELDS})


def unknown_names(
    environ: Mapping[str, str], also_read: Collection[str] = ()
) -> list[tuple[str, str | None]]:
    """Return the `DISPATCHER_…` names that nobody reads, sorted, each with the nearest known one.

    `also_read` are names that something else reads, such as a subscription's secret.  Letter case
    matters to the settings and not to this search, so that `dispatcher_amqp_url` is found as well.
    """
    known = known_names()
    return [
        (name, next(iter(difflib.get_close_matches(name.upper(), sorted(known), 1, 0.8)), None))
        for name in sorted(environ)
        if name.upper().startswith(PREFIX) and name not in known and name not in also_read
    ]


class Read(Mapping[str, str]):
    """An environment that remembers which names were asked for, such as those of secrets."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self._environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)


def _with_files(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the known variables that are not empty, those in files read, and the problems."""
    values = {name: environ[name] for name in known_names() if environ.get(name)}
    problems = []
    for field in SECRET_FIELDS:
        name = f"{PREFIX}{field.upper()}"
        path = values.pop(f"{name}_FILE", None)
        if path is None:
            continue
        if name in values:
            problems.append(f"{name}: is set, and {name}_FILE as well: set one of them")
            continue
        try:
            values[name] = Path(path).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            # The path stays out of the message: it is the URL itself where the names were mixed up.
            problems.append(f"{name}_FILE: cannot be read ({reason}): write the path of a file")
    return values, problems


def _problem(detail: ErrorDetails) -> str:
    """Return one line for one of pydantic's errors."""
    field = str(detail["loc"][0])
    message = detail["msg"].removeprefix("Value error, ")
    name = f"{PREFIX}{field.upper()}"
    if field in SECRET_FIELDS:
        return f"{name}: {_PLAIN.get(detail['type'], message)}"
    if detail["type"] != "value_error":
        meaning = Settings.model_fields[field].description
        message = _PLAIN.get(detail["type"], message)
        return f"{name}: {_shown(detail['input'])}: {message}. Meaning: {meaning}"
    shown = _shown(detail["input"])
    return f"{name}: {message}" if message.startswith(shown) else f"{name}: {shown} {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _without_secrets(url: str) -> str:
    """Return scheme, host, port and path of a URL: no user, no password, no query."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"
