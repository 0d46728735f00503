"""Who owns which lead, what else somebody may or may not do, and how the host's leads are read.

Why: ownership and rules are ours, leads and activities the host's. The tables hold the one, a few
functions of leadprotect_reader are the only way to the other.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving the tables to the quarantine schema, still row-secured, without grants; upgrade
takes them back with every row.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0002_expand_assignments"
down_revision = "lp_0001_expand_territories"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_rule_type()
    create_assignments()
    create_assignment_history()
    create_rules()
    create_rule_end()
    create_rule_check()
    create_collaboration()
    create_freeze()
    create_readers()
    create_settling()
    grant_access()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    drop_functions()
    enter_quarantine()
    op.execute("RESET ROLE")


def create_rule_type() -> None:
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regtype('{quarantine}.protection_type') IS NOT NULL THEN
            ALTER TYPE {quarantine}.protection_type SET SCHEMA {schema};
          ELSE
            CREATE TYPE {schema}.protection_type AS ENUM ('SOLE_OWNER', 'COLLABORATOR', 'VIEW_ONLY');
          END IF;
        END
        $do$
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
              activity_source text COLLATE "C",
              CONSTRAINT ix_ula_lead PRIMARY KEY (lead_id, territory) INCLUDE (user_id)
            );
            -- The activity on which a derived assignment rests, in the host's own types: of several tables the times in
            -- the widest type (an expression is a timestamptz), the ids as text.
            EXECUTE pg_catalog.format('ALTER TABLE {schema}.user_lead_assignments ADD COLUMN activity_at %s, ADD COLUMN activity_id %s',
              (SELECT coalesce(pg_catalog.format_type(a.atttypid, a.atttypmod), 'timestamptz')
               FROM (VALUES {source_times}) AS wanted (host, host_column)
               LEFT JOIN pg_catalog.pg_attribute AS a
                 ON a.attrelid = pg_catalog.to_regclass(wanted.host) AND a.attname = wanted.host_column
               LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
               ORDER BY t.typname DESC NULLS FIRST LIMIT 1),
              coalesce((
                SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM (VALUES ({source_id})) AS wanted (host, host_column)
                JOIN pg_catalog.pg_attribute AS a
                  ON a.attrelid = pg_catalog.to_regclass(wanted.host) AND a.attname = wanted.host_column), 'text'));
            ALTER TABLE {schema}.user_lead_assignments
              ADD CONSTRAINT ula_released CHECK ((user_id IS NULL) = (source IN ('release', 'moved', 'moving'))) NOT VALID;
            CREATE INDEX ix_ula_user ON {schema}.user_lead_assignments (user_id, territory, lead_id);
            -- few at any time: who asks whether a lead is on its way pays for an index without rows
            CREATE INDEX ix_ula_moving ON {schema}.user_lead_assignments (lead_id) WHERE source = 'moving';
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.user_lead_assignments IS
        'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand, moved here, or on its way to another database';
        COMMENT ON COLUMN {schema}.user_lead_assignments.source IS
        'backfill and activity: derived, a newer activity wins; release: no owner by hand; moved: none until a newer activity; moving: frozen, on its way to or from another database; anything else: made by hand, stays';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_id IS
        'The qualifying activity on which a derived assignment (source backfill or activity) rests';
        COMMENT ON COLUMN {schema}.user_lead_assignments.activity_source IS
        'Which table of activities it stands in: the name of its section in the settings; NULL: the first one';
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
        USING ({inside} OR territory = (SELECT {schema}.own_border()));
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
        COMMENT ON SEQUENCE {schema}.user_lead_assignment_history_id_seq IS 'Order of the changes';
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
        USING ({inside} OR territory = (SELECT {schema}.own_border()))
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
        SET enable_seqscan = off
        AS $body$
        BEGIN
          INSERT INTO {schema}.user_lead_assignment_history (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (OLD.lead_id, OLD.territory, OLD.user_id, OLD.assigned_at, OLD.assigned_by, OLD.source);
          -- asked first: a hand-over of many ends a share of few
          IF OLD.user_id IS NOT NULL AND (TG_OP = 'DELETE' OR NEW.user_id IS DISTINCT FROM OLD.user_id)
            AND EXISTS (SELECT FROM {schema}.lead_protection_rules AS r
                        WHERE r.lead_id = OLD.lead_id AND r.active AND r.shared_by = OLD.user_id)
          THEN
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
        USING ({inside} OR territory = (SELECT {schema}.own_border()));
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
        SET enable_seqscan = off
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
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.end_rules(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type})
        RETURNS integer
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        DECLARE
          ended integer;
        BEGIN
          -- what never took effect has no history to keep
          DELETE FROM {schema}.lead_protection_rules AS r
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead AND r.effective_from >= clock_timestamp();
          -- active as well: who waits for this row's lock began before the new effective_to
          UPDATE {schema}.lead_protection_rules AS r
          SET active = false, effective_to = clock_timestamp()
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead
            AND r.active AND (r.effective_to IS NULL OR r.effective_to > clock_timestamp());
          GET DIAGNOSTICS ended = ROW_COUNT;
          RETURN ended;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.end_rules({user_id_type}, text, {schema}.protection_type, {lead_id_type}) IS
        'Ends the rules of a user of one kind; what had taken effect stays as history';
        REVOKE ALL ON FUNCTION {schema}.end_rules({user_id_type}, text, {schema}.protection_type, {lead_id_type})
        FROM PUBLIC
        """)
    )


