"""Changes of ownership and shares, and the legal terms of a territory.

Why: these functions are the only way to change who may edit a lead; no role has DML on the tables.
Each change is decided under the row's lock, and recorded like an edit.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: dropping the functions; the VAT rates move to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0007_expand_ownership"
down_revision = "lp_0006_expand_attempts"
branch_labels = None
depends_on = None
phase = "expand"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_ownership()
    create_ownership_functions()
    create_vat_rates()
    create_territory_terms()
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.territory_terms(text, date),
          {schema}.unshare_lead({lead_id_type}, {user_id_type}, text),
          {schema}.share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text),
          {schema}.transfer_lead({lead_id_type}, {user_id_type}, text),
          {schema}.release_lead({lead_id_type}, text),
          {schema}.claim_lead({lead_id_type}, text),
          {schema}.assign_lead({lead_id_type}, {user_id_type}, text),
          {schema}.change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text),
          {schema}.change_owners({lead_id_type}[], text, {user_id_type}, text, {user_id_type}),
          {schema}.change_together({lead_id_type}[], text, {user_id_type}, text, {user_id_type}),
          {schema}.change_owner({lead_id_type}, text, {user_id_type}, text),
          {schema}.try_change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text),
          {schema}.try_change_owner({lead_id_type}, text, {user_id_type}, text),
          {schema}.is_manager(),
          {schema}.lead_for_ownership({lead_id_type}, boolean)
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.territory_vat_rates FROM {app}, {auditor}, {operator}, {manager};
        ALTER TABLE {schema}.territory_vat_rates SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def create_ownership() -> None:
    # Returns the territory in which the caller may change ownership of this lead, or NULL: an
    # unknown lead and a lead behind the border look alike. A manager needs no declared user, his
    # right rests on his role; what he does declare must be well formed and narrows him like anybody else.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.lead_for_ownership(lead {lead_id_type}, manager boolean)
        RETURNS text
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT l.territory
          FROM {schema}.host_lead(lead_for_ownership.lead) AS l (territory)
          WHERE {schema}.is_member(l.territory)
            AND (l.territory = {declared_territory}
                 OR lead_for_ownership.manager AND coalesce({declared_territory}, '') = '');
        END;
        COMMENT ON FUNCTION {schema}.lead_for_ownership({lead_id_type}, boolean) IS
        'The territory in which the caller may change who owns this lead; NULL where he may not, or where there is none';
        REVOKE ALL ON FUNCTION {schema}.lead_for_ownership({lead_id_type}, boolean) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.is_manager()
        RETURNS boolean
        LANGUAGE sql
        STABLE PARALLEL SAFE
        RETURN pg_catalog.pg_has_role({schema}.acting_role(), {manager_name}, 'USAGE');
        COMMENT ON FUNCTION {schema}.is_manager() IS
        'Whether the acting role may decide about the leads of others';
        REVOKE ALL ON FUNCTION {schema}.is_manager() FROM PUBLIC
        """)
    )
    # All changes of ownership. Returns the right by which it was done (owner, manager), or the
    # reason of the denial, which is not yet recorded. The row's lock comes before the decision, so
    # two claims can't both win; a denied one leaves nothing behind.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.try_change_owner(lead {lead_id_type}, change text, new_owner {user_id_type}, note text)
        RETURNS text
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
          manager boolean := {schema}.is_manager() AND change <> 'claim';
          here text := {schema}.lead_for_ownership(lead, manager);
          -- in the order in which an UPDATE of the lead takes its locks
          held boolean := {named} AND here IS NOT NULL AND {schema}.hold_leads(ARRAY[lead]);
          standing {schema}.user_lead_assignments;
          decision text;
        BEGIN
          IF change IS NULL OR change NOT IN ('assign', 'claim', 'release', 'transfer') THEN
            RAISE EXCEPTION '% is no change of ownership', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF change IN ('assign', 'transfer') AND new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          IF here IS NOT NULL AND change <> 'claim' THEN
            SELECT * INTO standing FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
            IF manager AND standing.source = 'moving' THEN
              PERFORM {schema}.require_not_moving(ARRAY[lead]);
            END IF;
          END IF;
          PERFORM {schema}.require_fresh_rules();
          -- a lead outside protection is anybody's to edit, and nobody's to own
          decision := replace({schema}.explain_edit(lead), 'unprotected', 'not_found');
          IF change = 'claim' THEN
            new_owner := author;
            IF decision NOT IN ('owner', 'collaborator', 'unassigned') THEN
              RETURN decision;
            END IF;
          ELSIF manager THEN
            IF author IS NULL AND {declared_user} <> '' THEN
              RETURN 'no_context';
            ELSIF here IS NULL THEN
              RETURN 'not_found';
            ELSIF change = 'transfer' AND standing.user_id IS NULL THEN
              RETURN 'unassigned';
            END IF;
            decision := 'manager';
          ELSIF change <> 'release' THEN
            -- only a manager decides who else owns a lead, whatever it is to the caller
            RETURN CASE WHEN decision IN ('no_context', 'not_found', 'suspended') THEN decision ELSE 'not_manager' END;
          ELSIF decision <> 'owner' THEN
            -- a collaborator may edit, but the lead is not his to give away
            RETURN CASE WHEN decision = 'collaborator' THEN 'not_owner' ELSE decision END;
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
            WHERE a.source <> 'moving' AND (change <> 'claim' OR a.user_id IS NULL OR a.user_id = excluded.user_id);
          IF NOT FOUND THEN
            RETURN 'not_owner';
          END IF;
          IF held THEN
            PERFORM {schema}.write_owner_column(ARRAY[lead], ARRAY[here], new_owner);
          END IF;
          decision := CASE decision WHEN 'manager' THEN decision ELSE 'owner' END;
          PERFORM {schema}.write_audit(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action, decision,
            concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')));
          RETURN decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.try_change_owner({lead_id_type}, text, {user_id_type}, text) IS
        'Every change of ownership: assign, claim, release, transfer; returns the right it was done by, or why it was denied';
        REVOKE ALL ON FUNCTION {schema}.try_change_owner({lead_id_type}, text, {user_id_type}, text) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_owner(lead {lead_id_type}, change text, new_owner {user_id_type}, note text)
        RETURNS text
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          RETURN {schema}.answered(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action,
            {schema}.try_change_owner(lead, change, new_owner, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.change_owner({lead_id_type}, text, {user_id_type}, text) IS
        'For the library: a change of ownership; a denial is returned with the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.change_owner({lead_id_type}, text, {user_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.change_owner({lead_id_type}, text, {user_id_type}, text) TO {app}, {manager}
        """)
    )
    # The same for many leads: what a manager changes, and what an owner gives back. All rows of ownership are locked in
    # the order of the ids, as allow_edits does, then changed and recorded together. What is not in it, and everything
    # where the change can't be right for one of them, is left to try_change_owner: it knows the answer. Who
    # hands over all that somebody owns has listed it before: what is not his any more stays with whoever has it by now.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_together(
          leads {lead_id_type}[], change text, new_owner {user_id_type}, note text, of_owner {user_id_type})
        RETURNS {lead_id_type}[]
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        #variable_conflict use_variable
        DECLARE
          declared_territory text := {declared_territory};
          author {user_id_type} := {schema}.parse_user({declared_user});
          manager boolean := {schema}.is_manager();
          admitted text[];
          found {lead_id_type}[];
          places text[];
          owned {lead_id_type}[];
          held boolean;
        BEGIN
          IF change IS NULL OR change NOT IN ('assign', 'transfer', 'release')
            OR (new_owner IS NULL) <> (change = 'release')
            OR NOT manager AND (change <> 'release' OR author IS NULL)
            OR author IS NULL AND {declared_user} <> ''
            OR cardinality(leads) <> (SELECT count(DISTINCT u.lead) FROM unnest(leads) AS u (lead))
          THEN
            RETURN '{}';
          END IF;
          admitted := CASE
            WHEN declared_territory <> '' THEN CASE WHEN {schema}.is_member(declared_territory) THEN ARRAY[declared_territory] END
            WHEN manager THEN ARRAY(SELECT t.code FROM {schema}.territories AS t WHERE {schema}.is_member(t.code)) END;
          SELECT array_agg(l.lead_id ORDER BY l.lead_id), array_agg(l.territory ORDER BY l.lead_id) INTO found, places
          FROM {schema}.host_leads(leads) AS l WHERE l.territory = ANY (admitted);
          -- in the order in which an UPDATE of the leads takes its locks
          held := {named} AND found IS NOT NULL AND {schema}.hold_leads(found);
          SELECT array_agg(a.lead_id) FILTER (WHERE a.user_id IS NOT NULL) INTO owned
          FROM (SELECT s.lead_id, s.user_id
                FROM unnest(found, places) AS l (lead, territory)
                JOIN {schema}.user_lead_assignments AS s ON s.lead_id = l.lead AND s.territory = l.territory
                WHERE NOT manager OR of_owner IS NULL OR s.user_id = of_owner
                ORDER BY s.lead_id FOR UPDATE OF s) AS a;
          PERFORM {schema}.require_fresh_rules();
          IF EXISTS (
            SELECT FROM {schema}.lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = ANY (admitted) AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = ANY (leads))
              AND {schema}.in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RETURN '{}';
          ELSIF NOT manager THEN
            owned := ARRAY(SELECT DISTINCT e.lead FROM {schema}.editable_among(owned) AS e WHERE e.reason = 'owner');
          ELSIF of_owner IS NULL AND change <> 'transfer' THEN
            owned := found; -- whoever owns it, and nobody
          END IF;
          WITH changed AS (
            INSERT INTO {schema}.user_lead_assignments AS a
              (lead_id, territory, user_id, assigned_at, assigned_by, source)
            SELECT l.lead, l.territory, new_owner, clock_timestamp(), author, change
            FROM unnest(found, places) AS l (lead, territory) JOIN unnest(owned) AS o (lead) ON o.lead = l.lead
            ORDER BY l.lead
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET user_id = excluded.user_id, assigned_at = excluded.assigned_at,
                  assigned_by = excluded.assigned_by, source = excluded.source,
                  activity_at = NULL, activity_id = NULL
              WHERE a.source <> 'moving'
            RETURNING a.lead_id, a.territory),
          recorded AS (
            INSERT INTO {schema}.lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT CASE WHEN '{lead_id_type}' = 'text' THEN left(c.lead_id::text, 255)::{lead_id_type} ELSE c.lead_id END,
                   author, (SELECT {schema}.acting_role()), c.territory,
                   CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action, 'ALLOW',
                   CASE WHEN manager THEN 'manager' ELSE 'owner' END,
                   (SELECT {schema}.bounded(concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')))),
                   (SELECT {schema}.bounded({declared_correlation})),
                   CASE WHEN manager THEN 'role ' || {manager_name} ELSE 'assignment' END
            FROM changed AS c ORDER BY c.lead_id)
          SELECT array_agg(c.lead_id), array_agg(c.territory) INTO owned, places FROM changed AS c;
          IF held AND owned IS NOT NULL THEN
            PERFORM {schema}.write_owner_column(owned, places, new_owner);
          END IF;
          RETURN coalesce(owned, '{}');
        END
        $body$;
        COMMENT ON FUNCTION {schema}.change_together({lead_id_type}[], text, {user_id_type}, text, {user_id_type}) IS
        'Changes the owner of those of these leads that need no decision of their own, with one record each; returns which';
        REVOKE ALL ON FUNCTION {schema}.change_together({lead_id_type}[], text, {user_id_type}, text, {user_id_type}) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.change_owners(
          leads {lead_id_type}[], change text, new_owner {user_id_type}, note text,
          of_owner {user_id_type} DEFAULT NULL)
        RETURNS text[]
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          manager boolean := {schema}.is_manager();
          changed {lead_id_type}[] := {schema}.change_together(leads, change, new_owner, note, of_owner);
          answers text[];
          asked record;
        BEGIN
          answers := ARRAY(
            SELECT CASE WHEN c.lead IS NOT NULL THEN CASE WHEN manager THEN 'manager' ELSE 'owner' END END
            FROM unnest(leads) WITH ORDINALITY AS u (lead, place) LEFT JOIN unnest(changed) AS c (lead) ON c.lead = u.lead
            ORDER BY u.place);
          FOR asked IN
            SELECT u.lead, a.place FROM unnest(answers) WITH ORDINALITY AS a (answer, place)
            JOIN unnest(leads) WITH ORDINALITY AS u (lead, place) ON u.place = a.place
            WHERE a.answer IS NULL ORDER BY u.lead, u.place
          LOOP
            IF of_owner IS NOT NULL AND manager THEN
              PERFORM FROM {schema}.user_lead_assignments AS a
                WHERE a.lead_id = asked.lead AND a.user_id = of_owner
                  AND a.territory = {schema}.lead_for_ownership(asked.lead, manager) FOR UPDATE;
              CONTINUE WHEN NOT FOUND;
            END IF;
            answers[asked.place] := {schema}.answered(
              asked.lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::{schema}.lead_action,
              {schema}.try_change_owner(asked.lead, change, new_owner, note), note);
          END LOOP;
          RETURN answers;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.change_owners({lead_id_type}[], text, {user_id_type}, text, {user_id_type}) IS
        'For the library: change_owner for each of these leads, locked in the order of their ids; NULL where a manager named an owner who is not it';
        REVOKE ALL ON FUNCTION {schema}.change_owners({lead_id_type}[], text, {user_id_type}, text, {user_id_type}) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.change_owners({lead_id_type}[], text, {user_id_type}, text, {user_id_type}) TO {app}, {manager}
        """)
    )
    # Who may edit besides the owner. A share is ended, never deleted: the audit can still tell who
    # could edit a lead at a given time.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.try_change_sharing(
          lead {lead_id_type}, change text, with_user {user_id_type}, effective_from timestamptz,
          effective_to timestamptz, note text)
        RETURNS text
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        SET enable_seqscan = off
        AS $body$
        DECLARE
          author {user_id_type} := {schema}.parse_user({declared_user});
          manager boolean := {schema}.is_manager();
          here text := {schema}.lead_for_ownership(lead, manager);
          starts timestamptz := coalesce(effective_from, clock_timestamp());
          owner {user_id_type};
          decision text;
        BEGIN
          IF change IS NULL OR change NOT IN ('share', 'unshare') THEN
            RAISE EXCEPTION '% is no change of sharing', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF with_user IS NULL THEN
            RAISE EXCEPTION 'the user to share with is missing' USING ERRCODE = 'LP422';
          ELSIF change = 'share' AND effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          END IF;
          SELECT a.user_id INTO owner FROM {schema}.user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
          PERFORM {schema}.require_fresh_rules();
          decision := {schema}.explain_edit(lead);
          IF here IS NULL THEN
            RETURN CASE decision WHEN 'no_context' THEN decision ELSE 'not_found' END;
          ELSIF manager THEN
            IF author IS NULL AND {declared_user} <> '' THEN
              RETURN 'no_context';
            END IF;
            decision := 'manager';
          ELSIF decision <> 'owner' THEN
            RETURN CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END;
          END IF;
          IF change = 'share' THEN
            PERFORM {schema}.require_not_moving(ARRAY[lead]);
            IF with_user = owner OR with_user = author AND decision = 'owner' THEN
              RAISE EXCEPTION 'a lead is not shared with its own owner' USING ERRCODE = 'LP422';
            END IF;
            INSERT INTO {schema}.lead_protection_rules
              (user_id, territory, protection, lead_id, effective_from, effective_to, shared_by)
            VALUES (with_user, here, 'COLLABORATOR', lead, starts, try_change_sharing.effective_to,
                    CASE decision WHEN 'owner' THEN author END)
            ON CONFLICT DO NOTHING;
          ELSE
            PERFORM {schema}.end_rules(with_user, here, 'COLLABORATOR', lead);
          END IF;
          PERFORM {schema}.write_audit(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::{schema}.lead_action, decision,
            concat_ws('; ', note, change || ' with ' || with_user));
          RETURN decision;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.try_change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text) IS
        'Shares a lead with a user, or ends that; returns the right it was done by, or why it was denied';
        REVOKE ALL ON FUNCTION {schema}.try_change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text)
        FROM PUBLIC
        """)
    )
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
        BEGIN
          RETURN {schema}.answered(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::{schema}.lead_action,
            {schema}.try_change_sharing(lead, change, with_user, effective_from, effective_to, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text) IS
        'For the library: a change of sharing; a denial is returned with the ticket for its row';
        REVOKE ALL ON FUNCTION {schema}.change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.change_sharing({lead_id_type}, text, {user_id_type}, timestamptz, timestamptz, text) TO {app}, {manager}
        """)
    )


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
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.try_change_owner(lead, 'claim', NULL, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.claim_lead({lead_id_type}, text) IS
        'Makes the user in context the owner of a lead that nobody owns; of two claims one wins';
        -- Sellers take, give back and share; only a manager decides about somebody else.
        REVOKE ALL ON FUNCTION {schema}.claim_lead({lead_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.claim_lead({lead_id_type}, text) TO {app}, {manager}
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
          PERFORM {schema}.require(lead, 'UNASSIGN', {schema}.try_change_owner(lead, 'release', NULL, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.release_lead({lead_id_type}, text) IS
        'Takes the lead from its owner; no backfill and no activity gives it back';
        REVOKE ALL ON FUNCTION {schema}.release_lead({lead_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.release_lead({lead_id_type}, text) TO {app}, {manager}
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
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.try_change_owner(lead, 'assign', new_owner, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.assign_lead({lead_id_type}, {user_id_type}, text) IS
        'Gives the lead to a user, whoever owns it now; for managers of its territory';
        REVOKE ALL ON FUNCTION {schema}.assign_lead({lead_id_type}, {user_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.assign_lead({lead_id_type}, {user_id_type}, text) TO {manager}
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
          PERFORM {schema}.require(lead, 'ASSIGN', {schema}.try_change_owner(lead, 'transfer', new_owner, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.transfer_lead({lead_id_type}, {user_id_type}, text) IS
        'Gives an owned lead to a user; for managers. An edit under way is waited for';
        REVOKE ALL ON FUNCTION {schema}.transfer_lead({lead_id_type}, {user_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.transfer_lead({lead_id_type}, {user_id_type}, text) TO {manager}
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
            {schema}.try_change_sharing(lead, 'share', with_user, effective_from, effective_to, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text) IS
        'Lets a user edit the lead besides its owner, from a time until a time';
        REVOKE ALL ON FUNCTION {schema}.share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.share_lead({lead_id_type}, {user_id_type}, timestamptz, timestamptz, text) TO {app}, {manager}
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
            {schema}.try_change_sharing(lead, 'unshare', with_user, NULL, NULL, note), note);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.unshare_lead({lead_id_type}, {user_id_type}, text) IS
        'Ends every share of the lead with a user now; an edit under way is waited for';
        REVOKE ALL ON FUNCTION {schema}.unshare_lead({lead_id_type}, {user_id_type}, text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unshare_lead({lead_id_type}, {user_id_type}, text) TO {app}, {manager}
        """)
    )


def create_vat_rates() -> None:
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.territory_vat_rates') IS NOT NULL THEN
            ALTER TABLE {quarantine}.territory_vat_rates SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.territory_vat_rates (
              territory text NOT NULL REFERENCES {schema}.territories (code),
              rate numeric(5, 2) NOT NULL CHECK (rate BETWEEN 0 AND 100),
              valid_from date NOT NULL,
              valid_to date CHECK (valid_to >= valid_from),
              PRIMARY KEY (territory, valid_from)
            );
          END IF;
        END
        $do$;
        COMMENT ON COLUMN {schema}.territory_vat_rates.rate IS
        'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice';
        COMMENT ON TABLE {schema}.territory_vat_rates IS 'VAT rates of the territories by day';
        COMMENT ON COLUMN {schema}.territory_vat_rates.territory IS 'the territory in which the rate holds';
        COMMENT ON COLUMN {schema}.territory_vat_rates.valid_from IS 'first day';
        ALTER TABLE {schema}.territory_vat_rates ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.territory_vat_rates FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.territory_vat_rates;
        CREATE POLICY lp_inside ON {schema}.territory_vat_rates TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_reference ON {schema}.territory_vat_rates;
        CREATE POLICY lp_reference ON {schema}.territory_vat_rates FOR SELECT
        TO {app}, {auditor}, {operator}, {manager} USING (true);
        DROP POLICY IF EXISTS lp_border ON {schema}.territory_vat_rates;
        CREATE POLICY lp_border ON {schema}.territory_vat_rates AS RESTRICTIVE
        USING ({inside} OR territory = (SELECT {schema}.own_border()));
        GRANT SELECT ON {schema}.territory_vat_rates TO {app}, {auditor}, {operator}, {manager}
        """)
    )
    op.execute(
        sql("""
        INSERT INTO {schema}.territory_vat_rates (territory, rate, valid_from, valid_to)
        SELECT known.territory, known.rate, known.valid_from::date, known.valid_to::date
        FROM (VALUES ('DE', 19.0, '2007-01-01', '2020-06-30'),
                     ('DE', 16.0, '2020-07-01', '2020-12-31'),
                     ('DE', 19.0, '2021-01-01', NULL),
                     ('CH', 7.7, '2018-01-01', '2023-12-31'),
                     ('CH', 8.1, '2024-01-01', NULL)) AS known (territory, rate, valid_from, valid_to)
        JOIN {schema}.territories AS t ON t.code = known.territory
        ON CONFLICT (territory, valid_from) DO NOTHING
        """)
    )


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
        END;
        COMMENT ON FUNCTION {schema}.territory_terms(text, date) IS
        'The legal terms of a territory on a day: currency, legal framework, VAT rate; readable without a context';
        REVOKE ALL ON FUNCTION {schema}.territory_terms(text, date) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.territory_terms(text, date) TO {app}, {auditor}, {operator}, {manager}
        """)
    )
