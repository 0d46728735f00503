"""Roles, schema, and the tables of territories, ownership and rules.

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
    grant_access()
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
    op.execute(sql("GRANT SELECT ({lead_id}, {territory}) ON {leads} TO {owner}"))
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
    op.execute(
        sql("""
        COMMENT ON SCHEMA {schema} IS 'leadprotect: one owner per lead and territory, audited';
        REVOKE ALL ON SCHEMA {schema} FROM PUBLIC
        """)
    )


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
          false);
        COMMENT ON FUNCTION {schema}.is_member(text) IS
        'Whether the login (session_user) holds the role of this territory';
        REVOKE ALL ON FUNCTION {schema}.is_member(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.is_member(text) TO {app}, {auditor}, {manager}
        """)
    )


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
        $body$;
        REVOKE ALL ON FUNCTION {schema}.secure_table(regclass) FROM PUBLIC;
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
        $do$;
        COMMENT ON TABLE {schema}.territories IS 'The legal territories: reference data, no secret of another one';
        COMMENT ON COLUMN {schema}.territories.code IS 'what leads carry in their territory column; the role of the territory ends with it';
        COMMENT ON COLUMN {schema}.territories.name IS 'for people';
        COMMENT ON COLUMN {schema}.territories.currency IS 'ISO 4217';
        COMMENT ON COLUMN {schema}.territories.legal_framework IS 'the law that contracts in this territory are made under';
        -- The policy for the owner must stand before the first row: row security is forced.
        SELECT {schema}.secure_table('{schema}.territories');
        DROP POLICY IF EXISTS lp_reference ON {schema}.territories;
        CREATE POLICY lp_reference ON {schema}.territories FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true)
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.territory_vat_rates.rate IS
        'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice';
        COMMENT ON TABLE {schema}.territory_vat_rates IS 'VAT rates of the territories by day';
        COMMENT ON COLUMN {schema}.territory_vat_rates.territory IS 'the territory in which the rate holds';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_from IS 'first day'
        """)
    )
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
    op.execute(
        sql("""
        SELECT {schema}.secure_table('{schema}.territory_vat_rates');
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
        $do$;
        COMMENT ON TABLE {schema}.user_lead_assignments IS
        'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand';
        COMMENT ON COLUMN {schema}.user_lead_assignments.source IS
        'backfill and activity: derived, a newer activity wins; release: no owner by hand; anything else: made by hand, stays';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_id IS
        'The qualifying activity on which a derived assignment (source backfill or activity) rests';
        COMMENT ON COLUMN {schema}.user_lead_assignments.lead_id IS 'the lead; no foreign key, a deleted lead must need no lock here';
        COMMENT ON COLUMN {schema}.user_lead_assignments.territory IS 'an assignment counts only while the lead is in it';
        COMMENT ON COLUMN {schema}.user_lead_assignments.user_id IS 'the owner; NULL: released by hand';
        COMMENT ON COLUMN {schema}.user_lead_assignments.assigned_at IS 'since when';
        COMMENT ON COLUMN {schema}.user_lead_assignments.assigned_by IS 'the user who did it by hand; NULL: derived from an activity';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_at IS 'time of the activity on which a derived assignment rests: a newer one wins';
        SELECT {schema}.secure_table('{schema}.user_lead_assignments');
        -- What was released is nobody's business but the functions'.
        DROP POLICY IF EXISTS lp_released ON {schema}.user_lead_assignments;
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
        $do$;
        COMMENT ON TABLE {schema}.user_lead_assignment_history IS
        'Former assignments, from assigned_at to ended_at; written by a trigger when one changes';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.lead_id IS 'the lead';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.territory IS 'where it was owned';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.id IS 'order of the changes of a lead';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.user_id IS 'the former owner; NULL: it was released';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.assigned_at IS 'since when he was';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.ended_at IS 'until when';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.assigned_by IS 'the user who had assigned it';
        COMMENT ON COLUMN {schema}.user_lead_assignment_history.source IS 'how it had been assigned';
        SELECT {schema}.secure_table('{schema}.user_lead_assignment_history')
        """)
    )
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
        $body$;
        COMMENT ON FUNCTION {schema}.keep_assignment() IS
        'Keeps what an assignment was before it changed, so that the audit can tell who could edit a lead at a time';
        REVOKE ALL ON FUNCTION {schema}.keep_assignment() FROM PUBLIC
        """)
    )
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
        $do$;
        COMMENT ON TABLE {schema}.lead_protection_rules IS
        'COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out territory-wide collaborators; lead_id NULL: the whole territory';
        COMMENT ON COLUMN {schema}.lead_protection_rules.user_id IS 'whom the rule is about';
        COMMENT ON COLUMN {schema}.lead_protection_rules.territory IS 'where it holds';
        COMMENT ON COLUMN {schema}.lead_protection_rules.protection IS 'what it does';
        COMMENT ON COLUMN {schema}.lead_protection_rules.lead_id IS 'for this lead only; NULL: for the whole territory';
        COMMENT ON COLUMN {schema}.lead_protection_rules.active IS 'false: ended before its time';
        COMMENT ON COLUMN {schema}.lead_protection_rules.effective_from IS 'first moment';
        COMMENT ON COLUMN {schema}.lead_protection_rules.effective_to IS 'first moment after it; NULL: without end';
        COMMENT ON COLUMN {schema}.lead_protection_rules.made_at IS 'when it was made, whatever beginning it was given';
        COMMENT ON COLUMN {schema}.lead_protection_rules.made_by IS 'the login that made it';
        SELECT {schema}.secure_table('{schema}.lead_protection_rules')
        """)
    )


def grant_access() -> None:
    # Services read who owns what in their territory; nobody writes but the functions.
    op.execute(
        sql("""
        GRANT USAGE ON SCHEMA {schema} TO {app}, {auditor}, {operator}, {manager};
        GRANT SELECT ON {schema}.territories, {schema}.territory_vat_rates TO {app}, {auditor}, {operator}, {manager};
        GRANT SELECT ON {schema}.user_lead_assignments TO {app}, {auditor}, {manager};
        GRANT SELECT ON {schema}.lead_protection_rules, {schema}.user_lead_assignment_history TO {manager}, {auditor}
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
    # Still row-secured, without any grant.
    op.execute("RESET ROLE")
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        COMMENT ON SCHEMA {quarantine} IS
        'leadprotect after a downgrade: alembic upgrade takes every row back, leadprotect purge deletes';
        REVOKE ALL ON {schema}.territories, {schema}.territory_vat_rates, {schema}.user_lead_assignments,
          {schema}.user_lead_assignment_history, {schema}.lead_protection_rules
        FROM {app}, {auditor}, {operator}, {manager};
        REVOKE ALL ON FUNCTION {schema}.is_member(text) FROM {app}, {auditor}, {manager};
        ALTER FUNCTION {schema}.is_member(text) SET SCHEMA {quarantine};
        DROP TRIGGER lp_keep_assignment ON {schema}.user_lead_assignments;
        ALTER TABLE {schema}.user_lead_assignments SET SCHEMA {quarantine};
        ALTER TABLE {schema}.user_lead_assignment_history SET SCHEMA {quarantine};
        ALTER TABLE {schema}.lead_protection_rules SET SCHEMA {quarantine};
        ALTER TABLE {schema}.territory_vat_rates SET SCHEMA {quarantine};
        ALTER TABLE {schema}.territories SET SCHEMA {quarantine};
        ALTER TYPE {schema}.lead_action SET SCHEMA {quarantine};
        ALTER TYPE {schema}.lead_access_outcome SET SCHEMA {quarantine};
        ALTER TYPE {schema}.protection_type SET SCHEMA {quarantine}
        """)
    )


def drop_functions() -> None:
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.keep_assignment(),
          {schema}.secure_table(regclass)
        """)
    )


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
