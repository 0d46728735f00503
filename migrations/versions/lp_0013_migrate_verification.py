"""The end of a backfill: leads that were in use, who stops it; what is left by the data, and what it would do.

Why: a backfill is done when the data says so, not when its last row was written. The same functions
serve its own verification, the gate, the commands, and psql. It stops for who asks, and for a guard that fell silent.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions; the runs of guards move to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0013_migrate_verification"
down_revision = "lp_0012_migrate_backfill"
branch_labels = None
depends_on = None
phase = "migrate"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_deferral()
    create_settling()
    create_finish()
    create_requests()
    create_guard_runs()
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_lead_tally()
    create_estimates()
    create_status()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        -- who undoes this revision has answered every guard that was on its way
        UPDATE {schema}.guard_runs SET state = 'rolled_back', ended_at = pg_catalog.clock_timestamp() WHERE ended_at IS NULL;
        REVOKE ALL ON {schema}.guard_runs FROM {reader}, {operator};
        ALTER TABLE {schema}.guard_runs SET SCHEMA {quarantine}
        """)
    )
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.backfill_status(),
          {schema}.backfill_report(text[]),
          {schema}.backfill_counts(text[]),
          {schema}.backfill_outside(),
          {schema}.unowned_count(),
          {schema}.backfill_sample(text, integer),
          {schema}.lead_tally(),
          {schema}.backfill_estimate(text),
          {schema}.guard_release(interval),
          {schema}.guard_beat(uuid, text, text, text, text, text, text, boolean),
          {schema}.backfill_request(text, text, text),
          {schema}.backfill_finish(text),
          {schema}.backfill_settle({lead_id_type}),
          {schema}.backfill_retry(text, {lead_id_type}),
          {schema}.backfill_defer(text, bigint, bigint, text)
        """)
    )
    op.execute("RESET ROLE")


def create_deferral() -> None:
    # One locked lead must not stall the rest: it is put aside, and tried again at the end.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_defer(here text, chunk bigint, token bigint, reason text)
        RETURNS {lead_id_type}
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          part {schema}.backfill_chunks;
          leads {lead_id_type}[];
        BEGIN
          SELECT * INTO part FROM {schema}.backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk AND c.token = backfill_defer.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          leads := {schema}.next_leads(here, part.next_lead, part.last_lead, 2);
          IF cardinality(leads) > 0 THEN
            INSERT INTO {schema}.backfill_deferred AS d (territory, lead_id, reason)
            VALUES (here, leads[1], backfill_defer.reason)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET reason = excluded.reason, deferred_at = excluded.deferred_at;
          END IF;
          UPDATE {schema}.backfill_chunks AS c
          SET next_lead = leads[2], scanned = c.scanned + least(cardinality(leads), 1),
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN cardinality(leads) < 2 THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk;
          RETURN leads[1];
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_defer(text, bigint, bigint, text) IS
        'Puts the next lead of a chunk aside, because somebody holds it';
        REVOKE ALL ON FUNCTION {schema}.backfill_defer(text, bigint, bigint, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_defer(text, bigint, bigint, text) TO {operator}
        """)
    )
    # NULL: lost against a live transaction, the lead stays deferred.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_retry(here text, lead {lead_id_type})
        RETURNS integer
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          made integer;
        BEGIN
          PERFORM {schema}.require_transition();
          DELETE FROM {schema}.backfill_deferred AS d WHERE d.territory = here AND d.lead_id = lead;
          IF NOT FOUND THEN
            RETURN 0;
          END IF;
          made := {schema}.own_leads(here, ARRAY(
            SELECT lead FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = here));
          IF made IS NULL THEN
            INSERT INTO {schema}.backfill_deferred (territory, lead_id, reason)
            VALUES (here, lead, 'assigned by a live transaction at the same moment');
          ELSE
            UPDATE {schema}.backfill_jobs AS j SET retried = j.retried + made WHERE j.territory = here AND made > 0;
          END IF;
          RETURN made;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_retry(text, {lead_id_type}) IS
        'Tries a lead that was put aside again';
        REVOKE ALL ON FUNCTION {schema}.backfill_retry(text, {lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_retry(text, {lead_id_type}) TO {operator}
        """)
    )


def create_settling() -> None:
    # A live transaction that changed or deleted an activity while a slice read the old one could
    # not see the slice's assignment, nor the slice its change: its trigger left a note. First the
    # locks, then a look with a later snapshot; only notes that were there before both are done with.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_settle(lead {lead_id_type})
        RETURNS integer
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          notes uuid[] := ARRAY(SELECT u.id FROM {schema}.unsettled_leads AS u WHERE u.lead_id = lead);
          settled integer;
        BEGIN
          PERFORM {schema}.require_transition();
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity') FOR UPDATE;
          IF EXISTS (SELECT FROM {schema}.host_lead(lead)) THEN
            UPDATE {schema}.user_lead_assignments AS a
            SET user_id = newest.user_id, assigned_at = statement_timestamp(),
                activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
            FROM {schema}.derived_owners(ARRAY[lead]) AS newest
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity')
              AND (a.user_id IS DISTINCT FROM newest.user_id OR a.activity_id IS DISTINCT FROM newest.activity_id
                OR a.activity_at IS DISTINCT FROM newest.activity_at
                OR a.activity_source IS DISTINCT FROM newest.activity_source);
          ELSE
            DELETE FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead;
          END IF;
          GET DIAGNOSTICS settled = ROW_COUNT;
          DELETE FROM {schema}.unsettled_leads AS u WHERE u.id = ANY (notes);
          RETURN settled;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_settle({lead_id_type}) IS
        'Looks at a lead again that changed while the backfill read it';
        REVOKE ALL ON FUNCTION {schema}.backfill_settle({lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_settle({lead_id_type}) TO {operator}
        """)
    )


