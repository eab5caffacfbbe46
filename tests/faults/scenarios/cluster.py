"""A node of a cluster fails; the others go on."""

import asyncio

from tests.faults.cluster import Cluster, Member
from tests.faults.scenarios.base import Host, Scenario, Times
from tests.faults.stage import Stage


def _cluster(stage: Stage) -> Cluster:
    assert isinstance(stage.broker, Cluster)
    return stage.broker


async def _complete(stage: Stage) -> None:
    await asyncio.to_thread(_cluster(stage).await_complete, stage.station.prefix)
    await stage.ready(stage.replicas[-1])
    await stage.progress()


class MemberKilled(Scenario):
    """SIGKILL of each node in turn, and every fourth time of the one that leads the intake queue."""

    name = "member-killed"
    what = "3-node cluster, one node killed (each in turn, and the intake's leader)"
    times = Times(12, 2)
    host = Host.CLUSTER
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        member = await self._member(stage, number)
        await stage.moments(0.2, 1.0)
        await asyncio.to_thread(member.kill)
        stage.node_deaths += 1
        await stage.ready(stage.replicas[-1])
        await stage.progress()  # two of three are enough
        await asyncio.to_thread(member.start, 120.0)
        await _complete(stage)

    @staticmethod
    async def _member(stage: Stage, number: int) -> Member:
        cluster = _cluster(stage)
        if number % 4 == 3 or number == 0:
            return await asyncio.to_thread(cluster.leader_of, f"{stage.station.prefix}.intake")
        return cluster.members[number % len(cluster.members)]


class RollingRestart(Scenario):
    """Each node is stopped in order and started again, one after the other."""

    name = "rolling-restart"
    what = "3-node cluster, rolling restart"
    times = Times(3, 1)
    host = Host.CLUSTER
    direct = True

    async def strike(self, stage: Stage, number: int) -> None:
        for member in _cluster(stage).members:
            await asyncio.to_thread(member.stop)
            stage.node_deaths += 1
            await asyncio.to_thread(member.start, 120.0)
            await _complete(stage)
