"""Registers the backfill, and the walk over the leads.

Why: every lead with a qualifying activity needs its owner before anything is enforced. The work is
shared through these tables alone: a chunk is claimed with a lease and a fencing token, a slice
moves the chunk's cursor in the transaction that writes its rows.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving the tables to the quarantine schema and dropping the functions.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0012_migrate_backfill"
down_revision = "lp_0011_expand_activity_triggers"
branch_labels = None
depends_on = None
phase = "migrate"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_jobs()
    register_jobs()
    validate_constraints()
    create_readers()
    create_own_leads()
    create_start()
    create_claim()
    create_slice()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    end_runs()
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.backfill_release(text, bigint, bigint),
          {schema}.backfill_slice(text, bigint, bigint, integer),
          {schema}.backfill_claim(text, integer, text, interval),
          {schema}.backfill_start(text, text),
          {schema}.backfill_settings(),
          {schema}.own_leads(text, {lead_id_type}[]),
          {schema}.require_transition(),
          {schema}.next_leads(text, {lead_id_type}, {lead_id_type}, integer),
          {schema}.chunk_bounds(text, {lead_id_type}, integer)
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.backfill_deferred, {schema}.backfill_chunks, {schema}.backfill_jobs,
          {schema}.unsettled_leads
        FROM {operator};
        REVOKE ALL ON {schema}.backfill_deferred, {schema}.backfill_chunks, {schema}.backfill_jobs FROM {reader};
        DROP POLICY lp_operator ON {schema}.unsettled_leads;
        ALTER TABLE {schema}.backfill_deferred SET SCHEMA {quarantine};
        ALTER TABLE {schema}.backfill_chunks SET SCHEMA {quarantine};
        ALTER TABLE {schema}.backfill_jobs SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def end_runs() -> None:
    # The pause was asked for by the rollback itself, and ends with the functions that the workers call.
    # Their leases end, too: after an upgrade nobody must wait for a worker that can't come back.
    op.execute(
        sql("""
        UPDATE {schema}.backfill_jobs SET request = 'run', request_reason = NULL
        WHERE request = 'pause' AND (request_reason IN ('alembic downgrade', 'leadprotect rollback')
          OR pg_catalog.starts_with(request_reason, 'leadprotect guard'))
        """)
    )
    op.execute(
        sql("""
        UPDATE {schema}.backfill_chunks SET token = token + 1, lease_until = '-infinity' WHERE finished_at IS NULL
        """)
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
        $do$;
        ALTER TABLE {schema}.backfill_jobs ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.backfill_jobs FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.backfill_jobs;
        CREATE POLICY lp_inside ON {schema}.backfill_jobs TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_border ON {schema}.backfill_jobs;
        CREATE POLICY lp_border ON {schema}.backfill_jobs AS RESTRICTIVE
        USING ({inside} OR (SELECT pg_catalog.pg_has_role({operator_name}, 'USAGE')));
        -- Progress is no secret between territories; which leads were locked is the operator's business.
        DROP POLICY IF EXISTS lp_operator ON {schema}.backfill_jobs;
        CREATE POLICY lp_operator ON {schema}.backfill_jobs FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.backfill_jobs TO {operator}, {reader};
        COMMENT ON TABLE {schema}.backfill_jobs IS 'One backfill per territory: where it stands, and what was asked of it';
        COMMENT ON COLUMN {schema}.backfill_jobs.retried IS
        'owners assigned after the chunks, to leads that were locked when their slice came';
        COMMENT ON COLUMN {schema}.backfill_jobs.territory IS 'whose leads';
        COMMENT ON COLUMN {schema}.backfill_jobs.registered_at IS 'when the migrate step was applied: the observation window begins here';
        COMMENT ON COLUMN {schema}.backfill_jobs.started_at IS 'begin of the present walk over the leads';
        COMMENT ON COLUMN {schema}.backfill_jobs.ended_at IS 'end of it';
        COMMENT ON COLUMN {schema}.backfill_jobs.finished_at IS 'last time at which a walk changed something: the gate counts from here';
        COMMENT ON COLUMN {schema}.backfill_jobs.request IS 'what was asked of the workers: run, pause or stop';
        COMMENT ON COLUMN {schema}.backfill_jobs.request_reason IS 'why, for whoever waits';
        COMMENT ON COLUMN {schema}.backfill_jobs.next_lead IS 'first lead that is in no chunk yet';
        COMMENT ON COLUMN {schema}.backfill_jobs.exhausted IS 'true: every lead is in a chunk';
        COMMENT ON COLUMN {schema}.backfill_jobs.chunks IS 'chunks made in this walk'
        """)
    )
    op.execute(
        sql("""
        ALTER TABLE {schema}.backfill_chunks ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.backfill_chunks FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.backfill_chunks;
        CREATE POLICY lp_inside ON {schema}.backfill_chunks TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_border ON {schema}.backfill_chunks;
        CREATE POLICY lp_border ON {schema}.backfill_chunks AS RESTRICTIVE
        USING ({inside} OR (SELECT pg_catalog.pg_has_role({operator_name}, 'USAGE')));
        DROP POLICY IF EXISTS lp_operator ON {schema}.backfill_chunks;
        CREATE POLICY lp_operator ON {schema}.backfill_chunks FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.backfill_chunks TO {operator}, {reader};
        COMMENT ON TABLE {schema}.backfill_chunks IS
        'Claimed parts of a backfill; the token is a fencing token: who lost his lease can''t write';
        COMMENT ON COLUMN {schema}.backfill_chunks.territory IS 'whose leads';
        COMMENT ON COLUMN {schema}.backfill_chunks.chunk IS 'number in this walk';
        COMMENT ON COLUMN {schema}.backfill_chunks.next_lead IS 'first lead that is in no slice yet; NULL: none is left';
        COMMENT ON COLUMN {schema}.backfill_chunks.last_lead IS 'last lead of the chunk';
        COMMENT ON COLUMN {schema}.backfill_chunks.worker IS 'who works on it: host, process, number';
        COMMENT ON COLUMN {schema}.backfill_chunks.token IS 'fencing token: it changes when the chunk is taken over';
        COMMENT ON COLUMN {schema}.backfill_chunks.lease IS 'how long a worker may be silent';
        COMMENT ON COLUMN {schema}.backfill_chunks.lease_until IS 'when it may be taken over';
        COMMENT ON COLUMN {schema}.backfill_chunks.scanned IS 'leads looked at';
        COMMENT ON COLUMN {schema}.backfill_chunks.assigned IS 'owners made';
        COMMENT ON COLUMN {schema}.backfill_chunks.finished_at IS 'when its last slice was committed'
        """)
    )
    op.execute(
        sql("""
        ALTER TABLE {schema}.backfill_deferred ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.backfill_deferred FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.backfill_deferred;
        CREATE POLICY lp_inside ON {schema}.backfill_deferred TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_border ON {schema}.backfill_deferred;
        CREATE POLICY lp_border ON {schema}.backfill_deferred AS RESTRICTIVE
        USING ({inside} OR (SELECT pg_catalog.pg_has_role({operator_name}, 'USAGE')));
        DROP POLICY IF EXISTS lp_operator ON {schema}.backfill_deferred;
        CREATE POLICY lp_operator ON {schema}.backfill_deferred FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.backfill_deferred TO {operator}, {reader};
        COMMENT ON TABLE {schema}.backfill_deferred IS 'Leads whose assignment was locked: retried at the end';
        COMMENT ON COLUMN {schema}.backfill_deferred.territory IS 'whose lead';
        COMMENT ON COLUMN {schema}.backfill_deferred.lead_id IS 'the lead';
        COMMENT ON COLUMN {schema}.backfill_deferred.reason IS 'SQLSTATE or sentence: why it was put aside';
        COMMENT ON COLUMN {schema}.backfill_deferred.deferred_at IS 'when'
        """)
    )
    op.execute(
        sql("""
        DROP POLICY IF EXISTS lp_operator ON {schema}.unsettled_leads;
        CREATE POLICY lp_operator ON {schema}.unsettled_leads FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.unsettled_leads TO {operator}
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


def create_readers() -> None:
    # After contract owners change by hand only, and whoever may run the backfill makes none behind it.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require_transition()
        RETURNS void
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF NOT {schema}.in_transition() THEN
            RAISE EXCEPTION 'contract is applied: activities make no owners any more, they change by hand only'
              USING ERRCODE = 'LP422';
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require_transition() IS 'Raises where activities make no owners any more';
        REVOKE ALL ON FUNCTION {schema}.require_transition() FROM PUBLIC
        """)
    )
    # The keyset over the host's leads, by index probes only, whatever the statistics say.
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.chunk_bounds(
          here text, wanted_first {lead_id_type}, chunk_rows integer,
          OUT first_lead {lead_id_type}, OUT last_lead {lead_id_type}, OUT following {lead_id_type})
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          first_lead := wanted_first;
          IF first_lead IS NULL THEN
            SELECT l.{lead_id} INTO first_lead FROM {leads} AS l
              WHERE {territory_of_l} = here ORDER BY l.{lead_id} LIMIT 1;
          END IF;
          IF first_lead IS NULL THEN
            RETURN;
          END IF;
          SELECT l.{lead_id} INTO following FROM {leads} AS l
            WHERE {territory_of_l} = here AND l.{lead_id} >= first_lead
            ORDER BY l.{lead_id} OFFSET chunk_rows LIMIT 1;
          IF following IS NULL THEN
            SELECT l.{lead_id} INTO last_lead FROM {leads} AS l
              WHERE {territory_of_l} = here AND l.{lead_id} >= first_lead ORDER BY l.{lead_id} DESC LIMIT 1;
          ELSE
            SELECT l.{lead_id} INTO last_lead FROM {leads} AS l
              WHERE {territory_of_l} = here AND l.{lead_id} >= first_lead AND l.{lead_id} < following
              ORDER BY l.{lead_id} DESC LIMIT 1;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.chunk_bounds(text, {lead_id_type}, integer) IS
        'First and last lead of the next chunk of a territory, and the lead that follows it';
        REVOKE ALL ON FUNCTION {schema}.chunk_bounds(text, {lead_id_type}, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.chunk_bounds(text, {lead_id_type}, integer) TO {owner}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.next_leads(
          here text, first_lead {lead_id_type}, last_lead {lead_id_type}, wanted integer)
        RETURNS {lead_id_type}[]
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN ARRAY(
            SELECT l.{lead_id} FROM {leads} AS l
            WHERE {territory_of_l} = here AND l.{lead_id} >= first_lead AND l.{lead_id} <= last_lead
            ORDER BY l.{lead_id} LIMIT wanted);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.next_leads(text, {lead_id_type}, {lead_id_type}, integer) IS
        'The next leads of a chunk, in the order of their ids';
        REVOKE ALL ON FUNCTION {schema}.next_leads(text, {lead_id_type}, {lead_id_type}, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.next_leads(text, {lead_id_type}, {lead_id_type}, integer) TO {owner}
        """)
    )
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))


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
          INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
          SELECT newest.lead_id, here, newest.user_id, 'backfill', newest.activity_at, newest.activity_id, newest.activity_source
          FROM {schema}.derived_owners(fresh) AS newest;
          GET DIAGNOSTICS made = ROW_COUNT;
          FOR seen IN
            SELECT newest.lead_id, newest.user_id, newest.activity_at AS at, newest.activity_id AS id, newest.activity_source AS of_source,
                   standing.user_id AS old_user, standing.activity_at AS old_at, standing.activity_id AS old_id, standing.activity_source AS old_source
            FROM {schema}.derived_owners(owned) AS newest,
              LATERAL (
                SELECT a.user_id, a.activity_at, a.activity_id, a.activity_source, a.source FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = newest.lead_id AND a.territory = here LIMIT 1) AS standing
            WHERE standing.source IN ('backfill', 'activity', 'moved')
              AND (standing.user_id IS DISTINCT FROM newest.user_id
                OR standing.activity_id IS DISTINCT FROM newest.activity_id
                OR standing.activity_source IS DISTINCT FROM newest.activity_source
                OR standing.activity_at IS DISTINCT FROM newest.activity_at)
          LOOP
            UPDATE {schema}.user_lead_assignments AS a
            SET user_id = seen.user_id, source = 'backfill', assigned_at = statement_timestamp(),
                activity_at = seen.at, activity_id = seen.id, activity_source = seen.of_source
            WHERE a.lead_id = seen.lead_id AND a.territory = here AND a.source IN ('backfill', 'activity', 'moved')
              AND (NOT ({named_first} AND a.source <> 'moved' AND a.activity_id IS NULL) AND (
                     a.activity_at IS NULL AND seen.at IS NOT NULL
                     OR a.activity_at < seen.at
                     OR a.activity_at IS NOT DISTINCT FROM seen.at
                        AND (coalesce(a.activity_source, '') > coalesce(seen.of_source, '')
                          OR a.activity_source IS NOT DISTINCT FROM seen.of_source
                             AND {schema}.earlier_activity(a.activity_source, a.activity_id::text, seen.id::text)))
                OR a.source <> 'moved' AND a.user_id IS NOT DISTINCT FROM seen.old_user
                   AND a.activity_at IS NOT DISTINCT FROM seen.old_at
                   AND a.activity_id IS NOT DISTINCT FROM seen.old_id
                   AND a.activity_source IS NOT DISTINCT FROM seen.old_source);
            made := made + FOUND::integer;
          END LOOP;
          RETURN made;
        EXCEPTION WHEN unique_violation THEN
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_leads(text, {lead_id_type}[]) IS
        'Gives these leads the user of their newest qualifying activity; NULL where a live transaction was faster';
        REVOKE ALL ON FUNCTION {schema}.own_leads(text, {lead_id_type}[]) FROM PUBLIC
        """)
    )


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
          SELECT {derivation}
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_settings() IS
        'The settings that decide who owns a lead, as these functions hold them';
        REVOKE ALL ON FUNCTION {schema}.backfill_settings() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_settings() TO {operator}
        """)
    )
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
          PERFORM {schema}.require_transition();
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
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_start(text, text) IS
        'Begins a walk over the leads of a territory, or goes on with one; returns whether it is a new one';
        REVOKE ALL ON FUNCTION {schema}.backfill_start(text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_start(text, text) TO {operator}
        """)
    )


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
          SELECT c.first_lead, c.last_lead, c.following INTO first, last, following
          FROM {schema}.chunk_bounds(here, job.next_lead, chunk_rows) AS c;
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
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_claim(text, integer, text, interval) IS
        'Claims what a dead worker left, or the next part of a territory, with a lease and a fencing token';
        REVOKE ALL ON FUNCTION {schema}.backfill_claim(text, integer, text, interval) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_claim(text, integer, text, interval) TO {operator}
        """)
    )


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
          PERFORM {schema}.require_transition();
          SELECT * INTO part FROM {schema}.backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk AND c.token = backfill_slice.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          -- one more than the slice: the first of the next one
          leads := {schema}.next_leads(here, part.next_lead, part.last_lead, slice_rows + 1);
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
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_slice(text, bigint, bigint, integer) IS
        'Owns the next leads of a chunk and moves its cursor, in one transaction';
        REVOKE ALL ON FUNCTION {schema}.backfill_slice(text, bigint, bigint, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_slice(text, bigint, bigint, integer) TO {operator}
        """)
    )
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
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_release(text, bigint, bigint) IS
        'A worker that stops gives its chunk back, so that the next one need not wait for the lease';
        REVOKE ALL ON FUNCTION {schema}.backfill_release(text, bigint, bigint) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_release(text, bigint, bigint) TO {operator}
        """)
    )
