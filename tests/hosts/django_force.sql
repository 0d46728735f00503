-- A multi-tenant CRM in the manner of Django: one login owns the database and its tables, migrates and
-- serves every tenant, and FORCE binds it to the tenant that its middleware names in app.current_org.
-- {h} is the prefix of the roles, {database} the name of the database.

CREATE ROLE "{h}django" LOGIN NOCREATEROLE;
ALTER DATABASE "{database}" OWNER TO "{h}django";
-- who helps customers reads through a group
CREATE ROLE "{h}readers" NOLOGIN;
CREATE ROLE "{h}support" LOGIN IN ROLE "{h}readers";
-- figures over all tenants, by a policy of its own
CREATE ROLE "{h}bi" LOGIN;
-- privileges and no policy of its own: it names a tenant, or reads nothing
CREATE ROLE "{h}etl" LOGIN;

SET ROLE "{h}django";

CREATE FUNCTION public.tenant() RETURNS integer LANGUAGE sql STABLE
AS $$ SELECT nullif(current_setting('app.current_org', true), '')::integer $$;

CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN NEW.modified := clock_timestamp(); RETURN NEW; END $$;

CREATE TABLE public.org (id integer PRIMARY KEY, name text NOT NULL);

CREATE TABLE public.crm_account (
  id integer PRIMARY KEY,
  org_id integer NOT NULL REFERENCES public.org ON DELETE CASCADE,
  name text NOT NULL
);

CREATE TABLE public.crm_lead (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id integer NOT NULL REFERENCES public.org ON DELETE CASCADE,
  account_id integer REFERENCES public.crm_account ON DELETE CASCADE,
  market varchar(8),
  remark text NOT NULL DEFAULT '',
  modified timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON public.crm_lead (org_id, market);
CREATE TRIGGER touch BEFORE UPDATE ON public.crm_lead FOR EACH ROW EXECUTE FUNCTION public.touch();

CREATE TABLE public.crm_contact (
  id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  org_id integer NOT NULL REFERENCES public.org ON DELETE CASCADE,
  lead_id uuid NOT NULL REFERENCES public.crm_lead ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);

CREATE TABLE public.crm_note (
  id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  org_id integer NOT NULL,
  lead_id uuid NOT NULL REFERENCES public.crm_lead ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);

CREATE TABLE public.crm_event (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  org_id integer NOT NULL REFERENCES public.org ON DELETE CASCADE,
  lead_id uuid NOT NULL REFERENCES public.crm_lead ON DELETE CASCADE,
  actor_id uuid,
  verb varchar(40) NOT NULL,
  happened timestamptz NOT NULL
);
CREATE INDEX ON public.crm_event (lead_id);

ALTER TABLE public.crm_account ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.crm_account FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON public.crm_account USING (org_id = public.tenant());
ALTER TABLE public.crm_lead ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.crm_lead FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON public.crm_lead USING (org_id = public.tenant());
CREATE POLICY figures ON public.crm_lead FOR SELECT TO "{h}bi" USING (true);
ALTER TABLE public.crm_contact ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.crm_contact FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON public.crm_contact USING (org_id = public.tenant());
-- a note is whose its lead is
ALTER TABLE public.crm_note ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.crm_note FORCE ROW LEVEL SECURITY;
CREATE POLICY of_lead ON public.crm_note USING (EXISTS (SELECT FROM public.crm_lead AS l WHERE l.id = lead_id));
ALTER TABLE public.crm_event ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.crm_event FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON public.crm_event USING (org_id = public.tenant());

CREATE VIEW public.crm_lead_list WITH (security_invoker = true) AS
SELECT l.id, l.market, l.remark FROM public.crm_lead AS l;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{h}readers", "{h}bi", "{h}etl";
GRANT INSERT, UPDATE ON public.crm_lead TO "{h}etl";

RESET ROLE;
