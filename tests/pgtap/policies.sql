-- Who may do what, and behind which policies. Changes nothing: psql -X -f tests/pgtap/policies.sql
BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT no_plan();

-- row security binds the owner, too, on every table and every partition
SELECT is_empty(
  $$SELECT c.oid::regclass FROM pg_class AS c
    WHERE c.relnamespace = 'leadprotect'::regnamespace AND c.relkind IN ('r', 'p')
      AND NOT (c.relrowsecurity AND c.relforcerowsecurity) AND c.relname <> 'alembic_version'$$,
  'row security is enabled and forced everywhere but on the table in which Alembic keeps its revision');
SELECT is_empty(
  $$SELECT c.oid::regclass FROM pg_class AS c
    WHERE c.relnamespace = 'leadprotect'::regnamespace AND c.relkind IN ('r', 'p')
      AND pg_get_userbyid(c.relowner) <> 'leadprotect_owner'$$,
  'every table belongs to leadprotect_owner');
SELECT policies_are('leadprotect', 'user_lead_assignments',
  ARRAY['lp_inside', 'lp_read', 'lp_border', 'lp_released']::name[]);
SELECT policies_are('leadprotect', 'lead_access_audit', ARRAY['lp_inside', 'lp_read', 'lp_border']::name[]);
SELECT policy_roles_are('leadprotect', 'lead_access_audit', 'lp_read', ARRAY['leadprotect_auditor']::name[]);
SELECT is_empty(
  $$SELECT c.oid::regclass FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'territory'
    WHERE c.relnamespace = 'leadprotect'::regnamespace AND c.relkind IN ('r', 'p')
      AND has_any_column_privilege('leadprotect_auditor', c.oid, 'SELECT')
      AND NOT EXISTS (SELECT FROM pg_policy AS p
        WHERE p.polrelid = c.oid AND p.polname = 'lp_border' AND NOT p.polpermissive AND p.polroles = '{0}')$$,
  'the border is restrictive and everybody''s: it holds whatever is added');

-- privileges: services read who owns what, nobody writes
SELECT table_privs_are('leadprotect', 'user_lead_assignments', 'leadprotect_app', ARRAY['SELECT']);
SELECT table_privs_are('leadprotect', 'lead_access_audit', 'leadprotect_app', '{}'::name[]);
SELECT table_privs_are('leadprotect', 'lead_access_audit', 'leadprotect_auditor', ARRAY['SELECT']);
SELECT table_privs_are('leadprotect', 'lead_access_audit_seals', 'leadprotect_auditor', ARRAY['SELECT']);
SELECT table_privs_are('leadprotect', 'lead_access_audit', 'leadprotect_operator', '{}'::name[]);
SELECT table_privs_are('leadprotect', 'lead_protection_rules', 'leadprotect_manager', ARRAY['SELECT']);
SELECT function_privs_are('leadprotect', 'can_edit_lead', ARRAY['uuid'], 'leadprotect_app', ARRAY['EXECUTE']);
SELECT function_privs_are('leadprotect', 'transfer_lead', ARRAY['uuid', 'uuid', 'text'], 'leadprotect_app', '{}'::name[]);
SELECT function_privs_are('leadprotect', 'transfer_lead', ARRAY['uuid', 'uuid', 'text'], 'leadprotect_manager', ARRAY['EXECUTE']);
SELECT function_privs_are('leadprotect', 'seal_audit', ARRAY['integer'], 'leadprotect_operator', ARRAY['EXECUTE']);
SELECT function_privs_are('leadprotect', 'seal_audit', ARRAY['integer'], 'leadprotect_auditor', '{}'::name[]);
SELECT function_privs_are('leadprotect', 'detach_audit_month', ARRAY['date'], 'leadprotect_operator', ARRAY['EXECUTE']);
SELECT is_empty(
  $$SELECT p.oid::regprocedure FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
    WHERE p.pronamespace = 'leadprotect'::regnamespace AND acl.grantee = 0
      AND p.proname NOT IN ('admitted_territory', 'all_territories')$$,
  'no function is PUBLIC''s but those that the border asks');

SELECT * FROM finish();
ROLLBACK;
