"""Standard output as commands write to it: what it does not take is an error of its own.

Not an `OSError`, which could as well be the broker's connection, or a file.
"""

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, cast

from service.errors import OutputLost, ReaderGone

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    """A descriptor that raises ReaderGone or OutputLost where it takes no more."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write what there is room for, once there is any; returns how many bytes.

        Whoever shares the descriptor may have told it not to block: a shell's other programs, ssh.
        """
        try:
            # None comes where it would block, whatever the types say.
            while (written := cast("int | None", super().write(data))) is None:
                self._wait_for_room()
        except OSError as error:
            lost = ReaderGone if error.errno == errno.EPIPE else OutputLost
            raise lost(f"output cannot be written: {error.strerror}") from error
        return written

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        poll.poll()


def watch_output() -> None:
    """Have everything that is written to standard output from now on raise in these words."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors=sys.stdout.errors,
            line_buffering=sys.stdout.line_buffering,
        )


def drop_output() -> None:
    """Have the rest of the output go nowhere: the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
