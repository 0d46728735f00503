-- A CRM in the manner of Spring and Flyway: the application's login migrates and owns what it serves; ids are
-- numbers, people are principal names, and there is no row security. Portals log in beside it.

CREATE ROLE "{h}crm" LOGIN NOCREATEROLE;
ALTER DATABASE "{database}" OWNER TO "{h}crm";
CREATE ROLE "{h}rw" NOLOGIN;
CREATE ROLE "{h}ro" NOLOGIN;
-- a login that may become the group whose privileges it has
CREATE ROLE "{h}portal_de" LOGIN IN ROLE "{h}rw";
CREATE ROLE "{h}portal_ch" LOGIN IN ROLE "{h}rw";
CREATE ROLE "{h}analyst" LOGIN IN ROLE "{h}ro";
CREATE ROLE "{h}board" LOGIN;
-- who is on call: no row of the host is his to read
CREATE ROLE "{h}operator" LOGIN;

SET ROLE "{h}crm";

CREATE SCHEMA sales;
GRANT USAGE ON SCHEMA sales TO "{h}rw", "{h}ro", "{h}board", "{h}operator";

CREATE FUNCTION sales.stamp() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN NEW.version := OLD.version + 1; RETURN NEW; END $$;

CREATE TABLE sales.flyway_schema_history (
  installed_rank integer PRIMARY KEY,
  version text,
  success boolean NOT NULL
);
CREATE TABLE sales.org (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE sales.account (
  id integer PRIMARY KEY,
  org_id integer NOT NULL REFERENCES sales.org,
  name text NOT NULL
);
CREATE TABLE sales.lead (
  lead_id bigserial PRIMARY KEY,
  org_id integer NOT NULL REFERENCES sales.org,
  account_id integer REFERENCES sales.account ON DELETE CASCADE,
  territory_id varchar(2),
  country_code varchar(2),
  owner_user_id varchar(60),
  remark text NOT NULL DEFAULT '',
  version integer NOT NULL DEFAULT 0
);
CREATE INDEX ON sales.lead (lower(remark));
CREATE TRIGGER stamp BEFORE UPDATE ON sales.lead FOR EACH ROW EXECUTE FUNCTION sales.stamp();
CREATE TABLE sales.lead_contact (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL,
  lead_id bigint NOT NULL REFERENCES sales.lead ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);
CREATE TABLE sales.lead_note (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL,
  lead_id bigint NOT NULL REFERENCES sales.lead ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);
CREATE TABLE sales.lead_activity (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL REFERENCES sales.org,
  lead_id bigint NOT NULL REFERENCES sales.lead ON DELETE CASCADE,
  principal varchar(60),
  activity_type varchar(40) NOT NULL,
  activity_date timestamp NOT NULL
);
CREATE INDEX ON sales.lead_activity (lead_id, activity_date);

-- it reads as the owner of the tables, whoever asks
CREATE VIEW sales.lead_list AS SELECT l.lead_id AS id, l.territory_id, l.remark FROM sales.lead AS l;

GRANT SELECT, INSERT, UPDATE, DELETE ON sales.lead, sales.lead_contact, sales.lead_note, sales.lead_activity TO "{h}rw";
GRANT SELECT ON sales.lead, sales.lead_contact, sales.lead_note, sales.lead_activity, sales.lead_list TO "{h}ro";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA sales TO "{h}rw";
GRANT SELECT ON sales.lead_list TO "{h}rw", "{h}board";
GRANT DELETE ON sales.account TO "{h}rw";

RESET ROLE;
