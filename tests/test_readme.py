"""What the README says is so: its examples run, its tables are those of the code, its links lead somewhere.

A fenced block is found by the two words after its backticks, such as `python pika`.  The producers in
Node and Go run only where README_NODE names a folder with `node_modules`, and README_GO one with a
`go.mod`, that have the libraries.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import click
import pika  # type: ignore[import-untyped]
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from service.catalogue import CATALOGUE
from service.cli import cli
from service.core.delivery import (
    Answered,
    Delivered,
    Delivery,
    Failover,
    Reason,
    Retry,
    RoundSoFar,
    decide,
)
from service.core.event import Event
from service.core.subscription import RetryPolicy
from service.ports import free_port
from service.publish import Publisher
from service.settings import PREFIX, SECRET_FIELDS, Settings, known_names
from service.subscriptions import load
from service.subscriptions.model import SubscriptionModel
from tests.dispatcher import ROOT, SECRET, Station, station, subscription, validate_line
from tests.receivers import Received, Recorder

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
EVENT = {"order_id": "ord_1042"}


def block(words: str) -> str:
    """Return the one block with these words after its backticks."""
    text: str
    [text] = [text for found, text in BLOCKS if found == words]
    return text


def table(heading: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first line this is, by column."""
    lines = README[README.index(f"\n{heading}\n") :].strip().split("\n\n")[0].splitlines()
    names, _, *rows = ([cell.strip() for cell in line[1:-1].split(" |")] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in rows]


def code(cell: str) -> list[str]:
    """Return what stands between backticks in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def section(heading: str) -> str:
    """Return what follows a heading, up to the next of its level."""
    level = heading.partition(" ")[0]
    text = README[README.index(f"\n{heading}\n") + len(heading) + 1 :]
    return re.split(rf"^{level} ", text, maxsplit=1, flags=re.MULTILINE)[0]


# Producers


@pytest.fixture
async def it(amqp_url, prefix, events_exchange, tmp_path) -> AsyncIterator[Station]:
    async with station(amqp_url, prefix, events_exchange, tmp_path) as it:
        yield it


def in_folder(variable: str, program: str) -> Path:
    folder = os.environ.get(variable)
    if folder is None or shutil.which(program) is None:
        pytest.skip(f"needs {program}, and {variable} to name a folder that has the library")
    return Path(folder).resolve()


def python(_: Path) -> list[str]:
    return [sys.executable, "-"]


def node(folder: Path) -> list[str]:
    home = in_folder("README_NODE", "node")
    # Modules are looked for in the folders above the program: a link stands in for an installation.
    (folder / "node_modules").symlink_to(home / "node_modules")
    return ["node", str(folder / "example.mjs")]


def go(folder: Path) -> list[str]:
    home = in_folder("README_GO", "go")
    for name in ("go.mod", "go.sum"):
        shutil.copy(home / name, folder)
    return ["go", "run", "-C", str(folder), "example.go"]


async def run(command: list[str], program: str, **environ: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate(program.encode())
    return process.returncode, out.decode()


PRODUCERS = [
    ("python publisher", python, "example.py"),
    ("python aio-pika", python, "example.py"),
    ("python pika", python, "example.py"),
    ("js amqplib", node, "example.mjs"),
    ("go amqp091", go, "example.go"),
]


@pytest.mark.parametrize(("words", "command", "name"), PRODUCERS)
async def test_the_event_of_an_example_producer_arrives(
    it: Station, words: str, command: Callable[[Path], list[str]], name: str, tmp_path: Path
):
    assert block(words).count('"events"') == 1
    program = block(words).replace('"events"', f'"{it.exchange}"')
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / name).write_text(program)
    started = command(folder)
    async with Recorder() as receiver:
        wanted = subscription("s", receiver.url, event_types=["order.*"], tenant="acme")
        dispatcher = await it.dispatcher(wanted | {"format": "cloudevents-structured"})
        assert (await run(started, program, AMQP_URL=it.amqp_url))[0] == 0
        [request] = await receiver.wait_for(1)
        assert not (await dispatcher.line("attempt.succeeded")).get("id_made")
    event = request.json()
    assert (event["type"], event["data"]) == ("order.created", EVENT)
    assert (event["subject"], event["tenant"]) == ("ord_1042", "acme")
    assert event["source"] in {"/shop", "shop"}


@pytest.mark.parametrize(("words", "command", "name"), PRODUCERS)
async def test_an_example_producer_notices_that_no_queue_takes_its_event(
    amqp_url: str,
    events_exchange: str,
    words: str,
    command: Callable[[Path], list[str]],
    name: str,
    tmp_path: Path,
):
    program = block(words).replace('"events"', f'"{events_exchange}"')
    (tmp_path / name).write_text(program)
    started = command(tmp_path)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    connection.channel().exchange_declare(events_exchange, "topic", durable=True)
    connection.close()
    status, told = await run(started, program, AMQP_URL=amqp_url)
    assert status == 1, told
    assert re.search("no queue is bound|Unroutable|NO_ROUTE|returned|PublishError", told), told


# Receivers


@pytest.fixture
def sent(it: Station) -> Callable[..., Any]:
    """Return the request that a subscription with this signing brings."""

    async def send(**signing: Any) -> Received:
        async with Recorder() as receiver:
            await it.dispatcher(subscription("s", receiver.url, signing=signing))
            async with Publisher(it.amqp_url, it.exchange) as publisher:
                await publisher.publish("order.created", EVENT)
            [request] = await receiver.wait_for(1)
            return request

    return send


def names_of(words: str) -> dict[str, Any]:
    """Run a block and return the names that it defines."""
    names: dict[str, Any] = {}
    exec(block(words), names)
    return names


async def test_the_example_receiver_takes_a_request_once_and_refuses_a_forged_one(
    sent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BILLING_SECRET", SECRET)
    handle = names_of("python verify")["handle"]
    request = await sent(scheme="standard", secrets=[{"env": "TEST_SECRET"}])
    headers = lower(request.headers)
    assert handle(headers, request.body + b" ") == 401
    assert {handle(hostile, request.body) for hostile in forged(headers)} == {401}
    assert [handle(headers, request.body) for _ in range(2)] == [204, 200]
    assert capsys.readouterr().out == f"order.created {EVENT}\n"


async def test_the_example_receiver_takes_the_retry_of_an_event_whose_work_failed(
    sent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BILLING_SECRET", SECRET)
    names = names_of("python verify")
    handle = names["handle"]
    request = await sent(scheme="standard", secrets=[{"env": "TEST_SECRET"}])
    headers = lower(request.headers)

    def fail(*_: object) -> None:
        raise OSError("the database is down")

    names["print"] = fail
    with pytest.raises(OSError, match="database"):
        handle(headers, request.body)
    del names["print"]
    assert handle(headers, request.body) == 204
    assert capsys.readouterr().out == f"order.created {EVENT}\n"


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Return them as ASGI, WSGI and Node give them to a receiver."""
    return {name.lower(): value for name, value in headers.items()}


