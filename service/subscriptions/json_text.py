"""Reads JSON: values at the speed of the standard library's scanner, and lines on demand.

Stricter than JSON's grammar where a file is likely wrong: a key may stand once in a map.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from service.subscriptions.malformed import Malformed
from service.subscriptions.problems import Path

_SPACE = re.compile(r"[ \t\n\r]*")
_SKIPPING = json.JSONDecoder(parse_int=str)


def read(text: str) -> object:
    """Parse a JSON text.  Raises `Malformed`."""
    if not text.strip():
        raise Malformed('is empty; write {"subscriptions": []} for no subscriptions', 1)
    doubled: list[dict[str, object]] = []

    def as_map(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) != len(pairs):
            doubled.append(made)
        return made

    value = _parsed(
        text,
        json.JSONDecoder(object_pairs_hook=as_map, parse_int=_whole, parse_constant=_no_constant),
    )
    if doubled:
        raise _twice(text, value, {id(made) for made in doubled})
    return value


def lines(text: str, paths: Iterable[Path]) -> Mapping[Path, int]:
    """Return the line of each place, or of the nearest place around it, in a well-formed text."""
    return {path: _line(text, _position(text, path)) for path in paths}


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
