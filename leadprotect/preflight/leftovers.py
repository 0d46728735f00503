"""Whether what a downgrade left can be taken back by the revisions of today."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg

# what the revisions of today take back: table -> its columns, for each revision that moves tables
_KEPT = (
    {
        "territories": "code name currency legal_framework",
        "territory_vat_rates": "territory rate valid_from valid_to",
        "user_lead_assignments": "lead_id territory user_id assigned_at assigned_by source activity_at activity_id",
        "user_lead_assignment_history": "lead_id territory id user_id assigned_at ended_at assigned_by source",
        "lead_protection_rules": (
            "user_id territory protection lead_id active effective_from effective_to made_at made_by"
        ),
        "lead_access_audit": (
            "lead_id at id user_id login role territory action outcome reason note correlation_id transaction_id"
        ),
        "lead_access_audit_seals": (
            "territory number hash previous run month row_count ids content row_checks first_at last_at sealed_at "
            "sealed_by origin snapshot transaction_id last_number settled_until detached_table"
        ),
    },
    {"contextless_writes": "id login at host_table with_context", "unsettled_leads": "id lead_id"},
    {
        "backfill_jobs": (
            "territory registered_at started_at ended_at finished_at request request_reason next_lead exhausted "
            "chunks retried"
        ),
        "backfill_chunks": (
            "territory chunk next_lead last_lead worker token lease lease_until scanned assigned finished_at"
        ),
        "backfill_deferred": "territory lead_id reason deferred_at",
    },
)


def leftovers(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Tables that a downgrade left must be what the revisions would make today."""
    columns = conn.execute(
        """
        SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL) FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        ORDER BY 1, 2
        """,
        (ident(s.quarantine),),
    ).fetchall()
    hint = "correct the setting, or delete the quarantine with leadprotect purge"
    types = {"lead_id": s.lead_id_type, "user_id": s.user_id_type}
    found = [
        f"{column}_type: the quarantine holds {s.quarantine}.{name}.{column} as {kind}, the setting says "
        f"{types[column]}; {hint}"
        for name, column, kind in columns
        if column in types and kind != types[column]
    ]
    for tables in _KEPT:
        standing = {kept for kept, _, _ in columns} & set(tables)
        for name, wanted in tables.items():
            missing = set(wanted.split()) - {column for kept, column, _ in columns if kept == name}
            if standing and missing:
                found.append(
                    f"the quarantine table {s.quarantine}.{name} lacks {', '.join(sorted(missing))}: it was left by "
                    "another version; upgrade with that version, or delete the quarantine with leadprotect purge"
                )
    return found
