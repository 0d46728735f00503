"""The decision, the audit's writers, and the functions that change ownership.

Why: one decision with one reason code for every caller. `decide` is the only place that knows the
rules; everything else asks it. Functions have SQL-standard bodies where they can, so that no
search_path and no temporary object can shadow what they name; the others pin their search_path.
Each function that runs as leadprotect_owner checks the login (session_user), because the caller's
policies do not apply inside it.

Locks on host tables: none.

Undone by: dropping the functions and the view; they hold no data.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0002_expand_decisions"
down_revision = "lp_0001_expand_tables"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_context()
    create_membership()
    create_decision()
    create_decision_entry_points()
    create_audit_writer()
    create_attempts()
    create_ownership_guard()
    create_ownership_functions()
    create_territory_terms()
    create_view()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP VIEW {schema}.v_lead_protection"))
    op.execute(sql("DROP FUNCTION IF EXISTS {schema}.set_context(uuid, text, text)"))
    for signature in (
        "territory_terms(text, date)",
        "transfer_lead({lead_id_type}, {user_id_type}, text)",
        "release_lead({lead_id_type}, text)",
        "claim_lead({lead_id_type}, text)",
        "assign_lead({lead_id_type}, {user_id_type}, text)",
        "set_owner({lead_id_type}, text, {user_id_type}, text, text)",
        "lead_for_ownership({lead_id_type}, boolean)",
        "deny({lead_id_type}, {schema}.lead_action, text, text)",
        "assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text)",
        "record_denial({lead_id_type}, {schema}.lead_action, text, text)",
        "record_edit_attempt({lead_id_type}, {schema}.lead_action, text)",
        "write_audit({lead_id_type}, {schema}.lead_action, text, text)",
        "editable_leads({lead_id_type}, integer)",
        "explain_many({lead_id_type}[])",
        "explain_edit({lead_id_type})",
        "can_edit_lead({lead_id_type})",
        "decide({lead_id_type}, text, text)",
        "in_force(boolean, timestamptz, timestamptz)",
        "is_member(text)",
        "set_context(text, text, text)",
        "context()",
        "parse_user(text)",
    ):
        op.execute(sql("DROP FUNCTION {schema}." + signature))
    op.execute("RESET ROLE")


def create_context() -> None:
    # A malformed id is nobody's id: NULL, never a cast error that would abort the transaction.
    # The pattern is what uuid_in accepts: any case, braces, a hyphen after any group of four digits.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.parse_user(declared text)
        RETURNS {user_id_type}
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN CASE
          WHEN '{user_id_type}' = 'text' THEN
            CASE WHEN declared <> '' THEN declared END
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


def create_membership() -> None:
    # The border is the login: session_user can't be changed by SET ROLE or inside a definer function.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_member(territory text)
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN coalesce(
          pg_catalog.pg_has_role(
            session_user,
            pg_catalog.to_regrole(pg_catalog.quote_ident({role_prefix} || pg_catalog.lower(territory)))::oid,
            'MEMBER'),
          false)
        """)
    )
    op.execute(
        sql("""
        COMMENT ON FUNCTION {schema}.is_member(text) IS
        'Whether the login (session_user) holds the role of this territory'
        """)
    )
    grant("is_member(text)", "{app}, {auditor}, {manager}")


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
    # Index probes only: the primary keys of leads and assignments, ix_lpr_user for the rules, which
    # are asked only when the answer depends on them.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text)
        RETURNS text
        LANGUAGE sql
        STABLE PARALLEL SAFE SECURITY DEFINER
        BEGIN ATOMIC
          SELECT CASE
            WHEN caller.user_id IS NULL OR declared_territory IS NULL
              OR declared_territory !~ '^[A-Za-z][A-Za-z0-9_]{0,15}$' THEN 'no_context'
            WHEN l.{lead_id} IS NULL OR NOT {schema}.is_member(declared_territory) THEN 'not_found'
            WHEN EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller.user_id AND r.territory = declared_territory
                AND r.protection = 'VIEW_ONLY' AND (r.lead_id IS NULL OR r.lead_id = lead)
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to)) THEN 'suspended'
            WHEN a.user_id = caller.user_id THEN 'owner'
            WHEN EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller.user_id AND r.territory = declared_territory
                AND r.protection = 'COLLABORATOR'
                AND (r.lead_id = lead OR r.lead_id IS NULL AND NOT EXISTS (
                  SELECT FROM {schema}.lead_protection_rules AS sole
                  WHERE sole.user_id = a.user_id AND sole.territory = declared_territory
                    AND sole.protection = 'SOLE_OWNER' AND (sole.lead_id IS NULL OR sole.lead_id = lead)
                    AND {schema}.in_force(sole.active, sole.effective_from, sole.effective_to)))
                AND {schema}.in_force(r.active, r.effective_from, r.effective_to)) THEN 'collaborator'
            WHEN a.user_id IS NULL THEN 'unassigned'
            ELSE 'not_owner'
          END
          FROM (SELECT {schema}.parse_user(declared_user) AS user_id) AS caller
          LEFT JOIN {leads} AS l ON l.{lead_id} = lead AND l.{territory} = declared_territory
          LEFT JOIN {schema}.user_lead_assignments AS a
            ON a.lead_id = lead AND a.territory = declared_territory;
        END
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
    # Without SECURITY DEFINER the planner inlines these: a prepared statement calls decide directly.
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
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.explain_many(leads {lead_id_type}[])
        RETURNS TABLE (lead {lead_id_type}, reason text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT asked.lead, {schema}.decide(asked.lead, pg_catalog.current_setting({user_guc}, true),
                                             pg_catalog.current_setting({territory_guc}, true))
          FROM unnest(leads) AS asked (lead);
        END
        """)
    )
    # A page of what the caller may edit, in the order of the lead's id. Candidates come from
    # indexes (own leads, leads shared one by one, or the territory's leads for a collaborator of
    # the whole territory); decide has the last word on each.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.editable_leads(after {lead_id_type}, page_size integer)
        RETURNS TABLE (lead {lead_id_type}, reason text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          here text := current_setting({territory_guc}, true);
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT {schema}.is_member(here) THEN
            RETURN;
          END IF;
          IF EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
              AND r.lead_id IS NULL AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RETURN QUERY
              SELECT l.{lead_id}, d.reason
              FROM {leads} AS l, LATERAL (SELECT {schema}.decide(l.{lead_id}, caller::text, here) OFFSET 0) AS d (reason)
              WHERE l.{territory} = here AND (after IS NULL OR l.{lead_id} > after)
                AND d.reason IN ('owner', 'collaborator')
              ORDER BY l.{lead_id} LIMIT page_size;
          ELSE
            RETURN QUERY
              SELECT candidate.lead_id, d.reason
              FROM (
                SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
                WHERE a.user_id = caller AND a.territory = here AND (after IS NULL OR a.lead_id > after)
                UNION
                SELECT r.lead_id FROM {schema}.lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                  AND r.lead_id IS NOT NULL AND (after IS NULL OR r.lead_id > after)
                  AND {schema}.in_force(r.active, r.effective_from, r.effective_to)
                ORDER BY 1
              ) AS candidate, LATERAL (SELECT {schema}.decide(candidate.lead_id, caller::text, here) OFFSET 0) AS d (reason)
              WHERE d.reason IN ('owner', 'collaborator')
              ORDER BY candidate.lead_id LIMIT page_size;
          END IF;
        END
        $body$
        """)
    )
    grant("can_edit_lead({lead_id_type})", "{app}, {auditor}, {manager}")
    grant("explain_edit({lead_id_type})", "{app}, {auditor}, {manager}")
    grant("explain_many({lead_id_type}[])", "{app}, {auditor}, {manager}")
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
        DECLARE
          declared_user text := current_setting({user_guc}, true);
          declared_territory text := current_setting({territory_guc}, true);
          known_user {user_id_type} := {schema}.parse_user(declared_user);
          known_territory text := (SELECT t.code FROM {schema}.territories AS t WHERE t.code = declared_territory);
        BEGIN
          INSERT INTO {schema}.lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id)
          VALUES (
            lead,
            known_user,
            coalesce(nullif(current_setting('role'), 'none'), session_user),
            known_territory,
            action,
            CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'maintenance') THEN 'ALLOW' ELSE 'DENY' END::{schema}.lead_access_outcome,
            CASE
              WHEN decision <> 'not_found' THEN decision
              WHEN EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = lead) THEN 'other_territory'
              ELSE 'unknown_lead'
            END,
            nullif(concat_ws('; ', note,
              CASE WHEN known_user IS NULL AND declared_user <> '' THEN
                format('declared user %L', left(declared_user, 100)) END,
              CASE WHEN known_territory IS NULL AND declared_territory <> '' THEN
                format('declared territory %L', left(declared_territory, 100)) END), ''),
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
    # Allowed means: the rows on which the answer rests are locked until the caller's transaction
    # ends, so a transfer or a revocation waits for the edit. The second decision is made under the
    # lock, in a snapshot of its own.
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
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          here text := current_setting({territory_guc}, true);
          decision text := {schema}.explain_edit(lead);
        BEGIN
          IF decision IN ('owner', 'collaborator') THEN
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
            IF decision = 'collaborator' THEN
              PERFORM FROM {schema}.lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                  AND (r.lead_id IS NULL OR r.lead_id = lead) FOR SHARE;
            END IF;
            decision := {schema}.explain_edit(lead);
          END IF;
          IF decision IN ('owner', 'collaborator') THEN
            PERFORM {schema}.write_audit(lead, action, decision, note);
          ELSE
            PERFORM {schema}.deny(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $body$
        """)
    )
    for name in ("record_edit_attempt", "assert_edit_and_audit"):
        grant(name + "({lead_id_type}, {schema}.lead_action, text)", "{app}, {manager}")
    grant("record_denial({lead_id_type}, {schema}.lead_action, text, text)", "{app}, {manager}")


def create_ownership_guard() -> None:
    # Returns the territory in which the caller may change ownership of this lead, or NULL: an
    # unknown lead and a lead behind the border look alike. A manager needs no declared user, his
    # right rests on his login; a declared territory narrows him like anybody else.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_for_ownership(lead {lead_id_type}, manager boolean)
        RETURNS text
        LANGUAGE sql
        STABLE
        SET search_path = pg_catalog, pg_temp
        BEGIN ATOMIC
          SELECT l.{territory}
          FROM {leads} AS l
          WHERE l.{lead_id} = lead AND {schema}.is_member(l.{territory})
            AND (l.{territory} = current_setting({territory_guc}, true)
                 OR manager AND coalesce(current_setting({territory_guc}, true), '') = '');
        END
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.set_owner(
          lead {lead_id_type}, here text, new_owner {user_id_type}, source text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          changed_at timestamptz := statement_timestamp();
        BEGIN
          IF new_owner IS NOT NULL AND EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = here AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = lead)
              AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RAISE EXCEPTION 'the new owner is suspended in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO {schema}.user_lead_assignments AS a
            (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (lead, here, new_owner, changed_at, author, set_owner.source)
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, assigned_at = excluded.assigned_at,
                assigned_by = excluded.assigned_by, source = excluded.source,
                activity_at = NULL, activity_id = NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.lead_for_ownership({lead_id_type}, boolean) FROM PUBLIC"))
    op.execute(
        sql("REVOKE ALL ON FUNCTION {schema}.set_owner({lead_id_type}, text, {user_id_type}, text, text) FROM PUBLIC")
    )


def create_ownership_functions() -> None:
    # Each takes the row lock first and decides under it, so two claims can't both win.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.claim_lead(lead {lead_id_type}, note text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          caller {user_id_type} := {schema}.parse_user(current_setting({user_guc}, true));
          here text := {schema}.lead_for_ownership(lead, false);
          decision text;
        BEGIN
          IF here IS NOT NULL THEN
            -- a row to lock exists from here on; a lead never assigned gets an empty one
            INSERT INTO {schema}.user_lead_assignments (lead_id, territory, source)
              VALUES (lead, here, 'release') ON CONFLICT (lead_id, territory) DO NOTHING;
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          END IF;
          decision := {schema}.explain_edit(lead);
          IF decision IN ('unassigned', 'collaborator') AND EXISTS (
            SELECT FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id IS NULL)
          THEN
            PERFORM {schema}.set_owner(lead, here, caller, 'claim', note);
            PERFORM {schema}.write_audit(lead, 'ASSIGN', 'owner', note);
          ELSIF decision <> 'owner' THEN
            PERFORM {schema}.deny(lead, 'ASSIGN', CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END, note);
          END IF;
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
        SET row_security = on
        AS $body$
        DECLARE
          manager boolean := pg_has_role(session_user, {manager_name}, 'MEMBER');
          here text := {schema}.lead_for_ownership(lead, manager);
          decision text;
        BEGIN
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          decision := {schema}.explain_edit(lead);
          IF here IS NOT NULL AND (manager OR decision = 'owner') THEN
            PERFORM {schema}.set_owner(lead, here, NULL, 'release', note);
            PERFORM {schema}.write_audit(lead, 'UNASSIGN', CASE decision WHEN 'owner' THEN 'owner' ELSE 'manager' END, note);
          ELSE
            PERFORM {schema}.deny(lead, 'UNASSIGN', CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END, note);
          END IF;
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
        SET row_security = on
        AS $body$
        DECLARE
          here text := {schema}.lead_for_ownership(lead, true);
        BEGIN
          IF new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          IF here IS NULL THEN
            PERFORM {schema}.deny(lead, 'ASSIGN', 'not_found', note);
          END IF;
          PERFORM {schema}.set_owner(lead, here, new_owner, 'assign', note);
          PERFORM {schema}.write_audit(lead, 'ASSIGN', 'manager', note);
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
        SET row_security = on
        AS $body$
        DECLARE
          here text := {schema}.lead_for_ownership(lead, true);
          owned boolean;
        BEGIN
          IF new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          SELECT a.user_id IS NOT NULL INTO owned FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          IF here IS NULL THEN
            PERFORM {schema}.deny(lead, 'ASSIGN', 'not_found', note);
          ELSIF owned IS NOT TRUE THEN
            PERFORM {schema}.deny(lead, 'ASSIGN', 'unassigned', note);
          END IF;
          PERFORM {schema}.set_owner(lead, here, new_owner, 'transfer', note);
          PERFORM {schema}.write_audit(lead, 'ASSIGN', 'manager', note);
        END
        $body$
        """)
    )
    # Sellers take and give back; only a manager decides about somebody else.
    grant("claim_lead({lead_id_type}, text)", "{app}, {manager}")
    grant("release_lead({lead_id_type}, text)", "{app}, {manager}")
    grant("assign_lead({lead_id_type}, {user_id_type}, text)", "{manager}")
    grant("transfer_lead({lead_id_type}, {user_id_type}, text)", "{manager}")


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
    # Before contract the host's leads have no policies, so the view draws the border itself.
    op.execute(
        sql("""
        CREATE VIEW {schema}.v_lead_protection
        WITH (security_invoker = true, security_barrier = true) AS
        SELECT l.{lead_id} AS lead,
               l.{territory}::text AS territory,
               a.user_id AS owner,
               {schema}.can_edit_lead(l.{lead_id}) AS can_edit,
               {schema}.explain_edit(l.{lead_id}) AS reason
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
