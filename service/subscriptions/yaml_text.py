"""Reads YAML as a stream of events: values, and lines on demand.

The core schema of YAML 1.2 decides what a plain word means, so that `no` is a text and not false.
Building from events keeps hostile files harmless: depth is bounded, and an alias shares the value it
names instead of copying it.  Stricter than YAML's grammar: a key may stand once in a map, and tags and
merge keys are refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from service.subscriptions.malformed import MAX_DEPTH, Malformed
from service.subscriptions.problems import Path

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,18}(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
_TEXT_TAG = "tag:yaml.org,2002:str"


def read(text: str) -> object:
    """Parse a YAML text that holds one document.  Raises `Malformed`."""
    builder = _Builder()
    for event in _events(text):
        builder.take(event)
    if builder.empty:
        raise Malformed("is empty; write `subscriptions: []` for no subscriptions", 1)
    return builder.root


def lines(text: str, paths: Iterable[Path]) -> Mapping[Path, int]:
    """Return the line of each place, or of the nearest place around it, in a well-formed text."""
    wanted = list(paths)
    places = {path[:length] for path in wanted for length in range(len(path) + 1)}
    builder = _Builder(places)
    for event in _events(text):
        builder.take(event)
    return {path: _nearest(builder.lines, path) for path in wanted}


def _nearest(known: Mapping[Path, int], path: Path) -> int:
    while path and path not in known:
        path = path[:-1]
    return known.get(path, 1)


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise Malformed(f"is not YAML: {error.problem}", line) from None
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        raise Malformed("is not YAML: control characters are not allowed", line) from None


@dataclass(slots=True)
class _Open:
    """A map or list whose end has not come yet; `key` waits for its value."""

    path: Path
    value: dict[str, object] | list[object]
    key: str | None = None
    key_line: int = 0
    anchor: str | None = None


@dataclass(slots=True)
class _Builder:
    """Puts values together; notes the lines of the `wanted` places."""

    wanted: frozenset[Path] | set[Path] = frozenset()
    lines: dict[Path, int] = field(default_factory=dict)
    root: object = None
    empty: bool = True
    _open: list[_Open] = field(default_factory=list)
    _anchors: dict[str, object] = field(default_factory=dict)
    _documents: int = 0

    def take(self, event: yaml.Event) -> None:
        """Take the next event of the stream."""
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._start(event, {})
            case yaml.SequenceStartEvent():
                self._start(event, [])
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                self._place(self._alias(event), _line(event))
            case yaml.DocumentStartEvent():
                self._document(event)

    def _document(self, event: yaml.Event) -> None:
        self._documents += 1
        if self._documents > 1:
            raise Malformed("holds more than one document (---)", _line(event))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        line = _line(event)
        if event.tag is not None and event.tag != _TEXT_TAG:
            raise Malformed("tags are not supported", line, self._here())
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            self._key(event.value, line)
            return
        value = _plain(event.value) if event.implicit[0] and event.tag is None else event.value
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        if not self._open and value is None:
            return  # a document of comments only
        self._place(value, line)

    def _key(self, key: str, line: int) -> None:
        top = self._open[-1]
        if key in top.value:
            raise Malformed(f"{key!r} stands twice in this map", line, top.path)
        if key == "<<":
            raise Malformed("merge keys (<<) are not supported; use defaults", line, top.path)
        top.key, top.key_line = key, line

    def _start(
        self, event: yaml.CollectionStartEvent, value: dict[str, object] | list[object]
    ) -> None:
        line = _line(event)
        if event.tag is not None:
            raise Malformed("tags are not supported", line, self._here())
        if len(self._open) >= MAX_DEPTH:
            raise Malformed("is nested too deeply", line)
        path = self._here()
        self._place(value, line, keep_key=True)
        self._open.append(_Open(path, value, anchor=event.anchor))

    def _end(self) -> None:
        closed = self._open.pop()
        if closed.anchor is not None:  # only now, so that no value can contain itself
            self._anchors[closed.anchor] = closed.value
        if self._open:
            self._open[-1].key = None

    def _alias(self, event: yaml.AliasEvent) -> object:
        if event.anchor not in self._anchors:
            raise Malformed(
                "an alias (*) must name an anchor (&) before it", _line(event), self._here()
            )
        return self._anchors[event.anchor]

    def _here(self) -> Path:
        """Return the place of the value that comes next."""
        if not self._open:
            return ()
        top = self._open[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return top.path if top.key is None else (*top.path, top.key)

    def _place(self, value: object, line: int, *, keep_key: bool = False) -> None:
        """Put a value where it belongs; the key of a map or list still open names its path."""
        if not self._open:
            self.root, self.empty = value, False
            return
        top = self._open[-1]
        if self.wanted and (path := self._here()) in self.wanted:
            self.lines[path] = top.key_line if isinstance(top.value, dict) else line
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            raise Malformed("a key must be a text", line, top.path)
        else:
            top.value[top.key] = value
            top.key = top.key if keep_key else None


def _plain(word: str) -> object:
    """Return what a word without quotes means in YAML 1.2's core schema."""
    if word in _NULL:
        return None
    if word in _BOOL:
        return _BOOL[word]
    if _INT.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word):
        return float(word)
    return word


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return 1 if mark is None else mark.line + 1
