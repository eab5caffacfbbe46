"""Signatures of webhook requests: made here for senders, checked here for receivers.

Three schemes: Standard Webhooks 1.0.0 `v1` (HMAC-SHA256) and `v1a` (ed25519), which sign
`id.timestamp.body`, and GitHub's `X-Hub-Signature-256`, which signs the body alone.  The law: exact
bytes are signed, keys are prepared once, and comparisons take the same time whatever differs.
"""

import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from service.core.subscription import Scheme, Signing

STANDARD_HEADER = "webhook-signature"
HUB_HEADER = "X-Hub-Signature-256"
TOLERANCE = 300.0
"""Seconds by which a receiver lets `webhook-timestamp` differ from its own clock."""

_PREPARED_LIMIT = 4096  # prepared keys that are kept; a key costs some kilobytes
_BLOCK = 64  # of SHA-256, in bytes
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))


@dataclass(frozen=True, slots=True)
class Signer:
    """Prepared keys of one `Signing`.

    `sign(message_id, timestamp, body)` makes the value of the header called `header`; the timestamp is
    in whole Unix seconds.  Under the scheme `none` there is no header.
    """

    header: str | None
    sign: Callable[[str, int, bytes], str]


@lru_cache(maxsize=_PREPARED_LIMIT)
def signer(signing: Signing) -> Signer:
    """Prepare the keys of `signing`, once for equal values.

    All keys sign under the schemes of Standard Webhooks, so that receivers may hold the old or the new
    one.  GitHub's header has room for one signature: under `hub-sha256` only the first key, the newest,
    signs.  Raises `ValueError` where keys are missing or are not ed25519 seeds of 32 bytes.
    """
    if signing.scheme is Scheme.NONE:
        return Signer(None, _sign_nothing)
    if not signing.keys:
        raise ValueError(f"signing scheme {signing.scheme} needs a secret")
    match signing.scheme:
        case Scheme.STANDARD:
            return Signer(STANDARD_HEADER, _standard([_hmac_sha256(key) for key in signing.keys]))
        case Scheme.ED25519:
            return Signer(STANDARD_HEADER, _ed25519(signing.keys))
        case Scheme.HUB_SHA256:
            return Signer(HUB_HEADER, _hub(_hmac_sha256(signing.keys[0])))


def verify_standard(
    key: bytes, *, message_id: str, timestamp: str, body: bytes, signatures: str, now: float
) -> bool:
    """Tell whether one of `signatures` is a `v1` signature by `key`, not older than `TOLERANCE`.

    `message_id`, `timestamp` and `signatures` are the request's three `webhook-` headers, `now` is in
    Unix seconds.
    """
    expected = hmac.digest(key, _signed_content(message_id, timestamp, body), "sha256")
    matches = [
        hmac.compare_digest(expected, candidate) for candidate in _candidates(signatures, "v1")
    ]
    return any(matches) and _is_recent(timestamp, now)


def verify_ed25519(
    public_key: bytes, *, message_id: str, timestamp: str, body: bytes, signatures: str, now: float
) -> bool:
    """Tell whether one of `signatures` is a `v1a` signature that `public_key` (32 bytes) accepts."""
    from service.core import ed25519  # noqa: PLC0415 - as below

    content = _signed_content(message_id, timestamp, body)
    candidates = _candidates(signatures, "v1a")
    matches = [ed25519.accepts(public_key, candidate, content) for candidate in candidates]
    return any(matches) and _is_recent(timestamp, now)


def verify_hub(key: bytes, *, body: bytes, signature: str) -> bool:
    """Tell whether `signature` is GitHub's `sha256=<hex>` of `body` by `key`."""
    expected = f"sha256={hmac.digest(key, body, 'sha256').hex()}"
    return hmac.compare_digest(expected.encode(), signature.strip().encode())


def _hmac_sha256(key: bytes) -> Callable[[bytes], bytes]:
    """Return HMAC-SHA256 (RFC 2104) with both padded keys hashed beforehand.

    Less than half the time of `hmac.digest`, which prepares the key again for each message.
    """
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner_start = hashlib.sha256(padded.translate(_INNER_PAD)).copy
    outer_start = hashlib.sha256(padded.translate(_OUTER_PAD)).copy

    def digest(content: bytes) -> bytes:
        inner, outer = inner_start(), outer_start()
        inner.update(content)
        outer.update(inner.digest())
        return outer.digest()

    return digest


def _standard(digests: list[Callable[[bytes], bytes]]) -> Callable[[str, int, bytes], str]:
    return _listing("v1,", digests)


def _ed25519(seeds: Sequence[bytes]) -> Callable[[str, int, bytes], str]:
    from service.core import ed25519  # noqa: PLC0415 - 6 MiB that few ever need

    return _listing("v1a,", [ed25519.signing(seed) for seed in seeds])


def _listing(
    prefix: str, signs: list[Callable[[bytes], bytes]]
) -> Callable[[str, int, bytes], str]:
    def sign(message_id: str, timestamp: int, body: bytes) -> str:
        content = _signed_content(message_id, timestamp, body)
        return " ".join([prefix + _base64(sign_one(content)) for sign_one in signs])

    return sign


def _hub(digest: Callable[[bytes], bytes]) -> Callable[[str, int, bytes], str]:
    def sign(_message_id: str, _timestamp: int, body: bytes) -> str:
        return f"sha256={digest(body).hex()}"

    return sign


def _sign_nothing(_message_id: str, _timestamp: int, _body: bytes) -> str:
    return ""


def _signed_content(message_id: str, timestamp: int | str, body: bytes) -> bytes:
    return b"%b%b" % (f"{message_id}.{timestamp}.".encode(), body)


def _base64(signature: bytes) -> str:
    return binascii.b2a_base64(signature, newline=False).decode("ascii")


def _candidates(signatures: str, version: str) -> list[bytes]:
    """Return the decoded signatures of `version`; what cannot be decoded matches nothing."""
    found = []
    for entry in signatures.split(" "):
        kind, _, text = entry.partition(",")
        if kind == version:
            try:
                found.append(binascii.a2b_base64(text, strict_mode=True))
            except ValueError:
                continue
    return found


def _is_recent(timestamp: str, now: float) -> bool:
    # Longer texts are no times of this age, and int() of thousands of digits is slow.
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return False
    return abs(now - int(timestamp)) <= TOLERANCE
