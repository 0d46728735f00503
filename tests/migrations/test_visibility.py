"""A host with row security of its own: a table that looks empty must never look finished."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.migration import gate
from tests.migrations.test_preflight import deploying_as, refused
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
