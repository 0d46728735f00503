"""An HTTP server on the loopback that answers as a Prometheus with our rules does, until a test spoils an answer."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from leadprotect.gates.rules import BUCKETS, GATES, THRESHOLDS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    Raw = tuple[int, dict[str, str], bytes]

GOOD = {
    "latency": (0.05, 0.3),
    "errors": (0.001, 0.02),
    "deadlocks": (0, 0),
    "lock_waits": (1, 20),
    "replica_lag": (1000, 1024**3),
    "denials": (0.02, 0.5),
    "traffic": (10, 0.1),
    "targets": (1, 0.5),
    "exporter": (1, 1),
    "freshness": (3, 60),
}
"""Gate -> its value and its threshold, as text of Prometheus would have it."""


@dataclass
class PrometheusLike:
    """Every answer is made of these fields; `spoiled` takes the place of a whole answer, `asked` keeps the requests."""

    service: str = "leadprotect"
    skew: float = 0.0
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, list[tuple[dict[str, str], str]]] = field(default_factory=dict)
    thresholds: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    spoiled: Callable[[str], Raw | None] = lambda _: None
    trickling: bool = False
    interval: float = 15
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        for gate in GATES:
            self.rules[gate.name] = {
                "name": gate.alert,
                "query": f"{gate.series or 'absent(x)'} > 1",
                "labels": {"service": self.service, "gate_action": gate.action},
                "state": "inactive",
                "health": "ok",
                "lastEvaluation": self.ago(2),
                "type": "alerting",
            }
            if gate.series:
                value, threshold = GOOD[gate.name]
                self.series[gate.series] = [({"service": self.service, "gate": gate.name}, str(value))]
                self.thresholds[gate.name] = str(threshold)
        self.thresholds["counters"] = "0"
        self.series[BUCKETS] = [({"le": bound}, "1") for bound in ("0.1", "0.5", "+Inf")]

    def ago(self, seconds: float) -> str:
        """A time of Prometheus's own clock, as it writes it: nine digits."""
        at = datetime.fromtimestamp(time.time() + self.skew - seconds, UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"

    def now(self) -> float:
        return time.time() + self.skew

    def answer(self, path: str, query: str) -> Raw:
        """What the path and the query come to, or what took its place."""
        raw = self.spoiled(query or path)
        if raw is not None:
            return raw
        if path.endswith("/rules"):
            group = {"name": "g", "file": "f.yaml", "interval": self.interval, "rules": list(self.rules.values())}
            return self.success({"groups": [group]})
        if query == "time()":
            return self.success({"resultType": "scalar", "result": [self.now(), str(self.now())]})
        return self.success({"resultType": "vector", "result": self.vector(query)})

    def vector(self, query: str) -> list[dict[str, Any]]:
        name, _, matchers = query.partition("{")
        found = self.series.get(name, [])
        if name == THRESHOLDS:
            found = [({"gate": gate}, value) for gate, value in self.thresholds.items()]
        if f'service="{self.service}"' not in matchers:
            found = []
        return [{"metric": labels, "value": [self.now(), value]} for labels, value in found]

    def success(self, data: object) -> Raw:
        more = {"warnings": self.warnings} if self.warnings else {}
        return (
            200,
            {"content-type": "application/json"},
            json.dumps({"status": "success", "data": data} | more).encode(),
        )


@contextmanager
def serving(like: PrometheusLike, context: ssl.SSLContext | None = None) -> Iterator[PrometheusLike]:
    """Serve it on a free port; `like.url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            to = urlsplit(self.path)
            like.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = like.answer(to.path, parse_qs(to.query).get("query", [""])[0])
            self.send_response(status)
            for name, value in ({"content-length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            for byte in body if like.trickling else ():
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            if not like.trickling:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Whoever asked has gone: that is what the test is about."""

    server = Server(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    like.url = f"{'https' if context else 'http'}://localhost:{server.server_port}"
    try:
        yield like
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
