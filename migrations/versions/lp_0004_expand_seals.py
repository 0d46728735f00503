"""Seals of the audit: chains of hashes over its rows, months detached, numbers that are missing, anchors noted.

Why: a superuser can change any row. A seal says by value what the audit held, and holds the hash of
the seal before it, so that whoever keeps the newest hash elsewhere finds any change.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving the seals and the notes of anchors to the quarantine schema, guarded and row-secured.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0004_expand_seals"
down_revision = "lp_0003_expand_audit"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_bounds()
    create_seals()
    create_sealing()
    create_detaching()
    create_number_gaps()
    create_anchors()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    drop_functions()
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.lead_access_audit_seals, {schema}.audit_anchors FROM {auditor};
        ALTER TABLE {schema}.lead_access_audit_seals SET SCHEMA {quarantine};
        ALTER TABLE {schema}.audit_anchors SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def create_bounds() -> None:
    # What a service says is kept, but never so that it spoils the evidence: a note of megabytes could not
    # be hashed with others, and a control character could hide a line from whoever reads it.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.bounded(said text)
        RETURNS text
        LANGUAGE plpgsql
        IMMUTABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          clean text;
          anything boolean := getdatabaseencoding() = 'SQL_ASCII';
        BEGIN
          IF said IS NULL OR said = '' THEN
            RETURN NULL;
          END IF;
          -- a character has one byte or more, and seldom four
          clean := left(said, 1024);
          WHILE octet_length(clean) > 1024 LOOP
            clean := left(clean, length(clean) * 1024 / octet_length(clean));
          END LOOP;
          IF getdatabaseencoding() = 'UTF8' THEN
            -- what turns the direction of a line, ends it or takes no room hides as much as a control character does
            clean := regexp_replace(clean, '[\\u0001-\\u001f\\u007f-\\u009f\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff]', ' ', 'g');
          ELSIF anything THEN
            clean := regexp_replace(clean, '[\\u0001-\\u001f\\u007f]', ' ', 'g');
          ELSE
            clean := regexp_replace(clean, '[[:cntrl:]]', ' ', 'g');
          END IF;
          IF anything THEN
            -- there a character is a byte, and what is no UTF-8 would end whoever reads it
            BEGIN
              PERFORM convert_from(convert_to(clean, 'SQL_ASCII'), 'UTF8');
            EXCEPTION WHEN character_not_in_repertoire THEN
              clean := regexp_replace(clean, '[^ -~]', '?', 'g');
            END;
          END IF;
          RETURN clean;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.bounded(text) IS
        'What a service said, at most 1 kB of it, without control characters and what is not seen; NULL for nothing';
        REVOKE ALL ON FUNCTION {schema}.bounded(text) FROM PUBLIC
        """)
    )


