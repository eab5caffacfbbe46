"""Which subscriptions want an event type: topic patterns, and an index over very many of them.

Patterns are those of an AMQP topic exchange (AMQP 0-9-1, 3.1.3.3): words split by dots, `*` stands for
exactly one word, `#` for zero or more.  The law here: the index gives what a walk over all
subscriptions would give, in the order of the file and each subscription once, without that walk.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from service.core.subscription import Subscription

MAX_PATTERN_LENGTH = 255
"""Bytes of a routing key in AMQP 0-9-1 (a short string)."""


def pattern_problem(pattern: str) -> str | None:
    """Return what is wrong with a topic pattern, or None for a good one."""
    if not pattern:
        return "must not be empty; # matches every event type"
    if len(pattern.encode()) > MAX_PATTERN_LENGTH:
        return f"must not be longer than {MAX_PATTERN_LENGTH} bytes"
    if not pattern.isprintable() or " " in pattern:
        return "must not contain spaces or control characters"
    for word in pattern.split("."):
        if not word:
            return "must not contain an empty word (two dots in a row, or a dot at an end)"
        if len(word) > 1 and ("*" in word or "#" in word):
            return "must use * and # only as whole words, as in payment.* or invoice.#"
    return None


class MatchIndex:
    """Finds the subscriptions that want an event type, for one fixed list of subscriptions.

    A pattern without wildcards costs one dictionary entry; the others share a trie.  A subscription
    with a tenant stands in that tenant's part, so that another tenant's events never meet it.
    Answers are remembered in a bounded cache: the usual lookup is one dictionary access.
    """

    def __init__(self, subscriptions: Iterable[Subscription], cache_weight: int = 200_000) -> None:
        """Build the index; `cache_weight` bounds the cache, in about 8 bytes each."""
        self._branches: dict[str | None, _Branch] = {}
        self._cache = _Recent(cache_weight)
        known: list[Subscription] = []
        for position, subscription in enumerate(subscriptions):
            known.append(subscription)
            branch = self._branches.setdefault(subscription.tenant, _Branch())
            for pattern in subscription.event_types:
                branch.add(pattern, position)
        self._subscriptions = tuple(known)

    def match(self, event_type: str, tenant: str | None = None) -> tuple[Subscription, ...]:
        """Return who wants events of this type and tenant, in the order of the list."""
        key = (tenant, event_type)
        found = self._cache.get(key)
        if found is None:
            found = self._find(event_type, tenant)
            self._cache.put(key, found)
        return found

    def _find(self, event_type: str, tenant: str | None) -> tuple[Subscription, ...]:
        positions: set[int] = set()
        for part in {None, tenant}:
            if (branch := self._branches.get(part)) is not None:
                positions.update(branch.find(event_type))
        return tuple(self._subscriptions[position] for position in sorted(positions))


@dataclass(slots=True, eq=False)
class _Node:
    """One place in the trie: the words that may follow, and the subscriptions that end here.

    `repeats` marks a place reached by `#`: any further word leaves it where it is.
    """

    repeats: bool = False
    literals: "dict[str, _Node] | None" = None
    star: "_Node | None" = None
    hash: "_Node | None" = None
    ends: list[int] | None = None

    def child(self, word: str) -> "_Node":
        """Return the place that `word` of a pattern leads to, made where it is missing."""
        if word == "*":
            self.star = self.star or _Node()
            return self.star
        if word == "#":
            if self.repeats:
                return self  # `#.#` means the same as `#`
            self.hash = self.hash or _Node(repeats=True)
            return self.hash
        if self.literals is None:
            self.literals = {}
        return self.literals.setdefault(word, _Node())

    def after(self, word: str) -> "Iterator[_Node]":
        """Yield the places that one word of an event type leads to from here."""
        if self.repeats:
            yield self
        if self.star is not None:
            yield self.star
        if self.literals is not None and (node := self.literals.get(word)) is not None:
            yield node


@dataclass(slots=True)
class _Branch:
    """The patterns of one tenant, or of the subscriptions without one."""

    exact: dict[str, list[int]] = field(default_factory=dict)
    root: _Node | None = None

    def add(self, pattern: str, position: int) -> None:
        if "*" not in pattern and "#" not in pattern:
            self.exact.setdefault(pattern, []).append(position)
            return
        self.root = node = self.root or _Node()
        for word in pattern.split("."):
            node = node.child(word)
        if node.ends is None:
            node.ends = []
        node.ends.append(position)

    def find(self, event_type: str) -> Iterator[int]:
        """Yield the positions of matching patterns, one position perhaps several times."""
        yield from self.exact.get(event_type, ())
        if self.root is not None:
            for node in _reached(self.root, event_type.split(".")):
                yield from node.ends or ()


def _reached(root: _Node, words: Iterable[str]) -> set[_Node]:
    """Return the places where the words end.

    All places are followed side by side, as in the simulation of a nondeterministic automaton, and
    each is held once: no pattern, however many `#` it has, makes this take exponential time.
    """
    active = _with_empty_hashes([root])
    for word in words:
        active = _with_empty_hashes(node for place in active for node in place.after(word))
    return active


def _with_empty_hashes(nodes: Iterable[_Node]) -> set[_Node]:
    """Return the places and those behind a `#` that stands for no word at all."""
    places = set(nodes)
    places.update([place.hash for place in places if place.hash is not None])
    return places


_Key = tuple[str | None, str]


class _Recent:
    """A bounded cache in two generations: what is used in the younger one survives.

    Each lookup is one dictionary access, or two for an entry of the elder generation, which then moves
    to the younger.  When the younger is full it becomes the elder, and the elder is dropped: names that
    come once go soon, those in use stay, and the size holds whatever a producer sends.  The weight
    counts what an answer holds, since one answer may name many thousand subscriptions.
    """

    def __init__(self, weight: int) -> None:
        self._limit = max(1, weight // 2)
        self._young: dict[_Key, tuple[Subscription, ...]] = {}
        self._elder: dict[_Key, tuple[Subscription, ...]] = {}
        self._weight = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._elder)

    def get(self, key: _Key) -> tuple[Subscription, ...] | None:
        found = self._young.get(key)
        if found is None and (found := self._elder.pop(key, None)) is not None:
            self.put(key, found)
        return found

    def put(self, key: _Key, found: tuple[Subscription, ...]) -> None:
        weight = _weight(key, found)
        if self._weight + weight > self._limit:
            self._elder, self._young, self._weight = self._young, {}, 0
        self._young[key] = found
        self._weight += weight


def _weight(key: _Key, found: tuple[Subscription, ...]) -> int:
    """Return about what an entry takes, in words of 8 bytes: about 20 for the entry itself."""
    tenant, event_type = key
    return 20 + len(found) + (len(event_type) + len(tenant or "")) // 8
