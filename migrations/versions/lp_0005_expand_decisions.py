"""The decision, and the view of it.

Why: one decision with one reason code for every caller. `decide` is the only place that knows the
rules; everything else asks it. Functions have SQL-standard bodies where they can, so that no
search_path and no temporary object can shadow what they name; the others pin their search_path.
Each function that runs with the rights of its owner checks the acting role, because the caller's
policies do not apply inside it. What reads the host's leads belongs to leadprotect_reader.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the view and the functions; they hold no data.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0005_expand_decisions"
down_revision = "lp_0004_expand_seals"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_context()
    create_code_check()
    create_rule_begin()
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_decision()
    create_lists()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    create_decision_entry_points()
    create_view()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION {schema}.protection_page({lead_id_type}, integer);
        DROP VIEW {schema}.v_lead_protection;
        DROP FUNCTION {schema}.has_rules();
        DROP FUNCTION IF EXISTS
          {schema}.set_context(uuid, text, text),
          {schema}.set_context(bigint, text, text),
          {schema}.set_context(integer, text, text);
        DROP FUNCTION
          {schema}.editable_leads({lead_id_type}, integer),
          {schema}.editable_among({lead_id_type}[]),
          {schema}.explain_edit({lead_id_type}),
          {schema}.can_edit_lead({lead_id_type}),
          {schema}.unsuspended({lead_id_type}, {user_id_type}, text),
          {schema}.decide({lead_id_type}, text, text),
          {schema}.decision({lead_id_type}, {user_id_type}, text),
          {schema}.begins(timestamptz, timestamptz),
          {schema}.is_code(text),
          {schema}.set_context(text, text, text),
          {schema}.context(),
          {schema}.claiming(text, text, text),
          {schema}.parse_user(text)
        """)
    )
    op.execute("RESET ROLE")


def create_context() -> None:
    # A malformed id is nobody's id: NULL, never a cast error that would abort the transaction. The
    # last pattern is what uuid_in accepts (any case, braces, a hyphen after any group of four digits);
    # the usual form is recognised without it, because that pattern costs more than the decision.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.parse_user(declared text)
        RETURNS {user_id_type}
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN CASE
          WHEN '{user_id_type}' = 'text' THEN
            CASE WHEN declared <> '' AND pg_catalog.length(declared) <= 255
              AND declared !~ '[\\u0001-\\u001f\\u007f]' THEN declared END
          WHEN '{user_id_type}' IN ('bigint', 'integer') THEN
            CASE WHEN declared ~ '^-?[0-9]{1,19}$' THEN
              CASE WHEN pg_catalog.abs(declared::numeric + 0.5)
                < CASE '{user_id_type}' WHEN 'integer' THEN 2147483648 ELSE 9223372036854775808 END THEN declared END
            END
          WHEN declared LIKE '________-____-____-____-____________'
            AND declared !~ '[^0-9A-Fa-f-]' AND declared NOT LIKE '%-%-%-%-%-%' THEN declared
          WHEN declared ~ '^(([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|[{]([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}[}])$'
            THEN declared
        END::{user_id_type};
        COMMENT ON FUNCTION {schema}.parse_user(text) IS
        'The declared user in the type of the setting; what is malformed is nobody''s id: NULL, never a cast error';
        REVOKE ALL ON FUNCTION {schema}.parse_user(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.parse_user(text) TO {reader};
        GRANT EXECUTE ON FUNCTION {schema}.parse_user(text) TO {app}, {auditor}, {manager}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.context(OUT user_id text, OUT territory text, OUT correlation_id text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT {declared_user},
                 {declared_territory},
                 {declared_correlation};
        END;
        COMMENT ON FUNCTION {schema}.context() IS
        'Who is declared to act, where, and under which correlation id; NULL or empty where nothing is set';
        REVOKE ALL ON FUNCTION {schema}.context() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.context() TO {app}, {auditor}, {manager}
        """)
    )
    # Where a setting holds JSON, the other claims of the token stay: policies of the host ask them.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.claiming(said text, field text, claim text)
        RETURNS text
        LANGUAGE plpgsql
        IMMUTABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          others jsonb := coalesce({schema}.claimed(said, NULL), '{}')::jsonb - field;
        BEGIN
          RETURN CASE WHEN claim <> '' THEN others || jsonb_build_object(field, claim) ELSE others END::text;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.claiming(text, text, text) IS
        'A setting that holds JSON with this claim in it, or without it where it is NULL or empty; the others stay';
        REVOKE ALL ON FUNCTION {schema}.claiming(text, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.claiming(text, text, text) TO {app}, {auditor}, {manager}
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
          SELECT {declaring_user}, {declaring_territory}, {declaring_correlation};
        END;
        COMMENT ON FUNCTION {schema}.set_context(text, text, text) IS
        'Declares user, territory and correlation id until the transaction ends';
        REVOKE ALL ON FUNCTION {schema}.set_context(text, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.set_context(text, text, text) TO {app}, {auditor}, {manager}
        """)
    )
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF '{user_id_type}' <> 'text' THEN
            -- for callers that hold the id in its type: there is no implicit cast to text
            CREATE FUNCTION {schema}.set_context(user_id {user_id_type}, territory text, correlation_id text DEFAULT NULL)
            RETURNS void
            LANGUAGE sql
            VOLATILE
            BEGIN ATOMIC
              SELECT {schema}.set_context(user_id::text, territory, correlation_id);
            END;
            COMMENT ON FUNCTION {schema}.set_context({user_id_type}, text, text) IS
            'The same for callers that hold the id in its type: there is no implicit cast to text';
            REVOKE ALL ON FUNCTION {schema}.set_context({user_id_type}, text, text) FROM PUBLIC;
            GRANT EXECUTE ON FUNCTION {schema}.set_context({user_id_type}, text, text) TO {app}, {auditor}, {manager};
          END IF;
        END
        $do$
        """)
    )


# no BETWEEN: beside an AND, a restored dump has it in other brackets
def create_code_check() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_code(territory text)
        RETURNS boolean
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN pg_catalog.length(territory) >= 1 AND pg_catalog.length(territory) <= 63 AND territory !~ '[[:cntrl:]]';
        COMMENT ON FUNCTION {schema}.is_code(text) IS
        'Whether this can be the code of a territory; anything else is malformed';
        REVOKE ALL ON FUNCTION {schema}.is_code(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.is_code(text) TO {reader}
        """)
    )


