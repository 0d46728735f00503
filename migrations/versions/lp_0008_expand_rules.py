"""What managers decide: rules besides ownership, and leads that move to another database.

Why: a manager grants, suspends and revokes under the same locks as a change of ownership, and each change is
recorded. Whom an owner shares his lead with is asked here, too. A lead that is handed over to the database of
another territory has a row of its state on either side, so that a kill at any moment loses and doubles nothing.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions; the hand-overs move to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0008_expand_rules"
down_revision = "lp_0007_expand_ownership"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_rule_functions()
    create_handovers()
    create_holding()
    create_departure()
    create_arrival()
    create_steps()
    create_standing()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP TRIGGER lp_handover_holds ON {schema}.lead_handovers;
        REVOKE ALL ON {schema}.lead_handovers FROM {manager}, {auditor};
        ALTER TABLE {schema}.lead_handovers SET SCHEMA {quarantine};
        DROP FUNCTION
          {schema}.standing_handovers(),
          {schema}.hand_over({lead_id_type}, uuid, text, text),
          {schema}.receive_lead({lead_id_type}, uuid, text),
          {schema}.send_lead({lead_id_type}, uuid, text),
          {schema}.hold_for_move({lead_id_type}, text),
          {schema}.is_enforced(),
          {schema}.handover_holds(),
          {schema}.change_rule({lead_id_type}, text, {user_id_type}, {schema}.protection_type, timestamptz, timestamptz, text),
          {schema}.decide_as_manager({lead_id_type}),
          {schema}.revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}),
          {schema}.grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz),
          {schema}.revoke_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, text),
          {schema}.make_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz, text),
          {schema}.require_manager(text, {lead_id_type}, {schema}.lead_action, text),
          {schema}.lead_shares({lead_id_type})
        """)
    )
    op.execute("RESET ROLE")


