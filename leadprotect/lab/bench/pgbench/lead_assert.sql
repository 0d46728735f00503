-- a random lead of the user in context, asserted and recorded; lead n belongs to user n modulo 100
\set lead random(0, :leads / 100 - 1) * 100
SELECT leadprotect.assert_edit_and_audit(md5('lead ' || :lead)::uuid);
