"""Registers the backfill, and the gate that contract waits for.

Why: every lead with a qualifying activity needs its owner before anything is enforced. The work is
shared through these tables alone: a chunk is claimed with a lease and a fencing token, a slice
moves the chunk's cursor in the transaction that writes its rows.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving the tables to the quarantine schema and dropping the functions.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0006_migrate_backfill"
down_revision = "lp_0005_expand_activity_triggers"
branch_labels = None
depends_on = None
phase = "migrate"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_jobs()
    leave_quarantine()
    register_jobs()
    validate_constraints()
    create_unowned_leads()
    create_stale_leads()
    create_own_leads()
    create_start()
    create_claim()
    create_slice()
    create_deferral()
    create_settling()
    create_finish()
    create_requests()
    create_estimates()
    create_ways_around()
    create_gate()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    end_runs()
    for signature in (
        "gate_conditions(interval, text, name[])",
        "ways_around(text, name[])",
        "backfill_report(text[])",
        "backfill_counts(text[])",
        "backfill_outside()",
        "backfill_sample(text, integer)",
        "backfill_estimate(text)",
        "backfill_request(text, text, text)",
        "backfill_finish(text)",
        "backfill_settle({lead_id_type})",
        "backfill_retry(text, {lead_id_type})",
        "backfill_defer(text, bigint, bigint, text)",
        "backfill_release(text, bigint, bigint)",
        "backfill_slice(text, bigint, bigint, integer)",
        "backfill_claim(text, integer, text, interval)",
        "backfill_start(text, text)",
        "backfill_settings()",
        "own_leads(text, {lead_id_type}[])",
        "backfill_stale(text)",
        "unowned_leads(text)",
        "unowned_leads(text[])",
    ):
        op.execute(sql("DROP FUNCTION {schema}." + signature))
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.backfill_deferred, {schema}.backfill_chunks, {schema}.backfill_jobs,
          {schema}.unsettled_leads
        FROM {operator}
        """)
    )
    op.execute(sql("DROP POLICY lp_operator ON {schema}.unsettled_leads"))
    op.execute(sql("ALTER TABLE {schema}.backfill_deferred SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.backfill_chunks SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.backfill_jobs SET SCHEMA {quarantine}"))
    op.execute("RESET ROLE")


def end_runs() -> None:
    # The pause was asked for by the rollback itself, and ends with the functions that the workers call.
    # Their leases end, too: after an upgrade nobody must wait for a worker that can't come back.
    op.execute(
        sql("""
        UPDATE {schema}.backfill_jobs SET request = 'run', request_reason = NULL
        WHERE request = 'pause' AND request_reason IN ('alembic downgrade', 'leadprotect rollback')
        """)
    )
    op.execute(
        sql(
            "UPDATE {schema}.backfill_chunks SET token = token + 1, lease_until = '-infinity' WHERE finished_at IS NULL"
        )
    )


def create_jobs() -> None:
    # next_lead is the first lead that is not yet in a chunk (of a job), not yet in a slice (of a
    # chunk); NULL before the start, and after the end. ended_at is the end of the present walk over
    # the leads, finished_at the last time at which a walk changed something: the gate counts from there.
    # Rows are counted per chunk: a counter in the job would make the workers wait for each other.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.backfill_jobs') IS NOT NULL THEN
            ALTER TABLE {quarantine}.backfill_jobs SET SCHEMA {schema};
            ALTER TABLE {quarantine}.backfill_chunks SET SCHEMA {schema};
            ALTER TABLE {quarantine}.backfill_deferred SET SCHEMA {schema};
            -- Nobody kept the owners meanwhile, so what was walked counts no more: the next backfill
            -- walks over every lead, and the observation window begins with the triggers.
            DELETE FROM {schema}.backfill_chunks;
            UPDATE {schema}.backfill_jobs
            SET registered_at = pg_catalog.now(), started_at = NULL, ended_at = NULL, finished_at = NULL,
                exhausted = false, next_lead = NULL, chunks = 0, retried = 0;
          ELSE
            CREATE TABLE {schema}.backfill_jobs (
              territory text PRIMARY KEY REFERENCES {schema}.territories (code),
              registered_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
              started_at timestamptz,
              ended_at timestamptz,
              finished_at timestamptz,
              request text NOT NULL DEFAULT 'run' CHECK (request IN ('run', 'pause', 'stop')),
              request_reason text,
              next_lead {lead_id_type},
              exhausted boolean NOT NULL DEFAULT false,
              chunks bigint NOT NULL DEFAULT 0,
              retried bigint NOT NULL DEFAULT 0
            );
            CREATE TABLE {schema}.backfill_chunks (
              territory text NOT NULL REFERENCES {schema}.backfill_jobs (territory),
              chunk bigint NOT NULL,
              next_lead {lead_id_type},
              last_lead {lead_id_type} NOT NULL,
              worker text NOT NULL,
              token bigint NOT NULL DEFAULT 1,
              lease interval NOT NULL,
              lease_until timestamptz NOT NULL,
              scanned bigint NOT NULL DEFAULT 0,
              assigned bigint NOT NULL DEFAULT 0,
              finished_at timestamptz,
              PRIMARY KEY (territory, chunk)
            );
            CREATE INDEX ix_backfill_chunks_open ON {schema}.backfill_chunks (territory, lease_until)
              WHERE finished_at IS NULL;
            CREATE TABLE {schema}.backfill_deferred (
              territory text NOT NULL REFERENCES {schema}.backfill_jobs (territory),
              lead_id {lead_id_type} NOT NULL,
              reason text NOT NULL,
              deferred_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              PRIMARY KEY (lead_id, territory)
            );
          END IF;
        END
        $do$
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.backfill_jobs')"))
    op.execute(sql("SELECT {schema}.secure_table('{schema}.backfill_chunks')"))
    op.execute(sql("SELECT {schema}.secure_table('{schema}.backfill_deferred')"))
    # Progress is no secret between territories; which leads were locked is the operator's business.
    for name in ("backfill_jobs", "backfill_chunks", "backfill_deferred"):
        op.execute(sql("DROP POLICY IF EXISTS lp_operator ON {schema}." + name))
        op.execute(sql("CREATE POLICY lp_operator ON {schema}." + name + " FOR SELECT TO {operator} USING (true)"))
        op.execute(sql("GRANT SELECT ON {schema}." + name + " TO {operator}"))
    op.execute(sql("DROP POLICY IF EXISTS lp_operator ON {schema}.unsettled_leads"))
    op.execute(sql("CREATE POLICY lp_operator ON {schema}.unsettled_leads FOR SELECT TO {operator} USING (true)"))
    op.execute(sql("GRANT SELECT ON {schema}.unsettled_leads TO {operator}"))
    op.execute(
        sql(
            "COMMENT ON TABLE {schema}.backfill_jobs IS 'One backfill per territory: where it stands, and what was asked of it'"
        )
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.backfill_jobs.retried IS
        'owners assigned after the chunks, to leads that were locked when their slice came'
        """)
    )
    op.execute(
        sql("COMMENT ON TABLE {schema}.backfill_deferred IS 'Leads whose assignment was locked: retried at the end'")
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.backfill_chunks IS
        'Claimed parts of a backfill; the token is a fencing token: who lost his lease can''t write'
        """)
    )


