"""The audit: every attempt on a lead, append-only, partitioned by month.

Why: contracts with agents hang on who could edit what, and when. Login, role, time and transaction
come from the server; guards that fire ALWAYS refuse every change, on the parent and each partition.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving the table and its partitions to the quarantine schema, guarded and row-secured.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0003_expand_audit"
down_revision = "lp_0002_expand_assignments"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_types()
    create_audit()
    create_guards()
    create_partitions()
    secure_partitions()
    create_who_could_edit()
    create_edits_of_own()
    grant_access()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    drop_functions()
    enter_quarantine()
    op.execute("RESET ROLE")


def create_types() -> None:
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regtype('{quarantine}.lead_action') IS NOT NULL THEN
            ALTER TYPE {quarantine}.lead_action SET SCHEMA {schema};
            ALTER TYPE {quarantine}.lead_access_outcome SET SCHEMA {schema};
          ELSE
            CREATE TYPE {schema}.lead_action AS ENUM ('VIEW', 'EDIT', 'ASSIGN', 'UNASSIGN');
            CREATE TYPE {schema}.lead_access_outcome AS ENUM ('ALLOW', 'DENY');
          END IF;
        END
        $do$
        """)
    )


def create_audit() -> None:
    # No foreign key: deleting a lead keeps its history. Login, role, time and transaction come
    # from the server. The number is drawn even by an attempt that is rolled back, so gaps show.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          part regclass;
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.lead_access_audit') IS NOT NULL THEN
            -- the partitions, and the months that were detached
            FOR part IN
              SELECT c.oid::regclass FROM pg_catalog.pg_class AS c
              WHERE c.relnamespace = {quarantine_name}::regnamespace AND c.relkind = 'r'
                AND c.relname ~ '^lead_access_audit_(default$|[0-9])'
            LOOP
              EXECUTE pg_catalog.format('ALTER TABLE %s SET SCHEMA {schema}', part);
            END LOOP;
            ALTER TABLE {quarantine}.lead_access_audit SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.lead_access_audit (
              lead_id {lead_id_type} NOT NULL,
              at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              id bigserial NOT NULL,
              user_id {user_id_type},
              login name NOT NULL DEFAULT session_user,
              role name NOT NULL,
              territory text,
              action {schema}.lead_action NOT NULL,
              outcome {schema}.lead_access_outcome NOT NULL,
              reason text NOT NULL,
              note text,
              correlation_id text,
              transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
              basis text,
              -- one comparison, because each INSERT reads and plans the text of a constraint anew
              CONSTRAINT laa_bounded CHECK (
                greatest(pg_catalog.octet_length(note), pg_catalog.octet_length(correlation_id)) <= 1024),
              PRIMARY KEY (lead_id, at, id)
            ) PARTITION BY RANGE (at);
            CREATE TABLE {schema}.lead_access_audit_default PARTITION OF {schema}.lead_access_audit DEFAULT;
          END IF;
        END
        $do$;
        COMMENT ON SEQUENCE {schema}.lead_access_audit_id_seq IS
        'Numbers of attempts; a denial that was raised has drawn one, and leaves a gap that audit verify finds';
        COMMENT ON TABLE {schema}.lead_access_audit IS
        'Every attempt on a lead, allowed or denied; append-only for everybody';
        COMMENT ON COLUMN {schema}.lead_access_audit.lead_id IS 'the lead; no foreign key, deleting it keeps its history. The nil id stands for the whole territory';
        COMMENT ON COLUMN {schema}.lead_access_audit.at IS 'time of the attempt, by the clock of the server';
        COMMENT ON COLUMN {schema}.lead_access_audit.id IS 'number of the attempt; one that is missing was drawn by a denial that was raised, or rolled back';
        COMMENT ON COLUMN {schema}.lead_access_audit.user_id IS 'the user whom the service declared; NULL: none, or a malformed one';
        COMMENT ON COLUMN {schema}.lead_access_audit.login IS 'session_user, as the server knows it';
        COMMENT ON COLUMN {schema}.lead_access_audit.role IS 'the role that SET ROLE had chosen, or the login';
        COMMENT ON COLUMN {schema}.lead_access_audit.territory IS 'the territory in context; NULL: none, or an unknown one';
        COMMENT ON COLUMN {schema}.lead_access_audit.action IS 'what was attempted';
        COMMENT ON COLUMN {schema}.lead_access_audit.outcome IS 'ALLOW or DENY';
        COMMENT ON COLUMN {schema}.lead_access_audit.reason IS 'reason code of the decision; of an edit past row security: maintenance';
        COMMENT ON COLUMN {schema}.lead_access_audit.note IS 'what the service, or the trigger that recorded it, said about it';
        COMMENT ON COLUMN {schema}.lead_access_audit.correlation_id IS 'id of the request, as the service declared it';
        COMMENT ON COLUMN {schema}.lead_access_audit.transaction_id IS 'the transaction that wrote the row: an edit and its record share it';
        COMMENT ON COLUMN {schema}.lead_access_audit.basis IS 'what allowed it: the assignment, the rule, or the right of the role'
        """)
    )


def create_guards() -> None:
    # Statement triggers fire for a statement that names their table: the parent and each partition
    # have their own, and ENABLE ALWAYS holds under session_replication_role = replica as well.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regprocedure('{quarantine}.refuse_change()') IS NOT NULL THEN
            ALTER FUNCTION {quarantine}.refuse_change() SET SCHEMA {schema};
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.refuse_change()
        RETURNS trigger
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RAISE EXCEPTION '% on % refused: the audit is append-only', TG_OP, TG_RELID::regclass
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Retention detaches whole months; it never deletes rows.';
        END
        $body$;
        COMMENT ON FUNCTION {schema}.refuse_change() IS
        'Guard of the audit: raises whatever changes or removes a row, for everybody';
        REVOKE ALL ON FUNCTION {schema}.refuse_change() FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.secure_audit_table(target regclass)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
          EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_inside ON %s', target);
          EXECUTE format('CREATE POLICY lp_inside ON %s TO {owner}, {reader} USING ({inside_quoted}) WITH CHECK ({inside_quoted})', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_read ON %s', target);
          EXECUTE format('CREATE POLICY lp_read ON %s FOR SELECT TO {auditor} USING (true)', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_border ON %s', target);
          EXECUTE format('CREATE POLICY lp_border ON %s AS RESTRICTIVE USING ({inside_quoted}
                          OR coalesce(territory = (SELECT {schema}.own_border()), territory IS NULL))', target);
          EXECUTE format('DROP TRIGGER IF EXISTS lp_append_only ON %s', target);
          EXECUTE format('CREATE TRIGGER lp_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()', target);
          EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER lp_append_only', target);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.secure_audit_table(regclass) IS
        'Secures a table of the audit, also a partition: the border, rows without territory for auditors, and the guard against changes';
        REVOKE ALL ON FUNCTION {schema}.secure_audit_table(regclass) FROM PUBLIC
        """)
    )


