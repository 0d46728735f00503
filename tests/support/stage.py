"""A rollout with everything that a guard looks at: a service, its metrics, an exporter, Prometheus with our rules."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram

from leadprotect.gates.measures import Measures
from leadprotect.gates.rules import rendered
from tests.support.monitoring import Daemon, Prometheus, postgres_exporter, prometheus, service, wait_for
from tests.support.scripted import Process, environment_of, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.database import Database
    from tests.support.servers import Server

SHORT = Measures(window=4, every=1, latency_for=4, errors_for=4, denials=False, exporter="0.11")
"""Rules as they are, with a `for` and a window of seconds."""

QUICK = ("--interval", "1s", "--bake", "3s", "--resume-after", "2")


@dataclass
class Service(threading.Thread):
    """Twenty requests a second, as slow and as wrong as a test wants them; none where it is idle."""

    slow: bool = False
    failing: bool = False
    idle: bool = False
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        super().__init__(name="service", daemon=True)
        self.ended = threading.Event()
        self.took = Histogram(
            "http_server_requests_seconds", "requests", ["uri", "status"], registry=self.registry,
            buckets=(0.05, 0.1, 0.15, 0.3, 0.5, 1, 5),
        )  # fmt: skip

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        number = 0
        while not self.ended.wait(0.05):
            number += 1
            if not self.idle:
                status = "500" if self.failing and number % 20 == 0 else "200"
                self.took.labels("/leads", status).observe(0.6 if self.slow else 0.02)

    def heal(self) -> None:
        self.slow = self.failing = self.idle = False


@dataclass
class Stage:
    """What runs for all tests of a module; each of them leaves it healthy."""

    service: Service
    prometheus: Prometheus
    exporter: Daemon

    def environment(self, database: Database) -> dict[str, str]:
        return environment_of(database) | {"LEADPROTECT_PROMETHEUS_URL": self.prometheus.url}

    def heal(self) -> None:
        """Wait until every alert is quiet again."""
        self.service.heal()
        wait_for(self._quiet)

    def _quiet(self) -> bool:
        if not self.prometheus.query('leadprotect:http_latency:p95_seconds{service="leadprotect"} < 0.1'):
            return False
        return not self.prometheus.query('ALERTS{service="leadprotect"}') and bool(
            self.prometheus.query('leadprotect:postgres:up{service="leadprotect"} == 1')
        )

    def firing(self, alert: str) -> float:
        """Wait until it fires; when that was seen, on the monotonic clock."""
        wait_for(
            lambda: self.prometheus.query(f'ALERTS{{alertname="{alert}",alertstate="firing",service="leadprotect"}}')
        )
        return time.monotonic()


@contextmanager
def stage(folder: Path, server: Server) -> Iterator[Stage]:
    files = []
    for measures in (SHORT, replace(SHORT, service="mistaken", metric="http_request_seconds")):
        files.append(folder / f"{measures.service}.yaml")
        files[-1].write_text(rendered(measures)[files[-1].name])
    with ExitStack() as stack:
        answering = Service()
        answering.start()
        stack.callback(answering.ended.set)
        leads = stack.enter_context(service(answering.registry))
        exporter = stack.enter_context(postgres_exporter(folder / "exporter", server, "postgres"))
        asked = stack.enter_context(
            prometheus(
                folder / "prometheus",
                rules=files,
                targets={"leads": [leads], "postgres": [exporter.address]},
            )
        )
        yield Stage(answering, asked, exporter)


@contextmanager
def guarding(stage: Stage, database: Database, *words: str, options: tuple[str, ...] = QUICK) -> Iterator[Process]:
    """`leadprotect guard` as a user runs it; it is ended with the block."""
    with running(["leadprotect", "guard", *options, "--", *words], stage.environment(database)) as found:
        yield found
