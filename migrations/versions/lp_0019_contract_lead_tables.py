"""Row-level security on the host's tables that hold data of leads.

Why: who may not see a lead may not read its contacts and notes either. A row is seen by whom its lead is
seen by, and changed by whom may edit it, asked of the lead in one place: the policies read the leads as
whoever asks, so the border on the leads, and row security that the host had there, hold for their rows. A row
without a lead, or of a lead without territory, is outside protection, as leads are.

Locks on host tables: none beyond ACCESS SHARE on leads and activities. On each of lead_tables ACCESS
EXCLUSIVE for milliseconds (ENABLE ROW LEVEL SECURITY, CREATE POLICY); the gate is asked before the first
lock. The same for the way down.

Undone by: dropping our policies, triggers and our reader's right to read the lead's id, and restoring the
two row security flags that stood before. Nothing else of a table is touched.
"""

from alembic import op

from leadprotect.settings import LeadTable, lead_tables, sql

revision = "lp_0019_contract_lead_tables"
down_revision = "lp_0018_contract_triggers"
branch_labels = None
depends_on = None
phase = "contract"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}
# the same on each table that the setting names
child_locks = {"upgrade": "AccessExclusiveLock", "downgrade": "AccessExclusiveLock"}


def upgrade() -> None:
    ask_gate()
    create()
    enforce()
    end_shadow()


def downgrade() -> None:
    open_again()
    drop()


def remake() -> None:
    """What leadprotect apply runs: the same with other settings, in one transaction, so that no moment is open."""
    open_again()
    drop()
    create()
    enforce()


def create() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_binding()
    create_edit_through()
    create_edit_triggers()
    create_memory()
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_reading()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    create_truncate_trigger()
    op.execute("RESET ROLE")


def enforce() -> None:
    for child in lead_tables():
        remember(child)
        create_policies(child)
        create_triggers(child)


def drop() -> None:
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        DROP FUNCTION
          {schema}.child_truncate(), {schema}.child_leads(regclass, name), {schema}.child_edits(), {schema}.child_move(),
          {schema}.child_edit(), {schema}.edit_through({lead_id_type}, boolean, text), {schema}.acts_bound_on(regclass);
        DROP TABLE {schema}.lead_table_row_security;
        RESET ROLE
        """)
    )


def ask_gate() -> None:
    # Again inside the transaction, and the only gate of a script rendered with --sql.
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        SELECT {schema}.require_open_gate({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[], {lead_tables});
        RESET ROLE
        """)
    )


def create_binding() -> None:
    # Whom row security of the leads does not bind is no service on their tables either; besides him only who owns one.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.acts_bound_on(target regclass)
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN {schema}.acts_bound() AND NOT EXISTS (
            SELECT FROM pg_class AS c, pg_roles AS r
            WHERE c.oid = target AND r.rolname = {schema}.acting_role()
              AND NOT c.relforcerowsecurity AND pg_has_role(r.oid, c.relowner, 'USAGE'));
        END
        $body$;
        COMMENT ON FUNCTION {schema}.acts_bound_on(regclass) IS
        'Whether row security of a table of lead_tables binds the acting role: neither maintenance nor exempt';
        REVOKE ALL ON FUNCTION {schema}.acts_bound_on(regclass) FROM PUBLIC
        """)
    )


def create_edit_through() -> None:
    # An edit of a row is an edit of its lead: decided under locks, with one row for lead, user and transaction.
    # A lead that is gone took its rows along, and its deletion was decided; the rows of no lead that anybody
    # knows are seen by nobody whom row security binds.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.edit_through(lead {lead_id_type}, bound boolean, remark text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
          here text;
          reason text;
          basis text;
        BEGIN
          SELECT l.territory INTO here FROM {schema}.host_lead(lead) AS l (territory);
          IF NOT FOUND THEN
            RETURN;
          ELSIF here IS NULL THEN
            reason := 'unprotected';
          ELSIF bound THEN
            SELECT d.reason, d.basis INTO reason, basis FROM {schema}.decide_locked(lead) AS d;
            IF reason NOT IN ('owner', 'collaborator') THEN
              PERFORM {schema}.deny(lead, 'EDIT', reason, remark);
            END IF;
            here := NULL;
          ELSE
            reason := {schema}.explain_edit(lead);
            basis := 'not bound by row security';
            IF reason NOT IN ('owner', 'collaborator') THEN
              reason := 'maintenance';
              PERFORM {schema}.require_not_moving(ARRAY[lead]);
            END IF;
          END IF;
          IF NOT EXISTS (SELECT FROM {schema}.recorded_edit(lead, author)) THEN
            PERFORM {schema}.write_audit(lead, 'EDIT', reason, remark, basis, here);
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.edit_through({lead_id_type}, boolean, text) IS
        'An edit of a row of lead_tables is one of its lead: decided under locks, denied with LP403, recorded once a transaction';
        REVOKE ALL ON FUNCTION {schema}.edit_through({lead_id_type}, boolean, text) FROM PUBLIC
        """)
    )


