"""What is wrong with a subscriptions file: where, and in words that never quote a secret."""

from dataclasses import dataclass

from service.errors import ConfigurationError

Path = tuple[str | int, ...]
"""A place in a document: keys of maps and positions in lists, from the root."""

LIMIT = 20
"""Problems told of one file; a person mends these and asks again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `line` counts from 1, `field` is such as `subscriptions[3].id`."""

    file: str
    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        """Return one line: `subscriptions.yaml:12: subscriptions[3].id: must be …`."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


class SubscriptionsError(ConfigurationError):
    """The subscriptions cannot be used; one line for each of `problems`."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Report:
    """Collects what is wrong, or worth a warning, in one document by its place, each told once.

    `heard` counts everything, kept or not.
    """

    def __init__(self) -> None:
        self.heard = 0
        self._problems: dict[tuple[Path, str], None] = {}
        self._warnings: dict[tuple[Path, str], None] = {}

    def add(self, path: Path, message: str) -> None:
        """Note a problem."""
        self.heard += 1
        self._problems.setdefault((path, message))

    def warn(self, path: Path, message: str) -> None:
        """Note what is valid but hardly meant; only so many are kept."""
        self.heard += 1
        if len(self._warnings) < LIMIT:
            self._warnings.setdefault((path, message))

    @property
    def full(self) -> bool:
        """Whether there are so many problems that looking for more helps nobody."""
        return len(self._problems) >= LIMIT

    @property
    def problems(self) -> list[tuple[Path, str]]:
        """Place and message of the first problems."""
        return list(self._problems)[:LIMIT]

    @property
    def warnings(self) -> list[tuple[Path, str]]:
        """Place and message of the first warnings."""
        return list(self._warnings)


def field_name(path: Path) -> str:
    """Write a place as a person would: `subscriptions[3].targets[0].url`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")
