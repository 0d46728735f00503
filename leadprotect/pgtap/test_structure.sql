-- What stands in the schema of leadprotect at head, who may do what, and behind which policies and guards.
-- Changes nothing.
BEGIN;
CREATE EXTENSION IF NOT EXISTS pgtap;
SELECT no_plan();

-- Names and types are leadprotect's settings: `psql -v schema=guard -f all.sql`, or for whatever runs this file
-- alone PGOPTIONS='-c leadprotect.schema=guard'.
CREATE FUNCTION pg_temp.setting(key text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce(nullif(current_setting('leadprotect.' || key, true), ''), CASE key
    WHEN 'schema' THEN 'leadprotect' WHEN 'version_table' THEN 'alembic_version'
    WHEN 'leads_table' THEN 'public.leads' WHEN 'lead_id_column' THEN 'id' WHEN 'territory_column' THEN 'territory'
    WHEN 'lead_id_type' THEN 'uuid' WHEN 'user_id_type' THEN 'uuid'
    WHEN 'user_guc' THEN 'app.user_id' WHEN 'territory_guc' THEN 'app.territory'
    WHEN 'correlation_guc' THEN 'app.correlation_id'
    WHEN 'insert_lead' THEN 'INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%L, %L)' END)
$$;
-- a role of ours: an office, or the code of a territory
CREATE FUNCTION pg_temp.role(suffix text) RETURNS name LANGUAGE sql STABLE AS
$$ SELECT (pg_temp.setting('schema') || '_' || lower(suffix))::name $$;
-- fills in {schema} and its kin
CREATE FUNCTION pg_temp.t(statement text) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
  host_table text[] := regexp_match(pg_temp.setting('leads_table'), '^([^.]+)[.](.+)$');
  word record;
BEGIN
  FOR word IN SELECT * FROM (VALUES
    ('schema', quote_ident(pg_temp.setting('schema'))), ('leads', format('%I.%I', host_table[1], host_table[2])),
    ('host', quote_ident(host_table[1])), ('lead_id', quote_ident(pg_temp.setting('lead_id_column'))),
    ('territory', quote_ident(pg_temp.setting('territory_column'))),
    ('lead_type', pg_temp.setting('lead_id_type')), ('user_type', pg_temp.setting('user_id_type')),
    ('user_guc', quote_literal(pg_temp.setting('user_guc'))),
    ('territory_guc', quote_literal(pg_temp.setting('territory_guc'))),
    ('home', quote_literal(pg_temp.setting('home'))), ('abroad', quote_literal(pg_temp.setting('abroad')))
  ) AS known (name, value) LOOP
    statement := replace(statement, '{' || word.name || '}', coalesce(word.value, 'NULL'));
  END LOOP;
  RETURN statement;
END $$;
CREATE FUNCTION pg_temp.run(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
  statement := pg_temp.t(statement);
  IF statement ~* '^\s*select' THEN EXECUTE statement INTO found; ELSE EXECUTE statement; END IF;
  RETURN found;
END $$;
-- leads and users of this file: what has no name in the data
CREATE FUNCTION pg_temp.id(number integer, type text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE type WHEN 'uuid' THEN '7a900000-0000-4000-8000-' || lpad(number::text, 12, '0')
    WHEN 'bigint' THEN (9007199254740000 + number)::text WHEN 'integer' THEN (2147480000 + number)::text
    ELSE 'tap ' || number END
$$;
CREATE FUNCTION pg_temp.lead(number integer) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT quote_literal(pg_temp.id(number, pg_temp.setting('lead_id_type'))) $$;
CREATE FUNCTION pg_temp.usr(number integer) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT quote_literal(pg_temp.id(100 + number, pg_temp.setting('user_id_type'))) $$;
-- two of the territories, whichever they are
DO $$ BEGIN
  PERFORM set_config('leadprotect.home', pg_temp.run('SELECT min(code) FROM {schema}.territories'), true),
          set_config('leadprotect.abroad', pg_temp.run('SELECT max(code) FROM {schema}.territories'), true);
END $$;

-- --- schema, types, tables

SELECT has_schema(pg_temp.setting('schema')::name);
SELECT schema_owner_is(pg_temp.setting('schema')::name, pg_temp.role('owner'));
SELECT is(pg_temp.run(format('SELECT string_agg(e::text, '' '' ORDER BY e) FROM unnest(enum_range(NULL::{schema}.%I)) AS e', kind)),
          labels, kind || ' is ' || labels)
FROM (VALUES ('lead_action', 'VIEW EDIT ASSIGN UNASSIGN'), ('lead_access_outcome', 'ALLOW DENY'),
             ('protection_type', 'SOLE_OWNER COLLABORATOR VIEW_ONLY')) AS known (kind, labels);
SELECT has_table(pg_temp.setting('schema')::name, name, name || ' is a table')
FROM unnest(ARRAY['territories', 'territory_vat_rates', 'user_lead_assignments', 'user_lead_assignment_history',
                  'lead_protection_rules', 'lead_access_audit_seals', 'denial_secret', 'host_row_security',
                  'backfill_jobs', 'backfill_chunks', 'backfill_deferred']::name[]) AS name;
SELECT is_partitioned(pg_temp.setting('schema')::name, 'lead_access_audit', 'the audit is partitioned');
SELECT is_partition_of(pg_temp.setting('schema')::name, 'lead_access_audit_default', pg_temp.setting('schema')::name, 'lead_access_audit');
SELECT has_view(pg_temp.setting('schema')::name, 'v_lead_protection', 'the view for dashboards');
SELECT ok(coalesce(reloptions @> ARRAY['security_invoker=true', 'security_barrier=true'], false), 'it reads as whoever asks, behind a barrier')
FROM pg_class WHERE oid = pg_temp.t('{schema}.v_lead_protection')::regclass;

-- --- keys and columns

SELECT col_is_pk(pg_temp.setting('schema')::name, 'user_lead_assignments', ARRAY['lead_id', 'territory']::name[], 'one owner per lead and territory');
SELECT has_index(pg_temp.setting('schema')::name, 'user_lead_assignments', 'ix_ula_lead', 'its key is named');
SELECT has_index(pg_temp.setting('schema')::name, 'user_lead_assignments', 'ix_ula_user', ARRAY['user_id', 'territory', 'lead_id']::name[]);
SELECT col_is_pk(pg_temp.setting('schema')::name, 'lead_access_audit', ARRAY['lead_id', 'at', 'id']::name[], 'the key of the audit');
SELECT hasnt_fk(pg_temp.setting('schema')::name, 'lead_access_audit', 'deleting a lead keeps its history');
SELECT hasnt_fk(pg_temp.setting('schema')::name, 'user_lead_assignments', 'ownership refers to nothing that could take it along');
SELECT col_not_null(pg_temp.setting('schema')::name, 'lead_access_audit', name, name || ' is always known')
FROM unnest(ARRAY['lead_id', 'at', 'login', 'role', 'action', 'outcome', 'reason', 'transaction_id']::name[]) AS name;
SELECT col_has_default(pg_temp.setting('schema')::name, 'lead_access_audit', name, name || ' comes from the server')
FROM unnest(ARRAY['at', 'login', 'transaction_id']::name[]) AS name;
SELECT col_type_is(pg_temp.setting('schema')::name, 'user_lead_assignments', 'lead_id', pg_temp.setting('lead_id_type'), 'lead ids are the host''s');
SELECT is_empty(pg_temp.t($$SELECT c.conname FROM pg_constraint AS c
  WHERE c.connamespace = '{schema}'::regnamespace AND NOT c.convalidated$$), 'every constraint is validated');
SELECT is_empty(pg_temp.t($$SELECT i.indexrelid::regclass FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
  WHERE c.relnamespace = '{schema}'::regnamespace AND NOT i.indisvalid$$), 'every index is valid');

-- --- territories, with those that were added later

SELECT ok(to_regrole(quote_ident(pg_temp.role(code))) IS NOT NULL, 'territory ' || code || ' has its role')
FROM unnest(string_to_array(pg_temp.run('SELECT string_agg(code, '','' ORDER BY code) FROM {schema}.territories'), ',')) AS code;
SELECT ok(NOT r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND NOT r.rolcreaterole AND NOT r.rolreplication,
          r.rolname || ' has no login and no power')
FROM unnest(ARRAY['owner', 'reader', 'app', 'manager', 'auditor', 'operator']) AS office JOIN pg_roles AS r ON r.rolname = pg_temp.role(office);
SELECT is(pg_temp.run('SELECT array_to_string({schema}.all_territories(), '','')'),
          pg_temp.run('SELECT string_agg(code, '','' ORDER BY code) FROM {schema}.territories'), 'the border knows every territory');
SELECT is_empty(pg_temp.t('SELECT code FROM {schema}.territories EXCEPT SELECT territory FROM {schema}.backfill_jobs'), 'each territory has its backfill');

-- --- functions

SELECT is(pg_get_function_result(pg_temp.t(call)::regprocedure), result, call || ' returns ' || result)
FROM (VALUES ('{schema}.can_edit_lead({lead_type})', 'boolean'), ('{schema}.explain_edit({lead_type})', 'text'),
             ('{schema}.record_edit_attempt({lead_type}, {schema}.lead_action, text)', 'boolean'),
             ('{schema}.assert_edit_and_audit({lead_type}, {schema}.lead_action, text)', 'text'),
             ('{schema}.admitted_territory()', 'text'), ('{schema}.has_rules()', 'boolean')) AS known (call, result);
SELECT is(p.provolatile, 's', 'the decision is stable: an immutable one would be kept')
FROM pg_proc AS p WHERE p.oid = pg_temp.t('{schema}.can_edit_lead({lead_type})')::regprocedure;
SELECT has_function(pg_temp.setting('schema')::name, name, name || ' is a function')
FROM unnest(ARRAY['set_context', 'claim_lead', 'release_lead', 'share_lead', 'unshare_lead', 'assign_lead', 'transfer_lead',
                  'grant_protection', 'revoke_protection', 'seal_audit', 'detach_audit_month', 'create_audit_partitions',
                  'who_could_edit', 'audit_number_gaps', 'editable_leads', 'editable_among']::name[]) AS name;
SELECT is_empty(pg_temp.t($$SELECT p.oid::regprocedure FROM pg_proc AS p
  WHERE p.pronamespace = '{schema}'::regnamespace AND p.prosecdef AND p.prosqlbody IS NULL
    AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false)$$), 'every definer function pins its names');
SELECT is_empty(format(pg_temp.t($$SELECT p.oid::regprocedure FROM pg_proc AS p
  WHERE p.pronamespace = '{schema}'::regnamespace AND pg_get_userbyid(p.proowner) NOT IN (%L, %L)$$),
  pg_temp.role('owner'), pg_temp.role('reader')), 'every function is our owner''s or our reader''s');
SELECT is_empty(pg_temp.t($$SELECT p.oid::regprocedure FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
  WHERE p.pronamespace = '{schema}'::regnamespace AND acl.grantee = 0
    AND p.proname NOT IN ('admitted_territory', 'all_territories', 'asked_by', 'claimed', 'inside', 'own_border', 'territory_role', 'territory_roles')$$), 'no function is PUBLIC''s but those that the border asks');
SELECT ok(has_function_privilege(pg_temp.role(office), pg_temp.t(call), 'EXECUTE') = may,
          office || CASE WHEN may THEN ' may call ' ELSE ' may not call ' END || call)
FROM (VALUES ('app', '{schema}.can_edit_lead({lead_type})', true), ('app', '{schema}.claim_lead({lead_type}, text)', true),
             ('app', '{schema}.transfer_lead({lead_type}, {user_type}, text)', false), ('app', '{schema}.seal_audit(integer)', false),
             ('app', '{schema}.protected_leads()', false), ('app', '{schema}.host_lead({lead_type})', false),
             ('manager', '{schema}.transfer_lead({lead_type}, {user_type}, text)', true),
             ('manager', '{schema}.seal_audit(integer)', false), ('operator', '{schema}.seal_audit(integer)', true),
             ('operator', '{schema}.can_edit_lead({lead_type})', false), ('operator', '{schema}.detach_audit_month(date)', true),
             ('auditor', '{schema}.seal_audit(integer)', false), ('auditor', '{schema}.audit_number_gaps(date, date)', true),
             ('auditor', '{schema}.claim_lead({lead_type}, text)', false)) AS known (office, call, may);

-- --- row security: for the owner, too, on every table and every partition

SELECT is_empty(format(pg_temp.t($$SELECT c.oid::regclass FROM pg_class AS c
  WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind IN ('r', 'p')
    AND NOT (c.relrowsecurity AND c.relforcerowsecurity) AND c.relname <> %L$$), pg_temp.setting('version_table')),
  'row security is enabled and forced everywhere but where Alembic keeps its revision');
SELECT is_empty(format(pg_temp.t($$SELECT c.oid::regclass FROM pg_class AS c
  WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind IN ('r', 'p') AND pg_get_userbyid(c.relowner) <> %L$$), pg_temp.role('owner')),
  'every table is our owner''s');
SELECT policies_are(pg_temp.setting('schema')::name, name, policies::name[])
FROM (VALUES ('user_lead_assignments', '{lp_inside,lp_read,lp_border,lp_released}'), ('lead_access_audit', '{lp_inside,lp_read,lp_border}'),
             ('lead_access_audit_seals', '{lp_inside,lp_read,lp_border}'), ('lead_protection_rules', '{lp_inside,lp_read,lp_border}'),
             ('user_lead_assignment_history', '{lp_inside,lp_read,lp_border}'), ('denial_secret', '{lp_inside}')) AS known (name, policies);
SELECT policy_roles_are(pg_temp.setting('schema')::name, 'lead_access_audit', 'lp_read', ARRAY[pg_temp.role('auditor')]);
SELECT policy_cmd_is(pg_temp.setting('schema')::name, 'user_lead_assignments', 'lp_read', 'SELECT', 'services read owners, and no more');
SELECT is_empty(format(pg_temp.t($$SELECT c.oid::regclass FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'territory'
  WHERE c.relnamespace = '{schema}'::regnamespace AND c.relkind IN ('r', 'p') AND has_any_column_privilege(%L::name, c.oid, 'SELECT')
    AND NOT EXISTS (SELECT FROM pg_policy AS p
      WHERE p.polrelid = c.oid AND p.polname = 'lp_border' AND NOT p.polpermissive AND p.polroles = '{0}')$$), pg_temp.role('auditor')),
  'the border is restrictive and everybody''s: it holds whatever is added');
SELECT ok(c.relrowsecurity, 'row security of the leads is on') FROM pg_class AS c WHERE c.oid = pg_temp.t('{leads}')::regclass;
SELECT ok(EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = pg_temp.t('{leads}')::regclass
  AND p.polname = pg_temp.role(name) AND NOT p.polpermissive), name || ' is a restrictive policy of the leads')
FROM unnest(ARRAY['border', 'update', 'delete', 'members_update', 'members_delete']) AS name;
SELECT is((SELECT p.polroles::text FROM pg_policy AS p WHERE p.polrelid = pg_temp.t('{leads}')::regclass AND p.polname = pg_temp.role('border')),
          '{0}', 'the border of the leads is everybody''s');

-- --- privileges: services read who owns what, nobody writes

SELECT table_privs_are(pg_temp.setting('schema')::name, name, pg_temp.role(office), privileges::name[])
FROM (VALUES ('user_lead_assignments', 'app', '{SELECT}'), ('user_lead_assignments', 'operator', '{}'),
             ('user_lead_assignment_history', 'app', '{}'), ('lead_access_audit', 'app', '{}'), ('lead_access_audit', 'manager', '{}'),
             ('lead_access_audit', 'auditor', '{SELECT}'), ('lead_access_audit', 'operator', '{}'),
             ('lead_access_audit_seals', 'auditor', '{SELECT}'), ('lead_access_audit_seals', 'app', '{}'),
             ('lead_protection_rules', 'manager', '{SELECT}'), ('lead_protection_rules', 'app', '{}'), ('denial_secret', 'app', '{}'),
             ('denial_secret', 'auditor', '{}'), ('denial_secret', 'operator', '{}')) AS known (name, office, privileges);
SELECT is_empty(format(pg_temp.t($$SELECT c.oid::regclass, acl.grantee::regrole, acl.privilege_type FROM pg_class AS c, aclexplode(c.relacl) AS acl
  WHERE c.relnamespace = '{schema}'::regnamespace AND acl.grantee <> c.relowner AND acl.privilege_type <> 'SELECT' AND c.relname <> %L$$),
  pg_temp.setting('version_table')), 'nobody but our owner may do more than read');

-- --- guards, in every session

SELECT ok(EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = part.relid AND g.tgname = 'lp_append_only' AND g.tgenabled = 'A'),
          part.relid || ' is append-only, in a session that replicates, too')
FROM pg_partition_tree(pg_temp.t('{schema}.lead_access_audit')::regclass) AS part;
SELECT ok(EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = pg_temp.t('{schema}.' || name)::regclass
  AND g.tgname = guard AND g.tgenabled = 'A'), what)
FROM (VALUES ('lead_access_audit_seals', 'lp_append_only', 'so are the seals'),
             ('user_lead_assignments', 'lp_keep_assignment', 'every owner that ends is kept')) AS known (name, guard, what);
SELECT ok(EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = pg_temp.t('{leads}')::regclass
  AND g.tgname = pg_temp.role(name) AND g.tgenabled = 'A'), name || ' guards the leads, in a session that replicates, too')
FROM unnest(ARRAY['audit_edit', 'audit_edits', 'audit_truncate', 'refuse_move', 'refuse_taken', 'forget', 'forget_id', 'forget_all']) AS name;

RESET SESSION AUTHORIZATION;
SELECT * FROM finish(coalesce(current_setting('leadprotect.raise', true), '') = 'on');
ROLLBACK;