def create_finish() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_finish(here text)
        RETURNS boolean
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          UPDATE {schema}.backfill_jobs AS j
          SET ended_at = clock_timestamp(),
              finished_at = CASE
                WHEN j.finished_at IS NULL OR j.retried > 0 OR EXISTS (
                  SELECT FROM {schema}.backfill_chunks AS c WHERE c.territory = here AND c.assigned > 0)
                THEN clock_timestamp() ELSE j.finished_at END
          WHERE j.territory = here AND j.exhausted AND j.ended_at IS NULL
            AND NOT EXISTS (SELECT FROM {schema}.backfill_chunks AS c WHERE c.territory = here AND c.finished_at IS NULL)
            AND NOT EXISTS (SELECT FROM {schema}.backfill_deferred AS d WHERE d.territory = here);
          RETURN FOUND;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_finish(text) IS
        'Ends the walk over a territory, once no chunk and no lead is left';
        REVOKE ALL ON FUNCTION {schema}.backfill_finish(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_finish(text) TO {operator}
        """)
    )


def create_requests() -> None:
    # Asked from another shell, from on-call's rollback, from a gate; the workers read it every second.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_request(here text, wanted text, reason text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          before text;
        BEGIN
          SELECT j.request INTO before FROM {schema}.backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          UPDATE {schema}.backfill_jobs AS j SET request = wanted, request_reason = reason WHERE j.territory = here;
          RETURN before;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_request(text, text, text) IS
        'Asks a backfill to run, pause or stop; its workers read it every second';
        REVOKE ALL ON FUNCTION {schema}.backfill_request(text, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_request(text, text, text) TO {operator}
        """)
    )


