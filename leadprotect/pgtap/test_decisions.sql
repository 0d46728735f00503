-- Who may edit which lead, what session settings change about it, and what another territory is to him.
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

-- --- can_edit_lead and its reasons

SET SESSION AUTHORIZATION tap_seller;
SELECT is(pg_temp.reason(1), 'no_context', 'without a context');
SELECT is(pg_temp.run('SELECT {schema}.can_edit_lead(' || pg_temp.lead(1) || ')'), 'false', 'a denial is false, never NULL');
SELECT is(pg_temp.run('SELECT {schema}.can_edit_lead(NULL)'), 'false', 'so is a NULL lead');
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home')); END $$;
SELECT is(pg_temp.reason(lead), reason, 'for user 1 lead ' || lead || ' is ' || reason)
FROM (VALUES (1, 'owner'), (2, 'not_owner'), (3, 'collaborator'), (4, 'unassigned'), (5, 'not_found'), (6, 'not_found'), (9, 'not_found')) AS known (lead, reason);
SELECT is(pg_temp.run('SELECT {schema}.can_edit_lead(' || pg_temp.lead(lead) || ')'), may::text, 'can_edit_lead of lead ' || lead || ' is ' || may)
FROM (VALUES (1, true), (2, false), (3, true), (4, false), (5, false), (9, false)) AS known (lead, may);
SELECT is(pg_temp.run('SELECT count(*) FROM {schema}.editable_leads(NULL, 100)'), '2', 'two leads are his to edit');
SELECT is(pg_temp.run(format('SELECT string_agg(reason, '' '' ORDER BY reason) FROM {schema}.editable_among(ARRAY[%s, %s, %s, %s]::{lead_type}[])',
  pg_temp.lead(1), pg_temp.lead(2), pg_temp.lead(3), pg_temp.lead(5))), 'collaborator owner', 'and the same among four');

CREATE FUNCTION pg_temp.asked_as(usr integer, lead integer) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_temp.act(pg_temp.me(usr), pg_temp.setting('home'));
  RETURN pg_temp.reason(lead);
END $$;
SELECT is(pg_temp.asked_as(usr, lead), reason, reason || ': ' || what)
FROM (VALUES (2, 2, 'owner', 'another owner'), (2, 1, 'not_owner', 'who owns another lead'),
             (3, 1, 'suspended', 'who is suspended in the territory'), (4, 2, 'not_owner', 'whose share is over'),
             (5, 2, 'not_owner', 'whose share has not begun'), (6, 2, 'not_owner', 'whose share is not active'),
             (7, 2, 'collaborator', 'with whom the territory is shared'), (7, 4, 'collaborator', 'with a lead that nobody owns'),
             (7, 5, 'not_found', 'but no lead of another territory'), (8, 1, 'suspended', 'who is suspended for a lead'),
             (8, 2, 'not_owner', 'and for no other')) AS known (usr, lead, reason, what);

-- --- session settings: they narrow what the login holds, and never widen it

CREATE FUNCTION pg_temp.declared(usr text, place text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_temp.act(usr, place);
  RETURN pg_temp.reason(1);
END $$;
SELECT is(pg_temp.declared(usr, place), reason, reason || ': ' || what)
FROM (VALUES (NULL, pg_temp.setting('home'), 'no_context', 'no user'), ('', pg_temp.setting('home'), 'no_context', 'an empty user'),
             (pg_temp.me(1), NULL, 'no_context', 'no territory'), (pg_temp.me(1), '', 'no_context', 'an empty territory'),
             (pg_temp.me(1), repeat('a', 64), 'no_context', 'a territory that can be none'),
             (pg_temp.me(1), 'XX', 'not_found', 'a territory that nobody knows'),
             (pg_temp.me(1), 'app', 'not_found', 'an office as a territory'),
             (pg_temp.me(1), pg_temp.setting('abroad'), 'not_found', 'a territory that he does not hold'),
             (pg_temp.me(1), pg_temp.setting('home'), 'owner', 'his own')) AS known (usr, place, reason, what);
SELECT is(pg_temp.declared('no user', pg_temp.setting('home')), CASE pg_temp.setting('user_id_type') WHEN 'text' THEN 'not_owner' ELSE 'no_context' END,
          'a malformed user is nobody, and no error');
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home'), 'request 1'); END $$;
SELECT is(current_setting(pg_temp.setting('user_guc'), true), pg_temp.me(1), 'set_context sets the user');
SELECT is(current_setting(pg_temp.setting('territory_guc'), true), pg_temp.setting('home'), 'the territory');
SELECT is(current_setting(pg_temp.setting('correlation_guc'), true), 'request 1', 'and the request');
SELECT is(pg_temp.run('SELECT {schema}.admitted_territory()'), pg_temp.setting('home'), 'the border admits to the territory that he holds');
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('abroad')); END $$;
SELECT is(pg_temp.run('SELECT {schema}.admitted_territory()'), NULL, 'and to no other, whatever is declared');

