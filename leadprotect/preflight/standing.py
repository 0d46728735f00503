"""Whether what the version table names as applied stands in the database: a number proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.database.catalog import relation
from leadprotect.database.statements import rows
from leadprotect.preflight.applied import made_with
from leadprotect.settings.names import (
    CHILD_POLICIES,
    CHILD_TRIGGERS,
    HOST_POLICIES,
    HOST_TRIGGERS,
    NOT_APPENDED,
    unmade,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import LeadTable, Settings

_TABLES = {
    "lp_0001_expand_territories": "territories revision_undo",
    "lp_0002_expand_assignments": "user_lead_assignments user_lead_assignment_history lead_protection_rules",
    "lp_0003_expand_audit": "lead_access_audit",
    "lp_0004_expand_seals": "lead_access_audit_seals audit_anchors",
    "lp_0006_expand_attempts": "denial_secret",
    "lp_0007_expand_ownership": "territory_vat_rates",
    "lp_0008_expand_rules": "lead_handovers",
    "lp_0009_expand_indexes": "unsettled_leads",
    "lp_0010_expand_lead_triggers": "contextless_writes",
    "lp_0011_expand_activity_triggers": "shadow_runs shadow_notes",
    "lp_0012_migrate_backfill": "backfill_jobs backfill_chunks backfill_deferred",
    "lp_0013_migrate_verification": "guard_runs",
    "lp_0015_migrate_gate": "accepted_conditions",
    "lp_0017_contract_enforce": "host_row_security",
    "lp_0019_contract_lead_tables": "lead_table_row_security",
}
TAKEN_AWAY = (
    "leadprotect host-change took its holds off the host's tables, and the leads are closed until they are put back: "
    "leadprotect host-change --resume"
)
_ENFORCES = "lp_0017_contract_enforce"
_TRIGGERS = (
    "audit_edit",
    "audit_edits",
    "audit_truncate",
    "refuse_move",
    "refuse_taken",
    "own_new",
    "audit_stepped",
    "follow_new",
    "follow_column",
    "hide_column",
    "forget",
    "forget_id",
    "forget_all",
)
_ENFORCES_CHILDREN = "lp_0019_contract_lead_tables"
# where the host had row security, its own permissive policies decide
_ONLY_WITHOUT_OWN = "rows"
_ONLY_WITHOUT_OWN_ON_CHILD = "child_rows"


def taken_away(conn: AnyConnection, s: Settings) -> bool:
    """Whether our tables wait in the quarantine and not in the schema: after a rollback, or inside of a host-change.

    The version table tells the two apart: it goes on naming what a host-change is to put back.
    """
    return bool(relation(conn, s.quarantine, "territories")) and not relation(conn, s.schema, "territories")


def lacking(conn: AnyConnection, s: Settings, applied: Iterable[str]) -> list[str]:
    """What the revisions `applied` made and is gone: tables of ours, and what contract put on the host's leads."""
    known = list(applied)
    found = lost_tables(conn, s, known)
    made = made_with(conn, s) or s  # what was changed since is said as that
    if made.host_rls == "off":
        return found
    found += _on_leads(conn, made) if _ENFORCES in known else []
    children = made.lead_tables if _ENFORCES_CHILDREN in known else ()
    return found + [lost for child in children for lost in _on_child(conn, s, child)]


def lost_tables(conn: AnyConnection, s: Settings, applied: Iterable[str]) -> list[str]:
    """The tables that the revisions `applied` made and that are gone, in their order."""
    wanted = [name for revision in applied for name in _TABLES.get(revision, "").split()]
    query = """
        SELECT wanted.name FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS wanted (name, place)
        WHERE NOT EXISTS (
          SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
          WHERE n.nspname = %s AND c.relname = wanted.name AND c.relkind IN ('r', 'p'))
        ORDER BY wanted.place
        """
    return [f"{s.schema}.{name}" for (name,) in rows(conn, query, (wanted, s.schema))]


def furthest(conn: AnyConnection, s: Settings) -> str | None:
    """The last revision whose tables stand: the least that is applied, for whoever may not read the version table."""
    gone = {name.removeprefix(f"{s.schema}.") for name in lost_tables(conn, s, _TABLES)}
    return max((one for one, tables in _TABLES.items() if not gone & set(tables.split())), default=None)


def _on_leads(conn: AnyConnection, s: Settings) -> list[str]:
    policies = [policy for policy in HOST_POLICIES if policy not in {_ONLY_WITHOUT_OWN, *unmade(s)}]
    triggers = [HOST_TRIGGERS[trigger] for trigger in _TRIGGERS if trigger not in unmade(s)]
    return _on_host(conn, s, s.leads_table, policies, triggers)


def _on_child(conn: AnyConnection, s: Settings, child: LeadTable) -> list[str]:
    unless = {_ONLY_WITHOUT_OWN_ON_CHILD, *(NOT_APPENDED if child.append else [])}
    wanted = [[one for one in names if one not in unless] for names in (CHILD_POLICIES, CHILD_TRIGGERS.values())]
    return [
        lost if lost.endswith(child.table) else f"{lost} on {child.table}"
        for lost in _on_host(conn, s, child.table, *wanted)
    ]


def _on_host(conn: AnyConnection, s: Settings, table: str, policies: list[str], triggers: list[str]) -> list[str]:
    query = """
        SELECT CASE WHEN NOT c.relrowsecurity THEN ARRAY['row security of ' || %s::text] ELSE '{}' END || ARRAY(
          SELECT 'policy ' || wanted FROM pg_catalog.unnest(%s::text[]) AS wanted
          WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = wanted))
          || ARRAY(
          SELECT 'trigger ' || wanted || CASE WHEN t.oid IS NULL THEN '' ELSE ', which does not fire always' END
          FROM pg_catalog.unnest(%s::text[]) AS wanted
          LEFT JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = wanted
          WHERE t.tgenabled IS DISTINCT FROM 'A')
        FROM pg_catalog.pg_class AS c WHERE c.oid = %s
        """
    named = ([s.role(name) for name in names] for names in (policies, triggers))
    found = rows(conn, query, (table, *named, relation(conn, *table.split(".", 1))))
    return list(found[0][0]) if found else [f"the table {table}"]
