"""The territory as a host keeps it: an expression over the lead's row, from the first revision to the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.util import CommandError
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.doctor.likeness import neutral
from leadprotect.errors import SettingsError
from leadprotect.settings import parse, render
from leadprotect.settings.names import names
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18", "pg15")

COALESCED = "coalesce(territory_id, country_code)"
HOST = """
    CREATE TYPE crm.place AS ENUM ('DE', 'CH', 'FR');
    ALTER TABLE {leads} DROP territory, ADD territory_id varchar(8), ADD country_code char(2) NOT NULL DEFAULT 'DE',
      ADD place crm.place, ADD region integer;
    """


def hosted(make_database: Callable[..., Database], expression: str, **more: str) -> Database:
    database = make_database("empty", territory_expression=expression, **more)
    created = render(
        "CREATE SCHEMA crm; CREATE TABLE {leads} ({lead_id} uuid PRIMARY KEY, territory text, city text);"
        "CREATE TABLE {activities} ({activity_id} bigserial PRIMARY KEY, {activity_lead_id} uuid REFERENCES {leads}, "
        "{activity_user_id} uuid, {activity_kind} text, {activity_at} timestamptz)",
        database.settings,
    )
    database.sql_script(created)
    database.sql_script(HOST)
    return database


def lead(database: Database, **columns: object) -> object:
    made = {"id": database.new_id()} | columns
    marks = ", ".join(["%s"] * len(made))
    database.sql(f"INSERT INTO {{leads}} ({', '.join(made)}) VALUES ({marks})", *made.values())
    return made["id"]


def protected(database: Database) -> None:
    database.upgrade(MIGRATE_HEAD)
    leadprotect.backfill(database.url, ["DE", "CH"], batch_size=2)
    database.upgrade()
    database.create_logins()


def test_an_expression_goes_through_the_whole_life(make_database: Callable[..., Database]) -> None:
    database = hosted(make_database, COALESCED)
    german, empty = lead(database), lead(database, territory_id="", country_code="CH")
    swiss, moved = lead(database, territory_id="CH"), lead(database, territory_id="DE", country_code="FR")
    for number, one in enumerate((german, swiss, moved), 1):
        database.activity(one, database.user(number))
    database.upgrade(MIGRATE_HEAD)
    (estimate, _) = leadprotect.backfill(database.url, ["DE", "CH"], dry_run=True)
    assert (estimate.leads, estimate.assignable) == (2, 2)
    protected(database)
    owners = [database.owner(german), database.owner(swiss, "CH"), database.owner(moved)]
    assert owners == [database.user(number) for number in (1, 2, 3)]
    with database.acting("seller_de", 1) as conn:
        assert set(database.query(conn, "SELECT {lead_id} FROM {leads}")) == {german, empty, moved}
        assert leadprotect.can_edit_many(conn, [german, empty, swiss, moved]) == {
            german: True,
            empty: True,
            swiss: False,
            moved: False,
        }
        assert [one.lead_id for one in leadprotect.editable_leads(conn).leads] == [german]
    diagnosed = CliRunner().invoke(main, ["doctor"])
    assert diagnosed.exit_code == 0, diagnosed.output
    database.downgrade()
    assert database.sql("SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'ix_leadprotect%%'") == []
    database.upgrade(MIGRATE_HEAD)
    assert database.owner(german) == database.user(1)


@pytest.mark.profiles("pg18")
def test_who_changes_an_input_moves_the_lead(make_database: Callable[..., Database]) -> None:
    database = hosted(make_database, COALESCED)
    one = lead(database, territory_id="DE")
    database.activity(one, database.user(1))
    database.upgrade(MIGRATE_HEAD)
    move = "UPDATE {leads} SET territory_id = %s WHERE {lead_id} = %s RETURNING true"
    other = lead(database)
    database.sql(move, "CH", other)
    sources = "SELECT source FROM {schema}.user_lead_assignments WHERE lead_id = %s"
    assert database.sql(sources, other) == ["moved"]
    protected(database)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), database.acting("seller_de", 1) as conn:
        database.query(conn, move, "CH", one)
    unmoved = "UPDATE {leads} SET country_code = 'CH' WHERE {lead_id} = %s RETURNING true"
    with database.acting("seller_de", 1) as conn:
        assert database.query(conn, unmoved, one) == [True]
    assert database.sql(move, "CH", one) == [True]
    assert database.audit("territory, reason")[-1] == ("DE", "maintenance")


@pytest.mark.profiles("pg18")
def test_the_index_serves_the_expression(make_database: Callable[..., Database]) -> None:
    database = hosted(make_database, COALESCED)
    database.sql(
        "INSERT INTO {leads} ({lead_id}, territory_id) SELECT gen_random_uuid(), CASE WHEN n % 9 = 0 THEN 'CH' END "
        "FROM generate_series(1, 2000) AS n"
    )
    database.upgrade(MIGRATE_HEAD)
    database.sql("ANALYZE {leads}")
    with database.connect() as conn:
        database.query(conn, "SET enable_seqscan = off")
        query = "EXPLAIN SELECT FROM {leads} AS l WHERE {territory_of_l} = 'CH' ORDER BY {lead_id} LIMIT 5"
        found = database.query(conn, query)
    assert any("ix_leadprotect_leads" in line for line in found)
    assert not any("Sort" in line for line in found)


REFUSED = {
    "lower(to_char(now(), 'DD') || territory_id)": "must be marked IMMUTABLE",
    "coalesce(territory_id, country)": "public.leads has no column country; it has ",
    "territory_id = 'DE' AND 1": "territory_expression: ",
    "no_such_function(territory_id)": "territory_expression: function no_such_function",
    "count(territory_id)": "aggregate functions are not allowed",
    "place::text": "must be marked IMMUTABLE",
}


@pytest.mark.profiles("pg18")
def test_an_expression_that_can_t_serve_is_refused_before_anything_is_touched(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = hosted(make_database, COALESCED)
    for expression, said in REFUSED.items():
        monkeypatch.setenv("LEADPROTECT_TERRITORY_EXPRESSION", expression)
        with pytest.raises(CommandError) as refused:
            database.upgrade()
        assert said in str(refused.value), expression
        assert database.sql("SELECT to_regnamespace({schema_name})") == [None]


@pytest.mark.crossed
@pytest.mark.parametrize("kind", ["integer", "char(4)", "crm.place", "crm.land", "smallint", "crm.number"])
def test_a_column_of_codes_that_are_no_text_serves_as_it_is(make_database: Callable[..., Database], kind: str) -> None:
    """Nothing but the column is named, and every command that writes or compares SQL about it goes on."""
    numbers = kind in {"integer", "smallint", "crm.number"}
    here, there = ("49", "41") if numbers else ("DE", "CH")
    database = make_database("empty", territories=f"{here}: de, {there}: ch")
    database.sql_script(
        "CREATE SCHEMA crm; CREATE TYPE crm.place AS ENUM ('DE', 'CH'); CREATE DOMAIN crm.land AS crm.place;"
        f"CREATE DOMAIN crm.number AS integer; CREATE TABLE {{leads}} (id uuid PRIMARY KEY, territory {kind});"
        "CREATE TABLE {activities} (id bigserial PRIMARY KEY, lead_id uuid REFERENCES {leads}, user_id uuid, "
        "kind text, created_at timestamptz); CREATE INDEX ON {activities} (lead_id)"
    )
    mine, free, theirs = (lead(database, territory=code) for code in (here, None, there))
    for one in (mine, theirs):
        database.activity(one, database.user(1))
    assert "stops at the gate" in ran("plan", exit_code=3)
    database.upgrade(MIGRATE_HEAD)
    ran("shadow", "start")
    ran("shadow", "stop")
    ran("backfill", here, there)
    database.upgrade("head", contract="require")
    database.create_logins()
    move = "UPDATE {leads} SET territory = %s WHERE id = %s RETURNING true"
    with database.acting("seller_de", 1, here) as conn:
        assert {*database.query(conn, "SELECT id FROM {leads}")} == {mine, free}
        assert leadprotect.can_edit_many(conn, [mine, free, theirs]) == {mine: True, free: True, theirs: False}
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            database.query(conn, move, there, mine)
    assert database.sql(move, there, mine) == [True]
    assert database.audit("territory, reason")[-1] == (here, "maintenance")
    for command in ("doctor", "status", "pin status", "host-change --resume", "apply --yes", "territory list"):
        ran(*command.split())
    assert ran("doctor").startswith("sound")
    ran("rollback")
    database.downgrade()
    assert database.sql("SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'ix_leadprotect%%'") == []


def ran(*words: str, exit_code: int = 0) -> str:
    """What a command of ours says that ends so."""
    done = CliRunner().invoke(main, [*words])
    assert done.exit_code == exit_code, done.output
    return done.stdout


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("kind", ["date", "boolean", "text[]"])
def test_control_a_column_of_anything_else_is_refused(make_database: Callable[..., Database], kind: str) -> None:
    database = make_database("host")
    database.sql(f"ALTER TABLE {{leads}} DROP territory, ADD territory {kind}")
    with pytest.raises(CommandError, match=r"expected text or character varying; name it as an expression: .*::text"):
        database.upgrade()


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(SELECT code FROM places)", "SELECT can't stand in it"),
        ("NULL", "names no column of the lead"),
        ("'DE'", "names no column of the lead"),
        ("l.territory", "can't stand in it"),
        ("territory; DROP TABLE leads", "'; DROP TABLE' can't stand in it"),
        ("territory -- a comment", "can't stand in it"),
        ("territory || '{x}'", "can't stand in it"),
        ("territory || $x$a$x$", "can't stand in it"),
    ],
)
def test_an_expression_that_is_none_is_refused_by_the_settings(expression: str, said: str) -> None:
    with pytest.raises(SettingsError, match="territory_expression: ") as refused:
        parse({"territory_expression": expression})
    assert said in str(refused.value)


def test_a_lead_has_one_territory() -> None:
    with pytest.raises(SettingsError, match="territory_expression and territory_column"):
        parse({"territory_expression": COALESCED, "territory_column": "territory"})


# --- what the server makes of an expression: it keeps a parsed form, and writes that in its own words

WRITTEN = [
    "CASE region WHEN 1 THEN 'DE' WHEN 2 THEN 'CH' END",
    "CASE WHEN region = 1 THEN 'DE' WHEN region IN (2, 3) THEN 'CH' ELSE country_code::text END",
    "CASE WHEN country_code IN ('DE', 'AT') THEN 'DE' ELSE 'CH' END",
    "CASE WHEN country_code NOT IN ('DE', 'AT') THEN 'CH' ELSE 'DE' END",
    "CASE WHEN country_code IN ('DE') THEN 'CH' ELSE 'DE' END",
    "CASE WHEN country_code NOT IN ('DE') THEN 'CH' ELSE 'DE' END",
    "CASE WHEN region BETWEEN 1 AND 9 THEN 'DE' ELSE 'CH' END",
    "CASE WHEN region NOT BETWEEN 1 AND 9 THEN 'DE' ELSE 'CH' END",
    "case when region + 1 between 1 and 9 and territory_id is not null then 'DE' ELSE 'CH' END",
    "CASE WHEN (region BETWEEN 1 AND 9) OR country_code = 'x' THEN 'DE' ELSE 'CH' END",
    "CASE WHEN territory_id LIKE 'D E_' THEN 'DE' WHEN territory_id NOT LIKE 'ch_' THEN 'CH' END",
    "CASE WHEN region NOT IN (big, 1, 2) THEN 'DE' ELSE 'CH' END",
    "CASE WHEN region NOT IN (big) THEN 'DE' ELSE 'CH' END",
    "CASE WHEN a AND region IN (abs(region), 1, 2, big) THEN 'DE' ELSE 'CH' END",
    "CASE WHEN a IS NOT FALSE THEN 'DE' END",
    "CASE WHEN NOT true THEN country_code ELSE 'CH' END",
    "CASE WHEN region <> 1 THEN 'CH' ELSE 'DE' END",
    "upper(left(territory_id, 2))",
    "UPPER(Left(territory_id, 2))",
    "right(territory_id, 2)",
    "upper(trim(territory_id))",
    "trim(coalesce(territory_id, country_code))",
    "btrim(territory_id)",
    "ltrim(territory_id, 'x')",
    "substring(territory_id, 1, 2)",
    "substr(territory_id, 1, 2)",
    "territory_id || ''",
    "split_part(territory_id, '-', 1)",
    "replace(territory_id, 'x', 'y')",
    "CASE WHEN region - 2 = 0 AND NOT (region > 10) THEN 'DE' ELSE 'CH' END",
    "CASE WHEN territory_id IS NULL THEN 'DE' ELSE territory_id END",
    "coalesce(nullif(territory_id, ''), country_code)",
    "regexp_replace(territory_id, '-.*', '')",
    "CASE place WHEN 'DE' THEN 'DE' WHEN 'CH' THEN 'CH' END",
    "CASE WHEN region > 0.5 THEN 'DE' ELSE 'CH' END",
    "CASE WHEN region = -1 THEN 'DE' ELSE 'CH' END",
    "CASE WHEN region = - 1 THEN 'DE' ELSE 'CH' END",
    "CASE WHEN big = 5000000000 THEN 'DE' ELSE 'CH' END",
    "CASE WHEN big IN (1, 5000000000) THEN 'DE' ELSE 'CH' END",
    "CASE WHEN territory_id IS NOT DISTINCT FROM 'x' THEN 'DE' ELSE 'CH' END",
    "CASE WHEN territory_id IS DISTINCT FROM 'x' THEN 'DE' ELSE 'CH' END",
    "CASE WHEN a AND upper(territory_id) IS NOT DISTINCT FROM 'x' THEN 'DE' ELSE 'CH' END",
    "lower(country_code)",
    "CASE country_code WHEN 'D' THEN 'DE' ELSE CASE WHEN region=2 THEN 'CH' END END",
    "CASE id WHEN 'aaaaaaaa-0000-4000-8000-000000000002' THEN 'DE' END",
    "CASE WHEN CASE WHEN a THEN region END BETWEEN 1 AND 2 THEN 'DE' END",
    "CASE WHEN a IS TRUE THEN 'DE' WHEN a = false THEN 'CH' END",
    "CASE WHEN NOT a THEN 'DE' ELSE territory_id::varchar(2) END",
    "greatest(territory_id, country_code)",
    "CASE WHEN day >= '2026-01-01' THEN 'DE' ELSE 'CH' END",
    "pg_catalog.upper(territory_id)",
    "CASE WHEN money > 1.50 THEN 'DE' END",
    "CASE WHEN country_code IN ('DE', territory_id) THEN 'DE' ELSE 'CH' END",
    "crm.short(territory_id)",
    '"left"(territory_id,2)',
    "CASE WHEN a THEN 'DE' ELSE NULL END",
    "overlay(territory_id, 'x', 1)",
    "CASE WHEN length(territory_id) > 2 THEN 'DE' END",
    "territory_id || '-' || country_code",
    "CASE WHEN region*2+1 > 3 OR NOT a AND region < 2 THEN 'DE' END",
    'coalesce("Wild Name", territory_id)',
]
KINDS = """
    CREATE FUNCTION crm.short(code text) RETURNS text LANGUAGE sql IMMUTABLE RETURN left(code, 2);
    ALTER TABLE {leads} ADD big bigint, ADD a boolean, ADD day date, ADD money numeric, ADD "Wild Name" text;
    """


def shown(database: Database, condition: str, *, policy: bool) -> str:
    """How the server shows a condition on a lead: of a policy, or of a view in which the row has an alias."""
    with database.connect() as conn:
        conn.execute("SET search_path = pg_catalog")
        if policy:
            database.query(conn, f"CREATE POLICY shown ON {{leads}} USING ({condition})")
            found = database.query(conn, "SELECT pg_get_expr(polqual, polrelid) FROM pg_policy WHERE polname = 'shown'")
        else:
            view = "CREATE VIEW crm.shown AS SELECT FROM {leads} AS l CROSS JOIN {activities} AS other WHERE "
            database.query(conn, view + condition)
            found = database.query(conn, "SELECT pg_get_viewdef('crm.shown'::regclass)")
        conn.rollback()
    return str(found[0])


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "view"])
def test_doctor_knows_an_expression_however_the_server_writes_it(
    make_database: Callable[..., Database], *, policy: bool
) -> None:
    database = hosted(make_database, COALESCED)
    database.sql_script(KINDS)
    strange, usual = {}, {}
    for expression in WRITTEN:
        own = parse({"leads_table": database.settings.leads_table, "territory_expression": expression})
        of_row = names(own)["territory_of_here" if policy else "territory_of_l"]
        text = neutral(shown(database, f"{of_row} = 'x'", policy=policy), own)
        usual[expression] = f"{'' if policy else 'l . '}territory = 'x'"
        strange[expression] = text.rpartition("WHERE ")[2].rstrip(" ;") if not policy else text
    assert usual == strange


def test_control_another_expression_is_not_taken_for_it(make_database: Callable[..., Database]) -> None:
    database = hosted(make_database, COALESCED)
    mine, theirs = (
        "CASE region WHEN 1 THEN 'DE' WHEN 2 THEN 'CH' END",
        "CASE region WHEN 1 THEN 'CH' WHEN 2 THEN 'DE' END",
    )
    for said, meant in ((mine, theirs), (mine, mine.replace("END", "ELSE 'DE' END")), (mine, mine.replace("2", "3"))):
        own, other = (
            parse({"leads_table": database.settings.leads_table, "territory_expression": one}) for one in (said, meant)
        )
        assert "territory = 'x'" != neutral(
            shown(database, names(other)["territory_of_here"] + " = 'x'", policy=True), own
        )


def test_what_settings_call_may_stand_in_a_schema_without_a_table_of_ours(
    make_database: Callable[..., Database],
) -> None:
    """Our roles get USAGE of its schema as of one with a table, and give it back at the base."""
    database = hosted(make_database, "ext.code(territory_id)", activity_condition="ext.counts(kind)")
    database.sql_script(
        "CREATE SCHEMA ext;"
        "CREATE FUNCTION ext.code(said text) RETURNS text LANGUAGE sql IMMUTABLE RETURN upper(said);"
        "CREATE FUNCTION ext.counts(kind text) RETURNS boolean LANGUAGE sql IMMUTABLE RETURN kind <> 'MAIL'"
    )
    german = lead(database, territory_id="de")
    database.activity(german, database.user(1))
    acl = "SELECT nspacl::text FROM pg_namespace WHERE nspname = 'ext'"
    assert database.sql(acl) == [None]
    protected(database)
    with database.acting("seller_de", 1) as conn:
        assert leadprotect.can_edit(conn, german)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
    database.downgrade()
    assert "leadprotect" not in str(database.sql(acl))


@pytest.mark.profiles("pg18")
def test_control_what_our_reader_may_not_call_is_told_before_anything_stands(
    make_database: Callable[..., Database],
) -> None:
    database = hosted(make_database, "crm.code(territory_id)")
    database.sql_script(
        "CREATE FUNCTION crm.code(said text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN said; END';"
        "REVOKE ALL ON FUNCTION crm.code(text) FROM PUBLIC"
    )
    lead(database, territory_id="DE")
    with pytest.raises(CommandError, match=r"public.leads fails where leadprotect_reader reads it .*permission denied"):
        database.upgrade()
    assert database.sql("SELECT to_regnamespace({schema_name})") == [None]
