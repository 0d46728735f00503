"""What the host named like something of ours: refused before it is in the way, and never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from leadprotect.settings import ident
from leadprotect.settings.names import HOST_POLICIES, HOST_TRIGGERS
from tests.migrations.test_preflight import refused
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

TRIGGERS = sorted(HOST_TRIGGERS.values())
TABLES = ("leads", "activities")
MADE = "FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()"


def trigger(database: Database, name: str, table: str) -> str | None:
    """Make a trigger of the host of our name; None where ours stands already."""
    made = database.settings.role(name)
    try:
        database.sql_script(f"CREATE TRIGGER {ident(made)} BEFORE UPDATE ON {{{table}}} {MADE}")
    except psycopg.errors.DuplicateObject:
        return None
    return made


def drop(database: Database, name: str, table: str) -> None:
    database.sql_script(f"DROP TRIGGER {ident(name)} ON {{{table}}}")


def of_host(database: Database) -> list[str]:
    """Triggers and policies of the host's tables that are not ours, by name and table."""
    return database.sql(
        "SELECT 'trigger ' || t.tgname || ' on ' || t.tgrelid::regclass::text FROM pg_trigger AS t "
        "JOIN pg_proc AS p ON p.oid = t.tgfoid "
        "WHERE p.proname = 'suppress_redundant_updates_trigger' AND t.tgrelid IN (%s::regclass, %s::regclass) "
        "UNION ALL SELECT 'policy ' || polname || ' on ' || polrelid::regclass::text FROM pg_policy "
        "WHERE polrelid = %s::regclass ORDER BY 1",
        *(database.text(name) for name in ("{leads}", "{activities}", "{leads}")),
    )


@pytest.mark.crossed("a name, and the table where it stands, are two questions")
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_of_our_name_is_refused_at_the_base(host: Database, name: str, table: str) -> None:
    made = trigger(host, name, table)
    with refused(host, f"trigger {made} exists on the host's tables, but no revision of leadprotect is applied"):
        pass


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_of_our_name_is_refused_at_the_migrate_step(expanded: Database, name: str) -> None:
    refusals = 0
    for table in TABLES:
        if made := trigger(expanded, name, table):
            with refused(expanded, f"trigger {made} exists on the host's tables and is not leadprotect's: rename it"):
                refusals += 1
            assert MIGRATE_HEAD == expanded.revision()
            drop(expanded, made, table)
    assert (refusals == 0) == (name == "note_writes")  # ours stands on both tables
    if NIGHTLY or name == TRIGGERS[0]:
        expanded.upgrade()  # without it, nothing is in the way
        assert HEAD == expanded.revision()


@pytest.mark.parametrize("name", HOST_POLICIES)
def test_a_policy_of_our_name_is_refused_at_the_base(host: Database, name: str) -> None:
    made = host.settings.role(name)
    host.sql_script(f"CREATE POLICY {ident(made)} ON {{leads}}")
    with refused(host, f"policy {made} exists on the host's tables, but no revision of leadprotect is applied"):
        pass


@pytest.mark.parametrize("name", HOST_POLICIES)
def test_a_policy_of_our_name_is_refused_at_the_migrate_step(expanded: Database, name: str) -> None:
    made = expanded.settings.role(name)
    expanded.sql_script(f"CREATE POLICY {ident(made)} ON {{leads}}")
    with refused(expanded, f"policy {made} exists on the host's tables and is not leadprotect's: rename it"):
        pass
    assert MIGRATE_HEAD == expanded.revision()


@pytest.mark.parametrize("target", [MIGRATE_HEAD, "base"])
def test_what_the_host_made_after_contract_without_row_security_survives_the_way_down(
    make_database: Callable[..., Database], target: str
) -> None:
    """With host_rls = off nothing of these names is ours: the way down must not take the host's along."""
    database = make_database("expanded", host_rls="off")
    database.upgrade()
    assert [] == of_host(database)
    made = [
        trigger(database, name, "leads") for name in ("audit_edit", "audit_truncate", "refuse_move", "refuse_taken")
    ]
    assert None not in made
    for policy in HOST_POLICIES:
        database.sql_script(f"CREATE POLICY {ident(database.settings.role(policy))} ON {{leads}}")
    before = of_host(database)
    assert len(made) + len(HOST_POLICIES) == len(before)
    database.downgrade(target)
    assert before == of_host(database)
