"""The image, really built from the Dockerfile and really started, on a machine without a container engine.

`make test-image` runs these: they take a minute or two, root's rights, and Debian's buildah and mmdebstrap.
The base image is a stand-in, a slim Debian of the same release with the same Python, made from the machine's
own mirror; STAND_IN_ROOT may name the folder of one that is there already.  Wheels are downloaded once, outside
the build, and pip installs them in it from a folder, against the locked hashes as ever.  The container is what
Kubernetes makes of the manifests, as far as a chroot can be it: the image's user, a read-only root, an own
/tmp, no new rights.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import service
from service.ports import free_port
from service.publish import Publisher
from tests.dispatcher import Station, subscription, validate_line, write_subscriptions
from tests.receivers import Recorder

ROOT = Path(__file__).parent.parent
RELEASE = "trixie"
STAND_IN = f"localhost/python:3.13-slim-{RELEASE}"
IMAGE = f"localhost/webhook-dispatcher:{service.__version__}"
WHEELS = "/wheels"
PIP_CONFIGURATION = f"[global]\nno-index = true\nfind-links = {WHEELS}\n"
LONGEST = 180
"""Seconds that one program of those below may take; most take some, the longest about a minute."""
LARGEST_ADDITION = 105_000_000
"""Bytes that the image may add to its base."""

_PROGRAMS = ("buildah", "mmdebstrap", "unshare", "setpriv", "chroot")


def _why_not() -> str | None:
    if os.environ.get("TEST_IMAGE") != "1":
        return "NOT RUN: takes minutes; `make test-image` runs it"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"NOT RUN: missing are {', '.join(missing)}; install Debian's packages"
    if os.geteuid() != 0:
        return "NOT RUN: needs root's rights"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "NOT RUN: this machine lets even root mount nothing"
    return None


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


def run(*command: str | Path, environ: dict[str, str] | None = None) -> str:
    """Run a program to its end, and return what it prints; with what it says where it fails."""
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": _path()} | (environ or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


class Buildah:
    """Buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._driver = "overlay"
        try:
            self("info")
        except AssertionError:  # as in a container, whose own file system is such a one
            self._driver = "vfs"

    def __call__(self, command: str, *arguments: str | Path) -> str:
        storage = self.folder / self._driver
        return run(
            *("buildah", f"--storage-driver={self._driver}"),
            *(f"--root={storage}", f"--runroot={storage}-run", command, *arguments),
            environ={"BUILDAH_ISOLATION": "chroot"},
        )

    def build(self, tag: str, wheels: Path) -> str:
        """Build the image from nothing that is kept but wheels; returns its name."""
        pip_configuration = self.folder / "pip.conf"
        pip_configuration.write_text(PIP_CONFIGURATION)
        self(
            "bud",
            "--format=docker",  # the other one has no health check
            "--pull-never",
            "--no-cache",
            "--layers=false",
            "--timestamp=0",
            f"--build-arg=PYTHON_IMAGE={STAND_IN}",
            f"--volume={wheels}:{WHEELS}:ro",
            f"--volume={pip_configuration}:/etc/pip.conf:ro",
            f"--tag={tag}",
            ROOT,
        )
        return tag

    def about(self, image: str) -> dict[str, Any]:
        """Return what the image says of itself."""
        told: dict[str, Any] = json.loads(self("inspect", "--type=image", image))
        return told


@pytest.fixture(scope="session")
def buildah(tmp_path_factory) -> Iterator[Buildah]:
    folder = tmp_path_factory.mktemp("buildah")
    try:
        buildah = Buildah(folder)
        root = Path(os.environ.get("STAND_IN_ROOT") or _bootstrapped(folder / "root"))
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, root, "/")
        buildah("commit", "--quiet", "--rm", container, STAND_IN)
        yield buildah
        buildah("rm", "--all")
    finally:
        _unmount_below(folder)  # what an interrupted buildah has left
        shutil.rmtree(folder, ignore_errors=True)


def _unmount_below(folder: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in reversed([one for one in mounted if one.startswith(f"{folder}/")]):
        subprocess.run(["umount", place], check=False)


def _bootstrapped(folder: Path) -> Path:
    mirrors = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    mirror = next(iter(mirrors), "")
    try:
        run(
            # What it mounts and starts goes when it goes, even if it is killed.
            *("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"),
            *("mmdebstrap", "--mode=root", "--variant=apt"),
            "--include=python3,python3-venv,python3-pip",
            # As in Debian's slim images.
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")),
            *(RELEASE, folder, mirror),
        )
    except AssertionError as error:
        pytest.skip(f"NOT RUN: {RELEASE} cannot be had from {mirror!r}: {str(error)[-500:]}")
    return folder


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("wheels")
    download(platform.machine(), folder)
    return folder


@pytest.fixture(scope="session")
def image(buildah, wheels) -> str:
    built: str = buildah.build(IMAGE, wheels)
    return built


@pytest.fixture(scope="session")
def config(buildah, image) -> dict[str, Any]:
    config: dict[str, Any] = buildah.about(image)["Docker"]["config"]
    return config


@pytest.fixture(scope="session")
def root(buildah, image) -> Iterator[Path]:
    container = buildah("from", "--pull-never", image)
    yield Path(buildah("mount", container))
    buildah("umount", container)
    buildah("rm", container)


def test_the_image_says_what_it_is(config):
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["webhook-dispatcher"], ["run"])
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == service.__version__
    assert labels["org.opencontainers.image.title"] == "webhook-dispatcher"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_the_image_is_small(buildah, image):
    layers = json.loads(buildah.about(image)["Manifest"])["layers"]
    added = sum(layer["size"] for layer in layers[1:])
    print(f"\nthe image adds {added / 1e6:.0f} MB to its base")  # noqa: T201 - a figure for people
    assert added < LARGEST_ADDITION


