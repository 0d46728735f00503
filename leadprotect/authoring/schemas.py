"""What schemas are and what they hold, as text that two moments can be compared by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadprotect.settings import ident

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

# One row per object: what it is, its name, and everything about it that a dump would hold. An empty
# access list means the default one, so both are written out; [[...]] is an access list.
_OBJECTS = """
WITH wanted AS (SELECT n.* FROM pg_namespace AS n WHERE n.nspname = ANY (%(schemas)s)),
relations AS (
  SELECT c.*, w.nspname FROM pg_class AS c JOIN wanted AS w ON w.oid = c.relnamespace
  WHERE NOT (w.nspname = %(version_schema)s AND c.relname LIKE %(version_table)s)),
routines AS (SELECT p.*, w.nspname FROM pg_proc AS p JOIN wanted AS w ON w.oid = p.pronamespace)
SELECT 'schema', format('%%I', nspname), concat_ws(' | ', concat('owner ', nspowner::regrole),
         [[coalesce(nspacl, acldefault('n', nspowner))]], obj_description(oid, 'pg_namespace'))
FROM wanted
UNION ALL
SELECT 'relation', format('%%I.%%I', nspname, relname), concat_ws(' | ',
         relkind, relpersistence, concat('owner ', relowner::regrole),
         concat('row security ', relrowsecurity, relforcerowsecurity),
         concat('identity ', relreplident), array_to_string(reloptions, ','), pg_get_expr(relpartbound, oid),
         CASE WHEN relkind = 'p' THEN pg_get_partkeydef(oid) END,
         CASE WHEN relkind = 'v' THEN pg_get_viewdef(oid) END,
         [[coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))]],
         obj_description(oid, 'pg_class'))
FROM relations WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
UNION ALL
SELECT 'column', format('%%I.%%I.%%I', r.nspname, r.relname, a.attname), concat_ws(' | ',
         row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod),
         CASE WHEN a.attnotnull THEN 'NOT NULL' END, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
         a.attcollation, [[a.attacl]], col_description(r.oid, a.attnum))
FROM relations AS r
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
WHERE r.relkind IN ('r', 'p', 'v')
UNION ALL
SELECT 'constraint', format('%%I.%%I %%I', r.nspname, r.relname, c.conname),
         concat_ws(' | ', pg_get_constraintdef(c.oid), concat('validated ', c.convalidated),
           obj_description(c.oid, 'pg_constraint'))
FROM relations AS r JOIN pg_constraint AS c ON c.conrelid = r.oid
UNION ALL
SELECT 'index', format('%%I.%%I', r.nspname, r.relname),
         concat_ws(' | ', pg_get_indexdef(r.oid), concat('valid ', i.indisvalid), concat('ready ', i.indisready))
FROM relations AS r JOIN pg_index AS i ON i.indexrelid = r.oid
UNION ALL
SELECT 'policy', format('%%I.%%I %%I', r.nspname, r.relname, p.polname), concat_ws(' | ',
         p.polcmd, concat('permissive ', p.polpermissive),
         ARRAY(SELECT role::regrole::text FROM unnest(p.polroles) AS role ORDER BY 1),
         pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM relations AS r JOIN pg_policy AS p ON p.polrelid = r.oid
UNION ALL
SELECT 'trigger', format('%%I.%%I %%I', r.nspname, r.relname, t.tgname),
         concat_ws(' | ', pg_get_triggerdef(t.oid), concat('enabled ', t.tgenabled))
FROM relations AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
UNION ALL
SELECT 'function', oid::regprocedure::text,
       concat_ws(' | ', pg_get_functiondef(oid), concat('owner ', proowner::regrole),
         [[coalesce(proacl, acldefault('f', proowner))]], obj_description(oid, 'pg_proc'))
FROM routines WHERE prokind IN ('f', 'p')
UNION ALL
SELECT 'type', format('%%I.%%I', w.nspname, t.typname), concat_ws(' | ', concat('owner ', t.typowner::regrole),
         ARRAY(SELECT e.enumlabel FROM pg_enum AS e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder),
         [[coalesce(t.typacl, acldefault('T', t.typowner))]], obj_description(t.oid, 'pg_type'))
FROM wanted AS w JOIN pg_type AS t ON t.typnamespace = w.oid AND t.typtype IN ('e', 'd')
UNION ALL
SELECT 'sequence', format('%%I.%%I', r.nspname, r.relname),
         concat_ws(' | ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqcycle,
           (SELECT format('owned by %%s.%%s', d.refobjid::regclass, d.refobjsubid) FROM pg_depend AS d
            WHERE d.objid = r.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'a'))
FROM relations AS r JOIN pg_sequence AS s ON s.seqrelid = r.oid
UNION ALL
SELECT 'default privileges', format('%%s %%s', w.nspname, a.defaclobjtype), [[a.defaclacl]]
FROM wanted AS w JOIN pg_default_acl AS a ON a.defaclnamespace = w.oid
"""

_ACCESS = r"""(SELECT string_agg(format('%%s to %%s by %%s%%s', e.privilege_type,
           CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE e.grantee::regrole::text END, e.grantor::regrole,
           CASE WHEN e.is_grantable THEN ' grantable' END), ', ' ORDER BY e.privilege_type, e.grantee::regrole::text)
  FROM aclexplode(\1) AS e)"""
_OBJECTS = re.sub(r"\[\[(.*?)\]\]", _ACCESS, _OBJECTS)


def catalog(
    conn: psycopg.Connection[Any], schemas: Iterable[str], *, but: tuple[str, str] = ("", "")
) -> dict[str, str]:
    """Every object of these schemas -> its definition; `but` a version table (schema, name), which comes and goes."""
    params = {"schemas": sorted(schemas), "version_schema": but[0], "version_table": but[1] + "%"}
    with conn.transaction():
        conn.execute("SET LOCAL search_path = pg_catalog")
        return {f"{kind} {name}": definition for kind, name, definition in conn.execute(_OBJECTS, params).fetchall()}


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What changed: name -> before and after, None for what is not there."""
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def tables_in(conn: psycopg.Connection[Any], schemas: Iterable[str]) -> list[tuple[str, str]]:
    """Schema and name of every table with rows of its own."""
    found = conn.execute(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'r' AND n.nspname = ANY (%s) ORDER BY 1, 2",
        (sorted(schemas),),
    )
    return [(schema, name) for schema, name in found.fetchall()]


def contents_of(conn: psycopg.Connection[Any], names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Table -> its rows as text, sorted; those of a table that is not there are none."""
    found = {}
    for schema, name in names:
        here = conn.execute("SELECT pg_catalog.to_regclass(%s)", (ident(schema, name),)).fetchone() != (None,)
        query = f"SELECT pg_catalog.to_jsonb(t)::text FROM {ident(schema, name)} AS t ORDER BY 1"
        found[f"{schema}.{name}"] = [row[0] for row in conn.execute(query).fetchall()] if here else []
    return found
