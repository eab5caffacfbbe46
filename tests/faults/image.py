"""RabbitMQ 4.0 beside the installed one: Debian 13 in a folder of its own, from the machine's own mirror.

Needs root's rights, `debootstrap`, and a Debian mirror in apt's configuration.  Made once, kept in a
cache folder.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

SUITE: Final = "trixie"
NAME: Final = "rabbitmq-4.0"
SERVER: Final = "usr/lib/rabbitmq/bin/rabbitmq-server"
MAKE_TIMEOUT: Final = 1200.0
_FORMAT: Final = "$(ORIGIN)|$(LABEL)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"


class ImageError(Exception):
    """RabbitMQ 4.0 cannot be had here; the message says why."""


def prepare(cache: Path) -> Path:
    """Return the root folder of a system with RabbitMQ 4.0 in it, made in `cache` if it is not there.

    Raises ImageError.
    """
    root = cache / NAME
    if (root / SERVER).exists():
        return root
    if os.geteuid() != 0:
        raise ImageError("it needs root's rights (for chroot)")
    if shutil.which("debootstrap") is None:
        raise ImageError("it needs debootstrap: apt-get install debootstrap")
    partial = cache / f"{NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    _make(partial, mirror())
    partial.rename(root)
    return root


def mirror() -> str:
    """Return the URI of the Debian mirror that apt is configured with; raises ImageError."""
    try:
        told = _output("apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ImageError(f"apt does not tell its mirror: {error}") from error
    for line in told.splitlines():
        origin, label, codename, component, uri = line.split("|", 4)
        if (origin, label, component) == ("Debian", "Debian", "main") and codename.isalpha():
            return uri
    raise ImageError("apt's configuration has no Debian mirror (or it was never updated)")


def _make(folder: Path, uri: str) -> None:
    command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", SUITE]
    try:
        made = subprocess.run(
            [*command, str(folder), uri],
            env=os.environ | _proxy(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"debootstrap took longer than {MAKE_TIMEOUT:g} s") from None
    if made.returncode != 0 or not (folder / SERVER).exists():
        lines = (made.stdout + made.stderr).strip().splitlines()
        raise ImageError(f"debootstrap failed: {' '.join(lines[-3:])}")


def _proxy() -> dict[str, str]:
    """Return the proxy that apt uses, in the way that debootstrap understands."""
    told = _output("apt-config", "shell", "PROXY", "Acquire::http::Proxy")
    found = re.search(r"PROXY='(.+)'", told)
    return {"http_proxy": found[1]} if found and found[1] != "DIRECT" else {}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
