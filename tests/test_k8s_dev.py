"""The dev overlay, played with processes: its settings, its subscription, its secret and its receiver."""

import asyncio
import base64
import sys
from pathlib import Path

import pytest

from service.ports import free_port
from service.publish import Publisher
from tests.dispatcher import ROOT, Station
from tests.tools import manifests
from tests.tools.manifests import environment, named, pod_of

SIGNING = "/run/secrets/signing"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The signing secrets as files, where the test may write."""
    folder = tmp_path / "signing"
    folder.mkdir()
    data = named(manifests.rendered("overlays/dev"), "Secret", "webhook-dispatcher-signing")["data"]
    for key, value in data.items():
        (folder / key).write_bytes(base64.b64decode(value))
    return folder


async def test_what_is_published_arrives_at_the_receiver_and_is_valid(
    amqp_url, prefix, events_exchange, tmp_path, secrets
):
    dev = manifests.rendered("overlays/dev")
    port = str(free_port())
    receiver_pod, dispatcher_pod = (
        pod_of(named(dev, "Deployment", name)) for name in ("receiver", "webhook-dispatcher")
    )
    script = tmp_path / "receiver.py"
    script.write_text(named(dev, "ConfigMap", "receiver")["data"]["receiver.py"])
    told = named(dev, "ConfigMap", "webhook-dispatcher-subscriptions")["data"]["subscriptions.yaml"]
    told = told.replace("receiver:8000", f"127.0.0.1:{port}").replace(SIGNING, str(secrets))
    subscriptions = tmp_path / "subscriptions"
    subscriptions.mkdir()
    (subscriptions / "subscriptions.yaml").write_text(told)

    it = Station(amqp_url, prefix, events_exchange, tmp_path)
    [container] = dispatcher_pod["containers"]
    ours = {"DISPATCHER_AMQP_URL_FILE", "DISPATCHER_SUBSCRIPTIONS", "DISPATCHER_EGRESS_ALLOW"}
    it.environ |= {k: v for k, v in environment(container).items() if k not in ours}
    it.environ["DISPATCHER_SUBSCRIPTIONS"] = str(subscriptions)
    [container] = receiver_pod["containers"]
    environ = environment(container)
    environ["SECRET_FILE"] = environ["SECRET_FILE"].replace(SIGNING, str(secrets))

    receiver = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        env={"PATH": it.environ["PATH"], "PYTHONPATH": str(ROOT), "PORT": port, **environ},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        dispatcher = await it.new().start()
        async with Publisher(amqp_url, events_exchange) as publisher:
            event_id = await publisher.publish("order.shipped", {"parcel": 7})
        assert receiver.stdout is not None
        async with asyncio.timeout(30):
            message_id, valid, body = (await receiver.stdout.readline()).decode().split(" ", 2)
        assert (message_id, valid) == (event_id, "valid")
        assert '"parcel":7' in body
        assert await dispatcher.stop() == 0
    finally:
        receiver.kill()
        await receiver.wait()
        await it.close()
