"""What is told of a fault of this program: an exception that nobody expected.

The stack has frames and lines of the source, and neither values nor messages, since these may hold event data.
"""

import traceback
from typing import Final

from service.log import Log

ERROR_KEPT: Final = 1000
STACK_KEPT: Final = 8000
"""Characters that are told: of a stack its end, which is where it happened."""
_MOST_CAUSES: Final = 10


def tell_fault(log: Log, where: str, error: Exception, **about: str) -> None:
    """Write the line of a fault in this part of the program, with what it was about where that is known."""
    log.error(
        "service.fault",
        where=where,
        error=f"{type(error).__name__}: {error}"[:ERROR_KEPT],
        stack=_stack(error)[-STACK_KEPT:],
        **about,
    )


def _stack(error: BaseException | None) -> str:
    """Return the frames that an exception came through, after those of the one that it came from."""
    parts: list[str] = []
    while error is not None and len(parts) < _MOST_CAUSES:
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(parts))
