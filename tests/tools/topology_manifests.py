"""The topology as objects of RabbitMQ's messaging topology operator.

    python -m tests.tools.topology_manifests

writes `topology.yaml` and `events-exchange.yaml` of the production overlay from `service.broker.topology`,
with the names that the settings have by default.  A test tells when they are stale.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from service.broker.topology import Binding, Exchange, Queue, Topology, topology
from service.settings import Settings

PRODUCTION = Path(__file__).parents[2] / "k8s" / "overlays" / "production"
CLUSTER = "rabbitmq"
"""The RabbitmqCluster of the production overlay."""

_HEAD = """\
# Generated from service/broker/topology.py by `python -m tests.tools.topology_manifests`: change it there.
"""
_EVENTS_HEAD = (
    _HEAD
    + """\
# The exchange that producers publish to.  It is the team's own: where it exists with another type or other
# arguments, leave this file out of the kustomization.
"""
)


def wanted() -> Topology:
    """Return the topology with the settings' defaults."""
    settings = Settings()
    return topology(settings.prefix, settings.events_exchange, settings.bindings)


def texts(of: Topology) -> dict[str, str]:
    """Return file name → content."""
    objects = [
        *map(_exchange, of.exchanges),
        *map(_queue, of.queues),
        *(_binding(binding, number) for number, binding in _numbered(of.bindings)),
    ]
    return {
        "events-exchange.yaml": _EVENTS_HEAD + _text([_exchange(of.events)]),
        "topology.yaml": _HEAD + _text(objects),
    }


def _text(objects: Iterable[dict[str, Any]]) -> str:
    return yaml.safe_dump_all(objects, sort_keys=False, width=200)


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "rabbitmq.com/v1beta1",
        "kind": kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "webhook-dispatcher"}},
        "spec": {**spec, "rabbitmqClusterReference": {"name": CLUSTER}},
    }


def _exchange(exchange: Exchange) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": exchange.name, "type": exchange.kind, "durable": True}
    if exchange.arguments:
        spec["arguments"] = dict(exchange.arguments)
    return _object("Exchange", exchange.name, spec)


def _queue(queue: Queue) -> dict[str, Any]:
    arguments = dict(queue.arguments)
    spec = {
        "name": queue.name,
        # The operator makes the argument x-queue-type of it.
        "type": arguments.pop("x-queue-type"),
        "durable": True,
        # Messages outlive the object: whoever deletes it by mistake has lost nothing.
        "deletionPolicy": "retain",
    }
    if arguments:
        spec["arguments"] = arguments
    return _object("Queue", queue.name, spec)


def _binding(binding: Binding, number: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "source": binding.source,
        "destination": binding.destination,
        "destinationType": "queue",
    }
    if binding.key:
        spec["routingKey"] = binding.key
    if binding.arguments:
        spec["arguments"] = dict(binding.arguments)
    name = f"{binding.source}.to.queue.{binding.destination}"
    return _object("Binding", f"{name}.{number}" if number else name, spec)


def _numbered(bindings: Iterable[Binding]) -> Iterable[tuple[int, Binding]]:
    """Number the bindings that differ only in their keys from 0 on."""
    seen: dict[tuple[str, str], int] = {}
    for binding in bindings:
        ends = (binding.source, binding.destination)
        seen[ends] = seen.get(ends, -1) + 1
        yield seen[ends], binding


if __name__ == "__main__":
    for name, text in texts(wanted()).items():
        (PRODUCTION / name).write_text(text)