def create_partitions() -> None:
    # Months are UTC. A month that is missing costs nothing but its own partition: the default
    # partition takes its rows.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_partitions()
        RETURNS TABLE (part regclass, name name, from_month timestamptz, to_month timestamptz)
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT c.oid::regclass, c.relname,
                 pg_catalog.substring(bound.text, 'FROM [(]''([^'']+)''[)]')::timestamptz,
                 pg_catalog.substring(bound.text, 'TO [(]''([^'']+)''[)]')::timestamptz
          FROM pg_catalog.pg_inherits AS i
          JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid,
            LATERAL (SELECT pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS text) AS bound
          WHERE i.inhparent = '{schema}.lead_access_audit'::regclass AND bound.text <> 'DEFAULT'
          ORDER BY 3;
        END;
        COMMENT ON FUNCTION {schema}.audit_partitions() IS
        'Partitions of the audit, each from its first month up to, and without, to_month; not the default one';
        REVOKE ALL ON FUNCTION {schema}.audit_partitions() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.audit_partitions() TO {auditor}, {operator}
        """)
    )
    # ATTACH lets the live months work on: CREATE TABLE .. PARTITION OF would lock the whole audit.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.add_audit_partition(from_month timestamptz, to_month timestamptz)
        RETURNS regclass
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET timezone = 'UTC'
        AS $body$
        DECLARE
          part text := 'lead_access_audit_' || to_char(from_month, 'YYYY_MM');
        BEGIN
          EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.lead_access_audit
                          INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part);
          PERFORM {schema}.secure_audit_table(('{schema}.' || part)::regclass);
          EXECUTE format('ALTER TABLE {schema}.lead_access_audit ATTACH PARTITION {schema}.%I
                          FOR VALUES FROM (%L) TO (%L)', part, from_month, to_month);
          RETURN ('{schema}.' || part)::regclass;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.add_audit_partition(timestamptz, timestamptz) IS
        'Attaches one month to the audit; ATTACH lets the live months work on';
        REVOKE ALL ON FUNCTION {schema}.add_audit_partition(timestamptz, timestamptz) FROM PUBLIC
        """)
    )
    # Rows in the default partition keep a month's own from being attached. Nothing is deleted and no
    # guard comes off: where the months in it belong together, the default partition itself becomes
    # theirs, and a new one takes its place; it is read once under the lock. Months with others
    # between them (a clock that was wrong) are copied under it, so only as many rows as `max_moved`.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.clear_audit_default(max_moved integer)
        RETURNS integer
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET timezone = 'UTC'
        AS $body$
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
          FROM {schema}.lead_access_audit_default AS d;
          IF found = 0 THEN
            RETURN 0;
          END IF;
          part := 'lead_access_audit_' || to_char(low, 'YYYY_MM')
            || CASE WHEN high > low + interval '1 month'
                    THEN '_to_' || to_char(high - interval '1 month', 'YYYY_MM') ELSE '' END;
          IF endless = 0 AND to_regclass('{schema}.' || part) IS NULL AND NOT EXISTS (
            SELECT FROM {schema}.audit_partitions() AS p
            WHERE p.from_month < high AND low < p.to_month)
          THEN
            LOCK TABLE {schema}.lead_access_audit IN ACCESS EXCLUSIVE MODE;
            ALTER TABLE {schema}.lead_access_audit DETACH PARTITION {schema}.lead_access_audit_default;
            EXECUTE format('ALTER INDEX %s RENAME TO %I',
              (SELECT i.indexrelid::regclass FROM pg_index AS i
               WHERE i.indrelid = '{schema}.lead_access_audit_default'::regclass AND i.indisprimary), part || '_pkey');
            EXECUTE format('ALTER TABLE {schema}.lead_access_audit_default RENAME TO %I', part);
            BEGIN
              EXECUTE format('ALTER TABLE {schema}.lead_access_audit ATTACH PARTITION {schema}.%I
                              FOR VALUES FROM (%L) TO (%L)', part, low, high);
            EXCEPTION WHEN check_violation THEN
              RAISE EXCEPTION 'rows of another month have just come into the default partition; try again'
                USING ERRCODE = 'lock_not_available';
            END;
            CREATE TABLE {schema}.lead_access_audit_default PARTITION OF {schema}.lead_access_audit DEFAULT;
            PERFORM {schema}.secure_audit_table('{schema}.lead_access_audit_default');
            RETURN 1;
          ELSIF found > max_moved THEN
            RAISE EXCEPTION 'the default partition of the audit holds % rows of months that do not belong together', found
              USING ERRCODE = 'LP422', HINT = format(
                'Moving them stops every recording for about %s s. In a quiet hour: leadprotect audit partitions --max-moved %s',
                ceil(found / 100000.0), found);
          END IF;
          LOCK TABLE {schema}.lead_access_audit IN ACCESS EXCLUSIVE MODE;
          ALTER TABLE {schema}.lead_access_audit DETACH PARTITION {schema}.lead_access_audit_default;
          ALTER TABLE {schema}.lead_access_audit_default RENAME TO lead_access_audit_moving;
          ALTER INDEX {schema}.lead_access_audit_default_pkey RENAME TO lead_access_audit_moving_pkey;
          CREATE TABLE {schema}.lead_access_audit_default PARTITION OF {schema}.lead_access_audit DEFAULT;
          PERFORM {schema}.secure_audit_table('{schema}.lead_access_audit_default');
          FOR month IN
            SELECT DISTINCT date_trunc('month', m.at) FROM {schema}.lead_access_audit_moving AS m WHERE isfinite(m.at)
          LOOP
            -- a month that was detached already keeps its name; its late rows stay in the default partition
            IF to_regclass('{schema}.lead_access_audit_' || to_char(month, 'YYYY_MM')) IS NULL THEN
              PERFORM {schema}.add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          INSERT INTO {schema}.lead_access_audit SELECT * FROM {schema}.lead_access_audit_moving;
          DROP TABLE {schema}.lead_access_audit_moving;
          RETURN created;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.clear_audit_default(integer) IS
        'Gives rows in the default partition a partition of their own, so that their month can be attached';
        REVOKE ALL ON FUNCTION {schema}.clear_audit_default(integer) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.create_audit_partitions(months_ahead integer, max_moved integer DEFAULT 20000)
        RETURNS integer
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET timezone = 'UTC'
        SET lock_timeout = '100ms'
        SET client_min_messages = warning
        SET row_security = on
        AS $body$
        DECLARE
          this_month timestamptz := date_trunc('month', now());
          month timestamptz;
          created integer := 0;
        BEGIN
          IF months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 120 THEN
            RAISE EXCEPTION 'months ahead: % is not between 0 and 120', months_ahead USING ERRCODE = 'LP422';
          END IF;
          created := {schema}.clear_audit_default(max_moved);
          FOR step IN 0 .. months_ahead LOOP
            month := this_month + make_interval(months => step);
            IF NOT EXISTS (
              SELECT FROM {schema}.audit_partitions() AS p WHERE p.from_month <= month AND month < p.to_month)
            THEN
              LOCK TABLE {schema}.lead_access_audit_default IN ACCESS EXCLUSIVE MODE;
              IF EXISTS (SELECT FROM {schema}.lead_access_audit_default AS d
                         WHERE d.at >= month AND d.at < month + interval '1 month') THEN
                RAISE EXCEPTION 'rows of % have just come into the default partition; try again', month::date
                  USING ERRCODE = 'lock_not_available';
              END IF;
              PERFORM {schema}.add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          RETURN created;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.create_audit_partitions(integer, integer) IS
        'Makes the partitions of this month and of the months ahead (UTC); returns how many are new';
        REVOKE ALL ON FUNCTION {schema}.create_audit_partitions(integer, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.create_audit_partitions(integer, integer) TO {operator}
        """)
    )
    op.execute(
        sql("""
        SELECT {schema}.secure_audit_table(relid) FROM pg_catalog.pg_partition_tree('{schema}.lead_access_audit')
        """)
    )
    op.execute(sql("SELECT {schema}.create_audit_partitions(3)"))


def secure_partitions() -> None:
    op.execute(
        sql("""
        SELECT {schema}.secure_audit_table(relid) FROM pg_catalog.pg_partition_tree('{schema}.lead_access_audit')
        """)
    )
    op.execute(sql("SELECT {schema}.create_audit_partitions(3)"))


def create_who_could_edit() -> None:
    # The decision of another day: an assignment held from when it replaced the one before, a rule
    # from when it was made, whatever beginning it was given, and an inactive one up to its end.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.who_could_edit(lead {lead_id_type}, moment timestamptz)
        RETURNS TABLE (
          territory text, user_id {user_id_type}, could_edit boolean, reason text, since timestamptz, until timestamptz,
          source text)
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          -- every constant has a name, or the text is another one after a dump and a restore
          WITH here AS (
            SELECT t.code FROM {schema}.territories AS t
            WHERE {schema}.is_member(t.code)
              AND t.code = coalesce(nullif({declared_territory}, ''), t.code)
          ), standing AS (
            SELECT a.territory, a.user_id, a.source,
                   greatest(a.assigned_at, pg_catalog.lag(a.ended_at) OVER (PARTITION BY a.territory ORDER BY a.ended_at NULLS LAST)) AS since,
                   a.ended_at AS until
            FROM (
              SELECT h.territory, h.user_id, h.source, h.assigned_at, h.ended_at
              FROM {schema}.user_lead_assignment_history AS h WHERE h.lead_id = lead
              UNION ALL
              SELECT u.territory, u.user_id, u.source, u.assigned_at, NULL AS ended_at
              FROM {schema}.user_lead_assignments AS u WHERE u.lead_id = lead
            ) AS a
          ), owners AS (
            SELECT s.* FROM standing AS s WHERE s.since <= moment AND (s.until IS NULL OR moment < s.until)
          ), rules AS (
            SELECT r.territory, r.user_id, r.protection, r.lead_id, r.effective_to,
                   greatest(r.effective_from, r.made_at) AS since
            FROM {schema}.lead_protection_rules AS r
            WHERE (r.lead_id IS NULL OR r.lead_id = lead)
              AND greatest(r.effective_from, r.made_at) <= moment
              AND (r.effective_to IS NULL OR moment < r.effective_to)
              AND (r.active OR r.effective_to IS NOT NULL)
          ), known AS (
            SELECT h.code FROM here AS h
            WHERE EXISTS (SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = h.code)
              OR EXISTS (SELECT FROM standing AS s WHERE s.territory = h.code)
              OR EXISTS (SELECT FROM {schema}.lead_access_audit AS e WHERE e.lead_id = lead AND e.territory = h.code)
          ), rights AS (
            SELECT k.code, o.user_id, CASE WHEN o.user_id IS NULL THEN 'unassigned' ELSE 'owner' END AS reason,
                   o.since, o.until, o.source, 1 AS rank
            FROM known AS k LEFT JOIN owners AS o ON o.territory = k.code
            UNION ALL
            SELECT k.code, r.user_id, 'collaborator' AS reason, r.since, r.effective_to,
                   CASE WHEN r.lead_id IS NULL THEN 'rule for the territory' ELSE 'rule for the lead' END, 2
            FROM known AS k JOIN rules AS r ON r.territory = k.code AND r.protection = 'COLLABORATOR'
            LEFT JOIN owners AS o ON o.territory = k.code
            WHERE r.user_id IS DISTINCT FROM o.user_id
              AND (r.lead_id IS NOT NULL OR NOT EXISTS (
                SELECT FROM rules AS sole
                WHERE sole.territory = k.code AND sole.protection = 'SOLE_OWNER' AND sole.user_id = o.user_id))
          )
          SELECT DISTINCT ON (w.code, w.rank, w.user_id) w.code, w.user_id,
                 w.user_id IS NOT NULL AND suspended.since IS NULL,
                 CASE WHEN suspended.since IS NULL THEN w.reason ELSE 'suspended' END,
                 coalesce(suspended.since, w.since),
                 CASE WHEN suspended.since IS NULL THEN w.until ELSE suspended.effective_to END,
                 CASE WHEN suspended.since IS NULL THEN w.source ELSE w.reason || ' otherwise' END
          FROM rights AS w
          LEFT JOIN LATERAL (
            SELECT r.since, r.effective_to FROM rules AS r
            WHERE r.territory = w.code AND r.protection = 'VIEW_ONLY' AND r.user_id = w.user_id
            ORDER BY r.since LIMIT 1) AS suspended ON true
          ORDER BY w.code, w.rank, w.user_id, w.since;
        END;
        COMMENT ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) IS
        'Who could edit the lead at this moment and why, in the territories of the login; no row: nothing is known of the lead';
        REVOKE ALL ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) TO {auditor}, {manager}
        """)
    )


