"""A host with row security of its own: a table that looks empty must never look finished."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.doctor.status import status
from leadprotect.migration import gate
from leadprotect.planning.refusals import refusals
from tests.migrations.test_preflight import deploying_as, refused, state
from tests.support.fingerprint import difference
from tests.support.revisions import HEAD
from tests.support.revisions import MIGRATE_HEAD as MIGRATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

ENABLE = "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
TABLES = pytest.mark.parametrize("table", ["{leads}", "{activities}"])


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def closed(database: Database) -> list[str]:
    """The conditions of the gate that are false."""
    with database.connect() as conn:
        return [found.name for found in gate.conditions(conn, settings=database.settings) if not found.met]


@TABLES
def test_a_host_table_whose_rows_are_hidden_is_refused_until_the_printed_script_ran(host: Database, table: str) -> None:
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    host.sql(ENABLE.replace("{table}", table))
    with refused(host, "has row-level security, and no policy lets ") as statements:
        for statement in statements:
            host.sql(statement)
    host.upgrade()
    assert host.revision() == MIGRATE
    assert closed(host) == ["owners"]
    assert run("backfill", "DE")[0] == 0
    assert host.owner(lead) == host.user(1)
    host.upgrade()
    assert host.revision() == HEAD
    host.downgrade()
    kept = "SELECT polname::text FROM pg_policy WHERE polrelid IN ({leads_name}::regclass, {activities_name}::regclass)"
    assert host.sql(kept) == [f"read_for_{host.settings.role('reader')}"]


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize("options", ["NOCREATEROLE", "CREATEROLE"])
def test_the_script_also_makes_the_role_that_its_policy_names(
    make_database: Callable[..., Database], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("host")
    database = replace(database, overrides={"schema": f"v {database.name}"})
    monkeypatch.setenv("LEADPROTECT_SCHEMA", database.settings.schema)
    for table in ("{leads}", "{activities}"):
        database.sql(ENABLE.replace("{table}", table))
    with deploying_as(database, options, monkeypatch):
        with refused(database, "has row-level security") as statements:
            pass
        for statement in statements:
            database.sql(statement)
        database.upgrade()
        assert database.revision() == HEAD


@pytest.mark.profiles("pg18", "pg15")
def test_what_hides_rows_and_what_would_fail_for_our_reader_is_said_at_once(host: Database) -> None:
    host.sql("CREATE SCHEMA tenancy; CREATE TABLE tenancy.tenants (code text)")
    host.sql("CREATE FUNCTION tenancy.may(code text) RETURNS boolean LANGUAGE sql RETURN code = 'a'")
    host.sql("REVOKE ALL ON FUNCTION tenancy.may FROM PUBLIC")
    host.sql(ENABLE.replace("{table}", "{leads}"))
    for name, condition in (("asks", "EXISTS (SELECT FROM tenancy.tenants AS t)"), ("calls", "tenancy.may('a')")):
        host.sql(f"CREATE POLICY {name} ON {{leads}} USING ({condition})")
    host.sql("CREATE POLICY harmless ON {leads} USING (current_user = 'somebody')")
    with host.connect(autocommit=True) as conn:
        foretold = refusals(conn, host.settings, None)
    asked = [one.partition(", which may not use what it asks: ")[2] for one in foretold.problems]
    assert [what for what in asked if what] == ["tenancy.tenants", "tenancy.may(text)"]
    with refused(host, "no policy lets ") as statements:
        assert {*foretold.statements} == {*statements}
        for statement in statements:
            host.sql(statement)
    host.upgrade(MIGRATE)
    assert host.revision() == MIGRATE


def test_a_policy_for_everybody_is_enough(host: Database) -> None:
    host.sql(ENABLE.replace("{table}", "{leads}"))
    host.sql("CREATE POLICY everybody ON {leads} USING (true)")
    host.upgrade()
    assert host.revision() == HEAD


def test_a_policy_that_hides_some_rows_is_not_enough(host: Database) -> None:
    host.sql(ENABLE.replace("{table}", "{leads}"))
    host.sql("CREATE POLICY one ON {leads} USING ({territory} = 'DE')")
    host.sql("CREATE POLICY writing ON {leads} FOR UPDATE USING (true)")
    with refused(host, "has row-level security, and no policy lets "):
        pass


def test_a_restrictive_policy_must_not_bind_the_owner(host: Database) -> None:
    host.sql(ENABLE.replace("{table}", "{leads}"))
    host.sql("CREATE POLICY everybody ON {leads} USING (true)")
    host.sql("CREATE POLICY tenant ON {leads} AS RESTRICTIVE USING ({territory} = 'DE')")
    with refused(host, "the restrictive policy tenant on ") as statements:
        assert statements == []
    host.sql("ALTER POLICY tenant ON {leads} TO pg_monitor")
    host.upgrade()
    assert host.revision() == HEAD


@TABLES
def test_rows_that_are_hidden_later_close_the_gate_and_stop_backfill_and_verification(
    expanded: Database, table: str
) -> None:
    expanded.activity(expanded.lead("DE"), expanded.user(1))
    expanded.sql("DELETE FROM {schema}.user_lead_assignments")
    expanded.sql(ENABLE.replace("{table}", table))
    with expanded.connect() as conn:
        found = gate.conditions(conn, settings=expanded.settings)[0]
    assert (found.name, found.met) == ("visibility", False)
    for arguments in (["DE"], ["DE", "--dry-run"], ["--verify", "DE"]):
        code, output = run("backfill", *arguments)
        assert (code, "no policy lets " in output) == (1, True)
    script = expanded.script("upgrade", f"{MIGRATE}:head")
    with expanded.connect() as conn, pytest.raises(Exception, match="hides rows from"):
        conn.execute("\n".join(line for line in script.splitlines() if not line.startswith("\\")))
    assert found.remedy is not None
    expanded.sql(found.remedy.partition(";")[0])
    assert closed(expanded) == ["owners"]
    assert run("backfill", "DE")[0] == 0
    expanded.upgrade()
    assert expanded.revision() == HEAD


def test_a_restrictive_policy_closes_the_gate(expanded: Database) -> None:
    expanded.sql(ENABLE.replace("{table}", "{activities}"))
    expanded.sql("CREATE POLICY everybody ON {activities} USING (true)")
    assert closed(expanded) == []
    expanded.sql("CREATE POLICY tenant ON {activities} AS RESTRICTIVE USING (false)")
    assert closed(expanded) == ["visibility"]


# --- policies of the host that are for everybody, and so for our reader, and that fail for it

_MINE = "CREATE FUNCTION {host}.mine() RETURNS text LANGUAGE plpgsql STABLE AS "
FAILING = {
    "a table without its schema": (
        _MINE + "'BEGIN RETURN (SELECT code FROM tenants LIMIT 1); END'",
        "{host}.mine() = 'a'",
        'relation "tenants" does not exist',
    ),
    "a function without its schema": (
        "CREATE FUNCTION {host}.other() RETURNS text LANGUAGE sql RETURN 'a'; " + _MINE + "'BEGIN RETURN other(); END'",
        "{host}.mine() = 'a'",
        "function other() does not exist",
    ),
    "a table that our reader may not read": (
        "REVOKE ALL ON {host}.tenants FROM PUBLIC",
        "EXISTS (SELECT FROM {host}.tenants AS t WHERE t.code = 'a')",
        "permission denied for table tenants",
    ),
    "a setting that no session of ours has": (
        "SELECT 1",
        "current_setting('tenancy.tenant') = 'a'",
        'unrecognized configuration parameter "tenancy.tenant"',
    ),
    "a function that refuses": (
        _MINE + "$$ BEGIN RAISE EXCEPTION 'no tenant is set'; END $$",
        "{host}.mine() = 'a'",
        "no tenant is set",
    ),
}
failing = pytest.mark.parametrize(("made", "condition", "says"), FAILING.values(), ids=FAILING)


def add_failing_policy(database: Database, made: str, condition: str, table: str) -> str:
    """Row security for everybody, and the policy that preflight asks for our reader; returns the host's schema."""
    schema = '"tenancy"'
    database.sql(
        f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.tenants (code text); GRANT USAGE ON SCHEMA {schema} TO PUBLIC"
    )
    reader = database.settings.role("reader")
    if not database.sql("SELECT FROM pg_roles WHERE rolname = %s", reader):
        database.sql(f'CREATE ROLE "{reader}" NOLOGIN')
    if database.sql("SELECT FROM pg_roles WHERE rolname = 'tenancy_app'"):
        database.sql("DROP OWNED BY tenancy_app; DROP ROLE tenancy_app")
    database.sql(f"CREATE ROLE tenancy_app; GRANT SELECT ON {table} TO tenancy_app")
    database.sql(ENABLE.replace("{table}", table))
    database.sql(f"CREATE POLICY ours ON {table} FOR SELECT TO \"{reader}\" USING (current_user = '{reader}')")
    database.sql(made.replace("{host}", schema))
    # the name that comes first and the one that comes last: the order of policies decides nothing
    for name in ("a_tenant", "z_tenant"):
        database.sql(f"CREATE POLICY {name} ON {table} USING ({condition.replace('{host}', schema)})")
    return schema


