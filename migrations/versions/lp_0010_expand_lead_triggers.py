"""Triggers on leads for the transition, and the notes on writes without a context.

Why: between expand and contract the old and the new version of the application run side by side.
A lead that changes its territory has no owner there until a newer activity or a hand decides; a deleted
lead takes its assignments and rules along; and contract must know whether anybody still writes without saying who he is.
What the triggers of contract call is laid ready where no setting that may change later is written into it.

Locks on host tables: SHARE ROW EXCLUSIVE on leads, for milliseconds (CREATE TRIGGER). On the way
down ACCESS EXCLUSIVE on leads, for milliseconds (DROP TRIGGER).

Undone by: dropping the triggers; the notes move to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0010_expand_lead_triggers"
down_revision = "lp_0009_expand_indexes"
branch_labels = None
depends_on = None
phase = "expand"
locks = {"upgrade": {"leads": "ShareRowExclusiveLock"}, "downgrade": {"leads": "AccessExclusiveLock"}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_notes()
    create_note_function()
    create_owner_of_moved_lead()
    create_owner_of_named_lead()
    create_step()
    create_hiding()
    create_owner_of_new_lead()
    create_refusals()
    create_forget_function()
    create_asking()
    op.execute("RESET ROLE")
    create_triggers()


def downgrade() -> None:
    op.execute(
        sql("""
        DROP TRIGGER IF EXISTS {forget} ON {leads};
        DROP TRIGGER IF EXISTS {forget_id} ON {leads};
        DROP TRIGGER IF EXISTS {forget_all} ON {leads};
        DROP TRIGGER IF EXISTS {transition_territory} ON {leads};
        DROP TRIGGER IF EXISTS {own_named} ON {leads};
        DROP TRIGGER IF EXISTS {note_writes} ON {leads}
        """)
    )
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.asked_by(name[]),
          {schema}.forget_lead(),
          {schema}.refuse_taken(),
          {schema}.refuse_move(),
          {schema}.own_new_lead(),
          {schema}.own_moved_lead(),
          {schema}.hide_owner_column(),
          {schema}.follow_owner_column(),
          {schema}.follow_leads({lead_id_type}[], text[], {user_id_type}[], boolean[]),
          {schema}.follow_lead({lead_id_type}, text, {user_id_type}, boolean, boolean),
          {schema}.own_named_lead(),
          {schema}.note_contextless_write()
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.contextless_writes FROM {reader};
        ALTER TABLE {schema}.contextless_writes SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def create_notes() -> None:
    # Append-only and without a unique key: writers of the host must never wait for each other here.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.contextless_writes') IS NOT NULL THEN
            ALTER TABLE {quarantine}.contextless_writes SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.contextless_writes (
              id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
              login name NOT NULL DEFAULT session_user,
              at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              host_table text NOT NULL,
              with_context boolean NOT NULL
            );
            CREATE INDEX ix_contextless_writes_login ON {schema}.contextless_writes (login, at);
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.contextless_writes IS
        'Writes to the host''s tables without a context, or by a login that owns them: one note per login and minute';
        COMMENT ON COLUMN {schema}.contextless_writes.id IS 'no meaning';
        COMMENT ON COLUMN {schema}.contextless_writes.login IS 'session_user';
        COMMENT ON COLUMN {schema}.contextless_writes.at IS 'when';
        COMMENT ON COLUMN {schema}.contextless_writes.host_table IS 'where it wrote';
        COMMENT ON COLUMN {schema}.contextless_writes.with_context IS 'true: noted because the login owns the table';
        ALTER TABLE {schema}.contextless_writes ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.contextless_writes FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.contextless_writes;
        CREATE POLICY lp_inside ON {schema}.contextless_writes TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        GRANT SELECT ON {schema}.contextless_writes TO {reader}
        """)
    )


