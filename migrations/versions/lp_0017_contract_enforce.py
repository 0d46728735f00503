"""Row-level security on the host's leads, and an audit row for every edit.

Why: from here on the database itself refuses what the decision denies, whoever asks. A lead without
territory stays outside protection, as before. The border is restrictive and TO PUBLIC: whoever adds a
permissive policy later, or reads through a group or a view, meets it. Where the host had row security its
own policies go on deciding, and ours only narrow. The host's owner keeps maintenance access, unless the
table is forced or host_rls = force; with host_rls = off the table is left alone. Auditors may read id
and territory from here on, because row security narrows them to the territories of their role.

Locks on host tables: ACCESS EXCLUSIVE on leads for milliseconds (ENABLE ROW LEVEL SECURITY,
CREATE POLICY); the gate is asked before the lock. The same for the way down.

Undone by: dropping our policies, triggers and the auditors' right to read id and territory, and
restoring the two row security flags that stood before. Nothing else of the table is touched.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0017_contract_enforce"
down_revision = "lp_0016_contract_indexes"
branch_labels = None
depends_on = None
phase = "contract"
locks = {"upgrade": {"leads": "AccessExclusiveLock"}, "downgrade": {"leads": "AccessExclusiveLock"}}


def upgrade() -> None:
    ask_gate()
    create()
    enforce()
    end_transition()


def downgrade() -> None:
    open_again()
    resume_transition()
    drop()


def remake() -> None:
    """What leadprotect apply runs: the same with other settings, in one transaction, so that no moment is open."""
    open_again()
    drop()
    create()
    enforce()


def ask_gate() -> None:
    # Again inside the transaction, and the only gate of a script rendered with --sql.
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        SELECT {schema}.require_open_gate({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[], {lead_tables});
        RESET ROLE
        """)
    )


def create() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_binding()
    create_recorded()
    create_edit_audit()
    create_memory()
    op.execute("RESET ROLE")


def create_binding() -> None:
    # A referential action, a definer function or a rule edits as the owner of the table. Who acts is asked
    # instead of whom the statement runs as: such an edit is decided like his own.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.acts_bound()
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN coalesce((
            SELECT NOT (r.rolsuper OR r.rolbypassrls OR r.rolname = ANY (ARRAY[{exempt_roles}]::name[])
                        OR NOT c.relforcerowsecurity AND pg_has_role(r.oid, c.relowner, 'USAGE'))
            FROM pg_roles AS r, pg_class AS c
            WHERE r.rolname = {schema}.acting_role() AND c.oid = {leads_name}::regclass), true);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.acts_bound() IS
        'Whether row security of the leads binds the acting role: neither maintenance nor exempt';
        REVOKE ALL ON FUNCTION {schema}.acts_bound() FROM PUBLIC
        """)
    )


def create_recorded() -> None:
    # The probe of the audit stays one whatever the statistics of a month say, which may have been analysed while it
    # was empty: in the order of its key, without a sort, nothing but the key serves. It looks at the days that a
    # transaction can have, so at one month. The planner puts its body where it is asked.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.recorded_edit(lead {lead_id_type}, author {user_id_type})
        RETURNS SETOF bigint
        LANGUAGE sql
        STABLE ROWS 1
        BEGIN ATOMIC
          SELECT e.id FROM {schema}.lead_access_audit AS e
          WHERE e.lead_id = recorded_edit.lead AND e.at >= pg_catalog.transaction_timestamp()
            AND e.at < pg_catalog.transaction_timestamp() + interval '1 day'
            AND e.transaction_id = pg_catalog.pg_current_xact_id_if_assigned() AND e.action = 'EDIT' AND e.outcome = 'ALLOW'
            AND e.user_id IS NOT DISTINCT FROM recorded_edit.author
          ORDER BY e.at LIMIT 1;
        END;
        COMMENT ON FUNCTION {schema}.recorded_edit({lead_id_type}, {user_id_type}) IS
        'The row that an edit of the lead by the user has in this transaction; none where it was not edited yet';
        REVOKE ALL ON FUNCTION {schema}.recorded_edit({lead_id_type}, {user_id_type}) FROM PUBLIC
        """)
    )


