"""A content header that cannot be decoded must cost one message, not the connection.

The AMQP library decodes headers strictly: a timestamp out of range, a field of an unknown kind or a
table nested too deep raises in the connection's reader, which hangs up; the message comes back, and the
connection never lasts.  `install` makes the decoder note the failure on that one message instead; the
intake then rejects it by name.
"""

from pamqp.commands import Basic
from pamqp.header import ContentHeader

UNDECODABLE = "x-undecodable"

_strictly = ContentHeader.unmarshal


def _tolerantly(self: ContentHeader, data: bytes) -> None:
    """Decode as the library does; put a failure's text into the header UNDECODABLE."""
    try:
        _strictly(self, data)
    except Exception as error:
        # Hostile bytes raise anything, RecursionError included.  The size comes before the properties.
        if self.class_id is None:
            raise
        text = f"{type(error).__name__}: {error}"[:200]
        self.properties = Basic.Properties(headers={UNDECODABLE: text})


def install() -> None:
    """Make the library's content header tolerant; safe to call twice."""
    ContentHeader.unmarshal = _tolerantly  # type: ignore[method-assign]
