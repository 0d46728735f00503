"""Row-level security on the host's leads, and an audit row for every edit.

Why: from here on the database itself refuses what the decision denies, whoever asks. A lead without
territory stays outside protection, as before. The host's owner keeps maintenance access, unless
host_rls = force; with host_rls = off the table is left alone. Auditors may read id and territory from
here on, because row security narrows them to the territories of their login.

Locks on host tables: ACCESS EXCLUSIVE on leads for milliseconds (ENABLE ROW LEVEL SECURITY,
CREATE POLICY); the gate is asked before the lock. The same for the way down.

Undone by: dropping our policies, triggers and the auditors' right to read id and territory, and
restoring the two row security flags that stood before. Nothing else of the table is touched.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0008_contract_enforce"
down_revision = "lp_0007_contract_indexes"
branch_labels = None
depends_on = None
phase = "contract"
locks = {"upgrade": {"leads": "AccessExclusiveLock"}, "downgrade": {"leads": "AccessExclusiveLock"}}


def upgrade() -> None:
    ask_gate()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_edit_audit()
    create_refusals()
    create_memory()
    op.execute("RESET ROLE")
    enforce()
    op.execute(sql("DROP TRIGGER {note_writes} ON {leads}"))
    op.execute(sql("DROP TRIGGER {transition_territory} ON {leads}"))


def downgrade() -> None:
    open_again()
    op.execute(
        sql("""
        CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {leads}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write()
        """)
    )
    op.execute(
        sql("""
        CREATE TRIGGER {transition_territory} AFTER UPDATE OF {territory} ON {leads}
        FOR EACH ROW WHEN (OLD.{territory} IS DISTINCT FROM NEW.{territory})
        EXECUTE FUNCTION {schema}.own_moved_lead()
        """)
    )
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP FUNCTION {schema}.audit_edit()"))
    op.execute(sql("DROP FUNCTION {schema}.audit_truncate()"))
    op.execute(sql("DROP FUNCTION {schema}.refuse_move()"))
    op.execute(sql("DROP FUNCTION {schema}.refuse_truncate()"))
    op.execute(sql("DROP TABLE {schema}.host_row_security"))
    op.execute("RESET ROLE")


def ask_gate() -> None:
    # Again inside the transaction, and the only gate of a script rendered with --sql.
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DO $do$
        DECLARE
          closed text;
        BEGIN
          SELECT pg_catalog.string_agg(pg_catalog.format('%s (%s)', g.detail, g.remedy), '; ') INTO closed
          FROM {schema}.gate_conditions({observation_window}, {host_rls}, ARRAY[{exempt_roles}]::name[]) AS g
          WHERE g.met IS NOT TRUE;
          IF closed IS NOT NULL THEN
            RAISE EXCEPTION 'the gate of contract is closed: %', closed
              USING ERRCODE = 'LP409', HINT = 'leadprotect status shows what to run.';
          END IF;
        END
        $do$
        """)
    )
    op.execute("RESET ROLE")


