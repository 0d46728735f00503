"""Two indexes on host tables that the backfill reads.

Why: the backfill walks leads by (territory, id) and probes the newest qualifying activity of each;
without these it would read whole tables. They serve the transition only, contract drops them.

Locks on host tables: SHARE UPDATE EXCLUSIVE on leads, then on activities, for the time of each
build (CONCURRENTLY: reads and writes go on). It waits for older transactions, and nobody waits
for it but DDL and VACUUM. The same for the way down.

Undone by: DROP INDEX CONCURRENTLY.
"""

from collections.abc import Sequence

from alembic import context, op
from alembic.util import CommandError
from sqlalchemy import text

from leadprotect.settings import load, names, sql

revision = "lp_0009_expand_indexes"
down_revision = "lp_0008_expand_rules"
branch_labels = None
depends_on = None
phase = "expand"
locks = {
    "upgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
    "downgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
}


def upgrade() -> None:
    require_transactions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        refuse_strangers()
        create_leads_index()
        create_activities_index()


def downgrade() -> None:
    require_transactions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {activities_index_path}"))
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))


def require_transactions() -> None:
    # Indexes are built outside of a transaction: one transaction for all would be committed halfway.
    if not op.get_context().opts.get("transaction_per_migration"):
        raise CommandError(
            "leadprotect's revisions need a transaction each, and this env.py makes one for all; nothing was touched. "
            "Write transaction_per_migration=True into the calls of context.configure() in your env.py"
        )


def wait_for_long_transactions() -> None:
    # Nobody queues behind a CONCURRENTLY build but DDL: it may wait as long as env.py's budget lasts,
    # or without end where no env.py sets one.
    op.execute(
        "SELECT pg_catalog.set_config('lock_timeout', "
        "coalesce(nullif(pg_catalog.current_setting('leadprotect.lock_budget', true), ''), '0'), false)"
    )
    op.execute("SET statement_timeout = 0")


def create_leads_index() -> None:
    # Keyset of the backfill.
    if is_valid("leads_index_path", ()):
        return
    op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))
    op.execute(sql("CREATE INDEX CONCURRENTLY {leads_index} ON {leads} ({territory}, {lead_id})"))


def create_activities_index() -> None:
    # The newest qualifying activity of a lead is the first entry; the user comes from the index.
    if is_valid("activities_index_path", load(context.config).qualifying_kinds):
        return
    op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {activities_index_path}"))
    op.execute(
        sql("""
        CREATE INDEX CONCURRENTLY {activities_index} ON {activities}
          ({activity_lead_id}, {activity_at} DESC NULLS LAST, {activity_id} DESC) INCLUDE ({activity_user_id})
          WHERE {activity_kind} IN ({kinds}) AND {activity_user_id} IS NOT NULL
        """)
    )


def refuse_strangers() -> None:
    # What a cancelled build left is on our table and our columns; any other index of the name is the
    # host's, and neither dropped nor taken for ours.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          stranger text;
        BEGIN
          SELECT ours.path INTO stranger
          FROM (VALUES
            ('{leads_index_path}', {leads_name}, true, ARRAY[{territory_column_name}, {lead_id_column_name}]),
            ('{activities_index_path}', {activities_name}, false,
             ARRAY[{activity_lead_id_column_name}, {activity_at_column_name}, {activity_id_column_name},
                   {activity_user_id_column_name}])) AS ours (path, host, whole, columns)
          WHERE pg_catalog.to_regclass(ours.path) IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_index AS i
            WHERE i.indexrelid = pg_catalog.to_regclass(ours.path) AND i.indrelid = pg_catalog.to_regclass(ours.host)
              AND NOT i.indisunique AND (i.indpred IS NULL) = ours.whole
              AND ours.columns = ARRAY(
                SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
                LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
                ORDER BY k.place))
          LIMIT 1;
          IF stranger IS NOT NULL THEN
            RAISE EXCEPTION '% exists and is not the index of leadprotect: rename it', stranger
              USING ERRCODE = 'duplicate_table';
          END IF;
        END
        $do$
        """)
    )


def is_valid(index: str, kinds: Sequence[str]) -> bool:
    """Whether the index stands already, for these kinds: a cancelled build leaves an invalid one, to be rebuilt."""
    if context.is_offline_mode():
        return False
    query = """
        SELECT i.indisvalid AND CAST(:kinds AS text[]) = ARRAY(
          SELECT DISTINCT pg_catalog.replace(kind[1], $$''$$, $$'$$) COLLATE "C"
          FROM pg_catalog.regexp_matches(
            coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid), ''), $$'(([^']|'')*)'$$, 'g') AS kind
          ORDER BY 1)
        FROM pg_catalog.pg_index AS i WHERE i.indexrelid = pg_catalog.to_regclass(:path)
        """
    path = names(load(context.config))[index]
    return bool(op.get_bind().scalar(text(query), {"path": path, "kinds": sorted(kinds)}))
