"""Before contract nothing is denied, and what would be is noted: by whom, what, why, and what mends it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.doctor.examine import CHECKS, examine
from leadprotect.doctor.status import status
from leadprotect.errors import InvalidRequest, LockUnavailable
from leadprotect.migration import gate
from leadprotect.migration.purge import purge
from leadprotect.migration.shadow import (
    ShadowReport,
    WouldBeDenied,
    shadow,
    shadow_report,
    watch_shadow,
)
from leadprotect.migration.shadowing import start_shadow, stop_shadow
from leadprotect.planning.plan import plan_deploy
from leadprotect.settings import ident
from tests.support.children import CONTACTS, NOTES, contact, with_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

ONE_SERVER = pytest.mark.profiles("pg18")
RENAME = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s"


def report(database: Database) -> ShadowReport:
    with database.connect() as conn:
        found = shadow_report(conn, settings=database.settings)
    assert found is not None
    return found


def told(database: Database, one: WouldBeDenied) -> tuple[str, str, str, str]:
    table = one.host_table.split(".")[-1].strip('"')
    return one.login.removeprefix(f"{database.profile.name}_"), one.kind, table, one.reason


def denied(database: Database) -> set[tuple[str, str, str]]:
    """Login, kind and reason."""
    return {
        (login, kind, reason) for login, kind, _, reason in (told(database, one) for one in report(database).denied)
    }


def start(database: Database) -> None:
    start_shadow(config=database.config())


def stop(database: Database) -> None:
    stop_shadow(config=database.config())


def as_nobody(database: Database, statement: str, *values: Any, login: str = "seller_de") -> None:
    with database.connect(login) as conn:
        database.query(conn, statement, *values)


def dump(database: Database) -> list[str]:
    command = [str(database.server.programs / "pg_dump"), "--schema-only", "--dbname", database.url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


# --- what is noted


def test_a_write_without_a_context_is_noted_and_done(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    as_nobody(expanded, RENAME, lead)
    assert ["Bern"] == expanded.sql("SELECT city FROM {leads}")
    [found] = report(expanded).denied
    assert ("seller_de", "UPDATE", expanded.settings.leads_table.split(".")[1], "no_context") == told(expanded, found)
    assert (1, True) == (found.times, found.locks_out)
    assert "leadprotect.acting_as" in found.remedy


def test_an_edit_that_contract_would_allow_is_not_noted(expanded: Database) -> None:
    own, shared, outside = *(expanded.lead("DE", owner=expanded.user(1)) for _ in range(2)), expanded.lead(None)
    expanded.rule(expanded.user(2), "COLLABORATOR", shared)
    start(expanded)
    for number, lead in ((1, own), (2, shared), (2, outside)):
        with expanded.acting("seller_de", number) as conn:
            expanded.query(conn, RENAME, lead)
    with expanded.acting("seller_de", 1) as conn:
        expanded.query(conn, "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", expanded.new_id())
    as_nobody(expanded, RENAME, outside)
    expanded.sql("UPDATE {leads} SET city = 'Ulm'")  # a superuser is bound by nothing
    assert () == report(expanded).denied


def test_what_is_denied_as_it_is_meant_is_told_from_what_locks_out(expanded: Database) -> None:
    lead, unowned, elsewhere = expanded.lead("DE", owner=expanded.user(1)), expanded.lead("DE"), expanded.lead("CH")
    start(expanded)
    for one in (lead, unowned, elsewhere):
        with expanded.acting("seller_de", 2) as conn:
            expanded.query(conn, RENAME, one)
    with expanded.acting("seller_de", 2, "CH") as conn:
        expanded.query(conn, RENAME, elsewhere)
    found = {told(expanded, one)[3]: one.locks_out for one in report(expanded).denied}
    assert {"not_owner": False, "unassigned": False, "not_found": True, "not_member": True} == found


def test_an_update_of_many_leads_is_noted_by_what_is_wrong_with_some(expanded: Database) -> None:
    mine = [expanded.lead("DE", owner=expanded.user(1)) for _ in range(3)]
    others = [expanded.lead("DE", owner=expanded.user(2)), expanded.lead("DE")]
    start(expanded)
    with expanded.acting("seller_de", 1) as conn:
        expanded.query(conn, "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = ANY (%s)", mine)
    assert set() == denied(expanded)
    with expanded.acting("seller_de", 1) as conn:
        expanded.query(conn, "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = ANY (%s)", [*mine, *others])
    assert {("seller_de", "UPDATE", "not_owner"), ("seller_de", "UPDATE", "unassigned")} == denied(expanded)


def test_a_new_lead_a_deletion_a_move_and_copy_are_noted(expanded: Database) -> None:
    lead, other = expanded.lead("DE", owner=expanded.user(1)), expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    insert = "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')"
    as_nobody(expanded, insert, expanded.new_id())
    as_nobody(expanded, "DELETE FROM {leads} WHERE {lead_id} = %s", other)
    with expanded.acting("seller_both", 1) as conn:
        expanded.query(conn, "UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", lead)
    with expanded.connect("manager_de") as conn, conn.cursor() as cursor:
        statement = expanded.text("COPY {leads} ({lead_id}) FROM STDIN")
        with cursor.copy(statement.encode()) as copy:
            copy.write_row([str(expanded.new_id())])
    expected = {
        ("seller_de", "INSERT", "no_context"),
        ("seller_de", "DELETE", "no_context"),
        ("seller_both", "UPDATE", "moved"),
        ("manager_de", "COPY", "copy"),
    }
    assert expected == {one for one in denied(expanded) if one[2] != "not_found"}


def test_rows_of_lead_tables_are_noted_and_a_cascade_is_not(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    lead, own = database.lead("DE", owner=database.user(1)), database.lead("DE", owner=database.user(2))
    for one in (lead, own):
        contact(database, one)
    start(database)
    with database.acting("seller_de", 2) as conn:
        database.query(conn, f'INSERT INTO {CONTACTS} ("of lead") VALUES (%s)', lead)
        database.query(conn, f"INSERT INTO {NOTES} (lead_id) VALUES (%s)", lead)  # everybody appends
        database.query(conn, f'UPDATE {CONTACTS} SET "of lead" = NULL WHERE "of lead" = %s', own)
        database.query(conn, "DELETE FROM {leads} WHERE {lead_id} = %s", own)
        database.query(conn, f"TRUNCATE {NOTES}")
    found = {told(database, one)[1:] for one in report(database).denied}
    contacts = CONTACTS.split(".")[1].strip('"')
    assert {
        ("INSERT", contacts, "not_owner"),
        ("UPDATE", contacts, "moved"),
        ("TRUNCATE", "notes", "truncate"),
    } == found


def test_who_gives_the_lead_away_in_its_own_column_is_decided_as_the_owner_that_he_was(
    make_database: Callable[..., Database],
) -> None:
    database = make_database("host", owners_from="column", owner_column="city")
    if database.settings.user_id_type == "uuid":
        database.sql("ALTER TABLE {leads} ALTER COLUMN city TYPE uuid USING NULL")
    database.upgrade("lp_0015_migrate_gate")
    database.create_logins()
    lead = database.lead("DE")
    database.sql("UPDATE {leads} SET city = %s", database.user(1))
    start(database)
    with database.acting("seller_de", 1) as conn:
        database.query(conn, "UPDATE {leads} SET city = %s WHERE {lead_id} = %s", database.user(2), lead)
    assert {("seller_de", "UPDATE", "not_manager")} == denied(database)
    with database.acting("seller_de", 2) as conn:
        database.query(conn, "UPDATE {leads} SET city = NULL WHERE {lead_id} = %s", lead)
    with database.acting("seller_de", 1) as conn:
        database.query(conn, "UPDATE {leads} SET city = %s WHERE {lead_id} = %s", database.user(1), lead)
    assert {("seller_de", "UPDATE", "not_manager")} == denied(database), "given back by the owner, and claimed"


@ONE_SERVER
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_it_notes_at_every_level_of_isolation(expanded: Database, level: str) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    with expanded.connect("seller_de") as conn:
        conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        expanded.query(conn, RENAME, lead)
    assert {("seller_de", "UPDATE", "no_context")} == denied(expanded)


@ONE_SERVER
def test_notes_are_bounded_whatever_a_login_does(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    with expanded.connect("seller_de", autocommit=True) as conn:
        for _ in range(20):
            expanded.query(conn, RENAME, lead)
        assert [1] == expanded.sql("SELECT count(*) FROM {schema}.shadow_notes")
    for _ in range(5):
        as_nobody(expanded, RENAME, lead)
    assert [3] == expanded.sql("SELECT count(*) FROM {schema}.shadow_notes")


@ONE_SERVER
def test_what_was_rolled_back_is_not_noted_nor_counted(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    with expanded.connect("seller_de") as conn:
        expanded.query(conn, RENAME, lead)
        conn.rollback()
        assert set() == denied(expanded)
        expanded.query(conn, RENAME, lead)
    assert {("seller_de", "UPDATE", "no_context")} == denied(expanded)


def test_hours_that_are_over_are_added_up(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    for _ in range(3):
        as_nobody(expanded, RENAME, lead)
    expanded.sql("UPDATE {schema}.shadow_runs SET started_at = started_at - interval '1 day'")
    expanded.sql(
        "UPDATE {schema}.shadow_notes "
        "SET first_at = first_at - interval '2 hours', last_at = last_at - interval '2 hours'"
    )
    expanded.sql("SELECT {schema}.shadow_fold()")
    assert [3] == expanded.sql("SELECT times FROM {schema}.shadow_notes")


# --- whatever goes wrong


def test_a_decision_that_fails_is_said_and_fails_no_statement(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    expanded.sql(
        "CREATE OR REPLACE FUNCTION {schema}.shadow_reason(lead {lead_id_type}) RETURNS text LANGUAGE plpgsql STABLE "
        "AS 'BEGIN RAISE EXCEPTION ''broken''; END'"
    )
    with expanded.acting("seller_de", 1) as conn:
        expanded.query(conn, RENAME, lead)
    as_nobody(expanded, "DELETE FROM {leads} WHERE {lead_id} = %s", lead)
    assert [0] == expanded.sql("SELECT count(*) FROM {leads}")
    assert {("seller_de", "UPDATE", "not_judged"), ("seller_de", "DELETE", "not_judged")} == denied(expanded)


def test_notes_that_fail_fail_no_statement(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    expanded.sql("ALTER TABLE {schema}.shadow_notes ADD CONSTRAINT nothing CHECK (false) NOT VALID")
    as_nobody(expanded, RENAME, lead)
    assert ["Bern"] == expanded.sql("SELECT city FROM {leads}")
    assert set() == denied(expanded)


# --- who reads


def test_who_reads_is_seen_with_what_contract_leaves_him(expanded: Database) -> None:
    expanded.lead("DE")
    outsider = ident(expanded.profile.login("outsider"))
    expanded.sql(f"GRANT SELECT ON {{leads}} TO {outsider}")
    expanded.sql(f"GRANT USAGE ON SCHEMA {ident(expanded.settings.leads_table.split('.')[0])} TO {outsider}")
    start(expanded)
    with expanded.connect("outsider") as one, expanded.connect("seller_de") as other, expanded.connect() as superuser:
        for conn in (one, other, superuser):
            expanded.query(conn, "SELECT count(*) FROM {leads}")
        assert 3 == watch_shadow(seconds=0, settings=expanded.settings)
    found = {reader.login: reader for reader in report(expanded).readers}
    prefix = f"{expanded.profile.name}_"
    seen = {login.removeprefix(prefix): reader.sees for login, reader in found.items()}
    assert ("nothing", "declared") == (seen.pop("outsider"), seen.pop("seller_de"))
    assert ["everything"] == [*seen.values()]
    assert str(found[f"{prefix}outsider"].remedy).startswith("GRANT ")


def test_who_writes_without_a_context_reads_without_one(expanded: Database) -> None:
    lead = expanded.lead("DE")
    start(expanded)
    as_nobody(expanded, RENAME, lead)
    with expanded.connect("seller_de") as conn:
        expanded.query(conn, "SELECT count(*) FROM {leads}")
        watch_shadow(seconds=0, settings=expanded.settings)
    assert ["nothing"] == [reader.sees for reader in report(expanded).readers]


# --- start and stop


def test_stop_leaves_the_schema_as_it_was_and_the_report_stays(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    lead = database.lead("DE")
    before = dump(database)
    start(database)
    assert before != dump(database)
    as_nobody(database, RENAME, lead)
    stop(database)
    assert before == dump(database)
    as_nobody(database, "DELETE FROM {leads}")
    assert {("seller_de", "UPDATE", "no_context")} == denied(database)
    start(database)
    assert set() == denied(database), "a new look forgets the last one"


def test_start_and_stop_do_nothing_the_second_time_and_complete_what_a_kill_left(
    make_database: Callable[..., Database],
) -> None:
    database = with_children(make_database)
    start(database)
    first, whole = report(database).shadow, dump(database)
    start(database)
    assert (first, whole) == (report(database).shadow, dump(database))
    database.sql("DROP TRIGGER {observe_edits} ON {leads}")
    database.sql(f"ALTER TABLE {CONTACTS} DISABLE TRIGGER {{observe_rows}}")
    assert 2 == len(report(database).missing)
    start(database)
    assert (first, whole) == (report(database).shadow, dump(database))
    stop(database)
    stopped = report(database).shadow
    stop(database)
    assert stopped == report(database).shadow
    assert stopped.ended_at is not None


@ONE_SERVER
def test_with_other_exempt_roles_it_begins_anew(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("expanded")
    lead = database.lead("DE")
    start(database)
    as_nobody(database, RENAME, lead)
    monkeypatch.setenv("LEADPROTECT_EXEMPT_ROLES", database.profile.login("seller_de"))
    start(database)
    as_nobody(database, RENAME, lead)
    assert set() == denied(database)


@ONE_SERVER
def test_a_table_that_is_held_is_named_with_who_holds_it(expanded: Database) -> None:
    with expanded.connect() as conn:
        expanded.query(conn, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        with pytest.raises(LockUnavailable, match=rf"pid {conn.info.backend_pid}\b"):
            start_shadow(config=expanded.config(), lock_budget="300ms")
    assert None is status_of(expanded)
    start(expanded)
    assert status_of(expanded) is not None


def status_of(database: Database) -> Any:
    with database.connect() as conn:
        return status(conn, settings=database.settings).shadow


@ONE_SERVER
def test_what_it_can_not_foresee_is_refused(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_database("host")
    with pytest.raises(InvalidRequest, match="alembic upgrade head"):
        start(host)
    assert None is stop_shadow(config=host.config())
    head = make_database("head")
    with pytest.raises(InvalidRequest, match="contract is in force"):
        start(head)
    expanded = make_database("expanded", host_rls="off")
    with pytest.raises(InvalidRequest, match="host_rls = off"):
        start(expanded)
    other = make_database("expanded")
    monkeypatch.setenv("DATABASE_URL", other.login_url("operator"))
    settings.current.cache_clear()
    with pytest.raises(InvalidRequest, match="only its owner puts a trigger on it"):
        start(other)
    with pytest.raises(InvalidRequest, match="no shadow runs"):
        watch_shadow(seconds=0, settings=other.settings)


def test_contract_ends_it(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    start(database)
    assert status_of(database) is not None
    database.upgrade("head", contract="require")
    assert None is status_of(database)
    names = "SELECT count(*) FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE p.proname LIKE 'shadow%'"
    assert [0] == database.sql(names)
    with database.connect(autocommit=True) as conn:
        found = examine(conn, settings=database.settings, checks=[one for one in CHECKS if "shadow-left" in one.name])
    assert () == found.findings


def test_a_downgrade_keeps_what_was_noted_and_purge_takes_it(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database)
    lead = database.lead("DE")
    start(database)
    as_nobody(database, RENAME, lead)
    database.downgrade("base")
    database.upgrade("lp_0015_migrate_gate")
    assert {("seller_de", "UPDATE", "no_context")} == denied(database)
    assert report(database).shadow.ended_at is not None
    database.downgrade("base")
    with database.connect() as conn:
        purge(conn, settings=database.settings)
        assert None is shadow(conn, settings=database.settings)
    assert [] == [line for line in dump(database) if "shadow" in line]


# --- the gate


def asked(database: Database) -> dict[str, gate.Condition]:
    with database.connect() as conn:
        return {one.name: one for one in gate.conditions(conn, settings=database.settings)}


def test_the_gate_asks_for_no_shadow_and_heeds_one(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    assert "shadow" not in asked(expanded)
    start(expanded)
    with expanded.acting("seller_de", 2) as conn:
        expanded.query(conn, RENAME, lead)
    assert asked(expanded)["shadow"].met, "what is denied as it is meant keeps nothing closed"
    as_nobody(expanded, RENAME, lead)
    found = asked(expanded)["shadow"]
    assert not found.met
    assert f"login {ident(expanded.profile.login('seller_de')).strip(chr(34))} would have been denied" in found.detail
    stop(expanded)
    assert not asked(expanded)["shadow"].met
    expanded.upgrade("head", accept="shadow:1,unowned:1")
    assert asked(expanded)["shadow"].met


def test_plan_tells_what_a_shadow_saw(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start(expanded)
    as_nobody(expanded, RENAME, lead)
    with expanded.connect() as conn:
        found = [loss for loss in plan_deploy(conn, settings=expanded.settings).losses if loss.condition == "shadow"]
    assert [expanded.profile.login("seller_de")] == [loss.login for loss in found]
    assert "no_context" in found[0].what


# --- the command


@ONE_SERVER
def test_the_report_is_read_by_people_and_by_programs(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    run = CliRunner()
    assert (2, "no shadow was started yet: leadprotect shadow start\n") == (
        (none := run.invoke(main, ["shadow", "report"])).exit_code,
        none.output,
    )
    assert "nothing is denied" in run.invoke(main, ["shadow", "start"]).output
    assert 0 == run.invoke(main, ["shadow", "report"]).exit_code
    as_nobody(expanded, RENAME, lead)
    shown = run.invoke(main, ["shadow", "report"])
    assert 1 == shown.exit_code
    assert "pg18_seller_de: UPDATE public.leads, no_context" in shown.output
    assert "leadprotect.acting_as" in shown.output
    told = json.loads(run.invoke(main, ["shadow", "report", "--json"]).output)
    assert ["no_context"] == [one["reason"] for one in told["denied"]]
    assert "shadow    runs since" in run.invoke(main, ["status"]).output
    assert "was stopped at" in run.invoke(main, ["shadow", "stop"]).output
