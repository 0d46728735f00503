"""Whether what a downgrade left can be taken back by the revisions of today."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.privileges import Object, revoking
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg

# what the revisions of today take back: table -> its columns, for each revision that moves tables
_KEPT = (
    {"territories": "code name currency legal_framework suffix"},
    {
        "user_lead_assignments": (
            "lead_id territory user_id assigned_at assigned_by source activity_source activity_at activity_id"
        ),
        "user_lead_assignment_history": "lead_id territory id user_id assigned_at ended_at assigned_by source",
        "lead_protection_rules": (
            "user_id territory protection lead_id active effective_from effective_to made_at made_by shared_by"
        ),
    },
    {
        "lead_access_audit": (
            "lead_id at id user_id login role territory action outcome reason note correlation_id transaction_id basis"
        ),
    },
    {
        "lead_access_audit_seals": (
            "territory number hash previous run month row_count ids content row_checks first_at last_at sealed_at "
            "sealed_by origin snapshot transaction_id last_number settled_until detached_table"
        ),
        "audit_anchors": "anchored_at anchored_by",
    },
    {"denial_secret": "secret"},
    {"territory_vat_rates": "territory rate valid_from valid_to"},
    {
        "lead_handovers": (
            "lead_id id territory elsewhere direction state digest correlation_id began_at ended_at user_id login "
            "was_owner was_source"
        ),
    },
    {"unsettled_leads": "id lead_id"},
    {"contextless_writes": "id login at host_table with_context"},
    {
        "shadow_runs": "started_at started_by host_rls exempt_roles ended_at",
        "shadow_notes": "id login role application kind host_table reason first_at last_at times",
    },
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
    {"guard_runs": "run command began revision guard login started_at heartbeat_at ended_at state reason"},
    {"accepted_conditions": "condition accepted_at accepted_by share"},
)


def foreign_quarantine(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """A schema of the quarantine's name that is not ours, or in which others have something or may put it."""
    owner, me = s.role("owner"), s.quarantine
    found = conn.execute(
        """
        SELECT n.oid, pg_get_userbyid(n.nspowner)::text, ARRAY(
                 SELECT DISTINCT coalesce(r.rolname, 'PUBLIC')::text FROM aclexplode(n.nspacl) AS acl
                 LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
                 WHERE acl.privilege_type = 'CREATE' AND acl.grantee <> n.nspowner ORDER BY 1)
        FROM pg_namespace AS n WHERE n.nspname = %s
        """,
        (me,),
    ).fetchone()
    if found is None:
        return []
    oid, its_owner, roles = found
    if its_owner != owner:
        statements.append(f"ALTER SCHEMA {ident(me)} RENAME TO {ident(me + '_of_others')};")
        whose = f"schema {me} exists and belongs to {its_owner}, not to {owner}: it is not leadprotect's quarantine"
        return [f"{whose}, and its owner could drop what is moved there; rename it"]
    problems = []
    for role in roles:
        problems.append(f"role {role} may create in {me}: what it puts there would be taken for leadprotect's own")
        statements.append(revoking(conn, Object("schema", oid, f"SCHEMA {ident(me)}"), role, "CREATE"))
    objects = conn.execute(
        """
        SELECT name, pg_get_userbyid(owner)::text FROM (
          SELECT relname::text, relowner FROM pg_class
          WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind NOT IN ('i', 'I', 't')
          UNION SELECT proname::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
          UNION SELECT typname::text, typowner FROM pg_type
            WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')) AS kept (name, owner)
        WHERE pg_get_userbyid(owner) <> %(owner)s ORDER BY 1 LIMIT 10
        """,
        {"schema": ident(me), "owner": owner},
    ).fetchall()
    return problems + [f"{me}.{name} belongs to {whose}, not to {owner}: move it away" for name, whose in objects]


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
