"""Three RabbitMQ nodes on one machine that are one cluster."""

import contextlib
import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from service.rabbitmq import PrivateBroker, PrivateBrokerError, _listens
from service.watchdog import Watchdog
from tests.faults.node import FaultyNode

NAMES: Final = ("a", "b", "c")
START_TIMEOUT: Final = 120.0
CAUGHT_UP_TIMEOUT: Final = 120.0
_POLL: Final = 0.25


class Member(FaultyNode):
    """A node that shares epmd and cookie with others, and dies without them."""

    def __init__(self, name: str, epmd_port: int, cookie: str, root: Path) -> None:
        super().__init__(root=root)
        self._name = name
        self._cookie = cookie
        self._ports[2] = epmd_port

    @property
    def node_name(self) -> str:
        return f"{self._name}@localhost"

    @property
    def runs(self) -> bool:
        return self._node is not None and self._node.poll() is None

    def run_epmd(self) -> "subprocess.Popen[bytes]":
        """Start the epmd of all members, in a process group of its own."""
        self._watchdog.start()
        self._prepare_folder()
        return self._spawn("epmd", group=0)

    def _prepare_folder(self) -> None:
        super()._prepare_folder()
        cookie = self.folder / ".erlang.cookie"
        cookie.chmod(0o600)
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)

    def _start_processes(self, deadline: float) -> None:
        self._node = self._spawn(str(self._server), group=0)
        self._watchdog.watch(self._node.pid)


class Cluster:
    """A cluster; a context manager.  As a broker it is its first living member."""

    def __init__(self, root: Path = Path("/")) -> None:
        cookie = secrets.token_hex(20)
        first = Member(NAMES[0], 0, cookie, root)
        self._epmd_port = PrivateBroker()._ports[2]
        first._ports[2] = self._epmd_port
        rest = [Member(name, self._epmd_port, cookie, root) for name in NAMES[1:]]
        self.members = [first, *rest]
        self._watchdog = Watchdog()
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    @property
    def port(self) -> int:
        return self._alive.port

    @property
    def url(self) -> str:
        return self._alive.url

    @property
    def output(self) -> str:
        """Return what each member said, one after the other."""
        return "".join(f"== {member.node_name}\n{member.output}" for member in self.members)

    @property
    def _alive(self) -> Member:
        return next(member for member in self.members if member.runs)

    def __enter__(self) -> Self:
        self._watchdog.start()
        try:
            self._form()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
        self._watchdog.close()

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start every member that is down."""
        for member in self.members:
            member.start(timeout)

    def stop(self) -> None:
        """Shut every member down in order."""
        for member in self.members:
            member.stop()

    def kill(self) -> None:
        """End every member by SIGKILL."""
        for member in self.members:
            member.kill()

    def flush(self) -> None:
        """Write to disk what every member leaves in memory for a while."""
        for member in self.members:
            if member.runs:
                member.flush()

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """Run `rabbitmqctl` on a living member."""
        return self._alive.ctl(*args, timeout=timeout)

    def leader_of(self, queue: str) -> Member:
        """Return the member that leads a quorum queue."""
        told = self.ctl("list_queues", "name", "leader")
        for line in told.splitlines():
            name, _, node = line.partition("\t")
            if name == queue:
                return next(member for member in self.members if member.node_name == node)
        raise PrivateBrokerError(f"{queue} has no leader.")

    def await_complete(self, prefix: str) -> None:
        """Wait until every queue of a prefix has all its members back."""

        def complete() -> bool:
            lines = self.ctl("list_queues", "name", "online").splitlines()
            queues = [line for line in lines if line.startswith(prefix)]
            return all(name in line for line in queues for name in self._node_names())

        self._await(complete, "every queue has all its members back")

    def _node_names(self) -> list[str]:
        return [member.node_name for member in self.members]

    def _form(self) -> None:
        first, *others = self.members
        self._epmd = first.run_epmd()
        self._watchdog.watch(self._epmd.pid)
        self._await(lambda: _listens(self._epmd_port), "epmd listens")
        for member in self.members:
            member.start(START_TIMEOUT)
        for member in others:
            member.ctl("stop_app")
            member.ctl("reset")
            member.ctl("join_cluster", first.node_name)
            member.ctl("start_app")

    @staticmethod
    def _await(condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + CAUGHT_UP_TIMEOUT
        while True:
            with contextlib.suppress(PrivateBrokerError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise PrivateBrokerError(f"{what}: not within {CAUGHT_UP_TIMEOUT:g} s.")
            time.sleep(_POLL)
