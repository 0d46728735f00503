"""Attempts: a decision under locks, and the record of what was allowed and what was denied.

Why: contracts hang on who could edit what, so nothing that was attempted is lost. What is allowed is
recorded in the caller's transaction; a denial draws a number and tells the server's log, so that one
whose row is rolled back leaves a gap that the log explains.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions; the secret that proves lines of the log moves to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0006_expand_attempts"
down_revision = "lp_0005_expand_decisions"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_freshness()
    create_locked_decision()
    create_audit_writer()
    create_denials()
    create_attempts()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text),
          {schema}.allow_edits({lead_id_type}[], {schema}.lead_action, text),
          {schema}.allow_edit({lead_id_type}, {schema}.lead_action, text),
          {schema}.try_edit({lead_id_type}, {schema}.lead_action, text),
          {schema}.answered({lead_id_type}, {schema}.lead_action, text, text),
          {schema}.require({lead_id_type}, {schema}.lead_action, text, text),
          {schema}.deny({lead_id_type}, {schema}.lead_action, text, text),
          {schema}.record_denial({lead_id_type}, {schema}.lead_action, text, text, text),
          {schema}.proved_denials(bigint[], text[], text[]),
          {schema}.draw_denial({lead_id_type}, {schema}.lead_action, text, text),
          {schema}.denial_proof(text),
          {schema}.record_edit_attempt({lead_id_type}, {schema}.lead_action, text),
          {schema}.write_audit({lead_id_type}, {schema}.lead_action, text, text, text, text, bigint),
          {schema}.decide_locked({lead_id_type}),
          {schema}.require_fresh_rules()
        """)
    )
    op.execute(
        sql("""
        ALTER SEQUENCE {schema}.rule_changes SET SCHEMA {quarantine};
        ALTER TABLE {schema}.denial_secret SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def create_freshness() -> None:
    # A transaction with one snapshot for all its statements can't see a suspension that came after it
    # began, and there is no row yet whose lock would tell it. A sequence shows its newest value to every
    # snapshot: it holds the transaction that last made a rule which takes a right away.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.rule_changes') IS NOT NULL THEN
            ALTER SEQUENCE {quarantine}.rule_changes SET SCHEMA {schema};
          ELSE
            CREATE SEQUENCE {schema}.rule_changes;
          END IF;
        END
        $do$;
        COMMENT ON SEQUENCE {schema}.rule_changes IS
        'The transaction that last made a rule which takes a right away; seen by every snapshot';
        CREATE FUNCTION {schema}.require_fresh_rules()
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          newest xid8;
        BEGIN
          IF current_setting('transaction_isolation') NOT IN ('repeatable read', 'serializable') THEN
            RETURN;
          END IF;
          newest := (SELECT q.last_value::text::xid8 FROM {schema}.rule_changes AS q);
          IF newest IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()
            OR pg_visible_in_snapshot(newest, pg_current_snapshot()) THEN
            RETURN;
          END IF;
          BEGIN
            PERFORM pg_xact_status(newest);
          EXCEPTION WHEN invalid_parameter_value THEN
            RETURN; -- it is still to come here: the sequence was restored from another server
          END;
          RAISE EXCEPTION 'a rule was made after this transaction began, and its snapshot can''t show it: try again'
            USING ERRCODE = 'serialization_failure';
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require_fresh_rules() IS
        'Raises a serialization failure where the snapshot is older than the newest rule which takes a right away';
        REVOKE ALL ON FUNCTION {schema}.require_fresh_rules() FROM PUBLIC
        """)
    )


