-- What is recorded, and that nobody changes it. Works on rows of its own and rolls them back; run it
-- on a copy all the same: psql -X -f tests/pgtap/audit.sql
BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT no_plan();

CREATE ROLE tap_seller LOGIN IN ROLE leadprotect_app, leadprotect_de;
CREATE ROLE tap_auditor LOGIN IN ROLE leadprotect_auditor, leadprotect_de;
CREATE TEMPORARY TABLE known (name text PRIMARY KEY, id uuid NOT NULL DEFAULT gen_random_uuid());
GRANT SELECT ON known TO PUBLIC;
INSERT INTO known (name) VALUES ('own'), ('unknown'), ('seller'), ('other');
CREATE FUNCTION pg_temp.id(text) RETURNS uuid LANGUAGE sql STABLE AS 'SELECT k.id FROM pg_temp.known AS k WHERE k.name = $1';
INSERT INTO public.leads (id, territory) VALUES (pg_temp.id('own'), 'DE');
INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source)
VALUES (pg_temp.id('own'), 'DE', pg_temp.id('seller'), 'assign');

SET SESSION AUTHORIZATION tap_seller;
DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('seller'), 'DE', 'request 1'); END $$;
SELECT is(leadprotect.record_edit_attempt(pg_temp.id('own')), true, 'an allowed attempt is true');
SELECT is(leadprotect.record_edit_attempt(pg_temp.id('unknown')), false, 'a denied one is false, and no error');
DO $$ BEGIN PERFORM leadprotect.set_context(pg_temp.id('other'), 'DE', 'request 2'); END $$;
SELECT throws_ok($$SELECT leadprotect.assert_edit_and_audit(pg_temp.id('own'))$$, 'LP403', 'access to the lead denied',
                 'an assertion raises');
SELECT throws_ok('SELECT FROM leadprotect.lead_access_audit', '42501', NULL, 'a service does not read the audit');

SET SESSION AUTHORIZATION tap_auditor;
DO $$ BEGIN PERFORM leadprotect.set_context(NULL::text, 'DE'); END $$;
SELECT results_eq(
  $$SELECT outcome::text, reason, login::text COLLATE "default", territory, correlation_id FROM leadprotect.lead_access_audit
    WHERE user_id = pg_temp.id('seller') ORDER BY id$$,
  $$VALUES ('ALLOW', 'owner', 'tap_seller', 'DE', 'request 1'), ('DENY', 'unknown_lead', 'tap_seller', 'DE', 'request 1')$$,
  'both are recorded, with the login that the server knows');
DO $$ BEGIN PERFORM leadprotect.set_context(NULL::text, 'CH'); END $$;
SELECT is_empty($$SELECT FROM leadprotect.lead_access_audit WHERE territory IS NOT NULL$$, 'an auditor of DE reads no CH');
SELECT throws_ok('SELECT leadprotect.seal_audit()', '42501', NULL, 'an auditor does not seal');

-- guards: not even a superuser, on the parent, on a partition, on the seals, in a session that replicates
RESET SESSION AUTHORIZATION;
SELECT throws_ok(format(change, name), '42501', NULL, format(change, name) || ' is refused')
FROM unnest(ARRAY['UPDATE leadprotect.%s SET territory = NULL', 'DELETE FROM leadprotect.%s',
                  'TRUNCATE leadprotect.%s']) AS change,
     unnest(ARRAY['lead_access_audit', 'lead_access_audit_default', 'lead_access_audit_seals']) AS name;
SET session_replication_role = replica;
SELECT throws_ok('DELETE FROM leadprotect.lead_access_audit', '42501', NULL, 'also where triggers are off');

SELECT * FROM finish();
ROLLBACK;
