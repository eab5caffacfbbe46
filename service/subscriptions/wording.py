"""What pydantic finds, in the words of the file's author; never with the value that was written."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from service.subscriptions.model import (
    FileModel,
    PolicyModel,
    RetryModel,
    SecretModel,
    SigningModel,
    SubscriptionModel,
    TargetModel,
    TlsModel,
)
from service.subscriptions.problems import Path

_NOT_HERE = "must be {env: NAME} or {file: PATH}: a secret never stands in the file itself"

_MODELS: Mapping[tuple[str, ...], type[BaseModel]] = {
    ("targets",): TargetModel,
    ("signing",): SigningModel,
    ("signing", "secrets"): SecretModel,
    ("retry",): RetryModel,
    ("tls",): TlsModel,
}

_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "string_type": lambda _: "must be a text (put it in quotes)",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda known: f"must have at most {known['max_length']} characters",
    "int_type": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "list_type": lambda _: "must be a list",
    "tuple_type": lambda _: "must be a list",
    "frozen_set_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be a map (key: value)",
    "model_type": lambda _: "must be a map (key: value)",
    "too_short": lambda known: f"must have at least {known['min_length']} element",
    "too_long": lambda known: f"must have at most {known['max_length']} elements",
    "greater_than_equal": lambda known: f"must be at least {known['ge']:g}",
    "less_than_equal": lambda known: f"must be at most {known['le']:g}",
    "enum": lambda known: f"must be {known['expected'].replace(chr(39), '')}",
    "value_error": lambda known: str(known["error"]),
}


def problems(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    """Yield place (within the validated map) and message of each thing that is wrong."""
    for found in error.errors(include_url=False, include_input=False):
        path: Path = found["loc"]
        if found["type"] == "extra_forbidden":
            yield _unknown_key(path, model)
        elif found["type"] == "model_type" and _model_at(path, model) is SecretModel:
            yield path, _NOT_HERE
        else:
            words = _WORDS.get(found["type"])
            yield path, found["msg"] if words is None else words(found.get("ctx", {}))


def _unknown_key(path: Path, model: type[BaseModel]) -> tuple[Path, str]:
    inside, key = _model_at(path[:-1], model), str(path[-1])
    if inside is SecretModel:
        return path[:-1], _NOT_HERE  # the key might be the secret
    if inside is not SubscriptionModel and key in SubscriptionModel.model_fields:
        if inside is PolicyModel:
            return path, "belongs in a subscription, not in defaults"
        if inside is FileModel:
            return path, "belongs in an entry of subscriptions, or in defaults"
    known = [field.alias or name for name, field in inside.model_fields.items()]
    nearest = get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"
    return path, f"is not a known key; {hint}"


def _model_at(path: Path, model: type[BaseModel]) -> type[BaseModel]:
    """Return the model of the map at a place within a map of `model`."""
    names = tuple(step for step in path if isinstance(step, str))
    if model is FileModel and names[:1] == ("defaults",):
        model, names = PolicyModel, names[1:]
    return _MODELS.get(names, model)
