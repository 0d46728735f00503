-- The schema of leadprotect with default settings, as it stands after lp_0009_contract_triggers.
-- Made by `make schema` from a real database with pg_dump; a test keeps it current. Do not edit.
--
-- All objects belong to leadprotect_owner. The months of lead_access_audit are left out: each is a
-- partition like lead_access_audit_default, with the same policies and the same trigger.

-- SCHEMA leadprotect

CREATE SCHEMA leadprotect;

-- COMMENT SCHEMA leadprotect

COMMENT ON SCHEMA leadprotect IS 'leadprotect: one owner per lead and territory, audited';

-- TYPE lead_access_outcome

CREATE TYPE leadprotect.lead_access_outcome AS ENUM (
    'ALLOW',
    'DENY'
);

-- TYPE lead_action

CREATE TYPE leadprotect.lead_action AS ENUM (
    'VIEW',
    'EDIT',
    'ASSIGN',
    'UNASSIGN'
);

-- TYPE protection_type

CREATE TYPE leadprotect.protection_type AS ENUM (
    'SOLE_OWNER',
    'COLLABORATOR',
    'VIEW_ONLY'
);

-- FUNCTION add_audit_partition(timestamp with time zone, timestamp with time zone)

CREATE FUNCTION leadprotect.add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone) RETURNS regclass
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
        DECLARE
          part text := 'lead_access_audit_' || to_char(from_month, 'YYYY_MM');
        BEGIN
          EXECUTE format('CREATE TABLE "leadprotect".%I (LIKE "leadprotect".lead_access_audit
                          INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part);
          PERFORM "leadprotect".secure_audit_table(('"leadprotect".' || part)::regclass);
          EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit ATTACH PARTITION "leadprotect".%I
                          FOR VALUES FROM (%L) TO (%L)', part, from_month, to_month);
          RETURN ('"leadprotect".' || part)::regclass;
        END
        $$;

-- FUNCTION allow_edit(uuid, leadprotect.lead_action, text)