def create_seals() -> None:
    # One chain per territory, and one of the rows without territory: each seal holds the hash of the
    # seal before it. What a seal says it says by value (numbers of rows, snapshot, origin), so that
    # it can be verified in a restored copy, whose transaction ids are others. The key is the hash:
    # a chain without territory has no name.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.lead_access_audit_seals') IS NOT NULL THEN
            ALTER TABLE {quarantine}.lead_access_audit_seals SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.lead_access_audit_seals (
              territory text,
              number bigint NOT NULL,
              hash bytea PRIMARY KEY,
              previous bytea,
              run bigint NOT NULL,
              month date NOT NULL,
              row_count bigint NOT NULL,
              ids int8multirange NOT NULL,
              content bytea NOT NULL,
              row_checks bytea NOT NULL,
              first_at timestamptz,
              last_at timestamptz,
              sealed_at timestamptz NOT NULL,
              sealed_by name NOT NULL DEFAULT session_user,
              origin text NOT NULL,
              snapshot pg_snapshot NOT NULL,
              transaction_id xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
              last_number bigint NOT NULL,
              settled_until timestamptz NOT NULL,
              detached_table name,
              CONSTRAINT ix_laas_chain UNIQUE NULLS NOT DISTINCT (territory, number)
            );
            -- to compress numbers of many pieces takes longer than to hash their rows, and saves 10 bytes a row
            ALTER TABLE {schema}.lead_access_audit_seals ALTER ids SET STORAGE EXTERNAL;
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.lead_access_audit_seals IS
        'Chains of hashes over the rows of lead_access_audit; leadprotect audit verify compares. Keep the newest hash elsewhere, too';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.content IS 'sha256 over the sha256 of each row, in the order of their ids';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.row_checks IS 'the first four bytes of each row''s sha256: they name the row that was changed';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.origin IS 'server and table in which transaction ids of this run mean something';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.snapshot IS 'rows of transactions that had ended in it are in this run or an earlier one';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.last_number IS 'the newest number drawn for a row when the run began';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.settled_until IS 'every row of a time before this is sealed';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.detached_table IS 'set where the entry says that a month was detached, not that rows were sealed';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.territory IS 'the chain; NULL: that of rows without territory';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.number IS 'place in the chain, from 1';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.hash IS 'sha256 over the hash before it and what this entry says';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.previous IS 'hash of the entry before it';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.run IS 'entries that were made together';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.month IS 'month of the rows (UTC)';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.row_count IS 'rows in this entry';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.ids IS 'their numbers';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.first_at IS 'time of the first row';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.last_at IS 'time of the last row';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.sealed_at IS 'when the run began';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.sealed_by IS 'the login that sealed';
        COMMENT ON COLUMN {schema}.lead_access_audit_seals.transaction_id IS 'transaction of the run';
        SELECT {schema}.secure_audit_table('{schema}.lead_access_audit_seals');
        GRANT SELECT ON {schema}.lead_access_audit_seals TO {auditor}
        """)
    )


def create_sealing() -> None:
    # Transaction ids are a server's own, and a restored table counts from there: within one origin
    # snapshots can be compared, between two of them they can't. Where the server hides its identity,
    # the table's alone must do.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_origin()
        RETURNS text
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          place text := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            || '/' || '{schema}.lead_access_audit'::regclass::oid;
        BEGIN
          RETURN (SELECT c.system_identifier FROM pg_control_system() AS c) || '/' || place;
        EXCEPTION WHEN insufficient_privilege THEN
          RETURN 'unknown/' || place;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_origin() IS
        'Server and table in which the transaction ids of the audit mean something';
        REVOKE ALL ON FUNCTION {schema}.audit_origin() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.audit_origin() TO {auditor}
        """)
    )
    # A row gets its time before or just when its transaction gets its id, so a transaction that is
    # older than every open one, and than the beginning of a run, has no row of a later time to come.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_settled_until()
        RETURNS timestamptz
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN coalesce(
            (SELECT greatest(
               max(s.settled_until),
               max(s.sealed_at) FILTER (WHERE s.origin = {schema}.audit_origin()
                 AND s.transaction_id < pg_snapshot_xmin(pg_current_snapshot())))
             FROM {schema}.lead_access_audit_seals AS s WHERE s.detached_table IS NULL),
            '-infinity');
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_settled_until() IS
        'Every row of the audit of a time before this is sealed';
        REVOKE ALL ON FUNCTION {schema}.audit_settled_until() FROM PUBLIC
        """)
    )
    # A number is sealed for good, and numbers of all chains together leave few holes: from what is between
    # them the answer is made, in the order of a sort that spills to disk, so that its memory does not grow
    # with the rows. range_agg alone would hold every piece of every chain.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.sealed_numbers(from_month date, before_month date, elsewhere_than text)
        RETURNS int8multirange
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT coalesce(
            CASE WHEN pg_catalog.count(*) > 0 THEN
              pg_catalog.int8multirange(pg_catalog.int8range(pg_catalog.min(part.low), pg_catalog.max(part.high))) END
              - coalesce(pg_catalog.range_agg(pg_catalog.int8range(part.reached, part.low))
                           FILTER (WHERE part.reached < part.low), '{}'),
            '{}')
          FROM (
            SELECT pg_catalog.lower(r) AS low, pg_catalog.upper(r) AS high,
                   pg_catalog.max(pg_catalog.upper(r)) OVER (
                     ORDER BY pg_catalog.lower(r) ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
            FROM {schema}.lead_access_audit_seals AS s, pg_catalog.unnest(s.ids) AS r
            WHERE (from_month IS NULL OR s.month >= from_month) AND (before_month IS NULL OR s.month < before_month)
              AND (elsewhere_than IS NULL OR s.origin <> elsewhere_than)
          ) AS part;
        END;
        COMMENT ON FUNCTION {schema}.sealed_numbers(date, date, text) IS
        'Numbers of rows that a seal of these months names, or one that another origin made; NULL: whatever it is';
        REVOKE ALL ON FUNCTION {schema}.sealed_numbers(date, date, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.append_audit_seal(entry {schema}.lead_access_audit_seals)
        RETURNS {schema}.lead_access_audit_seals
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          numbers text;
        BEGIN
          -- two ways to say one thing, because IS NOT DISTINCT FROM uses no index
          IF entry.territory IS NULL THEN
            SELECT s.number, s.hash INTO entry.number, entry.previous
            FROM {schema}.lead_access_audit_seals AS s WHERE s.territory IS NULL ORDER BY s.number DESC LIMIT 1;
          ELSE
            SELECT s.number, s.hash INTO entry.number, entry.previous
            FROM {schema}.lead_access_audit_seals AS s WHERE s.territory = entry.territory ORDER BY s.number DESC LIMIT 1;
          END IF;
          entry.number := coalesce(entry.number, 0) + 1;
          entry.sealed_by := session_user;
          entry.transaction_id := pg_current_xact_id();
          -- what ids::text writes, in a fifth of its time
          SELECT '{' || coalesce(string_agg(concat('[', lower(r), ',', upper(r), ')'), ','), '') || '}' INTO numbers
          FROM unnest(entry.ids) AS r;
          -- leadprotect audit verify makes the same text of the same fields
          entry.hash := sha256(coalesce(entry.previous, '') || sha256(convert_to(json_build_array(
            'lp-seal-1', entry.territory, entry.number, entry.run, entry.month, entry.row_count, numbers,
            encode(entry.content, 'hex'), encode(entry.row_checks, 'hex'),
            entry.first_at AT TIME ZONE 'Etc/UTC', entry.last_at AT TIME ZONE 'Etc/UTC', entry.sealed_at AT TIME ZONE 'Etc/UTC',
            entry.sealed_by, entry.origin, entry.snapshot::text, entry.transaction_id::text, entry.last_number,
            entry.settled_until AT TIME ZONE 'Etc/UTC', entry.detached_table)::text, 'UTF8')));
          -- each by its name: entry.* would copy the whole entry, which is long, for each of them
          INSERT INTO {schema}.lead_access_audit_seals (
            territory, number, hash, previous, run, month, row_count, ids, content, row_checks, first_at, last_at,
            sealed_at, sealed_by, origin, snapshot, transaction_id, last_number, settled_until, detached_table)
          VALUES (
            entry.territory, entry.number, entry.hash, entry.previous, entry.run, entry.month, entry.row_count,
            entry.ids, entry.content, entry.row_checks, entry.first_at, entry.last_at, entry.sealed_at,
            entry.sealed_by, entry.origin, entry.snapshot, entry.transaction_id, entry.last_number,
            entry.settled_until, entry.detached_table);
          -- a log that is shipped elsewhere keeps the newest hash out of everybody's reach
          RAISE LOG 'leadprotect seal: territory %, number %, hash %',
            coalesce(quote_ident(entry.territory), 'none'), entry.number, encode(entry.hash, 'hex');
          RETURN entry;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.append_audit_seal({schema}.lead_access_audit_seals) IS
        'Links one seal to its chain, and writes its hash to the server''s log';
        REVOKE ALL ON FUNCTION {schema}.append_audit_seal({schema}.lead_access_audit_seals) FROM PUBLIC
        """)
    )
    # Numbers and times of rows are no order of commits: a transaction may commit the lower number
    # later. So a run seals by transactions: those that have ended in its snapshot and had not in the
    # snapshot of the run before. Nothing can be added to them any more. Rows of a restored copy have
    # ids of another server; the first run there takes what no seal names.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.seal_audit(rows_per_seal integer DEFAULT 10000)
        RETURNS TABLE (territory text, number bigint, hash bytea, sealed bigint)
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET jit = off
        SET datestyle = 'ISO'
        SET enable_hashagg = off
        AS $body$
        #variable_conflict use_column
        DECLARE
          began timestamptz;
          codes text[] := ARRAY(SELECT t.code FROM {schema}.territories AS t);
          newest_number bigint;
          here text := {schema}.audit_origin();
          before {schema}.lead_access_audit_seals;
          known_here boolean;
          open_from timestamptz;
          done int8multirange;
          entry {schema}.lead_access_audit_seals;
          part record;
        BEGIN
          IF pg_current_xact_id_if_assigned() IS NOT NULL
            OR current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'seal_audit needs a transaction of its own, in READ COMMITTED' USING ERRCODE = 'LP422';
          ELSIF rows_per_seal IS NULL OR rows_per_seal NOT BETWEEN 1 AND 100000 THEN
            RAISE EXCEPTION 'rows per seal: % is not between 1 and 100000', rows_per_seal USING ERRCODE = 'LP422';
          END IF;
          LOCK TABLE {schema}.lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          -- in this order: whoever gets his transaction id after us has a later time and number
          began := clock_timestamp();
          newest_number := (SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END
                            FROM {schema}.lead_access_audit_id_seq AS q);
          PERFORM pg_current_xact_id();
          SELECT s.* INTO before FROM {schema}.lead_access_audit_seals AS s
            WHERE s.detached_table IS NULL ORDER BY s.run DESC LIMIT 1;
          known_here := before.origin IS NOT DISTINCT FROM here;
          open_from := coalesce(
            date_trunc('month', before.settled_until - interval '1 minute', 'Etc/UTC'), '-infinity');
          -- what was sealed here is told by its transaction, what was sealed in another place by its number
          done := {schema}.sealed_numbers(
            CASE WHEN isfinite(open_from) THEN (open_from AT TIME ZONE 'Etc/UTC')::date END, NULL,
            CASE WHEN known_here THEN here END);
          entry.run := coalesce(before.run, 0) + 1;
          entry.sealed_at := began;
          entry.origin := here;
          entry.last_number := newest_number;
          FOR part IN
            WITH state AS MATERIALIZED (
              -- a number in the place of a code: rows are sorted in half the time. Codes of ours, and what else there is
              SELECT pg_current_snapshot() AS snapshot, {schema}.audit_settled_until() AS settled_until,
                     codes || ARRAY(SELECT DISTINCT a.territory FROM {schema}.lead_access_audit AS a
                                    WHERE a.at >= open_from AND a.territory <> ALL (codes)) AS codes
            ), fresh AS (
              -- OFFSET keeps this a step of its own: the sort then moves a hash for each row, not the row
              SELECT coalesce(array_position((SELECT state.codes FROM state), a.territory), 0) AS place,
                     date_trunc('month', a.at AT TIME ZONE 'Etc/UTC')::date AS month, a.id, a.at,
                     sha256(convert_to(ARRAY[
                       'lp-row-1', a.id::text, a.transaction_id::text, (a.at AT TIME ZONE 'Etc/UTC')::text, a.lead_id::text,
                       a.user_id::text, a.login::text, a.role::text, a.territory, a.action::text, a.outcome::text,
                       a.reason, a.note, a.correlation_id, a.basis]::text, 'UTF8')) AS hash
              FROM {schema}.lead_access_audit AS a
              WHERE a.at >= open_from
                AND (NOT known_here
                  OR pg_visible_in_snapshot(a.transaction_id, (SELECT state.snapshot FROM state))
                    AND NOT pg_visible_in_snapshot(a.transaction_id, before.snapshot))
                AND NOT done @> a.id
              OFFSET 0
            ), counted AS (
              SELECT f.*, (row_number() OVER (PARTITION BY f.place, f.month ORDER BY f.id) - 1) / rows_per_seal AS slice
              FROM fresh AS f
            ), slices AS (
              -- joined in the order in which they come, which holds as long as nothing is hashed: an order for each
              -- aggregate would sort the rows once more for each
              SELECT c.place, c.month, c.slice, count(*) AS row_count,
                     range_agg(int8range(c.id, c.id + 1)) AS ids,
                     sha256(string_agg(c.hash, '')) AS content,
                     string_agg(substring(c.hash FOR 4), '') AS row_checks,
                     min(c.at) AS first_at, max(c.at) AS last_at
              FROM (SELECT * FROM counted ORDER BY place, month, slice, id) AS c
              GROUP BY c.place, c.month, c.slice
            )
            SELECT state.snapshot, state.settled_until, state.codes[s.place] AS territory, s.*
            FROM state LEFT JOIN slices AS s ON true
            ORDER BY s.place, s.month, s.slice
          LOOP
            entry.snapshot := part.snapshot;
            entry.settled_until := part.settled_until;
            IF part.row_count IS NOT NULL THEN
              entry.territory := part.territory;
              entry.month := part.month;
              entry.row_count := part.row_count;
              entry.ids := part.ids;
              entry.content := part.content;
              entry.row_checks := part.row_checks;
              entry.first_at := part.first_at;
              entry.last_at := part.last_at;
              entry := {schema}.append_audit_seal(entry);
            END IF;
          END LOOP;
          -- a run without new rows leaves its mark in every chain, too: until then, nothing else was there
          entry.month := (date_trunc('month', began, 'Etc/UTC') AT TIME ZONE 'Etc/UTC')::date;
          entry.row_count := 0;
          entry.ids := '{}';
          entry.content := sha256('');
          entry.row_checks := '';
          entry.first_at := NULL;
          entry.last_at := NULL;
          FOR part IN
            SELECT chain.territory
            FROM (SELECT NULL AS territory UNION SELECT t.code FROM {schema}.territories AS t
                  UNION SELECT s.territory FROM {schema}.lead_access_audit_seals AS s) AS chain
            WHERE NOT EXISTS (
              SELECT FROM {schema}.lead_access_audit_seals AS s
              WHERE s.run = entry.run AND s.detached_table IS NULL AND s.territory IS NOT DISTINCT FROM chain.territory)
            ORDER BY chain.territory NULLS FIRST
          LOOP
            entry.territory := part.territory;
            entry := {schema}.append_audit_seal(entry);
          END LOOP;
          RETURN QUERY
            SELECT s.territory, max(s.number), (array_agg(s.hash ORDER BY s.number DESC))[1], sum(s.row_count)::bigint
            FROM {schema}.lead_access_audit_seals AS s
            WHERE s.run = entry.run AND s.detached_table IS NULL
            GROUP BY s.territory ORDER BY s.territory NULLS FIRST;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.seal_audit(integer) IS
        'Seals every row whose transaction has ended; returns the newest seal of each chain. Keep these hashes elsewhere';
        REVOKE ALL ON FUNCTION {schema}.seal_audit(integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.seal_audit(integer) TO {operator}
        """)
    )


def create_detaching() -> None:
    # Retention takes away whole months that are sealed, and says so in every chain. The table stays,
    # guarded and row-secured; who archives it drops it. CONCURRENTLY is no choice: PostgreSQL refuses
    # it where there is a default partition.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.detach_audit_month(month date)
        RETURNS TABLE (detached name, row_count bigint)
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET timezone = 'Etc/UTC'
        SET lock_timeout = '100ms'
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        DECLARE
          span record;
          done int8multirange;
          unsealed bigint;
          entry {schema}.lead_access_audit_seals;
          chain record;
        BEGIN
          SELECT * INTO span FROM {schema}.audit_partitions() AS p
          WHERE p.from_month = detach_audit_month.month::timestamptz;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'no partition of the audit begins with %', to_char(detach_audit_month.month, 'YYYY-MM')
              USING ERRCODE = 'LP422', HINT = 'SELECT * FROM audit_partitions() lists them.';
          ELSIF span.to_month > clock_timestamp() THEN
            RAISE EXCEPTION '% is not over: its rows are still being written', span.name USING ERRCODE = 'LP422';
          ELSIF span.to_month > {schema}.audit_settled_until() - interval '1 minute' THEN
            RAISE EXCEPTION '% is not sealed to its end', span.name USING ERRCODE = 'LP422',
              HINT = 'A run of leadprotect audit seal must have begun after the month, and every transaction older than it have ended.';
          END IF;
          done := {schema}.sealed_numbers(span.from_month::date, span.to_month::date, NULL);
          EXECUTE format('SELECT count(*) FILTER (WHERE NOT $1 @> a.id), count(*) FROM %s AS a', span.part)
            INTO unsealed, row_count USING done;
          IF unsealed > 0 THEN
            RAISE EXCEPTION '% holds % rows that no seal names', span.name, unsealed USING ERRCODE = 'LP422',
              HINT = 'leadprotect audit seal seals new rows; what it leaves out, leadprotect audit verify explains.';
          END IF;
          LOCK TABLE {schema}.lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          EXECUTE format('ALTER TABLE {schema}.lead_access_audit DETACH PARTITION %s', span.part);
          EXECUTE format('GRANT SELECT ON %s TO {auditor}', span.part);
          EXECUTE format('COMMENT ON TABLE %s IS %L', span.part,
            format('Detached from lead_access_audit on %s by %s', current_date, session_user));
          SELECT * INTO entry FROM {schema}.lead_access_audit_seals AS s ORDER BY s.run DESC LIMIT 1;
          entry.sealed_at := clock_timestamp();
          entry.ids := '{}';
          entry.content := sha256('');
          entry.row_checks := '';
          entry.first_at := NULL;
          entry.last_at := NULL;
          entry.detached_table := span.name;
          FOR chain IN
            SELECT s.territory, s.month, sum(s.row_count) AS row_count FROM {schema}.lead_access_audit_seals AS s
            WHERE s.month >= span.from_month::date AND s.month < span.to_month::date AND s.detached_table IS NULL
            GROUP BY s.territory, s.month ORDER BY s.territory NULLS FIRST, s.month
          LOOP
            entry.territory := chain.territory;
            entry.month := chain.month;
            entry.row_count := chain.row_count;
            PERFORM {schema}.append_audit_seal(entry);
          END LOOP;
          detached := span.name;
          RETURN NEXT;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.detach_audit_month(date) IS
        'Detaches the sealed partition that begins with this month; every chain says so. No row is deleted';
        REVOKE ALL ON FUNCTION {schema}.detach_audit_month(date) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.detach_audit_month(date) TO {operator}
        """)
    )