-- --- territory isolation

DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home')); END $$;
SELECT is(pg_temp.run('SELECT string_agg(DISTINCT territory, '','') FROM {schema}.user_lead_assignments'), pg_temp.setting('home'), 'owners of one territory');
SELECT is_empty(pg_temp.t('SELECT FROM {leads} WHERE {territory}::text = {abroad}'), 'no lead of another one');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.v_lead_protection WHERE territory = {abroad}'), 'nor in the view');
SELECT is(pg_temp.run(format('SELECT count(*) FROM {leads} WHERE {lead_id} IN (%s, %s)', pg_temp.lead(1), pg_temp.lead(2))), '2', 'his colleagues'' leads are to be seen');
SELECT is(pg_temp.run(format('SELECT reason FROM {schema}.v_lead_protection WHERE lead = %s', pg_temp.lead(1))), 'owner', 'the view says what he may');
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('abroad')); END $$;
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.user_lead_assignments'), 'declared abroad: no owner');
SELECT is_empty(pg_temp.t('SELECT FROM {leads} WHERE {territory} IS NOT NULL'), 'no lead');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.v_lead_protection'), 'no row of the view');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.editable_leads(NULL, 100)'), 'nothing to edit');
SELECT is(pg_temp.run('SELECT {schema}.has_rules()'), 'false', 'and nobody''s rules');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.claim_lead(%s)'), pg_temp.lead(6)), 'LP403', NULL, 'no lead to claim');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.release_lead(%s)'), pg_temp.lead(5)), 'LP403', NULL, 'none to release');
DO $$ BEGIN PERFORM pg_temp.act(NULL, NULL); END $$;
SELECT is_empty(pg_temp.t('SELECT FROM {leads} WHERE {territory} IS NOT NULL'), 'without a context no lead of a territory');
SELECT is_empty(pg_temp.t('SELECT FROM {schema}.user_lead_assignments'), 'and no owner');
SET SESSION AUTHORIZATION tap_outsider;
SELECT is_empty(pg_temp.t('SELECT FROM {leads} WHERE {territory} IS NOT NULL'), 'who has no role of ours sees no lead of a territory');
SELECT throws_ok(format(pg_temp.t('SELECT {schema}.can_edit_lead(%s)'), pg_temp.lead(1)), '42501', NULL, 'and asks for none');

-- --- edits of the host's leads

SET SESSION AUTHORIZATION tap_seller;
DO $$ BEGIN PERFORM pg_temp.act(pg_temp.me(1), pg_temp.setting('home')); END $$;
CREATE FUNCTION pg_temp.changed(statement text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
  EXECUTE pg_temp.t(statement);
  GET DIAGNOSTICS n = ROW_COUNT;
  RETURN n;
END $$;
SELECT is(pg_temp.changed(format('UPDATE {leads} SET {territory} = {territory} WHERE {lead_id} = %s', pg_temp.lead(lead))), rows::bigint,
          'an UPDATE of lead ' || lead || ' changes ' || rows || ' rows')
FROM (VALUES (1, 1), (2, 0), (3, 1), (4, 0), (5, 0)) AS known (lead, rows);
SELECT is(pg_temp.changed(format('DELETE FROM {leads} WHERE {lead_id} = %s', pg_temp.lead(2))), 0::bigint, 'a DELETE does not reach a colleague''s lead');
SELECT throws_ok(format(pg_temp.t('UPDATE {leads} SET {territory} = NULL WHERE {lead_id} = %s'), pg_temp.lead(1)), '42501', NULL, 'no lead leaves protection');
SELECT throws_ok(format(pg_temp.t(pg_temp.setting('insert_lead')), pg_temp.id(20, pg_temp.setting('lead_id_type')), pg_temp.setting('abroad')),
                 '42501', NULL, 'none is added abroad');
SELECT throws_ok(format(pg_temp.t(pg_temp.setting('insert_lead')), pg_temp.id(5, pg_temp.setting('lead_id_type')), pg_temp.setting('home')),
                 '23505', 'the id of the new lead is taken', 'an id of another territory is taken');
SELECT throws_ok(pg_temp.t('UPDATE {schema}.user_lead_assignments SET user_id = NULL'), '42501', NULL, 'ownership has no UPDATE');
SELECT throws_ok(pg_temp.t('DELETE FROM {schema}.user_lead_assignments'), '42501', NULL, 'and no DELETE');
SELECT throws_ok(format(pg_temp.t('INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection) VALUES (%s, {home}, ''COLLABORATOR'')'),
                        pg_temp.usr(1)), '42501', NULL, 'nor have rules an INSERT');

RESET SESSION AUTHORIZATION;
SELECT * FROM finish(coalesce(current_setting('leadprotect.raise', true), '') = 'on');
ROLLBACK;
