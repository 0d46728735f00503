"""Up, down and up again: nothing is lost, the same schema stands, and the host's tables are as before."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.fingerprint import contents, difference, fingerprint
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD, REVISIONS, STOPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

FROM = ["base", *REVISIONS[:-1]][:: 1 if NIGHTLY else 6]
"""Where somebody stops on the way down, and goes all the way up again."""

HOST_POLICIES = """
CREATE POLICY own_policy ON {leads} USING (true);
CREATE POLICY "%s_of_the_host" ON {leads} AS RESTRICTIVE USING (true);
"""


def schema_of(database: Database, *, only: str | None = None) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings, only=only)


def between(database: Database) -> dict[str, str]:
    """The schema without what a downgrade leaves on purpose: a quarantine, and validated constraints."""
    quarantine = database.sql("SELECT format(' %%I', %s::text)", database.settings.quarantine)[0]
    found = schema_of(database)
    return {
        name: text.replace(" NOT VALID", "").replace("validated f", "validated t")
        for name, text in found.items()
        if quarantine not in name
    }


def rows_of(database: Database) -> dict[str, list[str]]:
    with database.connect(autocommit=True) as conn:
        found = contents(conn, database.settings)
    for memory in ("host_row_security", "lead_table_row_security"):
        found.pop(memory, None)  # what contract remembers of the host's tables, made anew each time
    return found


def fill(database: Database) -> None:
    """Rows of every kind, of a host that works and of services that ask."""
    owned, shared = database.lead("DE", owner=database.user(1)), database.lead("CH", owner=database.user(2))
    database.lead(None)
    database.activity(database.lead("DE"), database.user(3))
    database.rule(database.user(4), "COLLABORATOR", owned)
    database.rule(database.user(4), "VIEW_ONLY", None, "CH")
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "SELECT {schema}.assert_edit_and_audit(%s)", owned)
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", shared)
    with database.connect("manager_de") as conn:
        database.context(conn, None, "DE")
        database.query(conn, "SELECT {schema}.transfer_lead(%s, %s)", owned, database.user(5))


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    fill(database)
    before = schema_of(database), rows_of(database)
    database.upgrade()
    assert database.revision() == HEAD
    assert before == (schema_of(database), rows_of(database))


def test_each_revision_is_undone_and_done_again_exactly(host: Database) -> None:
    upwards = {"base": between(host)}
    for revision in REVISIONS:
        host.upgrade(revision)
        upwards[revision] = between(host)
    head = schema_of(host)
    # by day the oldest server goes up again from the base alone
    returns = FROM if NIGHTLY or host.profile.name == "pg18" else FROM[:1]
    for below, revision in reversed(list(zip(["base", *REVISIONS], REVISIONS, strict=False))):
        host.downgrade("-1")
        assert difference(upwards[below], between(host)) == {}, f"{revision} is not undone"
        if below in returns:
            host.upgrade(HEAD)
            assert difference(head, schema_of(host)) == {}, f"up again from {below}"
            host.downgrade(below)
            assert difference(upwards[below], between(host)) == {}, f"downgrade to {below} in one go"


@pytest.mark.parametrize("own", ["", "({lead_id})", "({lead_id}, {territory})"])
def test_what_the_host_lets_auditors_read_stays_his(expanded: Database, own: str) -> None:
    if own:
        expanded.sql(f"GRANT SELECT {own} ON {{leads}} TO {{auditor}}")
    before = schema_of(expanded)
    expanded.upgrade()
    expanded.downgrade(MIGRATE_HEAD)
    assert difference(before, schema_of(expanded)) == {}


@pytest.mark.parametrize("host_rls", ["enforce", "force", "off"])
def test_the_host_gets_its_tables_back_as_they_were(make_database: Callable[..., Database], host_rls: str) -> None:
    database = make_database("host", host_rls=host_rls)
    before = schema_of(database, only="host")
    database.upgrade()
    assert difference(before, schema_of(database, only="host")) != {}
    database.downgrade()
    assert difference(before, schema_of(database, only="host")) == {}


@pytest.mark.parametrize("flags", ["ENABLE", "FORCE"])
def test_a_host_with_row_security_of_its_own_keeps_it(host: Database, flags: str) -> None:
    host.sql("ALTER TABLE {leads} ENABLE ROW LEVEL SECURITY")
    host.sql(f"ALTER TABLE {{leads}} {flags} ROW LEVEL SECURITY")
    host.sql("CREATE POLICY readable ON {leads} FOR SELECT USING (true)")
    before = schema_of(host, only="host")
    host.upgrade()
    # policies made meanwhile are the host's, also when they begin like ours
    host.sql_script(HOST_POLICIES % host.settings.schema)
    host.downgrade()
    changed = difference(before, schema_of(host, only="host"))
    assert {name.split()[0] for name in changed} == {"policy"}
    assert len(changed) == 2
    assert all(was is None for was, _ in changed.values())


ACCESS_LISTS = """
SELECT 'relation ' || relname, relacl::text FROM pg_class WHERE relnamespace = {schema_name}::regnamespace
UNION ALL SELECT 'function ' || oid::regprocedure, proacl::text FROM pg_proc
  WHERE pronamespace = {schema_name}::regnamespace
