-- The schema of leadprotect with default settings, as it stands after lp_0019_contract_lead_tables.
--
-- Made by `make schema` from a real database with pg_dump; a test keeps it current. Do not edit. It is
-- a picture to read, no script to run: it leaves out the host's tables, the roles, and what is said below.
--
-- What is here. Seven tables hold facts: the territories and their VAT rates, who owns each lead (one row
-- per lead and territory) and who did before, who else may edit (the rules), every attempt (the audit),
-- and the seals over the attempts. The others hold the state of the migration, and a secret. One question
-- is asked everywhere: may the user in context edit this lead? decision() answers it. A service asks
-- through can_edit_lead() or assert_edit_and_audit(), a list of leads through v_lead_protection, and after
-- contract the server itself in the policies and triggers on the host's table, whatever code wrote.
--
-- Who may see what. A role leadprotect_<territory> admits to a territory; the context (three settings of a
-- transaction) chooses among those that the acting role holds. Each table with a territory carries that
-- border as the policy lp_border, restrictive and for everybody. Nobody writes but through our functions:
-- those that do are SECURITY DEFINER, and lp_inside opens the tables to their owner only inside of them.
-- That is leadprotect_owner: it owns what is here, and cannot read the host's tables. Where a heading says
-- "owner leadprotect_reader", the function is owned by a role that reads the columns of the host which are
-- granted in the last part, and writes nothing (where a setting names the host's own column for the owner,
-- that column, from contract on). Neither of the two has a login.
--
-- What is left out. The months of lead_access_audit: each is a partition like lead_access_audit_default,
-- which stands here as their example, with the same policies and the same trigger. The owners, except in
-- the headings. Of the host's tables everything that is not ours.
--
-- How to read. Each object comes with all that belongs to it: comments, keys, indexes, triggers, row
-- security, policies, grants. Its heading names the revision that made it; why it is so is told at the
-- top of that file and beside the statement, in migrations/versions. Objects of a part stand in the
-- order in which the revisions make them.
--
-- Contents, with the line:
--
--      46  Who calls which function
--     105  Territories and the border
--     433  Ownership and rules
--    1320  Hand-overs
--    1667  Decision
--    2209  Attempts and audit
--    3246  Seals
--    3731  Transition
--    4071  Shadow
--    4561  Backfill and verification
--    5536  Gate
--    6681  Host

-- =================================================================================================
-- Who calls which function
-- =================================================================================================

-- PUBLIC
--    all_territories, territory_roles, territory_role, claimed, admitted_territory, inside,
--    own_border, asked_by
--
-- leadprotect_app
--    acting_role, is_member, parse_user, context, claiming, set_context, decide, editable_among,
--    editable_leads, can_edit_lead, explain_edit, has_rules, protection_page, record_denial,
--    record_edit_attempt, allow_edit, allow_edits, assert_edit_and_audit, change_owner,
--    change_owners, change_sharing, claim_lead, release_lead, share_lead, unshare_lead,
--    territory_terms, lead_shares, change_rule
--
-- leadprotect_manager
--    acting_role, is_member, who_could_edit, parse_user, context, claiming, set_context, decide,
--    editable_among, editable_leads, can_edit_lead, explain_edit, has_rules, protection_page,
--    record_denial, record_edit_attempt, allow_edit, allow_edits, assert_edit_and_audit,
--    change_owner, change_owners, change_sharing, claim_lead, release_lead, assign_lead,
--    transfer_lead, share_lead, unshare_lead, territory_terms, lead_shares, grant_protection,
--    revoke_protection, change_rule, send_lead, receive_lead, hand_over, standing_handovers
--
-- leadprotect_auditor
--    acting_role, is_member, audit_partitions, who_could_edit, audit_origin, audit_number_gaps,
--    note_anchor, parse_user, context, claiming, set_context, decide, editable_among,
--    can_edit_lead, explain_edit, has_rules, protection_page, proved_denials, territory_terms,
--    standing_handovers
--
-- leadprotect_operator
--    acting_role, unreadable, owner_column_differs, settle_owner_column, audit_partitions,
--    create_audit_partitions, seal_audit, detach_audit_month, territory_terms, standing_handovers,
--    unowned_leads, backfill_stale, shadow_saw, shadow_run, shadow_noted, shadow_fold,
--    backfill_settings, backfill_start, backfill_claim, backfill_slice, backfill_release,
--    backfill_defer, backfill_retry, backfill_settle, backfill_finish, backfill_request,
--    guard_beat, guard_release, backfill_estimate, backfill_sample, backfill_outside,
--    unowned_count, backfill_counts, backfill_report, backfill_status, column_code, gate_conditions
--
-- nobody: they serve policies, triggers, revisions and the functions above
--    publish_territories, keep_assignment, end_lead_rules, end_rules, in_force, collaboration,
--    require_not_moving, host_lead, host_leads, protected_leads, hold_leads, write_owner_column,
--    refuse_change, secure_audit_table, add_audit_partition, clear_audit_default, edit_own_one,
--    edit_together, bounded, audit_settled_until, sealed_numbers, append_audit_seal, is_code,
--    begins, decision, unsuspended, require_fresh_rules, decide_locked, write_audit, denial_proof,
--    draw_denial, deny, answered, require, try_edit, lead_for_ownership, is_manager,
--    try_change_owner, change_together, try_change_sharing, make_rule, revoke_rule,
--    decide_as_manager, require_manager, handover_holds, is_enforced, hold_for_move,
--    earlier_activity, in_transition, note_unsettled, derived_owners, sources_indexed, bare_leads,
--    few_are_bare, probed_leads, note_contextless_write, own_moved_lead, own_named_lead,
--    follow_lead, follow_leads, follow_owner_column, hide_owner_column, own_new_lead, refuse_move,
--    refuse_taken, forget_lead, own_active_lead, shadow_note, shadow_failed, shadow_binds,
--    shadow_reason, shadow_border, shadow_edits, shadow_inserts, shadow_lead, shadow_rows,
--    shadow_truncate, require_transition, chunk_bounds, next_leads, own_leads, lead_tally,
--    acting_logins, leaking_views, ways_around, host_code, lost_searches, what_changes,
--    lead_table_conditions, accept_condition, accepted_share, shadow_condition, tolerated,
--    granting, shell_word, require_open_gate, acts_bound, recorded_edit, audit_edit, audit_edits,
--    audit_truncate, settings_at_contract, acts_bound_on, edit_through, child_edit, child_move,
--    child_edits, child_leads, child_truncate

-- =================================================================================================
-- Territories and the border
--
-- The territories with their terms, and the border: which of them the acting role is in.
-- Territories are rows; publish_territories() makes the constant that the policies ask from them.
-- Everybody may ask admitted_territory(): other schemas can build on the same border.
-- =================================================================================================

-- schema leadprotect, lp_0001_expand_territories

CREATE SCHEMA leadprotect;

COMMENT ON SCHEMA leadprotect IS 'leadprotect: one owner per lead and territory, audited';

GRANT USAGE ON SCHEMA leadprotect TO leadprotect_reader;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_app;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_auditor;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_operator;
GRANT USAGE ON SCHEMA leadprotect TO leadprotect_manager;

-- function acting_role, lp_0001_expand_territories

CREATE FUNCTION leadprotect.acting_role() RETURNS name
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER);

COMMENT ON FUNCTION leadprotect.acting_role() IS 'Who acts: the role that SET ROLE chose, or the login where none is chosen';

REVOKE ALL ON FUNCTION leadprotect.acting_role() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.acting_role() TO leadprotect_reader;
GRANT ALL ON FUNCTION leadprotect.acting_role() TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.acting_role() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.acting_role() TO leadprotect_manager;
GRANT ALL ON FUNCTION leadprotect.acting_role() TO leadprotect_operator;

-- function all_territories, lp_0001_expand_territories

CREATE FUNCTION leadprotect.all_territories() RETURNS text[]
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN '{CH,DE}'::text[];

COMMENT ON FUNCTION leadprotect.all_territories() IS 'The codes of all territories, as a constant for the border: publish_territories() makes it';

-- function territory_roles, lp_0001_expand_territories

CREATE FUNCTION leadprotect.territory_roles() RETURNS jsonb
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN '{"CH": "leadprotect_ch", "DE": "leadprotect_de"}'::jsonb;

COMMENT ON FUNCTION leadprotect.territory_roles() IS 'The role of each territory, quoted, as a constant for the border: publish_territories() makes it';

-- function territory_role, lp_0001_expand_territories

CREATE FUNCTION leadprotect.territory_role(code text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN ('leadprotect_'::text || lower(code));

COMMENT ON FUNCTION leadprotect.territory_role(code text) IS 'The name of the role that a territory would have, as a constant: publish_territories() makes it';

-- function is_member, lp_0001_expand_territories

CREATE FUNCTION leadprotect.is_member(territory text) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN COALESCE(pg_has_role(leadprotect.acting_role(), (to_regrole((leadprotect.territory_roles() ->> territory)))::oid, 'USAGE'::text), false);

COMMENT ON FUNCTION leadprotect.is_member(territory text) IS 'Whether the acting role holds the role of this territory';

REVOKE ALL ON FUNCTION leadprotect.is_member(territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_reader;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.is_member(territory text) TO leadprotect_manager;

-- function claimed, lp_0001_expand_territories

CREATE FUNCTION leadprotect.claimed(said text, field text) RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          rest text := said;
          inner_most text;
          claim jsonb;
        BEGIN
          IF said IS NULL OR left(ltrim(said, E' \t\n\r'), 1) <> '{' THEN
            RETURN NULL;
          ELSIF current_setting('server_version_num')::integer >= 160000 THEN
            IF NOT pg_input_is_valid(said, 'jsonb') THEN
              RETURN NULL;
            END IF;
          ELSE
            rest := regexp_replace(rest, '"(?:[^"\\\u0001-\u001f]|\\(?:["\\/bfnrt]|u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}'
              || '|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*"', '"', 'g');
            rest := regexp_replace(
              rest, '-?(?:0|[1-9][0-9]{0,255})(?:[.][0-9]{1,255})?(?:[eE][+-]?[0-9]{1,3})?|true|false|null', '0', 'g');
            rest := translate(rest, E' \t\n\r', '');
            LOOP
              inner_most := regexp_replace(rest, '[{](?:":[0"](?:,":[0"])*)?[}]|[[](?:[0"](?:,[0"])*)?[]]', '0', 'g');
              EXIT WHEN inner_most = rest;
              rest := inner_most;
            END LOOP;
            IF rest <> '0' THEN
              RETURN NULL;
            END IF;
          END IF;
          IF field IS NULL THEN
            RETURN said;
          END IF;
          claim := said::jsonb -> field;
          RETURN CASE WHEN jsonb_typeof(claim) IN ('string', 'number') THEN claim #>> '{}' END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.claimed(said text, field text) IS 'A text or number of a JSON object in a setting, the whole text without a field; NULL for whatever is none, never an error';

-- function admitted_territory, lp_0001_expand_territories

CREATE FUNCTION leadprotect.admitted_territory() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN pg_has_role(COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER), (to_regrole((leadprotect.territory_roles() ->> current_setting('app.territory'::text, true))))::oid, 'USAGE'::text) THEN current_setting('app.territory'::text, true) ELSE NULL::text END;

COMMENT ON FUNCTION leadprotect.admitted_territory() IS 'The territory in context if the acting role holds its role, else NULL: the border that every policy asks';

-- function inside, lp_0001_expand_territories

CREATE FUNCTION leadprotect.inside() RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN current_user IN ('leadprotect_owner', 'leadprotect_reader');
        END
        $$;

COMMENT ON FUNCTION leadprotect.inside() IS 'Whether one of our functions asks, for policies: whoever is a member of its owner is not it';

-- function own_border, lp_0001_expand_territories

CREATE FUNCTION leadprotect.own_border() RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN "leadprotect".admitted_territory();
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_border() IS 'admitted_territory() for the policies of our own tables, which our functions pass before it is asked';

-- table territories, lp_0001_expand_territories

CREATE TABLE leadprotect.territories (
    code text NOT NULL,
    name text NOT NULL,
    currency text,
    legal_framework text,
    suffix text,
    CONSTRAINT territories_currency_check CHECK ((currency ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT territories_suffix_check CHECK ((suffix ~ '^[a-z0-9][a-z0-9_]{0,15}$'::text))
);

ALTER TABLE ONLY leadprotect.territories FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.territories IS 'The legal territories: reference data, no secret of another one';
COMMENT ON COLUMN leadprotect.territories.code IS 'what leads carry in their territory column';
COMMENT ON COLUMN leadprotect.territories.name IS 'for people';
COMMENT ON COLUMN leadprotect.territories.currency IS 'ISO 4217';
COMMENT ON COLUMN leadprotect.territories.legal_framework IS 'the law that contracts in this territory are made under';
COMMENT ON COLUMN leadprotect.territories.suffix IS 'what the name of its role ends with; NULL: the code in small letters';

ALTER TABLE ONLY leadprotect.territories
    ADD CONSTRAINT territories_pkey PRIMARY KEY (code);

CREATE UNIQUE INDEX ix_territories_role ON leadprotect.territories USING btree (COALESCE(suffix, lower(code)));

ALTER TABLE leadprotect.territories ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.territories TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_reference ON leadprotect.territories FOR SELECT TO leadprotect_app, leadprotect_auditor, leadprotect_manager, leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_reader;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.territories TO leadprotect_manager;

-- function publish_territories, lp_0001_expand_territories

CREATE FUNCTION leadprotect.publish_territories() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION "leadprotect".all_territories() RETURNS text[] LANGUAGE sql STABLE PARALLEL SAFE RETURN %L::text[]',
            ARRAY(SELECT t.code FROM "leadprotect".territories AS t ORDER BY t.code));
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION "leadprotect".territory_roles() RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE RETURN %L::jsonb',
            (SELECT jsonb_object_agg(t.code, quote_ident('leadprotect_' || coalesce(t.suffix, lower(t.code)))) FROM "leadprotect".territories AS t));
          EXECUTE format(
            'CREATE OR REPLACE FUNCTION "leadprotect".territory_role(code text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE RETURN %L || %s',
            'leadprotect_',
            coalesce(
              (SELECT 'CASE code' || string_agg(format(' WHEN %L THEN %L', t.code, t.suffix), '' ORDER BY t.code) || ' ELSE lower(code) END'
               FROM "leadprotect".territories AS t WHERE t.suffix IS NOT NULL),
              'lower(code)'));
        END
        $$;

COMMENT ON FUNCTION leadprotect.publish_territories() IS 'Makes all_territories(), territory_roles() and territory_role() anew, from the table';

REVOKE ALL ON FUNCTION leadprotect.publish_territories() FROM PUBLIC;

-- function unreadable, lp_0001_expand_territories, owner leadprotect_reader

CREATE FUNCTION leadprotect.unreadable() RETURNS TABLE(host regclass, detail text, remedy text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        BEGIN
          FOREACH host IN ARRAY ARRAY['"public"."leads"', '"public"."activities"']::regclass[] LOOP
            BEGIN
              IF host = '"public"."leads"'::regclass THEN
                PERFORM l."id", l."territory" FROM "public"."leads" AS l LIMIT 1;
              ELSE
                EXECUTE format('SELECT FROM %s LIMIT 1', host);
              END IF;
              CONTINUE;
            EXCEPTION
              WHEN lock_not_available THEN RAISE;
              WHEN OTHERS THEN -- without policies, it is what the settings call about a row
                detail := format('%s fails where %I reads it for leadprotect: %s', host, 'leadprotect_reader', SQLERRM);
                detail := (SELECT CASE WHEN c.relrowsecurity THEN 'a policy of ' ELSE '' END FROM pg_class AS c WHERE c.oid = host) || detail;
            END;
            SELECT string_agg('ALTER POLICY ' || quote_ident(p.polname) || ' ON '
              || (SELECT concat_ws('.', quote_ident(n.nspname), quote_ident(c.relname))
                  FROM pg_namespace AS n WHERE n.oid = c.relnamespace)
              || ' TO ' || coalesce((
              SELECT string_agg(DISTINCT quote_ident(r.rolname), ', ')
              FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
              JOIN pg_roles AS r ON r.oid = acl.grantee
              WHERE r.rolname <> ALL (ARRAY['leadprotect_app', 'leadprotect_auditor', 'leadprotect_manager', 'leadprotect_operator', 'leadprotect_owner', 'leadprotect_reader']::name[])), '...') || ';', E'\n' ORDER BY p.polname) INTO remedy
            FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
            WHERE p.polrelid = host AND p.polcmd IN ('r', '*') AND p.polroles = '{0}'
              AND p.polname <> ALL (ARRAY['leadprotect_border', 'leadprotect_rows', 'leadprotect_update', 'leadprotect_named_update', 'leadprotect_delete', 'leadprotect_members_update', 'leadprotect_members_delete', 'leadprotect_step', 'leadprotect_child_border', 'leadprotect_child_rows', 'leadprotect_child_insert', 'leadprotect_child_update', 'leadprotect_child_delete']::name[]);
            RETURN NEXT;
          END LOOP;
        END
        $$;

COMMENT ON FUNCTION leadprotect.unreadable() IS 'Which of the host''s tables our reader can''t read, because a policy of the host fails for it, and what mends that';

REVOKE ALL ON FUNCTION leadprotect.unreadable() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unreadable() TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.unreadable() TO leadprotect_operator;

-- function is_code, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.is_code(territory text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((length(territory) >= 1) AND (length(territory) <= 63) AND (territory !~ '[[:cntrl:]]'::text));

COMMENT ON FUNCTION leadprotect.is_code(territory text) IS 'Whether this can be the code of a territory; anything else is malformed';

REVOKE ALL ON FUNCTION leadprotect.is_code(territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.is_code(territory text) TO leadprotect_reader;

-- table territory_vat_rates, lp_0007_expand_ownership

CREATE TABLE leadprotect.territory_vat_rates (
    territory text NOT NULL,
    rate numeric(5,2) NOT NULL,
    valid_from date NOT NULL,
    valid_to date,
    CONSTRAINT territory_vat_rates_check CHECK ((valid_to >= valid_from)),
    CONSTRAINT territory_vat_rates_rate_check CHECK (((rate >= (0)::numeric) AND (rate <= (100)::numeric)))
);

ALTER TABLE ONLY leadprotect.territory_vat_rates FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.territory_vat_rates IS 'VAT rates of the territories by day';
COMMENT ON COLUMN leadprotect.territory_vat_rates.territory IS 'the territory in which the rate holds';
COMMENT ON COLUMN leadprotect.territory_vat_rates.rate IS 'percent; DE: UStG paragraph 12 and the 2020 tax relief act, CH: MWSTG article 25';
COMMENT ON COLUMN leadprotect.territory_vat_rates.valid_from IS 'first day';
COMMENT ON COLUMN leadprotect.territory_vat_rates.valid_to IS 'last day, inclusive; NULL: until further notice';

ALTER TABLE ONLY leadprotect.territory_vat_rates
    ADD CONSTRAINT territory_vat_rates_pkey PRIMARY KEY (territory, valid_from);

ALTER TABLE ONLY leadprotect.territory_vat_rates
    ADD CONSTRAINT territory_vat_rates_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

ALTER TABLE leadprotect.territory_vat_rates ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.territory_vat_rates AS RESTRICTIVE USING ((leadprotect.inside() OR (territory = ( SELECT leadprotect.own_border() AS own_border))));
CREATE POLICY lp_inside ON leadprotect.territory_vat_rates TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_reference ON leadprotect.territory_vat_rates FOR SELECT TO leadprotect_app, leadprotect_auditor, leadprotect_manager, leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.territory_vat_rates TO leadprotect_manager;

-- function territory_terms, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.territory_terms(territory text, on_date date) RETURNS TABLE(code text, name text, currency text, legal_framework text, vat_rate numeric)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT t.code,
     t.name,
     t.currency,
     t.legal_framework,
     v.rate
    FROM (leadprotect.territories t
      LEFT JOIN leadprotect.territory_vat_rates v ON (((v.territory = t.code) AND (v.valid_from <= territory_terms.on_date) AND ((v.valid_to IS NULL) OR (territory_terms.on_date <= v.valid_to)))))
   WHERE (t.code = territory_terms.territory);
END;

COMMENT ON FUNCTION leadprotect.territory_terms(territory text, on_date date) IS 'The legal terms of a territory on a day: currency, legal framework, VAT rate; readable without a context';

REVOKE ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_operator;
GRANT ALL ON FUNCTION leadprotect.territory_terms(territory text, on_date date) TO leadprotect_manager;

-- =================================================================================================
-- Ownership and rules
--
-- Who owns a lead, who owned it, and who else may edit it. Sellers claim, release and share their
-- leads; managers assign, transfer, grant and revoke. Nobody writes these tables by hand: the
-- functions check, lock, write and record in one step. change_owner() and change_sharing() are the
-- same for the library: they return a denial where the public functions raise.
-- =================================================================================================

-- type protection_type, lp_0002_expand_assignments

CREATE TYPE leadprotect.protection_type AS ENUM (
    'SOLE_OWNER',
    'COLLABORATOR',
    'VIEW_ONLY'
);

-- table user_lead_assignments, lp_0002_expand_assignments

CREATE TABLE leadprotect.user_lead_assignments (
    lead_id uuid NOT NULL,
    territory text NOT NULL,
    user_id uuid,
    assigned_at timestamp with time zone DEFAULT statement_timestamp() NOT NULL,
    assigned_by uuid,
    source text DEFAULT 'assign'::text NOT NULL,
    activity_source text COLLATE pg_catalog."C",
    activity_at timestamp with time zone,
    activity_id bigint,
    CONSTRAINT ula_released CHECK (((user_id IS NULL) = (source = ANY (ARRAY['release'::text, 'moved'::text, 'moving'::text]))))
);

ALTER TABLE ONLY leadprotect.user_lead_assignments FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.user_lead_assignments IS 'Who owns a lead in a territory; changed only by functions. user_id NULL: released by hand, moved here, or on its way to another database';
COMMENT ON COLUMN leadprotect.user_lead_assignments.lead_id IS 'the lead; no foreign key, a deleted lead must need no lock here';
COMMENT ON COLUMN leadprotect.user_lead_assignments.territory IS 'an assignment counts only while the lead is in it';
COMMENT ON COLUMN leadprotect.user_lead_assignments.user_id IS 'the owner; NULL: nobody';
COMMENT ON COLUMN leadprotect.user_lead_assignments.assigned_at IS 'since when';
COMMENT ON COLUMN leadprotect.user_lead_assignments.assigned_by IS 'the user who did it by hand; NULL: derived from an activity';
COMMENT ON COLUMN leadprotect.user_lead_assignments.source IS 'backfill and activity: derived, a newer activity wins; release: no owner by hand; moved: none until a newer activity; moving: frozen, on its way to or from another database; anything else: made by hand, stays';
COMMENT ON COLUMN leadprotect.user_lead_assignments.activity_source IS 'Which table of activities it stands in: the name of its section in the settings; NULL: the first one';
COMMENT ON COLUMN leadprotect.user_lead_assignments.activity_at IS 'time of the activity on which a derived assignment rests: a newer one wins';
COMMENT ON COLUMN leadprotect.user_lead_assignments.activity_id IS 'The qualifying activity on which a derived assignment (source backfill or activity) rests';

ALTER TABLE ONLY leadprotect.user_lead_assignments
    ADD CONSTRAINT ix_ula_lead PRIMARY KEY (lead_id, territory) INCLUDE (user_id);

CREATE INDEX ix_ula_moving ON leadprotect.user_lead_assignments USING btree (lead_id) WHERE (source = 'moving'::text);
CREATE INDEX ix_ula_user ON leadprotect.user_lead_assignments USING btree (user_id, territory, lead_id);

CREATE TRIGGER lp_keep_assignment AFTER DELETE OR UPDATE ON leadprotect.user_lead_assignments FOR EACH ROW EXECUTE FUNCTION leadprotect.keep_assignment();

ALTER TABLE leadprotect.user_lead_assignments ENABLE ALWAYS TRIGGER lp_keep_assignment;

ALTER TABLE leadprotect.user_lead_assignments ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.user_lead_assignments AS RESTRICTIVE USING ((leadprotect.inside() OR (territory = ( SELECT leadprotect.own_border() AS own_border))));
CREATE POLICY lp_inside ON leadprotect.user_lead_assignments TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.user_lead_assignments FOR SELECT TO leadprotect_app, leadprotect_auditor, leadprotect_manager USING (true);
CREATE POLICY lp_released ON leadprotect.user_lead_assignments AS RESTRICTIVE TO leadprotect_app USING ((user_id IS NOT NULL));

GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_reader;
GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.user_lead_assignments TO leadprotect_manager;

-- table user_lead_assignment_history, lp_0002_expand_assignments

CREATE TABLE leadprotect.user_lead_assignment_history (
    lead_id uuid NOT NULL,
    territory text NOT NULL,
    id bigint NOT NULL,
    user_id uuid,
    assigned_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    assigned_by uuid,
    source text NOT NULL
);

ALTER TABLE ONLY leadprotect.user_lead_assignment_history FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.user_lead_assignment_history IS 'Former assignments, from assigned_at to ended_at; written by a trigger when one changes';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.lead_id IS 'the lead';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.territory IS 'where it was owned';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.id IS 'order of the changes of a lead';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.user_id IS 'the former owner; NULL: it was released';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.assigned_at IS 'since when he was';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.ended_at IS 'until when';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.assigned_by IS 'the user who had assigned it';
COMMENT ON COLUMN leadprotect.user_lead_assignment_history.source IS 'how it had been assigned';

CREATE SEQUENCE leadprotect.user_lead_assignment_history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE leadprotect.user_lead_assignment_history_id_seq OWNED BY leadprotect.user_lead_assignment_history.id;

COMMENT ON SEQUENCE leadprotect.user_lead_assignment_history_id_seq IS 'Order of the changes';

ALTER TABLE ONLY leadprotect.user_lead_assignment_history ALTER COLUMN id SET DEFAULT nextval('leadprotect.user_lead_assignment_history_id_seq'::regclass);

ALTER TABLE ONLY leadprotect.user_lead_assignment_history
    ADD CONSTRAINT user_lead_assignment_history_pkey PRIMARY KEY (lead_id, territory, id);

ALTER TABLE leadprotect.user_lead_assignment_history ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.user_lead_assignment_history AS RESTRICTIVE USING ((leadprotect.inside() OR (territory = ( SELECT leadprotect.own_border() AS own_border))));
CREATE POLICY lp_inside ON leadprotect.user_lead_assignment_history TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.user_lead_assignment_history FOR SELECT TO leadprotect_auditor, leadprotect_manager USING (true);

GRANT SELECT ON TABLE leadprotect.user_lead_assignment_history TO leadprotect_manager;
GRANT SELECT ON TABLE leadprotect.user_lead_assignment_history TO leadprotect_auditor;

-- function keep_assignment, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.keep_assignment() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".user_lead_assignment_history (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (OLD.lead_id, OLD.territory, OLD.user_id, OLD.assigned_at, OLD.assigned_by, OLD.source);
          -- asked first: a hand-over of many ends a share of few
          IF OLD.user_id IS NOT NULL AND (TG_OP = 'DELETE' OR NEW.user_id IS DISTINCT FROM OLD.user_id)
            AND EXISTS (SELECT FROM "leadprotect".lead_protection_rules AS r
                        WHERE r.lead_id = OLD.lead_id AND r.active AND r.shared_by = OLD.user_id)
          THEN
            PERFORM "leadprotect".end_lead_rules(OLD.lead_id, OLD.user_id);
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.keep_assignment() IS 'Keeps what an assignment was before it changed, so that the audit can tell who could edit a lead at a time; ends what its owner shared';

REVOKE ALL ON FUNCTION leadprotect.keep_assignment() FROM PUBLIC;

-- table lead_protection_rules, lp_0002_expand_assignments

CREATE TABLE leadprotect.lead_protection_rules (
    user_id uuid NOT NULL,
    territory text NOT NULL,
    protection leadprotect.protection_type NOT NULL,
    lead_id uuid,
    active boolean DEFAULT true NOT NULL,
    effective_from timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    effective_to timestamp with time zone,
    made_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    made_by name DEFAULT SESSION_USER NOT NULL,
    shared_by uuid,
    CONSTRAINT lpr_dates CHECK ((effective_to > effective_from))
);

ALTER TABLE ONLY leadprotect.lead_protection_rules REPLICA IDENTITY FULL;

ALTER TABLE ONLY leadprotect.lead_protection_rules FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.lead_protection_rules IS 'COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out territory-wide collaborators; lead_id NULL: the whole territory';
COMMENT ON COLUMN leadprotect.lead_protection_rules.user_id IS 'whom the rule is about';
COMMENT ON COLUMN leadprotect.lead_protection_rules.territory IS 'where it holds';
COMMENT ON COLUMN leadprotect.lead_protection_rules.protection IS 'what it does';
COMMENT ON COLUMN leadprotect.lead_protection_rules.lead_id IS 'for this lead only; NULL: for the whole territory';
COMMENT ON COLUMN leadprotect.lead_protection_rules.active IS 'false: ended before its time';
COMMENT ON COLUMN leadprotect.lead_protection_rules.effective_from IS 'first moment';
COMMENT ON COLUMN leadprotect.lead_protection_rules.effective_to IS 'first moment after it; NULL: without end';
COMMENT ON COLUMN leadprotect.lead_protection_rules.made_at IS 'when it was made, whatever beginning it was given';
COMMENT ON COLUMN leadprotect.lead_protection_rules.made_by IS 'the login that made it';
COMMENT ON COLUMN leadprotect.lead_protection_rules.shared_by IS 'the owner who shared his lead: it ends when he ceases to be it; NULL: made by a manager';

ALTER TABLE ONLY leadprotect.lead_protection_rules
    ADD CONSTRAINT ix_lpr_user UNIQUE NULLS NOT DISTINCT (user_id, territory, protection, lead_id, active, effective_from, effective_to);

CREATE INDEX ix_lpr_lead ON leadprotect.lead_protection_rules USING btree (lead_id) WHERE (active AND (lead_id IS NOT NULL));

ALTER TABLE ONLY leadprotect.lead_protection_rules
    ADD CONSTRAINT lead_protection_rules_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

ALTER TABLE leadprotect.lead_protection_rules ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.lead_protection_rules AS RESTRICTIVE USING ((leadprotect.inside() OR (territory = ( SELECT leadprotect.own_border() AS own_border))));
CREATE POLICY lp_inside ON leadprotect.lead_protection_rules TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.lead_protection_rules FOR SELECT TO leadprotect_auditor, leadprotect_manager USING (true);

GRANT SELECT ON TABLE leadprotect.lead_protection_rules TO leadprotect_reader;
GRANT SELECT ON TABLE leadprotect.lead_protection_rules TO leadprotect_manager;
GRANT SELECT ON TABLE leadprotect.lead_protection_rules TO leadprotect_auditor;

-- function end_lead_rules, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.end_lead_rules(lead uuid, of_owner uuid DEFAULT NULL::uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        BEGIN
          DELETE FROM "leadprotect".lead_protection_rules AS r
          WHERE r.lead_id = lead AND r.active AND r.effective_from >= clock_timestamp()
            AND (of_owner IS NULL OR r.shared_by = of_owner);
          UPDATE "leadprotect".lead_protection_rules AS r
          SET active = false, effective_to = clock_timestamp()
          WHERE r.lead_id = lead AND r.active AND (r.effective_to IS NULL OR r.effective_to > clock_timestamp())
            AND (of_owner IS NULL OR r.shared_by = of_owner);
        END
        $$;

COMMENT ON FUNCTION leadprotect.end_lead_rules(lead uuid, of_owner uuid) IS 'Ends what this owner shared of the lead, or every rule of the lead where no owner is named';

REVOKE ALL ON FUNCTION leadprotect.end_lead_rules(lead uuid, of_owner uuid) FROM PUBLIC;

-- function end_rules, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          ended integer;
        BEGIN
          -- what never took effect has no history to keep
          DELETE FROM "leadprotect".lead_protection_rules AS r
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead AND r.effective_from >= clock_timestamp();
          -- active as well: who waits for this row's lock began before the new effective_to
          UPDATE "leadprotect".lead_protection_rules AS r
          SET active = false, effective_to = clock_timestamp()
          WHERE r.user_id = of_user AND r.territory = here AND r.protection = kind
            AND r.lead_id IS NOT DISTINCT FROM lead
            AND r.active AND (r.effective_to IS NULL OR r.effective_to > clock_timestamp());
          GET DIAGNOSTICS ended = ROW_COUNT;
          RETURN ended;
        END
        $$;

COMMENT ON FUNCTION leadprotect.end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) IS 'Ends the rules of a user of one kind; what had taken effect stays as history';

REVOKE ALL ON FUNCTION leadprotect.end_rules(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) FROM PUBLIC;

-- function lead_for_ownership, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.lead_for_ownership(lead uuid, manager boolean) RETURNS text
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT l.territory
    FROM leadprotect.host_lead(lead_for_ownership.lead) l(territory)
   WHERE (leadprotect.is_member(l.territory) AND ((l.territory = current_setting('app.territory'::text, true)) OR (lead_for_ownership.manager AND (COALESCE(current_setting('app.territory'::text, true), ''::text) = ''::text))));
END;

COMMENT ON FUNCTION leadprotect.lead_for_ownership(lead uuid, manager boolean) IS 'The territory in which the caller may change who owns this lead; NULL where he may not, or where there is none';

REVOKE ALL ON FUNCTION leadprotect.lead_for_ownership(lead uuid, manager boolean) FROM PUBLIC;

-- function is_manager, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.is_manager() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN pg_has_role(leadprotect.acting_role(), 'leadprotect_manager'::name, 'USAGE'::text);

COMMENT ON FUNCTION leadprotect.is_manager() IS 'Whether the acting role may decide about the leads of others';

REVOKE ALL ON FUNCTION leadprotect.is_manager() FROM PUBLIC;

-- function try_change_owner, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.try_change_owner(lead uuid, change text, new_owner uuid, note text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          manager boolean := "leadprotect".is_manager() AND change <> 'claim';
          here text := "leadprotect".lead_for_ownership(lead, manager);
          -- in the order in which an UPDATE of the lead takes its locks
          held boolean := false AND here IS NOT NULL AND "leadprotect".hold_leads(ARRAY[lead]);
          standing "leadprotect".user_lead_assignments;
          decision text;
        BEGIN
          IF change IS NULL OR change NOT IN ('assign', 'claim', 'release', 'transfer') THEN
            RAISE EXCEPTION '% is no change of ownership', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF change IN ('assign', 'transfer') AND new_owner IS NULL THEN
            RAISE EXCEPTION 'the new owner is missing' USING ERRCODE = 'LP422', HINT = 'release_lead takes an owner away.';
          END IF;
          IF here IS NOT NULL AND change <> 'claim' THEN
            SELECT * INTO standing FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
            IF manager AND standing.source = 'moving' THEN
              PERFORM "leadprotect".require_not_moving(ARRAY[lead]);
            END IF;
          END IF;
          PERFORM "leadprotect".require_fresh_rules();
          -- a lead outside protection is anybody's to edit, and nobody's to own
          decision := replace("leadprotect".explain_edit(lead), 'unprotected', 'not_found');
          IF change = 'claim' THEN
            new_owner := author;
            IF decision NOT IN ('owner', 'collaborator', 'unassigned') THEN
              RETURN decision;
            END IF;
          ELSIF manager THEN
            IF author IS NULL AND pg_catalog.current_setting('app.user_id', true) <> '' THEN
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
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = here AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = lead)
              AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RAISE EXCEPTION 'the new owner is suspended in territory %', here USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO "leadprotect".user_lead_assignments AS a
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
            PERFORM "leadprotect".write_owner_column(ARRAY[lead], ARRAY[here], new_owner);
          END IF;
          decision := CASE decision WHEN 'manager' THEN decision ELSE 'owner' END;
          PERFORM "leadprotect".write_audit(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action, decision,
            concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')));
          RETURN decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.try_change_owner(lead uuid, change text, new_owner uuid, note text) IS 'Every change of ownership: assign, claim, release, transfer; returns the right it was done by, or why it was denied';

REVOKE ALL ON FUNCTION leadprotect.try_change_owner(lead uuid, change text, new_owner uuid, note text) FROM PUBLIC;

-- function change_owner, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          RETURN "leadprotect".answered(
            lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action,
            "leadprotect".try_change_owner(lead, change, new_owner, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) IS 'For the library: a change of ownership; a denial is returned with the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_owner(lead uuid, change text, new_owner uuid, note text) TO leadprotect_manager;

-- function change_together, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.change_together(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) RETURNS uuid[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          declared_territory text := pg_catalog.current_setting('app.territory', true);
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          manager boolean := "leadprotect".is_manager();
          admitted text[];
          found uuid[];
          places text[];
          owned uuid[];
          held boolean;
        BEGIN
          IF change IS NULL OR change NOT IN ('assign', 'transfer', 'release')
            OR (new_owner IS NULL) <> (change = 'release')
            OR NOT manager AND (change <> 'release' OR author IS NULL)
            OR author IS NULL AND pg_catalog.current_setting('app.user_id', true) <> ''
            OR cardinality(leads) <> (SELECT count(DISTINCT u.lead) FROM unnest(leads) AS u (lead))
          THEN
            RETURN '{}';
          END IF;
          admitted := CASE
            WHEN declared_territory <> '' THEN CASE WHEN "leadprotect".is_member(declared_territory) THEN ARRAY[declared_territory] END
            WHEN manager THEN ARRAY(SELECT t.code FROM "leadprotect".territories AS t WHERE "leadprotect".is_member(t.code)) END;
          SELECT array_agg(l.lead_id ORDER BY l.lead_id), array_agg(l.territory ORDER BY l.lead_id) INTO found, places
          FROM "leadprotect".host_leads(leads) AS l WHERE l.territory = ANY (admitted);
          -- in the order in which an UPDATE of the leads takes its locks
          held := false AND found IS NOT NULL AND "leadprotect".hold_leads(found);
          SELECT array_agg(a.lead_id) FILTER (WHERE a.user_id IS NOT NULL) INTO owned
          FROM (SELECT s.lead_id, s.user_id
                FROM unnest(found, places) AS l (lead, territory)
                JOIN "leadprotect".user_lead_assignments AS s ON s.lead_id = l.lead AND s.territory = l.territory
                WHERE NOT manager OR of_owner IS NULL OR s.user_id = of_owner
                ORDER BY s.lead_id FOR UPDATE OF s) AS a;
          PERFORM "leadprotect".require_fresh_rules();
          IF EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = new_owner AND r.territory = ANY (admitted) AND r.protection = 'VIEW_ONLY'
              AND (r.lead_id IS NULL OR r.lead_id = ANY (leads))
              AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to))
          THEN
            RETURN '{}';
          ELSIF NOT manager THEN
            owned := ARRAY(SELECT DISTINCT e.lead FROM "leadprotect".editable_among(owned) AS e WHERE e.reason = 'owner');
          ELSIF of_owner IS NULL AND change <> 'transfer' THEN
            owned := found; -- whoever owns it, and nobody
          END IF;
          WITH changed AS (
            INSERT INTO "leadprotect".user_lead_assignments AS a
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
            INSERT INTO "leadprotect".lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT CASE WHEN 'uuid' = 'text' THEN left(c.lead_id::text, 255)::uuid ELSE c.lead_id END,
                   author, (SELECT "leadprotect".acting_role()), c.territory,
                   CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action, 'ALLOW',
                   CASE WHEN manager THEN 'manager' ELSE 'owner' END,
                   (SELECT "leadprotect".bounded(concat_ws('; ', note, change || coalesce(' to ' || new_owner, '')))),
                   (SELECT "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true))),
                   CASE WHEN manager THEN 'role ' || 'leadprotect_manager' ELSE 'assignment' END
            FROM changed AS c ORDER BY c.lead_id)
          SELECT array_agg(c.lead_id), array_agg(c.territory) INTO owned, places FROM changed AS c;
          IF held AND owned IS NOT NULL THEN
            PERFORM "leadprotect".write_owner_column(owned, places, new_owner);
          END IF;
          RETURN coalesce(owned, '{}');
        END
        $$;

COMMENT ON FUNCTION leadprotect.change_together(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) IS 'Changes the owner of those of these leads that need no decision of their own, with one record each; returns which';

REVOKE ALL ON FUNCTION leadprotect.change_together(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) FROM PUBLIC;

-- function change_owners, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.change_owners(leads uuid[], change text, new_owner uuid, note text, of_owner uuid DEFAULT NULL::uuid) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          manager boolean := "leadprotect".is_manager();
          changed uuid[] := "leadprotect".change_together(leads, change, new_owner, note, of_owner);
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
              PERFORM FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = asked.lead AND a.user_id = of_owner
                  AND a.territory = "leadprotect".lead_for_ownership(asked.lead, manager) FOR UPDATE;
              CONTINUE WHEN NOT FOUND;
            END IF;
            answers[asked.place] := "leadprotect".answered(
              asked.lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action,
              "leadprotect".try_change_owner(asked.lead, change, new_owner, note), note);
          END LOOP;
          RETURN answers;
        END
        $$;

COMMENT ON FUNCTION leadprotect.change_owners(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) IS 'For the library: change_owner for each of these leads, locked in the order of their ids; NULL where a manager named an owner who is not it';

REVOKE ALL ON FUNCTION leadprotect.change_owners(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_owners(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_owners(leads uuid[], change text, new_owner uuid, note text, of_owner uuid) TO leadprotect_manager;

-- function try_change_sharing, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.try_change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          manager boolean := "leadprotect".is_manager();
          here text := "leadprotect".lead_for_ownership(lead, manager);
          starts timestamptz := coalesce(effective_from, clock_timestamp());
          owner uuid;
          decision text;
        BEGIN
          IF change IS NULL OR change NOT IN ('share', 'unshare') THEN
            RAISE EXCEPTION '% is no change of sharing', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF with_user IS NULL THEN
            RAISE EXCEPTION 'the user to share with is missing' USING ERRCODE = 'LP422';
          ELSIF change = 'share' AND effective_to <= starts THEN
            RAISE EXCEPTION 'effective_to is not after effective_from' USING ERRCODE = 'LP422';
          END IF;
          SELECT a.user_id INTO owner FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
          PERFORM "leadprotect".require_fresh_rules();
          decision := "leadprotect".explain_edit(lead);
          IF here IS NULL THEN
            RETURN CASE decision WHEN 'no_context' THEN decision ELSE 'not_found' END;
          ELSIF manager THEN
            IF author IS NULL AND pg_catalog.current_setting('app.user_id', true) <> '' THEN
              RETURN 'no_context';
            END IF;
            decision := 'manager';
          ELSIF decision <> 'owner' THEN
            RETURN CASE decision WHEN 'collaborator' THEN 'not_owner' ELSE decision END;
          END IF;
          IF change = 'share' THEN
            PERFORM "leadprotect".require_not_moving(ARRAY[lead]);
            IF with_user = owner OR with_user = author AND decision = 'owner' THEN
              RAISE EXCEPTION 'a lead is not shared with its own owner' USING ERRCODE = 'LP422';
            END IF;
            INSERT INTO "leadprotect".lead_protection_rules
              (user_id, territory, protection, lead_id, effective_from, effective_to, shared_by)
            VALUES (with_user, here, 'COLLABORATOR', lead, starts, try_change_sharing.effective_to,
                    CASE decision WHEN 'owner' THEN author END)
            ON CONFLICT DO NOTHING;
          ELSE
            PERFORM "leadprotect".end_rules(with_user, here, 'COLLABORATOR', lead);
          END IF;
          PERFORM "leadprotect".write_audit(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::"leadprotect".lead_action, decision,
            concat_ws('; ', note, change || ' with ' || with_user));
          RETURN decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.try_change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) IS 'Shares a lead with a user, or ends that; returns the right it was done by, or why it was denied';

REVOKE ALL ON FUNCTION leadprotect.try_change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;

-- function change_sharing, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          RETURN "leadprotect".answered(
            lead, CASE change WHEN 'share' THEN 'ASSIGN' ELSE 'UNASSIGN' END::"leadprotect".lead_action,
            "leadprotect".try_change_sharing(lead, change, with_user, effective_from, effective_to, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) IS 'For the library: a change of sharing; a denial is returned with the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_sharing(lead uuid, change text, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_manager;

-- function claim_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.claim_lead(lead uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".try_change_owner(lead, 'claim', NULL, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.claim_lead(lead uuid, note text) IS 'Makes the user in context the owner of a lead that nobody owns; of two claims one wins';

REVOKE ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.claim_lead(lead uuid, note text) TO leadprotect_manager;

-- function release_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.release_lead(lead uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'UNASSIGN', "leadprotect".try_change_owner(lead, 'release', NULL, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.release_lead(lead uuid, note text) IS 'Takes the lead from its owner; no backfill and no activity gives it back';

REVOKE ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.release_lead(lead uuid, note text) TO leadprotect_manager;

-- function assign_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".try_change_owner(lead, 'assign', new_owner, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text) IS 'Gives the lead to a user, whoever owns it now; for managers of its territory';

REVOKE ALL ON FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.assign_lead(lead uuid, new_owner uuid, note text) TO leadprotect_manager;

-- function transfer_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN', "leadprotect".try_change_owner(lead, 'transfer', new_owner, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text) IS 'Gives an owned lead to a user; for managers. An edit under way is waited for';

REVOKE ALL ON FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.transfer_lead(lead uuid, new_owner uuid, note text) TO leadprotect_manager;

-- function share_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone DEFAULT NULL::timestamp with time zone, effective_to timestamp with time zone DEFAULT NULL::timestamp with time zone, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'ASSIGN',
            "leadprotect".try_change_sharing(lead, 'share', with_user, effective_from, effective_to, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) IS 'Lets a user edit the lead besides its owner, from a time until a time';

REVOKE ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.share_lead(lead uuid, with_user uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_manager;

-- function unshare_lead, lp_0007_expand_ownership

CREATE FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".require(lead, 'UNASSIGN',
            "leadprotect".try_change_sharing(lead, 'unshare', with_user, NULL, NULL, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) IS 'Ends every share of the lead with a user now; an edit under way is waited for';

REVOKE ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.unshare_lead(lead uuid, with_user uuid, note text) TO leadprotect_manager;

-- function lead_shares, lp_0008_expand_rules

CREATE FUNCTION leadprotect.lead_shares(lead uuid) RETURNS TABLE(user_id uuid, shared_by uuid, effective_from timestamp with time zone, effective_to timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        DECLARE
          here text := "leadprotect".lead_for_ownership(lead, "leadprotect".is_manager());
        BEGIN
          IF "leadprotect".is_manager() OR "leadprotect".can_edit_lead(lead) THEN
            RETURN QUERY
            SELECT r.user_id, r.shared_by, r.effective_from, r.effective_to FROM "leadprotect".lead_protection_rules AS r
            WHERE r.lead_id = lead AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.active
              AND (r.effective_to IS NULL OR r.effective_to > statement_timestamp())
            ORDER BY r.effective_from, r.user_id;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.lead_shares(lead uuid) IS 'With whom a lead is shared, by whom (NULL: a manager) and how long; for who may edit it, and for managers';

REVOKE ALL ON FUNCTION leadprotect.lead_shares(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.lead_shares(lead uuid) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.lead_shares(lead uuid) TO leadprotect_manager;

-- function make_rule, lp_0008_expand_rules

CREATE FUNCTION leadprotect.make_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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
            PERFORM pg_advisory_xact_lock(hashtextextended('"leadprotect"' || '.rule_changes', 0));
            PERFORM setval('"leadprotect".rule_changes', pg_current_xact_id()::text::bigint);
          END IF;
          INSERT INTO "leadprotect".lead_protection_rules (user_id, territory, protection, lead_id, effective_from, effective_to)
          VALUES (of_user, here, kind, lead, starts, make_rule.effective_to)
          ON CONFLICT DO NOTHING;
          PERFORM "leadprotect".write_audit(coalesce(lead, '00000000-0000-0000-0000-000000000000'::uuid), 'ASSIGN', 'manager',
            concat_ws('; ', note, concat_ws(' ', 'grant', kind, 'to', of_user,
              -- in one form: what a session's DateStyle and TimeZone print may read as another time
              'until ' || to_char(make_rule.effective_to AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS.US "UTC"'))),
            NULL, here);
        END
        $$;

COMMENT ON FUNCTION leadprotect.make_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) IS 'Makes and records a rule; whether the caller may is asked before';

REVOKE ALL ON FUNCTION leadprotect.make_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;

-- function revoke_rule, lp_0008_expand_rules

CREATE FUNCTION leadprotect.revoke_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, note text) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          ended integer := "leadprotect".end_rules(of_user, here, kind, lead);
        BEGIN
          PERFORM "leadprotect".write_audit(coalesce(lead, '00000000-0000-0000-0000-000000000000'::uuid), 'UNASSIGN', 'manager',
            concat_ws('; ', note, concat_ws(' ', 'revoke', kind, 'from', of_user || ',', ended, 'rules ended')), NULL, here);
          RETURN ended;
        END
        $$;

COMMENT ON FUNCTION leadprotect.revoke_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, note text) IS 'Ends and records the rules of a user of one kind, and returns how many; whether the caller may is asked before';

REVOKE ALL ON FUNCTION leadprotect.revoke_rule(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, note text) FROM PUBLIC;

-- function grant_protection, lp_0008_expand_rules

CREATE FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid DEFAULT NULL::uuid, effective_from timestamp with time zone DEFAULT NULL::timestamp with time zone, effective_to timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          PERFORM "leadprotect".require_manager(here, lead, 'ASSIGN', concat_ws(' ', 'grant', kind, 'to', of_user));
          IF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RAISE EXCEPTION 'there is no such lead in territory %', here USING ERRCODE = 'LP422';
          END IF;
          PERFORM "leadprotect".make_rule(of_user, here, kind, lead, effective_from, effective_to, NULL);
        END
        $$;

COMMENT ON FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone) IS 'Makes a rule for a user, for one lead or his whole territory; for managers of it';

REVOKE ALL ON FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.grant_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid, effective_from timestamp with time zone, effective_to timestamp with time zone) TO leadprotect_manager;

-- function revoke_protection, lp_0008_expand_rules

CREATE FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid DEFAULT NULL::uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          PERFORM "leadprotect".require_manager(here, lead, 'UNASSIGN', concat_ws(' ', 'revoke', kind, 'from', of_user));
          RETURN "leadprotect".revoke_rule(of_user, here, kind, lead, NULL);
        END
        $$;

COMMENT ON FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) IS 'Ends the rules of a user of one kind; for managers of the territory. Returns how many';

REVOKE ALL ON FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.revoke_protection(of_user uuid, here text, kind leadprotect.protection_type, lead uuid) TO leadprotect_manager;

-- function decide_as_manager, lp_0008_expand_rules

CREATE FUNCTION leadprotect.decide_as_manager(lead uuid) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
        BEGIN
          IF "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)) IS NULL OR here IS NULL OR here = '' THEN
            RETURN 'no_context';
          ELSIF NOT "leadprotect".is_member(here) THEN
            RETURN 'not_found';
          ELSIF NOT "leadprotect".is_manager() THEN
            RETURN 'not_manager';
          ELSIF lead IS NOT NULL AND NOT EXISTS (
            SELECT FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RETURN 'not_found';
          END IF;
          RETURN 'manager';
        END
        $$;

COMMENT ON FUNCTION leadprotect.decide_as_manager(lead uuid) IS 'The decision about a change of rules in the territory of the context; lead NULL: for the whole of it';

REVOKE ALL ON FUNCTION leadprotect.decide_as_manager(lead uuid) FROM PUBLIC;

-- function change_rule, lp_0008_expand_rules

CREATE FUNCTION leadprotect.change_rule(lead uuid, change text, of_user uuid, kind leadprotect.protection_type, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          decision text := "leadprotect".decide_as_manager(lead);
        BEGIN
          IF change IS NULL OR change NOT IN ('grant', 'revoke') THEN
            RAISE EXCEPTION '% is no change of a rule', coalesce(change, 'NULL') USING ERRCODE = 'LP422';
          ELSIF decision = 'manager' AND change = 'grant' THEN
            PERFORM "leadprotect".make_rule(of_user, here, kind, lead, effective_from, effective_to, note);
          ELSIF decision = 'manager' THEN
            PERFORM "leadprotect".revoke_rule(of_user, here, kind, lead, note);
          END IF;
          RETURN "leadprotect".answered(
            coalesce(lead, '00000000-0000-0000-0000-000000000000'::uuid),
            CASE change WHEN 'grant' THEN 'ASSIGN' ELSE 'UNASSIGN' END::"leadprotect".lead_action,
            decision, concat_ws('; ', note, concat_ws(' ', change, kind, 'of', of_user)));
        END
        $$;

COMMENT ON FUNCTION leadprotect.change_rule(lead uuid, change text, of_user uuid, kind leadprotect.protection_type, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) IS 'For the library: grant or revoke a rule in the territory of the context; a denial is returned with the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.change_rule(lead uuid, change text, of_user uuid, kind leadprotect.protection_type, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.change_rule(lead uuid, change text, of_user uuid, kind leadprotect.protection_type, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.change_rule(lead uuid, change text, of_user uuid, kind leadprotect.protection_type, effective_from timestamp with time zone, effective_to timestamp with time zone, note text) TO leadprotect_manager;

-- function require_manager, lp_0008_expand_rules

CREATE FUNCTION leadprotect.require_manager(here text, lead uuid, action leadprotect.lead_action, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF NOT "leadprotect".is_manager() OR NOT "leadprotect".is_member(here) THEN
            PERFORM "leadprotect".draw_denial(
              coalesce(lead, '00000000-0000-0000-0000-000000000000'::uuid), action, 'not_manager', concat_ws(' in ', note, here));
            RAISE EXCEPTION 'the login manages no territory %', here USING ERRCODE = 'LP403', DETAIL = 'not_manager';
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.require_manager(here text, lead uuid, action leadprotect.lead_action, note text) IS 'Raises SQLSTATE LP403 unless the acting role manages the territory';

REVOKE ALL ON FUNCTION leadprotect.require_manager(here text, lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;

-- =================================================================================================
-- Hand-overs
--
-- Leads that move to the database of another territory. Each has a row of its state on either side,
-- and is frozen on both until it is gone here: source 'moving' in user_lead_assignments.
-- send_lead() and receive_lead() begin, hand_over() does each further step, and handover_holds()
-- lets no transaction commit half of one.
-- =================================================================================================

-- function require_not_moving, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.require_not_moving(leads uuid[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        BEGIN
          IF EXISTS (SELECT FROM "leadprotect".user_lead_assignments AS a WHERE a.source = 'moving')
            AND EXISTS (SELECT FROM "leadprotect".user_lead_assignments AS a WHERE a.source = 'moving' AND a.lead_id = ANY (leads))
          THEN
            RAISE EXCEPTION 'the lead is on its way to or from another database, and nobody may change it'
              USING ERRCODE = 'LP422', HINT = 'leadprotect move --resume ends what stands still.';
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.require_not_moving(leads uuid[]) IS 'Raises where one of these leads is on its way to or from another database';

REVOKE ALL ON FUNCTION leadprotect.require_not_moving(leads uuid[]) FROM PUBLIC;

-- table lead_handovers, lp_0008_expand_rules

CREATE TABLE leadprotect.lead_handovers (
    lead_id uuid NOT NULL,
    id uuid NOT NULL,
    territory text NOT NULL,
    elsewhere text NOT NULL,
    direction text NOT NULL,
    state text NOT NULL,
    digest text DEFAULT ''::text NOT NULL,
    correlation_id text,
    began_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    user_id uuid,
    login name DEFAULT SESSION_USER NOT NULL,
    was_owner uuid,
    was_source text,
    CONSTRAINT lead_handovers_state CHECK ((((direction = 'out'::text) AND (state = ANY (ARRAY['frozen'::text, 'gone'::text, 'cancelled'::text]))) OR ((direction = 'in'::text) AND (state = ANY (ARRAY['arriving'::text, 'arrived'::text, 'cancelled'::text])))))
);

ALTER TABLE ONLY leadprotect.lead_handovers FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.lead_handovers IS 'Leads that moved to or from the database of another territory: the state here; written by functions only';
COMMENT ON COLUMN leadprotect.lead_handovers.lead_id IS 'the lead, which has the same id on both sides';
COMMENT ON COLUMN leadprotect.lead_handovers.id IS 'the hand-over: the same on both sides';
COMMENT ON COLUMN leadprotect.lead_handovers.territory IS 'the territory here';
COMMENT ON COLUMN leadprotect.lead_handovers.elsewhere IS 'the territory of the other database';
COMMENT ON COLUMN leadprotect.lead_handovers.direction IS 'out: from here; in: to here';
COMMENT ON COLUMN leadprotect.lead_handovers.state IS 'out: frozen, then gone; in: arriving (frozen, too), then arrived; cancelled: it stays where it was, or came back';
COMMENT ON COLUMN leadprotect.lead_handovers.digest IS 'SHA-256 of what was sent, or of what came';
COMMENT ON COLUMN leadprotect.lead_handovers.correlation_id IS 'that of the rows in both audits';
COMMENT ON COLUMN leadprotect.lead_handovers.began_at IS 'when it began here';
COMMENT ON COLUMN leadprotect.lead_handovers.ended_at IS 'when it ended here; NULL: it stands still, or is under way';
COMMENT ON COLUMN leadprotect.lead_handovers.user_id IS 'the manager who was declared';
COMMENT ON COLUMN leadprotect.lead_handovers.login IS 'session_user';
COMMENT ON COLUMN leadprotect.lead_handovers.was_owner IS 'who owned it before: it is his again if this is cancelled';
COMMENT ON COLUMN leadprotect.lead_handovers.was_source IS 'how he came to it; NULL: it had no assignment';

ALTER TABLE ONLY leadprotect.lead_handovers
    ADD CONSTRAINT lead_handovers_pkey PRIMARY KEY (lead_id, id);

CREATE INDEX ix_handovers_standing ON leadprotect.lead_handovers USING btree (territory, began_at) WHERE (ended_at IS NULL);

CREATE CONSTRAINT TRIGGER lp_handover_holds AFTER INSERT OR UPDATE ON leadprotect.lead_handovers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION leadprotect.handover_holds();

ALTER TABLE leadprotect.lead_handovers ENABLE ALWAYS TRIGGER lp_handover_holds;

ALTER TABLE leadprotect.lead_handovers ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.lead_handovers AS RESTRICTIVE USING ((leadprotect.inside() OR (territory = ( SELECT leadprotect.own_border() AS own_border))));
CREATE POLICY lp_inside ON leadprotect.lead_handovers TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.lead_handovers FOR SELECT TO leadprotect_auditor, leadprotect_manager USING (true);

GRANT SELECT ON TABLE leadprotect.lead_handovers TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.lead_handovers TO leadprotect_manager;

-- function handover_holds, lp_0008_expand_rules

CREATE FUNCTION leadprotect.handover_holds() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          now_state "leadprotect".lead_handovers;
          here text;
          there_is boolean;
          standing text;
          holds boolean;
        BEGIN
          SELECT * INTO now_state FROM "leadprotect".lead_handovers AS h WHERE h.lead_id = NEW.lead_id AND h.id = NEW.id;
          SELECT l.territory INTO here FROM "leadprotect".host_lead(NEW.lead_id) AS l (territory);
          there_is := FOUND;
          standing := (SELECT a.source FROM "leadprotect".user_lead_assignments AS a
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
        $$;

COMMENT ON FUNCTION leadprotect.handover_holds() IS 'Trigger: a transaction commits a step of a hand-over whole or not at all';

REVOKE ALL ON FUNCTION leadprotect.handover_holds() FROM PUBLIC;

-- function is_enforced, lp_0008_expand_rules

CREATE FUNCTION leadprotect.is_enforced() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN (EXISTS (SELECT FROM (pg_trigger t JOIN pg_proc p ON ((p.oid = t.tgfoid))) WHERE ((t.tgrelid = ('public.leads'::regclass)::oid) AND (p.pronamespace = ('leadprotect'::regnamespace)::oid) AND (p.proname = 'audit_edit'::name))));

COMMENT ON FUNCTION leadprotect.is_enforced() IS 'Whether contract enforces on the leads: what is frozen is frozen there only';

REVOKE ALL ON FUNCTION leadprotect.is_enforced() FROM PUBLIC;

-- function hold_for_move, lp_0008_expand_rules

CREATE FUNCTION leadprotect.hold_for_move(lead uuid, here text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
        BEGIN
          INSERT INTO "leadprotect".user_lead_assignments AS a (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (lead, here, author, clock_timestamp(), author, 'move')
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, assigned_at = excluded.assigned_at, assigned_by = excluded.assigned_by,
                source = excluded.source;
        END
        $$;

COMMENT ON FUNCTION leadprotect.hold_for_move(lead uuid, here text) IS 'Lets the manager who moves a lead write it, by row security like an owner, until he freezes it in the same transaction';

REVOKE ALL ON FUNCTION leadprotect.hold_for_move(lead uuid, here text) FROM PUBLIC;

-- function send_lead, lp_0008_expand_rules

CREATE FUNCTION leadprotect.send_lead(lead uuid, handover uuid, destination text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          remark text := concat_ws(' ', 'move to', destination, 'by hand-over', handover);
          decision text := "leadprotect".decide_as_manager(lead);
          standing "leadprotect".user_lead_assignments;
          known "leadprotect".lead_handovers;
        BEGIN
          IF decision <> 'manager' OR lead IS NULL THEN
            RETURN "leadprotect".answered(lead, 'UNASSIGN', CASE decision WHEN 'manager' THEN 'not_found' ELSE decision END, remark);
          ELSIF handover IS NULL OR NOT coalesce("leadprotect".is_code(destination) AND destination <> here, false) THEN
            RAISE EXCEPTION 'a hand-over needs an id and another territory' USING ERRCODE = 'LP422';
          ELSIF NOT "leadprotect".is_enforced() THEN
            RAISE EXCEPTION 'contract does not enforce here, and nothing can be frozen' USING ERRCODE = 'LP422';
          END IF;
          PERFORM "leadprotect".hold_leads(ARRAY[lead]) WHERE false;
          SELECT * INTO standing FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here FOR UPDATE;
          SELECT * INTO known FROM "leadprotect".lead_handovers AS h WHERE h.lead_id = lead AND h.id = handover FOR UPDATE;
          IF NOT FOUND THEN
            IF standing.source = 'moving' THEN
              PERFORM "leadprotect".require_not_moving(ARRAY[lead]);
            END IF;
            INSERT INTO "leadprotect".lead_handovers
              (lead_id, id, territory, elsewhere, direction, state, correlation_id, user_id, was_owner, was_source)
            VALUES (lead, handover, here, destination, 'out', 'frozen', "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)),
                    "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)), standing.user_id, standing.source);
            PERFORM "leadprotect".write_audit(lead, 'UNASSIGN', 'manager', remark);
          ELSIF known.state <> 'frozen' OR known.territory <> here OR known.elsewhere <> destination THEN
            RAISE EXCEPTION 'hand-over % is another one, or has ended', handover USING ERRCODE = 'LP422';
          END IF;
          PERFORM "leadprotect".write_owner_column(ARRAY[lead], ARRAY[here], NULL) WHERE false;
          PERFORM "leadprotect".hold_for_move(lead, here);
          RETURN decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.send_lead(lead uuid, handover uuid, destination text) IS 'For the library: begins or takes up the hand-over of a lead to another database; hand_over() freezes it in the same transaction';

REVOKE ALL ON FUNCTION leadprotect.send_lead(lead uuid, handover uuid, destination text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.send_lead(lead uuid, handover uuid, destination text) TO leadprotect_manager;

-- function receive_lead, lp_0008_expand_rules

CREATE FUNCTION leadprotect.receive_lead(lead uuid, handover uuid, origin text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          decision text := "leadprotect".decide_as_manager(NULL);
          known "leadprotect".lead_handovers;
        BEGIN
          IF decision <> 'manager' OR lead IS NULL THEN
            RETURN "leadprotect".answered(lead, 'ASSIGN', CASE decision WHEN 'manager' THEN 'not_found' ELSE decision END,
              concat_ws(' ', 'move from', origin, 'by hand-over', handover));
          ELSIF handover IS NULL OR NOT coalesce("leadprotect".is_code(origin) AND origin <> here, false) THEN
            RAISE EXCEPTION 'a hand-over needs an id and another territory' USING ERRCODE = 'LP422';
          ELSIF NOT "leadprotect".is_enforced() THEN
            RAISE EXCEPTION 'contract does not enforce there, and nothing can be frozen' USING ERRCODE = 'LP422';
          END IF;
          INSERT INTO "leadprotect".lead_handovers
            (lead_id, id, territory, elsewhere, direction, state, correlation_id, user_id)
          VALUES (lead, handover, here, origin, 'in', 'arriving', "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)),
                  "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)))
          ON CONFLICT (lead_id, id) DO NOTHING;
          IF FOUND AND EXISTS (SELECT FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
            RAISE EXCEPTION 'lead % is in territory % already, and does not arrive', lead, here USING ERRCODE = 'LP422';
          END IF;
          SELECT * INTO known FROM "leadprotect".lead_handovers AS h WHERE h.lead_id = lead AND h.id = handover FOR UPDATE;
          IF known.direction <> 'in' OR known.territory <> here OR known.elsewhere <> origin THEN
            RAISE EXCEPTION 'hand-over % is another one', handover USING ERRCODE = 'LP422';
          END IF;
          RETURN decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.receive_lead(lead uuid, handover uuid, origin text) IS 'For the library: begins or takes up the arrival of a lead from another database; hand_over() freezes it in the same transaction';

REVOKE ALL ON FUNCTION leadprotect.receive_lead(lead uuid, handover uuid, origin text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.receive_lead(lead uuid, handover uuid, origin text) TO leadprotect_manager;

-- function hand_over, lp_0008_expand_rules

CREATE FUNCTION leadprotect.hand_over(lead uuid, handover uuid, step text, digest text DEFAULT ''::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          known "leadprotect".lead_handovers;
          remark text;
        BEGIN
          PERFORM "leadprotect".require_manager(here, lead, 'EDIT', concat_ws(' ', 'hand-over', handover, step));
          SELECT * INTO known FROM "leadprotect".lead_handovers AS h
            WHERE h.lead_id = lead AND h.id = handover AND h.territory = here FOR UPDATE;
          IF NOT FOUND OR known.ended_at IS NOT NULL THEN
            RAISE EXCEPTION 'hand-over % has ended, or there is none here', handover USING ERRCODE = 'LP422';
          END IF;
          remark := concat_ws(' ', 'move', CASE known.direction WHEN 'in' THEN 'from' ELSE 'to' END, known.elsewhere,
            CASE step WHEN 'cancel' THEN 'cancelled,' END, 'by hand-over', handover);
          CASE step || ' ' || known.direction
            WHEN 'hold in' THEN
              IF NOT EXISTS (SELECT FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory = here) THEN
                RAISE EXCEPTION 'the lead did not arrive in territory %', here USING ERRCODE = 'LP422';
              END IF;
              PERFORM "leadprotect".hold_for_move(lead, here);
              PERFORM "leadprotect".write_audit(lead, 'EDIT', 'manager', remark);
            WHEN 'freeze in', 'freeze out' THEN
              UPDATE "leadprotect".user_lead_assignments AS a
              SET user_id = NULL, source = 'moving', assigned_at = clock_timestamp(), assigned_by = author
              WHERE a.lead_id = lead AND a.territory = here;
              UPDATE "leadprotect".lead_handovers AS h SET digest = digest WHERE h.lead_id = lead AND h.id = handover;
            WHEN 'leave out' THEN
              PERFORM "leadprotect".write_audit(lead, 'EDIT', 'manager', remark);
              UPDATE "leadprotect".lead_handovers AS h SET state = 'gone', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
            WHEN 'finish in' THEN
              -- the activities that came with it make no owner here
              UPDATE "leadprotect".user_lead_assignments AS a
              SET user_id = NULL, source = 'moved', assigned_at = clock_timestamp(), assigned_by = author,
                  activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
              FROM (SELECT lead AS lead_id) AS moved LEFT JOIN "leadprotect".derived_owners(ARRAY[lead]) AS newest ON true
              WHERE a.lead_id = moved.lead_id AND a.territory = here;
              UPDATE "leadprotect".lead_handovers AS h SET state = 'arrived', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM "leadprotect".write_audit(lead, 'UNASSIGN', 'manager', remark);
            WHEN 'cancel in' THEN
              PERFORM "leadprotect".hold_for_move(lead, here)
              FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here AND a.source = 'moving';
              UPDATE "leadprotect".lead_handovers AS h SET state = 'cancelled', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM "leadprotect".write_audit(lead, 'UNASSIGN', 'manager', remark, NULL, here);
            WHEN 'cancel out' THEN
              IF known.was_source IS NULL THEN
                DELETE FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here;
              ELSE
                UPDATE "leadprotect".user_lead_assignments AS a
                SET user_id = known.was_owner, source = known.was_source, assigned_at = clock_timestamp(), assigned_by = author
                WHERE a.lead_id = lead AND a.territory = here;
              END IF;
              PERFORM "leadprotect".write_owner_column(ARRAY[lead], ARRAY[here], known.was_owner) WHERE false;
              UPDATE "leadprotect".lead_handovers AS h SET state = 'cancelled', ended_at = clock_timestamp()
              WHERE h.lead_id = lead AND h.id = handover;
              PERFORM "leadprotect".write_audit(lead, 'ASSIGN', 'manager',
                concat_ws('; ', remark, 'back to ' || coalesce(known.was_owner::text, 'nobody')), NULL, here);
            ELSE
              RAISE EXCEPTION '% is no step of this hand-over', coalesce(step, 'NULL') USING ERRCODE = 'LP422';
          END CASE;
          RETURN step;
        END
        $$;

COMMENT ON FUNCTION leadprotect.hand_over(lead uuid, handover uuid, step text, digest text) IS 'For the library: a step of a hand-over that was begun here: hold, freeze, leave, finish or cancel; for managers of the territory';

REVOKE ALL ON FUNCTION leadprotect.hand_over(lead uuid, handover uuid, step text, digest text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.hand_over(lead uuid, handover uuid, step text, digest text) TO leadprotect_manager;

-- function standing_handovers, lp_0008_expand_rules

CREATE FUNCTION leadprotect.standing_handovers() RETURNS TABLE(direction text, territory text, elsewhere text, leads bigint, since timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT h.direction, h.territory, h.elsewhere, count(*), min(h.began_at)
          FROM "leadprotect".lead_handovers AS h WHERE h.ended_at IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;
        END
        $$;

COMMENT ON FUNCTION leadprotect.standing_handovers() IS 'How many leads are on their way from here or to here, and since when the oldest';

REVOKE ALL ON FUNCTION leadprotect.standing_handovers() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.standing_handovers() TO leadprotect_operator;
GRANT ALL ON FUNCTION leadprotect.standing_handovers() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.standing_handovers() TO leadprotect_manager;

-- =================================================================================================
-- Decision
--
-- May the user in context edit this lead, and why? Read decision() first: the others bring it the
-- context, or answer for many leads at once. None of them writes.
-- =================================================================================================

-- function in_force, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (active AND (effective_from <= statement_timestamp()) AND ((effective_to IS NULL) OR (statement_timestamp() < effective_to)));

COMMENT ON FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) IS 'Whether a rule counts now: active, begun, and not ended';

REVOKE ALL ON FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.in_force(active boolean, effective_from timestamp with time zone, effective_to timestamp with time zone) TO leadprotect_reader;

-- function host_lead, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.host_lead(lead uuid) RETURNS SETOF text
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY SELECT nullif(l."territory"::text, '') FROM "public"."leads" AS l WHERE l."id" = lead;
        END
        $$;

COMMENT ON FUNCTION leadprotect.host_lead(lead uuid) IS 'The territory of a lead of the host, NULL outside protection; no row: there is no such lead';

REVOKE ALL ON FUNCTION leadprotect.host_lead(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.host_lead(lead uuid) TO leadprotect_owner;

-- function host_leads, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.host_leads(leads uuid[]) RETURNS TABLE(lead_id uuid, territory text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
            SELECT l."id"::uuid, nullif(l."territory"::text, '') FROM "public"."leads" AS l WHERE l."id" = ANY (leads);
        END
        $$;

COMMENT ON FUNCTION leadprotect.host_leads(leads uuid[]) IS 'The territory of each of these leads of the host, NULL outside protection; no row: there is no such lead';

REVOKE ALL ON FUNCTION leadprotect.host_leads(leads uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.host_leads(leads uuid[]) TO leadprotect_owner;

-- function protected_leads, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.protected_leads() RETURNS TABLE(lead_id uuid, territory text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY SELECT l."id"::uuid, l."territory"::text FROM "public"."leads" AS l WHERE NOT (l."territory" IS NULL OR l."territory" = '');
        END
        $$;

COMMENT ON FUNCTION leadprotect.protected_leads() IS 'Every lead of the host that has a territory';

REVOKE ALL ON FUNCTION leadprotect.protected_leads() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.protected_leads() TO leadprotect_owner;

-- function parse_user, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.parse_user(declared text) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (CASE WHEN ('uuid'::text = 'text'::text) THEN CASE WHEN ((declared <> ''::text) AND (length(declared) <= 255) AND (declared !~ '[\u0001-\u001f\u007f]'::text)) THEN declared ELSE NULL::text END WHEN ('uuid'::text = ANY (ARRAY['bigint'::text, 'integer'::text])) THEN CASE WHEN (declared ~ '^-?[0-9]{1,19}$'::text) THEN CASE WHEN (abs(((declared)::numeric + 0.5)) < CASE 'uuid'::text WHEN 'integer'::text THEN ('2147483648'::bigint)::numeric ELSE '9223372036854775808'::numeric END) THEN declared ELSE NULL::text END ELSE NULL::text END WHEN ((declared ~~ '________-____-____-____-____________'::text) AND (declared !~ '[^0-9A-Fa-f-]'::text) AND (declared !~~ '%-%-%-%-%-%'::text)) THEN declared WHEN (declared ~ '^(([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}|[{]([0-9A-Fa-f]{4}-?){7}[0-9A-Fa-f]{4}[}])$'::text) THEN declared ELSE NULL::text END)::uuid;

COMMENT ON FUNCTION leadprotect.parse_user(declared text) IS 'The declared user in the type of the setting; what is malformed is nobody''s id: NULL, never a cast error';

REVOKE ALL ON FUNCTION leadprotect.parse_user(declared text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_reader;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.parse_user(declared text) TO leadprotect_manager;

-- function context, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) RETURNS record
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT current_setting('app.user_id'::text, true) AS current_setting,
     current_setting('app.territory'::text, true) AS current_setting,
     current_setting('app.correlation_id'::text, true) AS current_setting;
END;

COMMENT ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) IS 'Who is declared to act, where, and under which correlation id; NULL or empty where nothing is set';

REVOKE ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.context(OUT user_id text, OUT territory text, OUT correlation_id text) TO leadprotect_manager;

-- function claiming, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.claiming(said text, field text, claim text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          others jsonb := coalesce("leadprotect".claimed(said, NULL), '{}')::jsonb - field;
        BEGIN
          RETURN CASE WHEN claim <> '' THEN others || jsonb_build_object(field, claim) ELSE others END::text;
        END
        $$;

COMMENT ON FUNCTION leadprotect.claiming(said text, field text, claim text) IS 'A setting that holds JSON with this claim in it, or without it where it is NULL or empty; the others stay';

REVOKE ALL ON FUNCTION leadprotect.claiming(said text, field text, claim text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.claiming(said text, field text, claim text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.claiming(said text, field text, claim text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.claiming(said text, field text, claim text) TO leadprotect_manager;

-- function set_context, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT set_config('app.user_id'::text, COALESCE(user_id, ''::text), true) AS set_config,
     set_config('app.territory'::text, COALESCE(territory, ''::text), true) AS set_config,
     set_config('app.correlation_id'::text, COALESCE(correlation_id, ''::text), true) AS set_config;
END;

COMMENT ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) IS 'Declares user, territory and correlation id until the transaction ends';

CREATE FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT leadprotect.set_context((user_id)::text, territory, correlation_id) AS set_context;
END;

COMMENT ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) IS 'The same for callers that hold the id in its type: there is no implicit cast to text';

REVOKE ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id text, territory text, correlation_id text) TO leadprotect_manager;
REVOKE ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.set_context(user_id uuid, territory text, correlation_id text) TO leadprotect_manager;

-- function begins, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.begins(effective_from timestamp with time zone, made_at timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN (effective_from <= made_at) THEN '-infinity'::timestamp with time zone ELSE effective_from END;

COMMENT ON FUNCTION leadprotect.begins(effective_from timestamp with time zone, made_at timestamp with time zone) IS 'From when a rule takes a right away from whoever can see it: at once where it was to begin when it was made';

REVOKE ALL ON FUNCTION leadprotect.begins(effective_from timestamp with time zone, made_at timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.begins(effective_from timestamp with time zone, made_at timestamp with time zone) TO leadprotect_reader;

-- function decision, lp_0005_expand_decisions, owner leadprotect_reader

CREATE FUNCTION leadprotect.decision(lead uuid, caller uuid, here text) RETURNS TABLE(reason text)
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT
         CASE
             WHEN ((EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.lead_id IS NULL) AND leadprotect.in_force(r.active, leadprotect.begins(r.effective_from, r.made_at), r.effective_to)))) OR (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.lead_id = decision.lead) AND leadprotect.in_force(r.active, leadprotect.begins(r.effective_from, r.made_at), r.effective_to))))) THEN 'suspended'::text
             WHEN (a.user_id = decision.caller) THEN 'owner'::text
             WHEN (a.source = 'moving'::text) THEN 'unassigned'::text
             WHEN (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id = decision.lead) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to)))) THEN 'collaborator'::text
             WHEN ((EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules r
               WHERE ((r.user_id = decision.caller) AND (r.territory = decision.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id IS NULL) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to)))) AND (NOT (EXISTS ( SELECT
                FROM leadprotect.lead_protection_rules sole
               WHERE ((sole.user_id = a.user_id) AND (sole.territory = decision.here) AND (sole.protection = 'SOLE_OWNER'::leadprotect.protection_type) AND ((sole.lead_id IS NULL) OR (sole.lead_id = decision.lead)) AND leadprotect.in_force(sole.active, leadprotect.begins(sole.effective_from, sole.made_at), sole.effective_to)))))) THEN 'collaborator'::text
             WHEN (a.user_id IS NULL) THEN 'unassigned'::text
             ELSE 'not_owner'::text
         END AS "case"
    FROM (public.leads l
      LEFT JOIN leadprotect.user_lead_assignments a ON (((a.lead_id = decision.lead) AND (a.territory = decision.here))))
   WHERE ((l.id = decision.lead) AND ((l.territory)::text = decision.here));
END;

COMMENT ON FUNCTION leadprotect.decision(lead uuid, caller uuid, here text) IS 'The decision about a known caller, by index probes only; decide() asks it for whoever has rules';

REVOKE ALL ON FUNCTION leadprotect.decision(lead uuid, caller uuid, here text) FROM PUBLIC;

-- function decide, lp_0005_expand_decisions, owner leadprotect_reader

CREATE FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER COST 1000 PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        #variable_conflict use_variable
        DECLARE
          caller uuid;
          owner uuid;
          strongest "leadprotect".protection_type;
        BEGIN
          SELECT (
            SELECT a.user_id FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = declared_territory)
          INTO owner
          FROM "public"."leads" AS l
          WHERE l."id" = lead AND l."territory" = declared_territory;
          IF owner::text = declared_user THEN
            -- declared in its own spelling: nothing is left to tell by its form, and of rules only what can suspend him
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = owner AND r.territory = declared_territory AND r.protection = 'VIEW_ONLY' LIMIT 1;
            IF NOT FOUND AND "leadprotect".is_member(declared_territory) THEN
              RETURN 'owner';
            END IF;
            caller := owner;
          ELSE
            caller := "leadprotect".parse_user(declared_user);
          END IF;
          -- found is the lead, or a rule that may suspend its owner; an owner without one is here because he is no member
          IF FOUND AND caller IS NOT NULL AND "leadprotect".is_member(declared_territory) THEN
            SELECT r.protection INTO strongest FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = declared_territory
              ORDER BY r.protection DESC LIMIT 1;
            IF strongest IS NOT NULL THEN
              IF strongest = 'VIEW_ONLY' OR strongest = 'COLLABORATOR' AND owner IS DISTINCT FROM caller THEN
                RETURN (SELECT d.reason FROM "leadprotect".decision(lead, caller, declared_territory) AS d);
              END IF;
            END IF;
            RETURN CASE WHEN owner IS NULL THEN 'unassigned' WHEN owner = caller THEN 'owner' ELSE 'not_owner' END;
          END IF;
          -- what can't be a code is no context; asked last, because who finds his lead declared one
          RETURN CASE WHEN EXISTS (SELECT FROM "public"."leads" AS l WHERE l."id" = lead AND (l."territory" IS NULL OR l."territory" = '')) THEN 'unprotected'
            WHEN caller IS NOT NULL AND "leadprotect".is_code(declared_territory) THEN 'not_found' ELSE 'no_context' END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) IS 'The decision: unprotected, no_context, not_found, suspended, owner, collaborator, unassigned or not_owner';

REVOKE ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.decide(lead uuid, declared_user text, declared_territory text) TO leadprotect_manager;

-- function unsuspended, lp_0005_expand_decisions, owner leadprotect_reader

CREATE FUNCTION leadprotect.unsuspended(lead uuid, owner uuid, here text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        #variable_conflict use_variable
        DECLARE
          strongest "leadprotect".protection_type;
        BEGIN
          SELECT (
            SELECT r.protection FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = owner AND r.territory = here
            ORDER BY r.protection DESC LIMIT 1)
          INTO strongest
          FROM "public"."leads" AS l
          WHERE l."id" = lead AND l."territory" = here;
          RETURN FOUND AND strongest IS DISTINCT FROM 'VIEW_ONLY';
        END
        $$;

COMMENT ON FUNCTION leadprotect.unsuspended(lead uuid, owner uuid, here text) IS 'Whether the lead is in this territory and no rule there can suspend its owner; where one can, decide() knows';

REVOKE ALL ON FUNCTION leadprotect.unsuspended(lead uuid, owner uuid, here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unsuspended(lead uuid, owner uuid, here text) TO leadprotect_owner;

-- function editable_among, lp_0005_expand_decisions, owner leadprotect_reader

CREATE FUNCTION leadprotect.editable_among(leads uuid[]) RETURNS TABLE(lead uuid, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          caller uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          strongest "leadprotect".protection_type;
          own uuid[];
          outside uuid[];
          others uuid[];
        BEGIN
          SELECT array_agg(l."id"::uuid) FILTER (WHERE l."territory" = here),
                 array_agg(l."id"::uuid) FILTER (WHERE (l."territory" IS NULL OR l."territory" = ''))
          INTO others, outside
          FROM "public"."leads" AS l WHERE l."id" = ANY (leads);
          IF others IS NOT NULL AND caller IS NOT NULL AND "leadprotect".is_member(here) THEN
            strongest := (
              SELECT r.protection FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here
              ORDER BY r.protection DESC LIMIT 1);
            -- each a probe of the index; before 17 the planner may compare each assignment with all of them instead
            IF current_setting('server_version_num')::integer >= 170000 THEN
              own := ARRAY(
                SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = ANY (others) AND a.user_id = caller AND a.territory = here);
            ELSE
              own := ARRAY(
                SELECT a.lead_id
                FROM unnest(others) AS o (lead) JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = o.lead
                WHERE a.user_id = caller AND a.territory = here);
            END IF;
            IF strongest = 'VIEW_ONLY' THEN
              own := ARRAY(SELECT o.lead FROM unnest(own) AS o (lead), LATERAL "leadprotect".decision(o.lead, caller, here) AS d
                           WHERE d.reason = 'owner');
            END IF;
            RETURN QUERY SELECT o.lead, 'owner' FROM unnest(own) AS o (lead);
            IF strongest IN ('VIEW_ONLY', 'COLLABORATOR') AND cardinality(own) < cardinality(others) THEN
              others := ARRAY(SELECT unnest(others) EXCEPT SELECT unnest(own));
              RETURN QUERY
                SELECT may.lead, d.reason
                FROM unnest(CASE
                  WHEN EXISTS (
                    SELECT FROM "leadprotect".lead_protection_rules AS r
                    WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL)
                  THEN others
                  ELSE ARRAY(
                    SELECT DISTINCT r.lead_id FROM "leadprotect".lead_protection_rules AS r
                    WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (others))
                  END) AS may (lead), LATERAL "leadprotect".decision(may.lead, caller, here) AS d
                WHERE d.reason = 'collaborator';
            END IF;
          END IF;
          RETURN QUERY SELECT o.lead, 'unprotected' FROM unnest(outside) AS o (lead);
        END
        $$;

COMMENT ON FUNCTION leadprotect.editable_among(leads uuid[]) IS 'Which of these leads the user in context may edit, and why; without a context those outside protection';

REVOKE ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.editable_among(leads uuid[]) TO leadprotect_manager;

-- function editable_leads, lp_0005_expand_decisions, owner leadprotect_reader

CREATE FUNCTION leadprotect.editable_leads(after uuid, page_size integer) RETURNS TABLE(lead uuid, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          caller uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          first uuid := after;
          everywhere boolean;
          has_rules boolean;
        BEGIN
          IF caller IS NULL OR here IS NULL OR NOT "leadprotect".is_member(here) THEN
            RETURN;
          END IF;
          IF first IS NULL THEN
            SELECT l."id" INTO first FROM "public"."leads" AS l ORDER BY l."id" LIMIT 1;
          END IF;
          SELECT count(*) > 0,
                 coalesce(bool_or(r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                   AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to)), false)
          INTO has_rules, everywhere
          FROM "leadprotect".lead_protection_rules AS r WHERE r.user_id = caller AND r.territory = here;
          IF everywhere THEN
            RETURN QUERY
              SELECT l."id"::uuid, d.reason
              FROM "public"."leads" AS l, LATERAL "leadprotect".decision(l."id", caller, here) AS d
              WHERE l."territory" = here AND l."id" >= first AND l."id" IS DISTINCT FROM after
                AND d.reason IN ('owner', 'collaborator')
              ORDER BY l."id" LIMIT page_size;
          ELSIF has_rules THEN
            RETURN QUERY
              SELECT candidate.lead_id, d.reason
              FROM (
                (SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
                 WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                 ORDER BY a.lead_id)
                UNION
                SELECT r.lead_id FROM "leadprotect".lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR'
                  AND r.lead_id >= first
                  AND "leadprotect".in_force(r.active, r.effective_from, r.effective_to)
                ORDER BY 1
              ) AS candidate, LATERAL "leadprotect".decision(candidate.lead_id, caller, here) AS d
              WHERE candidate.lead_id IS DISTINCT FROM after AND d.reason IN ('owner', 'collaborator')
              ORDER BY candidate.lead_id LIMIT page_size;
          ELSE
            RETURN QUERY
              SELECT a.lead_id, 'owner'
              FROM "leadprotect".user_lead_assignments AS a
              JOIN "public"."leads" AS l ON l."id" = a.lead_id AND l."territory" = here
              WHERE a.user_id = caller AND a.territory = here AND a.lead_id >= first
                AND a.lead_id IS DISTINCT FROM after
              ORDER BY a.lead_id LIMIT page_size;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) IS 'A page of the leads of his territory that the user in context may edit, in the order of their ids, after the one named';

REVOKE ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.editable_leads(after uuid, page_size integer) TO leadprotect_manager;

-- function can_edit_lead, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.can_edit_lead(lead uuid) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT (leadprotect.decide(lead, current_setting('app.user_id'::text, true), current_setting('app.territory'::text, true)) = ANY (ARRAY['owner'::text, 'collaborator'::text, 'unprotected'::text]));
END;

COMMENT ON FUNCTION leadprotect.can_edit_lead(lead uuid) IS 'Whether the user in context may edit the lead: true or false, never NULL';

REVOKE ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.can_edit_lead(lead uuid) TO leadprotect_manager;

-- function explain_edit, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT leadprotect.decide(lead, current_setting('app.user_id'::text, true), current_setting('app.territory'::text, true)) AS decide;
END;

COMMENT ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) IS 'The decision about the user in context with its reason code';

REVOKE ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.explain_edit(lead uuid, OUT reason text) TO leadprotect_manager;

-- function has_rules, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.has_rules() RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        BEGIN
          RETURN EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true))
              AND r.territory = "leadprotect".admitted_territory());
        END
        $$;

COMMENT ON FUNCTION leadprotect.has_rules() IS 'Whether the user in context has any rule in his territory; without one, ownership alone decides';

REVOKE ALL ON FUNCTION leadprotect.has_rules() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.has_rules() TO leadprotect_manager;

-- view v_lead_protection, lp_0005_expand_decisions

CREATE VIEW leadprotect.v_lead_protection WITH (security_invoker='true', security_barrier='true') AS
 SELECT l.id AS lead,
    (l.territory)::text AS territory,
    a.user_id AS owner,
        CASE
            WHEN ( SELECT (leadprotect.parse_user(current_setting('app.user_id'::text, true)) IS NULL)) THEN false
            WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.can_edit_lead(l.id)
            ELSE COALESCE((a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)), false)
        END AS can_edit,
        CASE
            WHEN ( SELECT (leadprotect.parse_user(current_setting('app.user_id'::text, true)) IS NULL)) THEN 'no_context'::text
            WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.explain_edit(l.id)
            WHEN (a.user_id IS NULL) THEN 'unassigned'::text
            WHEN (a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)) THEN 'owner'::text
            ELSE 'not_owner'::text
        END AS reason
   FROM (public.leads l
     LEFT JOIN leadprotect.user_lead_assignments a ON (((a.lead_id = l.id) AND (a.territory = (l.territory)::text))))
  WHERE ((l.territory)::text = ( SELECT leadprotect.admitted_territory() AS admitted_territory));

COMMENT ON VIEW leadprotect.v_lead_protection IS 'Who owns each lead of the territory in context, and whether the user in context may edit it';
COMMENT ON COLUMN leadprotect.v_lead_protection.lead IS 'the lead';
COMMENT ON COLUMN leadprotect.v_lead_protection.territory IS 'the territory in context, which is the lead''s';
COMMENT ON COLUMN leadprotect.v_lead_protection.owner IS 'who owns it; NULL: nobody';
COMMENT ON COLUMN leadprotect.v_lead_protection.can_edit IS 'whether the user in context may edit it, never NULL';
COMMENT ON COLUMN leadprotect.v_lead_protection.reason IS 'reason code of the decision';

GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_app;
GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_auditor;
GRANT SELECT ON TABLE leadprotect.v_lead_protection TO leadprotect_manager;

-- function protection_page, lp_0005_expand_decisions

CREATE FUNCTION leadprotect.protection_page(after uuid, page_size integer) RETURNS TABLE(lead uuid, territory text, owner uuid, can_edit boolean, reason text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := "leadprotect".admitted_territory();
          page uuid[];
        BEGIN
          IF after IS NULL THEN
            page := ARRAY(SELECT l."id" FROM "public"."leads" AS l WHERE l."territory" = here
                          ORDER BY l."id" LIMIT page_size);
          ELSE
            page := ARRAY(SELECT l."id" FROM "public"."leads" AS l WHERE l."id" > after AND l."territory" = here
                          ORDER BY l."id" LIMIT page_size);
          END IF;
          RETURN QUERY
            SELECT v.lead::uuid, v.territory, v.owner, v.can_edit, v.reason
            FROM "leadprotect".v_lead_protection AS v WHERE v.lead = ANY (page) ORDER BY v.lead;
        END
        $$;

COMMENT ON FUNCTION leadprotect.protection_page(after uuid, page_size integer) IS 'A page of v_lead_protection in the order of the leads'' ids, after the one named (NULL: the first page)';

REVOKE ALL ON FUNCTION leadprotect.protection_page(after uuid, page_size integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.protection_page(after uuid, page_size integer) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.protection_page(after uuid, page_size integer) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.protection_page(after uuid, page_size integer) TO leadprotect_manager;

-- =================================================================================================
-- Attempts and audit
--
-- An attempt is decided again under locks, and recorded in a row that nobody changes. A denial
-- raises, which takes its row back: record_denial() writes it in a transaction of its own, if the
-- number and its proof are ours. The audit is partitioned by month: operators make the months,
-- auditors read, and managers may ask who_could_edit().
-- =================================================================================================

-- function collaboration, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.collaboration(lead uuid, caller uuid, here text) RETURNS SETOF text
    LANGUAGE sql STABLE ROWS 1
    BEGIN ATOMIC
 SELECT format('rule for the %s since %s'::text, u.of, to_char((u.effective_from AT TIME ZONE 'Etc/UTC'::text), 'YYYY-MM-DD HH24:MI:SS.US "UTC"'::text)) AS format
    FROM (( SELECT 'lead'::text AS of,
             r.effective_from
            FROM leadprotect.lead_protection_rules r
           WHERE ((r.user_id = collaboration.caller) AND (r.territory = collaboration.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id = collaboration.lead) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to) AND ((r.effective_to IS NULL) OR (clock_timestamp() < r.effective_to)))
           ORDER BY r.effective_from
          LIMIT 1)
         UNION ALL
         ( SELECT 'territory'::text AS of,
             r.effective_from
            FROM leadprotect.lead_protection_rules r
           WHERE ((r.user_id = collaboration.caller) AND (r.territory = collaboration.here) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type) AND (r.lead_id IS NULL) AND leadprotect.in_force(r.active, r.effective_from, r.effective_to) AND ((r.effective_to IS NULL) OR (clock_timestamp() < r.effective_to)))
           ORDER BY r.effective_from
          LIMIT 1)) u
   ORDER BY u.of
  LIMIT 1;
END;

COMMENT ON FUNCTION leadprotect.collaboration(lead uuid, caller uuid, here text) IS 'The rule by which a user may edit the lead of somebody else, as the audit names it; none where it has ended';

REVOKE ALL ON FUNCTION leadprotect.collaboration(lead uuid, caller uuid, here text) FROM PUBLIC;

-- type lead_action, lp_0003_expand_audit

CREATE TYPE leadprotect.lead_action AS ENUM (
    'VIEW',
    'EDIT',
    'ASSIGN',
    'UNASSIGN'
);

-- type lead_access_outcome, lp_0003_expand_audit

CREATE TYPE leadprotect.lead_access_outcome AS ENUM (
    'ALLOW',
    'DENY'
);

-- table lead_access_audit, lp_0003_expand_audit

CREATE TABLE leadprotect.lead_access_audit (
    lead_id uuid NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id bigint NOT NULL,
    user_id uuid,
    login name DEFAULT SESSION_USER NOT NULL,
    role name NOT NULL,
    territory text,
    action leadprotect.lead_action NOT NULL,
    outcome leadprotect.lead_access_outcome NOT NULL,
    reason text NOT NULL,
    note text,
    correlation_id text,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    basis text,
    CONSTRAINT laa_bounded CHECK ((GREATEST(octet_length(note), octet_length(correlation_id)) <= 1024))
)
PARTITION BY RANGE (at);

ALTER TABLE ONLY leadprotect.lead_access_audit FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.lead_access_audit IS 'Every attempt on a lead, allowed or denied; append-only for everybody';
COMMENT ON COLUMN leadprotect.lead_access_audit.lead_id IS 'the lead; no foreign key, deleting it keeps its history. The nil id stands for the whole territory';
COMMENT ON COLUMN leadprotect.lead_access_audit.at IS 'time of the attempt, by the clock of the server';
COMMENT ON COLUMN leadprotect.lead_access_audit.id IS 'number of the attempt; one that is missing was drawn by a denial that was raised, or rolled back';
COMMENT ON COLUMN leadprotect.lead_access_audit.user_id IS 'the user whom the service declared; NULL: none, or a malformed one';
COMMENT ON COLUMN leadprotect.lead_access_audit.login IS 'session_user, as the server knows it';
COMMENT ON COLUMN leadprotect.lead_access_audit.role IS 'the role that SET ROLE had chosen, or the login';
COMMENT ON COLUMN leadprotect.lead_access_audit.territory IS 'the territory in context; NULL: none, or an unknown one';
COMMENT ON COLUMN leadprotect.lead_access_audit.action IS 'what was attempted';
COMMENT ON COLUMN leadprotect.lead_access_audit.outcome IS 'ALLOW or DENY';
COMMENT ON COLUMN leadprotect.lead_access_audit.reason IS 'reason code of the decision; of an edit past row security: maintenance';
COMMENT ON COLUMN leadprotect.lead_access_audit.note IS 'what the service, or the trigger that recorded it, said about it';
COMMENT ON COLUMN leadprotect.lead_access_audit.correlation_id IS 'id of the request, as the service declared it';
COMMENT ON COLUMN leadprotect.lead_access_audit.transaction_id IS 'the transaction that wrote the row: an edit and its record share it';
COMMENT ON COLUMN leadprotect.lead_access_audit.basis IS 'what allowed it: the assignment, the rule, or the right of the role';

CREATE SEQUENCE leadprotect.lead_access_audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE leadprotect.lead_access_audit_id_seq OWNED BY leadprotect.lead_access_audit.id;

COMMENT ON SEQUENCE leadprotect.lead_access_audit_id_seq IS 'Numbers of attempts; a denial that was raised has drawn one, and leaves a gap that audit verify finds';

ALTER TABLE ONLY leadprotect.lead_access_audit ALTER COLUMN id SET DEFAULT nextval('leadprotect.lead_access_audit_id_seq'::regclass);

ALTER TABLE ONLY leadprotect.lead_access_audit
    ADD CONSTRAINT lead_access_audit_pkey PRIMARY KEY (lead_id, at, id);

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit ENABLE ALWAYS TRIGGER lp_append_only;

ALTER TABLE leadprotect.lead_access_audit ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.lead_access_audit AS RESTRICTIVE USING ((leadprotect.inside() OR COALESCE((territory = ( SELECT leadprotect.own_border() AS own_border)), (territory IS NULL))));
CREATE POLICY lp_inside ON leadprotect.lead_access_audit TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.lead_access_audit FOR SELECT TO leadprotect_auditor USING (true);

GRANT SELECT ON TABLE leadprotect.lead_access_audit TO leadprotect_auditor;

-- table lead_access_audit_default, lp_0003_expand_audit

CREATE TABLE leadprotect.lead_access_audit_default (
    lead_id uuid CONSTRAINT lead_access_audit_lead_id_not_null NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() CONSTRAINT lead_access_audit_at_not_null NOT NULL,
    id bigint DEFAULT nextval('leadprotect.lead_access_audit_id_seq'::regclass) CONSTRAINT lead_access_audit_id_not_null NOT NULL,
    user_id uuid,
    login name DEFAULT SESSION_USER CONSTRAINT lead_access_audit_login_not_null NOT NULL,
    role name CONSTRAINT lead_access_audit_role_not_null NOT NULL,
    territory text,
    action leadprotect.lead_action CONSTRAINT lead_access_audit_action_not_null NOT NULL,
    outcome leadprotect.lead_access_outcome CONSTRAINT lead_access_audit_outcome_not_null NOT NULL,
    reason text CONSTRAINT lead_access_audit_reason_not_null NOT NULL,
    note text,
    correlation_id text,
    transaction_id xid8 DEFAULT pg_current_xact_id() CONSTRAINT lead_access_audit_transaction_id_not_null NOT NULL,
    basis text,
    CONSTRAINT laa_bounded CHECK ((GREATEST(octet_length(note), octet_length(correlation_id)) <= 1024))
);

ALTER TABLE ONLY leadprotect.lead_access_audit_default FORCE ROW LEVEL SECURITY;

ALTER TABLE ONLY leadprotect.lead_access_audit ATTACH PARTITION leadprotect.lead_access_audit_default DEFAULT;

ALTER TABLE ONLY leadprotect.lead_access_audit_default
    ADD CONSTRAINT lead_access_audit_default_pkey PRIMARY KEY (lead_id, at, id);

ALTER INDEX leadprotect.lead_access_audit_pkey ATTACH PARTITION leadprotect.lead_access_audit_default_pkey;

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit_default FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit_default ENABLE ALWAYS TRIGGER lp_append_only;

ALTER TABLE leadprotect.lead_access_audit_default ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.lead_access_audit_default AS RESTRICTIVE USING ((leadprotect.inside() OR COALESCE((territory = ( SELECT leadprotect.own_border() AS own_border)), (territory IS NULL))));
CREATE POLICY lp_inside ON leadprotect.lead_access_audit_default TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.lead_access_audit_default FOR SELECT TO leadprotect_auditor USING (true);

-- function refuse_change, lp_0003_expand_audit

CREATE FUNCTION leadprotect.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RAISE EXCEPTION '% on % refused: the audit is append-only', TG_OP, TG_RELID::regclass
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Retention detaches whole months; it never deletes rows.';
        END
        $$;

COMMENT ON FUNCTION leadprotect.refuse_change() IS 'Guard of the audit: raises whatever changes or removes a row, for everybody';

REVOKE ALL ON FUNCTION leadprotect.refuse_change() FROM PUBLIC;

-- function secure_audit_table, lp_0003_expand_audit

CREATE FUNCTION leadprotect.secure_audit_table(target regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
          EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_inside ON %s', target);
          EXECUTE format('CREATE POLICY lp_inside ON %s TO "leadprotect_owner", "leadprotect_reader" USING ("leadprotect".inside()) WITH CHECK ("leadprotect".inside())', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_read ON %s', target);
          EXECUTE format('CREATE POLICY lp_read ON %s FOR SELECT TO "leadprotect_auditor" USING (true)', target);
          EXECUTE format('DROP POLICY IF EXISTS lp_border ON %s', target);
          EXECUTE format('CREATE POLICY lp_border ON %s AS RESTRICTIVE USING ("leadprotect".inside()
                          OR coalesce(territory = (SELECT "leadprotect".own_border()), territory IS NULL))', target);
          EXECUTE format('DROP TRIGGER IF EXISTS lp_append_only ON %s', target);
          EXECUTE format('CREATE TRIGGER lp_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                          FOR EACH STATEMENT EXECUTE FUNCTION "leadprotect".refuse_change()', target);
          EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER lp_append_only', target);
        END
        $$;

COMMENT ON FUNCTION leadprotect.secure_audit_table(target regclass) IS 'Secures a table of the audit, also a partition: the border, rows without territory for auditors, and the guard against changes';

REVOKE ALL ON FUNCTION leadprotect.secure_audit_table(target regclass) FROM PUBLIC;

-- function audit_partitions, lp_0003_expand_audit

CREATE FUNCTION leadprotect.audit_partitions() RETURNS TABLE(part regclass, name name, from_month timestamp with time zone, to_month timestamp with time zone)
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT (c.oid)::regclass AS oid,
     c.relname,
     ("substring"(bound.text, 'FROM [(]''([^'']+)''[)]'::text))::timestamp with time zone AS "substring",
     ("substring"(bound.text, 'TO [(]''([^'']+)''[)]'::text))::timestamp with time zone AS "substring"
    FROM (pg_inherits i
      JOIN pg_class c ON ((c.oid = i.inhrelid))),
     LATERAL ( SELECT pg_get_expr(c.relpartbound, c.oid) AS text) bound
   WHERE ((i.inhparent = ('leadprotect.lead_access_audit'::regclass)::oid) AND (bound.text <> 'DEFAULT'::text))
   ORDER BY ("substring"(bound.text, 'FROM [(]''([^'']+)''[)]'::text))::timestamp with time zone;
END;

COMMENT ON FUNCTION leadprotect.audit_partitions() IS 'Partitions of the audit, each from its first month up to, and without, to_month; not the default one';

REVOKE ALL ON FUNCTION leadprotect.audit_partitions() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_partitions() TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.audit_partitions() TO leadprotect_operator;

-- function add_audit_partition, lp_0003_expand_audit

CREATE FUNCTION leadprotect.add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone) RETURNS regclass
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
        DECLARE
          part text := 'lead_access_audit_' || to_char(from_month, 'YYYY_MM');
        BEGIN
          EXECUTE format('CREATE TABLE "leadprotect".%I (LIKE "leadprotect".lead_access_audit
                          INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part);
          PERFORM "leadprotect".secure_audit_table(('"leadprotect".' || part)::regclass);
          EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit ATTACH PARTITION "leadprotect".%I
                          FOR VALUES FROM (%L) TO (%L)', part, from_month, to_month);
          RETURN ('"leadprotect".' || part)::regclass;
        END
        $$;

COMMENT ON FUNCTION leadprotect.add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone) IS 'Attaches one month to the audit; ATTACH lets the live months work on';

REVOKE ALL ON FUNCTION leadprotect.add_audit_partition(from_month timestamp with time zone, to_month timestamp with time zone) FROM PUBLIC;

-- function clear_audit_default, lp_0003_expand_audit

CREATE FUNCTION leadprotect.clear_audit_default(max_moved integer) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
        DECLARE
          found bigint;
          endless bigint;
          low timestamptz;
          high timestamptz;
          part text;
          month timestamptz;
          created integer := 0;
        BEGIN
          SELECT count(*) FILTER (WHERE isfinite(d.at)), count(*) FILTER (WHERE NOT isfinite(d.at)),
                 date_trunc('month', min(d.at) FILTER (WHERE isfinite(d.at))),
                 date_trunc('month', max(d.at) FILTER (WHERE isfinite(d.at))) + interval '1 month'
          INTO found, endless, low, high
          FROM "leadprotect".lead_access_audit_default AS d;
          IF found = 0 THEN
            RETURN 0;
          END IF;
          part := 'lead_access_audit_' || to_char(low, 'YYYY_MM')
            || CASE WHEN high > low + interval '1 month'
                    THEN '_to_' || to_char(high - interval '1 month', 'YYYY_MM') ELSE '' END;
          IF endless = 0 AND to_regclass('"leadprotect".' || part) IS NULL AND NOT EXISTS (
            SELECT FROM "leadprotect".audit_partitions() AS p
            WHERE p.from_month < high AND low < p.to_month)
          THEN
            LOCK TABLE "leadprotect".lead_access_audit IN ACCESS EXCLUSIVE MODE;
            ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION "leadprotect".lead_access_audit_default;
            EXECUTE format('ALTER INDEX %s RENAME TO %I',
              (SELECT i.indexrelid::regclass FROM pg_index AS i
               WHERE i.indrelid = '"leadprotect".lead_access_audit_default'::regclass AND i.indisprimary), part || '_pkey');
            EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit_default RENAME TO %I', part);
            BEGIN
              EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit ATTACH PARTITION "leadprotect".%I
                              FOR VALUES FROM (%L) TO (%L)', part, low, high);
            EXCEPTION WHEN check_violation THEN
              RAISE EXCEPTION 'rows of another month have just come into the default partition; try again'
                USING ERRCODE = 'lock_not_available';
            END;
            CREATE TABLE "leadprotect".lead_access_audit_default PARTITION OF "leadprotect".lead_access_audit DEFAULT;
            PERFORM "leadprotect".secure_audit_table('"leadprotect".lead_access_audit_default');
            RETURN 1;
          ELSIF found > max_moved THEN
            RAISE EXCEPTION 'the default partition of the audit holds % rows of months that do not belong together', found
              USING ERRCODE = 'LP422', HINT = format(
                'Moving them stops every recording for about %s s. In a quiet hour: leadprotect audit partitions --max-moved %s',
                ceil(found / 100000.0), found);
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit IN ACCESS EXCLUSIVE MODE;
          ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION "leadprotect".lead_access_audit_default;
          ALTER TABLE "leadprotect".lead_access_audit_default RENAME TO lead_access_audit_moving;
          ALTER INDEX "leadprotect".lead_access_audit_default_pkey RENAME TO lead_access_audit_moving_pkey;
          CREATE TABLE "leadprotect".lead_access_audit_default PARTITION OF "leadprotect".lead_access_audit DEFAULT;
          PERFORM "leadprotect".secure_audit_table('"leadprotect".lead_access_audit_default');
          FOR month IN
            SELECT DISTINCT date_trunc('month', m.at) FROM "leadprotect".lead_access_audit_moving AS m WHERE isfinite(m.at)
          LOOP
            -- a month that was detached already keeps its name; its late rows stay in the default partition
            IF to_regclass('"leadprotect".lead_access_audit_' || to_char(month, 'YYYY_MM')) IS NULL THEN
              PERFORM "leadprotect".add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          INSERT INTO "leadprotect".lead_access_audit SELECT * FROM "leadprotect".lead_access_audit_moving;
          DROP TABLE "leadprotect".lead_access_audit_moving;
          RETURN created;
        END
        $$;

COMMENT ON FUNCTION leadprotect.clear_audit_default(max_moved integer) IS 'Gives rows in the default partition a partition of their own, so that their month can be attached';

REVOKE ALL ON FUNCTION leadprotect.clear_audit_default(max_moved integer) FROM PUBLIC;

-- function create_audit_partitions, lp_0003_expand_audit

CREATE FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer DEFAULT 20000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET lock_timeout TO '100ms'
    SET client_min_messages TO 'warning'
    SET row_security TO 'on'
    AS $$
        DECLARE
          this_month timestamptz := date_trunc('month', now());
          month timestamptz;
          created integer := 0;
        BEGIN
          IF months_ahead IS NULL OR months_ahead NOT BETWEEN 0 AND 120 THEN
            RAISE EXCEPTION 'months ahead: % is not between 0 and 120', months_ahead USING ERRCODE = 'LP422';
          END IF;
          created := "leadprotect".clear_audit_default(max_moved);
          FOR step IN 0 .. months_ahead LOOP
            month := this_month + make_interval(months => step);
            IF NOT EXISTS (
              SELECT FROM "leadprotect".audit_partitions() AS p WHERE p.from_month <= month AND month < p.to_month)
            THEN
              LOCK TABLE "leadprotect".lead_access_audit_default IN ACCESS EXCLUSIVE MODE;
              IF EXISTS (SELECT FROM "leadprotect".lead_access_audit_default AS d
                         WHERE d.at >= month AND d.at < month + interval '1 month') THEN
                RAISE EXCEPTION 'rows of % have just come into the default partition; try again', month::date
                  USING ERRCODE = 'lock_not_available';
              END IF;
              PERFORM "leadprotect".add_audit_partition(month, month + interval '1 month');
              created := created + 1;
            END IF;
          END LOOP;
          RETURN created;
        END
        $$;

COMMENT ON FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer) IS 'Makes the partitions of this month and of the months ahead (UTC); returns how many are new';

REVOKE ALL ON FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.create_audit_partitions(months_ahead integer, max_moved integer) TO leadprotect_operator;

-- function who_could_edit, lp_0003_expand_audit

CREATE FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) RETURNS TABLE(territory text, user_id uuid, could_edit boolean, reason text, since timestamp with time zone, until timestamp with time zone, source text)
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 WITH here AS (
          SELECT t.code
            FROM leadprotect.territories t
           WHERE (leadprotect.is_member(t.code) AND (t.code = COALESCE(NULLIF(current_setting('app.territory'::text, true), ''::text), t.code)))
         ), standing AS (
          SELECT a.territory,
             a.user_id,
             a.source,
             GREATEST(a.assigned_at, lag(a.ended_at) OVER (PARTITION BY a.territory ORDER BY a.ended_at)) AS since,
             a.ended_at AS until
            FROM ( SELECT h.territory,
                     h.user_id,
                     h.source,
                     h.assigned_at,
                     h.ended_at
                    FROM leadprotect.user_lead_assignment_history h
                   WHERE (h.lead_id = who_could_edit.lead)
                 UNION ALL
                  SELECT u.territory,
                     u.user_id,
                     u.source,
                     u.assigned_at,
                     NULL::timestamp with time zone AS ended_at
                    FROM leadprotect.user_lead_assignments u
                   WHERE (u.lead_id = who_could_edit.lead)) a
         ), owners AS (
          SELECT s.territory,
             s.user_id,
             s.source,
             s.since,
             s.until
            FROM standing s
           WHERE ((s.since <= who_could_edit.moment) AND ((s.until IS NULL) OR (who_could_edit.moment < s.until)))
         ), rules AS (
          SELECT r.territory,
             r.user_id,
             r.protection,
             r.lead_id,
             r.effective_to,
             GREATEST(r.effective_from, r.made_at) AS since
            FROM leadprotect.lead_protection_rules r
           WHERE (((r.lead_id IS NULL) OR (r.lead_id = who_could_edit.lead)) AND (GREATEST(r.effective_from, r.made_at) <= who_could_edit.moment) AND ((r.effective_to IS NULL) OR (who_could_edit.moment < r.effective_to)) AND (r.active OR (r.effective_to IS NOT NULL)))
         ), known AS (
          SELECT h.code
            FROM here h
           WHERE ((EXISTS ( SELECT
                    FROM leadprotect.host_lead(who_could_edit.lead) l(territory)
                   WHERE (l.territory = h.code))) OR (EXISTS ( SELECT
                    FROM standing s
                   WHERE (s.territory = h.code))) OR (EXISTS ( SELECT
                    FROM leadprotect.lead_access_audit e
                   WHERE ((e.lead_id = who_could_edit.lead) AND (e.territory = h.code)))))
         ), rights AS (
          SELECT k.code,
             o.user_id,
                 CASE
                     WHEN (o.user_id IS NULL) THEN 'unassigned'::text
                     ELSE 'owner'::text
                 END AS reason,
             o.since,
             o.until,
             o.source,
             1 AS rank
            FROM (known k
              LEFT JOIN owners o ON ((o.territory = k.code)))
         UNION ALL
          SELECT k.code,
             r.user_id,
             'collaborator'::text AS reason,
             r.since,
             r.effective_to,
                 CASE
                     WHEN (r.lead_id IS NULL) THEN 'rule for the territory'::text
                     ELSE 'rule for the lead'::text
                 END AS "case",
             2
            FROM ((known k
              JOIN rules r ON (((r.territory = k.code) AND (r.protection = 'COLLABORATOR'::leadprotect.protection_type))))
              LEFT JOIN owners o ON ((o.territory = k.code)))
           WHERE ((r.user_id IS DISTINCT FROM o.user_id) AND ((r.lead_id IS NOT NULL) OR (NOT (EXISTS ( SELECT
                    FROM rules sole
                   WHERE ((sole.territory = k.code) AND (sole.protection = 'SOLE_OWNER'::leadprotect.protection_type) AND (sole.user_id = o.user_id)))))))
         )
  SELECT DISTINCT ON (w.code, w.rank, w.user_id) w.code,
     w.user_id,
     ((w.user_id IS NOT NULL) AND (suspended.since IS NULL)),
         CASE
             WHEN (suspended.since IS NULL) THEN w.reason
             ELSE 'suspended'::text
         END AS "case",
     COALESCE(suspended.since, w.since) AS "coalesce",
         CASE
             WHEN (suspended.since IS NULL) THEN w.until
             ELSE suspended.effective_to
         END AS effective_to,
         CASE
             WHEN (suspended.since IS NULL) THEN w.source
             ELSE (w.reason || ' otherwise'::text)
         END AS "case"
    FROM (rights w
      LEFT JOIN LATERAL ( SELECT r.since,
             r.effective_to
            FROM rules r
           WHERE ((r.territory = w.code) AND (r.protection = 'VIEW_ONLY'::leadprotect.protection_type) AND (r.user_id = w.user_id))
           ORDER BY r.since
          LIMIT 1) suspended ON (true))
   ORDER BY w.code, w.rank, w.user_id, w.since;
END;

COMMENT ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) IS 'Who could edit the lead at this moment and why, in the territories of the login; no row: nothing is known of the lead';

REVOKE ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) TO leadprotect_auditor;
GRANT ALL ON FUNCTION leadprotect.who_could_edit(lead uuid, moment timestamp with time zone) TO leadprotect_manager;

-- function bounded, lp_0004_expand_seals

CREATE FUNCTION leadprotect.bounded(said text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          clean text;
          anything boolean := getdatabaseencoding() = 'SQL_ASCII';
        BEGIN
          IF said IS NULL OR said = '' THEN
            RETURN NULL;
          END IF;
          -- a character has one byte or more, and seldom four
          clean := left(said, 1024);
          WHILE octet_length(clean) > 1024 LOOP
            clean := left(clean, length(clean) * 1024 / octet_length(clean));
          END LOOP;
          IF getdatabaseencoding() = 'UTF8' THEN
            -- what turns the direction of a line, ends it or takes no room hides as much as a control character does
            clean := regexp_replace(clean, '[\u0001-\u001f\u007f-\u009f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]', ' ', 'g');
          ELSIF anything THEN
            clean := regexp_replace(clean, '[\u0001-\u001f\u007f]', ' ', 'g');
          ELSE
            clean := regexp_replace(clean, '[[:cntrl:]]', ' ', 'g');
          END IF;
          IF anything THEN
            -- there a character is a byte, and what is no UTF-8 would end whoever reads it
            BEGIN
              PERFORM convert_from(convert_to(clean, 'SQL_ASCII'), 'UTF8');
            EXCEPTION WHEN character_not_in_repertoire THEN
              clean := regexp_replace(clean, '[^ -~]', '?', 'g');
            END;
          END IF;
          RETURN clean;
        END
        $$;

COMMENT ON FUNCTION leadprotect.bounded(said text) IS 'What a service said, at most 1 kB of it, without control characters and what is not seen; NULL for nothing';

REVOKE ALL ON FUNCTION leadprotect.bounded(said text) FROM PUBLIC;

-- sequence rule_changes, lp_0006_expand_attempts

CREATE SEQUENCE leadprotect.rule_changes
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

COMMENT ON SEQUENCE leadprotect.rule_changes IS 'The transaction that last made a rule which takes a right away; seen by every snapshot';

-- function require_fresh_rules, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.require_fresh_rules() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          newest xid8;
        BEGIN
          IF current_setting('transaction_isolation') NOT IN ('repeatable read', 'serializable') THEN
            RETURN;
          END IF;
          newest := (SELECT q.last_value::text::xid8 FROM "leadprotect".rule_changes AS q);
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
        $$;

COMMENT ON FUNCTION leadprotect.require_fresh_rules() IS 'Raises a serialization failure where the snapshot is older than the newest rule which takes a right away';

REVOKE ALL ON FUNCTION leadprotect.require_fresh_rules() FROM PUBLIC;

-- function decide_locked, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.decide_locked(lead uuid, OUT reason text, OUT basis text) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          caller uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          here text := pg_catalog.current_setting('app.territory', true);
        BEGIN
          IF current_setting('transaction_isolation') <> 'read committed' THEN
            PERFORM "leadprotect".require_fresh_rules();
          END IF;
          PERFORM FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id = caller AND "leadprotect".is_member(here) FOR SHARE;
          reason := "leadprotect".explain_edit(lead);
          IF reason = 'collaborator' THEN
            PERFORM FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here FOR SHARE;
            -- two probes, whatever else is shared with him
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = lead FOR SHARE;
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL FOR SHARE;
            reason := "leadprotect".explain_edit(lead);
            basis := (SELECT c.rule FROM "leadprotect".collaboration(lead, caller, here) AS c (rule));
            -- the rule has ended while the caller's statement goes on
            IF basis IS NULL AND reason = 'collaborator' THEN
              reason := CASE WHEN EXISTS (
                SELECT FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = lead AND a.territory = here AND a.user_id IS NOT NULL)
                THEN 'not_owner' ELSE 'unassigned' END;
            END IF;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.decide_locked(lead uuid, OUT reason text, OUT basis text) IS 'The decision about the user in context, with the rows on which it rests locked until the transaction ends';

REVOKE ALL ON FUNCTION leadprotect.decide_locked(lead uuid, OUT reason text, OUT basis text) FROM PUBLIC;

-- function write_audit, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.write_audit(lead uuid, action leadprotect.lead_action, decision text, note text, basis text DEFAULT NULL::text, here text DEFAULT NULL::text, number bigint DEFAULT NULL::bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          declared_user text := pg_catalog.current_setting('app.user_id', true);
          declared_territory text := pg_catalog.current_setting('app.territory', true);
          known_user uuid := "leadprotect".parse_user(declared_user);
          known_territory text := declared_territory;
          remark text := note;
          recorded text := decision;
        BEGIN
          IF 'uuid' = 'text' AND length(lead::text) > 255 THEN
            lead := left(lead::text, 255)::uuid;
          END IF;
          -- an owner or collaborator declared a user and a territory that exist: nothing is left to look up
          IF decision NOT IN ('owner', 'collaborator') THEN
            SELECT t.code INTO known_territory FROM "leadprotect".territories AS t WHERE t.code = declared_territory;
            remark := concat_ws('; ', nullif(note, ''),
              CASE WHEN known_user IS NULL AND declared_user <> '' THEN
                format('declared user %L', left(declared_user, 100)) END,
              CASE WHEN known_territory IS NULL AND declared_territory <> '' THEN
                format('declared territory %L', left(declared_territory, 100)) END);
            IF here IS NOT NULL OR decision IN ('manager', 'maintenance') THEN
              -- his right needs no declared territory, but the row belongs to the lead's
              known_territory := coalesce(here, (SELECT l.territory FROM "leadprotect".host_lead(lead) AS l (territory)));
            ELSIF decision = 'unprotected' THEN
              known_territory := NULL;
            ELSIF decision = 'not_found' THEN
              recorded := coalesce((
                SELECT CASE WHEN l.territory IS NULL THEN 'no_territory' ELSE 'other_territory' END
                FROM "leadprotect".host_lead(lead) AS l (territory)), 'unknown_lead');
            END IF;
          END IF;
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          VALUES (
            lead,
            coalesce(number, nextval('"leadprotect".lead_access_audit_id_seq')),
            known_user,
            "leadprotect".acting_role(),
            known_territory,
            coalesce(action, 'EDIT'),
            CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'maintenance', 'unprotected')
              THEN 'ALLOW'::"leadprotect".lead_access_outcome ELSE 'DENY'::"leadprotect".lead_access_outcome END,
            recorded,
            CASE WHEN remark <> '' THEN "leadprotect".bounded(remark) END,
            CASE WHEN pg_catalog.current_setting('app.correlation_id', true) <> '' THEN "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)) END,
            CASE decision WHEN 'owner' THEN 'assignment' WHEN 'manager' THEN 'role ' || 'leadprotect_manager'
              ELSE basis END);
        END
        $$;

COMMENT ON FUNCTION leadprotect.write_audit(lead uuid, action leadprotect.lead_action, decision text, note text, basis text, here text, number bigint) IS 'Writes one row of the audit: login, role, time and transaction are those of the server, never of the caller';

REVOKE ALL ON FUNCTION leadprotect.write_audit(lead uuid, action leadprotect.lead_action, decision text, note text, basis text, here text, number bigint) FROM PUBLIC;

-- table denial_secret, lp_0006_expand_attempts

CREATE TABLE leadprotect.denial_secret (
    secret bytea NOT NULL
);

ALTER TABLE ONLY leadprotect.denial_secret FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.denial_secret IS 'Tells the denials that our functions logged from lines that somebody else wrote; no role may read it';
COMMENT ON COLUMN leadprotect.denial_secret.secret IS 'drawn when the revision was applied';

ALTER TABLE ONLY leadprotect.denial_secret
    ADD CONSTRAINT denial_secret_pkey PRIMARY KEY (secret);

ALTER TABLE leadprotect.denial_secret ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.denial_secret TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

-- function denial_proof, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.denial_proof(said text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          -- hashed twice, so that nothing can be appended to what was proved; a copy of the database knows the
          -- secret, too, and has another name
          RETURN (SELECT encode(substring(sha256(
                    s.secret || sha256(s.secret || convert_to(current_database() || ' ' || said, 'UTF8'))) FOR 16), 'hex')
                  FROM "leadprotect".denial_secret AS s);
        END
        $$;

COMMENT ON FUNCTION leadprotect.denial_proof(said text) IS 'What only a function of ours in this database can say about a text';

REVOKE ALL ON FUNCTION leadprotect.denial_proof(said text) FROM PUBLIC;

-- function draw_denial, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.draw_denial(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          number bigint := nextval('"leadprotect".lead_access_audit_id_seq');
          facts text := format('lead %s, action %s, reason %s, user %s, territory %s, login %s, correlation %s, note %s',
            quote_nullable("leadprotect".bounded(lead::text)), action, decision,
            quote_nullable("leadprotect".bounded(left(pg_catalog.current_setting('app.user_id', true), 100))),
            quote_nullable("leadprotect".bounded(left(pg_catalog.current_setting('app.territory', true), 100))),
            quote_ident(session_user), quote_nullable("leadprotect".bounded(left(pg_catalog.current_setting('app.correlation_id', true), 100))),
            quote_nullable("leadprotect".bounded(left(note, 200))));
        BEGIN
          RAISE LOG 'leadprotect denial %: %, proof %', number, facts,
            "leadprotect".denial_proof('log ' || number || ' ' || facts);
          RETURN number || ' ' || "leadprotect".denial_proof(
            'ticket ' || json_build_array(number, lead::text, decision, session_user)::text);
        END
        $$;

COMMENT ON FUNCTION leadprotect.draw_denial(lead uuid, action leadprotect.lead_action, decision text, note text) IS 'Draws the number of a denial and tells the log of the server; returns the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.draw_denial(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- function proved_denials, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.proved_denials(numbers bigint[], facts text[], proofs text[]) RETURNS SETOF bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          RETURN QUERY
          SELECT asked.number FROM unnest(numbers, facts, proofs) AS asked (number, facts, proof)
          WHERE asked.proof = "leadprotect".denial_proof('log ' || asked.number || ' ' || asked.facts);
        END
        $$;

COMMENT ON FUNCTION leadprotect.proved_denials(numbers bigint[], facts text[], proofs text[]) IS 'Which lines of a log were written by our function in this database: number, facts and proof of each';

REVOKE ALL ON FUNCTION leadprotect.proved_denials(numbers bigint[], facts text[], proofs text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.proved_denials(numbers bigint[], facts text[], proofs text[]) TO leadprotect_auditor;

-- function deny, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.deny(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".draw_denial(lead, action, decision, note);
          RAISE EXCEPTION 'access to the lead denied' USING ERRCODE = 'LP403', DETAIL = decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.deny(lead uuid, action leadprotect.lead_action, decision text, note text) IS 'Raises SQLSTATE LP403; the number it draws and the line in the log of the server stay although the row can''t';

REVOKE ALL ON FUNCTION leadprotect.deny(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- function record_denial, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text DEFAULT NULL::text, ticket text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          number bigint := CASE WHEN ticket ~ '^[0-9]{1,18} ' THEN split_part(ticket, ' ', 1)::bigint END;
        BEGIN
          IF decision IS NULL
            OR decision NOT IN ('no_context', 'not_found', 'suspended', 'unassigned', 'not_owner', 'not_manager') THEN
            RAISE EXCEPTION '% is not a reason of a denial', coalesce(decision, 'NULL') USING ERRCODE = 'LP422';
          ELSIF decision NOT IN ('no_context', 'not_found') AND pg_catalog.current_setting('app.territory', true) <> ''
            AND NOT "leadprotect".is_member(pg_catalog.current_setting('app.territory', true)) THEN
            -- nobody is answered so about another territory
            RAISE EXCEPTION 'reason % is not of this login', decision USING ERRCODE = 'LP422';
          END IF;
          -- a number that was drawn for another denial, has its row, or is being recorded at this moment, stays
          -- what it is; only tried, because anybody may hold an advisory lock
          IF number IS NOT NULL AND (
            split_part(ticket, ' ', 2) IS DISTINCT FROM "leadprotect".denial_proof(
              'ticket ' || json_build_array(number, lead::text, decision, session_user)::text)
            OR current_setting('transaction_isolation') <> 'read committed'
            OR NOT pg_try_advisory_xact_lock(hashtextextended('"leadprotect"' || '.denials', number)))
          THEN
            number := NULL;
          END IF;
          -- asked under the lock, in a snapshot of its own
          IF EXISTS (SELECT FROM "leadprotect".lead_access_audit AS e WHERE e.lead_id = lead AND e.id = number) THEN
            number := NULL;
          END IF;
          IF lead IS NOT NULL THEN
            PERFORM "leadprotect".write_audit(lead, action, decision, note, NULL, NULL, number);
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text, ticket text) IS 'Records a denial that was answered in another transaction, under the number that was drawn for it; nothing but a DENY';

REVOKE ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text, ticket text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text, ticket text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.record_denial(lead uuid, action leadprotect.lead_action, decision text, note text, ticket text) TO leadprotect_manager;

-- function answered, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.answered(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN CASE WHEN decision IN ('owner', 'collaborator', 'manager', 'unprotected') THEN decision
                      ELSE decision || ' ' || "leadprotect".draw_denial(lead, action, decision, note) END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.answered(lead uuid, action leadprotect.lead_action, decision text, note text) IS 'A reason as the library gets it: a denial comes with the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.answered(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- function require, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.require(lead uuid, action leadprotect.lead_action, decision text, note text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF decision IS NULL OR decision NOT IN ('owner', 'collaborator', 'manager', 'unprotected') THEN
            PERFORM "leadprotect".deny(lead, action, decision, note);
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.require(lead uuid, action leadprotect.lead_action, decision text, note text) IS 'Raises unless the reason allows';

REVOKE ALL ON FUNCTION leadprotect.require(lead uuid, action leadprotect.lead_action, decision text, note text) FROM PUBLIC;

-- function record_edit_attempt, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          decision text := "leadprotect".explain_edit(lead);
        BEGIN
          IF lead IS NULL THEN
            RETURN false;
          END IF;
          PERFORM "leadprotect".write_audit(lead, action, decision, note);
          RETURN decision IN ('owner', 'collaborator', 'unprotected');
        END
        $$;

COMMENT ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) IS 'Records an attempt of the user in context and returns whether he may; never raises on a denial';

REVOKE ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.record_edit_attempt(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- function try_edit, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.try_edit(lead uuid, action leadprotect.lead_action, note text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          declared_user text := pg_catalog.current_setting('app.user_id', true);
          here text := pg_catalog.current_setting('app.territory', true);
          caller uuid;
          decided record;
        BEGIN
          IF current_setting('transaction_isolation') = 'read committed' THEN
            SELECT a.user_id INTO caller FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = lead AND a.territory = here AND a.user_id::text = declared_user AND "leadprotect".is_member(here)
              FOR SHARE;
            -- under the lock, in a snapshot of its own
            IF FOUND AND "leadprotect".unsuspended(lead, caller, here) THEN
              INSERT INTO "leadprotect".lead_access_audit
                (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
              VALUES (lead, caller, "leadprotect".acting_role(), here, coalesce(action, 'EDIT'), 'ALLOW', 'owner',
                      CASE WHEN note <> '' THEN "leadprotect".bounded(note) END,
                      CASE WHEN pg_catalog.current_setting('app.correlation_id', true) <> '' THEN "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)) END,
                      'assignment');
              RETURN 'owner';
            END IF;
          END IF;
          SELECT d.reason, d.basis INTO decided FROM "leadprotect".decide_locked(lead) AS d;
          IF decided.reason IN ('owner', 'collaborator', 'unprotected') THEN
            PERFORM "leadprotect".write_audit(lead, action, decided.reason, note, decided.basis);
          END IF;
          RETURN decided.reason;
        END
        $$;

COMMENT ON FUNCTION leadprotect.try_edit(lead uuid, action leadprotect.lead_action, note text) IS 'Decides under locks and records what is allowed; returns the reason';

REVOKE ALL ON FUNCTION leadprotect.try_edit(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;

-- function allow_edit, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          RETURN "leadprotect".answered(lead, action, "leadprotect".try_edit(lead, action, note), note);
        END
        $$;

COMMENT ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) IS 'For the library: decides under locks and records what is allowed; a denial is returned with the ticket for its row';

REVOKE ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.allow_edit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- function allow_edits, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.allow_edits(leads uuid[], action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          here text := pg_catalog.current_setting('app.territory', true);
          caller uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          shared uuid[] := '{}';
          locked uuid[];
          allowed uuid[] := '{}';
          reasons text[] := '{}';
          rules text[] := '{}';
          answers text[];
          asked record;
        BEGIN
          IF cardinality(leads) > 0 AND caller IS NOT NULL AND "leadprotect".is_member(here) THEN
            PERFORM "leadprotect".require_fresh_rules();
            IF EXISTS (
              SELECT FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR')
            THEN
              shared := ARRAY(SELECT DISTINCT e.lead FROM "leadprotect".editable_among(leads) AS e WHERE e.reason = 'collaborator');
            END IF;
            locked := ARRAY(
              SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here AND (a.user_id = caller OR a.lead_id = ANY (shared))
              ORDER BY a.lead_id FOR SHARE);
            IF cardinality(shared) > 0 THEN
              PERFORM FROM "leadprotect".lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (shared)
                ORDER BY r.lead_id, r.effective_from FOR SHARE;
              PERFORM FROM "leadprotect".lead_protection_rules AS r
                WHERE r.user_id = caller AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
                ORDER BY r.effective_from FOR SHARE;
            END IF;
            SELECT coalesce(array_agg(e.lead), '{}'), coalesce(array_agg(e.reason), '{}'), coalesce(array_agg(c.rule), '{}')
            INTO allowed, reasons, rules
            FROM (SELECT DISTINCT e.lead, e.reason FROM "leadprotect".editable_among(leads) AS e) AS e
            LEFT JOIN unnest(locked) AS k (lead) ON k.lead = e.lead
            LEFT JOIN unnest(shared) AS s (lead) ON s.lead = e.lead
            LEFT JOIN LATERAL "leadprotect".collaboration(e.lead, caller, here) AS c (rule) ON e.reason = 'collaborator'
            -- what nobody owned had no assignment to lock, and may be his own by now
            WHERE e.reason = 'unprotected' OR e.reason = 'owner' AND k.lead IS NOT NULL OR c.rule IS NOT NULL AND s.lead IS NOT NULL;
            INSERT INTO "leadprotect".lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT u.lead, caller, (SELECT "leadprotect".acting_role()), CASE WHEN o.reason <> 'unprotected' THEN here END,
                   coalesce(action, 'EDIT'), 'ALLOW', o.reason,
                   (SELECT "leadprotect".bounded(note)), (SELECT "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true))),
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
            answers[asked.place] := "leadprotect".answered(
              asked.lead, action, "leadprotect".try_edit(asked.lead, action, note), note);
          END LOOP;
          RETURN answers;
        END
        $$;

COMMENT ON FUNCTION leadprotect.allow_edits(leads uuid[], action leadprotect.lead_action, note text) IS 'For the library: allow_edit for each of these leads, locked in the order of their ids; the answers as they were asked';

REVOKE ALL ON FUNCTION leadprotect.allow_edits(leads uuid[], action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.allow_edits(leads uuid[], action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.allow_edits(leads uuid[], action leadprotect.lead_action, note text) TO leadprotect_manager;

-- function assert_edit_and_audit, lp_0006_expand_attempts

CREATE FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action DEFAULT 'EDIT'::leadprotect.lead_action, note text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          decision text := "leadprotect".try_edit(lead, action, note);
        BEGIN
          IF decision IS DISTINCT FROM 'owner' THEN
            PERFORM "leadprotect".require(lead, action, decision, note);
          END IF;
          RETURN decision;
        END
        $$;

COMMENT ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) IS 'Decides under locks and records what is allowed; a denial raises SQLSTATE LP403';

REVOKE ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_app;
GRANT ALL ON FUNCTION leadprotect.assert_edit_and_audit(lead uuid, action leadprotect.lead_action, note text) TO leadprotect_manager;

-- =================================================================================================
-- Seals
--
-- A chain of hashes per territory over the rows of the audit, so that an auditor can prove that
-- none was changed, added or lost. Operators call seal_audit() regularly, and detach_audit_month()
-- for a month that is sealed and old.
-- =================================================================================================

-- table lead_access_audit_seals, lp_0004_expand_seals

CREATE TABLE leadprotect.lead_access_audit_seals (
    territory text,
    number bigint NOT NULL,
    hash bytea NOT NULL,
    previous bytea,
    run bigint NOT NULL,
    month date NOT NULL,
    row_count bigint NOT NULL,
    ids int8multirange NOT NULL,
    content bytea NOT NULL,
    row_checks bytea NOT NULL,
    first_at timestamp with time zone,
    last_at timestamp with time zone,
    sealed_at timestamp with time zone NOT NULL,
    sealed_by name DEFAULT SESSION_USER NOT NULL,
    origin text NOT NULL,
    snapshot pg_snapshot NOT NULL,
    transaction_id xid8 DEFAULT pg_current_xact_id() NOT NULL,
    last_number bigint NOT NULL,
    settled_until timestamp with time zone NOT NULL,
    detached_table name
);
ALTER TABLE ONLY leadprotect.lead_access_audit_seals ALTER COLUMN ids SET STORAGE EXTERNAL;

ALTER TABLE ONLY leadprotect.lead_access_audit_seals FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.lead_access_audit_seals IS 'Chains of hashes over the rows of lead_access_audit; leadprotect audit verify compares. Keep the newest hash elsewhere, too';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.territory IS 'the chain; NULL: that of rows without territory';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.number IS 'place in the chain, from 1';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.hash IS 'sha256 over the hash before it and what this entry says';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.previous IS 'hash of the entry before it';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.run IS 'entries that were made together';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.month IS 'month of the rows (UTC)';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.row_count IS 'rows in this entry';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.ids IS 'their numbers';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.content IS 'sha256 over the sha256 of each row, in the order of their ids';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.row_checks IS 'the first four bytes of each row''s sha256: they name the row that was changed';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.first_at IS 'time of the first row';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.last_at IS 'time of the last row';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.sealed_at IS 'when the run began';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.sealed_by IS 'the login that sealed';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.origin IS 'server and table in which transaction ids of this run mean something';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.snapshot IS 'rows of transactions that had ended in it are in this run or an earlier one';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.transaction_id IS 'transaction of the run';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.last_number IS 'the newest number drawn for a row when the run began';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.settled_until IS 'every row of a time before this is sealed';
COMMENT ON COLUMN leadprotect.lead_access_audit_seals.detached_table IS 'set where the entry says that a month was detached, not that rows were sealed';

ALTER TABLE ONLY leadprotect.lead_access_audit_seals
    ADD CONSTRAINT ix_laas_chain UNIQUE NULLS NOT DISTINCT (territory, number);

ALTER TABLE ONLY leadprotect.lead_access_audit_seals
    ADD CONSTRAINT lead_access_audit_seals_pkey PRIMARY KEY (hash);

CREATE TRIGGER lp_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON leadprotect.lead_access_audit_seals FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.refuse_change();

ALTER TABLE leadprotect.lead_access_audit_seals ENABLE ALWAYS TRIGGER lp_append_only;

ALTER TABLE leadprotect.lead_access_audit_seals ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.lead_access_audit_seals AS RESTRICTIVE USING ((leadprotect.inside() OR COALESCE((territory = ( SELECT leadprotect.own_border() AS own_border)), (territory IS NULL))));
CREATE POLICY lp_inside ON leadprotect.lead_access_audit_seals TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.lead_access_audit_seals FOR SELECT TO leadprotect_auditor USING (true);

GRANT SELECT ON TABLE leadprotect.lead_access_audit_seals TO leadprotect_auditor;

-- function audit_origin, lp_0004_expand_seals

CREATE FUNCTION leadprotect.audit_origin() RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          place text := (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            || '/' || '"leadprotect".lead_access_audit'::regclass::oid;
        BEGIN
          RETURN (SELECT c.system_identifier FROM pg_control_system() AS c) || '/' || place;
        EXCEPTION WHEN insufficient_privilege THEN
          RETURN 'unknown/' || place;
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_origin() IS 'Server and table in which the transaction ids of the audit mean something';

REVOKE ALL ON FUNCTION leadprotect.audit_origin() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_origin() TO leadprotect_auditor;

-- function audit_settled_until, lp_0004_expand_seals

CREATE FUNCTION leadprotect.audit_settled_until() RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN coalesce(
            (SELECT greatest(
               max(s.settled_until),
               max(s.sealed_at) FILTER (WHERE s.origin = "leadprotect".audit_origin()
                 AND s.transaction_id < pg_snapshot_xmin(pg_current_snapshot())))
             FROM "leadprotect".lead_access_audit_seals AS s WHERE s.detached_table IS NULL),
            '-infinity');
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_settled_until() IS 'Every row of the audit of a time before this is sealed';

REVOKE ALL ON FUNCTION leadprotect.audit_settled_until() FROM PUBLIC;

-- function sealed_numbers, lp_0004_expand_seals

CREATE FUNCTION leadprotect.sealed_numbers(from_month date, before_month date, elsewhere_than text) RETURNS int8multirange
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT COALESCE((
         CASE
             WHEN (count(*) > 0) THEN int8multirange(int8range(min(part.low), max(part.high)))
             ELSE NULL::int8multirange
         END - COALESCE(range_agg(int8range(part.reached, part.low)) FILTER (WHERE (part.reached < part.low)), '{}'::int8multirange)), '{}'::int8multirange) AS "coalesce"
    FROM ( SELECT lower(r.r) AS low,
             upper(r.r) AS high,
             max(upper(r.r)) OVER (ORDER BY (lower(r.r)) ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
            FROM leadprotect.lead_access_audit_seals s,
             LATERAL unnest(s.ids) r(r)
           WHERE (((sealed_numbers.from_month IS NULL) OR (s.month >= sealed_numbers.from_month)) AND ((sealed_numbers.before_month IS NULL) OR (s.month < sealed_numbers.before_month)) AND ((sealed_numbers.elsewhere_than IS NULL) OR (s.origin <> sealed_numbers.elsewhere_than)))) part;
END;

COMMENT ON FUNCTION leadprotect.sealed_numbers(from_month date, before_month date, elsewhere_than text) IS 'Numbers of rows that a seal of these months names, or one that another origin made; NULL: whatever it is';

REVOKE ALL ON FUNCTION leadprotect.sealed_numbers(from_month date, before_month date, elsewhere_than text) FROM PUBLIC;

-- function append_audit_seal, lp_0004_expand_seals

CREATE FUNCTION leadprotect.append_audit_seal(entry leadprotect.lead_access_audit_seals) RETURNS leadprotect.lead_access_audit_seals
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          numbers text;
        BEGIN
          -- two ways to say one thing, because IS NOT DISTINCT FROM uses no index
          IF entry.territory IS NULL THEN
            SELECT s.number, s.hash INTO entry.number, entry.previous
            FROM "leadprotect".lead_access_audit_seals AS s WHERE s.territory IS NULL ORDER BY s.number DESC LIMIT 1;
          ELSE
            SELECT s.number, s.hash INTO entry.number, entry.previous
            FROM "leadprotect".lead_access_audit_seals AS s WHERE s.territory = entry.territory ORDER BY s.number DESC LIMIT 1;
          END IF;
          entry.number := coalesce(entry.number, 0) + 1;
          entry.sealed_by := session_user;
          entry.transaction_id := pg_current_xact_id();
          -- what ids::text writes, in a fifth of its time
          SELECT '{' || coalesce(string_agg(concat('[', lower(r), ',', upper(r), ')'), ','), '') || '}' INTO numbers
          FROM unnest(entry.ids) AS r;
          -- leadprotect audit verify makes the same text of the same fields
          entry.hash := sha256(coalesce(entry.previous, '') || sha256(convert_to(json_build_array(
            'lp-seal-1', entry.territory, entry.number, entry.run, entry.month, entry.row_count, numbers,
            encode(entry.content, 'hex'), encode(entry.row_checks, 'hex'),
            entry.first_at AT TIME ZONE 'Etc/UTC', entry.last_at AT TIME ZONE 'Etc/UTC', entry.sealed_at AT TIME ZONE 'Etc/UTC',
            entry.sealed_by, entry.origin, entry.snapshot::text, entry.transaction_id::text, entry.last_number,
            entry.settled_until AT TIME ZONE 'Etc/UTC', entry.detached_table)::text, 'UTF8')));
          -- each by its name: entry.* would copy the whole entry, which is long, for each of them
          INSERT INTO "leadprotect".lead_access_audit_seals (
            territory, number, hash, previous, run, month, row_count, ids, content, row_checks, first_at, last_at,
            sealed_at, sealed_by, origin, snapshot, transaction_id, last_number, settled_until, detached_table)
          VALUES (
            entry.territory, entry.number, entry.hash, entry.previous, entry.run, entry.month, entry.row_count,
            entry.ids, entry.content, entry.row_checks, entry.first_at, entry.last_at, entry.sealed_at,
            entry.sealed_by, entry.origin, entry.snapshot, entry.transaction_id, entry.last_number,
            entry.settled_until, entry.detached_table);
          -- a log that is shipped elsewhere keeps the newest hash out of everybody's reach
          RAISE LOG 'leadprotect seal: territory %, number %, hash %',
            coalesce(quote_ident(entry.territory), 'none'), entry.number, encode(entry.hash, 'hex');
          RETURN entry;
        END
        $$;

COMMENT ON FUNCTION leadprotect.append_audit_seal(entry leadprotect.lead_access_audit_seals) IS 'Links one seal to its chain, and writes its hash to the server''s log';

REVOKE ALL ON FUNCTION leadprotect.append_audit_seal(entry leadprotect.lead_access_audit_seals) FROM PUBLIC;

-- function seal_audit, lp_0004_expand_seals

CREATE FUNCTION leadprotect.seal_audit(rows_per_seal integer DEFAULT 10000) RETURNS TABLE(territory text, number bigint, hash bytea, sealed bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET jit TO 'off'
    SET "DateStyle" TO 'ISO'
    SET enable_hashagg TO 'off'
    AS $$
        #variable_conflict use_column
        DECLARE
          began timestamptz;
          codes text[] := ARRAY(SELECT t.code FROM "leadprotect".territories AS t);
          newest_number bigint;
          here text := "leadprotect".audit_origin();
          before "leadprotect".lead_access_audit_seals;
          known_here boolean;
          open_from timestamptz;
          done int8multirange;
          entry "leadprotect".lead_access_audit_seals;
          part record;
        BEGIN
          IF pg_current_xact_id_if_assigned() IS NOT NULL
            OR current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'seal_audit needs a transaction of its own, in READ COMMITTED' USING ERRCODE = 'LP422';
          ELSIF rows_per_seal IS NULL OR rows_per_seal NOT BETWEEN 1 AND 100000 THEN
            RAISE EXCEPTION 'rows per seal: % is not between 1 and 100000', rows_per_seal USING ERRCODE = 'LP422';
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          -- in this order: whoever gets his transaction id after us has a later time and number
          began := clock_timestamp();
          newest_number := (SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END
                            FROM "leadprotect".lead_access_audit_id_seq AS q);
          PERFORM pg_current_xact_id();
          SELECT s.* INTO before FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.detached_table IS NULL ORDER BY s.run DESC LIMIT 1;
          known_here := before.origin IS NOT DISTINCT FROM here;
          open_from := coalesce(
            date_trunc('month', before.settled_until - interval '1 minute', 'Etc/UTC'), '-infinity');
          -- what was sealed here is told by its transaction, what was sealed in another place by its number
          done := "leadprotect".sealed_numbers(
            CASE WHEN isfinite(open_from) THEN (open_from AT TIME ZONE 'Etc/UTC')::date END, NULL,
            CASE WHEN known_here THEN here END);
          entry.run := coalesce(before.run, 0) + 1;
          entry.sealed_at := began;
          entry.origin := here;
          entry.last_number := newest_number;
          FOR part IN
            WITH state AS MATERIALIZED (
              -- a number in the place of a code: rows are sorted in half the time. Codes of ours, and what else there is
              SELECT pg_current_snapshot() AS snapshot, "leadprotect".audit_settled_until() AS settled_until,
                     codes || ARRAY(SELECT DISTINCT a.territory FROM "leadprotect".lead_access_audit AS a
                                    WHERE a.at >= open_from AND a.territory <> ALL (codes)) AS codes
            ), fresh AS (
              -- OFFSET keeps this a step of its own: the sort then moves a hash for each row, not the row
              SELECT coalesce(array_position((SELECT state.codes FROM state), a.territory), 0) AS place,
                     date_trunc('month', a.at AT TIME ZONE 'Etc/UTC')::date AS month, a.id, a.at,
                     sha256(convert_to(ARRAY[
                       'lp-row-1', a.id::text, a.transaction_id::text, (a.at AT TIME ZONE 'Etc/UTC')::text, a.lead_id::text,
                       a.user_id::text, a.login::text, a.role::text, a.territory, a.action::text, a.outcome::text,
                       a.reason, a.note, a.correlation_id, a.basis]::text, 'UTF8')) AS hash
              FROM "leadprotect".lead_access_audit AS a
              WHERE a.at >= open_from
                AND (NOT known_here
                  OR pg_visible_in_snapshot(a.transaction_id, (SELECT state.snapshot FROM state))
                    AND NOT pg_visible_in_snapshot(a.transaction_id, before.snapshot))
                AND NOT done @> a.id
              OFFSET 0
            ), counted AS (
              SELECT f.*, (row_number() OVER (PARTITION BY f.place, f.month ORDER BY f.id) - 1) / rows_per_seal AS slice
              FROM fresh AS f
            ), slices AS (
              -- joined in the order in which they come, which holds as long as nothing is hashed: an order for each
              -- aggregate would sort the rows once more for each
              SELECT c.place, c.month, c.slice, count(*) AS row_count,
                     range_agg(int8range(c.id, c.id + 1)) AS ids,
                     sha256(string_agg(c.hash, '')) AS content,
                     string_agg(substring(c.hash FOR 4), '') AS row_checks,
                     min(c.at) AS first_at, max(c.at) AS last_at
              FROM (SELECT * FROM counted ORDER BY place, month, slice, id) AS c
              GROUP BY c.place, c.month, c.slice
            )
            SELECT state.snapshot, state.settled_until, state.codes[s.place] AS territory, s.*
            FROM state LEFT JOIN slices AS s ON true
            ORDER BY s.place, s.month, s.slice
          LOOP
            entry.snapshot := part.snapshot;
            entry.settled_until := part.settled_until;
            IF part.row_count IS NOT NULL THEN
              entry.territory := part.territory;
              entry.month := part.month;
              entry.row_count := part.row_count;
              entry.ids := part.ids;
              entry.content := part.content;
              entry.row_checks := part.row_checks;
              entry.first_at := part.first_at;
              entry.last_at := part.last_at;
              entry := "leadprotect".append_audit_seal(entry);
            END IF;
          END LOOP;
          -- a run without new rows leaves its mark in every chain, too: until then, nothing else was there
          entry.month := (date_trunc('month', began, 'Etc/UTC') AT TIME ZONE 'Etc/UTC')::date;
          entry.row_count := 0;
          entry.ids := '{}';
          entry.content := sha256('');
          entry.row_checks := '';
          entry.first_at := NULL;
          entry.last_at := NULL;
          FOR part IN
            SELECT chain.territory
            FROM (SELECT NULL AS territory UNION SELECT t.code FROM "leadprotect".territories AS t
                  UNION SELECT s.territory FROM "leadprotect".lead_access_audit_seals AS s) AS chain
            WHERE NOT EXISTS (
              SELECT FROM "leadprotect".lead_access_audit_seals AS s
              WHERE s.run = entry.run AND s.detached_table IS NULL AND s.territory IS NOT DISTINCT FROM chain.territory)
            ORDER BY chain.territory NULLS FIRST
          LOOP
            entry.territory := part.territory;
            entry := "leadprotect".append_audit_seal(entry);
          END LOOP;
          RETURN QUERY
            SELECT s.territory, max(s.number), (array_agg(s.hash ORDER BY s.number DESC))[1], sum(s.row_count)::bigint
            FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.run = entry.run AND s.detached_table IS NULL
            GROUP BY s.territory ORDER BY s.territory NULLS FIRST;
        END
        $$;

COMMENT ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) IS 'Seals every row whose transaction has ended; returns the newest seal of each chain. Keep these hashes elsewhere';

REVOKE ALL ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.seal_audit(rows_per_seal integer) TO leadprotect_operator;

-- function detach_audit_month, lp_0004_expand_seals

CREATE FUNCTION leadprotect.detach_audit_month(month date) RETURNS TABLE(detached name, row_count bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'Etc/UTC'
    SET lock_timeout TO '100ms'
    SET row_security TO 'on'
    AS $_$
        #variable_conflict use_column
        DECLARE
          span record;
          done int8multirange;
          unsealed bigint;
          entry "leadprotect".lead_access_audit_seals;
          chain record;
        BEGIN
          SELECT * INTO span FROM "leadprotect".audit_partitions() AS p
          WHERE p.from_month = detach_audit_month.month::timestamptz;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'no partition of the audit begins with %', to_char(detach_audit_month.month, 'YYYY-MM')
              USING ERRCODE = 'LP422', HINT = 'SELECT * FROM audit_partitions() lists them.';
          ELSIF span.to_month > clock_timestamp() THEN
            RAISE EXCEPTION '% is not over: its rows are still being written', span.name USING ERRCODE = 'LP422';
          ELSIF span.to_month > "leadprotect".audit_settled_until() - interval '1 minute' THEN
            RAISE EXCEPTION '% is not sealed to its end', span.name USING ERRCODE = 'LP422',
              HINT = 'A run of leadprotect audit seal must have begun after the month, and every transaction older than it have ended.';
          END IF;
          done := "leadprotect".sealed_numbers(span.from_month::date, span.to_month::date, NULL);
          EXECUTE format('SELECT count(*) FILTER (WHERE NOT $1 @> a.id), count(*) FROM %s AS a', span.part)
            INTO unsealed, row_count USING done;
          IF unsealed > 0 THEN
            RAISE EXCEPTION '% holds % rows that no seal names', span.name, unsealed USING ERRCODE = 'LP422',
              HINT = 'leadprotect audit seal seals new rows; what it leaves out, leadprotect audit verify explains.';
          END IF;
          LOCK TABLE "leadprotect".lead_access_audit_seals IN SHARE ROW EXCLUSIVE MODE;
          EXECUTE format('ALTER TABLE "leadprotect".lead_access_audit DETACH PARTITION %s', span.part);
          EXECUTE format('GRANT SELECT ON %s TO "leadprotect_auditor"', span.part);
          EXECUTE format('COMMENT ON TABLE %s IS %L', span.part,
            format('Detached from lead_access_audit on %s by %s', current_date, session_user));
          SELECT * INTO entry FROM "leadprotect".lead_access_audit_seals AS s ORDER BY s.run DESC LIMIT 1;
          entry.sealed_at := clock_timestamp();
          entry.ids := '{}';
          entry.content := sha256('');
          entry.row_checks := '';
          entry.first_at := NULL;
          entry.last_at := NULL;
          entry.detached_table := span.name;
          FOR chain IN
            SELECT s.territory, s.month, sum(s.row_count) AS row_count FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.month >= span.from_month::date AND s.month < span.to_month::date AND s.detached_table IS NULL
            GROUP BY s.territory, s.month ORDER BY s.territory NULLS FIRST, s.month
          LOOP
            entry.territory := chain.territory;
            entry.month := chain.month;
            entry.row_count := chain.row_count;
            PERFORM "leadprotect".append_audit_seal(entry);
          END LOOP;
          detached := span.name;
          RETURN NEXT;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.detach_audit_month(month date) IS 'Detaches the sealed partition that begins with this month; every chain says so. No row is deleted';

REVOKE ALL ON FUNCTION leadprotect.detach_audit_month(month date) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.detach_audit_month(month date) TO leadprotect_operator;

-- function audit_number_gaps, lp_0004_expand_seals

CREATE FUNCTION leadprotect.audit_number_gaps(from_month date DEFAULT NULL::date, before_month date DEFAULT NULL::date) RETURNS TABLE(first_number bigint, last_number bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_column
        DECLARE
          here text := "leadprotect".audit_origin();
          -- numbers up to here were drawn by transactions that have ended
          drawn bigint := (
            SELECT max(s.last_number) FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.origin <> here OR s.transaction_id < pg_snapshot_xmin(pg_current_snapshot()));
          before date := (SELECT max(s.month) FROM "leadprotect".lead_access_audit_seals AS s
                          WHERE s.month < from_month AND s.detached_table IS NULL);
          after date := (SELECT min(s.month) FROM "leadprotect".lead_access_audit_seals AS s
                         WHERE s.month >= before_month AND s.detached_table IS NULL);
          done int8multirange := "leadprotect".sealed_numbers(before, (after + interval '1 month')::date, NULL);
          first_asked bigint := 1;
          open_from timestamptz := (
            SELECT date_trunc('month', max(s.settled_until) - interval '1 minute', 'Etc/UTC')
            FROM "leadprotect".lead_access_audit_seals AS s);
        BEGIN
          IF before IS NOT NULL THEN
            SELECT least(max(upper(s.ids)) FILTER (WHERE s.month = before), min(lower(s.ids)) FILTER (WHERE s.month > before))
            INTO first_asked FROM "leadprotect".lead_access_audit_seals AS s
            WHERE s.month >= before AND (before_month IS NULL OR s.month < before_month);
          END IF;
          IF after IS NOT NULL THEN
            SELECT least(drawn, greatest(
              max(upper(s.ids)) FILTER (WHERE s.month < after), min(lower(s.ids)) FILTER (WHERE s.month = after)) - 1)
            INTO drawn FROM "leadprotect".lead_access_audit_seals AS s
            WHERE (from_month IS NULL OR s.month >= from_month) AND s.month <= after;
          END IF;
          IF drawn >= first_asked THEN
            RETURN QUERY
              SELECT lower(gap), upper(gap) - 1
              FROM unnest(int8multirange(int8range(first_asked, drawn, '[]')) - done - coalesce(
                (SELECT range_agg(int8range(a.id, a.id, '[]')) FROM "leadprotect".lead_access_audit AS a
                 WHERE a.at >= greatest(open_from, before::timestamp AT TIME ZONE 'Etc/UTC')
                   AND (after IS NULL OR a.at < (after + interval '1 month') AT TIME ZONE 'Etc/UTC')
                   AND a.id <= drawn AND NOT done @> a.id), '{}')) AS gap;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_number_gaps(from_month date, before_month date) IS 'Numbers without a row, of these months alone (NULL: of all): the server''s log tells of each denial that was raised (leadprotect denial N)';

REVOKE ALL ON FUNCTION leadprotect.audit_number_gaps(from_month date, before_month date) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.audit_number_gaps(from_month date, before_month date) TO leadprotect_auditor;

-- table audit_anchors, lp_0004_expand_seals

CREATE TABLE leadprotect.audit_anchors (
    anchored_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    anchored_by name DEFAULT SESSION_USER NOT NULL
);

ALTER TABLE ONLY leadprotect.audit_anchors FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.audit_anchors IS 'When count and newest hash of the chains were written elsewhere: leadprotect audit anchor notes it, doctor reminds';
COMMENT ON COLUMN leadprotect.audit_anchors.anchored_at IS 'when';
COMMENT ON COLUMN leadprotect.audit_anchors.anchored_by IS 'the login that wrote it';

ALTER TABLE ONLY leadprotect.audit_anchors
    ADD CONSTRAINT audit_anchors_pkey PRIMARY KEY (anchored_at);

ALTER TABLE leadprotect.audit_anchors ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.audit_anchors TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_read ON leadprotect.audit_anchors FOR SELECT TO leadprotect_auditor USING (true);

GRANT SELECT ON TABLE leadprotect.audit_anchors TO leadprotect_auditor;

-- function note_anchor, lp_0004_expand_seals

CREATE FUNCTION leadprotect.note_anchor() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".audit_anchors DEFAULT VALUES;
        END
        $$;

COMMENT ON FUNCTION leadprotect.note_anchor() IS 'Notes that count and newest hash of the chains were written elsewhere, for auditors';

REVOKE ALL ON FUNCTION leadprotect.note_anchor() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.note_anchor() TO leadprotect_auditor;

-- =================================================================================================
-- Transition
--
-- From expand to contract, activities make owners: the triggers of that time keep assignments
-- current while the backfill walks, and note who writes without a context. The functions stay after
-- contract, their triggers do not: undoing contract needs them.
-- =================================================================================================

-- function earlier_activity, lp_0009_expand_indexes

CREATE FUNCTION leadprotect.earlier_activity(of_source text, one text, other text) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF of_source IS NOT DISTINCT FROM NULL THEN
            DECLARE this "public"."activities"."id"%TYPE := one; that "public"."activities"."id"%TYPE := other; BEGIN RETURN this < that; END;
          END IF;
          RETURN one < other;
        END
        $$;

COMMENT ON FUNCTION leadprotect.earlier_activity(of_source text, one text, other text) IS 'Whether the first of two activities of one table and time is the lower one';

REVOKE ALL ON FUNCTION leadprotect.earlier_activity(of_source text, one text, other text) FROM PUBLIC;

-- function in_transition, lp_0009_expand_indexes

CREATE FUNCTION leadprotect.in_transition() RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN EXISTS (
            SELECT FROM pg_trigger AS t
            JOIN (VALUES ('own_active_lead', '"public"."activities"'::regclass, 'leadprotect_transition')) AS s (function, host, name) ON t.tgrelid = s.host AND t.tgname = s.name);
        END
        $$;

COMMENT ON FUNCTION leadprotect.in_transition() IS 'Whether activities make owners: from expand to contract; afterwards owners change by hand only';

REVOKE ALL ON FUNCTION leadprotect.in_transition() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.in_transition() TO leadprotect_reader;

-- table unsettled_leads, lp_0009_expand_indexes

CREATE TABLE leadprotect.unsettled_leads (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    lead_id uuid NOT NULL
);

ALTER TABLE ONLY leadprotect.unsettled_leads FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.unsettled_leads IS 'Leads that changed while a backfill may have read them: it looks at them again at its end';
COMMENT ON COLUMN leadprotect.unsettled_leads.id IS 'no meaning: notes of one lead may be several';
COMMENT ON COLUMN leadprotect.unsettled_leads.lead_id IS 'the lead';

ALTER TABLE ONLY leadprotect.unsettled_leads
    ADD CONSTRAINT unsettled_leads_pkey PRIMARY KEY (id);

ALTER TABLE leadprotect.unsettled_leads ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.unsettled_leads TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.unsettled_leads FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.unsettled_leads TO leadprotect_reader;
GRANT SELECT ON TABLE leadprotect.unsettled_leads TO leadprotect_operator;

-- function note_unsettled, lp_0009_expand_indexes

CREATE FUNCTION leadprotect.note_unsettled(lead uuid) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          -- the jobs come with a later revision; before it, every backfill is still to come
          IF to_regclass('"leadprotect".backfill_jobs') IS NOT NULL THEN
            IF NOT EXISTS (SELECT FROM "leadprotect".backfill_jobs AS j WHERE j.ended_at IS NULL) THEN
              RETURN;
            END IF;
            -- nor after contract, when activities make no owners any more
            IF NOT "leadprotect".in_transition() THEN
              RETURN;
            END IF;
          END IF;
          INSERT INTO "leadprotect".unsettled_leads (lead_id) VALUES (lead);
        END
        $$;

COMMENT ON FUNCTION leadprotect.note_unsettled(lead uuid) IS 'Notes a lead that changed while a backfill may have read it; nothing where no backfill runs';

REVOKE ALL ON FUNCTION leadprotect.note_unsettled(lead uuid) FROM PUBLIC;

-- function derived_owners, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.derived_owners(leads uuid[]) RETURNS TABLE(lead_id uuid, user_id uuid, activity_at timestamp with time zone, activity_id bigint, activity_source text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT wanted.lead_id, newest.user_id, newest.at, newest.id, newest.source FROM unnest(derived_owners.leads) AS wanted (lead_id), LATERAL (SELECT v."user_id"::uuid AS user_id, v."created_at" AS at, v."id" AS id, NULL::text AS source FROM "public"."activities" AS v WHERE v."lead_id" = wanted.lead_id AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest;
        END
        $$;

COMMENT ON FUNCTION leadprotect.derived_owners(leads uuid[]) IS 'For each lead its newest qualifying activity, which makes the owner; no row: there is none';

REVOKE ALL ON FUNCTION leadprotect.derived_owners(leads uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.derived_owners(leads uuid[]) TO leadprotect_owner;

-- table contextless_writes, lp_0010_expand_lead_triggers

CREATE TABLE leadprotect.contextless_writes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    login name DEFAULT SESSION_USER NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    host_table text NOT NULL,
    with_context boolean NOT NULL
);

ALTER TABLE ONLY leadprotect.contextless_writes FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.contextless_writes IS 'Writes to the host''s tables without a context, or by a login that owns them: one note per login and minute';
COMMENT ON COLUMN leadprotect.contextless_writes.id IS 'no meaning';
COMMENT ON COLUMN leadprotect.contextless_writes.login IS 'session_user';
COMMENT ON COLUMN leadprotect.contextless_writes.at IS 'when';
COMMENT ON COLUMN leadprotect.contextless_writes.host_table IS 'where it wrote';
COMMENT ON COLUMN leadprotect.contextless_writes.with_context IS 'true: noted because the login owns the table';

ALTER TABLE ONLY leadprotect.contextless_writes
    ADD CONSTRAINT contextless_writes_pkey PRIMARY KEY (id);

CREATE INDEX ix_contextless_writes_login ON leadprotect.contextless_writes USING btree (login, at);

ALTER TABLE leadprotect.contextless_writes ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.contextless_writes TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

GRANT SELECT ON TABLE leadprotect.contextless_writes TO leadprotect_reader;

-- function note_contextless_write, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.note_contextless_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          -- a territory that nobody knows is none: row security will admit it nowhere
          declared boolean := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)) IS NOT NULL
            AND EXISTS (SELECT FROM "leadprotect".territories AS t WHERE t.code = pg_catalog.current_setting('app.territory', true));
        BEGIN
          IF declared AND NOT pg_has_role(
            "leadprotect".acting_role(), (SELECT c.relowner FROM pg_class AS c WHERE c.oid = '"public"."leads"'::regclass), 'USAGE')
          THEN
            RETURN NULL;
          END IF;
          IF NOT EXISTS (
            SELECT FROM "leadprotect".contextless_writes AS w
            WHERE w.login = session_user AND w.with_context = declared
              AND w.at > clock_timestamp() - interval '60 seconds')
          THEN
            INSERT INTO "leadprotect".contextless_writes (host_table, with_context)
            VALUES (TG_RELID::regclass::text, declared);
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.note_contextless_write() IS 'Trigger of the transition: notes writes without a context, and those of the owner of the table';

REVOKE ALL ON FUNCTION leadprotect.note_contextless_write() FROM PUBLIC;

-- function own_moved_lead, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.own_moved_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          INSERT INTO "leadprotect".user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
          SELECT NEW."id", t.code,
                 CASE WHEN (OLD."territory" IS NULL OR OLD."territory" = '') THEN newest.user_id END,
                 CASE WHEN (OLD."territory" IS NULL OR OLD."territory" = '') THEN 'activity' ELSE 'moved' END,
                 newest.activity_at, newest.activity_id, newest.activity_source
          FROM "leadprotect".territories AS t
          LEFT JOIN "leadprotect".derived_owners(ARRAY[NEW."id"]) AS newest ON true
          WHERE t.code = NEW."territory" AND (NOT (OLD."territory" IS NULL OR OLD."territory" = '') OR newest.user_id IS NOT NULL)
          ON CONFLICT (lead_id, territory) DO NOTHING;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_moved_lead() IS 'Trigger of the transition: a lead that came into a territory has no owner there until a newer activity';

REVOKE ALL ON FUNCTION leadprotect.own_moved_lead() FROM PUBLIC;

-- function own_named_lead, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.own_named_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          here text := (SELECT t.code FROM "leadprotect".territories AS t WHERE t.code = NEW."territory");
          derived record;
        BEGIN
          IF here IS NULL OR TG_OP = 'INSERT' AND NULL::text IS NULL
            OR TG_OP = 'UPDATE' AND NULL::text IS NOT DISTINCT FROM NULL::text
          THEN
            RETURN NULL;
          END IF;
          SELECT * INTO derived FROM "leadprotect".derived_owners(ARRAY[NEW."id"]);
          IF derived.user_id IS NULL THEN
            DELETE FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = NEW."id" AND a.territory = here
              AND (false OR a.source IN ('backfill', 'activity') AND a.activity_id IS NULL);
            -- a slice of the backfill may be about to rest on what this statement takes away
            PERFORM "leadprotect".note_unsettled(NEW."id");
          ELSIF false OR derived.activity_id IS NULL THEN
            INSERT INTO "leadprotect".user_lead_assignments AS a
              (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
            VALUES (NEW."id", here, derived.user_id, 'activity', derived.activity_at, derived.activity_id,
                    derived.activity_source)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                  assigned_by = NULL, activity_at = excluded.activity_at, activity_id = excluded.activity_id,
                  activity_source = excluded.activity_source
              WHERE false OR a.source = 'moved' OR a.source IN ('backfill', 'activity') AND a.activity_id IS NULL;
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_named_lead() IS 'Trigger of the transition: who stands in the lead''s own column becomes its owner at once';

REVOKE ALL ON FUNCTION leadprotect.own_named_lead() FROM PUBLIC;

-- function own_active_lead, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.own_active_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        DECLARE
          -- the activity as the derivation reads it: empty where it does not qualify
          was "leadprotect".user_lead_assignments;
          fresh "leadprotect".user_lead_assignments;
        BEGIN
          IF TG_ARGV[0] IS NOT DISTINCT FROM NULL THEN
            IF TG_OP <> 'INSERT' THEN
              SELECT v."lead_id", v."user_id", v."created_at", v."id" INTO was.lead_id, was.user_id, was.activity_at, was.activity_id FROM (SELECT OLD.*) AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL;
            END IF;
            IF TG_OP <> 'DELETE' THEN
              SELECT v."lead_id", v."user_id", v."created_at", v."id" INTO fresh.lead_id, fresh.user_id, fresh.activity_at, fresh.activity_id FROM (SELECT NEW.*) AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL;
            END IF;
          END IF;
          was.activity_source := TG_ARGV[0];
          fresh.activity_source := TG_ARGV[0];
          IF TG_OP = 'UPDATE' AND was IS NOT DISTINCT FROM fresh THEN
            RETURN NULL;
          END IF;
          IF was.lead_id IS NOT NULL THEN
            PERFORM FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = was.lead_id AND a.source IN ('backfill', 'activity')
                AND a.activity_id = was.activity_id AND a.activity_source IS NOT DISTINCT FROM was.activity_source FOR UPDATE;
            IF FOUND THEN
              UPDATE "leadprotect".user_lead_assignments AS a
              SET user_id = newest.user_id, source = 'activity', assigned_at = statement_timestamp(),
                  activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
              FROM "leadprotect".derived_owners(ARRAY[was.lead_id]) AS newest
              WHERE a.lead_id = was.lead_id AND a.source IN ('backfill', 'activity')
                AND a.activity_id = was.activity_id AND a.activity_source IS NOT DISTINCT FROM was.activity_source;
            ELSE
              -- a slice of the backfill may be about to rest on what this statement takes away
              PERFORM "leadprotect".note_unsettled(was.lead_id);
            END IF;
          END IF;
          -- one in the future makes no owner until its time has come; the backfill and the gate see it then.
          -- By the clock: an activity may take its time from it, after its statement began
          IF fresh.user_id IS NOT NULL AND (fresh.activity_at <= clock_timestamp()) IS NOT FALSE THEN
            INSERT INTO "leadprotect".user_lead_assignments AS a
              (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
            SELECT fresh.lead_id, t.code, fresh.user_id, 'activity', fresh.activity_at, fresh.activity_id, fresh.activity_source
            FROM "leadprotect".host_lead(fresh.lead_id) AS l (territory)
            JOIN "leadprotect".territories AS t ON t.code = l.territory
            WHERE NOT false OR NOT EXISTS (
              SELECT FROM "leadprotect".derived_owners(ARRAY[fresh.lead_id]) AS d WHERE d.activity_id IS NULL)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                  activity_at = excluded.activity_at, activity_id = excluded.activity_id,
                  activity_source = excluded.activity_source
              WHERE a.source IN ('backfill', 'activity', 'moved')
                -- an owner that the lead's own column names has no activity
                AND NOT (false AND a.source <> 'moved' AND a.activity_id IS NULL)
                AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                  OR a.activity_at < excluded.activity_at
                  OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                     AND (a.activity_id IS NULL OR coalesce(a.activity_source, '') > coalesce(excluded.activity_source, '')
                       OR a.activity_source IS NOT DISTINCT FROM excluded.activity_source
                          AND "leadprotect".earlier_activity(a.activity_source, a.activity_id::text, excluded.activity_id::text)));
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_active_lead() IS 'Trigger of the transition: a new qualifying activity makes the owner at once';

REVOKE ALL ON FUNCTION leadprotect.own_active_lead() FROM PUBLIC;

-- function require_transition, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.require_transition() RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF NOT "leadprotect".in_transition() THEN
            RAISE EXCEPTION 'contract is applied: activities make no owners any more, they change by hand only'
              USING ERRCODE = 'LP422';
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.require_transition() IS 'Raises where activities make no owners any more';

REVOKE ALL ON FUNCTION leadprotect.require_transition() FROM PUBLIC;

-- =================================================================================================
-- Shadow
--
-- Before contract nothing is denied; what would be is noted here while somebody lets it:
-- `leadprotect shadow` puts the triggers on leads and lead_tables, and takes them away. A statement
-- is decided as contract will, and nothing that goes wrong in that reaches it. Operators read the
-- sums.
-- =================================================================================================

-- table shadow_runs, lp_0011_expand_activity_triggers

CREATE TABLE leadprotect.shadow_runs (
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    started_by name DEFAULT SESSION_USER NOT NULL,
    host_rls text NOT NULL,
    exempt_roles name[] NOT NULL,
    ended_at timestamp with time zone
);

ALTER TABLE ONLY leadprotect.shadow_runs FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.shadow_runs IS 'When a shadow ran before contract: statements are decided and noted, none is denied';
COMMENT ON COLUMN leadprotect.shadow_runs.started_at IS 'from when all of it was noted';
COMMENT ON COLUMN leadprotect.shadow_runs.started_by IS 'session_user';
COMMENT ON COLUMN leadprotect.shadow_runs.host_rls IS 'the setting that contract was expected to have';
COMMENT ON COLUMN leadprotect.shadow_runs.exempt_roles IS 'the setting that contract was expected to have';
COMMENT ON COLUMN leadprotect.shadow_runs.ended_at IS 'when it was stopped, or contract came; NULL: it runs';

ALTER TABLE ONLY leadprotect.shadow_runs
    ADD CONSTRAINT shadow_runs_pkey PRIMARY KEY (started_at);

ALTER TABLE leadprotect.shadow_runs ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.shadow_runs TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

-- table shadow_notes, lp_0011_expand_activity_triggers

CREATE TABLE leadprotect.shadow_notes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    login name DEFAULT SESSION_USER NOT NULL,
    role name NOT NULL,
    application text NOT NULL,
    kind text NOT NULL,
    host_table text NOT NULL,
    reason text NOT NULL,
    first_at timestamp with time zone NOT NULL,
    last_at timestamp with time zone NOT NULL,
    times bigint NOT NULL
);

ALTER TABLE ONLY leadprotect.shadow_notes FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.shadow_notes IS 'What contract would have denied, and who was seen reading: at most three notes of a kind and minute, added up by the hour';
COMMENT ON COLUMN leadprotect.shadow_notes.id IS 'no meaning';
COMMENT ON COLUMN leadprotect.shadow_notes.login IS 'session_user';
COMMENT ON COLUMN leadprotect.shadow_notes.role IS 'who acted: the role that SET ROLE chose, or the login';
COMMENT ON COLUMN leadprotect.shadow_notes.application IS 'application_name, its first 60 characters';
COMMENT ON COLUMN leadprotect.shadow_notes.kind IS 'INSERT, UPDATE, DELETE, TRUNCATE, COPY, or SELECT for who was seen reading';
COMMENT ON COLUMN leadprotect.shadow_notes.host_table IS 'the table of the host';
COMMENT ON COLUMN leadprotect.shadow_notes.reason IS 'a reason of the decision, or not_member, moved, copy, truncate, not_judged (the decision failed), read';
COMMENT ON COLUMN leadprotect.shadow_notes.first_at IS 'the first of them';
COMMENT ON COLUMN leadprotect.shadow_notes.last_at IS 'the last of them';
COMMENT ON COLUMN leadprotect.shadow_notes.times IS 'how many statements, or rows of a table of lead_tables, at least';

ALTER TABLE ONLY leadprotect.shadow_notes
    ADD CONSTRAINT shadow_notes_pkey PRIMARY KEY (id);

CREATE INDEX ix_shadow_notes_last ON leadprotect.shadow_notes USING btree (last_at);

ALTER TABLE leadprotect.shadow_notes ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.shadow_notes TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

-- function shadow_note, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_note(kind text, target regclass, reason text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          acts name := "leadprotect".acting_role();
          host text := target::text;
          now timestamptz := clock_timestamp();
          counter text := 'leadprotect.shadow_'
            || to_hex(hashtextextended(concat_ws(' ', current_database(), session_user, acts, kind, host, reason), 0));
          kept text[] := string_to_array(nullif(current_setting(counter, true), ''), ' ');
          times bigint := coalesce(kept[2]::bigint, 0) + 1;
        BEGIN
          IF reason IS NULL THEN
            RETURN;
          ELSIF kept[1]::numeric > extract(epoch FROM now) - 60
            OR current_setting('transaction_isolation') <> 'serializable' AND (
              SELECT count(*) FROM "leadprotect".shadow_notes AS n
              WHERE n.last_at > now - interval '1 minute' AND n.login = session_user AND n.role = acts
                AND n.kind = kind AND n.host_table = host AND n.reason = reason) >= 3
          THEN
            PERFORM set_config(counter, concat_ws(' ', coalesce(kept[1], '0'), times), false);
            RETURN;
          END IF;
          INSERT INTO "leadprotect".shadow_notes (role, application, kind, host_table, reason, first_at, last_at, times)
          VALUES (acts, coalesce("leadprotect".bounded(left(current_setting('application_name'), 60)), ''), kind, host, reason,
                  coalesce(to_timestamp(nullif(kept[1], '0')::float8), now), now, times);
          PERFORM set_config(counter, concat_ws(' ', extract(epoch FROM now), 0), false);
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_note(kind text, target regclass, reason text) IS 'Notes what contract would have denied: nothing where there is no reason, a row for a session, a kind and a minute at the most';

REVOKE ALL ON FUNCTION leadprotect.shadow_note(kind text, target regclass, reason text) FROM PUBLIC;

-- function shadow_failed, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_failed(kind text, target regclass, why text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          PERFORM "leadprotect".shadow_note(kind, target, 'not_judged');
          RAISE LOG 'leadprotect shadow could not judge % of %: %', kind, target, why;
        EXCEPTION WHEN OTHERS THEN
          RAISE LOG 'leadprotect shadow could not note % of %: %', kind, target, SQLERRM;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_failed(kind text, target regclass, why text) IS 'Notes that a statement could not be judged, and tells the server''s log why; never fails itself';

REVOKE ALL ON FUNCTION leadprotect.shadow_failed(kind text, target regclass, why text) FROM PUBLIC;

-- function shadow_saw, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_saw(login name, application text, host_table text, times bigint, first_at timestamp with time zone, last_at timestamp with time zone) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 INSERT INTO leadprotect.shadow_notes (login, role, application, kind, host_table, reason, first_at, last_at, times)
   VALUES (shadow_saw.login, shadow_saw.login, "left"(shadow_saw.application, 60), 'SELECT'::text, shadow_saw.host_table, 'read'::text, shadow_saw.first_at, shadow_saw.last_at, shadow_saw.times);
END;

COMMENT ON FUNCTION leadprotect.shadow_saw(login name, application text, host_table text, times bigint, first_at timestamp with time zone, last_at timestamp with time zone) IS 'Notes that a login was seen reading a table of the host, so many times';

REVOKE ALL ON FUNCTION leadprotect.shadow_saw(login name, application text, host_table text, times bigint, first_at timestamp with time zone, last_at timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.shadow_saw(login name, application text, host_table text, times bigint, first_at timestamp with time zone, last_at timestamp with time zone) TO leadprotect_operator;

-- function shadow_run, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_run() RETURNS SETOF leadprotect.shadow_runs
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT r.started_at,
     r.started_by,
     r.host_rls,
     r.exempt_roles,
     r.ended_at
    FROM leadprotect.shadow_runs r
   ORDER BY r.started_at DESC
  LIMIT 1;
END;

COMMENT ON FUNCTION leadprotect.shadow_run() IS 'The last shadow that was started; none where none ever was';

REVOKE ALL ON FUNCTION leadprotect.shadow_run() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.shadow_run() TO leadprotect_operator;

-- function shadow_noted, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_noted() RETURNS TABLE(login name, role name, applications text[], kind text, host_table text, reason text, first_at timestamp with time zone, last_at timestamp with time zone, times bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT n.login,
     n.role,
     array_agg(DISTINCT n.application) AS array_agg,
     n.kind,
     n.host_table,
     n.reason,
     min(n.first_at) AS min,
     max(n.last_at) AS max,
     (sum(n.times))::bigint AS sum
    FROM leadprotect.shadow_notes n
   WHERE (n.last_at >= ( SELECT max(r.started_at) AS max
            FROM leadprotect.shadow_runs r))
   GROUP BY n.login, n.role, n.kind, n.host_table, n.reason;
END;

COMMENT ON FUNCTION leadprotect.shadow_noted() IS 'What was noted since the last start, added up';

REVOKE ALL ON FUNCTION leadprotect.shadow_noted() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.shadow_noted() TO leadprotect_operator;

-- function shadow_fold, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_fold() RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 WITH gone AS (
          DELETE FROM leadprotect.shadow_notes n
           WHERE (n.last_at < date_trunc('hour'::text, clock_timestamp()))
           RETURNING n.id,
             n.login,
             n.role,
             n.application,
             n.kind,
             n.host_table,
             n.reason,
             n.first_at,
             n.last_at,
             n.times
         )
  INSERT INTO leadprotect.shadow_notes (login, role, application, kind, host_table, reason, first_at, last_at, times)  SELECT g.login,
             g.role,
             g.application,
             g.kind,
             g.host_table,
             g.reason,
             min(g.first_at) AS min,
             max(g.last_at) AS max,
             sum(g.times) AS sum
            FROM gone g
           GROUP BY g.login, g.role, g.application, g.kind, g.host_table, g.reason, (date_trunc('hour'::text, g.last_at));
 DELETE FROM leadprotect.shadow_notes n
   WHERE (n.last_at < ( SELECT max(r.started_at) AS max
            FROM leadprotect.shadow_runs r));
END;

COMMENT ON FUNCTION leadprotect.shadow_fold() IS 'Adds up the notes of each hour that is over, and forgets those from before the last start';

REVOKE ALL ON FUNCTION leadprotect.shadow_fold() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.shadow_fold() TO leadprotect_operator;

-- function shadow_binds, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_binds(target regclass) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN (
            SELECT bool_and(NOT (r.rolsuper OR r.rolbypassrls OR r.rolname = ANY (run.exempt_roles)
              OR NOT (run.host_rls = 'force' OR c.relforcerowsecurity) AND pg_has_role(r.oid, c.relowner, 'USAGE')))
            FROM (SELECT s.* FROM "leadprotect".shadow_runs AS s ORDER BY s.started_at DESC LIMIT 1) AS run, pg_roles AS r, pg_class AS c
            WHERE r.rolname = "leadprotect".acting_role() AND c.oid IN ('"public"."leads"'::regclass, target));
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_binds(target regclass) IS 'Whether contract will bind the acting role on leads, or on a table of lead_tables; NULL where no shadow was started';

REVOKE ALL ON FUNCTION leadprotect.shadow_binds(target regclass) FROM PUBLIC;

-- function shadow_reason, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_reason(lead uuid) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          reason text := "leadprotect".explain_edit(lead);
        BEGIN
          RETURN CASE
            WHEN reason = 'unprotected' THEN NULL
            WHEN reason IN ('owner', 'collaborator') THEN
              CASE WHEN NOT pg_has_role("leadprotect".acting_role(), 'leadprotect_app', 'USAGE') THEN 'not_member' END
            WHEN reason = 'not_found' AND NOT "leadprotect".is_member(pg_catalog.current_setting('app.territory', true)) THEN 'not_member'
            ELSE reason END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_reason(lead uuid) IS 'Why contract would deny an edit of the lead to whoever acts; NULL where it would not';

REVOKE ALL ON FUNCTION leadprotect.shadow_reason(lead uuid) FROM PUBLIC;

-- function shadow_border, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_border(territory text) RETURNS text
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN CASE
            WHEN coalesce(territory, '') = '' OR territory = "leadprotect".admitted_territory() THEN NULL
            WHEN coalesce(pg_catalog.current_setting('app.territory', true), '') = '' THEN 'no_context'
            WHEN NOT "leadprotect".is_member(pg_catalog.current_setting('app.territory', true)) THEN 'not_member'
            ELSE 'not_found' END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_border(territory text) IS 'Why contract would refuse whoever acts a new row of this territory; NULL where it would not';

REVOKE ALL ON FUNCTION leadprotect.shadow_border(territory text) FROM PUBLIC;

-- function shadow_edits, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_edits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        #variable_conflict use_variable
        DECLARE
          leads uuid[];
          reason text;
        BEGIN
          IF "leadprotect".shadow_binds(TG_RELID) THEN
            -- where the column of the owner was changed shadow_lead() has decided, before that made another owner
            IF false THEN
              leads := ARRAY(
                SELECT l."id"::uuid FROM edited AS l LEFT JOIN changed AS c ON c."id" = l."id"
                WHERE NOT (l."territory" IS NULL OR l."territory" = '') AND NULL::text IS NOT DISTINCT FROM NULL::text);
            ELSE
              leads := ARRAY(SELECT l."id"::uuid FROM edited AS l WHERE NOT (l."territory" IS NULL OR l."territory" = ''));
            END IF;
            FOR reason IN
              SELECT DISTINCT "leadprotect".shadow_reason(few.lead) FROM (
                SELECT unnest(leads) AS lead EXCEPT
                SELECT e.lead FROM "leadprotect".editable_among(leads) AS e
                WHERE cardinality(leads) > 1 AND pg_has_role("leadprotect".acting_role(), 'leadprotect_app', 'USAGE') LIMIT 100) AS few
            LOOP
              PERFORM "leadprotect".shadow_note(TG_OP, TG_RELID, reason);
            END LOOP;
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM "leadprotect".shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_edits() IS 'Trigger of a shadow: notes an UPDATE of leads that contract would deny';

REVOKE ALL ON FUNCTION leadprotect.shadow_edits() FROM PUBLIC;

-- function shadow_inserts, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_inserts() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          reason text;
        BEGIN
          IF "leadprotect".shadow_binds(TG_RELID) THEN
            IF current_query() ~* '^\s*copy\M' THEN
              PERFORM "leadprotect".shadow_note('COPY', TG_RELID, 'copy');
            ELSE
              FOR reason IN
                SELECT DISTINCT "leadprotect".shadow_border(l.territory)
                FROM (SELECT DISTINCT l."territory"::text AS territory FROM made AS l) AS l
              LOOP
                PERFORM "leadprotect".shadow_note(TG_OP, TG_RELID, reason);
              END LOOP;
            END IF;
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM "leadprotect".shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_inserts() IS 'Trigger of a shadow: notes new leads that contract would refuse, and COPY';

REVOKE ALL ON FUNCTION leadprotect.shadow_inserts() FROM PUBLIC;

-- function shadow_lead, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          reason text;
          standing uuid;
        BEGIN
          BEGIN
            IF "leadprotect".shadow_binds(TG_RELID) THEN
              IF NOT (OLD."territory" IS NULL OR OLD."territory" = '') THEN
                reason := "leadprotect".shadow_reason(OLD."id");
                -- who writes the column of the owner changes the owner, by the decision about that
                IF TG_OP = 'UPDATE' AND NULL::text IS DISTINCT FROM NULL::text
                  AND coalesce(reason, '') NOT IN ('no_context', 'not_found', 'not_member', 'suspended')
                THEN
                  SELECT a.user_id INTO standing FROM "leadprotect".user_lead_assignments AS a
                    WHERE a.lead_id = OLD."id" AND a.territory = OLD."territory"::text;
                  reason := CASE
                    WHEN (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) IS NOT DISTINCT FROM standing THEN reason
                    WHEN "leadprotect".is_manager() THEN NULL
                    WHEN (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) IS NULL THEN CASE WHEN "leadprotect".explain_edit(OLD."id") <> 'owner' THEN 'not_owner' END
                    WHEN (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) = "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)) THEN CASE WHEN standing IS NOT NULL THEN 'not_owner' END
                    ELSE 'not_manager' END;
                END IF;
                PERFORM "leadprotect".shadow_note(TG_OP, TG_RELID, reason);
              END IF;
              IF TG_OP = 'UPDATE' THEN
                PERFORM "leadprotect".shadow_note(TG_OP, TG_RELID, CASE
                  WHEN (OLD."territory" IS NULL OR OLD."territory" = '') THEN "leadprotect".shadow_border(NEW."territory"::text)
                  WHEN NEW."territory" IS DISTINCT FROM OLD."territory" OR NEW."id" IS DISTINCT FROM OLD."id" THEN 'moved' END);
              END IF;
            END IF;
          EXCEPTION WHEN OTHERS THEN
            PERFORM "leadprotect".shadow_failed(TG_OP, TG_RELID, SQLERRM);
          END;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_lead() IS 'Trigger of a shadow: notes a DELETE of a lead that contract would deny, and a change of its id, territory or owner';

REVOKE ALL ON FUNCTION leadprotect.shadow_lead() FROM PUBLIC;

-- function shadow_rows, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $_$
        DECLARE
          kind text := TG_OP;
          before uuid;
          after uuid;
          reason text;
        BEGIN
          BEGIN
            IF "leadprotect".shadow_binds(TG_RELID) THEN
              IF TG_OP <> 'INSERT' THEN
                EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO before USING OLD;
              END IF;
              IF TG_OP <> 'DELETE' THEN
                EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO after USING NEW;
              END IF;
              IF TG_OP = 'INSERT' AND current_query() ~* '^\s*copy\M' THEN
                kind := 'COPY';
                reason := 'copy';
              ELSIF TG_OP = 'INSERT' AND TG_ARGV[1] = 'append' THEN
                reason := (SELECT "leadprotect".shadow_border(l.territory) FROM "leadprotect".host_lead(after) AS l (territory));
              -- who may not ask for the decision meets its name in the policies, whichever row he means
              ELSIF pg_trigger_depth() = 1 AND NOT pg_has_role("leadprotect".acting_role(), 'leadprotect_app', 'USAGE') THEN
                reason := CASE WHEN coalesce(pg_catalog.current_setting('app.user_id', true), '') = '' OR coalesce(pg_catalog.current_setting('app.territory', true), '') = ''
                  THEN 'no_context' ELSE 'not_member' END;
              -- a lead that is gone took its rows along: its deletion was decided
              ELSIF before IS NOT NULL AND (pg_trigger_depth() = 1 OR EXISTS (SELECT FROM "leadprotect".host_lead(before))) THEN
                reason := coalesce("leadprotect".shadow_reason(before), CASE
                  WHEN TG_OP = 'UPDATE' AND NOT EXISTS (SELECT FROM "leadprotect".host_lead(before) AS l (territory) WHERE l.territory IS NULL)
                    AND NOT EXISTS (SELECT FROM "leadprotect".host_lead(after) AS l (territory) WHERE l.territory IS NOT NULL) THEN 'moved' END);
              END IF;
              IF reason IS NULL AND after IS DISTINCT FROM before AND after IS NOT NULL AND TG_ARGV[1] <> 'append' THEN
                reason := "leadprotect".shadow_reason(after);
              END IF;
              PERFORM "leadprotect".shadow_note(kind, TG_RELID, reason);
            END IF;
          EXCEPTION WHEN OTHERS THEN
            PERFORM "leadprotect".shadow_failed(TG_OP, TG_RELID, SQLERRM);
          END;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.shadow_rows() IS 'Trigger of a shadow: notes changes of lead_tables that contract would deny';

REVOKE ALL ON FUNCTION leadprotect.shadow_rows() FROM PUBLIC;

-- function shadow_truncate, lp_0011_expand_activity_triggers

CREATE FUNCTION leadprotect.shadow_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF "leadprotect".shadow_binds(TG_RELID) THEN
            PERFORM "leadprotect".shadow_note(TG_OP, TG_RELID, 'truncate');
          END IF;
          RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
          PERFORM "leadprotect".shadow_failed(TG_OP, TG_RELID, SQLERRM);
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_truncate() IS 'Trigger of a shadow: notes a TRUNCATE that contract would refuse';

REVOKE ALL ON FUNCTION leadprotect.shadow_truncate() FROM PUBLIC;

-- =================================================================================================
-- Backfill and verification
--
-- Owners for the leads that were there before us. Operators call these functions, mostly through
-- `leadprotect backfill`: a job per territory, cut into chunks that workers lease. Verification
-- counts what is left.
-- =================================================================================================

-- function sources_indexed, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.sources_indexed() RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN NOT EXISTS (
            SELECT FROM unnest(ARRAY['"public"."ix_leadprotect_activities"']::text[]) AS wanted (path)
            LEFT JOIN pg_index AS i ON i.indexrelid = to_regclass(wanted.path) WHERE i.indisvalid IS NOT TRUE);
        END
        $$;

COMMENT ON FUNCTION leadprotect.sources_indexed() IS 'Whether every index of the transition on activities stands';

REVOKE ALL ON FUNCTION leadprotect.sources_indexed() FROM PUBLIC;

-- function bare_leads, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.bare_leads(territories text[]) RETURNS TABLE(territory text, lead_id uuid, released boolean)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET parallel_tuple_cost TO '0'
    AS $$
        #variable_conflict use_column
        BEGIN
          IF territories = '{}' THEN
            RETURN;
          END IF;
          RETURN QUERY
          SELECT l."territory"::text, l."id"::uuid, a.lead_id IS NOT NULL
          FROM "public"."leads" AS l
          LEFT JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = l."id" AND a.territory = l."territory"
          WHERE l."territory" = ANY (bare_leads.territories) AND a.user_id IS NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.bare_leads(territories text[]) IS 'Leads of the territories without an owner, whatever their activities; released: by hand, or where a lead moved here';

REVOKE ALL ON FUNCTION leadprotect.bare_leads(territories text[]) FROM PUBLIC;

-- function few_are_bare, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.few_are_bare() RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN "leadprotect".sources_indexed() AND NOT EXISTS (SELECT FROM "leadprotect".backfill_jobs AS j WHERE j.ended_at IS NULL);
        END
        $$;

COMMENT ON FUNCTION leadprotect.few_are_bare() IS 'Whether every walk has ended, and an index tells of a lead''s activities';

REVOKE ALL ON FUNCTION leadprotect.few_are_bare() FROM PUBLIC;

-- function probed_leads, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.probed_leads(territories text[]) RETURNS TABLE(territory text, lead_id uuid, missing boolean)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          -- no EXISTS: it could become a scan, and a hash of all activities
          SELECT b.territory, b.lead_id,
                 NOT b.released AND (SELECT true FROM (SELECT v."lead_id" AS lead_id FROM "public"."activities" AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE) AS q WHERE q.lead_id = b.lead_id LIMIT 1) IS NOT NULL
          FROM (SELECT * FROM "leadprotect".bare_leads(probed_leads.territories) AS b ORDER BY b.lead_id) AS b;
        END
        $$;

COMMENT ON FUNCTION leadprotect.probed_leads(territories text[]) IS 'Leads of the territories without an owner; missing: one whom an activity makes';

REVOKE ALL ON FUNCTION leadprotect.probed_leads(territories text[]) FROM PUBLIC;

-- function unowned_leads, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.unowned_leads(territories text[]) RETURNS TABLE(territory text, lead_id uuid)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_nestloop TO 'off'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_column
        BEGIN
          IF "leadprotect".few_are_bare() THEN
            RETURN QUERY SELECT p.territory, p.lead_id FROM "leadprotect".probed_leads(unowned_leads.territories) AS p WHERE p.missing;
            RETURN;
          END IF;
          RETURN QUERY
          SELECT l."territory"::text, l."id"::uuid
          FROM "public"."leads" AS l
          WHERE l."territory" = ANY (unowned_leads.territories)
            AND NOT EXISTS (
              SELECT FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = l."id" AND a.territory = l."territory")
            AND EXISTS (
              SELECT FROM (SELECT v."lead_id" AS lead_id FROM "public"."activities" AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE) AS q WHERE q.lead_id = l."id");
        END
        $$;

COMMENT ON FUNCTION leadprotect.unowned_leads(territories text[]) IS 'Leads of the territories with a qualifying activity, without an owner, and not released by hand';

CREATE FUNCTION leadprotect.unowned_leads(territory text) RETURNS SETOF uuid
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT u.lead_id
    FROM leadprotect.unowned_leads(ARRAY[unowned_leads.territory]) u(territory, lead_id);
END;

COMMENT ON FUNCTION leadprotect.unowned_leads(territory text) IS 'Leads of the territory with a qualifying activity, without an owner, and not released by hand';

REVOKE ALL ON FUNCTION leadprotect.unowned_leads(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territories text[]) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territories text[]) TO leadprotect_operator;
REVOKE ALL ON FUNCTION leadprotect.unowned_leads(territory text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territory text) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.unowned_leads(territory text) TO leadprotect_operator;

-- function backfill_stale, lp_0009_expand_indexes, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_stale(here text) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT wanted.lead_id
          FROM "leadprotect".user_lead_assignments AS wanted
          JOIN "public"."leads" AS l ON l."id" = wanted.lead_id AND l."territory" = backfill_stale.here,
            LATERAL (SELECT v."user_id"::uuid AS user_id, v."created_at" AS at, v."id" AS id, NULL::text AS source FROM "public"."activities" AS v WHERE v."lead_id" = wanted.lead_id AND v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE ORDER BY v."created_at" DESC NULLS LAST, v."id" DESC LIMIT 1) AS newest
          WHERE wanted.territory = backfill_stale.here AND (
            wanted.source IN ('backfill', 'activity')
              AND (wanted.activity_id IS DISTINCT FROM newest.id OR wanted.user_id IS DISTINCT FROM newest.user_id
                OR wanted.activity_source IS DISTINCT FROM newest.source)
            -- a lead that moved here: only what came since counts
            OR wanted.source = 'moved'
              AND (wanted.activity_at IS NULL AND newest.at IS NOT NULL OR wanted.activity_at < newest.at));
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_stale(here text) IS 'Leads of the territory whose derived owner is not the user of the newest qualifying activity';

REVOKE ALL ON FUNCTION leadprotect.backfill_stale(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_stale(here text) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_stale(here text) TO leadprotect_operator;

-- table backfill_jobs, lp_0012_migrate_backfill

CREATE TABLE leadprotect.backfill_jobs (
    territory text NOT NULL,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    finished_at timestamp with time zone,
    request text DEFAULT 'run'::text NOT NULL,
    request_reason text,
    next_lead uuid,
    exhausted boolean DEFAULT false NOT NULL,
    chunks bigint DEFAULT 0 NOT NULL,
    retried bigint DEFAULT 0 NOT NULL,
    CONSTRAINT backfill_jobs_request_check CHECK ((request = ANY (ARRAY['run'::text, 'pause'::text, 'stop'::text])))
);

ALTER TABLE ONLY leadprotect.backfill_jobs FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.backfill_jobs IS 'One backfill per territory: where it stands, and what was asked of it';
COMMENT ON COLUMN leadprotect.backfill_jobs.territory IS 'whose leads';
COMMENT ON COLUMN leadprotect.backfill_jobs.registered_at IS 'when the migrate step was applied: the observation window begins here';
COMMENT ON COLUMN leadprotect.backfill_jobs.started_at IS 'begin of the present walk over the leads';
COMMENT ON COLUMN leadprotect.backfill_jobs.ended_at IS 'end of it';
COMMENT ON COLUMN leadprotect.backfill_jobs.finished_at IS 'last time at which a walk changed something: the gate counts from here';
COMMENT ON COLUMN leadprotect.backfill_jobs.request IS 'what was asked of the workers: run, pause or stop';
COMMENT ON COLUMN leadprotect.backfill_jobs.request_reason IS 'why, for whoever waits';
COMMENT ON COLUMN leadprotect.backfill_jobs.next_lead IS 'first lead that is in no chunk yet';
COMMENT ON COLUMN leadprotect.backfill_jobs.exhausted IS 'true: every lead is in a chunk';
COMMENT ON COLUMN leadprotect.backfill_jobs.chunks IS 'chunks made in this walk';
COMMENT ON COLUMN leadprotect.backfill_jobs.retried IS 'owners assigned after the chunks, to leads that were locked when their slice came';

ALTER TABLE ONLY leadprotect.backfill_jobs
    ADD CONSTRAINT backfill_jobs_pkey PRIMARY KEY (territory);

ALTER TABLE ONLY leadprotect.backfill_jobs
    ADD CONSTRAINT backfill_jobs_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.territories(code);

ALTER TABLE leadprotect.backfill_jobs ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.backfill_jobs AS RESTRICTIVE USING ((leadprotect.inside() OR ( SELECT pg_has_role('leadprotect_operator'::name, 'USAGE'::text) AS pg_has_role)));
CREATE POLICY lp_inside ON leadprotect.backfill_jobs TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.backfill_jobs FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.backfill_jobs TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.backfill_jobs TO leadprotect_reader;

-- table backfill_chunks, lp_0012_migrate_backfill

CREATE TABLE leadprotect.backfill_chunks (
    territory text NOT NULL,
    chunk bigint NOT NULL,
    next_lead uuid,
    last_lead uuid NOT NULL,
    worker text NOT NULL,
    token bigint DEFAULT 1 NOT NULL,
    lease interval NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    scanned bigint DEFAULT 0 NOT NULL,
    assigned bigint DEFAULT 0 NOT NULL,
    finished_at timestamp with time zone
);

ALTER TABLE ONLY leadprotect.backfill_chunks FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.backfill_chunks IS 'Claimed parts of a backfill; the token is a fencing token: who lost his lease can''t write';
COMMENT ON COLUMN leadprotect.backfill_chunks.territory IS 'whose leads';
COMMENT ON COLUMN leadprotect.backfill_chunks.chunk IS 'number in this walk';
COMMENT ON COLUMN leadprotect.backfill_chunks.next_lead IS 'first lead that is in no slice yet; NULL: none is left';
COMMENT ON COLUMN leadprotect.backfill_chunks.last_lead IS 'last lead of the chunk';
COMMENT ON COLUMN leadprotect.backfill_chunks.worker IS 'who works on it: host, process, number';
COMMENT ON COLUMN leadprotect.backfill_chunks.token IS 'fencing token: it changes when the chunk is taken over';
COMMENT ON COLUMN leadprotect.backfill_chunks.lease IS 'how long a worker may be silent';
COMMENT ON COLUMN leadprotect.backfill_chunks.lease_until IS 'when it may be taken over';
COMMENT ON COLUMN leadprotect.backfill_chunks.scanned IS 'leads looked at';
COMMENT ON COLUMN leadprotect.backfill_chunks.assigned IS 'owners made';
COMMENT ON COLUMN leadprotect.backfill_chunks.finished_at IS 'when its last slice was committed';

ALTER TABLE ONLY leadprotect.backfill_chunks
    ADD CONSTRAINT backfill_chunks_pkey PRIMARY KEY (territory, chunk);

CREATE INDEX ix_backfill_chunks_open ON leadprotect.backfill_chunks USING btree (territory, lease_until) WHERE (finished_at IS NULL);

ALTER TABLE ONLY leadprotect.backfill_chunks
    ADD CONSTRAINT backfill_chunks_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.backfill_jobs(territory);

ALTER TABLE leadprotect.backfill_chunks ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.backfill_chunks AS RESTRICTIVE USING ((leadprotect.inside() OR ( SELECT pg_has_role('leadprotect_operator'::name, 'USAGE'::text) AS pg_has_role)));
CREATE POLICY lp_inside ON leadprotect.backfill_chunks TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.backfill_chunks FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.backfill_chunks TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.backfill_chunks TO leadprotect_reader;

-- table backfill_deferred, lp_0012_migrate_backfill

CREATE TABLE leadprotect.backfill_deferred (
    territory text NOT NULL,
    lead_id uuid NOT NULL,
    reason text NOT NULL,
    deferred_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE ONLY leadprotect.backfill_deferred FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.backfill_deferred IS 'Leads whose assignment was locked: retried at the end';
COMMENT ON COLUMN leadprotect.backfill_deferred.territory IS 'whose lead';
COMMENT ON COLUMN leadprotect.backfill_deferred.lead_id IS 'the lead';
COMMENT ON COLUMN leadprotect.backfill_deferred.reason IS 'SQLSTATE or sentence: why it was put aside';
COMMENT ON COLUMN leadprotect.backfill_deferred.deferred_at IS 'when';

ALTER TABLE ONLY leadprotect.backfill_deferred
    ADD CONSTRAINT backfill_deferred_pkey PRIMARY KEY (lead_id, territory);

ALTER TABLE ONLY leadprotect.backfill_deferred
    ADD CONSTRAINT backfill_deferred_territory_fkey FOREIGN KEY (territory) REFERENCES leadprotect.backfill_jobs(territory);

ALTER TABLE leadprotect.backfill_deferred ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_border ON leadprotect.backfill_deferred AS RESTRICTIVE USING ((leadprotect.inside() OR ( SELECT pg_has_role('leadprotect_operator'::name, 'USAGE'::text) AS pg_has_role)));
CREATE POLICY lp_inside ON leadprotect.backfill_deferred TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.backfill_deferred FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.backfill_deferred TO leadprotect_operator;
GRANT SELECT ON TABLE leadprotect.backfill_deferred TO leadprotect_reader;

-- function chunk_bounds, lp_0012_migrate_backfill, owner leadprotect_reader

CREATE FUNCTION leadprotect.chunk_bounds(here text, wanted_first uuid, chunk_rows integer, OUT first_lead uuid, OUT last_lead uuid, OUT following uuid) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          first_lead := wanted_first;
          IF first_lead IS NULL THEN
            SELECT l."id" INTO first_lead FROM "public"."leads" AS l
              WHERE l."territory" = here ORDER BY l."id" LIMIT 1;
          END IF;
          IF first_lead IS NULL THEN
            RETURN;
          END IF;
          SELECT l."id" INTO following FROM "public"."leads" AS l
            WHERE l."territory" = here AND l."id" >= first_lead
            ORDER BY l."id" OFFSET chunk_rows LIMIT 1;
          IF following IS NULL THEN
            SELECT l."id" INTO last_lead FROM "public"."leads" AS l
              WHERE l."territory" = here AND l."id" >= first_lead ORDER BY l."id" DESC LIMIT 1;
          ELSE
            SELECT l."id" INTO last_lead FROM "public"."leads" AS l
              WHERE l."territory" = here AND l."id" >= first_lead AND l."id" < following
              ORDER BY l."id" DESC LIMIT 1;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.chunk_bounds(here text, wanted_first uuid, chunk_rows integer, OUT first_lead uuid, OUT last_lead uuid, OUT following uuid) IS 'First and last lead of the next chunk of a territory, and the lead that follows it';

REVOKE ALL ON FUNCTION leadprotect.chunk_bounds(here text, wanted_first uuid, chunk_rows integer, OUT first_lead uuid, OUT last_lead uuid, OUT following uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.chunk_bounds(here text, wanted_first uuid, chunk_rows integer, OUT first_lead uuid, OUT last_lead uuid, OUT following uuid) TO leadprotect_owner;

-- function next_leads, lp_0012_migrate_backfill, owner leadprotect_reader

CREATE FUNCTION leadprotect.next_leads(here text, first_lead uuid, last_lead uuid, wanted integer) RETURNS uuid[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN ARRAY(
            SELECT l."id" FROM "public"."leads" AS l
            WHERE l."territory" = here AND l."id" >= first_lead AND l."id" <= last_lead
            ORDER BY l."id" LIMIT wanted);
        END
        $$;

COMMENT ON FUNCTION leadprotect.next_leads(here text, first_lead uuid, last_lead uuid, wanted integer) IS 'The next leads of a chunk, in the order of their ids';

REVOKE ALL ON FUNCTION leadprotect.next_leads(here text, first_lead uuid, last_lead uuid, wanted integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.next_leads(here text, first_lead uuid, last_lead uuid, wanted integer) TO leadprotect_owner;

-- function own_leads, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.own_leads(here text, leads uuid[]) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          owned uuid[];
          fresh uuid[];
          seen record;
          made integer;
        BEGIN
          owned := ARRAY(
            SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = ANY (leads) AND a.territory = here);
          fresh := CASE WHEN owned = '{}' THEN leads
                        ELSE ARRAY(SELECT unnest(leads) EXCEPT SELECT unnest(owned) ORDER BY 1) END;
          INSERT INTO "leadprotect".user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id, activity_source)
          SELECT newest.lead_id, here, newest.user_id, 'backfill', newest.activity_at, newest.activity_id, newest.activity_source
          FROM "leadprotect".derived_owners(fresh) AS newest;
          GET DIAGNOSTICS made = ROW_COUNT;
          FOR seen IN
            SELECT newest.lead_id, newest.user_id, newest.activity_at AS at, newest.activity_id AS id, newest.activity_source AS of_source,
                   standing.user_id AS old_user, standing.activity_at AS old_at, standing.activity_id AS old_id, standing.activity_source AS old_source
            FROM "leadprotect".derived_owners(owned) AS newest,
              LATERAL (
                SELECT a.user_id, a.activity_at, a.activity_id, a.activity_source, a.source FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = newest.lead_id AND a.territory = here LIMIT 1) AS standing
            WHERE standing.source IN ('backfill', 'activity', 'moved')
              AND (standing.user_id IS DISTINCT FROM newest.user_id
                OR standing.activity_id IS DISTINCT FROM newest.activity_id
                OR standing.activity_source IS DISTINCT FROM newest.activity_source
                OR standing.activity_at IS DISTINCT FROM newest.activity_at)
          LOOP
            UPDATE "leadprotect".user_lead_assignments AS a
            SET user_id = seen.user_id, source = 'backfill', assigned_at = statement_timestamp(),
                activity_at = seen.at, activity_id = seen.id, activity_source = seen.of_source
            WHERE a.lead_id = seen.lead_id AND a.territory = here AND a.source IN ('backfill', 'activity', 'moved')
              AND (NOT (false AND a.source <> 'moved' AND a.activity_id IS NULL) AND (
                     a.activity_at IS NULL AND seen.at IS NOT NULL
                     OR a.activity_at < seen.at
                     OR a.activity_at IS NOT DISTINCT FROM seen.at
                        AND (coalesce(a.activity_source, '') > coalesce(seen.of_source, '')
                          OR a.activity_source IS NOT DISTINCT FROM seen.of_source
                             AND "leadprotect".earlier_activity(a.activity_source, a.activity_id::text, seen.id::text)))
                OR a.source <> 'moved' AND a.user_id IS NOT DISTINCT FROM seen.old_user
                   AND a.activity_at IS NOT DISTINCT FROM seen.old_at
                   AND a.activity_id IS NOT DISTINCT FROM seen.old_id
                   AND a.activity_source IS NOT DISTINCT FROM seen.old_source);
            made := made + FOUND::integer;
          END LOOP;
          RETURN made;
        EXCEPTION WHEN unique_violation THEN
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_leads(here text, leads uuid[]) IS 'Gives these leads the user of their newest qualifying activity; NULL where a live transaction was faster';

REVOKE ALL ON FUNCTION leadprotect.own_leads(here text, leads uuid[]) FROM PUBLIC;

-- function backfill_settings, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.backfill_settings() RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
          SELECT '"public"."leads"; "id"; "territory"; "public"."activities"; "id"; "lead_id"; "user_id"; "kind"; "created_at"; CUSTOMER_REACTION, QUALIFIED_CALL, ROI_PRESENTATION, SAMPLE_FEEDBACK, SCHEDULED_FOLLOWUP'
        $$;

COMMENT ON FUNCTION leadprotect.backfill_settings() IS 'The settings that decide who owns a lead, as these functions hold them';

REVOKE ALL ON FUNCTION leadprotect.backfill_settings() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_settings() TO leadprotect_operator;

-- function backfill_start, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.backfill_start(here text, settings text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          job "leadprotect".backfill_jobs;
          fresh boolean;
        BEGIN
          PERFORM "leadprotect".require_transition();
          IF settings IS DISTINCT FROM "leadprotect".backfill_settings() THEN
            RAISE EXCEPTION 'the settings are not those with which the backfill was migrated'
              USING ERRCODE = 'LP422', DETAIL = format('then %s; now %s', "leadprotect".backfill_settings(), settings);
          END IF;
          SELECT * INTO job FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          fresh := job.started_at IS NULL OR job.ended_at IS NOT NULL;
          IF fresh THEN
            DELETE FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here;
            UPDATE "leadprotect".backfill_jobs AS j
            SET started_at = clock_timestamp(), ended_at = NULL, exhausted = false, next_lead = NULL,
                chunks = 0, retried = 0
            WHERE j.territory = here;
          END IF;
          -- a pause outlives a start: whoever asked for it says when it is over
          UPDATE "leadprotect".backfill_jobs AS j SET request = 'run', request_reason = NULL
          WHERE j.territory = here AND j.request = 'stop';
          RETURN fresh;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_start(here text, settings text) IS 'Begins a walk over the leads of a territory, or goes on with one; returns whether it is a new one';

REVOKE ALL ON FUNCTION leadprotect.backfill_start(here text, settings text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_start(here text, settings text) TO leadprotect_operator;

-- function backfill_claim, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          job "leadprotect".backfill_jobs;
          first uuid;
          last uuid;
          following uuid;
        BEGIN
          UPDATE "leadprotect".backfill_chunks AS c
          SET worker = backfill_claim.worker, token = c.token + 1, lease = backfill_claim.lease,
              lease_until = clock_timestamp() + backfill_claim.lease
          WHERE c.territory = here AND c.chunk = (
            SELECT o.chunk FROM "leadprotect".backfill_chunks AS o
            WHERE o.territory = here AND o.finished_at IS NULL AND o.lease_until < clock_timestamp()
            ORDER BY o.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED)
          RETURNING c.chunk, c.token INTO chunk, token;
          IF FOUND THEN
            RETURN;
          END IF;
          SELECT * INTO job FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF job.exhausted THEN
            RETURN;
          END IF;
          SELECT c.first_lead, c.last_lead, c.following INTO first, last, following
          FROM "leadprotect".chunk_bounds(here, job.next_lead, chunk_rows) AS c;
          -- the leads of this part may have gone meanwhile
          IF last IS NOT NULL THEN
            INSERT INTO "leadprotect".backfill_chunks AS c
              (territory, chunk, next_lead, last_lead, worker, lease, lease_until)
            VALUES (here, job.chunks + 1, first, last, worker, lease, clock_timestamp() + lease)
            RETURNING c.chunk, c.token INTO chunk, token;
          END IF;
          UPDATE "leadprotect".backfill_jobs AS j
          SET next_lead = following, exhausted = following IS NULL,
              chunks = j.chunks + (last IS NOT NULL)::integer
          WHERE j.territory = here;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) IS 'Claims what a dead worker left, or the next part of a territory, with a lease and a fencing token';

REVOKE ALL ON FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_claim(here text, chunk_rows integer, worker text, lease interval, OUT chunk bigint, OUT token bigint) TO leadprotect_operator;

-- function backfill_slice, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          part "leadprotect".backfill_chunks;
          leads uuid[];
        BEGIN
          PERFORM "leadprotect".require_transition();
          SELECT * INTO part FROM "leadprotect".backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk AND c.token = backfill_slice.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          -- one more than the slice: the first of the next one
          leads := "leadprotect".next_leads(here, part.next_lead, part.last_lead, slice_rows + 1);
          assigned := "leadprotect".own_leads(here, leads[:slice_rows]);
          IF assigned IS NULL THEN
            scanned := 0;
            assigned := 0;
            finished := false;
            RETURN;
          END IF;
          scanned := least(cardinality(leads), slice_rows);
          finished := cardinality(leads) <= slice_rows;
          UPDATE "leadprotect".backfill_chunks AS c
          SET next_lead = leads[slice_rows + 1],
              scanned = c.scanned + backfill_slice.scanned, assigned = c.assigned + backfill_slice.assigned,
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN finished THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_slice.chunk;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) IS 'Owns the next leads of a chunk and moves its cursor, in one transaction';

REVOKE ALL ON FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_slice(here text, chunk bigint, token bigint, slice_rows integer, OUT scanned integer, OUT assigned integer, OUT finished boolean) TO leadprotect_operator;

-- function backfill_release, lp_0012_migrate_backfill

CREATE FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
          UPDATE "leadprotect".backfill_chunks AS c SET lease_until = '-infinity'
          WHERE c.territory = here AND c.chunk = backfill_release.chunk AND c.token = backfill_release.token
            AND c.finished_at IS NULL
        $$;

COMMENT ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) IS 'A worker that stops gives its chunk back, so that the next one need not wait for the lease';

REVOKE ALL ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_release(here text, chunk bigint, token bigint) TO leadprotect_operator;

-- function backfill_defer, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          part "leadprotect".backfill_chunks;
          leads uuid[];
        BEGIN
          SELECT * INTO part FROM "leadprotect".backfill_chunks AS c
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk AND c.token = backfill_defer.token
            AND c.finished_at IS NULL FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'the lease of chunk % was taken over', chunk USING ERRCODE = 'LP410';
          END IF;
          leads := "leadprotect".next_leads(here, part.next_lead, part.last_lead, 2);
          IF cardinality(leads) > 0 THEN
            INSERT INTO "leadprotect".backfill_deferred AS d (territory, lead_id, reason)
            VALUES (here, leads[1], backfill_defer.reason)
            ON CONFLICT (lead_id, territory) DO UPDATE
              SET reason = excluded.reason, deferred_at = excluded.deferred_at;
          END IF;
          UPDATE "leadprotect".backfill_chunks AS c
          SET next_lead = leads[2], scanned = c.scanned + least(cardinality(leads), 1),
              lease_until = clock_timestamp() + c.lease,
              finished_at = CASE WHEN cardinality(leads) < 2 THEN clock_timestamp() END
          WHERE c.territory = here AND c.chunk = backfill_defer.chunk;
          RETURN leads[1];
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) IS 'Puts the next lead of a chunk aside, because somebody holds it';

REVOKE ALL ON FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_defer(here text, chunk bigint, token bigint, reason text) TO leadprotect_operator;

-- function backfill_retry, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.backfill_retry(here text, lead uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          made integer;
        BEGIN
          PERFORM "leadprotect".require_transition();
          DELETE FROM "leadprotect".backfill_deferred AS d WHERE d.territory = here AND d.lead_id = lead;
          IF NOT FOUND THEN
            RETURN 0;
          END IF;
          made := "leadprotect".own_leads(here, ARRAY(
            SELECT lead FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory = here));
          IF made IS NULL THEN
            INSERT INTO "leadprotect".backfill_deferred (territory, lead_id, reason)
            VALUES (here, lead, 'assigned by a live transaction at the same moment');
          ELSE
            UPDATE "leadprotect".backfill_jobs AS j SET retried = j.retried + made WHERE j.territory = here AND made > 0;
          END IF;
          RETURN made;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_retry(here text, lead uuid) IS 'Tries a lead that was put aside again';

REVOKE ALL ON FUNCTION leadprotect.backfill_retry(here text, lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_retry(here text, lead uuid) TO leadprotect_operator;

-- function backfill_settle, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.backfill_settle(lead uuid) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          notes uuid[] := ARRAY(SELECT u.id FROM "leadprotect".unsettled_leads AS u WHERE u.lead_id = lead);
          settled integer;
        BEGIN
          PERFORM "leadprotect".require_transition();
          PERFORM FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity') FOR UPDATE;
          IF EXISTS (SELECT FROM "leadprotect".host_lead(lead)) THEN
            UPDATE "leadprotect".user_lead_assignments AS a
            SET user_id = newest.user_id, assigned_at = statement_timestamp(),
                activity_at = newest.activity_at, activity_id = newest.activity_id, activity_source = newest.activity_source
            FROM "leadprotect".derived_owners(ARRAY[lead]) AS newest
            WHERE a.lead_id = lead AND a.source IN ('backfill', 'activity')
              AND (a.user_id IS DISTINCT FROM newest.user_id OR a.activity_id IS DISTINCT FROM newest.activity_id
                OR a.activity_at IS DISTINCT FROM newest.activity_at
                OR a.activity_source IS DISTINCT FROM newest.activity_source);
          ELSE
            DELETE FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead;
          END IF;
          GET DIAGNOSTICS settled = ROW_COUNT;
          DELETE FROM "leadprotect".unsettled_leads AS u WHERE u.id = ANY (notes);
          RETURN settled;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_settle(lead uuid) IS 'Looks at a lead again that changed while the backfill read it';

REVOKE ALL ON FUNCTION leadprotect.backfill_settle(lead uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_settle(lead uuid) TO leadprotect_operator;

-- function backfill_finish, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.backfill_finish(here text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          UPDATE "leadprotect".backfill_jobs AS j
          SET ended_at = clock_timestamp(),
              finished_at = CASE
                WHEN j.finished_at IS NULL OR j.retried > 0 OR EXISTS (
                  SELECT FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here AND c.assigned > 0)
                THEN clock_timestamp() ELSE j.finished_at END
          WHERE j.territory = here AND j.exhausted AND j.ended_at IS NULL
            AND NOT EXISTS (SELECT FROM "leadprotect".backfill_chunks AS c WHERE c.territory = here AND c.finished_at IS NULL)
            AND NOT EXISTS (SELECT FROM "leadprotect".backfill_deferred AS d WHERE d.territory = here);
          RETURN FOUND;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_finish(here text) IS 'Ends the walk over a territory, once no chunk and no lead is left';

REVOKE ALL ON FUNCTION leadprotect.backfill_finish(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_finish(here text) TO leadprotect_operator;

-- function backfill_request, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          before text;
        BEGIN
          SELECT j.request INTO before FROM "leadprotect".backfill_jobs AS j WHERE j.territory = here FOR UPDATE;
          IF NOT FOUND THEN
            RAISE EXCEPTION 'territory % is not in the database', here USING ERRCODE = 'LP422';
          END IF;
          UPDATE "leadprotect".backfill_jobs AS j SET request = wanted, request_reason = reason WHERE j.territory = here;
          RETURN before;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) IS 'Asks a backfill to run, pause or stop; its workers read it every second';

REVOKE ALL ON FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_request(here text, wanted text, reason text) TO leadprotect_operator;

-- function backfill_estimate, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_estimate(here text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_variable
        DECLARE
          plan json;
          found bigint;
          leads float8;
        BEGIN
          IF 'territory' IS NULL THEN
            -- of an expression there is no statistics, and the planner takes a two hundredth of the leads for each
            leads := (SELECT greatest(c.reltuples, 0) FROM pg_class AS c WHERE c.oid = '"public"."leads"'::regclass);
            RETURN (
              SELECT leads * count(*) FILTER (WHERE l."territory" = here) / greatest(count(*), 1)
              FROM "public"."leads" AS l TABLESAMPLE SYSTEM (least(100 * 20000 / greatest(leads, 1), 100)));
          END IF;
          EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM "public"."leads" AS l WHERE l."territory" = %L', here) INTO plan;
          found := plan -> 0 -> 'Plan' ->> 'Plan Rows';
          IF NOT row_security_active('"public"."leads"') THEN
            RETURN found;
          END IF;
          EXECUTE 'EXPLAIN (FORMAT JSON) SELECT FROM "public"."leads" AS l' INTO plan;
          RETURN (
            SELECT greatest(c.reltuples, 0) * least(found / greatest((plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8, 1), 1)
            FROM pg_class AS c WHERE c.oid = '"public"."leads"'::regclass);
        EXCEPTION
          WHEN lock_not_available THEN
            RAISE;
          -- a policy of the host that fails for the planner: pausing, status and the way down need no estimate
          WHEN OTHERS THEN
            RETURN (SELECT greatest(c.reltuples, 0)::bigint FROM pg_class AS c WHERE c.oid = '"public"."leads"'::regclass);
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_estimate(here text) IS 'How many leads a territory has, as the planner reckons, or by a part of them where an expression tells it; all that there are where neither can';

REVOKE ALL ON FUNCTION leadprotect.backfill_estimate(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_estimate(here text) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_estimate(here text) TO leadprotect_operator;

-- function backfill_sample, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_column
        DECLARE
          percent float8;
        BEGIN
          leads := "leadprotect".backfill_estimate(here);
          percent := 100.0 * wanted / greatest(leads, 1);
          LOOP
            SELECT count(*), count(*) FILTER (WHERE NOT s.stands AND s.qualifying),
                   count(*) FILTER (WHERE NOT s.stands AND NOT s.qualifying)
            INTO sampled, assignable, ownerless
            FROM (
              SELECT EXISTS (
                       SELECT FROM "leadprotect".user_lead_assignments AS a
                       WHERE a.lead_id = l."id" AND a.territory = backfill_sample.here) AS stands,
                     EXISTS (SELECT FROM (SELECT v."lead_id" AS lead_id FROM "public"."activities" AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE) AS q WHERE q.lead_id = l."id") AS qualifying
              FROM "public"."leads" AS l TABLESAMPLE SYSTEM (least(percent, 100))
              WHERE l."territory" = backfill_sample.here) AS s;
            EXIT WHEN sampled > 0 OR percent >= 50;
            percent := percent * 10;
          END LOOP;
          IF percent >= 50 THEN
            leads := sampled;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) IS 'What a backfill would do, from a sample of the leads; writes nothing';

REVOKE ALL ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_sample(here text, wanted integer, OUT leads bigint, OUT sampled bigint, OUT assignable bigint, OUT ownerless bigint) TO leadprotect_operator;

-- function backfill_outside, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_outside() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT count(*) AS count
    FROM public.leads l
   WHERE ((l.territory IS NULL) OR ((l.territory)::text = ''::text));
END;

COMMENT ON FUNCTION leadprotect.backfill_outside() IS 'Number of leads without a territory: outside protection';

REVOKE ALL ON FUNCTION leadprotect.backfill_outside() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_outside() TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_outside() TO leadprotect_operator;

-- function unowned_count, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.unowned_count() RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    BEGIN ATOMIC
 SELECT count(*) AS count
    FROM leadprotect.bare_leads(leadprotect.all_territories()) b(territory, lead_id, released);
END;

COMMENT ON FUNCTION leadprotect.unowned_count() IS 'Number of leads of a territory that nobody owns';

REVOKE ALL ON FUNCTION leadprotect.unowned_count() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.unowned_count() TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.unowned_count() TO leadprotect_operator;

-- function backfill_counts, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_counts(territories text[]) RETURNS TABLE(territory text, ownerless bigint, missing bigint, released bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT code, coalesce(u.leads - u.qualifying, 0), coalesce(u.qualifying, 0),
                 (SELECT count(*) FROM "leadprotect".user_lead_assignments AS a
                  WHERE a.source = 'release' AND a.territory = code)
          FROM unnest(backfill_counts.territories) AS code
          LEFT JOIN (
            SELECT l."territory"::text AS here, count(*) AS leads,
                   count(*) FILTER (WHERE EXISTS (
                     SELECT FROM (SELECT v."lead_id" AS lead_id FROM "public"."activities" AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE) AS q WHERE q.lead_id = l."id")) AS qualifying
            FROM "public"."leads" AS l
            WHERE l."territory" = ANY (backfill_counts.territories)
              AND NOT EXISTS (
                SELECT FROM "leadprotect".user_lead_assignments AS a
                WHERE a.lead_id = l."id" AND a.territory = l."territory")
            GROUP BY l."territory") AS u ON u.here = code;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_counts(territories text[]) IS 'Leads without an owner in each territory: without a qualifying activity, with one, and released by hand';

REVOKE ALL ON FUNCTION leadprotect.backfill_counts(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_counts(territories text[]) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_counts(territories text[]) TO leadprotect_operator;

-- function backfill_report, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_report(territories text[]) RETURNS TABLE(lead_id uuid, territory text, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT l."id"::uuid, l."territory"::text, CASE
              WHEN EXISTS (
                SELECT FROM "leadprotect".backfill_deferred AS d
                WHERE d.lead_id = l."id" AND d.territory = l."territory") THEN 'locked'
              WHEN EXISTS (
                SELECT FROM (SELECT v."lead_id" AS lead_id FROM "public"."activities" AS v WHERE v."kind" IN ('QUALIFIED_CALL', 'CUSTOMER_REACTION', 'SCHEDULED_FOLLOWUP', 'SAMPLE_FEEDBACK', 'ROI_PRESENTATION') AND v."user_id" IS NOT NULL AND (v."created_at" <= pg_catalog.clock_timestamp()) IS NOT FALSE) AS q WHERE q.lead_id = l."id") THEN 'missing'
              ELSE 'no_qualifying_activity' END
          FROM "public"."leads" AS l
          WHERE l."territory" = ANY (backfill_report.territories)
            AND NOT EXISTS (
              SELECT FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = l."id" AND a.territory = l."territory")
          UNION ALL
          SELECT a.lead_id, a.territory, CASE a.source WHEN 'moved' THEN 'moved' ELSE 'released' END
          FROM "leadprotect".user_lead_assignments AS a
          WHERE a.territory = ANY (backfill_report.territories) AND a.user_id IS NULL
          UNION ALL
          SELECT l."id"::uuid, NULL, 'no_territory' FROM "public"."leads" AS l WHERE (l."territory" IS NULL OR l."territory" = '');
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_report(territories text[]) IS 'Every lead without an owner after the backfill, and why';

REVOKE ALL ON FUNCTION leadprotect.backfill_report(territories text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_report(territories text[]) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_report(territories text[]) TO leadprotect_operator;

-- function backfill_status, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.backfill_status() RETURNS TABLE(territory text, state text, started_at timestamp with time zone, ended_at timestamp with time zone, scanned bigint, assigned bigint, deferred bigint, total bigint, workers bigint, request_reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT j.territory,
                 CASE WHEN j.request = 'pause' THEN 'paused'
                      WHEN j.ended_at IS NOT NULL THEN 'done'
                      WHEN j.request = 'stop' THEN 'stopped'
                      WHEN j.started_at IS NULL THEN 'new'
                      WHEN c.workers > 0 THEN 'running'
                      ELSE 'interrupted' END,
                 j.started_at, j.ended_at, c.scanned, c.assigned + j.retried,
                 (SELECT count(*) FROM "leadprotect".backfill_deferred AS d WHERE d.territory = j.territory),
                 "leadprotect".backfill_estimate(j.territory), c.workers, j.request_reason
          FROM "leadprotect".backfill_jobs AS j,
            LATERAL (
              SELECT coalesce(sum(c.scanned), 0)::bigint AS scanned, coalesce(sum(c.assigned), 0)::bigint AS assigned,
                     count(*) FILTER (WHERE c.finished_at IS NULL AND c.lease_until > clock_timestamp()) AS workers
              FROM "leadprotect".backfill_chunks AS c WHERE c.territory = j.territory) AS c
          ORDER BY j.territory;
        END
        $$;

COMMENT ON FUNCTION leadprotect.backfill_status() IS 'Where the backfill of each territory stands: new, running, interrupted, paused, stopped or done; total is an estimate';

REVOKE ALL ON FUNCTION leadprotect.backfill_status() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.backfill_status() TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.backfill_status() TO leadprotect_operator;

-- =================================================================================================
-- Gate
--
-- What holds contract back. gate_conditions() lists each condition and whether it is met, for
-- operators; the revisions of contract call require_open_gate(). leadprotect guard keeps its run
-- and its heartbeat here.
-- =================================================================================================

-- table guard_runs, lp_0013_migrate_verification

CREATE TABLE leadprotect.guard_runs (
    run uuid NOT NULL,
    command text NOT NULL,
    began text,
    revision text,
    guard text NOT NULL,
    login name DEFAULT SESSION_USER NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    heartbeat_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    state text NOT NULL,
    reason text,
    CONSTRAINT gr_state CHECK ((state = ANY (ARRAY['running'::text, 'held'::text, 'baking'::text, 'stopping'::text, 'rolling_back'::text, 'done'::text, 'failed'::text, 'paused'::text, 'unknown'::text, 'rolled_back'::text, 'refused'::text, 'lost'::text])))
);

ALTER TABLE ONLY leadprotect.guard_runs FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.guard_runs IS 'Runs of leadprotect guard: where each began, what it does, and when it was last heard of';
COMMENT ON COLUMN leadprotect.guard_runs.run IS 'the run';
COMMENT ON COLUMN leadprotect.guard_runs.command IS 'what it guards';
COMMENT ON COLUMN leadprotect.guard_runs.began IS 'the revision at which it began, where a rollback goes; NULL: the base';
COMMENT ON COLUMN leadprotect.guard_runs.revision IS 'the revision that it saw last; NULL: the base';
COMMENT ON COLUMN leadprotect.guard_runs.guard IS 'host and process id';
COMMENT ON COLUMN leadprotect.guard_runs.login IS 'its login';
COMMENT ON COLUMN leadprotect.guard_runs.started_at IS 'when its row was made';
COMMENT ON COLUMN leadprotect.guard_runs.heartbeat_at IS 'when it was last heard of; older than 60 seconds, and every backfill holds';
COMMENT ON COLUMN leadprotect.guard_runs.ended_at IS 'when it ended, or was given up';
COMMENT ON COLUMN leadprotect.guard_runs.state IS 'what it does, or how it ended';
COMMENT ON COLUMN leadprotect.guard_runs.reason IS 'why, in words';

ALTER TABLE ONLY leadprotect.guard_runs
    ADD CONSTRAINT guard_runs_pkey PRIMARY KEY (run);

ALTER TABLE leadprotect.guard_runs ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.guard_runs TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.guard_runs FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.guard_runs TO leadprotect_operator;

-- function guard_beat, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.guard_beat(run uuid, command text, began text, revision text, guard text, state text, reason text, ended boolean) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 INSERT INTO leadprotect.guard_runs AS r (run, command, began, revision, guard, state, reason, ended_at)
   VALUES (guard_beat.run, guard_beat.command, guard_beat.began, guard_beat.revision, guard_beat.guard, guard_beat.state, "left"(guard_beat.reason, 1000),
         CASE
             WHEN guard_beat.ended THEN clock_timestamp()
             ELSE NULL::timestamp with time zone
         END) ON CONFLICT(run) DO UPDATE SET revision = excluded.revision, state = excluded.state, reason = excluded.reason, heartbeat_at = clock_timestamp(), ended_at = excluded.ended_at;
END;

COMMENT ON FUNCTION leadprotect.guard_beat(run uuid, command text, began text, revision text, guard text, state text, reason text, ended boolean) IS 'The heartbeat of a guard: makes the row of its run, and says what it does';

REVOKE ALL ON FUNCTION leadprotect.guard_beat(run uuid, command text, began text, revision text, guard text, state text, reason text, ended boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.guard_beat(run uuid, command text, began text, revision text, guard text, state text, reason text, ended boolean) TO leadprotect_operator;

-- function guard_release, lp_0013_migrate_verification

CREATE FUNCTION leadprotect.guard_release(silent_for interval) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 WITH lost AS (
          UPDATE leadprotect.guard_runs r SET ended_at = clock_timestamp(), state = 'lost'::text
           WHERE ((r.ended_at IS NULL) AND (r.heartbeat_at < (clock_timestamp() - guard_release.silent_for)))
           RETURNING r.run
         )
  SELECT count(*) AS count
    FROM lost;
END;

COMMENT ON FUNCTION leadprotect.guard_release(silent_for interval) IS 'Gives up the guards that were not heard of for so long, so that a backfill may go on; how many there were';

REVOKE ALL ON FUNCTION leadprotect.guard_release(silent_for interval) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.guard_release(silent_for interval) TO leadprotect_operator;

-- function lead_tally, lp_0013_migrate_verification, owner leadprotect_reader

CREATE FUNCTION leadprotect.lead_tally() RETURNS TABLE(territory text, leads bigint, unowned bigint, missing bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET jit TO 'off'
    AS $$
        #variable_conflict use_column
        DECLARE
          known text[] := ARRAY(SELECT k.code FROM "leadprotect".territories AS k);
          few boolean := "leadprotect".few_are_bare();
        BEGIN
          RETURN QUERY
          SELECT t.territory, t.leads, coalesce(p.unowned, b.unowned, 0), coalesce(p.missing, u.missing, 0)
          FROM (SELECT nullif(l."territory"::text, '') AS territory, count(*) AS leads FROM "public"."leads" AS l GROUP BY 1) AS t
          LEFT JOIN (
            SELECT p.territory, count(*) AS unowned, count(*) FILTER (WHERE p.missing) AS missing
            FROM "leadprotect".probed_leads(CASE WHEN few THEN known ELSE '{}' END) AS p GROUP BY 1) AS p ON p.territory = t.territory
          LEFT JOIN (
            SELECT b.territory, count(*) AS unowned
            FROM "leadprotect".bare_leads(CASE WHEN few THEN '{}' ELSE known END) AS b GROUP BY 1) AS b ON b.territory = t.territory
          LEFT JOIN (
            SELECT u.territory, count(*) AS missing
            FROM "leadprotect".unowned_leads(CASE WHEN few THEN '{}' ELSE known END) AS u GROUP BY 1) AS u ON u.territory = t.territory;
        END
        $$;

COMMENT ON FUNCTION leadprotect.lead_tally() IS 'Number of leads of each territory that a lead names, of those that nobody owns, and of those whom an activity makes an owner; NULL: outside protection';

REVOKE ALL ON FUNCTION leadprotect.lead_tally() FROM PUBLIC;

-- function acting_logins, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.acting_logins(target regclass, exempt_roles name[], codes text[], borders name[]) RETURNS TABLE(login name, role name, reads boolean, edits boolean, inserts boolean, owns_it boolean, owns_leads boolean, bypasses boolean, exempt boolean, member boolean, serves boolean, territories text[], narrow boolean)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        BEGIN
          RETURN QUERY
          WITH holders AS MATERIALIZED (
            SELECT h.oid, h.rolname, 'leadprotect_app' = ANY (uses.roles) AS serves, c.relowner, leads.oid AS leads, leads.relowner AS lead_owner
            FROM pg_class AS c JOIN pg_class AS leads ON leads.oid = '"public"."leads"'::regclass CROSS JOIN pg_roles AS h CROSS JOIN LATERAL (
              SELECT ARRAY(SELECT o.rolname FROM pg_roles AS o
                           WHERE o.rolname IN ('leadprotect_app', 'leadprotect_reader', 'leadprotect_auditor') AND pg_has_role(h.oid, o.oid, 'USAGE')) AS roles) AS uses
            WHERE c.oid = target AND h.rolname <> ALL (ARRAY['leadprotect_app', 'leadprotect_auditor', 'leadprotect_manager', 'leadprotect_operator', 'leadprotect_owner', 'leadprotect_reader']::name[]) AND (
              has_table_privilege(h.oid, target, 'SELECT, INSERT, UPDATE, DELETE') OR has_any_column_privilege(h.oid, target, 'INSERT')
              -- what contract lets an auditor read for v_lead_protection makes no service of him, and what our reader
              -- reads, and writes where the host keeps owners, none of whoever migrates, be it another database of this server
              OR EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped
                  AND (has_column_privilege(h.oid, a.attrelid, a.attnum, 'UPDATE')
                      AND NOT (target = leads.oid AND a.attname = '' AND 'leadprotect_reader' = ANY (uses.roles))
                    OR has_column_privilege(h.oid, a.attrelid, a.attnum, 'SELECT')
                      AND NOT (target = leads.oid AND a.attname IN ('id', 'territory') AND uses.roles && ARRAY['leadprotect_reader', 'leadprotect_auditor']::name[]))))),
          acting AS (
            SELECT l.rolname AS login, l.oid AS login_oid, l.rolbypassrls, h.*, h.oid = l.oid AS itself,
                   l.rolname = ANY (exempt_roles) OR h.rolname = ANY (exempt_roles) AS exempt,
                   ARRAY(SELECT t.code FROM unnest(codes, borders) AS t (code, role) JOIN pg_roles AS b ON b.rolname = t.role
                         WHERE pg_has_role(h.oid, b.oid, 'USAGE') ORDER BY t.code) AS held
            FROM pg_roles AS l JOIN holders AS h ON pg_has_role(l.oid, h.oid, 'MEMBER')
            WHERE l.rolcanlogin AND NOT l.rolsuper AND has_database_privilege(l.oid, current_database(), 'CONNECT'))
          SELECT DISTINCT ON (a.login) a.login, a.rolname,
                 has_table_privilege(a.oid, target, 'SELECT') OR has_any_column_privilege(a.oid, target, 'SELECT'),
                 has_table_privilege(a.oid, target, 'UPDATE, DELETE') OR has_any_column_privilege(a.oid, target, 'UPDATE'),
                 has_table_privilege(a.oid, target, 'INSERT'),
                 pg_has_role(a.login_oid, a.relowner, 'MEMBER'), pg_has_role(a.login_oid, a.lead_owner, 'MEMBER'),
                 a.rolbypassrls, a.exempt,
                 EXISTS (SELECT FROM pg_roles AS o WHERE o.rolname = 'leadprotect_app' AND pg_has_role(a.login_oid, o.oid, 'MEMBER')),
                 a.serves, a.held,
                 (SELECT bool_and(has_column_privilege(a.oid, a.leads, needed.name, 'SELECT'))
                  FROM unnest(ARRAY['id', 'territory']) AS needed (name))
          FROM acting AS a
          ORDER BY a.login, a.exempt, a.itself DESC, (a.serves AND cardinality(a.held) > 0) DESC, a.rolname;
        END
        $$;

COMMENT ON FUNCTION leadprotect.acting_logins(target regclass, exempt_roles name[], codes text[], borders name[]) IS 'The logins that may do something with a table, each with the role by which it does, and what it holds of ours';

REVOKE ALL ON FUNCTION leadprotect.acting_logins(target regclass, exempt_roles name[], codes text[], borders name[]) FROM PUBLIC;

-- function leaking_views, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.leaking_views(target regclass, host_rls text, exempt_roles name[]) RETURNS TABLE(login name, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          what text := CASE WHEN target = '"public"."leads"'::regclass THEN 'leads' ELSE target::text END;
        BEGIN
          RETURN QUERY
          WITH RECURSIVE rules AS MATERIALIZED (
            SELECT DISTINCT d.refobjid AS source, r.ev_class AS view
            FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
          relations AS MATERIALIZED (
            SELECT c.oid, c.relkind, c.relowner, c.relacl, c.relkind = 'v' AND coalesce((
                     SELECT bool_or(o.option_value::boolean) FROM pg_options_to_table(c.reloptions) AS o
                     WHERE o.option_name = 'security_invoker'), false) AS invoker
            FROM pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.oid IN (SELECT rules.view FROM rules)),
          reached AS (
            SELECT v.oid, CASE WHEN v.invoker THEN 0::oid ELSE v.relowner END AS reader
            FROM rules JOIN relations AS v ON v.oid = rules.view WHERE rules.source = target
            UNION
            SELECT v.oid, CASE WHEN below.reader <> 0 THEN below.reader WHEN v.invoker THEN 0::oid ELSE v.relowner END
            FROM reached AS below JOIN rules ON rules.source = below.oid JOIN relations AS v ON v.oid = rules.view),
          leaks AS MATERIALIZED (
            SELECT DISTINCT v.oid, v.relkind, v.relowner, v.relacl
            FROM reached JOIN relations AS v ON v.oid = reached.oid JOIN pg_roles AS o ON o.oid = reached.reader
            WHERE NOT v.invoker AND (o.rolsuper OR o.rolbypassrls
              -- who reads every lead reads every row of a lead
              OR host_rls <> 'force' AND EXISTS (
                SELECT FROM pg_class AS c
                WHERE c.oid IN (target, '"public"."leads"'::regclass) AND pg_has_role(o.oid, c.relowner, 'USAGE')))),
          grants AS (
            SELECT l.oid, l.relowner, g.grantee, g.grantor, g.is_grantable FROM leaks AS l, aclexplode(l.relacl) AS g
            WHERE g.privilege_type = 'SELECT'
            UNION
            SELECT l.oid, l.relowner, g.grantee, g.grantor, g.is_grantable
            FROM leaks AS l JOIN pg_attribute AS a ON a.attrelid = l.oid, aclexplode(a.attacl) AS g
            WHERE g.privilege_type = 'SELECT'
            UNION
            SELECT l.oid, l.relowner, 'pg_read_all_data'::regrole, NULL, false FROM leaks AS l),
          readers AS (
            SELECT g.oid, g.grantee, min(r.rolname) AS login, bool_or(g.grantor <> g.relowner) AS passed_on,
                   string_agg((
                     -- since PostgreSQL 16 each grantor's grant is one of its own
                     SELECT string_agg(format('REVOKE %I FROM %I%s;', pg_get_userbyid(m.roleid), r.rolname,
                              CASE WHEN to_jsonb(m) ? 'set_option' AND m.grantor <> 10
                                THEN format(' GRANTED BY %I', pg_get_userbyid(m.grantor)) ELSE '' END), ' ')
                     FROM pg_auth_members AS m
                     WHERE m.member = r.oid AND pg_has_role(m.roleid, 'pg_read_all_data', 'MEMBER')), ' ' ORDER BY r.rolname)
                     FILTER (WHERE g.grantor IS NULL) AS members
            FROM grants AS g JOIN pg_roles AS r
              ON CASE g.grantee WHEN 0 THEN true ELSE pg_has_role(r.oid, g.grantee, 'MEMBER') END
            WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname <> ALL (exempt_roles)
              AND NOT pg_has_role(r.oid, g.relowner, 'MEMBER')
              AND has_database_privilege(r.oid, current_database(), 'CONNECT')
            GROUP BY g.oid, g.grantee)
          SELECT min(r.login)::name AS login,
                 format('%s reads %s as its owner %I, so login %I sees those of every territory', l.oid::regclass,
                        what, pg_get_userbyid(l.relowner), min(r.login)) AS detail,
                 CASE l.relkind WHEN 'v' THEN format('ALTER VIEW %s SET (security_invoker = true);', l.oid::regclass)
                   -- what somebody passed on goes with his right to
                   ELSE concat_ws(' ', (
                     SELECT string_agg(DISTINCT format('REVOKE GRANT OPTION FOR SELECT ON %s FROM %I CASCADE;', l.oid::regclass,
                              pg_get_userbyid(g.grantee)), ' ')
                     FROM grants AS g WHERE g.oid = l.oid AND g.grantor = l.relowner AND g.is_grantable AND bool_or(r.passed_on)),
                     string_agg(coalesce(r.members, format('REVOKE SELECT ON %s FROM %s;', l.oid::regclass,
                       CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END)), ' ')) END AS remedy
          FROM leaks AS l JOIN readers AS r ON r.oid = l.oid
          GROUP BY l.oid, l.relkind, l.relowner ORDER BY l.oid::regclass::text LIMIT 20;
        END
        $$;

COMMENT ON FUNCTION leadprotect.leaking_views(target regclass, host_rls text, exempt_roles name[]) IS 'The views that show rows of a table past its row security to a login, and what closes each';

REVOKE ALL ON FUNCTION leadprotect.leaking_views(target regclass, host_rls text, exempt_roles name[]) FROM PUBLIC;

-- function ways_around, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
        #variable_conflict use_variable
        BEGIN
          condition := 'inheritance';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s inherits from %s, so the leads in it are not protected', i.inhrelid::regclass,
                            i.inhparent::regclass), ', '), 'no table shares its rows with ' || 'public.leads'),
                 string_agg(format(CASE WHEN c.relispartition THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s;' ELSE 'ALTER TABLE %1$s NO INHERIT %2$s;' END,
                                   i.inhrelid::regclass, i.inhparent::regclass), ' ')
          INTO met, detail, remedy
          FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE '"public"."leads"'::regclass IN (i.inhparent, i.inhrelid);
          RETURN NEXT;

          -- they run as the owner of the table, past row security; the triggers of contract decide them like
          -- any edit of whoever acts, so they are named and keep nothing closed
          condition := 'referential_actions';
          met := true;
          remedy := NULL;
          SELECT coalesce(
                   string_agg(format('%I on %s changes leads with %s: decided like an edit of each of them', k.conname,
                     k.conrelid::regclass, k.confrelid::regclass), ', ' ORDER BY k.conname),
                   'no foreign key changes leads with another table')
          INTO detail
          FROM pg_constraint AS k
          WHERE k.contype = 'f' AND k.conrelid = '"public"."leads"'::regclass
            AND (k.confdeltype NOT IN ('a', 'r') OR k.confupdtype NOT IN ('a', 'r'));
          RETURN NEXT;

          -- what they change besides the statement is compared when it is done, so they are named only
          condition := 'host_triggers';
          SELECT coalesce(
                   string_agg(format('%s on %s may change leads: id and territory are compared after it', code.name,
                     'public.leads'), ', ' ORDER BY code.name), 'no trigger or rule of the host changes leads')
          INTO detail
          FROM (
            SELECT format('trigger %I', t.tgname) AS name
            FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid = '"public"."leads"'::regclass AND NOT t.tgisinternal AND t.tgenabled <> 'D'
              AND t.tgtype & 3 = 3 AND p.pronamespace <> '"leadprotect"'::regnamespace
            UNION ALL
            SELECT format('rule %I', r.rulename) FROM pg_rewrite AS r WHERE r.ev_class = '"public"."leads"'::regclass) AS code;
          RETURN NEXT;

          condition := 'views';
          SELECT count(*) = 0,
                 coalesce(string_agg(leak.detail, ', '), 'no view shows leads past row security'),
                 string_agg(leak.remedy, ' ') || ' or name the readers in exempt_roles'
          INTO met, detail, remedy FROM "leadprotect".leaking_views('"public"."leads"'::regclass, host_rls, exempt_roles) AS leak;
          RETURN NEXT;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) IS 'Conditions of the gate: what would show leads past row security';

REVOKE ALL ON FUNCTION leadprotect.ways_around(host_rls text, exempt_roles name[]) FROM PUBLIC;

-- function host_code, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.host_code(target regclass, host_rls text) RETURNS TABLE(name text, function regprocedure, runs regclass)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN QUERY
          SELECT beside.name, beside.function, beside.runs FROM pg_class AS l JOIN pg_namespace AS home ON home.oid = l.relnamespace
          CROSS JOIN LATERAL (
            SELECT format('trigger %I on %s', t.tgname, t.tgrelid::regclass) AS name, p.oid::regprocedure AS function,
                   t.tgrelid::regclass AS runs, p.prosrc AS text, CASE WHEN p.prosecdef THEN p.proowner END AS acts_as
            FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
            WHERE t.tgrelid NOT IN (l.oid, '"public"."leads"'::regclass) AND NOT t.tgisinternal AND t.tgenabled <> 'D'
              AND p.pronamespace <> 'pg_catalog'::regnamespace
              -- a plan asks this before the schema is there
              AND p.pronamespace IS DISTINCT FROM to_regnamespace('"leadprotect"')
            UNION ALL
            SELECT format('rule %I on %s', r.rulename, r.ev_class::regclass), NULL, r.ev_class::regclass, pg_get_ruledef(r.oid), c.relowner
            FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
            WHERE r.ev_class <> l.oid AND r.rulename <> '_RETURN') AS beside
          CROSS JOIN LATERAL (
            SELECT regexp_replace(replace(lower(beside.text), '"', ''), '[[:space:];(),]+', ' ', 'g') || ' ' AS words) AS plain
          WHERE l.oid = target AND EXISTS (
              SELECT FROM unnest(ARRAY['update ', 'update only ', 'delete from ', 'delete from only ', 'merge into ']) AS verb,
                unnest(ARRAY[lower(l.relname), lower(home.nspname) || '.' || lower(l.relname)]) AS called
              WHERE strpos(plain.words, verb || regexp_replace(called, '[[:space:];(),]+', ' ', 'g') || ' ') > 0)
            AND NOT coalesce((
              SELECT o.rolsuper OR o.rolbypassrls
                OR host_rls <> 'force' AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')
              FROM pg_roles AS o WHERE o.oid = beside.acts_as), false)
          LIMIT 20;
        END
        $$;

COMMENT ON FUNCTION leadprotect.host_code(target regclass, host_rls text) IS 'The triggers and rules on other tables that change a table with rights that its row security will bind';

REVOKE ALL ON FUNCTION leadprotect.host_code(target regclass, host_rls text) FROM PUBLIC;

-- function column_code, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.column_code() RETURNS TABLE(name text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT format('trigger %I on %s', t.tgname, t.tgrelid::regclass),
                 format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp;', p.oid::regprocedure, n.nspname)
          FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
          JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_language AS g ON g.oid = p.prolang
          WHERE false AND t.tgrelid = '"public"."leads"'::regclass AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
            AND NOT p.prosecdef AND n.nspname NOT IN ('pg_catalog', '"leadprotect"')
            AND n.oid <> '"leadprotect"'::regnamespace AND g.lanname NOT IN ('c', 'internal')
            AND t.tgtype & 16 <> 0 AND (t.tgattr = '' OR EXISTS (
              SELECT FROM pg_attribute AS a
              WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr) AND a.attname = ''))
            AND (g.lanname <> 'plpgsql' OR regexp_replace(regexp_replace(lower(p.prosrc),
                '--[^\n]*|''[^'']*''', ' ', 'g'), 'distinct\s+from', ' ', 'g')
              ~ '\m(insert\s+into|update\s+[a-z_"]|delete\s+from|merge\s+into|from\s+[a-z_"(]|execute|call\s|nextval|perform\s+(?!pg_notify|set_config|pg_catalog\.))')
          ORDER BY 1 LIMIT 20;
        END
        $$;

COMMENT ON FUNCTION leadprotect.column_code() IS 'The triggers of the leads that read or write elsewhere and will do so as our reader, where our functions write the owner''s column';

REVOKE ALL ON FUNCTION leadprotect.column_code() FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.column_code() TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.column_code() TO leadprotect_operator;

-- function lost_searches, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.lost_searches(target regclass) RETURNS TABLE(index text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
        BEGIN
          RETURN QUERY
          SELECT i.indexrelid::regclass::text,
            CASE WHEN lost.computed AND lost.same AND NOT lost.prefix THEN
              format('ALTER TABLE %s ADD COLUMN %I %s GENERATED ALWAYS AS (%s) STORED; CREATE INDEX CONCURRENTLY ON %1$s (%2$I); '
                     '/* it rewrites the table, then ask WHERE %2$I = ... */',
                     i.indrelid::regclass, left(c.relname, 59) || '_key', key.type, key.text)
            ELSE
              format('%10$sCREATE FUNCTION %1$s(wanted %2$s) RETURNS SETOF %3$s LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp '
                     'AS $$ BEGIN RETURN QUERY SELECT l.* FROM %3$s AS l WHERE %4$s OPERATOR(%5$s) wanted AND (%6$s OR %7$s = %8$s.admitted_territory()); END $$; '
                     'REVOKE ALL ON FUNCTION %1$s(%2$s) FROM PUBLIC; GRANT EXECUTE ON FUNCTION %1$s(%2$s) TO %9$I; '
                     '/* %11$s, then ask FROM %1$s(...) */',
                     format('%I.%I', n.nspname, left('leads_by_' || c.relname, 63)), asked.type, i.indrelid::regclass, key.text, asked.operator,
                     $outside$ (l."territory" IS NULL OR l."territory" = '')$outside$, $territory$ l."territory"$territory$, '"leadprotect"', 'leadprotect_app',
                     CASE WHEN asks.may THEN '' ELSE format('GRANT USAGE ON SCHEMA %s TO %I; ', '"leadprotect"', asks.name) END,
                     CASE WHEN asks.may THEN '' ELSE 'the first as a superuser, the others ' END || 'as the owner of the leads')
            END
          FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
          -- before the first upgrade there is no schema of ours
          CROSS JOIN LATERAL (
            SELECT o.rolname AS name, coalesce(has_schema_privilege(o.oid, to_regnamespace('"leadprotect"')::oid, 'USAGE'), o.rolsuper) AS may
            FROM pg_roles AS o WHERE o.oid = c.relowner) AS asks
          CROSS JOIN LATERAL (
            SELECT part.place, k.opcfamily, k.opcintype, i.indkey[part.place] = 0 AS computed, k.opcname LIKE '%pattern_ops' AS prefix, leaks.same
            FROM generate_series(0, i.indnkeyatts - 1) AS part (place) JOIN pg_opclass AS k ON k.oid = i.indclass[part.place]
            CROSS JOIN LATERAL (
              SELECT coalesce(bool_or(f.proleakproof), false) AS some,
                     coalesce(bool_and(f.proleakproof) FILTER (WHERE o.amoprighttype = o.amoplefttype), true) AS every,
                     coalesce(bool_or(f.proleakproof) FILTER (WHERE p.oprname = '='), false) AS same
              FROM pg_amop AS o JOIN pg_operator AS p ON p.oid = o.amopopr JOIN pg_proc AS f ON f.oid = p.oprcode
              WHERE o.amopfamily = k.opcfamily AND o.amoplefttype = k.opcintype) AS leaks
            WHERE i.indkey[part.place] = 0 OR k.opcname LIKE '%pattern_ops' OR NOT (leaks.some AND leaks.every)
            ORDER BY part.place LIMIT 1) AS lost
          JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = lost.place + 1
          -- what it is computed from, where it is computed at all, in brackets as an operator needs them
          CROSS JOIN LATERAL (
            SELECT CASE WHEN lost.computed THEN '(' || pg_get_indexdef(i.indexrelid, lost.place + 1, false) || ')'
                     ELSE 'l.' || pg_get_indexdef(i.indexrelid, lost.place + 1, false) END AS text,
                   format_type(CASE WHEN lost.computed THEN a.atttypid ELSE
                     (SELECT h.atttypid FROM pg_attribute AS h WHERE h.attrelid = i.indrelid AND h.attnum = i.indkey[lost.place]) END, NULL) AS type) AS key
          -- contains and matches are what people search by; else the first that the index knows
          LEFT JOIN LATERAL (
            SELECT 'pg_catalog.~~' AS operator, 'text' AS type WHERE lost.prefix
            UNION ALL (
              SELECT format('%s.%s', quote_ident(s.nspname), p.oprname),
                     CASE WHEN y.typtype = 'p' THEN key.type ELSE format_type(y.oid, NULL) END
              FROM pg_amop AS o JOIN pg_operator AS p ON p.oid = o.amopopr JOIN pg_namespace AS s ON s.oid = p.oprnamespace
              JOIN pg_type AS y ON y.oid = o.amoprighttype
              WHERE NOT lost.prefix AND o.amopfamily = lost.opcfamily AND o.amoppurpose = 's' AND p.oprresult = 'boolean'::regtype
              ORDER BY p.oprname NOT IN ('@>', '@@', '~~', '%', '='), o.amoplefttype <> lost.opcintype, o.amopstrategy LIMIT 1)) AS asked ON true
          WHERE i.indrelid = target AND i.indisvalid AND c.relname <> 'ix_leadprotect_leads';
        END
        $_$;

COMMENT ON FUNCTION leadprotect.lost_searches(target regclass) IS 'Indexes of the leads that row security takes from whom it binds, because what they compare may tell of hidden rows; and what gives each search back';

REVOKE ALL ON FUNCTION leadprotect.lost_searches(target regclass) FROM PUBLIC;

-- function what_changes, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.what_changes(host_rls text) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          condition := 'searches';
          met := true;
          SELECT coalesce(string_agg(format('%s can''t be used by whom row security binds', slow.index), ', ' ORDER BY slow.index)
                   || ': what it compares may tell of rows that are hidden',
                   'row security leaves every index of ' || 'public.leads' || ' to searches'),
                 string_agg(slow.remedy, E'\n' ORDER BY slow.index)
          INTO detail, remedy
          FROM "leadprotect".lost_searches('"public"."leads"'::regclass) AS slow;
          RETURN NEXT;
          remedy := NULL;

          -- INSERT ... ON CONFLICT looks past row security at the row that has the value already
          condition := 'unique_keys';
          SELECT coalesce(string_agg(key.index, ', ' ORDER BY key.index)
                   || ': an INSERT tells whether a lead of any territory has the value, and its ON CONFLICT compares with that lead',
                   'no unique key but the id of the leads reaches over territories')
          INTO detail
          FROM (
            SELECT i.indexrelid::regclass::text AS index FROM pg_index AS i
            WHERE i.indrelid = '"public"."leads"'::regclass AND i.indisunique AND NOT EXISTS (
              SELECT FROM pg_attribute AS a WHERE a.attrelid = i.indrelid
              AND a.attname IN ('id', 'territory') AND a.attnum = ANY (i.indkey::smallint[]))) AS key;
          RETURN NEXT;

          condition := 'host_code';
          SELECT count(*) = 0 OR "leadprotect".accepted_share('host_code') IS NOT NULL,
                 coalesce(string_agg(code.name, ', ' ORDER BY code.name)
                   || ' changes leads: of those that whoever runs it may not edit, silently none'
                   || CASE WHEN "leadprotect".accepted_share('host_code') IS NOT NULL THEN '; accepted' ELSE '' END,
                   'no trigger or rule on another table changes leads'),
                 'let it run as the owner of the leads (SECURITY DEFINER), or answer for it: alembic -x accept=host_code:1 upgrade head'
          INTO met, detail, remedy
          FROM "leadprotect".host_code('"public"."leads"'::regclass, host_rls) AS code;
          IF met THEN
            remedy := NULL;
          END IF;
          RETURN NEXT;

          IF false THEN
            condition := 'owner_column_code';
            SELECT count(*) = 0 OR "leadprotect".accepted_share('owner_column_code') IS NOT NULL,
                   coalesce(string_agg(code.name, ', ' ORDER BY code.name) || format(' will run as %I where our functions write %s', 'leadprotect_reader', '')
                     || CASE WHEN "leadprotect".accepted_share('owner_column_code') IS NOT NULL THEN '; accepted' ELSE '' END,
                     'no trigger of the leads does elsewhere what ' || 'leadprotect_reader' || ' may not'),
                   string_agg(code.remedy, ' ' ORDER BY code.name) || ' or answer for it: alembic -x accept=owner_column_code:1 upgrade head'
            INTO met, detail, remedy
            FROM "leadprotect".column_code() AS code;
            IF met THEN
              remedy := NULL;
            END IF;
            RETURN NEXT;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.what_changes(host_rls text) IS 'What works otherwise after contract, although nobody is locked out: named by the gate';

REVOKE ALL ON FUNCTION leadprotect.what_changes(host_rls text) FROM PUBLIC;

-- function lead_table_conditions, lp_0014_migrate_ways, owner leadprotect_reader

CREATE FUNCTION leadprotect.lead_table_conditions(host_rls text, exempt_roles name[], lead_tables text[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
        #variable_conflict use_variable
        DECLARE
          one text[];
          target regclass;
          known text[] := ARRAY(SELECT t.code FROM "leadprotect".territories AS t ORDER BY t.code);
          borders name[] := ARRAY(SELECT "leadprotect".territory_role(t.code) FROM "leadprotect".territories AS t ORDER BY t.code);
          lead_owner oid := (SELECT relowner FROM pg_class WHERE oid = '"public"."leads"'::regclass);
          locked text[] := '{}';
          unlocks text[] := '{}';
          ways text[] := '{}';
          closes text[] := '{}';
          keys text[] := '{}';
          mends text[] := '{}';
          codes text[] := '{}';
          found record;
        BEGIN
          -- what row security takes from whoever it binds, without a look at his rights
          condition := 'copy_from';
          met := true;
          SELECT coalesce('COPY ... FROM into ' || 'public.leads' || ' or lead_tables is refused to ' || string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname)
                   || ': let it INSERT, or copy into a table of its own first', 'no login that row security binds may COPY into leads')
          INTO detail
          FROM pg_roles AS r JOIN pg_class AS c ON c.oid = '"public"."leads"'::regclass
          WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND has_table_privilege(r.oid, c.oid, 'INSERT')
            AND has_database_privilege(r.oid, current_database(), 'CONNECT')
            AND (host_rls = 'force' OR c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE'));
          RETURN NEXT;

          condition := 'queues';
          SELECT coalesce(string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid::regprocedure::text)
                   || ' takes leads with SKIP LOCKED: those that its user may not edit are left out without a word',
                   'no function of the host takes leads with SKIP LOCKED'),
                 CASE WHEN count(*) > 0 THEN
                   'SELECT l."id" FROM "public"."leads" AS l WHERE "leadprotect".can_edit_lead(l."id") LIMIT 1 FOR UPDATE SKIP LOCKED' END
          INTO detail, remedy
          FROM pg_proc AS p JOIN pg_roles AS o ON o.oid = p.proowner JOIN pg_class AS l ON l.oid = '"public"."leads"'::regclass
          WHERE p.pronamespace NOT IN ('pg_catalog'::regnamespace, '"leadprotect"'::regnamespace)
            AND coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* 'skip\s+locked'
            AND coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* format('(?<!\w)%s(?!\w)', regexp_replace(l.relname, '(\W)', '\\\1', 'g'))
            AND NOT (p.prosecdef AND (o.rolsuper OR o.rolbypassrls
              OR host_rls <> 'force' AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')));
          RETURN NEXT;
          remedy := NULL;
          IF cardinality(lead_tables) = 0 THEN
            RETURN;
          END IF;
          FOREACH one SLICE 1 IN ARRAY lead_tables LOOP
            target := (
              SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
              JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
              WHERE n.nspname = one[1] AND c.relname = one[2] AND a.attname = one[3]);
            IF target IS NULL THEN
              locked := locked || format('there is no table %I.%I with a column %I', one[1], one[2], one[3]);
              unlocks := unlocks || 'correct lead_tables;'::text;
              CONTINUE;
            END IF;
            FOR found IN
              SELECT CASE
                  WHEN a.owns_it AND NOT a.owns_leads AND a.member THEN
                    format('login %I owns %s and not %s, so the row security of the one does not bind it', a.login, target, 'public.leads')
                  WHEN NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt THEN
                    format('%s has privileges on %s but is no member of %s and a territory', a.role, target, 'leadprotect_app')
                  ELSE format('%s has privileges on %s and may not read id and territory of %s, by which its rows are seen',
                              a.role, target, 'public.leads') END AS detail,
                CASE
                  WHEN a.owns_it AND NOT a.owns_leads AND a.member THEN
                    format('ALTER TABLE %s OWNER TO %I;', target, pg_get_userbyid(lead_owner))
                  WHEN NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt THEN "leadprotect".granting(a.role)
                  ELSE format('GRANT SELECT ("id", "territory") ON %s TO %I;', '"public"."leads"'::regclass, a.role) END AS remedy
              FROM "leadprotect".acting_logins(target, exempt_roles, known, borders) AS a
              WHERE NOT a.bypasses AND CASE WHEN a.owns_it AND host_rls <> 'force' THEN NOT a.owns_leads AND a.member AND NOT a.exempt
                      WHEN a.owns_leads THEN false
                      ELSE NOT (a.serves AND a.territories <> '{}') AND NOT a.exempt OR NOT a.narrow END
              ORDER BY a.login LIMIT 20
            LOOP
              locked := locked || found.detail;
              unlocks := CASE WHEN found.remedy = ANY (unlocks) THEN unlocks ELSE unlocks || found.remedy END;
            END LOOP;
            FOR found IN
              SELECT format('%s inherits from %s, so the rows in it are not protected', i.inhrelid::regclass, i.inhparent::regclass) AS detail,
                     format(CASE WHEN c.relispartition THEN 'ALTER TABLE %2$s DETACH PARTITION %1$s;' ELSE 'ALTER TABLE %1$s NO INHERIT %2$s;' END,
                       i.inhrelid::regclass, i.inhparent::regclass) AS remedy
              FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE target IN (i.inhparent, i.inhrelid)
              UNION ALL
              SELECT leak.detail, leak.remedy FROM "leadprotect".leaking_views(target, host_rls, exempt_roles) AS leak
            LOOP
              ways := ways || found.detail;
              closes := closes || found.remedy;
            END LOOP;
            codes := codes || ARRAY(
              SELECT format('%s changes rows of %s: of those that whoever runs it may not edit, silently none', code.name, target)
              FROM "leadprotect".host_code(target, host_rls) AS code ORDER BY 1);
            -- what such a key leaves behind would be everybody's, so the trigger refuses it
            FOR found IN
              SELECT format('%I takes the rows of %s from a lead that is deleted or renumbered: refused after contract, and with it the deletion',
                            k.conname, target) AS detail,
                     format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %2$I %s;', target, k.conname,
                       regexp_replace(pg_get_constraintdef(k.oid), 'ON (DELETE|UPDATE) SET (NULL|DEFAULT)( \([^)]*\))?', 'ON \1 CASCADE', 'g')) AS remedy
              FROM pg_constraint AS k
              JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attname = one[3] AND a.attnum = ANY (k.conkey)
              WHERE k.contype = 'f' AND k.conrelid = target AND k.confrelid = '"public"."leads"'::regclass
                AND (k.confdeltype IN ('n', 'd') OR k.confupdtype IN ('n', 'd'))
            LOOP
              keys := keys || found.detail;
              mends := mends || found.remedy;
            END LOOP;
          END LOOP;

          condition := 'lead_tables';
          met := cardinality(locked) = 0;
          detail := coalesce(nullif(array_to_string(locked, ', '), ''), 'every login with privileges on lead_tables is a member, and reads leads');
          remedy := nullif(array_to_string(unlocks, ' '), '');
          RETURN NEXT;
          condition := 'lead_tables_ways';
          met := cardinality(ways) = 0;
          detail := coalesce(nullif(array_to_string(ways, ', '), ''), 'no view or child shows rows of lead_tables past row security');
          remedy := nullif(array_to_string(closes, ' '), '');
          RETURN NEXT;
          condition := 'lead_tables_keys';
          met := cardinality(keys) = 0 OR "leadprotect".accepted_share('lead_tables_keys') IS NOT NULL;
          detail := coalesce(nullif(array_to_string(keys, ', '), ''), 'no foreign key takes rows of lead_tables out of protection');
          remedy := CASE WHEN NOT met THEN
            array_to_string(mends, ' ') || ' or answer for it: alembic -x accept=lead_tables_keys:1 upgrade head' END;
          RETURN NEXT;
          condition := 'lead_tables_code';
          met := cardinality(codes) = 0 OR "leadprotect".accepted_share('lead_tables_code') IS NOT NULL;
          detail := coalesce(nullif(array_to_string(codes, ', '), ''), 'no trigger or rule on another table changes rows of lead_tables');
          remedy := CASE WHEN NOT met THEN 'let it run as the owner of the table (SECURITY DEFINER), or answer for it: '
            || 'alembic -x accept=lead_tables_code:1 upgrade head' END;
          RETURN NEXT;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.lead_table_conditions(host_rls text, exempt_roles name[], lead_tables text[]) IS 'Conditions of the gate about COPY and lead_tables: who would be locked out, and what would show their rows or take them away';

REVOKE ALL ON FUNCTION leadprotect.lead_table_conditions(host_rls text, exempt_roles name[], lead_tables text[]) FROM PUBLIC;

-- table accepted_conditions, lp_0015_migrate_gate

CREATE TABLE leadprotect.accepted_conditions (
    condition text NOT NULL,
    accepted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    accepted_by name DEFAULT SESSION_USER NOT NULL,
    share numeric NOT NULL,
    CONSTRAINT ac_share CHECK (((share >= (0)::numeric) AND (share <= (1)::numeric)))
);

ALTER TABLE ONLY leadprotect.accepted_conditions FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.accepted_conditions IS 'What a person accepted of the gate of contract, by alembic -x accept=NAME:SHARE; the newest row of a condition counts';
COMMENT ON COLUMN leadprotect.accepted_conditions.condition IS 'the condition: unowned, unprotected, host_code, owner_column_code, lead_tables_keys, lead_tables_code or shadow';
COMMENT ON COLUMN leadprotect.accepted_conditions.accepted_at IS 'when';
COMMENT ON COLUMN leadprotect.accepted_conditions.accepted_by IS 'the login that migrated';
COMMENT ON COLUMN leadprotect.accepted_conditions.share IS 'the share of the leads up to which it holds, 0 to 1';

ALTER TABLE ONLY leadprotect.accepted_conditions
    ADD CONSTRAINT accepted_conditions_pkey PRIMARY KEY (condition, accepted_at);

ALTER TABLE leadprotect.accepted_conditions ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.accepted_conditions TO leadprotect_owner, leadprotect_reader USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.accepted_conditions FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.accepted_conditions TO leadprotect_reader;
GRANT SELECT ON TABLE leadprotect.accepted_conditions TO leadprotect_operator;

-- function accept_condition, lp_0015_migrate_gate

CREATE FUNCTION leadprotect.accept_condition(condition text, share numeric) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF condition IS NULL OR condition NOT IN ('unowned', 'unprotected', 'host_code', 'owner_column_code', 'lead_tables_keys', 'lead_tables_code', 'shadow') THEN
            RAISE EXCEPTION '% is no condition that can be accepted: unowned, unprotected, host_code, owner_column_code, lead_tables_keys, lead_tables_code and shadow are', coalesce(condition, 'NULL')
              USING ERRCODE = 'LP422';
          ELSIF share IS NULL OR share NOT BETWEEN 0 AND 1 THEN
            RAISE EXCEPTION 'a share is between 0 and 1' USING ERRCODE = 'LP422';
          END IF;
          IF "leadprotect".accepted_share(condition) IS DISTINCT FROM share THEN
            INSERT INTO "leadprotect".accepted_conditions (condition, share) VALUES (accept_condition.condition, accept_condition.share);
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.accept_condition(condition text, share numeric) IS 'Accepts a condition of the gate up to a share of the leads, for whoever migrates';

REVOKE ALL ON FUNCTION leadprotect.accept_condition(condition text, share numeric) FROM PUBLIC;

-- function accepted_share, lp_0015_migrate_gate

CREATE FUNCTION leadprotect.accepted_share(condition text) RETURNS numeric
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT a.share
    FROM leadprotect.accepted_conditions a
   WHERE (a.condition = accepted_share.condition)
   ORDER BY a.accepted_at DESC
  LIMIT 1;
END;

COMMENT ON FUNCTION leadprotect.accepted_share(condition text) IS 'The share of the leads up to which a condition was accepted; NULL where it was not';

REVOKE ALL ON FUNCTION leadprotect.accepted_share(condition text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.accepted_share(condition text) TO leadprotect_reader;

-- function shadow_condition, lp_0015_migrate_gate

CREATE FUNCTION leadprotect.shadow_condition(observation_window interval, exempt_roles name[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          started timestamptz := (SELECT max(r.started_at) FROM "leadprotect".shadow_runs AS r);
        BEGIN
          IF started IS NULL THEN
            RETURN;
          END IF;
          condition := 'shadow';
          SELECT count(*) = 0 OR "leadprotect".accepted_share('shadow') IS NOT NULL,
                 coalesce(string_agg(format('login %I would have been denied %s (%s)', denied.login, denied.kinds, denied.reasons), ', '
                            ORDER BY denied.login) || CASE WHEN "leadprotect".accepted_share('shadow') IS NOT NULL THEN '; accepted' ELSE '' END,
                          format('since %s the shadow saw no login that contract would lock out',
                            to_char(started AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))),
                 'see leadprotect shadow report, and begin anew when that is mended: leadprotect shadow stop, leadprotect shadow start; '
                   'or answer for it: alembic -x accept=shadow:1 upgrade head'
          INTO met, detail, remedy
          FROM (
            SELECT n.login, string_agg(DISTINCT n.kind, ', ') AS kinds, string_agg(DISTINCT n.reason, ', ') AS reasons
            FROM "leadprotect".shadow_notes AS n
            WHERE n.reason NOT IN ('read', 'owner', 'not_owner', 'unassigned', 'suspended', 'not_manager') AND n.last_at >= started
              AND (observation_window = interval '0' OR n.last_at > clock_timestamp() - observation_window)
              AND n.login <> ALL (exempt_roles) AND n.role <> ALL (exempt_roles)
            GROUP BY n.login ORDER BY n.login LIMIT 20) AS denied;
          IF met THEN
            remedy := NULL;
          END IF;
          RETURN NEXT;
        END
        $$;

COMMENT ON FUNCTION leadprotect.shadow_condition(observation_window interval, exempt_roles name[]) IS 'The condition of the gate about a shadow: whom contract would lock out by what was noted; no row where none was started';

REVOKE ALL ON FUNCTION leadprotect.shadow_condition(observation_window interval, exempt_roles name[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.shadow_condition(observation_window interval, exempt_roles name[]) TO leadprotect_reader;

-- function tolerated, lp_0015_migrate_gate, owner leadprotect_reader

CREATE FUNCTION leadprotect.tolerated(condition text, several bigint, leads bigint, what text) RETURNS TABLE(met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          share numeric := CASE WHEN leads = 0 THEN 0 ELSE round(ceil(100.0 * several / leads) / 100, 2) END;
          accepted numeric := "leadprotect".accepted_share(condition);
        BEGIN
          met := leads < 20 OR share <= coalesce(accepted, 0.5);
          detail := format('%s of %s leads %s', several, leads, what)
            || CASE WHEN accepted IS NOT NULL THEN format('; accepted up to a share of %s', accepted) ELSE '' END;
          remedy := CASE WHEN NOT met THEN format(
            'see that the settings are those of this host, or answer for it: alembic -x accept=%s:%s upgrade head', condition, share) END;
          RETURN NEXT;
        END
        $$;

COMMENT ON FUNCTION leadprotect.tolerated(condition text, several bigint, leads bigint, what text) IS 'Whether so many leads of so many are few enough, by half of them or by what a person accepted';

REVOKE ALL ON FUNCTION leadprotect.tolerated(condition text, several bigint, leads bigint, what text) FROM PUBLIC;

-- function granting, lp_0015_migrate_gate, owner leadprotect_reader

CREATE FUNCTION leadprotect.granting(member name) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
          SELECT format('GRANT %I, %I%s TO %I%s;', 'leadprotect_app', t.roles[1],
                        ' /* or ' || nullif(array_to_string(t.roles[2:], ', '), '') || ' */', m.rolname,
                        CASE WHEN m.rolinherit AND NOT EXISTS (
                               SELECT FROM pg_auth_members AS g JOIN pg_roles AS r ON r.oid = g.roleid
                               WHERE g.member = m.oid AND r.rolname IN ('leadprotect_app', t.roles[1])
                                 AND NOT coalesce((to_jsonb(g) ->> 'inherit_option')::boolean, true)) THEN ''
                             WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT TRUE'
                             ELSE format('; ALTER ROLE %I INHERIT', m.rolname) END)
          FROM pg_roles AS m
          CROSS JOIN (SELECT array_agg("leadprotect".territory_role(code) ORDER BY code) AS roles FROM "leadprotect".territories) AS t
          WHERE m.rolname = member
        $$;

COMMENT ON FUNCTION leadprotect.granting(member name) IS 'What a superuser runs so that a login, or the role that it sets, is a member of the app role and a territory, and acts with them';

REVOKE ALL ON FUNCTION leadprotect.granting(member name) FROM PUBLIC;

-- function shell_word, lp_0015_migrate_gate, owner leadprotect_reader

CREATE FUNCTION leadprotect.shell_word(said text) RETURNS text
    LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN (said ~ '^[A-Za-z0-9_]+$'::text) THEN said ELSE ((''''::text || replace(said, ''''::text, '''"''"'''::text)) || ''''::text) END;

COMMENT ON FUNCTION leadprotect.shell_word(said text) IS 'A text as one word of a command line';

REVOKE ALL ON FUNCTION leadprotect.shell_word(said text) FROM PUBLIC;

-- function gate_conditions, lp_0015_migrate_gate, owner leadprotect_reader

CREATE FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[] DEFAULT '{}'::text[]) RETURNS TABLE(condition text, met boolean, detail text, remedy text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $_$
        #variable_conflict use_variable
        DECLARE
          complete_since timestamptz;
          codes text[];
          tallies bigint[];
          unowned bigint[];
          missing bigint[];
          leads bigint;
          several bigint;
          host_owner oid := (SELECT relowner FROM pg_class WHERE oid = '"public"."leads"'::regclass);
          -- where the table is forced its owner is bound like anybody else
          forced boolean := host_rls = 'force' OR (SELECT relforcerowsecurity FROM pg_class WHERE oid = '"public"."leads"'::regclass);
          -- a note stands for the writes of an interval; a window of 0 asks for no look back at all
          noted interval := CASE WHEN observation_window > interval '0' THEN interval '60 seconds' ELSE interval '0' END;
        BEGIN
          -- the login for backups sees all by its own attribute, and no service may become it
          exempt_roles := array_append(exempt_roles, 'leadprotect_backup'::name);
          -- row security that the host had before binds the owner too: what it can't see, it can't miss
          condition := 'visibility';
          SELECT count(*) = 0,
                 coalesce(string_agg(hidden.detail, ', '), 'no row of the host is hidden from ' || quote_ident('leadprotect_reader')),
                 string_agg(hidden.remedy, ' ')
          INTO met, detail, remedy
          FROM (
            SELECT format('row-level security of %s hides rows from %I', c.oid::regclass, 'leadprotect_reader')
                     || coalesce(' (restrictive policy ' || p.binding || ')', '') AS detail,
                   concat_ws(' ',
                     CASE WHEN p.opened IS NOT TRUE
                       THEN format('CREATE POLICY %I ON %s FOR SELECT TO %I USING (current_user = %L);', 'read_for_' || 'leadprotect_reader',
                                   c.oid::regclass, 'leadprotect_reader', 'leadprotect_reader') END,
                     'let restrictive policies bind the roles of your application only: ALTER POLICY '
                       || p.binding || format(' ON %s TO ...', c.oid::regclass)) AS remedy
            FROM pg_class AS c CROSS JOIN LATERAL (
              SELECT bool_or(q.polpermissive AND q.condition IN ('true', '(CURRENT_USER = ''leadprotect_reader''::name)')) AS opened,
                     string_agg(quote_ident(q.polname), ', ' ORDER BY q.polname)
                       FILTER (WHERE NOT q.polpermissive AND q.condition <> 'true'
                         AND q.polname <> ALL (ARRAY['leadprotect_border', 'leadprotect_rows', 'leadprotect_update', 'leadprotect_named_update', 'leadprotect_delete', 'leadprotect_members_update', 'leadprotect_members_delete', 'leadprotect_step', 'leadprotect_child_border', 'leadprotect_child_rows', 'leadprotect_child_insert', 'leadprotect_child_update', 'leadprotect_child_delete']::name[])) AS binding
              FROM (
                SELECT polname, polpermissive, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy
                WHERE polrelid = c.oid AND polcmd IN ('r', '*') AND EXISTS (
                  SELECT FROM unnest(polroles) AS bound WHERE bound = 0 OR pg_has_role(bound, 'USAGE'))) AS q) AS p
            WHERE c.oid = ANY (ARRAY['"public"."leads"', '"public"."activities"']::regclass[]) AND row_security_active(c.oid)
              AND (p.opened IS NOT TRUE OR p.binding IS NOT NULL)
            ORDER BY c.relname) AS hidden;
          IF met THEN
            SELECT count(*) = 0, coalesce(string_agg(u.detail, ', '), detail), string_agg(replace(u.remedy, E'\n', ' '), ' ')
            INTO met, detail, remedy FROM "leadprotect".unreadable() AS u;
            IF NOT met THEN
              -- whatever else is asked reads the same tables
              RETURN NEXT;
              RETURN;
            END IF;
          END IF;
          RETURN NEXT;

          SELECT array_agg(t.territory), array_agg(t.leads), array_agg(t.unowned), array_agg(t.missing), coalesce(sum(t.leads), 0)
          INTO codes, tallies, unowned, missing, leads FROM "leadprotect".lead_tally() AS t;

          condition := 'owners';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads in %s have %s but no owner', t.leads, t.code, 'a qualifying activity'), ', ' ORDER BY t.code),
                          'every lead with ' || 'a qualifying activity' || ' has its owner'),
                 'leadprotect backfill ' || string_agg("leadprotect".shell_word(t.code), ' ' ORDER BY t.code)
          INTO met, detail, remedy
          FROM unnest(codes, missing) AS t (code, leads) WHERE t.leads > 0;
          -- Before a walk has ended, a derived owner may be older than the transition's triggers: from a
          -- life before a downgrade. It is asked before that index goes; the triggers keep what was found.
          IF met AND "leadprotect".sources_indexed() THEN
            SELECT count(*) = 0,
                   coalesce(string_agg(format('%s leads in %s have another owner than %s says',
                              stale.leads, stale.code, 'their newest qualifying activity'), ', '), detail),
                   'leadprotect backfill ' || string_agg("leadprotect".shell_word(stale.code), ' ')
            INTO met, detail, remedy
            FROM (
              SELECT j.territory AS code, count(*) AS leads
              FROM "leadprotect".backfill_jobs AS j, "leadprotect".backfill_stale(j.territory)
              WHERE j.ended_at IS NULL
              GROUP BY j.territory ORDER BY j.territory) AS stale;
          END IF;
          RETURN NEXT;

          -- what keeps owners current until contract: off for a while, and an older owner stands
          condition := 'transition';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('the trigger of %s on %s %s', kept.function, kept.host_table, kept.state), ', '),
                          'the triggers of the transition keep owners current'),
                 string_agg(CASE WHEN kept.name IS NULL THEN 'alembic downgrade lp_0009_expand_indexes and upgrade head make it anew;'
                                 ELSE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I;', kept.host_table, kept.name) END, ' ')
                   || ' then leadprotect backfill for every territory'
          INTO met, detail, remedy
          FROM (
            SELECT wanted.function, coalesce(t.tgrelid::regclass, wanted.host_table) AS host_table, t.tgname AS name,
                   CASE WHEN t.oid IS NULL THEN 'is gone' WHEN t.tgenabled = 'D' THEN 'is disabled'
                     WHEN t.tgenabled <> 'A' THEN 'does not fire always' END AS state
            FROM (VALUES ('note_contextless_write', '"public"."leads"'::regclass, 'leadprotect_note_writes'),
                         ('own_moved_lead', '"public"."leads"'::regclass, 'leadprotect_territory'),
                         ('note_contextless_write', '"public"."activities"'::regclass, 'leadprotect_note_writes'),
                         ('own_active_lead', '"public"."activities"'::regclass, 'leadprotect_transition')) AS wanted (function, host_table, name)
            LEFT JOIN (
              pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid AND p.pronamespace = '"leadprotect"'::regnamespace)
              ON p.proname = wanted.function AND t.tgname = wanted.name
              AND (t.tgrelid = wanted.host_table
                -- each partition has its own, which can be disabled alone
                OR t.tgparentid <> 0 AND t.tgrelid IN (SELECT part.relid FROM pg_partition_tree(wanted.host_table) AS part))
            -- contract ends them itself, first those on the leads
            WHERE to_regclass('"leadprotect".host_row_security') IS NULL) AS kept
          WHERE kept.state IS NOT NULL;
          RETURN NEXT;

          condition := 'constraints';
          SELECT count(*) = 0,
                 coalesce('not validated: ' || string_agg(format('%I on %s', c.conname, c.conrelid::regclass), ', '),
                          'all constraints are validated'),
                 string_agg(format('ALTER TABLE %s VALIDATE CONSTRAINT %I;', c.conrelid::regclass, c.conname), ' ')
          INTO met, detail, remedy
          FROM pg_constraint AS c
          WHERE c.connamespace = '"leadprotect"'::regnamespace AND NOT c.convalidated;
          RETURN NEXT;

          condition := 'observation_window';
          SELECT max(greatest(j.registered_at, j.finished_at)) INTO complete_since FROM "leadprotect".backfill_jobs AS j;
          met := coalesce(complete_since + observation_window <= clock_timestamp(), false);
          detail := format('migrate is complete since %s, the observation window is %s',
                           coalesce(to_char(complete_since AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'),
                           justify_hours(observation_window));
          remedy := CASE WHEN NOT met THEN
            format('wait until %s, or shorten observation_window',
                   to_char((complete_since + observation_window) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END;
          RETURN NEXT;

          IF host_rls = 'off' THEN
            RETURN;
          END IF;

          condition := 'territories';
          -- what stands in a lead is data: it is shown in one short line, and no part of a command
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads carry the unknown territory %L', unknown.leads,
                            left(regexp_replace(unknown.territory, '[[:cntrl:]]', ' ', 'g'), 40)), ', '),
                          'every territory of a lead is known'),
                 string_agg(DISTINCT CASE
                   -- a code in another case is no other territory: their roles would have one name
                   WHEN unknown.meant IS NOT NULL AND 'territory' <> '' THEN format('UPDATE %s SET %I = %L WHERE %2$I = %4$L;',
                     '"public"."leads"', 'territory', unknown.meant, unknown.territory)
                   WHEN unknown.territory ~ '^[A-Za-z0-9][A-Za-z0-9_]{0,15}$'
                     THEN 'leadprotect territory add ' || unknown.territory
                   WHEN "leadprotect".is_code(unknown.territory)
                     THEN 'correct the territory of these leads, or name the suffix of a role: leadprotect territory add --suffix SUFFIX '
                       || "leadprotect".shell_word(unknown.territory)
                   ELSE 'correct the territory of these leads' END, '; ')
          INTO met, detail, remedy
          FROM (
            SELECT t.territory, t.leads, (
                     SELECT k.code FROM "leadprotect".territories AS k WHERE lower(k.code) = lower(t.territory)) AS meant
            FROM unnest(codes, tallies) AS t (territory, leads)
            WHERE t.territory IS NOT NULL AND t.territory NOT IN (SELECT known.code FROM "leadprotect".territories AS known)
            ORDER BY t.territory LIMIT 5) AS unknown;
          RETURN NEXT;

          -- whether anybody will be able to edit, and whether anything is protected: what is meant, and what
          -- a wrong setting looks like, differ by a person's word
          condition := 'unprotected';
          several := coalesce((SELECT sum(t.leads) FROM unnest(codes, tallies) AS t (territory, leads) WHERE t.territory IS NULL), 0);
          SELECT t.met, t.detail, t.remedy INTO met, detail, remedy
          FROM "leadprotect".tolerated('unprotected', several, leads, 'have no territory, so they stay everybody''s') AS t;
          RETURN NEXT;

          condition := 'unowned';
          -- a walk gives the missing ones their owners: who answers for them now answers for what will not be
          SELECT coalesce(sum(t.leads), 0), coalesce(sum(t.unowned - t.missing), 0) INTO leads, several
          FROM unnest(codes, tallies, unowned, missing) AS t (territory, leads, unowned, missing)
          JOIN "leadprotect".territories AS known ON known.code = t.territory;
          SELECT t.met, t.detail, t.remedy INTO met, detail, remedy
          FROM "leadprotect".tolerated('unowned', several, leads, 'of the territories have no owner, so nobody could edit them before he claims one') AS t;
          RETURN NEXT;

          IF false THEN
            condition := 'owner_column';
            SELECT count(d.lead_id) INTO several FROM "leadprotect".territories AS t, "leadprotect".owner_column_differs(t.code) AS d;
            met := true;
            detail := CASE WHEN 0 < ANY (missing) THEN format('%s is compared with the owners once every lead has its own', '')
              WHEN several = 0 THEN format('%s names the owner of every lead, and will be written with him', '')
              ELSE format('%s leads name somebody else in %s than their owner, or nobody; the owner counts from contract on, and is written with the next change, or then by SELECT %s.settle_owner_column(...)',
                          several, '', '"leadprotect"') END;
            remedy := NULL;
            RETURN NEXT;
          END IF;

          condition := 'contextless_writes';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('login %I wrote to %s without a context at %s', late.login, late.host_table,
                            to_char(late.at AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')), ', '),
                          'no write without a context inside the observation window'),
                 'deploy the version that sets its context (leadprotect.acting_as) and wait until '
                   || to_char((max(late.at) + observation_window + noted) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
                   || ', or name the login in exempt_roles'
          INTO met, detail, remedy
          FROM (
            SELECT DISTINCT ON (w.login) w.login, w.host_table, w.at FROM "leadprotect".contextless_writes AS w
            WHERE NOT w.with_context AND w.at > clock_timestamp() - observation_window - noted
              AND w.login <> ALL (exempt_roles)
            ORDER BY w.login, w.at DESC) AS late;
          RETURN NEXT;

          condition := 'logins';
          SELECT count(*) = 0,
                 coalesce(string_agg(locked.detail, ', '), 'every login with privileges is a member, or owns the table and is idle'),
                 string_agg(locked.remedy, ' ') || ' or name it in exempt_roles'
          INTO met, detail, remedy
          FROM (
            WITH suspects AS (
              SELECT a.login, a.role, a.owns_leads AS owns, a.bypasses, a.serves AND a.territories <> '{}' AS ready,
                     (SELECT max(w.at) FROM "leadprotect".contextless_writes AS w
                      WHERE w.login = a.login AND w.at > clock_timestamp() - observation_window - noted) AS wrote
              FROM "leadprotect".acting_logins('"public"."leads"'::regclass, exempt_roles,
                ARRAY(SELECT t.code FROM "leadprotect".territories AS t ORDER BY t.code),
                ARRAY(SELECT "leadprotect".territory_role(t.code) FROM "leadprotect".territories AS t ORDER BY t.code)) AS a
              WHERE NOT a.exempt)
            SELECT CASE WHEN s.owns
                THEN format('login %I owns %s, so row security does not bind it, and wrote at %s', s.login, 'public.leads',
                            to_char(s.wrote AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                ELSE format('%s has privileges on %s but is no member of %s and a territory',
                            CASE s.role WHEN s.login THEN format('login %I', s.login)
                              ELSE format('role %I, which login %I sets,', s.role, s.login) END,
                            'public.leads', 'leadprotect_app') END AS detail,
              CASE WHEN s.owns
                THEN format('let the service log in as another member of %I and wait until %s,', 'leadprotect_app',
                            to_char((s.wrote + observation_window + noted) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                -- what contract does not bind is to be meant
                ELSE CASE WHEN s.bypasses THEN format('ALTER ROLE %I NOBYPASSRLS; ', s.login) ELSE '' END
                     || "leadprotect".granting(s.role) END AS remedy
            FROM suspects AS s
            WHERE NOT s.ready AND (NOT s.owns OR s.wrote IS NOT NULL) OR s.owns AND s.wrote IS NOT NULL
            ORDER BY s.login LIMIT 20) AS locked;
          IF forced THEN
            detail := detail || (
              SELECT format('; %s is forced, so %I, who owns it, is bound like anybody else and keeps no maintenance access',
                            'public.leads', o.rolname)
              FROM pg_roles AS o WHERE o.oid = host_owner);
          END IF;
          RETURN NEXT;

          -- what row security passes by must be out of reach of whoever it is to bind
          condition := 'exempt_roles';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('login %I is a service and can become %I, which is exempt', m.login, m.exempt), ', '),
                          'no service can become an exempt role'),
                 string_agg(taken.back, ' ') || ' or take it out of exempt_roles'
          INTO met, detail, remedy
          FROM (
            SELECT l.oid, l.rolname AS login, e.oid AS exempt_oid, e.rolname AS exempt
            FROM pg_roles AS l JOIN pg_roles AS e ON e.rolname = ANY (exempt_roles) AND e.oid <> l.oid
            WHERE l.rolcanlogin AND NOT l.rolsuper AND pg_has_role(l.oid, e.oid, 'MEMBER')
              AND pg_has_role(l.oid, 'leadprotect_app', 'MEMBER')
              AND has_database_privilege(l.oid, current_database(), 'CONNECT')
            ORDER BY 2, 4 LIMIT 20) AS m
          CROSS JOIN LATERAL (
            -- a group may be what gives it; since PostgreSQL 16 each grantor's grant is one of its own, which only a newer
            -- server's memberships tell, and whom the login granted it keeps it, by a superuser's own grant
            SELECT string_agg(
                     coalesce(below.kept || ' ', '') || format('REVOKE %I FROM %I', pg_get_userbyid(g.roleid), m.login)
                     || CASE WHEN g.options ? 'set_option' AND g.grantor <> 10
                          THEN format(' GRANTED BY %I', pg_get_userbyid(g.grantor)) ELSE '' END
                     || CASE WHEN below.kept IS NULL THEN ';' ELSE ' CASCADE;' END, ' ' ORDER BY g.roleid, g.grantor) AS back
            FROM (SELECT a.roleid, a.member, a.grantor, to_jsonb(a) AS options FROM pg_auth_members AS a) AS g
            CROSS JOIN LATERAL (
              WITH RECURSIVE hanging AS (
                SELECT h.member, to_jsonb(h) AS options FROM pg_auth_members AS h
                WHERE h.roleid = g.roleid AND h.grantor = g.member AND g.options ? 'set_option'
                UNION
                SELECT h.member, to_jsonb(h) FROM hanging JOIN pg_auth_members AS h
                  ON h.roleid = g.roleid AND h.grantor = hanging.member)
              SELECT string_agg(format('GRANT %I TO %I WITH ADMIN %s, INHERIT %s, SET %s;', pg_get_userbyid(g.roleid),
                       pg_get_userbyid(h.member), h.options ->> 'admin_option', h.options ->> 'inherit_option',
                       h.options ->> 'set_option'), ' ') AS kept
              FROM hanging AS h) AS below
            WHERE g.member = m.oid AND (g.roleid = m.exempt_oid OR pg_has_role(g.roleid, m.exempt_oid, 'MEMBER'))) AS taken;
          RETURN NEXT;

          RETURN QUERY SELECT * FROM "leadprotect".ways_around(host_rls, exempt_roles);
          RETURN QUERY SELECT * FROM "leadprotect".what_changes(host_rls);
          RETURN QUERY SELECT * FROM "leadprotect".lead_table_conditions(host_rls, exempt_roles, lead_tables);
          RETURN QUERY SELECT * FROM "leadprotect".shadow_condition(observation_window, exempt_roles);
        END
        $_$;

COMMENT ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) IS 'The conditions of contract, each with what is in the way and what to run';

REVOKE ALL ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.gate_conditions(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) TO leadprotect_operator;

-- function require_open_gate, lp_0015_migrate_gate

CREATE FUNCTION leadprotect.require_open_gate(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[] DEFAULT '{}'::text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          closed text;
        BEGIN
          SELECT string_agg(format('%s (%s)', g.detail, g.remedy), '; ') INTO closed
          FROM "leadprotect".gate_conditions(observation_window, host_rls, exempt_roles, lead_tables) AS g
          WHERE g.met IS NOT TRUE;
          IF closed IS NOT NULL THEN
            RAISE EXCEPTION 'the gate of contract is closed: %', closed
              USING ERRCODE = 'LP409', HINT = 'leadprotect status shows what to run.';
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.require_open_gate(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) IS 'Raises SQLSTATE LP409 while a condition of contract is false, with what is in the way and what to run';

REVOKE ALL ON FUNCTION leadprotect.require_open_gate(observation_window interval, host_rls text, exempt_roles name[], lead_tables text[]) FROM PUBLIC;

-- =================================================================================================
-- Host
--
-- What stands on the host's tables, the functions behind it, and what the tables were like before
-- (that is how a downgrade gives them back). The triggers fire ALWAYS: session_replication_role
-- does not silence them.
-- =================================================================================================

-- grants on public.leads, lp_0001_expand_territories, lp_0017_contract_enforce

GRANT SELECT(id) ON TABLE public.leads TO leadprotect_reader;
GRANT SELECT(id) ON TABLE public.leads TO leadprotect_auditor;
GRANT SELECT(territory) ON TABLE public.leads TO leadprotect_reader;
GRANT SELECT(territory) ON TABLE public.leads TO leadprotect_auditor;

-- grants on public.activities, lp_0001_expand_territories

GRANT SELECT(id) ON TABLE public.activities TO leadprotect_reader;
GRANT SELECT(lead_id) ON TABLE public.activities TO leadprotect_reader;
GRANT SELECT(user_id) ON TABLE public.activities TO leadprotect_reader;
GRANT SELECT(kind) ON TABLE public.activities TO leadprotect_reader;
GRANT SELECT(created_at) ON TABLE public.activities TO leadprotect_reader;

-- table revision_undo, lp_0001_expand_territories

CREATE TABLE leadprotect.revision_undo (
    revision text NOT NULL,
    down_revision text,
    statements text[] NOT NULL,
    host_locks jsonb NOT NULL,
    hash text NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY leadprotect.revision_undo FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.revision_undo IS 'The downgrade of each applied revision, for leadprotect rollback of a version that does not know it';
COMMENT ON COLUMN leadprotect.revision_undo.revision IS 'the revision that it undoes';
COMMENT ON COLUMN leadprotect.revision_undo.down_revision IS 'what is applied afterwards; NULL is the base';
COMMENT ON COLUMN leadprotect.revision_undo.statements IS 'one by one; COMMIT and BEGIN stand around those that run outside of a transaction';
COMMENT ON COLUMN leadprotect.revision_undo.host_locks IS 'the strongest lock on each table of the host';
COMMENT ON COLUMN leadprotect.revision_undo.hash IS 'SHA-256 of all of this: what differs is not executed';
COMMENT ON COLUMN leadprotect.revision_undo.made_at IS 'when the revision was applied';

ALTER TABLE ONLY leadprotect.revision_undo
    ADD CONSTRAINT revision_undo_pkey PRIMARY KEY (revision);

ALTER TABLE leadprotect.revision_undo ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.revision_undo TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());
CREATE POLICY lp_operator ON leadprotect.revision_undo FOR SELECT TO leadprotect_operator USING (true);

GRANT SELECT ON TABLE leadprotect.revision_undo TO leadprotect_operator;

-- function hold_leads, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.hold_leads(leads uuid[]) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        BEGIN
          IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = '"public"."leads"'::regclass AND t.tgname = 'leadprotect_follow_column') THEN
            RETURN false;
          END IF;
          PERFORM FROM "public"."leads" AS l WHERE l."id" = ANY (leads) ORDER BY l."id" FOR NO KEY UPDATE;
          RETURN true;
        END
        $$;

COMMENT ON FUNCTION leadprotect.hold_leads(leads uuid[]) IS 'Locks leads whose column will be written, before anything else of them; false: the column is not in step yet';

REVOKE ALL ON FUNCTION leadprotect.hold_leads(leads uuid[]) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.hold_leads(leads uuid[]) TO leadprotect_owner;

-- function write_owner_column, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.write_owner_column(leads uuid[], places text[], new_owner uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_variable
        DECLARE
          wanted "public"."leads"."id"%TYPE := new_owner;
        BEGIN
          IF NOT "leadprotect".hold_leads(leads) THEN
            RETURN;
          END IF;
          UPDATE "public"."leads" AS l SET "id" = wanted
          FROM unnest(leads, places) AS u (lead, here)
          WHERE l."id" = u.lead AND l."territory" = u.here AND (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) IS DISTINCT FROM new_owner;
          IF EXISTS (
            SELECT FROM unnest(leads, places) AS u (lead, here), "public"."leads" AS l
            WHERE l."id" = u.lead AND l."territory" = u.here AND (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) IS DISTINCT FROM new_owner)
          THEN
            RAISE EXCEPTION 'column % of % does not take the owner', '', '"public"."leads"'
              USING ERRCODE = 'LP422', DETAIL = 'A policy, a trigger or a rule of the host kept or changed it, or excluded_users names him.';
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.write_owner_column(leads uuid[], places text[], new_owner uuid) IS 'Writes the owner of these leads into the host''s own column for it, from contract on; a lead that is elsewhere by now is left';

REVOKE ALL ON FUNCTION leadprotect.write_owner_column(leads uuid[], places text[], new_owner uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.write_owner_column(leads uuid[], places text[], new_owner uuid) TO leadprotect_owner;

-- function owner_column_differs, lp_0002_expand_assignments, owner leadprotect_reader

CREATE FUNCTION leadprotect.owner_column_differs(here text) RETURNS TABLE(lead_id uuid, owner uuid)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT l."id"::uuid, a.user_id
          FROM "public"."leads" AS l LEFT JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = l."id" AND a.territory = here
          WHERE false AND l."territory" = here AND (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END) IS DISTINCT FROM a.user_id;
        END
        $$;

COMMENT ON FUNCTION leadprotect.owner_column_differs(here text) IS 'Leads of the territory whose own column names somebody else than their owner, and the owner; none where there is no owner_column';

REVOKE ALL ON FUNCTION leadprotect.owner_column_differs(here text) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.owner_column_differs(here text) TO leadprotect_owner;
GRANT ALL ON FUNCTION leadprotect.owner_column_differs(here text) TO leadprotect_operator;

-- function settle_owner_column, lp_0002_expand_assignments

CREATE FUNCTION leadprotect.settle_owner_column(here text, leads integer DEFAULT 1000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          found uuid[] := ARRAY(
            SELECT d.lead_id FROM "leadprotect".owner_column_differs(here) AS d ORDER BY 1 LIMIT leads);
          same record;
        BEGIN
          PERFORM "leadprotect".hold_leads(found);
          -- who owns them under the lock
          FOR same IN
            SELECT a.user_id AS owner, array_agg(f.lead) AS leads, array_agg(here) AS places
            FROM unnest(found) AS f (lead) LEFT JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = f.lead AND a.territory = here
            GROUP BY a.user_id
          LOOP
            PERFORM "leadprotect".write_owner_column(same.leads, same.places, same.owner);
          END LOOP;
          RETURN cardinality(found);
        END
        $$;

COMMENT ON FUNCTION leadprotect.settle_owner_column(here text, leads integer) IS 'After contract: writes the owner into the lead''s own column where it names somebody else; how many leads there were';

REVOKE ALL ON FUNCTION leadprotect.settle_owner_column(here text, leads integer) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.settle_owner_column(here text, leads integer) TO leadprotect_operator;

-- function edit_own_one, lp_0003_expand_audit

CREATE FUNCTION leadprotect.edit_own_one(lead uuid, remark text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          declared_user text := pg_catalog.current_setting('app.user_id', true);
          author uuid;
          here text := pg_catalog.current_setting('app.territory', true);
        BEGIN
          IF current_setting('transaction_isolation') <> 'read committed' THEN
            RETURN false;
          END IF;
          SELECT a.user_id INTO author FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = lead AND a.territory = here AND a.user_id::text = declared_user AND "leadprotect".is_member(here)
            FOR SHARE;
          IF NOT FOUND OR NOT "leadprotect".unsuspended(lead, author, here) THEN
            RETURN false;
          END IF;
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT lead, author, "leadprotect".acting_role(), here, 'EDIT', 'ALLOW', 'owner', remark,
                 CASE WHEN pg_catalog.current_setting('app.correlation_id', true) <> '' THEN "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)) END, 'assignment'
          WHERE NOT EXISTS (SELECT FROM "leadprotect".recorded_edit(lead, author));
          RETURN true;
        END
        $$;

COMMENT ON FUNCTION leadprotect.edit_own_one(lead uuid, remark text) IS 'Whether an edit is the plain case of the owner of its lead; if so it is decided under locks and recorded once a transaction';

REVOKE ALL ON FUNCTION leadprotect.edit_own_one(lead uuid, remark text) FROM PUBLIC;

-- function edit_together, lp_0003_expand_audit

CREATE FUNCTION leadprotect.edit_together(leads uuid[], remark text) RETURNS uuid[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        #variable_conflict use_variable
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          here text := pg_catalog.current_setting('app.territory', true);
          own uuid[];
          shared uuid[] := '{}';
          allowed uuid[];
        BEGIN
          PERFORM "leadprotect".require_fresh_rules();
          IF author IS NULL OR NOT "leadprotect".is_member(here) THEN
            RETURN '{}';
          END IF;
          IF EXISTS (
            SELECT FROM "leadprotect".lead_protection_rules AS r
            WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR')
          THEN
            SELECT coalesce(array_agg(e.lead) FILTER (WHERE e.reason = 'owner'), '{}'),
                   coalesce(array_agg(e.lead) FILTER (WHERE e.reason = 'collaborator'), '{}')
            INTO own, shared FROM "leadprotect".editable_among(leads) AS e;
          END IF;
          IF cardinality(shared) = 0 THEN
            own := ARRAY(
              SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here AND a.user_id = author
              ORDER BY a.lead_id FOR SHARE);
          ELSE
            leads := own || shared;
            SELECT coalesce(array_agg(a.lead_id) FILTER (WHERE a.user_id = author), '{}') INTO own
            FROM (
              SELECT a.lead_id, a.user_id FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = here
              ORDER BY a.lead_id FOR SHARE) AS a;
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id = ANY (shared)
              ORDER BY r.lead_id, r.effective_from FOR SHARE;
            PERFORM FROM "leadprotect".lead_protection_rules AS r
              WHERE r.user_id = author AND r.territory = here AND r.protection = 'COLLABORATOR' AND r.lead_id IS NULL
              ORDER BY r.effective_from FOR SHARE;
          END IF;
          -- what nobody owns may have no assignment, and rests on its rule
          WITH decided AS MATERIALIZED (
            SELECT e.lead, e.reason, 'assignment' AS basis FROM "leadprotect".editable_among(own) AS e WHERE e.reason = 'owner'
            UNION ALL
            SELECT e.lead, e.reason, c.rule
            FROM "leadprotect".editable_among(shared) AS e, LATERAL "leadprotect".collaboration(e.lead, author, here) AS c (rule)
            WHERE e.reason = 'collaborator'
          ), recorded AS (
            INSERT INTO "leadprotect".lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT d.lead, author, (SELECT "leadprotect".acting_role()), here, 'EDIT', 'ALLOW', d.reason, remark,
                   (SELECT "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true))), d.basis
            FROM decided AS d LEFT JOIN LATERAL "leadprotect".recorded_edit(d.lead, author) AS r (id) ON true
            WHERE r.id IS NULL
          )
          SELECT coalesce(array_agg(d.lead), '{}') INTO allowed FROM decided AS d;
          RETURN allowed;
        END
        $$;

COMMENT ON FUNCTION leadprotect.edit_together(leads uuid[], remark text) IS 'Decides edits of leads that the user in context owns or shares, under locks, and records each once a transaction; returns those';

REVOKE ALL ON FUNCTION leadprotect.edit_together(leads uuid[], remark text) FROM PUBLIC;

-- function follow_lead, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.follow_lead(lead uuid, here text, named uuid, protected boolean, touched boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          standing uuid := (
            SELECT a.user_id FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = lead AND a.territory = here);
          reason text;
          basis text;
          edited boolean;
          change text;
        BEGIN
          change := CASE WHEN named IS NOT DISTINCT FROM standing THEN NULL WHEN named IS NULL THEN 'release'
                         WHEN named = author AND NOT "leadprotect".is_manager() THEN 'claim' ELSE 'assign' END;
          IF NOT "leadprotect".acts_bound() THEN
            IF change IS NOT NULL THEN
              INSERT INTO "leadprotect".user_lead_assignments AS a (lead_id, territory, user_id, assigned_at, assigned_by, source)
              VALUES (lead, here, named, clock_timestamp(), author, change)
              ON CONFLICT (lead_id, territory) DO UPDATE
                SET user_id = excluded.user_id, assigned_at = excluded.assigned_at, assigned_by = excluded.assigned_by,
                    source = excluded.source, activity_at = NULL, activity_id = NULL, activity_source = NULL;
              PERFORM "leadprotect".write_audit(
                lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action, 'maintenance',
                concat_ws('; ', 'by ' || '', change || coalesce(' to ' || named, '')), 'not bound by row security', here);
            END IF;
            RETURN;
          END IF;
          IF protected THEN
            edited := change IS NULL OR touched;
            SELECT d.reason, d.basis INTO reason, basis FROM "leadprotect".decide_locked(lead) AS d;
            IF edited AND reason NOT IN ('owner', 'collaborator')
              AND NOT coalesce(change = 'claim' AND reason = 'unassigned'
                OR change IS NOT NULL AND "leadprotect".is_manager() AND author IS NOT NULL AND reason IN ('unassigned', 'not_owner'), false)
            THEN
              PERFORM "leadprotect".deny(lead, 'EDIT', reason, 'update without assertion');
            END IF;
          END IF;
          IF change IS NOT NULL THEN
            PERFORM "leadprotect".require(
              lead, CASE change WHEN 'release' THEN 'UNASSIGN' ELSE 'ASSIGN' END::"leadprotect".lead_action,
              "leadprotect".try_change_owner(lead, change, named, 'by ' || ''), 'by ' || '');
          END IF;
          IF edited AND NOT EXISTS (SELECT FROM "leadprotect".recorded_edit(lead, author)) THEN
            PERFORM "leadprotect".write_audit(
              lead, 'EDIT', CASE WHEN reason IN ('owner', 'collaborator') THEN reason WHEN change = 'claim' THEN 'owner' ELSE 'manager' END,
              'update without assertion', CASE WHEN reason = 'unassigned' AND change = 'claim' THEN 'assignment' ELSE basis END);
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.follow_lead(lead uuid, here text, named uuid, protected boolean, touched boolean) IS 'Changes the owner of a lead to whom its own column names, where the caller may; touched: other columns changed, too';

REVOKE ALL ON FUNCTION leadprotect.follow_lead(lead uuid, here text, named uuid, protected boolean, touched boolean) FROM PUBLIC;

-- function follow_leads, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.follow_leads(leads uuid[], places text[], names uuid[], touched boolean[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    AS $$
        #variable_conflict use_column
        DECLARE
          bound boolean := "leadprotect".acts_bound();
          same record;
          other record;
          changed uuid[] := '{}';
        BEGIN
          IF bound AND cardinality(leads) > 1 THEN
            -- in the order of their ids, whoever gets which
            PERFORM FROM "leadprotect".user_lead_assignments AS a
              WHERE a.lead_id = ANY (leads) AND a.territory = ANY (places) ORDER BY a.lead_id FOR UPDATE;
            FOR same IN
              SELECT u.named, array_agg(u.lead) AS leads
              FROM unnest(leads, places, names, touched) AS u (lead, here, named, touched)
              LEFT JOIN "leadprotect".user_lead_assignments AS a ON a.lead_id = u.lead AND a.territory = u.here
              WHERE NOT u.touched AND u.named IS DISTINCT FROM a.user_id
              GROUP BY u.named
            LOOP
              changed := changed || "leadprotect".change_together(
                same.leads, CASE WHEN same.named IS NULL THEN 'release' ELSE 'assign' END, same.named,
                'by ' || '', NULL);
            END LOOP;
          END IF;
          FOR other IN
            SELECT u.lead, t.code AS here, u.named, u.touched
            FROM unnest(leads, places, names, touched) AS u (lead, here, named, touched)
            JOIN "leadprotect".territories AS t ON t.code = u.here
            LEFT JOIN unnest(changed) AS c (lead) ON c.lead = u.lead
            WHERE c.lead IS NULL ORDER BY u.lead
          LOOP
            PERFORM "leadprotect".follow_lead(other.lead, other.here, other.named, true, other.touched);
          END LOOP;
          IF NOT bound THEN
            FOR same IN
              SELECT u.named, array_agg(u.lead) AS leads, array_agg(u.here) AS places
              FROM unnest(leads, places, names) AS u (lead, here, named) JOIN "leadprotect".territories AS t ON t.code = u.here
              GROUP BY u.named
            LOOP
              PERFORM "leadprotect".write_owner_column(same.leads, same.places, same.named);
            END LOOP;
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.follow_leads(leads uuid[], places text[], names uuid[], touched boolean[]) IS 'follow_lead for each of the leads of an UPDATE; those of which nothing but the owner changes together';

REVOKE ALL ON FUNCTION leadprotect.follow_leads(leads uuid[], places text[], names uuid[], touched boolean[]) FROM PUBLIC;

-- function follow_owner_column, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.follow_owner_column() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          here text := (SELECT t.code FROM "leadprotect".territories AS t WHERE t.code = NEW."territory");
          named uuid := (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END);
          protected boolean := false;
          touched boolean := false;
          was record;
        BEGIN
          IF here IS NULL THEN
            RETURN NULL;
          ELSIF TG_OP = 'UPDATE' THEN
            IF NEW."id" IS NOT DISTINCT FROM OLD."id" AND (NOT (OLD."territory" IS NULL OR OLD."territory" = '') OR named IS NULL) THEN
              -- it came from elsewhere, and is whose it is here
              PERFORM "leadprotect".write_owner_column(ARRAY[NEW."id"]::uuid[], ARRAY[here], (
                SELECT a.user_id FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = NEW."id" AND a.territory = here));
              RETURN NULL;
            END IF;
            protected := NOT (OLD."territory" IS NULL OR OLD."territory" = '');
            was := NEW;
            was."id" := OLD."id";
            touched := was OPERATOR(pg_catalog.*<>) OLD;
          END IF;
          PERFORM "leadprotect".follow_lead(NEW."id", here, named, protected, touched);
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.follow_owner_column() IS 'Trigger of contract: who writes the lead''s own column changes its owner, where he may';

REVOKE ALL ON FUNCTION leadprotect.follow_owner_column() FROM PUBLIC;

-- function hide_owner_column, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.hide_owner_column() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          same boolean := NEW."id" IS NOT DISTINCT FROM OLD."id";
          author uuid;
          named uuid;
          standing uuid;
          reason text;
        BEGIN
          IF same AND OLD."id"::text = pg_catalog.current_setting('app.user_id', true) OR NOT "leadprotect".acts_bound() THEN
            RETURN NEW;
          END IF;
          named := (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END);
          reason := "leadprotect".explain_edit(OLD."id");
          IF same THEN
            RETURN CASE WHEN reason IN ('owner', 'collaborator') THEN NEW END;
          END IF;
          author := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          SELECT a.user_id INTO standing FROM "leadprotect".user_lead_assignments AS a
            WHERE a.lead_id = OLD."id" AND a.territory = OLD."territory";
          RETURN CASE WHEN CASE
            WHEN named IS NOT DISTINCT FROM standing THEN reason IN ('owner', 'collaborator')
            WHEN "leadprotect".is_manager() THEN author IS NOT NULL OR coalesce(pg_catalog.current_setting('app.user_id', true), '') = ''
            WHEN named IS NULL THEN reason = 'owner'
            WHEN named = author THEN standing IS NULL AND reason IN ('unassigned', 'collaborator')
            ELSE false END THEN NEW END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.hide_owner_column() IS 'Trigger of contract where denied_edit = hide: leaves a lead alone that the caller may neither edit nor give to somebody';

REVOKE ALL ON FUNCTION leadprotect.hide_owner_column() FROM PUBLIC;

-- function own_new_lead, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.own_new_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
        BEGIN
          IF "leadprotect".explain_edit(NEW."id") NOT IN ('unassigned', 'collaborator') THEN
            RETURN NULL;
          END IF;
          INSERT INTO "leadprotect".user_lead_assignments (lead_id, territory, user_id, assigned_at, assigned_by, source)
          VALUES (NEW."id", NEW."territory", author, clock_timestamp(), author, 'creator')
          ON CONFLICT (lead_id, territory) DO NOTHING;
          IF FOUND THEN
            PERFORM "leadprotect".write_audit(NEW."id", 'ASSIGN', 'owner', 'creator to ' || author);
            IF false THEN
              PERFORM "leadprotect".write_owner_column(ARRAY[NEW."id"]::uuid[], ARRAY[NEW."territory"::text], author);
            END IF;
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.own_new_lead() IS 'Trigger of contract where owner_on_insert = creator: who inserts a lead in his territory owns it, and that is recorded';

REVOKE ALL ON FUNCTION leadprotect.own_new_lead() FROM PUBLIC;

-- function refuse_move, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.refuse_move() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          IF "leadprotect".acts_bound() THEN
            RAISE EXCEPTION 'id and territory of a protected lead can be changed by maintenance only'
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.refuse_move() IS 'Trigger of contract: id and territory of a protected lead are changed by maintenance only';

REVOKE ALL ON FUNCTION leadprotect.refuse_move() FROM PUBLIC;

-- function refuse_taken, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.refuse_taken() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF EXISTS (
            SELECT FROM "leadprotect".host_lead(NEW."id") AS l (territory)
            WHERE l.territory IS DISTINCT FROM "leadprotect".admitted_territory() AND l.territory IS NOT NULL)
            AND "leadprotect".acts_bound()
          THEN
            RAISE EXCEPTION 'the id of the new lead is taken' USING ERRCODE = 'unique_violation';
          END IF;
          RETURN NEW;
        END
        $$;

COMMENT ON FUNCTION leadprotect.refuse_taken() IS 'Trigger of contract: an INSERT meets no lead of another territory, whatever it says ON CONFLICT';

REVOKE ALL ON FUNCTION leadprotect.refuse_taken() FROM PUBLIC;

-- function forget_lead, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.forget_lead() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF TG_OP = 'TRUNCATE' THEN
            PERFORM "leadprotect".end_lead_rules(r.lead_id)
            FROM (SELECT DISTINCT r.lead_id FROM "leadprotect".lead_protection_rules AS r
                  WHERE r.active AND r.lead_id IS NOT NULL) AS r;
            DELETE FROM "leadprotect".user_lead_assignments;
          ELSIF OLD."id" IS NOT NULL THEN
            DELETE FROM "leadprotect".user_lead_assignments AS a WHERE a.lead_id = OLD."id";
            PERFORM "leadprotect".end_lead_rules(OLD."id");
            PERFORM "leadprotect".note_unsettled(OLD."id");
          END IF;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.forget_lead() IS 'Trigger: a lead that is gone takes its assignments and rules along, so that a new one with its id has neither';

REVOKE ALL ON FUNCTION leadprotect.forget_lead() FROM PUBLIC;

-- function asked_by, lp_0010_expand_lead_triggers

CREATE FUNCTION leadprotect.asked_by(roles name[]) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN current_user = ANY (roles);
        END
        $$;

COMMENT ON FUNCTION leadprotect.asked_by(roles name[]) IS 'Whether one of these roles asks, for policies that do not bind them: whoever is a member of one is not it';

-- trigger leadprotect_forget on public.leads, lp_0010_expand_lead_triggers

CREATE TRIGGER leadprotect_forget AFTER DELETE ON public.leads FOR EACH ROW EXECUTE FUNCTION leadprotect.forget_lead();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_forget;

-- trigger leadprotect_forget_id on public.leads, lp_0010_expand_lead_triggers

CREATE TRIGGER leadprotect_forget_id AFTER UPDATE ON public.leads FOR EACH ROW WHEN ((old.id IS DISTINCT FROM new.id)) EXECUTE FUNCTION leadprotect.forget_lead();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_forget_id;

-- trigger leadprotect_forget_all on public.leads, lp_0010_expand_lead_triggers

CREATE TRIGGER leadprotect_forget_all AFTER TRUNCATE ON public.leads FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.forget_lead();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_forget_all;

-- function acts_bound, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.acts_bound() RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN coalesce((
            SELECT NOT (r.rolsuper OR r.rolbypassrls OR r.rolname = ANY (ARRAY[]::name[])
                        OR NOT c.relforcerowsecurity AND pg_has_role(r.oid, c.relowner, 'USAGE'))
            FROM pg_roles AS r, pg_class AS c
            WHERE r.rolname = "leadprotect".acting_role() AND c.oid = '"public"."leads"'::regclass), true);
        END
        $$;

COMMENT ON FUNCTION leadprotect.acts_bound() IS 'Whether row security of the leads binds the acting role: neither maintenance nor exempt';

REVOKE ALL ON FUNCTION leadprotect.acts_bound() FROM PUBLIC;

-- function recorded_edit, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.recorded_edit(lead uuid, author uuid) RETURNS SETOF bigint
    LANGUAGE sql STABLE ROWS 1
    BEGIN ATOMIC
 SELECT e.id
    FROM leadprotect.lead_access_audit e
   WHERE ((e.lead_id = recorded_edit.lead) AND (e.at >= transaction_timestamp()) AND (e.at < (transaction_timestamp() + '1 day'::interval)) AND (e.transaction_id = pg_current_xact_id_if_assigned()) AND (e.action = 'EDIT'::leadprotect.lead_action) AND (e.outcome = 'ALLOW'::leadprotect.lead_access_outcome) AND (NOT (e.user_id IS DISTINCT FROM recorded_edit.author)))
   ORDER BY e.at
  LIMIT 1;
END;

COMMENT ON FUNCTION leadprotect.recorded_edit(lead uuid, author uuid) IS 'The row that an edit of the lead by the user has in this transaction; none where it was not edited yet';

REVOKE ALL ON FUNCTION leadprotect.recorded_edit(lead uuid, author uuid) FROM PUBLIC;

-- function audit_edit, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.audit_edit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $$
        DECLARE
          author uuid;
          remark text;
          reason text;
          basis text;
          here text;
        BEGIN
          -- audit_edits() decides an update, once for the statement; replication applies rows, and fires no trigger of statements
          IF TG_OP = 'UPDATE' AND current_setting('session_replication_role') <> 'replica' THEN
            RETURN NEW;
          END IF;
          author := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          remark := lower(TG_OP) || ' without assertion';
          IF (OLD."territory" IS NULL OR OLD."territory" = '') THEN
            reason := 'unprotected';
          ELSIF "leadprotect".acts_bound() THEN
            IF TG_OP = 'DELETE' THEN
              reason := "leadprotect".try_edit(OLD."id", 'EDIT', remark);
            ELSE
              SELECT d.reason, d.basis INTO reason, basis FROM "leadprotect".decide_locked(OLD."id") AS d;
            END IF;
            IF reason IS NULL OR reason NOT IN ('owner', 'collaborator') THEN
              PERFORM "leadprotect".deny(OLD."id", 'EDIT', reason, remark);
            ELSIF TG_OP = 'DELETE' THEN
              RETURN OLD; -- and it has its row
            END IF;
          ELSE
            reason := "leadprotect".explain_edit(OLD."id");
            basis := 'not bound by row security';
            here := OLD."territory"::text;
            IF reason NOT IN ('owner', 'collaborator') THEN
              reason := 'maintenance';
              PERFORM "leadprotect".require_not_moving(ARRAY[OLD."id"]);
            END IF;
          END IF;
          IF TG_OP = 'DELETE' OR NOT EXISTS (SELECT FROM "leadprotect".recorded_edit(OLD."id", author)) THEN
            PERFORM "leadprotect".write_audit(OLD."id", 'EDIT', reason, remark, basis, here);
          END IF;
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_edit() IS 'Trigger of contract: every edit of a lead is decided under locks and leaves its row';

REVOKE ALL ON FUNCTION leadprotect.audit_edit() FROM PUBLIC;

-- function audit_edits, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.audit_edits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
        #variable_conflict use_variable
        DECLARE
          author uuid;
          here text := pg_catalog.current_setting('app.territory', true);
          remark text := 'update without assertion';
          leads uuid[];
          outside boolean;
          bound boolean;
          own uuid[];
          given uuid[] := '{}';
          lead uuid;
          reason text;
          basis text;
        BEGIN
          SELECT coalesce(array_agg(l."id"::uuid ORDER BY l."id") FILTER (WHERE NOT (l."territory" IS NULL OR l."territory" = '')), '{}'),
                 count(*) FILTER (WHERE (l."territory" IS NULL OR l."territory" = '')) > 0
          INTO leads, outside FROM edited AS l;
          IF false THEN
            -- of whom it is decides follow_leads(); grouped, and sorted below, which stays linear for many
            given := ARRAY(
              SELECT g."id" FROM (
                SELECT u."id" FROM (SELECT e."id", e."id" AS named FROM edited AS e
                                         UNION ALL SELECT s."id", s."id" FROM stepped AS s) AS u
                GROUP BY u."id", u.named HAVING count(*) = 1) AS g
              GROUP BY g."id" HAVING count(*) = 2);
            IF cardinality(given) > 0 AND current_setting('session_replication_role') <> 'replica' THEN
              DECLARE
                l record;
                before record;
                was record;
                place text;
                given_leads uuid[] := '{}';
                places text[] := '{}';
                names uuid[] := '{}';
                touched boolean[] := '{}';
              BEGIN
                FOR l IN
                  SELECT u.* FROM (SELECT e.*, false AS leadprotect_after FROM edited AS e
                                   UNION ALL SELECT s.*, true FROM stepped AS s) AS u
                  ORDER BY u."id", u.leadprotect_after
                LOOP
                  IF NOT l.leadprotect_after THEN
                    before := l;
                    place := CASE WHEN NOT (l."territory" IS NULL OR l."territory" = '') THEN l."territory"::text END;
                  ELSIF before."id" = l."id" AND place = l."territory"::text
                    AND before."id" IS DISTINCT FROM l."id"
                  THEN
                    was := l;
                    was.leadprotect_after := false;
                    was."id" := before."id";
                    given_leads := given_leads || l."id"::uuid;
                    places := places || place;
                    names := names || (CASE WHEN NULL::text IS NOT NULL THEN NULL::text::uuid END);
                    touched := touched || (was OPERATOR(pg_catalog.*<>) before);
                  END IF;
                END LOOP;
                PERFORM "leadprotect".follow_leads(given_leads, places, names, touched);
              END;
            END IF;
          END IF;
          IF NOT outside AND cardinality(leads) = 1 AND cardinality(given) = 0 THEN
            IF "leadprotect".edit_own_one(leads[1], remark) THEN
              RETURN NULL;
            END IF;
          END IF;
          author := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          bound := "leadprotect".acts_bound();
          -- outside protection everybody edits, and maintenance everywhere: what was declared and can't be stored
          -- as it is stays in the note
          IF NOT bound OR outside THEN
            PERFORM "leadprotect".require_not_moving(leads);
            INSERT INTO "leadprotect".lead_access_audit
              (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
            SELECT l."id", author, (SELECT "leadprotect".acting_role()), CASE WHEN NOT (l."territory" IS NULL OR l."territory" = '') THEN l."territory"::text END,
                   'EDIT', 'ALLOW', CASE WHEN (l."territory" IS NULL OR l."territory" = '') THEN 'unprotected' ELSE coalesce(e.reason, 'maintenance') END,
                   (SELECT "leadprotect".bounded(concat_ws('; ', remark,
                     CASE WHEN author IS NULL AND pg_catalog.current_setting('app.user_id', true) <> '' THEN format('declared user %L', left(pg_catalog.current_setting('app.user_id', true), 100)) END,
                     CASE WHEN here <> '' AND NOT EXISTS (SELECT FROM "leadprotect".territories AS t WHERE t.code = here) THEN
                       format('declared territory %L', left(here, 100)) END))),
                   (SELECT "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true))),
                   CASE WHEN NOT (l."territory" IS NULL OR l."territory" = '') THEN CASE e.reason WHEN 'owner' THEN 'assignment' ELSE 'not bound by row security' END END
            FROM edited AS l
            LEFT JOIN "leadprotect".editable_among(leads) AS e ON e.lead = l."id" AND e.reason <> 'unprotected'
            LEFT JOIN LATERAL "leadprotect".recorded_edit(l."id", author) AS r (id) ON true
            WHERE (NOT bound OR (l."territory" IS NULL OR l."territory" = '')) AND r.id IS NULL;
          END IF;
          IF bound AND false THEN
            leads := ARRAY(SELECT unnest(leads) EXCEPT SELECT unnest(given) ORDER BY 1);
          END IF;
          IF NOT bound OR cardinality(leads) = 0 THEN
            RETURN NULL;
          END IF;
          own := "leadprotect".edit_together(leads, remark);
          IF cardinality(own) = cardinality(leads) THEN
            RETURN NULL;
          END IF;
          FOR lead IN SELECT unnest(leads) EXCEPT SELECT unnest(own) ORDER BY 1 LOOP
            SELECT d.reason, d.basis INTO reason, basis FROM "leadprotect".decide_locked(lead) AS d;
            IF reason NOT IN ('owner', 'collaborator') THEN
              PERFORM "leadprotect".deny(lead, 'EDIT', reason, remark);
            END IF;
            IF NOT EXISTS (SELECT FROM "leadprotect".recorded_edit(lead, author)) THEN
              PERFORM "leadprotect".write_audit(lead, 'EDIT', reason, remark, basis);
            END IF;
          END LOOP;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_edits() IS 'Trigger of contract: every update of leads is decided under locks, and each leaves its row';

REVOKE ALL ON FUNCTION leadprotect.audit_edits() FROM PUBLIC;

-- function audit_truncate, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.audit_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF "leadprotect".acts_bound() THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: it would delete leads of every territory', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          PERFORM "leadprotect".require_not_moving(ARRAY(SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a WHERE a.source = 'moving'));
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT l.lead_id, "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)), "leadprotect".acting_role(),
                 l.territory, 'EDIT', 'ALLOW', 'maintenance', 'truncate without assertion',
                 "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)), 'not bound by row security'
          FROM "leadprotect".protected_leads() AS l;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.audit_truncate() IS 'Trigger of contract: TRUNCATE is refused to whom row security binds; by maintenance it leaves a row for each lead';

REVOKE ALL ON FUNCTION leadprotect.audit_truncate() FROM PUBLIC;

-- function settings_at_contract, lp_0017_contract_enforce

CREATE FUNCTION leadprotect.settings_at_contract() RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN '{"exempt_roles": [], "host_rls": "enforce", "denied_edit": "hide", "owner_on_insert": "none", "lead_tables": []}';
        END
        $$;

COMMENT ON FUNCTION leadprotect.settings_at_contract() IS 'The settings that contract wrote into what it made; leadprotect apply changes them';

REVOKE ALL ON FUNCTION leadprotect.settings_at_contract() FROM PUBLIC;

-- table host_row_security, lp_0017_contract_enforce

CREATE TABLE leadprotect.host_row_security (
    host_table text NOT NULL,
    enabled boolean NOT NULL,
    forced boolean NOT NULL,
    auditor_columns bigint[] NOT NULL,
    enforced boolean NOT NULL
);

ALTER TABLE ONLY leadprotect.host_row_security FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.host_row_security IS 'Row security flags of the host''s leads before contract, and what contract lets auditors read there';
COMMENT ON COLUMN leadprotect.host_row_security.host_table IS 'the table of the host';
COMMENT ON COLUMN leadprotect.host_row_security.enabled IS 'whether its row security was enabled before contract';
COMMENT ON COLUMN leadprotect.host_row_security.forced IS 'whether it was forced';
COMMENT ON COLUMN leadprotect.host_row_security.auditor_columns IS 'columns that contract let auditors read, by number: the host may rename one';
COMMENT ON COLUMN leadprotect.host_row_security.enforced IS 'whether contract changed the table: not with host_rls = off';

ALTER TABLE ONLY leadprotect.host_row_security
    ADD CONSTRAINT host_row_security_pkey PRIMARY KEY (host_table);

ALTER TABLE leadprotect.host_row_security ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.host_row_security TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

-- policy leadprotect_border on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_border ON public.leads AS RESTRICTIVE USING ((leadprotect.asked_by(ARRAY['leadprotect_owner'::name, 'leadprotect_reader'::name]) OR COALESCE((((territory)::text = ( SELECT leadprotect.admitted_territory() AS admitted_territory)) OR ((territory)::text = ''::text)), (territory IS NULL))));

-- policy leadprotect_rows on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_rows ON public.leads USING (true) WITH CHECK (true);

-- policy leadprotect_update on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_update ON public.leads AS RESTRICTIVE FOR UPDATE TO leadprotect_app USING ((NULLIF(((territory IS NULL) OR ((territory)::text = ''::text) OR leadprotect.asked_by(ARRAY['leadprotect_owner'::name, 'leadprotect_reader'::name]) OR
CASE
    WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.can_edit_lead(id)
    ELSE (EXISTS ( SELECT
       FROM leadprotect.user_lead_assignments a
      WHERE ((a.lead_id = leads.id) AND (a.territory = ( SELECT leadprotect.admitted_territory() AS admitted_territory)) AND (a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)))))
END), false) IS NOT NULL)) WITH CHECK (true);

-- policy leadprotect_delete on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_delete ON public.leads AS RESTRICTIVE FOR DELETE TO leadprotect_app USING ((NULLIF(((territory IS NULL) OR ((territory)::text = ''::text) OR leadprotect.asked_by(ARRAY['leadprotect_owner'::name, 'leadprotect_reader'::name]) OR
CASE
    WHEN ( SELECT leadprotect.has_rules() AS has_rules) THEN leadprotect.can_edit_lead(id)
    ELSE (EXISTS ( SELECT
       FROM leadprotect.user_lead_assignments a
      WHERE ((a.lead_id = leads.id) AND (a.territory = ( SELECT leadprotect.admitted_territory() AS admitted_territory)) AND (a.user_id = ( SELECT leadprotect.parse_user(current_setting('app.user_id'::text, true)) AS parse_user)))))
END), false) IS NOT NULL));

-- policy leadprotect_members_update on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_members_update ON public.leads AS RESTRICTIVE FOR UPDATE USING ((NULLIF(((territory IS NULL) OR ((territory)::text = ''::text) OR leadprotect.asked_by(ARRAY['leadprotect_owner'::name, 'leadprotect_reader'::name]) OR ( SELECT pg_has_role('leadprotect_app'::name, 'USAGE'::text) AS pg_has_role)), false) IS NOT NULL)) WITH CHECK (true);

-- policy leadprotect_members_delete on public.leads, lp_0017_contract_enforce

CREATE POLICY leadprotect_members_delete ON public.leads AS RESTRICTIVE FOR DELETE USING ((NULLIF(((territory IS NULL) OR ((territory)::text = ''::text) OR leadprotect.asked_by(ARRAY['leadprotect_owner'::name, 'leadprotect_reader'::name]) OR ( SELECT pg_has_role('leadprotect_app'::name, 'USAGE'::text) AS pg_has_role)), false) IS NOT NULL));

-- row security of public.leads, lp_0017_contract_enforce

ALTER TABLE public.leads ENABLE ROW LEVEL SECURITY;

-- trigger leadprotect_audit_edit on public.leads, lp_0017_contract_enforce

CREATE TRIGGER leadprotect_audit_edit BEFORE DELETE OR UPDATE ON public.leads FOR EACH ROW EXECUTE FUNCTION leadprotect.audit_edit();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_edit;

-- trigger leadprotect_audit_edits on public.leads, lp_0017_contract_enforce

CREATE TRIGGER leadprotect_audit_edits AFTER UPDATE ON public.leads REFERENCING OLD TABLE AS edited FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.audit_edits();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_edits;

-- trigger leadprotect_audit_truncate on public.leads, lp_0017_contract_enforce

CREATE TRIGGER leadprotect_audit_truncate BEFORE TRUNCATE ON public.leads FOR EACH STATEMENT EXECUTE FUNCTION leadprotect.audit_truncate();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_audit_truncate;

-- trigger leadprotect_refuse_move on public.leads, lp_0017_contract_enforce

CREATE TRIGGER leadprotect_refuse_move AFTER UPDATE ON public.leads REFERENCING OLD TABLE AS edited FOR EACH ROW WHEN (((NOT ((old.territory IS NULL) OR ((old.territory)::text = ''::text))) AND (((new.territory)::text IS DISTINCT FROM (old.territory)::text) OR (new.id IS DISTINCT FROM old.id)))) EXECUTE FUNCTION leadprotect.refuse_move();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_refuse_move;

-- trigger leadprotect_refuse_taken on public.leads, lp_0017_contract_enforce

CREATE TRIGGER leadprotect_refuse_taken BEFORE INSERT ON public.leads FOR EACH ROW EXECUTE FUNCTION leadprotect.refuse_taken();

ALTER TABLE public.leads ENABLE ALWAYS TRIGGER leadprotect_refuse_taken;

-- function acts_bound_on, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.acts_bound_on(target regclass) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        BEGIN
          RETURN "leadprotect".acts_bound() AND NOT EXISTS (
            SELECT FROM pg_class AS c, pg_roles AS r
            WHERE c.oid = target AND r.rolname = "leadprotect".acting_role()
              AND NOT c.relforcerowsecurity AND pg_has_role(r.oid, c.relowner, 'USAGE'));
        END
        $$;

COMMENT ON FUNCTION leadprotect.acts_bound_on(target regclass) IS 'Whether row security of a table of lead_tables binds the acting role: neither maintenance nor exempt';

REVOKE ALL ON FUNCTION leadprotect.acts_bound_on(target regclass) FROM PUBLIC;

-- function edit_through, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.edit_through(lead uuid, bound boolean, remark text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        DECLARE
          author uuid := "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true));
          here text;
          reason text;
          basis text;
        BEGIN
          SELECT l.territory INTO here FROM "leadprotect".host_lead(lead) AS l (territory);
          IF NOT FOUND THEN
            RETURN;
          ELSIF here IS NULL THEN
            reason := 'unprotected';
          ELSIF bound THEN
            SELECT d.reason, d.basis INTO reason, basis FROM "leadprotect".decide_locked(lead) AS d;
            IF reason NOT IN ('owner', 'collaborator') THEN
              PERFORM "leadprotect".deny(lead, 'EDIT', reason, remark);
            END IF;
            here := NULL;
          ELSE
            reason := "leadprotect".explain_edit(lead);
            basis := 'not bound by row security';
            IF reason NOT IN ('owner', 'collaborator') THEN
              reason := 'maintenance';
              PERFORM "leadprotect".require_not_moving(ARRAY[lead]);
            END IF;
          END IF;
          IF NOT EXISTS (SELECT FROM "leadprotect".recorded_edit(lead, author)) THEN
            PERFORM "leadprotect".write_audit(lead, 'EDIT', reason, remark, basis, here);
          END IF;
        END
        $$;

COMMENT ON FUNCTION leadprotect.edit_through(lead uuid, bound boolean, remark text) IS 'An edit of a row of lead_tables is one of its lead: decided under locks, denied with LP403, recorded once a transaction';

REVOKE ALL ON FUNCTION leadprotect.edit_through(lead uuid, bound boolean, remark text) FROM PUBLIC;

-- function child_edit, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.child_edit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $_$
        DECLARE
          lead uuid;
        BEGIN
          EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO lead USING OLD;
          PERFORM "leadprotect".edit_through(lead, "leadprotect".acts_bound_on(TG_RELID), format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass));
          RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.child_edit() IS 'Trigger of contract, where replication applies rows: who changes or deletes one edits the lead that it belongs to';

REVOKE ALL ON FUNCTION leadprotect.child_edit() FROM PUBLIC;

-- function child_move, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.child_move() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    AS $_$
        DECLARE
          lead uuid;
          before uuid;
          bound boolean := "leadprotect".acts_bound_on(TG_RELID);
        BEGIN
          EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO lead USING NEW;
          IF TG_OP = 'UPDATE' THEN
            EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO before USING OLD;
            -- out of protection it goes by maintenance only; whose the row of a lead that is gone was, nobody can tell
            IF before IS NOT NULL AND bound
              AND NOT EXISTS (SELECT FROM "leadprotect".host_lead(before) AS l (territory) WHERE l.territory IS NULL)
              AND NOT EXISTS (SELECT FROM "leadprotect".host_lead(lead) AS l (territory) WHERE l.territory IS NOT NULL)
            THEN
              RAISE EXCEPTION 'a row of % can be taken from its lead by maintenance only', TG_RELID::regclass
                USING ERRCODE = 'insufficient_privilege';
            END IF;
          END IF;
          IF current_setting('session_replication_role') = 'replica' THEN
            PERFORM "leadprotect".edit_through(lead, bound, format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass));
          END IF;
          RETURN NULL;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.child_move() IS 'Trigger of contract: a row of lead_tables is taken from its lead by maintenance only; where replication applies rows, a new one edits its lead';

REVOKE ALL ON FUNCTION leadprotect.child_move() FROM PUBLIC;

-- function child_edits, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.child_edits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
        DECLARE
          bound boolean;
          remark text := format('%s of %s without assertion', lower(TG_OP), TG_RELID::regclass);
          rows text[] := ARRAY['SELECT %1$I FROM edited', 'SELECT %1$I FROM written'];
          leads uuid[];
          own uuid[] := '{}';
          lead uuid;
        BEGIN
          -- a statement that changes nothing is not planned for
          IF TG_OP = 'INSERT' THEN
            PERFORM FROM written LIMIT 1;
          ELSE
            PERFORM FROM edited LIMIT 1;
          END IF;
          IF FOUND THEN
            EXECUTE format(
              'SELECT array_agg(DISTINCT u.lead::uuid) FROM ('
              || CASE TG_OP WHEN 'DELETE' THEN rows[1] WHEN 'INSERT' THEN rows[2] ELSE concat_ws(' UNION ALL ', VARIADIC rows) END
              || ') AS u (lead) WHERE u.lead IS NOT NULL', TG_ARGV[0])
            INTO leads;
          END IF;
          IF leads IS NULL THEN
            RETURN NULL;
          ELSIF cardinality(leads) = 1 THEN
            IF "leadprotect".edit_own_one(leads[1], remark) THEN
              RETURN NULL;
            END IF;
          END IF;
          bound := "leadprotect".acts_bound_on(TG_RELID);
          IF bound THEN
            own := "leadprotect".edit_together(leads, remark);
          END IF;
          IF cardinality(own) < cardinality(leads) THEN
            FOR lead IN SELECT unnest(leads) EXCEPT SELECT unnest(own) ORDER BY 1 LOOP
              PERFORM "leadprotect".edit_through(lead, bound, remark);
            END LOOP;
          END IF;
          RETURN NULL;
        END
        $_$;

COMMENT ON FUNCTION leadprotect.child_edits() IS 'Trigger of contract: who changes, deletes or adds rows of lead_tables edits each of their leads, decided and recorded once';

REVOKE ALL ON FUNCTION leadprotect.child_edits() FROM PUBLIC;

-- table lead_table_row_security, lp_0019_contract_lead_tables

CREATE TABLE leadprotect.lead_table_row_security (
    host_table text NOT NULL,
    enabled boolean NOT NULL,
    forced boolean NOT NULL,
    enforced boolean NOT NULL
);

ALTER TABLE ONLY leadprotect.lead_table_row_security FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE leadprotect.lead_table_row_security IS 'Row security flags of each of lead_tables before contract';
COMMENT ON COLUMN leadprotect.lead_table_row_security.host_table IS 'the table of the host';
COMMENT ON COLUMN leadprotect.lead_table_row_security.enabled IS 'whether its row security was enabled before contract';
COMMENT ON COLUMN leadprotect.lead_table_row_security.forced IS 'whether it was forced';
COMMENT ON COLUMN leadprotect.lead_table_row_security.enforced IS 'whether contract changed the table: not with host_rls = off';

ALTER TABLE ONLY leadprotect.lead_table_row_security
    ADD CONSTRAINT lead_table_row_security_pkey PRIMARY KEY (host_table);

ALTER TABLE leadprotect.lead_table_row_security ENABLE ROW LEVEL SECURITY;

CREATE POLICY lp_inside ON leadprotect.lead_table_row_security TO leadprotect_owner USING (leadprotect.inside()) WITH CHECK (leadprotect.inside());

-- function child_leads, lp_0019_contract_lead_tables, owner leadprotect_reader

CREATE FUNCTION leadprotect.child_leads(target regclass, lead_column name) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          RETURN QUERY EXECUTE format('SELECT DISTINCT c.%I::uuid FROM %s AS c', lead_column, target);
        END
        $$;

COMMENT ON FUNCTION leadprotect.child_leads(target regclass, lead_column name) IS 'The leads that a table of lead_tables holds rows of';

REVOKE ALL ON FUNCTION leadprotect.child_leads(target regclass, lead_column name) FROM PUBLIC;
GRANT ALL ON FUNCTION leadprotect.child_leads(target regclass, lead_column name) TO leadprotect_owner;

-- function child_truncate, lp_0019_contract_lead_tables

CREATE FUNCTION leadprotect.child_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET row_security TO 'on'
    AS $$
        BEGIN
          IF "leadprotect".acts_bound_on(TG_RELID) THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: it would delete rows of leads of every territory', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege';
          ELSIF (SELECT h.enabled FROM "leadprotect".lead_table_row_security AS h WHERE h.host_table = format('"%s"."%s"', TG_TABLE_SCHEMA, TG_TABLE_NAME)) THEN
            RAISE EXCEPTION 'TRUNCATE on % refused: its row security hides rows from leadprotect, which records the leads', TG_RELID::regclass
              USING ERRCODE = 'insufficient_privilege', HINT = 'DELETE FROM it instead.';
          END IF;
          PERFORM "leadprotect".require_not_moving(ARRAY(SELECT a.lead_id FROM "leadprotect".user_lead_assignments AS a WHERE a.source = 'moving'));
          INSERT INTO "leadprotect".lead_access_audit
            (lead_id, user_id, role, territory, action, outcome, reason, note, correlation_id, basis)
          SELECT l.lead_id, "leadprotect".parse_user(pg_catalog.current_setting('app.user_id', true)), "leadprotect".acting_role(),
                 l.territory, 'EDIT', 'ALLOW', 'maintenance', format('truncate of %s without assertion', TG_RELID::regclass),
                 "leadprotect".bounded(pg_catalog.current_setting('app.correlation_id', true)), 'not bound by row security'
          FROM "leadprotect".protected_leads() AS l
          JOIN "leadprotect".child_leads(TG_RELID, TG_ARGV[0]::name) AS c (lead) ON c.lead = l.lead_id;
          RETURN NULL;
        END
        $$;

COMMENT ON FUNCTION leadprotect.child_truncate() IS 'Trigger of contract: TRUNCATE of lead_tables is refused to whom row security binds; by maintenance it leaves a row for each lead';

REVOKE ALL ON FUNCTION leadprotect.child_truncate() FROM PUBLIC;

-- table alembic_version, Alembic itself

CREATE TABLE leadprotect.alembic_version (
    version_num character varying(32) NOT NULL
);

COMMENT ON TABLE leadprotect.alembic_version IS 'What Alembic keeps: the revisions of leadprotect that are applied';
COMMENT ON COLUMN leadprotect.alembic_version.version_num IS 'the revision';

ALTER TABLE ONLY leadprotect.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

GRANT SELECT ON TABLE leadprotect.alembic_version TO leadprotect_operator;
