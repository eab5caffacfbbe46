"""What a kind of log line is, and the JSON Schema and the page that are made from it.

Which kinds there are is `service.catalogue`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

SERVICE: Final = "webhook-dispatcher"
LEFT_OUT: Final = "left_out"
LINES: Final = 10
"""Lines a minute about one thing that flaps."""


@dataclass(frozen=True, slots=True)
class Flapping:
    """A kind that others can cause as often as they like: its lines are bounded.

    At most `lines` a minute are written for each `about` and value of the fields in `key`.  Kinds whose
    last word counts together (out of the rotation, back in it) share an `about`.
    """

    about: str
    key: tuple[str, ...] = ()
    lines: int = LINES


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One kind of line: its level, when it is written, what an operator does, and its fields."""

    name: str
    level: str
    when: str
    action: str
    required: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    flaps: Flapping | None = None


def text(description: str) -> dict[str, Any]:
    """Describe a field that is text."""
    return {"type": "string", "description": description}


def maybe_text(description: str) -> dict[str, Any]:
    """Describe a field that is text or null."""
    return {"type": ["string", "null"], "description": description}


def count(description: str) -> dict[str, Any]:
    """Describe a field that is a whole number from 0."""
    return {"type": "integer", "minimum": 0, "description": description}


def number(description: str) -> dict[str, Any]:
    """Describe a field that is a number."""
    return {"type": "number", "description": description}


def flag(description: str) -> dict[str, Any]:
    """Describe a field that is true or false."""
    return {"type": "boolean", "description": description}


def time(description: str) -> dict[str, Any]:
    """Describe a field that is a moment, as RFC 3339 text."""
    return {"type": "string", "format": "date-time", "description": description}


_BASE = {
    "timestamp": time("When the line was written, UTC, in microseconds."),
    "level": {"enum": ["debug", "info", "warning", "error"], "description": "How bad it is."},
    "service": {"const": SERVICE, "description": "This program."},
    "version": text("This program's version."),
}


def json_schema(event: LogEvent) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one kind of line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SERVICE}:log:{event.name}",
        "title": event.name,
        "description": f"{event.when} What to do: {event.action}",
        "type": "object",
        "properties": {
            **_BASE,
            "level": {**_BASE["level"], "enum": [event.level]},
            "message": {"const": event.name},
            **event.required,
            **event.optional,
            **_left_out(event),
        },
        "required": [*_BASE, "message", *event.required],
        "additionalProperties": False,
    }


def _left_out(event: LogEvent) -> dict[str, Any]:
    if event.flaps is None:
        return {}
    told = (
        "How many such lines were left out since the one before:"
        f" more than {event.flaps.lines} came within a minute."
    )
    return {LEFT_OUT: count(told)}


def overview(events: Sequence[LogEvent]) -> str:
    """Return a page in Markdown about these kinds."""
    rows = [
        f"| `{e.name}` | {e.level} | {e.when} | {e.action} | {_field_list(e)} |" for e in events
    ]
    return "\n".join(
        [
            "# Log lines",
            "",
            "Generated from `service/catalogue.py`; one JSON Schema a line kind lies beside this page.",
            (
                f"Every line has {', '.join(f'`{name}`' for name in [*_BASE, 'message'])}; a field in"
                " brackets is not always there."
            ),
            "",
            (
                "A kind with [left_out] tells of what may flap. About one thing (a target, the broker) only"
                " some lines a minute are written; the next one tells how many were left out before it, and the"
                " last of them is always written, a minute later at the latest. All other kinds are written"
                " once for each thing that happens."
            ),
            "",
            "| message | level | written when | what to do | fields |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _field_list(event: LogEvent) -> str:
    optional = [*event.optional, *_left_out(event)]
    return ", ".join([*event.required, *(f"[{name}]" for name in optional)])


def write_schemas(events: Sequence[LogEvent], folder: Path) -> None:
    """Write one `<name>.json` per kind of line into the folder, and a page about them all."""
    for event in events:
        text = orjson.dumps(json_schema(event), option=orjson.OPT_INDENT_2)
        (folder / f"{event.name}.json").write_bytes(text + b"\n")
    (folder / "README.md").write_text(overview(events))
