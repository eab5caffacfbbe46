"""ConfigMaps and Secrets as the kubelet mounts and changes them: taken up without a restart.

Each key is a symlink `key -> ..data/key`, and `..data` is a symlink to a folder with a time in its name.  A
change is a new folder, and a `..data` that is put in the place of the old one at once.
"""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from standardwebhooks import Webhook, WebhookVerificationError

from service.publish import Publisher
from tests.dispatcher import Station, station, subscription
from tests.receivers import Received, Recorder

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_b25seSBmb3IgdHJ5aW5nIGl0IG91dCwgbm90IGEgc2VjcmV0"


class Mounted:
    """A folder that changes as a mounted ConfigMap or Secret does."""

    def __init__(self, path: Path, **keys: str) -> None:
        self.path = path
        self._times = itertools.count(1)
        path.mkdir()
        self.put(**keys)

    def put(self, **keys: str) -> None:
        """Replace the whole content, as the kubelet's atomic writer does."""
        fresh = self.path / f"..2026_01_01_00_00_{next(self._times):02}.123456789"
        fresh.mkdir()
        for key, content in keys.items():
            (fresh / _file(key)).write_text(content)
        data, swapped = self.path / "..data", self.path / "..data_tmp"
        old = data.resolve() if data.exists() else None
        swapped.symlink_to(fresh.name)
        swapped.rename(data)
        for key in keys:
            link = self.path / _file(key)
            if not link.is_symlink():
                link.symlink_to(f"..data/{_file(key)}")
        for link in self.path.iterdir():
            if not link.name.startswith("..") and not link.exists():
                link.unlink()
        if old is not None:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def _file(key: str) -> str:
    return key.replace("__", ".")


def text(*subscriptions: dict[str, object]) -> str:
    return yaml.safe_dump({"subscriptions": list(subscriptions)})


def signed_by(request: Received, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


async def publish(it: Station, event_type: str) -> None:
    async with Publisher(it.amqp_url, it.exchange) as publisher:
        await publisher.publish(event_type, {})


async def test_a_changed_config_map_is_taken_up_and_so_is_a_file_that_is_new_in_it(it, tmp_path):
    async with Recorder() as first, Recorder() as second, Recorder() as third:
        mounted = Mounted(
            tmp_path / "config", subscriptions__yaml=text(subscription("a", first.url))
        )
        dispatcher = await it.dispatcher(SUBSCRIPTIONS=str(mounted.path))
        await publish(it, "order.shipped")
        await first.wait_for(1)
        mounted.put(
            subscriptions__yaml=text(subscription("a", second.url)),
            more__yaml=text(subscription("b", third.url)),
        )
        loaded = await dispatcher.line("subscriptions.loaded", added=1, changed=1)
        assert loaded["subscriptions"] == 2
        await publish(it, "order.shipped")
        await second.wait_for(1)
        await third.wait_for(1)
        mounted.put(subscriptions__yaml=text(subscription("a", second.url)))
        await dispatcher.line("subscriptions.loaded", removed=1)
        assert await dispatcher.stop() == 0
    assert len(first.requests) == 1
    assert not dispatcher.of("subscriptions.refused")


async def test_a_changed_secret_signs_from_then_on(it, tmp_path):
    secret = Mounted(tmp_path / "secret", billing=OLD)
    async with Recorder() as receiver:
        wanted = subscription(
            "billing",
            receiver.url,
            signing={
                "scheme": "standard",
                "secrets": [{"file": str(secret.path / "billing")}],
            },
        )
        dispatcher = await it.dispatcher(wanted)
        await publish(it, "order.shipped")
        [before] = await receiver.wait_for(1)
        assert signed_by(before, OLD)
        secret.put(billing=NEW)
        await dispatcher.line("subscriptions.loaded", 2)
        await publish(it, "order.shipped")
        [_, after] = await receiver.wait_for(2)
        assert await dispatcher.stop() == 0
    assert signed_by(after, NEW)
    assert not signed_by(after, OLD)


async def test_a_secret_that_goes_missing_is_told_and_the_last_good_one_still_signs(it, tmp_path):
    secret = Mounted(tmp_path / "secret", billing=OLD)
    async with Recorder() as receiver:
        wanted = subscription(
            "billing",
            receiver.url,
            signing={
                "scheme": "standard",
                "secrets": [{"file": str(secret.path / "billing")}],
            },
        )
        dispatcher = await it.dispatcher(wanted)
        secret.put(other=NEW)
        refused = await dispatcher.line("subscriptions.refused")
        assert "secrets[0].file: cannot be read" in refused["error"]
        await publish(it, "order.shipped")
        [request] = await receiver.wait_for(1)
        assert await dispatcher.stop() == 0
    assert signed_by(request, OLD)
