-- with the random number of the other scripts, so that pgbench times it alike: without one it reads its clock later
\set lead random(0, :leads - 1)
SELECT 1;