def create_guard_runs() -> None:
    # A guard that is silent can stop nothing any more, so the backfill stops for it: its throttle reads the heartbeat.
    # A run that did not end well keeps where it began, so that the next guard can still go back there.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.guard_runs') IS NOT NULL THEN
            ALTER TABLE {quarantine}.guard_runs SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.guard_runs (
              run uuid PRIMARY KEY,
              command text NOT NULL,
              began text,
              revision text,
              guard text NOT NULL,
              login name NOT NULL DEFAULT session_user,
              started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              heartbeat_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              ended_at timestamptz,
              state text NOT NULL,
              reason text,
              CONSTRAINT gr_state CHECK (state IN ('running', 'held', 'baking', 'stopping', 'rolling_back', 'done', 'failed',
                'paused', 'unknown', 'rolled_back', 'refused', 'lost'))
            );
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.guard_runs IS
        'Runs of leadprotect guard: where each began, what it does, and when it was last heard of';
        COMMENT ON COLUMN {schema}.guard_runs.run IS 'the run';
        COMMENT ON COLUMN {schema}.guard_runs.command IS 'what it guards';
        COMMENT ON COLUMN {schema}.guard_runs.began IS 'the revision at which it began, where a rollback goes; NULL: the base';
        COMMENT ON COLUMN {schema}.guard_runs.revision IS 'the revision that it saw last; NULL: the base';
        COMMENT ON COLUMN {schema}.guard_runs.guard IS 'host and process id';
        COMMENT ON COLUMN {schema}.guard_runs.login IS 'its login';
        COMMENT ON COLUMN {schema}.guard_runs.started_at IS 'when its row was made';
        COMMENT ON COLUMN {schema}.guard_runs.heartbeat_at IS
        'when it was last heard of; older than 60 seconds, and every backfill holds';
        COMMENT ON COLUMN {schema}.guard_runs.ended_at IS 'when it ended, or was given up';
        COMMENT ON COLUMN {schema}.guard_runs.state IS 'what it does, or how it ended';
        COMMENT ON COLUMN {schema}.guard_runs.reason IS 'why, in words';
        ALTER TABLE {schema}.guard_runs ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.guard_runs FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.guard_runs;
        CREATE POLICY lp_inside ON {schema}.guard_runs TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_operator ON {schema}.guard_runs;
        CREATE POLICY lp_operator ON {schema}.guard_runs FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.guard_runs TO {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.guard_beat(
          run uuid, command text, began text, revision text, guard text, state text, reason text, ended boolean)
        RETURNS void
        LANGUAGE sql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          INSERT INTO {schema}.guard_runs AS r (run, command, began, revision, guard, state, reason, ended_at)
          VALUES (guard_beat.run, guard_beat.command, guard_beat.began, guard_beat.revision, guard_beat.guard, guard_beat.state,
                  pg_catalog.left(guard_beat.reason, 1000), CASE WHEN guard_beat.ended THEN pg_catalog.clock_timestamp() END)
          ON CONFLICT (run) DO UPDATE
            SET revision = excluded.revision, state = excluded.state, reason = excluded.reason,
                heartbeat_at = pg_catalog.clock_timestamp(), ended_at = excluded.ended_at;
        END;
        COMMENT ON FUNCTION {schema}.guard_beat(uuid, text, text, text, text, text, text, boolean) IS
        'The heartbeat of a guard: makes the row of its run, and says what it does';
        REVOKE ALL ON FUNCTION {schema}.guard_beat(uuid, text, text, text, text, text, text, boolean) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.guard_beat(uuid, text, text, text, text, text, text, boolean) TO {operator};
        CREATE FUNCTION {schema}.guard_release(silent_for interval)
        RETURNS bigint
        LANGUAGE sql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          WITH lost AS (
            UPDATE {schema}.guard_runs AS r SET ended_at = pg_catalog.clock_timestamp(), state = 'lost'
            WHERE r.ended_at IS NULL AND r.heartbeat_at < pg_catalog.clock_timestamp() - guard_release.silent_for
            RETURNING r.run)
          SELECT pg_catalog.count(*) FROM lost;
        END;
        COMMENT ON FUNCTION {schema}.guard_release(interval) IS
        'Gives up the guards that were not heard of for so long, so that a backfill may go on; how many there were';
        REVOKE ALL ON FUNCTION {schema}.guard_release(interval) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.guard_release(interval) TO {operator}
        """)
    )


def create_lead_tally() -> None:
    # Workers count beside each other in what RETURN QUERY returns, and in no SELECT INTO.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_tally()
        RETURNS TABLE (territory text, leads bigint, unowned bigint, missing bigint)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET jit = off
        AS $body$
        #variable_conflict use_column
        DECLARE
          known text[] := ARRAY(SELECT k.code FROM {schema}.territories AS k);
          few boolean := {schema}.few_are_bare();
        BEGIN
          RETURN QUERY
          SELECT t.territory, t.leads, coalesce(p.unowned, b.unowned, 0), coalesce(p.missing, u.missing, 0)
          FROM (SELECT nullif({territory_of_l}::text, '') AS territory, count(*) AS leads FROM {leads} AS l GROUP BY 1) AS t
          LEFT JOIN (
            SELECT p.territory, count(*) AS unowned, count(*) FILTER (WHERE p.missing) AS missing
            FROM {schema}.probed_leads(CASE WHEN few THEN known ELSE '{}' END) AS p GROUP BY 1) AS p ON p.territory = t.territory
          LEFT JOIN (
            SELECT b.territory, count(*) AS unowned
            FROM {schema}.bare_leads(CASE WHEN few THEN '{}' ELSE known END) AS b GROUP BY 1) AS b ON b.territory = t.territory
          LEFT JOIN (
            SELECT u.territory, count(*) AS missing
            FROM {schema}.unowned_leads(CASE WHEN few THEN '{}' ELSE known END) AS u GROUP BY 1) AS u ON u.territory = t.territory;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.lead_tally() IS
        'Number of leads of each territory that a lead names, of those that nobody owns, and of those whom an activity makes an owner; NULL: outside protection';
        REVOKE ALL ON FUNCTION {schema}.lead_tally() FROM PUBLIC
        """)
    )


