"""Files as they were when they were read, so that a later change can be noticed.

A look at a file follows symlinks: Kubernetes swaps a folder's `..data` link, and every file behind it
changes its inode.  A folder's look changes with its entries.
"""

import errno
import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Look = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of modification and of change in nanoseconds."""


def look(path: Path) -> Look | None:
    """Return how a file or folder looks now; None where it cannot be seen."""
    try:
        return _look(os.stat(path))  # noqa: PTH116 - a hundred thousand of these: no object each
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def changed(looks: Mapping[Path, Look | None]) -> tuple[Path, ...]:
    """Return the paths that look otherwise now."""
    return tuple(path for path, then in looks.items() if look(path) != then)


_SEEN_TO_END = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
})  # fmt: skip
"""Failures that last while the file looks the same."""


class Files:
    """Reads files and remembers the look that each had just before it was read.

    `may_pass`: one could not be read for a reason that may end while it looks the same.
    """

    def __init__(self) -> None:
        self.looks: dict[Path, Look | None] = {}
        self.may_pass = False

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Remember a file or folder that is read meanwhile, and whether that failed."""
        self.looks[path] = look(path)
        try:
            yield
        except ssl.SSLError:
            raise  # it was read, and is wrong
        except OSError as error:
            self.may_pass |= error.errno not in _SEEN_TO_END
            raise

    def read(self, path: Path, limit: int) -> bytes:
        """Return the bytes of a file; raises `OSError`, also where there are more than `limit`.

        A named pipe is none: it would be waited for without end.
        """
        try:
            with self.reading(path), open(path, "rb", opener=_without_waiting) as file:
                status = os.fstat(file.fileno())
                self.looks[path] = _look(status)
                if stat.S_ISFIFO(status.st_mode) and path.parts[1:2] != ("dev",):  # as /dev/stdin
                    raise OSError(errno.EINVAL, "It is a named pipe, not a file")
                os.set_blocking(file.fileno(), True)
                content = file.read(limit + 1)
        except ValueError:
            raise OSError(errno.EINVAL, "Not a file name") from None
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"File has more than {limit} bytes")
        return content

    def is_folder(self, path: Path) -> bool:
        """Tell a folder from a file, or from nothing; raises `OSError` where that cannot be told."""
        with self.reading(path):
            return path.is_dir()

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, sorted; raises `OSError`."""
        with self.reading(folder):
            return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _look(status: os.stat_result) -> Look:
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip
