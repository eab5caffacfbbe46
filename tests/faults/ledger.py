"""The account: what is owed for every event, where it was seen, what is missing, what there is twice.

An event owes one delivery to each subscription that wants it; one that cannot be read owes one rejected
event.  Each of these debts is paid by a sighting: a request that was answered with 2xx, or a message in
a queue at the end.  The law: debts + doubled = sightings + destroyed + lost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b

Debt = tuple[str, str]
"""An event's id, and the subscription that it is owed to (`REJECTED` for an event that is no event)."""

REJECTED = "(rejected)"


class Place(StrEnum):
    """Where a debt was seen to be paid."""

    DELIVERED = "delivered"
    DEAD = "dead"
    REJECTED = "rejected"
    WAITING = "waiting"
    UNROUTED = "unrouted"


@dataclass(frozen=True, slots=True)
class Account:
    """The sums at the end of a scenario.

    `events` were confirmed to their producer, `owed` are their debts.  The places count sightings.
    `destroyed` were in a queue that was deleted.  `strange` is what nobody published, or what had another
    body than the first time.
    """

    events: int
    owed: int
    seen: Mapping[Place, int]
    destroyed: int
    lost: int
    doubled: int
    strange: int
    missing: tuple[Debt, ...] = field(default=(), repr=False)

    @property
    def agrees(self) -> bool:
        """Tell whether the sums do: every debt paid, destroyed or known to be lost."""
        return self.owed + self.doubled == sum(self.seen.values()) + self.destroyed + self.lost


class Ledger:
    """Keeps the account while a scenario runs."""

    def __init__(self) -> None:
        self._owed: dict[str, tuple[str, ...]] = {}
        self._doubtful: dict[str, tuple[str, ...]] = {}
        self._seen: Counter[Debt] = Counter()
        self._places: Counter[Place] = Counter()
        self._bodies: dict[Debt, bytes] = {}
        self._attempts: defaultdict[Debt, int] = defaultdict(int)
        self._destroyed: set[Debt] = set()
        self._changed_bodies = 0

    @property
    def published(self) -> int:
        """Return how many events were confirmed so far."""
        return len(self._owed)

    @property
    def delivered(self) -> int:
        """Return how many requests were answered with 2xx so far."""
        return self._places[Place.DELIVERED]

    def confirm(self, event_id: str, owed_to: tuple[str, ...]) -> None:
        """Note an event whose producer has the broker's confirm."""
        self._doubtful.pop(event_id, None)
        self._owed[event_id] = owed_to

    def doubt(self, event_id: str, owed_to: tuple[str, ...]) -> None:
        """Note an event of which nobody knows: if any of it is seen, all of it is owed."""
        self._doubtful[event_id] = owed_to

    def attempt(self, debt: Debt, body: bytes) -> int:
        """Note a request and return the how-manieth for its debt it is; its body is always the same."""
        digest = blake2b(body, digest_size=16).digest()
        self._changed_bodies += self._bodies.setdefault(debt, digest) != digest
        self._attempts[debt] += 1
        return self._attempts[debt]

    def see(self, place: Place, debt: Debt) -> None:
        """Note a sighting."""
        self._seen[debt] += 1
        self._places[place] += 1

    def see_event(self, place: Place, event_id: str) -> None:
        """Note a whole event in a queue: everything that it owes is there."""
        known = self._owed.get(event_id) or self._doubtful.get(event_id) or ("(unknown)",)
        for owed_to in known:
            self.see(place, (event_id, owed_to))

    def unpaid(self) -> list[Debt]:
        """Return the debts of confirmed events that were not seen anywhere yet."""
        return [debt for debt in self._debts(self._owed) if not self._seen[debt]]

    def destroy(self, debts: Iterable[Debt]) -> None:
        """Note what is allowed to be missing, because its queue was deleted."""
        self._destroyed.update(debts)

    def account(self) -> Account:
        """Return the sums."""
        seen_ids = {event_id for event_id, _ in self._seen}
        arrived = {id_: owed for id_, owed in self._doubtful.items() if id_ in seen_ids}
        debts = list(self._debts(self._owed | arrived))
        missing = [debt for debt in debts if not self._seen[debt]]
        lost = [debt for debt in missing if debt not in self._destroyed]
        known = set(debts)
        strange = [debt for debt in self._seen if debt not in known]
        return Account(
            events=len(self._owed) + len(arrived),
            owed=len(debts),
            seen={place: self._places[place] for place in Place},
            destroyed=len(missing) - len(lost),
            lost=len(lost),
            doubled=sum(count - 1 for debt, count in self._seen.items() if debt in known and count),
            strange=len(strange) + self._changed_bodies,
            missing=tuple(lost),
        )

    @staticmethod
    def _debts(owed: Mapping[str, tuple[str, ...]]) -> Iterable[Debt]:
        return ((event_id, owed_to) for event_id, several in owed.items() for owed_to in several)