def without_tenants(database: Database) -> None:
    database.sql("DROP OWNED BY tenancy_app CASCADE; DROP ROLE tenancy_app")


@pytest.mark.crossed("what fails, and in which table, are two questions")
@failing
@TABLES
def test_a_policy_that_fails_for_our_reader_is_refused_with_what_mends_it_and_leaves_nothing(
    host: Database, made: str, condition: str, says: str, table: str
) -> None:
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    add_failing_policy(host, made, condition, table)
    if "permission denied" in says:
        says = "may not use what it asks: tenancy.tenants"  # the catalog tells, before there is anything to try
    before = state(host)
    with pytest.raises(CommandError, match=re.escape(says)) as refused_by:
        host.upgrade()
    # roles belong to the whole server, and stay
    assert difference(before, state(host)).keys() <= {"roles", "members"}
    for statement in re.findall(r"ALTER POLICY [^;]+;", str(refused_by.value)):
        host.sql(statement)
    host.upgrade()
    assert run("backfill", "DE")[0] == 0
    host.upgrade()
    assert host.revision() == HEAD
    assert host.owner(lead) == host.user(1)
    host.downgrade("base")
    without_tenants(host)


@pytest.mark.crossed("what fails, and in which table, are two questions")
@failing
@TABLES
def test_a_policy_that_fails_later_closes_the_gate_is_named_and_does_not_stop_the_way_down(
    expanded: Database, made: str, condition: str, says: str, table: str
) -> None:
    expanded.activity(expanded.lead("DE"), expanded.user(1))
    assert run("doctor")[0] == 0
    add_failing_policy(expanded, made, condition, table)
    assert closed(expanded) == ["visibility"]
    for arguments in (["DE"], ["DE", "--dry-run"], ["--verify", "DE"]):
        code, output = run("backfill", *arguments)
        assert (code, says in output, "not installed" in output) == (1, True, False)
    with expanded.connect() as conn:
        (waits,) = [found for found in status(conn, settings=expanded.settings).conditions if not found.met]
    assert says in waits.detail
    code, output = run("doctor")
    assert (code, "host-unreadable" in output, says in output) == (1, True, True)
    expanded.downgrade("base")
    assert expanded.revision() is None
    without_tenants(expanded)
