"""The demo's subscriptions: one for each thing that it shows.

warehouse, crm   both want orders: one event, two deliveries
dashboard        two targets, weights 3 and 1
on-call          two targets in order, of which the first refuses connections
billing          a target that is unwell for two attempts
dunning          a target that is unwell for longer than its retry schedule
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import yaml

from service.demo.receivers import Receiver, new_secret
from service.schemas import PACKAGED

REFUSING: Final = "pager-a"
SUBSCRIPTIONS: Final = ("warehouse", "crm", "dashboard", "on-call", "billing", "dunning")


def _receivers(secrets: Mapping[str, str]) -> dict[str, Receiver]:
    names = {
        "warehouse": "warehouse",
        "crm": "crm",
        "dashboard-a": "dashboard",
        "dashboard-b": "dashboard",
        "pager-b": "on-call",
        "billing": "billing",
        "dunning": "dunning",
    }
    return {name: Receiver(name, whose, secrets[whose]) for name, whose in names.items()}


@dataclass(slots=True)
class Scenery:
    """The receivers by name, and the secrets by subscription."""

    secrets: Mapping[str, str] = field(
        default_factory=lambda: {name: new_secret() for name in SUBSCRIPTIONS}
    )
    receivers: dict[str, Receiver] = field(init=False)

    def __post_init__(self) -> None:
        self.receivers = _receivers(self.secrets)

    @property
    def environ(self) -> dict[str, str]:
        """The variables from which the dispatcher takes the secrets."""
        return {_variable(name): secret for name, secret in self.secrets.items()}

    def write(self, path: Path, refusing_url: str) -> None:
        """Write the subscriptions file; the receivers must be serving."""
        listed = [
            self._subscription(name, **more) for name, more in self._differences(refusing_url)
        ]
        path.write_text(yaml.safe_dump({"subscriptions": listed}, sort_keys=False))

    def _differences(self, refusing_url: str) -> list[tuple[str, dict[str, Any]]]:
        url = {name: receiver.url for name, receiver in self.receivers.items()}
        targets = [{"url": url["dashboard-a"], "weight": 3}, {"url": url["dashboard-b"]}]
        pagers = [{"url": refusing_url}, {"url": url["pager-b"]}]
        retry = {"schedule": ["1s", "2s"], "jitter": 0}
        short = {"schedule": ["1s"], "jitter": 0}
        return [
            ("warehouse", {"event_types": ["order.*"]}),
            ("crm", {"event_types": ["order.created"]}),
            ("dashboard", {"event_types": ["build.completed"], "targets": targets}),
            (
                "on-call",
                {"event_types": ["alert.#"], "balance": "failover", "targets": pagers},
            ),
            ("billing", {"event_types": ["payment.succeeded"], "retry": retry}),
            ("dunning", {"event_types": ["payment.failed"], "retry": short}),
        ]

    def _subscription(self, name: str, **more: Any) -> dict[str, Any]:
        signing = {"scheme": "standard", "secrets": [{"env": _variable(name)}]}
        if "targets" not in more:
            more["targets"] = [{"url": self.receivers[name].url}]
        return {"id": name, **more, "signing": signing}


def example(event_type: str) -> Any:
    """Return data for an event: the first example in its schema."""
    schema = orjson.loads((PACKAGED / f"{event_type}.json").read_bytes())
    return schema["examples"][0]


def _variable(subscription: str) -> str:
    return f"SECRET_{subscription.upper().replace('-', '_')}"
