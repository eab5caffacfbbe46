"""The error of the readers: a text that is no proper document."""

from service.subscriptions.problems import Path


class Malformed(Exception):  # noqa: N818 - the adjective says it
    """A text cannot be read; `line` counts from 1, `path` is the place where it is known."""

    def __init__(self, message: str, line: int | None, path: Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.path = path


MAX_DEPTH = 32
"""Maps and lists within each other; a subscriptions file needs seven."""
