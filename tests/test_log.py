"""The catalogue of log lines, its schemas on disk, and the sink."""

import asyncio
import json
import os
from pathlib import Path

import jsonschema
import pytest

from service.catalogue import CATALOGUE, json_schema, write_schemas
from service.log import LineSink, configure

SCHEMAS = Path(__file__).parent.parent / "schemas" / "log"


def test_the_schemas_on_disk_are_those_of_the_catalogue(tmp_path):
    write_schemas(tmp_path)
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


def test_the_level_decides_what_is_written():
    assert len(lines_of("json", "debug")) == 2
    assert len(lines_of("json", "error")) == 0


def test_the_console_form_is_for_people():
    [line] = lines_of("console")
    assert "target.recovered" in line
    assert "subscription_id=s" in line


async def test_lines_of_one_turn_of_the_loop_are_written_together_before_the_next():
    reader, writer = os.pipe()
    sink = LineSink(writer)
    sink.attach(asyncio.get_running_loop())
    sink.msg(b"one")
    sink.msg(b"two")
    await asyncio.sleep(0)
    assert os.read(reader, 100) == b"one\ntwo\n"
    os.close(reader)
    os.close(writer)
