"""What a load remembers for the next: entries that are written as before need not be built again.

The law: whoever uses a memory gets what a load without one would give.  A subscription is found again only
by the text of its entry, of all that stands around the entries (`defaults`), and of the folder that its
paths start from; its secrets and certificates are read again and must be the same; and an entry that
something was said about, be it a warning, is not remembered, so that it is said again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from service.core.subscription import Signing, Subscription, TlsFiles
from service.subscriptions.keys import Place


@dataclass(frozen=True, slots=True, eq=False)
class Needs:
    """What a subscription was built from besides its file: the `places` of its keys, certificates."""

    places: tuple[Place, ...]
    signing: Signing = field(repr=False)
    tls: TlsFiles


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A subscription and what it was built from."""

    subscription: Subscription
    needs: Needs


class Memory:
    """The subscriptions of one load, by how they are written."""

    def __init__(self) -> None:
        self._built: dict[bytes, Built] = {}

    def __iter__(self) -> Iterator[Built]:
        return iter(self._built.values())

    def get(self, key: bytes) -> Built | None:
        """Return what was built from an entry."""
        return self._built.get(key)

    def put(self, key: bytes, built: Built) -> None:
        """Remember what was built from an entry."""
        self._built[key] = built


class Keys:
    """Makes the keys of one document's entries: hashes of 128 bits, which take less room than texts."""

    def __init__(self, frame: str, folder: Path) -> None:
        outer = b"\0".join((os.fsencode(folder), frame.encode()))
        self._outer = blake2b(outer, digest_size=32).digest()

    def key(self, written: str) -> bytes:
        """Return the key of an entry's text."""
        return blake2b(written.encode(), digest_size=16, key=self._outer).digest()