def create_rule_begin() -> None:
    # A statement that waited while the rule was made began before it, and decides after it.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.begins(effective_from timestamptz, made_at timestamptz)
        RETURNS timestamptz
        LANGUAGE sql
        IMMUTABLE PARALLEL SAFE
        RETURN CASE WHEN effective_from <= made_at THEN '-infinity'::timestamptz ELSE effective_from END;
        COMMENT ON FUNCTION {schema}.begins(timestamptz, timestamptz) IS
        'From when a rule takes a right away from whoever can see it: at once where it was to begin when it was made';
        REVOKE ALL ON FUNCTION {schema}.begins(timestamptz, timestamptz) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.begins(timestamptz, timestamptz) TO {reader}
        """)
    )


def create_decision() -> None:
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
                AND {schema}.in_force(r.active, {schema}.begins(r.effective_from, r.made_at), r.effective_to))
              OR EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = decision.caller AND r.territory = decision.here AND r.protection = 'VIEW_ONLY' AND r.lead_id = decision.lead
                AND {schema}.in_force(r.active, {schema}.begins(r.effective_from, r.made_at), r.effective_to)) THEN 'suspended'
            WHEN a.user_id = decision.caller THEN 'owner'
            -- on its way to another database: a rule for the whole territory lets nobody edit it
            WHEN a.source = 'moving' THEN 'unassigned'
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
                AND {schema}.in_force(sole.active, {schema}.begins(sole.effective_from, sole.made_at), sole.effective_to)) THEN 'collaborator'
            WHEN a.user_id IS NULL THEN 'unassigned'
            ELSE 'not_owner'
          END
          FROM {leads} AS l
          LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = decision.lead AND a.territory = decision.here
          WHERE l.{lead_id} = decision.lead AND {territory_of_l} = decision.here;
        END;
        COMMENT ON FUNCTION {schema}.decision({lead_id_type}, {user_id_type}, text) IS
        'The decision about a known caller, by index probes only; decide() asks it for whoever has rules';
        REVOKE ALL ON FUNCTION {schema}.decision({lead_id_type}, {user_id_type}, text) FROM PUBLIC
        """)
    )
    # Two reads decide for whoever has no rule, and for an owner whom none suspends: lead with assignment, and a rule that
    # may suspend the owner, or the strongest of another caller, which is the last by the order of the type. In PL/pgSQL because its plans
    # last for the session; a body in SQL is planned anew in every call before PostgreSQL 18. Without scans:
    # a plan that was made while a table was small outlives it, and statistics may say that a row is near. One plan
    # for all callers, because statistics of few users with many rules make each plan of its own look cheaper
    # than the one that is there, and to plan costs four times what to decide does (leadprotect bench access:
    # 50,000 rules never vacuumed). The cost is honest, so that a page of the view is not made of all leads.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text)
        RETURNS text
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER COST 1000
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        SET plan_cache_mode = force_generic_plan
        AS $body$
        #variable_conflict use_variable
        DECLARE
          caller {user_id_type};
          owner {user_id_type};
          strongest {schema}.protection_type;
        BEGIN
          SELECT (
            SELECT a.user_id FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = declared_territory)
          INTO owner
          FROM {leads} AS l
          WHERE l.{lead_id} = lead AND {territory_of_l} = declared_territory;
          IF owner::text = declared_user THEN
            -- declared in its own spelling: nothing is left to tell by its form, and of rules only what can suspend him
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = owner AND r.territory = declared_territory AND r.protection = 'VIEW_ONLY' LIMIT 1;
            IF NOT FOUND AND {schema}.is_member(declared_territory) THEN
              RETURN 'owner';
            END IF;
            caller := owner;
          ELSE
            caller := {schema}.parse_user(declared_user);
          END IF;
          -- found is the lead, or a rule that may suspend its owner; an owner without one is here because he is no member
          IF FOUND AND caller IS NOT NULL AND {schema}.is_member(declared_territory) THEN
            SELECT r.protection INTO strongest FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = declared_territory
              ORDER BY r.protection DESC LIMIT 1;
            IF strongest IS NOT NULL THEN
              IF strongest = 'VIEW_ONLY' OR strongest = 'COLLABORATOR' AND owner IS DISTINCT FROM caller THEN
                RETURN (SELECT d.reason FROM {schema}.decision(lead, caller, declared_territory) AS d);
              END IF;
            END IF;
            RETURN CASE WHEN owner IS NULL THEN 'unassigned' WHEN owner = caller THEN 'owner' ELSE 'not_owner' END;
          END IF;
          -- what can't be a code is no context; asked last, because who finds his lead declared one
          RETURN CASE WHEN EXISTS (SELECT FROM {leads} AS l WHERE l.{lead_id} = lead AND {outside_l}) THEN 'unprotected'
            WHEN caller IS NOT NULL AND {schema}.is_code(declared_territory) THEN 'not_found' ELSE 'no_context' END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.decide({lead_id_type}, text, text) IS
        'The decision: unprotected, no_context, not_found, suspended, owner, collaborator, unassigned or not_owner';
        REVOKE ALL ON FUNCTION {schema}.decide({lead_id_type}, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.decide({lead_id_type}, text, text) TO {owner}, {app}, {auditor}, {manager}
        """)
    )
    # What is left to ask about an owner whose assignment is found and locked, and whose territory is his: decide()
    # would look all that up again. Internal: it asks nobody who he is.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unsuspended(lead {lead_id_type}, owner {user_id_type}, here text)
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        SET plan_cache_mode = force_generic_plan
        AS $body$
        #variable_conflict use_variable
        DECLARE
          strongest {schema}.protection_type;
        BEGIN
          SELECT (
            SELECT r.protection FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = owner AND r.territory = here
            ORDER BY r.protection DESC LIMIT 1)
          INTO strongest
          FROM {leads} AS l
          WHERE l.{lead_id} = lead AND {territory_of_l} = here;
          RETURN FOUND AND strongest IS DISTINCT FROM 'VIEW_ONLY';
        END
        $body$;
        COMMENT ON FUNCTION {schema}.unsuspended({lead_id_type}, {user_id_type}, text) IS
        'Whether the lead is in this territory and no rule there can suspend its owner; where one can, decide() knows';
        REVOKE ALL ON FUNCTION {schema}.unsuspended({lead_id_type}, {user_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unsuspended({lead_id_type}, {user_id_type}, text) TO {owner}
        """)
    )


