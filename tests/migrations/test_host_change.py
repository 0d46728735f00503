"""The host's next migration: what we hold, and how it is changed all the same."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.util import CommandError
from click.testing import CliRunner

import leadprotect
from leadprotect import settings
from leadprotect.cli import main
from leadprotect.doctor.examine import examine
from leadprotect.errors import AuditUnavailable, ProtectionUnavailable, RollbackError
from leadprotect.migration import host_change as module
from leadprotect.migration.host_change import host_change
from leadprotect.migration.pins import pins
from leadprotect.migration.rollback import rollback
from leadprotect.settings import LeadTable
from tests.support.fingerprint import contents, difference, fingerprint
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

CHANGE = "import psycopg, sys; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"


def command(database: Database, statement: str) -> list[str]:
    """What a host's migration is to us: a program of its own."""
    return [sys.executable, "-c", CHANGE, database.url, database.text(statement)]


def standing(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings)


def rows(database: Database) -> dict[str, list[str]]:
    with database.connect(autocommit=True) as conn:
        return contents(conn, database.settings)


def dangers(database: Database) -> list[str]:
    with database.connect(autocommit=True) as conn:
        found = examine(conn, settings=database.settings)
    return [f"{one.check} {one.where}: {one.what}" for one in found.findings if one.level == "danger"]


def quiet(_said: str) -> None:
    """What the command line prints."""


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.parametrize("phase", ["expanded", "head"])
def test_a_change_of_type_that_is_refused_is_made_between_the_two_halves(
    make_database: Callable[..., Database], phase: str
) -> None:
    database = make_database(phase)
    database.lead("DE", owner=database.user(1))
    alter = (
        "ALTER TABLE {leads} ALTER {territory} TYPE varchar(40);"
        "ALTER TABLE {activities} ALTER {activity_kind} TYPE varchar"
    )
    with pytest.raises(psycopg.errors.FeatureNotSupported):  # control: what PostgreSQL says otherwise
        database.sql_script(alter)
    before, held = standing(database), rows(database)

    done = host_change(command(database, alter), tell=quiet)

    assert (0, False) == (done.returned, done.resumed)
    assert {} == difference(held, rows(database))
    # what remains are functions that show a cast, or none any more, to the column's new type
    changed = difference(before, standing(database))
    assert {"column", "function", "index"} >= {name.split()[0] for name in changed}
    columns = sorted(name.rpartition(".")[2].strip('"') for name in changed if name.startswith("column"))
    assert sorted([database.settings.territory_column, database.settings.activity_kind_column]) == columns
    assert [] == dangers(database)
    assert {"expanded": MIGRATE_HEAD, "head": HEAD}[phase] == database.revision()


