"""The bytes of a message on the wire: properties in, a publish out.

The library does both attribute by attribute, through a function for each type: 15 µs for a delivery that is
put off, 5 here.  Most of what messages carry is texts; the other kinds of values are left to the library,
but for what it would change.

Wire format: AMQP 0-9-1, sections 2.3.5 (frames), 4.2.5 (values) and 4.2.6 (content), method 40 of the
class `basic`, and the RabbitMQ errata on field types.
"""

import struct
from typing import Any, Final

from pamqp import decode, encode
from pamqp.commands import Basic
from pamqp.common import FieldTable

AROUND_PAYLOAD: Final = 8
"""Bytes of a frame that are not its payload."""

_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME = struct.Struct(">BHI")
_END = b"\xce"
_PUBLISH = struct.pack(">HHH", 60, 40, 0)
_MANDATORY = b"\x01"
_CONTENT_HEADER = struct.Struct(">HHQ")
_BASIC = 60
_SHORT = 255
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_DOUBLE = struct.Struct(">d")
_NAMES: Final = tuple(Basic.Properties.__slots__)
_BITS: Final = tuple((name, Basic.Properties.flags[name]) for name in _NAMES)
_OCTETS: Final = frozenset(("delivery_mode", "priority"))


UNDECODABLE: Final = "x-undecodable"


class Undecodable(dict[str, Any]):
    """The headers in place of properties that cannot be decoded: the one which says why.

    A timestamp out of range, a field of an unknown kind or a table nested too deep costs the one message,
    not the connection: otherwise the message would come back, and the connection would never last.
    A type, and no name alone: a producer can write a header of any name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__({UNDECODABLE: reason})
        self.reason = reason


def properties(data: bytes) -> Basic.Properties:
    """Return the properties of a content header, from its flags on; what cannot be decoded is `Undecodable`."""
    try:
        return _properties(data)
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything, RecursionError included
        return Basic.Properties(headers=Undecodable(f"{type(error).__name__}: {error}"[:200]))


def _properties(data: bytes) -> Basic.Properties:
    (flags,) = _U16.unpack_from(data)
    at = 2
    found = Basic.Properties.__new__(Basic.Properties)  # its __init__ checks what is ours to check
    for name, bit in _BITS:
        value: Any = None
        if flags & bit:
            if name == "headers":
                value, at = _table(data, at)
            elif name == "timestamp":
                _, value = decode.timestamp(data[at : at + 8])
                at += 8
            elif name in _OCTETS:
                value, at = data[at], at + 1
            else:
                size = data[at]
                value, at = data[at + 1 : at + 1 + size].decode(), at + 1 + size
        setattr(found, name, value)
    return found


MAX_FIELDS: Final = 4096
"""Fields of a message's headers that are no texts, those inside of others included.

