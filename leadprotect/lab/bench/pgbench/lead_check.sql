-- a random lead, checked in the context that the session brought along
\set lead random(0, :leads - 1)
SELECT leadprotect.can_edit_lead(md5('lead ' || :lead)::uuid);
