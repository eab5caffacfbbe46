"""One tree of errors: whose fault it is, and what to do about it.

`DispatcherError` and below are shown to a person as one line, without a traceback.  Anything else that
escapes is a fault of this program.
"""

from typing import Final


class DispatcherError(Exception):
    """Something that a person can mend; the message says what, where, and what to do."""


class ConfigurationError(DispatcherError):
    """The operator's settings or files are wrong; exit status 2."""


class BrokerError(DispatcherError):
    """The broker cannot be reached, or refuses what the dispatcher needs of it."""


class TopologyError(BrokerError):
    """Queues or exchanges are missing, or exist with other arguments."""


class OutputLost(DispatcherError):  # noqa: N818 - what has happened, not what is wrong
    """Standard output takes no more: the disk is full."""


class ReaderGone(OutputLost):
    """Nobody reads standard output any more, as after `| head`."""


REJECTED_REASONS: Final = (
    "not_json",
    "invalid_envelope",
    "invalid_type",
    "too_large",
    "schema_violation",
    "poison",
)
"""Why a message is no event that could be delivered: the contract's words."""


class EventRejected(DispatcherError):  # noqa: N818 - a rejected event is the glossary's word
    """An event could not be read; `reason` is one of REJECTED_REASONS, `detail` says where.

    `event_id` and `event_type` are set by whoever knows them.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.event_id: str | None = None
        self.event_type: str | None = None