def create_edit_triggers() -> None:
    # The column is the trigger's argument, so that one function serves every table. A statement decides each lead once,
    # whatever its rows belonged to and belong to after every trigger of the host: the rows are changed already, and a
    # denial takes all of it back. Replication applies rows, and fires no trigger of statements: there each row decides.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.child_edit()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          lead {lead_id_type};
        BEGIN
          EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO lead USING OLD;
          PERFORM {schema}.edit_through(lead, {schema}.acts_bound_on(TG_RELID), format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass));
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.child_edit() IS
        'Trigger of contract, where replication applies rows: who changes or deletes one edits the lead that it belongs to';
        REVOKE ALL ON FUNCTION {schema}.child_edit() FROM PUBLIC;
        CREATE FUNCTION {schema}.child_move()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          lead {lead_id_type};
          before {lead_id_type};
          bound boolean := {schema}.acts_bound_on(TG_RELID);
        BEGIN
          EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO lead USING NEW;
          IF TG_OP = 'UPDATE' THEN
            EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO before USING OLD;
            -- out of protection it goes by maintenance only; whose the row of a lead that is gone was, nobody can tell
            IF before IS NOT NULL AND bound
              AND NOT EXISTS (SELECT FROM {schema}.host_lead(before) AS l (territory) WHERE l.territory IS NULL)
              AND NOT EXISTS (SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory IS NOT NULL)
            THEN
              RAISE EXCEPTION 'a row of % can be taken from its lead by maintenance only', TG_RELID::regclass
                USING ERRCODE = 'insufficient_privilege';
            END IF;
          END IF;
          IF current_setting('session_replication_role') = 'replica' THEN
            PERFORM {schema}.edit_through(lead, bound, format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass));
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.child_move() IS
        'Trigger of contract: a row of lead_tables is taken from its lead by maintenance only; where replication applies rows, a new one edits its lead';
        REVOKE ALL ON FUNCTION {schema}.child_move() FROM PUBLIC;
        CREATE FUNCTION {schema}.child_edits()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET plan_cache_mode = force_generic_plan
        AS $body$
        DECLARE
          bound boolean;
          remark text := format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass);
          rows text[] := ARRAY['SELECT %1$I FROM edited', 'SELECT %1$I FROM written'];
          leads {lead_id_type}[];
          own {lead_id_type}[] := '{}';
          lead {lead_id_type};
        BEGIN
          -- a statement that changes nothing is not planned for
          IF TG_OP = 'INSERT' THEN
            PERFORM FROM written LIMIT 1;
          ELSE
            PERFORM FROM edited LIMIT 1;
          END IF;
          IF FOUND THEN
            EXECUTE format(
              'SELECT array_agg(DISTINCT u.lead::{lead_id_type}) FROM ('
              || CASE TG_OP WHEN 'DELETE' THEN rows[1] WHEN 'INSERT' THEN rows[2] ELSE concat_ws(' UNION ALL ', VARIADIC rows) END
              || ') AS u (lead) WHERE u.lead IS NOT NULL', TG_ARGV[0])
            INTO leads;
          END IF;
          IF leads IS NULL THEN
            RETURN NULL;
          ELSIF cardinality(leads) = 1 THEN
            IF {schema}.edit_own_one(leads[1], remark) THEN
              RETURN NULL;
            END IF;
          END IF;
          bound := {schema}.acts_bound_on(TG_RELID);
          IF bound THEN
            own := {schema}.edit_together(leads, remark);
          END IF;
          IF cardinality(own) < cardinality(leads) THEN
            FOR lead IN SELECT unnest(leads) EXCEPT SELECT unnest(own) ORDER BY 1 LOOP
              PERFORM {schema}.edit_through(lead, bound, remark);
            END LOOP;
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.child_edits() IS
        'Trigger of contract: who changes, deletes or adds rows of lead_tables edits each of their leads, decided and recorded once';
        REVOKE ALL ON FUNCTION {schema}.child_edits() FROM PUBLIC
        """)
    )


def create_memory() -> None:
    # What downgrade restores.
    op.execute(
        sql("""
        CREATE TABLE {schema}.lead_table_row_security (
          host_table text PRIMARY KEY,
          enabled boolean NOT NULL,
          forced boolean NOT NULL,
          enforced boolean NOT NULL
        );
        COMMENT ON TABLE {schema}.lead_table_row_security IS 'Row security flags of each of lead_tables before contract';
        COMMENT ON COLUMN {schema}.lead_table_row_security.host_table IS 'the table of the host';
        COMMENT ON COLUMN {schema}.lead_table_row_security.enabled IS 'whether its row security was enabled before contract';
        COMMENT ON COLUMN {schema}.lead_table_row_security.forced IS 'whether it was forced';
        COMMENT ON COLUMN {schema}.lead_table_row_security.enforced IS 'whether contract changed the table: not with host_rls = off';
        ALTER TABLE {schema}.lead_table_row_security ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.lead_table_row_security FORCE ROW LEVEL SECURITY;
        CREATE POLICY lp_inside ON {schema}.lead_table_row_security TO {owner} USING ({inside}) WITH CHECK ({inside})
        """)
    )


def create_reading() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.child_leads(target regclass, lead_column name)
        RETURNS SETOF {lead_id_type}
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          RETURN QUERY EXECUTE format('SELECT DISTINCT c.%I::{lead_id_type} FROM %s AS c', lead_column, target);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.child_leads(regclass, name) IS 'The leads that a table of lead_tables holds rows of';
        REVOKE ALL ON FUNCTION {schema}.child_leads(regclass, name) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.child_leads(regclass, name) TO {owner}
        """)
    )


