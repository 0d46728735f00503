"""Rules of managers: who may edit more, or nothing, besides what ownership says.

Why: a manager grants, suspends and revokes under the same locks as a change of ownership, and each change is
recorded. Whom an owner shares his lead with is asked here, too.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions; they hold no data.
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
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
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
