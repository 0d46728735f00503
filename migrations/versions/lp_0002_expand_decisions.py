"""The decision, the audit's writers, and the functions that change ownership.

Why: one decision with one reason code for every caller. `decide` is the only place that knows the
rules; everything else asks it. Functions have SQL-standard bodies where they can, so that no
search_path and no temporary object can shadow what they name; the others pin their search_path.
Each function that runs as leadprotect_owner checks the login (session_user), because the caller's
policies do not apply inside it.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions and the view; they hold no data.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0002_expand_decisions"
down_revision = "lp_0001_expand_tables"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_context()
    create_code_check()
    create_decision()
    create_decision_entry_points()
    create_audit_writer()
    create_attempts()
    create_ownership()
    create_ownership_functions()
    create_rule_functions()
    create_territory_terms()
    create_view()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP VIEW {schema}.v_lead_protection"))
    op.execute(sql("DROP FUNCTION IF EXISTS {schema}.set_context(uuid, text, text)"))
    for signature in (
        "has_rules()",
        "territory_terms(text, date)",
        "revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type})",
        "grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz)",
        "unshare_lead({lead_id_type}, {user_id_type}, text)",
        "share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text)",
        "transfer_lead({lead_id_type}, {user_id_type}, text)",
        "release_lead({lead_id_type}, text)",
        "claim_lead({lead_id_type}, text)",
        "assign_lead({lead_id_type}, {user_id_type}, text)",
        "end_rules({user_id_type}, text, {schema}.protection_type, {lead_id_type})",
        "change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text)",
        "change_owner({lead_id_type}, text, {user_id_type}, text)",
        "is_manager()",
        "lead_for_ownership({lead_id_type}, boolean)",
        "assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text)",
        "allow_edit({lead_id_type}, {schema}.lead_action, text)",
        "require({lead_id_type}, {schema}.lead_action, text, text)",
        "deny({lead_id_type}, {schema}.lead_action, text, text)",
        "record_denial({lead_id_type}, {schema}.lead_action, text, text)",
        "record_edit_attempt({lead_id_type}, {schema}.lead_action, text)",
        "write_audit({lead_id_type}, {schema}.lead_action, text, text)",
        "editable_leads({lead_id_type}, integer)",
        "editable_among({lead_id_type}[])",
        "explain_edit({lead_id_type})",
        "can_edit_lead({lead_id_type})",
        "decide({lead_id_type}, text, text)",
        "decision({lead_id_type}, {user_id_type}, text)",
        "in_force(boolean, timestamptz, timestamptz)",
        "is_code(text)",
        "set_context(text, text, text)",
        "context()",
        "parse_user(text)",
    ):
        op.execute(sql("DROP FUNCTION {schema}." + signature))
    op.execute("RESET ROLE")


def create_context() -> None:
    # A malformed id is nobody's id: NULL, never a cast error that would abort the transaction. The
    # pattern is what uuid_in accepts (any case, braces, a hyphen after any group of four digits);
    # the usual form is recognised without it, because the pattern costs more than the decision.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.parse_user(declared text)
        RETURNS {user_id_type}
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN CASE
          WHEN '{user_id_type}' = 'text' THEN
            CASE WHEN declared <> '' THEN declared END
          WHEN declared LIKE '________-____-____-____-____________'
            AND pg_catalog.translate(declared, '0123456789abcdefABCDEF', '') = '----' THEN declared
          WHEN declared ~ '^(([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|[{]([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}[}])$'
            THEN declared
        END::{user_id_type}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.context(OUT user_id text, OUT territory text, OUT correlation_id text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT pg_catalog.current_setting({user_guc}, true),
                 pg_catalog.current_setting({territory_guc}, true),
                 pg_catalog.current_setting({correlation_guc}, true);
        END
        """)
    )
    # The settings are transaction-local: nothing is left for the pool's next user.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.set_context(user_id text, territory text, correlation_id text DEFAULT NULL)
        RETURNS void
        LANGUAGE sql
        VOLATILE
        BEGIN ATOMIC
          SELECT pg_catalog.set_config({user_guc}, coalesce(user_id, ''), true),
                 pg_catalog.set_config({territory_guc}, coalesce(territory, ''), true),
                 pg_catalog.set_config({correlation_guc}, coalesce(correlation_id, ''), true);
        END
        """)
    )
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF '{user_id_type}' = 'uuid' THEN
            -- for callers that hold the id as a uuid: there is no implicit cast to text
            CREATE FUNCTION {schema}.set_context(user_id uuid, territory text, correlation_id text DEFAULT NULL)
            RETURNS void
            LANGUAGE sql
            VOLATILE
            BEGIN ATOMIC
              SELECT {schema}.set_context(user_id::text, territory, correlation_id);
            END;
            REVOKE ALL ON FUNCTION {schema}.set_context(uuid, text, text) FROM PUBLIC;
            GRANT EXECUTE ON FUNCTION {schema}.set_context(uuid, text, text) TO {app}, {auditor}, {manager};
          END IF;
        END
        $do$
        """)
    )
    grant("parse_user(text)", "{app}, {auditor}, {manager}")
    grant("context()", "{app}, {auditor}, {manager}")
    grant("set_context(text, text, text)", "{app}, {auditor}, {manager}")


