"""A private RabbitMQ node for the demo, for tests, and for trying things out.

One node with its own epmd, on loopback ports of its own, with everything it writes in one folder.
Law: no process and no temporary folder outlives the program that started the node, however that
program ends; a watchdog keeps it.

All calls here block; a program with an event loop calls them in a thread.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from service.errors import BrokerError
from service.ports import free_ports, is_free
from service.watchdog import Watchdog

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The server's own script: the wrapper in `/usr/sbin` insists on the system's user and folders."""

_ROOT = Path("/")
_POLL = 0.02
_TERMINATE_TIMEOUT = 15.0
_KILL_TIMEOUT = 10.0

SMALL_LOG: Final = 33_554_432
USUAL_LOG: Final = 536_870_912
"""Bytes of a write-ahead log before it is split up into the queues' own files: RabbitMQ's default."""

_CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.file = {log}
log.file.level = warning
log.console = false
raft.wal_max_size_bytes = {wal_size}
disk_free_limit.absolute = 1MB
"""

_IN_ROOT = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
"""Erlang needs `/proc`; in a mount namespace of its own it is gone as soon as the process is."""


class PrivateBrokerError(BrokerError):
    """The private RabbitMQ cannot be started, or refused a command; the message is one line."""


class PrivateBroker:
    """A RabbitMQ node that belongs to this program.

    As a context manager it is started on entry, and stopped and cleared away on exit.  Between
    `stop` or `kill` and the next `start` the folder, the ports and so the durable queues stay.

    `folder` keeps the node's files, and is kept; without it they are in a temporary folder, which
    is removed.  `port` is for AMQP; without it a free one is picked.  `server` is the script of
    the server, with `rabbitmqctl` beside it; `root` is the root folder of another system in
    which `server` is to be run (by `chroot`, which needs root's rights); the node's folder is then
    below it.  `log_size` is how large the write-ahead log of all quorum queues grows, in bytes.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int | None = None,
        server: Path = SERVER,
        root: Path = _ROOT,
        log_size: int = SMALL_LOG,
    ) -> None:
        self._root = root
        self._log_size = log_size
        self._server = server
        self._given_folder = folder
        self._folder: Path | None = None
        self._ports = free_ports(3)
        if port is not None:
            self._ports[0] = port
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        self._watchdog = Watchdog()

    @property
    def port(self) -> int:
        """The AMQP port on 127.0.0.1."""
        return self._ports[0]

    @property
    def url(self) -> str:
        """Where clients connect, as the administrator `guest`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def node_name(self) -> str:
        """The name of the Erlang node: always the same, since each node has its own epmd."""
        return "private@localhost"

    @property
    def folder(self) -> Path:
        """Where the node's files and its log are; known from the first `start` on."""
        if self._folder is None:
            raise PrivateBrokerError("The private RabbitMQ has not been started.")
        return self._folder

    def start(self, timeout: float = 60) -> None:
        """Return once the node speaks AMQP; does nothing if it runs already.

        `timeout` is in seconds.  Raises `PrivateBrokerError` if RabbitMQ is not installed, or if
        the node ends or is not ready in time (nothing is left running then).
        """
        if self._node is not None and self._node.poll() is None:
            return
        self._end_processes()
        deadline = time.monotonic() + timeout
        self._require_installed()
        self._watchdog.start()
        self._prepare_folder()
        try:
            self._start_processes(deadline)
            self._await(deadline, lambda: _speaks_amqp(self.port))
        except BaseException:
            self._end_processes()
            raise

    def stop(self) -> None:
        """Shut the node down in order, by force after a deadline; its folder stays."""
        if self._node is not None and self._node.poll() is None:
            self._node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._node.wait(_TERMINATE_TIMEOUT)
        self._end_processes()

    def kill(self) -> None:
        """End the node by SIGKILL; `start` brings it up again as it was.

        RabbitMQ itself forgets a quorum queue, with its messages, that was declared in the last
        three seconds before: see `flush`.
        """
        self._end_processes()

    def flush(self) -> None:
        """Write to disk what RabbitMQ leaves in memory for up to three seconds.

        That is its directory of quorum queues (a DETS table, without a sync of its own).  A queue
        that is not in it yet when the node is killed comes back empty, confirmed messages or not;
        from here on, queues that exist now are safe.  Raises `PrivateBrokerError` as `ctl` does.
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def wait(self) -> None:
        """Return when the node has ended, by whatever cause."""
        if self._node is not None:
            self._node.wait()

    def close(self) -> None:
        """Stop, and remove the temporary folder; the object is of no use afterwards."""
        self.stop()
        if self._folder is not None and self._given_folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._watchdog.close()

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """Run `rabbitmqctl` with these arguments on this node and return what it printed.

        `timeout` is in seconds.  Raises `PrivateBrokerError` if it fails or takes longer.
        """
        command = self._command(str(self._server.parent / "rabbitmqctl"), "--quiet", *args)
        try:
            done = subprocess.run(  # noqa: S603 - the arguments are the caller's own
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PrivateBrokerError(
                f"rabbitmqctl {args[0]} took longer than {timeout:g} s."
            ) from None
        if done.returncode != 0:
            reason = " ".join((done.stderr or done.stdout).split())
            raise PrivateBrokerError(f"rabbitmqctl {args[0]} failed: {reason}")
        return done.stdout

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_installed(self) -> None:
        script = self._root / self._server.relative_to("/")
        if not script.exists():
            raise PrivateBrokerError(
                f"RabbitMQ is not installed ({script} is missing): install it with"
                " `apt-get install rabbitmq-server`, or set AMQP_URL to use a running broker."
            )

    @property
    def output(self) -> str:
        """Return what the node said, in all its lives."""
        return self._output.read_text(errors="replace")

    @property
    def _output(self) -> Path:
        return self.folder / "output.log"

    def _prepare_folder(self) -> None:
        if self._folder is None:
            if self._given_folder is None:
                parent = None if self._root == _ROOT else self._root / "tmp"
                self._folder = Path(tempfile.mkdtemp(prefix="rabbitmq-", dir=parent)).resolve()
                self._watchdog.remove(self._folder)
            else:
                self._folder = self._given_folder.resolve()
                self._folder.mkdir(parents=True, exist_ok=True)
        folder, inside = self._folder, self._inside()
        (folder / "rabbitmq.conf").write_text(
            _CONFIGURATION.format(
                port=self.port, log=inside / "rabbitmq.log", wal_size=self._log_size
            )
        )
        (folder / "enabled_plugins").write_text("[].\n")
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
            cookie.chmod(0o400)

    def _inside(self) -> Path:
        """Return the node's folder as a process inside `root` sees it."""
        return _ROOT / self.folder.relative_to(self._root.resolve())

    def _environment(self) -> dict[str, str]:
        # A fresh environment: settings of another RabbitMQ or Erlang must not leak into this one.
        folder = str(self._inside())
        port, distribution, epmd = self._ports
        return {
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd),
            # Ours runs already; one that Erlang starts would detach itself and be left behind.
            "ERL_FLAGS": "-start_epmd false",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_NODENAME": self.node_name,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # The script then becomes the node, as its supervisors expect, rather than its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _command(self, *command: str) -> list[str]:
        if self._root == _ROOT:
            return [*command]
        return ["unshare", "--mount", "sh", "-c", _IN_ROOT, str(self._root), *command]

    def _start_processes(self, deadline: float) -> None:
        # Both in one process group, which epmd, the first of them, leads; the watchdog learns of
        # the group before the node, slow to end and large, joins it.
        self._epmd = self._spawn("epmd", group=0)
        self._watchdog.watch(self._epmd.pid)
        self._await(deadline, lambda: _listens(self._ports[2]))
        self._node = self._spawn(str(self._server), group=self._epmd.pid)

    def _spawn(self, program: str, *, group: int) -> subprocess.Popen[bytes]:
        with self._output.open("ab") as output:
            try:
                return subprocess.Popen(  # noqa: S603 - programs of the installed RabbitMQ
                    self._command(program),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    process_group=group,
                )
            except OSError as error:
                raise PrivateBrokerError(
                    f"{program} cannot be run ({error.strerror}): reinstall RabbitMQ with"
                    " `apt-get install --reinstall rabbitmq-server erlang-base`."
                ) from error

    def _await(self, deadline: float, condition: Callable[[], bool]) -> None:
        while not condition():
            for process in (self._epmd, self._node):
                if process is not None and process.poll() is not None:
                    raise PrivateBrokerError(
                        f"The private RabbitMQ ended while starting: {self._why_it_ended()}"
                    )
            if time.monotonic() > deadline:
                raise PrivateBrokerError(
                    f"The private RabbitMQ was not ready in time: {self._last_words()}"
                )
            time.sleep(_POLL)

    def _why_it_ended(self) -> str:
        # Of Erlang's many lines about a port that is taken, the last say everything but that.
        amqp, distribution, epmd = self._ports
        wanted = [amqp, distribution] if self._node is not None else [epmd]
        for port in wanted:
            if not is_free(port):
                return f"another program has port {port} of 127.0.0.1."
        return self._last_words()

    def _last_words(self) -> str:
        """Return the end of the node's output as one line."""
        return " ".join(self.output.split())[-400:] or "it said nothing"

    def _end_processes(self) -> None:
        leader = self._epmd or self._node
        if leader is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        for process in (self._node, self._epmd):
            if process is not None:
                process.wait(_KILL_TIMEOUT)
        self._node = self._epmd = None
        self._watchdog.forget(leader.pid)


def serve_forever(folder: Path | None = None, *, port: int | None = None) -> None:
    """Run a private node in the foreground until SIGINT or SIGTERM, then return.

    The first line on standard output is its URL, printed once it can be used.  To be called in the
    main thread.  Raises `PrivateBrokerError` if the node cannot be started or ends by itself.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # Once is enough: a second signal must not break into the clearing away.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise _Interrupted

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with contextlib.suppress(_Interrupted), PrivateBroker(folder, port=port) as broker:
            print(broker.url, flush=True)  # noqa: T201 - programs read it
            broker.wait()
            raise PrivateBrokerError("The private RabbitMQ ended by itself.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Interrupted(BaseException):
    """Somebody asked the program to end."""


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _speaks_amqp(port: int) -> bool:
    """Tell whether the broker answers a client's protocol header with `connection.start`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            answer = client.makefile("rb").read(11)
    except OSError:
        return False
    # Frame type 1 (method), channel 0, four bytes of size, class 10, method 10.
    return answer[:3] == b"\x01\x00\x00" and answer[7:] == b"\x00\x0a\x00\x0a"
