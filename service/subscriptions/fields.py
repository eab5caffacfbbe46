"""The forms that single fields of the subscriptions file take, for pydantic and for its JSON Schema."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from service.core.matching import MAX_PATTERN_LENGTH, pattern_problem
from service.filters import FilterError, compile_filter
from service.subscriptions import values

_HOUR, _DAY = 3600.0, 86400.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WORD = r"([^\s.*#]+|\*|#)"


@dataclass(frozen=True, slots=True)
class _Duration:
    """A text such as `5m`, read as seconds between two bounds."""

    shortest: float
    longest: float

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        text = {"type": "string", "pattern": values.DURATION_PATTERN}
        return text if self.shortest else {"anyOf": [text, {"const": 0}]}

    def read(self, value: object) -> float:
        return values.duration(value, self.shortest, self.longest)


def _checked_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError("must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return value


def _checked_pattern(value: str) -> str:
    if (problem := pattern_problem(value)) is not None:
        raise ValueError(problem)
    return value


def _checked_filter(value: str) -> str:
    try:
        compile_filter(value)
    except FilterError as error:
        raise ValueError(str(error)) from None
    return value


def _checked_headers(headers: dict[str, str | None]) -> dict[str, str | None]:
    names = {values.header_name(name).lower() for name in headers}
    if len(names) != len(headers):
        raise ValueError("must not name a header twice (capitals make no difference)")
    for name, value in headers.items():
        try:
            values.header_value(value or "")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return headers


def _text(shortest: int, longest: int, **schema: Any) -> Any:
    return Field(strict=True, min_length=shortest, max_length=longest, json_schema_extra=schema)


Text = Annotated[str, _text(0, 1000)]
Name = Annotated[str, _text(1, 256)]
FilePath = Annotated[str, _text(1, 4000)]
Id = Annotated[str, AfterValidator(_checked_id), _text(1, 64, pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Pattern = Annotated[
    str,
    AfterValidator(_checked_pattern),
    _text(1, MAX_PATTERN_LENGTH, pattern=rf"^{_WORD}(\.{_WORD})*$"),
]
FilterText = Annotated[str, _text(1, 4000), AfterValidator(_checked_filter)]
Url = Annotated[str, AfterValidator(values.url), _text(1, 2000, pattern=r"^https?://[^\s#\\]+$")]
Timeout = Annotated[float, _Duration(0.1, 600.0)]
Delay = Annotated[float, _Duration(0.0, 36 * _HOUR)]
Age = Annotated[float, _Duration(1.0, 30 * _DAY)]
Rate = Annotated[
    float,
    BeforeValidator(values.rate),
    WithJsonSchema({"type": "string", "pattern": values.RATE_PATTERN}),
]
Status = Annotated[StrictInt, Field(ge=100, le=599)]
Headers = Annotated[dict[StrictStr, StrictStr | None], AfterValidator(_checked_headers)]
