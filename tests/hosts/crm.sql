-- What a newcomer has before the first page of the how-tos: a CRM that somebody else made, and who works with it.
CREATE ROLE migrator LOGIN;
CREATE ROLE crm_service LOGIN;
CREATE ROLE auditor LOGIN;
CREATE ROLE backup LOGIN;
ALTER DATABASE crm OWNER TO migrator;
ALTER SCHEMA public OWNER TO migrator;

SET ROLE migrator;
CREATE TABLE leads (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  territory varchar(2),
  company text NOT NULL DEFAULT 'Muster GmbH',
  city text,
  email text,
  tags text[] NOT NULL DEFAULT '{}'
);
CREATE TABLE activities (
  id bigserial PRIMARY KEY,
  lead_id uuid NOT NULL REFERENCES leads ON DELETE CASCADE,
  user_id uuid,
  kind text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON activities (lead_id);
CREATE TABLE lead_contacts (id bigserial PRIMARY KEY, lead_id uuid NOT NULL REFERENCES leads ON DELETE CASCADE, name text);
CREATE TABLE lead_notes (id bigserial PRIMARY KEY, lead_id uuid NOT NULL REFERENCES leads ON DELETE CASCADE, note text);

INSERT INTO leads (id, territory)
SELECT ('00000000-0000-0000-0000-' || lpad(number::text, 12, '0'))::uuid, CASE WHEN number % 5 = 0 THEN 'CH' ELSE 'DE' END
FROM generate_series(1, 60) AS number;
INSERT INTO leads (id, territory) VALUES ('9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d', 'DE'), (gen_random_uuid(), NULL);
-- every sixth lead has been called by nobody yet
INSERT INTO activities (lead_id, user_id, kind, created_at)
SELECT id, '7e57d004-2b97-4e7a-b45f-5387367791cd', 'QUALIFIED_CALL', '2026-01-12 08:03:11+00'
FROM leads WHERE substr(id::text, 25)::text NOT IN (SELECT lpad((6 * number)::text, 12, '0') FROM generate_series(1, 10) AS number);
GRANT SELECT, INSERT, UPDATE, DELETE ON leads, activities TO crm_service;
