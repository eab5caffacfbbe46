"""Free ports of the loopback interface, for what the demo, the private RabbitMQ and the tests start.

They lie below the range from which systems take the ports of outgoing connections.  One of that range may be
taken before it is listened on; and a client that reconnects to a server of it which is down may be given the
server's own port, and be connected to itself.  The choice is the system's chance, not the seed's: two programs
that seed `random` alike (tests do) would else be given the same ports, and meet.
"""

import secrets
import socket
from contextlib import suppress
from typing import Final

_PORTS: Final = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return so many ports that nobody listens on."""
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        if port not in ports and is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Tell whether nobody listens on this port."""
    with socket.socket() as candidate, suppress(OSError):
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        candidate.bind(("127.0.0.1", port))
        return True
    return False


def free_port() -> int:
    """Return a port that nobody listens on."""
    [port] = free_ports(1)
    return port
