"""What comes from producers and targets, made fit for a terminal.

The law: no character of theirs is obeyed by it; escape sequences and marks that turn the writing around
arrive as blanks in a table and as JSON's own escapes in JSON.
"""

import re
from typing import Any

import orjson


def blanked(text: str) -> str:
    """Return the text on one line, with a blank for each character that does not print."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else " " for mark in text)


def counted(count: int, what: str) -> str:
    """Return a number and what it counts, such as `1 dead letter`; `what` in the plural."""
    return f"{count} {what.removesuffix('s') if count == 1 else what}"


def json_text(value: Any, *, indent: bool = False) -> str:
    """Return JSON in which every character that does not print is escaped (RFC 8259, section 7)."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode()
    return text if text.isprintable() else re.sub(r"[^\n]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    mark = found[0]
    if mark.isprintable():
        return mark
    units = mark.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