def create_rule_functions() -> None:
    # The owner of a lead sees who else may edit it, and whose doing that is.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_shares(lead {lead_id_type})
        RETURNS TABLE (
          user_id {user_id_type}, shared_by {user_id_type}, effective_from timestamptz, effective_to timestamptz)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        DECLARE
          here text := {schema}.lead_for_ownership(lead, {schema}.is_manager());
        BEGIN
          IF {schema}.is_manager() OR {schema}.can_edit_lead(lead) THEN
            RETURN QUERY
            SELECT r.user_id, r.shared_by, r.effective_from, r.effective_to FROM {schema}.lead_protection_rules AS r
            WHERE r.lead_id = lead AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.active
              AND (r.effective_to IS NULL OR r.effective_to > statement_timestamp())
            ORDER BY r.effective_from, r.user_id;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.lead_shares({lead_id_type}) IS
        'With whom a lead is shared, by whom (NULL: a manager) and how long; for who may edit it, and for managers';
        REVOKE ALL ON FUNCTION {schema}.lead_shares({lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.lead_shares({lead_id_type}) TO {app}, {manager}
        """)
    )
    # Rules of any kind, for one lead or a whole territory: a manager's, recorded like a change of owner.
    # Who takes a right away says so past all snapshots, one after the other: see rule_changes.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.make_rule(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type},
          effective_from timestamptz, effective_to timestamptz, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          starts timestamptz := coalesce(effective_from, clock_timestamp());
        BEGIN
          IF of_user IS NULL OR kind IS NULL THEN
            RAISE EXCEPTION 'a rule needs a user and a protection' USING ERRCODE = 'LP422';
          ELSIF effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          END IF;
          IF kind <> 'COLLABORATOR' THEN
            PERFORM pg_advisory_xact_lock(hashtextextended({schema_name} || '.rule_changes', 0));
            PERFORM setval('{schema}.rule_changes', pg_current_xact_id()::text::bigint);
          END IF;
          INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
          VALUES (of_user, here, kind, lead, starts, make_rule.effective_to)
          ON CONFLICT DO NOTHING;
          PERFORM {schema}.write_audit(coalesce(lead, {nil_lead}::{lead_id_type}), 'ASSIGN', 'manager',
            concat_ws('; ', note, concat_ws(' ', 'grant', kind, 'to', of_user,
              -- in one form: what a session's DateStyle and TimeZone print may read as another time
              'until ' || to_char(make_rule.effective_to AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS.US "UTC"'))),
            NULL, here);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.make_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz, text) IS
        'Makes and records a rule; whether the caller may is asked before';
        REVOKE ALL ON FUNCTION {schema}.make_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.revoke_rule(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type}, note text)
        RETURNS integer
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          ended integer := {schema}.end_rules(of_user, here, kind, lead);
        BEGIN
          PERFORM {schema}.write_audit(coalesce(lead, {nil_lead}::{lead_id_type}), 'UNASSIGN', 'manager',
            concat_ws('; ', note, concat_ws(' ', 'revoke', kind, 'from', of_user || ',', ended, 'rules ended')), NULL, here);
          RETURN ended;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.revoke_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, text) IS
        'Ends and records the rules of a user of one kind, and returns how many; whether the caller may is asked before';
        REVOKE ALL ON FUNCTION {schema}.revoke_rule({user_id_type}, text, {schema}.protection_type, {lead_id_type}, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.grant_protection(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type} DEFAULT NULL,
          effective_from timestamptz DEFAULT NULL, effective_to timestamptz DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          PERFORM {schema}.require_manager(here, lead, 'ASSIGN', concat_ws(' ', 'grant', kind, 'to', of_user));
          IF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RAISE EXCEPTION 'there is no such lead in territory %', here USING ERRCODE = 'LP422';
          END IF;
          PERFORM {schema}.make_rule(of_user, here, kind, lead, effective_from, effective_to, NULL);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz) IS
        'Makes a rule for a user, for one lead or his whole territory; for managers of it';
        REVOKE ALL ON FUNCTION {schema}.grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz) TO {manager}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.revoke_protection(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type} DEFAULT NULL)
        RETURNS integer
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          PERFORM {schema}.require_manager(here, lead, 'UNASSIGN', concat_ws(' ', 'revoke', kind, 'from', of_user));
          RETURN {schema}.revoke_rule(of_user, here, kind, lead, NULL);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}) IS
        'Ends the rules of a user of one kind; for managers of the territory. Returns how many';
        REVOKE ALL ON FUNCTION {schema}.revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}) TO {manager}
        """)
    )
    # For the library: in the territory of the context, and a denial is returned so that its row can be kept.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decide_as_manager(lead {lead_id_type})
        RETURNS text
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          here text := {declared_territory};
        BEGIN
          IF {schema}.parse_user({declared_user}) IS NULL OR here IS NULL OR here = '' THEN
            RETURN 'no_context';
          ELSIF NOT {schema}.is_member(here) THEN
            RETURN 'not_found';
          ELSIF NOT {schema}.is_manager() THEN
            RETURN 'not_manager';
          ELSIF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RETURN 'not_found';
          END IF;
          RETURN 'manager';
        END
        $body$;
        COMMENT ON FUNCTION {schema}.decide_as_manager({lead_id_type}) IS
        'The decision about a change of rules in the territory of the context; lead NULL: for the whole of it';
        REVOKE ALL ON FUNCTION {schema}.decide_as_manager({lead_id_type}) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_rule(
          lead {lead_id_type}, change text, of_user {user_id_type}, kind {schema}.protection_type,
          effective_from timestamptz, effective_to timestamptz, note text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          here text := {declared_territory};
          decision text := {schema}.decide_as_manager(lead);
        BEGIN
          IF change IS NULL OR change NOT IN ('grant', 'revoke') THEN
            RAISE EXCEPTION '% is no change of a rule', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF decision = 'manager' AND change = 'grant' THEN
            PERFORM {schema}.make_rule(of_user, here, kind, lead, effective_from, effective_to, note);
          ELSIF decision = 'manager' THEN
            PERFORM {schema}.revoke_rule(of_user, here, kind, lead, note);
          END IF;
          RETURN {schema}.answered(
            coalesce(lead, {nil_lead}::{lead_id_type}),
            CASE change WHEN 'grant' THEN 'ASSIGN' ELSE 'UNASSIGN' END::{schema}.lead_action,
            decision, concat_ws('; ', note, concat_ws(' ', change, kind, 'of', of_user)));
        END
        $body$;
        COMMENT ON FUNCTION {schema}.change_rule({lead_id_type}, text, {user_id_type}, {schema}.protection_type, timestamptz, timestamptz, text) IS
        'For the library: grant or revoke a rule in the territory of the context; a denial is returned with the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.change_rule({lead_id_type}, text, {user_id_type}, {schema}.protection_type, timestamptz, timestamptz, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.change_rule({lead_id_type}, text, {user_id_type}, {schema}.protection_type, timestamptz, timestamptz, text) TO {app}, {manager}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require_manager(
          here text, lead {lead_id_type}, action {schema}.lead_action, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF NOT {schema}.is_manager() OR NOT {schema}.is_member(here) THEN
            PERFORM {schema}.draw_denial(
              coalesce(lead, {nil_lead}::{lead_id_type}), action, 'not_manager', concat_ws(' in ', note, here));
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'LP403', DETAIL = 'not_manager';
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require_manager(text, {lead_id_type}, {schema}.lead_action, text) IS
        'Raises SQLSTATE LP403 unless the acting role manages the territory';
        REVOKE ALL ON FUNCTION {schema}.require_manager(text, {lead_id_type}, {schema}.lead_action, text) FROM PUBLIC
        """)
    )


def create_handovers() -> None:
    # The state of a hand-over, on either side. No data of the lead: its row, which stays frozen here until the
    # other side has it, is what is sent. Half a step can't be committed, whoever calls the functions.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.lead_handovers') IS NOT NULL THEN
            ALTER TABLE {quarantine}.lead_handovers SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.lead_handovers (
              lead_id {lead_id_type} NOT NULL,
              id uuid NOT NULL,
              territory text NOT NULL,
              elsewhere text NOT NULL,
              direction text NOT NULL,
              state text NOT NULL,
              digest text NOT NULL DEFAULT '',
              correlation_id text,
              began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              ended_at timestamptz,
              user_id {user_id_type},
              login name NOT NULL DEFAULT session_user,
              was_owner {user_id_type},
              was_source text,
              CONSTRAINT lead_handovers_pkey PRIMARY KEY (lead_id, id),
              CONSTRAINT lead_handovers_state CHECK (
                direction = 'out' AND state IN ('frozen', 'gone', 'cancelled')
                OR direction = 'in' AND state IN ('arriving', 'arrived', 'cancelled'))
            );
            CREATE INDEX ix_handovers_standing ON {schema}.lead_handovers (territory, began_at) WHERE ended_at IS NULL;
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.lead_handovers IS
        'Leads that moved to or from the database of another territory: the state here; written by functions only';
        COMMENT ON COLUMN {schema}.lead_handovers.lead_id IS 'the lead, which has the same id on both sides';
        COMMENT ON COLUMN {schema}.lead_handovers.id IS 'the hand-over: the same on both sides';
        COMMENT ON COLUMN {schema}.lead_handovers.territory IS 'the territory here';
        COMMENT ON COLUMN {schema}.lead_handovers.elsewhere IS 'the territory of the other database';
        COMMENT ON COLUMN {schema}.lead_handovers.direction IS 'out: from here; in: to here';
        COMMENT ON COLUMN {schema}.lead_handovers.state IS
        'out: frozen, then gone; in: arriving (frozen, too), then arrived; cancelled: it stays where it was, or came back';
        COMMENT ON COLUMN {schema}.lead_handovers.digest IS 'SHA-256 of what was sent, or of what came';
        COMMENT ON COLUMN {schema}.lead_handovers.correlation_id IS 'that of the rows in both audits';
        COMMENT ON COLUMN {schema}.lead_handovers.began_at IS 'when it began here';
        COMMENT ON COLUMN {schema}.lead_handovers.ended_at IS 'when it ended here; NULL: it stands still, or is under way';
        COMMENT ON COLUMN {schema}.lead_handovers.user_id IS 'the manager who was declared';
        COMMENT ON COLUMN {schema}.lead_handovers.login IS 'session_user';
        COMMENT ON COLUMN {schema}.lead_handovers.was_owner IS 'who owned it before: it is his again if this is cancelled';
        COMMENT ON COLUMN {schema}.lead_handovers.was_source IS 'how he came to it; NULL: it had no assignment';
        ALTER TABLE {schema}.lead_handovers ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.lead_handovers FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.lead_handovers;
        CREATE POLICY lp_inside ON {schema}.lead_handovers TO {owner} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_read ON {schema}.lead_handovers;
        CREATE POLICY lp_read ON {schema}.lead_handovers FOR SELECT TO {auditor}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.lead_handovers;
        CREATE POLICY lp_border ON {schema}.lead_handovers AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.own_border()));
        GRANT SELECT ON {schema}.lead_handovers TO {auditor}, {manager}
        """)
    )
    # Asked when the transaction commits, of what stands then.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.handover_holds()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          now_state {schema}.lead_handovers;
          here text;
          there_is boolean;
          standing text;
          holds boolean;
        BEGIN
          SELECT * INTO now_state FROM {schema}.lead_handovers AS h WHERE h.lead_id = NEW.lead_id AND h.id = NEW.id;
          SELECT l.territory INTO here FROM {schema}.host_lead(NEW.lead_id) AS l (territory);
          there_is := FOUND;
          standing := (SELECT a.source FROM {schema}.user_lead_assignments AS a
                       WHERE a.lead_id = NEW.lead_id AND a.territory = NEW.territory);
          holds := CASE
            WHEN now_state.ended_at IS NULL THEN
              here IS NOT DISTINCT FROM NEW.territory AND standing IS NOT DISTINCT FROM 'moving' AND now_state.digest <> ''
            WHEN now_state.state = 'gone' THEN NOT there_is
            ELSE coalesce(standing, '') NOT IN ('move', 'moving') END;
          IF NOT coalesce(holds, false) THEN
            RAISE EXCEPTION 'hand-over % is half done, and half a step can''t be committed', NEW.id USING ERRCODE = 'LP422';
          END IF;
          RETURN NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.handover_holds() IS
        'Trigger: a transaction commits a step of a hand-over whole or not at all';
        REVOKE ALL ON FUNCTION {schema}.handover_holds() FROM PUBLIC;
        CREATE CONSTRAINT TRIGGER lp_handover_holds AFTER INSERT OR UPDATE ON {schema}.lead_handovers
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.handover_holds();
        ALTER TABLE {schema}.lead_handovers ENABLE ALWAYS TRIGGER lp_handover_holds
        """)
    )


def create_holding() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_enforced()
        RETURNS boolean
        LANGUAGE sql
        STABLE
        RETURN EXISTS (
          SELECT FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
          WHERE t.tgrelid = {leads_name}::regclass AND p.pronamespace = {schema_name}::regnamespace AND p.proname = 'audit_edit');
        COMMENT ON FUNCTION {schema}.is_enforced() IS
        'Whether contract enforces on the leads: what is frozen is frozen there only';
        REVOKE ALL ON FUNCTION {schema}.is_enforced() FROM PUBLIC;
        CREATE FUNCTION {schema}.hold_for_move(lead {lead_id_type}, here text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
        BEGIN
          INSERT INTO {schema}.user_lead_assignments AS a (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (lead, here, author, clock_timestamp(), author, 'move')
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, assigned_at = excluded.assigned_at, assigned_by = excluded.assigned_by,
                source = excluded.source;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.hold_for_move({lead_id_type}, text) IS
        'Lets the manager who moves a lead write it, by row security like an owner, until he freezes it in the same transaction';
        REVOKE ALL ON FUNCTION {schema}.hold_for_move({lead_id_type}, text) FROM PUBLIC
        """)
    )