CREATE FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          caller uuid := "leadprotect".parse_user(current_setting('app.user_id', true));
          here text := current_setting('app.territory', true);
          decision text;
        BEGIN
          PERFORM FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id = caller AND "leadprotect".is_member(here) FOR SHARE;
          decision := "leadprotect".explain_edit(lead);
          IF decision = 'collaborator' THEN
            PERFORM FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                AND (r.lead_id IS NULL OR r.lead_id = lead) FOR SHARE;
            decision := "leadprotect".explain_edit(lead);
          END IF;
          IF decision IN ('owner', 'collaborator') THEN
            PERFORM "leadprotect".write_audit(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $$;

-- TABLE lead_access_audit_seals

CREATE TABLE leadprotect.lead_access_audit_seals (
    territory text,
    number bigint NOT NULL,
    hash bytea NOT NULL,
    previous bytea,
    run bigint NOT NULL,
    month date NOT NULL,
    row_count bigint NOT NULL,
    ids int8multirange NOT NULL,
    content bytea NOT NULL,
    row_checks bytea NOT NULL,
    first_at timestamp with time zone,
    last_at timestamp with time zone,
    sealed_at timestamp with time zone NOT NULL,
    sealed_by name DEFAULT SESSION_USER NOT NULL,
    origin text NOT NULL,
    snapshot pg_snapshot NOT NULL,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    last_number bigint NOT NULL,
    settled_until timestamp with time zone NOT NULL,
    detached_table name
);

ALTER TABLE ONLY leadprotect.lead_access_audit_seals FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE lead_access_audit_seals

COMMENT ON TABLE leadprotect.lead_access_audit_seals IS 'Chains of hashes over the rows of lead_access_audit; leadprotect audit verify compares. Keep the newest hash elsewhere, too';

-- COMMENT COLUMN lead_access_audit_seals.content

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.content IS 'sha256 over the sha256 of each row, in the order of their ids';

-- COMMENT COLUMN lead_access_audit_seals.row_checks

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.row_checks IS 'the first four bytes of each row''s sha256: they name the row that was changed';

-- COMMENT COLUMN lead_access_audit_seals.origin

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.origin IS 'server and table in which transaction ids of this run mean something';

-- COMMENT COLUMN lead_access_audit_seals.snapshot

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.snapshot IS 'rows of transactions that had ended in it are in this run or an earlier one';

-- COMMENT COLUMN lead_access_audit_seals.last_number

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.last_number IS 'the newest number drawn for a row when the run began';

-- COMMENT COLUMN lead_access_audit_seals.settled_until

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.settled_until IS 'every row of a time before this is sealed';

-- COMMENT COLUMN lead_access_audit_seals.detached_table

COMMENT ON COLUMN leadprotect.lead_access_audit_seals.detached_table IS 'set where the entry says that a month was detached, not that rows were sealed';

-- FUNCTION append_audit_seal(leadprotect.lead_access_audit_seals)

CREATE FUNCTION leadprotect.append_audit_seal(entry leadprotect.lead_access_audit_seals) RETURNS leadprotect.lead_access_audit_seals
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          SELECT max(s.number) + 1, (array_agg(s.hash ORDER BY s.number DESC))[1]
          INTO entry.number, entry.previous
          FROM "leadprotect".lead_access_audit_seals AS s
          WHERE s.territory IS NOT DISTINCT FROM entry.territory;
          entry.number := coalesce(entry.number, 1);
          entry.sealed_by := session_user;
          entry.transaction_id := pg_current_xact_id();
          -- leadprotect audit verify makes the same text of the same fields
          entry.hash := sha256(coalesce(entry.previous, '') || sha256(convert_to(json_build_array(
            'lp-seal-1', entry.territory, entry.number, entry.run, entry.month, entry.row_count, entry.ids::text,
            encode(entry.content, 'hex'), encode(entry.row_checks, 'hex'),
            entry.first_at AT TIME ZONE 'UTC', entry.last_at AT TIME ZONE 'UTC', entry.sealed_at AT TIME ZONE 'UTC',
            entry.sealed_by, entry.origin, entry.snapshot::text, entry.transaction_id::text, entry.last_number,
            entry.settled_until AT TIME ZONE 'UTC', entry.detached_table)::text, 'UTF8')));
          INSERT INTO "leadprotect".lead_access_audit_seals SELECT entry.*;
          -- a log that is shipped elsewhere keeps the newest hash out of everybody's reach
          RAISE LOG 'leadprotect seal: territory %, number %, hash %',
            coalesce(quote_ident(entry.territory), 'none'), entry.number, encode(entry.hash, 'hex');
          RETURN entry;
        END
        $$;

-- FUNCTION assert_edit_and_audit(uuid, leadprotect.lead_action, text)

CREATE FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          decision text := "leadprotect".allow_edit(lead, action, note);
        BEGIN
          IF decision NOT IN ('owner', 'collaborator') THEN
            PERFORM "leadprotect".deny(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $$;

-- FUNCTION assign_lead(uuid, uuid, text)

CREATE FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".change_owner(lead, 'assign', new_owner, note), note);
        END
        $$;

-- FUNCTION audit_edit()

CREATE FUNCTION leadprotect.audit_edit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(current_setting('app.user_id', true));
          remark text := lower(TG_OP) || ' without assertion';
          decision text;
        BEGIN
          IF NOT EXISTS (
            SELECT FROM "leadprotect".lead_access_audit AS e
            WHERE e.lead_id = OLD."id" AND e.at >= transaction_timestamp()
              AND e.transaction_id = pg_current_xact_id() AND e.action = 'EDIT' AND e.outcome = 'ALLOW'
              AND e.user_id IS NOT DISTINCT FROM author)
          THEN
            IF TG_ARGV[0] = 'bound' THEN
              decision := "leadprotect".allow_edit(OLD."id", 'EDIT', remark);
              IF decision NOT IN ('owner', 'collaborator') THEN
                PERFORM "leadprotect".deny(OLD."id", 'EDIT', decision, remark);
              END IF;
            ELSE
              decision := "leadprotect".explain_edit(OLD."id");
              INSERT INTO "leadprotect".lead_access_audit
                (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
              VALUES (
                OLD."id", author,
                coalesce(nullif(current_setting('role'), 'none'), session_user),
                OLD."territory", 'EDIT', 'ALLOW',
                CASE WHEN decision IN ('owner', 'collaborator') THEN decision ELSE 'maintenance' END, remark,
                nullif(current_setting('app.correlation_id', true), ''));
            END IF;
          END IF;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $$;

-- FUNCTION audit_number_gaps()

CREATE FUNCTION leadprotect.audit_number_gaps() RETURNS TABLE(first_number bigint, last_number bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        DECLARE
          here text := "leadprotect".audit_origin();
          -- numbers up to here were drawn by transactions that have ended
          drawn bigint := (
            SELECT max(s.last_number) FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.origin <> here OR s.transaction_id < pg_snapshot_xmin(pg_current_snapshot()));
          done int8multirange := coalesce(
            (SELECT range_agg(s.ids) FROM "leadprotect".lead_access_audit_seals AS s), '{}');
          open_from timestamptz := (
            SELECT date_trunc('month', max(s.settled_until) - interval '1 minute', 'UTC')
            FROM "leadprotect".lead_access_audit_seals AS s);
        BEGIN
          IF drawn > 0 THEN
            RETURN QUERY
              SELECT lower(gap), upper(gap) - 1
              FROM unnest(int8multirange(int8range(1, drawn, '[]')) - done - coalesce(
                (SELECT range_agg(int8range(a.id, a.id, '[]')) FROM "leadprotect".lead_access_audit AS a
                 WHERE a.at >= open_from AND NOT done @> a.id), '{}')) AS gap;
          END IF;
        END
        $$;

-- COMMENT FUNCTION audit_number_gaps()

COMMENT ON FUNCTION leadprotect.audit_number_gaps() IS 'Numbers without a row: the server''s log tells of each denial that was raised (leadprotect denial N)';

-- FUNCTION audit_origin()

CREATE FUNCTION leadprotect.audit_origin() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          place text := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            || '/' || '"leadprotect".lead_access_audit'::regclass::oid;
        BEGIN
          RETURN (SELECT c.system_identifier FROM pg_control_system() AS c) || '/' || place;
        EXCEPTION WHEN insufficient_privilege THEN
          RETURN 'unknown/' || place;
        END
        $$;

-- TABLE lead_access_audit

CREATE TABLE leadprotect.lead_access_audit (
    lead_id uuid NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id bigint NOT NULL,
    user_id uuid,
    login name DEFAULT SESSION_USER NOT NULL,
    role name NOT NULL,
    territory text,
    action leadprotect.lead_action NOT NULL,
    outcome leadprotect.lead_access_outcome NOT NULL,
    reason text NOT NULL,
    note text,
    correlation_id text,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL
)
PARTITION BY RANGE (at);

ALTER TABLE ONLY leadprotect.lead_access_audit FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE lead_access_audit

COMMENT ON TABLE leadprotect.lead_access_audit IS 'Every attempt on a lead, allowed or denied; append-only for everybody';

-- FUNCTION audit_partitions()

CREATE FUNCTION leadprotect.audit_partitions() RETURNS TABLE(part regclass, name name, from_month timestamp with time zone, to_month timestamp with time zone)
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT (c.oid)::regclass AS oid,
     c.relname,
     ("substring"(bound.text, 'FROM [(]''([^'']+)''[)]'::text))::timestamp with time zone AS "substring",
     ("substring"(bound.text, 'TO [(]''([^'']+)''[)]'::text))::timestamp with time zone AS "substring"
    FROM (pg_inherits i
      JOIN pg_class c ON ((c.oid = i.inhrelid))),
     LATERAL ( SELECT pg_get_expr(c.relpartbound, c.oid) AS text) bound
   WHERE ((i.inhparent = ('leadprotect.lead_access_audit'::regclass)::oid) AND (bound.text <> 'DEFAULT'::text))
   ORDER BY ("substring"(bound.text, 'FROM [(]''([^'']+)''[)]'::text))::timestamp with time zone;
END;

-- COMMENT FUNCTION audit_partitions()

COMMENT ON FUNCTION leadprotect.audit_partitions() IS 'Partitions of the audit, each from its first month up to, and without, to_month; not the default one';

-- FUNCTION audit_settled_until()

CREATE FUNCTION leadprotect.audit_settled_until() RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN coalesce(
            (SELECT greatest(
               max(s.settled_until),
               max(s.sealed_at) FILTER (WHERE s.origin = "leadprotect".audit_origin()
                 AND s.transaction_id < pg_snapshot_xmin(pg_current_snapshot())))
             FROM "leadprotect".lead_access_audit_seals AS s WHERE s.detached_table IS NULL),
            '-infinity');
        END
        $$;

-- FUNCTION audit_truncate()

CREATE FUNCTION leadprotect.audit_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
          SELECT l."id", "leadprotect".parse_user(current_setting('app.user_id', true)),
                 coalesce(nullif(current_setting('role'), 'none'), session_user),
                 l."territory", 'EDIT', 'ALLOW', 'maintenance', 'truncate without assertion',
                 nullif(current_setting('app.correlation_id', true), '')
          FROM "public"."leads" AS l WHERE l."territory" IS NOT NULL;
          DELETE FROM "leadprotect".user_lead_assignments;
          RETURN NULL;
        END
        $$;

-- FUNCTION backfill_claim(text, integer, text, interval)

CREATE FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          job "leadprotect".backfill_jobs;
          first uuid;
          last uuid;
          following uuid;
        BEGIN
          UPDATE "leadprotect".backfill_chunks AS c
          SET worker = backfill_claim.worker, token = c.token + 1, lease = backfill_claim.lease,
              lease_until = clock_timestamp() + backfill_claim.lease
          WHERE c.territory = here AND c.chunk = (
            SELECT o.chunk FROM "leadprotect".backfill_chunks AS o
            WHERE o.territory = here AND o.finished_at IS NULL AND o.lease_until < clock_timestamp()
            ORDER BY o.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED)
          RETURNING c.chunk, c.token INTO chunk, token;
          IF FOUND THEN
            RETURN;
          END IF;
          SELECT * INTO job FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF job.exhausted THEN
            RETURN;
          END IF;
          first := job.next_lead;
          IF first IS NULL THEN
            SELECT l."id" INTO first FROM "public"."leads" AS l
              WHERE l."territory" = here ORDER BY l."id" LIMIT 1;
          END IF;
          IF first IS NOT NULL THEN
            SELECT l."id" INTO following FROM "public"."leads" AS l
              WHERE l."territory" = here AND l."id" >= first
              ORDER BY l."id" OFFSET chunk_rows LIMIT 1;
            IF following IS NULL THEN
              SELECT l."id" INTO last FROM "public"."leads" AS l
                WHERE l."territory" = here AND l."id" >= first ORDER BY l."id" DESC LIMIT 1;
            ELSE
              SELECT l."id" INTO last FROM "public"."leads" AS l
                WHERE l."territory" = here AND l."id" >= first AND l."id" < following
                ORDER BY l."id" DESC LIMIT 1;
            END IF;
          END IF;
          -- the leads of this part may have gone meanwhile
          IF last IS NOT NULL THEN
            INSERT INTO "leadprotect".backfill_chunks AS c
              (territory, chunk, next_lead, last_lead, worker, lease, lease_until)
            VALUES (here, job.chunks + 1, first, last, worker, lease, clock_timestamp() + lease)
            RETURNING c.chunk, c.token INTO chunk, token;
          END IF;
          UPDATE "leadprotect".backfill_jobs AS j
          SET next_lead = following, exhausted = following IS NULL,
              chunks = j.chunks + (last IS NOT NULL)::integer
          WHERE j.territory = here;
        END
        $$;

-- TABLE user_lead_assignments

CREATE TABLE leadprotect.user_lead_assignments (
    lead_id uuid NOT NULL,
    territory text NOT NULL,
    user_id uuid,
    assigned_at timestamp with time zone DEFAULT statement_timestamp() NOT NULL,
    assigned_by uuid,
    source text DEFAULT 'assign'::text NOT NULL,
    activity_at timestamp with time zone,
    activity_id bigint,
    CONSTRAINT ula_released CHECK (((user_id IS NULL) = (source = 'release'::text)))
);

ALTER TABLE ONLY leadprotect.user_lead_assignments FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE user_lead_assignments

COMMENT ON TABLE leadprotect.user_lead_assignments IS 'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand';

-- COMMENT COLUMN user_lead_assignments.source

COMMENT ON COLUMN leadprotect.user_lead_assignments.source IS 'backfill and activity: derived, a newer activity wins; release: no owner by hand; anything else: made by hand, stays';

-- COMMENT COLUMN user_lead_assignments.activity_id

COMMENT ON COLUMN leadprotect.user_lead_assignments.activity_id IS 'The qualifying activity on which a derived assignment (source backfill or activity) rests';

-- FUNCTION backfill_counts(text[])

CREATE FUNCTION leadprotect.backfill_counts(territories text[]) RETURNS TABLE(territory text, ownerless bigint, missing bigint, released bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT code.code,
     COALESCE((u.leads - u.qualifying), (0)::bigint) AS "coalesce",
     COALESCE(u.qualifying, (0)::bigint) AS "coalesce",
     ( SELECT count(*) AS count
            FROM leadprotect.user_lead_assignments a
           WHERE ((a.user_id IS NULL) AND (a.territory = code.code))) AS count
    FROM (unnest(backfill_counts.territories) code(code)
      LEFT JOIN ( SELECT (l.territory)::text AS here,
             count(*) AS leads,
             count(*) FILTER (WHERE (EXISTS ( SELECT
                    FROM public.activities v
                   WHERE ((v.lead_id = l.id) AND (v.kind = ANY (ARRAY['QUALIFIED_CALL'::text, 'CUSTOMER_REACTION'::text, 'SCHEDULED_FOLLOWUP'::text, 'SAMPLE_FEEDBACK'::text, 'ROI_PRESENTATION'::text])) AND (v.user_id IS NOT NULL))))) AS qualifying
            FROM public.leads l
           WHERE (((l.territory)::text = ANY (backfill_counts.territories)) AND (NOT (EXISTS ( SELECT
                    FROM leadprotect.user_lead_assignments a
                   WHERE ((a.lead_id = l.id) AND (a.territory = (l.territory)::text))))))
           GROUP BY l.territory) u ON ((u.here = code.code)));
END;

-- COMMENT FUNCTION backfill_counts(territories text[])

COMMENT ON FUNCTION leadprotect.backfill_counts(territories text[]) IS 'Leads without an owner in each territory: without a qualifying activity, with one, and released by hand';

-- FUNCTION backfill_defer(text, bigint, bigint, text)

CREATE FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          part "leadprotect".backfill_chunks;
          leads uuid[];
        BEGIN
          SELECT * INTO part FROM "leadprotect".backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk AND c.token = backfill_defer.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          leads := ARRAY(
            SELECT l."id" FROM "public"."leads" AS l
            WHERE l."territory" = here AND l."id" >= part.next_lead AND l."id" <= part.last_lead
            ORDER BY l."id" LIMIT 2);
          IF cardinality(leads) > 0 THEN
            INSERT INTO "leadprotect".backfill_deferred AS d (territory, lead_id, reason)
            VALUES (here, leads[1], backfill_defer.reason)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET reason = excluded.reason, deferred_at = excluded.deferred_at;
          END IF;
          UPDATE "leadprotect".backfill_chunks AS c
          SET next_lead = leads[2], scanned = c.scanned + least(cardinality(leads), 1),
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN cardinality(leads) < 2 THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk;
          RETURN leads[1];
        END
        $$;

-- FUNCTION backfill_estimate(text)

CREATE FUNCTION leadprotect.backfill_estimate(here text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          plan json;
        BEGIN
          EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM "public"."leads" AS l WHERE l."territory" = %L', here) INTO plan;
          RETURN (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint;
        END
        $$;

-- FUNCTION backfill_finish(text)

CREATE FUNCTION leadprotect.backfill_finish(here text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          UPDATE "leadprotect".backfill_jobs AS j
          SET ended_at = clock_timestamp(),
              finished_at = CASE
                WHEN j.finished_at IS NULL OR j.retried > 0 OR EXISTS (
                  SELECT FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here AND c.assigned > 0)
                THEN clock_timestamp() ELSE j.finished_at END
          WHERE j.territory = here AND j.exhausted AND j.ended_at IS NULL
            AND NOT EXISTS (SELECT FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here AND c.finished_at IS NULL)
            AND NOT EXISTS (SELECT FROM "leadprotect".backfill_deferred AS d WHERE d.territory = here);
          RETURN FOUND;
        END
        $$;

-- FUNCTION backfill_outside()

CREATE FUNCTION leadprotect.backfill_outside() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT count(*) AS count
    FROM public.leads l
   WHERE (l.territory IS NULL);
END;

-- COMMENT FUNCTION backfill_outside()

COMMENT ON FUNCTION leadprotect.backfill_outside() IS 'Number of leads without a territory: outside protection';

-- FUNCTION backfill_release(text, bigint, bigint)

CREATE FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
          UPDATE "leadprotect".backfill_chunks AS c SET lease_until = '-infinity'
          WHERE c.territory = here AND c.chunk = backfill_release.chunk AND c.token = backfill_release.token
            AND c.finished_at IS NULL
        $$;

-- COMMENT FUNCTION backfill_release(here text, chunk bigint, token bigint)

COMMENT ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) IS 'A worker that stops gives its chunk back, so that the next one need not wait for the lease';

-- FUNCTION backfill_report(text[])

CREATE FUNCTION leadprotect.backfill_report(territories text[]) RETURNS TABLE(lead_id uuid, territory text, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          SELECT l."id", l."territory"::text, CASE
              WHEN EXISTS (
                SELECT FROM "leadprotect".backfill_deferred AS d
                WHERE d.lead_id = l."id" AND d.territory = l."territory") THEN 'locked'
              WHEN EXISTS (
                SELECT FROM "public"."activities" AS v
                WHERE v."lead_id" = l."id"
                  AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL) THEN 'missing'
              ELSE 'no_qualifying_activity' END
          FROM "public"."leads" AS l
          WHERE l."territory" = ANY (territories)
            AND NOT EXISTS (
              SELECT FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = l."id" AND a.territory = l."territory")
          UNION ALL
          SELECT a.lead_id, a.territory, 'released'
          FROM "leadprotect".user_lead_assignments AS a
          WHERE a.territory = ANY (territories) AND a.user_id IS NULL
          UNION ALL
          SELECT l."id", NULL, 'no_territory' FROM "public"."leads" AS l WHERE l."territory" IS NULL;
        END
        $$;

-- FUNCTION backfill_request(text, text, text)

CREATE FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          before text;
        BEGIN
          SELECT j.request INTO before FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          UPDATE "leadprotect".backfill_jobs AS j SET request = wanted, request_reason = reason WHERE j.territory = here;
          RETURN before;
        END
        $$;

-- FUNCTION backfill_retry(text, uuid)

CREATE FUNCTION leadprotect.backfill_retry(here text, lead uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          made integer;
        BEGIN
          DELETE FROM "leadprotect".backfill_deferred AS d WHERE d.territory = here AND d.lead_id = lead;
          IF NOT FOUND THEN
            RETURN 0;
          END IF;
          made := "leadprotect".own_leads(here, ARRAY(
            SELECT l."id" FROM "public"."leads" AS l WHERE l."id" = lead AND l."territory" = here));
          IF made IS NULL THEN
            INSERT INTO "leadprotect".backfill_deferred (territory, lead_id, reason)
            VALUES (here, lead, 'assigned by a live transaction at the same moment');
          ELSE
            UPDATE "leadprotect".backfill_jobs AS j SET retried = j.retried + made WHERE j.territory = here AND made > 0;
          END IF;
          RETURN made;
        END
        $$;

-- FUNCTION backfill_sample(text, integer)

CREATE FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $_$
        #variable_conflict use_variable
        DECLARE
          percent float8;
        BEGIN
          leads := "leadprotect".backfill_estimate(here);
          percent := 100.0 * wanted / greatest(leads, 1);
          LOOP
            EXECUTE format(
              'SELECT count(*), count(*) FILTER (WHERE NOT s.stands AND s.qualifying),
                      count(*) FILTER (WHERE NOT s.stands AND NOT s.qualifying)
               FROM (
                 SELECT EXISTS (
                          SELECT FROM "leadprotect".user_lead_assignments AS a
                          WHERE a.lead_id = l."id" AND a.territory = %1$L) AS stands,
                        EXISTS (
                          SELECT FROM "public"."activities" AS v
                          WHERE v."lead_id" = l."id"
                            AND v."kind" IN (%2$s) AND v."user_id" IS NOT NULL) AS qualifying
                 FROM "public"."leads" AS l %3$s WHERE l."territory" = %1$L) AS s',
              here, (SELECT string_agg(quote_literal(kind), ', ') FROM unnest(ARRAY['QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION']) AS kind),
              CASE WHEN percent < 50 THEN format('TABLESAMPLE SYSTEM (%s)', percent) ELSE '' END)
              INTO sampled, assignable, ownerless;
            EXIT WHEN sampled > 0 OR percent >= 50;
            percent := percent * 10;
          END LOOP;
          IF percent >= 50 THEN
            leads := sampled;
          END IF;
        END
        $_$;

-- FUNCTION backfill_settings()

CREATE FUNCTION leadprotect.backfill_settings() RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
          SELECT concat_ws('; ',
            '"public"."leads"', '"id"', '"territory"', '"public"."activities"', '"id"', '"lead_id"',
            '"user_id"', '"kind"', '"created_at"',
            (SELECT string_agg(kind, ', ' ORDER BY kind COLLATE "C") FROM unnest(ARRAY['QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION']) AS kind))
        $$;

-- FUNCTION backfill_settle(uuid)

CREATE FUNCTION leadprotect.backfill_settle(lead uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          notes uuid[] := ARRAY(SELECT u.id FROM "leadprotect".unsettled_leads AS u WHERE u.lead_id = lead);
          settled integer;
        BEGIN
          PERFORM FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity') FOR UPDATE;
          IF EXISTS (SELECT FROM "public"."leads" AS l WHERE l."id" = lead) THEN
            UPDATE "leadprotect".user_lead_assignments AS a
            SET user_id = newest.user_id, assigned_at = statement_timestamp(),
                activity_at = newest.at, activity_id = newest.id
            FROM (
              SELECT v."user_id" AS user_id, v."created_at" AS at, v."id" AS id
              FROM "public"."activities" AS v
              WHERE v."lead_id" = lead
                AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
              ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity')
              AND (a.user_id IS DISTINCT FROM newest.user_id OR a.activity_id IS DISTINCT FROM newest.id
                OR a.activity_at IS DISTINCT FROM newest.at);
          ELSE
            DELETE FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead;
          END IF;
          GET DIAGNOSTICS settled = ROW_COUNT;
          DELETE FROM "leadprotect".unsettled_leads AS u WHERE u.id = ANY (notes);
          RETURN settled;
        END
        $$;

-- FUNCTION backfill_slice(text, bigint, bigint, integer)

CREATE FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          part "leadprotect".backfill_chunks;
          leads uuid[];
        BEGIN
          SELECT * INTO part FROM "leadprotect".backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk AND c.token = backfill_slice.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          -- one more than the slice: the first of the next one
          leads := ARRAY(
            SELECT l."id" FROM "public"."leads" AS l
            WHERE l."territory" = here AND l."id" >= part.next_lead AND l."id" <= part.last_lead
            ORDER BY l."id" LIMIT slice_rows + 1);
          assigned := "leadprotect".own_leads(here, leads[:slice_rows]);
          IF assigned IS NULL THEN
            scanned := 0;
            assigned := 0;
            finished := false;
            RETURN;
          END IF;
          scanned := least(cardinality(leads), slice_rows);
          finished := cardinality(leads) <= slice_rows;
          UPDATE "leadprotect".backfill_chunks AS c
          SET next_lead = leads[slice_rows + 1],
              scanned = c.scanned + backfill_slice.scanned, assigned = c.assigned + backfill_slice.assigned,
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN finished THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk;
        END
        $$;

-- FUNCTION backfill_stale(text)

CREATE FUNCTION leadprotect.backfill_stale(here text) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          SELECT a.lead_id
          FROM "leadprotect".user_lead_assignments AS a
          JOIN "public"."leads" AS l ON l."id" = a.lead_id AND l."territory" = here,
            LATERAL (
              SELECT v."user_id" AS user_id, v."id" AS id FROM "public"."activities" AS v
              WHERE v."lead_id" = a.lead_id
                AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
              ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
          WHERE a.territory = here AND a.source IN ('backfill', 'activity')
            AND (a.activity_id IS DISTINCT FROM newest.id OR a.user_id IS DISTINCT FROM newest.user_id);
        END
        $$;

-- COMMENT FUNCTION backfill_stale(here text)

COMMENT ON FUNCTION leadprotect.backfill_stale(here text) IS 'Leads of the territory whose derived owner is not the user of the newest qualifying activity';

-- FUNCTION backfill_start(text, text)

CREATE FUNCTION leadprotect.backfill_start(here text, settings text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          job "leadprotect".backfill_jobs;
          fresh boolean;
        BEGIN
          IF settings IS DISTINCT FROM "leadprotect".backfill_settings() THEN
            RAISE EXCEPTION 'the settings are not those with which the backfill was migrated'
              USING ERRCODE = 'LP422', DETAIL = format('then %s; now %s', "leadprotect".backfill_settings(), settings);
          END IF;
          SELECT * INTO job FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          fresh := job.started_at IS NULL OR job.ended_at IS NOT NULL;
          IF fresh THEN
            DELETE FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here;
            UPDATE "leadprotect".backfill_jobs AS j
            SET started_at = clock_timestamp(), ended_at = NULL, exhausted = false, next_lead = NULL,
                chunks = 0, retried = 0
            WHERE j.territory = here;
          END IF;
          -- a pause outlives a start: whoever asked for it says when it is over
          UPDATE "leadprotect".backfill_jobs AS j SET request = 'run', request_reason = NULL
          WHERE j.territory = here AND j.request = 'stop';
          RETURN fresh;
        END
        $$;

-- FUNCTION decide(uuid, text, text)

CREATE FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER COST 1000 PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          caller uuid := "leadprotect".parse_user(declared_user);
          owner uuid;
          has_rules boolean;
        BEGIN
          IF caller IS NULL OR declared_territory IS NULL THEN
            RETURN 'no_context';
          END IF;
          SELECT a.user_id, EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = caller AND r.territory = declared_territory)
          INTO owner, has_rules
          FROM "public"."leads" AS l
          LEFT JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = lead AND a.territory = declared_territory
          WHERE l."id" = lead AND l."territory" = declared_territory;
          IF NOT FOUND OR NOT "leadprotect".is_member(declared_territory) THEN
            -- what can't be a code is no context; asked last, because who finds his lead declared one
            RETURN CASE WHEN "leadprotect".is_code(declared_territory) THEN 'not_found' ELSE 'no_context' END;
          ELSIF has_rules THEN
            RETURN (SELECT d.reason FROM "leadprotect".decision(lead, caller, declared_territory) AS d);
          END IF;
          RETURN CASE WHEN owner IS NULL THEN 'unassigned' WHEN owner = caller THEN 'owner' ELSE 'not_owner' END;
        END
        $$;

-- COMMENT FUNCTION decide(lead uuid, declared_user text, declared_territory text)

COMMENT ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) IS 'The decision: no_context, not_found, suspended, owner, collaborator, unassigned or not_owner';

-- FUNCTION can_edit_lead(uuid)

CREATE FUNCTION leadprotect.can_edit_lead(lead uuid) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT (leadprotect.decide(lead, current_setting('app.user_id'::text, true), current_setting('app.territory'::text, true)) = ANY (ARRAY['owner'::text, 'collaborator'::text]));
END;

-- FUNCTION change_owner(uuid, text, uuid, text)

CREATE FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(current_setting('app.user_id', true));
          manager boolean := "leadprotect".is_manager() AND change <> 'claim';
          here text := "leadprotect".lead_for_ownership(lead, manager);
          standing "leadprotect".user_lead_assignments;
          decision text;
        BEGIN
          IF change NOT IN ('assign', 'claim', 'release', 'transfer') THEN
            RAISE EXCEPTION '% is no change of ownership', change USING ERRCODE = 'LP422';
          ELSIF change IN ('assign', 'transfer') AND new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          IF here IS NOT NULL AND change <> 'claim' THEN
            SELECT * INTO standing FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          END IF;
          decision := "leadprotect".explain_edit(lead);
          IF change = 'claim' THEN
            new_owner := author;
            IF decision NOT IN ('owner', 'collaborator', 'unassigned') THEN
              RETURN decision;
            END IF;
          ELSIF manager THEN
            IF author IS NULL AND current_setting('app.user_id', true) <> '' THEN
              RETURN 'no_context';
            ELSIF here IS NULL THEN
              RETURN 'not_found';
            ELSIF change = 'transfer' AND standing.user_id IS NULL THEN
              RETURN 'unassigned';
            END IF;
            decision := 'manager';
          ELSIF change <> 'release' OR decision <> 'owner' THEN
            -- a collaborator may edit, but the lead is not his to give away
            RETURN CASE WHEN decision IN ('owner', 'collaborator') THEN 'not_owner' ELSE decision END;
          ELSE
            new_owner := NULL;
          END IF;
          IF change = 'release' THEN
            new_owner := NULL;
          ELSIF change <> 'claim' AND EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = here AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = lead)
              AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RAISE EXCEPTION 'the new owner is suspended in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO "leadprotect".user_lead_assignments AS a
            (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (lead, here, new_owner, clock_timestamp(), author, change)
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, assigned_at = excluded.assigned_at,
                assigned_by = excluded.assigned_by, source = excluded.source,
                activity_at = NULL, activity_id = NULL
            WHERE change <> 'claim' OR a.user_id IS NULL OR a.user_id = excluded.user_id;
          IF NOT FOUND THEN
            RETURN 'not_owner';
          END IF;
          decision := CASE decision WHEN 'manager' THEN decision ELSE 'owner' END;
          PERFORM "leadprotect".write_audit(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action, decision,
            concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')));
          RETURN decision;
        END
        $$;

-- FUNCTION change_sharing(uuid, text, uuid, timestamp with time zone, timestamp with time zone, text)

CREATE FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          manager boolean := "leadprotect".is_manager();
          here text := "leadprotect".lead_for_ownership(lead, manager);
          starts timestamptz := coalesce(effective_from, clock_timestamp());
          decision text;
        BEGIN
          IF change NOT IN ('share', 'unshare') THEN
            RAISE EXCEPTION '% is no change of sharing', change USING ERRCODE = 'LP422';
          ELSIF with_user IS NULL THEN
            RAISE EXCEPTION 'the user to share with is missing' USING ERRCODE = 'LP422';
          ELSIF change = 'share' AND effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          END IF;
          PERFORM FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
          decision := "leadprotect".explain_edit(lead);
          IF here IS NULL THEN
            RETURN CASE decision WHEN 'no_context' THEN decision ELSE 'not_found' END;
          ELSIF manager THEN
            IF current_setting('app.user_id', true) <> '' AND "leadprotect".parse_user(current_setting('app.user_id', true)) IS NULL THEN
              RETURN 'no_context';
            END IF;
            decision := 'manager';
          ELSIF decision <> 'owner' THEN
            RETURN CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END;
          END IF;
          IF change = 'share' THEN
            INSERT INTO "leadprotect".lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
            VALUES (with_user, here, 'COLLABORATOR', lead, starts, change_sharing.effective_to)
            ON CONFLICT DO NOTHING;
          ELSE
            PERFORM "leadprotect".end_rules(with_user, here, 'COLLABORATOR', lead);
          END IF;
          PERFORM "leadprotect".write_audit(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::"leadprotect".lead_action, decision,
            concat_ws('; ', note, change || ' with ' || with_user));
          RETURN decision;
        END
        $$;

-- FUNCTION claim_lead(uuid, text)

CREATE FUNCTION leadprotect.claim_lead(lead uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".change_owner(lead, 'claim', NULL, note), note);
        END
        $$;

-- FUNCTION clear_audit_default(integer)

CREATE FUNCTION leadprotect.clear_audit_default(max_moved integer) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
        DECLARE
          found bigint;
          endless bigint;
          low timestamptz;
          high timestamptz;
          part text;
          month timestamptz;
          created integer := 0;
        BEGIN
          SELECT count(*) FILTER (WHERE isfinite(d.at)), count(*) FILTER (WHERE NOT isfinite(d.at)),
                 date_trunc('month', min(d.at) FILTER (WHERE isfinite(d.at))),
                 date_trunc('month', max(d.at) FILTER (WHERE isfinite(d.at))) + interval '1 month'
          INTO found, endless, low, high
          FROM "leadprotect".lead_access_audit_default AS d;
          IF found = 0 THEN
            RETURN 0;
          END IF;
          part := 'lead_access_audit_' || to_char(low, 'YYYY_MM')
            || CASE WHEN high > low + interval '1 month'
                    THEN '_to_' || to_char(high - interval '1 month', 'YYYY_MM') ELSE '' END;
          IF endless = 0 AND to_regclass('"leadprotect".' || part) IS NULL AND NOT EXISTS (
            SELECT FROM "leadprotect".audit_partitions() AS p
            WHERE p.from_month < high AND low < p.to_month)
          THEN
            LOCK TABLE "leadprotect".lead_access_audit IN ACCESS EXCLUSIVE MODE;
            ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION "leadprotect".lead_access_audit_default;
            EXECUTE format('ALTER INDEX %s RENAME TO %I',
              (SELECT i.indexrelid::regclass FROM pg_index AS i
               WHERE i.indrelid = '"leadprotect".lead_access_audit_default'::regclass AND i.indisprimary), part || '_pkey');
            EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit_default RENAME TO %I', part);
            BEGIN
              EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit ATTACH PARTITION "leadprotect".%I
                              FOR VALUES FROM (%L) TO (%L)', part, low, high);
            EXCEPTION WHEN check_violation THEN
              RAISE EXCEPTION 'rows of another month have just come into the default partition; try again'
                USING ERRCODE = 'lock_not_available';
            END;
            CREATE TABLE "leadprotect".lead_access_audit_default PARTITION OF "leadprotect".lead_access_audit DEFAULT;
            PERFORM "leadprotect".secure_audit_table('"leadprotect".lead_access_audit_default');
            RETURN 1;
          ELSIF found > max_moved THEN
            RAISE EXCEPTION 'the default partition of the audit holds % rows of months that do not belong together', found
              USING ERRCODE = 'LP422', HINT = format(
                'Moving them stops every recording for about %s s. In a quiet hour: leadprotect audit partitions --max-moved %s',
                ceil(found / 100000.0), found);
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit IN ACCESS EXCLUSIVE MODE;
          ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION "leadprotect".lead_access_audit_default;
          ALTER TABLE "leadprotect".lead_access_audit_default RENAME TO lead_access_audit_moving;
          ALTER INDEX "leadprotect".lead_access_audit_default_pkey RENAME TO lead_access_audit_moving_pkey;
          CREATE TABLE "leadprotect".lead_access_audit_default PARTITION OF "leadprotect".lead_access_audit DEFAULT;
          PERFORM "leadprotect".secure_audit_table('"leadprotect".lead_access_audit_default');
          FOR month IN
            SELECT DISTINCT date_trunc('month', m.at) FROM "leadprotect".lead_access_audit_moving AS m WHERE isfinite(m.at)
          LOOP
            -- a month that was detached already keeps its name; its late rows stay in the default partition
            IF to_regclass('"leadprotect".lead_access_audit_' || to_char(month, 'YYYY_MM')) IS NULL THEN
              PERFORM "leadprotect".add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          INSERT INTO "leadprotect".lead_access_audit SELECT * FROM "leadprotect".lead_access_audit_moving;
          DROP TABLE "leadprotect".lead_access_audit_moving;
          RETURN created;
        END
        $$;

-- FUNCTION context()

CREATE FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) RETURNS record
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT current_setting('app.user_id'::text, true) AS current_setting,
     current_setting('app.territory'::text, true) AS current_setting,
     current_setting('app.correlation_id'::text, true) AS current_setting;
END;

-- FUNCTION create_audit_partitions(integer, integer)

CREATE FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer DEFAULT 20000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET lock_timeout TO '100ms'
    SET client_min_messages TO 'warning'
    SET row_security TO 'on'
    AS $$
        DECLARE
          this_month timestamptz := date_trunc('month', now());
          month timestamptz;
          created integer := 0;
        BEGIN
          IF months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 120 THEN
            RAISE EXCEPTION 'months ahead: % is not between 0 and 120', months_ahead USING ERRCODE = 'LP422';
          END IF;
          created := "leadprotect".clear_audit_default(max_moved);
          FOR step IN 0 .. months_ahead LOOP
            month := this_month + make_interval(months => step);
            IF NOT EXISTS (
              SELECT FROM "leadprotect".audit_partitions() AS p WHERE p.from_month <= month AND month < p.to_month)
            THEN
              LOCK TABLE "leadprotect".lead_access_audit_default IN ACCESS EXCLUSIVE MODE;
              IF EXISTS (SELECT FROM "leadprotect".lead_access_audit_default AS d
                         WHERE d.at >= month AND d.at < month + interval '1 month') THEN
                RAISE EXCEPTION 'rows of % have just come into the default partition; try again', month::date
                  USING ERRCODE = 'lock_not_available';
              END IF;
              PERFORM "leadprotect".add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          RETURN created;
        END
        $$;

-- FUNCTION in_force(boolean, timestamp with time zone, timestamp with time zone)

CREATE FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (active AND (effective_from <= statement_timestamp()) AND ((effective_to IS NULL) OR (statement_timestamp() < effective_to)));

-- TABLE lead_protection_rules

CREATE TABLE leadprotect.lead_protection_rules (
    user_id uuid NOT NULL,
    territory text NOT NULL,
    protection leadprotect.protection_type NOT NULL,
    lead_id uuid,
    active boolean DEFAULT true NOT NULL,
    effective_from timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    effective_to timestamp with time zone,
    made_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    made_by name DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT lpr_dates CHECK ((effective_to > effective_from))
);

ALTER TABLE ONLY leadprotect.lead_protection_rules REPLICA IDENTITY FULL;

ALTER TABLE ONLY leadprotect.lead_protection_rules FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE lead_protection_rules

COMMENT ON TABLE leadprotect.lead_protection_rules IS 'COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out territory-wide collaborators; lead_id NULL: the whole territory';

-- FUNCTION decision(uuid, uuid, text)

CREATE FUNCTION leadprotect.decision(lead uuid, caller uuid, here text) RETURNS TABLE(reason text)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT
         CASE
             WHEN ((EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.lead_id IS NULL) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to)))) OR (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.lead_id = decision.lead) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to))))) THEN 'suspended'::text
             WHEN (a.user_id = decision.caller) THEN 'owner'::text
             WHEN (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id = decision.lead) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to)))) THEN 'collaborator'::text
             WHEN ((EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id IS NULL) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to)))) AND (NOT (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules sole
               WHERE ((sole.user_id = a.user_id) AND (sole.territory = decision.here) AND (sole.protection = 'SOLE_OWNER'::leadprotect.protection_type) AND ((sole.lead_id IS NULL) OR (sole.lead_id = decision.lead)) AND leadprotect.in_force(sole.active, sole.effective_from, sole.effective_to)))))) THEN 'collaborator'::text
             WHEN (a.user_id IS NULL) THEN 'unassigned'::text
             ELSE 'not_owner'::text
         END AS "case"
    FROM (public.leads l
      LEFT JOIN leadprotect.user_lead_assignments a ON (((a.lead_id = decision.lead) AND (a.territory = decision.here))))
   WHERE ((l.id = decision.lead) AND ((l.territory)::text = decision.here));
