"""Roles, schema, tables and audit of leadprotect.

Why: everything that later revisions, services and auditors stand on. Nothing of the host changes
but two grants: leadprotect_owner may read the id and territory of leads, and of activities the
columns from which owners are derived.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes (GRANT, since PostgreSQL 18).

Undone by: moving the tables to the quarantine schema, still row-secured, without grants; upgrade
takes them back with every row. Roles are cluster-wide and stay.
"""

from alembic import op
from alembic.util import CommandError

from leadprotect.settings import ident, literal, sql

revision = "lp_0001_expand_tables"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    require_transactions()
    create_roles()
    create_schema()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    describe_schema()
    create_types()
    create_membership()
    create_row_security()
    create_territories()
    create_assignments()
    create_assignment_history()
    create_rules()
    create_audit()
    create_audit_seals()
    create_audit_guards()
    create_audit_partitions()
    create_sealing()
    create_detaching()
    create_number_gaps()
    create_who_could_edit()
    grant_access()
    leave_quarantine()
    op.execute("RESET ROLE")
    show_version()


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    enter_quarantine()
    drop_functions()
    op.execute("RESET ROLE")
    drop_schema()


def require_transactions() -> None:
    # Indexes are built outside of a transaction: one transaction for all would be committed halfway.
    if not op.get_context().opts.get("transaction_per_migration"):
        raise CommandError(
            "leadprotect's revisions need a transaction each, and this env.py makes one for all; nothing was touched. "
            "Write transaction_per_migration=True into the calls of context.configure() in your env.py"
        )


def create_roles() -> None:
    # Roles are shared by all databases of the cluster: created when missing, never dropped, and
    # two databases may be migrated at the same moment.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          wanted text;
        BEGIN
          FOR wanted IN
            SELECT unnest(ARRAY[{offices}])
            UNION ALL
            SELECT {role_prefix} || pg_catalog.lower(code) FROM unnest(ARRAY[{territories}]) AS code
          LOOP
            IF pg_catalog.to_regrole(pg_catalog.quote_ident(wanted)) IS NULL THEN
              BEGIN
                EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
              EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
              END;
            END IF;
          END LOOP;
          -- whoever migrates creates the objects as their owner
          IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
            BEGIN
              EXECUTE pg_catalog.format('SET LOCAL ROLE %I', {owner_name});
              EXECUTE 'RESET ROLE';
            EXCEPTION WHEN insufficient_privilege THEN
              EXECUTE pg_catalog.format('GRANT %I TO %I', {owner_name}, current_user);
            END;
          END IF;
        END
        $do$
        """)
    )


def create_schema() -> None:
    # A DBA may have created the schema beforehand; it then belongs to leadprotect_owner already.
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner}"))
    # The definer functions read as leadprotect_owner: these columns and no others.
    op.execute(
        sql("""
        GRANT SELECT ({lead_id}, {territory}) ON {leads} TO {owner}
        """)
    )
    op.execute(
        sql("""
        GRANT SELECT ({activity_id}, {activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at})
        ON {activities} TO {owner}
        """)
    )
    op.execute(
        sql("""
        DO $do$
        DECLARE
          host text;
        BEGIN
          FOREACH host IN ARRAY ARRAY[{leads_schema}, {activities_schema}] LOOP
            IF NOT pg_catalog.has_schema_privilege({owner_name}, host, 'USAGE') THEN
              EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', host, {owner_name});
            END IF;
          END LOOP;
        END
        $do$
        """)
    )


def describe_schema() -> None:
    op.execute(sql("COMMENT ON SCHEMA {schema} IS 'leadprotect: one owner per lead and territory, audited'"))
    op.execute(sql("REVOKE ALL ON SCHEMA {schema} FROM PUBLIC"))


def create_types() -> None:
    # Territory is text and never an enum: comparison of enums is not leakproof, so row security
    # could not use an index on it.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regtype('{quarantine}.lead_action') IS NOT NULL THEN
            ALTER TYPE {quarantine}.lead_action SET SCHEMA {schema};
            ALTER TYPE {quarantine}.lead_access_outcome SET SCHEMA {schema};
            ALTER TYPE {quarantine}.protection_type SET SCHEMA {schema};
          ELSE
            CREATE TYPE {schema}.lead_action AS ENUM ('VIEW', 'EDIT', 'ASSIGN', 'UNASSIGN');
            CREATE TYPE {schema}.lead_access_outcome AS ENUM ('ALLOW', 'DENY');
            CREATE TYPE {schema}.protection_type AS ENUM ('SOLE_OWNER', 'COLLABORATOR', 'VIEW_ONLY');
          END IF;
        END
        $do$
        """)
    )


