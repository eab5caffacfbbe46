"""What a program started goes with it, however it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.watchdog import Watchdog
from tests.test_rabbitmq import REPOSITORY, eventually

PROGRAM = """
import subprocess, sys
from pathlib import Path
from service.watchdog import Watchdog
with Watchdog() as watchdog:
    watchdog.remove(Path(sys.argv[1]))
    quiet = {"stdout": subprocess.DEVNULL, "process_group": 0}
    groups = [subprocess.Popen(["sleep", "60"], **quiet).pid for _ in range(4)]
    for group in groups:
        watchdog.watch(group)
    watchdog.forget(groups[1])
    print(*groups, flush=True)
    sys.stdin.read()
"""


def begin(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    folder.mkdir()
    (folder / "file").touch()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, [int(one) for one in program.stdout.readline().split()]


def living(pids: list[int]) -> list[bool]:
    """Those that run; one that has ended may still wait for its parent to ask."""
    return [lives(pid) for pid in pids]


def lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_program_takes_its_processes_and_its_folder_along(tmp_path: Path) -> None:
    folder = tmp_path / "a name with spaces"
    program, groups = begin(folder)
    try:
        with program:
            program.kill()
        assert eventually(lambda: living(groups) == [False, True, False, False])
        assert eventually(lambda: not folder.exists())
    finally:
        for group in groups:
            if any(living([group])):
                os.kill(group, signal.SIGKILL)


def test_a_program_that_ends_in_order_is_left_to_clear_away_itself(tmp_path: Path) -> None:
    program, groups = begin(tmp_path / "folder")
    try:
        program.communicate()  # closes its input, and it ends
        assert program.returncode == 0
        assert living(groups) == [True] * 4
        assert (tmp_path / "folder" / "file").exists()
    finally:
        for group in groups:
            os.kill(group, signal.SIGKILL)


def test_a_watchdog_that_was_killed_is_no_reason_to_fail() -> None:
    with Watchdog() as watchdog:
        assert watchdog._shell is not None
        watchdog._shell.kill()
        watchdog._shell.wait()
        for number in range(1, 4):
            watchdog.watch(2**22 + number)
        watchdog.forget(2**22 + 1)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_watchdog_minds_no_signal_that_asks_a_program_to_end(number: int) -> None:
    with Watchdog() as watchdog:
        shell = watchdog._shell
        assert shell is not None
        assert eventually(lambda: ignores(shell.pid, number))
        shell.send_signal(number)
    assert shell.returncode == 0


def ignores(pid: int, number: int) -> bool:
    """Tell whether a process ignores a signal, by the mask that the kernel shows of it."""
    [mask] = re.findall(r"^SigIgn:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)
