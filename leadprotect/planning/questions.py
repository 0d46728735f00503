"""The gate's own questions, by the text of the functions that the migrate step makes: asked before it stands, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.doctor.shipped import shipped_script
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg


def ask_as_gate(
    conn: psycopg.Connection[Any],
    s: Settings,
    function: str,
    *,
    target: int,
    label: str,
    borders: Mapping[str, str] | None = None,
) -> list[tuple[Any, ...]]:
    """What a function of the gate that is one query would answer about the table `target`, called `label`.

    `borders` maps the territories, which may not stand in the database yet, to their roles.
    A login that may not call it may ask all the same: it reads the catalog alone.
    """
    # the arguments of the function are columns beside it, by the same names
    asked = f"""
        SELECT found.* FROM (
          SELECT %(target)s::oid::regclass AS target, %(label)s::text AS what,
                 %(host_rls)s::text AS host_rls, %(exempt)s::name[] AS exempt_roles,
                 %(codes)s::text[] AS codes, %(borders)s::name[] AS borders) AS given
        CROSS JOIN LATERAL ({_query(s, function).replace("%", "%%")}) AS found
        """
    values = {"target": target, "host_rls": s.host_rls, "exempt": list(s.exempt_roles), "label": label}
    values |= {"codes": [*(borders or {})], "borders": [*(borders or {}).values()]}
    return conn.execute(asked.encode(), values).fetchall()


def _query(s: Settings, function: str) -> str:
    (revision,) = (name for name in phases.chain() if name.endswith("_migrate_ways"))
    made = shipped_script(s, (revision,)).partition(f"CREATE FUNCTION {ident(s.schema)}.{function}(")[2]
    return made.split("$body$")[1].partition("RETURN QUERY")[2].rpartition(";")[0]