def create_edits_of_own() -> None:
    # For the triggers of contract. The owner's plain case first, one lead of his: the same locks, decision and row as of
    # many. Of these the assignments are locked in the order of the ids, then the rules by which some are shared with him,
    # and what rests on them is decided together, in a snapshot of its own. A lead that became his since then, or shared
    # with him, is decided alone, and locked there.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.edit_own_one(lead {lead_id_type}, remark text)
        RETURNS boolean
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          declared_user text := {declared_user};
          author {user_id_type};
          here text := {declared_territory};
        BEGIN
          IF current_setting('transaction_isolation') <> 'read committed' THEN
            RETURN false;
          END IF;
          SELECT a.user_id INTO author FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id::text = declared_user AND {schema}.is_member(here)
            FOR SHARE;
          IF NOT FOUND OR NOT {schema}.unsuspended(lead, author, here) THEN
            RETURN false;
          END IF;
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT lead, author, {schema}.acting_role(), here, 'EDIT', 'ALLOW', 'owner', remark,
                 CASE WHEN {declared_correlation} <> '' THEN {schema}.bounded({declared_correlation}) END, 'assignment'
          WHERE NOT EXISTS (SELECT FROM {schema}.recorded_edit(lead, author));
          RETURN true;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.edit_own_one({lead_id_type}, text) IS
        'Whether an edit is the plain case of the owner of its lead; if so it is decided under locks and recorded once a transaction';
        REVOKE ALL ON FUNCTION {schema}.edit_own_one({lead_id_type}, text) FROM PUBLIC;
        CREATE FUNCTION {schema}.edit_together(leads {lead_id_type}[], remark text)
        RETURNS {lead_id_type}[]
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
          here text := {declared_territory};
          own {lead_id_type}[];
          shared {lead_id_type}[] := '{}';
          allowed {lead_id_type}[];
        BEGIN
          PERFORM {schema}.require_fresh_rules();
          IF author IS NULL OR NOT {schema}.is_member(here) THEN
            RETURN '{}';
          END IF;
          IF EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR')
          THEN
            SELECT coalesce(array_agg(e.lead) FILTER (WHERE e.reason = 'owner'), '{}'),
                   coalesce(array_agg(e.lead) FILTER (WHERE e.reason = 'collaborator'), '{}')
            INTO own, shared FROM {schema}.editable_among(leads) AS e;
          END IF;
          IF cardinality(shared) = 0 THEN
            own := ARRAY(
              SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here AND a.user_id = author
              ORDER BY a.lead_id FOR SHARE);
          ELSE
            leads := own || shared;
            SELECT coalesce(array_agg(a.lead_id) FILTER (WHERE a.user_id = author), '{}') INTO own
            FROM (
              SELECT a.lead_id, a.user_id FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here
              ORDER BY a.lead_id FOR SHARE) AS a;
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (shared)
              ORDER BY r.lead_id, r.effective_from FOR SHARE;
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
              ORDER BY r.effective_from FOR SHARE;
          END IF;
          -- what nobody owns may have no assignment, and rests on its rule
          WITH decided AS MATERIALIZED (
            SELECT e.lead, e.reason, 'assignment' AS basis FROM {schema}.editable_among(own) AS e WHERE e.reason = 'owner'
            UNION ALL
            SELECT e.lead, e.reason, c.rule
            FROM {schema}.editable_among(shared) AS e, LATERAL {schema}.collaboration(e.lead, author, here) AS c (rule)
            WHERE e.reason = 'collaborator'
          ), recorded AS (
            INSERT INTO {schema}.lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT d.lead, author, (SELECT {schema}.acting_role()), here, 'EDIT', 'ALLOW', d.reason, remark,
                   (SELECT {schema}.bounded({declared_correlation})), d.basis
            FROM decided AS d LEFT JOIN LATERAL {schema}.recorded_edit(d.lead, author) AS r (id) ON true
            WHERE r.id IS NULL
          )
          SELECT coalesce(array_agg(d.lead), '{}') INTO allowed FROM decided AS d;
          RETURN allowed;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.edit_together({lead_id_type}[], text) IS
        'Decides edits of leads that the user in context owns or shares, under locks, and records each once a transaction; returns those';
        REVOKE ALL ON FUNCTION {schema}.edit_together({lead_id_type}[], text) FROM PUBLIC
        """)
    )


def grant_access() -> None:
    # The audit's reasons tell what the answer to a service hides: auditors only.
    op.execute(
        sql("""
        GRANT SELECT ON {schema}.lead_access_audit TO {auditor};
        DO $do$
        DECLARE
          part regclass;
        BEGIN
          FOR part IN
            SELECT c.oid::regclass FROM pg_catalog.pg_class AS c
            WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
              AND c.relname ~ '^lead_access_audit_[0-9]'
          LOOP
            EXECUTE pg_catalog.format('GRANT SELECT ON %s TO {auditor}', part);
          END LOOP;
        END
        $do$
        """)
    )


def drop_functions() -> None:
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.edit_together({lead_id_type}[], text),
          {schema}.edit_own_one({lead_id_type}, text),
          {schema}.who_could_edit({lead_id_type}, timestamptz),
          {schema}.create_audit_partitions(integer, integer),
          {schema}.clear_audit_default(integer),
          {schema}.add_audit_partition(timestamptz, timestamptz),
          {schema}.audit_partitions(),
          {schema}.secure_audit_table(regclass)
        """)
    )


def enter_quarantine() -> None:
    # Partitions do not follow their parent; the months that were detached go with them.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          part regclass;
          granted boolean;
        BEGIN
          FOR part, granted IN
            -- a REVOKE of nothing would write out the default access list, and the way up not undo it
            SELECT c.oid::regclass, c.relacl IS NOT NULL FROM pg_catalog.pg_class AS c
            WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p')
              AND c.relname ~ '^lead_access_audit($|_)'
          LOOP
            IF granted THEN
              EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM {auditor}', part);
            END IF;
            EXECUTE pg_catalog.format('ALTER TABLE %s SET SCHEMA {quarantine}', part);
          END LOOP;
        END
        $do$;
        ALTER FUNCTION {schema}.refuse_change() SET SCHEMA {quarantine};
        ALTER TYPE {schema}.lead_action SET SCHEMA {quarantine};
        ALTER TYPE {schema}.lead_access_outcome SET SCHEMA {quarantine}
        """)
    )
