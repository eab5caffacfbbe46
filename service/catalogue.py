"""The catalogue of log events: the law of what a line may say.

A line's `message` is one of the names below and its fields are those listed, each kind with a JSON
Schema in `schemas/log/` that is generated from here (`python -m service.catalogue DIR`).
Never in a line: secrets, signatures, URL userinfo, query values, event data.
"""

import sys
from pathlib import Path

from service.core.delivery import DeferCause, Reason
from service.errors import REJECTED_REASONS
from service.line_schema import (
    Flapping,
    LogEvent,
    count,
    flag,
    maybe_text,
    number,
    text,
    time,
    write_schemas,
)

_EVENT_FIELDS = {
    "event_id": text("The event's id, as its producer gave it."),
    "event_type": text("The event's type."),
}
_DELIVERY_FIELDS = {
    **_EVENT_FIELDS,
    "subscription_id": text("The subscription that the delivery is for."),
}
_TRACE = {
    "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "W3C trace id."},
    "span_id": {
        "type": "string",
        "pattern": "^[0-9a-f]{16}$",
        "description": "The attempt's span.",
    },
}
_TENANT = {"tenant": text("The event's tenant.")}
_ATTEMPT_FIELDS = {
    **_DELIVERY_FIELDS,
    "webhook_id": text("The idempotency key that every attempt of this event carries."),
    "target": text("The target's URL without userinfo and query."),
    "server.address": text("The target's host."),
    "lane": {"enum": ["intake", "backlog"], "description": "The lane that the attempt ran in."},
    "round": count("The round, from 1."),
    "attempt": count("The attempt's number over all rounds, from 1."),
    "duration_ms": number("From start to last byte, in milliseconds."),
    "age_ms": number("From the event's time to the end of the attempt, in milliseconds."),
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
_TARGET = ("subscription_id", "target")
_ROTATION = Flapping("rotation", _TARGET)
_SUBSCRIPTIONS = Flapping("subscriptions")
_CONNECTION = Flapping("connection")
_TARGET_FIELDS = {
    "subscription_id": text("The subscription that the target belongs to."),
    "target": text("The target's URL without userinfo and query."),
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
            "error": text("What went wrong, in a few words."),
            "error.type": text("The status, or the class of the failure."),
        },
        {
            **_ATTEMPT_OPTIONAL,
            "next_attempt_at": time("When the delivery will be tried again."),
            "reason": text("Why the delivery became a dead letter."),
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
            "next_attempt_at": time("When the delivery will be looked at again."),
            "deferrals": count("How often this delivery has been put off."),
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
            "attempts": count("How many attempts there were."),
            "last_status": {
                "type": ["integer", "null"],
                "description": "The last answer's status.",
            },
            "last_error": maybe_text("The last error."),
        },
        {**_TENANT, "age_ms": number("From the event's time, in milliseconds.")},
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
                "enum": [*REJECTED_REASONS],
                "description": "Why.",
            },
            "detail": text("What is wrong, and where."),
            "routing_key": text("The routing key that the message was published with."),
        },
        {
            "event_id": maybe_text("The event's id, where it could be read."),
            "event_type": maybe_text("The event's type, where it could be read."),
            "app_id": maybe_text("The producer's name, where the message carries one."),
        },
    ),
    LogEvent(
        "target.ejected",
        "warning",
        "A target failed often in a row and is left out for a while.",
        "Look at its last `attempt.failed` lines; tell the subscriber if it lasts.",
        {
            **_TARGET_FIELDS,
            "failures": count("How many failures in a row."),
            "ejected_for_s": number("For how many seconds it is left out."),
        },
        flaps=_ROTATION,
    ),
    LogEvent(
        "target.recovered",
        "info",
        "A target that was left out answered again; its weight ramps up.",
        "Nothing.",
        _TARGET_FIELDS,
        flaps=_ROTATION,
    ),
    LogEvent(
        "target.throttled",
        "warning",
        "A target asked for a pause (Retry-After) and gets it.",
        "Nothing, unless it lasts: then set `rate_limit`.",
        {**_TARGET_FIELDS, "throttled_for_s": number("For how many seconds.")},
        flaps=Flapping("throttled", _TARGET),
    ),
    LogEvent(
        "target.gone",
        "warning",
        "A target answered 410 and is left out until the configuration changes.",
        "Remove the target, or correct its URL.",
        _TARGET_FIELDS,
        flaps=Flapping("gone", _TARGET),
    ),
    LogEvent(
        "subscriptions.loaded",
        "info",
        "The subscriptions were read and are in force.",
        "Nothing.",
        {
            "subscriptions": count("How many there are."),
            "source": text("The file or folder."),
            "added": count("How many are new."),
            "changed": count("How many are different."),
            "removed": count("How many are no more."),
        },
        flaps=_SUBSCRIPTIONS,
    ),
    LogEvent(
        "subscriptions.doubtful",
        "warning",
        "A subscription is valid, but hardly meant so.",
        "Look at the line named.",
        {"warning": text("What, with file, line and field.")},
        flaps=Flapping("doubtful", lines=100),
    ),
    LogEvent(
        "subscriptions.refused",
        "error",
        "A changed file is bad; the last good subscriptions stay in force.",
        "Mend the file at the line named; `webhook-dispatcher check` tells the same.",
        {
            "source": text("The file or folder."),
            "error": text("What is wrong, file and line first."),
        },
        flaps=_SUBSCRIPTIONS,
    ),
    LogEvent(
        "filter.failed",
        "warning",
        "A filter could not be evaluated, which counts as no match; once a subscription and reload.",
        "Mend the filter, for example with `has(data.field)`.",
        {
            "subscription_id": text("Whose filter."),
            "error": text("What the evaluator said."),
        },
        flaps=Flapping("filters", lines=100),
    ),
    LogEvent(
        "broker.connected",
        "info",
        "The dispatcher is connected and consumes.",
        "Nothing.",
        {"server.address": text("The broker's host."), "server.port": count("Its port.")},
        {"broker_version": text("What the broker says it is.")},
        flaps=_CONNECTION,
    ),
    LogEvent(
        "broker.disconnected",
        "error",
        "The connection is gone or could not be made; it will be tried again.",
        "Look at the broker; nothing is lost meanwhile.",
        {
            "error": text("Why."),
            "next_attempt_at": time("When it is tried again."),
        },
        flaps=_CONNECTION,
    ),
    LogEvent(
        "broker.blocked",
        "warning",
        "The broker stopped taking publishes (memory or disk alarm), or takes them again.",
        "Free memory or disk on the broker.",
        {"blocked": flag("Whether it is blocked now.")},
        flaps=Flapping("alarm"),
    ),
    LogEvent(
        "broker.unrouted",
        "error",
        "Messages lie in the unrouted queue, which must stay empty: a binding is missing.",
        "Restore the topology (restart with DISPATCHER_DECLARE_TOPOLOGY=true), then move them back.",
        {"queue": text("The queue."), "messages": count("How many messages are in it.")},
        flaps=Flapping("unrouted"),
    ),
    LogEvent(
        "service.started",
        "info",
        "The process has read its settings and starts.",
        "Nothing.",
        {
            "settings": {"type": "object", "description": "The settings; secrets only as `set`."},
            "pid": count("The process id."),
        },
    ),
    LogEvent(
        "settings.unknown",
        "warning",
        "The environment has a DISPATCHER_ name that nothing reads.",
        "Correct the name, or remove it.",
        {
            "name": text("The name."),
            "nearest": maybe_text("The nearest name that is read."),
        },
    ),
    LogEvent(
        "service.alive",
        "info",
        "Every minute, whatever else is written, and once more before the process ends.",
        "Nothing; where these lines stop, the process hangs, is gone, or its lines do not arrive.",
        {
            "pid": count(
                "The process id; with `run --workers` each process has a line of its own."
            ),
            "uptime_s": count("For how many seconds the process has run."),
            "ready": flag("Whether it consumes."),
            "connected": flag("Whether it is connected to the broker."),
            "blocked": flag("Whether the broker refuses publishes (memory or disk alarm)."),
            "in_flight_intake": count("Messages of the intake lane that are being worked on."),
            "in_flight_backlog": count("Messages of the backlog lane that are being worked on."),
            "subscriptions": count("Subscriptions in force."),
            "subscriptions_stale": flag("Whether the files were changed since, and refused."),
            "targets_healthy": count("Targets used so far that are in the rotation."),
            "targets_ejected": count("Targets that are left out of it for a while."),
            "targets_gone": count("Targets that answered 410."),
            "ejected_for_s": count("For how long the one left out longest has been, in seconds."),
            "lines_total": count("Log lines that this process wrote since its start."),
            "lines_lost": count("Lines since the one before that nobody took (see log.gap)."),
            "lines_left_out": count(
                "Lines since the one before that were left out: too many came."
            ),
            "received": count("Messages taken from the broker since the line before."),
            "attempts": count("Attempts since the line before."),
            "delivered": count("Attempts since the line before that were answered 2xx."),
            "delivered_age_s": count("How old their events were together, in whole seconds."),
            "deferred": count("Deliveries put off without an attempt since the line before."),
            "dead_lettered": count("Deliveries parked as dead letters since the line before."),
            "rejected": count("Messages rejected since the line before."),
        },
        {
            "unrouted_messages": count("Messages in the unrouted queue; must be 0."),
            "dead_letters_waiting": count("Dead letters that wait for somebody to decide."),
            "rejected_events_waiting": count("Rejected events that do, also those of the broker."),
        },
    ),
    LogEvent(
        "service.draining",
        "info",
        "A signal or a fault stops the process: no more intake, what is in flight is finished.",
        "Nothing.",
        {
            "in_flight": count("How many messages are in flight."),
            "timeout_s": number("How long they have, in seconds."),
        },
    ),
    LogEvent(
        "service.stopped",
        "info",
        "The process ends.",
        "If `left` is not 0: raise the drain time. What was left is delivered by others, again.",
        {
            "left": count("How many messages were left unacknowledged."),
            "duration_ms": number("How long draining took, in milliseconds."),
        },
    ),
    LogEvent(
        "workers.started",
        "info",
        "`run --workers` starts its processes.",
        "Nothing.",
        {"workers": count("How many."), "pid": count("The process id of the one that watches.")},
    ),
    LogEvent(
        "workers.stopped",
        "info",
        "All processes of `run --workers` have ended.",
        "Nothing.",
        {"workers": count("How many there were.")},
    ),
    LogEvent(
        "worker.died",
        "error",
        "One of the processes ended by itself, or could not be started; it will be started again.",
        "Look at its last lines and at `error`; what it had in flight is delivered by others.",
        {
            "worker": count("Which one."),
            "status": {
                "type": ["integer", "null"],
                "description": "Exit status; negative: the signal; null: it could not be started.",
            },
            "error": maybe_text("Why it could not be started, where that is so."),
            "next_attempt_at": time("When it is started again."),
        },
    ),
    LogEvent(
        "log.gap",
        "warning",
        "Lines before this one are missing: nobody read them, or they could not be written.",
        "Look at whoever reads the log, and at the disk; deliveries went on meanwhile.",
        {
            "lines": count("How many lines are missing."),
            "error": text("Why."),
        },
    ),
    LogEvent(
        "service.fault",
        "error",
        "Something happened that the program did not expect; a fault of this program.",
        "Report it with this line.",
        {
            "error": text("The exception; at most 1,000 characters."),
            "where": text("The part of the program."),
            "stack": text(
                "The frames that it came through, without values; the last 8,000 characters."
            ),
        },
        {"subscription_id": text("Whose delivery it was, where it was one of several.")},
        flaps=Flapping("fault", ("where",)),
    ),
)


if __name__ == "__main__":
    write_schemas(CATALOGUE, Path(sys.argv[1]))
