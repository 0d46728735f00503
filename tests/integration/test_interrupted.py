"""A command that is stopped by a real signal leaves no session, no lock, no process, and nothing half done.

demo, bench, rehearse, backfill and guard have tests of their own, which stop them at more places.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.forked import Forked
from tests.support.revisions import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")
SESSIONS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'leadprotect%%' AND backend_type = 'client backend'
    """
WAITING = SESSIONS + " AND wait_event_type = 'Lock'"
ADVISORY = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
ENFORCED = "SELECT relrowsecurity FROM pg_class WHERE oid = '{leads}'::regclass"


@dataclass(frozen=True)
class Stopped:
    """A command, what is held so that it waits, and what must be as before when it was stopped."""

    words: tuple[str, ...]
    holds: str
    state: str = "SELECT 1"
    phase: str = "head"
    begin: Callable[[Database], object] = lambda _: None
    login: str | None = None
    mode: str = "ACCESS EXCLUSIVE"
    setting: tuple[str, str] = ("LEADPROTECT_DENIED_EDIT", "hide")


ON_LEADS = """
    SELECT (SELECT array_agg(tgname || tgenabled::text ORDER BY tgname) FROM pg_trigger
            WHERE tgrelid = '{leads}'::regclass),
           (SELECT array_agg(polname || polroles::text || coalesce(pg_get_expr(polqual, polrelid), '') ORDER BY polname)
            FROM pg_policy WHERE polrelid = '{leads}'::regclass),
           to_jsonb(o) FROM {schema}.settings_at_contract() AS o
    """


CASES = {
    "purge": Stopped(
        ("purge", "--yes"), "{quarantine}.lead_access_audit",
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'leadprotect_quarantine'",
        begin=lambda database: database.downgrade("base"),
    ),
    "rollback": Stopped(("rollback",), "{leads}", ENFORCED),
    "repair": Stopped(
        ("repair", "--yes"), "{schema}.user_lead_assignments",
        "SELECT relforcerowsecurity FROM pg_class WHERE oid = '{schema}.user_lead_assignments'::regclass",
        begin=lambda database: database.sql("ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY"),
    ),
    "redteam": Stopped(("redteam",), "{leads}", "SELECT count(*) FROM {leads}", login="seller_de"),
    "gate": Stopped(("status",), "{leads}", "SELECT count(*) FROM {leads}", "expanded"),
    "seal": Stopped(
        ("audit", "seal"), "{schema}.lead_access_audit", "SELECT count(*) FROM {schema}.lead_access_audit_seals"
    ),
    "territory": Stopped(("territory", "add", "FR"), "{leads}", "SELECT count(*) FROM {schema}.territories"),
    "scripts": Stopped(("scripts", "{folder}"), "{schema}.user_lead_assignments"),
    # whoever reads leads holds up what apply makes anew, and nothing that it asks before
    "apply": Stopped(
        ("apply", "--yes"), "{leads}", ON_LEADS, mode="ACCESS SHARE", setting=("LEADPROTECT_DENIED_EDIT", "raise")
    ),
    "shadow": Stopped(
        ("shadow", "start"), "{leads}",
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = '{leads}'::regclass", "expanded",
    ),
    "init": Stopped(("init", "--yes"), "{leads}", phase="host"),
    "plan": Stopped(("plan",), "{leads}", phase="expanded"),
}  # fmt: skip


def eventually(question: Callable[[], Any], what: str) -> None:
    """Wait for a state, for a minute at most."""
    until = time.monotonic() + 60
    while not question():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@contextmanager
def running(
    database: Database, *words: str, login: str | None = None, folder: Path | None = None, **settings: str
) -> Iterator[Forked]:
    url = database.login_url(login) if login else database.url
    environment = os.environ | database.environment | {"DATABASE_URL": url} | settings
    with Forked(["leadprotect", *words], environment, cwd=folder, stdout=True) as process:
        try:
            yield process
        finally:
            process.kill()


def left(database: Database) -> tuple[list[Any], list[Any]]:
    """Sessions and advisory locks of the commands, once the server has noticed."""
    eventually(lambda: database.sql(SESSIONS) == [], "a session of the command goes on")
    return database.sql(SESSIONS), database.sql(ADVISORY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.crossed("the signal differs for one command by day")
def test_a_stopped_command_leaves_no_session_no_lock_and_nothing_half_done(
    make_database: Callable[..., Database], tmp_path: Path, name: str, number: int
) -> None:
    case = CASES[name]
    database = make_database(case.phase)
    database.lead("DE")
    case.begin(database)
    held = case.holds.replace("{quarantine}", database.settings.quarantine)
    before = database.sql(case.state)
    with database.connect() as holder:
        database.query(holder, f"LOCK TABLE {held} IN {case.mode} MODE")
        words = (word.format(folder=tmp_path / "made") for word in case.words)
        settings = dict([case.setting])
        with running(database, *words, login=case.login, folder=tmp_path, **settings) as process:
            eventually(lambda: database.sql(WAITING) or process.poll() is not None, f"{name} does not wait for {held}")
            assert process.poll() is None, process.communicate()
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert (128 + number, True) == (process.returncode, "stopped" in said.splitlines()), said
        assert "Traceback" not in said
        assert ([], [0]) == left(database)
        holder.rollback()
    assert before == database.sql(case.state)
    assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_change_of_the_host_ends_its_command_and_puts_everything_back(
    database: Database, number: int
) -> None:
    with running(database, "host-change", "--", "sleep", "600") as process:
        started = psutil.Process(process.pid)
        eventually(started.children, "the command is not run")
        (child,) = started.children()
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert 128 + number == process.returncode, said
    assert "put back" in said
    assert not child.is_running()
    assert ([], [0]) == left(database)
    assert (HEAD, [True]) == (database.revision(), database.sql(ENFORCED))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_watch_ends_without_a_word_too_many(database: Database, number: int) -> None:
    with running(database, "status", "--watch") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (128 + number, "stopped\n") == (process.returncode, said)
    assert ([], [0]) == left(database)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_look_at_who_reads_keeps_what_it_saw(make_database: Callable[..., Database], number: int) -> None:
    database = make_database("expanded")
    lead = database.lead("DE")
    with running(database, "shadow", "start") as process:
        process.communicate(timeout=60)
    looks = "SELECT query_start FROM pg_stat_activity WHERE pid IN (" + SESSIONS + ") AND query LIKE '%%pg_locks%%'"
    with database.connect("seller_de") as reader, running(database, "shadow", "watch", "--for", "1h") as process:
        database.query(reader, "SELECT FROM {leads} WHERE {lead_id} = %s", lead)
        eventually(lambda: database.sql(looks), "nobody looks")
        (first,) = database.sql(looks)
        # what the look before this one saw is noted by now
        eventually(lambda: database.sql(looks) > [first], "nobody looks again")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (128 + number, "stopped\n") == (process.returncode, said)
    assert ([], [0]) == left(database)
    with running(database, "shadow", "report", "--json") as process:
        report, _ = process.communicate(timeout=60)
    assert [database.profile.login("seller_de")] == [one["login"] for one in json.loads(report)["readers"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gate_that_waits_for_a_silent_prometheus_can_be_stopped(database: Database, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with running(database, "gate", "check", LEADPROTECT_PROMETHEUS_URL=url) as process:
            asked, _ = silent.accept()
            with asked:
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
    assert (128 + number, "stopped\n") == (process.returncode, said)
    assert ([], [0]) == left(database)
