"""A real Prometheus and a real postgres_exporter on free ports of the loopback, and a service that they scrape."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import prometheus_client

from tests.support.programs import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.support.servers import Server

D = TypeVar("D", bound="Daemon")
T = TypeVar("T")

PATIENCE_S = 30.0
_LISTENING = re.compile(r'"?Listening on"? address=\S*?:(\d+)')


@dataclass
class Daemon:
    """A program that says on stderr where it listens, and keeps its port when it is started again."""

    command: Callable[[str], list[str]]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(self.address), stdout=log, stderr=log, env=os.environ | self.environment
            )
        self.port = int(wait_for(self._listening)[1])

    def _listening(self) -> re.Match[str] | None:
        assert self.process
        assert self.process.poll() is None, self.log
        return _LISTENING.search(self.log)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it; SIGKILL is a crash. Whoever hangs is let go on first, else it would not hear."""
        if self.process:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.send_signal(how)
            self.process.wait(PATIENCE_S)
            self.process = None

    def hang(self) -> None:
        """It accepts connections, as the kernel does, and never answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Prometheus(Daemon):
    """It is asked here by the standard library, not by what is tested."""

    def query(self, expression: str) -> list[Any]:
        """The series of an instant query: `{"metric": {...}, "value": [time, text]}`."""
        found = self._data("query", query=expression)["result"]
        return found if isinstance(found, list) else []

    def state(self, alert: str) -> str:
        """inactive, pending or firing; KeyError where no such alert is loaded."""
        groups = self._data("rules", type="alert")["groups"]
        found: dict[str, str] = {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}
        return found[alert]

    def ready(self) -> bool:
        with suppress(OSError):
            return bool(self._answer("/-/ready"))
        return False

    def _data(self, what: str, **parameters: str) -> Any:
        return json.loads(self._answer(f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}"))["data"]

    def _answer(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:  # noqa: S310 - loopback, http
            found: bytes = answer.read()
            return found


@contextmanager
def prometheus(
    folder: Path, *, rules: Sequence[Path] = (), targets: Mapping[str, Sequence[str]] | None = None, every: str = "1s"
) -> Iterator[Prometheus]:
    """A Prometheus that is ready; `targets` are addresses (host:port) by job, scraped and judged `every`."""
    binary = program("prometheus", "prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [{"job_name": job, "static_configs": [{"targets": list(to)}]} for job, to in (targets or {}).items()]
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(path.absolute()) for path in rules],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML

    def command(address: str) -> list[str]:
        return [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--rules.alert.for-outage-tolerance=1h",
            "--rules.alert.for-grace-period=1s",
        ]

    with _running(Prometheus(command, folder)) as found:
        wait_for(found.ready)
        yield found


@contextmanager
def postgres_exporter(
    folder: Path, server: Server, database: str, *, user: str = "postgres", queries: Path | None = None
) -> Iterator[Daemon]:
    """An exporter of the server's figures, and of `queries`; its address is a target for `prometheus`."""
    binary = program("prometheus-postgres-exporter", "prometheus-postgres-exporter")
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-collector.bgwriter"]  # its columns moved in PostgreSQL 17, after this exporter
    options += [f"--extend.query-path={queries}"] if queries else []
    login = {"DATA_SOURCE_NAME": f"host={server.host} user={user} dbname={database} sslmode=disable"}
    with _running(
        Daemon(lambda address: [binary, f"--web.listen-address={address}", *options], folder, login)
    ) as found:
        yield found


@contextmanager
def service(registry: prometheus_client.CollectorRegistry) -> Iterator[str]:
    """A service whose metrics are those of `registry`: the address to scrape."""
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _running(daemon: D) -> Iterator[D]:
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop(signal.SIGKILL)


def wait_for(question: Callable[[], T | None], *, seconds: float = PATIENCE_S) -> T:
    """The first answer that is true; fails when there is none in time."""
    until = time.monotonic() + seconds
    while not (found := question()):
        assert time.monotonic() < until, f"nothing within {seconds} s"
        time.sleep(0.05)
    return found
