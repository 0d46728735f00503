"""The transition trigger on activities: a new qualifying activity makes the owner at once.

Why: the old version of the application knows nothing of assignments; from here to contract the
newest qualifying activity wins over an assignment that backfill or trigger made, never over one
made, released or transferred by hand. The trigger compares with the activity on which the
assignment rests, so it reads no activities and needs no index. One in the future waits for its time.
The functions of a shadow's triggers stand here, too: `leadprotect shadow start` puts them on leads and lead_tables.

Locks on host tables: SHARE ROW EXCLUSIVE on activities, for milliseconds (CREATE TRIGGER). On the
way down ACCESS EXCLUSIVE on activities, for milliseconds (DROP TRIGGER); where a shadow still runs, on leads and
lead_tables, too.

Undone by: dropping the triggers, those of a shadow included; what it noted moves to the quarantine schema.
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
    create_shadow_tables()
    create_shadow_notes()
    create_shadow_decision()
    create_shadow_triggers()
    op.execute("RESET ROLE")
    create_triggers()


def downgrade() -> None:
    end_shadow()
    for source in activity_sources():
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {source_transition} ON {source_table}")))
        op.execute(sql(source.fill("DROP TRIGGER IF EXISTS {note_writes} ON {source_table}")))
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        UPDATE {schema}.shadow_runs SET ended_at = pg_catalog.clock_timestamp() WHERE ended_at IS NULL;
        DROP FUNCTION
          {schema}.shadow_truncate(), {schema}.shadow_rows(), {schema}.shadow_lead(), {schema}.shadow_inserts(),
          {schema}.shadow_edits(), {schema}.shadow_border(text), {schema}.shadow_reason({lead_id_type}),
          {schema}.shadow_binds(regclass), {schema}.shadow_fold(), {schema}.shadow_run(), {schema}.shadow_noted(),
          {schema}.shadow_saw(name, text, text, bigint, timestamptz, timestamptz), {schema}.shadow_failed(text, regclass, text),
          {schema}.shadow_note(text, regclass, text), {schema}.own_active_lead();
        ALTER TABLE {schema}.shadow_runs SET SCHEMA {quarantine};
        ALTER TABLE {schema}.shadow_notes SET SCHEMA {quarantine}
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
          IF was.lead_id IS NOT NULL THEN
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
                          AND {schema}.earlier_activity(a.activity_source, a.activity_id::text, excluded.activity_id::text)));
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


def create_shadow_tables() -> None:
    # Append-only and without a unique key on what is counted, as writers of the host must never wait for each other here.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.shadow_notes') IS NOT NULL THEN
            ALTER TABLE {quarantine}.shadow_runs SET SCHEMA {schema};
            ALTER TABLE {quarantine}.shadow_notes SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.shadow_runs (
              started_at timestamptz PRIMARY KEY DEFAULT pg_catalog.clock_timestamp(),
              started_by name NOT NULL DEFAULT session_user,
              host_rls text NOT NULL,
              exempt_roles name[] NOT NULL,
              ended_at timestamptz
            );
            CREATE TABLE {schema}.shadow_notes (
              id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
              login name NOT NULL DEFAULT session_user,
              role name NOT NULL,
              application text NOT NULL,
              kind text NOT NULL,
              host_table text NOT NULL,
              reason text NOT NULL,
              first_at timestamptz NOT NULL,
              last_at timestamptz NOT NULL,
              times bigint NOT NULL
            );
            CREATE INDEX ix_shadow_notes_last ON {schema}.shadow_notes (last_at);
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.shadow_runs IS 'When a shadow ran before contract: statements are decided and noted, none is denied';
        COMMENT ON COLUMN {schema}.shadow_runs.started_at IS 'from when all of it was noted';
        COMMENT ON COLUMN {schema}.shadow_runs.started_by IS 'session_user';
        COMMENT ON COLUMN {schema}.shadow_runs.host_rls IS 'the setting that contract was expected to have';
        COMMENT ON COLUMN {schema}.shadow_runs.exempt_roles IS 'the setting that contract was expected to have';
        COMMENT ON COLUMN {schema}.shadow_runs.ended_at IS 'when it was stopped, or contract came; NULL: it runs';
        COMMENT ON TABLE {schema}.shadow_notes IS
        'What contract would have denied, and who was seen reading: at most three notes of a kind and minute, added up by the hour';
        COMMENT ON COLUMN {schema}.shadow_notes.id IS 'no meaning';
        COMMENT ON COLUMN {schema}.shadow_notes.login IS 'session_user';
        COMMENT ON COLUMN {schema}.shadow_notes.role IS 'who acted: the role that SET ROLE chose, or the login';
        COMMENT ON COLUMN {schema}.shadow_notes.application IS 'application_name, its first 60 characters';
        COMMENT ON COLUMN {schema}.shadow_notes.kind IS 'INSERT, UPDATE, DELETE, TRUNCATE, COPY, or SELECT for who was seen reading';
        COMMENT ON COLUMN {schema}.shadow_notes.host_table IS 'the table of the host';
        COMMENT ON COLUMN {schema}.shadow_notes.reason IS
        'a reason of the decision, or not_member, moved, copy, truncate, not_judged (the decision failed), read';
        COMMENT ON COLUMN {schema}.shadow_notes.first_at IS 'the first of them';
        COMMENT ON COLUMN {schema}.shadow_notes.last_at IS 'the last of them';
        COMMENT ON COLUMN {schema}.shadow_notes.times IS 'how many statements, or rows of a table of lead_tables, at least';
        ALTER TABLE {schema}.shadow_runs ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.shadow_runs FORCE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.shadow_notes ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.shadow_notes FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.shadow_runs;
        DROP POLICY IF EXISTS lp_inside ON {schema}.shadow_notes;
        CREATE POLICY lp_inside ON {schema}.shadow_runs TO {owner} USING ({inside}) WITH CHECK ({inside});
        CREATE POLICY lp_inside ON {schema}.shadow_notes TO {owner} USING ({inside}) WITH CHECK ({inside})
        """)
    )