def create_rule_check() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.in_force(active boolean, effective_from timestamptz, effective_to timestamptz)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN active
          AND effective_from <= pg_catalog.statement_timestamp()
          AND (effective_to IS NULL OR pg_catalog.statement_timestamp() < effective_to);
        COMMENT ON FUNCTION {schema}.in_force(boolean, timestamptz, timestamptz) IS
        'Whether a rule counts now: active, begun, and not ended';
        REVOKE ALL ON FUNCTION {schema}.in_force(boolean, timestamptz, timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.in_force(boolean, timestamptz, timestamptz) TO {reader}
        """)
    )


def create_collaboration() -> None:
    # What lets a collaborator edit, as the audit keeps it. By the clock: a rule may end while the caller's statement
    # goes on. Two probes, whatever else is shared with him; the planner puts its body where it is asked.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.collaboration(lead {lead_id_type}, caller {user_id_type}, here text)
        RETURNS SETOF text
        LANGUAGE sql
        STABLE ROWS 1
        BEGIN ATOMIC
          SELECT pg_catalog.format('rule for the %s since %s', u.of,
                   pg_catalog.to_char(u.effective_from AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS.US "UTC"'))
          FROM (
            (SELECT 'lead'::text AS of, r.effective_from
             FROM {schema}.lead_protection_rules AS r
             WHERE r.user_id = collaboration.caller AND r.territory = collaboration.here AND r.protection = 'COLLABORATOR'
               AND r.lead_id = collaboration.lead
               AND {schema}.in_force(r.active, r.effective_from, r.effective_to)
               AND (r.effective_to IS NULL OR pg_catalog.clock_timestamp() < r.effective_to)
             ORDER BY r.effective_from LIMIT 1)
            UNION ALL
            (SELECT 'territory'::text AS of, r.effective_from
             FROM {schema}.lead_protection_rules AS r
             WHERE r.user_id = collaboration.caller AND r.territory = collaboration.here AND r.protection = 'COLLABORATOR'
               AND r.lead_id IS NULL
               AND {schema}.in_force(r.active, r.effective_from, r.effective_to)
               AND (r.effective_to IS NULL OR pg_catalog.clock_timestamp() < r.effective_to)
             ORDER BY r.effective_from LIMIT 1)
          ) AS u
          ORDER BY u.of LIMIT 1;
        END;
        COMMENT ON FUNCTION {schema}.collaboration({lead_id_type}, {user_id_type}, text) IS
        'The rule by which a user may edit the lead of somebody else, as the audit names it; none where it has ended';
        REVOKE ALL ON FUNCTION {schema}.collaboration({lead_id_type}, {user_id_type}, text) FROM PUBLIC
        """)
    )


