"""Drops the two indexes on host tables that only the transition needed.

Why: they cost every write of the host, and nothing reads them after the backfill. They go before
anything is enforced, so that a downgrade opens the host's tables first and rebuilds indexes last.

Locks on host tables: SHARE UPDATE EXCLUSIVE on activities, then on leads (CONCURRENTLY: reads and
writes go on). The same for the way down, for the time of each build.

Undone by: building them again, CONCURRENTLY; not at all when the downgrade goes on to the base.
"""

from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from leadprotect.settings import sql

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
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {activities_index_path}"))
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))


def downgrade() -> None:
    if not context.get_revision_argument():
        return  # on the way to the base nothing will read them
    require_transactions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))
        op.execute(sql("CREATE INDEX CONCURRENTLY {leads_index} ON {leads} ({territory}, {lead_id})"))
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {activities_index_path}"))
        op.execute(
            sql("""
            CREATE INDEX CONCURRENTLY {activities_index} ON {activities}
              ({activity_lead_id}, {activity_at} DESC NULLS LAST, {activity_id} DESC) INCLUDE ({activity_user_id})
              WHERE {activity_kind} IN ({kinds}) AND {activity_user_id} IS NOT NULL
            """)
        )


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


def stop_at_gate(error: DBAPIError) -> None:
    # Our own env.py knows a closed gate by its SQLSTATE; a host's would show a stack trace.
    closed = getattr(error.orig, "sqlstate", None) == "LP409"
    if closed and not op.get_context().opts.get("leadprotect"):
        raise CommandError(f"{str(error.orig).splitlines()[0]}; all before {revision} is applied") from None


def ask_gate() -> None:
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        SELECT {schema}.require_open_gate({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[]);
        RESET ROLE
        """)
    )