def create_edit_audit() -> None:
    # Every edit is decided under locks, whatever was asserted or recorded before: the policy decided in the
    # statement's snapshot, which may be older than a transfer for which this row waited. One row per lead,
    # user and transaction: an assertion in the same transaction only spares the second one. A deletion
    # leaves its own, and so does an edit of a lead outside protection, which everybody may. The probe of the audit is pinned to its key, whatever the statistics of a month say.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_edit()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          author {user_id_type};
          remark text;
          reason text;
          basis text;
          here text;
        BEGIN
          -- audit_edits() decides an update, once for the statement; replication applies rows, and fires no trigger of statements
          IF TG_OP = 'UPDATE' AND current_setting('session_replication_role') <> 'replica' THEN
            RETURN NEW;
          END IF;
          author := {schema}.parse_user({declared_user});
          remark := lower(TG_OP) || ' without assertion';
          IF {outside_old} THEN
            reason := 'unprotected';
          ELSIF {schema}.acts_bound() THEN
            IF TG_OP = 'DELETE' THEN
              reason := {schema}.try_edit(OLD.{lead_id}, 'EDIT', remark);
            ELSE
              SELECT d.reason, d.basis INTO reason, basis FROM {schema}.decide_locked(OLD.{lead_id}) AS d;
            END IF;
            IF reason IS NULL OR reason NOT IN ('owner', 'collaborator') THEN
              PERFORM {schema}.deny(OLD.{lead_id}, 'EDIT', reason, remark);
            ELSIF TG_OP = 'DELETE' THEN
              RETURN OLD; -- and it has its row
            END IF;
          ELSE
            reason := {schema}.explain_edit(OLD.{lead_id});
            basis := 'not bound by row security';
            here := {territory_of_old}::text;
            IF reason NOT IN ('owner', 'collaborator') THEN
              reason := 'maintenance';
              PERFORM {schema}.require_not_moving(ARRAY[OLD.{lead_id}]);
            END IF;
          END IF;
          IF TG_OP = 'DELETE' OR NOT EXISTS (SELECT FROM {schema}.recorded_edit(OLD.{lead_id}, author)) THEN
            PERFORM {schema}.write_audit(OLD.{lead_id}, 'EDIT', reason, remark, basis, here);
          END IF;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_edit() IS
        'Trigger of contract: every edit of a lead is decided under locks and leaves its row';
        REVOKE ALL ON FUNCTION {schema}.audit_edit() FROM PUBLIC
        """)
    )
    # The same for all leads of an UPDATE: their rows are locked in the order of their ids, what one owns or shares is
    # decided together, and the rest one by one. The rows are changed already: a denial takes all of it back. Plans are kept:
    # with a list of leads that it knows, the planner would plan every edit of a single lead anew.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_edits()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET plan_cache_mode = force_generic_plan
        AS $body$
        #variable_conflict use_variable
        DECLARE
          author {user_id_type};
          here text := {declared_territory};
          remark text := 'update without assertion';
          leads {lead_id_type}[];
          outside boolean;
          bound boolean;
          own {lead_id_type}[];
          given {lead_id_type}[] := '{}';
          lead {lead_id_type};
          reason text;
          basis text;
        BEGIN
          SELECT coalesce(array_agg(l.{lead_id}::{lead_id_type} ORDER BY l.{lead_id}) FILTER (WHERE NOT {outside_l}), '{}'),
                 count(*) FILTER (WHERE {outside_l}) > 0
          INTO leads, outside FROM edited AS l;
          IF {named} THEN
            -- of whom it is decides follow_leads(); grouped, and sorted below, which stays linear for many
            given := ARRAY(
              SELECT g.{lead_id} FROM (
                SELECT u.{lead_id} FROM (SELECT e.{lead_id}, e.{owner_column_here} AS named FROM edited AS e
                                         UNION ALL SELECT s.{lead_id}, s.{owner_column_here} FROM stepped AS s) AS u
                GROUP BY u.{lead_id}, u.named HAVING count(*) = 1) AS g
              GROUP BY g.{lead_id} HAVING count(*) = 2);
            IF cardinality(given) > 0 AND current_setting('session_replication_role') <> 'replica' THEN
              DECLARE
                l record;
                before record;
                was record;
                place text;
                given_leads {lead_id_type}[] := '{}';
                places text[] := '{}';
                names {user_id_type}[] := '{}';
                touched boolean[] := '{}';
              BEGIN
                FOR l IN
                  SELECT u.* FROM (SELECT e.*, false AS leadprotect_after FROM edited AS e
                                   UNION ALL SELECT s.*, true FROM stepped AS s) AS u
                  ORDER BY u.{lead_id}, u.leadprotect_after
                LOOP
                  IF NOT l.leadprotect_after THEN
                    before := l;
                    place := CASE WHEN NOT {outside_l} THEN {territory_of_l}::text END;
                  ELSIF before.{lead_id} = l.{lead_id} AND place = {territory_of_l}::text
                    AND before.{owner_column_here} IS DISTINCT FROM l.{owner_column_here}
                  THEN
                    was := l;
                    was.leadprotect_after := false;
                    was.{owner_column_here} := before.{owner_column_here};
                    given_leads := given_leads || l.{lead_id}::{lead_id_type};
                    places := places || place;
                    names := names || {owner_in_l};
                    touched := touched || (was OPERATOR(pg_catalog.*<>) before);
                  END IF;
                END LOOP;
                PERFORM {schema}.follow_leads(given_leads, places, names, touched);
              END;
            END IF;
          END IF;
          IF NOT outside AND cardinality(leads) = 1 AND cardinality(given) = 0 THEN
            IF {schema}.edit_own_one(leads[1], remark) THEN
              RETURN NULL;
            END IF;
          END IF;
          author := {schema}.parse_user({declared_user});
          bound := {schema}.acts_bound();
          -- outside protection everybody edits, and maintenance everywhere: what was declared and can't be stored
          -- as it is stays in the note
          IF NOT bound OR outside THEN
            PERFORM {schema}.require_not_moving(leads);
            INSERT INTO {schema}.lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT l.{lead_id}, author, (SELECT {schema}.acting_role()), CASE WHEN NOT {outside_l} THEN {territory_of_l}::text END,
                   'EDIT', 'ALLOW', CASE WHEN {outside_l} THEN 'unprotected' ELSE coalesce(e.reason, 'maintenance') END,
                   (SELECT {schema}.bounded(concat_ws('; ', remark,
                     CASE WHEN author IS NULL AND {declared_user} <> '' THEN format('declared user %L', left({declared_user}, 100)) END,
                     CASE WHEN here <> '' AND NOT EXISTS (SELECT FROM {schema}.territories AS t WHERE t.code = here) THEN
                       format('declared territory %L', left(here, 100)) END))),
                   (SELECT {schema}.bounded({declared_correlation})),
                   CASE WHEN NOT {outside_l} THEN CASE e.reason WHEN 'owner' THEN 'assignment' ELSE 'not bound by row security' END END
            FROM edited AS l
            LEFT JOIN {schema}.editable_among(leads) AS e ON e.lead = l.{lead_id} AND e.reason <> 'unprotected'
            LEFT JOIN LATERAL {schema}.recorded_edit(l.{lead_id}, author) AS r (id) ON true
            WHERE (NOT bound OR {outside_l}) AND r.id IS NULL;
          END IF;
          IF bound AND {named} THEN
            leads := ARRAY(SELECT unnest(leads) EXCEPT SELECT unnest(given) ORDER BY 1);
          END IF;
          IF NOT bound OR cardinality(leads) = 0 THEN
            RETURN NULL;
          END IF;
          own := {schema}.edit_together(leads, remark);
          IF cardinality(own) = cardinality(leads) THEN
            RETURN NULL;
          END IF;
          FOR lead IN SELECT unnest(leads) EXCEPT SELECT unnest(own) ORDER BY 1 LOOP
            SELECT d.reason, d.basis INTO reason, basis FROM {schema}.decide_locked(lead) AS d;
            IF reason NOT IN ('owner', 'collaborator') THEN
              PERFORM {schema}.deny(lead, 'EDIT', reason, remark);
            END IF;
            IF NOT EXISTS (SELECT FROM {schema}.recorded_edit(lead, author)) THEN
              PERFORM {schema}.write_audit(lead, 'EDIT', reason, remark, basis);
            END IF;
          END LOOP;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_edits() IS
        'Trigger of contract: every update of leads is decided under locks, and each leaves its row';
        REVOKE ALL ON FUNCTION {schema}.audit_edits() FROM PUBLIC
        """)
    )
    # TRUNCATE fires no trigger of rows: each lead gets its row.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_truncate()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF {schema}.acts_bound() THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: it would delete leads of every territory', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          PERFORM {schema}.require_not_moving(ARRAY(SELECT a.lead_id FROM {schema}.user_lead_assignments AS a WHERE a.source = 'moving'));
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT l.lead_id, {schema}.parse_user({declared_user}), {schema}.acting_role(),
                 l.territory, 'EDIT', 'ALLOW', 'maintenance', 'truncate without assertion',
                 {schema}.bounded({declared_correlation}), 'not bound by row security'
          FROM {schema}.protected_leads() AS l;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.audit_truncate() IS
        'Trigger of contract: TRUNCATE is refused to whom row security binds; by maintenance it leaves a row for each lead';
        REVOKE ALL ON FUNCTION {schema}.audit_truncate() FROM PUBLIC
        """)
    )


def create_memory() -> None:
    # What is written into the objects here, for everybody who compares it with the settings of today.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.settings_at_contract()
        RETURNS jsonb
        LANGUAGE plpgsql
        IMMUTABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN {at_contract};
        END
        $body$;
        COMMENT ON FUNCTION {schema}.settings_at_contract() IS
        'The settings that contract wrote into what it made; leadprotect apply changes them';
        REVOKE ALL ON FUNCTION {schema}.settings_at_contract() FROM PUBLIC
        """)
    )
    # What downgrade restores.
    op.execute(
        sql("""
        CREATE TABLE {schema}.host_row_security (
          host_table text PRIMARY KEY,
          enabled boolean NOT NULL,
          forced boolean NOT NULL,
          auditor_columns bigint[] NOT NULL,
          enforced boolean NOT NULL
        );
        COMMENT ON TABLE {schema}.host_row_security IS
        'Row security flags of the host''s leads before contract, and what contract lets auditors read there';
        COMMENT ON COLUMN {schema}.host_row_security.host_table IS 'the table of the host';
        COMMENT ON COLUMN {schema}.host_row_security.enabled IS 'whether its row security was enabled before contract';
        COMMENT ON COLUMN {schema}.host_row_security.forced IS 'whether it was forced';
        COMMENT ON COLUMN {schema}.host_row_security.auditor_columns IS 'columns that contract let auditors read, by number: the host may rename one';
        COMMENT ON COLUMN {schema}.host_row_security.enforced IS 'whether contract changed the table: not with host_rls = off';
        ALTER TABLE {schema}.host_row_security ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.host_row_security FORCE ROW LEVEL SECURITY;
        CREATE POLICY lp_inside ON {schema}.host_row_security TO {owner} USING ({inside}) WITH CHECK ({inside});
        INSERT INTO {schema}.host_row_security
        SELECT {leads_name}, relrowsecurity, relforcerowsecurity, ARRAY(
          SELECT a.attnum FROM pg_catalog.pg_attribute AS a
          WHERE {host_rls} <> 'off' AND a.attrelid = c.oid AND a.attname IN ({lead_id_column_name}, {territory_column_names})
            AND NOT EXISTS (
              SELECT FROM pg_catalog.aclexplode(a.attacl) AS g
              WHERE g.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({auditor_name})) AND g.privilege_type = 'SELECT')
          ORDER BY a.attnum), {host_rls} <> 'off'
        FROM pg_catalog.pg_class AS c WHERE c.oid = {leads_name}::regclass
        """)
    )


