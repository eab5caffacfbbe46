"""TLS of webhook requests: which certificates are trusted, which are shown, and what went wrong.

Certificates are always verified, and nothing older than TLS 1.2 is spoken.  Contexts are kept per
`TlsFiles`, since connections are pooled by context, and made anew when a file changes.
"""

import asyncio
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock
from service.core.subscription import TlsFiles

_KEPT = 128  # contexts; one that trusts the system's authorities takes about a megabyte
_FRESH = 1.0  # seconds until the files of a context are looked at again

# TLS 1.2 with a key exchange over curves alone: of a Diffie-Hellman group the server chooses the size, and one of
# 10,000 bits costs us a second of CPU a handshake.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!SHA1:!AESCCM"

# OpenSSL's X509_V_ERR numbers (x509_vfy.h) that have a clearer name than its own text.
_VERIFY_TEXTS = {
    9: "certificate is not valid yet",
    10: "certificate has expired",
    18: "certificate is self-signed: unknown CA",
    19: "certificate of an unknown CA",
    20: "certificate of an unknown CA",
    21: "certificate of an unknown CA",
    62: "certificate is for another host name",
    64: "certificate is for another address",
}
_REASON_TEXTS = {
    "WRONG_CIPHER_RETURNED": "the target wants a key exchange that is not spoken: TLS 1.2 only with ECDHE",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the target demands a client certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the target refused the handshake",
    "TLSV1_ALERT_UNKNOWN_CA": "the target does not know the client certificate's CA",
    "WRONG_VERSION_NUMBER": "the target does not speak TLS",
    "HTTP_REQUEST": "the target does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "the target speaks no TLS 1.2 or newer",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the target speaks no TLS 1.2 or newer",
    "UNEXPECTED_EOF_WHILE_READING": "the target closed the connection during the handshake",
}


class TlsFilesError(Exception):
    """A subscription's certificate files cannot be used."""


@dataclass(slots=True)
class _Kept:
    stamps: tuple[int, ...]
    context: ssl.SSLContext
    looked_at: float


class TlsContexts:
    """The TLS contexts in use: one of the system's authorities, and some of subscriptions' files."""

    def __init__(self, clock: Clock) -> None:
        self.default = _context(TlsFiles())
        self._clock = clock
        self._kept: OrderedDict[TlsFiles, _Kept] = OrderedDict()

    async def get(self, files: TlsFiles) -> ssl.SSLContext:
        """Return the context of `files`; raises `TlsFilesError` where they cannot be read."""
        kept = self._kept.get(files)
        now = self._clock.monotonic()
        if kept is not None and now - kept.looked_at < _FRESH:
            self._kept.move_to_end(files)
            return kept.context
        try:
            stamps = _stamps(files)
            if kept is None or kept.stamps != stamps:
                # Reading the system's authorities takes tens of milliseconds.
                context = await asyncio.to_thread(_context, files)
                kept = _Kept(stamps, context, now)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsFilesError(f"certificate files cannot be used: {_text(error)}") from error
        kept.looked_at = now
        self._keep(files, kept)
        return kept.context

    def _keep(self, files: TlsFiles, kept: _Kept) -> None:
        self._kept[files] = kept
        self._kept.move_to_end(files)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def describe(error: ssl.SSLError) -> str:
    """Say shortly why a handshake failed."""
    # Errors that Python makes itself lack what those of OpenSSL carry.
    if isinstance(error, ssl.SSLCertVerificationError):
        text: str = getattr(error, "verify_message", "certificate refused")
        return _VERIFY_TEXTS.get(getattr(error, "verify_code", 0), text)
    reason: str = getattr(error, "reason", None) or "broken off"
    return _REASON_TEXTS.get(reason) or reason.replace("_", " ").lower()


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    if files.client_cert_file is not None:
        # An empty password instead of a question on the terminal, where the key is encrypted.
        context.load_cert_chain(files.client_cert_file, files.client_key_file, password="")
    return context


def _stamps(files: TlsFiles) -> tuple[int, ...]:
    paths = (files.ca_file, files.client_cert_file, files.client_key_file)
    return tuple(Path(path).stat().st_mtime_ns for path in paths if path is not None)


def _text(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return describe(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
