"""`leadprotect apply`: settings that change after contract, with the gate's questions and no moment that is open."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.doctor.examine import examine
from leadprotect.doctor.status import status
from leadprotect.errors import GateClosed, LockUnavailable
from leadprotect.migration.apply import apply
from tests.support import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database


@pytest.fixture
def reporting(database: Database) -> Iterator[str]:
    """A login that reads the leads, and is a member of nothing of ours."""
    name = f"reporting-{database.name}"
    schema = database.settings.leads_table.split(".", 1)[0]
    database.sql(f'CREATE ROLE "{name}" LOGIN')
    yield name
    database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{name}"; REVOKE ALL ON SCHEMA {schema} FROM "{name}"')
    database.sql(f'DROP ROLE "{name}"')


def set_to(database: Database, monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """What an operator writes into the ini file."""
    database.overrides.update(values)
    for key, value in values.items():
        monkeypatch.setenv(f"LEADPROTECT_{key.upper()}", value)
    settings.current.cache_clear()


def let_read(database: Database, login: str) -> None:
    schema = database.settings.leads_table.split(".", 1)[0]
    database.sql_script(f'GRANT USAGE ON SCHEMA {schema} TO "{login}"; GRANT SELECT ON {{leads}} TO "{login}"')


def seen_by(database: Database, login: str) -> int:
    with psycopg.connect(database.server.url(database.name, login), autocommit=True) as conn:
        return int(database.query(conn, "SELECT count(*) FROM {leads}")[0])


def standing(database: Database) -> dict[str, str]:
    with database.connect() as conn:
        return fingerprint.fingerprint(conn, database.settings)


def dangers(database: Database) -> list[str]:
    with database.connect(autocommit=True) as conn:
        found = examine(conn, settings=database.settings).findings
    return [f"{one.check} {one.where}: {one.what}" for one in found if one.level == "danger"]


def test_what_a_denied_edit_is_and_whose_a_new_lead_is_may_change_after_contract(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, new = database.lead("DE", owner=database.user(2)), database.new_id()
    edit, insert = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s", "INSERT INTO {leads} VALUES (%s, 'DE')"
    with database.acting("seller_de", 1) as conn:
        database.query(conn, edit, other)
    set_to(database, monkeypatch, denied_edit="raise", owner_on_insert="creator")
    assert ["denied_edit", "owner_on_insert"] == [one.key for one in apply().changes]
    assert [] == dangers(database)
    with database.acting("seller_de", 1) as conn:
        database.query(conn, insert, new)
    assert database.user(1) == database.owner(new)
    with pytest.raises(psycopg.Error, match="denied"), database.acting("seller_de", 1) as conn:
        database.query(conn, edit, other)


@pytest.mark.nightly_elsewhere("by day another change is applied there")
def test_a_login_is_exempted_after_contract_and_bound_again(
    database: Database, reporting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.lead("DE")
    set_to(database, monkeypatch, exempt_roles=reporting)
    let_read(database, reporting)
    assert 0 == seen_by(database, reporting)
    (said,) = [one for one in dangers(database) if one.startswith("setting-not-applied")]
    differs = f"exempt_roles: is empty in the database, and {reporting} in the settings"
    assert differs in said
    with database.connect(autocommit=True) as conn:
        now = status(conn, settings=database.settings)
    assert (False, f"NOT APPLIED: {differs}") == (now.sound, now.verdict)
    before = standing(database)

    shown = CliRunner().invoke(main, ["apply", "--dry-run"], catch_exceptions=False)
    assert 0 == shown.exit_code, shown.output
    assert "CREATE POLICY" in shown.output
    assert (0, before) == (seen_by(database, reporting), standing(database))

    done = CliRunner().invoke(main, ["apply", "--yes"], catch_exceptions=False)
    assert 0 == done.exit_code, done.output
    assert 1 == seen_by(database, reporting)
    assert [] == dangers(database)
    again = CliRunner().invoke(main, ["apply"], catch_exceptions=False)
    assert (0, True) == (again.exit_code, again.output.startswith("nothing to apply"))

    schema = database.settings.leads_table.split(".", 1)[0]
    database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{reporting}"; REVOKE ALL ON SCHEMA {schema} FROM "{reporting}"')
    set_to(database, monkeypatch, exempt_roles="")
    assert apply().done
    let_read(database, reporting)
    assert 0 == seen_by(database, reporting)


@pytest.mark.nightly_elsewhere("by day another change is applied there")
def test_what_is_applied_stands_as_if_contract_had_made_it(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, made = make_database("head"), make_database("expanded")
    for values in ({"host_rls": "force"}, {"host_rls": "off"}, {"host_rls": "enforce"}, {"exempt_roles": "postgres"}):
        set_to(changed, monkeypatch, **values)
        monkeypatch.setenv("DATABASE_URL", changed.url)
        settings.current.cache_clear()
        assert apply().done
        assert [] == dangers(changed)
    set_to(made, monkeypatch, **changed.overrides)
    monkeypatch.setenv("DATABASE_URL", made.url)
    made.upgrade("head")
    assert standing(made) == standing(changed)


def test_a_change_that_would_lock_a_login_out_is_refused_before_anything_is_touched(
    make_database: Callable[..., Database], reporting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("expanded", exempt_roles=reporting)
    let_read(database, reporting)
    database.upgrade("head")
    before = standing(database)
    try:
        set_to(database, monkeypatch, exempt_roles="")
        with pytest.raises(GateClosed, match=reporting):
            apply()
        refused = CliRunner().invoke(main, ["apply", "--yes", "--json"], catch_exceptions=False)
        assert (1, before) == (refused.exit_code, standing(database))
        told = json.loads(CliRunner().invoke(main, ["apply", "--dry-run", "--json"]).stdout)
        assert ["logins"] == [one["name"] for one in told["refused"]]
        assert {"key": "exempt_roles", "database": [reporting], "setting": []} == told["changes"][0]
    finally:
        schema = database.settings.leads_table.split(".", 1)[0]
        database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{reporting}"')
        database.sql_script(f'REVOKE ALL ON SCHEMA {schema} FROM "{reporting}"')


def test_before_contract_there_is_nothing_to_apply(expanded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to(expanded, monkeypatch, host_rls="force")
    assert ((), False) == (apply().changes, apply().done)


@pytest.mark.profiles("pg18")
def test_a_reader_of_another_territory_sees_no_lead_at_any_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.lead("CH")
    seen: list[int] = []
    ended = threading.Event()

    def read() -> None:
        with database.connect("seller_de", autocommit=True) as conn:
            while not ended.is_set():
                seen.append(database.query(conn, "SELECT count(*) FROM {leads} WHERE {territory} = 'CH'")[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for value in ("force", "enforce", "force"):
            set_to(database, monkeypatch, host_rls=value)
            assert apply().done
    finally:
        ended.set()
        reader.join()
    assert {0} == set(seen)
    set_to(database, monkeypatch, host_rls="off")  # control: the same reader would have seen it
    assert apply().done
    with database.connect("seller_de", autocommit=True) as conn:
        assert [1] == database.query(conn, "SELECT count(*) FROM {leads} WHERE {territory} = 'CH'")


@pytest.mark.profiles("pg18")
def test_a_lock_that_is_not_to_be_had_leaves_everything_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = standing(database)
    set_to(database, monkeypatch, host_rls="force")
    with database.connect() as conn:
        database.query(conn, "SELECT count(*) FROM {leads}")
        with pytest.raises(LockUnavailable, match="blocked by pid"):
            apply(lock_budget="1s")
    assert before == standing(database)