def create_note_function() -> None:
    # Row security does not bind who owns the table: his writes are noted with a context, too, because
    # contract protects nothing while a service logs in as the owner.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.note_contextless_write()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          -- a territory that nobody knows is none: row security will admit it nowhere
          declared boolean := {schema}.parse_user({declared_user}) IS NOT NULL
            AND EXISTS (SELECT FROM {schema}.territories AS t WHERE t.code = {declared_territory});
        BEGIN
          IF declared AND NOT pg_has_role(
            {schema}.acting_role(), (SELECT c.relowner FROM pg_class AS c WHERE c.oid = {leads_name}::regclass), 'USAGE')
          THEN
            RETURN NULL;
          END IF;
          IF NOT EXISTS (
            SELECT FROM {schema}.contextless_writes AS w
            WHERE w.login = session_user AND w.with_context = declared
              AND w.at > clock_timestamp() - {note_interval})
          THEN
            INSERT INTO {schema}.contextless_writes (host_table, with_context)
            VALUES (TG_RELID::regclass::text, declared);
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.note_contextless_write() IS
        'Trigger of the transition: notes writes without a context, and those of the owner of the table';
        REVOKE ALL ON FUNCTION {schema}.note_contextless_write() FROM PUBLIC
        """)
    )


def create_owner_of_moved_lead() -> None:
    # The activities of its old territory make no owner in the new one: the row says from which activity on.
    # A lead that had no territory comes with all its activities.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_moved_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
          SELECT NEW.{lead_id}, t.code,
                 CASE WHEN {outside_old} THEN newest.user_id END,
                 CASE WHEN {outside_old} THEN 'activity' ELSE 'moved' END,
                 newest.activity_at, newest.activity_id, newest.activity_source
          FROM {schema}.territories AS t
          LEFT JOIN {schema}.derived_owners(ARRAY[NEW.{lead_id}]) AS newest ON true
          WHERE t.code = {territory_of_new} AND (NOT {outside_old} OR newest.user_id IS NOT NULL)
          ON CONFLICT (lead_id, territory) DO NOTHING;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_moved_lead() IS
        'Trigger of the transition: a lead that came into a territory has no owner there until a newer activity';
        REVOKE ALL ON FUNCTION {schema}.own_moved_lead() FROM PUBLIC
        """)
    )


