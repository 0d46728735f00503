"""Drops the two indexes on host tables that only the transition needed.

Why: they cost every write of the host, and nothing reads them after the backfill. They go before
anything is enforced, so that a downgrade opens the host's tables first and rebuilds indexes last.

Locks on host tables: SHARE UPDATE EXCLUSIVE on activities, then on leads (CONCURRENTLY: reads and
writes go on). The same for the way down, for the time of each build, or of both at once.

Undone by: building them again, CONCURRENTLY; not at all when the downgrade goes on to the base.
"""

from __future__ import annotations

from contextlib import nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, cast

from alembic import context, op
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from leadprotect.settings import activity_sources, load, names, render, sql

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from leadprotect.settings import SourceTable

revision = "lp_0016_contract_indexes"
down_revision = "lp_0015_migrate_gate"
branch_labels = None
depends_on = None
phase = "contract"
locks = {
    "upgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
    "downgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
}


def upgrade() -> None:
    require_transactions()
    try:
        ask_gate()
    except DBAPIError as error:
        stop_at_gate(error)
        raise
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        for source in activity_sources():
            drop(source)
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))


def downgrade() -> None:
    if not context.get_revision_argument():
        return  # on the way to the base nothing will read them
    require_transactions()
    refuse_partitions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))
        with beside("CREATE INDEX CONCURRENTLY {leads_index} ON {leads} ({territory_key}, {lead_id})"):
            for source in activity_sources():
                drop(source)
                build(source)


def beside(statement: str) -> AbstractContextManager[None]:
    """Carry it out: while the block lasts, where our env.py and the server have room for two builds, else before it."""
    known = names(settings := load(context.config))
    tables = [known[key] for key in ("leads", *(source.key("source_table") for source in activity_sources()))]
    room = op.get_context().opts.get("leadprotect_beside")
    # whoever builds beside an index on an expression waits for it, and his locks have a budget
    if room and not settings.territory_expression and (block := room(render(statement, settings), tables)):
        return cast("AbstractContextManager[None]", block)
    op.execute(sql(statement))
    return nullcontext()


def build(source: SourceTable) -> None:
    # No index of a partitioned table is built CONCURRENTLY: that of each leaf is, then they are put together.
    parts = partitions(source)
    if not parts:
        op.execute(sql(source.fill("CREATE INDEX CONCURRENTLY {source_index} ON {source_table} {source_shape}")))
        op.execute(sql(source.fill("COMMENT ON INDEX {source_index_path} IS {source_shape_name}")))
        return
    for part in parts:
        if part.leaf:
            op.execute(sql(source.fill(f"CREATE INDEX CONCURRENTLY {part.index_name} ON {part.name} {{source_shape}}")))
    # writers would wait behind what follows, so it must not wait itself; env.py tries again
    op.execute("SET lock_timeout = '100ms'")
    for part in reversed(parts):
        if not part.leaf:
            op.execute(sql(source.fill(f"CREATE INDEX {part.index_name} ON ONLY {part.name} {{source_shape}}")))
    for part in parts[:-1]:
        op.execute(sql(f"ALTER INDEX {part.above} ATTACH PARTITION {part.path}"))
    op.execute(sql(source.fill("COMMENT ON INDEX {source_index_path} IS {source_shape_name}")))
    wait_for_long_transactions()


def drop(source: SourceTable) -> None:
    # Of a partitioned table the whole goes with its root; what an interrupted build left stands alone.
    parts = partitions(source)
    if parts:
        op.execute("SET lock_timeout = '100ms'")
        for part in reversed(parts):
            op.execute(sql(f"DROP INDEX IF EXISTS {part.path}"))
        wait_for_long_transactions()
    else:
        if op.get_context().as_sql:
            # a script is written without the database: one that is partitioned has no index to drop CONCURRENTLY
            op.execute(
                sql(
                    source.fill("""
                    DO $do$
                    BEGIN
                      IF EXISTS (
                        SELECT FROM pg_catalog.pg_class AS c
                        WHERE c.oid = pg_catalog.to_regclass('{source_index_path}') AND c.relkind = 'I')
                      THEN
                        DROP INDEX {source_index_path};
                      END IF;
                    END
                    $do$
                    """)
                )
            )
        op.execute(sql(source.fill("DROP INDEX CONCURRENTLY IF EXISTS {source_index_path}")))


class Part(NamedTuple):
    """A partition of a table of activities, quoted: `index_name` is its index without, `path` with its schema."""

    name: str
    leaf: bool
    index_name: str
    path: str
    above: str | None


def partitions(source: SourceTable) -> list[Part]:
    """The partitions of a table of activities, the leaves first, itself the last; empty for a plain table."""
    if op.get_context().as_sql:
        return []
    known = names(load(context.config))
    query = """
        SELECT t.relid::regclass::text, t.isleaf, pg_catalog.quote_ident(n.nspname), t.parentrelid::regclass::text
        FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:host)) AS t
        JOIN pg_catalog.pg_class AS c ON c.oid = t.relid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE EXISTS (SELECT FROM pg_catalog.pg_class AS p WHERE p.oid = pg_catalog.to_regclass(:host) AND p.relkind = 'p')
        ORDER BY t.level DESC, t.relid
        """
    found = op.get_bind().execute(text(query), {"host": known[source.key("source_table")]}).fetchall()
    root, ours = known[source.key("source_index")], known["schema"][1:-1]
    called = {
        name: root if above is None else f'"ix_{ours}_{sha256((root + name).encode()).hexdigest()[:16]}"'
        for name, _, _, above in found
    }
    paths = {name: f"{schema}.{called[name]}" for name, _, schema, _ in found}
    return [Part(name, leaf, called[name], paths[name], paths.get(above)) for name, leaf, _, above in found]


def require_transactions() -> None:
    # Indexes are built outside of a transaction: one transaction for all would be committed halfway.
    if not op.get_context().opts.get("transaction_per_migration"):
        raise CommandError(
            "leadprotect's revisions need a transaction each, and this env.py makes one for all; nothing was touched. "
            "Write transaction_per_migration=True into the calls of context.configure() in your env.py"
        )


def refuse_partitions() -> None:
    # A script is written without the database, and can't name the partitions that an index needs one by one.
    if op.get_context().as_sql:
        op.execute(sql("{refuse_partitions}"))


def wait_for_long_transactions() -> None:
    # Nobody queues behind a CONCURRENTLY build but DDL: it may wait as long as env.py's budget lasts,
    # or without end where no env.py sets one.
    op.execute(
        "SELECT pg_catalog.set_config('lock_timeout', "
        "coalesce(nullif(pg_catalog.current_setting('leadprotect.lock_budget', true), ''), '0'), false)"
    )
    op.execute("SET statement_timeout = 0")


def stop_at_gate(error: DBAPIError) -> None:
    # Our own env.py knows a closed gate by its SQLSTATE; a host's would show a stack trace.
    closed = getattr(error.orig, "sqlstate", None) == "LP409"
    if closed and not op.get_context().opts.get("leadprotect"):
        raise CommandError(f"{str(error.orig).splitlines()[0]}; all before {revision} is applied") from None


def ask_gate() -> None:
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        SELECT {schema}.require_open_gate({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[], {lead_tables});
        RESET ROLE
        """)
    )
