"""Subscriptions from files: load, watch, swap.

`load` makes a `Snapshot` of a file or a folder of files, or raises `SubscriptionsError` with every
problem's file, line and field.  `SubscriptionWatcher` keeps the snapshot current.  Another source would
make a `Snapshot` from `Subscription` values of its own; nothing behind it knows about files.

    files, yaml_text, json_text, documents    bytes to values, and the lines of values
    fields, values, model, wording            one map at a time: what may stand where
    build, keys, tls                          defaults filled in, secrets read: a `Subscription`
    memory, pace                              what a reload need not build again, and when it rests
    load, snapshot, watch                     all of them
"""

from service.subscriptions.load import Reading, load, read
from service.subscriptions.problems import Problem, SubscriptionsError
from service.subscriptions.schema import json_schema
from service.subscriptions.snapshot import Changes, Snapshot, changes
from service.subscriptions.watch import SubscriptionWatcher

__all__ = [
    "Changes",
    "Problem",
    "Reading",
    "Snapshot",
    "SubscriptionWatcher",
    "SubscriptionsError",
    "changes",
    "json_schema",
    "load",
    "read",
]
