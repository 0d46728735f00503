"""The way down is checked before its first step: what would stop it half-way is named, and nothing is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.preflight import leftovers, way_down
from tests.support.fingerprint import difference, fingerprint
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED, REVISIONS

if TYPE_CHECKING:
    from tests.support.database import Database

PROFILES = pytest.mark.profiles("pg18", "pg15", "other_names")
ONE_SERVER = pytest.mark.profiles("pg18")


def state_of(database: Database) -> dict[str, str]:
    with database.connect() as conn:
        return fingerprint(conn, database.settings)


def refused(database: Database, target: str = "base") -> str:
    """What is said, by Alembic and by the command of who is on call; nothing was touched by either."""
    before = state_of(database)
    with pytest.raises(CommandError, match="refused before anything was touched") as caught:
        database.downgrade(target)
    answer = CliRunner().invoke(main, ["rollback", "--to", target])
    assert 1 == answer.exit_code
    assert "Error: refused before anything was touched" in answer.stderr
    assert [] == [line for line in str(caught.value).splitlines() if line not in answer.stderr]
    assert {} == difference(before, state_of(database))
    assert HEAD == database.revision()
    return str(caught.value)


# what a host may have built on ours -> how it is named, and the statement that helps
DEPENDANTS = {
    "view": (
        "CREATE VIEW public.my_leads AS SELECT * FROM {schema}.v_lead_protection",
        "view public.my_leads depends on",
        "DROP VIEW public.my_leads;",
    ),
    "materialized view": (
        "CREATE MATERIALIZED VIEW public.terms AS SELECT * FROM {schema}.territory_terms('DE', '2026-01-01')",
        "materialized view public.terms depends on",
        "DROP MATERIALIZED VIEW public.terms;",
    ),
    "function": (
        "CREATE FUNCTION public.mine() RETURNS bigint RETURN (SELECT count(*) FROM {schema}.v_lead_protection)",
        "function public.mine() depends on",
        "DROP FUNCTION public.mine();",
    ),
    "policy": (
        "CREATE POLICY hosts_own ON {activities} USING ({schema}.can_edit_lead({activity_lead_id}))",
        "policy hosts_own on ",
        "DROP POLICY hosts_own ON ",
    ),
    "trigger": (
        "CREATE TRIGGER hosts_own BEFORE DELETE ON {leads} EXECUTE FUNCTION {schema}.note_contextless_write()",
        "trigger hosts_own on ",
        "DROP TRIGGER hosts_own ON ",
    ),
    "check": (
        "ALTER TABLE {activities} ADD CONSTRAINT hosts_own CHECK ({schema}.is_code('DE'))",
        "table constraint hosts_own on ",
        None,
    ),
    "default": (
        "ALTER TABLE {leads} ADD COLUMN protected boolean DEFAULT {schema}.has_rules()",
        "default value for ",
        None,
    ),
}


@PROFILES
@pytest.mark.parametrize("kind", DEPENDANTS)
def test_what_hangs_on_ours_is_named_before_the_first_step(database: Database, kind: str) -> None:
    script, named, remedy = DEPENDANTS[kind]
    database.sql_script(script)
    said = refused(database)
    assert named in said
    assert f" depends on {database.settings.schema}." in said
    assert remedy is None or remedy in said


@ONE_SERVER
@pytest.mark.parametrize("kind", ["view", "policy"])
def test_the_printed_statements_open_the_way(database: Database, kind: str) -> None:
    database.sql_script(DEPENDANTS[kind][0])
    said = refused(database)
    database.sql_script("\n".join(line for line in said.splitlines() if line.strip().startswith("DROP")))
    database.downgrade()
    assert database.revision() is None


@ONE_SERVER
def test_without_the_check_the_way_stops_half_way(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: some steps are undone, and the database stands between two of them."""
    database.sql_script(DEPENDANTS["view"][0])
    monkeypatch.setattr(way_down, "_dependants", lambda *_: [])
    with pytest.raises(CommandError, match="SQLSTATE 2BP01"):
        database.downgrade()
    assert database.revision() in REVISIONS[:-1]


@ONE_SERVER
def test_what_hangs_on_a_later_part_stops_no_shorter_way(database: Database) -> None:
    """Who is on call undoes contract; a view on what stays is no obstacle."""
    database.sql_script(DEPENDANTS["view"][0])
    database.downgrade(MIGRATE_HEAD)
    assert MIGRATE_HEAD == database.revision()


@ONE_SERVER
def test_what_hangs_on_a_table_of_ours_goes_along_and_comes_back(database: Database) -> None:
    database.sql("CREATE VIEW public.report AS SELECT count(*) AS attempts FROM {schema}.lead_access_audit")
    database.downgrade()
    assert [0] == database.sql("SELECT attempts FROM public.report")
    database.upgrade()
    assert [0] == database.sql("SELECT attempts FROM public.report")