def create_membership() -> None:
    # The border is the login: session_user can't be changed by SET ROLE or inside a definer function.
    # Policies rest on it, so it goes to the quarantine and back with the tables.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regprocedure('{quarantine}.is_member(text)') IS NOT NULL THEN
            ALTER FUNCTION {quarantine}.is_member(text) SET SCHEMA {schema};
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.is_member(territory text)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(
          pg_catalog.pg_has_role(
            session_user,
            pg_catalog.to_regrole(pg_catalog.quote_ident({role_prefix} || pg_catalog.lower(territory)))::oid,
            'MEMBER'),
          false)
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.is_member(text) IS
        'Whether the login (session_user) holds the role of this territory'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.is_member(text) FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.is_member(text) TO {app}, {auditor}, {manager}"))


def create_row_security() -> None:
    # The border, the same on every table with a territory: a login sees the rows of the territories
    # whose role it holds, narrowed by its context. The restrictive floor holds even if somebody
    # adds a permissive policy later, and asks the login again: the setting alone can be forged.
    # Idempotent, so a changed setting takes effect on a re-upgrade.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.secure_table(target regclass)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          code text;
          setting text := format('(SELECT pg_catalog.current_setting(%L, true))', {territory_guc});
        BEGIN
          EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
          EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_owner ON %s', target);
          EXECUTE format('CREATE POLICY lp_owner ON %s TO %I USING (true) WITH CHECK (true)',
                         target, {owner_name});
          IF NOT EXISTS (SELECT FROM pg_attribute
                         WHERE attrelid = target AND attname = 'territory' AND NOT attisdropped) THEN
            RETURN;
          END IF;
          EXECUTE format('DROP POLICY IF EXISTS lp_floor ON %s', target);
          EXECUTE format('CREATE POLICY lp_floor ON %s AS RESTRICTIVE TO %I
                          USING (territory = %s AND (SELECT {schema}.is_member(%s)))',
                         target, {app_name}, setting, setting);
          FOR code IN SELECT t.code FROM {schema}.territories AS t LOOP
            EXECUTE format('DROP POLICY IF EXISTS %I ON %s', 'lp_territory_' || lower(code), target);
            EXECUTE format('CREATE POLICY %I ON %s TO %I USING (territory = %L AND territory = %s)',
                           'lp_territory_' || lower(code), target,
                           {role_prefix} || lower(code), code, setting);
          END LOOP;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.secure_table(regclass) FROM PUBLIC"))
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.secure_table(regclass) IS
        'Enables and forces row security on a table and (re)creates the standard policies'
        """)
    )


def create_territories() -> None:
    # Reference data: the legal terms of a territory, no secret of another one.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.territories') IS NOT NULL THEN
            ALTER TABLE {quarantine}.territories SET SCHEMA {schema};
            ALTER TABLE {quarantine}.territory_vat_rates SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.territories (
              code text PRIMARY KEY,
              name text NOT NULL,
              currency text CHECK (currency ~ '^[A-Z]{3}$'),
              legal_framework text
            );
            CREATE TABLE {schema}.territory_vat_rates (
              territory text NOT NULL REFERENCES {schema}.territories (code),
              rate numeric(5, 2) NOT NULL CHECK (rate BETWEEN 0 AND 100),
              valid_from date NOT NULL,
              valid_to date CHECK (valid_to >= valid_from),
              PRIMARY KEY (territory, valid_from)
            );
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.territory_vat_rates.rate IS
        'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25'
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice'
        """)
    )
    # The policy for the owner must stand before the first row: row security is forced.
    op.execute(sql("SELECT {schema}.secure_table('{schema}.territories')"))
    op.execute(
        sql("""
        INSERT INTO {schema}.territories (code, name, currency, legal_framework)
        SELECT wanted.code, coalesce(known.name, wanted.code), known.currency, known.legal_framework
        FROM unnest(ARRAY[{territories}]) AS wanted (code)
        LEFT JOIN (VALUES ('DE', 'Deutschland', 'EUR', 'BGB'), ('CH', 'Schweiz', 'CHF', 'OR'))
          AS known (code, name, currency, legal_framework) ON known.code = wanted.code
        ON CONFLICT (code) DO NOTHING
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.territory_vat_rates')"))
    op.execute(
        sql("""
        INSERT INTO {schema}.territory_vat_rates (territory, rate, valid_from, valid_to)
        SELECT known.territory, known.rate, known.valid_from::date, known.valid_to::date
        FROM (VALUES ('DE', 19.0, '2007-01-01', '2020-06-30'),
                     ('DE', 16.0, '2020-07-01', '2020-12-31'),
                     ('DE', 19.0, '2021-01-01', NULL),
                     ('CH', 7.7, '2018-01-01', '2023-12-31'),
                     ('CH', 8.1, '2024-01-01', NULL)) AS known (territory, rate, valid_from, valid_to)
        JOIN {schema}.territories AS t ON t.code = known.territory
        ON CONFLICT (territory, valid_from) DO NOTHING
        """)
    )
    op.execute(sql("DROP POLICY IF EXISTS lp_reference ON {schema}.territories"))
    op.execute(
        sql("""
        CREATE POLICY lp_reference ON {schema}.territories FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true)
        """)
    )


def create_assignments() -> None:
    # One owner per lead and territory. A row without user is a lead released by hand: it keeps
    # backfill and trigger from assigning it again. No foreign key to the host's leads: a deleted
    # lead must not need a lock here, and a distributed table could not have one.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.user_lead_assignments') IS NOT NULL THEN
            ALTER TABLE {quarantine}.user_lead_assignments SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.user_lead_assignments (
              lead_id {lead_id_type} NOT NULL,
              territory text NOT NULL,
              user_id {user_id_type},
              assigned_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
              assigned_by {user_id_type},
              source text NOT NULL DEFAULT 'assign',
              CONSTRAINT ix_ula_lead PRIMARY KEY (lead_id, territory) INCLUDE (user_id)
            );
            -- The activity on which a derived assignment rests, in the host's own types.
            EXECUTE (
              SELECT pg_catalog.format('ALTER TABLE {schema}.user_lead_assignments %s',
                       pg_catalog.string_agg(pg_catalog.format('ADD COLUMN %I %s', wanted.name,
                         pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY wanted.name))
              FROM (VALUES ('activity_at', {activity_at_column_name}), ('activity_id', {activity_id_column_name}))
                AS wanted (name, host_column)
              JOIN pg_catalog.pg_attribute AS a
                ON a.attrelid = {activities_name}::regclass AND a.attname = wanted.host_column
            );
            ALTER TABLE {schema}.user_lead_assignments
              ADD CONSTRAINT ula_released CHECK ((user_id IS NULL) = (source = 'release')) NOT VALID;
            CREATE INDEX ix_ula_user ON {schema}.user_lead_assignments (user_id, territory, lead_id);
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.user_lead_assignments IS
        'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand'
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.user_lead_assignments.source IS
        'backfill and activity: derived, a newer activity wins; release: no owner by hand; anything else: made by hand, stays'
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_id IS
        'The qualifying activity on which a derived assignment (source backfill or activity) rests'
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.user_lead_assignments')"))
    # What was released is nobody's business but the functions'.
    op.execute(sql("DROP POLICY IF EXISTS lp_released ON {schema}.user_lead_assignments"))
    op.execute(
        sql("""
        CREATE POLICY lp_released ON {schema}.user_lead_assignments AS RESTRICTIVE
        TO {app} USING (user_id IS NOT NULL)
        """)
    )


def create_assignment_history() -> None:
    # What an assignment was before it changed: the audit tells from it who could edit a lead at a
    # given time. New assignments write nothing here, so a backfill costs nothing.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.user_lead_assignment_history') IS NOT NULL THEN
            ALTER TABLE {quarantine}.user_lead_assignment_history SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.user_lead_assignment_history (
              lead_id {lead_id_type} NOT NULL,
              territory text NOT NULL,
              id bigserial NOT NULL,
              user_id {user_id_type},
              assigned_at timestamptz NOT NULL,
              ended_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              assigned_by {user_id_type},
              source text NOT NULL,
              PRIMARY KEY (lead_id, territory, id)
            );
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.user_lead_assignment_history IS
        'Former assignments, from assigned_at to ended_at; written by a trigger when one changes'
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.user_lead_assignment_history')"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.keep_assignment()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          INSERT INTO {schema}.user_lead_assignment_history (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (OLD.lead_id, OLD.territory, OLD.user_id, OLD.assigned_at, OLD.assigned_by, OLD.source);
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.keep_assignment() FROM PUBLIC"))
    op.execute(
        sql("""
        CREATE TRIGGER lp_keep_assignment AFTER UPDATE OR DELETE ON {schema}.user_lead_assignments
        FOR EACH ROW EXECUTE FUNCTION {schema}.keep_assignment()
        """)
    )


def create_rules() -> None:
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.lead_protection_rules') IS NOT NULL THEN
            ALTER TABLE {quarantine}.lead_protection_rules SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.lead_protection_rules (
              user_id {user_id_type} NOT NULL,
              territory text NOT NULL REFERENCES {schema}.territories (code),
              protection {schema}.protection_type NOT NULL,
              lead_id {lead_id_type},
              active boolean NOT NULL DEFAULT true,
              effective_from timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              effective_to timestamptz,
              made_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              made_by name NOT NULL DEFAULT session_user,
              CONSTRAINT lpr_dates CHECK (effective_to > effective_from),
              CONSTRAINT ix_lpr_user UNIQUE NULLS NOT DISTINCT
                (user_id, territory, protection, lead_id, active, effective_from, effective_to)
            );
            -- no primary key (lead_id may be NULL): a publication FOR ALL TABLES needs an identity
            ALTER TABLE {schema}.lead_protection_rules REPLICA IDENTITY FULL;
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.lead_protection_rules IS
        'COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out territory-wide collaborators; lead_id NULL: the whole territory'
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.lead_protection_rules')"))


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
              PRIMARY KEY (lead_id, at, id)
            ) PARTITION BY RANGE (at);
            CREATE TABLE {schema}.lead_access_audit_default PARTITION OF {schema}.lead_access_audit DEFAULT;
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.lead_access_audit IS
        'Every attempt on a lead, allowed or denied; append-only for everybody'
        """)
    )


