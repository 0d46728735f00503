"""What is refused before anything is touched, and that the printed statements make it pass."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from alembic.util import CommandError

import leadprotect
from leadprotect.errors import SettingsError
from leadprotect.preflight.check import version_problem
from leadprotect.preflight.leftovers import _KEPT
from leadprotect.settings import parse
from tests.support.fingerprint import difference, fingerprint
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED
from tests.support.topology import pooler, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

ONE_SERVER = pytest.mark.profiles("pg18")


def state(database: Database) -> dict[str, str]:
    """The whole catalog that a migration could touch: schemas, roles and the version table."""
    with database.connect(autocommit=True) as conn:
        found = fingerprint(conn, database.settings)
    roles = "SELECT rolname, rolcanlogin, rolsuper, rolinherit FROM pg_roles ORDER BY 1"
    members = "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members ORDER BY 1, 2"
    return found | {
        "roles": str(database.sql(roles)),
        "members": str(database.sql(members)),
        "at": str(versions(database)),
    }


def versions(database: Database) -> list[str]:
    table = '"' + database.settings.version_table_schema + '"."' + database.settings.version_table + '"'
    return [f"{found}" for found in database.sql("SELECT to_regclass(%s)", table)]


@contextmanager
def refused(database: Database, expected: str) -> Iterator[list[str]]:
    """An upgrade is refused with these words, and nothing is touched; yields the DBA's statements."""
    before = state(database)
    statements: list[str] = []
    with pytest.raises(CommandError) as caught:
        database.upgrade()
    message = str(caught.value)
    assert message.startswith("refused before anything was touched:\n  - ")
    assert expected in message
    assert difference(before, state(database)) == {}
    if "\nA DBA can run:\n" in message:
        statements += [line.strip() for line in message.partition("\nA DBA can run:\n")[2].splitlines()]
    yield statements


# --- the server


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (90624, "PostgreSQL 9 is too old: leadprotect needs 15 or later"),
        (140020, "PostgreSQL 14 is too old: leadprotect needs 15 or later"),
        (150013, "PostgreSQL 15.13 has a known row-security vulnerability: update to 15.14 or later"),
        (150014, None),
        (160009, "PostgreSQL 16.9 has a known row-security vulnerability: update to 16.10 or later"),
        (160010, None),
        (170005, "PostgreSQL 17.5 has a known row-security vulnerability: update to 17.6 or later"),
        (170006, None),
        (180000, None),
        (190001, None),
    ],
)
def test_old_and_vulnerable_versions_are_refused(number: int, expected: str | None) -> None:
    assert version_problem(number) == expected


