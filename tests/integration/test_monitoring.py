"""The servers that the tests of the gates stand on are real, and do what those tests rely on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client
import pytest

from tests.support import monitoring
from tests.support.monitoring import wait_for

if TYPE_CHECKING:
    from tests.support.database import Database

pytestmark = pytest.mark.xdist_group("prometheus")


@pytest.mark.profiles("pg18", "pg15")
def test_prometheus_scrapes_a_service_and_the_exporter_of_a_database_and_survives_a_crash(
    tmp_path: Path, host: Database
) -> None:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("leads", "Leads", registry=registry).inc(3)
    with (
        monitoring.service(registry) as leads,
        monitoring.postgres_exporter(tmp_path / "exporter", host.server, host.name) as exporter,
        monitoring.prometheus(
            tmp_path / "prometheus", targets={"leads": [leads], "postgres": [exporter.address]}
        ) as prometheus,
    ):
        found = wait_for(lambda: prometheus.query('leads_total{job="leads"} == 3'))
        assert "leads" == found[0]["metric"]["job"]
        assert wait_for(lambda: prometheus.query(f'pg_stat_database_deadlocks{{datname="{host.name}"}} == 0'))
        port = prometheus.port
        prometheus.stop(signal.SIGKILL)
        prometheus.start()
        assert port == prometheus.port
        assert wait_for(lambda: prometheus.ready() and prometheus.query("leads_total"))