END;

-- FUNCTION deny(uuid, leadprotect.lead_action, text, text)

CREATE FUNCTION leadprotect.deny(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          number bigint := nextval('"leadprotect".lead_access_audit_id_seq');
        BEGIN
          RAISE LOG 'leadprotect denial %: lead %, action %, reason %, user %, territory %, login %, correlation %, note %',
            number, quote_nullable(lead::text), action, decision,
            quote_nullable(left(current_setting('app.user_id', true), 100)),
            quote_nullable(left(current_setting('app.territory', true), 100)),
            quote_ident(session_user), quote_nullable(left(current_setting('app.correlation_id', true), 100)),
            quote_nullable(left(note, 200));
          RAISE EXCEPTION 'access to the lead denied' USING ERRCODE = 'LP403', DETAIL = decision;
        END
        $$;

-- FUNCTION detach_audit_month(date)

CREATE FUNCTION leadprotect.detach_audit_month(month date) RETURNS TABLE(detached name, row_count bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET lock_timeout TO '100ms'
    SET row_security TO 'on'
    AS $_$
        #variable_conflict use_column
        DECLARE
          span record;
          done int8multirange;
          unsealed bigint;
          entry "leadprotect".lead_access_audit_seals;
          chain record;
        BEGIN
          SELECT * INTO span FROM "leadprotect".audit_partitions() AS p
          WHERE p.from_month = detach_audit_month.month::timestamptz;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'no partition of the audit begins with %', to_char(detach_audit_month.month, 'YYYY-MM')
              USING ERRCODE = 'LP422', HINT = 'SELECT * FROM audit_partitions() lists them.';
          ELSIF span.to_month > clock_timestamp() THEN
            RAISE EXCEPTION '% is not over: its rows are still being written', span.name USING ERRCODE = 'LP422';
          ELSIF span.to_month > "leadprotect".audit_settled_until() - interval '1 minute' THEN
            RAISE EXCEPTION '% is not sealed to its end', span.name USING ERRCODE = 'LP422',
              HINT = 'A run of leadprotect audit seal must have begun after the month, and every transaction older than it have ended.';
          END IF;
          done := coalesce(
            (SELECT range_agg(s.ids) FROM "leadprotect".lead_access_audit_seals AS s
             WHERE s.month >= span.from_month::date AND s.month < span.to_month::date), '{}');
          EXECUTE format('SELECT count(*) FILTER (WHERE NOT $1 @> a.id), count(*) FROM %s AS a', span.part)
            INTO unsealed, row_count USING done;
          IF unsealed > 0 THEN
            RAISE EXCEPTION '% holds % rows that no seal names', span.name, unsealed USING ERRCODE = 'LP422',
              HINT = 'leadprotect audit seal seals new rows; what it leaves out, leadprotect audit verify explains.';
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION %s', span.part);
          EXECUTE format('GRANT SELECT ON %s TO "leadprotect_auditor"', span.part);
          EXECUTE format('COMMENT ON TABLE %s IS %L', span.part,
            format('Detached from lead_access_audit on %s by %s', current_date, session_user));
          SELECT * INTO entry FROM "leadprotect".lead_access_audit_seals AS s ORDER BY s.run DESC LIMIT 1;
          entry.sealed_at := clock_timestamp();
          entry.ids := '{}';
          entry.content := sha256('');
          entry.row_checks := '';
          entry.first_at := NULL;
          entry.last_at := NULL;
          entry.detached_table := span.name;
          FOR chain IN
            SELECT s.territory, s.month, sum(s.row_count) AS row_count FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.month >= span.from_month::date AND s.month < span.to_month::date AND s.detached_table IS NULL
            GROUP BY s.territory, s.month ORDER BY s.territory NULLS FIRST, s.month
          LOOP
            entry.territory := chain.territory;
            entry.month := chain.month;
            entry.row_count := chain.row_count;
            PERFORM "leadprotect".append_audit_seal(entry);
          END LOOP;
          detached := span.name;
          RETURN NEXT;
        END
        $_$;

-- COMMENT FUNCTION detach_audit_month(month date)

COMMENT ON FUNCTION leadprotect.detach_audit_month(month date) IS 'Detaches the sealed partition that begins with this month; every chain says so. No row is deleted';

-- FUNCTION editable_among(uuid[])

CREATE FUNCTION leadprotect.editable_among(leads uuid[]) RETURNS TABLE(lead uuid, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := current_setting('app.territory', true);
          caller uuid := "leadprotect".parse_user(current_setting('app.user_id', true));
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT "leadprotect".is_member(here) THEN
            RETURN;
          ELSIF EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r WHERE r.user_id = caller AND r.territory = here)
          THEN
            RETURN QUERY
              SELECT asked.lead, d.reason
              FROM unnest(leads) AS asked (lead), LATERAL "leadprotect".decision(asked.lead, caller, here) AS d
              WHERE d.reason IN ('owner', 'collaborator');
          ELSE
            RETURN QUERY
              SELECT a.lead_id, 'owner'
              FROM "leadprotect".user_lead_assignments AS a
              JOIN "public"."leads" AS l ON l."id" = a.lead_id AND l."territory" = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id = ANY (leads);
          END IF;
        END
        $$;

-- FUNCTION editable_leads(uuid, integer)

CREATE FUNCTION leadprotect.editable_leads(after uuid, page_size integer) RETURNS TABLE(lead uuid, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := current_setting('app.territory', true);
          caller uuid := "leadprotect".parse_user(current_setting('app.user_id', true));
          first uuid := after;
          everywhere boolean;
          has_rules boolean;
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT "leadprotect".is_member(here) THEN
            RETURN;
          END IF;
          IF first IS NULL THEN
            SELECT l."id" INTO first FROM "public"."leads" AS l ORDER BY l."id" LIMIT 1;
          END IF;
          SELECT count(*) > 0,
                 coalesce(bool_or(r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                   AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to)), false)
          INTO has_rules, everywhere
          FROM "leadprotect".lead_protection_rules AS r WHERE r.user_id = caller AND r.territory = here;
          IF everywhere THEN
            RETURN QUERY
              SELECT l."id", d.reason
              FROM "public"."leads" AS l, LATERAL "leadprotect".decision(l."id", caller, here) AS d
              WHERE l."territory" = here AND l."id" >= first AND l."id" IS DISTINCT FROM after
                AND d.reason IN ('owner', 'collaborator')
              ORDER BY l."id" LIMIT page_size;
          ELSIF has_rules THEN
            RETURN QUERY
              SELECT candidate.lead_id, d.reason
              FROM (
                (SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
                 WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                 ORDER BY a.lead_id)
                UNION
                SELECT r.lead_id FROM "leadprotect".lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                  AND r.lead_id >= first
                  AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to)
                ORDER BY 1
              ) AS candidate, LATERAL "leadprotect".decision(candidate.lead_id, caller, here) AS d
              WHERE candidate.lead_id IS DISTINCT FROM after AND d.reason IN ('owner', 'collaborator')
              ORDER BY candidate.lead_id LIMIT page_size;
          ELSE
            RETURN QUERY
              SELECT a.lead_id, 'owner'
              FROM "leadprotect".user_lead_assignments AS a
              JOIN "public"."leads" AS l ON l."id" = a.lead_id AND l."territory" = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                AND a.lead_id IS DISTINCT FROM after
              ORDER BY a.lead_id LIMIT page_size;
          END IF;
        END
        $$;

-- FUNCTION end_rules(uuid, text, leadprotect.protection_type, uuid)

CREATE FUNCTION leadprotect.end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          ended integer;
        BEGIN
          -- what never took effect has no history to keep
          DELETE FROM "leadprotect".lead_protection_rules AS r
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead AND r.effective_from >= clock_timestamp();
          -- active as well: who waits for this row's lock began before the new effective_to
          UPDATE "leadprotect".lead_protection_rules AS r
          SET active = false, effective_to = clock_timestamp()
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead
            AND r.active AND (r.effective_to IS NULL OR r.effective_to > clock_timestamp());
          GET DIAGNOSTICS ended = ROW_COUNT;
          RETURN ended;
        END
        $$;

-- FUNCTION explain_edit(uuid)

CREATE FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT leadprotect.decide(lead, current_setting('app.user_id'::text, true), current_setting('app.territory'::text, true)) AS decide;
END;

-- FUNCTION forget_lead()

CREATE FUNCTION leadprotect.forget_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          DELETE FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = OLD."id";
          PERFORM "leadprotect".note_unsettled(OLD."id");
          RETURN NULL;
        END
        $$;

-- FUNCTION gate_conditions(interval, text, name[])

CREATE FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $_$
        #variable_conflict use_variable
        DECLARE
          complete_since timestamptz;
          host_owner oid := (SELECT relowner FROM pg_class WHERE oid = '"public"."leads"'::regclass);
          -- a note stands for the writes of an interval; a window of 0 asks for no look back at all
          noted interval := CASE WHEN observation_window > interval '0' THEN interval '60 seconds' ELSE interval '0' END;
        BEGIN
          -- row security that the host had before binds the owner too: what it can't see, it can't miss
          condition := 'visibility';
          SELECT count(*) = 0,
                 coalesce(string_agg(hidden.detail, ', '), 'no row of the host is hidden from ' || quote_ident('leadprotect_owner')),
                 string_agg(hidden.remedy, ' ')
          INTO met, detail, remedy
          FROM (
            SELECT format('row-level security of %s hides rows from %I', c.oid::regclass, 'leadprotect_owner')
                     || coalesce(' (restrictive policy ' || p.binding || ')', '') AS detail,
                   concat_ws(' ',
                     CASE WHEN p.opened IS NOT TRUE
                       THEN format('CREATE POLICY %I ON %s FOR SELECT TO %I USING (true);', 'read_for_' || 'leadprotect_owner',
                                   c.oid::regclass, 'leadprotect_owner') END,
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
            WHERE c.oid IN ('"public"."leads"'::regclass, '"public"."activities"'::regclass) AND row_security_active(c.oid)
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
            FROM "leadprotect".unowned_leads(ARRAY(SELECT t.code FROM "leadprotect".territories AS t)) AS u
            GROUP BY u.territory ORDER BY u.territory) AS missing;
          -- Before a walk has ended, a derived owner may be older than the transition's triggers: from a
          -- life before a downgrade. lp_0007 asks before its index goes; the triggers keep what it found.
          IF met AND EXISTS (
            SELECT FROM pg_index AS i WHERE i.indexrelid = to_regclass('"public"."ix_leadprotect_activities"') AND i.indisvalid)
          THEN
            SELECT count(*) = 0,
                   coalesce(string_agg(format('%s leads in %s have another owner than their newest qualifying activity says',
                              stale.leads, stale.code), ', '), detail),
                   'leadprotect backfill ' || string_agg(stale.code, ' ')
            INTO met, detail, remedy
            FROM (
              SELECT j.territory AS code, count(*) AS leads
              FROM "leadprotect".backfill_jobs AS j, "leadprotect".backfill_stale(j.territory)
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
          WHERE c.connamespace = '"leadprotect"'::regnamespace AND NOT c.convalidated;
          RETURN NEXT;

          condition := 'observation_window';
          SELECT max(greatest(j.registered_at, j.finished_at)) INTO complete_since FROM "leadprotect".backfill_jobs AS j;
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
            SELECT l."territory"::text AS territory, count(*) AS leads FROM "public"."leads" AS l
            WHERE l."territory" IS NOT NULL AND l."territory" NOT IN (SELECT t.code FROM "leadprotect".territories AS t)
            GROUP BY l."territory" ORDER BY l."territory" LIMIT 5) AS unknown;
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
            SELECT DISTINCT ON (w.login) w.login, w.host_table, w.at FROM "leadprotect".contextless_writes AS w
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
              WHERE has_table_privilege(h.oid, '"public"."leads"'::regclass, 'SELECT, INSERT, UPDATE, DELETE')
                 OR has_any_column_privilege(h.oid, '"public"."leads"'::regclass, 'INSERT, UPDATE')
                 -- what contract lets an auditor read for v_lead_protection makes no service of him
                 OR EXISTS (
                   SELECT FROM pg_attribute AS a
                   WHERE a.attrelid = '"public"."leads"'::regclass AND a.attnum > 0 AND NOT a.attisdropped
                     AND has_column_privilege(h.oid, a.attrelid, a.attnum, 'SELECT')
                     AND NOT (a.attname IN ('id', 'territory')
                       AND pg_has_role(h.oid, 'leadprotect_auditor', 'USAGE')))),
            borders AS MATERIALIZED (
              SELECT b.oid FROM "leadprotect".territories AS t JOIN pg_roles AS b ON b.rolname = 'leadprotect_' || lower(t.code)),
            suspects AS (
              SELECT r.rolname, pg_has_role(r.oid, host_owner, 'MEMBER') AS owns,
                     (SELECT max(w.at) FROM "leadprotect".contextless_writes AS w
                      WHERE w.login = r.rolname AND w.at > clock_timestamp() - observation_window - noted) AS wrote
              FROM pg_roles AS r
              WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> ALL (exempt_roles)
                AND has_database_privilege(r.oid, current_database(), 'CONNECT')
                AND EXISTS (SELECT FROM holders AS h WHERE pg_has_role(r.oid, h.oid, 'MEMBER'))
                AND NOT (pg_has_role(r.oid, 'leadprotect_app', 'MEMBER')
                  AND EXISTS (SELECT FROM borders AS b WHERE pg_has_role(r.oid, b.oid, 'MEMBER'))))
            SELECT CASE WHEN s.owns
                THEN format('login %I owns %s, so row security does not bind it, and wrote at %s', s.rolname, 'public.leads',
                            to_char(s.wrote AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                ELSE format('login %I has privileges on %s but is no member of %s and a territory',
                            s.rolname, 'public.leads', 'leadprotect_app') END AS detail,
              CASE WHEN s.owns
                THEN format('let the service log in as another member of %I and wait until %s,', 'leadprotect_app',
                            to_char((s.wrote + observation_window + noted) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                -- which territory a login serves, only its owner knows: the others are named beside the first
                ELSE (
                  SELECT format('GRANT %I, %I%s TO %I;', 'leadprotect_app', t.roles[1],
                                ' /* or ' || nullif(array_to_string(t.roles[2:], ', '), '') || ' */', s.rolname)
                  FROM (SELECT array_agg('leadprotect_' || lower(code) ORDER BY code) AS roles
                        FROM "leadprotect".territories) AS t) END AS remedy
            FROM suspects AS s
            WHERE NOT s.owns OR s.wrote IS NOT NULL
            ORDER BY s.rolname LIMIT 20) AS locked;
          RETURN NEXT;

          RETURN QUERY SELECT * FROM "leadprotect".ways_around(host_rls, exempt_roles);
        END
        $_$;

-- COMMENT FUNCTION gate_conditions(observation_window interval, host_rls text, exempt_roles name[])

COMMENT ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[]) IS 'The conditions of contract, each with what is in the way and what to run';

-- FUNCTION grant_protection(uuid, text, leadprotect.protection_type, uuid, timestamp with time zone, timestamp with time zone)

CREATE FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid DEFAULT NULL::uuid, effective_from timestamp with time zone DEFAULT NULL::timestamp with time zone, effective_to timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          starts timestamptz := coalesce(effective_from, clock_timestamp());
        BEGIN
          IF NOT "leadprotect".is_manager() OR NOT "leadprotect".is_member(here) THEN
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'insufficient_privilege';
          ELSIF of_user IS NULL OR kind IS NULL THEN
            RAISE EXCEPTION 'a rule needs a user and a protection' USING ERRCODE = 'LP422';
          ELSIF effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          ELSIF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM "public"."leads" AS l WHERE l."id" = lead AND l."territory" = here) THEN
            RAISE EXCEPTION 'there is no such lead in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO "leadprotect".lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
          VALUES (of_user, here, kind, lead, starts, grant_protection.effective_to)
          ON CONFLICT DO NOTHING;
        END
        $$;

-- FUNCTION parse_user(text)

CREATE FUNCTION leadprotect.parse_user(declared text) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (CASE WHEN ('uuid'::text = 'text'::text) THEN CASE WHEN (declared <> ''::text) THEN declared ELSE NULL::text END WHEN ((declared ~~ '________-____-____-____-____________'::text) AND (translate(declared, '0123456789abcdefABCDEF'::text, ''::text) = '----'::text)) THEN declared WHEN (declared ~ '^(([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|[{]([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}[}])$'::text) THEN declared ELSE NULL::text END)::uuid;

-- FUNCTION has_rules()

CREATE FUNCTION leadprotect.has_rules() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER PARALLEL SAFE
    BEGIN ATOMIC
 SELECT (EXISTS ( SELECT
            FROM leadprotect.lead_protection_rules r
           WHERE ((r.user_id = leadprotect.parse_user(current_setting('app.user_id'::text, true))) AND (r.territory = current_setting('app.territory'::text, true))))) AS "exists";
END;

-- FUNCTION is_code(text)

CREATE FUNCTION leadprotect.is_code(territory text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (territory ~ '^[A-Za-z][A-Za-z0-9_]{0,15}$'::text);

-- COMMENT FUNCTION is_code(territory text)

COMMENT ON FUNCTION leadprotect.is_code(territory text) IS 'Whether this can be the code of a territory; anything else is malformed';

-- FUNCTION is_manager()

CREATE FUNCTION leadprotect.is_manager() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN pg_has_role(SESSION_USER, 'leadprotect_manager'::name, 'MEMBER'::text);

-- FUNCTION is_member(text)

CREATE FUNCTION leadprotect.is_member(territory text) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN COALESCE(pg_has_role(SESSION_USER, (to_regrole(quote_ident(('leadprotect_'::text || lower(territory)))))::oid, 'MEMBER'::text), false);

-- COMMENT FUNCTION is_member(territory text)

COMMENT ON FUNCTION leadprotect.is_member(territory text) IS 'Whether the login (session_user) holds the role of this territory';

-- FUNCTION keep_assignment()

CREATE FUNCTION leadprotect.keep_assignment() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".user_lead_assignment_history (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (OLD.lead_id, OLD.territory, OLD.user_id, OLD.assigned_at, OLD.assigned_by, OLD.source);
          RETURN NULL;
        END
        $$;

-- FUNCTION lead_for_ownership(uuid, boolean)

CREATE FUNCTION leadprotect.lead_for_ownership(lead uuid, manager boolean) RETURNS text
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT l.territory
    FROM public.leads l
   WHERE ((l.id = lead_for_ownership.lead) AND leadprotect.is_member((l.territory)::text) AND (((l.territory)::text = current_setting('app.territory'::text, true)) OR (lead_for_ownership.manager AND (COALESCE(current_setting('app.territory'::text, true), ''::text) = ''::text))));
END;

-- FUNCTION note_contextless_write()

CREATE FUNCTION leadprotect.note_contextless_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          declared boolean := "leadprotect".parse_user(current_setting('app.user_id', true)) IS NOT NULL
            AND coalesce(current_setting('app.territory', true), '') <> '';
        BEGIN
          IF declared AND NOT pg_has_role(
            session_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = '"public"."leads"'::regclass), 'MEMBER')
          THEN
            RETURN NULL;
          END IF;
          IF NOT EXISTS (
            SELECT FROM "leadprotect".contextless_writes AS w
            WHERE w.login = session_user AND w.with_context = declared
              AND w.at > clock_timestamp() - interval '60 seconds')
          THEN
            INSERT INTO "leadprotect".contextless_writes (host_table, with_context)
            VALUES (TG_RELID::regclass::text, declared);
          END IF;
          RETURN NULL;
        END
        $$;

-- FUNCTION note_unsettled(uuid)

CREATE FUNCTION leadprotect.note_unsettled(lead uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          -- the jobs come with a later revision; before it, every backfill is still to come
          IF to_regclass('"leadprotect".backfill_jobs') IS NOT NULL THEN
            IF NOT EXISTS (SELECT FROM "leadprotect".backfill_jobs AS j WHERE j.ended_at IS NULL) THEN
              RETURN;
            END IF;
            -- nor after contract, when activities make no owners any more
            IF NOT EXISTS (
              SELECT FROM pg_trigger AS t
              WHERE t.tgrelid = '"public"."activities"'::regclass AND '"' || t.tgname || '"' = '"leadprotect_transition"') THEN
              RETURN;
            END IF;
          END IF;
          INSERT INTO "leadprotect".unsettled_leads (lead_id) VALUES (lead);
        END
        $$;

-- FUNCTION own_active_lead()

CREATE FUNCTION leadprotect.own_active_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF TG_OP <> 'INSERT' THEN
            PERFORM FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = OLD."lead_id" AND a.source IN ('backfill', 'activity')
                AND a.activity_id = OLD."id" FOR UPDATE;
            IF FOUND THEN
              UPDATE "leadprotect".user_lead_assignments AS a
              SET user_id = newest."user_id", source = 'activity',
                  assigned_at = statement_timestamp(),
                  activity_at = newest."created_at", activity_id = newest."id"
              FROM (
                SELECT v."user_id", v."created_at", v."id" FROM "public"."activities" AS v
                WHERE v."lead_id" = OLD."lead_id"
                  AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
                ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
              WHERE a.lead_id = OLD."lead_id" AND a.source IN ('backfill', 'activity')
                AND a.activity_id = OLD."id";
            ELSIF OLD."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND OLD."user_id" IS NOT NULL THEN
              -- a slice of the backfill may be about to rest on what this statement takes away
              PERFORM "leadprotect".note_unsettled(OLD."lead_id");
            END IF;
          END IF;
          IF TG_OP <> 'DELETE' THEN
            IF NEW."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND NEW."user_id" IS NOT NULL THEN
              INSERT INTO "leadprotect".user_lead_assignments AS a
                (lead_id, territory, user_id, source, activity_at, activity_id)
              SELECT l."id", t.code, NEW."user_id", 'activity',
                     NEW."created_at", NEW."id"
              FROM "public"."leads" AS l JOIN "leadprotect".territories AS t ON t.code = l."territory"
              WHERE l."id" = NEW."lead_id"
              ON CONFLICT (lead_id, territory) DO UPDATE
                SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                    activity_at = excluded.activity_at, activity_id = excluded.activity_id
                WHERE a.source IN ('backfill', 'activity')
                  AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                    OR a.activity_at < excluded.activity_at
                    OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                       AND a.activity_id < excluded.activity_id);
            END IF;
          END IF;
          RETURN NULL;
        END
        $$;

-- FUNCTION own_leads(text, uuid[])

CREATE FUNCTION leadprotect.own_leads(here text, leads uuid[]) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          owned uuid[];
          fresh uuid[];
          seen record;
          made integer;
        BEGIN
          owned := ARRAY(
            SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = ANY (leads) AND a.territory = here);
          fresh := CASE WHEN owned = '{}' THEN leads
                        ELSE ARRAY(SELECT unnest(leads) EXCEPT SELECT unnest(owned) ORDER BY 1) END;
          INSERT INTO "leadprotect".user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id)
          SELECT wanted.lead_id, here, newest.user_id, 'backfill', newest.at, newest.id
          FROM unnest(fresh) AS wanted (lead_id),
            LATERAL (
              SELECT v."user_id" AS user_id, v."created_at" AS at, v."id" AS id
              FROM "public"."activities" AS v
              WHERE v."lead_id" = wanted.lead_id
                AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
              ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest;
          GET DIAGNOSTICS made = ROW_COUNT;
          FOR seen IN
            SELECT wanted.lead_id, newest.user_id, newest.at, newest.id,
                   standing.user_id AS old_user, standing.activity_at AS old_at, standing.activity_id AS old_id
            FROM unnest(owned) AS wanted (lead_id),
              LATERAL (
                SELECT a.user_id, a.activity_at, a.activity_id, a.source FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = wanted.lead_id AND a.territory = here LIMIT 1) AS standing,
              LATERAL (
                SELECT v."user_id" AS user_id, v."created_at" AS at, v."id" AS id
                FROM "public"."activities" AS v
                WHERE v."lead_id" = wanted.lead_id AND standing.source IN ('backfill', 'activity')
                  AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
                ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
            WHERE standing.user_id IS DISTINCT FROM newest.user_id
              OR standing.activity_id IS DISTINCT FROM newest.id OR standing.activity_at IS DISTINCT FROM newest.at
          LOOP
            UPDATE "leadprotect".user_lead_assignments AS a
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
        $$;

-- FUNCTION own_moved_lead()

CREATE FUNCTION leadprotect.own_moved_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".user_lead_assignments AS a
            (lead_id, territory, user_id, source, activity_at, activity_id)
          SELECT NEW."id", t.code, newest."user_id", 'activity',
                 newest."created_at", newest."id"
          FROM "leadprotect".territories AS t,
            LATERAL (
              SELECT v."user_id", v."created_at", v."id" FROM "public"."activities" AS v
              WHERE v."lead_id" = NEW."id"
                AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL
              ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
          WHERE t.code = NEW."territory"
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                activity_at = excluded.activity_at, activity_id = excluded.activity_id
            WHERE a.source IN ('backfill', 'activity')
              AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                OR a.activity_at < excluded.activity_at
                OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                   AND a.activity_id < excluded.activity_id);
          RETURN NULL;
        END
        $$;

-- FUNCTION record_denial(uuid, leadprotect.lead_action, text, text)

CREATE FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF decision NOT IN ('no_context', 'not_found', 'suspended', 'unassigned', 'not_owner') THEN
            RAISE EXCEPTION '% is not a reason of a denial', decision USING ERRCODE = 'LP422';
          ELSIF decision NOT IN ('no_context', 'not_found') AND current_setting('app.territory', true) <> ''
            AND NOT "leadprotect".is_member(current_setting('app.territory', true)) THEN
            -- nobody is answered so about another territory
            RAISE EXCEPTION 'reason % is not of this login', decision USING ERRCODE = 'LP422';
          END IF;
          IF lead IS NOT NULL THEN
            PERFORM "leadprotect".write_audit(lead, action, decision, note);
          END IF;
        END
        $$;

-- FUNCTION record_edit_attempt(uuid, leadprotect.lead_action, text)

CREATE FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          decision text := "leadprotect".explain_edit(lead);
        BEGIN
          IF lead IS NULL THEN
            RETURN false;
          END IF;
          PERFORM "leadprotect".write_audit(lead, action, decision, note);
          RETURN decision IN ('owner', 'collaborator');
        END
        $$;

-- FUNCTION refuse_change()

CREATE FUNCTION leadprotect.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RAISE EXCEPTION '% on % refused: the audit is append-only', TG_OP, TG_RELID::regclass
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Retention detaches whole months; it never deletes rows.';
        END
        $$;

-- FUNCTION refuse_move()

CREATE FUNCTION leadprotect.refuse_move() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RAISE EXCEPTION 'id and territory of a protected lead can be changed by maintenance only'
            USING ERRCODE = 'insufficient_privilege';
        END
        $$;

-- FUNCTION refuse_truncate()

CREATE FUNCTION leadprotect.refuse_truncate() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RAISE EXCEPTION 'TRUNCATE on % refused: it would delete leads of every territory', TG_RELID::regclass
            USING ERRCODE = 'insufficient_privilege';
        END
        $$;

-- FUNCTION release_lead(uuid, text)

CREATE FUNCTION leadprotect.release_lead(lead uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'UNASSIGN', "leadprotect".change_owner(lead, 'release', NULL, note), note);
        END
        $$;

-- FUNCTION require(uuid, leadprotect.lead_action, text, text)

CREATE FUNCTION leadprotect.require(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF decision NOT IN ('owner', 'collaborator', 'manager') THEN
            PERFORM "leadprotect".deny(lead, action, decision, note);
          END IF;
        END
        $$;

-- FUNCTION revoke_protection(uuid, text, leadprotect.protection_type, uuid)

CREATE FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid DEFAULT NULL::uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF NOT "leadprotect".is_manager() OR NOT "leadprotect".is_member(here) THEN
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'insufficient_privilege';
          END IF;
          RETURN "leadprotect".end_rules(of_user, here, kind, lead);
        END
        $$;

-- FUNCTION seal_audit(integer)

CREATE FUNCTION leadprotect.seal_audit(rows_per_seal integer DEFAULT 10000) RETURNS TABLE(territory text, number bigint, hash bytea, sealed bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        DECLARE
          began timestamptz;
          newest_number bigint;
          here text := "leadprotect".audit_origin();
          before "leadprotect".lead_access_audit_seals;
          known_here boolean;
          open_from timestamptz;
          done int8multirange;
          entry "leadprotect".lead_access_audit_seals;
          part record;
        BEGIN
          IF pg_current_xact_id_if_assigned() IS NOT NULL
            OR current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'seal_audit needs a transaction of its own, in READ COMMITTED' USING ERRCODE = 'LP422';
          ELSIF rows_per_seal IS NULL OR rows_per_seal NOT BETWEEN 1 AND 100000 THEN
            RAISE EXCEPTION 'rows per seal: % is not between 1 and 100000', rows_per_seal USING ERRCODE = 'LP422';
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          -- in this order: whoever gets his transaction id after us has a later time and number
          began := clock_timestamp();
          newest_number := (SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END
                            FROM "leadprotect".lead_access_audit_id_seq AS q);
          PERFORM pg_current_xact_id();
          SELECT s.* INTO before FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.detached_table IS NULL ORDER BY s.run DESC LIMIT 1;
          known_here := before.origin IS NOT DISTINCT FROM here;
          open_from := coalesce(
            date_trunc('month', before.settled_until - interval '1 minute', 'UTC'), '-infinity');
          done := coalesce(
            (SELECT range_agg(s.ids) FROM "leadprotect".lead_access_audit_seals AS s
             WHERE NOT isfinite(open_from) OR s.month >= (open_from AT TIME ZONE 'UTC')::date), '{}');
          entry.run := coalesce(before.run, 0) + 1;
          entry.sealed_at := began;
          entry.origin := here;
          entry.last_number := newest_number;
          FOR part IN
            WITH state AS MATERIALIZED (
              SELECT pg_current_snapshot() AS snapshot, "leadprotect".audit_settled_until() AS settled_until
            ), fresh AS MATERIALIZED (
              SELECT a.territory, (date_trunc('month', a.at, 'UTC') AT TIME ZONE 'UTC')::date AS month,
                     a.id, a.at, a.lead_id::text COLLATE "C" AS lead,
                     sha256(convert_to(json_build_array(
                       'lp-row-1', a.id, a.lead_id::text, a.at AT TIME ZONE 'UTC', a.user_id::text, a.login, a.role,
                       a.territory, a.action::text, a.outcome::text, a.reason, a.note, a.correlation_id,
                       a.transaction_id::text)::text, 'UTF8')) AS hash
              FROM "leadprotect".lead_access_audit AS a, state
              WHERE a.at >= open_from
                AND (NOT known_here
                  OR pg_visible_in_snapshot(a.transaction_id, state.snapshot)
                    AND NOT pg_visible_in_snapshot(a.transaction_id, before.snapshot))
                AND NOT done @> a.id
            ), counted AS (
              SELECT f.*, (row_number() OVER (PARTITION BY f.territory, f.month ORDER BY f.id, f.at, f.lead) - 1)
                          / rows_per_seal AS slice
              FROM fresh AS f
            ), slices AS (
              SELECT c.territory, c.month, c.slice, count(*) AS row_count,
                     range_agg(int8range(c.id, c.id, '[]')) AS ids,
                     sha256(string_agg(c.hash, '' ORDER BY c.id, c.at, c.lead)) AS content,
                     string_agg(substring(c.hash FOR 4), '' ORDER BY c.id, c.at, c.lead) AS row_checks,
                     min(c.at) AS first_at, max(c.at) AS last_at
              FROM counted AS c GROUP BY c.territory, c.month, c.slice
            ), chains AS (
              SELECT NULL AS territory UNION SELECT t.code FROM "leadprotect".territories AS t
              UNION SELECT s.territory FROM "leadprotect".lead_access_audit_seals AS s
              UNION SELECT f.territory FROM fresh AS f
            )
            SELECT chains.territory AS chain, s.*, state.snapshot, state.settled_until
            FROM state, chains LEFT JOIN slices AS s ON s.territory IS NOT DISTINCT FROM chains.territory
            ORDER BY chains.territory NULLS FIRST, s.month, s.slice
          LOOP
            -- a run without new rows leaves its mark in every chain, too: until then, nothing else was there
            entry.territory := part.chain;
            entry.month := coalesce(part.month, (date_trunc('month', began, 'UTC') AT TIME ZONE 'UTC')::date);
            entry.row_count := coalesce(part.row_count, 0);
            entry.ids := coalesce(part.ids, '{}');
            entry.content := coalesce(part.content, sha256(''));
            entry.row_checks := coalesce(part.row_checks, '');
            entry.first_at := part.first_at;
            entry.last_at := part.last_at;
            entry.snapshot := part.snapshot;
            entry.settled_until := part.settled_until;
            entry := "leadprotect".append_audit_seal(entry);
          END LOOP;
          RETURN QUERY
            SELECT s.territory, max(s.number), (array_agg(s.hash ORDER BY s.number DESC))[1], sum(s.row_count)::bigint
            FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.run = entry.run AND s.detached_table IS NULL
            GROUP BY s.territory ORDER BY s.territory NULLS FIRST;
        END
        $$;

-- COMMENT FUNCTION seal_audit(rows_per_seal integer)

COMMENT ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) IS 'Seals every row whose transaction has ended; returns the newest seal of each chain. Keep these hashes elsewhere';

-- FUNCTION secure_audit_table(regclass)

CREATE FUNCTION leadprotect.secure_audit_table(target regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".secure_table(target);
          EXECUTE format('DROP POLICY IF EXISTS lp_without_territory ON %s', target);
          EXECUTE format('CREATE POLICY lp_without_territory ON %s FOR SELECT TO "leadprotect_auditor"
                          USING (territory IS NULL)', target);
          EXECUTE format('DROP TRIGGER IF EXISTS lp_append_only ON %s', target);
          EXECUTE format('CREATE TRIGGER lp_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                          FOR EACH STATEMENT EXECUTE FUNCTION "leadprotect".refuse_change()', target);
          EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER lp_append_only', target);
        END
        $$;

-- FUNCTION secure_table(regclass)

CREATE FUNCTION leadprotect.secure_table(target regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          code text;
          setting text := format('(SELECT pg_catalog.current_setting(%L, true))', 'app.territory');
        BEGIN
          EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
          EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_owner ON %s', target);
          EXECUTE format('CREATE POLICY lp_owner ON %s TO %I USING (true) WITH CHECK (true)',
                         target, 'leadprotect_owner');
          IF NOT EXISTS (SELECT FROM pg_attribute
                         WHERE attrelid = target AND attname = 'territory' AND NOT attisdropped) THEN
            RETURN;
          END IF;
          EXECUTE format('DROP POLICY IF EXISTS lp_floor ON %s', target);
          EXECUTE format('CREATE POLICY lp_floor ON %s AS RESTRICTIVE TO %I
                          USING (territory = %s AND (SELECT "leadprotect".is_member(%s)))',
                         target, 'leadprotect_app', setting, setting);
          FOR code IN SELECT t.code FROM "leadprotect".territories AS t LOOP
            EXECUTE format('DROP POLICY IF EXISTS %I ON %s', 'lp_territory_' || lower(code), target);
            EXECUTE format('CREATE POLICY %I ON %s TO %I USING (territory = %L AND territory = %s)',
                           'lp_territory_' || lower(code), target,
                           'leadprotect_' || lower(code), code, setting);
          END LOOP;
        END
        $$;

-- COMMENT FUNCTION secure_table(target regclass)

COMMENT ON FUNCTION leadprotect.secure_table(target regclass) IS 'Enables and forces row security on a table and (re)creates the standard policies';

-- FUNCTION set_context(text, text, text)

CREATE FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT set_config('app.user_id'::text, COALESCE(user_id, ''::text), true) AS set_config,
     set_config('app.territory'::text, COALESCE(territory, ''::text), true) AS set_config,
     set_config('app.correlation_id'::text, COALESCE(correlation_id, ''::text), true) AS set_config;
END;

-- FUNCTION set_context(uuid, text, text)

CREATE FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT leadprotect.set_context((user_id)::text, territory, correlation_id) AS set_context;
END;

-- FUNCTION share_lead(uuid, uuid, timestamp with time zone, timestamp with time zone, text)

CREATE FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone DEFAULT NULL::timestamp with time zone, effective_to timestamp with time zone DEFAULT NULL::timestamp with time zone, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN',
            "leadprotect".change_sharing(lead, 'share', with_user, effective_from, effective_to, note), note);
        END
        $$;

-- TABLE territories

CREATE TABLE leadprotect.territories (
    code text NOT NULL,
    name text NOT NULL,
    currency text,
    legal_framework text,
    CONSTRAINT territories_currency_check CHECK ((currency ~ '^[A-Z]{3}$'::text))
);

ALTER TABLE ONLY leadprotect.territories FORCE ROW LEVEL SECURITY;

-- TABLE territory_vat_rates

CREATE TABLE leadprotect.territory_vat_rates (
    territory text NOT NULL,
    rate numeric(5,2) NOT NULL,
    valid_from date NOT NULL,
    valid_to date,
    CONSTRAINT territory_vat_rates_check CHECK ((valid_to >= valid_from)),
    CONSTRAINT territory_vat_rates_rate_check CHECK (((rate >= (0)::numeric) AND (rate <= (100)::numeric)))
);

ALTER TABLE ONLY leadprotect.territory_vat_rates FORCE ROW LEVEL SECURITY;

-- COMMENT COLUMN territory_vat_rates.rate

COMMENT ON COLUMN leadprotect.territory_vat_rates.rate IS 'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25';

-- COMMENT COLUMN territory_vat_rates.valid_to

COMMENT ON COLUMN leadprotect.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice';

-- FUNCTION territory_terms(text, date)

CREATE FUNCTION leadprotect.territory_terms(territory text, on_date date) RETURNS TABLE(code text, name text, currency text, legal_framework text, vat_rate numeric)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT t.code,
     t.name,
     t.currency,
     t.legal_framework,
     v.rate
    FROM (leadprotect.territories t
      LEFT JOIN leadprotect.territory_vat_rates v ON (((v.territory = t.code) AND (v.valid_from <= territory_terms.on_date) AND ((v.valid_to IS NULL) OR (territory_terms.on_date <= v.valid_to)))))
   WHERE (t.code = territory_terms.territory);
END;

-- FUNCTION transfer_lead(uuid, uuid, text)

CREATE FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".change_owner(lead, 'transfer', new_owner, note), note);
        END
        $$;

-- FUNCTION unowned_leads(text[])

CREATE FUNCTION leadprotect.unowned_leads(territories text[]) RETURNS TABLE(territory text, lead_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET enable_nestloop TO 'off'
    BEGIN ATOMIC
 SELECT (l.territory)::text AS territory,
     l.id
    FROM public.leads l
   WHERE (((l.territory)::text = ANY (unowned_leads.territories)) AND (NOT (EXISTS ( SELECT
            FROM leadprotect.user_lead_assignments a
           WHERE ((a.lead_id = l.id) AND (a.territory = (l.territory)::text))))) AND (EXISTS ( SELECT
            FROM public.activities v
           WHERE ((v.lead_id = l.id) AND (v.kind = ANY (ARRAY['QUALIFIED_CALL'::text, 'CUSTOMER_REACTION'::text, 'SCHEDULED_FOLLOWUP'::text, 'SAMPLE_FEEDBACK'::text, 'ROI_PRESENTATION'::text])) AND (v.user_id IS NOT NULL)))));
END;

-- COMMENT FUNCTION unowned_leads(territories text[])

COMMENT ON FUNCTION leadprotect.unowned_leads(territories text[]) IS 'Leads of the territories with a qualifying activity, without an owner, and not released by hand';

-- FUNCTION unowned_leads(text)

CREATE FUNCTION leadprotect.unowned_leads(territory text) RETURNS SETOF uuid
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT u.lead_id
    FROM leadprotect.unowned_leads(ARRAY[unowned_leads.territory]) u(territory, lead_id);
END;

-- FUNCTION unshare_lead(uuid, uuid, text)

CREATE FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'UNASSIGN',
            "leadprotect".change_sharing(lead, 'unshare', with_user, NULL, NULL, note), note);
        END
        $$;

-- FUNCTION ways_around(text, name[])

CREATE FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        BEGIN
          condition := 'inheritance';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s inherits from %s, so the leads in it are not protected', i.inhrelid::regclass,
                            i.inhparent::regclass), ', '), 'no table shares its rows with ' || 'public.leads'),
                 string_agg(format('ALTER TABLE %s NO INHERIT %s;', i.inhrelid::regclass, i.inhparent::regclass), ' ')
          INTO met, detail, remedy
          FROM pg_inherits AS i WHERE '"public"."leads"'::regclass IN (i.inhparent, i.inhrelid);
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
              FROM rules JOIN relations AS v ON v.oid = rules.view WHERE rules.source = '"public"."leads"'::regclass
              UNION
              SELECT v.oid, CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
              FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view),
            leaks AS MATERIALIZED (
              SELECT DISTINCT v.oid, v.relkind, v.relowner, v.relacl
              FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
              WHERE NOT v.invoker AND (o.rolsuper OR o.rolbypassrls
                OR host_rls <> 'force' AND pg_has_role(o.oid, (SELECT relowner FROM pg_class
                                                               WHERE oid = '"public"."leads"'::regclass), 'USAGE')
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
        $$;

-- COMMENT FUNCTION ways_around(host_rls text, exempt_roles name[])

COMMENT ON FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) IS 'Conditions of the gate: what would show leads past row security';

-- TABLE user_lead_assignment_history

CREATE TABLE leadprotect.user_lead_assignment_history (
    lead_id uuid NOT NULL,
    territory text NOT NULL,
    id bigint NOT NULL,
    user_id uuid,
    assigned_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    assigned_by uuid,
    source text NOT NULL
);

ALTER TABLE ONLY leadprotect.user_lead_assignment_history FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE user_lead_assignment_history

COMMENT ON TABLE leadprotect.user_lead_assignment_history IS 'Former assignments, from assigned_at to ended_at; written by a trigger when one changes';

-- FUNCTION who_could_edit(uuid, timestamp with time zone)

CREATE FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) RETURNS TABLE(territory text, user_id uuid, could_edit boolean, reason text, since timestamp with time zone, until timestamp with time zone, source text)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 WITH here AS (
          SELECT t.code
            FROM leadprotect.territories t
           WHERE (leadprotect.is_member(t.code) AND (t.code = COALESCE(NULLIF(current_setting('app.territory'::text, true), ''::text), t.code)))
         ), standing AS (
          SELECT a.territory,
             a.user_id,
             a.source,
             GREATEST(a.assigned_at, lag(a.ended_at) OVER (PARTITION BY a.territory ORDER BY a.ended_at)) AS since,
             a.ended_at AS until
            FROM ( SELECT h.territory,
                     h.user_id,
                     h.source,
                     h.assigned_at,
                     h.ended_at
                    FROM leadprotect.user_lead_assignment_history h
                   WHERE (h.lead_id = who_could_edit.lead)
                 UNION ALL
                  SELECT u.territory,
                     u.user_id,
                     u.source,
                     u.assigned_at,
                     NULL::timestamp with time zone
                    FROM leadprotect.user_lead_assignments u
                   WHERE (u.lead_id = who_could_edit.lead)) a
         ), owners AS (
          SELECT s.territory,
             s.user_id,
             s.source,
             s.since,
             s.until
            FROM standing s
           WHERE ((s.since <= who_could_edit.moment) AND ((s.until IS NULL) OR (who_could_edit.moment < s.until)))
         ), rules AS (
          SELECT r.territory,
             r.user_id,
             r.protection,
             r.lead_id,
             r.effective_to,
             GREATEST(r.effective_from, r.made_at) AS since
            FROM leadprotect.lead_protection_rules r
           WHERE (((r.lead_id IS NULL) OR (r.lead_id = who_could_edit.lead)) AND (GREATEST(r.effective_from, r.made_at) <= who_could_edit.moment) AND ((r.effective_to IS NULL) OR (who_could_edit.moment < r.effective_to)) AND (r.active OR (r.effective_to IS NOT NULL)))
         ), known AS (
          SELECT h.code
            FROM here h
           WHERE ((EXISTS ( SELECT
                    FROM public.leads l
                   WHERE ((l.id = who_could_edit.lead) AND ((l.territory)::text = h.code)))) OR (EXISTS ( SELECT
                    FROM standing s
                   WHERE (s.territory = h.code))) OR (EXISTS ( SELECT
                    FROM leadprotect.lead_access_audit e
                   WHERE ((e.lead_id = who_could_edit.lead) AND (e.territory = h.code)))))
         ), rights AS (
          SELECT k.code,
             o.user_id,
                 CASE
                     WHEN (o.user_id IS NULL) THEN 'unassigned'::text
                     ELSE 'owner'::text
                 END AS reason,
             o.since,
             o.until,
             o.source,
             1 AS rank
            FROM (known k
              LEFT JOIN owners o ON ((o.territory = k.code)))
         UNION ALL
          SELECT k.code,
             r.user_id,
             'collaborator'::text,
             r.since,
             r.effective_to,
                 CASE
                     WHEN (r.lead_id IS NULL) THEN 'rule for the territory'::text
                     ELSE 'rule for the lead'::text
                 END AS "case",
             2
            FROM ((known k
              JOIN rules r ON (((r.territory = k.code) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type))))
              LEFT JOIN owners o ON ((o.territory = k.code)))
           WHERE ((r.user_id IS DISTINCT FROM o.user_id) AND ((r.lead_id IS NOT NULL) OR (NOT (EXISTS ( SELECT
                    FROM rules sole
                   WHERE ((sole.territory = k.code) AND (sole.protection = 'SOLE_OWNER'::leadprotect.protection_type) AND (sole.user_id = o.user_id)))))))
         )
  SELECT DISTINCT ON (w.code, w.rank, w.user_id) w.code,
     w.user_id,
     ((w.user_id IS NOT NULL) AND (suspended.since IS NULL)),
         CASE
             WHEN (suspended.since IS NULL) THEN w.reason
             ELSE 'suspended'::text
         END AS "case",
     COALESCE(suspended.since, w.since) AS "coalesce",
         CASE
             WHEN (suspended.since IS NULL) THEN w.until
             ELSE suspended.effective_to
         END AS effective_to,
         CASE
             WHEN (suspended.since IS NULL) THEN w.source
             ELSE (w.reason || ' otherwise'::text)
         END AS "case"
    FROM (rights w
      LEFT JOIN LATERAL ( SELECT r.since,
             r.effective_to
            FROM rules r
           WHERE ((r.territory = w.code) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.user_id = w.user_id))
           ORDER BY r.since
          LIMIT 1) suspended ON (true))
   ORDER BY w.code, w.rank, w.user_id, w.since;
END;

-- COMMENT FUNCTION who_could_edit(lead uuid, moment timestamp with time zone)

COMMENT ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) IS 'Who could edit the lead at this moment and why, in the territories of the login; no row: nothing is known of the lead';

