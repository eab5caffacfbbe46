"""Event data schemas: the packaged ones are sound, broken ones are found early, no value is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.decode import MAX_DEPTH
from service.errors import ConfigurationError, EventRejected
from service.schemas import DRAFT, PACKAGED, EventSchemas

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted(PACKAGED.glob("*.json"))}
PACKAGED_SCHEMAS = EventSchemas.load()


def loaded(folder: Path, schema: object, event_type: str = "a.b") -> EventSchemas:
    (folder / f"{event_type}.json").write_text(json.dumps(schema))
    return EventSchemas.load(folder)


def violation(schemas: EventSchemas, data: object, event_type: str = "a.b") -> str:
    with pytest.raises(EventRejected) as caught:
        schemas.check(event_type, data)
    assert caught.value.reason == "schema_violation"
    return caught.value.detail


def test_the_packaged_types_are_there() -> None:
    assert set(PACKAGED_SCHEMAS.types) == {
        "alert.raised",
        "build.completed",
        "order.created",
        "payment.failed",
        "payment.succeeded",
    }


@pytest.mark.parametrize("event_type", SCHEMAS)
def test_a_packaged_schema_says_what_it_is(event_type: str) -> None:
    schema = SCHEMAS[event_type]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DRAFT
    assert schema["$id"] == f"urn:webhook-dispatcher:event:{event_type}"
    assert schema["title"] == event_type
    assert schema["description"]
    assert all(member["description"] for member in schema["properties"].values())
    assert len(schema["examples"]) > 1


@pytest.mark.parametrize("event_type", SCHEMAS)
def test_the_examples_are_valid_for_two_implementations(event_type: str) -> None:
    other = jsonschema.Draft202012Validator(
        SCHEMAS[event_type], format_checker=jsonschema.FormatChecker()
    )
    for example in SCHEMAS[event_type]["examples"]:
        PACKAGED_SCHEMAS.check(event_type, example)
        other.validate(example)
        PACKAGED_SCHEMAS.check(event_type, example | {"added_later": [1]})


@pytest.mark.parametrize("event_type", SCHEMAS)
def test_an_example_without_what_is_required_is_refused_by_two_implementations(
    event_type: str,
) -> None:
    other = jsonschema.Draft202012Validator(SCHEMAS[event_type])
    for name in SCHEMAS[event_type]["required"]:
        for example in SCHEMAS[event_type]["examples"]:
            lacking = {key: value for key, value in example.items() if key != name}
            assert name in violation(PACKAGED_SCHEMAS, lacking, event_type)
            assert not other.is_valid(lacking)


@pytest.mark.parametrize(
    ("event_type", "change", "path"),
    [
        ("order.created", {"amount": -1}, "$.amount"),
        ("order.created", {"amount": "12"}, "$.amount"),
        ("order.created", {"currency": "euro"}, "$.currency"),
        ("order.created", {"items": {}}, "$.items"),
        (
            "order.created",
            {"items": [{"sku": "a", "quantity": 0, "unit_amount": 1}]},
            "$.items[0].q",
        ),
        ("order.created", {"placed_at": "today"}, "$.placed_at"),
        ("payment.succeeded", {"amount": -0.01}, "$.amount"),
        ("payment.succeeded", {"method": ""}, "$.method"),
        ("payment.failed", {"reason": ""}, "$.reason"),
        ("payment.failed", {"will_retry": "yes"}, "$.will_retry"),
        ("build.completed", {"commit": 7}, "$.commit"),
        ("build.completed", {"status": True}, "$.status"),
        ("alert.raised", {"severity": 3}, "$.severity"),
        ("alert.raised", {"labels": {"a b": 1}}, "$.labels['a b']"),
    ],
)
def test_a_changed_example_is_refused_with_its_path(
    event_type: str, change: dict[str, Any], path: str
) -> None:
    for example in SCHEMAS[event_type]["examples"]:
        assert violation(PACKAGED_SCHEMAS, example | change, event_type).startswith(path)


def test_a_type_without_a_schema_passes() -> None:
    PACKAGED_SCHEMAS.check("nobody.knows", {"anything": [1]})


RULES: dict[str, Any] = {
    "type": {"type": "null"},
    "enum": {"enum": [1]},
    "const": {"const": 1},
    "pattern": {"pattern": "^never$"},
    "format": {"format": "date-time"},
    "length": {"maxLength": 2},
    "unique": {"type": "array", "uniqueItems": True},
    "duplicates": {"uniqueItems": True},
    "contains": {"contains": {"const": 1}},
    "any": {"anyOf": [{"const": 1}, {"type": "null"}]},
    "one": {"oneOf": [True, True]},
    "not": {"not": True},
    "never": False,
    "names": {"propertyNames": {"maxLength": 2}},
    "additional": {"type": "object", "additionalProperties": False},
    "unevaluated": {"unevaluatedProperties": False, "unevaluatedItems": False},
    "dependent": {"dependentRequired": {"a": ["b"]}},
    "required": {"required": ["b"]},
    "items": {"items": {"maxLength": 2}},
    "conditional": {"if": True, "then": {"const": 1}},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "data",
    ["sesame", ["sesame", "sesame"], {"sesame": "sesame"}, {"a": "sesame"}, [["sesame"]]],
    ids=["text", "list", "key", "member", "nested"],
)
def test_no_violation_tells_a_value_or_the_key_of_a_map(
    tmp_path: Path, rule: str, data: object
) -> None:
    try:
        loaded(tmp_path, {"properties": {"x": RULES[rule]}}).check("a.b", {"x": data})
    except EventRejected as error:
        assert error.detail.startswith("$.x")  # noqa: PT017
        assert "sesame" not in error.detail  # noqa: PT017


def test_a_violation_is_bounded(tmp_path: Path) -> None:
    schemas = loaded(
        tmp_path,
        {"additionalProperties": {"enum": ["x" * 10_000]}},
    )
    assert len(violation(schemas, {"k" * 10_000: 1})) < 600


GREEDY = """
import resource, sys
from pathlib import Path
from service.errors import EventRejected
from service.schemas import EventSchemas

