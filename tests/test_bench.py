"""The bench runs end to end and has every figure; what the figures are is not a test's business."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.bench import hardship, isolation
from tests.bench.measure import measure
from tests.bench.plan import Plan
from tests.bench.processes import waited_seconds

_TINY = Plan(
    deliveries=200,
    warm_up=100,
    pairs=1,
    detours=50,
    detour_pairs=1,
    latency=0.5,
    idle=0.2,
    subscriptions=200,
    matches=10,
    reloads=1,
    ways=("slow",),
    sick=(1,),
    well=2.0,
    ill=2.0,
)
_NAMES = {
    "idle.memory",
    "idle.cpu",
    "cpu.fan_out_1.aio-pika",
    "cpu.fan_out_1.aiormq",
    "cpu.post",
    "cpu.fan_out_10.aio-pika",
    "cpu.fan_out_10.aiormq",
    "throughput.fan_out_1.aio-pika",
    "throughput.fan_out_1.aiormq",
    "throughput.fan_out_10.aio-pika",
    "throughput.fan_out_10.aiormq",
    "cpu.fan_out_100.post",
    "throughput.fan_out_100.post",
    "latency.p50",
    "latency.p99",
    "cpu.once",
    "cpu.busy",
    "deferrals.busy",
    "memory.after",
    "throughput.workers",
    "scale.load",
    "scale.memory",
    "scale.match.uncached",
    "scale.match.cached",
    "scale.match.filtered",
    "reload.ready",
    "reload.in_force",
    "reload.slowest",
    "reload.memory",
}


async def test_every_figure_is_measured_and_shown(amqp_url):
    report = await measure(amqp_url, _TINY, lambda _: None, isolation=False)
    rows = {row.name: row for row in report.rows}
    assert rows.keys() == _NAMES
    for row in report.rows:
        assert (row.value if row.bare is None else row.bare) is not None, row
        assert row.title in report.text()
    for name in ("cpu.fan_out_1.aio-pika", "cpu.fan_out_10.aiormq", "cpu.once"):
        assert (rows[name].ratio or 0) > 0
    told = json.loads(report.json())
    assert [row["name"] for row in told["rows"]] == [row.name for row in report.rows]
    assert {"date", "cpu", "python", "broker", "receiver"} <= told["machine"].keys()


async def test_a_way_that_cannot_be_measured_is_told_and_the_rest_is_kept(amqp_url, monkeypatch):
    monkeypatch.setattr(isolation, "_BUILD_TIMEOUT", 10.0)
    monkeypatch.setattr(isolation, "_CAUGHT_UP", 0.0)
    plan = replace(_TINY, ways=(hardship.BACKLOG, "slow"), backlog=100)
    report = await measure(amqp_url, plan, lambda _: None, figures=False)
    assert report.isolation is not None
    assert [row.way for row in report.isolation.rows] == ["slow"]
    assert [end.way for end in report.isolation.ends] == ["slow"]
    assert "not all of those that have a backlog: those that are well" in report.text()


async def test_isolation_at_a_load_that_was_asked_for_needs_no_capacity(amqp_url):
    plan = replace(_TINY, load=150.0)
    report = await measure(amqp_url, plan, lambda _: None, figures=False)
    assert report.isolation is not None
    assert report.isolation.capacity == 0
    assert [row.load for row in report.isolation.rows] == [150.0]
    assert "load 150 events a second\n" in report.text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--load", "0"), "'0' is no load: write events a second, such as 500"),
        (("--load", "1.5"), "'1.5' is no load"),
        (("--ways", "hang,sulk"), "'sulk' is no way to be sick: take some of nobody, hang"),
    ],
)
def test_an_option_that_makes_no_sense_is_explained(arguments, problem):
    command = [sys.executable, "-m", "tests.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.split())


async def test_isolation_is_measured_and_shown(amqp_url):
    report = await measure(amqp_url, _TINY, lambda _: None, figures=False)
    assert report.isolation is not None
    [row], [end] = report.isolation.rows, report.isolation.ends
    assert (row.way, row.sick, end.way, end.doubled) == ("slow", 1, "slow", 0)
    assert row.samples > 0
    assert row.before_waited > 0
    assert row.waited > 0
    assert end.most_publishes <= 3
    assert end.full_weight is not None
    assert end.full_weight <= 60
    assert "answer after 5 s" in report.text()
    assert json.loads(report.json())["isolation"]["rows"][0]["way"] == "slow"


def test_a_process_that_shares_a_core_waits_for_it():
    core = min(os.sched_getaffinity(0))
    busy = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    programs = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 30
        while min(waited_seconds(one.pid) for one in programs) < 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for one in programs:
            one.kill()
            one.wait()
    with pytest.raises(FileNotFoundError):
        waited_seconds(programs[0].pid)