def create_code_check() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_code(territory text)
        RETURNS boolean
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN territory ~ '^[A-Za-z][A-Za-z0-9_]{0,15}$'
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.is_code(text) IS
        'Whether this can be the code of a territory; anything else is malformed'
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.is_code(text) FROM PUBLIC"))


def create_decision() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.in_force(active boolean, effective_from timestamptz, effective_to timestamptz)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN active
          AND effective_from <= pg_catalog.statement_timestamp()
          AND (effective_to IS NULL OR pg_catalog.statement_timestamp() < effective_to)
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.in_force(boolean, timestamptz, timestamptz) FROM PUBLIC"))
    # The decision about a known caller. Index probes only: the primary keys of leads and
    # assignments, ix_lpr_user for the rules, which are asked only when the answer depends on them.
    # Internal: the planner inlines it into the functions below, which run as the owner.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decision(lead {lead_id_type}, caller {user_id_type}, here text)
        RETURNS TABLE (reason text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT CASE
            WHEN EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = decision.caller AND r.territory = decision.here AND r.protection = 'VIEW_ONLY' AND r.lead_id IS NULL
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
              OR EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = decision.caller AND r.territory = decision.here AND r.protection = 'VIEW_ONLY' AND r.lead_id = decision.lead
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to)) THEN 'suspended'
            WHEN a.user_id = decision.caller THEN 'owner'
            WHEN EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = decision.caller AND r.territory = decision.here AND r.protection = 'COLLABORATOR' AND r.lead_id = decision.lead
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to)) THEN 'collaborator'
            WHEN EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = decision.caller AND r.territory = decision.here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
              AND NOT EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS sole
              WHERE sole.user_id = a.user_id AND sole.territory = decision.here AND sole.protection = 'SOLE_OWNER'
                AND (sole.lead_id IS NULL OR sole.lead_id = decision.lead)
                AND {schema}.in_force(sole.active, sole.effective_from, sole.effective_to)) THEN 'collaborator'
            WHEN a.user_id IS NULL THEN 'unassigned'
            ELSE 'not_owner'
          END
          FROM {leads} AS l
          LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = decision.lead AND a.territory = decision.here
          WHERE l.{lead_id} = decision.lead AND l.{territory} = decision.here;
        END
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.decision({lead_id_type}, {user_id_type}, text) FROM PUBLIC"))
    # Who has no rule at all, the most of all callers, is answered by two probes and not five. In
    # PL/pgSQL because its plans last for the session; a body in SQL is planned anew in every call
    # before PostgreSQL 18. The cost is honest, so that a page of the view is not made of all leads.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text)
        RETURNS text
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER COST 1000
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          caller {user_id_type} := {schema}.parse_user(declared_user);
          owner {user_id_type};
          has_rules boolean;
        BEGIN
          IF caller IS NULL OR declared_territory IS NULL THEN
            RETURN 'no_context';
          END IF;
          SELECT a.user_id, EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = caller AND r.territory = declared_territory)
          INTO owner, has_rules
          FROM {leads} AS l
          LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = lead AND a.territory = declared_territory
          WHERE l.{lead_id} = lead AND l.{territory} = declared_territory;
          IF NOT FOUND OR NOT {schema}.is_member(declared_territory) THEN
            -- what can't be a code is no context; asked last, because who finds his lead declared one
            RETURN CASE WHEN {schema}.is_code(declared_territory) THEN 'not_found' ELSE 'no_context' END;
          ELSIF has_rules THEN
            RETURN (SELECT d.reason FROM {schema}.decision(lead, caller, declared_territory) AS d);
          END IF;
          RETURN CASE WHEN owner IS NULL THEN 'unassigned' WHEN owner = caller THEN 'owner' ELSE 'not_owner' END;
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.decide({lead_id_type}, text, text) IS
        'The decision: no_context, not_found, suspended, owner, collaborator, unassigned or not_owner'
        """)
    )
    grant("decide({lead_id_type}, text, text)", "{app}, {auditor}, {manager}")


def create_decision_entry_points() -> None:
    # Without SECURITY DEFINER the planner inlines these two: a prepared statement calls decide directly.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.can_edit_lead(lead {lead_id_type})
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT {schema}.decide(lead, pg_catalog.current_setting({user_guc}, true),
                                 pg_catalog.current_setting({territory_guc}, true))
                 IN ('owner', 'collaborator');
        END
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.explain_edit(lead {lead_id_type}, OUT reason text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT {schema}.decide(lead, pg_catalog.current_setting({user_guc}, true),
                                 pg_catalog.current_setting({territory_guc}, true));
        END
        """)
    )
    # Which of many leads the caller may edit. His own are found in his part of ix_ula_user, so a lead of
    # somebody else costs one probe of few pages, and none of the tables.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.editable_among(leads {lead_id_type}[])
        RETURNS TABLE (lead {lead_id_type}, reason text)
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := current_setting({territory_guc}, true);
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT {schema}.is_member(here) THEN
            RETURN;
          ELSIF EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r WHERE r.user_id = caller AND r.territory = here)
          THEN
            RETURN QUERY
              SELECT asked.lead, d.reason
              FROM unnest(leads) AS asked (lead), LATERAL {schema}.decision(asked.lead, caller, here) AS d
              WHERE d.reason IN ('owner', 'collaborator');
          ELSE
            RETURN QUERY
              SELECT a.lead_id, 'owner'
              FROM {schema}.user_lead_assignments AS a
              JOIN {leads} AS l ON l.{lead_id} = a.lead_id AND l.{territory} = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id = ANY (leads);
          END IF;
        END
        $body$
        """)
    )
    # A page of what the caller may edit, in the order of the lead's id. Candidates come in order
    # from an index (own leads, leads shared one by one, or for a collaborator of the whole territory
    # all of its leads), and the decision is asked until the page is full. Plans are pinned to such
    # probes and kept: with a LIMIT that it knows, the planner plans every call anew, at the price of
    # a page. `first` serves the index where `after` is NULL.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.editable_leads(after {lead_id_type}, page_size integer)
        RETURNS TABLE (lead {lead_id_type}, reason text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := current_setting({territory_guc}, true);
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          first {lead_id_type} := after;
          everywhere boolean;
          has_rules boolean;
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT {schema}.is_member(here) THEN
            RETURN;
          END IF;
          IF first IS NULL THEN
            SELECT l.{lead_id} INTO first FROM {leads} AS l ORDER BY l.{lead_id} LIMIT 1;
          END IF;
          SELECT count(*) > 0,
                 coalesce(bool_or(r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                   AND {schema}.in_force(r.active, r.effective_from, r.effective_to)), false)
          INTO has_rules, everywhere
          FROM {schema}.lead_protection_rules AS r WHERE r.user_id = caller AND r.territory = here;
          IF everywhere THEN
            RETURN QUERY
              SELECT l.{lead_id}, d.reason
              FROM {leads} AS l, LATERAL {schema}.decision(l.{lead_id}, caller, here) AS d
              WHERE l.{territory} = here AND l.{lead_id} >= first AND l.{lead_id} IS DISTINCT FROM after
                AND d.reason IN ('owner', 'collaborator')
              ORDER BY l.{lead_id} LIMIT page_size;
          ELSIF has_rules THEN
            RETURN QUERY
              SELECT candidate.lead_id, d.reason
              FROM (
                (SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
                 WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                 ORDER BY a.lead_id)
                UNION
                SELECT r.lead_id FROM {schema}.lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                  AND r.lead_id >= first
                  AND {schema}.in_force(r.active, r.effective_from, r.effective_to)
                ORDER BY 1
              ) AS candidate, LATERAL {schema}.decision(candidate.lead_id, caller, here) AS d
              WHERE candidate.lead_id IS DISTINCT FROM after AND d.reason IN ('owner', 'collaborator')
              ORDER BY candidate.lead_id LIMIT page_size;
          ELSE
            RETURN QUERY
              SELECT a.lead_id, 'owner'
              FROM {schema}.user_lead_assignments AS a
              JOIN {leads} AS l ON l.{lead_id} = a.lead_id AND l.{territory} = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                AND a.lead_id IS DISTINCT FROM after
              ORDER BY a.lead_id LIMIT page_size;
          END IF;
        END
        $body$
        """)
    )
    grant("can_edit_lead({lead_id_type})", "{app}, {auditor}, {manager}")
    grant("explain_edit({lead_id_type})", "{app}, {auditor}, {manager}")
    grant("editable_among({lead_id_type}[])", "{app}, {auditor}, {manager}")
    grant("editable_leads({lead_id_type}, integer)", "{app}, {manager}")


