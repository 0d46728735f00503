-- What stands in the schema of leadprotect at head. Changes nothing: psql -X -f tests/pgtap/schema.sql
BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT no_plan();

SELECT has_schema('leadprotect');
SELECT schema_owner_is('leadprotect', 'leadprotect_owner');
SELECT enum_has_labels('leadprotect', 'lead_action', ARRAY['VIEW', 'EDIT', 'ASSIGN', 'UNASSIGN']);
SELECT enum_has_labels('leadprotect', 'lead_access_outcome', ARRAY['ALLOW', 'DENY']);
SELECT enum_has_labels('leadprotect', 'protection_type', ARRAY['SOLE_OWNER', 'COLLABORATOR', 'VIEW_ONLY']);

SELECT has_table('leadprotect', name, name || ' is a table')
FROM unnest(ARRAY['territories', 'territory_vat_rates', 'user_lead_assignments', 'user_lead_assignment_history',
                  'lead_protection_rules', 'lead_access_audit_seals']::name[]) AS name;
SELECT is_partitioned('leadprotect', 'lead_access_audit', 'the audit is partitioned');
SELECT is_partition_of('leadprotect', 'lead_access_audit_default', 'leadprotect', 'lead_access_audit');
SELECT has_view('leadprotect', 'v_lead_protection', 'the view for dashboards');

-- one owner per lead and territory; rows of the audit refer to nothing that could take them along
SELECT col_is_pk('leadprotect', 'user_lead_assignments', ARRAY['lead_id', 'territory']::name[], 'one owner per territory');
SELECT has_index('leadprotect', 'user_lead_assignments', 'ix_ula_user', ARRAY['user_id', 'territory', 'lead_id']::name[]);
SELECT col_is_pk('leadprotect', 'lead_access_audit', ARRAY['lead_id', 'at', 'id']::name[], 'the key of the audit');
SELECT hasnt_fk('leadprotect', 'lead_access_audit', 'deleting a lead keeps its history');
SELECT col_not_null('leadprotect', 'lead_access_audit', name, name || ' comes from the server')
FROM unnest(ARRAY['at', 'login', 'role', 'transaction_id']::name[]) AS name;

-- what services call
SELECT function_returns('leadprotect', 'can_edit_lead', ARRAY['uuid'], 'boolean');
SELECT volatility_is('leadprotect', 'can_edit_lead', ARRAY['uuid'], 'stable', 'the decision is stable: IMMUTABLE would be cached');
SELECT function_returns('leadprotect', 'explain_edit', ARRAY['uuid'], 'text');
SELECT function_returns('leadprotect', 'record_edit_attempt', ARRAY['uuid', 'leadprotect.lead_action', 'text'], 'boolean');
SELECT has_function('leadprotect', name, name || ' is a function')
FROM unnest(ARRAY['set_context', 'assert_edit_and_audit', 'claim_lead', 'release_lead', 'assign_lead', 'transfer_lead',
                  'seal_audit', 'detach_audit_month', 'create_audit_partitions', 'who_could_edit']::name[]) AS name;

-- names inside a definer function can't be shadowed: parsed at creation, or a pinned search_path
SELECT is_empty(
  $$SELECT p.oid::regprocedure FROM pg_proc AS p
    WHERE p.pronamespace = 'leadprotect'::regnamespace AND p.prosecdef AND p.prosqlbody IS NULL
      AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)$$,
  'every definer function pins its names');

SELECT * FROM finish();
ROLLBACK;