def create_locked_decision() -> None:
    # Allowed means: the rows on which the answer rests are locked until the caller's transaction
    # ends, so a transfer or a revocation waits for the edit; the decision is made under the lock, in
    # a snapshot of its own.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.decide_locked(lead {lead_id_type}, OUT reason text, OUT basis text)
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        DECLARE
          caller {user_id_type} := {schema}.parse_user({declared_user});
          here text := {declared_territory};
        BEGIN
          IF current_setting('transaction_isolation') <> 'read committed' THEN
            PERFORM {schema}.require_fresh_rules();
          END IF;
          PERFORM FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id = caller AND {schema}.is_member(here) FOR SHARE;
          reason := {schema}.explain_edit(lead);
          IF reason = 'collaborator' THEN
            PERFORM FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
            -- two probes, whatever else is shared with him
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = lead FOR SHARE;
            PERFORM FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL FOR SHARE;
            reason := {schema}.explain_edit(lead);
            basis := (SELECT c.rule FROM {schema}.collaboration(lead, caller, here) AS c (rule));
            -- the rule has ended while the caller's statement goes on
            IF basis IS NULL AND reason = 'collaborator' THEN
              reason := CASE WHEN EXISTS (
                SELECT FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = lead AND a.territory = here AND a.user_id IS NOT NULL)
                THEN 'not_owner' ELSE 'unassigned' END;
            END IF;
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.decide_locked({lead_id_type}) IS
        'The decision about the user in context, with the rows on which it rests locked until the transaction ends';
        REVOKE ALL ON FUNCTION {schema}.decide_locked({lead_id_type}) FROM PUBLIC
        """)
    )


def create_audit_writer() -> None:
    # Facts that the caller can't choose: login, role, time, transaction. What he declared is kept
    # in the note when it can't be stored as it is. The audit tells an unknown lead from one of
    # another territory; the answer to the caller does not.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.write_audit(
          lead {lead_id_type}, action {schema}.lead_action, decision text, note text,
          basis text DEFAULT NULL, here text DEFAULT NULL, number bigint DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          declared_user text := {declared_user};
          declared_territory text := {declared_territory};
          known_user {user_id_type} := {schema}.parse_user(declared_user);
          known_territory text := declared_territory;
          remark text := note;
          recorded text := decision;
        BEGIN
          IF '{lead_id_type}' = 'text' AND length(lead::text) > 255 THEN
            lead := left(lead::text, 255)::{lead_id_type};
          END IF;
          -- an owner or collaborator declared a user and a territory that exist: nothing is left to look up
          IF decision NOT IN ('owner', 'collaborator') THEN
            SELECT t.code INTO known_territory FROM {schema}.territories AS t WHERE t.code = declared_territory;
            remark := concat_ws('; ', nullif(note, ''),
              CASE WHEN known_user IS NULL AND declared_user <> '' THEN
                format('declared user %L', left(declared_user, 100)) END,
              CASE WHEN known_territory IS NULL AND declared_territory <> '' THEN
                format('declared territory %L', left(declared_territory, 100)) END);
            IF here IS NOT NULL OR decision IN ('manager', 'maintenance') THEN
              -- his right needs no declared territory, but the row belongs to the lead's
              known_territory := coalesce(here, (SELECT l.territory FROM {schema}.host_lead(lead) AS l (territory)));
            ELSIF decision = 'unprotected' THEN
              known_territory := NULL;
            ELSIF decision = 'not_found' THEN
              recorded := coalesce((
                SELECT CASE WHEN l.territory IS NULL THEN 'no_territory' ELSE 'other_territory' END
                FROM {schema}.host_lead(lead) AS l (territory)), 'unknown_lead');
            END IF;
          END IF;
          INSERT INTO {schema}.lead_access_audit
            (lead_id, id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          VALUES (
            lead,
            coalesce(number, nextval('{schema}.lead_access_audit_id_seq')),
            known_user,
            {schema}.acting_role(),
            known_territory,
            coalesce(action, 'EDIT'),
            CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'maintenance', 'unprotected')
              THEN 'ALLOW'::{schema}.lead_access_outcome ELSE 'DENY'::{schema}.lead_access_outcome END,
            recorded,
            CASE WHEN remark <> '' THEN {schema}.bounded(remark) END,
            CASE WHEN {declared_correlation} <> '' THEN {schema}.bounded({declared_correlation}) END,
            CASE decision WHEN 'owner' THEN 'assignment' WHEN 'manager' THEN 'role ' || {manager_name}
              ELSE basis END);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.write_audit({lead_id_type}, {schema}.lead_action, text, text, text, text, bigint) IS
        'Writes one row of the audit: login, role, time and transaction are those of the server, never of the caller';
        REVOKE ALL ON FUNCTION {schema}.write_audit({lead_id_type}, {schema}.lead_action, text, text, text, text, bigint)
        FROM PUBLIC
        """)
    )