def enforce() -> None:
    op.execute(
        sql("""
        DO $do$
        DECLARE
          had_row_security boolean := (SELECT c.relrowsecurity FROM pg_catalog.pg_class AS c WHERE c.oid = {leads_name}::regclass);
        BEGIN
          IF {host_rls} = 'off' THEN
            RETURN;
          END IF;
          -- the border: a lead of the territory in context, if the acting role holds it, and a lead
          -- without territory, which is outside protection; what does not depend on the row is asked once
          IF (SELECT a.attnotnull FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = {leads_name}::regclass AND a.attname = {territory_column_name}) THEN
            CREATE POLICY {border_policy} ON {leads} AS RESTRICTIVE
              USING ({inside} OR {territory_of_here} = ANY ((SELECT CASE WHEN current_user = ANY (ARRAY[{unbound}]::name[])
                THEN pg_catalog.array_append({schema}.all_territories(), '') ELSE ARRAY[{schema}.admitted_territory(), ''] END)::text[]));
          ELSE
            -- one comparison for most rows; of the whole the planner knows nothing and takes it for half of them, so
            -- that a territory that the statement names as well does not make few rows of it
            CREATE POLICY {border_policy} ON {leads} AS RESTRICTIVE
              USING ({passing}
                OR coalesce({territory_of_here} = (SELECT {schema}.admitted_territory()) OR {territory_of_here} = '', {territory_of_here} IS NULL));
          END IF;
          -- a table with restrictive policies alone shows nothing; where the host had row security, its
          -- own permissive policies go on deciding
          IF NOT had_row_security THEN
            CREATE POLICY {rows_policy} ON {leads} USING (true) WITH CHECK (true);
          END IF;
          -- the decision itself; a new row is bound by the border and by refuse_move. To raise is the trigger's:
          -- a policy is asked about rows, too, that the statement does not mean. What is no NULL, the planner takes for
          -- nearly all rows, and what it can't answer for half of them: so it hashes what the user owns for a search
          -- that looks at every lead, instead of looking each up
          IF {denied_edit} = 'hide' THEN
            IF {named} THEN
              -- who may give a lead to somebody comes to it; hide_owner_column() sees what he writes
              CREATE POLICY {named_update_policy} ON {leads} AS RESTRICTIVE FOR UPDATE TO {app}
                USING (nullif({outside_here} OR {passing}
                  OR (SELECT pg_catalog.pg_has_role({manager_name}, 'USAGE'))
                  OR NOT EXISTS (
                    SELECT FROM {schema}.user_lead_assignments AS a
                    WHERE a.lead_id = {leads}.{lead_id} AND a.territory = (SELECT {schema}.admitted_territory())
                      AND a.user_id IS NOT NULL)
                  OR CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({lead_id})
                    ELSE EXISTS (
                      SELECT FROM {schema}.user_lead_assignments AS a
                      WHERE a.lead_id = {leads}.{lead_id} AND a.territory = (SELECT {schema}.admitted_territory())
                        AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END, false) IS NOT NULL)
                WITH CHECK (true);
              CREATE TRIGGER {hide_column} BEFORE UPDATE ON {leads}
                FOR EACH ROW WHEN ({by_hand} AND NOT {outside_old}) EXECUTE FUNCTION {schema}.hide_owner_column();
              ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {hide_column};
            ELSE
              CREATE POLICY {update_policy} ON {leads} AS RESTRICTIVE FOR UPDATE TO {app}
                USING (nullif({outside_here} OR {passing}
                  -- who has no rule edits what he owns, and nothing else: hashed or looked up for many leads at once
                  OR CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({lead_id})
                    ELSE EXISTS (
                      SELECT FROM {schema}.user_lead_assignments AS a
                      WHERE a.lead_id = {leads}.{lead_id} AND a.territory = (SELECT {schema}.admitted_territory())
                        AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END, false) IS NOT NULL)
                WITH CHECK (true);
            END IF;
            CREATE POLICY {delete_policy} ON {leads} AS RESTRICTIVE FOR DELETE TO {app}
              USING (nullif({outside_here} OR {passing}
                OR CASE WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead({lead_id})
                  ELSE EXISTS (
                    SELECT FROM {schema}.user_lead_assignments AS a
                    WHERE a.lead_id = {leads}.{lead_id} AND a.territory = (SELECT {schema}.admitted_territory())
                      AND a.user_id = (SELECT {schema}.parse_user({declared_user}))) END, false) IS NOT NULL);
          END IF;
          -- who may not ask for the decision may not edit
          CREATE POLICY {members_update_policy} ON {leads} AS RESTRICTIVE FOR UPDATE
            USING (nullif({outside_here} OR {passing}
              OR (SELECT pg_catalog.pg_has_role({app_name}, 'USAGE')), false) IS NOT NULL)
            WITH CHECK (true);
          CREATE POLICY {members_delete_policy} ON {leads} AS RESTRICTIVE FOR DELETE
            USING (nullif({outside_here} OR {passing}
              OR (SELECT pg_catalog.pg_has_role({app_name}, 'USAGE')), false) IS NOT NULL);
          -- v_lead_protection reads as whoever asks: an auditor sees the territory of his context there
          GRANT SELECT ({lead_id}, {territory_columns}) ON {leads} TO {auditor};
          ALTER TABLE {leads} ENABLE ROW LEVEL SECURITY;
          IF {host_rls} = 'force' THEN
            ALTER TABLE {leads} FORCE ROW LEVEL SECURITY;
          END IF;
          -- ALWAYS: no session_replication_role edits without a row; values are compared, because a
          -- trigger of the host may change what the statement does not name
          CREATE TRIGGER {audit_edit} BEFORE UPDATE OR DELETE ON {leads}
            FOR EACH ROW EXECUTE FUNCTION {schema}.audit_edit();
          IF NOT {named} THEN
            CREATE TRIGGER {audit_edits} AFTER UPDATE ON {leads} REFERENCING OLD TABLE AS edited
              FOR EACH STATEMENT EXECUTE FUNCTION {schema}.audit_edits();
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_edits};
          ELSE
            -- the host's own column and the owner are one from here on; what our functions write there is no edit
            CREATE TRIGGER {audit_stepped} AFTER UPDATE ON {leads} REFERENCING OLD TABLE AS edited NEW TABLE AS stepped
              FOR EACH STATEMENT WHEN {by_hand} EXECUTE FUNCTION {schema}.audit_edits();
            CREATE TRIGGER {follow_new} AFTER INSERT ON {leads}
              FOR EACH ROW WHEN (NOT {outside_new}) EXECUTE FUNCTION {schema}.follow_owner_column();
            CREATE TRIGGER {follow_column} AFTER UPDATE ON {leads}
              FOR EACH ROW WHEN ({by_hand} AND NOT {outside_new}
                AND (NEW.{lead_id} IS DISTINCT FROM OLD.{lead_id} OR {territory_of_new} IS DISTINCT FROM {territory_of_old}
                  OR NEW.{owner_column_here} IS DISTINCT FROM OLD.{owner_column_here}
                    AND pg_catalog.current_setting('session_replication_role') = 'replica'))
              EXECUTE FUNCTION {schema}.follow_owner_column();
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_stepped};
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {follow_new};
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {follow_column};
            CREATE POLICY {step_policy} ON {leads} FOR UPDATE TO {reader}
              USING ((SELECT current_user = {reader_name}::name)) WITH CHECK ((SELECT current_user = {reader_name}::name));
            GRANT UPDATE ({owner_column_here}) ON {leads} TO {reader};
          END IF;
          CREATE TRIGGER {audit_truncate} BEFORE TRUNCATE ON {leads}
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.audit_truncate();
          -- a trigger of rows that sees the old table keeps the leads from becoming a partition or child of another table, through
          -- which neither row security nor triggers of statements would be met: the server refuses that
          CREATE TRIGGER {refuse_move} AFTER UPDATE ON {leads} REFERENCING OLD TABLE AS edited
            FOR EACH ROW WHEN (NOT {outside_old}
              AND ({territory_of_new} IS DISTINCT FROM {territory_of_old} OR NEW.{lead_id} IS DISTINCT FROM OLD.{lead_id}))
            EXECUTE FUNCTION {schema}.refuse_move();
          CREATE TRIGGER {refuse_taken} BEFORE INSERT ON {leads}
            FOR EACH ROW EXECUTE FUNCTION {schema}.refuse_taken();
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_edit};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_truncate};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {refuse_move};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {refuse_taken};
          IF {owner_on_insert} = 'creator' THEN
            CREATE TRIGGER {own_new} AFTER INSERT ON {leads}
              FOR EACH ROW WHEN (NOT {outside_new}) EXECUTE FUNCTION {schema}.own_new_lead();
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {own_new};
          END IF;
        END
        $do$
        """)
    )