def create_owner_of_named_lead() -> None:
    # The lead's own column names its owner, as the old application sets it: where the column answers first its
    # change decides, whoever owned the lead before. Where it answers last, only what it made gives way.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_named_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          here text := (SELECT t.code FROM {schema}.territories AS t WHERE t.code = {territory_of_new});
          derived record;
        BEGIN
          IF here IS NULL OR TG_OP = 'INSERT' AND {named_new} IS NULL
            OR TG_OP = 'UPDATE' AND {named_old} IS NOT DISTINCT FROM {named_new}
          THEN
            RETURN NULL;
          END IF;
          SELECT * INTO derived FROM {schema}.derived_owners(ARRAY[NEW.{lead_id}]);
          IF derived.user_id IS NULL THEN
            DELETE FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = NEW.{lead_id} AND a.territory = here
              AND ({named_first} OR a.source IN ('backfill', 'activity') AND a.activity_id IS NULL);
            -- a slice of the backfill may be about to rest on what this statement takes away
            PERFORM {schema}.note_unsettled(NEW.{lead_id});
          ELSIF {named_first} OR derived.activity_id IS NULL THEN
            INSERT INTO {schema}.user_lead_assignments AS a
              (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
            VALUES (NEW.{lead_id}, here, derived.user_id, 'activity', derived.activity_at, derived.activity_id,
                    derived.activity_source)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                  assigned_by = NULL, activity_at = excluded.activity_at, activity_id = excluded.activity_id,
                  activity_source = excluded.activity_source
              WHERE {named_first} OR a.source = 'moved' OR a.source IN ('backfill', 'activity') AND a.activity_id IS NULL;
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_named_lead() IS
        'Trigger of the transition: who stands in the lead''s own column becomes its owner at once';
        REVOKE ALL ON FUNCTION {schema}.own_named_lead() FROM PUBLIC
        """)
    )


def create_step() -> None:
    # From contract on: the host's own column and the owner are one. Who writes the column changes the owner, by
    # the decision of our functions, and whoever may not is denied. The edit of the same row is decided before, by
    # who owned the lead then; who may take or give the lead in this statement may edit it in this statement.
    # Our own write of the column fires nothing of this. Maintenance is followed, and recorded as that.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.follow_lead(
          lead {lead_id_type}, here text, named {user_id_type}, protected boolean, touched boolean)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
          standing {user_id_type} := (
            SELECT a.user_id FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here);
          reason text;
          basis text;
          edited boolean;
          change text;
        BEGIN
          change := CASE WHEN named IS NOT DISTINCT FROM standing THEN NULL WHEN named IS NULL THEN 'release'
                         WHEN named = author AND NOT {schema}.is_manager() THEN 'claim' ELSE 'assign' END;
          IF NOT {schema}.acts_bound() THEN
            IF change IS NOT NULL THEN
              INSERT INTO {schema}.user_lead_assignments AS a (lead_id, territory, user_id, assigned_at, assigned_by, source)
              VALUES (lead, here, named, clock_timestamp(), author, change)
              ON CONFLICT (lead_id, territory) DO UPDATE
                SET user_id = excluded.user_id, assigned_at = excluded.assigned_at, assigned_by = excluded.assigned_by,
                    source = excluded.source, activity_at = NULL, activity_id = NULL, activity_source = NULL;
              PERFORM {schema}.write_audit(
                lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action, 'maintenance',
                concat_ws('; ', 'by ' || {owner_column_name}, change || coalesce(' to ' || named, '')), 'not bound by row security', here);
            END IF;
            RETURN;
          END IF;
          IF protected THEN
            edited := change IS NULL OR touched;
            SELECT d.reason, d.basis INTO reason, basis FROM {schema}.decide_locked(lead) AS d;
            IF edited AND reason NOT IN ('owner', 'collaborator')
              AND NOT coalesce(change = 'claim' AND reason = 'unassigned'
                OR change IS NOT NULL AND {schema}.is_manager() AND author IS NOT NULL AND reason IN ('unassigned', 'not_owner'), false)
            THEN
              PERFORM {schema}.deny(lead, 'EDIT', reason, 'update without assertion');
            END IF;
          END IF;
          IF change IS NOT NULL THEN
            PERFORM {schema}.require(
              lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action,
              {schema}.try_change_owner(lead, change, named, 'by ' || {owner_column_name}), 'by ' || {owner_column_name});
          END IF;
          IF edited AND NOT EXISTS (SELECT FROM {schema}.recorded_edit(lead, author)) THEN
            PERFORM {schema}.write_audit(
              lead, 'EDIT', CASE WHEN reason IN ('owner', 'collaborator') THEN reason WHEN change = 'claim' THEN 'owner' ELSE 'manager' END,
              'update without assertion', CASE WHEN reason = 'unassigned' AND change = 'claim' THEN 'assignment' ELSE basis END);
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.follow_lead({lead_id_type}, text, {user_id_type}, boolean, boolean) IS
        'Changes the owner of a lead to whom its own column names, where the caller may; touched: other columns changed, too';
        REVOKE ALL ON FUNCTION {schema}.follow_lead({lead_id_type}, text, {user_id_type}, boolean, boolean) FROM PUBLIC
        """)
    )
    # Of an UPDATE: what changes nothing but the owner is changed together, and whatever is left one by one. Where
    # maintenance gave leads other ids, rows of one id need not be of one lead: the column is written with the owner.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.follow_leads(
          leads {lead_id_type}[], places text[], names {user_id_type}[], touched boolean[])
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_column
        DECLARE
          bound boolean := {schema}.acts_bound();
          same record;
          other record;
          changed {lead_id_type}[] := '{}';
        BEGIN
          IF bound AND cardinality(leads) > 1 THEN
            -- in the order of their ids, whoever gets which
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = ANY (places) ORDER BY a.lead_id FOR UPDATE;
            FOR same IN
              SELECT u.named, array_agg(u.lead) AS leads
              FROM unnest(leads, places, names, touched) AS u (lead, here, named, touched)
              LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = u.lead AND a.territory = u.here
              WHERE NOT u.touched AND u.named IS DISTINCT FROM a.user_id
              GROUP BY u.named
            LOOP
              changed := changed || {schema}.change_together(
                same.leads, CASE WHEN same.named IS NULL THEN 'release' ELSE 'assign' END, same.named,
                'by ' || {owner_column_name}, NULL);
            END LOOP;
          END IF;
          FOR other IN
            SELECT u.lead, t.code AS here, u.named, u.touched
            FROM unnest(leads, places, names, touched) AS u (lead, here, named, touched)
            JOIN {schema}.territories AS t ON t.code = u.here
            LEFT JOIN unnest(changed) AS c (lead) ON c.lead = u.lead
            WHERE c.lead IS NULL ORDER BY u.lead
          LOOP
            PERFORM {schema}.follow_lead(other.lead, other.here, other.named, true, other.touched);
          END LOOP;
          IF NOT bound THEN
            FOR same IN
              SELECT u.named, array_agg(u.lead) AS leads, array_agg(u.here) AS places
              FROM unnest(leads, places, names) AS u (lead, here, named) JOIN {schema}.territories AS t ON t.code = u.here
              GROUP BY u.named
            LOOP
              PERFORM {schema}.write_owner_column(same.leads, same.places, same.named);
            END LOOP;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.follow_leads({lead_id_type}[], text[], {user_id_type}[], boolean[]) IS
        'follow_lead for each of the leads of an UPDATE; those of which nothing but the owner changes together';
        REVOKE ALL ON FUNCTION {schema}.follow_leads({lead_id_type}[], text[], {user_id_type}[], boolean[]) FROM PUBLIC
        """)
    )
    # Of an INSERT, of a lead that came from elsewhere, and of what replication applies, which fires no trigger of
    # statements; audit_edits() follows every other UPDATE, once for the statement.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.follow_owner_column()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          here text := (SELECT t.code FROM {schema}.territories AS t WHERE t.code = {territory_of_new});
          named {user_id_type} := {owner_in_new};
          protected boolean := false;
          touched boolean := false;
          was record;
        BEGIN
          IF here IS NULL THEN
            RETURN NULL;
          ELSIF TG_OP = 'UPDATE' THEN
            IF NEW.{owner_column_here} IS NOT DISTINCT FROM OLD.{owner_column_here} AND (NOT {outside_old} OR named IS NULL) THEN
              -- it came from elsewhere, and is whose it is here
              PERFORM {schema}.write_owner_column(ARRAY[NEW.{lead_id}]::{lead_id_type}[], ARRAY[here], (
                SELECT a.user_id FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = NEW.{lead_id} AND a.territory = here));
              RETURN NULL;
            END IF;
            protected := NOT {outside_old};
            was := NEW;
            was.{owner_column_here} := OLD.{owner_column_here};
            touched := was OPERATOR(pg_catalog.*<>) OLD;
          END IF;
          PERFORM {schema}.follow_lead(NEW.{lead_id}, here, named, protected, touched);
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.follow_owner_column() IS
        'Trigger of contract: who writes the lead''s own column changes its owner, where he may';
        REVOKE ALL ON FUNCTION {schema}.follow_owner_column() FROM PUBLIC
        """)
    )


