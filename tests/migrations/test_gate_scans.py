from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.database import Database

FILL = """
INSERT INTO {leads} ({lead_id}, {territory}) SELECT gen_random_uuid(), 'DE' FROM generate_series(1, 1100);
INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source)
  SELECT {lead_id}, 'DE', gen_random_uuid(), 'assign' FROM {leads} LIMIT 1000;
INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind})
  SELECT l.{lead_id}, gen_random_uuid(), CASE WHEN a.lead_id IS NULL THEN 'NOTE' ELSE 'QUALIFIED_CALL' END
  FROM generate_series(1, 5), {leads} AS l LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = l.{lead_id};
ANALYZE {leads}, {activities}, {schema}.user_lead_assignments
"""
DROP_INDEXES = """
DO $do$
DECLARE
  found regclass;
BEGIN
  FOR found IN SELECT indexrelid FROM pg_index WHERE indrelid = {activities_name}::regclass AND NOT indisprimary LOOP
    EXECUTE format('DROP INDEX %s', found);
  END LOOP;
END
$do$
"""


@pytest.mark.profiles("pg18")
def test_the_gate_reads_activities_once_although_no_index_helps(database: Database) -> None:
    """Contract asks again when the transition's indexes are gone; a scan for each lead took ten minutes."""
    database.sql_script(DROP_INDEXES)
    database.sql_script(FILL)
    with database.connect() as conn:
        database.query(conn, "SET LOCAL work_mem = '64kB'")  # as many more leads would be in the default of 4 MB
        assert [] == database.query(conn, "SELECT * FROM {schema}.unowned_leads('DE')")
        assert [1] == database.query(conn, "SELECT pg_stat_get_xact_numscans({activities_name}::regclass)")


@pytest.mark.profiles("pg18", "pg15")
def test_the_gate_looks_up_what_a_walk_has_left_and_finds_it_as_a_scan_does(expanded: Database) -> None:
    expanded.sql_script(FILL)
    bare = "SELECT {lead_id} FROM {leads} EXCEPT SELECT lead_id FROM {schema}.user_lead_assignments LIMIT 3"
    missing = expanded.sql(bare)
    for lead in missing:
        expanded.activity(str(lead), expanded.user(1))
    expanded.sql("DELETE FROM {schema}.user_lead_assignments WHERE lead_id = ANY (%s)", missing)
    found = []
    for walked in ("NULL", "now()"):
        expanded.sql(f"UPDATE {{schema}}.backfill_jobs SET ended_at = {walked}")
        with expanded.connect() as conn:
            leads = expanded.query(conn, "SELECT {schema}.unowned_leads('DE')")
            scans = "SELECT pg_stat_get_xact_numscans({activities_name}::regclass)"
            found.append((sorted(leads) == sorted(missing), expanded.query(conn, scans)))
    assert [(True, [1]), (True, [0])] == found