@pytest.mark.profiles("pg18")
def test_a_renamed_column_goes_on_under_its_new_name(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = database.lead("DE", owner=database.user(1))

    def ran(_words: object) -> int:
        database.sql("ALTER TABLE {leads} RENAME {territory} TO region")
        monkeypatch.setenv("LEADPROTECT_TERRITORY_COLUMN", "region")
        return 0

    monkeypatch.setattr(module, "run_for_host", ran)
    host_change(["the host's migration, which writes the ini file, too"], tell=quiet)
    database.overrides["territory_column"] = "region"
    assert [] == dangers(database)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        assert [1] == database.query(
            conn, "UPDATE {leads} SET {lead_id} = {lead_id} WHERE {lead_id} = %s RETURNING 1", lead
        )


@pytest.mark.profiles("pg18")
def test_nobody_sees_a_lead_of_another_territory_while_the_holds_are_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.lead("CH")
    seen: list[int] = []
    ended = threading.Event()
    query = "SELECT count(*) FROM {leads} WHERE {territory} = 'CH'"

    def read() -> None:
        with database.connect("seller_de", autocommit=True) as conn:
            while not ended.is_set():
                try:
                    seen.append(database.query(conn, query)[0])
                except psycopg.errors.UndefinedFunction:
                    seen.append(0)  # a plan of before

    between: list[int] = []

    def ran(_words: object) -> int:
        with database.connect("seller_ch", autocommit=True) as conn:  # not even his own: nobody decides
            database.query(conn, "SELECT set_config(%s, 'CH', false)", database.settings.territory_guc)
            between.append(database.query(conn, query)[0])
        return 0

    monkeypatch.setattr(module, "run_for_host", ran)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        host_change(["change"], tell=quiet)
    finally:
        ended.set()
        reader.join()
    assert ([0], {0}) == (between, set(seen))


@pytest.mark.profiles("pg18")
def test_what_hangs_on_a_lead_is_closed_with_it(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("expanded", lead_tables="public.activities (lead_id)")
    database.upgrade("head")
    database.activity(database.lead("CH"), database.user(1))
    query = "SELECT count(*) FROM {activities}"
    seen: list[int] = []

    def ran(_words: object) -> int:
        with database.connect("seller_de", autocommit=True) as conn:
            seen.append(database.query(conn, query)[0])
            database.sql('DROP POLICY "leadprotect_closed" ON {activities}')  # control: he would have seen it
            seen.append(database.query(conn, query)[0])
            database.sql(
                """
                CREATE POLICY "leadprotect_closed" ON {activities} AS RESTRICTIVE USING (false);
                COMMENT ON POLICY "leadprotect_closed" ON {activities} IS '{"enabled": false, "forced": false}'
                """
            )
        return 0

    before = standing(database)
    monkeypatch.setattr(module, "run_for_host", ran)
    host_change(["change"], tell=quiet)
    assert [0, 1] == seen
    assert {} == difference(before, standing(database))
    assert [] == dangers(database)


@pytest.mark.profiles("pg18")
def test_a_command_that_fails_leaves_everything_as_it_was(database: Database) -> None:
    before, held = standing(database), rows(database)
    ran = CliRunner().invoke(main, ["host-change", "--", sys.executable, "-c", "import sys; sys.exit(7)"])
    assert 7 == ran.exit_code
    assert "everything was put back" in ran.stderr
    assert ({}, {}) == (difference(before, standing(database)), difference(held, rows(database)))


@pytest.mark.profiles("pg18")
def test_a_setting_that_waits_for_apply_does_not_come_in_with_a_change_of_the_host(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is not asked when everything is put back: who is exempt must not change with it."""
    before = standing(database)
    monkeypatch.setenv("LEADPROTECT_EXEMPT_ROLES", database.profile.login("outsider"))
    settings.current.cache_clear()
    ran = CliRunner().invoke(main, ["host-change", "--", sys.executable, "-c", ""])
    assert 1 == ran.exit_code
    assert "exempt_roles is empty in the database" in ran.stderr
    assert "first run: leadprotect apply" in ran.stderr
    assert {} == difference(before, standing(database))


@pytest.mark.profiles("pg18")
def test_a_killed_run_is_resumed_by_the_same_command(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.lead("DE", owner=database.user(1))
    before = standing(database)

    class Killed(BaseException):
        """Nothing of ours runs after a kill -9."""

    def killed(_words: object) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_for_host", killed)
        with pytest.raises(Killed):
            host_change(["true"], tell=quiet)
    assert HEAD == database.revision()
    with database.connect("seller_de", autocommit=True) as conn:
        assert [0] == database.query(conn, "SELECT count(*) FROM {leads}")
    kept = "SELECT count(*) FROM {quarantine}.user_lead_assignments"
    assert [1] == database.sql(kept)
    for words in (["status"], ["purge", "--yes"], ["rollback"], ["doctor"], ["plan"]):
        refused = CliRunner().invoke(main, words, env={"COLUMNS": "400"})
        assert (1, True) == (refused.exit_code, "leadprotect host-change --resume" in refused.output), refused.output
    for go in (database.upgrade, database.downgrade):
        with pytest.raises(CommandError, match="leadprotect host-change --resume"):
            go()
    (only,) = dangers(database)
    assert only.startswith("host-change-under-way ")
    assert [1] == database.sql(kept)
    resumed = CliRunner().invoke(main, ["host-change", "--resume"], catch_exceptions=False)
    assert 0 == resumed.exit_code, resumed.output
    assert {} == difference(before, standing(database))
    assert [] == dangers(database)


@pytest.mark.profiles("pg18")
def test_a_column_that_no_setting_names_any_more_keeps_the_leads_closed(database: Database) -> None:
    database.lead("DE")
    rename = "ALTER TABLE {leads} RENAME {territory} TO region"
    with pytest.raises(RollbackError, match="leadprotect host-change --resume"):
        host_change(command(database, rename), tell=quiet)
    with database.connect("seller_de", autocommit=True) as conn:
        assert [0] == database.query(conn, "SELECT count(*) FROM {leads}")
    database.sql("ALTER TABLE {leads} RENAME region TO {territory}")
    settings.current.cache_clear()
    assert host_change(tell=quiet).resumed
    assert [] == dangers(database)


@pytest.mark.profiles("pg18", "other_names")
def test_pin_status_says_what_is_held_and_what_is_free(database: Database) -> None:
    shown = CliRunner().invoke(main, ["pin", "status"], catch_exceptions=False)
    s = database.settings
    assert 0 == shown.exit_code
    held, free = shown.stdout.split("free:")
    territory = next(line for line in held.splitlines() if "territory_column" in line)
    assert f"{s.leads_table}.{s.territory_column}" in territory
    assert "policy" in territory
    assert "trigger" in territory
    assert f"{s.leads_table}.city" in free
    database.sql("ALTER TABLE {leads} ALTER city TYPE varchar(99)")  # what is free
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        database.sql("ALTER TABLE {leads} ALTER {territory} TYPE varchar(99)")


@pytest.mark.profiles("pg18")
def test_the_lead_of_a_child_is_held(database: Database) -> None:
    children = replace(database.settings, lead_tables=(LeadTable("crm.visits", "of lead", append=False),))
    database.sql_script('CREATE TABLE crm.visits (id int PRIMARY KEY, "of lead" {lead_id_type}, said text)')
    with database.connect() as conn:
        found = pins(conn, settings=children)
    assert ["lead_tables"] == [pin.setting for pin in found.pinned if pin.table == "crm.visits"]
    assert {"crm.visits.id", "crm.visits.said"} <= {*found.free}


@pytest.mark.profiles("pg18")
def test_a_renamed_column_fails_closed_with_one_clear_error_and_the_way_down_is_open(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody renamed it although we hold it: PostgreSQL lets him."""
    said = "a column that leadprotect reads has another name, or is gone; leadprotect pin status says which"
    lead = database.lead("DE", owner=database.user(1))
    before = rows(database)
    database.sql("ALTER TABLE {leads} RENAME {territory} TO region")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(ProtectionUnavailable, match=said):
            leadprotect.can_edit(conn, lead)
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(AuditUnavailable, match=said):
            leadprotect.assert_edit(conn, lead)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            database.query(conn, "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s", lead)
    shown = CliRunner().invoke(main, ["pin", "status"])
    assert (1, True) == (shown.exit_code, "territory: GONE" in shown.stdout.replace("  territory_column", ""))

    monkeypatch.setenv("LEADPROTECT_TERRITORY_COLUMN", "region")
    database.overrides["territory_column"] = "region"
    settings.current.cache_clear()
    assert () == rollback().problems
    rollback("base")
    database.upgrade(MIGRATE_HEAD)
    after = rows(database)
    assert before["user_lead_assignments"] == after["user_lead_assignments"]
    database.upgrade("head")
    assert [] == dangers(database)
