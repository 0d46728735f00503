-- What the checks are measured against beside a plain read: a protection as it is written by hand, with a decision in
-- one SQL function that runs with its owner's rights, and an assertion that asks it and writes a row. It knows owners
-- alone: no rules, no membership, no locks, no denial that lasts.
CREATE SCHEMA original;
GRANT USAGE ON SCHEMA original TO PUBLIC;
CREATE TABLE original.assignments (
  lead_id uuid NOT NULL REFERENCES public.leads (id) ON DELETE CASCADE,
  territory text NOT NULL,
  user_id uuid NOT NULL,
  PRIMARY KEY (lead_id, territory)
);
CREATE INDEX ON original.assignments (user_id, territory);
CREATE TABLE original.audit (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  lead_id uuid NOT NULL REFERENCES public.leads (id) ON DELETE CASCADE,
  user_id uuid,
  territory text,
  action text NOT NULL,
  allowed boolean NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON original.audit (lead_id, at);
CREATE INDEX ON original.audit (user_id, at);
CREATE FUNCTION original.can_edit_lead(lead uuid)
RETURNS boolean
LANGUAGE sql
STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
  SELECT EXISTS (
    SELECT FROM original.assignments AS a JOIN public.leads AS l ON l.id = a.lead_id AND l.territory = a.territory
    WHERE a.lead_id = lead AND a.territory = current_setting('app.territory', true)
      AND a.user_id = nullif(current_setting('app.user_id', true), '')::uuid)
$$;
CREATE FUNCTION original.assert_edit(lead uuid)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  allowed boolean := original.can_edit_lead(lead);
BEGIN
  INSERT INTO original.audit (lead_id, user_id, territory, action, allowed)
  VALUES (lead, nullif(current_setting('app.user_id', true), '')::uuid, current_setting('app.territory', true), 'EDIT', allowed);
  IF NOT allowed THEN
    RAISE EXCEPTION 'not allowed';
  END IF;
END
$$;
-- The floor: what any check costs that is a function with its owner's rights and pinned names, and any assertion that
-- locks what it rests on and writes its row. Nothing is decided, and no row security is in the way.
CREATE FUNCTION original.read_both(lead uuid)
RETURNS uuid
LANGUAGE plpgsql
STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  owner uuid;
BEGIN
  SELECT a.user_id INTO owner FROM public.leads AS l
  LEFT JOIN leadprotect.user_lead_assignments AS a ON a.lead_id = l.id AND a.territory = l.territory
  WHERE l.id = lead;
  RETURN owner;
END
$$;
CREATE FUNCTION original.lock_and_insert(lead uuid)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  owner uuid;
BEGIN
  SELECT a.user_id INTO owner FROM leadprotect.user_lead_assignments AS a
  WHERE a.lead_id = lead AND a.territory = 'DE' FOR SHARE;
  PERFORM FROM public.leads AS l WHERE l.id = lead AND l.territory = 'DE';
  INSERT INTO public.plain_log (lead_id, user_id, login, role, territory, action, outcome, reason, transaction_id)
  VALUES (lead, owner, session_user, current_user, 'DE', 'EDIT', 'ALLOW', 'owner', pg_current_xact_id());
END
$$;
-- The least that decides about an owner: the two rows, one probe for a rule that suspends him, and whether the login holds
-- the territory. It knows no other user, no role that was set, and no row security.
CREATE FUNCTION original.decide_owner(lead uuid)
RETURNS boolean
LANGUAGE plpgsql
STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  owner uuid;
  suspended boolean;
BEGIN
  SELECT a.user_id INTO owner FROM public.leads AS l
  JOIN leadprotect.user_lead_assignments AS a ON a.lead_id = l.id AND a.territory = l.territory
  WHERE l.id = lead AND l.territory = current_setting('app.territory', true);
  IF owner::text IS DISTINCT FROM current_setting('app.user_id', true) THEN
    RETURN false;
  END IF;
  -- in the order of the index, or statistics that are wrong make a scan of it
  SELECT true INTO suspended FROM leadprotect.lead_protection_rules AS r
  WHERE r.user_id = owner AND r.territory = current_setting('app.territory', true) AND r.protection = 'VIEW_ONLY'
  ORDER BY r.lead_id LIMIT 1;
  RETURN suspended IS NULL
    AND pg_has_role(session_user, 'leadprotect_' || lower(current_setting('app.territory', true)), 'USAGE');
END
$$;
CREATE FUNCTION original.decide_and_insert(lead uuid)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  owner uuid;
  suspended boolean;
BEGIN
  SELECT a.user_id INTO owner FROM leadprotect.user_lead_assignments AS a
  WHERE a.lead_id = lead AND a.territory = current_setting('app.territory', true)
    AND a.user_id::text = current_setting('app.user_id', true) FOR SHARE;
  PERFORM FROM public.leads AS l WHERE l.id = lead AND l.territory = current_setting('app.territory', true);
  IF owner IS NULL OR NOT FOUND THEN
    RAISE EXCEPTION 'not allowed';
  END IF;
  SELECT true INTO suspended FROM leadprotect.lead_protection_rules AS r
  WHERE r.user_id = owner AND r.territory = current_setting('app.territory', true) AND r.protection = 'VIEW_ONLY'
  ORDER BY r.lead_id LIMIT 1;
  IF suspended OR NOT pg_has_role(session_user, 'leadprotect_' || lower(current_setting('app.territory', true)), 'USAGE') THEN
    RAISE EXCEPTION 'not allowed';
  END IF;
  INSERT INTO public.plain_log (lead_id, user_id, login, role, territory, action, outcome, reason, transaction_id)
  VALUES (lead, owner, session_user, current_user, current_setting('app.territory', true), 'EDIT', 'ALLOW', 'owner', pg_current_xact_id());
END
$$;
INSERT INTO original.assignments (lead_id, territory, user_id)
SELECT a.lead_id, a.territory, a.user_id FROM leadprotect.user_lead_assignments AS a WHERE a.user_id IS NOT NULL;
-- the leads without protection, for what an edit costs by itself
CREATE TABLE public.plain_leads (LIKE public.leads INCLUDING ALL);
INSERT INTO public.plain_leads SELECT * FROM public.leads;