def create_estimates() -> None:
    # A progress bar needs no exact total: the planner's is free, a count reads the whole index. Of policies it
    # reckons that they hide nearly every row; compared with all leads under the same policies, they fall out.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_estimate(here text)
        RETURNS bigint
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          plan json;
          found bigint;
          leads float8;
        BEGIN
          IF {territory_key_name} IS NULL THEN
            -- of an expression there is no statistics, and the planner takes a two hundredth of the leads for each
            leads := (SELECT greatest(c.reltuples, 0) FROM pg_class AS c WHERE c.oid = {leads_name}::regclass);
            RETURN (
              SELECT leads * count(*) FILTER (WHERE {territory_of_l} = here) / greatest(count(*), 1)
              FROM {leads} AS l TABLESAMPLE SYSTEM (least(100 * 20000 / greatest(leads, 1), 100)));
          END IF;
          EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM {leads} AS l WHERE {territory_of_l_quoted} = %L', here) INTO plan;
          found := plan -> 0 -> 'Plan' ->> 'Plan Rows';
          IF NOT row_security_active({leads_name}) THEN
            RETURN found;
          END IF;
          EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM {leads} AS l' INTO plan;
          RETURN (
            SELECT greatest(c.reltuples, 0) * least(found / greatest((plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8, 1), 1)
            FROM pg_class AS c WHERE c.oid = {leads_name}::regclass);
        EXCEPTION
          WHEN lock_not_available THEN
            RAISE;
          -- a policy of the host that fails for the planner: pausing, status and the way down need no estimate
          WHEN OTHERS THEN
            RETURN (SELECT greatest(c.reltuples, 0)::bigint FROM pg_class AS c WHERE c.oid = {leads_name}::regclass);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_estimate(text) IS
        'How many leads a territory has, as the planner reckons, or by a part of them where an expression tells it; all that there are where neither can';
        REVOKE ALL ON FUNCTION {schema}.backfill_estimate(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_estimate(text) TO {owner}, {operator}
        """)
    )
    # A part of the leads, by whole pages, looked at as the backfill would.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_sample(
          here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint)
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        SET jit = off
        AS $body$
        #variable_conflict use_column
        DECLARE
          percent float8;
        BEGIN
          leads := {schema}.backfill_estimate(here);
          percent := 100.0 * wanted / greatest(leads, 1);
          LOOP
            SELECT count(*), count(*) FILTER (WHERE NOT s.stands AND s.qualifying),
                   count(*) FILTER (WHERE NOT s.stands AND NOT s.qualifying)
            INTO sampled, assignable, ownerless
            FROM (
              SELECT EXISTS (
                       SELECT FROM {schema}.user_lead_assignments AS a
                       WHERE a.lead_id = l.{lead_id} AND a.territory = backfill_sample.here) AS stands,
                     EXISTS (SELECT FROM {qualifying} AS q WHERE q.lead_id = l.{lead_id}) AS qualifying
              FROM {leads} AS l TABLESAMPLE SYSTEM (least(percent, 100))
              WHERE {territory_of_l} = backfill_sample.here) AS s;
            EXIT WHEN sampled > 0 OR percent >= 50;
            percent := percent * 10;
          END LOOP;
          IF percent >= 50 THEN
            leads := sampled;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_sample(text, integer) IS
        'What a backfill would do, from a sample of the leads; writes nothing';
        REVOKE ALL ON FUNCTION {schema}.backfill_sample(text, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_sample(text, integer) TO {owner}, {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_outside()
        RETURNS bigint
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT pg_catalog.count(*) FROM {leads} AS l WHERE {outside_l};
        END;
        COMMENT ON FUNCTION {schema}.backfill_outside() IS 'Number of leads without a territory: outside protection';
        REVOKE ALL ON FUNCTION {schema}.backfill_outside() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_outside() TO {owner}, {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unowned_count()
        RETURNS bigint
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT pg_catalog.count(*) FROM {schema}.bare_leads({schema}.all_territories()) AS b;
        END;
        COMMENT ON FUNCTION {schema}.unowned_count() IS 'Number of leads of a territory that nobody owns';
        REVOKE ALL ON FUNCTION {schema}.unowned_count() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unowned_count() TO {owner}, {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_counts(territories text[])
        RETURNS TABLE (territory text, ownerless bigint, missing bigint, released bigint)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT code, coalesce(u.leads - u.qualifying, 0), coalesce(u.qualifying, 0),
                 (SELECT count(*) FROM {schema}.user_lead_assignments AS a
                  WHERE a.source = 'release' AND a.territory = code)
          FROM unnest(backfill_counts.territories) AS code
          LEFT JOIN (
            SELECT {territory_of_l}::text AS here, count(*) AS leads,
                   count(*) FILTER (WHERE EXISTS (
                     SELECT FROM {qualifying} AS q WHERE q.lead_id = l.{lead_id})) AS qualifying
            FROM {leads} AS l
            WHERE {territory_of_l} = ANY (backfill_counts.territories)
              AND NOT EXISTS (
                SELECT FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = l.{lead_id} AND a.territory = {territory_of_l})
            GROUP BY {territory_of_l}) AS u ON u.here = code;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_counts(text[]) IS
        'Leads without an owner in each territory: without a qualifying activity, with one, and released by hand';
        REVOKE ALL ON FUNCTION {schema}.backfill_counts(text[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_counts(text[]) TO {owner}, {operator}
        """)
    )
    # Every lead that has no owner after the backfill, and why.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_report(territories text[])
        RETURNS TABLE (lead_id {lead_id_type}, territory text, reason text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT l.{lead_id}::{lead_id_type}, {territory_of_l}::text, CASE
              WHEN EXISTS (
                SELECT FROM {schema}.backfill_deferred AS d
                WHERE d.lead_id = l.{lead_id} AND d.territory = {territory_of_l}) THEN 'locked'
              WHEN EXISTS (
                SELECT FROM {qualifying} AS q WHERE q.lead_id = l.{lead_id}) THEN 'missing'
              ELSE 'no_qualifying_activity' END
          FROM {leads} AS l
          WHERE {territory_of_l} = ANY (backfill_report.territories)
            AND NOT EXISTS (
              SELECT FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = l.{lead_id} AND a.territory = {territory_of_l})
          UNION ALL
          SELECT a.lead_id, a.territory, CASE a.source WHEN 'moved' THEN 'moved' ELSE 'released' END
          FROM {schema}.user_lead_assignments AS a
          WHERE a.territory = ANY (backfill_report.territories) AND a.user_id IS NULL
          UNION ALL
          SELECT l.{lead_id}::{lead_id_type}, NULL, 'no_territory' FROM {leads} AS l WHERE {outside_l};
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_report(text[]) IS
        'Every lead without an owner after the backfill, and why';
        REVOKE ALL ON FUNCTION {schema}.backfill_report(text[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_report(text[]) TO {owner}, {operator}
        """)
    )


def create_status() -> None:
    # The one answer to where a backfill stands, for psql, the library and the commands. A walk that
    # began and that no lease holds was interrupted: its workers are gone.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_status()
        RETURNS TABLE (
          territory text, state text, started_at timestamptz, ended_at timestamptz, scanned bigint, assigned bigint,
          deferred bigint, total bigint, workers bigint, request_reason text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT j.territory,
                 CASE WHEN j.request = 'pause' THEN 'paused'
                      WHEN j.ended_at IS NOT NULL THEN 'done'
                      WHEN j.request = 'stop' THEN 'stopped'
                      WHEN j.started_at IS NULL THEN 'new'
                      WHEN c.workers > 0 THEN 'running'
                      ELSE 'interrupted' END,
                 j.started_at, j.ended_at, c.scanned, c.assigned + j.retried,
                 (SELECT count(*) FROM {schema}.backfill_deferred AS d WHERE d.territory = j.territory),
                 {schema}.backfill_estimate(j.territory), c.workers, j.request_reason
          FROM {schema}.backfill_jobs AS j,
            LATERAL (
              SELECT coalesce(sum(c.scanned), 0)::bigint AS scanned, coalesce(sum(c.assigned), 0)::bigint AS assigned,
                     count(*) FILTER (WHERE c.finished_at IS NULL AND c.lease_until > clock_timestamp()) AS workers
              FROM {schema}.backfill_chunks AS c WHERE c.territory = j.territory) AS c
          ORDER BY j.territory;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_status() IS
        'Where the backfill of each territory stands: new, running, interrupted, paused, stopped or done; total is an estimate';
        REVOKE ALL ON FUNCTION {schema}.backfill_status() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_status() TO {owner}, {operator}
        """)
    )
