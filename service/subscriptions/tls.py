"""PEM files are tried out when they are configured, not when the first delivery needs them."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from service.core.subscription import TlsFiles
from service.subscriptions.files import Files


def tls_problems(tls: TlsFiles, files: Files) -> Mapping[str, str]:
    """Return what is wrong, by the name of the field; notes the files, so that a change is seen."""
    problems: dict[str, str] = {}
    for name in ("ca_file", "client_cert_file", "client_key_file"):
        path: str | None = getattr(tls, name)
        if path is not None and (problem := _unreadable(Path(path), files)) is not None:
            problems[name] = problem
    if not problems:
        problems |= _unusable(tls, files)
    return problems


def _unreadable(path: Path, files: Files) -> str | None:
    try:
        with files.reading(path), path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is not a file name"
    return None


def _unusable(tls: TlsFiles, files: Files) -> Mapping[str, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if tls.ca_file is not None:
            with files.reading(Path(tls.ca_file)):
                context.load_verify_locations(tls.ca_file)
    except ssl.SSLError:
        return {"ca_file": "must hold certificates in PEM form"}
    except OSError as error:
        return {"ca_file": f"cannot be read: {error.strerror}"}
    if tls.client_cert_file is None:
        return (
            {} if tls.client_key_file is None else {"client_key_file": "needs a client_cert_file"}
        )
    try:
        with files.reading(Path(tls.client_cert_file)):
            context.load_cert_chain(tls.client_cert_file, tls.client_key_file, _no_passphrase)
    except ssl.SSLError:
        return {"client_cert_file": "must hold a certificate in PEM form that fits its key"}
    except OSError as error:
        return {"client_cert_file": f"or its key cannot be read: {error.strerror}"}
    return {}


def _no_passphrase() -> str:
    """Answer instead of the terminal, where OpenSSL would ask."""
    return ""