def leave_quarantine() -> None:
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regnamespace({quarantine_name}) IS NOT NULL THEN
            DROP SCHEMA {quarantine};
          END IF;
        EXCEPTION WHEN dependent_objects_still_exist THEN
          NULL;
        END
        $do$
        """)
    )


def register_jobs() -> None:
    op.execute(
        sql("""
        INSERT INTO {schema}.backfill_jobs (territory)
        SELECT code FROM {schema}.territories ON CONFLICT (territory) DO NOTHING
        """)
    )


def validate_constraints() -> None:
    # VALIDATE reads our own tables only, under a lock that lets reads and writes through.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          pending record;
        BEGIN
          FOR pending IN
            SELECT conrelid::regclass AS target, conname FROM pg_catalog.pg_constraint
            WHERE connamespace = {schema_name}::regnamespace AND NOT convalidated
          LOOP
            EXECUTE pg_catalog.format('ALTER TABLE %s VALIDATE CONSTRAINT %I', pending.target, pending.conname);
          END LOOP;
        END
        $do$
        """)
    )


def create_unowned_leads() -> None:
    # The truth about the backfill, asked by its own verification and by the gate. Released leads have an
    # assignment, to nobody: they are not listed.
    # Contract asks it again when the transition's indexes are gone, perhaps of a host that has no index
    # on the leads of activities: one scan of each table for all territories, whatever the statistics of a fresh one say.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unowned_leads(territories text[])
        RETURNS TABLE (territory text, lead_id {lead_id_type})
        LANGUAGE sql
        STABLE SECURITY DEFINER
        SET enable_nestloop = off
        BEGIN ATOMIC
          SELECT l.{territory}::text, l.{lead_id}
          FROM {leads} AS l
          WHERE l.{territory} = ANY (unowned_leads.territories)
            AND NOT EXISTS (
              SELECT FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = l.{lead_id} AND a.territory = l.{territory})
            AND EXISTS (
              SELECT FROM {activities} AS v
              WHERE v.{activity_lead_id} = l.{lead_id}
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL);
        END
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.unowned_leads(text[]) IS
        'Leads of the territories with a qualifying activity, without an owner, and not released by hand'
        """)
    )
    grant("unowned_leads(text[])")
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unowned_leads(territory text)
        RETURNS SETOF {lead_id_type}
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT u.lead_id FROM {schema}.unowned_leads(ARRAY[unowned_leads.territory]) AS u;
        END
        """)
    )
    grant("unowned_leads(text)")


