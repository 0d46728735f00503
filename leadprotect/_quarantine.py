"""Whether what a downgrade left can be taken back by the revisions of today."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg

# what a quarantine must hold to be taken back
_KEPT = {
    "user_lead_assignments": {"lead_id", "territory", "user_id", "source", "activity_at", "activity_id"},
    "lead_protection_rules": {"lead_id", "territory", "user_id", "protection", "effective_from", "effective_to"},
    "lead_access_audit": {"lead_id", "territory", "user_id", "at", "id", "login", "reason", "transaction_id"},
}


def quarantine(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
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
    for name, wanted in _KEPT.items():
        missing = wanted - {column for kept, column, _ in columns if kept == name}
        if columns and missing:
            found.append(
                f"the quarantine table {s.quarantine}.{name} lacks {', '.join(sorted(missing))}: it was left by "
                "another version; upgrade with that version, or delete the quarantine with leadprotect purge"
            )
    return found