def create_lists() -> None:
    # Which of many leads the caller may edit. Each lead is read once, which tells its territory and whether it is outside
    # protection. Of those in his territory his own are found in his part of ix_ula_user, what may be shared with him in
    # his part of ix_lpr_user.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.editable_among(leads {lead_id_type}[])
        RETURNS TABLE (lead {lead_id_type}, reason text)
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {declared_territory};
          caller {user_id_type} := {schema}.parse_user({declared_user});
          strongest {schema}.protection_type;
          own {lead_id_type}[];
          outside {lead_id_type}[];
          others {lead_id_type}[];
        BEGIN
          SELECT array_agg(l.{lead_id}::{lead_id_type}) FILTER (WHERE {territory_of_l} = here),
                 array_agg(l.{lead_id}::{lead_id_type}) FILTER (WHERE {outside_l})
          INTO others, outside
          FROM {leads} AS l WHERE l.{lead_id} = ANY (leads);
          IF others IS NOT NULL AND caller IS NOT NULL AND {schema}.is_member(here) THEN
            strongest := (
              SELECT r.protection FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here
              ORDER BY r.protection DESC LIMIT 1);
            -- each a probe of the index; before 17 the planner may compare each assignment with all of them instead
            IF current_setting('server_version_num')::integer >= 170000 THEN
              own := ARRAY(
                SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = ANY (others) AND a.user_id = caller AND a.territory = here);
            ELSE
              own := ARRAY(
                SELECT a.lead_id
                FROM unnest(others) AS o (lead) JOIN {schema}.user_lead_assignments AS a ON a.lead_id = o.lead
                WHERE a.user_id = caller AND a.territory = here);
            END IF;
            IF strongest = 'VIEW_ONLY' THEN
              own := ARRAY(SELECT o.lead FROM unnest(own) AS o (lead), LATERAL {schema}.decision(o.lead, caller, here) AS d
                           WHERE d.reason = 'owner');
            END IF;
            RETURN QUERY SELECT o.lead, 'owner' FROM unnest(own) AS o (lead);
            IF strongest IN ('VIEW_ONLY', 'COLLABORATOR') AND cardinality(own) < cardinality(others) THEN
              others := ARRAY(SELECT unnest(others) EXCEPT SELECT unnest(own));
              RETURN QUERY
                SELECT may.lead, d.reason
                FROM unnest(CASE
                  WHEN EXISTS (
                    SELECT FROM {schema}.lead_protection_rules AS r
                    WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL)
                  THEN others
                  ELSE ARRAY(
                    SELECT DISTINCT r.lead_id FROM {schema}.lead_protection_rules AS r
                    WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (others))
                  END) AS may (lead), LATERAL {schema}.decision(may.lead, caller, here) AS d
                WHERE d.reason = 'collaborator';
            END IF;
          END IF;
          RETURN QUERY SELECT o.lead, 'unprotected' FROM unnest(outside) AS o (lead);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.editable_among({lead_id_type}[]) IS
        'Which of these leads the user in context may edit, and why; without a context those outside protection';
        REVOKE ALL ON FUNCTION {schema}.editable_among({lead_id_type}[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.editable_among({lead_id_type}[]) TO {owner}, {app}, {auditor}, {manager}
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
          here text := {declared_territory};
          caller {user_id_type} := {schema}.parse_user({declared_user});
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
              SELECT l.{lead_id}::{lead_id_type}, d.reason
              FROM {leads} AS l, LATERAL {schema}.decision(l.{lead_id}, caller, here) AS d
              WHERE {territory_of_l} = here AND l.{lead_id} >= first AND l.{lead_id} IS DISTINCT FROM after
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
              JOIN {leads} AS l ON l.{lead_id} = a.lead_id AND {territory_of_l} = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                AND a.lead_id IS DISTINCT FROM after
              ORDER BY a.lead_id LIMIT page_size;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.editable_leads({lead_id_type}, integer) IS
        'A page of the leads of his territory that the user in context may edit, in the order of their ids, after the one named';
        REVOKE ALL ON FUNCTION {schema}.editable_leads({lead_id_type}, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.editable_leads({lead_id_type}, integer) TO {app}, {manager}
        """)
    )


def create_decision_entry_points() -> None:
    # Without SECURITY DEFINER the planner inlines these two: a prepared statement calls decide directly.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.can_edit_lead(lead {lead_id_type})
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT {schema}.decide(lead, {declared_user},
                                 {declared_territory})
                 IN ('owner', 'collaborator', 'unprotected');
        END;
        COMMENT ON FUNCTION {schema}.can_edit_lead({lead_id_type}) IS
        'Whether the user in context may edit the lead: true or false, never NULL';
        REVOKE ALL ON FUNCTION {schema}.can_edit_lead({lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.can_edit_lead({lead_id_type}) TO {app}, {auditor}, {manager}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.explain_edit(lead {lead_id_type}, OUT reason text)
        LANGUAGE sql
        STABLE PARALLEL SAFE
        BEGIN ATOMIC
          SELECT {schema}.decide(lead, {declared_user},
                                 {declared_territory});
        END;
        COMMENT ON FUNCTION {schema}.explain_edit({lead_id_type}) IS
        'The decision about the user in context with its reason code';
        REVOKE ALL ON FUNCTION {schema}.explain_edit({lead_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.explain_edit({lead_id_type}) TO {app}, {auditor}, {manager}
        """)
    )


def create_view() -> None:
    # Whether the caller has any rule in his territory; without one, ownership alone decides. Who does not
    # hold the territory learns nothing about anybody's rules in it. In PL/pgSQL, whose plans last: a body in
    # SQL is planned anew with every look at the view before PostgreSQL 18.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.has_rules()
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE PARALLEL SAFE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        BEGIN
          RETURN EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = {schema}.parse_user({declared_user})
              AND r.territory = {schema}.admitted_territory());
        END
        $body$;
        COMMENT ON FUNCTION {schema}.has_rules() IS
        'Whether the user in context has any rule in his territory; without one, ownership alone decides';
        REVOKE ALL ON FUNCTION {schema}.has_rules() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.has_rules() TO {app}, {auditor}, {manager}
        """)
    )
    # Before contract the host's leads have no policies, so the view draws the border itself. What
    # does not depend on the lead is asked once, in sub-selects: a dashboard reads many leads. Two
    # columns that say the same, so that a count of the leads needs neither them nor the owner.
    op.execute(
        sql("""
        CREATE VIEW {schema}.v_lead_protection
        WITH (security_invoker = true, security_barrier = true) AS
        SELECT l.{lead_id} AS lead,
               {territory_of_l}::text AS territory,
               a.user_id AS owner,
               CASE
                 WHEN (SELECT {schema}.parse_user({declared_user}) IS NULL) THEN false
                 WHEN (SELECT {schema}.has_rules()) THEN {schema}.can_edit_lead(l.{lead_id})
                 ELSE coalesce(
                   a.user_id = (SELECT {schema}.parse_user({declared_user})), false)
               END AS can_edit,
               CASE
                 WHEN (SELECT {schema}.parse_user({declared_user}) IS NULL) THEN 'no_context'
                 WHEN (SELECT {schema}.has_rules()) THEN {schema}.explain_edit(l.{lead_id})
                 WHEN a.user_id IS NULL THEN 'unassigned'
                 WHEN a.user_id = (SELECT {schema}.parse_user({declared_user})) THEN 'owner'
                 ELSE 'not_owner'
               END AS reason
        FROM {leads} AS l
        LEFT JOIN {schema}.user_lead_assignments AS a
          ON a.lead_id = l.{lead_id} AND a.territory = {territory_of_l}
        WHERE {territory_of_l} = (SELECT {schema}.admitted_territory());
        COMMENT ON VIEW {schema}.v_lead_protection IS
        'Who owns each lead of the territory in context, and whether the user in context may edit it';
        COMMENT ON COLUMN {schema}.v_lead_protection.lead IS 'the lead';
        COMMENT ON COLUMN {schema}.v_lead_protection.territory IS 'the territory in context, which is the lead''s';
        COMMENT ON COLUMN {schema}.v_lead_protection.owner IS 'who owns it; NULL: nobody';
        COMMENT ON COLUMN {schema}.v_lead_protection.can_edit IS 'whether the user in context may edit it, never NULL';
        COMMENT ON COLUMN {schema}.v_lead_protection.reason IS 'reason code of the decision';
        REVOKE ALL ON {schema}.v_lead_protection FROM PUBLIC;
        GRANT SELECT ON {schema}.v_lead_protection TO {app}, {auditor}, {manager}
        """)
    )
    # The view's barrier keeps a function in WHERE from rows of other territories, and an ORDER BY with a LIMIT from
    # its index: the whole territory would be sorted for a page. Here the ids come first, in their order, by the rights of
    # whoever asks. Pinned to probes, and planned once for a session.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.protection_page(after {lead_id_type}, page_size integer)
        RETURNS TABLE (lead {lead_id_type}, territory text, owner {user_id_type}, can_edit boolean, reason text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {schema}.admitted_territory();
          page {lead_id_type}[];
        BEGIN
          IF after IS NULL THEN
            page := ARRAY(SELECT l.{lead_id} FROM {leads} AS l WHERE {territory_of_l} = here
                          ORDER BY l.{lead_id} LIMIT page_size);
          ELSE
            page := ARRAY(SELECT l.{lead_id} FROM {leads} AS l WHERE l.{lead_id} > after AND {territory_of_l} = here
                          ORDER BY l.{lead_id} LIMIT page_size);
          END IF;
          RETURN QUERY
            SELECT v.lead::{lead_id_type}, v.territory, v.owner, v.can_edit, v.reason
            FROM {schema}.v_lead_protection AS v WHERE v.lead = ANY (page) ORDER BY v.lead;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.protection_page({lead_id_type}, integer) IS
        'A page of v_lead_protection in the order of the leads'' ids, after the one named (NULL: the first page)';
        REVOKE ALL ON FUNCTION {schema}.protection_page({lead_id_type}, integer) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.protection_page({lead_id_type}, integer) TO {app}, {auditor}, {manager}
        """)
    )
