"""The catalogue of log lines, its schemas on disk, and the sink."""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import jsonschema
import pytest

from service.catalogue import CATALOGUE
from service.line_schema import json_schema, write_schemas
from service.log import GATHER, LineSink, attempt_lines, configure

SCHEMAS = Path(__file__).parent.parent / "schemas" / "log"


def test_the_schemas_on_disk_are_those_of_the_catalogue(tmp_path):
    write_schemas(CATALOGUE, tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert fresh == {path.name: path.read_text() for path in SCHEMAS.iterdir()}


@pytest.mark.parametrize("event", CATALOGUE, ids=lambda event: event.name)
def test_every_schema_is_one_and_tells_when_and_what_to_do(event):
    schema = json_schema(event)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert event.when.endswith(".")
    assert event.action.endswith(".")
    for told in schema["properties"].values():
        assert "description" in told or "const" in told


def lines_of(form: str, level: str = "info") -> list[str]:
    reader, writer = os.pipe()
    log = configure(level, form, LineSink(writer))
    log.debug("event.unmatched", event_id="e", event_type="a.b")
    log.info("target.recovered", subscription_id="s", target="https://a.example/")
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read().splitlines()


def test_a_line_is_one_json_object_with_the_names_operators_know():
    [line] = lines_of("json")
    told = json.loads(line)
    assert list(told)[:5] == ["timestamp", "level", "message", "service", "version"]
    assert told["timestamp"].endswith("Z")
    assert len(told["timestamp"]) == len("2026-01-01T00:00:00.000000Z")
    jsonschema.validate(told, json_schema(next(e for e in CATALOGUE if e.name == told["message"])))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("m\udcfcller.yaml", "m\\udcfcller.yaml"),
        (["\ud83d", 1.5, None], ["\\ud83d", 1.5, None]),
        ({"\ud83d": "ü"}, {"\\ud83d": "ü"}),
        (10**30, str(10**30)),
    ],
    ids=["the name of a file that is no UTF-8", "list", "map", "number"],
)
def test_what_json_cannot_hold_is_written_as_what_it_can(value, told):
    reader, writer = os.pipe()
    configure("info", "json", LineSink(writer)).error("subscriptions.refused", error=value)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert json.loads(pipe.read())["error"] == told


def test_the_level_decides_what_is_written():
    assert len(lines_of("json", "debug")) == 2
    assert len(lines_of("json", "error")) == 0


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["succeeded", "failed"]),
        ("info", ["succeeded", "failed"]),
        ("warning", ["failed"]),
        ("error", []),
    ],
)
def test_the_level_decides_which_attempts_are_written(tmp_path, form, level, told):
    path = tmp_path / "log"
    with path.open("wb") as file:
        sink = LineSink(file.fileno())
        write = attempt_lines(level, form, sink, configure(level, form, sink))
        write("attempt.succeeded", b'"round":1')
        write("attempt.failed", b'"round":1')
    lines = path.read_text().splitlines()
    assert [one for line in lines for one in ("succeeded", "failed") if one in line] == told
    for line in lines if form == "json" else []:
        found = json.loads(line)
        [kind] = [event for event in CATALOGUE if event.name == found["message"]]
        assert found["level"] == kind.level


def test_the_console_form_is_for_people():
    [line] = lines_of("console")
    assert "target.recovered" in line
    assert "subscription_id=s" in line


async def test_lines_of_a_moment_are_written_together():
    reader, writer = os.pipe()
    sink = LineSink(writer)
    sink.attach(asyncio.get_running_loop())
    sink.msg(b"one")
    sink.msg(b"two")
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    await asyncio.sleep(2 * GATHER)
    assert os.read(reader, 100) == b"one\ntwo\n"
    os.close(reader)
    os.close(writer)


def filled_pipe() -> tuple[int, int]:
    """Return a pipe that is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    return reader, writer


def drained(reader: int) -> bytes:
    os.set_blocking(reader, False)
    found = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 2**20):
            found += part
    return found


async def test_a_reader_that_is_stuck_holds_nothing_up_and_then_gets_every_line():
    reader, writer = filled_pipe()
    sink = LineSink(writer)
    sink.attach(asyncio.get_running_loop())
    for number in range(1000):
        sink.msg(b"%d " % number + b"y" * 200)
    await asyncio.sleep(0)
    found = drained(reader).lstrip(b"x")
    while found.count(b"\n") < 1000:
        await asyncio.sleep(0.005)
        found += drained(reader)
    assert [int(line.split()[0]) for line in found.splitlines()] == list(range(1000))
    assert (sink.written, sink.lost) == (1000, 0)
    os.close(reader)
    os.close(writer)


async def test_beyond_its_bound_lines_are_left_out_and_counted():
    reader, writer = filled_pipe()
    sink = LineSink(writer, limit=10_000)
    sink.attach(asyncio.get_running_loop())
    for _ in range(1000):
        sink.msg(b"y" * 99)
    drained(reader)
    found = b""
    while b"log.gap" not in found:
        await asyncio.sleep(0.005)
        found += drained(reader)
    lines = found.splitlines()
    gap = json.loads(lines[-1])
    assert gap["lines"] + len(lines) - 1 == 1000
    assert (sink.written, sink.lost) == (len(lines), gap["lines"])
    jsonschema.validate(gap, json_schema(next(e for e in CATALOGUE if e.name == "log.gap")))
    os.close(reader)
    os.close(writer)


def test_a_reader_that_is_gone_and_a_full_disk_raise_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    sink = LineSink(writer)
    sink.msg(b"nobody hears this")
    assert (sink.written, sink.lost) == (0, 1)
    os.close(writer)
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink = LineSink(full.fileno())
        sink.msg(b"nor this")
        assert (sink.written, sink.lost) == (0, 1)


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 50_000])
def test_a_line_of_any_length_arrives_whole(tmp_path, size):
    path = tmp_path / "log"
    with path.open("wb") as file:
        sink = LineSink(file.fileno())
        sink.msg(b"z" * size)
        sink.msg(b"end")
    assert path.read_bytes() == b"z" * size + b"\nend\n"
