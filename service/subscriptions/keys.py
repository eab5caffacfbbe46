"""Signing keys: read from the environment or from files, checked, decoded.

No message here quotes a secret, nor the name that it was looked up by: people paste the secret itself
where its name belongs.
"""

import base64
import binascii
import codecs
from collections.abc import Mapping
from pathlib import Path

from service.core.subscription import Scheme
from service.subscriptions.files import Files

Place = Path | str
"""Where a secret stands: a file, or the name of an environment variable."""

_MAX_BYTES = 64 * 1024
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_key(secret: bytes, scheme: Scheme) -> bytes:
    """Return the key material of a secret as its owner wrote it.

    standard: `whsec_` (may be left out) and base64 of 24 to 64 bytes.  ed25519: `whsk_` and base64 of
    a 32-byte seed, or of seed and public key.  hub-sha256: the text's bytes without one line end.
    Raises `ValueError`.
    """
    if secret.startswith(_BYTE_ORDER_MARKS):
        raise ValueError("begins with a byte order mark: it must be UTF-8 without one")
    if scheme is Scheme.STANDARD:
        return _standard(secret.strip())
    if scheme is Scheme.ED25519:
        return _ed25519(secret.strip())
    key = secret.removesuffix(b"\n").removesuffix(b"\r")
    if not key.strip():
        raise ValueError("is empty")
    return key


def key_warning(key: bytes, scheme: Scheme) -> str | None:
    """Return what a person should look at in a key that is valid."""
    if scheme is Scheme.HUB_SHA256 and key != key.strip():
        return "has spaces or line ends around it: they are part of the key"
    return None


def _standard(text: bytes) -> bytes:
    if text.startswith((b"whsk_", b"whpk_")):
        raise ValueError("is a key for the scheme ed25519; standard needs whsec_ and base64")
    key = _base64(text.removeprefix(b"whsec_"), "must be whsec_ and base64")
    if not 24 <= len(key) <= 64:
        raise ValueError(f"must be base64 of 24 to 64 random bytes, but has {len(key)}")
    return key


def _ed25519(text: bytes) -> bytes:
    if not text.startswith(b"whsk_"):
        raise ValueError("must be a private key: whsk_ and base64")
    key = _base64(text.removeprefix(b"whsk_"), "must be whsk_ and base64")
    if len(key) not in {32, 64}:
        raise ValueError(f"must be base64 of 32 bytes (seed) or 64 (seed, public), not {len(key)}")
    from service.core import ed25519  # noqa: PLC0415 - 6 MiB that few ever need

    seed, public = key[:32], key[32:]
    if public and ed25519.public_half(seed) != public:
        raise ValueError("holds a public half that does not belong to its seed")
    return seed


def _base64(text: bytes, message: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError(f"{message} with its padding") from None


class Keyring:
    """Reads each secret once per load, so that subscriptions that share one agree on it."""

    def __init__(self, files: Files, environ: Mapping[str, str]) -> None:
        self._files = files
        self._environ = environ
        self._known: dict[tuple[Place, Scheme], bytes | str] = {}

    def key(self, place: Place, scheme: Scheme) -> bytes:
        """Return the key of one secret; raises `ValueError` with what is wrong with it."""
        known = self._known.get((place, scheme))
        if known is None:
            known = self._known[place, scheme] = self._read(place, scheme)
        if isinstance(known, str):
            raise ValueError(known)  # noqa: TRY004 - a message, kept for the next who asks
        return known

    def _read(self, place: Place, scheme: Scheme) -> bytes | str:
        """Return the key, or what is wrong."""
        try:
            text = self._from_file(place) if isinstance(place, Path) else self._from_env(place)
            return decode_key(text, scheme)
        except ValueError as error:
            return str(error)

    def _from_env(self, name: str) -> bytes:
        if name not in self._environ:
            raise ValueError("names an environment variable that is not set")
        return self._environ[name].encode(errors="surrogateescape")

    def _from_file(self, path: Path) -> bytes:
        try:
            return self._files.read(path, _MAX_BYTES)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