-- FUNCTION write_audit(uuid, leadprotect.lead_action, text, text)

CREATE FUNCTION leadprotect.write_audit(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          declared_user text := current_setting('app.user_id', true);
          declared_territory text := current_setting('app.territory', true);
          known_user uuid := "leadprotect".parse_user(declared_user);
          known_territory text := declared_territory;
          remark text := nullif(note, '');
          recorded text := decision;
        BEGIN
          -- an owner or collaborator declared a user and a territory that exist: nothing is left to look up
          IF decision NOT IN ('owner', 'collaborator') THEN
            SELECT t.code INTO known_territory FROM "leadprotect".territories AS t WHERE t.code = declared_territory;
            remark := nullif(concat_ws('; ', note,
              CASE WHEN known_user IS NULL AND declared_user <> '' THEN
                format('declared user %L', left(declared_user, 100)) END,
              CASE WHEN known_territory IS NULL AND declared_territory <> '' THEN
                format('declared territory %L', left(declared_territory, 100)) END), '');
            IF decision = 'manager' THEN
              -- his right needs no declared territory, but the row belongs to the lead's
              known_territory := (SELECT l."territory" FROM "public"."leads" AS l WHERE l."id" = lead);
            ELSIF decision = 'not_found' THEN
              recorded := CASE WHEN EXISTS (SELECT FROM "public"."leads" AS l WHERE l."id" = lead)
                THEN 'other_territory' ELSE 'unknown_lead' END;
            END IF;
          END IF;
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
          VALUES (
            lead,
            known_user,
            coalesce(nullif(current_setting('role'), 'none'), session_user),
            known_territory,
            coalesce(action, 'EDIT'),
            CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'maintenance')
              THEN 'ALLOW'::"leadprotect".lead_access_outcome ELSE 'DENY'::"leadprotect".lead_access_outcome END,
            recorded,
            remark,
            nullif(current_setting('app.correlation_id', true), ''));
        END
        $$;