def create_audit_writer() -> None:
    # Facts that the caller can't choose: login, role, time, transaction. What he declared is kept
    # in the note when it can't be stored as it is. The audit tells an unknown lead from one of
    # another territory; the answer to the caller does not.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.write_audit(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          declared_user text := current_setting({user_guc}, true);
          declared_territory text := current_setting({territory_guc}, true);
          known_user {user_id_type} := {schema}.parse_user(declared_user);
          known_territory text := declared_territory;
          remark text := nullif(note, '');
          recorded text := decision;
        BEGIN
          -- an owner or collaborator declared a user and a territory that exist: nothing is left to look up
          IF decision NOT IN ('owner', 'collaborator') THEN
            SELECT t.code INTO known_territory FROM {schema}.territories AS t WHERE t.code = declared_territory;
            remark := nullif(concat_ws('; ', note,
              CASE WHEN known_user IS NULL AND declared_user <> '' THEN
                format('declared user %L', left(declared_user, 100)) END,
              CASE WHEN known_territory IS NULL AND declared_territory <> '' THEN
                format('declared territory %L', left(declared_territory, 100)) END), '');
            IF decision = 'manager' THEN
              -- his right needs no declared territory, but the row belongs to the lead's
              known_territory := (SELECT l.{territory} FROM {leads} AS l WHERE l.{lead_id} = lead);
            ELSIF decision = 'not_found' THEN
              recorded := CASE WHEN EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = lead)
                THEN 'other_territory' ELSE 'unknown_lead' END;
            END IF;
          END IF;
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
          VALUES (
            lead,
            known_user,
            coalesce(nullif(current_setting('role'), 'none'), session_user),
            known_territory,
            coalesce(action, 'EDIT'),
            CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'maintenance')
              THEN 'ALLOW'::{schema}.lead_access_outcome ELSE 'DENY'::{schema}.lead_access_outcome END,
            recorded,
            remark,
            nullif(current_setting({correlation_guc}, true), ''));
        END
        $body$
        """)
    )
    op.execute(
        sql("REVOKE ALL ON FUNCTION {schema}.write_audit({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC")
    )


def create_attempts() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.record_edit_attempt(
          lead {lead_id_type}, action {schema}.lead_action DEFAULT 'EDIT', note text DEFAULT NULL)
        RETURNS boolean
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          decision text := {schema}.explain_edit(lead);
        BEGIN
          IF lead IS NULL THEN
            RETURN false;
          END IF;
          PERFORM {schema}.write_audit(lead, action, decision, note);
          RETURN decision IN ('owner', 'collaborator');
        END
        $body$
        """)
    )
    # For the library: a denial that was answered in another transaction, written in one of its own.
    # It can write a DENY only, so nothing is gained by calling it with a lie.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.record_denial(
          lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          IF decision NOT IN ('no_context', 'not_found', 'suspended', 'unassigned', 'not_owner') THEN
            RAISE EXCEPTION '% is not a reason of a denial', decision USING ERRCODE = 'LP422';
          ELSIF decision NOT IN ('no_context', 'not_found') AND current_setting({territory_guc}, true) <> ''
            AND NOT {schema}.is_member(current_setting({territory_guc}, true)) THEN
            -- nobody is answered so about another territory
            RAISE EXCEPTION 'reason % is not of this login', decision USING ERRCODE = 'LP422';
          END IF;
          IF lead IS NOT NULL THEN
            PERFORM {schema}.write_audit(lead, action, decision, note);
          END IF;
        END
        $body$
        """)
    )
    # A raised denial can't keep its row (the exception rolls it back): the number drawn from the
    # audit's sequence stays as a gap, and the server's log has the facts.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.deny(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          number bigint := nextval('{schema}.lead_access_audit_id_seq');
        BEGIN
          RAISE LOG 'leadprotect denial %: lead %, action %, reason %, user %, territory %, login %, correlation %, note %',
            number, quote_nullable(lead::text), action, decision,
            quote_nullable(left(current_setting({user_guc}, true), 100)),
            quote_nullable(left(current_setting({territory_guc}, true), 100)),
            quote_ident(session_user), quote_nullable(left(current_setting({correlation_guc}, true), 100)),
            quote_nullable(left(note, 200));
          RAISE EXCEPTION 'access to the lead denied' USING ERRCODE = 'LP403', DETAIL = decision;
        END
        $body$
        """)
    )
    op.execute(
        sql("REVOKE ALL ON FUNCTION {schema}.deny({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC")
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF decision NOT IN ('owner', 'collaborator', 'manager') THEN
            PERFORM {schema}.deny(lead, action, decision, note);
          END IF;
        END
        $body$
        """)
    )
    op.execute(
        sql("REVOKE ALL ON FUNCTION {schema}.require({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC")
    )
    # Allowed means: the rows on which the answer rests are locked until the caller's transaction
    # ends, so a transfer or a revocation waits for the edit; the decision is made under the lock, in
    # a snapshot of its own. Denied: only the reason is returned, for the caller to record.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.allow_edit(
          lead {lead_id_type}, action {schema}.lead_action DEFAULT 'EDIT', note text DEFAULT NULL)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          here text := current_setting({territory_guc}, true);
          decision text;
        BEGIN
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id = caller AND {schema}.is_member(here) FOR SHARE;
          decision := {schema}.explain_edit(lead);
          IF decision = 'collaborator' THEN
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                AND (r.lead_id IS NULL OR r.lead_id = lead) FOR SHARE;
            decision := {schema}.explain_edit(lead);
          END IF;
          IF decision IN ('owner', 'collaborator') THEN
            PERFORM {schema}.write_audit(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.assert_edit_and_audit(
          lead {lead_id_type}, action {schema}.lead_action DEFAULT 'EDIT', note text DEFAULT NULL)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          decision text := {schema}.allow_edit(lead, action, note);
        BEGIN
          IF decision NOT IN ('owner', 'collaborator') THEN
            PERFORM {schema}.deny(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $body$
        """)
    )
    grant("allow_edit({lead_id_type}, {schema}.lead_action, text)", "{app}, {manager}")
    for name in ("record_edit_attempt", "assert_edit_and_audit"):
        grant(name + "({lead_id_type}, {schema}.lead_action, text)", "{app}, {manager}")
    grant("record_denial({lead_id_type}, {schema}.lead_action, text, text)", "{app}, {manager}")


