"""The catalogue of log events: the law of what a line may say.

A line's `message` is one of the names below and its fields are those listed, each kind with a JSON
Schema in `schemas/log/` that is generated from here (`python -m service.catalogue DIR`).
Never in a line: secrets, signatures, URL userinfo, query values, event data.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from service.core.delivery import DeferCause, Reason

SERVICE = "webhook-dispatcher"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One kind of line: its level, when it is written, what an operator does, and its fields."""

    name: str
    level: str
    when: str
    action: str
    required: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    optional: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _maybe_text(description: str) -> dict[str, Any]:
    return {"type": ["string", "null"], "description": description}


def _count(description: str) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "number", "description": description}


def _time(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "date-time", "description": description}


_EVENT_FIELDS = {
    "event_id": _text("The event's id, as its producer gave it."),
    "event_type": _text("The event's type."),
}
_DELIVERY_FIELDS = {
    **_EVENT_FIELDS,
    "subscription_id": _text("The subscription that the delivery is for."),
}
_TRACE = {
    "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "W3C trace id."},
    "span_id": {
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
        "description": "The attempt's span.",
    },
}
_TENANT = {"tenant": _text("The event's tenant.")}
_ATTEMPT_FIELDS = {
    **_DELIVERY_FIELDS,
    "webhook_id": _text("The idempotency key that every attempt of this event carries."),
    "target": _text("The target's URL without userinfo and query."),
    "server.address": _text("The target's host."),
    "lane": {"enum": ["intake", "backlog"], "description": "The lane that the attempt ran in."},
    "round": _count("The round, from 1."),
    "attempt": _count("The attempt's number over all rounds, from 1."),
    "duration_ms": _number("From start to last byte, in milliseconds."),
    "age_ms": _number("From the event's time to the end of the attempt, in milliseconds."),
    "decision": {
        "enum": ["delivered", "failover", "repeat", "retry", "defer", "dead_letter"],
        "description": "What happens next to the delivery.",
    },
}
_ATTEMPT_OPTIONAL = {
    **_TENANT,
    **_TRACE,
    "status": {"type": ["integer", "null"], "description": "The answer's HTTP status."},
    "http.response.status_code": {"type": "integer", "description": "The answer's HTTP status."},
    "id_made": {"const": True, "description": "The producer gave no id; the dispatcher made one."},
}
_TARGET_FIELDS = {
    "subscription_id": _text("The subscription that the target belongs to."),
    "target": _text("The target's URL without userinfo and query."),
}

