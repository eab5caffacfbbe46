"""The JSON Schema of a subscriptions file, for editors and for whoever generates such files."""

from collections.abc import Mapping
from typing import Any

from service.subscriptions.model import FileModel


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12), generated from the models."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_schema(FileModel.model_json_schema(by_alias=True)),
        "title": "Subscriptions of the webhook dispatcher",
    }


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without titles that repeat names, and without defaults that say nothing."""
    kept = {key: _inner(key, value) for key, value in schema.items() if key != "title"}
    if not kept.get("default", True) and not isinstance(kept["default"], bool):
        del kept["default"]
    return kept


def _inner(key: str, value: Any) -> Any:
    if key in {"properties", "$defs"}:  # maps of schemas by names, of which one might be `title`
        return {name: _schema(schema) for name, schema in value.items()}
    if isinstance(value, dict) and key in {"items", "additionalProperties"}:
        return _schema(value)
    if key in {"anyOf", "oneOf"}:
        return [_schema(schema) for schema in value]
    return value
