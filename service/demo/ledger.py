"""Who was owed what, and who got it: the summary, out of what was really seen.

Three witnesses, none of which knows the others: the demo notes what the broker confirmed, the receivers
note what they accepted, and the dispatcher's log says what was decided.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from service.demo.receivers import Receiver


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers at the end.

    `lost` counts deliveries that were owed and that nobody accepted, `doubled` acceptances
    beyond the first (or of what was owed to nobody), `forged` requests whose signature was not valid.
    """

    published: int
    delivered: int
    failed_over: int
    retried: int
    dead_lettered: int
    redriven: int
    rejected: int
    lost: int
    doubled: int
    forged: int

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Yield a name, a number and its meaning."""
        yield "published", self.published, "events that the broker confirmed"
        yield "delivered", self.delivered, "deliveries that a receiver accepted, signature valid"
        yield "failed over", self.failed_over, "attempts after which the next target came at once"
        yield "retried", self.retried, "attempts after which a later round was scheduled"
        yield "dead-lettered", self.dead_lettered, "deliveries parked after the last retry"
        yield "redriven", self.redriven, "dead letters put back to work, and delivered"
        yield "rejected", self.rejected, "events that could not be read, parked with a reason"
        yield "lost", self.lost, "deliveries owed that no receiver got"
        yield "doubled", self.doubled, "deliveries that a receiver got twice"
        yield "forged", self.forged, "requests whose signature was not valid"

    def differences(self, promised: "Summary") -> Iterator[str]:
        """Yield in words where the numbers are not those promised."""
        for (name, number, _), (_, wanted, _) in zip(self.rows(), promised.rows(), strict=True):
            if number != wanted:
                yield f"{name} is {wanted}; it was {number}"


class Ledger:
    """Notes what was published and redriven."""

    def __init__(self) -> None:
        self.published = 0
        self.redriven = 0
        self._owed: set[tuple[str, str]] = set()

    def confirmed(self, event_id: str, subscriptions: Iterable[str]) -> None:
        """Note an event that the broker has, and whom it is owed to."""
        self.published += 1
        self._owed |= {(event_id, name) for name in subscriptions}

    def summary(self, receivers: Iterable[Receiver], lines: Iterable[dict[str, Any]]) -> Summary:
        """Return the numbers."""
        seen = [(receiver.subscription, one) for receiver in receivers for one in receiver.seen]
        accepted = Counter((one.webhook_id, name) for name, one in seen if one.accepted)
        said = Counter((line["message"], line.get("decision")) for line in lines)
        return Summary(
            published=self.published,
            delivered=accepted.total(),
            failed_over=said["attempt.failed", "failover"],
            retried=said["attempt.failed", "retry"],
            dead_lettered=said["delivery.dead_lettered", None],
            redriven=self.redriven,
            rejected=said["event.rejected", None],
            lost=len(self._owed - accepted.keys()),
            doubled=accepted.total() - len(self._owed & accepted.keys()),
            forged=sum(not one.valid for _, one in seen),
        )
