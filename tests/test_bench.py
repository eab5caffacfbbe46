"""The bench runs end to end and has every figure; what the figures are is not a test's business."""

import json

import pytest

from tests.bench.measure import measure
from tests.bench.plan import Plan
from tests.bench.report import Report

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


@pytest.fixture
async def report(amqp_url) -> Report:
    return await measure(amqp_url, _TINY, lambda _: None)


async def test_every_figure_is_measured_and_shown(report):
    rows = {row.name: row for row in report.rows}
    assert rows.keys() == _NAMES
    for row in report.rows:
        assert (row.value if row.bare is None else row.bare) is not None, row
        assert row.title in report.text()
    for name in ("cpu.fan_out_1.aio-pika", "cpu.fan_out_10.aiormq", "cpu.once"):
        assert rows[name].ratio > 0
    told = json.loads(report.json())
    assert [row["name"] for row in told["rows"]] == [row.name for row in report.rows]
    assert {"date", "cpu", "python", "broker", "receiver"} <= told["machine"].keys()