def create_audit_seals() -> None:
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
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.lead_access_audit_seals IS
        'Chains of hashes over the rows of lead_access_audit; leadprotect audit verify compares. Keep the newest hash elsewhere, too'
        """)
    )
    for column, text in (
        ("content", "sha256 over the sha256 of each row, in the order of their ids"),
        ("row_checks", "the first four bytes of each row''s sha256: they name the row that was changed"),
        ("origin", "server and table in which transaction ids of this run mean something"),
        ("snapshot", "rows of transactions that had ended in it are in this run or an earlier one"),
        ("last_number", "the newest number drawn for a row when the run began"),
        ("settled_until", "every row of a time before this is sealed"),
        ("detached_table", "set where the entry says that a month was detached, not that rows were sealed"),
    ):
        op.execute(sql("COMMENT ON COLUMN {schema}.lead_access_audit_seals." + column + f" IS '{text}'"))


def create_audit_guards() -> None:
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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.refuse_change() FROM PUBLIC"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.secure_audit_table(target regclass)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.secure_table(target);
          EXECUTE format('DROP POLICY IF EXISTS lp_without_territory ON %s', target);
          EXECUTE format('CREATE POLICY lp_without_territory ON %s FOR SELECT TO {auditor}
                          USING (territory IS NULL)', target);
          EXECUTE format('DROP TRIGGER IF EXISTS lp_append_only ON %s', target);
          EXECUTE format('CREATE TRIGGER lp_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()', target);
          EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER lp_append_only', target);
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.secure_audit_table(regclass) FROM PUBLIC"))
    op.execute(sql("SELECT {schema}.secure_audit_table('{schema}.lead_access_audit_seals')"))


def create_audit_partitions() -> None:
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
        END
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.audit_partitions() IS
        'Partitions of the audit, each from its first month up to, and without, to_month; not the default one'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_partitions() FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.audit_partitions() TO {auditor}, {operator}"))
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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.add_audit_partition(timestamptz, timestamptz) FROM PUBLIC"))
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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.clear_audit_default(integer) FROM PUBLIC"))
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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.create_audit_partitions(integer, integer) FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.create_audit_partitions(integer, integer) TO {operator}"))
    op.execute(
        sql("""
        SELECT {schema}.secure_audit_table(relid) FROM pg_catalog.pg_partition_tree('{schema}.lead_access_audit')
        """)
    )
    op.execute(sql("SELECT {schema}.create_audit_partitions(3)"))


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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_origin() FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.audit_origin() TO {auditor}"))
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
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_settled_until() FROM PUBLIC"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.append_audit_seal(entry {schema}.lead_access_audit_seals)
        RETURNS {schema}.lead_access_audit_seals
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          SELECT max(s.number) + 1, (array_agg(s.hash ORDER BY s.number DESC))[1]
          INTO entry.number, entry.previous
          FROM {schema}.lead_access_audit_seals AS s
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
          INSERT INTO {schema}.lead_access_audit_seals SELECT entry.*;
          -- a log that is shipped elsewhere keeps the newest hash out of everybody's reach
          RAISE LOG 'leadprotect seal: territory %, number %, hash %',
            coalesce(quote_ident(entry.territory), 'none'), entry.number, encode(entry.hash, 'hex');
          RETURN entry;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.append_audit_seal({schema}.lead_access_audit_seals) FROM PUBLIC"))
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
        AS $body$
        #variable_conflict use_column
        DECLARE
          began timestamptz;
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
            date_trunc('month', before.settled_until - interval '1 minute', 'UTC'), '-infinity');
          done := coalesce(
            (SELECT range_agg(s.ids) FROM {schema}.lead_access_audit_seals AS s
             WHERE NOT isfinite(open_from) OR s.month >= (open_from AT TIME ZONE 'UTC')::date), '{}');
          entry.run := coalesce(before.run, 0) + 1;
          entry.sealed_at := began;
          entry.origin := here;
          entry.last_number := newest_number;
          FOR part IN
            WITH state AS MATERIALIZED (
              SELECT pg_current_snapshot() AS snapshot, {schema}.audit_settled_until() AS settled_until
            ), fresh AS MATERIALIZED (
              SELECT a.territory, (date_trunc('month', a.at, 'UTC') AT TIME ZONE 'UTC')::date AS month,
                     a.id, a.at, a.lead_id::text COLLATE "C" AS lead,
                     sha256(convert_to(json_build_array(
                       'lp-row-1', a.id, a.lead_id::text, a.at AT TIME ZONE 'UTC', a.user_id::text, a.login, a.role,
                       a.territory, a.action::text, a.outcome::text, a.reason, a.note, a.correlation_id,
                       a.transaction_id::text)::text, 'UTF8')) AS hash
              FROM {schema}.lead_access_audit AS a, state
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
              SELECT NULL AS territory UNION SELECT t.code FROM {schema}.territories AS t
              UNION SELECT s.territory FROM {schema}.lead_access_audit_seals AS s
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
            entry := {schema}.append_audit_seal(entry);
          END LOOP;
          RETURN QUERY
            SELECT s.territory, max(s.number), (array_agg(s.hash ORDER BY s.number DESC))[1], sum(s.row_count)::bigint
            FROM {schema}.lead_access_audit_seals AS s
            WHERE s.run = entry.run AND s.detached_table IS NULL
            GROUP BY s.territory ORDER BY s.territory NULLS FIRST;
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.seal_audit(integer) IS
        'Seals every row whose transaction has ended; returns the newest seal of each chain. Keep these hashes elsewhere'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.seal_audit(integer) FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.seal_audit(integer) TO {operator}"))


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
        SET timezone = 'UTC'
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
          done := coalesce(
            (SELECT range_agg(s.ids) FROM {schema}.lead_access_audit_seals AS s
             WHERE s.month >= span.from_month::date AND s.month < span.to_month::date), '{}');
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
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.detach_audit_month(date) IS
        'Detaches the sealed partition that begins with this month; every chain says so. No row is deleted'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.detach_audit_month(date) FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.detach_audit_month(date) TO {operator}"))


def create_number_gaps() -> None:
    # A number that was drawn and has no row: a denial raised in plain SQL, or a recording that was
    # rolled back. Numbers tell nothing of a territory, so an auditor of one sees the gaps of all.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_number_gaps()
        RETURNS TABLE (first_number bigint, last_number bigint)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        DECLARE
          here text := {schema}.audit_origin();
          -- numbers up to here were drawn by transactions that have ended
          drawn bigint := (
            SELECT max(s.last_number) FROM {schema}.lead_access_audit_seals AS s
            WHERE s.origin <> here OR s.transaction_id < pg_snapshot_xmin(pg_current_snapshot()));
          done int8multirange := coalesce(
            (SELECT range_agg(s.ids) FROM {schema}.lead_access_audit_seals AS s), '{}');
          open_from timestamptz := (
            SELECT date_trunc('month', max(s.settled_until) - interval '1 minute', 'UTC')
            FROM {schema}.lead_access_audit_seals AS s);
        BEGIN
          IF drawn > 0 THEN
            RETURN QUERY
              SELECT lower(gap), upper(gap) - 1
              FROM unnest(int8multirange(int8range(1, drawn, '[]')) - done - coalesce(
                (SELECT range_agg(int8range(a.id, a.id, '[]')) FROM {schema}.lead_access_audit AS a
                 WHERE a.at >= open_from AND NOT done @> a.id), '{}')) AS gap;
          END IF;
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.audit_number_gaps() IS
        'Numbers without a row: the server''s log tells of each denial that was raised (leadprotect denial N)'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_number_gaps() FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}.audit_number_gaps() TO {auditor}"))


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
          WITH here AS (
            SELECT t.code FROM {schema}.territories AS t
            WHERE {schema}.is_member(t.code)
              AND t.code = coalesce(nullif(pg_catalog.current_setting({territory_guc}, true), ''), t.code)
          ), standing AS (
            SELECT a.territory, a.user_id, a.source,
                   greatest(a.assigned_at, pg_catalog.lag(a.ended_at) OVER (PARTITION BY a.territory ORDER BY a.ended_at NULLS LAST)) AS since,
                   a.ended_at AS until
            FROM (
              SELECT h.territory, h.user_id, h.source, h.assigned_at, h.ended_at
              FROM {schema}.user_lead_assignment_history AS h WHERE h.lead_id = lead
              UNION ALL
              SELECT u.territory, u.user_id, u.source, u.assigned_at, NULL
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
            WHERE EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = lead AND l.{territory} = h.code)
              OR EXISTS (SELECT FROM standing AS s WHERE s.territory = h.code)
              OR EXISTS (SELECT FROM {schema}.lead_access_audit AS e WHERE e.lead_id = lead AND e.territory = h.code)
          ), rights AS (
            SELECT k.code, o.user_id, CASE WHEN o.user_id IS NULL THEN 'unassigned' ELSE 'owner' END AS reason,
                   o.since, o.until, o.source, 1 AS rank
            FROM known AS k LEFT JOIN owners AS o ON o.territory = k.code
            UNION ALL
            SELECT k.code, r.user_id, 'collaborator', r.since, r.effective_to,
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
        END
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) IS
        'Who could edit the lead at this moment and why, in the territories of the login; no row: nothing is known of the lead'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) FROM PUBLIC"))
    op.execute(
        sql("GRANT EXECUTE ON FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz) TO {auditor}, {manager}")
    )


def grant_access() -> None:
    # Services read who owns what in their territory; nobody writes but the functions.
    op.execute(sql("GRANT USAGE ON SCHEMA {schema} TO {app}, {auditor}, {operator}, {manager}"))
    op.execute(
        sql(
            "GRANT SELECT ON {schema}.territories, {schema}.territory_vat_rates TO {app}, {auditor}, {operator}, {manager}"
        )
    )
    op.execute(sql("GRANT SELECT ON {schema}.user_lead_assignments TO {app}, {auditor}, {manager}"))
    op.execute(
        sql(
            "GRANT SELECT ON {schema}.lead_protection_rules, {schema}.user_lead_assignment_history TO {manager}, {auditor}"
        )
    )
    # The audit's reasons tell what the answer to a service hides: auditors only.
    op.execute(sql("GRANT SELECT ON {schema}.lead_access_audit, {schema}.lead_access_audit_seals TO {auditor}"))
    op.execute(
        sql("""
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


