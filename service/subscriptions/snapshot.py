"""The snapshot: all subscriptions at one moment, and who of them wants an event.

It is made of plain `Subscription` values, whatever they were read from, and never changes: a reload
makes another one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from service.core.event import Event
from service.core.matching import MatchIndex
from service.core.subscription import Subscription
from service.filters import FilterInput, Undecided, compile_filter
from service.subscriptions.problems import Problem

FilterReport = Callable[[str, str], None]
"""Called with a subscription's id and why its filter could not say yes or no."""


class Snapshot:
    """All subscriptions at one moment, by id and by what they want.

    `version` tells two contents apart and is equal on every replica that read the same files;
    `loaded_at` is Unix seconds; `warnings` are what a person should look at, though it is valid.
    """

    def __init__(
        self,
        subscriptions: Iterable[Subscription],
        *,
        version: str,
        loaded_at: float,
        warnings: tuple[Problem, ...] = (),
        on_undecided: FilterReport | None = None,
    ) -> None:
        """Index the subscriptions; ids are unique and filters compile.

        `on_undecided` is called at most once for each subscription.
        """
        self.version = version
        self.loaded_at = loaded_at
        self.warnings = warnings
        self._by_id: dict[str, Subscription] = {}
        self._index = MatchIndex(self._named(subscriptions))
        self._on_undecided = on_undecided
        self._undecided: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._by_id.values())

    def get(self, subscription_id: str) -> Subscription | None:
        """Return a subscription by its id."""
        return self._by_id.get(subscription_id)

    def match(self, event: Event, data: object) -> Sequence[Subscription]:
        """Return who wants the event, in the order of the files; `data` is its data, parsed.

        A filter that cannot say yes or no counts as no.
        """
        candidates = self._index.match(event.type, event.tenant)
        if not any(candidate.filter for candidate in candidates):
            return candidates
        seen = FilterInput(event, data)
        return [candidate for candidate in candidates if self._wants(candidate, seen)]

    def _named(self, subscriptions: Iterable[Subscription]) -> Iterator[Subscription]:
        for subscription in subscriptions:
            self._by_id[subscription.id] = subscription
            yield subscription

    def _wants(self, subscription: Subscription, seen: FilterInput) -> bool:
        if subscription.filter is None:
            return True
        verdict = seen.verdict(compile_filter(subscription.filter))
        if isinstance(verdict, Undecided):
            self._report(subscription.id, verdict.detail)
            return False
        return verdict

    def _report(self, subscription_id: str, detail: str) -> None:
        if self._on_undecided is not None and subscription_id not in self._undecided:
            self._undecided.add(subscription_id)
            self._on_undecided(subscription_id, detail)


@dataclass(frozen=True, slots=True)
class Changes:
    """How a snapshot differs from the one before it: ids in order."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def changes(before: Snapshot | None, after: Snapshot) -> Changes:
    """Compare two snapshots; without one before, everything is added."""
    old = {} if before is None else {subscription.id: subscription for subscription in before}
    return Changes(
        added=tuple(new.id for new in after if new.id not in old),
        removed=tuple(name for name in old if after.get(name) is None),
        changed=tuple(new.id for new in after if _differs(old.get(new.id), new)),
    )


def _differs(old: Subscription | None, new: Subscription) -> bool:
    return old is not None and old is not new and old != new