def create_stale_leads() -> None:
    # An owner whose last activity was deleted stays, so a lead without any activity is never stale.
    # The plan is pinned: one index probe a lead, whatever the statistics of a fresh table say.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_stale(here text)
        RETURNS SETOF {lead_id_type}
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          SELECT a.lead_id
          FROM {schema}.user_lead_assignments AS a
          JOIN {leads} AS l ON l.{lead_id} = a.lead_id AND l.{territory} = here,
            LATERAL (
              SELECT v.{activity_user_id} AS user_id, v.{activity_id} AS id FROM {activities} AS v
              WHERE v.{activity_lead_id} = a.lead_id
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
              ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest
          WHERE a.territory = here AND a.source IN ('backfill', 'activity')
            AND (a.activity_id IS DISTINCT FROM newest.id OR a.user_id IS DISTINCT FROM newest.user_id);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.backfill_stale(text) IS
        'Leads of the territory whose derived owner is not the user of the newest qualifying activity'
        """)
    )
    grant("backfill_stale(text)")


def create_own_leads() -> None:
    # The newest qualifying activity makes the owner. Hand-made and released assignments stay; a derived
    # one changes when a newer activity is found, or when nobody touched it since and it rests on another.
    #
    # NULL means: a live transaction assigned one of the leads meanwhile, look again. A plain INSERT
    # that seldom loses is cheaper than ON CONFLICT, which probes and marks every row.
    #
    # Plans are pinned to index probes, LIMIT 1 keeps a lookup inside its loop: statistics of a table
    # that is being filled are always wrong, and without any the planner reads all assignments for each
    # slice. Kinds are literals so that the partial index serves.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_leads(here text, leads {lead_id_type}[])
        RETURNS integer
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        SET jit = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          owned {lead_id_type}[];
          fresh {lead_id_type}[];
          seen record;
          made integer;
        BEGIN
          owned := ARRAY(
            SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = ANY (leads) AND a.territory = here);
          fresh := CASE WHEN owned = '{}' THEN leads
                        ELSE ARRAY(SELECT unnest(leads) EXCEPT SELECT unnest(owned) ORDER BY 1) END;
          INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id)
          SELECT wanted.lead_id, here, newest.user_id, 'backfill', newest.at, newest.id
          FROM unnest(fresh) AS wanted (lead_id),
            LATERAL (
              SELECT v.{activity_user_id} AS user_id, v.{activity_at} AS at, v.{activity_id} AS id
              FROM {activities} AS v
              WHERE v.{activity_lead_id} = wanted.lead_id
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
              ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest;
          GET DIAGNOSTICS made = ROW_COUNT;
          FOR seen IN
            SELECT wanted.lead_id, newest.user_id, newest.at, newest.id,
                   standing.user_id AS old_user, standing.activity_at AS old_at, standing.activity_id AS old_id
            FROM unnest(owned) AS wanted (lead_id),
              LATERAL (
                SELECT a.user_id, a.activity_at, a.activity_id, a.source FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = wanted.lead_id AND a.territory = here LIMIT 1) AS standing,
              LATERAL (
                SELECT v.{activity_user_id} AS user_id, v.{activity_at} AS at, v.{activity_id} AS id
                FROM {activities} AS v
                WHERE v.{activity_lead_id} = wanted.lead_id AND standing.source IN ('backfill', 'activity')
                  AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
                ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest
            WHERE standing.user_id IS DISTINCT FROM newest.user_id
              OR standing.activity_id IS DISTINCT FROM newest.id OR standing.activity_at IS DISTINCT FROM newest.at
          LOOP
            UPDATE {schema}.user_lead_assignments AS a
            SET user_id = seen.user_id, source = 'backfill', assigned_at = statement_timestamp(),
                activity_at = seen.at, activity_id = seen.id
            WHERE a.lead_id = seen.lead_id AND a.territory = here AND a.source IN ('backfill', 'activity')
              AND (a.activity_at IS NULL AND seen.at IS NOT NULL
                OR a.activity_at < seen.at
                OR a.activity_at IS NOT DISTINCT FROM seen.at AND a.activity_id < seen.id
                OR a.user_id IS NOT DISTINCT FROM seen.old_user
                   AND a.activity_at IS NOT DISTINCT FROM seen.old_at
                   AND a.activity_id IS NOT DISTINCT FROM seen.old_id);
            made := made + FOUND::integer;
          END LOOP;
          RETURN made;
        EXCEPTION WHEN unique_violation THEN
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.own_leads(text, {lead_id_type}[]) FROM PUBLIC"))


def create_start() -> None:
    # The functions hold the names and kinds of the settings with which they were created; a caller
    # with others would be told owners that he did not ask for.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_settings()
        RETURNS text
        LANGUAGE sql
        IMMUTABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
          SELECT concat_ws('; ',
            {leads_name}, '{lead_id}', '{territory}', {activities_name}, '{activity_id}', '{activity_lead_id}',
            '{activity_user_id}', '{activity_kind}', '{activity_at}',
            (SELECT string_agg(kind, ', ' ORDER BY kind COLLATE "C") FROM unnest(ARRAY[{kinds}]) AS kind))
        $body$
        """)
    )
    grant("backfill_settings()")
    # A walk that ended is followed by a new one, over all leads: what stands costs one probe each.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_start(here text, settings text)
        RETURNS boolean
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          job {schema}.backfill_jobs;
          fresh boolean;
        BEGIN
          IF settings IS DISTINCT FROM {schema}.backfill_settings() THEN
            RAISE EXCEPTION 'the settings are not those with which the backfill was migrated'
              USING ERRCODE = 'LP422', DETAIL = format('then %s; now %s', {schema}.backfill_settings(), settings);
          END IF;
          SELECT * INTO job FROM {schema}.backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          fresh := job.started_at IS NULL OR job.ended_at IS NOT NULL;
          IF fresh THEN
            DELETE FROM {schema}.backfill_chunks AS c WHERE c.territory = here;
            UPDATE {schema}.backfill_jobs AS j
            SET started_at = clock_timestamp(), ended_at = NULL, exhausted = false, next_lead = NULL,
                chunks = 0, retried = 0
            WHERE j.territory = here;
          END IF;
          -- a pause outlives a start: whoever asked for it says when it is over
          UPDATE {schema}.backfill_jobs AS j SET request = 'run', request_reason = NULL
          WHERE j.territory = here AND j.request = 'stop';
          RETURN fresh;
        END
        $body$
        """)
    )
    grant("backfill_start(text, text)")


def create_claim() -> None:
    # First what a dead worker left, then the next part of the territory. The job's row is locked
    # for the few milliseconds that it takes to find where the chunk ends.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_claim(
          here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint)
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
          job {schema}.backfill_jobs;
          first {lead_id_type};
          last {lead_id_type};
          following {lead_id_type};
        BEGIN
          UPDATE {schema}.backfill_chunks AS c
          SET worker = backfill_claim.worker, token = c.token + 1, lease = backfill_claim.lease,
              lease_until = clock_timestamp() + backfill_claim.lease
          WHERE c.territory = here AND c.chunk = (
            SELECT o.chunk FROM {schema}.backfill_chunks AS o
            WHERE o.territory = here AND o.finished_at IS NULL AND o.lease_until < clock_timestamp()
            ORDER BY o.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED)
          RETURNING c.chunk, c.token INTO chunk, token;
          IF FOUND THEN
            RETURN;
          END IF;
          SELECT * INTO job FROM {schema}.backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF job.exhausted THEN
            RETURN;
          END IF;
          first := job.next_lead;
          IF first IS NULL THEN
            SELECT l.{lead_id} INTO first FROM {leads} AS l
              WHERE l.{territory} = here ORDER BY l.{lead_id} LIMIT 1;
          END IF;
          IF first IS NOT NULL THEN
            SELECT l.{lead_id} INTO following FROM {leads} AS l
              WHERE l.{territory} = here AND l.{lead_id} >= first
              ORDER BY l.{lead_id} OFFSET chunk_rows LIMIT 1;
            IF following IS NULL THEN
              SELECT l.{lead_id} INTO last FROM {leads} AS l
                WHERE l.{territory} = here AND l.{lead_id} >= first ORDER BY l.{lead_id} DESC LIMIT 1;
            ELSE
              SELECT l.{lead_id} INTO last FROM {leads} AS l
                WHERE l.{territory} = here AND l.{lead_id} >= first AND l.{lead_id} < following
                ORDER BY l.{lead_id} DESC LIMIT 1;
            END IF;
          END IF;
          -- the leads of this part may have gone meanwhile
          IF last IS NOT NULL THEN
            INSERT INTO {schema}.backfill_chunks AS c
              (territory, chunk, next_lead, last_lead, worker, lease, lease_until)
            VALUES (here, job.chunks + 1, first, last, worker, lease, clock_timestamp() + lease)
            RETURNING c.chunk, c.token INTO chunk, token;
          END IF;
          UPDATE {schema}.backfill_jobs AS j
          SET next_lead = following, exhausted = following IS NULL,
              chunks = j.chunks + (last IS NOT NULL)::integer
          WHERE j.territory = here;
        END
        $body$
        """)
    )
    grant("backfill_claim(text, integer, text, interval)")


