-- The control: no row security, an owner that serves nobody, and a login for each territory.

CREATE ROLE "{h}owner" LOGIN CREATEROLE;
ALTER DATABASE "{database}" OWNER TO "{h}owner";
CREATE ROLE "{h}svc_de" LOGIN;
CREATE ROLE "{h}svc_ch" LOGIN;
CREATE ROLE "{h}svc_both" LOGIN;
CREATE ROLE "{h}outsider" LOGIN;

SET ROLE "{h}owner";

CREATE TABLE public.org (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE public.accounts (
  id integer PRIMARY KEY,
  org_id integer NOT NULL REFERENCES public.org,
  name text NOT NULL
);
CREATE TABLE public.leads (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  org_id integer NOT NULL REFERENCES public.org,
  account_id integer REFERENCES public.accounts ON DELETE CASCADE,
  territory text,
  remark text NOT NULL DEFAULT ''
);
CREATE TABLE public.contacts (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL,
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);
CREATE TABLE public.notes (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL,
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE,
  body text NOT NULL DEFAULT ''
);
CREATE TABLE public.activities (
  id bigserial PRIMARY KEY,
  org_id integer NOT NULL REFERENCES public.org,
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE,
  user_id uuid,
  kind text NOT NULL,
  created_at timestamptz NOT NULL
);
CREATE VIEW public.lead_list WITH (security_invoker = true) AS
SELECT l.id, l.territory, l.remark FROM public.leads AS l;

GRANT SELECT, INSERT, UPDATE, DELETE ON public.leads, public.contacts, public.notes, public.activities
  TO "{h}svc_de", "{h}svc_ch", "{h}svc_both";
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{h}svc_de", "{h}svc_ch", "{h}svc_both";
GRANT SELECT ON public.lead_list TO "{h}svc_de", "{h}svc_ch", "{h}svc_both";

RESET ROLE;