def create_truncate_trigger() -> None:
    # TRUNCATE fires no trigger of rows: each lead gets its row. Row security of the host may hide some from us,
    # and what can't be recorded is not done.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.child_truncate()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF {schema}.acts_bound_on(TG_RELID) THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: it would delete rows of leads of every territory', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege';
          ELSIF (SELECT h.enabled FROM {schema}.lead_table_row_security AS h WHERE h.host_table = format('"%s"."%s"', TG_TABLE_SCHEMA, TG_TABLE_NAME)) THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: its row security hides rows from leadprotect, which records the leads', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege', HINT = 'DELETE FROM it instead.';
          END IF;
          PERFORM {schema}.require_not_moving(ARRAY(SELECT a.lead_id FROM {schema}.user_lead_assignments AS a WHERE a.source = 'moving'));
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT l.lead_id, {schema}.parse_user({declared_user}), {schema}.acting_role(),
                 l.territory, 'EDIT', 'ALLOW', 'maintenance', format('truncate of %s without assertion', TG_RELID::regclass),
                 {schema}.bounded({declared_correlation}), 'not bound by row security'
          FROM {schema}.protected_leads() AS l
          JOIN {schema}.child_leads(TG_RELID, TG_ARGV[0]::name) AS c (lead) ON c.lead = l.lead_id;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.child_truncate() IS
        'Trigger of contract: TRUNCATE of lead_tables is refused to whom row security binds; by maintenance it leaves a row for each lead';
        REVOKE ALL ON FUNCTION {schema}.child_truncate() FROM PUBLIC
        """)
    )


def remember(child: LeadTable) -> None:
    # What downgrade restores. Our reader records by it whose rows a TRUNCATE took.
    op.execute(
        sql(
            """
        SET LOCAL ROLE {owner};
        INSERT INTO {schema}.lead_table_row_security
        SELECT {child_name}, c.relrowsecurity, c.relforcerowsecurity, {host_rls} <> 'off'
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = {child_schema} AND c.relname = {child_relation};
        RESET ROLE;
        DO $do$
        BEGIN
          IF {host_rls} <> 'off' THEN
            GRANT SELECT ({child_lead}) ON {child} TO {reader};
            IF NOT pg_catalog.has_schema_privilege({reader_name}, {child_schema}, 'USAGE') THEN
              EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO {reader}', {child_schema});
            END IF;
          END IF;
        END
        $do$
        """,
            child,
        )
    )


def create_policies(child: LeadTable) -> None:
    op.execute(
        sql(
            """
        DO $do$
        BEGIN
          IF {host_rls} = 'off' THEN
            RETURN;
          END IF;
          -- the border is that of the leads, read as whoever asks: the planner hashes them once or looks up one. Who is
          -- exempt sees every lead; asked last, it is asked for rows of no lead alone
          CREATE POLICY {child_border_policy} ON {child} AS RESTRICTIVE
            USING ({child_lead} IS NULL OR EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = {child}.{child_lead})
              OR {passing});
          -- a table with restrictive policies alone shows nothing; where the host had row security, its
          -- own permissive policies go on deciding
          IF NOT (SELECT c.relrowsecurity FROM pg_catalog.pg_class AS c WHERE c.oid = {child_name}::regclass) THEN
            CREATE POLICY {child_rows_policy} ON {child} USING (true) WITH CHECK (true);
          END IF;
          -- a new row needs the right to edit its lead, but where rows are appended by everybody who sees it. Who has no
          -- rule edits rows of what he owns: hashed or looked up for many at once; that the lead is there, and in this
          -- territory, is the border's to say
          IF NOT {child_append} THEN
            CREATE POLICY {child_insert_policy} ON {child} AS RESTRICTIVE FOR INSERT
              WITH CHECK ({passing} OR {child_lead} IS NULL
                OR (SELECT pg_catalog.pg_has_role({app_name}, 'USAGE'))
                  AND CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({child_lead})
                    ELSE EXISTS (
                      SELECT FROM {schema}.user_lead_assignments AS a
                      WHERE a.lead_id = {child}.{child_lead} AND a.territory = (SELECT {schema}.admitted_territory())
                        AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END
                OR EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = {child}.{child_lead} AND {outside_l}));
          END IF;
          -- the old row and the new one: to move a row needs both leads. As on the leads (lp_0017) it is taken for nearly all
          -- rows, so that what is changed is guessed by the border alone
          CREATE POLICY {child_update_policy} ON {child} AS RESTRICTIVE FOR UPDATE
            USING (nullif({passing} OR {child_lead} IS NULL
              OR (SELECT pg_catalog.pg_has_role({app_name}, 'USAGE'))
                AND CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({child_lead})
                  ELSE EXISTS (
                    SELECT FROM {schema}.user_lead_assignments AS a
                    WHERE a.lead_id = {child}.{child_lead} AND a.territory = (SELECT {schema}.admitted_territory())
                      AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END
              OR EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = {child}.{child_lead} AND {outside_l}), false) IS NOT NULL);
          CREATE POLICY {child_delete_policy} ON {child} AS RESTRICTIVE FOR DELETE
            USING (nullif({passing} OR {child_lead} IS NULL
              OR (SELECT pg_catalog.pg_has_role({app_name}, 'USAGE'))
                AND CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({child_lead})
                  ELSE EXISTS (
                    SELECT FROM {schema}.user_lead_assignments AS a
                    WHERE a.lead_id = {child}.{child_lead} AND a.territory = (SELECT {schema}.admitted_territory())
                      AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END
              OR EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = {child}.{child_lead} AND {outside_l}), false) IS NOT NULL);
          ALTER TABLE {child} ENABLE ROW LEVEL SECURITY;
          IF {host_rls} = 'force' THEN
            ALTER TABLE {child} FORCE ROW LEVEL SECURITY;
          END IF;
        END
        $do$
        """,
            child,
        )
    )


def create_triggers(child: LeadTable) -> None:
    # ALWAYS: no session_replication_role edits without a row. What everybody of the territory may append is no
    # edit of the lead, and leaves no row.
    op.execute(
        sql(
            """
        DO $do$
        BEGIN
          IF {host_rls} = 'off' THEN
            RETURN;
          END IF;
          CREATE TRIGGER {child_edit} BEFORE UPDATE OR DELETE ON {child}
            FOR EACH ROW WHEN (OLD.{child_lead} IS NOT NULL AND pg_catalog.current_setting('session_replication_role') = 'replica')
            EXECUTE FUNCTION {schema}.child_edit({child_lead_name});
          -- by its old table, too, no partition or child of another table can be made of this one (lp_0017)
          CREATE TRIGGER {child_move} AFTER UPDATE ON {child} REFERENCING OLD TABLE AS edited
            FOR EACH ROW WHEN (NEW.{child_lead} IS DISTINCT FROM OLD.{child_lead})
            EXECUTE FUNCTION {schema}.child_move({child_lead_name});
          CREATE TRIGGER {child_edits} AFTER UPDATE ON {child} REFERENCING OLD TABLE AS edited NEW TABLE AS written
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.child_edits({child_lead_name});
          CREATE TRIGGER {child_deletes} AFTER DELETE ON {child} REFERENCING OLD TABLE AS edited
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.child_edits({child_lead_name});
          CREATE TRIGGER {child_truncate} BEFORE TRUNCATE ON {child}
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.child_truncate({child_lead_name});
          ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_edit};
          ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_move};
          ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_edits};
          ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_deletes};
          ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_truncate};
          IF NOT {child_append} THEN
            CREATE TRIGGER {child_insert} AFTER INSERT ON {child}
              FOR EACH ROW WHEN (NEW.{child_lead} IS NOT NULL AND pg_catalog.current_setting('session_replication_role') = 'replica')
              EXECUTE FUNCTION {schema}.child_move({child_lead_name});
            CREATE TRIGGER {child_inserts} AFTER INSERT ON {child} REFERENCING NEW TABLE AS written
              FOR EACH STATEMENT EXECUTE FUNCTION {schema}.child_edits({child_lead_name});
            ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_insert};
            ALTER TABLE {child} ENABLE ALWAYS TRIGGER {child_inserts};
          END IF;
        END
        $do$
        """,
            child,
        )
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
        $do$;
        SET LOCAL ROLE {owner};
        UPDATE {schema}.shadow_runs SET ended_at = pg_catalog.clock_timestamp() WHERE ended_at IS NULL;
        RESET ROLE
        """)
    )


