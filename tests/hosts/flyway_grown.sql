-- The same CRM, years later: meetings and letters in tables of their own, the owner in a column of the lead,
-- and row security by organisation for everybody but the application's own login.

SET ROLE "{h}crm";

CREATE TABLE sales.meeting (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id integer NOT NULL REFERENCES sales.org,
  lead_id bigint NOT NULL REFERENCES sales.lead ON DELETE CASCADE,
  held_by varchar(60),
  held_at timestamp NOT NULL,
  cancelled boolean NOT NULL DEFAULT false
);
CREATE TABLE sales.letter (
  number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org_id integer NOT NULL REFERENCES sales.org,
  lead_ref varchar(20) NOT NULL,
  sent_by varchar(60),
  sent_on date NOT NULL,
  medium varchar(10) NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON sales.meeting, sales.letter TO "{h}rw";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA sales TO "{h}rw";

CREATE FUNCTION sales.current_org() RETURNS integer LANGUAGE sql STABLE
RETURN nullif(current_setting('app.current_org', true), '')::integer;

ALTER TABLE sales.lead ENABLE ROW LEVEL SECURITY;
ALTER TABLE sales.meeting ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_org ON sales.lead TO "{h}rw", "{h}ro" USING (org_id = sales.current_org());
CREATE POLICY serving ON sales.lead TO "{h}crm" USING (true);
CREATE POLICY own_org ON sales.meeting TO "{h}rw" USING (org_id = sales.current_org());

RESET ROLE;
