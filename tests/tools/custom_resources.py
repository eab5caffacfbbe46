"""What the operators' definitions say of the objects that this repository has for them.

    python -m tests.tools.custom_resources "RabbitMQ cluster operator 2.22.3=FOLDER" "KEDA 2.20.2=FOLDER" ...

writes `custom_resources.yaml`: of each kind in use, the fields in use, and what is required of them.  A FOLDER
holds custom resource definitions, as `config/crd/bases` of an operator's repository does.  These are facts for
the tests, not schemas to hand on: a field that no manifest has is not on the list, and no text is taken along.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from tests.tools import manifests
from tests.tools.manifests import BROKER_TLS, KEDA, Manifest

FILE: Final = Path(__file__).with_suffix(".yaml")
GROUPS: Final = ("rabbitmq.com", "keda.sh")
"""API groups that Kubernetes knows nothing of."""

Schema = dict[str, Any]
Schemas = dict[str, Schema]
"""Of each kind's `spec`, by API version and kind as `name_of` writes them."""

_OPEN: Final = "x-kubernetes-preserve-unknown-fields"
_EITHER: Final = "x-kubernetes-int-or-string"
_KEPT: Final = (
    *("type", "required", "enum", "nullable", "minimum", "maximum", "minLength", "maxLength"),
    *("minItems", "maxItems", _OPEN, _EITHER),
)
_HEAD: Final = """\
# Which fields the operators let our objects have: facts, read out of their definitions by
# `python -m tests.tools.custom_resources`, for the fields in use alone.
"""


def in_use(folder: Path) -> list[Manifest]:
    """Return all objects for the operators, of the production overlay and its variant with TLS."""
    with_tls = str(manifests.production_with(folder, KEDA, BROKER_TLS))
    everything = (*manifests.rendered("overlays/production"), *manifests.rendered(with_tls))
    return [one for one in everything if one["apiVersion"].split("/")[0] in GROUPS]


def name_of(manifest: Manifest) -> str:
    """Return API version and kind in one."""
    return f"{manifest['apiVersion']} {manifest['kind']}"


def defined(folders: Iterable[Path]) -> Schemas:
    """Return what all definitions in the folders say."""
    found = {}
    for file in (file for folder in folders for file in folder.rglob("*.yaml")):
        for definition in yaml.load_all(file.read_text(), yaml.CSafeLoader):
            if isinstance(definition, dict) and definition["kind"] == "CustomResourceDefinition":
                spec = definition["spec"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
                    whole = version["schema"]["openAPIV3Schema"]
                    found[name] = whole["properties"]["spec"]
    return found


def listed() -> Schemas:
    """Return what the file says."""
    kinds: Schemas = yaml.safe_load(FILE.read_text())["kinds"]
    return kinds


def facts(definitions: Schemas, objects: Iterable[Manifest]) -> Schemas:
    """Return the definitions of the objects' kinds, as far as the objects have to do with them."""
    specs: dict[str, list[Any]] = {}
    for one in objects:
        specs.setdefault(name_of(one), []).append(one["spec"])
    return {name: _used(definitions[name], specs[name]) for name in sorted(specs)}


def closed(schema: Schema) -> Schema:
    """Return a structural schema as JSON Schema in which what is not listed is refused, as by `kubectl`."""
    if schema.get(_EITHER):
        return {"type": ["integer", "string"]}
    closed_one = dict(schema)
    if "properties" in schema:
        closed_one["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if not schema.get(_OPEN):
            closed_one["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        closed_one["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        closed_one["items"] = closed(schema["items"])
    return closed_one


def _used(schema: Schema, values: list[Any]) -> Schema:
    """Return the schema with the properties that one of the values has."""
    used: Schema = {key: schema[key] for key in _KEPT if key in schema}
    objects = [value for value in values if isinstance(value, dict)]
    if "properties" in schema:
        names = sorted({name for value in objects for name in value} & schema["properties"].keys())
        used["properties"] = {
            name: _used(schema["properties"][name], [one[name] for one in objects if name in one])
            for name in names
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = [value for one in objects for value in one.values()]
        used["additionalProperties"] = _used(schema["additionalProperties"], inner)
    if "items" in schema:
        lists = (value for value in values if isinstance(value, list))
        used["items"] = _used(schema["items"], [one for value in lists for one in value])
    return used


def main(arguments: Iterable[str]) -> None:
    """Write the file; each argument is a name with its version, and the folder of its definitions."""
    sources = dict(argument.rsplit("=", 1) for argument in arguments)
    with tempfile.TemporaryDirectory() as folder:
        kinds = facts(defined(map(Path, sources.values())), in_use(Path(folder)))
    told = {"read_from": list(sources), "kinds": kinds}
    FILE.write_text(_HEAD + yaml.safe_dump(told, sort_keys=False, default_flow_style=None))


if __name__ == "__main__":
    main(sys.argv[1:])
