"""The delay ladder: any delay out of queues with a fixed time to live, without head-of-line blocking.

Level L is an exchange and a queue whose messages expire after 2^L seconds into the exchange of level L-1;
level 0 expires into the delivery exchange.  A message has a header for each set bit of its delay: at the
exchange of that level it enters the queue, at the others it passes on to the next.

The binary levels are those of NServiceBus's transport for RabbitMQ, version 2, which spells the delay in the
words of a routing key.  That costs the broker 90 µs a level, a header 5 (RabbitMQ 3.10).
"""

import math
from collections.abc import Container

LEVELS = 17
MAX_DELAY: int = 2**LEVELS - 1
"""The longest delay of one trip, in seconds (36.4 h); a longer one takes several trips."""

ENTERS = "1"
"""The value of such a header."""

_SPARED_BITS_FROM = 8
_OWN_TIME = 1.5


def seconds_for(delay: float) -> int:
    """Return the whole seconds for which a delay goes up the ladder; rounded up, at most MAX_DELAY.

    Each set bit is a hop, so the low bits of a long delay are rounded away: never early, and late by
    less than 1 %.  With more of them places in line would coincide, and a narrow target put them off again.
    """
    whole = min(max(0, math.ceil(delay)), MAX_DELAY)
    spare = max(0, whole.bit_length() - _SPARED_BITS_FROM)
    rounded = -(-whole >> spare) << spare
    return min(rounded, MAX_DELAY)


def lateness(delay: float) -> float:
    """Return how much later than asked for a trip may end; both in seconds.

    It is rounded up to whole seconds and to what `seconds_for` keeps, and the broker takes its time.
    """
    return _OWN_TIME + delay / 100


def entry_level(seconds: int) -> int:
    """Return the level whose exchange a message with this delay is published to."""
    return max(0, seconds.bit_length() - 1)


def header(level: int) -> str:
    """Return the header by whose presence a message enters the queue of a level."""
    return f"delay-{level:02}"


def headers(seconds: int) -> dict[str, str]:
    """Return the headers that make a message take this delay."""
    return {header(level): ENTERS for level in range(LEVELS) if seconds >> level & 1}


HEADERS = tuple(header(level) for level in range(LEVELS))
"""The header of each level."""


def levels(told: Container[str]) -> list[int]:
    """Return the levels that a message with these headers has to wait in."""
    return [level for level, name in enumerate(HEADERS) if name in told]
