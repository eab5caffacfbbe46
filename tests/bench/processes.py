"""Programs that are measured or help to measure: started, paused, ended; their CPU time and memory.

The law: none of them outlives this program.  Each is ended by its id on the way out, and the kernel kills
it where this program ends without a way out.  Linux only.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
_END_TIMEOUT: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


class MeasuringError(Exception):
    """Something did not do what was to be measured; the message is for people."""


@asynccontextmanager
async def started(*command: str, environ: Mapping[str, str]) -> AsyncIterator[Process]:
    """Run a program with pipes for its standard input and output; it ends with the context."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environ,
        stdin=PIPE,
        stdout=PIPE,
        stderr=None,
        limit=2**20,
        preexec_fn=_stand_apart,
    )
    try:
        yield process
    finally:
        await _end(process)


def module_environ() -> dict[str, str]:
    """Return what a program of this repository needs of the environment, and no settings."""
    return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in user mode and in the kernel.

    The kernel's clock of another process (clock_getcpuclockid(3)): exact where `/proc/PID/stat` counts
    in hundredths of a second.
    """
    return time.clock_gettime((~pid << 3) | 2)


def waited_seconds(pid: int) -> float:
    """Return for how long the threads of a process could have run, but others had the cores.

    The second figure of `schedstat` (Linux, Documentation/scheduler/sched-stats.rst).
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def pause(process: Process) -> None:
    """Hold a program and those that it started, so that work can be laid out without their taking part."""
    os.killpg(process.pid, signal.SIGSTOP)


def resume(process: Process) -> None:
    """Let a program, and those that it started, go on."""
    os.killpg(process.pid, signal.SIGCONT)


async def line_from(process: Process, seconds: float = 30.0) -> str:
    """Return the next line that a program prints; raises MeasuringError where none comes."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(seconds):
            line = await process.stdout.readline()
    except TimeoutError:
        raise MeasuringError(f"a helper did not answer within {seconds:g} s") from None
    if not line:
        raise MeasuringError(f"a helper ended with status {await process.wait()}")
    return line.decode().rstrip("\n")


def say(told: object) -> None:
    """Print a line for the program that started this one, at once."""
    sys.stdout.write(f"{told}\n")
    sys.stdout.flush()


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        resume(process)
        process.terminate()
    try:
        async with asyncio.timeout(_END_TIMEOUT):
            await _ended(process)
    except TimeoutError:
        await _kill(process)
    except asyncio.CancelledError:
        await _kill(process)
        raise


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await _ended(process)


async def _ended(process: Process) -> None:
    """Wait for the end; what is still printed must not keep a program from ending."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    while await process.stdout.read(2**16):
        pass
    await process.wait()


def _stand_apart() -> None:
    """In the child: hear no Ctrl-C, which is for this program to act on, and end when it ends."""
    os.setpgid(0, 0)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