def create_ownership() -> None:
    # Returns the territory in which the caller may change ownership of this lead, or NULL: an
    # unknown lead and a lead behind the border look alike. A manager needs no declared user, his
    # right rests on his login; what he does declare must be well formed and narrows him like anybody else.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_for_ownership(lead {lead_id_type}, manager boolean)
        RETURNS text
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT l.{territory}
          FROM {leads} AS l
          WHERE l.{lead_id} = lead_for_ownership.lead AND {schema}.is_member(l.{territory})
            AND (l.{territory} = pg_catalog.current_setting({territory_guc}, true)
                 OR lead_for_ownership.manager AND coalesce(pg_catalog.current_setting({territory_guc}, true), '') = '');
        END
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.lead_for_ownership({lead_id_type}, boolean) FROM PUBLIC"))
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_manager()
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN pg_catalog.pg_has_role(session_user, {manager_name}, 'MEMBER')
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.is_manager() FROM PUBLIC"))
    # All changes of ownership. Returns the right by which it was done (owner, manager), or the
    # reason of the denial, which is not yet recorded. The row's lock comes before the decision, so
    # two claims can't both win; a denied one leaves nothing behind.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_owner(lead {lead_id_type}, change text, new_owner {user_id_type}, note text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          manager boolean := {schema}.is_manager() AND change <> 'claim';
          here text := {schema}.lead_for_ownership(lead, manager);
          standing {schema}.user_lead_assignments;
          decision text;
        BEGIN
          IF change NOT IN ('assign', 'claim', 'release', 'transfer') THEN
            RAISE EXCEPTION '% is no change of ownership', change USING ERRCODE = 'LP422';
          ELSIF change IN ('assign', 'transfer') AND new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          IF here IS NOT NULL AND change <> 'claim' THEN
            SELECT * INTO standing FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          END IF;
          decision := {schema}.explain_edit(lead);
          IF change = 'claim' THEN
            new_owner := author;
            IF decision NOT IN ('owner', 'collaborator', 'unassigned') THEN
              RETURN decision;
            END IF;
          ELSIF manager THEN
            IF author IS NULL AND current_setting({user_guc}, true) <> '' THEN
              RETURN 'no_context';
            ELSIF here IS NULL THEN
              RETURN 'not_found';
            ELSIF change = 'transfer' AND standing.user_id IS NULL THEN
              RETURN 'unassigned';
            END IF;
            decision := 'manager';
          ELSIF change <> 'release' OR decision <> 'owner' THEN
            -- a collaborator may edit, but the lead is not his to give away
            RETURN CASE WHEN decision IN ('owner', 'collaborator') THEN 'not_owner' ELSE decision END;
          ELSE
            new_owner := NULL;
          END IF;
          IF change = 'release' THEN
            new_owner := NULL;
          ELSIF change <> 'claim' AND EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = here AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = lead)
              AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RAISE EXCEPTION 'the new owner is suspended in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO {schema}.user_lead_assignments AS a
            (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (lead, here, new_owner, clock_timestamp(), author, change)
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, assigned_at = excluded.assigned_at,
                assigned_by = excluded.assigned_by, source = excluded.source,
                activity_at = NULL, activity_id = NULL
            WHERE change <> 'claim' OR a.user_id IS NULL OR a.user_id = excluded.user_id;
          IF NOT FOUND THEN
            RETURN 'not_owner';
          END IF;
          decision := CASE decision WHEN 'manager' THEN decision ELSE 'owner' END;
          PERFORM {schema}.write_audit(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action, decision,
            concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')));
          RETURN decision;
        END
        $body$
        """)
    )
    grant("change_owner({lead_id_type}, text, {user_id_type}, text)", "{app}, {manager}")
    # Who may edit besides the owner. A share is ended, never deleted: the audit can still tell who
    # could edit a lead at a given time.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_sharing(
          lead {lead_id_type}, change text, with_user {user_id_type}, effective_from timestamptz,
          effective_to timestamptz, note text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          manager boolean := {schema}.is_manager();
          here text := {schema}.lead_for_ownership(lead, manager);
          starts timestamptz := coalesce(effective_from, clock_timestamp());
          decision text;
        BEGIN
          IF change NOT IN ('share', 'unshare') THEN
            RAISE EXCEPTION '% is no change of sharing', change USING ERRCODE = 'LP422';
          ELSIF with_user IS NULL THEN
            RAISE EXCEPTION 'the user to share with is missing' USING ERRCODE = 'LP422';
          ELSIF change = 'share' AND effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          END IF;
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
          decision := {schema}.explain_edit(lead);
          IF here IS NULL THEN
            RETURN CASE decision WHEN 'no_context' THEN decision ELSE 'not_found' END;
          ELSIF manager THEN
            IF current_setting({user_guc}, true) <> '' AND {schema}.parse_user(current_setting({user_guc}, true)) IS NULL THEN
              RETURN 'no_context';
            END IF;
            decision := 'manager';
          ELSIF decision <> 'owner' THEN
            RETURN CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END;
          END IF;
          IF change = 'share' THEN
            INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
            VALUES (with_user, here, 'COLLABORATOR', lead, starts, change_sharing.effective_to)
            ON CONFLICT DO NOTHING;
          ELSE
            PERFORM {schema}.end_rules(with_user, here, 'COLLABORATOR', lead);
          END IF;
          PERFORM {schema}.write_audit(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::{schema}.lead_action, decision,
            concat_ws('; ', note, change || ' with ' || with_user));
          RETURN decision;
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.end_rules(
          of_user {user_id_type}, here text, kind {schema}.protection_type, lead {lead_id_type})
        RETURNS integer
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
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
        $body$
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON FUNCTION {schema}.end_rules({user_id_type}, text, {schema}.protection_type, {lead_id_type})
        FROM PUBLIC
        """)
    )
    grant("change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text)", "{app}, {manager}")


