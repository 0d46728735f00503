"""Event triggers of the host, which run inside our DDL: named where one of them makes it fail."""

from __future__ import annotations

from typing import Any

import psycopg

from leadprotect.settings import Settings, ident

_NO_PRIVILEGE = "42501"


def culprit(conn: psycopg.Connection[Any], error: BaseException, settings: Settings) -> str | None:
    """Which event trigger raised `error`, whose rights it has, and what to do; None where none did."""
    origin: Any = getattr(error, "orig", error)
    context = origin.diag.context if isinstance(origin, psycopg.Error) else None
    if not context:
        return None
    query = """
        SELECT e.evtname::text, p.oid::regprocedure::text, p.proname::text, pg_get_userbyid(p.proowner)::text,
               p.prosecdef, current_user::text
        FROM pg_event_trigger AS e JOIN pg_proc AS p ON p.oid = e.evtfoid
        WHERE e.evtenabled <> 'D' ORDER BY e.evtname
        """
    for trigger, function, name, owner, definer, login in conn.execute(query).fetchall():
        # the lines of a context name the functions that were under way, in no language but their own
        if f"{name}()" not in context and f"{ident(name)}()" not in context:
            continue
        said = f"the event trigger {trigger} of this database failed in its function {function}, not leadprotect"
        if origin.sqlstate != _NO_PRIVILEGE:
            return f"{said}; its owner {owner} can say why, or disable it for the migration"
        if definer:
            return f"{said}; it runs with the rights of its owner {owner}, who lacks what it needs"
        roles = " or ".join(dict.fromkeys((login, settings.role("owner"))))
        return (
            f"{said}; it runs with the rights of {roles}. A DBA can grant them what it needs, or let it run with "
            f"those of its owner {owner}: ALTER FUNCTION {function} SECURITY DEFINER;"
        )
    return None
