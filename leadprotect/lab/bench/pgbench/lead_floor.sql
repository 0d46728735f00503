-- what the assertion locks and writes, by a function that decides nothing
\set lead random(0, :leads / 100 - 1) * 100
SELECT original.lock_and_insert(md5('lead ' || :lead)::uuid);
