"""The delay ladder: any delay out of queues with a fixed time to live, without head-of-line blocking.

The design is NServiceBus's for RabbitMQ, version 2.  Level L is a topic exchange and a queue whose
messages expire after 2^L seconds into the exchange of level L-1; level 0 expires into the delivery
exchange.  A routing key spells the delay in bits, highest level first, each followed by a dot, then the
address: at each level a 1 enters the queue and a 0 passes on to the next exchange.
"""

import math

LEVELS = 17
MAX_DELAY: int = 2**LEVELS - 1
"""The longest delay of one trip, in seconds (36.4 h); a longer one takes several trips."""

_SPARED_BITS_FROM = 8


def seconds_for(delay: float) -> int:
    """Return the whole seconds for which a delay goes up the ladder; rounded up, at most MAX_DELAY.

    Each set bit is a hop, so the low bits of a long delay are rounded away: never early, and late by
    less than 1 %.
    """
    whole = min(max(0, math.ceil(delay)), MAX_DELAY)
    spare = max(0, whole.bit_length() - _SPARED_BITS_FROM)
    rounded = -(-whole >> spare) << spare
    return min(rounded, MAX_DELAY)


def entry_level(seconds: int) -> int:
    """Return the level whose exchange a message with this delay is published to."""
    return max(0, seconds.bit_length() - 1)


def routing_key(seconds: int, address: str) -> str:
    """Return the routing key: the bits of the delay from the highest level down, then the address."""
    return ".".join([*format(seconds, f"0{LEVELS}b"), address])


def enters(level: int) -> str:
    """Return the binding of a level's queue to its exchange."""
    return "*." * (LEVELS - 1 - level) + "1.#"


def passes(level: int) -> str:
    """Return the binding of the next lower exchange to a level's exchange."""
    return "*." * (LEVELS - 1 - level) + "0.#"


def arrives(address: str) -> str:
    """Return the binding of the destination queue to the delivery exchange."""
    return "*." * LEVELS + address