def create_shadow_notes() -> None:
    # A session keeps what it has counted in a setting of its own, which rolls back as its notes do, and leaves a note
    # a minute: no row is updated, so nobody waits and a long snapshot costs nothing. Under SERIALIZABLE the notes of
    # others are not looked at, for that could fail a transaction of the host.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_note(kind text, target regclass, reason text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          acts name := {schema}.acting_role();
          host text := target::text;
          now timestamptz := clock_timestamp();
          counter text := 'leadprotect.shadow_'
            || to_hex(hashtextextended(concat_ws(' ', current_database(), session_user, acts, kind, host, reason), 0));
          kept text[] := string_to_array(nullif(current_setting(counter, true), ''), ' ');
          times bigint := coalesce(kept[2]::bigint, 0) + 1;
        BEGIN
          IF reason IS NULL THEN
            RETURN;
          ELSIF kept[1]::numeric > extract(epoch FROM now) - 60
            OR current_setting('transaction_isolation') <> 'serializable' AND (
              SELECT count(*) FROM {schema}.shadow_notes AS n
              WHERE n.last_at > now - interval '1 minute' AND n.login = session_user AND n.role = acts
                AND n.kind = kind AND n.host_table = host AND n.reason = reason) >= 3
          THEN
            PERFORM set_config(counter, concat_ws(' ', coalesce(kept[1], '0'), times), false);
            RETURN;
          END IF;
          INSERT INTO {schema}.shadow_notes (role, application, kind, host_table, reason, first_at, last_at, times)
          VALUES (acts, coalesce({schema}.bounded(left(current_setting('application_name'), 60)), ''), kind, host, reason,
                  coalesce(to_timestamp(nullif(kept[1], '0')::float8), now), now, times);
          PERFORM set_config(counter, concat_ws(' ', extract(epoch FROM now), 0), false);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_note(text, regclass, text) IS
        'Notes what contract would have denied: nothing where there is no reason, a row for a session, a kind and a minute at the most';
        REVOKE ALL ON FUNCTION {schema}.shadow_note(text, regclass, text) FROM PUBLIC;
        CREATE FUNCTION {schema}.shadow_failed(kind text, target regclass, why text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.shadow_note(kind, target, 'not_judged');
          RAISE LOG 'leadprotect shadow could not judge % of %: %', kind, target, why;
        EXCEPTION WHEN OTHERS THEN
          RAISE LOG 'leadprotect shadow could not note % of %: %', kind, target, SQLERRM;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_failed(text, regclass, text) IS
        'Notes that a statement could not be judged, and tells the server''s log why; never fails itself';
        REVOKE ALL ON FUNCTION {schema}.shadow_failed(text, regclass, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_saw(
          login name, application text, host_table text, times bigint, first_at timestamptz, last_at timestamptz)
        RETURNS void
        LANGUAGE sql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          INSERT INTO {schema}.shadow_notes (login, role, application, kind, host_table, reason, first_at, last_at, times)
          VALUES (shadow_saw.login, shadow_saw.login, pg_catalog.left(shadow_saw.application, 60), 'SELECT', shadow_saw.host_table,
                  'read', shadow_saw.first_at, shadow_saw.last_at, shadow_saw.times);
        END;
        COMMENT ON FUNCTION {schema}.shadow_saw(name, text, text, bigint, timestamptz, timestamptz) IS
        'Notes that a login was seen reading a table of the host, so many times';
        REVOKE ALL ON FUNCTION {schema}.shadow_saw(name, text, text, bigint, timestamptz, timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.shadow_saw(name, text, text, bigint, timestamptz, timestamptz) TO {owner}, {operator};
        CREATE FUNCTION {schema}.shadow_run()
        RETURNS SETOF {schema}.shadow_runs
        LANGUAGE sql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          SELECT r.* FROM {schema}.shadow_runs AS r ORDER BY r.started_at DESC LIMIT 1;
        END;
        COMMENT ON FUNCTION {schema}.shadow_run() IS 'The last shadow that was started; none where none ever was';
        REVOKE ALL ON FUNCTION {schema}.shadow_run() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.shadow_run() TO {owner}, {operator};
        CREATE FUNCTION {schema}.shadow_noted()
        RETURNS TABLE (login name, role name, applications text[], kind text, host_table text, reason text,
                       first_at timestamptz, last_at timestamptz, times bigint)
        LANGUAGE sql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          SELECT n.login, n.role, pg_catalog.array_agg(DISTINCT n.application), n.kind, n.host_table, n.reason,
                 pg_catalog.min(n.first_at), pg_catalog.max(n.last_at), pg_catalog.sum(n.times)::bigint
          FROM {schema}.shadow_notes AS n
          WHERE n.last_at >= (SELECT pg_catalog.max(r.started_at) FROM {schema}.shadow_runs AS r)
          GROUP BY n.login, n.role, n.kind, n.host_table, n.reason;
        END;
        COMMENT ON FUNCTION {schema}.shadow_noted() IS 'What was noted since the last start, added up';
        REVOKE ALL ON FUNCTION {schema}.shadow_noted() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.shadow_noted() TO {owner}, {operator};
        CREATE FUNCTION {schema}.shadow_fold()
        RETURNS void
        LANGUAGE sql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          WITH gone AS (
            DELETE FROM {schema}.shadow_notes AS n
            WHERE n.last_at < pg_catalog.date_trunc('hour', pg_catalog.clock_timestamp()) RETURNING n.*)
          INSERT INTO {schema}.shadow_notes (login, role, application, kind, host_table, reason, first_at, last_at, times)
          SELECT g.login, g.role, g.application, g.kind, g.host_table, g.reason, pg_catalog.min(g.first_at), pg_catalog.max(g.last_at),
                 pg_catalog.sum(g.times)
          FROM gone AS g
          GROUP BY g.login, g.role, g.application, g.kind, g.host_table, g.reason, pg_catalog.date_trunc('hour', g.last_at);
          DELETE FROM {schema}.shadow_notes AS n
          WHERE n.last_at < (SELECT pg_catalog.max(r.started_at) FROM {schema}.shadow_runs AS r);
        END;
        COMMENT ON FUNCTION {schema}.shadow_fold() IS
        'Adds up the notes of each hour that is over, and forgets those from before the last start';
        REVOKE ALL ON FUNCTION {schema}.shadow_fold() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.shadow_fold() TO {owner}, {operator}
        """)
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
        DECLARE
          reason text;
          standing {user_id_type};
        BEGIN
          BEGIN
            IF {schema}.shadow_binds(TG_RELID) THEN
              IF NOT {outside_old} THEN
                reason := {schema}.shadow_reason(OLD.{lead_id});
                -- who writes the column of the owner changes the owner, by the decision about that
                IF TG_OP = 'UPDATE' AND {named_new} IS DISTINCT FROM {named_old}
                  AND coalesce(reason, '') NOT IN ('no_context', 'not_found', 'not_member', 'suspended')
                THEN
                  SELECT a.user_id INTO standing FROM {schema}.user_lead_assignments AS a
                    WHERE a.lead_id = OLD.{lead_id} AND a.territory = {territory_of_old}::text;
                  reason := CASE
                    WHEN {owner_in_new} IS NOT DISTINCT FROM standing THEN reason
                    WHEN {schema}.is_manager() THEN NULL
                    WHEN {owner_in_new} IS NULL THEN CASE WHEN {schema}.explain_edit(OLD.{lead_id}) <> 'owner' THEN 'not_owner' END
                    WHEN {owner_in_new} = {schema}.parse_user({declared_user}) THEN CASE WHEN standing IS NOT NULL THEN 'not_owner' END
                    ELSE 'not_manager' END;
                END IF;
                PERFORM {schema}.shadow_note(TG_OP, TG_RELID, reason);
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
