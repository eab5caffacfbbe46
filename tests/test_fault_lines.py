"""The line of a fault of this program: where it happened, and nothing of what it happened with."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.bounded_log import BoundedLog
from service.faults import ERROR_KEPT, STACK_KEPT, tell_fault
from service.line_schema import LINES
from service.log import LineSink, configure
from tests.dispatcher import validate_line
from tests.fake_broker import FakeClock

SECRET = "whsec_of_a_customer"


def told(path: Path, error: Exception, times: int = 1) -> list[dict[str, Any]]:
    """Return the lines of a fault that happens so often."""
    with path.open("wb") as file:
        log = BoundedLog(configure("info", "json", LineSink(file.fileno())), FakeClock())
        for _ in range(times):
            tell_fault(log, "intake lane", error)
        log.flush()
    return [validate_line(line) for line in path.read_text().split("\n") if line]


def even(number: int) -> None:
    odd(number - 1)


def odd(number: int) -> None:
    if number < 0:
        raise ValueError("x" * 5000)
    even(number - 1)


def read_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise KeyError("number") from error


def test_it_tells_the_frames_also_of_the_cause_and_no_value_and_no_message(tmp_path):
    try:
        read_number(SECRET)
    except KeyError as error:
        [line] = told(tmp_path / "log", error)
    assert line["error"] == "KeyError: 'number'"
    assert [row for row in line["stack"].splitlines() if not row.startswith("  ")] == [
        "ValueError", "KeyError",
    ]  # fmt: skip
    assert "return int(text)" in line["stack"]
    assert 'raise KeyError("number") from error' in line["stack"]
    assert SECRET not in json.dumps(line)


def test_of_a_deep_stack_its_end_is_told_and_of_a_long_message_its_beginning(tmp_path):
    with pytest.raises(ValueError, match="xxx") as caught:
        even(200)
    [line] = told(tmp_path / "log", caught.value)
    assert len(line["stack"]) == STACK_KEPT
    assert line["stack"].endswith('raise ValueError("x" * 5000)\nValueError')
    assert line["error"] == ("ValueError: " + "x" * 5000)[:ERROR_KEPT]


def test_whatever_its_message_it_is_one_line(tmp_path):
    [line] = told(tmp_path / "log", ValueError("two\nlines and \udcff"))
    assert line["error"] == "ValueError: two\nlines and \\udcff"


def test_a_cause_of_itself_is_told(tmp_path):
    error, cause = ValueError(), KeyError()
    error.__cause__, cause.__cause__ = cause, error
    [line] = told(tmp_path / "log", error)
    assert line["stack"].endswith("ValueError")


def test_one_that_repeats_is_told_in_few_lines(tmp_path):
    lines = told(tmp_path / "log", ZeroDivisionError(), times=100)
    assert len(lines) == LINES + 1
    assert lines[-1]["left_out"] == 100 - len(lines)
    assert {line["stack"] for line in lines} == {"ZeroDivisionError"}
