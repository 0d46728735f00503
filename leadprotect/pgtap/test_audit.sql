-- What is recorded about an attempt, who reads it, and that nobody changes it.
-- Works on rows of its own and rolls them back; run it on a copy all the same.
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

-- people and leads of their own, rolled back at the end
DO $people$ BEGIN
  PERFORM pg_temp.run(format('CREATE ROLE %s LOGIN IN ROLE %I, %I', 'tap_' || name, pg_temp.role(office), pg_temp.role(pg_temp.setting('home'))))
  FROM (VALUES ('seller', 'app'), ('manager', 'manager'), ('auditor', 'auditor')) AS made (name, office);
  PERFORM pg_temp.run('CREATE ROLE tap_outsider LOGIN');
  PERFORM pg_temp.run('GRANT USAGE ON SCHEMA {host} TO tap_seller, tap_outsider');
  PERFORM pg_temp.run('GRANT SELECT, INSERT, UPDATE, DELETE ON {leads} TO tap_seller, tap_outsider');
  PERFORM pg_temp.run(format(pg_temp.setting('insert_lead'), pg_temp.id(n, pg_temp.setting('lead_id_type')), pg_temp.setting(place)))
  FROM (VALUES (1, 'home'), (2, 'home'), (3, 'home'), (4, 'home'), (5, 'abroad'), (6, 'abroad')) AS made (n, place);
  PERFORM pg_temp.run(format(
    'INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source) VALUES (%s, %L, %s, ''assign'')',
    pg_temp.lead(lead), pg_temp.setting(place), pg_temp.usr(usr)))
  FROM (VALUES (1, 'home', 1), (2, 'home', 2), (3, 'home', 2), (5, 'abroad', 1)) AS made (lead, place, usr);
  PERFORM pg_temp.run(format(
    'INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection, lead_id, active, effective_from, effective_to)
     VALUES (%s, {home}, %L, %s, %L, %L, %L)',
    pg_temp.usr(usr), kind, coalesce(pg_temp.lead(lead), 'NULL'), active, since, until))
  FROM (VALUES (1, 'COLLABORATOR', 3, true, '2020-01-01 00:00Z', NULL), (3, 'VIEW_ONLY', NULL, true, '2020-01-01 00:00Z', NULL),
               (4, 'COLLABORATOR', 2, true, '2020-01-01 00:00Z', '2020-02-01'), (5, 'COLLABORATOR', 2, true, '2999-01-01', NULL),
               (6, 'COLLABORATOR', 2, false, '2020-01-01', NULL), (7, 'COLLABORATOR', NULL, true, '2020-01-01', NULL),
               (8, 'VIEW_ONLY', 1, true, '2020-01-01', NULL)) AS made (usr, kind, lead, active, since, until);
END $people$;
-- declares a user and a territory for what follows
CREATE FUNCTION pg_temp.act(usr text, place text, request text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format(pg_temp.t('SELECT {schema}.set_context(%L::text, %L, %L)'), usr, place, request);
END $$;
CREATE FUNCTION pg_temp.me(number integer) RETURNS text LANGUAGE sql STABLE AS
$$ SELECT pg_temp.id(100 + number, pg_temp.setting('user_id_type')) $$;
CREATE FUNCTION pg_temp.reason(lead integer) RETURNS text LANGUAGE sql AS
$$ SELECT pg_temp.run('SELECT {schema}.explain_edit(' || pg_temp.lead(lead) || ')') $$;

-- --- record_edit_attempt and assert_edit_and_audit

SET SESSION AUTHORIZATION tap_seller;
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home'), 'request 1'); END $$;
SELECT is(pg_temp.run('SELECT {schema}.record_edit_attempt(' || pg_temp.lead(lead) || ')'), may::text, what)
FROM (VALUES (1, true, 'an allowed attempt is true'), (2, false, 'a denied one is false, and no error'), (9, false, 'so is one on no lead'),
             (5, false, 'and on a lead of another territory')) AS known (lead, may, what);
SELECT is(pg_temp.run(format('SELECT {schema}.assert_edit_and_audit(%s, ''EDIT'', %L)', pg_temp.lead(3), 'a' || chr(27) || '[2Jb')),
          'collaborator', 'an assertion says what allows');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.assert_edit_and_audit(%s)'), pg_temp.lead(lead)), 'LP403', 'access to the lead denied', 'an assertion raises: ' || why)
FROM (VALUES (2, 'not his'), (4, 'nobody''s'), (5, 'abroad'), (9, 'none')) AS known (lead, why);
SELECT throws_ok(pg_temp.t('SELECT FROM {schema}.lead_access_audit'), '42501', NULL, 'a service does not read the audit');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.record_denial(%s, ''EDIT'', ''owner'')'), pg_temp.lead(2)), 'LP422', NULL, 'a denial can''t be forged into an allowance');
SELECT throws_ok(pg_temp.t('INSERT INTO {schema}.lead_access_audit DEFAULT VALUES'), '42501', NULL, 'no row is written by hand');
DO $$ BEGIN PERFORM pg_temp.run(format('UPDATE {leads} SET {territory} = {territory} WHERE {lead_id} = %s', pg_temp.lead(3))); END $$;

-- --- what an auditor reads

SET SESSION AUTHORIZATION tap_auditor;
DO $$ BEGIN PERFORM pg_temp.act(NULL, pg_temp.setting('home')); END $$;
CREATE FUNCTION pg_temp.recorded(what text, lead integer) RETURNS text LANGUAGE sql AS $$
  SELECT pg_temp.run(format('SELECT string_agg((%s)::text, '' '' ORDER BY id) FROM {schema}.lead_access_audit WHERE lead_id = %s', what, pg_temp.lead(lead)))
$$;
SELECT is(pg_temp.recorded('outcome', lead), outcome, 'lead ' || lead || ' is recorded as ' || coalesce(outcome, 'nothing that is his to read'))
FROM (VALUES (1, 'ALLOW'), (2, 'DENY'), (3, 'ALLOW'), (9, 'DENY'), (5, 'DENY')) AS known (lead, outcome);
SELECT is(pg_temp.recorded('reason', lead), reason, 'lead ' || lead || ' with the reason ' || reason)
FROM (VALUES (1, 'owner'), (2, 'not_owner'), (3, 'collaborator'), (9, 'unknown_lead'), (5, 'other_territory')) AS known (lead, reason);
SELECT is(pg_temp.recorded('user_id', 1), pg_temp.me(1), 'with the user that was declared');
SELECT is(pg_temp.recorded(what, 1), found, what || ' is ' || found)
FROM (VALUES ('login', 'tap_seller'), ('role', 'tap_seller'), ('territory', pg_temp.setting('home')), ('action', 'EDIT'),
             ('correlation_id', 'request 1'), ('basis', 'assignment'), ('transaction_id = pg_current_xact_id()', 'true'),
             ('at BETWEEN now() - interval ''1 minute'' AND clock_timestamp()', 'true')) AS known (what, found);
SELECT is(pg_temp.recorded('note', 3), 'a [2Jb', 'a note has no control characters');
SELECT is(pg_temp.recorded('basis', 3), 'rule for the lead since 2020-01-01 00:00:00.000000 UTC', 'a rule is named by its begin, in UTC');
DO $$ BEGIN PERFORM pg_temp.act(NULL, pg_temp.setting('abroad')); END $$;
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.lead_access_audit WHERE territory IS NOT NULL'), 'an auditor of one territory reads no other');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.lead_access_audit_seals WHERE territory IS NOT NULL'), 'nor its seals');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.lead_protection_rules'), 'nor its rules');
SELECT throws_ok(pg_temp.t('SELECT {schema}.seal_audit()'), '42501', NULL, 'an auditor does not seal');
SELECT throws_ok(pg_temp.t('SELECT FROM {schema}.denial_secret'), '42501', NULL, 'nor reads the secret of denials');

