"""The transition trigger on activities: a new qualifying activity makes the owner at once.

Why: the old version of the application knows nothing of assignments; from here to contract the
newest qualifying activity wins over an assignment that backfill or trigger made, never over one
made, released or transferred by hand. The trigger compares with the activity on which the
assignment rests, so it reads no activities and needs no index. One in the future waits for its time.
The functions of a shadow's triggers stand here, too: `leadprotect shadow start` puts them on leads and lead_tables.

Locks on host tables: SHARE ROW EXCLUSIVE on activities, for milliseconds (CREATE TRIGGER). On the
way down ACCESS EXCLUSIVE on activities, for milliseconds (DROP TRIGGER); where a shadow still runs, on leads and
lead_tables, too.

Undone by: dropping the triggers, those of a shadow included.
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
    create_shadow_decision()
    create_shadow_triggers()
    op.execute("RESET ROLE")
    create_triggers()


def downgrade() -> None:
    end_shadow()
    for source in activity_sources():
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {source_transition} ON {source_table}")))
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {note_writes} ON {source_table}")))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        UPDATE {schema}.shadow_runs SET ended_at = pg_catalog.clock_timestamp() WHERE ended_at IS NULL;
        DROP FUNCTION
          {schema}.shadow_truncate(), {schema}.shadow_rows(), {schema}.shadow_lead(), {schema}.shadow_inserts(),
          {schema}.shadow_edits(), {schema}.shadow_border(text), {schema}.shadow_reason({lead_id_type}),
          {schema}.shadow_binds(regclass), {schema}.own_active_lead()
        """)
    )
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


def create_shadow_decision() -> None:
    # Who would be bound, by the settings with which the shadow was started: contract has not been here.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_binds(target regclass)
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN (
            SELECT bool_and(NOT (r.rolsuper OR r.rolbypassrls OR r.rolname = ANY (run.exempt_roles)
              OR NOT (run.host_rls = 'force' OR c.relforcerowsecurity) AND pg_has_role(r.oid, c.relowner, 'USAGE')))
            FROM (SELECT s.* FROM {schema}.shadow_runs AS s ORDER BY s.started_at DESC LIMIT 1) AS run, pg_roles AS r, pg_class AS c
            WHERE r.rolname = {schema}.acting_role() AND c.oid IN ({leads_name}::regclass, target));
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_binds(regclass) IS
        'Whether contract will bind the acting role on leads, or on a table of lead_tables; NULL where no shadow was started';
        REVOKE ALL ON FUNCTION {schema}.shadow_binds(regclass) FROM PUBLIC
        """)
    )
    # The decision is asked; what contract adds to it are its policies: who is no member, and where a new row may be.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_reason(lead {lead_id_type})
        RETURNS text
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          reason text := {schema}.explain_edit(lead);
        BEGIN
          RETURN CASE
            WHEN reason = 'unprotected' THEN NULL
            WHEN reason IN ('owner', 'collaborator') THEN
              CASE WHEN NOT pg_has_role({schema}.acting_role(), {app_name}, 'USAGE') THEN 'not_member' END
            WHEN reason = 'not_found' AND NOT {schema}.is_member({declared_territory}) THEN 'not_member'
            ELSE reason END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_reason({lead_id_type}) IS
        'Why contract would deny an edit of the lead to whoever acts; NULL where it would not';
        REVOKE ALL ON FUNCTION {schema}.shadow_reason({lead_id_type}) FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_border(territory text)
        RETURNS text
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN CASE
            WHEN coalesce(territory, '') = '' OR territory = {schema}.admitted_territory() THEN NULL
            WHEN coalesce({declared_territory}, '') = '' THEN 'no_context'
            WHEN NOT {schema}.is_member({declared_territory}) THEN 'not_member'
            ELSE 'not_found' END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_border(text) IS
        'Why contract would refuse whoever acts a new row of this territory; NULL where it would not';
        REVOKE ALL ON FUNCTION {schema}.shadow_border(text) FROM PUBLIC
        """)
    )


