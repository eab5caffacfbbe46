"""Filters: CEL expressions that narrow a subscription down to some of its events.

A filter sees two variables: `data`, the event's data as parsed JSON, and `event`, a map of texts with
the keys `id`, `type`, `source`, `subject`, `time` and `tenant` (an empty text where the event has
none; `time` in RFC 3339, so `timestamp(event.time)` makes an instant of it).  The law here: a filter
never raises and never matches by accident.  Whatever cannot be evaluated is `Undecided`, which counts
as no match.

Comparisons mix whole and fractional numbers as one expects; arithmetic does not (write
`double(data.amount) * 1.5`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from service.core.event import Event
from service.errors import ConfigurationError

MAX_ELEMENTS = 1000
"""Longest list or map in the data of an event that a filter with a loop is tried on.

The evaluator stops a loop after 10,000 steps, but a step over a list costs by the list's length (`map`
and `filter` copy what they have so far): 5,000 elements would already take half a second.
"""

_LOOP = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
_COMPILE_ERROR = re.compile(r"<input>:(\d+):(\d+): (.*)")
_NO_CONTAINER = " (in container '')"
_MISSING_KEY = re.compile(r'Key not found in map : "(.*)"')
_SAFE_MESSAGE = re.compile(
    r"No matching overloads found : .*|Iteration budget exceeded|integer overflow|"
    r"(?:divide|modulus) by zero|Applying SELECT to non-message type"
)


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """The library: its environment with our two variables, and the types of results."""

    environment: Any
    types: Any


@cache
def _evaluator() -> _Evaluator:
    """Load the library with the first filter: 6 MiB that a process without filters does not need."""
    from cel_expr_python import cel  # type: ignore[import-untyped]  # noqa: PLC0415

    told = {"data": cel.Type.DYN, "event": cel.Type.Map(cel.Type.STRING, cel.Type.STRING)}
    return _Evaluator(cel.NewEnv(variables=told), cel.Type)


class FilterError(ConfigurationError):
    """An expression is not a filter; the message names line and column within it."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled expression; `loops` tells that it goes through lists or maps."""

    text: str
    expression: Any = field(repr=False, compare=False)
    loops: bool = False


@dataclass(frozen=True, slots=True)
class Undecided:
    """A filter could not say yes or no about an event; `detail` says why, without event data."""

    detail: str


@lru_cache(maxsize=20_000)
def compile_filter(text: str) -> Filter:
    """Compile an expression; the same text is compiled once while it is in use.

    The cache bounds memory at some 80 MB; a text beyond it is compiled anew (some 70 µs).
    Raises `FilterError`.
    """
    evaluator = _evaluator()
    try:
        expression = evaluator.environment.compile(text)
    except RuntimeError as error:
        raise FilterError(_compile_message(str(error))) from None
    result = expression.return_type()
    if result not in (evaluator.types.BOOL, evaluator.types.DYN):
        raise FilterError(f"must be true or false, but its result is {result.name().lower()}")
    return Filter(text, expression, loops=_LOOP.search(text) is not None)


class FilterInput:
    """One event as all filters see it: converted once, each expression evaluated once."""

    def __init__(self, event: Event, data: object) -> None:
        """Take the event and its data as parsed JSON."""
        self._data = data
        self._too_long = len(event.data) > 2 * MAX_ELEMENTS and _has_long_collection(data)
        self._types = _evaluator().types
        self._activation = _evaluator().environment.Activation(
            {"data": data, "event": _attributes(event)}
        )
        self._verdicts: dict[str, bool | Undecided] = {}

    def verdict(self, chosen: Filter) -> bool | Undecided:
        """Say whether the event passes; never raises."""
        known = self._verdicts.get(chosen.text)
        if known is None:
            known = self._verdicts[chosen.text] = self._evaluate(chosen)
        return known

    def _evaluate(self, chosen: Filter) -> bool | Undecided:
        if chosen.loops and self._too_long:
            return Undecided(f"the data has a list or map of more than {MAX_ELEMENTS} elements")
        try:
            value = chosen.expression.eval(self._activation)
        except RuntimeError as error:  # the evaluator gave up: too many steps
            return Undecided(_run_message(str(error), chosen.text))
        kind = value.type()
        if kind == self._types.BOOL:
            return value.value() is True
        if kind == self._types.ERROR:
            return Undecided(_run_message(str(value.value()), chosen.text))
        return Undecided(f"the result is {kind.name().lower()}, not true or false")


def _attributes(event: Event) -> Mapping[str, str]:
    return {
        "id": event.id,
        "type": event.type,
        "source": event.source,
        "subject": event.subject or "",
        "time": event.time,
        "tenant": event.tenant or "",
    }


def _has_long_collection(data: object) -> bool:
    """Tell whether any list or map is over the bound; without recursion, for data nested deeply."""
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            children = list(value.values())
        elif isinstance(value, list):
            children = value
        else:
            continue
        if len(children) > MAX_ELEMENTS:
            return True
        pending.extend(children)
    return False


def _compile_message(text: str) -> str:
    """Make one line of what the compiler says: `line 1, column 5: undeclared reference to 'x'`."""
    first = _COMPILE_ERROR.search(text)
    if first is None:
        return _shortened(text.removeprefix("INVALID_ARGUMENT: ").split("\n")[0])
    line, column, message = first.groups()
    message = message.split(" expecting {")[0].removesuffix(" [INVALID_ARGUMENT]")
    return _shortened(f"line {line}, column {column}: {message.replace(_NO_CONTAINER, '')}")


def _run_message(text: str, expression: str) -> str:
    """Say why in words that cannot quote the event's data: only known messages pass as they are."""
    if (missing := _MISSING_KEY.search(text)) is not None:
        key = missing.group(1)
        return f"the key {key!r} is missing" if key in expression else "a key is missing"
    if (known := _SAFE_MESSAGE.search(text)) is not None:
        return _shortened(known.group())
    return f"cannot be evaluated ({text.split(':', maxsplit=1)[0]})"


def _shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
