"""No process and no temporary folder outlives the program that made it, however that program ends.

A shell waits at the far end of a pipe, which the kernel closes when the program ends, also by SIGKILL; then it
kills what it was told of.  It does nothing at an end in order, since the program has cleared away by then.
"""

import contextlib
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_WAIT_TIMEOUT: Final = 10.0

_SHELL: Final = """\
trap '' HUP INT TERM
groups= folder=
while read -r word told; do
    case $word in
    watch) groups="$groups $told " ;;
    forget) groups="${groups%% $told *} ${groups#* $told }" ;;
    remove) folder=$told ;;
    off) exit ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
[ -z "$folder" ] || rm -rf -- "$folder" 2>/dev/null || { sleep 1; rm -rf -- "$folder"; }
"""


class Watchdog:
    """Kills process groups, and then removes a folder, if this program ends suddenly.

    A context manager, or `start` and `close`.
    """

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; does nothing if it has begun."""
        if self._shell is None:
            self._shell = subprocess.Popen(  # noqa: S603 - constant words
                ["/bin/sh", "-c", _SHELL],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Not in our process group: a signal for all of it must leave the watchdog alive.
                start_new_session=True,
            )

    def watch(self, group: int) -> None:
        """Kill this process group at a sudden end."""
        self._tell(f"watch {group}")

    def forget(self, group: int) -> None:
        """Leave this group, which was watched, alone: it has ended, and its number may come to be another's."""
        self._tell(f"forget {group}")

    def remove(self, folder: Path) -> None:
        """Remove this folder at a sudden end; it must have no line break in its name."""
        self._tell(f"remove {folder}")

    def close(self) -> None:
        """Call it off; does nothing if it has not begun."""
        if self._shell is not None:
            self._tell("off")
            assert self._shell.stdin is not None  # noqa: S101 - it was opened as a pipe
            self._shell.stdin.close()
            self._shell.wait(_WAIT_TIMEOUT)
            self._shell = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, words: str) -> None:
        assert self._shell is not None  # noqa: S101 - it is started before any process
        assert self._shell.stdin is not None  # noqa: S101 - it was opened as a pipe
        # A watchdog that somebody killed costs only the guard against our own sudden end.
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(f"{words}\n".encode())