def create_slice() -> None:
    # Rows, cursor and lease in one transaction: a kill at any moment repeats and loses nothing.
    # A slice that scanned nothing and is not finished lost against a live transaction: look again.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_slice(
          here text, chunk bigint, token bigint, slice_rows integer,
          OUT scanned integer, OUT assigned integer, OUT finished boolean)
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
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk AND c.token = backfill_slice.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          -- one more than the slice: the first of the next one
          leads := ARRAY(
            SELECT l.{lead_id} FROM {leads} AS l
            WHERE l.{territory} = here AND l.{lead_id} >= part.next_lead AND l.{lead_id} <= part.last_lead
            ORDER BY l.{lead_id} LIMIT slice_rows + 1);
          assigned := {schema}.own_leads(here, leads[:slice_rows]);
          IF assigned IS NULL THEN
            scanned := 0;
            assigned := 0;
            finished := false;
            RETURN;
          END IF;
          scanned := least(cardinality(leads), slice_rows);
          finished := cardinality(leads) <= slice_rows;
          UPDATE {schema}.backfill_chunks AS c
          SET next_lead = leads[slice_rows + 1],
              scanned = c.scanned + backfill_slice.scanned, assigned = c.assigned + backfill_slice.assigned,
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN finished THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk;
        END
        $body$
        """)
    )
    grant("backfill_slice(text, bigint, bigint, integer)")
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_release(here text, chunk bigint, token bigint)
        RETURNS void
        LANGUAGE sql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
          UPDATE {schema}.backfill_chunks AS c SET lease_until = '-infinity'
          WHERE c.territory = here AND c.chunk = backfill_release.chunk AND c.token = backfill_release.token
            AND c.finished_at IS NULL
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.backfill_release(text, bigint, bigint) IS
        'A worker that stops gives its chunk back, so that the next one need not wait for the lease'
        """)
    )
    grant("backfill_release(text, bigint, bigint)")


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
          leads := ARRAY(
            SELECT l.{lead_id} FROM {leads} AS l
            WHERE l.{territory} = here AND l.{lead_id} >= part.next_lead AND l.{lead_id} <= part.last_lead
            ORDER BY l.{lead_id} LIMIT 2);
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
        $body$
        """)
    )
    grant("backfill_defer(text, bigint, bigint, text)")
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
          DELETE FROM {schema}.backfill_deferred AS d WHERE d.territory = here AND d.lead_id = lead;
          IF NOT FOUND THEN
            RETURN 0;
          END IF;
          made := {schema}.own_leads(here, ARRAY(
            SELECT l.{lead_id} FROM {leads} AS l WHERE l.{lead_id} = lead AND l.{territory} = here));
          IF made IS NULL THEN
            INSERT INTO {schema}.backfill_deferred (territory, lead_id, reason)
            VALUES (here, lead, 'assigned by a live transaction at the same moment');
          ELSE
            UPDATE {schema}.backfill_jobs AS j SET retried = j.retried + made WHERE j.territory = here AND made > 0;
          END IF;
          RETURN made;
        END
        $body$
        """)
    )
    grant("backfill_retry(text, {lead_id_type})")


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
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity') FOR UPDATE;
          IF EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = lead) THEN
            UPDATE {schema}.user_lead_assignments AS a
            SET user_id = newest.user_id, assigned_at = statement_timestamp(),
                activity_at = newest.at, activity_id = newest.id
            FROM (
              SELECT v.{activity_user_id} AS user_id, v.{activity_at} AS at, v.{activity_id} AS id
              FROM {activities} AS v
              WHERE v.{activity_lead_id} = lead
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
              ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity')
              AND (a.user_id IS DISTINCT FROM newest.user_id OR a.activity_id IS DISTINCT FROM newest.id
                OR a.activity_at IS DISTINCT FROM newest.at);
          ELSE
            DELETE FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead;
          END IF;
          GET DIAGNOSTICS settled = ROW_COUNT;
          DELETE FROM {schema}.unsettled_leads AS u WHERE u.id = ANY (notes);
          RETURN settled;
        END
        $body$
        """)
    )
    grant("backfill_settle({lead_id_type})")


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
        $body$
        """)
    )
    grant("backfill_finish(text)")


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
        $body$
        """)
    )
    grant("backfill_request(text, text, text)")


def create_estimates() -> None:
    # A progress bar needs no exact total: the planner's is free, a count reads the whole index.
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
        BEGIN
          EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM {leads} AS l WHERE l.{territory} = %L', here) INTO plan;
          RETURN (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
        END
        $body$
        """)
    )
    grant("backfill_estimate(text)")
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
        #variable_conflict use_variable
        DECLARE
          percent float8;
        BEGIN
          leads := {schema}.backfill_estimate(here);
          percent := 100.0 * wanted / greatest(leads, 1);
          LOOP
            EXECUTE format(
              'SELECT count(*), count(*) FILTER (WHERE NOT s.stands AND s.qualifying),
                      count(*) FILTER (WHERE NOT s.stands AND NOT s.qualifying)
               FROM (
                 SELECT EXISTS (
                          SELECT FROM {schema}.user_lead_assignments AS a
                          WHERE a.lead_id = l.{lead_id} AND a.territory = %1$L) AS stands,
                        EXISTS (
                          SELECT FROM {activities} AS v
                          WHERE v.{activity_lead_id} = l.{lead_id}
                            AND v.{activity_kind} IN (%2$s) AND v.{activity_user_id} IS NOT NULL) AS qualifying
                 FROM {leads} AS l %3$s WHERE l.{territory} = %1$L) AS s',
              here, (SELECT string_agg(quote_literal(kind), ', ') FROM unnest(ARRAY[{kinds}]) AS kind),
              CASE WHEN percent < 50 THEN format('TABLESAMPLE SYSTEM (%s)', percent) ELSE '' END)
              INTO sampled, assignable, ownerless;
            EXIT WHEN sampled > 0 OR percent >= 50;
            percent := percent * 10;
          END LOOP;
          IF percent >= 50 THEN
            leads := sampled;
          END IF;
        END
        $body$
        """)
    )
    grant("backfill_sample(text, integer)")
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_outside()
        RETURNS bigint
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT pg_catalog.count(*) FROM {leads} AS l WHERE l.{territory} IS NULL;
        END
        """)
    )
    op.execute(
        sql(
            "COMMENT ON FUNCTION {schema}.backfill_outside() IS 'Number of leads without a territory: outside protection'"
        )
    )
    grant("backfill_outside()")
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_counts(territories text[])
        RETURNS TABLE (territory text, ownerless bigint, missing bigint, released bigint)
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT code, coalesce(u.leads - u.qualifying, 0), coalesce(u.qualifying, 0),
                 (SELECT pg_catalog.count(*) FROM {schema}.user_lead_assignments AS a
                  WHERE a.user_id IS NULL AND a.territory = code)
          FROM pg_catalog.unnest(territories) AS code
          LEFT JOIN (
            SELECT l.{territory}::text AS here, pg_catalog.count(*) AS leads,
                   pg_catalog.count(*) FILTER (WHERE EXISTS (
                     SELECT FROM {activities} AS v
                     WHERE v.{activity_lead_id} = l.{lead_id}
                       AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL)) AS qualifying
            FROM {leads} AS l
            WHERE l.{territory} = ANY (backfill_counts.territories)
              AND NOT EXISTS (
                SELECT FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = l.{lead_id} AND a.territory = l.{territory})
            GROUP BY l.{territory}) AS u ON u.here = code;
        END
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.backfill_counts(text[]) IS
        'Leads without an owner in each territory: without a qualifying activity, with one, and released by hand'
        """)
    )
    grant("backfill_counts(text[])")
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
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          SELECT l.{lead_id}, l.{territory}::text, CASE
              WHEN EXISTS (
                SELECT FROM {schema}.backfill_deferred AS d
                WHERE d.lead_id = l.{lead_id} AND d.territory = l.{territory}) THEN 'locked'
              WHEN EXISTS (
                SELECT FROM {activities} AS v
                WHERE v.{activity_lead_id} = l.{lead_id}
                  AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL) THEN 'missing'
              ELSE 'no_qualifying_activity' END
          FROM {leads} AS l
          WHERE l.{territory} = ANY (territories)
            AND NOT EXISTS (
              SELECT FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = l.{lead_id} AND a.territory = l.{territory})
          UNION ALL
          SELECT a.lead_id, a.territory, 'released'
          FROM {schema}.user_lead_assignments AS a
          WHERE a.territory = ANY (territories) AND a.user_id IS NULL
          UNION ALL
          SELECT l.{lead_id}, NULL, 'no_territory' FROM {leads} AS l WHERE l.{territory} IS NULL;
        END
        $body$
        """)
    )
    grant("backfill_report(text[])")


