"""Weights beside the real thing: nginx with the same upstreams and weights picks the same sequence."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from service.core.balancer import smooth_round_robin
from service.core.health import TargetState
from service.core.subscription import Target
from service.ports import free_port
from tests.receivers import Received, Recorder

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream receivers {{ {servers} }}
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://receivers; }} }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, weights: dict[int, int]) -> AsyncIterator[str]:
    """Run nginx in front of receivers on these ports; gives its URL."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert program, "nginx is not installed: apt-get install nginx-light"
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{p} weight={w};" for p, w in weights.items())
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, servers=servers, port=port))
    arguments = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    process = await asyncio.create_subprocess_exec(*arguments)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        await process.wait()


async def listening(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            async with aiohttp.ClientSession() as session, session.get(url + "ready"):
                return
        except aiohttp.ClientConnectorError:
            assert time.monotonic() < deadline, "nginx does not listen"
            await asyncio.sleep(0.05)


def noted(order: list[int], place: int, _: Received) -> int:
    order.append(place)
    return 200


@pytest.mark.parametrize("weights", [(5, 1, 1), (3, 2, 1), (1, 1, 1), (7, 3, 2)])
async def test_the_sequence_is_that_of_a_real_nginx(tmp_path, weights):
    order: list[int] = []
    cycles = 3 * sum(weights)
    async with Recorder() as a, Recorder() as b, Recorder() as c:
        for place, receiver in enumerate((a, b, c)):
            receiver._answer = partial(noted, order, place)
        ports = dict(zip((a.port, b.port, c.port), weights, strict=True))
        async with nginx(tmp_path, ports) as url, aiohttp.ClientSession() as session:
            await listening(url)
            for _ in range(cycles):
                async with session.post(url, data=b"{}") as answer:
                    assert answer.status == 200
    states = [TargetState(Target(f"http://{n}/", weight=w)) for n, w in enumerate(weights)]
    ours = [states.index(smooth_round_robin(states, 0.0)) for _ in range(cycles + 1)]
    assert order == ours  # the request that waited until nginx listened is the first