def leave_quarantine() -> None:
    # Later revisions take their own tables back; the schema goes when it is empty.
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


def version_table() -> str:
    """The table in which Alembic keeps what is applied, as a constant: a host's own has another name."""
    known = op.get_context()
    return literal(ident(*filter(None, (known.version_table_schema, known.version_table))))


def show_version() -> None:
    # leadprotect status tells an operator which revision is applied.
    op.execute(
        sql(
            """
        DO $do$
        DECLARE
          versions regclass := pg_catalog.to_regclass("""
            + version_table()
            + """);
          home text := (
            SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.oid = versions);
        BEGIN
          IF versions IS NOT NULL THEN
            EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %I', versions, {operator_name});
          END IF;
          IF NOT pg_catalog.has_schema_privilege({operator_name}, home, 'USAGE') THEN
            EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', home, {operator_name});
          END IF;
        END
        $do$
        """
        )
    )


def enter_quarantine() -> None:
    # Still row-secured and append-only, without any grant. Partitions do not follow their parent.
    op.execute("RESET ROLE")
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        COMMENT ON SCHEMA {quarantine} IS
        'leadprotect after a downgrade: alembic upgrade takes every row back, leadprotect purge deletes'
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.territories, {schema}.territory_vat_rates, {schema}.user_lead_assignments,
          {schema}.user_lead_assignment_history, {schema}.lead_protection_rules, {schema}.lead_access_audit,
          {schema}.lead_access_audit_seals
        FROM {app}, {auditor}, {operator}, {manager}
        """)
    )
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
        $do$
        """)
    )
    op.execute(sql("ALTER FUNCTION {schema}.refuse_change() SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER FUNCTION {schema}.is_member(text) SET SCHEMA {quarantine}"))
    op.execute(sql("REVOKE ALL ON FUNCTION {quarantine}.is_member(text) FROM {app}, {auditor}, {manager}"))
    op.execute(sql("DROP TRIGGER lp_keep_assignment ON {schema}.user_lead_assignments"))
    op.execute(sql("ALTER TABLE {schema}.user_lead_assignments SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.user_lead_assignment_history SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.lead_protection_rules SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.territory_vat_rates SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.territories SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TYPE {schema}.lead_action SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TYPE {schema}.lead_access_outcome SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TYPE {schema}.protection_type SET SCHEMA {quarantine}"))


