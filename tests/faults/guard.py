"""No process outlives the run, however the run ends.

A shell waits at the far end of a pipe, which the kernel closes when this program ends, also by SIGKILL;
then it kills what it was told of.
"""

import contextlib
import subprocess
from typing import Self

_SCRIPT = """\
trap '' HUP INT TERM
groups=
while read -r sign group; do
    case $sign in
    +) groups="$groups $group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class Guard:
    """Kills the process groups that it was told of when this program ends."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell is not None
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(10)

    def watch(self, group: int) -> None:
        """Kill this group at the end."""
        self._tell(f"+ {group}\n")

    def forget(self, group: int) -> None:
        """Leave this group alone: it has ended, and its number may come to be another's."""
        self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        assert self._shell is not None
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(line.encode())
            self._shell.stdin.flush()