def create_ownership_functions() -> None:
    # For plain SQL: the same changes, and a denial is raised.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.claim_lead(lead {lead_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.change_owner(lead, 'claim', NULL, note), note);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.release_lead(lead {lead_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'UNASSIGN', {schema}.change_owner(lead, 'release', NULL, note), note);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.assign_lead(lead {lead_id_type}, new_owner {user_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.change_owner(lead, 'assign', new_owner, note), note);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.transfer_lead(lead {lead_id_type}, new_owner {user_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.change_owner(lead, 'transfer', new_owner, note), note);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.share_lead(
          lead {lead_id_type}, with_user {user_id_type}, effective_from timestamptz DEFAULT NULL,
          effective_to timestamptz DEFAULT NULL, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'ASSIGN',
            {schema}.change_sharing(lead, 'share', with_user, effective_from, effective_to, note), note);
        END
        $body$
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unshare_lead(lead {lead_id_type}, with_user {user_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.require(lead, 'UNASSIGN',
            {schema}.change_sharing(lead, 'unshare', with_user, NULL, NULL, note), note);
        END
        $body$
        """)
    )
    # Sellers take, give back and share; only a manager decides about somebody else.
    grant("claim_lead({lead_id_type}, text)", "{app}, {manager}")
    grant("release_lead({lead_id_type}, text)", "{app}, {manager}")
    grant("share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text)", "{app}, {manager}")
    grant("unshare_lead({lead_id_type}, {user_id_type}, text)", "{app}, {manager}")
    grant("assign_lead({lead_id_type}, {user_id_type}, text)", "{manager}")
    grant("transfer_lead({lead_id_type}, {user_id_type}, text)", "{manager}")


def create_rule_functions() -> None:
    # Rules of any kind, for one lead or a whole territory: a manager's, and the row says who made it.
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
        #variable_conflict use_variable
        DECLARE
          starts timestamptz := coalesce(effective_from, clock_timestamp());
        BEGIN
          IF NOT {schema}.is_manager() OR NOT {schema}.is_member(here) THEN
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'insufficient_privilege';
          ELSIF of_user IS NULL OR kind IS NULL THEN
            RAISE EXCEPTION 'a rule needs a user and a protection' USING ERRCODE = 'LP422';
          ELSIF effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          ELSIF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM {leads} AS l WHERE l.{lead_id} = lead AND l.{territory} = here) THEN
            RAISE EXCEPTION 'there is no such lead in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
          VALUES (of_user, here, kind, lead, starts, grant_protection.effective_to)
          ON CONFLICT DO NOTHING;
        END
        $body$
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
          IF NOT {schema}.is_manager() OR NOT {schema}.is_member(here) THEN
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'insufficient_privilege';
          END IF;
          RETURN {schema}.end_rules(of_user, here, kind, lead);
        END
        $body$
        """)
    )
    grant(
        "grant_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type}, timestamptz, timestamptz)",
        "{manager}",
    )
    grant("revoke_protection({user_id_type}, text, {schema}.protection_type, {lead_id_type})", "{manager}")