Each costs the loop some time for few bytes; what texts cost is bounded by the size of the frame.
"""


def _table(data: bytes, at: int, room: list[int] | None = None) -> tuple[dict[str, Any], int]:
    (size,) = _U32.unpack_from(data, at)
    at += 4
    end = at + size
    if end > len(data):
        raise ValueError("a field table is longer than its frame")
    found: dict[str, Any] = {}
    room = [MAX_FIELDS] if room is None else room
    while at < end:
        size = data[at]
        key = data[at + 1 : at + 1 + size].decode()
        at += 1 + size
        if data[at] == 0x53:  # "S", a long string: nearly all headers are
            (size,) = _U32.unpack_from(data, at + 1)
            raw = data[at + 5 : at + 5 + size]
            at += 5 + size
            try:
                found[key] = raw.decode()
            except UnicodeDecodeError:
                found[key] = raw
        else:
            found[key], at = _value(data, at, end, room)
    return found, end


_SIZES: Final = {
    **dict.fromkeys(b"V\0", 0),
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"D", 5),
    **dict.fromkeys(b"lLdT", 8),
}
"""Bytes of a field value behind its kind; the other kinds tell their length."""


def _value(data: bytes, at: int, end: int, room: list[int]) -> tuple[Any, int]:
    """Return a field value and where the next begins; each byte is looked at once."""
    room[0] -= 1
    if room[0] < 0:
        raise ValueError(f"more than {MAX_FIELDS} fields")
    kind = data[at]
    if kind == 0x46:  # F
        return _table(data, at + 1, room)
    if kind == 0x41:  # A
        (size,) = _U32.unpack_from(data, at + 1)
        at += 5
        stop = at + size
        if stop > end:
            raise ValueError("a field array is longer than its table")
        values = []
        while at < stop:
            value, at = _value(data, at, stop, room)
            values.append(value)
        return values, at
    size = _SIZES.get(kind)
    if size is None:
        (size,) = _U32.unpack_from(data, at + 1)
        size += 4
    used, value = decode.embedded_value(data[at : at + 1 + size])
    return value, at + used


def head_frames(
    channel: int, exchange: str, routing_key: str, properties: Basic.Properties, body_size: int
) -> bytes:
    """Return the frames of a mandatory publish before its body.

    Raises TypeError or ValueError for what AMQP cannot carry.
    """
    method = b"".join(
        (
            _PUBLISH,
            _short(exchange, "the exchange"),
            _short(routing_key, "the routing key"),
            _MANDATORY,
        )
    )
    return _frame(_METHOD, channel, method) + _frame(
        _HEADER, channel, _content_header(properties, body_size)
    )


def body_frames(channel: int, body: bytes, frame_max: int) -> list[bytes]:
    """Return a body's frames; `frame_max` is the size of the largest frame, 0 any."""
    largest = frame_max - AROUND_PAYLOAD if frame_max else len(body)
    return [
        _frame(_BODY, channel, body[start : start + largest])
        for start in range(0, len(body), largest or 1)
    ]


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"".join((_FRAME.pack(kind, channel, len(payload)), payload, _END))


def _content_header(properties: Basic.Properties, body_size: int) -> bytes:
    return _CONTENT_HEADER.pack(_BASIC, 0, body_size) + _packed_properties(properties)


class Whole(Basic.Properties):
    """Properties that the library writes as it is done here: it shortens doubles and the names of headers."""

    def marshal(self) -> bytes:
        """Return them as they are written."""
        return _packed_properties(self)


def whole(properties: Basic.Properties) -> Whole:
    """Return properties for the library to publish, of which nothing is lost."""
    return Whole(**{name: getattr(properties, name) for name in _NAMES})


def _packed_properties(properties: Basic.Properties) -> bytes:
    flags, parts = 0, []
    for name, bit in _BITS:
        value = getattr(properties, name)
        if value is None or value == "":
            continue
        flags |= bit
        if name == "headers":
            parts.append(packed_table(value))
        elif name == "timestamp":
            parts.append(encode.timestamp(value))
        elif name in _OCTETS:
            parts.append(encode.octet(value))
        else:
            parts.append(_short(value, name))
    return _U16.pack(flags) + b"".join(parts)


def _short(text: str, name: str) -> bytes:
    raw = text.encode()
    if len(raw) > _SHORT:
        raise ValueError(f"{name} has {len(raw)} bytes, AMQP carries {_SHORT}")
    return bytes((len(raw),)) + raw


def packed_table(values: FieldTable) -> bytes:
    """Return a field table as it is written.  Raises TypeError or ValueError for what AMQP cannot carry."""
    parts = []
    for name, value in values.items():
        parts.append(_short(name, "the name of a header"))
        if type(value) is str:
            raw = value.encode()
            parts += (b"S", _U32.pack(len(raw)), raw)
        else:
            parts.append(_packed_value(value))
    packed = b"".join(parts)
    return _U32.pack(len(packed)) + packed


def _packed_value(value: Any) -> bytes:
    """Return a value of a table behind its kind; the library knows singles only, and cuts names in inner tables."""
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)
    if isinstance(value, dict):
        return b"F" + packed_table(value)
    if isinstance(value, list):
        packed = b"".join(map(_packed_value, value))
        return b"A" + _U32.pack(len(packed)) + packed
    return encode.encode_table_value(value)
