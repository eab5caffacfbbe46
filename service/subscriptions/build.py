"""From what a file says to subscriptions: defaults filled in, secrets read, rules between fields held.

A subscription overrides `defaults` key by key, inside `signing`, `headers`, `retry` and `tls` too; lists
are replaced.  One exception: who writes another signing scheme than `defaults` does not inherit its
secrets, since key material belongs to a scheme.
"""

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from service.core.subscription import RetryPolicy, Scheme, Signing, Subscription, Target, TlsFiles
from service.subscriptions import values
from service.subscriptions.files import Files
from service.subscriptions.keys import Keyring, Place, key_warning
from service.subscriptions.memory import Built, Needs
from service.subscriptions.model import PolicyModel, SecretModel, SubscriptionModel
from service.subscriptions.problems import Path, Report
from service.subscriptions.tls import tls_problems

_PLAIN = frozenset({
    "description", "enabled", "tenant", "filter", "balance", "format",
    "timeout", "connect_timeout", "rate_limit",
})  # fmt: skip
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_TLS = TlsFiles()
_H = TypeVar("_H", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Layer:
    """A map of the file that sets values, and where it stands."""

    model: PolicyModel
    where: Path

    def sets(self, name: str) -> bool:
        """Tell whether this map sets a value."""
        return name in self.model.model_fields_set

    def nested(self, name: str) -> "Mapping[str, Placed]":
        """Return what the map `name` in this map sets."""
        if not self.sets(name):
            return {}
        inner: BaseModel = getattr(self.model, name)
        where = (*self.where, name)
        return {key: Placed(getattr(inner, key), (*where, key)) for key in inner.model_fields_set}


@dataclass(frozen=True, slots=True)
class Placed:
    """A value, and where it was set."""

    value: Any
    where: Path


class Parts:
    """What the subscriptions of one load have in common.

    Of equal parts (policies, headers, keys) the first is kept and shared, so that a hundred thousand
    subscriptions fit into memory; each secret and certificate is read once.
    """

    def __init__(self, files: Files, environ: Mapping[str, str], *, allow_http: bool) -> None:
        self.keyring = Keyring(files, environ)
        self.allow_http = allow_http
        self._files = files
        self._kept: dict[Hashable, Any] = {}
        self._tls_problems: dict[TlsFiles, Mapping[str, str]] = {_NO_TLS: {}}
        self._still: dict[Needs, bool] = {}

    def shared(self, value: _H) -> _H:
        """Return the first value that was equal to this one."""
        kept: _H = self._kept.setdefault(value, value)
        return kept

    def shared_headers(self, headers: dict[str, str]) -> Mapping[str, str]:
        """Return the first headers that were equal to these, read-only."""
        if not headers:
            return _NO_HEADERS
        key = ("headers", *headers.items())
        kept: Mapping[str, str] = self._kept.setdefault(key, MappingProxyType(headers))
        return kept

    def needs(self, places: tuple[Place, ...], signing: Signing, tls: TlsFiles) -> Needs:
        """Return the first needs that were equal to these."""
        key = (places, id(signing), id(tls))  # shared, so that their identity tells them apart
        kept: Needs | None = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = Needs(places, signing, tls)
        return kept

    def still(self, needs: Needs) -> bool:
        """Tell whether secrets and certificates are what they were in an earlier load."""
        known = self._still.get(needs)
        if known is None:
            known = self._still[needs] = self._keys_of(needs) and not self.tls_problems(needs.tls)
        return known

    def _keys_of(self, needs: Needs) -> bool:
        signing = needs.signing
        try:
            return signing.keys == tuple(
                self.keyring.key(place, signing.scheme) for place in needs.places
            )
        except ValueError:
            return False

    def tls_problems(self, tls: TlsFiles) -> Mapping[str, str]:
        """Return what is wrong with PEM files, by field."""
        if tls not in self._tls_problems:
            self._tls_problems[tls] = tls_problems(tls, self._files)
        return self._tls_problems[tls]


class Builder:
    """Builds the subscriptions of one document; what is wrong goes into its report."""

    def __init__(
        self, parts: Parts, defaults: PolicyModel, folder: FilePath, report: Report
    ) -> None:
        """Take the document's defaults, and the folder that relative paths start from."""
        self._parts = parts
        self._defaults = Layer(defaults, ("defaults",))
        self._folder = folder
        self._report = report
        self._usual_retry = self._merged_retry(self._defaults)
        self._usual_headers = self._merged_headers({})

    def build(self, entry: SubscriptionModel, where: Path) -> Built:
        """Return the subscription of an entry; not to be used where it added problems to the report."""
        own = Layer(entry, where)
        plain = {
            name: getattr(layer.model, name)
            for layer in (self._defaults, own)
            for name in layer.model.model_fields_set & _PLAIN
        }
        signing, places = self._signing(own)
        tls = self._tls(own)
        headers = self._headers(entry)
        subscription = Subscription(
            id=sys.intern(entry.id),
            event_types=self._event_types(own),
            targets=self._targets(entry, where, headers),
            signing=signing,
            headers=headers,
            retry=self._retry(own),
            tls=tls,
            **{name: _interned(value) for name, value in plain.items()},
        )
        return Built(subscription, self._parts.needs(places, signing, tls))

    def _nested(self, name: str, own: Layer) -> dict[str, Placed]:
        return {**self._defaults.nested(name), **own.nested(name)}

    def _event_types(self, own: Layer) -> tuple[str, ...]:
        patterns = own.model.event_types or self._defaults.model.event_types
        if not patterns:
            self._report.add((*own.where, "event_types"), "is required, here or in defaults")
        return self._parts.shared(tuple(map(sys.intern, patterns)))

    def _targets(
        self, entry: SubscriptionModel, where: Path, headers: Mapping[str, str]
    ) -> tuple[Target, ...]:
        seen: set[str] = set()
        authorized = any(name.lower() == "authorization" for name in headers)
        for index, target in enumerate(entry.targets):
            place = (*where, "targets", index, "url")
            if target.url in seen:
                self._report.add(place, "stands twice in this subscription; use weight")
            if target.url.startswith("http:") and not self._parts.allow_http:
                self._report.add(place, "must be https; DISPATCHER_ALLOW_HTTP=true allows http")
            if authorized and values.has_userinfo(target.url):
                self._report.add(
                    place, "must hold no user or password beside the header Authorization"
                )
            seen.add(target.url)
        if not any(target.weight for target in entry.targets if not target.backup):
            self._report.warn(
                (*where, "targets"), "have no weight above 0 outside of backups: all are drained"
            )
        return tuple(
            Target(target.url, target.weight, target.max_in_flight, target.backup)
            for target in entry.targets
        )

    def _signing(self, own: Layer) -> tuple[Signing, tuple[Place, ...]]:
        place = (*own.where, "signing")
        base, written = self._defaults.nested("signing"), own.nested("signing")
        given = {**base, **written}
        scheme = _scheme(given)
        if scheme is not _scheme(base) and "secrets" not in written:
            given.pop("secrets", None)
        secrets = given.get("secrets", Placed([], place))
        if scheme is Scheme.NONE:
            if secrets.value:
                self._report.add(secrets.where, "must be empty with the scheme none")
            return self._parts.shared(Signing(scheme)), ()
        if not secrets.value:
            self._report.add(place, "needs secrets; the scheme none sends unsigned requests")
        places = tuple(map(self._place, secrets.value))
        keys = self._keys(places, scheme, secrets.where)
        return self._parts.shared(Signing(scheme, keys)), places

    def _place(self, secret: SecretModel) -> Place:
        return secret.env or self._folder / (secret.file or "")

    def _keys(self, places: Sequence[Place], scheme: Scheme, where: Path) -> tuple[bytes, ...]:
        keys = []
        for index, place in enumerate(places):
            source = (*where, index, "env" if isinstance(place, str) else "file")
            try:
                keys.append(self._parts.keyring.key(place, scheme))
            except ValueError as error:
                self._report.add(source, str(error))
            else:
                if warning := key_warning(keys[-1], scheme):
                    self._report.warn(source, warning)
        return tuple(keys)

    def _headers(self, entry: SubscriptionModel) -> Mapping[str, str]:
        return self._merged_headers(entry.headers) if entry.headers else self._usual_headers

    def _merged_headers(self, own: Mapping[str, str | None]) -> Mapping[str, str]:
        named: dict[str, tuple[str, str | None]] = {}
        for headers in (self._defaults.model.headers, own):
            named |= {name.lower(): (name, value) for name, value in headers.items()}
        return self._parts.shared_headers(
            {name: value for name, value in named.values() if value is not None}
        )

    def _retry(self, own: Layer) -> RetryPolicy:
        return self._merged_retry(own) if own.sets("retry") else self._usual_retry

    def _merged_retry(self, own: Layer) -> RetryPolicy:
        given = self._nested("retry", own)
        return self._parts.shared(RetryPolicy(**{name: item.value for name, item in given.items()}))

    def _tls(self, own: Layer) -> TlsFiles:
        given = {name: item for name, item in self._nested("tls", own).items() if item.value}
        if not given:
            return _NO_TLS
        tls = TlsFiles(**{name: str(self._folder / item.value) for name, item in given.items()})
        for name, message in self._parts.tls_problems(tls).items():
            self._report.add(given[name].where, message)
        return self._parts.shared(tls)


def _interned(value: Any) -> Any:
    return sys.intern(value) if type(value) is str else value


def _scheme(given: Mapping[str, Placed]) -> Scheme:
    scheme: Scheme = given["scheme"].value if "scheme" in given else Scheme.STANDARD
    return scheme
