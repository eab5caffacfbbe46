"""Commands whose standard streams are closed, full or left: a line for a person, never a traceback."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path

import pytest

from service.commands.output import _Output
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


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("--help",), 141), (("--version",), 141), (("check",), 141)],
)
def test_a_reader_that_has_gone_ends_a_command_without_complaint(
    arguments: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    subscriptions = tmp_path / "subscriptions.yaml"
    subscriptions.write_text("subscriptions: []")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DISPATCHER_SUBSCRIPTIONS": str(subscriptions)},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, b"")


def test_an_error_that_no_output_has_is_not_told_as_one() -> None:
    broken = (
        "import sys, service.commands.check as check, service.cli as cli\n"
        "def check_everything(*_): raise FileNotFoundError(2, 'No such file', '/gone')\n"
        "check.check_everything = check_everything\n"
        "sys.argv = ['x', 'check']\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "/gone" in done.stderr
    assert "output" not in done.stderr


def test_output_that_may_not_block_waits_for_its_reader() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = 0
    with suppress(BlockingIOError):
        while True:
            full += os.write(writer, bytes(512))
    text = b"x" * 1_000_000

    def write() -> None:
        with BufferedWriter(_Output(writer, "w")) as output:
            output.write(text)

    with ThreadPoolExecutor() as pool, os.fdopen(reader, "rb") as read:
        writing = pool.submit(write)
        wait([writing], timeout=0.2)
        assert read.read() == bytes(full) + text
        writing.result()
