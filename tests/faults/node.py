"""The RabbitMQ node of the tests and scenarios: as it comes, but for one time-out."""

from typing import Final, Protocol

from service.rabbitmq import PrivateBroker

CONFIRM_TIMEOUT: Final = 10
"""Seconds.

What a quorum queue dead-letters at least once (here: each step of the delay ladder) and nobody confirms,
because the next queue's leader died or the queue was deleted, RabbitMQ publishes again after three
minutes.  With this it does so sooner, and a run need not wait for it.
"""


class Node(Protocol):
    """A broker that can be stopped and administered."""

    @property
    def port(self) -> int: ...

    @property
    def url(self) -> str: ...
    @property
    def output(self) -> str: ...

    def start(self, timeout: float = 60) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def flush(self) -> None: ...
    def ctl(self, *args: str, timeout: float = 60) -> str: ...


class FaultyNode(PrivateBroker):
    """A node that takes a dead letter up again soon."""

    def _environment(self) -> dict[str, str]:
        told = super()._environment()
        setting = f"-rabbit dead_letter_worker_publisher_confirm_timeout {1000 * CONFIRM_TIMEOUT}"
        told["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] += f" {setting}"
        return told
