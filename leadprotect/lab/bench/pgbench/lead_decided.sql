-- the same by a function that decides about an owner, and nobody else
\set lead random(0, :leads / 100 - 1) * 100
SELECT original.decide_and_insert(md5('lead ' || :lead)::uuid);
