"""The command `check`: all that is wrong, each once, and nothing that is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.commands.check import check_everything
from tests.dispatcher import SECRET, subscription

GOOD = subscription("s", "http://127.0.0.1:9000/")


@pytest.fixture
def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Check a file of these subscriptions, in this environment; returns the status and what was said."""

    def check(*subscriptions: dict[str, Any], **environ: str) -> tuple[int, list[str], str]:
        path = tmp_path / "conf.json"
        path.write_text(json.dumps({"subscriptions": subscriptions}))
        told = {"DISPATCHER_SUBSCRIPTIONS": str(path), "TEST_SECRET": SECRET}
        status = check_everything(None, told | environ)
        said = capsys.readouterr()
        return status, said.err.splitlines(), said.out

    return check


def test_what_is_good_is_counted(checked: Any):
    status, wrong, said = checked(GOOD, DISPATCHER_ALLOW_HTTP="true")
    assert (status, wrong) == (0, [])
    assert said.startswith("good: 1 subscription, ")


def test_a_wrong_setting_does_not_make_other_things_wrong(checked: Any):
    status, wrong, _ = checked(GOOD, DISPATCHER_ALLOW_HTTP="true", DISPATCHER_LOG_LEVEL="loud")
    assert status == 2
    assert [line.partition(":")[0] for line in wrong] == ["DISPATCHER_LOG_LEVEL"]


def test_nothing_is_said_of_targets_where_nobody_knows_whether_http_is_allowed(checked: Any):
    status, wrong, _ = checked(GOOD, DISPATCHER_ALLOW_HTTP="perhaps")
    assert status == 2
    assert [line.partition(":")[0] for line in wrong] == ["DISPATCHER_ALLOW_HTTP"]


def test_each_schema_that_cannot_be_used_is_told(checked: Any, tmp_path: Path):
    (tmp_path / "schemas").mkdir()
    for name, text in {"a": "[]", "b": "{}", "c": "{"}.items():
        (tmp_path / "schemas" / f"{name}.json").write_text(text)
    wrong = checked(
        GOOD, DISPATCHER_ALLOW_HTTP="true", DISPATCHER_SCHEMAS=str(tmp_path / "schemas")
    )[1]
    assert [Path(line.partition(":")[0]).name for line in wrong] == ["a.json", "c.json"]


def test_what_follows_from_a_wrong_setting_is_not_told(checked: Any, tmp_path: Path):
    authority = tmp_path / "empty.pem"
    authority.touch()
    wrong = checked(
        GOOD,
        DISPATCHER_ALLOW_HTTP="true",
        DISPATCHER_AMQP_CA_FILE=str(authority),
        DISPATCHER_AMQP_URL="http://broker/",
    )[1]
    assert sorted(line.partition(":")[0] for line in wrong) == [
        "DISPATCHER_AMQP_CA_FILE",
        "DISPATCHER_AMQP_URL",
    ]


def test_all_that_is_wrong_is_told_at_once(checked: Any):
    status, wrong, _ = checked(
        GOOD,
        GOOD | {"id": "t", "balance": "best"},
        DISPATCHER_ALLOW_HTTP="true",
        DISPATCHER_ADMIN_PORT="99999",
        DISPATCHER_EGRES_ALLOW="10.0.0.0/8",
    )
    assert status == 2
    assert "DISPATCHER_ADMIN_PORT" in wrong[0]
    assert "balance" in wrong[1]
    assert "did you mean DISPATCHER_EGRESS_ALLOW?" in wrong[2]


def test_a_url_in_a_file_that_cannot_be_read_is_told_once(checked: Any):
    status, wrong, _ = checked(
        GOOD, DISPATCHER_ALLOW_HTTP="true", DISPATCHER_AMQP_URL_FILE="/nowhere"
    )
    assert status == 2
    assert [line.partition(":")[0] for line in wrong] == ["DISPATCHER_AMQP_URL_FILE"]