def create_edit_audit() -> None:
    # One row per lead, user and transaction: an assertion in the same transaction is the row already,
    # unless its savepoint was rolled back. Who did not assert is asked now, under the locks that an
    # assertion takes: the policy decided in the statement's snapshot, which may be older than a
    # transfer for which this row waited. Whom row security does not bind edits as maintenance.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.audit_edit()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          remark text := lower(TG_OP) || ' without assertion';
          decision text;
        BEGIN
          IF NOT EXISTS (
            SELECT FROM {schema}.lead_access_audit AS e
            WHERE e.lead_id = OLD.{lead_id} AND e.at >= transaction_timestamp()
              AND e.transaction_id = pg_current_xact_id() AND e.action = 'EDIT' AND e.outcome = 'ALLOW'
              AND e.user_id IS NOT DISTINCT FROM author)
          THEN
            IF TG_ARGV[0] = 'bound' THEN
              decision := {schema}.allow_edit(OLD.{lead_id}, 'EDIT', remark);
              IF decision NOT IN ('owner', 'collaborator') THEN
                PERFORM {schema}.deny(OLD.{lead_id}, 'EDIT', decision, remark);
              END IF;
            ELSE
              decision := {schema}.explain_edit(OLD.{lead_id});
              INSERT INTO {schema}.lead_access_audit
                (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
              VALUES (
                OLD.{lead_id}, author,
                coalesce(nullif(current_setting('role'), 'none'), session_user),
                OLD.{territory}, 'EDIT', 'ALLOW',
                CASE WHEN decision IN ('owner', 'collaborator') THEN decision ELSE 'maintenance' END, remark,
                nullif(current_setting({correlation_guc}, true), ''));
            END IF;
          END IF;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_edit() FROM PUBLIC"))
    # TRUNCATE fires no trigger of rows: each lead gets its row, and a new one with its id no old owner.
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
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
          SELECT l.{lead_id}, {schema}.parse_user(current_setting({user_guc}, true)),
                 coalesce(nullif(current_setting('role'), 'none'), session_user),
                 l.{territory}, 'EDIT', 'ALLOW', 'maintenance', 'truncate without assertion',
                 nullif(current_setting({correlation_guc}, true), '')
          FROM {leads} AS l WHERE l.{territory} IS NOT NULL;
          DELETE FROM {schema}.user_lead_assignments;
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.audit_truncate() FROM PUBLIC"))


def create_refusals() -> None:
    # Policies see the old row or the new one, never both: a lead can't be moved out of protection
    # (territory NULL) or given another id. Row security does not bind TRUNCATE at all.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.refuse_move()
        RETURNS trigger
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RAISE EXCEPTION 'id and territory of a protected lead can be changed by maintenance only'
            USING ERRCODE = 'insufficient_privilege';
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.refuse_truncate()
        RETURNS trigger
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RAISE EXCEPTION 'TRUNCATE on % refused: it would delete leads of every territory', TG_RELID::regclass
            USING ERRCODE = 'insufficient_privilege';
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.refuse_move() FROM PUBLIC"))
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.refuse_truncate() FROM PUBLIC"))


def create_memory() -> None:
    # What downgrade restores.
    op.execute(
        sql("""
        CREATE TABLE {schema}.host_row_security (
          host_table text PRIMARY KEY,
          enabled boolean NOT NULL,
          forced boolean NOT NULL,
          auditor_columns name[] NOT NULL
        )
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.host_row_security')"))
    op.execute(
        sql("""
        INSERT INTO {schema}.host_row_security
        SELECT {leads_name}, relrowsecurity, relforcerowsecurity, ARRAY(
          SELECT a.attname FROM pg_catalog.pg_attribute AS a
          WHERE {host_rls} <> 'off' AND a.attrelid = c.oid AND a.attname IN ({lead_id_column_name}, {territory_column_name})
            AND NOT EXISTS (
              SELECT FROM pg_catalog.aclexplode(a.attacl) AS g
              WHERE g.grantee = pg_catalog.to_regrole(pg_catalog.quote_ident({auditor_name})) AND g.privilege_type = 'SELECT')
          ORDER BY a.attname)
        FROM pg_catalog.pg_class AS c WHERE c.oid = {leads_name}::regclass
        """)
    )
    op.execute(
        sql(
            "COMMENT ON TABLE {schema}.host_row_security IS "
            "'Row security flags of the host''s leads before contract, and what contract lets auditors read there'"
        )
    )


def enforce() -> None:
    op.execute(
        sql("""
        DO $do$
        DECLARE
          prefix text := {role_prefix};
          inside text := pg_catalog.format('pg_catalog.current_setting(%L, true)', {territory_guc});
          borders text;
          known record;
          exempt text;
        BEGIN
          IF {host_rls} = 'off' THEN
            RETURN;
          END IF;
          SELECT pg_catalog.string_agg(pg_catalog.quote_ident(prefix || pg_catalog.lower(code)), ', ' ORDER BY code)
          INTO borders FROM {schema}.territories;
          -- the definer functions read every lead
          EXECUTE pg_catalog.format('CREATE POLICY %I ON {leads} FOR SELECT TO {owner} USING (true)', prefix || 'owner');
          -- a lead without territory is outside protection: visible and editable as before
          EXECUTE pg_catalog.format('CREATE POLICY %I ON {leads} USING ({territory} IS NULL)', prefix || 'unprotected');
          -- two comparisons for a row and not four: what does not depend on the row is asked once
          FOR known IN SELECT code FROM {schema}.territories ORDER BY code LOOP
            EXECUTE pg_catalog.format(
              'CREATE POLICY %I ON {leads} TO %I USING ({territory} = %L AND (SELECT %s = %L))',
              prefix || 'territory_' || pg_catalog.lower(known.code), prefix || pg_catalog.lower(known.code),
              known.code, inside, known.code);
          END LOOP;
          -- the floor holds whatever permissive policy somebody adds later, and asks the login again;
          -- without a context it compares with '', so only a lead without territory passes
          EXECUTE pg_catalog.format(
            'CREATE POLICY %I ON {leads} AS RESTRICTIVE TO {app}, {auditor}
             USING (({territory} = (SELECT CASE WHEN {schema}.is_member(%s) THEN %s ELSE '''' END)) IS NOT FALSE)',
            prefix || 'floor', inside, inside);
          -- the decision itself; a new row is bound by the policies above
          EXECUTE pg_catalog.format(
            'CREATE POLICY %I ON {leads} AS RESTRICTIVE FOR UPDATE TO {app}, %s
             USING ({territory} IS NULL OR {schema}.can_edit_lead({lead_id})) WITH CHECK (true)', prefix || 'update', borders);
          EXECUTE pg_catalog.format(
            'CREATE POLICY %I ON {leads} AS RESTRICTIVE FOR DELETE TO {app}, %s
             USING ({territory} IS NULL OR {schema}.can_edit_lead({lead_id}))', prefix || 'delete', borders);
          SELECT pg_catalog.string_agg(pg_catalog.quote_ident(r), ', ') INTO exempt FROM unnest(ARRAY[{exempt_roles}]::name[]) AS r;
          IF exempt IS NOT NULL THEN
            EXECUTE pg_catalog.format('CREATE POLICY %I ON {leads} TO %s USING (true)', prefix || 'exempt', exempt);
          END IF;
          -- v_lead_protection reads as whoever asks: an auditor sees the territories of his login there, by the policies above
          GRANT SELECT ({lead_id}, {territory}) ON {leads} TO {auditor};
          ALTER TABLE {leads} ENABLE ROW LEVEL SECURITY;
          IF {host_rls} = 'force' THEN
            ALTER TABLE {leads} FORCE ROW LEVEL SECURITY;
          END IF;
          -- ALWAYS: no session_replication_role edits without a row
          CREATE TRIGGER {audit_edit} BEFORE UPDATE OR DELETE ON {leads}
            FOR EACH ROW WHEN (OLD.{territory} IS NOT NULL
              AND pg_catalog.row_security_active({leads_name}::regclass::oid)
              AND current_user <> ALL (ARRAY[{exempt_roles}]::name[]))
            EXECUTE FUNCTION {schema}.audit_edit('bound');
          CREATE TRIGGER {audit_maintenance} BEFORE UPDATE OR DELETE ON {leads}
            FOR EACH ROW WHEN (OLD.{territory} IS NOT NULL
              AND NOT (pg_catalog.row_security_active({leads_name}::regclass::oid)
                AND current_user <> ALL (ARRAY[{exempt_roles}]::name[])))
            EXECUTE FUNCTION {schema}.audit_edit('maintenance');
          CREATE TRIGGER {audit_truncate} BEFORE TRUNCATE ON {leads}
            FOR EACH STATEMENT WHEN (NOT pg_catalog.row_security_active({leads_name}::regclass::oid))
            EXECUTE FUNCTION {schema}.audit_truncate();
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_edit};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_maintenance};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {audit_truncate};
          CREATE TRIGGER {refuse_move} AFTER UPDATE OF {lead_id}, {territory} ON {leads}
            FOR EACH ROW WHEN (OLD.{territory} IS NOT NULL
              AND (NEW.{territory} IS DISTINCT FROM OLD.{territory} OR NEW.{lead_id} <> OLD.{lead_id})
              AND pg_catalog.row_security_active({leads_name}::regclass::oid)
              AND current_user <> ALL (ARRAY[{exempt_roles}]::name[]))
            EXECUTE FUNCTION {schema}.refuse_move();
          CREATE TRIGGER {refuse_truncate} BEFORE TRUNCATE ON {leads}
            FOR EACH STATEMENT WHEN (pg_catalog.row_security_active({leads_name}::regclass::oid))
            EXECUTE FUNCTION {schema}.refuse_truncate();
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {refuse_move};
          ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {refuse_truncate};
        END
        $do$
        """)
    )


def open_again() -> None:
    # In one transaction with everything else: there is no moment at which half of it holds.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          ours name;
          mine name[];
          readable name;
          before_contract {schema}.host_row_security;
        BEGIN
          -- by their exact names: the host may have policies that begin like ours
          EXECUTE 'SET LOCAL ROLE {owner}';
          SELECT * INTO before_contract FROM {schema}.host_row_security WHERE host_table = {leads_name};
          mine := ARRAY(
            SELECT {role_prefix} || kind
            FROM unnest(ARRAY['owner', 'unprotected', 'floor', 'update', 'delete', 'exempt']) AS kind
            UNION ALL
            SELECT {role_prefix} || 'territory_' || pg_catalog.lower(t.code) FROM {schema}.territories AS t);
          EXECUTE 'RESET ROLE';
          FOR ours IN
            SELECT polname FROM pg_catalog.pg_policy WHERE polrelid = {leads_name}::regclass AND polname = ANY (mine)
          LOOP
            EXECUTE pg_catalog.format('DROP POLICY %I ON {leads}', ours);
          END LOOP;
          FOREACH readable IN ARRAY before_contract.auditor_columns LOOP
            EXECUTE pg_catalog.format('REVOKE SELECT (%I) ON {leads} FROM {auditor}', readable);
          END LOOP;
          DROP TRIGGER IF EXISTS {audit_edit} ON {leads};
          DROP TRIGGER IF EXISTS {audit_maintenance} ON {leads};
          DROP TRIGGER IF EXISTS {audit_truncate} ON {leads};
          DROP TRIGGER IF EXISTS {refuse_move} ON {leads};
          DROP TRIGGER IF EXISTS {refuse_truncate} ON {leads};
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
