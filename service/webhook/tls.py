"""TLS of webhook requests: which certificates are trusted, which are shown, and what went wrong.

Certificates are always verified, and nothing older than TLS 1.2 is spoken.  Contexts are kept per
`TlsFiles`, since connections are pooled by context, and made anew when a file changes.  The law here: files
that cannot be used, or not be read in time, put nothing out of force that was good before.
"""

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock
from service.core.subscription import TlsFiles
from service.webhook.threads import in_own_thread

_KEPT = 128  # contexts; one that trusts the system's authorities takes about a megabyte
_FRESH = 1.0  # seconds until the files of a context are looked at again
_PATIENCE = 0.5  # seconds of such a look for which those wait who could use what there is
_AT_MOST = 4.0  # seconds for which those wait that could not
_LOOKS = 32  # at once: a file system that hangs has a thread for each

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
    """A subscription's certificate files cannot be used: a failure of ours, not of the target."""


@dataclass(slots=True)
class _Kept:
    stamps: tuple[int, ...]
    context: ssl.SSLContext
    looked_at: float


@dataclass(slots=True)
class _Look:
    began: float  # by the event loop's clock
    found: "asyncio.Task[_Kept | TlsFilesError]"


class TlsContexts:
    """The TLS contexts in use: one of the system's authorities, and some of subscriptions' files."""

    def __init__(self, clock: Clock) -> None:
        self.default = _context(TlsFiles())
        self._clock = clock
        self._kept: OrderedDict[TlsFiles, _Kept] = OrderedDict()
        self._looks: dict[TlsFiles, _Look] = {}
        self._room = asyncio.Semaphore(_LOOKS)

    async def get(self, files: TlsFiles) -> ssl.SSLContext:
        """Return the context of `files` as they are now, or as they were when they could last be used.

        Raises `TlsFilesError` where they could not be used yet, or not be read in time.
        """
        kept = self._kept.get(files)
        if kept is not None and self._clock.monotonic() - kept.looked_at < _FRESH:
            self._kept.move_to_end(files)
            return kept.context
        # All who need these files wait for one look, and none of them ends it for the others.
        found = await self._found(files, _AT_MOST if kept is None else _PATIENCE) or kept
        if found is None:
            raise not_read_in_time()
        if isinstance(found, TlsFilesError):
            raise found
        return found.context

    async def _found(self, files: TlsFiles, seconds: float) -> _Kept | TlsFilesError | None:
        """Return what a look finds, or nothing where it takes longer than this."""
        loop = asyncio.get_running_loop()
        look = self._looks.get(files)
        if look is None:
            look = _Look(loop.time(), loop.create_task(self._look(files)))
            self._looks[files] = look
            look.found.add_done_callback(lambda _: self._looks.pop(files))
        left = look.began + seconds - loop.time()
        if left > 0:
            await asyncio.wait([look.found], timeout=left)
        return look.found.result() if look.found.done() else None

    async def _look(self, files: TlsFiles) -> _Kept | TlsFilesError:
        """Look at the files, and build their context where they have changed; an error where there is none."""
        kept = self._kept.get(files)
        try:
            async with self._room:
                kept = await in_own_thread(_read, files, kept)
        except TlsFilesError as error:
            if kept is None:
                return error
        except OSError as error:
            if kept is None:
                return TlsFilesError(f"certificate files: {error.strerror} to read them in")
        kept.looked_at = self._clock.monotonic()
        self._keep(files, kept)
        return kept

    def _keep(self, files: TlsFiles, kept: _Kept) -> None:
        self._kept[files] = kept
        self._kept.move_to_end(files)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def not_read_in_time() -> TlsFilesError:
    """Return the failure of files that a file system does not give."""
    return TlsFilesError("certificate files: they could not be read in time")


def describe(error: ssl.SSLError) -> str:
    """Say shortly why a handshake failed."""
    # Errors that Python makes itself lack what those of OpenSSL carry.
    if isinstance(error, ssl.SSLCertVerificationError):
        text: str = getattr(error, "verify_message", "certificate refused")
        return _VERIFY_TEXTS.get(getattr(error, "verify_code", 0), text)
    reason: str = getattr(error, "reason", None) or "broken off"
    return _REASON_TEXTS.get(reason) or reason.replace("_", " ").lower()


def _read(files: TlsFiles, kept: _Kept | None) -> _Kept:
    """Return what is kept, where the files are those that it was made of, or what is to be kept from now on."""
    stamps = _stamps(files)
    if kept is not None and kept.stamps == stamps:
        return kept
    return _Kept(stamps, _context(files), 0.0)


def _context(files: TlsFiles) -> ssl.SSLContext:
    with _using(files.ca_file, lacking="certificates in PEM form"):
        context = ssl.create_default_context(cafile=files.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    cert, key = files.client_cert_file, files.client_key_file
    if cert is not None:
        with _using(cert, key, lacking="certificate in PEM form with its key"):
            # An empty password instead of a question on the terminal, where the key is encrypted.
            context.load_cert_chain(cert, key, password="")
    return context


def _stamps(files: TlsFiles) -> tuple[int, ...]:
    stamps: list[int] = []
    for path in (files.ca_file, files.client_cert_file, files.client_key_file):
        if path is not None:
            with _using(path):
                seen = Path(
                    path
                ).stat()  # of a link what it leads to; some trees have one time for all
                stamps += (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return tuple(stamps)


@contextmanager
def _using(*paths: str | None, lacking: str = "") -> Iterator[None]:
    """Turn whatever is wrong with the files at `paths` into a `TlsFilesError` that names them."""
    try:
        yield
    except ssl.SSLError as error:
        reason = getattr(error, "reason", None)  # of a file that is cut off, OpenSSL tells none
        why = f" ({reason.replace('_', ' ').lower()})" if reason else ""
        raise _unusable(paths, f"no {lacking}{why}") from error
    except OSError as error:
        raise _unusable(paths, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unusable(paths, str(error)) from error


def _unusable(paths: tuple[str | None, ...], text: str) -> TlsFilesError:
    # Names last: an attempt's error is cut where it is too long.
    return TlsFilesError(f"certificate files: {text}: {' and '.join(filter(None, paths))}")
