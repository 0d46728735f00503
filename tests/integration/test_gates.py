"""The gates on real servers: what the database says itself, and a rollout as Prometheus sees it."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import prometheus_client
import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import metrics, settings
from leadprotect.cli import main
from leadprotect.gates import check, probes
from leadprotect.gates.check import Gates, evaluate
from leadprotect.gates.measures import Measures
from leadprotect.gates.rules import dashboard, exporter_queries, rendered
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from tests.support import monitoring
from tests.support.monitoring import Prometheus, wait_for
from tests.support.topology import replica

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.database import Database

PROCEED, PAUSE, ROLLBACK, UNKNOWN = Verdict


def looked(database: Database, before: int | None = None, **limits: float) -> dict[str, Answer]:
    """What the database answers a superuser, by name."""
    defaults = Gates(settings=database.settings).limits
    given = {f"database {name.replace('_', ' ')}": limit for name, limit in limits.items()}
    answers, _ = probes.probe(database.url, defaults | given, deadlocks=before)
    return {answer.name: answer for answer in answers}


def counted(database: Database) -> int:
    _, deadlocks = probes.probe(database.url, Gates(settings=database.settings).limits)
    assert deadlocks is not None
    return deadlocks


def deadlock(database: Database) -> None:
    """Two sessions take two locks in two orders; one of them is told."""
    met = threading.Barrier(2)

    def take(first: int, second: int) -> None:
        with database.connect(autocommit=True) as conn:
            conn.execute("SET deadlock_timeout = '10ms'")
            conn.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (first,))
            met.wait(60)
            conn.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (second,))

    errors: list[psycopg.Error] = []

    def guarded(first: int, second: int) -> None:
        try:
            take(first, second)
        except psycopg.errors.DeadlockDetected as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=order) for order in ((71, 72), (72, 71))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == len(errors)


# --- what the database says itself


def test_a_quiet_database_answers_every_question(host: Database) -> None:
    answers = looked(host)
    assert {
        "database deadlocks": PROCEED,
        "database lock waits": PROCEED,
        "database replica lag": PROCEED,
        "database replica distance": PROCEED,
        "database long transaction": PROCEED,
    } == {name: answer.verdict for name, answer in answers.items()}
    assert all("FROM pg_catalog." in answer.query for answer in answers.values())


def test_a_deadlock_pauses_by_its_increase_since_the_last_look(host: Database) -> None:
    before = counted(host)
    assert PROCEED == looked(host, before)["database deadlocks"].verdict
    deadlock(host)
    wait_for(lambda: counted(host) > before)
    seen = looked(host, before)["database deadlocks"]
    assert (PAUSE, 1.0, "1 since the last look") == (seen.verdict, seen.value, seen.why)
    assert PROCEED == looked(host, counted(host))["database deadlocks"].verdict


@pytest.mark.profiles("pg18")
def test_a_deadlock_while_the_database_could_not_be_asked_is_seen_at_the_next_look(host: Database) -> None:
    gates = Gates(settings=host.settings)
    first = evaluate(gates, host.url)
    deadlock(host)
    wait_for(lambda: counted(host) > (first.deadlocks or 0))
    blind = evaluate(gates, "postgresql://127.0.0.1:1/crm", before=first)
    assert first.deadlocks == blind.deadlocks
    (seen,) = [a for a in evaluate(gates, host.url, before=blind).answers if a.name == "database deadlocks"]
    assert (PAUSE, 1.0) == (seen.verdict, seen.value)


def test_a_look_costs_the_database_three_statements(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []
    execute = psycopg.Connection.execute

    def counting(conn: psycopg.Connection[Any], query: str, *args: Any, **more: Any) -> Any:
        executed.append(query)
        return execute(conn, query, *args, **more)

    monkeypatch.setattr(psycopg.Connection, "execute", counting)
    probes.probe(host.url, Gates(settings=host.settings).limits)
    assert 3 == len(executed)


def test_a_counter_that_began_anew_is_no_rise_of_its_old_value(host: Database) -> None:
    assert PROCEED == looked(host, counted(host) + 1000)["database deadlocks"].verdict


@contextmanager
def waiting(host: Database, application: str) -> Iterator[None]:
    """A session with an open transaction that another one waits for."""
    with host.connect() as holder, host.connect() as waiter:
        for conn in (holder, waiter):
            conn.execute("SELECT pg_catalog.set_config('application_name', %s, false)", (application,))
        holder.execute(host.text("LOCK TABLE {leads}"))
        thread = threading.Thread(target=lambda: waiter.execute(host.text("SELECT FROM {leads} LIMIT 1")))
        thread.start()
        wait_for(lambda: host.sql("SELECT count(*) FROM pg_catalog.pg_locks WHERE NOT granted") != [0])
        yield
        holder.rollback()
        thread.join()


def test_waiting_requests_and_long_transactions_of_others_pause(host: Database) -> None:
    with waiting(host, "crm"):
        few, many = looked(host, lock_waits=1), looked(host, lock_waits=0, long_transaction=0)
    assert (PROCEED, 1.0) == (few["database lock waits"].verdict, few["database lock waits"].value)
    assert "1 requests wait for locks" == many["database lock waits"].why
    assert {PAUSE} == {many[name].verdict for name in ("database lock waits", "database long transaction")}


def test_what_is_ours_is_no_reason_to_pause_us(host: Database) -> None:
    with waiting(host, "leadprotect migration"):
        answers = looked(host, lock_waits=0, long_transaction=0)
    assert {PROCEED} == {answer.verdict for answer in answers.values()}


def test_a_login_that_sees_itself_only_does_not_know_and_is_told_the_grant(expanded: Database) -> None:
    limits = Gates(settings=expanded.settings).limits
    url = expanded.login_url("operator")
    answers = {answer.name: answer for answer in probes.probe(url, limits)[0]}
    hidden = {name for name, answer in answers.items() if answer.verdict is UNKNOWN}
    assert {"database replica lag", "database replica distance", "database long transaction"} == hidden
    assert "GRANT pg_read_all_stats TO" in answers["database replica lag"].why


def test_a_database_that_can_t_be_reached_is_one_answer_without_its_password(host: Database) -> None:
    (answer,), deadlocks = probes.probe("postgresql://me:s3cret@127.0.0.1:1/crm", Gates(settings=host.settings).limits)
    assert (UNKNOWN, None) == (answer.verdict, deadlocks)
    assert "127.0.0.1" in answer.why
    assert "s3cret" not in answer.why


@pytest.mark.profiles("pg18")
def test_a_database_that_hangs_is_unknown_in_time(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/crm"
        found = evaluate(Gates(settings=host.settings), url)
    assert "database: gave no whole answer within 0.5 s" in found.reasons


def distance(database: Database) -> Answer:
    return looked(database, replica_distance=900_000)["database replica distance"]


@pytest.mark.nightly_elsewhere("by day standbys have tests on the newest server")
def test_a_replica_that_replays_nothing_is_seen_by_its_distance_and_by_the_exporter(
    tmp_path: Path, host: Database
) -> None:
    with replica(host.server) as standby, psycopg.connect(standby.url(host.name), autocommit=True) as behind:
        wait_for(lambda: host.sql("SELECT state FROM pg_catalog.pg_stat_replication") == ["streaming"])
        behind.execute("SELECT pg_catalog.pg_wal_replay_pause()")
        host.sql("SELECT pg_catalog.pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
        wait_for(lambda: (distance(host).value or 0) > 900_000)
        assert PAUSE == distance(host).verdict
        with monitoring.postgres_exporter(tmp_path, host.server, host.name) as exporter:
            exported = urllib.request.urlopen(f"{exporter.url}/metrics").read().decode()  # noqa: S310 - loopback
        # also of the oldest one that is supported
        rules = rendered(Measures(exporter="0.11"))["leadprotect.yaml"]
        taken = set(re.findall(r"\bpg_\w+", rules))
        assert {"pg_up", "pg_stat_database_deadlocks", "pg_stat_replication_pg_wal_lsn_diff"} <= taken
        assert taken <= set(re.findall(r"^pg_\w+", exported, re.MULTILINE))


# --- a whole rollout


@dataclass
class Service:
    """A service that answers fifty requests a second, all alike."""

    registry: prometheus_client.CollectorRegistry = field(default_factory=prometheus_client.CollectorRegistry)
    seconds: float = 0.02
    failing: float = 0.0
    stopped: bool = False

    def __post_init__(self) -> None:
        labels = ["uri", "status"]
        buckets = (0.05, 0.15, 0.3, 0.6)
        requests = prometheus_client.Histogram(
            "http_server_requests_seconds", "Requests", labels, buckets=buckets, registry=self.registry
        )
        self._of = {status: requests.labels("/leads/{id}", status) for status in ("200", "500")}
        metrics.enable(self.registry)

    @contextmanager
    def serving(self) -> Iterator[str]:
        ended = threading.Event()

        def serve() -> None:
            answered = 0
            while not ended.wait(0.02):
                if not self.stopped:
                    answered += 1
                    fails = answered % 100 < 100 * self.failing
                    self._of["500" if fails else "200"].observe(self.seconds)
                    metrics.allowed()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with monitoring.service(self.registry) as address:
                yield address
        finally:
            ended.set()
            thread.join()


@dataclass
class Rollout:
    """A service, its database, and the Prometheus that judges them by rules of a hurried host."""

    service: Service
    database: Database
    prometheus: Prometheus
    seen: list[Evaluation] = field(default_factory=list)

    def look(self) -> Evaluation:
        given = {"prometheus_url": self.prometheus.url, "database_url": self.database.url}
        before = self.seen[-1] if self.seen else None
        found = evaluate(Gates(settings=settings.parse(given)), self.database.url, before=before)
        self.seen.append(found)
        time.sleep(0.2)
        return found

    def until(self, verdict: Verdict) -> set[Verdict]:
        """Look until it is that verdict; the ones that came before it."""
        begin = len(self.seen)
        wait_for(lambda: self.look().verdict is verdict)
        return {found.verdict for found in self.seen[begin:-1]}


@contextmanager
def watched(folder: Path, database: Database, queries: Path | None = None) -> Iterator[Rollout]:
    """The rules of a hurried host, loaded by a Prometheus that scrapes every second."""
    measures = Measures(window=4, every=1, latency_for=4, errors_for=4, exporter="0.11")
    for name, text in rendered(measures).items():
        (folder / name).write_text(text, encoding="utf-8")
    service = Service()
    with (
        service.serving() as leads,
        monitoring.postgres_exporter(folder / "exporter", database.server, database.name, queries=queries) as exporter,
        monitoring.prometheus(
            folder / "prometheus",
            rules=[folder / "leadprotect.yaml"],
            targets={"leads": [leads], "postgres": [exporter.address]},
        ) as prometheus,
    ):
        yield Rollout(service, database, prometheus)


@pytest.fixture
def rollout(tmp_path: Path, host: Database) -> Iterator[Rollout]:
    with watched(tmp_path, host) as found:
        yield found


def reasons(found: Evaluation, verdict: Verdict) -> set[str]:
    return {answer.name for answer in found.answers if answer.verdict is verdict}


@pytest.mark.xdist_group("prometheus")
@pytest.mark.profiles("pg18")
def test_a_rollout_is_judged_by_what_really_happens(rollout: Rollout) -> None:
    # a deadlock of another test on this server is one that really happened
    assert ROLLBACK not in rollout.until(PROCEED)

    rollout.service.seconds = 0.5
    assert {PROCEED, PAUSE} >= rollout.until(ROLLBACK)
    assert {"latency"} == reasons(rollout.seen[-1], ROLLBACK)
    rollout.service.seconds = 0.02
    rollout.until(PROCEED)

    deadlock(rollout.database)
    assert ROLLBACK not in rollout.until(PAUSE)
    assert ROLLBACK not in rollout.until(PROCEED)

    rollout.service.failing = 0.05
    rollout.until(ROLLBACK)
    assert {"errors"} == reasons(rollout.seen[-1], ROLLBACK)
    rollout.service.failing = 0.0
    rollout.until(PROCEED)


@pytest.mark.xdist_group("prometheus")
@pytest.mark.profiles("pg18")
def test_nothing_is_rolled_back_for_what_is_missing(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadprotect.gates.prometheus.REQUEST_S", 0.5)
    rollout.until(PROCEED)
    seen = len(rollout.seen)

    rollout.service.stopped = True
    rollout.until(UNKNOWN)
    time.sleep(6)  # longer than it takes any alert here to fire
    assert {"traffic"} <= reasons(rollout.look(), UNKNOWN)
    rollout.service.stopped = False
    rollout.until(PROCEED)

    rollout.prometheus.hang()
    assert {"prometheus"} == reasons(rollout.look(), UNKNOWN)
    rollout.prometheus.go_on()
    rollout.until(PROCEED)

    rollout.prometheus.stop(signal.SIGKILL)
    assert {"prometheus"} == reasons(rollout.look(), UNKNOWN)
    rollout.prometheus.start()
    rollout.until(PROCEED)
    assert {PROCEED, PAUSE, UNKNOWN} >= {found.verdict for found in rollout.seen[seen:]}


@pytest.mark.xdist_group("prometheus")
@pytest.mark.profiles("other_names", "pg18")
@pytest.mark.nightly_elsewhere("by day what the database says of itself is read there by status")
def test_every_query_of_the_dashboard_has_data(tmp_path: Path, expanded: Database) -> None:
    expanded.lead("DE", owner=expanded.user(1))
    assert 0 == CliRunner().invoke(main, ["backfill", "DE"]).exit_code
    queries = tmp_path / "queries.yaml"
    queries.write_text(exporter_queries(expanded.settings), encoding="utf-8")
    asked = {target["expr"] for panel in json.loads(dashboard())["panels"] for target in panel["targets"]}
    with watched(tmp_path, expanded, queries) as rollout:
        metrics.denied("not_owner")
        rollout.until(PROCEED)
        empty = [query for query in asked if not rollout.prometheus.query(query.replace("$service", "leadprotect"))]
        assert [] == empty
        assert "migrate" == rollout.prometheus.query("leadprotect:phase:reached == 1")[0]["metric"]["phase"]
        assert rollout.prometheus.query('leadprotect:backfill:share{territory="DE"} > 0')