-- --- managers change owners, in their territory only, and it is recorded

SET SESSION AUTHORIZATION tap_manager;
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(9), pg_temp.setting('home'), 'request 2'); END $$;
SELECT lives_ok(format(pg_temp.t('SELECT {schema}.transfer_lead(%s, %s)'), pg_temp.lead(2), pg_temp.usr(1)), 'a manager transfers a lead');
SELECT lives_ok(format(pg_temp.t('SELECT {schema}.assign_lead(%s, %s)'), pg_temp.lead(4), pg_temp.usr(1)), 'and assigns one');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.assign_lead(%s, %s)'), pg_temp.lead(6), pg_temp.usr(1)), 'LP403', NULL, 'none of another territory');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.transfer_lead(%s, %s)'), pg_temp.lead(1), pg_temp.usr(3)), 'LP422', NULL, 'to nobody who is suspended');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.grant_protection(%s, {abroad}, ''COLLABORATOR'')'), pg_temp.usr(1)), 'LP403', NULL, 'and makes no rule abroad');
SET SESSION AUTHORIZATION tap_seller;
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home')); END $$;
SELECT is(pg_temp.reason(2), 'owner', 'whom it was transferred to owns it');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.transfer_lead(%s, %s)'), pg_temp.lead(1), pg_temp.usr(2)), '42501', NULL, 'a seller transfers nothing');
RESET SESSION AUTHORIZATION;
SELECT is(pg_temp.run(format('SELECT count(*) FROM {schema}.lead_access_audit WHERE lead_id IN (%s, %s) AND action = ''ASSIGN'' AND reason = ''manager''',
                             pg_temp.lead(2), pg_temp.lead(4))), '2', 'both are recorded');
SELECT is(pg_temp.run(format('SELECT user_id::text FROM {schema}.user_lead_assignment_history WHERE lead_id = %s', pg_temp.lead(2))), pg_temp.me(2),
          'and who owned it before is kept');

-- --- guards: not even a superuser, on the parent, on a partition, on the seals, in a session that replicates

SELECT throws_ok(format(change, pg_temp.t('{schema}.') || name), '42501', NULL, format(change, name) || ' is refused')
FROM unnest(ARRAY['UPDATE %s SET territory = NULL', 'DELETE FROM %s', 'TRUNCATE %s']) AS change,
     unnest(ARRAY['lead_access_audit', 'lead_access_audit_default', 'lead_access_audit_seals']) AS name;
SET session_replication_role = replica;
SELECT throws_ok(pg_temp.t('DELETE FROM {schema}.lead_access_audit'), '42501', NULL, 'also where triggers are off');
SELECT throws_ok(pg_temp.t('UPDATE {schema}.lead_access_audit_seals SET number = 0'), '42501', NULL, 'of the seals, too');
RESET session_replication_role;
SELECT lives_ok(format(pg_temp.t('DELETE FROM {leads} WHERE {lead_id} = %s'), pg_temp.lead(1)), 'a lead may be deleted');
SELECT ok(pg_temp.run(format('SELECT count(*) FROM {schema}.lead_access_audit WHERE lead_id = %s', pg_temp.lead(1)))::int >= 2, 'its history stays, with its end');
SELECT is(pg_temp.run(format('SELECT count(*) FROM {schema}.user_lead_assignments WHERE lead_id = %s', pg_temp.lead(1))), '0', 'its owner goes with it');

RESET SESSION AUTHORIZATION;
SELECT * FROM finish(coalesce(current_setting('leadprotect.raise', true), '') = 'on');
ROLLBACK;
