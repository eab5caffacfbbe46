"""The private node, on the real thing: what is promised of it is that it works and that it goes."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pika  # type: ignore[import-untyped]
import pytest

from service.ports import free_ports
from service.rabbitmq import PrivateBroker, PrivateBrokerError

REPOSITORY = Path(__file__).parent.parent

HOLDER = """
import sys, time
from service.rabbitmq import PrivateBroker
broker = PrivateBroker()
broker.start()
print(broker.url, broker.folder, flush=True)
{then}
"""


def eventually(condition: Callable[[], bool], timeout: float = 15) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def processes_naming(text: str) -> list[str]:
    """The living processes with `text` in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in words and process.name != str(os.getpid()):
            found.append(words.split(b"\0")[0].decode())
    return found


def hold(then: str) -> tuple[subprocess.Popen[str], str, Path]:
    """Start a program that starts a node and then does as told."""
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(then=then)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdout is not None
    url, folder = program.stdout.readline().split()
    return program, url, Path(folder)


def assert_nothing_is_left(folder: Path) -> None:
    assert eventually(lambda: not processes_naming(str(folder))), processes_naming(str(folder))
    assert eventually(lambda: not folder.exists())


def test_a_confirmed_message_in_a_quorum_queue_survives_a_killed_node() -> None:
    with PrivateBroker() as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"event", pika.BasicProperties(delivery_mode=2))
        broker.flush()
        connection.close()
        url, name, folder = broker.url, broker.node_name, broker.folder

        broker.kill()
        broker.start()

        assert (broker.url, broker.node_name, broker.folder) == (url, name, folder)
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        assert connection.channel().basic_get("kept", auto_ack=True)[2] == b"event"
        connection.close()
        assert "kept" in broker.ctl("list_queues", "name")
        with pytest.raises(PrivateBrokerError, match="rabbitmqctl no_such_command failed"):
            broker.ctl("no_such_command")
    assert_nothing_is_left(folder)


def test_starting_twice_is_starting_once(node: PrivateBroker) -> None:
    before = node.ctl("eval", "os:getpid().")
    node.start()
    assert node.ctl("eval", "os:getpid().") == before


def test_only_loopback_is_listened_on(node: PrivateBroker) -> None:
    listeners = node.ctl("eval", "[inet:sockname(P) || P <- erlang:ports()].")
    assert "{0,0,0,0}" not in listeners
    assert "{127,0,0,1}" in listeners


def test_a_given_folder_and_its_messages_stay(tmp_path: Path) -> None:
    with PrivateBroker(tmp_path / "node") as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        connection.channel().queue_declare("kept", durable=True)
        connection.close()
    assert not processes_naming(str(tmp_path))
    with PrivateBroker(tmp_path / "node") as broker:
        assert "kept" in broker.ctl("list_queues", "name")


def test_a_missing_server_is_one_clear_sentence(tmp_path: Path) -> None:
    broker = PrivateBroker(server=tmp_path / "rabbitmq-server")
    with pytest.raises(PrivateBrokerError, match="apt-get install rabbitmq-server") as raised:
        broker.start()
    assert "\n" not in str(raised.value)
    broker.close()


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    script.chmod(0o755)
    broker = PrivateBroker(tmp_path / "node", server=script)
    with pytest.raises(PrivateBrokerError, match=r"ended while starting: .*no such luck"):
        broker.start()
    assert not processes_naming(str(tmp_path / "node"))
    broker.close()


@pytest.mark.usefixtures("node")
def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        broker = PrivateBroker(port=port)
        with pytest.raises(PrivateBrokerError, match=f"another program has port {port} of 127"):
            broker.start()
        broker.close()


def test_programs_that_seed_their_chance_alike_are_given_different_ports() -> None:
    random.seed(7)
    ports = free_ports(8)
    random.seed(7)
    assert ports != free_ports(8)


def test_a_server_that_never_gets_ready_is_given_up_in_time(tmp_path: Path) -> None:
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    broker = PrivateBroker(tmp_path / "node", server=script)
    with pytest.raises(PrivateBrokerError, match="not ready in time"):
        broker.start(timeout=0.5)
    assert not processes_naming(str(tmp_path / "node"))
    broker.close()


def test_a_program_that_ends_with_an_error_leaves_nothing() -> None:
    program, _, folder = hold("raise RuntimeError")
    with program:
        assert program.wait(15) == 1
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_a_signal_ends_leaves_nothing(number: signal.Signals) -> None:
    program, _, folder = hold("time.sleep(60)")
    with program:
        assert processes_naming(str(folder))
        program.send_signal(number)
        program.wait(15)
    assert_nothing_is_left(folder)


def test_the_broker_command_prints_its_url_and_ends_with_a_signal() -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", "from service.rabbitmq import serve_forever; serve_forever()"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    with program:
        url = program.stdout.readline().strip()
        pika.BlockingConnection(pika.URLParameters(url)).close()
        its_own = f"RABBITMQ_NODE_PORT={url.rsplit(':', 1)[1].strip('/')}"
        assert processes_naming(its_own)
        # Two in a row, as an impatient person sends them.
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGTERM)
        assert program.wait(20) == 0
    assert eventually(lambda: not processes_naming(its_own)), processes_naming(its_own)
