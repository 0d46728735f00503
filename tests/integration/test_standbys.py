"""On a hot standby what reads answers, and says that it is advice; what decides or changes refuses."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

import leadprotect
from leadprotect import settings
from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from leadprotect.fleet.move import move
from tests.support.topology import crash, pooler, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.database.drivers import AnyConnection
    from tests.support.database import Database
    from tests.support.servers import Server

PAGE = Path(__file__).parents[2] / "docs/how-to/read-from-standbys.md"
# one worker makes the standby that most of them ask
pytestmark = [pytest.mark.profiles("pg18"), pytest.mark.xdist_group("standbys")]


@pytest.fixture(scope="module")
def follower(running: Callable[[int], Server]) -> Iterator[Server]:
    """A standby that nobody promotes."""
    with replica(running(18)) as server:
        yield server


def on(server: Server, database: Database) -> Database:
    """The same database on a standby, as it is now."""
    standby = replace(database, server=server)
    caught_up(database, standby)
    return standby


def caught_up(primary: Database, standby: Database) -> None:
    """Wait until the standby has replayed what the primary has written."""
    (written,) = primary.sql("SELECT pg_current_wal_flush_lsn()::text")
    with psycopg.connect(standby.server.url(), autocommit=True) as conn:  # its own database may have to come yet
        while conn.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)).fetchone() != (True,):
            time.sleep(0.01)


def promoted(standby: Database) -> None:
    with standby.connect(autocommit=True) as conn:
        assert conn.execute("SELECT pg_promote()").fetchone() == (True,)


def test_checks_answer_as_on_the_primary_and_say_that_they_are_advice(database: Database, follower: Server) -> None:
    mine, other, nobodys = database.lead("DE", database.user(1)), database.lead("DE", database.user(2)), database.lead()
    leads = [mine, other, nobodys, database.lead("CH", database.user(1)), database.new_id()]
    standby = on(follower, database)
    with database.acting("seller_de", 1) as there, standby.acting("seller_de", 1) as here:
        expected = [leadprotect.explain(there, lead) for lead in leads]
        found = [leadprotect.explain(here, lead) for lead in leads]
        page = leadprotect.editable_leads(here)

        assert [one.reason for one in expected] == [one.reason for one in found]
        assert ({False}, {True}) == ({one.on_standby for one in expected}, {one.on_standby for one in found})
        assert [True, False] == [leadprotect.can_edit(here, mine), leadprotect.can_edit(here, other)]
        assert leadprotect.can_edit_many(there, leads) == leadprotect.can_edit_many(here, leads)
        assert [(mine, True)] == [(one.lead_id, one.on_standby) for one in page.leads]
        assert [mine] == database.query(here, "SELECT {lead_id} FROM {leads} WHERE {lead_id} = %s", mine)
    with standby.engine("seller_de") as engine, Session(engine) as session:
        named = leadprotect.explain(session, mine, user_id=database.user(1), territory="DE")
        assert (True, True) == (named.allowed, named.on_standby)


def changes(database: Database) -> dict[str, Callable[[AnyConnection, Any], object]]:
    return {
        "assert_edit": leadprotect.assert_edit,
        "assign": lambda conn, lead: leadprotect.assign(conn, lead, database.user(2)),
        "transfer": lambda conn, lead: leadprotect.transfer(conn, lead, database.user(2)),
        "claim": leadprotect.claim,
        "release": leadprotect.release,
        "share": lambda conn, lead: leadprotect.share(conn, lead, database.user(2)),
        "unshare": lambda conn, lead: leadprotect.unshare(conn, lead, database.user(2)),
    }


def test_assertions_and_changes_refuse_whatever_the_answer_would_be_and_name_the_primary(
    database: Database, follower: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads = {
        "owner": database.lead("DE", database.user(1)),
        "not_owner": database.lead("DE", database.user(2)),
        "unassigned": database.lead(),
        "not_found": database.new_id(),
        "unprotected": database.lead(None),
    }
    audit = "SELECT count(*) FROM {schema}.lead_access_audit"
    before = database.sql(audit)
    standby = on(follower, database)
    for name, change in changes(database).items():
        for reason, lead in leads.items():
            with (
                standby.acting("manager_de", 1) as conn,
                pytest.raises(leadprotect.ConnectionUnusable, match="read replica") as refused,
            ):
                change(conn, lead)
            assert f"database_url names {database.server.host}:5432" in str(refused.value), (name, reason)
    with standby.connect("seller_de") as conn, pytest.raises(leadprotect.ConnectionUnusable) as refused:
        with leadprotect.editing(conn, leads["owner"], database.user(1), "DE"):
            pass
    assert f"database_url names {database.server.host}:5432" in str(refused.value)
    # where the settings name the standby itself, nothing is known of another
    monkeypatch.setenv("DATABASE_URL", standby.url)
    settings.current.cache_clear()
    with standby.acting("seller_de", 1) as conn, pytest.raises(leadprotect.ConnectionUnusable) as refused:
        leadprotect.assert_edit(conn, leads["owner"])
    assert "database_url names" not in str(refused.value)
    assert before == database.sql(audit)


READING = [
    "doctor",
    "doctor --json",
    "audit list",
    "audit verify",
    "audit who {lead} --at 2026-01-01T00:00:00Z",
    "territory list",
    "rules list --territory DE",
    "owner show --territory DE {lead}",
    "pin status",
    "roles --sql",
    "backfill DE --dry-run",
    "backfill DE --verify",
]
WRITING = [
    "backfill DE",
    "audit seal",
    "territory remove CH",
    "owner release --territory DE --as {user} {lead}",
    "apply --dry-run",
    "rollback --to expand",
    "host-change -- true",
]


def test_commands_that_read_answer_and_commands_that_write_refuse(
    database: Database, follower: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"lead": database.lead("DE", database.user(1)), "user": database.user(1)}

    def run(command: str) -> tuple[int, str]:
        settings.current.cache_clear()
        done = CliRunner().invoke(main, command.format_map(words).split())
        return done.exit_code, done.output

    expected = {command: run(command) for command in READING}
    standby = on(follower, database)
    monkeypatch.setenv("DATABASE_URL", standby.url)
    for command in READING:
        assert expected[command][0] == run(command)[0], run(command)
    for command in WRITING:
        code, said = run(command)
        assert code == 1, (command, said)
        assert "replica" in said or "standby" in said, said
        assert database.server.host in "".join(said.split()), said
        assert "Traceback" not in said
    both = settings.parse(database.profile.settings, {}, {"DE": standby.url, "CH": database.url})
    with pytest.raises(InvalidRequest, match=f"DE is a standby, .*: name its primary, {database.server.host}"):
        move(both, [words["lead"]], to="CH", origin="DE", actor=words["user"])
    assert {} == {command: said for command, (code, said) in expected.items() if code}


def test_status_says_how_far_behind_a_standby_is_and_who_follows_the_primary(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, Any]:
        settings.current.cache_clear()
        done = CliRunner().invoke(main, ["status", "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.output)
        return found

    assert told()["standby"] is None
    with replica(database.server) as server:
        standby = replace(database, server=server)
        database.lead()  # so that it has replayed a commit
        caught_up(database, standby)
        assert "streaming" in {one["state"] for one in told()["replicas"]}
        monkeypatch.setenv("DATABASE_URL", standby.url)
        primary = f"{database.server.host}:5432"
        assert {"primary": primary, "connected": True, "behind_s": 0.0, "to_replay": 0} == told()["standby"]

        with standby.connect(autocommit=True) as conn:
            conn.execute("SELECT pg_wal_replay_pause()")
            database.lead()
            (written,) = database.sql("SELECT pg_current_wal_flush_lsn()::text")
            received = "SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn"
            while conn.execute(received, (written,)).fetchone() != (True,):
                time.sleep(0.01)
            behind = told()["standby"]
            assert behind["behind_s"] > 0
            assert behind["to_replay"] > 0
            shown = CliRunner().invoke(main, ["status"]).output
            assert f"standby of {primary}, " in shown
            assert "bytes to replay" in shown
            conn.execute("SELECT pg_wal_replay_resume()")


def test_the_page_does_what_it_says(database: Database, follower: Server) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lead = database.lead("DE", database.user(1))
    known: dict[str, Any] = {
        "leadprotect": leadprotect,
        "user_id": database.user(1),
        "territory": "DE",
        "lead_id": lead,
    }
    with database.engine("seller_de") as engine, on(follower, database).engine("seller_de") as standby:
        known |= {"engine": engine, "standby": standby}
        exec(snippet, known)  # noqa: S102 - our own page
    assert known["advice"] is True
    assert [("EDIT", "ALLOW", "owner")] == database.audit()


def test_a_pooler_that_remembers_a_standby_does_not_make_its_successor_s_answers_advice(database: Database) -> None:
    lead = database.lead("DE", database.user(1))
    with replica(database.server) as server, pooler(server, "transaction") as pooled:
        url = pooled.url(database.name)
        named = {"user_id": database.user(1), "territory": "DE"}
        with psycopg.connect(url, prepare_threshold=None) as conn:
            assert leadprotect.explain(conn, lead, **named).on_standby
        promoted(replace(database, server=server))
        with psycopg.connect(url, prepare_threshold=None) as conn:
            # the control: what the protocol reports, which the pooler does not renew
            assert conn.info.parameter_status("in_hot_standby") == "on"
            assert not leadprotect.explain(conn, lead, **named).on_standby


def test_after_a_failover_the_edit_is_decided_anew(database: Database) -> None:
    """Checked on a server that is gone, while the lead was given away: only the new primary's answer counts."""
    lead, kept = database.lead("DE", database.user(1)), database.lead("DE", database.user(1))
    with replica(database.server) as first:
        old = replace(database, server=first)
        promoted(old)
        with replica(first) as second:
            new = replace(database, server=second)
            with old.acting("seller_de", 1) as conn:
                assert [True, True] == [leadprotect.can_edit(conn, one) for one in (lead, kept)]
            with old.acting("manager_de", 3) as conn:
                leadprotect.transfer(conn, lead, database.user(2))
            caught_up(old, new)
            crash(first)
            promoted(new)
            with new.acting("seller_de", 1) as conn:
                assert leadprotect.assert_edit(conn, kept).reason == "owner"
                with pytest.raises(leadprotect.LeadAccessDenied):
                    leadprotect.assert_edit(conn, lead)
            with new.connect() as conn:
                asked = "SELECT lead_id, outcome::text FROM {schema}.lead_access_audit WHERE action = 'EDIT' ORDER BY 2"
                assert [(kept, "ALLOW"), (lead, "DENY")] == database.query(conn, asked)
