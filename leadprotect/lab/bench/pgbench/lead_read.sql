-- the least that a check can do: read the lead and its owner by their primary keys, as the owner of both
\set lead random(0, :leads - 1)
SELECT a.user_id FROM public.leads AS l
LEFT JOIN leadprotect.user_lead_assignments AS a ON a.lead_id = l.id AND a.territory = l.territory
WHERE l.id = md5('lead ' || :lead)::uuid;
