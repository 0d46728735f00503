"""Roles, schema, and the tables of territories, ownership and rules.

Why: everything that later revisions, services and auditors stand on. Nothing of the host changes
but two grants: leadprotect_reader may read the id and territory of leads, and of activities the
columns from which owners are derived. It owns the functions that read the host's tables and can
write nothing, so code of the host that such a read runs has nothing to gain; leadprotect_owner owns
everything else and can't read the host's tables.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes (GRANT, since PostgreSQL 18).

Undone by: moving the tables to the quarantine schema, still row-secured, without grants; upgrade
takes them back with every row. Roles are cluster-wide and stay.
"""

from alembic import op
from alembic.util import CommandError

from leadprotect.settings import ident, literal, making_roles, sql

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
    create_border()
    create_territories()
    create_assignments()
    create_assignment_history()
    create_rules()
    create_rule_end()
    create_readers()
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
    # The owner alone may stand already: the version table is his.
    wanted = """SELECT unnest(ARRAY[{offices}])
            UNION ALL
            SELECT {role_prefix} || pg_catalog.lower(code) FROM unnest(ARRAY[{territories}]) AS code"""
    op.execute(sql(making_roles(wanted, "{owner_name}, {reader_name}")))


def create_schema() -> None:
    # The version table, or a DBA, may have needed it beforehand; it then belongs to leadprotect_owner already.
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner}"))
    # What our functions read of the host: these columns and no others.
    op.execute(
        sql("""
        GRANT SELECT ({lead_id}, {territory}) ON {leads} TO {reader};
        GRANT SELECT ({activity_id}, {activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at})
        ON {activities} TO {reader}
        """)
    )
    op.execute(
        sql("""
        DO $do$
        DECLARE
          host text;
          ours text;
        BEGIN
          FOREACH host IN ARRAY ARRAY[{leads_schema}, {activities_schema}] LOOP
            FOREACH ours IN ARRAY ARRAY[{owner_name}, {reader_name}] LOOP
              IF NOT pg_catalog.has_schema_privilege(ours, host, 'USAGE') THEN
                EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', host, ours);
              END IF;
            END LOOP;
          END LOOP;
        END
        $do$
        """)
    )