def test_the_image_holds_what_runs_and_not_what_installs(root):
    packages = next((root / "opt/venv/lib").glob("python3*")) / "site-packages"
    assert not [*packages.glob("pip*"), *packages.glob("setuptools*")]
    assert {path.name for path in (root / "app").iterdir()} == {"service", "schemas"}


def test_another_build_is_the_same_to_the_byte(buildah, image, wheels):
    again = buildah.build(f"{IMAGE}-again", wheels)
    layers, others = (buildah.about(name)["OCIv1"]["rootfs"]["diff_ids"] for name in (image, again))
    assert layers == others


def download(processor: str, folder: Path) -> None:
    """Download a wheel of each locked requirement, as pip would choose it on such a processor."""
    platforms = [f"manylinux{v}_{processor}" for v in ("2014", "_2_17", "_2_28", "_2_34")]
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary=:all:", "--implementation=cp", "--python-version=3.13"),
        *(f"--platform={name}" for name in platforms),
        *("--dest", folder, "--requirement", ROOT / "requirements.lock"),
    )


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_every_locked_requirement_has_a_wheel_for_the_processor(processor, wheels, tmp_path):
    if processor != platform.machine():
        wheels = tmp_path
        download(processor, wheels)
    found = list(wheels.iterdir())
    assert any(wheel.stem.endswith(processor) for wheel in found)
    assert all(wheel.suffix == ".whl" for wheel in found)


def contained(
    root: Path, config: dict[str, Any], environ: dict[str, str], volume: Path, *command: str
) -> list[str | Path]:
    """Return a command line that becomes a process of the container; `volume` is read at `/volume`."""
    variables = [*config["Env"], *(f"{name}={value}" for name, value in environ.items())]
    script = """set -e
        mount --bind "$0" "$0"
        mount --bind "$1" "$0/mnt"
        mount -o remount,bind,ro "$0/mnt"
        mount -t tmpfs tmpfs "$0/tmp"
        mount -t proc proc "$0/proc"
        mount -o remount,bind,ro "$0"
        user=$2
        shift 2
        exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$0" "$@"
    """
    return [
        *("unshare", "--mount", "--propagation=private", "sh", "-c", script),
        *(root, volume, config["User"]),
        *("/usr/bin/env", "-i", "-C", config["WorkingDir"], *variables, *command),
    ]


async def test_it_delivers_an_event_as_its_user_on_a_read_only_root(
    root, config, amqp_url, prefix, events_exchange, tmp_path
):
    volume = tmp_path / "volume"
    volume.mkdir()
    port = free_port()
    station = Station(amqp_url, prefix, events_exchange, volume)
    environ = {k: v for k, v in station.environ.items() if k.startswith(("DISPATCHER_", "TEST_"))}
    environ |= {
        "DISPATCHER_SUBSCRIPTIONS": "/mnt/subscriptions.yaml",
        "DISPATCHER_ADMIN_PORT": str(port),
    }
    async with Recorder() as receiver:
        # With a filter: its evaluator needs more of the base image than everything else.
        wanted = subscription("sample", receiver.url, filter='event.type == "order.shipped"')
        write_subscriptions(volume, wanted)
        start = contained(root, config, environ, volume, *config["Entrypoint"], *config["Cmd"])
        process = await asyncio.create_subprocess_exec(*start, stdout=subprocess.PIPE)
        try:
            lines = [line async for line in _until(process, "broker.connected")]
            _has_no_more_rights_than_it_should(process.pid)
            async with Publisher(amqp_url, events_exchange) as publisher:
                event_id = await publisher.publish("order.shipped", {})
            [request] = await receiver.wait_for(1, timeout=20)
            assert request.headers["webhook-id"] == event_id
            check = contained(root, config, environ, volume, *config["Healthcheck"]["Test"][1:])
            checking = await asyncio.create_subprocess_exec(*check)
            assert await checking.wait() == 0
            process.send_signal(signal.SIGTERM)
            lines += [line async for line in _until(process, "service.stopped")]
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert lines[-1]["left"] == 0
    assert lines[0]["version"] == service.__version__


async def _until(process: asyncio.subprocess.Process, message: str) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        async for line in process.stdout:
            told = validate_line(line.decode())
            yield told
            if told["message"] == message:
                return


def _has_no_more_rights_than_it_should(pid: int) -> None:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert status["Groups"].split() in ([], ["10001"])
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    seen = {mount[4]: mount[5].split(",") for mount in mounts}
    assert "ro" in seen["/"]
