"""Free ports of the loopback interface, for what the demo, the private RabbitMQ and the tests start.

They lie below the range from which systems take the ports of outgoing connections.  One of that range may be
taken before it is listened on; and a client that reconnects to a server of it which is down may be given the
server's own port, and be connected to itself.
"""

import random
import socket
from contextlib import suppress
from typing import Final

_PORTS: Final = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return so many ports that nobody listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(_PORTS)  # noqa: S311 - nothing secret about it
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            if port not in ports:
                ports.append(port)
    return ports


def free_port() -> int:
    """Return a port that nobody listens on."""
    [port] = free_ports(1)
    return port