CATALOGUE: tuple[LogEvent, ...] = (
    LogEvent(
        "attempt.succeeded",
        "info",
        "A target answered 2xx.",
        "Nothing.",
        _ATTEMPT_FIELDS,
        _ATTEMPT_OPTIONAL,
    ),
    LogEvent(
        "attempt.failed",
        "warning",
        "An attempt got no 2xx answer; `decision` says what happens next.",
        "Look at `error` and `target`; if it lasts, tell the subscriber.",
        {
            **_ATTEMPT_FIELDS,
            "error": _text("What went wrong, in a few words."),
            "error.type": _text("The status, or the class of the failure."),
        },
        {
            **_ATTEMPT_OPTIONAL,
            "next_attempt_at": _time("When the delivery will be tried again."),
            "reason": _text("Why the delivery became a dead letter."),
        },
    ),
    LogEvent(
        "delivery.deferred",
        "info",
        "A delivery was put off without an attempt: its targets cannot take it now.",
        "Nothing, unless it grows: then the subscriber is too slow, down, or limited too low.",
        {
            **_DELIVERY_FIELDS,
            "cause": {
                "enum": [cause.value for cause in DeferCause],
                "description": "Why it was put off.",
            },
            "next_attempt_at": _time("When the delivery will be looked at again."),
            "deferrals": _count("How often this delivery has been put off."),
        },
        _TENANT,
    ),
    LogEvent(
        "delivery.dead_lettered",
        "error",
        "A delivery was parked for good, confirmed by the broker.",
        "`webhook-dispatcher dead show`; mend the cause, then `dead redrive`.",
        {
            **_DELIVERY_FIELDS,
            "reason": {
                "enum": [reason.value for reason in Reason],
                "description": "Why.",
            },
            "attempts": _count("How many attempts there were."),
            "last_status": {
                "type": ["integer", "null"],
                "description": "The last answer's status.",
            },
            "last_error": _maybe_text("The last error."),
        },
        {**_TENANT, "age_ms": _number("From the event's time, in milliseconds.")},
    ),
    LogEvent(
        "event.unmatched",
        "debug",
        "No subscription wanted an event; it is settled.",
        "Nothing, unless somebody should have got it: look at patterns, tenant and filter.",
        _EVENT_FIELDS,
        {**_TENANT, "id_made": {"const": True, "description": "The dispatcher made the id."}},
    ),
    LogEvent(
        "event.rejected",
        "error",
        "A message could not be read as an event and was parked, confirmed by the broker.",
        "`webhook-dispatcher rejected show`; tell the producer; then `rejected redrive` or `purge`.",
        {
            "reason": {
                "enum": [
                    "not_json",
                    "invalid_envelope",
                    "invalid_type",
                    "too_large",
                    "schema_violation",
                    "poison",
                ],
                "description": "Why.",
            },
            "detail": _text("What is wrong, and where."),
            "routing_key": _text("The routing key that the message was published with."),
        },
        {
            "event_id": _maybe_text("The event's id, where it could be read."),
            "event_type": _maybe_text("The event's type, where it could be read."),
            "app_id": _maybe_text("The producer's name, where the message carries one."),
        },
    ),
    LogEvent(
        "target.ejected",
        "warning",
        "A target failed often in a row and is left out for a while.",
        "Look at its last `attempt.failed` lines; tell the subscriber if it lasts.",
        {
            **_TARGET_FIELDS,
            "failures": _count("How many failures in a row."),
            "ejected_for_s": _number("For how many seconds it is left out."),
        },
    ),
    LogEvent(
        "target.recovered",
        "info",
        "A target that was left out answered again; its weight ramps up.",
        "Nothing.",
        _TARGET_FIELDS,
    ),
    LogEvent(
        "target.throttled",
        "warning",
        "A target asked for a pause (Retry-After) and gets it.",
        "Nothing, unless it lasts: then set `rate_limit`.",
        {**_TARGET_FIELDS, "throttled_for_s": _number("For how many seconds.")},
    ),
    LogEvent(
        "target.gone",
        "warning",
        "A target answered 410 and is left out until the configuration changes.",
        "Remove the target, or correct its URL.",
        _TARGET_FIELDS,
    ),
    LogEvent(
        "subscriptions.loaded",
        "info",
        "The subscriptions were read and are in force.",
        "Nothing.",
        {
            "subscriptions": _count("How many there are."),
            "source": _text("The file or folder."),
            "added": _count("How many are new."),
            "changed": _count("How many are different."),
            "removed": _count("How many are no more."),
        },
    ),
    LogEvent(
        "subscriptions.doubtful",
        "warning",
        "A subscription is valid, but hardly meant so.",
        "Look at the line named.",
        {"warning": _text("What, with file, line and field.")},
    ),
    LogEvent(
        "subscriptions.refused",
        "error",
        "A changed file is bad; the last good subscriptions stay in force.",
        "Mend the file at the line named; `webhook-dispatcher check` tells the same.",
        {
            "source": _text("The file or folder."),
            "error": _text("What is wrong, file and line first."),
        },
    ),
    LogEvent(
        "filter.failed",
        "warning",
        "A filter could not be evaluated, which counts as no match; once a subscription and reload.",
        "Mend the filter, for example with `has(data.field)`.",
        {
            "subscription_id": _text("Whose filter."),
            "error": _text("What the evaluator said."),
        },
    ),
    LogEvent(
        "broker.connected",
        "info",
        "The dispatcher is connected and consumes.",
        "Nothing.",
        {"server.address": _text("The broker's host."), "server.port": _count("Its port.")},
        {"broker_version": _text("What the broker says it is.")},
    ),
    LogEvent(
        "broker.disconnected",
        "error",
        "The connection is gone or could not be made; it will be tried again.",
        "Look at the broker; nothing is lost meanwhile.",
        {
            "error": _text("Why."),
            "next_attempt_at": _time("When it is tried again."),
        },
    ),
    LogEvent(
        "broker.blocked",
        "warning",
        "The broker stopped taking publishes (memory or disk alarm), or takes them again.",
        "Free memory or disk on the broker.",
        {"blocked": {"type": "boolean", "description": "Whether it is blocked now."}},
    ),
    LogEvent(
        "broker.unrouted",
        "error",
        "Messages lie in the unrouted queue, which must stay empty: a binding is missing.",
        "Restore the topology (restart with DISPATCHER_DECLARE_TOPOLOGY=true), then move them back.",
        {"queue": _text("The queue."), "messages": _count("How many messages are in it.")},
    ),
    LogEvent(
        "service.started",
        "info",
        "The process has read its settings and starts.",
        "Nothing.",
        {
            "settings": {"type": "object", "description": "The settings; secrets only as `set`."},
            "pid": _count("The process id."),
        },
    ),
    LogEvent(
        "settings.unknown",
        "warning",
        "The environment has a DISPATCHER_ name that nothing reads.",
        "Correct the name, or remove it.",
        {
            "name": _text("The name."),
            "nearest": _maybe_text("The nearest name that is read."),
        },
    ),
    LogEvent(
        "service.draining",
        "info",
        "A signal asked the process to stop: no more intake, what is in flight is finished.",
        "Nothing.",
        {
            "in_flight": _count("How many messages are in flight."),
            "timeout_s": _number("How long they have, in seconds."),
        },
    ),
    LogEvent(
        "service.stopped",
        "info",
        "The process ends.",
        "If `left` is not 0: raise the drain time. What was left is delivered by others, again.",
        {
            "left": _count("How many messages were left unacknowledged."),
            "duration_ms": _number("How long draining took, in milliseconds."),
        },
    ),
    LogEvent(
        "workers.started",
        "info",
        "`run --workers` starts its processes.",
        "Nothing.",
        {"workers": _count("How many."), "pid": _count("The process id of the one that watches.")},
    ),
    LogEvent(
        "workers.stopped",
        "info",
        "All processes of `run --workers` have ended.",
        "Nothing.",
        {"workers": _count("How many there were.")},
    ),
    LogEvent(
        "worker.died",
        "error",
        "One of the processes ended by itself and will be started again.",
        "Look at its last lines; what it had in flight is delivered by others.",
        {
            "worker": _count("Which one."),
            "status": {"type": "integer", "description": "Exit status; negative: the signal."},
            "next_attempt_at": _time("When it is started again."),
        },
    ),
    LogEvent(
        "log.gap",
        "warning",
        "Lines before this one are missing: nobody read them, or they could not be written.",
        "Look at whoever reads the log, and at the disk; deliveries went on meanwhile.",
        {
            "lines": _count("How many lines are missing."),
            "error": _text("Why."),
        },
    ),
    LogEvent(
        "service.fault",
        "error",
        "Something happened that the program did not expect; a fault of this program.",
        "Report it with this line.",
        {"error": _text("The exception."), "where": _text("The part of the program.")},
        {"stack": _text("The stack, as text.")},
    ),
)

_BASE = {
    "timestamp": _time("When the line was written, UTC, in microseconds."),
    "level": {"enum": ["debug", "info", "warning", "error"], "description": "How bad it is."},
    "service": {"const": SERVICE, "description": "This program."},
    "version": _text("This program's version."),
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
        },
        "required": [*_BASE, "message", *event.required],
        "additionalProperties": False,
    }


def overview() -> str:
    """Return the catalogue as a Markdown page."""
    rows = [
        f"| `{e.name}` | {e.level} | {e.when} | {e.action} | {_field_list(e)} |" for e in CATALOGUE
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
            "| message | level | written when | what to do | fields |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _field_list(event: LogEvent) -> str:
    return ", ".join([*event.required, *(f"[{name}]" for name in event.optional)])


def write_schemas(folder: Path) -> None:
    """Write one `<name>.json` per kind of line into the folder, and a page about them all."""
    for event in CATALOGUE:
        text = orjson.dumps(json_schema(event), option=orjson.OPT_INDENT_2)
        (folder / f"{event.name}.json").write_bytes(text + b"\n")
    (folder / "README.md").write_text(overview())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
