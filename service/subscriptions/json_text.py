"""Reads JSON: values at the speed of the standard library's scanner, and lines on demand.

Stricter than JSON's grammar where a file is likely wrong: a key may stand once in a map.  Very many
entries are not turned into values together: an `Outline` finds where each stands, and reads it when it is
asked for.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from service.subscriptions.malformed import Malformed
from service.subscriptions.pace import Step, hurry
from service.subscriptions.problems import Path

_SPACE = re.compile(r"[ \t\n\r]*")
_SKIPPING = json.JSONDecoder(parse_int=str)


def read(text: str) -> object:
    """Parse a JSON text.  Raises `Malformed`."""
    if not text.strip():
        raise Malformed('is empty; write {"subscriptions": []} for no subscriptions', 1)
    strict = _Strict()
    value = _parsed(text, strict.decoder)
    if strict.doubled:
        raise _twice(text, value, {id(made) for made in strict.doubled})
    return value


def lines(text: str, paths: Iterable[Path]) -> Mapping[Path, int]:
    """Return the line of each place, or of the nearest place around it, in a well-formed text."""
    return {path: _line(text, _position(text, path)) for path in paths}


class _Strict:
    """A decoder that notes maps in which a key stands twice."""

    def __init__(self) -> None:
        self.doubled: list[dict[str, object]] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._as_map, parse_int=_whole, parse_constant=_no_constant
        )

    def _as_map(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) != len(pairs):
            self.doubled.append(made)
        return made


class Outline:
    """A map whose member `subscriptions` is a list, and where the entries of that list stand.

    `outer` is the map with an empty list in that place, `frame` the text around the entries.
    """

    def __init__(self, text: str, step: Step = hurry) -> None:
        """Find the entries; raises `ValueError`, `IndexError` or `RecursionError` for another text."""
        self.outer: dict[str, object] = {}
        self._text = text
        self._step = step
        self._starts, self._ends = array("q"), array("q")
        self._strict = _Strict()
        self._scan()
        first, end = (self._starts[0], self._ends[-1]) if self._starts else (len(text), len(text))
        self.frame = text[:first] + text[end:]

    @classmethod
    def of(cls, text: str, step: Step = hurry) -> Self | None:
        """Return the outline; None where the text is something else, or no JSON: `read` tells what."""
        try:
            return cls(text, step)
        except (ValueError, IndexError, RecursionError, Malformed):
            return None

    def __len__(self) -> int:
        return len(self._starts)

    def written(self, index: int) -> str:
        """Return the text of an entry."""
        return self._text[self._starts[index] : self._ends[index]]

    def value(self, index: int) -> object:
        """Parse an entry; raises `Malformed`."""
        value, _ = self._strict.decoder.raw_decode(self._text, self._starts[index])
        if self._strict.doubled:
            read(self._text)  # says where
        return value

    def _scan(self) -> None:
        position = self._after(_skip_space(self._text, 0), "{")
        while True:
            position = _skip_space(self._text, self._member(position))
            if self._text[position] == "}":
                break
            position = self._after(position, ",")
        if _skip_space(self._text, position + 1) != len(self._text):
            raise ValueError("more than one value")
        if self._strict.doubled or self.outer.get("subscriptions") != []:
            raise ValueError("a key stands twice, or there is no list of subscriptions")

    def _member(self, position: int) -> int:
        """Read a member of the map; returns where it ends."""
        name, position = self._strict.decoder.raw_decode(self._text, position)
        if not isinstance(name, str) or name in self.outer:
            raise ValueError("not a key, or not for the first time")
        position = self._after(_skip_space(self._text, position), ":")
        if name == "subscriptions" and self._text[position] == "[":
            self.outer[name] = []
            return self._entries(position)
        self.outer[name], position = self._strict.decoder.raw_decode(self._text, position)
        return position

    def _entries(self, position: int) -> int:
        """Note where each element of a list stands; returns where the list ends."""
        position = self._after(position, "[")
        if self._text[position] == "]":
            return position + 1
        while True:
            self._step()
            self._starts.append(position)
            _, position = _SKIPPING.raw_decode(self._text, position)
            self._ends.append(position)
            position = _skip_space(self._text, position)
            if self._text[position] == "]":
                return position + 1
            position = self._after(position, ",")

    def _after(self, position: int, sign: str) -> int:
        """Return where something stands after a sign; raises `ValueError` where the sign is not there."""
        if self._text[position] != sign:
            raise ValueError(f"no {sign}")
        return _skip_space(self._text, position + 1)


def _parsed(text: str, decoder: json.JSONDecoder) -> object:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"is not JSON: {error.msg}", error.lineno) from None
    except RecursionError:
        raise Malformed("is nested too deeply", None) from None


def _whole(digits: str) -> int | float:
    """Return a number; one that no field takes is not worth the time that its digits cost."""
    return int(digits) if len(digits) < 20 else float(digits)


def _no_constant(name: str) -> float:
    raise Malformed(f"is not JSON: {name} is not a number", None)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _position(text: str, path: Path) -> int:
    """Return where a place starts: a member of a map at its key."""
    shown = value = _skip_space(text, 0)
    for step in path:
        for name, key_start, value_start in _members(text, value):
            if name == step:
                shown, value = key_start, value_start
                break
        else:
            break
    return shown


def _members(text: str, start: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield name or index, start and value's start of what stands in the list or map at `start`."""
    opening, position, index = text[start], _skip_space(text, start + 1), 0
    while opening in "[{" and text[position] not in "]}":
        name: str | int = index
        value = position
        if opening == "{":
            name, end = _SKIPPING.raw_decode(text, position)
            value = _skip_space(text, _skip_space(text, end) + 1)
        yield name, position, value
        _, end = _SKIPPING.raw_decode(text, value)
        position = _skip_space(text, end)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
        index += 1


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _twice(text: str, value: object, doubled: set[int]) -> Malformed:
    """Find the outermost such map in the document, and the second of two equal keys in it."""
    path = next(path for path, found in _maps((), value) if id(found) in doubled)
    seen: set[str | int] = set()
    for name, start, _ in _members(text, _value_position(text, path)):
        if name in seen:
            return Malformed(f"{name!r} stands twice in this map", _line(text, start), path)
        seen.add(name)
    return Malformed("a key stands twice in this map", None, path)


def _maps(path: Path, value: object) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from _maps((*path, key), child)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _maps((*path, index), child)


def _value_position(text: str, path: Path) -> int:
    position = _skip_space(text, 0)
    for step in path:
        position = next(start for name, _, start in _members(text, position) if name == step)
    return position
