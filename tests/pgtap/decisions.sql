-- Every reason of a decision, asked as a seller's login. Works on rows of its own and rolls them back;
-- run it on a copy all the same: psql -X -f tests/pgtap/decisions.sql
BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT no_plan();

CREATE ROLE tap_seller LOGIN IN ROLE leadprotect_app, leadprotect_de;
CREATE TEMPORARY TABLE known (name text PRIMARY KEY, id uuid NOT NULL DEFAULT gen_random_uuid());
GRANT SELECT ON known TO PUBLIC;
INSERT INTO known (name) VALUES
  ('own'), ('shared'), ('foreign'), ('free'), ('swiss'), ('unknown'), ('seller'), ('colleague'), ('suspended');
CREATE FUNCTION pg_temp.id(text) RETURNS uuid LANGUAGE sql STABLE AS 'SELECT k.id FROM pg_temp.known AS k WHERE k.name = $1';

INSERT INTO public.leads (id, territory)
SELECT id, CASE name WHEN 'swiss' THEN 'CH' ELSE 'DE' END FROM known
WHERE name IN ('own', 'shared', 'foreign', 'free', 'swiss');
INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source) VALUES
  (pg_temp.id('own'), 'DE', pg_temp.id('seller'), 'assign'),
  (pg_temp.id('shared'), 'DE', pg_temp.id('colleague'), 'assign'),
  (pg_temp.id('foreign'), 'DE', pg_temp.id('colleague'), 'assign'),
  (pg_temp.id('swiss'), 'CH', pg_temp.id('seller'), 'assign');
INSERT INTO leadprotect.lead_protection_rules (user_id, territory, protection, lead_id) VALUES
  (pg_temp.id('seller'), 'DE', 'COLLABORATOR', pg_temp.id('shared')),
  (pg_temp.id('suspended'), 'DE', 'VIEW_ONLY', NULL);

SET SESSION AUTHORIZATION tap_seller;
SELECT is(leadprotect.explain_edit(pg_temp.id('own')), 'no_context', 'without a context');
SELECT is(leadprotect.can_edit_lead(pg_temp.id('own')), false, 'a denial is false, never NULL');
SELECT is(leadprotect.can_edit_lead(NULL), false, 'so is a NULL lead');

DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('seller'), 'DE'); END $$;
SELECT is(leadprotect.explain_edit(pg_temp.id(lead)), reason, lead || ' is ' || reason)
FROM (VALUES ('own', 'owner'), ('shared', 'collaborator'), ('foreign', 'not_owner'), ('free', 'unassigned'),
             ('unknown', 'not_found'), ('swiss', 'not_found')) AS expected (lead, reason);
SELECT is(leadprotect.can_edit_lead(pg_temp.id('own')), true, 'the owner may edit');

DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('seller'), 'CH'); END $$;
SELECT is(leadprotect.explain_edit(pg_temp.id('swiss')), 'not_found', 'the border is the login, whatever is declared');
DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('suspended'), 'DE'); END $$;
SELECT is(leadprotect.explain_edit(pg_temp.id('own')), 'suspended', 'an active VIEW_ONLY rule suspends');
DO $$ BEGIN PERFORM leadprotect.set_context('no uuid', 'DE'); END $$;
SELECT is(leadprotect.explain_edit(pg_temp.id('own')), 'no_context', 'a malformed user is nobody, and no error');

-- row security: the same SELECT, narrowed by the context, and closed without one
DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('seller'), 'DE'); END $$;
SELECT results_eq('SELECT DISTINCT territory FROM leadprotect.user_lead_assignments', ARRAY['DE'], 'rows of DE only');
DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('seller'), 'CH'); END $$;
SELECT is_empty('SELECT FROM leadprotect.user_lead_assignments', 'no row of CH for a login of DE');
SELECT throws_ok('UPDATE leadprotect.user_lead_assignments SET user_id = NULL', '42501', NULL, 'ownership has no DML');

RESET SESSION AUTHORIZATION;
SELECT * FROM finish();
ROLLBACK;
