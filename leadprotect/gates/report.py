"""The page of a guard's run: one file that is written anew while it runs, or served on the loopback."""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.errors import InvalidRequest
from leadprotect.page import fill

if TYPE_CHECKING:
    from leadprotect.gates.record import Record

TEMPLATE = Path(__file__).with_name("guard.html")
_LAST_LOOK_S = 4.0


def page(data: dict[str, Any]) -> str:
    """The page, with what happened so far; while the run goes on, it looks for more."""
    return fill(TEMPLATE, data)


def write(record: Record, file: Path) -> None:
    """Write it whole or not at all: whoever opens it meanwhile sees the one before."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(page(record.data()), encoding="utf-8")
    beside.replace(file)


class PageServer:
    """Serves the page and its data to browsers of this machine; it has no login, so nobody else is let in."""

    def __init__(self, where: str) -> None:
        """Listen at `where` (host:port, port 0 for any that is free); raises `InvalidRequest`."""
        host, _, port = where.rpartition(":")
        host = host.strip("[]").replace("localhost", "127.0.0.1")
        try:
            address, number = ipaddress.ip_address(host), int(port)
        except ValueError:
            raise InvalidRequest(f"--serve {where}: expected an address and a port, such as 127.0.0.1:0") from None
        if not address.is_loopback:
            raise InvalidRequest(f"--serve {where}: the page has no login, so it is for this machine: 127.0.0.1:0")
        try:
            self._server = ThreadingHTTPServer((host, number), self._handler())
        except (OSError, OverflowError) as error:
            raise InvalidRequest(f"--serve {where}: {error}") from None
        self._server.daemon_threads = True
        self._data: dict[str, Any] = {}
        self._looked = self._looked_at_end = -_LAST_LOOK_S
        threading.Thread(target=self._server.serve_forever, name="leadprotect-guard-page", daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is to be seen."""
        return f"http://{self._address}/"

    @property
    def _address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"127.0.0.1:{port}" if host == "127.0.0.1" else f"[{host!s}]:{port}"

    def show(self, record: Record) -> None:
        """What is served from now on."""
        self._data = record.data()

    def close(self) -> None:
        """End, once whoever looks has seen how it ended."""
        end = time.monotonic() + _LAST_LOOK_S
        while time.monotonic() - self._looked < _LAST_LOOK_S and self._looked_at_end < 0 and time.monotonic() < end:
            time.sleep(0.1)
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = server._data
                # another site's page could ask by a name that leads here
                if self.headers.get("Host") not in (server._address, f"localhost:{server._address.rpartition(':')[2]}"):
                    self._answer(403, "text/plain", b"")
                elif self.path == "/":
                    self._answer(200, "text/html; charset=utf-8", page(data).encode())
                elif self.path == "/data.json":
                    self._answer(200, "application/json", json.dumps(data).encode())
                    server._seen(data)
                else:
                    self._answer(404, "text/plain", b"")

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
                                    "X-Content-Type-Options": "nosniff"}.items():  # fmt: skip
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *_args: Any) -> None:  # noqa: A002 - its name there
                """Nobody asked who looks."""

        return Handler

    def _seen(self, data: dict[str, Any]) -> None:
        self._looked = time.monotonic()
        if not data.get("running", True):
            self._looked_at_end = self._looked
