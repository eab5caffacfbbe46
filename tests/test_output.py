"""Commands whose standard streams are closed, full or left: a line for a person, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dispatcher import ROOT

BYTES = b'"\xff"'


def run(arguments: tuple[str | bytes, ...], streams: str, **environ: str) -> tuple[int, str]:
    """Run a command as a shell does with these redirections; returns exit status and errors."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DISPATCHER_AMQP_URL": "amqp://127.0.0.1:1/"} | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    ("arguments", "streams", "status", "problem"),
    [
        (("--help",), ">/dev/full", 1, "output cannot be written"),
        (("stats",), ">/dev/full", 1, "output cannot be written"),
        (("stats",), ">&-", 0, ""),
        (("stats",), "<&-", 2, "standard input is closed"),
        (("publish", "a.b", "--data", "-"), "<&-", 2, "standard input is closed"),
        (("publish", "a.b", "--data", "-"), "0>/dev/null", 2, "standard input cannot be read"),
        (("publish", "a.b", "--data", BYTES), "", 1, "cannot be reached"),
    ],
)
def test_a_stream_that_is_of_no_use_is_told(
    arguments: tuple[str | bytes, ...], streams: str, status: int, problem: str
) -> None:
    found, told = run(arguments, streams)
    assert (found, "Traceback" in told) == (status, False), told
    assert problem in told
    assert len(told.splitlines()) == bool(problem)


def test_a_url_that_is_no_text_is_told() -> None:
    environ = os.fsdecode(b"amqp://\xff/")
    found, told = run(("publish", "a.b"), "", DISPATCHER_AMQP_URL=environ)
    assert (found, "Traceback" in told) == (2, False)
    assert "DISPATCHER_AMQP_URL: has a host or port that cannot be read" in told


def test_a_reader_that_has_gone_ends_a_command_without_complaint(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "service", "stats", "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipeError" not in done.stderr
