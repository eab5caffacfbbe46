"""A document: the values of a YAML or JSON file, and the lines where they stand.

Values are read fast; lines are looked up by reading the text again, which only an error asks for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.subscriptions import json_text, yaml_text
from service.subscriptions.malformed import Malformed
from service.subscriptions.pace import Step, hurry
from service.subscriptions.problems import Path

SUFFIXES = (".yaml", ".yml", ".json")


class Entries(Protocol):
    """The elements of the list `subscriptions`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def written(self, index: int) -> str | None:
        """Return the text of an element, None where it cannot be told."""

    def value(self, index: int) -> object:
        """Return the value of an element, once; raises `Malformed`."""


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed file called `name`: its `entries`, and `outer`, the value without them.

    `frame` is the text around the entries where `Entries.written` tells theirs.
    """

    name: str
    text: str = field(repr=False)
    outer: object = field(repr=False)
    entries: Entries = field(repr=False)
    frame: str = field(default="", repr=False)

    def lines(self, paths: Iterable[Path]) -> Mapping[Path, int]:
        """Return the line, from 1, of each place, or of the nearest place around it."""
        if self.name.endswith(".json"):
            return json_text.lines(self.text, paths)
        return yaml_text.lines(self.text, paths)


def parse(name: str, content: bytes, step: Step = hurry) -> Document:
    """Read the bytes of a file, as JSON if its name says so, as YAML otherwise.

    Raises `Malformed` for bytes that are not UTF-8 text, and for text that is not such a document.
    """
    text = _text(content)
    if not name.endswith(".json"):
        return _whole(name, text, yaml_text.read(text))
    outline = json_text.Outline.of(text, step)
    if outline is None:
        return _whole(name, text, json_text.read(text))
    return Document(name, text, outline.outer, outline, outline.frame)


class _Values:
    """Entries that were all parsed together."""

    def __init__(self, values: list[object]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def written(self, _: int) -> None:
        """Tell nothing."""

    def value(self, index: int) -> object:
        """Return the value of an element and forget it: its memory is needed for the next."""
        value, self._values[index] = self._values[index], None
        return value


def _whole(name: str, text: str, value: object) -> Document:
    entries = value.get("subscriptions") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(entries, list):
        return Document(name, text, value, _Values([]))
    return Document(name, text, {**value, "subscriptions": []}, _Values(entries))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Malformed("is not UTF-8 text", line) from None