UNION ALL SELECT 'type ' || typname, typacl::text FROM pg_type WHERE typnamespace = {schema_name}::regnamespace
UNION ALL SELECT 'schema', nspacl::text FROM pg_namespace WHERE oid = {schema_name}::regnamespace
"""


def test_access_lists_are_literally_the_same_after_a_round_trip(database: Database) -> None:
    """An empty list means the default one; tools that compare catalogs see a difference all the same."""
    before = dict(database.sql(ACCESS_LISTS))
    database.downgrade("base")
    database.upgrade()
    assert difference(before, dict(database.sql(ACCESS_LISTS))) == {}


def test_every_row_survives_a_downgrade_to_the_base(database: Database) -> None:
    fill(database)
    before = rows_of(database)
    database.downgrade("base")
    assert database.revision() is None
    assert difference(before, rows_of(database)) == {}
    database.upgrade()
    assert difference(before, rows_of(database)) == {}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("revision", FROM)
def test_rows_written_meanwhile_survive(database: Database, revision: str) -> None:
    fill(database)
    before = rows_of(database)
    database.downgrade(revision)
    old_application = database.lead("DE")
    database.activity(old_application, database.user(6))
    database.upgrade(MIGRATE_HEAD)
    after = rows_of(database)
    lost = {name: set(rows) - set(after[name]) for name, rows in before.items() if not name.endswith("_seq")}
    assert {name: rows for name, rows in lost.items() if rows} == {}
    # whether the trigger was there or not, backfill finds what the old application did
    for territory in ("DE", "CH"):
        leads = database.sql("SELECT {schema}.unowned_leads(%s)", territory)
        database.sql("SELECT {schema}.own_leads(%s, %s::{lead_id_type}[])", territory, leads)
    assert database.owner(old_application) == database.user(6)
    database.upgrade()
    assert database.revision() == HEAD


def test_sequences_continue_after_a_round_trip(database: Database) -> None:
    fill(database)
    last = max(database.audit("id"))
    database.downgrade("base")
    database.upgrade()
    lead = database.lead("DE")
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)
    assert max(database.audit("id")) == last + 1


def test_the_quarantine_is_row_secured_and_nobodys(database: Database) -> None:
    fill(database)
    database.downgrade("base")
    owner = database.settings.role("owner")
    tables = database.sql(
        "SELECT relname, relrowsecurity, relforcerowsecurity, relowner::regrole::text, "
        "ARRAY(SELECT DISTINCT grantee::regrole::text FROM aclexplode(relacl)) FROM pg_class "
        "WHERE relnamespace = {quarantine_name}::regnamespace AND relkind IN ('r', 'p')"
    )
    assert {"user_lead_assignments", "lead_access_audit", "lead_access_audit_default"} <= {row[0] for row in tables}
    quoted = database.sql("SELECT quote_ident(%s)", owner)[0]
    for name, *facts, grantees in tables:
        assert facts == [True, True, quoted], name
        assert set(grantees) <= {quoted}, name
    for login in ("seller_de", "manager_de", "auditor_de", "operator"):
        with database.connect(login) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.query(conn, "SELECT count(*) FROM {quarantine}.user_lead_assignments")


def test_the_audit_stays_append_only_in_the_quarantine(database: Database) -> None:
    fill(database)
    database.downgrade("base")
    for part in ("lead_access_audit", "lead_access_audit_default"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.sql(f"TRUNCATE {{quarantine}}.{part}")


@pytest.mark.profiles("pg18")
def test_a_login_of_one_territory_never_reads_the_other_on_the_way(database: Database) -> None:
    fill(database)
    assert visible(database, "seller_ch") > 0  # the control: there is something to see
    for direction in (database.downgrade, database.upgrade):
        way = [*reversed(STOPS[:-1]), "base"] if direction == database.downgrade else STOPS
        for revision in way:
            direction(revision)
            assert visible(database, "seller_de") == 0, f"at {revision}"


def visible(database: Database, login: str) -> int:
    """How many rows of CH the login can read in our tables, whatever territory it declares."""
    tables = database.sql(
        "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
        "WHERE c.relkind IN ('r', 'p', 'v') AND a.attname = 'territory' AND c.relnamespace = ANY (ARRAY("
        "SELECT to_regnamespace(name)::oid FROM unnest(ARRAY[{schema_name}, {quarantine_name}]) AS name))"
    )
    seen = 0
    with database.connect(login, autocommit=True) as conn:
        conn.execute(database.text("SELECT set_config({territory_guc}, 'CH', false)"))
        for table in tables:
            with suppress(psycopg.errors.InsufficientPrivilege):
                seen += conn.execute(f"SELECT count(*) FROM {table} WHERE territory = 'CH'").fetchall()[0][0]
    return seen


def test_a_schema_with_somebodys_objects_is_not_dropped(database: Database) -> None:
    database.sql("CREATE VIEW {schema}.report AS SELECT 1 AS one")
    before = rows_of(database)
    with pytest.raises(Exception, match=r"report belongs to postgres, not to .*: move it to another schema"):
        database.downgrade("base")
    assert database.revision() == HEAD
    assert difference(before, rows_of(database)) == {}


# --- offline


def psql(database: Database, script: str) -> subprocess.CompletedProcess[str]:
    command = [str(database.server.programs / "psql"), "-X", "-q", database.url]
    return subprocess.run(command, input=script, text=True, capture_output=True, check=False)


def test_the_script_of_an_upgrade_makes_the_same_schema(make_database: Callable[..., Database]) -> None:
    online, offline = make_database("head"), make_database("host")
    online_schema = schema_of(online, only="ours")
    applied = psql(offline, offline.script("upgrade", "head"))
    assert (applied.returncode, applied.stderr) == (0, "")
    assert difference(online_schema, schema_of(offline, only="ours")) == {}
    assert offline.revision() == HEAD


def test_the_script_of_a_downgrade_undoes_it(make_database: Callable[..., Database]) -> None:
    database = make_database("host")
    before = schema_of(database)
    database.upgrade()
    applied = psql(database, database.script("downgrade", "head:base"))
    assert (applied.returncode, applied.stderr) == (0, "")
    assert difference(before, between(database)) == {}
    database.upgrade()
    assert database.revision() == HEAD


def test_a_script_stops_at_the_gate_like_the_command(expanded: Database) -> None:
    expanded.activity(expanded.lead("DE"), expanded.user(1))
    expanded.sql("DELETE FROM {schema}.user_lead_assignments")
    before = schema_of(expanded)
    applied = psql(expanded, expanded.script("upgrade", f"{MIGRATE_HEAD}:head"))
    assert applied.returncode == 3
    assert "1 leads in DE have a qualifying activity but no owner (leadprotect backfill DE)" in applied.stderr
    assert difference(before, schema_of(expanded)) == {}
    assert expanded.revision() == MIGRATE_HEAD