def drop_functions() -> None:
    op.execute(sql("DROP FUNCTION {schema}.keep_assignment()"))
    op.execute(sql("DROP FUNCTION {schema}.who_could_edit({lead_id_type}, timestamptz)"))
    op.execute(sql("DROP FUNCTION {schema}.audit_number_gaps()"))
    op.execute(sql("DROP FUNCTION {schema}.detach_audit_month(date)"))
    op.execute(sql("DROP FUNCTION {schema}.seal_audit(integer)"))
    op.execute(sql("DROP FUNCTION {schema}.append_audit_seal({quarantine}.lead_access_audit_seals)"))
    op.execute(sql("DROP FUNCTION {schema}.audit_settled_until()"))
    op.execute(sql("DROP FUNCTION {schema}.audit_origin()"))
    op.execute(sql("DROP FUNCTION {schema}.create_audit_partitions(integer, integer)"))
    op.execute(sql("DROP FUNCTION {schema}.clear_audit_default(integer)"))
    op.execute(sql("DROP FUNCTION {schema}.add_audit_partition(timestamptz, timestamptz)"))
    op.execute(sql("DROP FUNCTION {schema}.audit_partitions()"))
    op.execute(sql("DROP FUNCTION {schema}.secure_audit_table(regclass)"))
    op.execute(sql("DROP FUNCTION {schema}.secure_table(regclass)"))