def create_shadow_triggers() -> None:
    # Nothing that goes wrong here may be met by the statement: each body is guarded, and says that it could not judge.
    # An edit is decided as contract does, all leads of a statement together; whoever may not edit some is asked about
    # a hundred of them, for a note is about reasons.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_edits()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET plan_cache_mode = force_generic_plan
        AS $body$
        #variable_conflict use_variable
        DECLARE
          leads {lead_id_type}[];
          reason text;
        BEGIN
          IF {schema}.shadow_binds(TG_RELID) THEN
            -- where the column of the owner was changed shadow_lead() has decided, before that made another owner
            IF {named} THEN
              leads := ARRAY(
                SELECT l.{lead_id}::{lead_id_type} FROM edited AS l LEFT JOIN changed AS c ON c.{lead_id} = l.{lead_id}
                WHERE NOT {outside_l} AND {named_before} IS NOT DISTINCT FROM {named_after});
            ELSE
              leads := ARRAY(SELECT l.{lead_id}::{lead_id_type} FROM edited AS l WHERE NOT {outside_l});
            END IF;
            FOR reason IN
              SELECT DISTINCT {schema}.shadow_reason(few.lead) FROM (
                SELECT unnest(leads) AS lead EXCEPT
                SELECT e.lead FROM {schema}.editable_among(leads) AS e
                WHERE cardinality(leads) > 1 AND pg_has_role({schema}.acting_role(), {app_name}, 'USAGE') LIMIT 100) AS few
            LOOP
              PERFORM {schema}.shadow_note(TG_OP, TG_RELID, reason);
            END LOOP;
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM {schema}.shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_edits() IS 'Trigger of a shadow: notes an UPDATE of leads that contract would deny';
        REVOKE ALL ON FUNCTION {schema}.shadow_edits() FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_inserts()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          reason text;
        BEGIN
          IF {schema}.shadow_binds(TG_RELID) THEN
            IF current_query() ~* '^\\s*copy\\M' THEN
              PERFORM {schema}.shadow_note('COPY', TG_RELID, 'copy');
            ELSE
              FOR reason IN
                SELECT DISTINCT {schema}.shadow_border(l.territory)
                FROM (SELECT DISTINCT {territory_of_l}::text AS territory FROM made AS l) AS l
              LOOP
                PERFORM {schema}.shadow_note(TG_OP, TG_RELID, reason);
              END LOOP;
            END IF;
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM {schema}.shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_inserts() IS 'Trigger of a shadow: notes new leads that contract would refuse, and COPY';
        REVOKE ALL ON FUNCTION {schema}.shadow_inserts() FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          BEGIN
            IF {schema}.shadow_binds(TG_RELID) THEN
              IF NOT {outside_old} THEN
                PERFORM {schema}.shadow_note(TG_OP, TG_RELID, {schema}.shadow_reason(OLD.{lead_id}));
              END IF;
              IF TG_OP = 'UPDATE' THEN
                PERFORM {schema}.shadow_note(TG_OP, TG_RELID, CASE
                  WHEN {outside_old} THEN {schema}.shadow_border({territory_of_new}::text)
                  WHEN {territory_of_new} IS DISTINCT FROM {territory_of_old} OR NEW.{lead_id} IS DISTINCT FROM OLD.{lead_id} THEN 'moved' END);
              END IF;
            END IF;
          EXCEPTION WHEN OTHERS THEN
            PERFORM {schema}.shadow_failed(TG_OP, TG_RELID, SQLERRM);
          END;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_lead() IS
        'Trigger of a shadow: notes a DELETE of a lead that contract would deny, and a change of its id, territory or owner';
        REVOKE ALL ON FUNCTION {schema}.shadow_lead() FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_rows()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          kind text := TG_OP;
          before {lead_id_type};
          after {lead_id_type};
          reason text;
        BEGIN
          BEGIN
            IF {schema}.shadow_binds(TG_RELID) THEN
              IF TG_OP <> 'INSERT' THEN
                EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO before USING OLD;
              END IF;
              IF TG_OP <> 'DELETE' THEN
                EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO after USING NEW;
              END IF;
              IF TG_OP = 'INSERT' AND current_query() ~* '^\\s*copy\\M' THEN
                kind := 'COPY';
                reason := 'copy';
              ELSIF TG_OP = 'INSERT' AND TG_ARGV[1] = 'append' THEN
                reason := (SELECT {schema}.shadow_border(l.territory) FROM {schema}.host_lead(after) AS l (territory));
              -- who may not ask for the decision meets its name in the policies, whichever row he means
              ELSIF pg_trigger_depth() = 1 AND NOT pg_has_role({schema}.acting_role(), {app_name}, 'USAGE') THEN
                reason := CASE WHEN coalesce({declared_user}, '') = '' OR coalesce({declared_territory}, '') = ''
                  THEN 'no_context' ELSE 'not_member' END;
              -- a lead that is gone took its rows along: its deletion was decided
              ELSIF before IS NOT NULL AND (pg_trigger_depth() = 1 OR EXISTS (SELECT FROM {schema}.host_lead(before))) THEN
                reason := coalesce({schema}.shadow_reason(before), CASE
                  WHEN TG_OP = 'UPDATE' AND NOT EXISTS (SELECT FROM {schema}.host_lead(before) AS l (territory) WHERE l.territory IS NULL)
                    AND NOT EXISTS (SELECT FROM {schema}.host_lead(after) AS l (territory) WHERE l.territory IS NOT NULL) THEN 'moved' END);
              END IF;
              IF reason IS NULL AND after IS DISTINCT FROM before AND after IS NOT NULL AND TG_ARGV[1] <> 'append' THEN
                reason := {schema}.shadow_reason(after);
              END IF;
              PERFORM {schema}.shadow_note(kind, TG_RELID, reason);
            END IF;
          EXCEPTION WHEN OTHERS THEN
            PERFORM {schema}.shadow_failed(TG_OP, TG_RELID, SQLERRM);
          END;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_rows() IS 'Trigger of a shadow: notes changes of lead_tables that contract would deny';
        REVOKE ALL ON FUNCTION {schema}.shadow_rows() FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_truncate()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF {schema}.shadow_binds(TG_RELID) THEN
            PERFORM {schema}.shadow_note(TG_OP, TG_RELID, 'truncate');
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM {schema}.shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_truncate() IS 'Trigger of a shadow: notes a TRUNCATE that contract would refuse';
        REVOKE ALL ON FUNCTION {schema}.shadow_truncate() FROM PUBLIC
        """)
    )


def end_shadow() -> None:
    # Whatever the settings say now: a trigger is the shadow's by the function that it calls.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          ours record;
        BEGIN
          FOR ours IN
            SELECT t.tgname, t.tgrelid::regclass AS host FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
            WHERE p.pronamespace = {schema_name}::regnamespace AND pg_catalog.starts_with(p.proname, 'shadow_')
          LOOP
            EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', ours.tgname, ours.host);
          END LOOP;
        END
        $do$
        """)
    )