schemas = EventSchemas.load(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    schemas.check("a.b", {f"key{number}": 1 for number in range(2_000)})
except EventRejected:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


# Each of 2,000 violations would otherwise hold a copy of the whole map: 0.9 GiB.
def test_only_the_first_of_many_violations_is_made(tmp_path: Path) -> None:
    loaded(tmp_path, {"propertyNames": {"pattern": "^[a-z]+$"}})
    told = subprocess.run(
        [sys.executable, "-c", GREEDY, str(tmp_path)], capture_output=True, check=True, text=True
    )
    assert int(told.stdout) < 100, "MiB"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
)
def test_any_data_passes_or_is_rejected(data: object) -> None:
    for event_type in PACKAGED_SCHEMAS.types:
        violation(PACKAGED_SCHEMAS, data, event_type)


def test_the_deepest_data_can_be_checked(tmp_path: Path) -> None:
    schemas = loaded(tmp_path, {"$ref": "#/$defs/nested", "$defs": {"nested": {"items": {"$ref": "#/$defs/nested"}, "type": "array"}}})  # fmt: skip
    data: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        data = [data]
    schemas.check("a.b", data)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{", "is not strict JSON"),
        ('{"type":"string","type":"null"}', "the key 'type' is there twice"),
        ("[]", "a schema is a JSON object"),
        ('{"type":"text"}', "$.type"),
        ('{"properties":{"a":{"minimum":"1"}}}', "$.properties.a.minimum"),
        ('{"pattern":"("}', "$.pattern"),
        ('{"$ref":"#/$defs/gone"}', "/$defs/gone"),
        ('{"$ref":"other.json"}', "other.json"),
        ('{"$ref":"https://example.com/schema.json"}', "put it under $defs"),
        ('{"$ref":"http://127.0.0.1:9/schema.json"}', "put it under $defs"),
        ('{"$ref":"file:///etc/hostname"}', "put it under $defs"),
        ('{"$schema":"http://json-schema.org/draft-07/schema#"}', "2020-12"),
    ],
)
def test_a_broken_schema_is_refused_by_file_and_problem(
    tmp_path: Path, text: str, hint: str
) -> None:
    path = tmp_path / "a.b.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        EventSchemas.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        EventSchemas.load(tmp_path / "gone")


def test_only_json_files_are_schemas_and_links_are_followed(tmp_path: Path) -> None:
    data = tmp_path / "..data"
    data.mkdir()
    (data / "a.b.json").write_text('{"type":"null"}')
    (tmp_path / "a.b.json").symlink_to(data / "a.b.json")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.json").write_text("x")
    (tmp_path / "folder.json").mkdir()
    assert EventSchemas.load(tmp_path).types == ("a.b",)