def drop_schema() -> None:
    hide_version()
    # The host's tables get their grants back as they were.
    op.execute(sql("REVOKE SELECT ({lead_id}, {territory}) ON {leads} FROM {owner}"))
    op.execute(
        sql("""
        REVOKE SELECT ({activity_id}, {activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at})
        ON {activities} FROM {owner}
        """)
    )
    op.execute(
        sql("""
        DO $do$
        DECLARE
          granted record;
        BEGIN
          FOR granted IN
            SELECT n.nspname, r.rolname
            FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS acl
            JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
            WHERE n.nspname IN ({leads_schema}, {activities_schema}) AND r.rolname = {owner_name}
          LOOP
            EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM %I', granted.nspname, granted.rolname);
          END LOOP;
        END
        $do$
        """)
    )
    # Fails, and says what is in the way, when somebody put objects of his own into the schema.
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP SCHEMA {schema} RESTRICT"))
    op.execute("RESET ROLE")


def hide_version() -> None:
    op.execute(
        sql(
            """
        DO $do$
        DECLARE
          versions regclass := pg_catalog.to_regclass("""
            + version_table()
            + """);
          granted text := (
            SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE c.oid = versions AND EXISTS (
              SELECT FROM pg_catalog.aclexplode(n.nspacl) AS acl
              WHERE acl.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({operator_name}))));
        BEGIN
          IF versions IS NOT NULL THEN
            EXECUTE pg_catalog.format('REVOKE SELECT ON %s FROM %I', versions, {operator_name});
          END IF;
          IF granted IS NOT NULL THEN
            EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM %I', granted, {operator_name});
          END IF;
        END
        $do$
        """
        )
    )
