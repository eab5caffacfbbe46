"""What every scenario is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from tests.faults.stage import Stage


class Form(StrEnum):
    """How long a run is."""

    FULL = "full"
    QUICK = "quick"
    BRIEF = "brief"


class Host(StrEnum):
    """What a scenario needs for a broker."""

    NODE = "node"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class Times:
    """How often a scenario strikes, by the form of the run; 0: it is left out."""

    full: int
    quick: int
    brief: int = 1

    def of(self, form: Form) -> int:
        return {Form.FULL: self.full, Form.QUICK: self.quick, Form.BRIEF: self.brief}[form]


class Scenario(ABC):
    """A kind of fault; `name` is what `--only` takes, `what` is for people."""

    name: ClassVar[str]
    what: ClassVar[str]
    times: ClassVar[Times]
    host: ClassVar[Host] = Host.NODE
    direct: ClassVar[bool] = False
    """The dispatchers connect to the broker itself, not through the proxy."""

    async def begin(self, stage: Stage) -> None:
        """Start what is to be struck."""
        await stage.replica()

    @abstractmethod
    async def strike(self, stage: Stage, number: int) -> None:
        """Do the fault once, and see the load flow again."""
