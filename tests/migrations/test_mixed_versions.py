"""The old application against every phase, and the new one against every phase it may meet.

Both keep one connection with prepared statements through all of it, as a pool does in a deploy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

import leadprotect
from leadprotect.errors import LeadAccessDenied, ProtectionUnavailable
from tests.support.database import Database
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED, REVISIONS, STOPS

pytestmark = [
    pytest.mark.profiles("pg18", "other_names"),
    pytest.mark.nightly_elsewhere("who works beside whom is no question of names or servers"),
]

ENFORCED = REVISIONS[REVISIONS.index(NAMED["contract_enforce"]) :]
DECIDING = REVISIONS[REVISIONS.index(NAMED["expand_ownership"]) :]


@pytest.fixture
def host_with_logins(make_database: Callable[..., Database]) -> Database:
    """Before the first revision, with the logins of the services."""
    database = make_database("host")
    database.upgrade(REVISIONS[0])
    database.create_logins()
    database.downgrade()
    database.sql_script("DROP SCHEMA {quarantine} CASCADE")
    return database


def stages(database: Database) -> Iterator[str]:
    """The stops on the way up, then those on the way down."""
    for revision in STOPS:
        database.upgrade(revision)
        yield revision
    for revision in [*reversed(STOPS[:-1]), "base"]:
        database.downgrade(revision)
        yield revision


@dataclass
class Old:
    """The application as it was: plain statements, no context, nothing known of leadprotect."""

    database: Database
    conn: psycopg.Connection[Any]

    def execute(self, statement: str, *values: Any) -> psycopg.Cursor[Any]:
        return self.conn.execute(self.database.text(statement), values, prepare=True)

    def add(self, territory: str | None) -> Any:
        lead = self.database.new_id()
        self.execute("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, %s)", lead, territory)
        return lead

    def reads(self, lead: Any) -> int:
        return len(self.execute("SELECT company FROM {leads} WHERE {lead_id} = %s", lead).fetchall())

    def edits(self, lead: Any) -> int:
        return self.execute("UPDATE {leads} SET city = 'Ulm' WHERE {lead_id} = %s", lead).rowcount

    def calls(self, lead: Any, user: int) -> int:
        statement = (
            "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
            "VALUES (%s, %s, 'QUALIFIED_CALL', clock_timestamp())"
        )
        return self.execute(statement, lead, self.database.user(user)).rowcount

    def deletes(self, lead: Any) -> int:
        return self.execute("DELETE FROM {leads} WHERE {lead_id} = %s", lead).rowcount

    def day(self, territory: str | None) -> tuple[int, int, int, int]:
        """Adds a lead, reads, calls, edits and deletes it; the rows of each."""
        lead = self.add(territory)
        return self.reads(lead), self.calls(lead, 1), self.edits(lead), self.deletes(lead)


WORKS = (1, 1, 1, 1)


# --- the old application


EXEMPT, OWNER = "old-application", "old-application-that-owns"


@pytest.fixture
def old_logins(make_database: Callable[..., Database]) -> Iterator[Database]:
    """Two logins that are no members of anything: the setting exempt_roles names one, one owns the host's leads."""
    database = make_database("host", exempt_roles=EXEMPT)
    for name in (EXEMPT, OWNER):
        database.sql_script(
            f"""
            CREATE ROLE "{name}" LOGIN;
            GRANT USAGE, CREATE ON SCHEMA public, crm TO "{name}";
            GRANT ALL ON {{leads}}, {{activities}} TO "{name}";
            GRANT USAGE ON ALL SEQUENCES IN SCHEMA public, crm TO "{name}";
            """
        )
    database.sql_script(f'ALTER TABLE {{leads}} OWNER TO "{OWNER}"')
    yield database
    for name in (EXEMPT, OWNER):
        database.sql_script(f'REASSIGN OWNED BY "{name}" TO postgres; DROP OWNED BY "{name}"; DROP ROLE "{name}"')


def test_a_login_that_stays_as_it_was_notices_no_phase(old_logins: Database) -> None:
    url = old_logins.server.url
    with (
        psycopg.connect(url(old_logins.name, EXEMPT), autocommit=True) as exempt,
        psycopg.connect(url(old_logins.name, OWNER), autocommit=True) as owner,
    ):
        both = {name: Old(old_logins, conn) for name, conn in ((EXEMPT, exempt), (OWNER, owner))}
        assert [WORKS, WORKS] == [old.day("DE") for old in both.values()]
        for stage in stages(old_logins):
            for name, old in both.items():
                for territory in ("DE", "CH", None):
                    assert WORKS == old.day(territory), f"{name} at {stage}"


