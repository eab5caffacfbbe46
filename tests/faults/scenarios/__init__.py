"""The scenarios, each a class that strikes a number of times while the load flows."""

from typing import Final

from tests.faults.scenarios.base import Scenario
from tests.faults.scenarios.broker import (
    BothKilled,
    IdleQueueDeleted,
    MemoryAlarm,
    NodeKilled,
    NodeRestarted,
    QueueDeleted,
)
from tests.faults.scenarios.cluster import MemberKilled, RollingRestart
from tests.faults.scenarios.connection import (
    ChannelClosed,
    ConsumerCancelled,
    Cut,
    CutWhileConnecting,
    DrainWithoutBroker,
    HalfOpen,
    Slow,
)
from tests.faults.scenarios.dispatcher import (
    Drained,
    KilledAfterConfirm,
    KilledAnyTime,
    KilledInDrain,
    KilledInReload,
    OneOfTwoKilled,
)

ALL: Final[tuple[type[Scenario], ...]] = (
    KilledAnyTime,
    KilledAfterConfirm,
    KilledInReload,
    KilledInDrain,
    Drained,
    OneOfTwoKilled,
    Cut,
    CutWhileConnecting,
    HalfOpen,
    Slow,
    ChannelClosed,
    ConsumerCancelled,
    DrainWithoutBroker,
    NodeKilled,
    NodeRestarted,
    BothKilled,
    MemoryAlarm,
    QueueDeleted,
    IdleQueueDeleted,
    MemberKilled,
    RollingRestart,
)