def create_number_gaps() -> None:
    # A number that was drawn and has no row: a denial raised in plain SQL, or a recording that was
    # rolled back. Numbers tell nothing of a territory, so an auditor of one sees the gaps of all. Those of the months
    # asked begin after the month before and end before the next one; as numbers of neighbours mix, the seals of both are
    # read, and no others.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_number_gaps(from_month date DEFAULT NULL, before_month date DEFAULT NULL)
        RETURNS TABLE (first_number bigint, last_number bigint)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET jit = off
        AS $body$
        #variable_conflict use_column
        DECLARE
          here text := {schema}.audit_origin();
          -- numbers up to here were drawn by transactions that have ended
          drawn bigint := (
            SELECT max(s.last_number) FROM {schema}.lead_access_audit_seals AS s
            WHERE s.origin <> here OR s.transaction_id < pg_snapshot_xmin(pg_current_snapshot()));
          before date := (SELECT max(s.month) FROM {schema}.lead_access_audit_seals AS s
                          WHERE s.month < from_month AND s.detached_table IS NULL);
          after date := (SELECT min(s.month) FROM {schema}.lead_access_audit_seals AS s
                         WHERE s.month >= before_month AND s.detached_table IS NULL);
          done int8multirange := {schema}.sealed_numbers(before, (after + interval '1 month')::date, NULL);
          first_asked bigint := 1;
          open_from timestamptz := (
            SELECT date_trunc('month', max(s.settled_until) - interval '1 minute', 'Etc/UTC')
            FROM {schema}.lead_access_audit_seals AS s);
        BEGIN
          IF before IS NOT NULL THEN
            SELECT least(max(upper(s.ids)) FILTER (WHERE s.month = before), min(lower(s.ids)) FILTER (WHERE s.month > before))
            INTO first_asked FROM {schema}.lead_access_audit_seals AS s
            WHERE s.month >= before AND (before_month IS NULL OR s.month < before_month);
          END IF;
          IF after IS NOT NULL THEN
            SELECT least(drawn, greatest(
              max(upper(s.ids)) FILTER (WHERE s.month < after), min(lower(s.ids)) FILTER (WHERE s.month = after)) - 1)
            INTO drawn FROM {schema}.lead_access_audit_seals AS s
            WHERE (from_month IS NULL OR s.month >= from_month) AND s.month <= after;
          END IF;
          IF drawn >= first_asked THEN
            RETURN QUERY
              SELECT lower(gap), upper(gap) - 1
              FROM unnest(int8multirange(int8range(first_asked, drawn, '[]')) - done - coalesce(
                (SELECT range_agg(int8range(a.id, a.id, '[]')) FROM {schema}.lead_access_audit AS a
                 WHERE a.at >= greatest(open_from, before::timestamp AT TIME ZONE 'Etc/UTC')
                   AND (after IS NULL OR a.at < (after + interval '1 month') AT TIME ZONE 'Etc/UTC')
                   AND a.id <= drawn AND NOT done @> a.id), '{}')) AS gap;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_number_gaps(date, date) IS
        'Numbers without a row, of these months alone (NULL: of all): the server''s log tells of each denial that was raised (leadprotect denial N)';
        REVOKE ALL ON FUNCTION {schema}.audit_number_gaps(date, date) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.audit_number_gaps(date, date) TO {auditor}
        """)
    )


def create_anchors() -> None:
    # An anchor is kept where nobody of this database can change it, so the database can't know of it but
    # by being told. That one was made is no secret, and who tells it falsely spoils a reminder only.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.audit_anchors') IS NOT NULL THEN
            ALTER TABLE {quarantine}.audit_anchors SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.audit_anchors (
              anchored_at timestamptz PRIMARY KEY DEFAULT pg_catalog.clock_timestamp(),
              anchored_by name NOT NULL DEFAULT session_user
            );
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.audit_anchors IS
        'When count and newest hash of the chains were written elsewhere: leadprotect audit anchor notes it, doctor reminds';
        COMMENT ON COLUMN {schema}.audit_anchors.anchored_at IS 'when';
        COMMENT ON COLUMN {schema}.audit_anchors.anchored_by IS 'the login that wrote it';
        ALTER TABLE {schema}.audit_anchors ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.audit_anchors FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.audit_anchors;
        CREATE POLICY lp_inside ON {schema}.audit_anchors TO {owner} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_read ON {schema}.audit_anchors;
        CREATE POLICY lp_read ON {schema}.audit_anchors FOR SELECT TO {auditor} USING (true);
        GRANT SELECT ON {schema}.audit_anchors TO {auditor}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.note_anchor()
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          INSERT INTO {schema}.audit_anchors DEFAULT VALUES;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.note_anchor() IS
        'Notes that count and newest hash of the chains were written elsewhere, for auditors';
        REVOKE ALL ON FUNCTION {schema}.note_anchor() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.note_anchor() TO {auditor}
        """)
    )


def drop_functions() -> None:
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.note_anchor(),
          {schema}.audit_number_gaps(date, date),
          {schema}.detach_audit_month(date),
          {schema}.seal_audit(integer),
          {schema}.append_audit_seal({schema}.lead_access_audit_seals),
          {schema}.sealed_numbers(date, date, text),
          {schema}.audit_settled_until(),
          {schema}.audit_origin(),
          {schema}.bounded(text)
        """)
    )