def create_freeze() -> None:
    # Whom the decision does not bind is refused here: what he changed would be lost with the copy that stays behind.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require_not_moving(leads {lead_id_type}[])
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        BEGIN
          IF EXISTS (SELECT FROM {schema}.user_lead_assignments AS a WHERE a.source = 'moving')
            AND EXISTS (SELECT FROM {schema}.user_lead_assignments AS a WHERE a.source = 'moving' AND a.lead_id = ANY (leads))
          THEN
            RAISE EXCEPTION 'the lead is on its way to or from another database, and nobody may change it'
              USING ERRCODE = 'LP422', HINT = 'leadprotect move --resume ends what stands still.';
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require_not_moving({lead_id_type}[]) IS
        'Raises where one of these leads is on its way to or from another database';
        REVOKE ALL ON FUNCTION {schema}.require_not_moving({lead_id_type}[]) FROM PUBLIC
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
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY SELECT nullif({territory_of_l}::text, '') FROM {leads} AS l WHERE l.{lead_id} = lead;
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
        CREATE FUNCTION {schema}.host_leads(leads {lead_id_type}[])
        RETURNS TABLE (lead_id {lead_id_type}, territory text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
            SELECT l.{lead_id}::{lead_id_type}, nullif({territory_of_l}::text, '') FROM {leads} AS l WHERE l.{lead_id} = ANY (leads);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.host_leads({lead_id_type}[]) IS
        'The territory of each of these leads of the host, NULL outside protection; no row: there is no such lead';
        REVOKE ALL ON FUNCTION {schema}.host_leads({lead_id_type}[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.host_leads({lead_id_type}[]) TO {owner}
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
          RETURN QUERY SELECT l.{lead_id}::{lead_id_type}, {territory_of_l}::text FROM {leads} AS l WHERE NOT {outside_l};
        END
        $body$;
        COMMENT ON FUNCTION {schema}.protected_leads() IS 'Every lead of the host that has a territory';
        REVOKE ALL ON FUNCTION {schema}.protected_leads() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.protected_leads() TO {owner}
        """)
    )
    # The one thing that is written there: the host's own column for the owner, from contract on. Its trigger on the
    # leads tells that it is. A statement that changes nothing where somebody else's code keeps it from it is an error.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.hold_leads(leads {lead_id_type}[])
        RETURNS boolean
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        BEGIN
          IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = {leads_name}::regclass AND t.tgname = {follow_column_name}) THEN
            RETURN false;
          END IF;
          PERFORM FROM {leads} AS l WHERE l.{lead_id} = ANY (leads) ORDER BY l.{lead_id} FOR NO KEY UPDATE;
          RETURN true;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.hold_leads({lead_id_type}[]) IS
        'Locks leads whose column will be written, before anything else of them; false: the column is not in step yet';
        REVOKE ALL ON FUNCTION {schema}.hold_leads({lead_id_type}[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.hold_leads({lead_id_type}[]) TO {owner};
        CREATE FUNCTION {schema}.write_owner_column(leads {lead_id_type}[], places text[], new_owner {user_id_type})
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          wanted {leads}.{owner_column_here}%TYPE := new_owner;
        BEGIN
          IF NOT {schema}.hold_leads(leads) THEN
            RETURN;
          END IF;
          UPDATE {leads} AS l SET {owner_column_here} = wanted
          FROM unnest(leads, places) AS u (lead, here)
          WHERE l.{lead_id} = u.lead AND {territory_of_l} = u.here AND {owner_in_l} IS DISTINCT FROM new_owner;
          IF EXISTS (
            SELECT FROM unnest(leads, places) AS u (lead, here), {leads} AS l
            WHERE l.{lead_id} = u.lead AND {territory_of_l} = u.here AND {owner_in_l} IS DISTINCT FROM new_owner)
          THEN
            RAISE EXCEPTION 'column % of % does not take the owner', {owner_column_name}, {leads_name}
              USING ERRCODE = 'LP422', DETAIL = 'A policy, a trigger or a rule of the host kept or changed it, or excluded_users names him.';
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.write_owner_column({lead_id_type}[], text[], {user_id_type}) IS
        'Writes the owner of these leads into the host''s own column for it, from contract on; a lead that is elsewhere by now is left';
        REVOKE ALL ON FUNCTION {schema}.write_owner_column({lead_id_type}[], text[], {user_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.write_owner_column({lead_id_type}[], text[], {user_id_type}) TO {owner}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.owner_column_differs(here text)
        RETURNS TABLE (lead_id {lead_id_type}, owner {user_id_type})
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT l.{lead_id}::{lead_id_type}, a.user_id
          FROM {leads} AS l LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = l.{lead_id} AND a.territory = here
          WHERE {named} AND {territory_of_l} = here AND {owner_in_l} IS DISTINCT FROM a.user_id;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.owner_column_differs(text) IS
        'Leads of the territory whose own column names somebody else than their owner, and the owner; none where there is no owner_column';
        REVOKE ALL ON FUNCTION {schema}.owner_column_differs(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.owner_column_differs(text) TO {owner}, {operator}
        """)
    )
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))