def create_hiding() -> None:
    # The policy lets managers to every lead, and everybody to those that nobody owns, because it can't see what the
    # statement writes. Where a denied edit changes no row, this one leaves such a lead alone; the decision itself,
    # under locks, is follow_owner_column()'s and audit_edits()'.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.hide_owner_column()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          same boolean := NEW.{owner_column_here} IS NOT DISTINCT FROM OLD.{owner_column_here};
          author {user_id_type};
          named {user_id_type};
          standing {user_id_type};
          reason text;
        BEGIN
          IF same AND OLD.{owner_column_here}::text = {declared_user} OR NOT {schema}.acts_bound() THEN
            RETURN NEW;
          END IF;
          named := {owner_in_new};
          reason := {schema}.explain_edit(OLD.{lead_id});
          IF same THEN
            RETURN CASE WHEN reason IN ('owner', 'collaborator') THEN NEW END;
          END IF;
          author := {schema}.parse_user({declared_user});
          SELECT a.user_id INTO standing FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = OLD.{lead_id} AND a.territory = {territory_of_old};
          RETURN CASE WHEN CASE
            WHEN named IS NOT DISTINCT FROM standing THEN reason IN ('owner', 'collaborator')
            WHEN {schema}.is_manager() THEN author IS NOT NULL OR coalesce({declared_user}, '') = ''
            WHEN named IS NULL THEN reason = 'owner'
            WHEN named = author THEN standing IS NULL AND reason IN ('unassigned', 'collaborator')
            ELSE false END THEN NEW END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.hide_owner_column() IS
        'Trigger of contract where denied_edit = hide: leaves a lead alone that the caller may neither edit nor give to somebody';
        REVOKE ALL ON FUNCTION {schema}.hide_owner_column() FROM PUBLIC
        """)
    )


def create_owner_of_new_lead() -> None:
    # Where the setting says so. Whoever could claim it owns it: a suspended user, or one without a context, does not.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_new_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
        BEGIN
          IF {schema}.explain_edit(NEW.{lead_id}) NOT IN ('unassigned', 'collaborator') THEN
            RETURN NULL;
          END IF;
          INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (NEW.{lead_id}, {territory_of_new}, author, clock_timestamp(), author, 'creator')
          ON CONFLICT (lead_id, territory) DO NOTHING;
          IF FOUND THEN
            PERFORM {schema}.write_audit(NEW.{lead_id}, 'ASSIGN', 'owner', 'creator to ' || author);
            IF {named} THEN
              PERFORM {schema}.write_owner_column(ARRAY[NEW.{lead_id}]::{lead_id_type}[], ARRAY[{territory_of_new}::text], author);
            END IF;
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.own_new_lead() IS
        'Trigger of contract where owner_on_insert = creator: who inserts a lead in his territory owns it, and that is recorded';
        REVOKE ALL ON FUNCTION {schema}.own_new_lead() FROM PUBLIC
        """)
    )


