-- Every file of this folder, by psql alone; the exit code is 3 when an assertion fails.
--   psql -X -d a_copy -v schema=guard -v leads_table=crm.leads -f all.sql
-- A variable has the name and the default of leadprotect's setting. insert_lead is a statement for hosts whose leads
-- need more than an id and a territory: -v "insert_lead=INSERT INTO {leads} (id, territory, name) VALUES (%L, %L, 'x')"
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
\pset pager off
\if :{?schema}
\else
\set schema ''
\endif
\if :{?version_table}
\else
\set version_table ''
\endif
\if :{?leads_table}
\else
\set leads_table ''
\endif
\if :{?lead_id_column}
\else
\set lead_id_column ''
\endif
\if :{?territory_column}
\else
\set territory_column ''
\endif
\if :{?lead_id_type}
\else
\set lead_id_type ''
\endif
\if :{?user_id_type}
\else
\set user_id_type ''
\endif
\if :{?user_guc}
\else
\set user_guc ''
\endif
\if :{?territory_guc}
\else
\set territory_guc ''
\endif
\if :{?correlation_guc}
\else
\set correlation_guc ''
\endif
\if :{?insert_lead}
\else
\set insert_lead ''
\endif
SELECT set_config('leadprotect.schema', :'schema', false),
       set_config('leadprotect.version_table', :'version_table', false),
       set_config('leadprotect.leads_table', :'leads_table', false),
       set_config('leadprotect.lead_id_column', :'lead_id_column', false),
       set_config('leadprotect.territory_column', :'territory_column', false),
       set_config('leadprotect.lead_id_type', :'lead_id_type', false),
       set_config('leadprotect.user_id_type', :'user_id_type', false),
       set_config('leadprotect.user_guc', :'user_guc', false),
       set_config('leadprotect.territory_guc', :'territory_guc', false),
       set_config('leadprotect.correlation_guc', :'correlation_guc', false),
       set_config('leadprotect.insert_lead', :'insert_lead', false),
       set_config('leadprotect.raise', 'on', false) \g /dev/null
\ir test_structure.sql
\ir test_decisions.sql
\ir test_audit.sql
