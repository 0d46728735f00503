"""The transition trigger on activities: a new qualifying activity makes the owner at once.

Why: the old version of the application knows nothing of assignments; from here to contract the
newest qualifying activity wins over an assignment that backfill or trigger made, never over one
made, released or transferred by hand. The trigger compares with the activity on which the
assignment rests, so it reads no activities and needs no index. One in the future waits for its time.

Locks on host tables: SHARE ROW EXCLUSIVE on activities, for milliseconds (CREATE TRIGGER). On the
way down ACCESS EXCLUSIVE on activities, for milliseconds (DROP TRIGGER).

Undone by: dropping the triggers.
"""

from alembic import op

from leadprotect.settings import activity_sources, sql

revision = "lp_0011_expand_activity_triggers"
down_revision = "lp_0010_expand_lead_triggers"
branch_labels = None
depends_on = None
phase = "expand"
locks = {"upgrade": {"activities": "ShareRowExclusiveLock"}, "downgrade": {"activities": "AccessExclusiveLock"}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_owner_of_activity()
    op.execute("RESET ROLE")
    create_triggers()


def downgrade() -> None:
    for source in activity_sources():
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {source_transition} ON {source_table}")))
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {note_writes} ON {source_table}")))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP FUNCTION {schema}.own_active_lead()"))
    op.execute("RESET ROLE")


def create_owner_of_activity() -> None:
    # When the very activity on which an assignment rests is changed or deleted, the owner is found
    # anew under the row's lock. If no qualifying activity is left, the owner stays: cleaning up old
    # activities must not take a lead away from its seller.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_active_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        DECLARE
          -- the activity as the derivation reads it: empty where it does not qualify
          was {schema}.user_lead_assignments;
          fresh {schema}.user_lead_assignments;
        BEGIN
          {read_activity}
          was.activity_source := TG_ARGV[0];
          fresh.activity_source := TG_ARGV[0];
          IF TG_OP = 'UPDATE' AND was IS NOT DISTINCT FROM fresh THEN
            RETURN NULL;
          END IF;
          IF was.user_id IS NOT NULL THEN
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = was.lead_id AND a.source IN ('backfill', 'activity')
                AND a.activity_id = was.activity_id AND a.activity_source IS NOT DISTINCT FROM was.activity_source FOR UPDATE;
            IF FOUND THEN
              UPDATE {schema}.user_lead_assignments AS a
              SET user_id = newest.user_id, source = 'activity', assigned_at = statement_timestamp(),
                  activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
              FROM {schema}.derived_owners(ARRAY[was.lead_id]) AS newest
              WHERE a.lead_id = was.lead_id AND a.source IN ('backfill', 'activity')
                AND a.activity_id = was.activity_id AND a.activity_source IS NOT DISTINCT FROM was.activity_source;
            ELSE
              -- a slice of the backfill may be about to rest on what this statement takes away
              PERFORM {schema}.note_unsettled(was.lead_id);
            END IF;
          END IF;
          -- one in the future makes no owner until its time has come; the backfill and the gate see it then.
          -- By the clock: an activity may take its time from it, after its statement began
          IF fresh.user_id IS NOT NULL AND (fresh.activity_at <= clock_timestamp()) IS NOT FALSE THEN
            INSERT INTO {schema}.user_lead_assignments AS a
              (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
            SELECT fresh.lead_id, t.code, fresh.user_id, 'activity', fresh.activity_at, fresh.activity_id, fresh.activity_source
            FROM {schema}.host_lead(fresh.lead_id) AS l (territory)
            JOIN {schema}.territories AS t ON t.code = l.territory
            WHERE NOT {named_first} OR NOT EXISTS (
              SELECT FROM {schema}.derived_owners(ARRAY[fresh.lead_id]) AS d WHERE d.activity_id IS NULL)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                  activity_at = excluded.activity_at, activity_id = excluded.activity_id,
                  activity_source = excluded.activity_source
              WHERE a.source IN ('backfill', 'activity', 'moved')
                -- an owner that the lead's own column names has no activity
                AND NOT ({named_first} AND a.source <> 'moved' AND a.activity_id IS NULL)
                AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                  OR a.activity_at < excluded.activity_at
                  OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                     AND (a.activity_id IS NULL OR coalesce(a.activity_source, '') > coalesce(excluded.activity_source, '')
                       OR a.activity_source IS NOT DISTINCT FROM excluded.activity_source
                          AND a.activity_id < excluded.activity_id));
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_active_lead() IS
        'Trigger of the transition: a new qualifying activity makes the owner at once';
        REVOKE ALL ON FUNCTION {schema}.own_active_lead() FROM PUBLIC
        """)
    )


def create_triggers() -> None:
    # Whatever sets the columns, a trigger of the host or replication: the function compares values.
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