def forged(headers: dict[str, str], signature: str = "webhook-signature") -> list[dict[str, str]]:
    """Return headers such as somebody sends who wants to see the receiver fail."""
    signatures = (
        "",
        "v1",
        "v1,a",
        "v1,\u00e9",
        "v1a,a",
        "v1a,\u00e9",
        "sha256=\u00e9",
        "sha256=\ud800",
    )
    times = ("abc", "", "9" * 5000, "-1", "nan") if signature == "webhook-signature" else ()
    return [
        {},
        {name: value for name, value in headers.items() if name != signature},
        *(headers | {signature: value} for value in signatures),
        *(headers | {"webhook-timestamp": value} for value in times),
    ]


async def test_the_example_receiver_in_node_does_the_same(sent: Callable[..., Any], tmp_path: Path):
    port = free_port()
    program = node(tmp_path)
    work = "console.log("
    failing = f"if (process.env.FAIL && !seen.failed) {{ seen.failed = 1; throw 0; }} {work}"
    (tmp_path / "example.mjs").write_text(block("js verify").replace(work, failing))
    request = await sent(scheme="standard", secrets=[{"env": "TEST_SECRET"}])
    process = await asyncio.create_subprocess_exec(
        *program,
        env=os.environ | {"BILLING_SECRET": SECRET, "PORT": str(port), "FAIL": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        refused = await answer(port, request, request.body + b" ")
        taken = [await answer(port, request, request.body) for _ in range(3)]
    finally:
        process.kill()
        out, _ = await process.communicate()
    assert (refused, taken) == (401, [500, 204, 200])
    assert out.decode().count("order.created") == 1


async def answer(port: int, request: Received, body: bytes) -> int:
    """Return the status with which a receiver answers, once it is up."""
    lines = [f"{name}: {value}" for name, value in request.headers.items() if "webhook-" in name]
    head = "\r\n".join(["POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines])
    async with asyncio.timeout(10):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.05)
        writer.write(head.encode() + b"\r\n\r\n" + body)
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
    return status


async def test_the_examples_for_ed25519_give_a_public_key_that_verifies(
    it: Station, sent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    key = "whsk_OTFhNzQwNWQ0NDM1NDRhNmI0NDdhNjlmMDJhYWFhYWE="
    it.environ["ED_KEY"] = key
    monkeypatch.setenv("BILLING_KEY", key)
    names_of("python public-key")
    public = capsys.readouterr().out.strip()
    verify = names_of("python verify-ed25519")["verify"]
    request = await sent(scheme="ed25519", secrets=[{"env": "ED_KEY"}])
    headers = lower(request.headers)
    assert verify(headers, request.body, public)
    assert not verify(headers, request.body + b" ", public)
    assert not any(verify(hostile, request.body, public) for hostile in forged(headers))
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    assert not verify(headers, request.body, f"whpk_{other[:43]}=")


async def test_the_example_for_hub_sha256_verifies(it: Station, sent: Callable[..., Any]):
    it.environ["HUB_SECRET"] = "any text"
    verify = names_of("python verify-hub")["verify"]
    request = await sent(scheme="hub-sha256", secrets=[{"env": "HUB_SECRET"}])
    headers = lower(request.headers)
    assert verify(headers, request.body, "any text")
    assert not verify(headers, request.body + b" ", "any text")
    hostile = forged(headers, "x-hub-signature-256")
    assert not any(verify(one, request.body, "any text") for one in hostile)


def test_the_table_of_answers_is_what_is_decided():
    event = Event("1", "a.b", "/s", "2030-01-01T00:00:00Z", 0.0, b"{}")
    delivery = Delivery(event, "s", 0.0)
    policy = RetryPolicy()
    told = {
        row["outcome"]: row
        for row in table(
            "| outcome | in the same round | if the round ends without a 2xx |\n| --- | --- | --- |"
        )
    }
    for status in range(200, 600):
        row = told[_row_of(status, told)]
        first = decide(delivery, Answered(status, 0.1), RoundSoFar(others=True), policy, 0.0, 0.0)
        last = decide(delivery, Answered(status, 0.1), RoundSoFar(), policy, 0.0, 0.0)
        if row["in the same round"] == "delivered":
            assert first == last == Delivered()
            continue
        failover = row["in the same round"].startswith("failover")
        assert isinstance(first, Failover) is failover, status
        assert isinstance(last, Retry), status
        assert row["if the round ends without a 2xx"].endswith("retry by schedule"), status


def _row_of(status: int, rows: dict[str, dict[str, str]]) -> str:
    exact = [name for name in rows if str(status) in re.findall(r"\b\d{3}\b", name)]
    by_class = [name for name in rows if re.search(rf"\b{status // 100}xx\b", name)]
    return (exact or by_class)[0]


# Subscriptions


def subscriptions_of(text: str, folder: Path) -> list[Any]:
    (folder / "secrets").mkdir(exist_ok=True)
    (folder / "secrets" / "billing-old").write_text(SECRET)
    path = folder / "subscriptions.yaml"
    path.write_text(text)
    environ = {"BILLING_SECRET": SECRET, "CI_SECRET": "any text"}
    return list(load(path, allow_http=True, environ=environ))


@pytest.mark.parametrize("words", ["yaml", "yaml subscriptions"])
def test_the_example_subscriptions_are_valid(words: str, tmp_path: Path):
    assert subscriptions_of(block(words), tmp_path)


FIELDS = table(
    "| field | default | bounds and meaning |\n| --- | --- | --- |",
)


def fields_of(model: type[BaseModel]) -> set[str]:
    """Return the names of a model's fields as the README writes them."""
    found = set()
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        models = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
        inner = models[0] if models else None
        if inner is None or name == "secrets":
            found.add(name)
        elif name == "targets":
            found |= {name} | {f"{name}[].{under}" for under in fields_of(inner)}
        else:
            found |= {f"{name}.{under}" for under in fields_of(inner)}
    return found


def test_every_field_of_a_subscription_is_in_the_table_and_no_other():
    listed = [name for row in FIELDS for name in code(row["field"])]
    assert sorted(listed) == sorted(fields_of(SubscriptionModel))


@pytest.mark.parametrize(
    "row",
    [row for row in FIELDS if row["default"].startswith("`")],
    ids=lambda row: code(row["field"])[0],
)
def test_a_default_that_the_table_tells_is_the_default(row: dict[str, str], tmp_path: Path):
    [field], [default] = code(row["field"]), code(row["default"])
    told = default.split() if field == "retry.schedule" else yaml.safe_load(default)
    written: dict[str, Any] = {
        "id": "s",
        "event_types": ["#"],
        "targets": [{"url": "https://a.example/"}],
        "signing": {"secrets": [{"env": "BILLING_SECRET"}]},
    }
    plain = subscriptions_of(json.dumps({"subscriptions": [written]}), tmp_path)
    outer, _, inner = field.partition(".")
    match outer:
        case "targets[]":
            written["targets"][0][inner] = told
        case _ if inner:
            written.setdefault(outer, {})[inner] = told
        case _:
            written[outer] = told
    assert subscriptions_of(json.dumps({"subscriptions": [written]}), tmp_path) == plain


# Settings, commands, operations


SETTINGS = table("| name | default | meaning |\n| --- | --- | --- |")


def test_every_setting_is_in_the_table_and_no_other():
    listed = [name for row in SETTINGS for name in code(row["name"])]
    assert sorted(listed) == sorted(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
    files = {f"{PREFIX}{name.upper()}_FILE" for name in SECRET_FIELDS}
    assert all(f"`{name}`" in section("## Settings") for name in files)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: code(row["name"])[0])
def test_the_default_of_a_setting_is_the_one_told(row: dict[str, str]):
    [name] = code(row["name"])
    field = name.removeprefix(PREFIX).lower()
    default = getattr(Settings.load({}), field)
    if not code(row["default"]):
        assert default in (None, ())
    else:
        [told] = code(row["default"])
        assert getattr(Settings.load({name: told}), field) == default


def test_every_setting_that_the_readme_names_exists():
    named = set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]\b", README))
    assert named <= known_names()


COMMANDS = [
    line.partition(" #")[0].strip()
    for words, text in BLOCKS
    if words == "sh"
    for line in text.splitlines()
    if line.startswith("webhook-dispatcher ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_one(line: str):
    words = shlex.split(line.removesuffix("&").partition(" < ")[0])[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)  # parses and checks them, and runs nothing


def test_every_command_is_in_the_readme():
    names = set()
    for name, command in cli.commands.items():
        under = command.commands if isinstance(command, click.Group) else [""]
        names |= {f"webhook-dispatcher {name} {one}".strip() for one in under}
    missing = {name for name in names if not any(line.startswith(name) for line in COMMANDS)}
    assert not missing


def test_every_target_of_make_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    in_code = "\n".join([text for words, text in BLOCKS if words == "sh"] + code(README))
    named = set(re.findall(r"\bmake ([a-z]+)\b", in_code))
    assert named >= {"demo", "test", "lint", "bench"}
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in named)


async def test_every_metric_is_in_the_table_and_no_other(it: Station):
    listed = {name for row in table_of_metrics() for name in code(row["metric"])}
    dispatcher = await it.dispatcher(subscription("s", "http://127.0.0.1:1/"))
    _, page = await dispatcher.get("/metrics")
    shown = set(re.findall(r"^# HELP webhook_dispatcher_(\w+) ", page, re.MULTILINE))
    assert listed == {name for name in shown if not name.endswith("_created")}


def table_of_metrics() -> list[dict[str, str]]:
    text = section("## Operations").replace("metric (`webhook_dispatcher_…`)", "metric")
    lines = text[text.index("| metric |") :].split("\n\n")[0].splitlines()
    return [{"metric": line.split(" |")[0], "labels": line.split(" |")[1]} for line in lines[2:]]


def test_the_example_log_line_is_as_its_schema_says():
    validate_line(block("json"))


def reasons(heading: str) -> set[str]:
    return {name for row in table(heading) for name in code(next(iter(row.values())))}


def test_every_reason_is_named():
    assert reasons("| dead letter | why |\n| --- | --- |") == {reason.value for reason in Reason}
    [rejected] = [event for event in CATALOGUE if event.name == "event.rejected"]
    assert reasons("| reason | why |\n| --- | --- |") == set(rejected.required["reason"]["enum"])


async def test_users_with_the_rights_of_the_readme_can_do_what_they_need(
    it: Station, node: Any, prefix: str, events_exchange: str
):
    users, set_permissions = {}, []
    for line in block("sh permissions").splitlines():
        _, *words, user, configure, write, read = shlex.split(line)
        rights = [
            right.replace("webhooks", re.escape(prefix)).replace("events", events_exchange)
            for right in (configure, write, read)
        ]
        users[user] = f"amqp://{user}:secret@127.0.0.1:{node.port}/"
        set_permissions.append((*words, user, *rights))
    # One call for all of them: each costs seconds.
    binaries = ", ".join(f'<<"{user}">>' for user in users)
    add = 'rabbit_auth_backend_internal:add_user(User, <<"secret">>, <<"test">>)'
    node.ctl("eval", f"[{add} || User <- [{binaries}]].")
    for arguments in set_permissions:
        node.ctl(*arguments)
    await _all_of_it_works_for(users, it)


async def _all_of_it_works_for(users: dict[str, str], it: Station) -> None:
    healthy = True
    async with Recorder(answer=lambda _: 200 if healthy else 500) as receiver:
        wanted = subscription("s", receiver.url, retry={"schedule": ["1s"]})
        first = await it.dispatcher(wanted, AMQP_URL=users["deployer"])
        assert await first.stop() == 0
        dispatcher = await it.dispatcher(
            AMQP_URL=users["dispatcher"], DECLARE_TOPOLOGY="false", LOG_LEVEL="debug"
        )
        async with Publisher(users["producer"], it.exchange) as publisher:
            await publisher.publish("a.b", {})
            await receiver.wait_for(1)
            healthy = False
            await publisher.publish("a.b", {})
            await publisher.publish("order.created", {"items": 5})
        await dispatcher.line("delivery.dead_lettered")
        await dispatcher.line("event.rejected")
        it.environ["DISPATCHER_AMQP_URL"] = users["operator"]
        assert len(await it.parked("dead")) == len(await it.parked("rejected")) == 1
        # A filter that matches nothing brings the message back to the tail of its queue.
        assert "redriven: 0" in await it.command("dead", "redrive", "--subscription", "other")
        healthy = True
        assert "redriven: 1" in await it.command("dead", "redrive")
        await receiver.wait_for(4)
        assert "redriven: 1" in await it.command("rejected", "redrive")
        await dispatcher.line("event.rejected", 2)
        assert "purged: 1" in await it.command("rejected", "purge")
        assert not dispatcher.of("broker.disconnected")
        assert await dispatcher.stop() == 0


async def test_messages_without_a_binding_are_moved_back_as_the_readme_says(
    it: Station, amqp_url: str, prefix: str
):
    async with Recorder(answer=lambda _: next(answers)) as receiver:
        answers = iter([500, 200])
        first = await it.dispatcher(subscription("s", receiver.url, retry={"schedule": ["1s"]}))
        queue = f"{prefix}.deliveries"
        connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
        channel = connection.channel()
        channel.queue_unbind(queue, queue, "")
        async with Publisher(it.amqp_url, it.exchange) as publisher:
            await publisher.publish("a.b", {})
        await first.line("attempt.failed")

        def unrouted() -> bool:
            found = channel.queue_declare(f"{prefix}.unrouted", passive=True)
            return bool(found.method.message_count)

        await first.until(unrouted)
        connection.close()
        assert await first.stop() == 0
        await it.dispatcher()
        assert len(receiver.requests) == 1
        program = block("python move-unrouted").replace('"webhooks.', f'"{prefix}.')
        assert await run(python(Path()), program, AMQP_URL=amqp_url) == (0, "")
        await receiver.wait_for(2)


# The page itself


LINKS = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_a_link_leads_to_a_file(link: str):
    assert (ROOT / link).exists()


def test_the_map_of_the_code_names_what_is_there():
    drawing = section("## Layout of the code")
    named = set(re.findall(r"\b[a-z_]+\.py\b|(?<!\S)[a-z0-9/]+/", drawing))
    assert all((ROOT / name).exists() or (ROOT / "service" / name).exists() for name in named)
    folders = {f"{path.parent.name}/" for path in (ROOT / "service").glob("*/__init__.py")}
    assert folders <= named


def test_a_module_that_the_text_names_is_there():
    named = {name for name in code(README) if re.fullmatch(r"[a-z0-9_/]+/[a-z_]+\.py", name)}
    assert named
    assert all((ROOT / name).exists() or (ROOT / "service" / name).exists() for name in named)


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[>=; ]", line)[0] for line in project["dependencies"]}
    listed = {
        name for row in table("| package | for |\n| --- | --- |") for name in code(row["package"])
    }
    assert listed == needed


def test_the_image_and_the_readme_tell_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"Version {version}" in README
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
