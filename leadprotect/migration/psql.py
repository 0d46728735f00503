"""A rollback as a script for psql: for a machine that has neither Python nor us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.modes import MODES, in_sql
from leadprotect.database.opening import PINNED
from leadprotect.errors import InvalidRequest
from leadprotect.migration import locks, undo, version_table
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, ident, literal, render, table
from leadprotect.settings.sources import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from leadprotect.migration.undo import Undo

_ATTEMPTS = 60
# psql has no loops: the locks are taken first, by a block that has, and given back before it waits
_LOCKS = """\
DO $locks$
DECLARE
  failed integer := 0;
BEGIN
  LOOP
    BEGIN
      {locks}
      EXIT;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      failed := failed + 1;
      IF failed = {attempts} THEN
        RAISE EXCEPTION 'no lock on the tables of the host: end who holds it, and run the same script again';
      END IF;
      RAISE WARNING 'no lock in time; trying again';
      PERFORM pg_sleep(0.25 + random() * 0.25);
    END;
  END LOOP;
END
$locks$;"""
_ALONE = """\
DO $alone$
DECLARE
  tries integer := 0;
BEGIN
  -- a session that has just ended may hold it for a moment
  WHILE NOT pg_try_advisory_lock(hashtextextended({name}, 0)) LOOP
    tries := tries + 1;
    IF tries = 20 THEN
      RAISE EXCEPTION 'another migration is running: nothing was touched';
    END IF;
    PERFORM pg_sleep(0.1);
  END LOOP;
END
$alone$;"""
# of a partitioned table no index is built CONCURRENTLY: that of each leaf is, then they are put together under the
# names that a revision gives them; what is there is asked when the script runs, and psql runs what each row says
_PARTED = """\
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass({source_name}) AND relkind = 'p') AS parted \\gset
\\if :parted
CREATE TEMP TABLE leadprotect_parts AS
SELECT t.relid::regclass::text AS name, t.isleaf, t.level, quote_ident(n.nspname) AS schema,
       CASE WHEN t.level > 0 THEN t.parentrelid::regclass::text END AS above,
       CASE WHEN t.level = 0 THEN {root} ELSE quote_ident({prefix} || left(encode(
         sha256(convert_to({root} || t.relid::regclass::text, 'UTF8')), 'hex'), 16)) END AS index
FROM pg_partition_tree(to_regclass({source_name})) AS t
JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace;
SELECT format('DROP INDEX %s.%s', p.schema, p.index) FROM leadprotect_parts AS p
JOIN pg_index AS i ON i.indexrelid = to_regclass(p.schema || '.' || p.index)
WHERE NOT (p.isleaf AND i.indisvalid) \\gexec
SELECT format('CREATE INDEX CONCURRENTLY %s ON %s ', p.index, p.name) || {shape} FROM leadprotect_parts AS p
WHERE p.isleaf AND to_regclass(p.schema || '.' || p.index) IS NULL ORDER BY p.name \\gexec
SET lock_timeout = '{lock_timeout}ms';
SELECT format('CREATE INDEX %s ON ONLY %s ', p.index, p.name) || {shape} FROM leadprotect_parts AS p
WHERE NOT p.isleaf ORDER BY p.level, p.name \\gexec
SELECT format('ALTER INDEX %s.%s ATTACH PARTITION %s.%s', up.schema, up.index, p.schema, p.index)
FROM leadprotect_parts AS p JOIN leadprotect_parts AS up ON up.name = p.above ORDER BY p.level DESC, p.name \\gexec
DROP TABLE leadprotect_parts;
\\else
{plain};
\\endif"""


def psql_script(conn: psycopg.Connection[Any], s: Settings, target: str) -> str:
    """What undoes everything above `target` (a revision, or "base"), one transaction per revision, by what each left.

    The same script again goes on where it stopped. Raises `InvalidRequest` where a revision left nothing, or
    `target` is not below the present one; `RollbackError` where what it left was changed.
    """
    path = _path(undo.kept_undo(conn, s), revision(conn, s), target)
    parts = [*_head(s), *(line for one in path for line in _step(one, s))]
    if path and path[-1].down_revision is None:
        parts.append(f"{version_table.dropping(s).strip()};")
    return "\n".join(parts) + "\n"


def _path(kept: dict[str, Undo], present: str | None, target: str) -> list[Undo]:
    found: list[Undo] = []
    name, end = present, None if target == "base" else target
    while name != end:
        if name is None:
            raise InvalidRequest(f"--to {target}: not below {present or 'the base'}, which is applied")
        if name not in kept:
            raise InvalidRequest(
                f"{name} left no way down: it was applied by the env.py of a host; go back with alembic downgrade"
            )
        found.append(kept[name])
        name = kept[name].down_revision
    return found


def _head(s: Settings) -> Iterator[str]:
    yield "\\set ON_ERROR_STOP on"
    yield "SET client_min_messages = warning;"
    for name, value in PINNED.items():
        yield f"SET {name} = {literal(value)};"
    yield _ALONE.format(name=literal(locks.lock_name(s)))


def _step(one: Undo, s: Settings) -> Iterator[str]:
    versions = ident(s.version_table_schema, s.version_table)
    outside = "COMMIT" in one.statements
    yield f"\n-- {one.revision}"
    yield f"SELECT to_regclass({literal(versions)}) IS NOT NULL AS standing \\gset"
    yield "\\if :standing"
    yield f"SELECT EXISTS (SELECT FROM {versions} WHERE version_num = {literal(one.revision)}) AS applied \\gset"
    yield "\\if :applied"
    yield "BEGIN;"
    yield f"SET LOCAL lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms';"
    if one.host_locks and not outside:
        yield _LOCKS.format(attempts=_ATTEMPTS, locks="\n      ".join(_host_locks(one, s)))
    built = _builds(s)
    for statement in (*one.statements, *undo.done(one, s), "COMMIT"):
        if statement != render("{refuse_partitions}", s).strip():  # psql can ask which there are
            yield built.get(statement, f"{statement};")
    yield f"SET lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms';"
    yield f"\\echo undid {one.revision}\n\\endif\n\\endif"


def _builds(s: Settings) -> dict[str, str]:
    """What builds the index of each table of activities, partitioned or not, by the statement that a revision left."""
    found = {}
    for source in filled(s):
        known = {key: render(source.fill(f"{{source_{key}}}"), s) for key in ("name", "index", "shape")}
        plain = render(source.fill("CREATE INDEX CONCURRENTLY {source_index} ON {source_table} {source_shape}"), s)
        found[plain] = _PARTED.format(
            source_name=known["name"], root=literal(known["index"]), prefix=literal(f"ix_{s.schema}_"),
            shape=literal(known["shape"]), plain=plain, lock_timeout=locks.LOCK_TIMEOUT_MS,
        )  # fmt: skip
    return found


def _host_locks(one: Undo, s: Settings) -> Iterator[str]:
    names = {"leads": s.leads_table, "activities": s.activities_table}
    for host, mode in sorted(one.host_locks.items()):
        if host in names and mode in MODES:
            yield f"LOCK TABLE {table(names[host])} IN {in_sql(mode)} MODE;"