def describe_schema() -> None:
    op.execute(
        sql("""
        COMMENT ON SCHEMA {schema} IS 'leadprotect: one owner per lead and territory, audited';
        REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;
        GRANT USAGE ON SCHEMA {schema} TO {reader}
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


def create_border() -> None:
    # Policies rest on these, so they go to the quarantine and back with the tables.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regprocedure('{quarantine}.admitted_territory()') IS NOT NULL THEN
            ALTER FUNCTION {quarantine}.acting_role() SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.is_member(text) SET SCHEMA {schema};
            ALTER FUNCTION {quarantine}.admitted_territory() SET SCHEMA {schema};
          END IF;
        END
        $do$
        """)
    )
    # A pool that logs in once and sets a role for each request has its border at that role. A definer
    # function changes neither: the server refuses SET ROLE inside one.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.acting_role()
        RETURNS name
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(nullif(pg_catalog.current_setting('role'), 'none')::name, session_user);
        COMMENT ON FUNCTION {schema}.acting_role() IS
        'Who acts: the role that SET ROLE chose, or the login where none is chosen';
        REVOKE ALL ON FUNCTION {schema}.acting_role() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.acting_role() TO {reader}, {app}, {auditor}, {manager}, {operator}
        """)
    )
    # USAGE: the admin option alone, and a membership that is not inherited, make no member.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.is_member(territory text)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(
          pg_catalog.pg_has_role(
            {schema}.acting_role(),
            pg_catalog.to_regrole(pg_catalog.quote_ident({role_prefix} || pg_catalog.lower(territory)))::oid,
            'USAGE'),
          false);
        COMMENT ON FUNCTION {schema}.is_member(text) IS
        'Whether the acting role holds the role of this territory';
        REVOKE ALL ON FUNCTION {schema}.is_member(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.is_member(text) TO {reader}, {app}, {auditor}, {manager}
        """)
    )
    # PUBLIC may execute it, because restrictive policies TO PUBLIC call it for whoever asks; it tells
    # nobody more than his own setting. Policies ask it in a sub-select: once for a query.
    op.execute(
        sql("""
        CREATE OR REPLACE FUNCTION {schema}.admitted_territory()
        RETURNS text
        LANGUAGE sql
        STABLE PARALLEL SAFE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT pg_catalog.current_setting({territory_guc}, true)
          WHERE {schema}.is_member(pg_catalog.current_setting({territory_guc}, true));
        END;
        COMMENT ON FUNCTION {schema}.admitted_territory() IS
        'The territory in context if the acting role holds its role, else NULL: the border that every policy asks';
        REVOKE ALL ON FUNCTION {schema}.admitted_territory() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.admitted_territory() TO PUBLIC
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
        ALTER TABLE {schema}.territories ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.territories FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.territories;
        CREATE POLICY lp_inside ON {schema}.territories TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_reference ON {schema}.territories;
        CREATE POLICY lp_reference ON {schema}.territories FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true);
        GRANT SELECT ON {schema}.territories TO {reader}
        """)
    )
    op.execute(
        sql("""
        COMMENT ON COLUMN {schema}.territory_vat_rates.rate IS
        'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice';
        COMMENT ON TABLE {schema}.territory_vat_rates IS 'VAT rates of the territories by day';
        COMMENT ON COLUMN {schema}.territory_vat_rates.territory IS 'the territory in which the rate holds';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_from IS 'first day';
        ALTER TABLE {schema}.territory_vat_rates ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.territory_vat_rates FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.territory_vat_rates;
        CREATE POLICY lp_inside ON {schema}.territory_vat_rates TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_reference ON {schema}.territory_vat_rates;
        CREATE POLICY lp_reference ON {schema}.territory_vat_rates FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.territory_vat_rates;
        CREATE POLICY lp_border ON {schema}.territory_vat_rates AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.admitted_territory()))
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
    # One owner per lead and territory. A row without user is a lead released by hand, which keeps
    # backfill and trigger from assigning it again, or one that moved here, which knows no owner until
    # a newer activity or a hand decides. No foreign key to the host's leads: a deleted
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
              ADD CONSTRAINT ula_released CHECK ((user_id IS NULL) = (source IN ('release', 'moved'))) NOT VALID;
            CREATE INDEX ix_ula_user ON {schema}.user_lead_assignments (user_id, territory, lead_id);
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.user_lead_assignments IS
        'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand, or moved here';
        COMMENT ON COLUMN {schema}.user_lead_assignments.source IS
        'backfill and activity: derived, a newer activity wins; release: no owner by hand; moved: none until a newer activity; anything else: made by hand, stays';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_id IS
        'The qualifying activity on which a derived assignment (source backfill or activity) rests';
        COMMENT ON COLUMN {schema}.user_lead_assignments.lead_id IS 'the lead; no foreign key, a deleted lead must need no lock here';
        COMMENT ON COLUMN {schema}.user_lead_assignments.territory IS 'an assignment counts only while the lead is in it';
        COMMENT ON COLUMN {schema}.user_lead_assignments.user_id IS 'the owner; NULL: nobody';
        COMMENT ON COLUMN {schema}.user_lead_assignments.assigned_at IS 'since when';
        COMMENT ON COLUMN {schema}.user_lead_assignments.assigned_by IS 'the user who did it by hand; NULL: derived from an activity';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_at IS 'time of the activity on which a derived assignment rests: a newer one wins';
        ALTER TABLE {schema}.user_lead_assignments ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.user_lead_assignments FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.user_lead_assignments;
        CREATE POLICY lp_inside ON {schema}.user_lead_assignments TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_read ON {schema}.user_lead_assignments;
        CREATE POLICY lp_read ON {schema}.user_lead_assignments FOR SELECT TO {app}, {auditor}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.user_lead_assignments;
        CREATE POLICY lp_border ON {schema}.user_lead_assignments AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.admitted_territory()));
        -- What was released is nobody's business but the functions'.
        DROP POLICY IF EXISTS lp_released ON {schema}.user_lead_assignments;
        CREATE POLICY lp_released ON {schema}.user_lead_assignments AS RESTRICTIVE
        TO {app} USING (user_id IS NOT NULL);
        GRANT SELECT ON {schema}.user_lead_assignments TO {reader}
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
        ALTER TABLE {schema}.user_lead_assignment_history ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.user_lead_assignment_history FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.user_lead_assignment_history;
        CREATE POLICY lp_inside ON {schema}.user_lead_assignment_history TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_read ON {schema}.user_lead_assignment_history;
        CREATE POLICY lp_read ON {schema}.user_lead_assignment_history FOR SELECT TO {auditor}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.user_lead_assignment_history;
        CREATE POLICY lp_border ON {schema}.user_lead_assignment_history AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.admitted_territory()))
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
          IF OLD.user_id IS NOT NULL AND (TG_OP = 'DELETE' OR NEW.user_id IS DISTINCT FROM OLD.user_id) THEN
            PERFORM {schema}.end_lead_rules(OLD.lead_id, OLD.user_id);
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.keep_assignment() IS
        'Keeps what an assignment was before it changed, so that the audit can tell who could edit a lead at a time; ends what its owner shared';
        REVOKE ALL ON FUNCTION {schema}.keep_assignment() FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE TRIGGER lp_keep_assignment AFTER UPDATE OR DELETE ON {schema}.user_lead_assignments
        FOR EACH ROW EXECUTE FUNCTION {schema}.keep_assignment();
        ALTER TABLE {schema}.user_lead_assignments ENABLE ALWAYS TRIGGER lp_keep_assignment
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
              shared_by {user_id_type},
              CONSTRAINT lpr_dates CHECK (effective_to > effective_from),
              CONSTRAINT ix_lpr_user UNIQUE NULLS NOT DISTINCT
                (user_id, territory, protection, lead_id, active, effective_from, effective_to)
            );
            -- no primary key (lead_id may be NULL): a publication FOR ALL TABLES needs an identity
            ALTER TABLE {schema}.lead_protection_rules REPLICA IDENTITY FULL;
            -- what ends with an owner, or with the lead, is found by the lead
            CREATE INDEX ix_lpr_lead ON {schema}.lead_protection_rules (lead_id) WHERE active AND lead_id IS NOT NULL;
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
        COMMENT ON COLUMN {schema}.lead_protection_rules.shared_by IS 'the owner who shared his lead: it ends when he ceases to be it; NULL: made by a manager';
        ALTER TABLE {schema}.lead_protection_rules ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.lead_protection_rules FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.lead_protection_rules;
        CREATE POLICY lp_inside ON {schema}.lead_protection_rules TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_read ON {schema}.lead_protection_rules;
        CREATE POLICY lp_read ON {schema}.lead_protection_rules FOR SELECT TO {auditor}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.lead_protection_rules;
        CREATE POLICY lp_border ON {schema}.lead_protection_rules AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.admitted_territory()));
        GRANT SELECT ON {schema}.lead_protection_rules TO {reader}
        """)
    )


