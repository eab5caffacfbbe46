"""Log lines as rows: what the dispatcher logged, beside what the receiver saw."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from service.demo.dispatcher import Line
from service.demo.receivers import Receiver
from service.demo.screen import Screen, target_name

_SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "delivery.dead_lettered": ("subscription_id", "reason", "attempts", "last_status"),
    "delivery.deferred": ("subscription_id", "cause", "next_attempt_at"),
    "event.rejected": ("event_type", "reason", "detail"),
    "target.ejected": ("target", "failures", "ejected_for_s"),
    "target.recovered": ("target",),
    "broker.disconnected": ("error",),
    "subscriptions.refused": ("error",),
    "service.fault": ("where", "error"),
    "service.draining": ("in_flight", "timeout_s"),
    "service.stopped": ("left", "duration_ms"),
}
_SHOWN_AFTERWARDS: Final[Mapping[str, tuple[str, ...]]] = {
    **_SHOWN,
    "broker.connected": ("server.address",),
    "subscriptions.loaded": ("subscriptions", "added", "changed", "removed"),
}


class Rows:
    """Writes each log line of interest on the screen as it comes."""

    def __init__(self, screen: Screen, receivers: Mapping[str, Receiver]) -> None:
        self._screen = screen
        self._receivers = receivers
        self._shown = _SHOWN

    def show_more(self) -> None:
        """Show also what would only be in the way at the start."""
        self._shown = _SHOWN_AFTERWARDS

    def on_line(self, told: Line) -> None:
        """Show a line, if it is of interest."""
        if told["message"].startswith("attempt."):
            self._screen.attempt(_with_delay(told), self._saw(told))
        elif told["message"] in self._shown:
            self._screen.event(told, self._shown[told["message"]])

    def _saw(self, told: Line) -> str:
        """Return the receiver's view of an attempt; it was noted before the attempt could end."""
        receiver = self._receivers.get(target_name(told["target"]))
        seen = receiver.seen if receiver else []
        found = [one for one in seen if one.webhook_id == told["webhook_id"]]
        if not found:
            return "nothing"
        return "signature valid" if found[-1].valid else "BAD SIGNATURE"


def _with_delay(told: Line) -> Line:
    """Return the line with `in_s`, the seconds until the next attempt, where there will be one."""
    if "next_attempt_at" not in told:
        return told
    at = datetime.fromisoformat(told["next_attempt_at"])
    return {**told, "in_s": (at - datetime.fromisoformat(told["timestamp"])).total_seconds()}
