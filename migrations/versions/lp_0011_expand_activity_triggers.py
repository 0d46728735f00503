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

from leadprotect.settings import sql

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
    op.execute(
        sql("""
        DROP TRIGGER IF EXISTS {transition} ON {activities};
        DROP TRIGGER IF EXISTS {note_writes} ON {activities}
        """)
    )
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
        BEGIN
          IF TG_OP = 'UPDATE' AND (OLD.{activity_id}, OLD.{activity_lead_id}, OLD.{activity_user_id}, OLD.{activity_kind}, OLD.{activity_at})
            IS NOT DISTINCT FROM (NEW.{activity_id}, NEW.{activity_lead_id}, NEW.{activity_user_id}, NEW.{activity_kind}, NEW.{activity_at})
          THEN
            RETURN NULL;
          END IF;
          IF TG_OP <> 'INSERT' THEN
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = OLD.{activity_lead_id} AND a.source IN ('backfill', 'activity')
                AND a.activity_id = OLD.{activity_id} FOR UPDATE;
            IF FOUND THEN
              UPDATE {schema}.user_lead_assignments AS a
              SET user_id = newest.user_id, source = 'activity', assigned_at = statement_timestamp(),
                  activity_at = newest.activity_at, activity_id = newest.activity_id
              FROM {schema}.newest_activities(ARRAY[OLD.{activity_lead_id}]) AS newest
              WHERE a.lead_id = OLD.{activity_lead_id} AND a.source IN ('backfill', 'activity')
                AND a.activity_id = OLD.{activity_id};
            ELSIF OLD.{activity_kind} IN ({kinds}) AND OLD.{activity_user_id} IS NOT NULL THEN
              -- a slice of the backfill may be about to rest on what this statement takes away
              PERFORM {schema}.note_unsettled(OLD.{activity_lead_id});
            END IF;
          END IF;
          IF TG_OP <> 'DELETE' THEN
            -- one in the future makes no owner until its time has come; the backfill and the gate see it then.
            -- By the clock: an activity may take its time from it, after its statement began
            IF NEW.{activity_kind} IN ({kinds}) AND NEW.{activity_user_id} IS NOT NULL
              AND (NEW.{activity_at} <= clock_timestamp()) IS NOT FALSE
            THEN
              INSERT INTO {schema}.user_lead_assignments AS a
                (lead_id, territory, user_id, source, activity_at, activity_id)
              SELECT NEW.{activity_lead_id}, t.code, NEW.{activity_user_id}, 'activity',
                     NEW.{activity_at}, NEW.{activity_id}
              FROM {schema}.host_lead(NEW.{activity_lead_id}) AS l (territory)
              JOIN {schema}.territories AS t ON t.code = l.territory
              ON CONFLICT (lead_id, territory) DO UPDATE
                SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                    activity_at = excluded.activity_at, activity_id = excluded.activity_id
                WHERE a.source IN ('backfill', 'activity', 'moved')
                  AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                    OR a.activity_at < excluded.activity_at
                    OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                       AND (a.activity_id IS NULL OR a.activity_id < excluded.activity_id));
            END IF;
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
    op.execute(
        sql("""
        CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {activities}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write();
        CREATE TRIGGER {transition} AFTER INSERT OR UPDATE OR DELETE ON {activities}
        FOR EACH ROW EXECUTE FUNCTION {schema}.own_active_lead();
        ALTER TABLE {activities} ENABLE ALWAYS TRIGGER {note_writes};
        ALTER TABLE {activities} ENABLE ALWAYS TRIGGER {transition}
        """)
    )