def create_ways_around() -> None:
    # Row security binds who reads the table by its name: not through a child, and not through a view
    # that reads as an owner whom it does not bind. `reader` is who reads leads in a view's name, 0 whoever
    # asks: the first view on the way up from the table that is no security_invoker decides.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.ways_around(host_rls text, exempt_roles name[])
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        BEGIN
          condition := 'inheritance';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s inherits from %s, so the leads in it are not protected', i.inhrelid::regclass,
                            i.inhparent::regclass), ', '), 'no table shares its rows with ' || {leads_label}),
                 string_agg(format('ALTER TABLE %s NO INHERIT %s;', i.inhrelid::regclass, i.inhparent::regclass), ' ')
          INTO met, detail, remedy
          FROM pg_inherits AS i WHERE {leads_name}::regclass IN (i.inhparent, i.inhrelid);
          RETURN NEXT;

          condition := 'views';
          SELECT count(*) = 0,
                 coalesce(string_agg(leak.detail, ', '), 'no view shows leads past row security'),
                 string_agg(leak.remedy, ' ') || ' or name the readers in exempt_roles'
          INTO met, detail, remedy
          FROM (
            WITH RECURSIVE rules AS MATERIALIZED (
              SELECT DISTINCT d.refobjid AS source, r.ev_class AS view
              FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
              WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
            relations AS MATERIALIZED (
              SELECT c.oid, c.relkind, c.relowner, c.relacl, c.relkind = 'v' AND coalesce((
                       SELECT bool_or(o.option_value::boolean) FROM pg_options_to_table(c.reloptions) AS o
                       WHERE o.option_name = 'security_invoker'), false) AS invoker
              FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.oid IN (SELECT rules.view FROM rules)),
            reached AS (
              SELECT v.oid, CASE WHEN v.invoker THEN 0::oid ELSE v.relowner END AS reader
              FROM rules JOIN relations AS v ON v.oid = rules.view WHERE rules.source = {leads_name}::regclass
              UNION
              SELECT v.oid, CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
              FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view),
            leaks AS MATERIALIZED (
              SELECT DISTINCT v.oid, v.relkind, v.relowner, v.relacl
              FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
              WHERE NOT v.invoker AND (o.rolsuper OR o.rolbypassrls
                OR host_rls <> 'force' AND pg_has_role(o.oid, (SELECT relowner FROM pg_class
                                                               WHERE oid = {leads_name}::regclass), 'USAGE')
                OR EXISTS (SELECT FROM pg_roles AS e WHERE e.rolname = ANY (exempt_roles)
                           AND pg_has_role(o.oid, e.oid, 'USAGE')))),
            grants AS (
              SELECT l.oid, l.relowner, g.grantee FROM leaks AS l, aclexplode(l.relacl) AS g
              WHERE g.privilege_type = 'SELECT'
              UNION
              SELECT l.oid, l.relowner, g.grantee
              FROM leaks AS l JOIN pg_attribute AS a ON a.attrelid = l.oid, aclexplode(a.attacl) AS g
              WHERE g.privilege_type = 'SELECT'
              UNION
              SELECT l.oid, l.relowner, 'pg_read_all_data'::regrole FROM leaks AS l),
            readers AS (
              SELECT g.oid, g.grantee, min(r.rolname) AS login
              FROM grants AS g JOIN pg_roles AS r
                ON CASE g.grantee WHEN 0 THEN true ELSE pg_has_role(r.oid, g.grantee, 'MEMBER') END
              WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname <> ALL (exempt_roles)
                AND NOT pg_has_role(r.oid, g.relowner, 'MEMBER')
                AND has_database_privilege(r.oid, current_database(), 'CONNECT')
              GROUP BY g.oid, g.grantee)
            SELECT format('%s reads leads as its owner %I, so login %I sees those of every territory', l.oid::regclass,
                          pg_get_userbyid(l.relowner), min(r.login)) AS detail,
                   CASE l.relkind WHEN 'v' THEN format('ALTER VIEW %s SET (security_invoker = true);', l.oid::regclass)
                     ELSE string_agg(format('REVOKE SELECT ON %s FROM %s;', l.oid::regclass,
                       CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END), ' ') END AS remedy
            FROM leaks AS l JOIN readers AS r ON r.oid = l.oid
            GROUP BY l.oid, l.relkind, l.relowner ORDER BY l.oid::regclass::text LIMIT 20) AS leak;
          RETURN NEXT;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.ways_around(text, name[]) FROM PUBLIC"))
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.ways_around(text, name[]) IS
        'Conditions of the gate: what would show leads past row security'
        """)
    )


def create_gate() -> None:
    # The data and the catalog are asked, no status row but the times at which something ended. The
    # settings are arguments, because a release engineer opens the gate by changing them.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.gate_conditions(observation_window interval, host_rls text, exempt_roles name[])
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          complete_since timestamptz;
          host_owner oid := (SELECT relowner FROM pg_class WHERE oid = {leads_name}::regclass);
          -- a note stands for the writes of an interval; a window of 0 asks for no look back at all
          noted interval := CASE WHEN observation_window > interval '0' THEN {note_interval} ELSE interval '0' END;
        BEGIN
          -- row security that the host had before binds the owner too: what it can't see, it can't miss
          condition := 'visibility';
          SELECT count(*) = 0,
                 coalesce(string_agg(hidden.detail, ', '), 'no row of the host is hidden from ' || quote_ident({owner_name})),
                 string_agg(hidden.remedy, ' ')
          INTO met, detail, remedy
          FROM (
            SELECT format('row-level security of %s hides rows from %I', c.oid::regclass, {owner_name})
                     || coalesce(' (restrictive policy ' || p.binding || ')', '') AS detail,
                   concat_ws(' ',
                     CASE WHEN p.opened IS NOT TRUE
                       THEN format('CREATE POLICY %I ON %s FOR SELECT TO %I USING (true);', 'read_for_' || {owner_name},
                                   c.oid::regclass, {owner_name}) END,
                     'let restrictive policies bind the roles of your application only: ALTER POLICY '
                       || p.binding || format(' ON %s TO ...', c.oid::regclass)) AS remedy
            FROM pg_class AS c CROSS JOIN LATERAL (
              SELECT bool_or(q.polpermissive AND q.condition = 'true') AS opened,
                     string_agg(quote_ident(q.polname), ', ' ORDER BY q.polname)
                       FILTER (WHERE NOT q.polpermissive AND q.condition <> 'true') AS binding
              FROM (
                SELECT polname, polpermissive, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy
                WHERE polrelid = c.oid AND polcmd IN ('r', '*') AND EXISTS (
                  SELECT FROM unnest(polroles) AS bound WHERE bound = 0 OR pg_has_role(bound, 'USAGE'))) AS q) AS p
            WHERE c.oid IN ({leads_name}::regclass, {activities_name}::regclass) AND row_security_active(c.oid)
              AND (p.opened IS NOT TRUE OR p.binding IS NOT NULL)
            ORDER BY c.relname) AS hidden;
          RETURN NEXT;

          condition := 'owners';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads in %s have a qualifying activity but no owner', missing.leads, missing.code), ', '),
                          'every lead with a qualifying activity has its owner'),
                 'leadprotect backfill ' || string_agg(missing.code, ' ')
          INTO met, detail, remedy
          FROM (
            SELECT u.territory AS code, count(*) AS leads
            FROM {schema}.unowned_leads(ARRAY(SELECT t.code FROM {schema}.territories AS t)) AS u
            GROUP BY u.territory ORDER BY u.territory) AS missing;
          -- Before a walk has ended, a derived owner may be older than the transition's triggers: from a
          -- life before a downgrade. lp_0007 asks before its index goes; the triggers keep what it found.
          IF met AND EXISTS (
            SELECT FROM pg_index AS i WHERE i.indexrelid = to_regclass('{activities_index_path}') AND i.indisvalid)
          THEN
            SELECT count(*) = 0,
                   coalesce(string_agg(format('%s leads in %s have another owner than their newest qualifying activity says',
                              stale.leads, stale.code), ', '), detail),
                   'leadprotect backfill ' || string_agg(stale.code, ' ')
            INTO met, detail, remedy
            FROM (
              SELECT j.territory AS code, count(*) AS leads
              FROM {schema}.backfill_jobs AS j, {schema}.backfill_stale(j.territory)
              WHERE j.ended_at IS NULL
              GROUP BY j.territory ORDER BY j.territory) AS stale;
          END IF;
          RETURN NEXT;

          condition := 'constraints';
          SELECT count(*) = 0,
                 coalesce('not validated: ' || string_agg(format('%I on %s', c.conname, c.conrelid::regclass), ', '),
                          'all constraints are validated'),
                 string_agg(format('ALTER TABLE %s VALIDATE CONSTRAINT %I;', c.conrelid::regclass, c.conname), ' ')
          INTO met, detail, remedy
          FROM pg_constraint AS c
          WHERE c.connamespace = {schema_name}::regnamespace AND NOT c.convalidated;
          RETURN NEXT;

          condition := 'observation_window';
          SELECT max(greatest(j.registered_at, j.finished_at)) INTO complete_since FROM {schema}.backfill_jobs AS j;
          met := coalesce(complete_since + observation_window <= clock_timestamp(), false);
          detail := format('migrate is complete since %s, the observation window is %s',
                           coalesce(to_char(complete_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'),
                           justify_hours(observation_window));
          remedy := CASE WHEN NOT met THEN
            format('wait until %s, or shorten observation_window',
                   to_char((complete_since + observation_window) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END;
          RETURN NEXT;

          IF host_rls = 'off' THEN
            RETURN;
          END IF;

          condition := 'territories';
          -- what stands in a lead is data: it is shown in one short line, and no part of a command
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads carry the unknown territory %L', unknown.leads,
                            left(regexp_replace(unknown.territory, '[[:cntrl:]]', ' ', 'g'), 40)), ', '),
                          'every territory of a lead is known'),
                 string_agg(DISTINCT CASE WHEN unknown.territory ~ '^[A-Za-z][A-Za-z0-9_]{0,15}$'
                   THEN 'leadprotect territory add ' || unknown.territory ELSE 'correct the territory of these leads' END, '; ')
          INTO met, detail, remedy
          FROM (
            SELECT l.{territory}::text AS territory, count(*) AS leads FROM {leads} AS l
            WHERE l.{territory} IS NOT NULL AND l.{territory} NOT IN (SELECT t.code FROM {schema}.territories AS t)
            GROUP BY l.{territory} ORDER BY l.{territory} LIMIT 5) AS unknown;
          RETURN NEXT;

          condition := 'contextless_writes';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('login %I wrote to %s without a context at %s', late.login, late.host_table,
                            to_char(late.at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')), ', '),
                          'no write without a context inside the observation window'),
                 'deploy the version that sets its context (leadprotect.acting_as) and wait until '
                   || to_char((max(late.at) + observation_window + noted) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
                   || ', or name the login in exempt_roles'
          INTO met, detail, remedy
          FROM (
            SELECT DISTINCT ON (w.login) w.login, w.host_table, w.at FROM {schema}.contextless_writes AS w
            WHERE NOT w.with_context AND w.at > clock_timestamp() - observation_window - noted
              AND w.login <> ALL (exempt_roles)
            ORDER BY w.login, w.at DESC) AS late;
          RETURN NEXT;

          condition := 'logins';
          SELECT count(*) = 0,
                 coalesce(string_agg(locked.detail, ', '), 'every login with privileges is a member, or owns the table and is idle'),
                 string_agg(locked.remedy, ' ') || ' or name it in exempt_roles'
          INTO met, detail, remedy
          FROM (
            WITH holders AS MATERIALIZED (
              SELECT h.oid FROM pg_roles AS h
              WHERE has_table_privilege(h.oid, {leads_name}::regclass, 'SELECT, INSERT, UPDATE, DELETE')
                 OR has_any_column_privilege(h.oid, {leads_name}::regclass, 'INSERT, UPDATE')
                 -- what contract lets an auditor read for v_lead_protection makes no service of him
                 OR EXISTS (
                   SELECT FROM pg_attribute AS a
                   WHERE a.attrelid = {leads_name}::regclass AND a.attnum > 0 AND NOT a.attisdropped
                     AND has_column_privilege(h.oid, a.attrelid, a.attnum, 'SELECT')
                     AND NOT (a.attname IN ({lead_id_column_name}, {territory_column_name})
                       AND pg_has_role(h.oid, {auditor_name}, 'USAGE')))),
            borders AS MATERIALIZED (
              SELECT b.oid FROM {schema}.territories AS t JOIN pg_roles AS b ON b.rolname = {role_prefix} || lower(t.code)),
            suspects AS (
              SELECT r.rolname, pg_has_role(r.oid, host_owner, 'MEMBER') AS owns,
                     (SELECT max(w.at) FROM {schema}.contextless_writes AS w
                      WHERE w.login = r.rolname AND w.at > clock_timestamp() - observation_window - noted) AS wrote
              FROM pg_roles AS r
              WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> ALL (exempt_roles)
                AND has_database_privilege(r.oid, current_database(), 'CONNECT')
                AND EXISTS (SELECT FROM holders AS h WHERE pg_has_role(r.oid, h.oid, 'MEMBER'))
                AND NOT (pg_has_role(r.oid, {app_name}, 'MEMBER')
                  AND EXISTS (SELECT FROM borders AS b WHERE pg_has_role(r.oid, b.oid, 'MEMBER'))))
            SELECT CASE WHEN s.owns
                THEN format('login %I owns %s, so row security does not bind it, and wrote at %s', s.rolname, {leads_label},
                            to_char(s.wrote AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                ELSE format('login %I has privileges on %s but is no member of %s and a territory',
                            s.rolname, {leads_label}, {app_name}) END AS detail,
              CASE WHEN s.owns
                THEN format('let the service log in as another member of %I and wait until %s,', {app_name},
                            to_char((s.wrote + observation_window + noted) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                -- which territory a login serves, only its owner knows: the others are named beside the first
                ELSE (
                  SELECT format('GRANT %I, %I%s TO %I;', {app_name}, t.roles[1],
                                ' /* or ' || nullif(array_to_string(t.roles[2:], ', '), '') || ' */', s.rolname)
                  FROM (SELECT array_agg({role_prefix} || lower(code) ORDER BY code) AS roles
                        FROM {schema}.territories) AS t) END AS remedy
            FROM suspects AS s
            WHERE NOT s.owns OR s.wrote IS NOT NULL
            ORDER BY s.rolname LIMIT 20) AS locked;
          RETURN NEXT;

          RETURN QUERY SELECT * FROM {schema}.ways_around(host_rls, exempt_roles);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.gate_conditions(interval, text, name[]) IS
        'The conditions of contract, each with what is in the way and what to run'
        """)
    )
    grant("gate_conditions(interval, text, name[])")


def grant(signature: str) -> None:
    """EXECUTE is PUBLIC's by default: taken away, then given to the operator."""
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}." + signature + " FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}." + signature + " TO {operator}"))