-- TABLE backfill_chunks

CREATE TABLE leadprotect.backfill_chunks (
    territory text NOT NULL,
    chunk bigint NOT NULL,
    next_lead uuid,
    last_lead uuid NOT NULL,
    worker text NOT NULL,
    token bigint DEFAULT 1 NOT NULL,
    lease interval NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    scanned bigint DEFAULT 0 NOT NULL,
    assigned bigint DEFAULT 0 NOT NULL,
    finished_at timestamp with time zone
);

ALTER TABLE ONLY leadprotect.backfill_chunks FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE backfill_chunks

COMMENT ON TABLE leadprotect.backfill_chunks IS 'Claimed parts of a backfill; the token is a fencing token: who lost his lease can''t write';

-- TABLE backfill_deferred

CREATE TABLE leadprotect.backfill_deferred (
    territory text NOT NULL,
    lead_id uuid NOT NULL,
    reason text NOT NULL,
    deferred_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE ONLY leadprotect.backfill_deferred FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE backfill_deferred

COMMENT ON TABLE leadprotect.backfill_deferred IS 'Leads whose assignment was locked: retried at the end';

-- TABLE backfill_jobs

CREATE TABLE leadprotect.backfill_jobs (
    territory text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    finished_at timestamp with time zone,
    request text DEFAULT 'run'::text NOT NULL,
    request_reason text,
    next_lead uuid,
    exhausted boolean DEFAULT false NOT NULL,
    chunks bigint DEFAULT 0 NOT NULL,
    retried bigint DEFAULT 0 NOT NULL,
    CONSTRAINT backfill_jobs_request_check CHECK ((request = ANY (ARRAY['run'::text, 'pause'::text, 'stop'::text])))
);

ALTER TABLE ONLY leadprotect.backfill_jobs FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE backfill_jobs

COMMENT ON TABLE leadprotect.backfill_jobs IS 'One backfill per territory: where it stands, and what was asked of it';

-- COMMENT COLUMN backfill_jobs.retried

COMMENT ON COLUMN leadprotect.backfill_jobs.retried IS 'owners assigned after the chunks, to leads that were locked when their slice came';

-- TABLE contextless_writes

CREATE TABLE leadprotect.contextless_writes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    login name DEFAULT SESSION_USER NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    host_table text NOT NULL,
    with_context boolean NOT NULL
);