def open_again() -> None:
    # What contract remembers is undone, whatever the settings say now; a table that the host has dropped took
    # ours along. Only what is ours goes: a trigger by the function that it calls, a policy where contract made some.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          ours name;
          before_contract {schema}.lead_table_row_security;
          children {schema}.lead_table_row_security[];
          home name;
        BEGIN
          EXECUTE 'SET LOCAL ROLE {owner}';
          children := ARRAY(SELECT h FROM {schema}.lead_table_row_security AS h ORDER BY h.host_table);
          EXECUTE 'RESET ROLE';
          FOREACH before_contract IN ARRAY children LOOP
            CONTINUE WHEN NOT before_contract.enforced OR pg_catalog.to_regclass(before_contract.host_table) IS NULL;
            FOR ours IN
              SELECT polname FROM pg_catalog.pg_policy
              WHERE polrelid = before_contract.host_table::regclass AND polname = ANY (ARRAY[{child_policies}]::name[])
            LOOP
              EXECUTE pg_catalog.format('DROP POLICY %I ON %s', ours, before_contract.host_table);
            END LOOP;
            FOR ours IN
              SELECT t.tgname FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
              WHERE t.tgrelid = before_contract.host_table::regclass AND p.pronamespace = {schema_name}::regnamespace
                AND p.proname IN ('child_edit', 'child_edits', 'child_move', 'child_truncate')
            LOOP
              EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', ours, before_contract.host_table);
            END LOOP;
            IF NOT before_contract.enabled THEN
              EXECUTE pg_catalog.format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', before_contract.host_table);
            END IF;
            IF NOT before_contract.forced THEN
              EXECUTE pg_catalog.format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', before_contract.host_table);
            END IF;
            FOR ours IN
              SELECT a.attname FROM pg_catalog.pg_attribute AS a CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS acl
              WHERE a.attrelid = before_contract.host_table::regclass AND acl.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({reader_name}))
                AND NOT EXISTS (
                  SELECT FROM pg_catalog.unnest(ARRAY[{host_names}]) AS read (name)
                  WHERE pg_catalog.to_regclass(read.name) = a.attrelid)
            LOOP
              EXECUTE pg_catalog.format('REVOKE SELECT (%I) ON %s FROM {reader}', ours, before_contract.host_table);
            END LOOP;
            -- the schemas of leads and activities stay open to our reader until the base
            FOR home IN
              SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
              CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS acl
              WHERE c.oid = before_contract.host_table::regclass AND acl.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({reader_name}))
                AND n.nspname <> ALL (ARRAY[{host_schemas}]::name[])
            LOOP
              EXECUTE pg_catalog.format('REVOKE USAGE ON SCHEMA %I FROM {reader}', home);
            END LOOP;
          END LOOP;
        END
        $do$
        """)
    )