def create_territory_terms() -> None:
    # Legal terms are public knowledge: readable without a context, for every territory.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.territory_terms(territory text, on_date date)
        RETURNS TABLE (code text, name text, currency text, legal_framework text, vat_rate numeric)
        LANGUAGE sql
        STABLE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT t.code, t.name, t.currency, t.legal_framework, v.rate
          FROM {schema}.territories AS t
          LEFT JOIN {schema}.territory_vat_rates AS v
            ON v.territory = t.code AND v.valid_from <= on_date AND (v.valid_to IS NULL OR on_date <= v.valid_to)
          WHERE t.code = territory_terms.territory;
        END
        """)
    )
    grant("territory_terms(text, date)", "{app}, {auditor}, {operator}, {manager}")


def create_view() -> None:
    # Whether the caller has any rule in his territory; without one, ownership alone decides.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.has_rules()
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = {schema}.parse_user(pg_catalog.current_setting({user_guc}, true))
              AND r.territory = pg_catalog.current_setting({territory_guc}, true));
        END
        """)
    )
    grant("has_rules()", "{app}, {auditor}, {manager}")
    # Before contract the host's leads have no policies, so the view draws the border itself. What
    # does not depend on the lead is asked once, in sub-selects: a dashboard reads many leads. Two
    # columns that say the same, so that a count of the leads needs neither them nor the owner.
    op.execute(
        sql("""
        CREATE VIEW {schema}.v_lead_protection
        WITH (security_invoker = true, security_barrier = true) AS
        SELECT l.{lead_id} AS lead,
               l.{territory}::text AS territory,
               a.user_id AS owner,
               CASE
                 WHEN (SELECT {schema}.parse_user(pg_catalog.current_setting({user_guc}, true)) IS NULL) THEN false
                 WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead(l.{lead_id})
                 ELSE coalesce(
                   a.user_id = (SELECT {schema}.parse_user(pg_catalog.current_setting({user_guc}, true))), false)
               END AS can_edit,
               CASE
                 WHEN (SELECT {schema}.parse_user(pg_catalog.current_setting({user_guc}, true)) IS NULL) THEN 'no_context'
                 WHEN (SELECT {schema}.has_rules()) THEN {schema}.explain_edit(l.{lead_id})
                 WHEN a.user_id IS NULL THEN 'unassigned'
                 WHEN a.user_id = (SELECT {schema}.parse_user(pg_catalog.current_setting({user_guc}, true))) THEN 'owner'
                 ELSE 'not_owner'
               END AS reason
        FROM {leads} AS l
        LEFT JOIN {schema}.user_lead_assignments AS a
          ON a.lead_id = l.{lead_id} AND a.territory = l.{territory}
        WHERE l.{territory} = (SELECT pg_catalog.current_setting({territory_guc}, true))
          AND (SELECT {schema}.is_member(pg_catalog.current_setting({territory_guc}, true)))
        """)
    )
    op.execute(
        sql("""
        COMMENT ON VIEW {schema}.v_lead_protection IS
        'Who owns each lead of the territory in context, and whether the user in context may edit it'
        """)
    )
    op.execute(sql("REVOKE ALL ON {schema}.v_lead_protection FROM PUBLIC"))
    op.execute(sql("GRANT SELECT ON {schema}.v_lead_protection TO {app}, {auditor}, {manager}"))


def grant(signature: str, roles: str) -> None:
    """EXECUTE is PUBLIC's by default: taken away, then given to those who need it."""
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}." + signature + " FROM PUBLIC"))
    op.execute(sql("GRANT EXECUTE ON FUNCTION {schema}." + signature + " TO " + roles))