ALTER TABLE ONLY leadprotect.contextless_writes FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE contextless_writes

COMMENT ON TABLE leadprotect.contextless_writes IS 'Writes to the host''s tables without a context, or by a login that owns them: one note per login and minute';

-- TABLE host_row_security

CREATE TABLE leadprotect.host_row_security (
    host_table text NOT NULL,
    enabled boolean NOT NULL,
    forced boolean NOT NULL,
    auditor_columns name[] NOT NULL
);

ALTER TABLE ONLY leadprotect.host_row_security FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE host_row_security

COMMENT ON TABLE leadprotect.host_row_security IS 'Row security flags of the host''s leads before contract, and what contract lets auditors read there';

-- SEQUENCE lead_access_audit_id_seq

CREATE SEQUENCE leadprotect.lead_access_audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

-- SEQUENCE OWNED BY lead_access_audit_id_seq

ALTER SEQUENCE leadprotect.lead_access_audit_id_seq OWNED BY leadprotect.lead_access_audit.id;

-- TABLE lead_access_audit_default

CREATE TABLE leadprotect.lead_access_audit_default (
    lead_id uuid CONSTRAINT lead_access_audit_lead_id_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT lead_access_audit_at_not_null NOT NULL,
    id bigint DEFAULT nextval('leadprotect.lead_access_audit_id_seq'::regclass) CONSTRAINT lead_access_audit_id_not_null NOT NULL,
    user_id uuid,
    login name DEFAULT SESSION_USER CONSTRAINT lead_access_audit_login_not_null NOT NULL,
    role name CONSTRAINT lead_access_audit_role_not_null NOT NULL,
    territory text,
    action leadprotect.lead_action CONSTRAINT lead_access_audit_action_not_null NOT NULL,
    outcome leadprotect.lead_access_outcome CONSTRAINT lead_access_audit_outcome_not_null NOT NULL,
    reason text CONSTRAINT lead_access_audit_reason_not_null NOT NULL,
    note text,
    correlation_id text,
    transaction_id xid8 DEFAULT pg_current_xact_id() CONSTRAINT lead_access_audit_transaction_id_not_null NOT NULL
);

ALTER TABLE ONLY leadprotect.lead_access_audit_default FORCE ROW LEVEL SECURITY;

-- TABLE unsettled_leads

CREATE TABLE leadprotect.unsettled_leads (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    lead_id uuid NOT NULL
);

ALTER TABLE ONLY leadprotect.unsettled_leads FORCE ROW LEVEL SECURITY;

-- COMMENT TABLE unsettled_leads

COMMENT ON TABLE leadprotect.unsettled_leads IS 'Leads that changed while a backfill may have read them: it looks at them again at its end';

-- SEQUENCE user_lead_assignment_history_id_seq

CREATE SEQUENCE leadprotect.user_lead_assignment_history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

-- SEQUENCE OWNED BY user_lead_assignment_history_id_seq

ALTER SEQUENCE leadprotect.user_lead_assignment_history_id_seq OWNED BY leadprotect.user_lead_assignment_history.id;

-- VIEW v_lead_protection

CREATE VIEW leadprotect.v_lead_protection WITH (security_invoker='true', security_barrier='true') AS
 SELECT l.id AS lead,
    (l.territory)::text AS territory,
    a.user_id AS owner,
        CASE
            WHEN ( SELECT (leadprotect.parse_user(current_setting('app.user_id'::text, true)) IS NULL)) THEN false
            WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.can_edit_lead(l.id)
            ELSE COALESCE((a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)), false)
        END AS can_edit,
        CASE
            WHEN ( SELECT (leadprotect.parse_user(current_setting('app.user_id'::text, true)) IS NULL)) THEN 'no_context'::text
            WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.explain_edit(l.id)
            WHEN (a.user_id IS NULL) THEN 'unassigned'::text
            WHEN (a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)) THEN 'owner'::text
            ELSE 'not_owner'::text
        END AS reason
   FROM (public.leads l
     LEFT JOIN leadprotect.user_lead_assignments a ON (((a.lead_id = l.id) AND (a.territory = (l.territory)::text))))
  WHERE (((l.territory)::text = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(current_setting('app.territory'::text, true)) AS is_member));

