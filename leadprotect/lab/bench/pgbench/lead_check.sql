-- a random lead, checked in the context that the session brought along
\set lead random(0, :leads - 1)
SELECT leadprotect.can_edit_lead(('a0000000-0000-4000-8000-' || (100000000000 + :lead))::uuid);