def create_denials() -> None:
    # Any login can write a line like ours into the server's log. Who knows the secret of this database
    # can tell which lines our function wrote, and which number it drew for whom.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.denial_secret') IS NOT NULL THEN
            ALTER TABLE {quarantine}.denial_secret SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.denial_secret (secret bytea PRIMARY KEY);
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.denial_secret IS
        'Tells the denials that our functions logged from lines that somebody else wrote; no role may read it';
        COMMENT ON COLUMN {schema}.denial_secret.secret IS 'drawn when the revision was applied';
        ALTER TABLE {schema}.denial_secret ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.denial_secret FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.denial_secret;
        CREATE POLICY lp_inside ON {schema}.denial_secret TO {owner} USING ({inside}) WITH CHECK ({inside});
        INSERT INTO {schema}.denial_secret
        SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.concat(
          pg_catalog.gen_random_uuid(), pg_catalog.gen_random_uuid(), pg_catalog.gen_random_uuid()), 'UTF8'))
        WHERE NOT EXISTS (SELECT FROM {schema}.denial_secret)
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.denial_proof(said text)
        RETURNS text
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          -- hashed twice, so that nothing can be appended to what was proved; a copy of the database knows the
          -- secret, too, and has another name
          RETURN (SELECT encode(substring(sha256(
                    s.secret || sha256(s.secret || convert_to(current_database() || ' ' || said, 'UTF8'))) FOR 16), 'hex')
                  FROM {schema}.denial_secret AS s);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.denial_proof(text) IS 'What only a function of ours in this database can say about a text';
        REVOKE ALL ON FUNCTION {schema}.denial_proof(text) FROM PUBLIC
        """)
    )
    # A raised denial can't keep its row (the exception rolls it back), and who calls an inner function
    # may never write one: the number drawn from the audit's sequence stays as a gap until a row has it,
    # and the server's log has the facts. The ticket lets that number, and no other, be written.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.draw_denial(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS text
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          number bigint := nextval('{schema}.lead_access_audit_id_seq');
          facts text := format('lead %s, action %s, reason %s, user %s, territory %s, login %s, correlation %s, note %s',
            quote_nullable({schema}.bounded(lead::text)), action, decision,
            quote_nullable({schema}.bounded(left({declared_user}, 100))),
            quote_nullable({schema}.bounded(left({declared_territory}, 100))),
            quote_ident(session_user), quote_nullable({schema}.bounded(left({declared_correlation}, 100))),
            quote_nullable({schema}.bounded(left(note, 200))));
        BEGIN
          RAISE LOG 'leadprotect denial %: %, proof %', number, facts,
            {schema}.denial_proof('log ' || number || ' ' || facts);
          RETURN number || ' ' || {schema}.denial_proof(
            'ticket ' || json_build_array(number, lead::text, decision, session_user)::text);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.draw_denial({lead_id_type}, {schema}.lead_action, text, text) IS
        'Draws the number of a denial and tells the log of the server; returns the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.draw_denial({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.proved_denials(numbers bigint[], facts text[], proofs text[])
        RETURNS SETOF bigint
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          RETURN QUERY
          SELECT asked.number FROM unnest(numbers, facts, proofs) AS asked (number, facts, proof)
          WHERE asked.proof = {schema}.denial_proof('log ' || asked.number || ' ' || asked.facts);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.proved_denials(bigint[], text[], text[]) IS
        'Which lines of a log were written by our function in this database: number, facts and proof of each';
        REVOKE ALL ON FUNCTION {schema}.proved_denials(bigint[], text[], text[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.proved_denials(bigint[], text[], text[]) TO {auditor}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.deny(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          PERFORM {schema}.draw_denial(lead, action, decision, note);
          RAISE EXCEPTION 'access to the lead denied' USING ERRCODE = 'LP403', DETAIL = decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.deny({lead_id_type}, {schema}.lead_action, text, text) IS
        'Raises SQLSTATE LP403; the number it draws and the line in the log of the server stay although the row can''t';
        REVOKE ALL ON FUNCTION {schema}.deny({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC
        """)
    )
    # For the library: a denial that was answered in another transaction, written in one of its own.
    # It can write a DENY only, so nothing is gained by calling it with a lie.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.record_denial(
          lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL, ticket text DEFAULT NULL)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        DECLARE
          number bigint := CASE WHEN ticket ~ '^[0-9]{1,18} ' THEN split_part(ticket, ' ', 1)::bigint END;
        BEGIN
          IF decision IS NULL
            OR decision NOT IN ('no_context', 'not_found', 'suspended', 'unassigned', 'not_owner', 'not_manager') THEN
            RAISE EXCEPTION '% is not a reason of a denial', coalesce(decision, 'NULL') USING ERRCODE = 'LP422';
          ELSIF decision NOT IN ('no_context', 'not_found') AND {declared_territory} <> ''
            AND NOT {schema}.is_member({declared_territory}) THEN
            -- nobody is answered so about another territory
            RAISE EXCEPTION 'reason % is not of this login', decision USING ERRCODE = 'LP422';
          END IF;
          -- a number that was drawn for another denial, has its row, or is being recorded at this moment, stays
          -- what it is; only tried, because anybody may hold an advisory lock
          IF number IS NOT NULL AND (
            split_part(ticket, ' ', 2) IS DISTINCT FROM {schema}.denial_proof(
              'ticket ' || json_build_array(number, lead::text, decision, session_user)::text)
            OR current_setting('transaction_isolation') <> 'read committed'
            OR NOT pg_try_advisory_xact_lock(hashtextextended({schema_name} || '.denials', number)))
          THEN
            number := NULL;
          END IF;
          -- asked under the lock, in a snapshot of its own
          IF EXISTS (SELECT FROM {schema}.lead_access_audit AS e WHERE e.lead_id = lead AND e.id = number) THEN
            number := NULL;
          END IF;
          IF lead IS NOT NULL THEN
            PERFORM {schema}.write_audit(lead, action, decision, note, NULL, NULL, number);
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.record_denial({lead_id_type}, {schema}.lead_action, text, text, text) IS
        'Records a denial that was answered in another transaction, under the number that was drawn for it; nothing but a DENY';
        REVOKE ALL ON FUNCTION {schema}.record_denial({lead_id_type}, {schema}.lead_action, text, text, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.record_denial({lead_id_type}, {schema}.lead_action, text, text, text) TO {app}, {manager}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.answered(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS text
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'unprotected') THEN decision
                      ELSE decision || ' ' || {schema}.draw_denial(lead, action, decision, note) END;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.answered({lead_id_type}, {schema}.lead_action, text, text) IS
        'A reason as the library gets it: a denial comes with the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.answered({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require(lead {lead_id_type}, action {schema}.lead_action, decision text, note text)
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF decision IS NULL OR decision NOT IN ('owner', 'collaborator', 'manager', 'unprotected') THEN
            PERFORM {schema}.deny(lead, action, decision, note);
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require({lead_id_type}, {schema}.lead_action, text, text) IS
        'Raises unless the reason allows';
        REVOKE ALL ON FUNCTION {schema}.require({lead_id_type}, {schema}.lead_action, text, text) FROM PUBLIC
        """)
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
          RETURN decision IN ('owner', 'collaborator', 'unprotected');
        END
        $body$;
        COMMENT ON FUNCTION {schema}.record_edit_attempt({lead_id_type}, {schema}.lead_action, text) IS
        'Records an attempt of the user in context and returns whether he may; never raises on a denial';
        REVOKE ALL ON FUNCTION {schema}.record_edit_attempt({lead_id_type}, {schema}.lead_action, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.record_edit_attempt({lead_id_type}, {schema}.lead_action, text) TO {app}, {manager}
        """)
    )
    # The owner's plain case first: the same locks, decision and row, without the detours of the others. Who declares
    # himself in another spelling, and whoever reads by one snapshot, goes the long way.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.try_edit(lead {lead_id_type}, action {schema}.lead_action, note text)
        RETURNS text
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          declared_user text := {declared_user};
          here text := {declared_territory};
          caller {user_id_type};
          decided record;
        BEGIN
          IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT a.user_id INTO caller FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here AND a.user_id::text = declared_user AND {schema}.is_member(here)
              FOR SHARE;
            -- under the lock, in a snapshot of its own
            IF FOUND AND {schema}.unsuspended(lead, caller, here) THEN
              INSERT INTO {schema}.lead_access_audit
                (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
              VALUES (lead, caller, {schema}.acting_role(), here, coalesce(action, 'EDIT'), 'ALLOW', 'owner',
                      CASE WHEN note <> '' THEN {schema}.bounded(note) END,
                      CASE WHEN {declared_correlation} <> '' THEN {schema}.bounded({declared_correlation}) END,
                      'assignment');
              RETURN 'owner';
            END IF;
          END IF;
          SELECT d.reason, d.basis INTO decided FROM {schema}.decide_locked(lead) AS d;
          IF decided.reason IN ('owner', 'collaborator', 'unprotected') THEN
            PERFORM {schema}.write_audit(lead, action, decided.reason, note, decided.basis);
          END IF;
          RETURN decided.reason;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.try_edit({lead_id_type}, {schema}.lead_action, text) IS
        'Decides under locks and records what is allowed; returns the reason';
        REVOKE ALL ON FUNCTION {schema}.try_edit({lead_id_type}, {schema}.lead_action, text) FROM PUBLIC
        """)
    )
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
        BEGIN
          RETURN {schema}.answered(lead, action, {schema}.try_edit(lead, action, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.allow_edit({lead_id_type}, {schema}.lead_action, text) IS
        'For the library: decides under locks and records what is allowed; a denial is returned with the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.allow_edit({lead_id_type}, {schema}.lead_action, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.allow_edit({lead_id_type}, {schema}.lead_action, text) TO {app}, {manager}
        """)
    )
    # Always in the order of the ids: of two who lock many leads, one waits for the other and never both. So whatever an
    # answer may rest on is locked first, at one go: assignments, then rules. Of what was locked, and of what is outside
    # protection, all that is allowed is decided and recorded together, in a snapshot of its own; the rest one by one.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.allow_edits(
          leads {lead_id_type}[], action {schema}.lead_action DEFAULT 'EDIT', note text DEFAULT NULL)
        RETURNS text[]
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          here text := {declared_territory};
          caller {user_id_type} := {schema}.parse_user({declared_user});
          shared {lead_id_type}[] := '{}';
          locked {lead_id_type}[];
          allowed {lead_id_type}[] := '{}';
          reasons text[] := '{}';
          rules text[] := '{}';
          answers text[];
          asked record;
        BEGIN
          IF cardinality(leads) > 0 AND caller IS NOT NULL AND {schema}.is_member(here) THEN
            PERFORM {schema}.require_fresh_rules();
            IF EXISTS (
              SELECT FROM {schema}.lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR')
            THEN
              shared := ARRAY(SELECT DISTINCT e.lead FROM {schema}.editable_among(leads) AS e WHERE e.reason = 'collaborator');
            END IF;
            locked := ARRAY(
              SELECT a.lead_id FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here AND (a.user_id = caller OR a.lead_id = ANY (shared))
              ORDER BY a.lead_id FOR SHARE);
            IF cardinality(shared) > 0 THEN
              PERFORM FROM {schema}.lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (shared)
                ORDER BY r.lead_id, r.effective_from FOR SHARE;
              PERFORM FROM {schema}.lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                ORDER BY r.effective_from FOR SHARE;
            END IF;
            SELECT coalesce(array_agg(e.lead), '{}'), coalesce(array_agg(e.reason), '{}'), coalesce(array_agg(c.rule), '{}')
            INTO allowed, reasons, rules
            FROM (SELECT DISTINCT e.lead, e.reason FROM {schema}.editable_among(leads) AS e) AS e
            LEFT JOIN unnest(locked) AS k (lead) ON k.lead = e.lead
            LEFT JOIN unnest(shared) AS s (lead) ON s.lead = e.lead
            LEFT JOIN LATERAL {schema}.collaboration(e.lead, caller, here) AS c (rule) ON e.reason = 'collaborator'
            -- what nobody owned had no assignment to lock, and may be his own by now
            WHERE e.reason = 'unprotected' OR e.reason = 'owner' AND k.lead IS NOT NULL OR c.rule IS NOT NULL AND s.lead IS NOT NULL;
            INSERT INTO {schema}.lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT u.lead, caller, (SELECT {schema}.acting_role()), CASE WHEN o.reason <> 'unprotected' THEN here END,
                   coalesce(action, 'EDIT'), 'ALLOW', o.reason,
                   (SELECT {schema}.bounded(note)), (SELECT {schema}.bounded({declared_correlation})),
                   CASE o.reason WHEN 'owner' THEN 'assignment' ELSE o.rule END
            FROM unnest(leads) WITH ORDINALITY AS u (lead, place)
            JOIN unnest(allowed, reasons, rules) AS o (lead, reason, rule) ON o.lead = u.lead
            ORDER BY u.lead, u.place;
          END IF;
          answers := ARRAY(
            SELECT o.reason
            FROM unnest(leads) WITH ORDINALITY AS u (lead, place)
            LEFT JOIN unnest(allowed, reasons) AS o (lead, reason) ON o.lead = u.lead
            ORDER BY u.place);
          FOR asked IN
            SELECT u.lead, a.place FROM unnest(answers) WITH ORDINALITY AS a (answer, place)
            JOIN unnest(leads) WITH ORDINALITY AS u (lead, place) ON u.place = a.place
            WHERE a.answer IS NULL ORDER BY u.lead, u.place
          LOOP
            answers[asked.place] := {schema}.answered(
              asked.lead, action, {schema}.try_edit(asked.lead, action, note), note);
          END LOOP;
          RETURN answers;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.allow_edits({lead_id_type}[], {schema}.lead_action, text) IS
        'For the library: allow_edit for each of these leads, locked in the order of their ids; the answers as they were asked';
        REVOKE ALL ON FUNCTION {schema}.allow_edits({lead_id_type}[], {schema}.lead_action, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.allow_edits({lead_id_type}[], {schema}.lead_action, text) TO {app}, {manager}
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
          decision text := {schema}.try_edit(lead, action, note);
        BEGIN
          IF decision IS DISTINCT FROM 'owner' THEN
            PERFORM {schema}.require(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text) IS
        'Decides under locks and records what is allowed; a denial raises SQLSTATE LP403';
        REVOKE ALL ON FUNCTION {schema}.assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.assert_edit_and_audit({lead_id_type}, {schema}.lead_action, text) TO {app}, {manager}
        """)
    )