def test_a_service_without_a_context_works_until_contract_and_again_after_a_downgrade(
    host_with_logins: Database,
) -> None:
    database = host_with_logins
    with database.connect("seller_de", autocommit=True) as conn:
        old = Old(database, conn)
        kept = old.add("DE")
        for stage in stages(database):
            assert WORKS == old.day(None), f"a lead without territory at {stage}"
            if stage not in ENFORCED:
                assert WORKS == old.day("DE"), f"at {stage}"
                assert (1, 1) == (old.reads(kept), old.edits(kept)), f"at {stage}"
                continue
            # fails closed: it sees and changes nothing, and says so by zero rows or a refusal
            assert (0, 0, 0) == (old.reads(kept), old.edits(kept), old.deletes(kept)), f"at {stage}"
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                old.add("DE")
            # an activity is the host's own table: it is never lost
            assert 1 == old.calls(kept, 1), f"at {stage}"


def test_contract_waits_for_the_old_application_to_leave(make_database: Callable[..., Database]) -> None:
    database = make_database("expanded", observation_window="7 days")
    database.sql("UPDATE {schema}.backfill_jobs SET registered_at = now() - interval '8 days'")
    with database.connect("seller_de", autocommit=True) as conn:
        assert WORKS == Old(database, conn).day("DE")
        database.upgrade()
        assert MIGRATE_HEAD == database.revision()
        assert WORKS == Old(database, conn).day("DE")
    database.sql("UPDATE {schema}.contextless_writes SET at = at - interval '8 days'")
    database.upgrade()
    assert HEAD == database.revision()


# --- the new application


def serve(database: Database, conn: psycopg.Connection[Any], lead: Any, user: int) -> int:
    """What a service does for a user: take the lead, assert, edit; the rows it changed."""
    with conn.transaction(), leadprotect.acting_as(conn, database.user(user), "DE"):
        leadprotect.claim(conn, lead)
        leadprotect.assert_edit(conn, lead)
        return conn.execute(database.text("UPDATE {leads} SET city = 'Köln' WHERE {lead_id} = %s"), (lead,)).rowcount


def test_the_new_application_is_told_where_there_is_no_protection_and_works_everywhere_else(
    host_with_logins: Database,
) -> None:
    database = host_with_logins
    lead, foreign = database.lead("DE"), database.lead("CH")
    with database.connect("seller_de", autocommit=True) as conn:
        for stage in stages(database):
            if stage not in DECIDING:
                with pytest.raises(ProtectionUnavailable, match="not installed in this database, or was rolled back"):
                    serve(database, conn, lead, 1)
                continue
            assert 1 == serve(database, conn, lead, 1), f"at {stage}"
            for denied, user in ((lead, 2), (foreign, 1)):
                with pytest.raises(LeadAccessDenied):
                    serve(database, conn, denied, user)
            assert leadprotect.can_edit(conn, lead, user_id=database.user(1), territory="DE") is True
            assert leadprotect.can_edit(conn, lead, user_id=database.user(2), territory="DE") is False
    # what it decided went through the quarantine and is there again
    database.upgrade()
    assert database.user(1) == database.owner(lead)


def test_a_lead_that_only_old_activities_own_is_served_as_soon_as_the_backfill_has_run(
    host_with_logins: Database,
) -> None:
    database = host_with_logins
    lead = database.lead("DE")
    database.activity(lead, database.user(3))
    with database.connect("seller_de", autocommit=True) as conn:
        database.upgrade(MIGRATE_HEAD)
        assert leadprotect.explain(conn, lead, user_id=database.user(3), territory="DE").reason == "unassigned"
        leadprotect.backfill(database.url, ("DE", "CH"))
        assert leadprotect.explain(conn, lead, user_id=database.user(3), territory="DE").reason == "owner"


# --- both side by side


def test_both_versions_see_each_other_s_work(expanded: Database) -> None:
    lead, given = expanded.lead("DE"), expanded.lead("DE")
    with (
        expanded.connect("seller_de", autocommit=True) as old_conn,
        expanded.connect("seller_de", autocommit=True) as conn,
        expanded.connect("manager_de", autocommit=True) as manager,
    ):
        old = Old(expanded, old_conn)
        # the newest activity of the old version makes the owner of the new one
        old.calls(lead, 4)
        assert 1 == serve(expanded, conn, lead, 4)
        old.calls(given, 4)
        old.calls(given, 5)
        assert leadprotect.can_edit(conn, given, user_id=expanded.user(5), territory="DE") is True
        # but never takes back what the new version decided by hand
        with manager.transaction(), leadprotect.acting_as(manager, expanded.user(9), "DE"):
            leadprotect.transfer(manager, given, expanded.user(6))
        old.calls(given, 4)
        assert expanded.user(6) == expanded.owner(given)
        with conn.transaction(), leadprotect.acting_as(conn, expanded.user(6), "DE"):
            leadprotect.release(conn, given)
        old.calls(given, 4)
        assert expanded.owner(given) is None
        # and what the new version does is what the old one reads
        assert ["Köln"] == [row[0] for row in old.execute("SELECT city FROM {leads} WHERE {lead_id} = %s", lead)]


def test_after_contract_an_activity_makes_no_owner(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("seller_de", autocommit=True) as conn:
        assert 1 == Old(database, conn).calls(lead, 4)
        assert database.owner(lead) is None
        assert 1 == serve(database, conn, lead, 7)
