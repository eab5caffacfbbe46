"""The files of `k8s/monitoring`, and what is said in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.catalogue import CATALOGUE
from service.line_schema import json_schema

FOLDER = Path(__file__).parent.parent.parent / "k8s" / "monitoring"
LOKI_ALERTS = (FOLDER / "loki" / "alerts.yaml").read_text()
LOKI_RECORDINGS = (FOLDER / "loki" / "recordings.yaml").read_text()
PROMETHEUS = FOLDER / "prometheus" / "rules.yaml"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "dashboard.json").read_text())
ALLOY = (FOLDER / "alloy" / "config.alloy").read_text()
VECTOR: dict[str, Any] = yaml.safe_load((FOLDER / "vector" / "vector.yaml").read_text())
RUNBOOK = (FOLDER / "RUNBOOK.md").read_text()

STREAM_LABELS = {"namespace", "service_name", "level"}
METADATA = {"pod", "trace_id", "span_id"}
SCHEMAS = {event.name: json_schema(event) for event in CATALOGUE}

_PICKED = re.compile(r'"message":"([a-z_.]+)("?)')
_SELECTOR = re.compile(r'\{([^{}]*service_name="webhook-dispatcher"[^{}]*)\}')
_PARSER = re.compile(r"\| json ((?:[\w.]+(?:=\"(?:[^\"\\]|\\.)*\")?(?:, )?)+)")
_MATCHER = re.compile(r'\b(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')


def rules(text: str) -> list[dict[str, Any]]:
    """Return the rules of a file, of all groups."""
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str, bool]]:
    """Return each query of the dashboard: the panel's title, the query, whether it is an instant one."""
    return [
        (panel["title"], target["expr"], target["queryType"] == "instant")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


def filled_in(query: str, auto: str, whole: str) -> str:
    """Return a dashboard's query as Grafana sends it, with its variables at their defaults."""
    for name, value in (
        ("$__auto", auto),
        ("$__range", whole),
        ("$namespace", ".+"),
        ("$subscription", ".*"),
        ("$target", ".*"),
    ):
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


@dataclass(frozen=True, slots=True)
class Selection:
    """A stream selector with its line filters and parser: what it picks, and what it reads from it."""

    labels: dict[str, tuple[str, str]]
    messages: frozenset[str]
    fields: dict[str, str]
    """The name in the query, and the name in the line."""
    matchers: list[tuple[str, str, str]]


def selections(query: str) -> Iterator[Selection]:
    """Yield what each part of a query reads.  Fails on a message that the catalogue does not have."""
    starts = [found.start() for found in _SELECTOR.finditer(query)]
    assert starts, query
    for start, end in zip(starts, [*starts[1:], len(query)], strict=True):
        part = query[start:end]
        selector = _SELECTOR.match(part)
        assert selector is not None
        labels = {name: (how, value) for name, how, value in _MATCHER.findall(selector[1])}
        rest = part[selector.end() :]
        parser = _PARSER.search(rest)
        after = rest[parser.end() :] if parser else ""
        yield Selection(
            labels, _messages(rest), _fields(parser[1] if parser else ""), _MATCHER.findall(after)
        )


def _messages(text: str) -> frozenset[str]:
    picked: set[str] = set()
    for name, closed in _PICKED.findall(text):
        found = {one for one in SCHEMAS if one == name or (not closed and one.startswith(name))}
        assert found, f"no line has the message {name}"
        picked |= found
    return frozenset(picked)


def _fields(text: str) -> dict[str, str]:
    fields = {}
    for one in re.findall(r'([\w.]+)(?:="((?:[^"\\]|\\.)*)")?', text):
        name, path = one
        fields[name] = path.removeprefix('[\\"').removesuffix('\\"]') if path else name
    return fields