def create_settling() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.settle_owner_column(here text, leads integer DEFAULT 1000)
        RETURNS bigint
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          found {lead_id_type}[] := ARRAY(
            SELECT d.lead_id FROM {schema}.owner_column_differs(here) AS d ORDER BY 1 LIMIT leads);
          same record;
        BEGIN
          PERFORM {schema}.hold_leads(found);
          -- who owns them under the lock
          FOR same IN
            SELECT a.user_id AS owner, array_agg(f.lead) AS leads, array_agg(here) AS places
            FROM unnest(found) AS f (lead) LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = f.lead AND a.territory = here
            GROUP BY a.user_id
          LOOP
            PERFORM {schema}.write_owner_column(same.leads, same.places, same.owner);
          END LOOP;
          RETURN cardinality(found);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.settle_owner_column(text, integer) IS
        'After contract: writes the owner into the lead''s own column where it names somebody else; how many leads there were';
        REVOKE ALL ON FUNCTION {schema}.settle_owner_column(text, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.settle_owner_column(text, integer) TO {operator}
        """)
    )


def grant_access() -> None:
    # Services read who owns what in their territory; nobody writes but the functions.
    op.execute(
        sql("""
        GRANT SELECT ON {schema}.user_lead_assignments TO {app}, {auditor}, {manager};
        GRANT SELECT ON {schema}.lead_protection_rules, {schema}.user_lead_assignment_history TO {manager}, {auditor}
        """)
    )


def drop_functions() -> None:
    op.execute(
        sql("""
        DROP TRIGGER lp_keep_assignment ON {schema}.user_lead_assignments;
        DROP FUNCTION
          {schema}.settle_owner_column(text, integer),
          {schema}.owner_column_differs(text),
          {schema}.write_owner_column({lead_id_type}[], text[], {user_id_type}),
          {schema}.hold_leads({lead_id_type}[]),
          {schema}.protected_leads(),
          {schema}.host_leads({lead_id_type}[]),
          {schema}.host_lead({lead_id_type}),
          {schema}.keep_assignment(),
          {schema}.require_not_moving({lead_id_type}[]),
          {schema}.collaboration({lead_id_type}, {user_id_type}, text),
          {schema}.in_force(boolean, timestamptz, timestamptz),
          {schema}.end_rules({user_id_type}, text, {schema}.protection_type, {lead_id_type}),
          {schema}.end_lead_rules({lead_id_type}, {user_id_type})
        """)
    )


def enter_quarantine() -> None:
    # Still row-secured, without any grant.
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.user_lead_assignments, {schema}.user_lead_assignment_history, {schema}.lead_protection_rules
        FROM {reader}, {app}, {auditor}, {operator}, {manager};
        ALTER TABLE {schema}.user_lead_assignments SET SCHEMA {quarantine};
        ALTER TABLE {schema}.user_lead_assignment_history SET SCHEMA {quarantine};
        ALTER TABLE {schema}.lead_protection_rules SET SCHEMA {quarantine};
        ALTER TYPE {schema}.protection_type SET SCHEMA {quarantine}
        """)
    )
