"""A reader of Alloy's configuration syntax, as much of it as our file uses, and a way from its stages to
Promtail's, which is where Alloy's come from: names and parameters are the same.

A stated check in place of Alloy's own parser, which is not published as a Go module that can be had.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

_TOKEN = re.compile(
    r"""\s+ | //[^\n]*
    | (?P<string>"(?:[^"\\\n]|\\.)*") | (?P<number>\d+(?:\.\d+)?) | (?P<word>[A-Za-z_][\w.]*)
    | (?P<mark>[{}\[\](),=])""",
    re.VERBOSE,
)
_PROMTAIL_NAMES = {"label_keep": "labelallow", "label_drop": "labeldrop"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that stands for another component's export, or a call of a function."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(slots=True)
class Block:
    """`name "label" { attributes and blocks }`."""

    name: str
    label: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    blocks: list["Block"] = field(default_factory=list)

    def all_values(self) -> list[Any]:
        """Return the values of all attributes, those of inner blocks too."""
        return [*self.attributes.values(), *(v for b in self.blocks for v in b.all_values())]


class SyntaxFault(ValueError):  # noqa: N818 - it is one, and reads better
    """The text is not Alloy's syntax, or not the part of it that is known here."""


def parse(text: str) -> list[Block]:
    """Return the blocks of a file.  Raises SyntaxFault."""
    reader = _Reader(text)
    blocks = []
    while reader.kind:
        blocks.append(reader.block())
    return blocks


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    @property
    def kind(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    @property
    def text(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def take(self, wanted: str) -> str:
        if wanted not in {self.kind, self.text}:
            raise SyntaxFault(f"{wanted} expected, not {self.text or 'the end'}")
        self._next += 1
        return self._tokens[self._next - 1][1]

    def block(self) -> Block:
        block = Block(self.take("word"))
        if self.kind == "string":
            block.label = self.value()
        self.take("{")
        while self.text != "}":
            if self._tokens[self._next + 1][1] == "=":
                name = self.take("word")
                self.take("=")
                block.attributes[name] = self.value()
            else:
                block.blocks.append(self.block())
        self.take("}")
        return block

    def value(self) -> Any:
        match self.kind, self.text:
            case "string", text:
                self._next += 1
                return yaml.safe_load(text)
            case "number", text:
                self._next += 1
                return float(text)
            case _, "[":
                return self._several("[", "]", self.value)
            case _, "{":
                return dict(self._several("{", "}", self._pair))
            case _:
                return self._named()

    def _named(self) -> Any:
        name = self.take("word")
        if self.text == "(":
            return Reference(name, tuple(self._several("(", ")", self.value)))
        return {"true": True, "false": False}.get(name, Reference(name))

    def _pair(self) -> tuple[str, Any]:
        name = self.value() if self.kind == "string" else self.take("word")
        self.take("=")
        return name, self.value()

    def _several(self, opening: str, closing: str, one: Any) -> list[Any]:
        self.take(opening)
        found = []
        while self.text != closing:
            found.append(one())
            if self.text != closing:
                self.take(",")
        self.take(closing)
        return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise SyntaxFault(f"not understood: {text[at : at + 20]!r}")
        at = found.end()
        if found.lastgroup:
            yield found.lastgroup, found.group()


def pipeline_stages(process: Block) -> str:
    """Return a `loki.process` block as the YAML of Promtail's `pipeline_stages`."""
    stages: str = yaml.safe_dump([_stage(block) for block in process.blocks], sort_keys=False)
    return stages


def _stage(block: Block) -> dict[str, Any]:
    name = block.name.removeprefix("stage.")
    config: Any = dict(block.attributes)
    if set(config) == {"values"}:  # Promtail writes such a stage without the word
        config = config["values"]
    return {_PROMTAIL_NAMES.get(name, name): config}