-- COMMENT VIEW v_lead_protection

COMMENT ON VIEW leadprotect.v_lead_protection IS 'Who owns each lead of the territory in context, and whether the user in context may edit it';

-- TABLE leadprotect_alembic_version

CREATE TABLE public.leadprotect_alembic_version (
    version_num character varying(32) NOT NULL
);

-- TABLE ATTACH lead_access_audit_default

ALTER TABLE ONLY leadprotect.lead_access_audit ATTACH PARTITION leadprotect.lead_access_audit_default DEFAULT;

-- DEFAULT lead_access_audit id

ALTER TABLE ONLY leadprotect.lead_access_audit ALTER COLUMN id SET DEFAULT nextval('leadprotect.lead_access_audit_id_seq'::regclass);

-- DEFAULT user_lead_assignment_history id

ALTER TABLE ONLY leadprotect.user_lead_assignment_history ALTER COLUMN id SET DEFAULT nextval('leadprotect.user_lead_assignment_history_id_seq'::regclass);

-- CONSTRAINT backfill_chunks backfill_chunks_pkey

ALTER TABLE ONLY leadprotect.backfill_chunks
    ADD CONSTRAINT backfill_chunks_pkey PRIMARY KEY (territory, chunk);

-- CONSTRAINT backfill_deferred backfill_deferred_pkey

ALTER TABLE ONLY leadprotect.backfill_deferred
    ADD CONSTRAINT backfill_deferred_pkey PRIMARY KEY (lead_id, territory);

-- CONSTRAINT backfill_jobs backfill_jobs_pkey

ALTER TABLE ONLY leadprotect.backfill_jobs
    ADD CONSTRAINT backfill_jobs_pkey PRIMARY KEY (territory);

-- CONSTRAINT contextless_writes contextless_writes_pkey

ALTER TABLE ONLY leadprotect.contextless_writes
    ADD CONSTRAINT contextless_writes_pkey PRIMARY KEY (id);

-- CONSTRAINT host_row_security host_row_security_pkey

ALTER TABLE ONLY leadprotect.host_row_security
    ADD CONSTRAINT host_row_security_pkey PRIMARY KEY (host_table);

-- CONSTRAINT lead_access_audit_seals ix_laas_chain

ALTER TABLE ONLY leadprotect.lead_access_audit_seals
    ADD CONSTRAINT ix_laas_chain UNIQUE NULLS NOT DISTINCT (territory, number);

-- CONSTRAINT lead_protection_rules ix_lpr_user

ALTER TABLE ONLY leadprotect.lead_protection_rules
    ADD CONSTRAINT ix_lpr_user UNIQUE NULLS NOT DISTINCT (user_id, territory, protection, lead_id, active, effective_from, effective_to);

-- CONSTRAINT user_lead_assignments ix_ula_lead

ALTER TABLE ONLY leadprotect.user_lead_assignments
    ADD CONSTRAINT ix_ula_lead PRIMARY KEY (lead_id, territory) INCLUDE (user_id);

-- CONSTRAINT lead_access_audit lead_access_audit_pkey

ALTER TABLE ONLY leadprotect.lead_access_audit
    ADD CONSTRAINT lead_access_audit_pkey PRIMARY KEY (lead_id, at, id);

-- CONSTRAINT lead_access_audit_default lead_access_audit_default_pkey

ALTER TABLE ONLY leadprotect.lead_access_audit_default
    ADD CONSTRAINT lead_access_audit_default_pkey PRIMARY KEY (lead_id, at, id);

-- CONSTRAINT lead_access_audit_seals lead_access_audit_seals_pkey

ALTER TABLE ONLY leadprotect.lead_access_audit_seals
    ADD CONSTRAINT lead_access_audit_seals_pkey PRIMARY KEY (hash);

-- CONSTRAINT territories territories_pkey

ALTER TABLE ONLY leadprotect.territories
    ADD CONSTRAINT territories_pkey PRIMARY KEY (code);

-- CONSTRAINT territory_vat_rates territory_vat_rates_pkey

ALTER TABLE ONLY leadprotect.territory_vat_rates
    ADD CONSTRAINT territory_vat_rates_pkey PRIMARY KEY (territory, valid_from);

-- CONSTRAINT unsettled_leads unsettled_leads_pkey

ALTER TABLE ONLY leadprotect.unsettled_leads
    ADD CONSTRAINT unsettled_leads_pkey PRIMARY KEY (id);

-- CONSTRAINT user_lead_assignment_history user_lead_assignment_history_pkey

ALTER TABLE ONLY leadprotect.user_lead_assignment_history
    ADD CONSTRAINT user_lead_assignment_history_pkey PRIMARY KEY (lead_id, territory, id);

-- CONSTRAINT leadprotect_alembic_version leadprotect_alembic_version_pkc

ALTER TABLE ONLY public.leadprotect_alembic_version
    ADD CONSTRAINT leadprotect_alembic_version_pkc PRIMARY KEY (version_num);

-- INDEX ix_backfill_chunks_open

CREATE INDEX ix_backfill_chunks_open ON leadprotect.backfill_chunks USING btree (territory, lease_until) WHERE (finished_at IS NULL);

-- INDEX ix_contextless_writes_login

CREATE INDEX ix_contextless_writes_login ON leadprotect.contextless_writes USING btree (login, at);

-- INDEX ix_ula_user

CREATE INDEX ix_ula_user ON leadprotect.user_lead_assignments USING btree (user_id, territory, lead_id);

-- INDEX ATTACH lead_access_audit_default_pkey

ALTER INDEX leadprotect.lead_access_audit_pkey ATTACH PARTITION leadprotect.lead_access_audit_default_pkey;

-- TRIGGER lead_access_audit lp_append_only

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit ENABLE ALWAYS TRIGGER lp_append_only;

-- TRIGGER lead_access_audit_default lp_append_only

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit_default FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit_default ENABLE ALWAYS TRIGGER lp_append_only;

-- TRIGGER lead_access_audit_seals lp_append_only

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit_seals FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit_seals ENABLE ALWAYS TRIGGER lp_append_only;

-- TRIGGER user_lead_assignments lp_keep_assignment

CREATE TRIGGER lp_keep_assignment AFTER DELETE OR UPDATE ON leadprotect.user_lead_assignments FOR EACH ROW EXECUTE FUNCTION leadprotect.keep_assignment();

-- TRIGGER leads leadprotect_audit_edit

CREATE TRIGGER leadprotect_audit_edit BEFORE DELETE OR UPDATE ON public.leads FOR EACH ROW WHEN (((old.territory IS NOT NULL) AND row_security_active(('public.leads'::regclass)::oid) AND (CURRENT_USER <> ALL (ARRAY[]::name[])))) EXECUTE FUNCTION leadprotect.audit_edit('bound');

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_edit;

-- TRIGGER leads leadprotect_audit_maintenance

CREATE TRIGGER leadprotect_audit_maintenance BEFORE DELETE OR UPDATE ON public.leads FOR EACH ROW WHEN (((old.territory IS NOT NULL) AND (NOT (row_security_active(('public.leads'::regclass)::oid) AND (CURRENT_USER <> ALL (ARRAY[]::name[])))))) EXECUTE FUNCTION leadprotect.audit_edit('maintenance');

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_maintenance;

-- TRIGGER leads leadprotect_audit_truncate

CREATE TRIGGER leadprotect_audit_truncate BEFORE TRUNCATE ON public.leads FOR EACH STATEMENT WHEN ((NOT row_security_active(('public.leads'::regclass)::oid))) EXECUTE FUNCTION leadprotect.audit_truncate();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_truncate;

-- TRIGGER leads leadprotect_forget

CREATE TRIGGER leadprotect_forget AFTER DELETE ON public.leads FOR EACH ROW EXECUTE FUNCTION leadprotect.forget_lead();

-- TRIGGER leads leadprotect_refuse_move

CREATE TRIGGER leadprotect_refuse_move AFTER UPDATE OF id, territory ON public.leads FOR EACH ROW WHEN (((old.territory IS NOT NULL) AND (((new.territory)::text IS DISTINCT FROM (old.territory)::text) OR (new.id <> old.id)) AND row_security_active(('public.leads'::regclass)::oid) AND (CURRENT_USER <> ALL (ARRAY[]::name[])))) EXECUTE FUNCTION leadprotect.refuse_move();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_refuse_move;

-- TRIGGER leads leadprotect_refuse_truncate

CREATE TRIGGER leadprotect_refuse_truncate BEFORE TRUNCATE ON public.leads FOR EACH STATEMENT WHEN (row_security_active(('public.leads'::regclass)::oid)) EXECUTE FUNCTION leadprotect.refuse_truncate();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_refuse_truncate;

-- FK CONSTRAINT backfill_chunks backfill_chunks_territory_fkey

ALTER TABLE ONLY leadprotect.backfill_chunks
    ADD CONSTRAINT backfill_chunks_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.backfill_jobs(territory);

-- FK CONSTRAINT backfill_deferred backfill_deferred_territory_fkey

ALTER TABLE ONLY leadprotect.backfill_deferred
    ADD CONSTRAINT backfill_deferred_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.backfill_jobs(territory);

-- FK CONSTRAINT backfill_jobs backfill_jobs_territory_fkey

ALTER TABLE ONLY leadprotect.backfill_jobs
    ADD CONSTRAINT backfill_jobs_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

-- FK CONSTRAINT lead_protection_rules lead_protection_rules_territory_fkey

ALTER TABLE ONLY leadprotect.lead_protection_rules
    ADD CONSTRAINT lead_protection_rules_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

-- FK CONSTRAINT territory_vat_rates territory_vat_rates_territory_fkey

ALTER TABLE ONLY leadprotect.territory_vat_rates
    ADD CONSTRAINT territory_vat_rates_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

-- ROW SECURITY backfill_chunks

ALTER TABLE leadprotect.backfill_chunks ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY backfill_deferred

ALTER TABLE leadprotect.backfill_deferred ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY backfill_jobs

ALTER TABLE leadprotect.backfill_jobs ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY contextless_writes

ALTER TABLE leadprotect.contextless_writes ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY host_row_security

ALTER TABLE leadprotect.host_row_security ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY lead_access_audit

ALTER TABLE leadprotect.lead_access_audit ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY lead_access_audit_default

ALTER TABLE leadprotect.lead_access_audit_default ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY lead_access_audit_seals

ALTER TABLE leadprotect.lead_access_audit_seals ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY lead_protection_rules

ALTER TABLE leadprotect.lead_protection_rules ENABLE ROW LEVEL SECURITY;

-- POLICY backfill_chunks lp_floor

CREATE POLICY lp_floor ON leadprotect.backfill_chunks AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY backfill_deferred lp_floor

CREATE POLICY lp_floor ON leadprotect.backfill_deferred AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY backfill_jobs lp_floor

CREATE POLICY lp_floor ON leadprotect.backfill_jobs AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY lead_access_audit lp_floor

CREATE POLICY lp_floor ON leadprotect.lead_access_audit AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY lead_access_audit_default lp_floor

CREATE POLICY lp_floor ON leadprotect.lead_access_audit_default AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY lead_access_audit_seals lp_floor

CREATE POLICY lp_floor ON leadprotect.lead_access_audit_seals AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY lead_protection_rules lp_floor

CREATE POLICY lp_floor ON leadprotect.lead_protection_rules AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY territory_vat_rates lp_floor

CREATE POLICY lp_floor ON leadprotect.territory_vat_rates AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY user_lead_assignment_history lp_floor

CREATE POLICY lp_floor ON leadprotect.user_lead_assignment_history AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY user_lead_assignments lp_floor

CREATE POLICY lp_floor ON leadprotect.user_lead_assignments AS RESTRICTIVE TO leadprotect_app USING (((territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting)) AND ( SELECT leadprotect.is_member(( SELECT current_setting('app.territory'::text, true) AS current_setting)) AS is_member)));

-- POLICY backfill_chunks lp_operator

CREATE POLICY lp_operator ON leadprotect.backfill_chunks FOR SELECT TO leadprotect_operator USING (true);

-- POLICY backfill_deferred lp_operator

CREATE POLICY lp_operator ON leadprotect.backfill_deferred FOR SELECT TO leadprotect_operator USING (true);

-- POLICY backfill_jobs lp_operator

CREATE POLICY lp_operator ON leadprotect.backfill_jobs FOR SELECT TO leadprotect_operator USING (true);

-- POLICY unsettled_leads lp_operator

CREATE POLICY lp_operator ON leadprotect.unsettled_leads FOR SELECT TO leadprotect_operator USING (true);

-- POLICY backfill_chunks lp_owner

CREATE POLICY lp_owner ON leadprotect.backfill_chunks TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY backfill_deferred lp_owner

CREATE POLICY lp_owner ON leadprotect.backfill_deferred TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY backfill_jobs lp_owner

CREATE POLICY lp_owner ON leadprotect.backfill_jobs TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY contextless_writes lp_owner

CREATE POLICY lp_owner ON leadprotect.contextless_writes TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY host_row_security lp_owner

CREATE POLICY lp_owner ON leadprotect.host_row_security TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY lead_access_audit lp_owner

CREATE POLICY lp_owner ON leadprotect.lead_access_audit TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY lead_access_audit_default lp_owner

CREATE POLICY lp_owner ON leadprotect.lead_access_audit_default TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY lead_access_audit_seals lp_owner

CREATE POLICY lp_owner ON leadprotect.lead_access_audit_seals TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY lead_protection_rules lp_owner

CREATE POLICY lp_owner ON leadprotect.lead_protection_rules TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY territories lp_owner

CREATE POLICY lp_owner ON leadprotect.territories TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY territory_vat_rates lp_owner

CREATE POLICY lp_owner ON leadprotect.territory_vat_rates TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY unsettled_leads lp_owner

CREATE POLICY lp_owner ON leadprotect.unsettled_leads TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY user_lead_assignment_history lp_owner

CREATE POLICY lp_owner ON leadprotect.user_lead_assignment_history TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY user_lead_assignments lp_owner

CREATE POLICY lp_owner ON leadprotect.user_lead_assignments TO leadprotect_owner USING (true) WITH CHECK (true);

-- POLICY territories lp_reference

CREATE POLICY lp_reference ON leadprotect.territories FOR SELECT TO leadprotect_app, leadprotect_auditor, leadprotect_manager, leadprotect_operator USING (true);

-- POLICY user_lead_assignments lp_released

CREATE POLICY lp_released ON leadprotect.user_lead_assignments AS RESTRICTIVE TO leadprotect_app USING ((user_id IS NOT NULL));

-- POLICY backfill_chunks lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.backfill_chunks TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY backfill_deferred lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.backfill_deferred TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY backfill_jobs lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.backfill_jobs TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.lead_access_audit TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit_default lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.lead_access_audit_default TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit_seals lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.lead_access_audit_seals TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_protection_rules lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.lead_protection_rules TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY territory_vat_rates lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.territory_vat_rates TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY user_lead_assignment_history lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.user_lead_assignment_history TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY user_lead_assignments lp_territory_ch

