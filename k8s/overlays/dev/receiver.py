"""A receiver for trying out: verifies the signature of each webhook and prints what it says.

The secret stands in the file that SECRET_FILE names; the port is PORT, or 8000.
"""

# ruff: noqa: INP001 - not part of a package: a file that is mounted

import base64
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from service.core.signature import verify_standard

SECRET_FILE = Path(os.environ["SECRET_FILE"])


class Receiver(BaseHTTPRequestHandler):
    """204 for a webhook that is signed with the secret, 401 for any other, 200 for a probe."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer probes."""
        self._answer(200)

    def do_POST(self) -> None:
        """Take a webhook."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        message_id = self.headers.get("webhook-id", "")
        valid = verify_standard(
            base64.b64decode(SECRET_FILE.read_text().strip().removeprefix("whsec_")),
            message_id=message_id,
            timestamp=self.headers.get("webhook-timestamp", ""),
            body=body,
            signatures=self.headers.get("webhook-signature", ""),
            now=time.time(),
        )
        told = (message_id, "valid" if valid else "INVALID", body.decode(errors="replace"))
        print(*told, flush=True)  # noqa: T201 - that is what it is for
        self._answer(204 if valid else 401)

    def log_message(self, *_: object) -> None:
        """Print webhooks only, not every request."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), Receiver).serve_forever()
