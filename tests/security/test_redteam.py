"""`leadprotect redteam` says which way is open, and writes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from leadprotect.cli import main
from leadprotect.database.connection import connect
from leadprotect.migration.redteam import Tried, redteam

if TYPE_CHECKING:
    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18", "pg15", "other_names")


def furnish(database: Database) -> None:
    """A lead of each territory, and one without; somebody owns each."""
    for territory in ("DE", "CH"):
        database.lead(territory, owner=database.user(1))
    database.lead(None)
    with database.connect("seller_ch") as conn:
        database.context(conn, database.user(1), "CH")
        database.query(conn, "SELECT count({schema}.record_edit_attempt({lead_id})) FROM {leads}")


def tried(database: Database, login: str = "seller_de") -> dict[str, Tried]:
    """What a login finds, by the name of the way."""
    with database.connect(login, autocommit=True) as conn:
        return {way.name: way for way in redteam(conn, settings=database.settings)}


def run(database: Database, login: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["redteam", "--database-url", database.login_url(login), *options])


def test_every_way_of_a_seller_is_held(database: Database) -> None:
    furnish(database)
    found = tried(database)
    assert {} == {name: way for name, way in found.items() if way.verdict != "held"}
    assert {"context: CH", "context: none", "context in the query: CH", "pg_stats of the leads"} < found.keys()
    assert any(name.startswith("SET ROLE") for name in found)
    assert any(name.startswith("view") for name in found)


LEAKY_FUNCTION = """
    CREATE FUNCTION crm.all_leads() RETURNS SETOF {leads}
    LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT * FROM {leads}';
    GRANT EXECUTE ON FUNCTION crm.all_leads() TO PUBLIC
    """
CHILD = """
    CREATE TABLE crm.child () INHERITS ({leads});
    GRANT SELECT ON crm.child TO PUBLIC;
    INSERT INTO crm.child ({lead_id}, {territory}) SELECT {lead_id}, 'CH' FROM {leads}
    """
WRITING_FUNCTION = LEAKY_FUNCTION.replace("STABLE ", "")
OPENED = {
    "row security is off": ("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "context: CH"),
    "no border": ("DROP POLICY {border_policy} ON {leads}", "context: none"),
    "no border, asked in the query": ("DROP POLICY {border_policy} ON {leads}", "context in the query: CH"),
    "a view as its owner": (
        "CREATE VIEW crm.v AS SELECT * FROM {leads}; GRANT SELECT ON crm.v TO PUBLIC",
        "view crm.v",
    ),
    "a view upon a view": (
        "CREATE VIEW crm.v AS TABLE {leads}; CREATE VIEW crm.w AS TABLE crm.v; GRANT SELECT ON crm.w TO PUBLIC",
        "view crm.w",
    ),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW crm.m AS SELECT {lead_id} FROM {leads}; GRANT SELECT ON crm.m TO PUBLIC",
        "view crm.m",
    ),
    "a function with its owner's rights": (LEAKY_FUNCTION, "function crm.all_leads"),
    "a child": (
        CHILD,
        "partition or parent crm.child",
    ),
    "a table of ours": (
        "ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY",
        "{schema_bare}.user_lead_assignments, context: CH",
    ),
    "statistics": ("ANALYZE {leads}; ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "pg_stats of the leads"),
    "activities": (
        "INSERT INTO {activities} ({activity_lead_id}, {activity_kind}) SELECT {lead_id}, 'NOTE' FROM {leads}",
        "{activities_bare} of leads that are hidden, context: DE",
    ),
}


@pytest.mark.parametrize("what", OPENED)
def test_a_way_that_is_open_is_named_with_what_closes_it(database: Database, what: str) -> None:
    furnish(database)
    script, name = OPENED[what]
    s = database.settings
    bare = database.sql("SELECT format('%%I', %s::text)", s.schema)[0]
    name = name.replace("{schema_bare}", bare).replace("{activities_bare}", s.activities_table)
    before = tried(database).get(name)
    assert before is None or before.verdict == "held"
    database.sql_script(script)
    found = tried(database)[name]
    assert ("open", True) == (found.verdict, bool(found.remedy))


def test_a_role_that_a_login_may_set_and_that_sees_more_is_named(database: Database) -> None:
    """A policy of the host that holds for a role only is no way; the border is everybody's."""
    furnish(database)
    role = database.settings.role("app")
    name = f"SET ROLE {role}, context: CH"
    database.sql("GRANT USAGE ON SCHEMA crm TO {app}")
    database.sql("GRANT SELECT ON {leads} TO {app}")
    assert tried(database)[name].verdict == "held"
    database.sql("DROP POLICY {border_policy} ON {leads}")
    assert tried(database)[name].verdict == "open"


def test_a_function_that_may_write_is_not_called_but_named(database: Database) -> None:
    furnish(database)
    database.sql_script(WRITING_FUNCTION)
    found = tried(database)["function crm.all_leads"]
    assert found.verdict == "not tried"
    assert "yourself" in found.remedy


def test_exit_codes_say_held_open_or_not_tried(database: Database) -> None:
    furnish(database)
    assert 0 == run(database, "seller_de").exit_code
    assert 2 == run(database, "seller_both").exit_code  # nothing is foreign to it
    database.sql_script(WRITING_FUNCTION)
    assert 2 == run(database, "seller_de").exit_code
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    assert 1 == run(database, "seller_de").exit_code


@pytest.mark.usefixtures("database")
def test_whoever_row_security_does_not_bind_is_told_to_name_a_service() -> None:
    done = CliRunner().invoke(main, ["redteam", "--json"])
    assert 2 == done.exit_code
    (way,) = json.loads(done.output)
    assert ("not tried", True) == (way["verdict"], "--database-url" in way["remedy"])


def test_it_is_shown_as_a_table_and_as_json(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(database)
    monkeypatch.setenv("COLUMNS", "200")
    assert "context: CH" in run(database, "seller_de").output
    shown = json.loads(run(database, "seller_de", "--json").output)
    assert [way.name for way in tried(database).values()] == [way["name"] for way in shown]


def test_nothing_is_written_and_no_context_stays(database: Database) -> None:
    furnish(database)
    count = "SELECT (SELECT count(*) FROM {schema}.lead_access_audit), pg_current_wal_insert_lsn() IS NULL"
    before = database.sql(count)
    tried(database)
    assert before == database.sql(count)
    with connect(database.settings) as conn:
        redteam(conn, settings=database.settings)
        assert conn.execute("SELECT current_setting(%s, true)", (database.settings.territory_guc,)).fetchone() in [
            (None,),
            ("",),
        ]


@pytest.mark.usefixtures("database")
def test_a_bad_url_is_refused_without_its_password() -> None:
    done = CliRunner().invoke(main, ["redteam", "--database-url", "postgresql://svc:secret@nowhere:1:2/x"])
    assert (1, False) == (done.exit_code, "secret" in done.output)