def create_refusals() -> None:
    # Policies see the old row or the new one, never both: a lead can't be moved out of protection
    # (territory NULL) or given another id, by no trigger of the host either.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.refuse_move()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF {schema}.acts_bound() THEN
            RAISE EXCEPTION 'id and territory of a protected lead can be changed by maintenance only'
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.refuse_move() IS
        'Trigger of contract: id and territory of a protected lead are changed by maintenance only';
        REVOKE ALL ON FUNCTION {schema}.refuse_move() FROM PUBLIC
        """)
    )
    # The condition of ON CONFLICT DO UPDATE is asked about the row that is met before row security is: a
    # function in it would be told a lead of another territory. A plain INSERT gets the same answer.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.refuse_taken()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF EXISTS (
            SELECT FROM {schema}.host_lead(NEW.{lead_id}) AS l (territory)
            WHERE l.territory IS DISTINCT FROM {schema}.admitted_territory() AND l.territory IS NOT NULL)
            AND {schema}.acts_bound()
          THEN
            RAISE EXCEPTION 'the id of the new lead is taken' USING ERRCODE = 'unique_violation';
          END IF;
          RETURN NEW;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.refuse_taken() IS
        'Trigger of contract: an INSERT meets no lead of another territory, whatever it says ON CONFLICT';
        REVOKE ALL ON FUNCTION {schema}.refuse_taken() FROM PUBLIC
        """)
    )


def create_forget_function() -> None:
    # A new lead with the id of one that is gone must inherit neither its owner nor its rules, however it
    # went: deleted, under another id, or with all others. The audit stays.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.forget_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF TG_OP = 'TRUNCATE' THEN
            PERFORM {schema}.end_lead_rules(r.lead_id)
            FROM (SELECT DISTINCT r.lead_id FROM {schema}.lead_protection_rules AS r
                  WHERE r.active AND r.lead_id IS NOT NULL) AS r;
            DELETE FROM {schema}.user_lead_assignments;
          ELSIF OLD.{lead_id} IS NOT NULL THEN
            DELETE FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = OLD.{lead_id};
            PERFORM {schema}.end_lead_rules(OLD.{lead_id});
            PERFORM {schema}.note_unsettled(OLD.{lead_id});
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.forget_lead() IS
        'Trigger: a lead that is gone takes its assignments and rules along, so that a new one with its id has neither';
        REVOKE ALL ON FUNCTION {schema}.forget_lead() FROM PUBLIC
        """)
    )


def create_asking() -> None:
    # Like inside(): IMMUTABLE lets the planner answer it, for as long as a plan under row security is kept for one
    # role (lp_0001). As a sub-select it was made ready for every statement: a tenth of a row read by its key.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.asked_by(roles name[])
        RETURNS boolean
        LANGUAGE plpgsql
        IMMUTABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN current_user = ANY (roles);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.asked_by(name[]) IS
        'Whether one of these roles asks, for policies that do not bind them: whoever is a member of one is not it';
        REVOKE ALL ON FUNCTION {schema}.asked_by(name[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.asked_by(name[]) TO PUBLIC
        """)
    )


def create_triggers() -> None:
    # They compare values, for a trigger of the host may change a column that the statement does not name;
    # and they fire ALWAYS: replication and session_replication_role make no way round.
    op.execute(
        sql("""
        CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {leads}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write();
        CREATE TRIGGER {transition_territory} AFTER UPDATE ON {leads}
        FOR EACH ROW WHEN ({territory_of_old} IS DISTINCT FROM {territory_of_new})
        EXECUTE FUNCTION {schema}.own_moved_lead();
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {note_writes};
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {transition_territory};
        CREATE TRIGGER {forget} AFTER DELETE ON {leads}
        FOR EACH ROW EXECUTE FUNCTION {schema}.forget_lead();
        CREATE TRIGGER {forget_id} AFTER UPDATE ON {leads}
        FOR EACH ROW WHEN (OLD.{lead_id} IS DISTINCT FROM NEW.{lead_id})
        EXECUTE FUNCTION {schema}.forget_lead();
        CREATE TRIGGER {forget_all} AFTER TRUNCATE ON {leads}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.forget_lead();
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {forget};
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {forget_id};
        ALTER TABLE {leads} ENABLE ALWAYS TRIGGER {forget_all}
        """)
    )
    op.execute(
        sql("""
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