def end_transition() -> None:
    # A shadow would note here what is denied already; a trigger is the shadow's by the function that it calls.
    op.execute(
        sql("""
        DROP TRIGGER {note_writes} ON {leads};
        DROP TRIGGER {transition_territory} ON {leads};
        DROP TRIGGER IF EXISTS {own_named} ON {leads};
        DO $do$
        DECLARE
          ours name;
        BEGIN
          FOR ours IN
            SELECT t.tgname FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = {leads_name}::regclass AND p.pronamespace = {schema_name}::regnamespace
              AND pg_catalog.starts_with(p.proname, 'shadow_')
          LOOP
            EXECUTE pg_catalog.format('DROP TRIGGER %I ON {leads}', ours);
          END LOOP;
        END
        $do$
        """)
    )


def open_again() -> None:
    # In one transaction with everything else: there is no moment at which half of it holds. Only what is
    # ours goes: a trigger by the function that it calls, a policy where contract made some.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          ours name;
          readable name;
          before_contract {schema}.host_row_security;
        BEGIN
          EXECUTE 'SET LOCAL ROLE {owner}';
          SELECT * INTO before_contract FROM {schema}.host_row_security WHERE host_table = {leads_name};
          EXECUTE 'RESET ROLE';
          IF NOT before_contract.enforced THEN
            RETURN;
          END IF;
          FOR ours IN
            SELECT polname FROM pg_catalog.pg_policy
            WHERE polrelid = {leads_name}::regclass AND polname = ANY (ARRAY[{host_policies}]::name[])
          LOOP
            EXECUTE pg_catalog.format('DROP POLICY %I ON {leads}', ours);
          END LOOP;
          FOR ours IN
            SELECT t.tgname FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = {leads_name}::regclass AND p.pronamespace = {schema_name}::regnamespace
              AND p.proname IN ('audit_edit', 'audit_edits', 'audit_truncate', 'refuse_move', 'refuse_taken', 'own_new_lead',
                'follow_owner_column', 'hide_owner_column')
          LOOP
            EXECUTE pg_catalog.format('DROP TRIGGER %I ON {leads}', ours);
          END LOOP;
          FOR readable IN
            SELECT a.attname FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = {leads_name}::regclass AND a.attnum = ANY (before_contract.auditor_columns)
              AND NOT a.attisdropped
          LOOP
            EXECUTE pg_catalog.format('REVOKE SELECT (%I) ON {leads} FROM {auditor}', readable);
          END LOOP;
          FOR readable IN
            SELECT a.attname FROM pg_catalog.pg_attribute AS a, pg_catalog.aclexplode(a.attacl) AS g
            WHERE a.attrelid = {leads_name}::regclass AND g.privilege_type = 'UPDATE'
              AND g.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({reader_name})) AND NOT a.attisdropped
          LOOP
            EXECUTE pg_catalog.format('REVOKE UPDATE (%I) ON {leads} FROM {reader}', readable);
          END LOOP;
          IF NOT before_contract.enabled THEN
            ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY;
          END IF;
          IF NOT before_contract.forced THEN
            ALTER TABLE {leads} NO FORCE ROW LEVEL SECURITY;
          END IF;
        END
        $do$
        """)
    )


def drop() -> None:
    op.execute(
        sql("""
        SET LOCAL ROLE {owner};
        DROP FUNCTION
          {schema}.audit_edit(), {schema}.audit_edits(), {schema}.recorded_edit({lead_id_type}, {user_id_type}),
          {schema}.audit_truncate(), {schema}.acts_bound(), {schema}.settings_at_contract();
        DROP TABLE {schema}.host_row_security;
        RESET ROLE
        """)
    )


def resume_transition() -> None:
    op.execute(
        sql("""
        CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {leads}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write();
        CREATE TRIGGER {transition_territory} AFTER UPDATE ON {leads}
        FOR EACH ROW WHEN ({territory_of_old} IS DISTINCT FROM {territory_of_new})
        EXECUTE FUNCTION {schema}.own_moved_lead();
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {note_writes};
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {transition_territory};
        DO $do$
        BEGIN
          IF {named} THEN
            CREATE TRIGGER {own_named} AFTER INSERT OR UPDATE ON {leads}
              FOR EACH ROW EXECUTE FUNCTION {schema}.own_named_lead();
            ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {own_named};
          END IF;
        END
        $do$
        """)
    )