def create_rule_end() -> None:
    # A share ends with the owner who made it, every rule of a lead with the lead: a new lead with its
    # id has neither. What had taken effect stays as history.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.end_lead_rules(lead {lead_id_type}, of_owner {user_id_type} DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          DELETE FROM {schema}.lead_protection_rules AS r
          WHERE r.lead_id = lead AND r.active AND r.effective_from >= clock_timestamp()
            AND (of_owner IS NULL OR r.shared_by = of_owner);
          UPDATE {schema}.lead_protection_rules AS r
          SET active = false, effective_to = clock_timestamp()
          WHERE r.lead_id = lead AND r.active AND (r.effective_to IS NULL OR r.effective_to > clock_timestamp())
            AND (of_owner IS NULL OR r.shared_by = of_owner);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.end_lead_rules({lead_id_type}, {user_id_type}) IS
        'Ends what this owner shared of the lead, or every rule of the lead where no owner is named';
        REVOKE ALL ON FUNCTION {schema}.end_lead_rules({lead_id_type}, {user_id_type}) FROM PUBLIC
        """)
    )


def create_readers() -> None:
    # The only ways from our functions to the host's tables. They belong to leadprotect_reader, so that a
    # policy, a view or an operator of the host that such a read runs has no right to write anything.
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.host_lead(lead {lead_id_type})
        RETURNS SETOF text
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER ROWS 1
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY SELECT l.{territory}::text FROM {leads} AS l WHERE l.{lead_id} = lead;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.host_lead({lead_id_type}) IS
        'The territory of a lead of the host, NULL outside protection; no row: there is no such lead';
        REVOKE ALL ON FUNCTION {schema}.host_lead({lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.host_lead({lead_id_type}) TO {owner}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.protected_leads()
        RETURNS TABLE (lead_id {lead_id_type}, territory text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY SELECT l.{lead_id}::{lead_id_type}, l.{territory}::text FROM {leads} AS l WHERE l.{territory} IS NOT NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.protected_leads() IS 'Every lead of the host that has a territory';
        REVOKE ALL ON FUNCTION {schema}.protected_leads() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.protected_leads() TO {owner}
        """)
    )
    # What makes an owner, said once: the newest activity of a qualifying kind with a user. One in the
    # future makes none until its time has come, so that nobody can date himself in front of all others.
    # Plans are pinned to index probes, LIMIT 1 keeps a lookup inside its loop: statistics of a table
    # that is being filled are always wrong. Kinds are literals so that the partial index serves.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.newest_activities(leads {lead_id_type}[])
        RETURNS TABLE (
          lead_id {lead_id_type}, user_id {user_id_type}, activity_at {schema}.user_lead_assignments.activity_at%TYPE,
          activity_id {schema}.user_lead_assignments.activity_id%TYPE)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        SET jit = off
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT wanted.lead_id, newest.user_id::{user_id_type}, newest.at, newest.id
          FROM unnest(newest_activities.leads) AS wanted (lead_id),
            LATERAL (
              SELECT v.{activity_user_id} AS user_id, v.{activity_at} AS at, v.{activity_id} AS id
              FROM {activities} AS v
              WHERE v.{activity_lead_id} = wanted.lead_id
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
                AND (v.{activity_at} <= clock_timestamp()) IS NOT FALSE
              ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.newest_activities({lead_id_type}[]) IS
        'For each lead its newest qualifying activity, which makes the owner; no row: there is none';
        REVOKE ALL ON FUNCTION {schema}.newest_activities({lead_id_type}[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.newest_activities({lead_id_type}[]) TO {owner}
        """)
    )
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))


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
        FROM {reader}, {app}, {auditor}, {operator}, {manager};
        REVOKE ALL ON FUNCTION {schema}.is_member(text), {schema}.acting_role(), {schema}.admitted_territory()
        FROM PUBLIC, {reader}, {app}, {auditor}, {manager}, {operator};
        ALTER FUNCTION {schema}.admitted_territory() SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.is_member(text) SET SCHEMA {quarantine};
        ALTER FUNCTION {schema}.acting_role() SET SCHEMA {quarantine};
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
          {schema}.newest_activities({lead_id_type}[]),
          {schema}.protected_leads(),
          {schema}.host_lead({lead_id_type}),
          {schema}.keep_assignment(),
          {schema}.end_lead_rules({lead_id_type}, {user_id_type})
        """)
    )


def drop_schema() -> None:
    hide_version()
    # The host's tables get their grants back as they were.
    op.execute(sql("REVOKE SELECT ({lead_id}, {territory}) ON {leads} FROM {reader}"))
    op.execute(
        sql("""
        REVOKE SELECT ({activity_id}, {activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at})
        ON {activities} FROM {reader}
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
            WHERE n.nspname IN ({leads_schema}, {activities_schema}) AND r.rolname IN ({owner_name}, {reader_name})
          LOOP
            EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM %I', granted.nspname, granted.rolname);
          END LOOP;
        END
        $do$
        """)
    )
    # Fails, and says what is in the way, when somebody put objects of his own into the schema. Where the
    # version table lives in it, Alembic still has to write there: env.py drops both afterwards.
    op.execute(
        sql(
            """
        DO $do$
        DECLARE
          versions oid := pg_catalog.to_regclass("""
            + version_table()
            + """);
          other text;
        BEGIN
          SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) INTO other
          FROM pg_catalog.pg_depend AS d
          WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
            AND d.refobjid = {schema_name}::regnamespace AND d.objid IS DISTINCT FROM versions
          LIMIT 1;
          IF other IS NOT NULL THEN
            RAISE EXCEPTION 'cannot drop schema % because other objects depend on it', {schema_name}
              USING ERRCODE = 'dependent_objects_still_exist', DETAIL = other || ' depends on schema ' || {schema_name};
          END IF;
          IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.oid = versions AND c.relnamespace = {schema_name}::regnamespace) THEN
            SET LOCAL ROLE {owner};
            DROP SCHEMA {schema} RESTRICT;
            RESET ROLE;
          END IF;
        END
        $do$
        """
        )
    )


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