@ONE_SERVER
def test_a_read_replica_is_refused_for_the_way_up_and_down(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with replica(database.server) as standby:
        monkeypatch.setenv("DATABASE_URL", standby.url(database.name))
        with pytest.raises(CommandError, match="this server is a read replica: run the migration on the primary"):
            database.downgrade()
        assert database.revision() == HEAD
        database.upgrade()  # nothing to do is no mistake


@ONE_SERVER
def test_a_pool_of_transactions_is_refused_and_the_direct_url_asked_for(
    host: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pooler(host.server, "transaction") as pool:
        monkeypatch.setenv("DATABASE_URL", pool.url(host.name))
        with refused(host, "leads to a transaction pooler"):
            pass
    monkeypatch.setenv("DATABASE_URL", host.url)
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
def test_a_pool_of_statements_is_named_as_what_is_in_the_way(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with pooler(host.server, "statement") as pool:
        monkeypatch.setenv("DATABASE_URL", pool.url(host.name))
        with pytest.raises(CommandError, match="leads to a transaction pooler"):
            host.upgrade()
    assert host.revision() is None


@ONE_SERVER
def test_a_pool_of_sessions_is_as_good_as_the_server(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with pooler(host.server, "session") as pool:
        monkeypatch.setenv("DATABASE_URL", pool.url(host.name))
        host.upgrade()
        assert host.revision() == HEAD
        host.downgrade()


# --- the host's tables


LEADS, ACTIVITIES = "ALTER TABLE {leads} ", "ALTER TABLE {activities} "
KINDS = "CREATE TYPE public.kind AS ENUM ('NEWSLETTER'); "
SHAPES = {
    "DROP TABLE {activities}": "activities_table: there is no table ",
    "DROP TABLE {leads} CASCADE": "leads_table: there is no table ",
    LEADS + "RENAME {lead_id} TO x": "lead_id_column: ",
    LEADS + "RENAME {territory} TO x": "territory_column: ",
    LEADS + "ALTER {territory} TYPE date USING '2026-01-01'::date": "territory_column: ",
    LEADS + "DROP {lead_id} CASCADE, ADD {lead_id} integer PRIMARY KEY": "lead_id_type: ",
    LEADS + "DROP {lead_id} CASCADE, ADD {lead_id} {lead_id_type}": "has no unique index of its own",
    ACTIVITIES + "RENAME {activity_id} TO x": "activity_id_column: ",
    ACTIVITIES + "RENAME {activity_lead_id} TO x": "activity_lead_id_column: ",
    ACTIVITIES + "RENAME {activity_user_id} TO x": "activity_user_id_column: ",
    ACTIVITIES + "RENAME {activity_kind} TO x": "activity_kind_column: ",
    ACTIVITIES + "RENAME {activity_at} TO x": "activity_at_column: ",
    ACTIVITIES + "ALTER {activity_kind} TYPE integer USING 1": "activity_kind_column: ",
    ACTIVITIES + "ALTER {activity_at} TYPE text": "activity_at_column: ",
    "CREATE TABLE crm.old () INHERITS ({leads})": "leads_table: public.leads shares its rows by inheritance",
    "CREATE TABLE crm.top (LIKE {leads}); " + LEADS + "INHERIT crm.top": "by inheritance with crm.top",
    "CREATE TABLE crm.old () INHERITS ({activities})": "activities_table: public.activities shares its rows",
    ACTIVITIES + "DROP {activity_user_id}, ADD {activity_user_id} integer": "user_id_type: ",
    ACTIVITIES + "DROP {activity_lead_id}, ADD {activity_lead_id} integer": "lead_id_type: ",
    LEADS + "DROP {lead_id} CASCADE, ADD {lead_id} smallint PRIMARY KEY": "lead_id_type: public.leads.id is smallint",
    "CREATE DOMAIN crm.no AS bigint; "
    + LEADS
    + "DROP {lead_id} CASCADE, ADD {lead_id} crm.no PRIMARY KEY": "crm.no, a domain over bigint, expected uuid",
    LEADS
    + "DROP {territory}, ADD {territory} text GENERATED ALWAYS AS ('DE') VIRTUAL": "is a VIRTUAL generated column",
    "CREATE EXTENSION citext; " + ACTIVITIES + "ALTER {activity_kind} TYPE citext": "kind is citext, which",
    "DROP TABLE {leads} CASCADE; CREATE TABLE {leads} ({lead_id} uuid) PARTITION BY HASH ({lead_id})": "a partition is",
    KINDS + ACTIVITIES + "DROP {activity_kind}, ADD {activity_kind} public.kind": "qualifying_kinds: QUALIFIED_CALL, ",
    "DROP TABLE {activities}; CREATE VIEW {activities} AS SELECT 1 AS one": "is a view, on which no index",
    "DROP TABLE {activities}; CREATE TABLE {activities} (a int) PARTITION BY LIST (a)": "activity_id_column: ",
}


@ONE_SERVER
@pytest.mark.parametrize(("change", "expected"), SHAPES.items())
def test_a_host_table_of_another_shape_is_refused_with_the_key_named(
    host: Database, change: str, expected: str
) -> None:
    host.sql_script(change)
    with refused(host, expected):
        pass


@pytest.mark.profiles("pg15")  # the embedded server knows no such collation
def test_a_collation_in_which_other_texts_are_equal_is_refused(host: Database) -> None:
    host.sql_script(
        "CREATE COLLATION crm.folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); "
        "ALTER TABLE {leads} ALTER {territory} TYPE text COLLATE crm.folded"
    )
    with refused(host, "territory_column: public.leads.territory has the collation folded, in which texts that"):
        pass


EXPRESSIONS = {
    ("activity_condition", "delted"): "activity_condition: 'delted' says nothing of a row of public.activities: ",
    ("activity_condition", "lead_id"): "must be type boolean",
    ("activity_condition", "count(*) > 1"): "aggregate functions are not allowed",
    ("activity_condition", "generate_series(1, 2) = 1"): "set-returning functions are not allowed",
    ("activity_condition", "created_at > now()"): "must say the same of a row at any time",
    ("activity_condition", "random() > 0.5"): "must say the same of a row at any time",
    ("activity_condition", "public.known(kind)"): "must say the same of a row at any time",
    (
        "activity_lead_id_column",
        "lead_id::text",
    ): "lead_id_type: 'lead_id::text' of public.activities is text, expected uuid",
    ("activity_lead_id_column", "subject::uuid"): "activity_lead_id_column: 'subject::uuid' says nothing of a row",
    ("activity_lead_id_column", "(coalesce(lead_id, gen_random_uuid()))"): "must say the same of a row at any time",
}


@ONE_SERVER
@pytest.mark.parametrize("given", EXPRESSIONS, ids=lambda given: given[1])
def test_what_an_expression_says_of_no_row_is_refused_with_the_key_named(
    host: Database, given: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.sql("CREATE FUNCTION public.known(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN 1 / 0; END $$")
    monkeypatch.setenv(f"LEADPROTECT_{given[0].upper()}", given[1])
    with refused(host, EXPRESSIONS[given]):
        pass


@ONE_SERVER
def test_a_kind_that_a_check_leaves_out_is_named(host: Database) -> None:
    host.sql(
        ACTIVITIES + "ADD CONSTRAINT known CHECK ({activity_kind} IN ('QUALIFIED_CALL', 'SAMPLE_FEEDBACK', 'NOTE'))"
    )
    with refused(host, "qualifying_kinds: the constraint known lets no row of public.activities have kind CUSTOMER_R"):
        pass


@ONE_SERVER
@pytest.mark.parametrize("kind", ["public.kind", "public.narrowed"])
def test_a_kind_that_a_domain_leaves_out_is_named(host: Database, kind: str) -> None:
    host.sql("CREATE DOMAIN public.kind AS text CHECK (VALUE <> 'SAMPLE_FEEDBACK')")
    host.sql("CREATE DOMAIN public.narrowed AS public.kind NOT NULL")
    host.sql(ACTIVITIES + f"ALTER {{activity_kind}} TYPE {kind}")
    with refused(host, "lets no row of public.activities have kind SAMPLE_FEEDBACK: correct the setting"):
        pass


@ONE_SERVER
def test_kinds_without_case_are_refused_with_the_condition_to_write(
    host: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.sql("CREATE EXTENSION citext SCHEMA public")
    host.sql(ACTIVITIES + "ALTER {activity_kind} TYPE public.citext")
    with refused(host, "leave it empty, and write activity_condition = lower(\"kind\"::text) IN ('qualified_call', "):
        pass
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_KIND_COLUMN", "")
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_CONDITION", "lower(\"kind\"::text) IN ('qualified_call')")
    lead = host.lead()
    host.activity(lead, host.user(1), kind="Qualified_CALL")
    host.upgrade(MIGRATE_HEAD)
    leadprotect.backfill(host.url, ["DE"])
    assert host.user(1) == host.owner(lead)


@ONE_SERVER
@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("timestamp", "(\"created_at\" AT TIME ZONE 'Etc/UTC')"),
        ("date", "(\"created_at\"::timestamp AT TIME ZONE 'Etc/UTC')"),
        ("crm.moment", '"created_at"::timestamptz'),
    ],
)
def test_a_time_beside_others_of_another_type_is_refused_with_what_to_write(
    host: Database, kind: str, written: str
) -> None:
    host.sql("CREATE DOMAIN crm.moment AS timestamptz")
    host.sql(f"CREATE TABLE crm.calls (id uuid, lead_id uuid, user_id uuid, created_at {kind})")
    host.sections = {"calls": {"table": "crm.calls", "kind_column": ""}}
    with refused(host, f"at_column = {written}"):
        pass
    host.sections["calls"]["at_column"] = written
    host.upgrade(MIGRATE_HEAD)
    lead = host.lead()
    host.activity(lead, host.user(1), at="2026-01-01")
    host.sql("INSERT INTO crm.calls VALUES (gen_random_uuid(), %s, %s, '2026-01-02')", lead, host.user(2))
    assert host.user(2) == host.owner(lead)


@ONE_SERVER
def test_days_and_times_without_a_zone_are_compared_as_they_are(host: Database) -> None:
    host.sql("ALTER TABLE {activities} ALTER {activity_at} TYPE date")
    host.sql("CREATE TABLE crm.calls (id uuid, lead_id uuid, user_id uuid, created_at timestamp)")
    host.sections = {"calls": {"table": "crm.calls", "kind_column": ""}}
    host.upgrade(MIGRATE_HEAD)
    lead = host.lead()
    host.sql("INSERT INTO crm.calls VALUES (gen_random_uuid(), %s, %s, '2026-01-01 08:00')", lead, host.user(2))
    host.activity(lead, host.user(1), at="2026-01-01")
    assert host.user(2) == host.owner(lead)
    host.activity(lead, host.user(1), at="2026-01-02")
    assert host.user(1) == host.owner(lead)


@ONE_SERVER
def test_an_expression_without_its_parentheses_is_told_from_a_column(
    host: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "an expression stands in parentheses: activity_at_column = "
    said = "coalesce(created_at, created_at)"
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_AT_COLUMN", said)
    with refused(host, f"{hint}({said})"):
        pass
    said = "coalesce(created_at, '-infinity')"
    with pytest.raises(SettingsError, match=re.escape(f"{hint}({said})")):
        parse({"activity_at_column": said})
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_AT_COLUMN", f"({said})")
    host.upgrade(MIGRATE_HEAD)


@ONE_SERVER
def test_a_condition_on_the_text_of_a_label_is_refused_with_what_to_write(
    host: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.sql_script("CREATE TYPE public.what AS ENUM ('CALL', 'NOTE'); " + ACTIVITIES + "ADD what public.what")
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_CONDITION", "CASE what::text WHEN 'CALL' THEN true ELSE false END")
    with refused(host, '; "what": an enum is compared as it is, without ::text'):
        pass
    monkeypatch.setenv("LEADPROTECT_ACTIVITY_CONDITION", "CASE what WHEN 'CALL' THEN true ELSE false END")
    host.upgrade(MIGRATE_HEAD)
    assert host.revision() == MIGRATE_HEAD


VIEWS = {
    "CREATE VIEW crm.seen AS SELECT * FROM crm.calls": ({}, "base_table = crm.calls"),
    "CREATE VIEW crm.seen AS SELECT 1 AS id": ({}, "base_table = schema.name"),
    "CREATE TABLE crm.seen (id uuid)": ({"base_table": "crm.calls"}, "crm.seen is no view"),
    "CREATE VIEW crm.seen AS SELECT * FROM public.activities": ({"base_table": "crm.calls"}, "does not read crm.calls"),
    "CREATE VIEW crm.seen WITH (security_invoker = true) AS SELECT * FROM crm.calls": (
        {"base_table": "crm.calls"},
        "reads as whoever asks (security_invoker)",
    ),
    "CREATE VIEW crm.seen AS SELECT id AS number, lead_id, user_id, created_at FROM crm.calls": (
        {"base_table": "crm.calls", "id_column": "number"},
        "crm.calls has no column number",
    ),
    "CREATE VIEW crm.seen AS SELECT id::text, lead_id, user_id, created_at FROM crm.calls": (
        {"base_table": "crm.calls"},
        "crm.calls.id is uuid, and in crm.seen text",
    ),
    "ALTER TABLE crm.calls ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; GRANT USAGE ON SCHEMA crm TO "
    "pg_monitor; GRANT SELECT ON crm.calls TO pg_monitor; CREATE VIEW crm.seen AS SELECT * FROM crm.calls; "
    "ALTER VIEW crm.seen OWNER TO pg_monitor": (
        {"base_table": "crm.calls"},
        "crm.seen reads crm.calls as its owner pg_monitor, from whom row-level security hides rows",
    ),
}


@ONE_SERVER
@pytest.mark.parametrize(("made", "section", "expected"), [(made, *rest) for made, rest in VIEWS.items()])
def test_a_view_that_can_not_serve_is_refused_with_the_reason(
    host: Database, made: str, section: dict[str, str], expected: str
) -> None:
    host.sql_script(f"CREATE TABLE crm.calls (id uuid, lead_id uuid, user_id uuid, created_at timestamptz); {made}")
    host.sections = {"calls": {"table": "crm.seen", "kind_column": ""} | section}
    with refused(host, expected):
        pass


@ONE_SERVER
@pytest.mark.parametrize("kind", ["timestamp(0)", "timestamptz(3)", "date"])
def test_every_type_that_orders_activities_by_time_will_do(host: Database, kind: str) -> None:
    host.sql("ALTER TABLE {activities} ALTER {activity_at} TYPE " + kind)
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
def test_every_finding_is_told_at_once(host: Database) -> None:
    host.sql_script("DROP TABLE {activities}; ALTER TABLE {leads} RENAME {territory} TO x; CREATE SCHEMA leadprotect")
    with refused(host, "activities_table: "), refused(host, "territory_column: "), refused(host, "schema leadprotect "):
        pass


@ONE_SERVER
def test_an_enum_that_has_the_kinds_is_as_good_as_text(host: Database) -> None:
    labels = ", ".join(f"'{kind}'" for kind in [*host.settings.qualifying_kinds, "NEWSLETTER"])
    host.sql_script(
        f"CREATE TYPE public.kind AS ENUM ({labels}); ALTER TABLE {{activities}} ALTER {{activity_kind}} "
        "TYPE public.kind USING {activity_kind}::public.kind"
    )
    host.upgrade()
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    host.activity(lead, host.user(2), kind="NEWSLETTER")
    assert host.owner(lead) is None  # contract is done
    host.downgrade(NAMED["contract_enforce"])
    host.activity(lead, host.user(1))
    assert host.owner(lead) == host.user(1)


# --- names of ours that are somebody's


CREATE = "CREATE SCHEMA {schema}; CREATE "
TOUCHED = "BEFORE UPDATE ON {activities} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
STRANGERS = {
    "CREATE SCHEMA {schema}": "exists and belongs to postgres",
    CREATE + "TABLE {schema}.user_lead_assignments (id int)": "user_lead_assignments exists",
    CREATE + "VIEW {schema}.v_lead_protection AS SELECT 1 AS one": "v_lead_protection exists",
    CREATE + "TYPE {schema}.lead_action AS ENUM ('X')": "lead_action exists",
    CREATE + "FUNCTION {schema}.can_edit_lead(int) RETURNS int RETURN 1": "can_edit_lead exists",
    "CREATE INDEX {leads_index} ON {leads} ({territory})": "it is not ours; rename it",
    "CREATE POLICY {transition} ON {leads}": "exists on the host's tables",
    "CREATE TRIGGER {transition} " + TOUCHED: "exists on the host's tables",
}


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.parametrize(("script", "expected"), STRANGERS.items())
def test_an_object_of_our_name_is_refused_by_name(host: Database, script: str, expected: str) -> None:
    host.sql_script(script)
    with refused(host, expected):
        pass


def test_a_table_of_our_name_in_another_schema_is_the_hosts(host: Database) -> None:
    assert host.sql("SELECT to_regclass('public.user_lead_assignments') IS NOT NULL") == [True]
    host.upgrade()
    assert host.sql("SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' "
                    "AND table_name = 'user_lead_assignments' ORDER BY 1") == ["id", "note"]  # fmt: skip


@ONE_SERVER
def test_a_role_of_our_name_with_powers_is_refused_until_it_loses_them(make_database: Callable[..., Database]) -> None:
    database = make_database("host", schema="powers")
    database.sql("CREATE ROLE powers_app LOGIN CREATEROLE")
    with refused(database, "role powers_app exists with powers that it must not have") as statements:
        assert len(statements) == 1
        for statement in statements:
            database.sql(statement)
    database.upgrade()
    assert database.revision() == HEAD


@ONE_SERVER
def test_an_exempt_role_must_exist(make_database: Callable[..., Database]) -> None:
    with refused(make_database("host", exempt_roles="nobody_of_that_name"), "there is no role nobody_of_that_name"):
        pass


@ONE_SERVER
def test_the_schema_of_the_version_table_is_asked_for(make_database: Callable[..., Database]) -> None:
    database = make_database("host", version_table_schema="ops")
    with refused(database, "version_table_schema: there is no schema ops") as statements:
        assert statements == ['CREATE SCHEMA "ops";']
        database.sql(statements[0])
    database.upgrade()
    assert database.revision() == HEAD


PARTLY = {
    "CREATE INDEX {leads_index} ON {leads} (company)": "exists and is not the index of leadprotect: rename it",
    "CREATE UNIQUE INDEX {leads_index} ON {leads} ({territory}, {lead_id})": "is not the index of leadprotect",
    "CREATE INDEX {leads_index} ON {leads} ({territory}, {lead_id}) WHERE company = ''": "is not the index of",
    "CREATE TABLE public.x (y int); CREATE INDEX ix_leadprotect_leads ON public.x (y)": "is not the index of",
    "CREATE TABLE public.ix_leadprotect_leads (y int)": "public.ix_leadprotect_leads exists and is not the index",
    "CREATE INDEX {activities_index} ON {activities} ({activity_kind})": "is not the index of leadprotect",
    "CREATE TABLE {schema}.contextless_writes (x int)": "contextless_writes belongs to postgres, not to leadprotect_ow",
    "CREATE FUNCTION {schema}.unowned_leads(text) RETURNS int RETURN 1": "unowned_leads belongs to postgres",
    "CREATE POLICY leadprotect_border ON {leads}": "policy leadprotect_border exists on the host's tables and is not",
    "CREATE TRIGGER {transition} " + TOUCHED: "trigger leadprotect_transition exists on the host's tables",
}


@ONE_SERVER
@pytest.mark.parametrize(("script", "expected"), PARTLY.items())
def test_an_object_of_a_name_that_a_later_revision_needs_is_refused(host: Database, script: str, expected: str) -> None:
    host.upgrade(NAMED["expand_rules"])
    host.sql_script(script)
    with refused(host, expected):
        pass


@ONE_SERVER
def test_a_script_drops_no_index_of_the_host(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    host.sql("CREATE INDEX {leads_index} ON {leads} (company)")
    script = host.script("upgrade", f"{NAMED['expand_rules']}:{NAMED['expand_indexes']}")
    guards = re.finditer(r"DO \$do\$.*?\$do\$;", script, re.DOTALL)
    (guard,) = [one for one in guards if "is not the index of leadprotect" in one[0]]
    assert guard.start() < script.index("DROP INDEX")
    with pytest.raises(psycopg.errors.DuplicateTable, match="is not the index of leadprotect: rename it"):
        host.sql(guard[0])


@ONE_SERVER
@pytest.mark.parametrize("kinds", ["'X'", "'QUALIFIED_CALL'"])
def test_an_index_for_other_kinds_is_built_again(host: Database, kinds: str) -> None:
    host.upgrade(NAMED["expand_rules"])
    host.sql(
        "CREATE INDEX {activities_index} ON {activities} ({activity_lead_id}, {activity_at} DESC NULLS LAST, "
        "{activity_id} DESC) INCLUDE ({activity_user_id}) "
        f"WHERE {{activity_kind}} IN ({kinds}) AND {{activity_user_id}} IS NOT NULL"
    )
    host.upgrade(MIGRATE_HEAD)
    definition = host.sql("SELECT pg_get_indexdef('{activities_index_path}'::regclass)")[0]
    assert all(f"'{kind}'" in definition for kind in host.settings.qualifying_kinds)


@pytest.mark.parametrize("qualifying_kinds", ["ONE", "O'Brien's 100 %, TWO", "B, a, Ä"])
def test_an_index_that_stands_is_not_built_again(make_database: Callable[..., Database], qualifying_kinds: str) -> None:
    host = make_database("host", qualifying_kinds=qualifying_kinds)
    indexes = (
        "SELECT to_regclass(path)::oid FROM unnest(ARRAY['{leads_index_path}', '{activities_index_path}']) AS path"
    )
    host.upgrade(NAMED["expand_rules"])
    # it ends between the indexes and its number
    host.sql_script(
        "SET ROLE {owner}; CREATE FUNCTION {schema}.in_transition() RETURNS boolean LANGUAGE sql RETURN true"
    )
    with pytest.raises(CommandError, match='"in_transition" already exists'):
        host.upgrade(NAMED["expand_indexes"])
    assert host.revision() == NAMED["expand_rules"]
    before = host.sql(indexes)
    assert None not in before
    host.sql("DROP FUNCTION {schema}.in_transition()")
    host.upgrade(NAMED["expand_indexes"])
    assert host.sql(indexes) == before


# --- the quarantine


def test_a_quarantine_of_another_id_type_is_refused(database: Database) -> None:
    database.downgrade()
    database.sql("ALTER TABLE {quarantine}.lead_protection_rules ALTER lead_id TYPE varchar USING lead_id::text")
    with refused(database, "lead_id_type: the quarantine holds "):
        pass


KEPT = {table: columns.split() for tables in _KEPT for table, columns in tables.items()}


@ONE_SERVER
def test_a_downgrade_leaves_the_tables_and_columns_that_an_upgrade_asks_for(database: Database) -> None:
    database.downgrade()
    found = database.sql(
        "SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum) FROM pg_class AS c "
        "JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
        "WHERE c.relnamespace = {quarantine_name}::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
        "GROUP BY c.relname"
    )
    assert dict(found) == KEPT


@ONE_SERVER
@pytest.mark.parametrize("table", KEPT)
def test_a_quarantine_of_another_version_is_refused(make_database: Callable[..., Database], table: str) -> None:
    database, column = make_database("left"), KEPT[table][-1]
    database.sql(f"ALTER TABLE {{quarantine}}.{table} RENAME {column} TO was_{column}")
    with refused(database, f"{table} lacks {column}: it was left by another version"):
        pass


@ONE_SERVER
def test_a_quarantine_of_another_version_is_refused_on_a_part_of_the_way_too(database: Database) -> None:
    database.downgrade(NAMED["expand_indexes"])
    database.sql("DROP TABLE {quarantine}.backfill_deferred")
    with refused(database, "backfill_deferred lacks deferred_at, lead_id, reason, territory: it was left by another"):
        pass


# --- the migrating role


@contextmanager
def deploying_as(
    database: Database, options: str, monkeypatch: pytest.MonkeyPatch, *, owns: bool = True
) -> Iterator[str]:
    """Migrate as a login that is no superuser; it owns the host's tables and nothing else."""
    name = f"deploy-{database.name}"
    owner = name if owns else f"host-{database.name}"
    database.sql(f'CREATE ROLE "{name}" LOGIN {options}')
    if not owns:
        database.sql(f'CREATE ROLE "{owner}" NOLOGIN')
    for table in ("{leads}", "{activities}"):
        database.sql(f'ALTER TABLE {table} OWNER TO "{owner}"')
    try:
        with monkeypatch.context() as patch:
            patch.setenv("DATABASE_URL", database.server.url(database.name, name))
            yield name
    finally:  # it may have joined roles that all databases share, and the gate of each of them would see it
        database.sql_script(f'REASSIGN OWNED BY "{name}" TO postgres; DROP OWNED BY "{name}"; DROP ROLE "{name}"')


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize("options", ["NOCREATEROLE", "CREATEROLE", "NOCREATEROLE NOINHERIT", "CREATEROLE NOINHERIT"])
def test_what_a_role_lacks_is_printed_as_statements_that_make_the_upgrade_pass(
    make_database: Callable[..., Database], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_it_pass(make_database("host"), options, monkeypatch, owns=True)


@pytest.mark.parametrize("options", ["NOCREATEROLE", "CREATEROLE NOINHERIT"])
def test_a_role_that_does_not_own_the_tables_joins_their_owner(
    make_database: Callable[..., Database], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_it_pass(make_database("host"), options, monkeypatch, owns=False)


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize("power", ["SUPERUSER", "BYPASSRLS", "CREATEROLE", "IN ROLE pg_read_all_data", ""])
def test_nobody_is_asked_to_make_the_migrating_role_a_member_of_who_may_more_than_own(
    make_database: Callable[..., Database], power: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("host")
    with deploying_as(database, "", monkeypatch, owns=False) as me:
        owner = f"host-{database.name}"
        database.sql(f'CREATE ROLE "{owner} 2" {power}')
        for table in ("{leads}", "{activities}"):
            database.sql(f'ALTER TABLE {table} OWNER TO "{owner} 2"')
        said = f"migrate as {owner} 2" if power not in ("SUPERUSER", "") else "does not own"
        with refused(database, said) as statements:
            granted = {line for line in statements if line.startswith(f'GRANT "{owner} 2"')}
            taken = [line for line in statements if " OWNER TO " in line]
            assert (2 if power == "SUPERUSER" else 0, 0 if power else 1) == (len(taken), len(granted))
        for line in taken:
            database.sql(line)
        assert [power != "SUPERUSER"] == database.sql(
            "SELECT pg_get_userbyid(relowner) = %s FROM pg_class WHERE oid = {leads_name}::regclass", f"{owner} 2"
        )
        assert [False] == database.sql("SELECT pg_has_role(%s, %s, 'MEMBER')", me, f"{owner} 2")
        database.sql_script(f'REASSIGN OWNED BY "{owner} 2" TO postgres; DROP ROLE "{owner} 2"')


def make_it_pass(database: Database, options: str, monkeypatch: pytest.MonkeyPatch, *, owns: bool) -> None:
    # roles are shared by the databases of a server: a schema of its own asks for roles of its own
    database = replace(database, overrides={"schema": f"s {database.name}"})
    monkeypatch.setenv("LEADPROTECT_SCHEMA", database.settings.schema)
    with deploying_as(database, options, monkeypatch, owns=owns):
        before = fingerprint_of_host(database)
        with refused(database, "may not create the schema") as statements:
            pass
        makes_roles = any(line.startswith("CREATE ROLE") for line in statements)
        assert makes_roles == (options != "CREATEROLE")
        for statement in statements:
            database.sql(statement)
        database.upgrade()
        assert database.revision() == HEAD
        assert owners_of(database) == {database.settings.role("owner"), database.settings.role("reader")}
        database.downgrade()
        database.upgrade()
        database.downgrade()
        # what the DBA granted is left, and nothing else
        assert {name.split()[0] for name in difference(before, fingerprint_of_host(database))} <= {"schema"}


def fingerprint_of_host(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings, only="host")


def owners_of(database: Database) -> set[str]:
    """Owners of everything in our schema."""
    return set(
        database.sql(
            "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relnamespace = {schema_name}::regnamespace "
            "UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = {schema_name}::regnamespace "
            "UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE oid = {schema_name}::regnamespace"
        )
    )


def test_roles_that_another_database_made_are_shared(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL 16 and later CREATEROLE alone can't join a role that somebody else made."""
    database = make_database("host")
    with deploying_as(database, "CREATEROLE", monkeypatch):
        with refused(database, "may not create the schema") as statements:
            joins = [line for line in statements if re.match(r'GRANT "[^"]*owner" TO ', line)]
            assert len(joins) == (1 if database.server.major >= 16 else 0)
        for statement in statements:
            database.sql(statement)
        database.upgrade()
    assert database.revision() == HEAD


@ONE_SERVER
def test_a_dba_may_make_the_schema_beforehand(make_database: Callable[..., Database]) -> None:
    database = make_database("host", schema="beforehand")
    database.sql("CREATE ROLE beforehand_owner")
    database.sql("CREATE SCHEMA beforehand AUTHORIZATION beforehand_owner")
    database.upgrade()
    assert database.revision() == HEAD