def create_departure() -> None:
    # The first step of either side is decided as every change of a manager's is, and a denial recorded.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.send_lead(lead {lead_id_type}, handover uuid, destination text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {declared_territory};
          remark text := concat_ws(' ', 'move to', destination, 'by hand-over', handover);
          decision text := {schema}.decide_as_manager(lead);
          standing {schema}.user_lead_assignments;
          known {schema}.lead_handovers;
        BEGIN
          IF decision <> 'manager' OR lead IS NULL THEN
            RETURN {schema}.answered(lead, 'UNASSIGN', CASE decision WHEN 'manager' THEN 'not_found' ELSE decision END, remark);
          ELSIF handover IS NULL OR NOT coalesce({schema}.is_code(destination) AND destination <> here, false) THEN
            RAISE EXCEPTION 'a hand-over needs an id and another territory' USING ERRCODE = 'LP422';
          ELSIF NOT {schema}.is_enforced() THEN
            RAISE EXCEPTION 'contract does not enforce here, and nothing can be frozen' USING ERRCODE = 'LP422';
          END IF;
          PERFORM {schema}.hold_leads(ARRAY[lead]) WHERE {named};
          SELECT * INTO standing FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          SELECT * INTO known FROM {schema}.lead_handovers AS h WHERE h.lead_id = lead AND h.id = handover FOR UPDATE;
          IF NOT FOUND THEN
            IF standing.source = 'moving' THEN
              PERFORM {schema}.require_not_moving(ARRAY[lead]);
            END IF;
            INSERT INTO {schema}.lead_handovers
              (lead_id, id, territory, elsewhere, direction, state, correlation_id, user_id, was_owner, was_source)
            VALUES (lead, handover, here, destination, 'out', 'frozen', {schema}.bounded({declared_correlation}),
                    {schema}.parse_user({declared_user}), standing.user_id, standing.source);
            PERFORM {schema}.write_audit(lead, 'UNASSIGN', 'manager', remark);
          ELSIF known.state <> 'frozen' OR known.territory <> here OR known.elsewhere <> destination THEN
            RAISE EXCEPTION 'hand-over % is another one, or has ended', handover USING ERRCODE = 'LP422';
          END IF;
          PERFORM {schema}.write_owner_column(ARRAY[lead], ARRAY[here], NULL) WHERE {named};
          PERFORM {schema}.hold_for_move(lead, here);
          RETURN decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.send_lead({lead_id_type}, uuid, text) IS
        'For the library: begins or takes up the hand-over of a lead to another database; hand_over() freezes it in the same transaction';
        REVOKE ALL ON FUNCTION {schema}.send_lead({lead_id_type}, uuid, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.send_lead({lead_id_type}, uuid, text) TO {manager}
        """)
    )


def create_arrival() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.receive_lead(lead {lead_id_type}, handover uuid, origin text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {declared_territory};
          decision text := {schema}.decide_as_manager(NULL);
          known {schema}.lead_handovers;
        BEGIN
          IF decision <> 'manager' OR lead IS NULL THEN
            RETURN {schema}.answered(lead, 'ASSIGN', CASE decision WHEN 'manager' THEN 'not_found' ELSE decision END,
              concat_ws(' ', 'move from', origin, 'by hand-over', handover));
          ELSIF handover IS NULL OR NOT coalesce({schema}.is_code(origin) AND origin <> here, false) THEN
            RAISE EXCEPTION 'a hand-over needs an id and another territory' USING ERRCODE = 'LP422';
          ELSIF NOT {schema}.is_enforced() THEN
            RAISE EXCEPTION 'contract does not enforce there, and nothing can be frozen' USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO {schema}.lead_handovers
            (lead_id, id, territory, elsewhere, direction, state, correlation_id, user_id)
          VALUES (lead, handover, here, origin, 'in', 'arriving', {schema}.bounded({declared_correlation}),
                  {schema}.parse_user({declared_user}))
          ON CONFLICT (lead_id, id) DO NOTHING;
          IF FOUND AND EXISTS (SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RAISE EXCEPTION 'lead % is in territory % already, and does not arrive', lead, here USING ERRCODE = 'LP422';
          END IF;
          SELECT * INTO known FROM {schema}.lead_handovers AS h WHERE h.lead_id = lead AND h.id = handover FOR UPDATE;
          IF known.direction <> 'in' OR known.territory <> here OR known.elsewhere <> origin THEN
            RAISE EXCEPTION 'hand-over % is another one', handover USING ERRCODE = 'LP422';
          END IF;
          RETURN decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.receive_lead({lead_id_type}, uuid, text) IS
        'For the library: begins or takes up the arrival of a lead from another database; hand_over() freezes it in the same transaction';
        REVOKE ALL ON FUNCTION {schema}.receive_lead({lead_id_type}, uuid, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.receive_lead({lead_id_type}, uuid, text) TO {manager}
        """)
    )


