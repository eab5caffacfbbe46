"""A document: the values of a YAML or JSON file, and the lines where they stand.

Values are read fast; lines are looked up by reading the text again, which only an error asks for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from service.subscriptions import json_text, yaml_text
from service.subscriptions.malformed import Malformed
from service.subscriptions.problems import Path

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed `value` of the file called `name`."""

    name: str
    text: str = field(repr=False)
    value: object = field(repr=False)

    def lines(self, paths: Iterable[Path]) -> Mapping[Path, int]:
        """Return the line, from 1, of each place, or of the nearest place around it."""
        if self.name.endswith(".json"):
            return json_text.lines(self.text, paths)
        return yaml_text.lines(self.text, paths)


def parse(name: str, content: bytes) -> Document:
    """Read the bytes of a file, as JSON if its name says so, as YAML otherwise.

    Raises `Malformed` for bytes that are not UTF-8 text, and for text that is not such a document.
    """
    text = _text(content)
    read = json_text.read if name.endswith(".json") else yaml_text.read
    return Document(name, text, read(text))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Malformed("is not UTF-8 text", line) from None