CREATE POLICY lp_territory_ch ON leadprotect.user_lead_assignments TO leadprotect_ch USING (((territory = 'CH'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY backfill_chunks lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.backfill_chunks TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY backfill_deferred lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.backfill_deferred TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY backfill_jobs lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.backfill_jobs TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.lead_access_audit TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit_default lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.lead_access_audit_default TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit_seals lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.lead_access_audit_seals TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_protection_rules lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.lead_protection_rules TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY territory_vat_rates lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.territory_vat_rates TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY user_lead_assignment_history lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.user_lead_assignment_history TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY user_lead_assignments lp_territory_de

CREATE POLICY lp_territory_de ON leadprotect.user_lead_assignments TO leadprotect_de USING (((territory = 'DE'::text) AND (territory = ( SELECT current_setting('app.territory'::text, true) AS current_setting))));

-- POLICY lead_access_audit lp_without_territory

CREATE POLICY lp_without_territory ON leadprotect.lead_access_audit FOR SELECT TO leadprotect_auditor USING ((territory IS NULL));

-- POLICY lead_access_audit_default lp_without_territory

CREATE POLICY lp_without_territory ON leadprotect.lead_access_audit_default FOR SELECT TO leadprotect_auditor USING ((territory IS NULL));

-- POLICY lead_access_audit_seals lp_without_territory

CREATE POLICY lp_without_territory ON leadprotect.lead_access_audit_seals FOR SELECT TO leadprotect_auditor USING ((territory IS NULL));

-- ROW SECURITY territories

ALTER TABLE leadprotect.territories ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY territory_vat_rates

ALTER TABLE leadprotect.territory_vat_rates ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY unsettled_leads

ALTER TABLE leadprotect.unsettled_leads ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY user_lead_assignment_history

ALTER TABLE leadprotect.user_lead_assignment_history ENABLE ROW LEVEL SECURITY;

-- ROW SECURITY user_lead_assignments

ALTER TABLE leadprotect.user_lead_assignments ENABLE ROW LEVEL SECURITY;

-- POLICY leads leadprotect_delete

CREATE POLICY leadprotect_delete ON public.leads AS RESTRICTIVE FOR DELETE TO leadprotect_app, leadprotect_de, leadprotect_ch USING (((territory IS NULL) OR leadprotect.can_edit_lead(id)));

-- POLICY leads leadprotect_floor

CREATE POLICY leadprotect_floor ON public.leads AS RESTRICTIVE TO leadprotect_app, leadprotect_auditor USING ((((territory)::text = ( SELECT
        CASE
            WHEN leadprotect.is_member(current_setting('app.territory'::text, true)) THEN current_setting('app.territory'::text, true)
            ELSE ''::text
        END AS "case")) IS NOT FALSE));

-- POLICY leads leadprotect_owner

CREATE POLICY leadprotect_owner ON public.leads FOR SELECT TO leadprotect_owner USING (true);

-- POLICY leads leadprotect_territory_ch

CREATE POLICY leadprotect_territory_ch ON public.leads TO leadprotect_ch USING ((((territory)::text = 'CH'::text) AND ( SELECT (current_setting('app.territory'::text, true) = 'CH'::text))));

-- POLICY leads leadprotect_territory_de

CREATE POLICY leadprotect_territory_de ON public.leads TO leadprotect_de USING ((((territory)::text = 'DE'::text) AND ( SELECT (current_setting('app.territory'::text, true) = 'DE'::text))));

-- POLICY leads leadprotect_unprotected

CREATE POLICY leadprotect_unprotected ON public.leads USING ((territory IS NULL));

-- POLICY leads leadprotect_update

CREATE POLICY leadprotect_update ON public.leads AS RESTRICTIVE FOR UPDATE TO leadprotect_app, leadprotect_de, leadprotect_ch USING (((territory IS NULL) OR leadprotect.can_edit_lead(id))) WITH CHECK (true);

-- ROW SECURITY leads

ALTER TABLE public.leads ENABLE ROW LEVEL SECURITY;

-- ACL SCHEMA leadprotect

GRANT USAGE ON SCHEMA leadprotect TO leadprotect_app;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_auditor;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_operator;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_manager;

-- ACL FUNCTION add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone)

REVOKE ALL ON FUNCTION leadprotect.add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone) FROM PUBLIC;

-- ACL FUNCTION allow_edit(lead uuid, action leadprotect.lead_action, note text)

REVOKE ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- ACL TABLE lead_access_audit_seals

GRANT SELECT ON TABLE leadprotect.lead_access_audit_seals TO leadprotect_auditor;

-- ACL FUNCTION append_audit_seal(entry leadprotect.lead_access_audit_seals)

REVOKE ALL ON FUNCTION leadprotect.append_audit_seal(entry leadprotect.lead_access_audit_seals) FROM PUBLIC;

-- ACL FUNCTION assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text)

REVOKE ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- ACL FUNCTION assign_lead(lead uuid, new_owner uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION audit_edit()

REVOKE ALL ON FUNCTION leadprotect.audit_edit() FROM PUBLIC;

-- ACL FUNCTION audit_number_gaps()

REVOKE ALL ON FUNCTION leadprotect.audit_number_gaps() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_number_gaps() TO leadprotect_auditor;

-- ACL FUNCTION audit_origin()

REVOKE ALL ON FUNCTION leadprotect.audit_origin() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_origin() TO leadprotect_auditor;

-- ACL TABLE lead_access_audit

GRANT SELECT ON TABLE leadprotect.lead_access_audit TO leadprotect_auditor;

-- ACL FUNCTION audit_partitions()

REVOKE ALL ON FUNCTION leadprotect.audit_partitions() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_partitions() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.audit_partitions() TO leadprotect_operator;

-- ACL FUNCTION audit_settled_until()

REVOKE ALL ON FUNCTION leadprotect.audit_settled_until() FROM PUBLIC;

-- ACL FUNCTION audit_truncate()

REVOKE ALL ON FUNCTION leadprotect.audit_truncate() FROM PUBLIC;

-- ACL FUNCTION backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint)

REVOKE ALL ON FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) TO leadprotect_operator;

-- ACL TABLE user_lead_assignments

GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_manager;

-- ACL COLUMN activities.id

GRANT SELECT(id) ON TABLE public.activities TO leadprotect_owner;

-- ACL COLUMN activities.lead_id

GRANT SELECT(lead_id) ON TABLE public.activities TO leadprotect_owner;

-- ACL COLUMN activities.user_id

GRANT SELECT(user_id) ON TABLE public.activities TO leadprotect_owner;

-- ACL COLUMN activities.kind

GRANT SELECT(kind) ON TABLE public.activities TO leadprotect_owner;

-- ACL COLUMN activities.created_at

GRANT SELECT(created_at) ON TABLE public.activities TO leadprotect_owner;

-- ACL COLUMN leads.id

GRANT SELECT(id) ON TABLE public.leads TO leadprotect_owner;
GRANT SELECT(id) ON TABLE public.leads TO leadprotect_auditor;

-- ACL COLUMN leads.territory

GRANT SELECT(territory) ON TABLE public.leads TO leadprotect_owner;
GRANT SELECT(territory) ON TABLE public.leads TO leadprotect_auditor;

-- ACL FUNCTION backfill_counts(territories text[])

REVOKE ALL ON FUNCTION leadprotect.backfill_counts(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_counts(territories text[]) TO leadprotect_operator;

-- ACL FUNCTION backfill_defer(here text, chunk bigint, token bigint, reason text)

REVOKE ALL ON FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) TO leadprotect_operator;

-- ACL FUNCTION backfill_estimate(here text)

REVOKE ALL ON FUNCTION leadprotect.backfill_estimate(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_estimate(here text) TO leadprotect_operator;

-- ACL FUNCTION backfill_finish(here text)

REVOKE ALL ON FUNCTION leadprotect.backfill_finish(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_finish(here text) TO leadprotect_operator;

-- ACL FUNCTION backfill_outside()

REVOKE ALL ON FUNCTION leadprotect.backfill_outside() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_outside() TO leadprotect_operator;

-- ACL FUNCTION backfill_release(here text, chunk bigint, token bigint)

REVOKE ALL ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) TO leadprotect_operator;

-- ACL FUNCTION backfill_report(territories text[])

REVOKE ALL ON FUNCTION leadprotect.backfill_report(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_report(territories text[]) TO leadprotect_operator;

-- ACL FUNCTION backfill_request(here text, wanted text, reason text)

REVOKE ALL ON FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) TO leadprotect_operator;

-- ACL FUNCTION backfill_retry(here text, lead uuid)

REVOKE ALL ON FUNCTION leadprotect.backfill_retry(here text, lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_retry(here text, lead uuid) TO leadprotect_operator;

-- ACL FUNCTION backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint)

REVOKE ALL ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) TO leadprotect_operator;

-- ACL FUNCTION backfill_settings()

REVOKE ALL ON FUNCTION leadprotect.backfill_settings() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_settings() TO leadprotect_operator;

-- ACL FUNCTION backfill_settle(lead uuid)

REVOKE ALL ON FUNCTION leadprotect.backfill_settle(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_settle(lead uuid) TO leadprotect_operator;

-- ACL FUNCTION backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean)

REVOKE ALL ON FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) TO leadprotect_operator;

-- ACL FUNCTION backfill_stale(here text)

REVOKE ALL ON FUNCTION leadprotect.backfill_stale(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_stale(here text) TO leadprotect_operator;

-- ACL FUNCTION backfill_start(here text, settings text)

REVOKE ALL ON FUNCTION leadprotect.backfill_start(here text, settings text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_start(here text, settings text) TO leadprotect_operator;

-- ACL FUNCTION decide(lead uuid, declared_user text, declared_territory text)

REVOKE ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_manager;

-- ACL FUNCTION can_edit_lead(lead uuid)

REVOKE ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_manager;

-- ACL FUNCTION change_owner(lead uuid, change text, new_owner uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text)

REVOKE ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_manager;

-- ACL FUNCTION claim_lead(lead uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION clear_audit_default(max_moved integer)

REVOKE ALL ON FUNCTION leadprotect.clear_audit_default(max_moved integer) FROM PUBLIC;

-- ACL FUNCTION context(OUT user_id text, OUT territory text, OUT correlation_id text)

REVOKE ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_manager;

-- ACL FUNCTION create_audit_partitions(months_ahead integer, max_moved integer)

REVOKE ALL ON FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer) TO leadprotect_operator;

-- ACL FUNCTION in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone)

REVOKE ALL ON FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) FROM PUBLIC;

-- ACL TABLE lead_protection_rules

GRANT SELECT ON TABLE leadprotect.lead_protection_rules TO leadprotect_manager;
GRANT SELECT ON TABLE leadprotect.lead_protection_rules TO leadprotect_auditor;

-- ACL FUNCTION decision(lead uuid, caller uuid, here text)

REVOKE ALL ON FUNCTION leadprotect.decision(lead uuid, caller uuid, here text) FROM PUBLIC;

-- ACL FUNCTION deny(lead uuid, action leadprotect.lead_action, decision text, note text)

REVOKE ALL ON FUNCTION leadprotect.deny(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- ACL FUNCTION detach_audit_month(month date)

REVOKE ALL ON FUNCTION leadprotect.detach_audit_month(month date) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.detach_audit_month(month date) TO leadprotect_operator;

-- ACL FUNCTION editable_among(leads uuid[])

REVOKE ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_manager;

-- ACL FUNCTION editable_leads(after uuid, page_size integer)

REVOKE ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) TO leadprotect_manager;

-- ACL FUNCTION end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid)

REVOKE ALL ON FUNCTION leadprotect.end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) FROM PUBLIC;

-- ACL FUNCTION explain_edit(lead uuid, OUT reason text)

REVOKE ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_manager;

-- ACL FUNCTION forget_lead()

REVOKE ALL ON FUNCTION leadprotect.forget_lead() FROM PUBLIC;

-- ACL FUNCTION gate_conditions(observation_window interval, host_rls text, exempt_roles name[])

REVOKE ALL ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[]) TO leadprotect_operator;

-- ACL FUNCTION grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone)

REVOKE ALL ON FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone) TO leadprotect_manager;

-- ACL FUNCTION parse_user(declared text)

REVOKE ALL ON FUNCTION leadprotect.parse_user(declared text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_manager;

-- ACL FUNCTION has_rules()

REVOKE ALL ON FUNCTION leadprotect.has_rules() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_manager;

-- ACL FUNCTION is_code(territory text)

REVOKE ALL ON FUNCTION leadprotect.is_code(territory text) FROM PUBLIC;

-- ACL FUNCTION is_manager()

REVOKE ALL ON FUNCTION leadprotect.is_manager() FROM PUBLIC;

-- ACL FUNCTION is_member(territory text)

REVOKE ALL ON FUNCTION leadprotect.is_member(territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_manager;

-- ACL FUNCTION keep_assignment()

REVOKE ALL ON FUNCTION leadprotect.keep_assignment() FROM PUBLIC;

-- ACL FUNCTION lead_for_ownership(lead uuid, manager boolean)

REVOKE ALL ON FUNCTION leadprotect.lead_for_ownership(lead uuid, manager boolean) FROM PUBLIC;

-- ACL FUNCTION note_contextless_write()

REVOKE ALL ON FUNCTION leadprotect.note_contextless_write() FROM PUBLIC;

-- ACL FUNCTION note_unsettled(lead uuid)

REVOKE ALL ON FUNCTION leadprotect.note_unsettled(lead uuid) FROM PUBLIC;

-- ACL FUNCTION own_active_lead()

REVOKE ALL ON FUNCTION leadprotect.own_active_lead() FROM PUBLIC;

-- ACL FUNCTION own_leads(here text, leads uuid[])

REVOKE ALL ON FUNCTION leadprotect.own_leads(here text, leads uuid[]) FROM PUBLIC;

-- ACL FUNCTION own_moved_lead()

REVOKE ALL ON FUNCTION leadprotect.own_moved_lead() FROM PUBLIC;

-- ACL FUNCTION record_denial(lead uuid, action leadprotect.lead_action, decision text, note text)

REVOKE ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text) TO leadprotect_manager;

-- ACL FUNCTION record_edit_attempt(lead uuid, action leadprotect.lead_action, note text)

REVOKE ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- ACL FUNCTION refuse_change()

REVOKE ALL ON FUNCTION leadprotect.refuse_change() FROM PUBLIC;

-- ACL FUNCTION refuse_move()

REVOKE ALL ON FUNCTION leadprotect.refuse_move() FROM PUBLIC;

-- ACL FUNCTION refuse_truncate()

REVOKE ALL ON FUNCTION leadprotect.refuse_truncate() FROM PUBLIC;

-- ACL FUNCTION release_lead(lead uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION require(lead uuid, action leadprotect.lead_action, decision text, note text)

REVOKE ALL ON FUNCTION leadprotect.require(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- ACL FUNCTION revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid)

REVOKE ALL ON FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) TO leadprotect_manager;

-- ACL FUNCTION seal_audit(rows_per_seal integer)

REVOKE ALL ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) TO leadprotect_operator;

-- ACL FUNCTION secure_audit_table(target regclass)

REVOKE ALL ON FUNCTION leadprotect.secure_audit_table(target regclass) FROM PUBLIC;

-- ACL FUNCTION secure_table(target regclass)

REVOKE ALL ON FUNCTION leadprotect.secure_table(target regclass) FROM PUBLIC;

-- ACL FUNCTION set_context(user_id text, territory text, correlation_id text)

REVOKE ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_manager;

-- ACL FUNCTION set_context(user_id uuid, territory text, correlation_id text)

REVOKE ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_manager;

-- ACL FUNCTION share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text)

REVOKE ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_manager;

-- ACL TABLE territories

GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_manager;

-- ACL TABLE territory_vat_rates

GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_manager;

-- ACL FUNCTION territory_terms(territory text, on_date date)

REVOKE ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_operator;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_manager;

-- ACL FUNCTION transfer_lead(lead uuid, new_owner uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION unowned_leads(territories text[])

REVOKE ALL ON FUNCTION leadprotect.unowned_leads(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territories text[]) TO leadprotect_operator;

-- ACL FUNCTION unowned_leads(territory text)

REVOKE ALL ON FUNCTION leadprotect.unowned_leads(territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territory text) TO leadprotect_operator;

-- ACL FUNCTION unshare_lead(lead uuid, with_user uuid, note text)

REVOKE ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) TO leadprotect_manager;

-- ACL FUNCTION ways_around(host_rls text, exempt_roles name[])

REVOKE ALL ON FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) FROM PUBLIC;

-- ACL TABLE user_lead_assignment_history

GRANT SELECT ON TABLE leadprotect.user_lead_assignment_history TO leadprotect_manager;
GRANT SELECT ON TABLE leadprotect.user_lead_assignment_history TO leadprotect_auditor;

-- ACL FUNCTION who_could_edit(lead uuid, moment timestamp with time zone)

REVOKE ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) TO leadprotect_manager;

-- ACL FUNCTION write_audit(lead uuid, action leadprotect.lead_action, decision text, note text)

REVOKE ALL ON FUNCTION leadprotect.write_audit(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- ACL TABLE backfill_chunks

GRANT SELECT ON TABLE leadprotect.backfill_chunks TO leadprotect_operator;

-- ACL TABLE backfill_deferred

GRANT SELECT ON TABLE leadprotect.backfill_deferred TO leadprotect_operator;

-- ACL TABLE backfill_jobs

GRANT SELECT ON TABLE leadprotect.backfill_jobs TO leadprotect_operator;

-- ACL TABLE unsettled_leads

GRANT SELECT ON TABLE leadprotect.unsettled_leads TO leadprotect_operator;

-- ACL TABLE v_lead_protection

GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_manager;

-- ACL TABLE leadprotect_alembic_version

GRANT SELECT ON TABLE public.leadprotect_alembic_version TO leadprotect_operator;