def create_steps() -> None:
    # hold: the manager writes the copy. freeze: nobody does. leave: the row is deleted in this transaction. finish:
    # the copy is everybody's who may claim it. cancel: out, it is its owner's again; in, the copy is deleted in
    # this transaction, and none of the same hand-over can come after it.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.hand_over(lead {lead_id_type}, handover uuid, step text, digest text DEFAULT '')
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {declared_territory};
          author {user_id_type} := {schema}.parse_user({declared_user});
          known {schema}.lead_handovers;
          remark text;
        BEGIN
          PERFORM {schema}.require_manager(here, lead, 'EDIT', concat_ws(' ', 'hand-over', handover, step));
          SELECT * INTO known FROM {schema}.lead_handovers AS h
            WHERE h.lead_id = lead AND h.id = handover AND h.territory = here FOR UPDATE;
          IF NOT FOUND OR known.ended_at IS NOT NULL THEN
            RAISE EXCEPTION 'hand-over % has ended, or there is none here', handover USING ERRCODE = 'LP422';
          END IF;
          remark := concat_ws(' ', 'move', CASE known.direction WHEN 'in' THEN 'from' ELSE 'to' END, known.elsewhere,
            CASE step WHEN 'cancel' THEN 'cancelled,' END, 'by hand-over', handover);
          CASE step || ' ' || known.direction
            WHEN 'hold in' THEN
              IF NOT EXISTS (SELECT FROM {schema}.host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
                RAISE EXCEPTION 'the lead did not arrive in territory %', here USING ERRCODE = 'LP422';
              END IF;
              PERFORM {schema}.hold_for_move(lead, here);
              PERFORM {schema}.write_audit(lead, 'EDIT', 'manager', remark);
            WHEN 'freeze in', 'freeze out' THEN
              UPDATE {schema}.user_lead_assignments AS a
              SET user_id = NULL, source = 'moving', assigned_at = clock_timestamp(), assigned_by = author
              WHERE a.lead_id = lead AND a.territory = here;
              UPDATE {schema}.lead_handovers AS h SET digest = digest WHERE h.lead_id = lead AND h.id = handover;
            WHEN 'leave out' THEN
              PERFORM {schema}.write_audit(lead, 'EDIT', 'manager', remark);
              UPDATE {schema}.lead_handovers AS h SET state = 'gone', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
            WHEN 'finish in' THEN
              -- the activities that came with it make no owner here
              UPDATE {schema}.user_lead_assignments AS a
              SET user_id = NULL, source = 'moved', assigned_at = clock_timestamp(), assigned_by = author,
                  activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
              FROM (SELECT lead AS lead_id) AS moved LEFT JOIN {schema}.derived_owners(ARRAY[lead]) AS newest ON true
              WHERE a.lead_id = moved.lead_id AND a.territory = here;
              UPDATE {schema}.lead_handovers AS h SET state = 'arrived', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM {schema}.write_audit(lead, 'UNASSIGN', 'manager', remark);
            WHEN 'cancel in' THEN
              PERFORM {schema}.hold_for_move(lead, here)
              FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here AND a.source = 'moving';
              UPDATE {schema}.lead_handovers AS h SET state = 'cancelled', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM {schema}.write_audit(lead, 'UNASSIGN', 'manager', remark, NULL, here);
            WHEN 'cancel out' THEN
              IF known.was_source IS NULL THEN
                DELETE FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here;
              ELSE
                UPDATE {schema}.user_lead_assignments AS a
                SET user_id = known.was_owner, source = known.was_source, assigned_at = clock_timestamp(), assigned_by = author
                WHERE a.lead_id = lead AND a.territory = here;
              END IF;
              PERFORM {schema}.write_owner_column(ARRAY[lead], ARRAY[here], known.was_owner) WHERE {named};
              UPDATE {schema}.lead_handovers AS h SET state = 'cancelled', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM {schema}.write_audit(lead, 'ASSIGN', 'manager',
                concat_ws('; ', remark, 'back to ' || coalesce(known.was_owner::text, 'nobody')), NULL, here);
            ELSE
              RAISE EXCEPTION '% is no step of this hand-over', coalesce(step, 'NULL') USING ERRCODE = 'LP422';
          END CASE;
          RETURN step;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.hand_over({lead_id_type}, uuid, text, text) IS
        'For the library: a step of a hand-over that was begun here: hold, freeze, leave, finish or cancel; for managers of the territory';
        REVOKE ALL ON FUNCTION {schema}.hand_over({lead_id_type}, uuid, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.hand_over({lead_id_type}, uuid, text, text) TO {manager}
        """)
    )


def create_standing() -> None:
    # No lead is named: who operates a database need not know whose they are.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.standing_handovers()
        RETURNS TABLE (direction text, territory text, elsewhere text, leads bigint, since timestamptz)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT h.direction, h.territory, h.elsewhere, count(*), min(h.began_at)
          FROM {schema}.lead_handovers AS h WHERE h.ended_at IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.standing_handovers() IS
        'How many leads are on their way from here or to here, and since when the oldest';
        REVOKE ALL ON FUNCTION {schema}.standing_handovers() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.standing_handovers() TO {operator}, {auditor}, {manager}
        """)
    )