@ONE_SERVER
def test_an_object_of_somebody_else_in_our_schema_is_named(database: Database) -> None:
    database.sql("CREATE TABLE {schema}.hosts_notes (note text)")
    said = refused(database)
    assert "table or view leadprotect.hosts_notes belongs to postgres, not to leadprotect_owner" in said
    database.downgrade(MIGRATE_HEAD)


# --- a quarantine of a stranger

FOREIGN = {
    "schema": (
        "CREATE SCHEMA {quarantine}",
        "exists and belongs to postgres, not to",
        "RENAME TO",
    ),
    "privilege": (
        "CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; GRANT CREATE ON SCHEMA {quarantine} TO PUBLIC",
        "role PUBLIC may create in",
        "REVOKE CREATE ON SCHEMA",
    ),
    "object": (
        "CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; CREATE TABLE {quarantine}.backfill_jobs (territory text)",
        "backfill_jobs belongs to postgres, not to",
        None,
    ),
}


@PROFILES
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_stranger_s_quarantine_gets_no_table_of_ours(database: Database, kind: str) -> None:
    script, named, remedy = FOREIGN[kind]
    database.sql_script(script)
    said = refused(database)
    assert named in said
    assert remedy is None or remedy in said
    assert database.settings.quarantine in said


@ONE_SERVER
def test_without_the_check_a_stranger_gets_them_and_drops_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: whoever owns the schema may drop what is in it."""
    database.sql("CREATE ROLE lp_stranger LOGIN")
    database.sql(f'GRANT CREATE ON DATABASE "{database.name}" TO lp_stranger')
    try:
        with psycopg.connect(database.server.url(database.name, "lp_stranger"), autocommit=True) as stranger:
            database.query(stranger, "CREATE SCHEMA {quarantine}")
            assert "belongs to lp_stranger" in refused(database)
            for module in (way_down, leftovers):
                monkeypatch.setattr(module, "foreign_quarantine", lambda *_: [])
            database.sql("GRANT CREATE, USAGE ON SCHEMA {quarantine} TO {owner}")
            with pytest.raises(CommandError, match="must be owner of schema"):
                database.downgrade()
            moved = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace({quarantine_name})"
            assert database.sql(moved)[0] > 0
            database.query(stranger, "DROP SCHEMA {quarantine} CASCADE")
            assert [0] == database.sql(moved)
    finally:
        database.sql_script("DROP OWNED BY lp_stranger CASCADE; DROP ROLE lp_stranger")


@ONE_SERVER
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_upgrade_takes_nothing_from_a_stranger_s_quarantine(host: Database, kind: str) -> None:
    host.upgrade(NAMED["expand_territories"])
    host.downgrade()
    host.sql_script("DROP SCHEMA {quarantine} CASCADE; " + FOREIGN[kind][0])
    with pytest.raises(CommandError, match="refused before anything was touched") as caught:
        host.upgrade()
    assert FOREIGN[kind][1] in str(caught.value)
    assert host.revision() is None


# --- names of the host that are others now


@PROFILES
@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("ALTER TABLE {leads} RENAME TO clients", "leads_table: there is no table "),
        ("ALTER TABLE {activities} RENAME TO touches_of_old", "activities_table: there is no table "),
        ("ALTER TABLE {leads} RENAME {territory} TO region", "territory_column: "),
    ],
)
def test_a_host_table_that_was_renamed_is_named(database: Database, script: str, named: str) -> None:
    database.sql(script)
    assert named in refused(database)


@ONE_SERVER
def test_a_column_of_activities_that_was_renamed_is_not_in_the_way(database: Database) -> None:
    database.sql("ALTER TABLE {activities} RENAME {activity_at} TO moment")
    database.downgrade()
    assert database.revision() is None


@ONE_SERVER
def test_a_rollback_that_is_refused_pauses_no_backfill(database: Database) -> None:
    database.sql("UPDATE {schema}.backfill_jobs SET started_at = now()")
    database.sql_script(DEPENDANTS["view"][0])
    refused(database)
    assert ["run", "run"] == database.sql("SELECT request FROM {schema}.backfill_jobs")
    settings.current.cache_clear()


@pytest.mark.parametrize("suffix", ["note_writes", "territory"])
def test_a_trigger_of_the_host_by_a_name_that_the_way_down_needs_is_named_first(
    database: Database, suffix: str
) -> None:
    name = database.settings.role(suffix)
    database.sql_script(f"""
        CREATE FUNCTION public.own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER "{name}" BEFORE INSERT ON {{leads}} FOR EACH ROW EXECUTE FUNCTION public.own();
        """)
    with pytest.raises(
        CommandError, match=f"trigger {name} on the host's tables is not leadprotect's, and the way down needs"
    ):
        database.downgrade()
    assert database.revision() == HEAD
    database.sql(f'ALTER TRIGGER "{name}" ON {{leads}} RENAME TO mine')
    database.downgrade()
    assert database.revision() is None
    assert database.sql("SELECT count(*) FROM pg_trigger WHERE tgname = 'mine'") == [1]
