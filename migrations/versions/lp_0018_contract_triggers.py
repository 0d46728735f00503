"""Drops the transition triggers on activities: from here on owners change by hand only.

Why: after contract an activity no longer makes an owner; leads are claimed, assigned and
transferred. It is the last step, because the gate counts on the trigger until then.

Locks on host tables: ACCESS EXCLUSIVE on activities, for milliseconds (DROP TRIGGER). On the way
down SHARE ROW EXCLUSIVE on activities, for milliseconds (CREATE TRIGGER).

Undone by: creating the triggers again.
"""

from alembic import op

from leadprotect.settings import activity_sources, sql

revision = "lp_0018_contract_triggers"
down_revision = "lp_0017_contract_enforce"
branch_labels = None
depends_on = None
phase = "contract"
locks = {"upgrade": {"activities": "AccessExclusiveLock"}, "downgrade": {"activities": "ShareRowExclusiveLock"}}


def upgrade() -> None:
    ask_gate()
    for source in activity_sources():
        op.execute(sql(source.fill("DROP TRIGGER {source_transition} ON {source_table}")))
        if source.first:
            op.execute(sql(source.fill("DROP TRIGGER {note_writes} ON {source_table}")))


def downgrade() -> None:
    for source in activity_sources():
        if source.first:
            op.execute(
                sql(
                    source.fill("""
                    CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {source_table}
                    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write();
                    ALTER TABLE {source_table} ENABLE ALWAYS TRIGGER {note_writes}
                    """)
                )
            )
        op.execute(
            sql(
                source.fill("""
                CREATE TRIGGER {source_transition} AFTER INSERT OR UPDATE OR DELETE ON {source_table}
                FOR EACH ROW EXECUTE FUNCTION {schema}.own_active_lead({source_argument});
                ALTER TABLE {source_table} ENABLE ALWAYS TRIGGER {source_transition}
                """)
            )
        )


def ask_gate() -> None:
    # Again inside the transaction, and the only gate of a script rendered with --sql.
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        SELECT {schema}.require_open_gate({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[], {lead_tables});
        RESET ROLE
        """)
    )
