"""Event data schemas: what producers promise about `data`, one JSON Schema file for each event type.

A folder holds `<type>.json` files in JSON Schema 2020-12; an event whose type has no file passes.
The laws here: a broken schema is found when the folder is loaded, never when an event comes; nothing
is fetched, from the network or from other files; and a violation is told by path and rule, never by
the value, because it is logged and event data must not be.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Never, Self

import jsonschema_rs

import service
from service.core.decode import parse_json
from service.errors import ConfigurationError, EventRejected

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

PACKAGED: Final = Path(service.__file__).parent.parent / "schemas" / "events"
"""The folder that is used where the operator names none."""

_MAX_PATH: Final = 200
_MAX_MESSAGE: Final = 300
_MASK: Final = "the value"
_KEYWORDS_THAT_QUOTE_KEYS: Final = frozenset(
    ("additionalProperties", "unevaluatedProperties", "unevaluatedItems", "propertyNames")
)


class EventSchemas:
    """Compiled schemas by event type; immutable."""

    __slots__ = ("_validators",)

    def __init__(self, validators: Mapping[str, jsonschema_rs.Draft202012Validator]) -> None:
        self._validators = dict(validators)

    @classmethod
    def load(cls, folder: Path = PACKAGED) -> Self:
        """Compile every `<type>.json` of a folder; hidden files and subfolders are passed over.

        Raises ConfigurationError that names each file that cannot be used, and its problem.
        """
        try:
            files = sorted(
                path
                for path in folder.iterdir()
                if path.suffix == ".json" and not path.name.startswith(".") and path.is_file()
            )
        except OSError as error:
            raise ConfigurationError(f"event schemas: {folder}: {error.strerror}") from None
        validators, problems = {}, []
        for path in files:
            try:
                validators[path.stem] = _compiled(path)
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError("\n".join(problems))
        return cls(validators)

    @property
    def types(self) -> tuple[str, ...]:
        """The event types that have a schema, sorted."""
        return tuple(sorted(self._validators))

    def check(self, event_type: str, data: object) -> None:
        """Raise EventRejected `schema_violation` where the data breaks its type's schema.

        The detail has the JSONPath of the first violation and the rule, at most some 500 characters,
        and none of the data's values.
        """
        validator = self._validators.get(event_type)
        if validator is None:
            return
        try:
            # Not `iter_errors`: that makes all of them first, each with a copy of what it is about.
            validator.validate(data)
        except jsonschema_rs.ValidationError as error:
            detail = f"{_path(error.instance_path)}: {_rule(error)}"
            raise EventRejected("schema_violation", detail) from None


def _compiled(path: Path) -> jsonschema_rs.Draft202012Validator:
    try:
        schema = parse_json(path.read_bytes())
    except EventRejected as error:
        raise ConfigurationError(f"{path}: is not strict JSON: {error.detail}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(schema, dict):
        raise ConfigurationError(f"{path}: a schema is a JSON object")
    if schema.get("$schema", DRAFT) != DRAFT:
        raise ConfigurationError(f"{path}: $schema: only {DRAFT} is supported")
    try:
        return jsonschema_rs.Draft202012Validator(
            schema, mask=_MASK, validate_formats=True, retriever=_refuse
        )
    except jsonschema_rs.ValidationError as error:
        raise ConfigurationError(
            f"{path}: {_path(error.instance_path)}: {_bounded(error.message)}"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: {_bounded(str(error))}") from None


def _refuse(uri: str, /) -> Never:
    raise ValueError(f"{uri} is outside of the file: put it under $defs")


def _rule(error: jsonschema_rs.ValidationError) -> str:
    """Return which rule is broken, from the schema's side; keys of a map can be data as well."""
    keyword = error.kind.name
    if keyword in _KEYWORDS_THAT_QUOTE_KEYS:
        return f"{_MASK} has members that {keyword} does not allow"
    return _bounded(error.message)


def _path(parts: list[str | int]) -> str:
    """Return the JSONPath (RFC 9535) of a place, cut off where it gets long."""
    path = "$"
    for part in parts:
        if isinstance(part, str) and part.isidentifier():
            path += f".{part}"
        else:
            path += f"[{part!r}]"
    return path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}…"


def _bounded(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"
