"""The way down of each applied revision, kept in our schema for a version that does not know the revision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.database.catalog import relation
from leadprotect.database.drivers import driver_connection
from leadprotect.database.statements import as_role
from leadprotect.errors import RollbackError
from leadprotect.settings import Settings, ident, literal, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

TABLE = "revision_undo"


@dataclass(frozen=True)
class Undo:
    """How one revision is undone; `host_locks` names the strongest lock on each table of the host by its setting."""

    revision: str
    down_revision: str | None
    statements: tuple[str, ...]
    host_locks: dict[str, str]

    @property
    def hash(self) -> str:
        """SHA-256 of everything else, in hexadecimal."""
        said = [self.revision, self.down_revision, list(self.statements), sorted(self.host_locks.items())]
        return sha256(json.dumps(said).encode()).hexdigest()

    def parts(self) -> Iterator[tuple[bool, list[str]]]:
        """The statements in their order: whether these run in one transaction, or each outside of any."""
        inside, part = True, list[str]()
        for statement in (*self.statements, ""):
            if statement in ("COMMIT", "BEGIN", ""):
                yield inside, part
                inside, part = statement != "COMMIT", []
            else:
                part.append(statement)


def keep(ctx: Any, step: Any, s: Settings) -> None:
    """In the transaction of a step of Alembic: keep its way down, or forget it where it was gone."""
    if step.is_stamp or not hasattr(step.up_revision.module, "phase"):
        return
    statements = forgetting(step.up_revision_id, s)
    if step.is_upgrade:
        statements = keeping(_of(ctx, step.up_revision), s)
    if ctx.as_sql:
        if step.is_upgrade or step.down_revision_ids:
            ctx.impl.static_output(f"{statements};")
        return
    conn: Any = driver_connection(ctx.connection)
    if relation(conn, s.schema, TABLE):
        conn.execute(statements.encode())


def kept_undo(conn: psycopg.Connection[Any], s: Settings) -> dict[str, Undo]:
    """What is kept, by revision; empty where nothing is.

    Raises `RollbackError`, naming the revision, where its text is not what the upgrade wrote.
    """
    if not relation(conn, s.schema, TABLE):
        return {}
    with as_role(conn, s.role("owner")):
        found = stored(conn, s)
    for one, intact in found:
        if not intact:
            raise RollbackError(
                f"{s.schema}.{TABLE}: the way down of {one.revision} is not what the upgrade wrote: somebody changed "
                "it. Nothing was undone: roll back with the version of leadprotect that applied it"
            )
    return {one.revision: one for one, _ in found}


def contradicted(conn: psycopg.Connection[Any], s: Settings, heads: Sequence[str]) -> str | None:
    """What the version table, which names `heads`, says below what stands: it was lost, emptied or stamped."""
    if not relation(conn, s.schema, TABLE):
        return None
    with as_role(conn, s.role("owner")):
        left = {one.revision for one, _ in stored(conn, s)}
    chain = phases.chain()
    stands = max((one for one in left if one in chain), default=None)
    said = next((one for one in heads if one.startswith("lp_")), None)
    if stands is None or (said is not None and (said not in chain or said >= stands)):
        return None
    return (
        f"the version table says {said or 'that nothing is applied'}, but {s.schema} stands at {stands}: "
        f"the table was lost, or somebody stamped it. Nothing was touched. Run: alembic stamp {stands}"
    )


def stored(conn: psycopg.Connection[Any], s: Settings) -> list[tuple[Undo, bool]]:
    """What stands in the table, and whether its hash is that of its text; for the owner and for operators."""
    query = f"SELECT revision, down_revision, statements, host_locks, hash FROM {ident(s.schema, TABLE)} ORDER BY 1"
    found = []
    for revision, down_revision, statements, host_locks, said in conn.execute(query.encode()).fetchall():
        one = Undo(revision, down_revision, tuple(statements), host_locks)
        found.append((one, one.hash == said))
    return found


def done(one: Undo, s: Settings) -> list[str]:
    """The statements that say, in its transaction, that a revision is undone."""
    versions = ident(s.version_table_schema, s.version_table)
    where = f"WHERE version_num = {literal(one.revision)}"
    if one.down_revision is None:  # the table of ways down went with it
        return [f"DELETE FROM {versions} {where}"]
    # as who migrates, like Alembic: in a schema of the host our owner has no rights
    return [
        f"UPDATE {versions} SET version_num = {literal(one.down_revision)} {where}",
        forgetting(one.revision, s),
    ]


def _of(ctx: Any, script: Any) -> Undo:
    from leadprotect.migration import undoing  # noqa: PLC0415 - status and doctor need no Alembic

    statements = undoing.written([script], versions=(ctx.version_table_schema, ctx.version_table))
    locks = getattr(script.module, "locks", {}).get("downgrade", {})
    return Undo(script.revision, script.down_revision, tuple(filter(None, statements)), locks)


def keeping(one: Undo, s: Settings) -> str:
    """The statements that keep a way down, in a transaction of who acts for our owner."""
    statements = ", ".join(map(literal, one.statements))
    down = literal(one.down_revision) if one.down_revision else "NULL"
    values = ", ".join(
        (literal(one.revision), down, f"ARRAY[{statements}]::text[]", literal(json.dumps(one.host_locks)))
    )
    insert = (
        f"INSERT INTO {ident(s.schema, TABLE)} (revision, down_revision, statements, host_locks, hash) "
        f"VALUES ({values}, {literal(one.hash)}) ON CONFLICT (revision) DO UPDATE SET "
        "down_revision = excluded.down_revision, statements = excluded.statements, "
        "host_locks = excluded.host_locks, hash = excluded.hash, made_at = excluded.made_at"
    )
    return _as_owner(insert, s)


def forgetting(revision: str, s: Settings) -> str:
    """The statements that forget one."""
    return _as_owner(f"DELETE FROM {ident(s.schema, TABLE)} WHERE revision = {literal(revision)}", s)


def _as_owner(statement: str, s: Settings) -> str:
    return render("SET LOCAL ROLE {owner};\n", s) + statement + ";\nRESET ROLE"
