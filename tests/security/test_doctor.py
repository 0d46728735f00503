"""Doctor: each check finds the fault that is planted for it, says what mends it, and is silent when that was done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.doctor.examine import CHECKS, Diagnosis, examine
from leadprotect.doctor.finding import Symptom
from leadprotect.doctor.repair import OWN, plan, repair
from leadprotect.doctor.shipped import FILE
from leadprotect.preflight import check
from leadprotect.settings import current
from tests.hosts import DJANGO, FLYWAY, PLAIN, SHAPES, SUPABASE
from tests.support.database import Database
from tests.support.hosts import Host
from tests.support.matrix import History
from tests.support.profiles import NIGHTLY
from tests.support.revisions import MIGRATE_HEAD, REVISIONS
from tests.support.shipped import MORE, STANDS, prepared, written
from tests.support.topology import pooler, replica

KNOWN = {check.name: check for check in CHECKS}


@dataclass(frozen=True)
class Planted:
    """A fault: what a superuser does, what is found, and where its mend is no SQL of ours, what mends it."""

    check: str
    faults: str
    says: str = ""
    level: str = "danger"
    mends: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.check}: {self.says or self.faults.split('(')[0][:40]}"


def diagnosed(database: Database, login: str | None = None, *only: str) -> Diagnosis:
    checks = [KNOWN[name] for name in only] or CHECKS
    with database.connect(login, autocommit=True) as conn:
        return examine(conn, settings=database.settings, checks=checks)


def found(database: Database, check: str) -> list[Symptom]:
    diagnosis = diagnosed(database, None, check)
    assert () == diagnosis.not_judged
    return [one for one in diagnosis.findings if one.level != "note" or KNOWN[check].level == "note"]


def run(database: Database, script: str) -> None:
    """As psql does: each statement of its own, so that those which can't run in a transaction do."""
    with database.connect(autocommit=True) as conn:
        conn.execute(script.encode())


@pytest.fixture
def logins(database: Database) -> Iterator[str]:
    """A prefix for roles of the test; they go with it, since the cluster is everybody's."""
    prefix = f"{database.name}_"
    yield prefix
    with database.connect(autocommit=True) as conn:
        roles = conn.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s) ORDER BY 1", (prefix,)
        ).fetchall()
        for (role,) in roles:
            conn.execute(f'REASSIGN OWNED BY "{role}" TO CURRENT_USER; DROP OWNED BY "{role}"'.encode())
        for (role,) in roles:  # one may have granted another something
            conn.execute(f'DROP ROLE "{role}"'.encode())


SERVICE = 'CREATE ROLE "{p}x" LOGIN; GRANT {app} TO "{p}x"; '


def passed_on(privilege: str, on: str) -> str:
    """A role gets a privilege with the right to grant it and passes both on, and who got them passes it on again."""
    asked = f"{privilege} ON {on}"
    return (
        f'CREATE ROLE "{{p}}x"; CREATE ROLE "{{p}}Y.y"; CREATE ROLE "{{p}}z"; '
        f'GRANT USAGE ON SCHEMA {{schema}} TO "{{p}}x", "{{p}}Y.y"; GRANT {asked} TO "{{p}}x" WITH GRANT OPTION; '
        f'SET ROLE "{{p}}x"; GRANT {asked} TO "{{p}}Y.y" WITH GRANT OPTION; '
        f'SET ROLE "{{p}}Y.y"; GRANT {asked} TO "{{p}}z"; RESET ROLE'
    )


PLANTED = [
    *(
        Planted(check, passed_on(privilege, on), level=level)
        for check, privilege, on, level in (
            ("table-grants", "SELECT, DELETE", "{schema}.user_lead_assignments", "danger"),
            ("table-grants", "USAGE", "SEQUENCE {schema}.rule_changes", "danger"),
            ("column-grants", "UPDATE (user_id)", "{schema}.user_lead_assignments", "danger"),
            ("function-grants", "EXECUTE", "FUNCTION {schema}.audit_origin()", "danger"),
            ("schema-open", "CREATE", "SCHEMA {schema}", "danger"),
            ("search-path-open", "CREATE", "SCHEMA public", "warning"),
            ("replication-role-granted", "SET", "PARAMETER session_replication_role", "danger"),
            ("version-table-open", "UPDATE (version_num)", "{versions}", "danger"),
            ("leads-dangerous-grants", "TRIGGER, REFERENCES", "{leads}", "warning"),
        )
    ),
    Planted("search-path-open", "GRANT CREATE ON SCHEMA public TO PUBLIC", "every login"),
    Planted("search-path-open", 'CREATE ROLE "{p}x"; GRANT CREATE ON SCHEMA public TO "{p}x"', "role", "warning"),
    Planted(
        "operator-shadows",
        "CREATE FUNCTION public.pwn(oid, regnamespace) RETURNS boolean LANGUAGE sql RETURN true;"
        "CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regnamespace, FUNCTION = public.pwn)",
    ),
    Planted(
        "function-shadows",
        "CREATE FUNCTION public.pg_get_userbyid(oid) RETURNS name LANGUAGE sql RETURN 'nobody'",
        level="warning",
    ),
    Planted("version-table-open", 'CREATE ROLE "{p}x"; GRANT UPDATE ON {versions} TO "{p}x"', "has UPDATE"),
    Planted(
        "version-table-open",
        "CREATE FUNCTION public.pwn() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER pwn BEFORE INSERT ON {versions} FOR EACH ROW EXECUTE FUNCTION public.pwn()",
        "trigger pwn",
    ),
    Planted("version-table-open", "CREATE RULE pwn AS ON INSERT TO {versions} DO ALSO SELECT 1", "rule pwn"),
    Planted("version-table-rows", f"INSERT INTO {{versions}} VALUES ('{MIGRATE_HEAD}')"),
    Planted("version-table-rows", "INSERT INTO {versions} VALUES ('lp_0''); SELECT 1/0; --')"),
    Planted(
        "host-rows-hidden",
        "CREATE POLICY small ON {leads} AS RESTRICTIVE USING (current_user <> 'nobody')",
        "restrictive policy small on",
        mends="ALTER POLICY small ON {leads} TO {app}",
    ),
    Planted(
        "host-rows-hidden",
        "CREATE POLICY \"x: ALTER POLICY y\" ON {leads} AS RESTRICTIVE USING (current_user <> 'nobody')",
        "restrictive policy x: ALTER POLICY y on",
        mends='ALTER POLICY "x: ALTER POLICY y" ON {leads} TO {app}',
    ),
    Planted(
        "contract-not-standing",
        "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY",
        "row security of",
        mends="ALTER TABLE {leads} ENABLE ROW LEVEL SECURITY",
    ),
    Planted(
        "version-stamped",
        f"UPDATE {{versions}} SET version_num = '{MIGRATE_HEAD}'",
        f"says {MIGRATE_HEAD}, but",
        mends=f"UPDATE {{versions}} SET version_num = '{REVISIONS[-1]}'",
    ),
    Planted(
        "version-stamped",
        "DELETE FROM {versions}",
        "it says that nothing is applied",
        mends=f"INSERT INTO {{versions}} VALUES ('{REVISIONS[-1]}')",
    ),
    Planted(
        "version-stamped",
        "DELETE FROM {versions}; DELETE FROM {schema}.revision_undo",
        "their rows were not restored",
        mends=f"INSERT INTO {{versions}} VALUES ('{REVISIONS[-1]}')",
    ),
    Planted(
        "undo-changed",
        "INSERT INTO {schema}.revision_undo (revision, statements, host_locks, hash) "
        "VALUES ('lp_9999_pwn', '{}', '{}', '')",
        "it holds a way down of lp_9999_pwn",
    ),
    Planted("undo-changed", "UPDATE {schema}.revision_undo SET hash = ''", "is not the shipped one"),
    Planted("undo-changed", "DELETE FROM {schema}.revision_undo", "left no way down", "warning"),
    Planted("row-security-off", "ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY", "is off"),
    Planted("row-security-off", "ALTER TABLE {schema}.lead_access_audit_default NO FORCE ROW LEVEL SECURITY", "forced"),
    Planted("row-security-off", "ALTER TABLE {schema}.lead_access_audit_seals DISABLE ROW LEVEL SECURITY", "is off"),
    Planted("leads-row-security-off", "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "is off"),
    Planted(
        "function-changed",
        "CREATE OR REPLACE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql "
        "SET search_path = pg_catalog, pg_temp AS 'BEGIN RETURN NULL; END'",
    ),
    Planted(
        "function-changed",
        "CREATE OR REPLACE FUNCTION {schema}.can_edit_lead(lead {lead_id_type}) RETURNS boolean LANGUAGE sql STABLE "
        "PARALLEL SAFE RETURN true",
    ),
    Planted(
        "function-changed",
        "CREATE OR REPLACE FUNCTION {schema}.is_member(territory text) RETURNS boolean LANGUAGE sql STABLE "
        "PARALLEL SAFE RETURN coalesce(pg_catalog.pg_has_role({schema}.acting_role(), pg_catalog.to_regrole("
        "pg_catalog.quote_ident({role_prefix} || pg_catalog.lower(territory)))::oid, 'MEMBER'), false)",
        "is_member",
    ),
    Planted("function-missing", "DROP FUNCTION {schema}.audit_number_gaps(date, date)"),
    Planted(
        "function-stray",
        "CREATE FUNCTION {schema}.helper() RETURNS integer LANGUAGE sql SECURITY DEFINER RETURN 1",
    ),
    Planted("function-unpinned", "ALTER FUNCTION {schema}.audit_edit() RESET search_path", "search_path"),
    Planted("function-unpinned", "ALTER FUNCTION {schema}.acts_bound() SECURITY DEFINER", "SECURITY DEFINER"),
    Planted("function-unpinned", "ALTER FUNCTION {schema}.audit_origin() LEAKPROOF", "LEAKPROOF"),
    Planted("function-unpinned", "ALTER FUNCTION {schema}.can_edit_lead({lead_id_type}) STRICT", "STRICT"),
    Planted("function-stray", "CREATE PROCEDURE {schema}.helper() LANGUAGE sql AS 'SELECT 1'"),
    Planted("owner-reachable", 'CREATE ROLE "{p}x"; GRANT {owner} TO "{p}x"', "role", "warning"),
    Planted("function-owner", "ALTER FUNCTION {schema}.audit_edit() OWNER TO postgres"),
    Planted("function-grants", "GRANT EXECUTE ON FUNCTION {schema}.audit_origin() TO PUBLIC", "PUBLIC"),
    Planted(
        "function-grants",
        "REVOKE EXECUTE ON FUNCTION {schema}.audit_origin() FROM {auditor}",
        "may not call",
        "warning",
    ),
    Planted("owner-reachable", 'CREATE ROLE "{p}x" LOGIN; GRANT {owner} TO "{p}x"'),
    Planted(
        "owner-reachable",
        'CREATE ROLE "{p}x" LOGIN; ALTER TABLE {leads} OWNER TO "{p}x"; GRANT {owner} TO "{p}x"',
        "needed for a migration",
        "warning",
    ),
    Planted(
        "owner-reachable",
        'CREATE ROLE "{p}x" LOGIN; CREATE ROLE "{p}g"; GRANT {owner} TO "{p}g"; GRANT "{p}g" TO "{p}x"',
        "x it can act as",
    ),
    Planted(
        "owner-reachable",
        'CREATE ROLE "{p}x" LOGIN; CREATE ROLE "{p}g"; GRANT {owner} TO "{p}g" WITH ADMIN OPTION;'
        'SET ROLE "{p}g"; GRANT {owner} TO "{p}x"; RESET ROLE',
        "x it can act as",
    ),
    Planted("role-powers", "ALTER ROLE {app} LOGIN", "powers"),
    Planted("role-powers", 'CREATE ROLE "{p}x"; GRANT "{p}x" TO {owner}', "member of"),
    Planted("service-unbound", SERVICE + 'ALTER ROLE "{p}x" BYPASSRLS', "BYPASSRLS"),
    Planted(
        "service-unbound",
        'CREATE ROLE "{p}x" LOGIN BYPASSRLS; GRANT SELECT ({lead_id}) ON {leads} TO "{p}x"',
        "has BYPASSRLS and privileges on",
    ),
    Planted("service-unbound", SERVICE + 'ALTER ROLE "{p}x" CREATEROLE', "CREATEROLE"),
    Planted("service-unbound", SERVICE + 'ALTER ROLE "{p}x" SUPERUSER', "SUPERUSER"),
    Planted("service-unbound", SERVICE + 'CREATE ROLE "{p}y" BYPASSRLS; GRANT "{p}y" TO "{p}x"', "can become"),
    Planted(
        "service-unbound",
        SERVICE + 'CREATE ROLE "{p}y" BYPASSRLS; CREATE ROLE "{p}g"; GRANT "{p}y" TO "{p}g" WITH ADMIN OPTION;'
        'SET ROLE "{p}g"; GRANT "{p}y" TO "{p}x"; RESET ROLE',
        "it is a service and can become",
    ),
    Planted("service-owns-leads", SERVICE + 'ALTER TABLE {leads} OWNER TO "{p}x"'),
    Planted(
        "exempt-role-reachable",
        SERVICE + 'CREATE ROLE reporting_of_doctor; GRANT reporting_of_doctor TO "{p}x"',
        overrides={"exempt_roles": "reporting_of_doctor"},
    ),
    Planted("service-predefined-role", SERVICE + 'GRANT pg_execute_server_program TO "{p}x"'),
    Planted("service-predefined-role", SERVICE + 'GRANT pg_read_all_data TO "{p}x"', level="warning"),
    Planted(
        "service-predefined-role",
        SERVICE + 'CREATE ROLE "{p}g"; GRANT pg_write_server_files TO "{p}g"; GRANT "{p}g" TO "{p}x"',
    ),
    Planted("service-without-territory", SERVICE, level="warning"),
    Planted("service-does-not-inherit", 'CREATE ROLE "{p}x" LOGIN NOINHERIT; GRANT {app} TO "{p}x"', level="warning"),
    Planted("policy-missing", "DROP POLICY lp_border ON {schema}.user_lead_assignments", "lp_border"),
    Planted("policy-missing", "DROP POLICY lp_border ON {schema}.lead_access_audit_default", "lp_border"),
    Planted("policy-missing", "DROP POLICY {border_policy} ON {leads}", "border"),
    Planted("policy-changed", "ALTER POLICY lp_border ON {schema}.user_lead_assignments USING (true)"),
    Planted("policy-changed", "ALTER POLICY {border_policy} ON {leads} USING (true)"),
    Planted("policy-changed", "ALTER POLICY {border_policy} ON {leads} TO {app}"),
    Planted("policy-changed", "ALTER POLICY lp_read ON {schema}.lead_access_audit TO PUBLIC"),
    Planted("policy-stray", "CREATE POLICY pwn ON {schema}.lead_access_audit USING (true)"),
    Planted(
        "policy-runs-foreign-code",
        "CREATE FUNCTION public.evil() RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        "CREATE POLICY z ON {leads} AS RESTRICTIVE FOR SELECT TO {owner} USING (public.evil())",
        mends="DROP POLICY z ON {leads}",
    ),
    *(
        Planted(
            "policy-runs-foreign-code",
            f"CREATE FUNCTION public.evil(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; {hides}; "
            f"CREATE POLICY z ON {{leads}} FOR SELECT TO {{owner}} USING ({calls})",
            "calls public.evil(text)",
            mends="DROP POLICY z ON {leads}",
        )
        for hides, calls in (
            (
                "CREATE OPERATOR public.!!! (RIGHTARG = text, FUNCTION = public.evil)",
                "OPERATOR(public.!!!) current_user::text",
            ),
            (
                "CREATE VIEW public.low AS SELECT public.evil('') AS e; CREATE VIEW public.seen AS TABLE public.low",
                "(SELECT e FROM public.seen)",
            ),
            ("CREATE DOMAIN public.fine AS text CHECK (public.evil(VALUE))", "current_user::public.fine IS NOT NULL"),
        )
    ),
    Planted(
        "host-unreadable",
        "CREATE FUNCTION public.evil() RETURNS text LANGUAGE plpgsql STABLE "
        "AS $$ BEGIN RAISE EXCEPTION 'no tenant is set'; END $$;"
        "ALTER TABLE {activities} ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY a ON {activities} FOR SELECT USING ({activity_kind}::text = public.evil())",
        "no tenant is set",
    ),
    Planted("table-without-policies", "CREATE TABLE {schema}.notes (note text)"),
    Planted(
        "column-changed",
        "ALTER TABLE {schema}.lead_access_audit ALTER login SET DEFAULT 'eve'",
        "column login has the default 'eve', not SESSION_USER",
    ),
    Planted("column-changed", "ALTER TABLE {schema}.lead_access_audit ALTER at SET DEFAULT '2020-01-01'", "column at"),
    Planted("column-changed", "ALTER TABLE {schema}.lead_access_audit ALTER id DROP DEFAULT", "column id"),
    Planted("column-changed", "ALTER TABLE {schema}.lead_protection_rules ALTER active SET DEFAULT false", "active"),
    Planted("column-changed", "ALTER TABLE {schema}.lead_access_audit ALTER note SET DEFAULT 'x'", "not NULL"),
    Planted("column-changed", "ALTER TABLE {schema}.lead_access_audit ALTER role DROP NOT NULL", "may be NULL"),
    Planted("rule-on-ours", "CREATE RULE r AS ON INSERT TO {schema}.lead_access_audit DO INSTEAD NOTHING"),
    Planted("rule-on-ours", "CREATE RULE r AS ON UPDATE TO {schema}.user_lead_assignments DO INSTEAD NOTHING"),
    Planted("table-owner", 'CREATE ROLE "{p}x"; ALTER TABLE {schema}.user_lead_assignments OWNER TO "{p}x"'),
    Planted("table-owner", "ALTER TABLE {schema}.lead_access_audit_default OWNER TO postgres"),
    Planted("table-owner", "ALTER VIEW {schema}.v_lead_protection OWNER TO postgres"),
    Planted("table-owner", "ALTER SEQUENCE {schema}.rule_changes OWNER TO postgres"),
    Planted("table-unlogged", "ALTER TABLE {schema}.lead_protection_rules SET UNLOGGED"),
    Planted(
        "partition-outside",
        "CREATE TABLE public.elsewhere (LIKE {schema}.lead_access_audit INCLUDING ALL);"
        "ALTER TABLE {schema}.lead_access_audit ATTACH PARTITION public.elsewhere "
        "FOR VALUES FROM ('2055-01-01') TO ('2055-02-01')",
    ),
    Planted(
        "partition-outside",
        "CREATE TABLE public.elsewhere () INHERITS ({schema}.lead_protection_rules)",
    ),
    Planted("guard-missing", "DROP TRIGGER lp_append_only ON {schema}.lead_access_audit_seals"),
    Planted("guard-missing", "DROP TRIGGER lp_keep_assignment ON {schema}.user_lead_assignments"),
    Planted("guard-missing", "DROP TRIGGER lp_append_only ON {schema}.lead_access_audit_default"),
    Planted("guard-off", "ALTER TABLE {schema}.lead_access_audit_seals DISABLE TRIGGER lp_append_only", "disabled"),
    Planted("guard-off", "ALTER TABLE {schema}.lead_access_audit ENABLE TRIGGER lp_append_only", "silent"),
    Planted(
        "guard-changed",
        "CREATE OR REPLACE TRIGGER lp_append_only BEFORE UPDATE ON {schema}.lead_access_audit_seals "
        "FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()",
    ),
    Planted(
        "guard-changed",
        "CREATE FUNCTION public.pwn() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER pwn BEFORE INSERT ON {schema}.lead_access_audit_seals "
        "FOR EACH ROW EXECUTE FUNCTION public.pwn()",
        "not leadprotect's",
    ),
    Planted("lead-trigger-missing", "DROP TRIGGER {refuse_taken} ON {leads}", "refuse_taken"),
    Planted("lead-trigger-missing", "DROP TRIGGER {audit_truncate} ON {leads}"),
    Planted(
        "shadow-left-over",
        "CREATE TRIGGER {observe_truncate} BEFORE TRUNCATE ON {leads} FOR EACH STATEMENT "
        "EXECUTE FUNCTION {schema}.shadow_truncate()",
        "after contract",
        level="warning",
        mends="DROP TRIGGER {observe_truncate} ON {leads}",
    ),
    Planted(
        "shadow-left-over",
        "INSERT INTO {schema}.shadow_runs (host_rls, exempt_roles) VALUES ('enforce', '{}')",
        "after contract",
        level="warning",
        mends="UPDATE {schema}.shadow_runs SET ended_at = now()",
    ),
    Planted("lead-trigger-off", "ALTER TABLE {leads} DISABLE TRIGGER {refuse_move}", "disabled"),
    Planted("lead-trigger-off", "ALTER TABLE {leads} ENABLE TRIGGER {forget}", "silent"),
    Planted(
        "lead-trigger-changed",
        "CREATE OR REPLACE TRIGGER {audit_edit} BEFORE DELETE ON {leads} "
        "FOR EACH ROW EXECUTE FUNCTION {schema}.audit_edit()",
    ),
    Planted(
        "definer-view",
        "CREATE VIEW public.everything AS SELECT * FROM {leads}; GRANT SELECT ON public.everything TO PUBLIC",
    ),
    Planted(
        "definer-view",
        "CREATE VIEW public.owners AS SELECT * FROM {schema}.user_lead_assignments; "
        "GRANT SELECT ON public.owners TO PUBLIC",
        "public.owners",
    ),
    Planted(
        "materialised-view",
        "CREATE MATERIALIZED VIEW public.kept AS SELECT * FROM {leads}; GRANT SELECT ON public.kept TO PUBLIC",
    ),
    Planted("view-changed", "ALTER VIEW {schema}.v_lead_protection RESET (security_invoker)", "options"),
    Planted("view-changed", "ALTER VIEW {schema}.v_lead_protection SET (security_barrier = false)", "options"),
    Planted(
        "definer-function",
        "CREATE FUNCTION public.all_leads() RETURNS bigint LANGUAGE sql SECURITY DEFINER "
        "AS 'SELECT count(*) FROM {leads}'",
        level="warning",
    ),
    Planted(
        "definer-function",
        "CREATE PROCEDURE public.all_leads() LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC SELECT FROM {leads}; END",
        level="warning",
    ),
    Planted(
        "definer-function",
        SERVICE + "CREATE FUNCTION public.all_leads() RETURNS bigint LANGUAGE sql SECURITY DEFINER "
        "AS 'SELECT count(*) FROM {leads}'; REVOKE ALL ON FUNCTION public.all_leads() FROM PUBLIC; "
        'GRANT EXECUTE ON FUNCTION public.all_leads() TO "{p}x"',
        "may call it",
        level="warning",
    ),
    Planted(
        "definer-function",
        "CREATE FUNCTION public.who_owns() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER "
        "AS 'SELECT user_id::text FROM {schema}.user_lead_assignments'",
        level="warning",
    ),
    Planted("child-table", "CREATE TABLE public.old_leads () INHERITS ({leads})"),
    Planted("rule-on-leads", "CREATE RULE r AS ON DELETE TO {leads} DO ALSO SELECT 1", level="warning"),
    Planted("publication", "CREATE PUBLICATION p FOR TABLE {leads}", level="warning"),
    Planted("publication", "CREATE PUBLICATION p FOR TABLES IN SCHEMA {h}", level="warning"),
    Planted("publication", "CREATE PUBLICATION p FOR TABLE {schema}.lead_access_audit", level="warning"),
    Planted("publication", "CREATE PUBLICATION p FOR ALL TABLES", level="warning"),
    Planted(
        "foreign-key-action",
        "CREATE TABLE public.parents (id integer PRIMARY KEY);"
        "ALTER TABLE {leads} ADD parent integer CONSTRAINT fk_p REFERENCES public.parents ON DELETE CASCADE",
        level="note",
        mends="ALTER TABLE {leads} DROP parent",
    ),
    Planted(
        "host-before-trigger",
        "CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER touch BEFORE UPDATE ON {leads} FOR EACH ROW EXECUTE FUNCTION public.touch()",
        level="note",
        mends="DROP TRIGGER touch ON {leads}",
    ),
    Planted("table-grants", "GRANT INSERT ON {schema}.user_lead_assignments TO {app}", "INSERT"),
    Planted("table-grants", "GRANT SELECT ON {schema}.denial_secret TO PUBLIC", "PUBLIC"),
    Planted("table-grants", "GRANT TRUNCATE ON {schema}.lead_access_audit_default TO {operator}", "TRUNCATE"),
    Planted("table-grants", "GRANT USAGE ON SEQUENCE {schema}.rule_changes TO {app}", "USAGE"),
    Planted("table-grants", "REVOKE SELECT ON {schema}.lead_access_audit FROM {auditor}", "lacks", "warning"),
    Planted("column-grants", "GRANT UPDATE (user_id) ON {schema}.user_lead_assignments TO {app}"),
    Planted("schema-open", "GRANT CREATE ON SCHEMA {schema} TO {app}", "may create"),
    Planted("schema-open", "ALTER SCHEMA {schema} OWNER TO postgres", "belongs to"),
    Planted(
        "default-privileges",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT SELECT ON TABLES TO {app}",
        level="warning",
    ),
    Planted("leads-dangerous-grants", 'CREATE ROLE "{p}x"; GRANT TRIGGER ON {leads} TO "{p}x"', level="warning"),
    Planted(
        "leads-dangerous-grants",
        'CREATE ROLE "{p}x"; GRANT REFERENCES ({lead_id}) ON {leads} TO "{p}x"',
        level="warning",
    ),
    Planted("table-grants", "GRANT SELECT ON {schema}.lead_access_audit TO {auditor} WITH GRANT OPTION", "OPTION"),
    Planted("function-grants", "GRANT EXECUTE ON FUNCTION {schema}.audit_origin() TO {auditor} WITH GRANT OPTION"),
    Planted("preset-context", "ALTER DATABASE {d} SET {territory_setting} = 'DE'", "database"),
    Planted("preset-context", 'CREATE ROLE "{p}x" LOGIN; ALTER ROLE "{p}x" SET {user_setting} = \'1\'', "role"),
    Planted(
        "preset-replication-role",
        'CREATE ROLE "{p}x" LOGIN; ALTER ROLE "{p}x" IN DATABASE {d} SET session_replication_role = replica',
    ),
    Planted("preset-names", "ALTER DATABASE {d} SET row_security = off", level="warning"),
    Planted(
        "replication-role-granted",
        'CREATE ROLE "{p}x" LOGIN; GRANT SET ON PARAMETER session_replication_role TO "{p}x"',
    ),
    Planted(
        "replication-role-granted",
        'CREATE ROLE "{p}x"; GRANT ALTER SYSTEM ON PARAMETER session_replication_role TO "{p}x"',
        "it may alter",
    ),
    Planted(
        "quarantine-foreign",
        'CREATE ROLE "{p}x"; CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; '
        'GRANT CREATE ON SCHEMA {quarantine} TO "{p}x"',
        "may create",
    ),
    Planted(
        "quarantine-readable",
        "CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; CREATE TABLE {quarantine}.kept (); "
        "GRANT SELECT ON {quarantine}.kept TO PUBLIC",
    ),
    Planted(
        "quarantine-readable",
        "CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; CREATE TABLE {quarantine}.kept (a integer); "
        "GRANT SELECT (a) ON {quarantine}.kept TO PUBLIC",
        "kept.a",
    ),
    Planted(
        "quarantine-of-another-version",
        "CREATE SCHEMA {quarantine} AUTHORIZATION {owner}; CREATE TABLE {quarantine}.territories (code text);",
        level="warning",
        mends="DROP SCHEMA {quarantine} CASCADE",
    ),
    Planted(
        "audit-month-missing",
        "DO $$ DECLARE part text := '{schema}.lead_access_audit_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM');"
        "BEGIN EXECUTE format('ALTER TABLE {schema}.lead_access_audit DETACH PARTITION %s', part);"
        "EXECUTE format('DROP TABLE %s', part); END $$",
        level="warning",
        mends="SELECT {schema}.create_audit_partitions(2)",
    ),
    Planted(
        "audit-default-filled",
        "INSERT INTO {schema}.lead_access_audit (lead_id, at, role, action, outcome, reason) "
        "VALUES ({nil_lead}::{lead_id_type}, now() + interval '5 years', 'r', 'EDIT', 'DENY', 'r')",
        level="warning",
        mends="SELECT {schema}.clear_audit_default(1000)",
    ),
    Planted(
        "chain-short",
        "SELECT FROM {schema}.seal_audit(); COMMIT; SELECT FROM {schema}.seal_audit(); COMMIT;"
        "ALTER TABLE {schema}.lead_access_audit_seals DISABLE TRIGGER USER;"
        "CREATE TABLE public.cut AS SELECT * FROM {schema}.lead_access_audit_seals WHERE territory = 'CH' AND run = 2;"
        "DELETE FROM {schema}.lead_access_audit_seals WHERE territory = 'CH' AND run = 2",
        "'CH' it ends at run 1, others at run 2",
        mends="INSERT INTO {schema}.lead_access_audit_seals SELECT * FROM public.cut",
    ),
    Planted(
        "chain-short",
        "SELECT FROM {schema}.seal_audit(); ALTER TABLE {schema}.lead_access_audit_seals DISABLE TRIGGER USER;"
        "CREATE TABLE public.cut AS SELECT * FROM {schema}.lead_access_audit_seals WHERE territory = 'DE';"
        "UPDATE {schema}.lead_access_audit_seals SET number = 3 WHERE territory = 'DE'",
        "'DE' 2 seals are missing",
        mends="UPDATE {schema}.lead_access_audit_seals SET number = 1 WHERE territory = 'DE'",
    ),
    Planted(
        "seals-old",
        "INSERT INTO {schema}.lead_access_audit (lead_id, at, role, action, outcome, reason) "
        "VALUES ({nil_lead}::{lead_id_type}, now() - interval '2 days', 'r', 'EDIT', 'DENY', 'r')",
        "no seal names rows from",
        level="warning",
        mends="SELECT FROM {schema}.seal_audit()",
    ),
    Planted(
        "anchor-missing",
        "SELECT FROM {schema}.seal_audit()",
        "its chains were never anchored",
        level="warning",
        mends="SELECT FROM {schema}.note_anchor()",
    ),
    Planted(
        "anchor-missing",
        "SELECT FROM {schema}.seal_audit();"
        "INSERT INTO {schema}.audit_anchors (anchored_at) VALUES (now() - interval '32 days')",
        "its chains were last anchored at",
        level="warning",
        mends="SELECT FROM {schema}.note_anchor()",
    ),
    Planted(
        "handover-standing",
        "ALTER TABLE {schema}.lead_handovers DISABLE TRIGGER USER; "
        "INSERT INTO {schema}.lead_handovers (lead_id, id, territory, elsewhere, direction, state, began_at) VALUES "
        "({nil_lead}::{lead_id_type}, gen_random_uuid(), 'DE', 'CH', 'out', 'frozen', now() - interval '11 minutes'); "
        "ALTER TABLE {schema}.lead_handovers ENABLE ALWAYS TRIGGER lp_handover_holds",
        "1 of DE on the way to CH since",
        "warning",
        mends="UPDATE {schema}.lead_handovers SET state = 'cancelled', ended_at = now()",
    ),
    Planted(
        "key-missing",
        "ALTER TABLE {schema}.user_lead_assignments DROP CONSTRAINT ix_ula_lead CASCADE",
        mends="ALTER TABLE {schema}.user_lead_assignments ADD CONSTRAINT ix_ula_lead PRIMARY KEY (lead_id, territory) "
        "INCLUDE (user_id)",
    ),
    Planted(
        "lead-id-open",
        "ALTER TABLE {leads} DROP CONSTRAINT {leads_key} CASCADE; ALTER TABLE {leads} ALTER {lead_id} DROP NOT NULL",
    ),
    Planted(
        "constraint-not-validated",
        "ALTER TABLE {schema}.territories ADD CONSTRAINT c CHECK (code <> '') NOT VALID",
        level="warning",
    ),
    Planted(
        "index-invalid",
        "CREATE INDEX broken ON {leads} (city); "
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{h}.broken'::regclass",
        level="warning",
    ),
    Planted("unique-over-territories", "CREATE UNIQUE INDEX ON {leads} (company, city)", level="note"),
    Planted("unique-over-territories", "ALTER TABLE {leads} ADD UNIQUE (city)", level="note"),
    Planted(
        "unique-over-territories",
        "CREATE UNIQUE INDEX guessed ON {leads} (lower(city))",
        "guessed keeps a value unique",
        level="note",
        mends="DROP INDEX {h}.guessed",
    ),
    Planted("index-not-leakproof", "CREATE INDEX ON {leads} (lower(city))", level="note", mends="DROP INDEX {h}.{i}"),
    Planted(
        "host-table-changed",
        "ALTER TABLE {leads} RENAME {territory} TO region",
        mends="ALTER TABLE {leads} RENAME region TO {territory}",
    ),
    Planted(
        "setting-not-applied",
        "CREATE ROLE reporting_of_doctor",
        "exempt_roles is empty in the database, and reporting_of_doctor in the settings",
        mends="SELECT 1",
        overrides={"exempt_roles": "reporting_of_doctor"},
    ),
    Planted(
        "setting-not-applied",
        "SELECT 1",
        "host_rls is enforce in the database, and off in the settings",
        mends="SELECT 1",
        overrides={"host_rls": "off"},
    ),
    Planted("territory-list-stale", "INSERT INTO {schema}.territories (code, name) VALUES ('FR', 'France')"),
    Planted("territory-list-stale", "UPDATE {schema}.territories SET suffix = 'swiss' WHERE code = 'CH'", "role of CH"),
    Planted(
        "territory-list-stale",
        "CREATE OR REPLACE FUNCTION {schema}.territory_roles() RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE "
        "RETURN pg_catalog.jsonb_build_object('DE', 'pg_monitor', 'CH', 'pg_monitor')",
        "it says pg_monitor is the role of",
    ),
    Planted(
        "territory-list-stale",
        "CREATE OR REPLACE FUNCTION {schema}.territory_roles() RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE "
        "RETURN pg_catalog.jsonb_build_object('FR', 'pg_monitor')",
        "territory_roles() it names ['FR']",
    ),
    Planted(
        "log-too-quiet",
        "ALTER DATABASE {d} SET log_min_messages = 'panic'",
        level="warning",
        mends="ALTER DATABASE {d} RESET log_min_messages",
    ),
    Planted(
        "log-too-quiet",
        'CREATE ROLE "{p}x" LOGIN; ALTER ROLE "{p}x" IN DATABASE {d} SET log_min_messages = \'panic\'',
        "its sessions begin with",
        "warning",
    ),
    Planted(
        "guard-changed",
        "CREATE FUNCTION public.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER noted AFTER INSERT ON {schema}.lead_access_audit FOR EACH ROW EXECUTE FUNCTION public.noted()",
        "trigger noted is not leadprotect's",
    ),
    Planted(
        "leads-unprotected",
        "INSERT INTO {leads} ({lead_id}) VALUES ({nil_lead}::{lead_id_type})",
        level="note",
        mends="UPDATE {leads} SET {territory} = 'DE'",
    ),
    Planted(
        "leads-unowned",
        "INSERT INTO {leads} ({lead_id}, {territory}) VALUES ({nil_lead}::{lead_id_type}, 'DE')",
        "1 leads of a territory",
        level="note",
        mends="DELETE FROM {leads}",
    ),
]


def filled(database: Database, prefix: str, statement: str) -> str:
    """Fill in {p}, {d} and what else a fault names, beside what a revision has."""
    s = database.settings
    schema = s.leads_table.split(".", 1)[0]
    key = s.leads_table.split(".", 1)[1] + "_pkey"
    more = {
        "{p}": prefix,
        "{d}": f'"{database.name}"',
        "{h}": schema,
        "{i}": f'"{s.leads_table.split(".", 1)[1]}_lower_idx"',
        "{leads_key}": f'"{key}"',
        "{user_setting}": s.user_guc,
        "{territory_setting}": s.territory_guc,
    }
    for name, value in more.items():
        statement = statement.replace(name, value)
    return database.text(statement)


@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_a_planted_fault_is_found_and_its_mend_silences_doctor(
    database: Database, logins: str, planted: Planted
) -> None:
    assert [] == found(database, planted.check)
    run(database, filled(database, logins, planted.faults))
    database.overrides.update(planted.overrides)
    try:
        first, *more = found(database, planted.check)
        assert planted.says in f"{first.where} {first.what}"
        assert planted.level == first.level
        assert KNOWN[planted.check].why == first.why
        assert planted.mends is not None or first.mends is not None
        for mends in (
            [filled(database, logins, planted.mends)] if planted.mends else [one.mends for one in (first, *more)]
        ):
            for statement in statements(str(mends)):
                run(database, statement)
        for name in () if planted.mends is None else planted.overrides:
            del database.overrides[name]
        assert [] == found(database, planted.check)
    finally:
        if "reporting_of_doctor" in str(planted.overrides):
            run(database, "DROP ROLE IF EXISTS reporting_of_doctor")


def statements(mends: str) -> list[str]:
    """One by one what can't run inside a transaction, and everything else as it stands."""
    return mends.split(";") if re.match(r"\s*(CREATE|DROP|REINDEX)\b.* CONCURRENTLY\b", mends) else [mends]


def test_every_check_has_a_planted_fault() -> None:
    """Those that not every server knows, or that are no fault of a database at head, are tested apart."""
    apart = {
        "activities-in-future",
        "kind-without-activities",
        "admin-option-alone",
        "role-missing",
        "owner-column-differs",
        "owner-column-code",
        "server-version",
        "host-change-under-way",
        "upgrade-pending",
    }
    assert KNOWN.keys() - apart == {planted.check for planted in PLANTED}


# --- what is sound

EXPECTED = {
    DJANGO.name: {"owner-reachable"},
    SUPABASE.name: {"owner-reachable", "admin-option-alone", "leads-dangerous-grants"},
    FLYWAY.name: {"owner-reachable"},
    PLAIN.name: {"owner-reachable", "admin-option-alone"},
}
"""The warnings that a shape deserves: its migrating login is still a member of our owner, made our roles and may grant
them (where a server tells that apart), and one host grants everything on its tables to everybody."""


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.xdist_group(f"host {shape}")) for shape in SHAPES], ids=str
)
@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.nightly_elsewhere("by day a planted fault is found there, and nothing else")
def test_a_sound_database_of_each_shape_has_no_danger_at_any_time_of_its_life(history: History) -> None:
    expanded, sound, operator, downgraded = history.diagnoses
    assert ([], []) == (dangers(expanded), dangers(sound))
    assert ("sound", "installed", ()) == (*verdict(sound), sound.not_judged)
    host = history.host
    told_apart = {"admin-option-alone"} if host.profile.major < 16 else set()
    assert EXPECTED[host.shape.name] - told_apart == {one.check for one in sound.findings if one.level == "warning"}
    assert "sound" == operator.verdict
    assert ("sound", "quarantine") == verdict(downgraded)


def verdict(diagnosis: Diagnosis) -> tuple[str, str]:
    return diagnosis.verdict, diagnosis.state


def dangers(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    return [(one.check, one.where, one.what) for one in diagnosis.findings if one.level == "danger"]


@pytest.mark.nightly_elsewhere("round trips go through each revision there")
def test_an_upgrade_that_stopped_between_any_two_revisions_is_sound_and_says_what_is_left(host: Database) -> None:
    for revision in REVISIONS[:-1] if NIGHTLY else REVISIONS[:-1:3]:
        host.upgrade(revision)
        diagnosis = diagnosed(host)
        assert (revision, [], ()) == (diagnosis.revision, dangers(diagnosis), diagnosis.not_judged)
        assert "upgrade-pending" in {one.check for one in diagnosis.findings}


@pytest.mark.profiles("pg18")
def test_what_ships_is_what_the_revisions_make(make_database: Callable[..., Database]) -> None:
    databases = [make_database("empty", **overrides) for overrides in MORE.values()]
    for database, (revision, required) in zip(databases, STANDS.values(), strict=True):
        prepared(database, revision, required=required)
    assert json.loads(FILE.read_text()) == json.loads(written(*databases)), "run `make shipped`"


# --- checks apart


def test_an_activity_that_is_yet_to_come_is_a_warning_while_activities_make_owners(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    expanded.activity(lead, expanded.user(1), kind="NOTE", at="2999-01-01")
    assert [] == found(expanded, "activities-in-future")  # the control: neither is one
    expanded.activity(lead, expanded.user(2), at="2999-01-01")
    (warning,) = found(expanded, "activities-in-future")
    assert ("warning", True) == (warning.level, warning.what.startswith("1 qualifying activities are in the future"))
    assert warning.mends is not None
    assert 1 == len(expanded.sql(warning.mends.replace("{", "{{").replace("}", "}}")))


def test_a_kind_that_no_activity_has_is_a_note_while_activities_make_owners(expanded: Database) -> None:
    assert [] == found(expanded, "kind-without-activities")  # the control: nothing is known of an empty table
    lead = expanded.lead("DE")
    for kind in expanded.settings.qualifying_kinds[1:]:
        expanded.activity(lead, expanded.user(1), kind=kind)
    (note,) = found(expanded, "kind-without-activities")
    assert ("note", "no activity has the kind QUALIFIED_CALL of qualifying_kinds") == (note.level, note.what)
    expanded.activity(lead, expanded.user(1), kind="QUALIFIED_CALL")
    assert [] == found(expanded, "kind-without-activities")


@pytest.mark.profiles("pg18")
def test_who_may_grant_a_role_without_being_a_member_is_named(database: Database, logins: str) -> None:
    grant = 'CREATE ROLE "{p}x" LOGIN; GRANT {app} TO "{p}x" WITH ADMIN TRUE, INHERIT FALSE, SET FALSE'
    run(database, filled(database, logins, grant))
    (one,) = found(database, "admin-option-alone")
    assert f"role {logins}x" == one.where
    run(database, str(one.mends))
    assert [] == found(database, "admin-option-alone") + found(database, "service-does-not-inherit")


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.profiles("other_names")
def test_a_role_of_the_usual_name_where_ours_bear_others_is_somebody_else(database: Database) -> None:
    """As that of another database of the cluster is: it was granted nothing of ours, and no policy names it."""
    there = database.sql("SELECT FROM pg_roles WHERE rolname = 'leadprotect_auditor'")
    run(database, "" if there else "CREATE ROLE leadprotect_auditor")
    try:
        run(
            database,
            database.text(
                "GRANT SELECT ON {schema}.lead_access_audit TO leadprotect_auditor; "
                "ALTER POLICY lp_read ON {schema}.lead_access_audit TO {auditor}, leadprotect_auditor"
            ),
        )
        for check in ("table-grants", "policy-changed"):
            (first,) = found(database, check)
            run(database, str(first.mends))
            assert [] == found(database, check)
    finally:
        run(database, "DROP OWNED BY leadprotect_auditor" + ("" if there else "; DROP ROLE leadprotect_auditor"))


def test_a_role_that_bears_another_name_is_named(database: Database) -> None:
    assert [] == found(database, "role-missing")
    with database.connect() as conn:  # never committed: the cluster is everybody's
        for office in ("DE", "manager"):
            role = database.settings.role(office)
            conn.execute(f'ALTER ROLE "{role}" RENAME TO "{database.name}_{role}"'.encode())
        missing = examine(conn, settings=database.settings, checks=[KNOWN["role-missing"]]).findings
        conn.rollback()
    assert [database.settings.role(office) for office in ("DE", "manager")] == [
        one.where.removeprefix("role ") for one in missing
    ]


def test_what_mends_a_policy_or_a_trigger_takes_nothing_away_where_it_can_t_be_made_anew(database: Database) -> None:
    """A column of the host that was renamed: doctor says that first, and the other mends fail as a whole."""
    s = database.settings
    database.sql("ALTER TABLE {leads} RENAME COLUMN {territory} TO moved")
    standing = (
        "SELECT polname FROM pg_policy WHERE polrelid = '{leads}'::regclass "
        "UNION ALL SELECT tgname FROM pg_trigger WHERE tgrelid = '{leads}'::regclass AND NOT tgisinternal ORDER BY 1"
    )
    before = database.sql(standing)
    changed = found(database, "policy-changed") + found(database, "lead-trigger-changed")
    assert s.role("border") in " ".join(one.what for one in changed)
    failed = 0
    with database.connect(autocommit=True) as conn:
        for one in changed:
            for statement in re.findall(r"DO \$mend\$.*?\$mend\$;|[^;]+;", str(one.mends), re.DOTALL):  # as psql does
                try:
                    conn.execute(statement.encode())
                except psycopg.Error:
                    failed += 1
    assert (True, before) == (failed > 0, database.sql(standing))


def test_nothing_is_repaired_while_the_number_is_wrong(database: Database) -> None:
    database.sql("UPDATE {versions} SET version_num = %s", MIGRATE_HEAD)
    with database.connect(autocommit=True) as conn:
        todo = plan(conn, settings=database.settings)
    assert ((), True) == (todo.own, "version-stamped" in {one.check for one in todo.others})


@pytest.mark.profiles("pg18")
def test_who_migrated_gives_everything_back_and_those_he_granted_it_to_keep_it(database: Database, logins: str) -> None:
    made = """
        CREATE ROLE "{p}m" LOGIN; CREATE ROLE "{p}s" LOGIN;
        GRANT {owner}, {app} TO "{p}m" WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
        SET ROLE "{p}m"; GRANT {owner} TO "{p}m" WITH SET TRUE; GRANT {app} TO "{p}s", "{p}m"; RESET ROLE
        """
    run(database, filled(database, logins, made))
    symptoms = found(database, "owner-reachable") + found(database, "admin-option-alone")
    assert [f"login {logins}m", f"role {logins}m"] == [one.where for one in symptoms]
    for one in symptoms:
        run(database, str(one.mends))
    assert [] == found(database, "owner-reachable") + found(database, "admin-option-alone")
    holds = "SELECT r, pg_has_role({p}r, {app_name}, 'MEMBER') FROM unnest(ARRAY['m', 's']) AS r"
    query = holds.replace("{p}r", f"'{logins}' || r").replace("{app_name}", f"'{database.settings.role('app')}'")
    assert [("m", True), ("s", True)] == database.sql(query)


@pytest.mark.profiles("pg18")
def test_a_server_with_a_known_fault_of_row_security_is_a_danger(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [] == found(database, "server-version")
    monkeypatch.setitem(check.SAFE_MINOR, 18, 90)
    assert "has a known row-security vulnerability" in found(database, "server-version")[0].what


def test_an_owner_whom_force_does_not_bind_any_more_is_a_danger(make_database: Callable[..., Database]) -> None:
    database = make_database("expanded", host_rls="force")
    database.upgrade("head")
    assert [] == found(database, "leads-row-security-off")
    database.sql("ALTER TABLE {leads} NO FORCE ROW LEVEL SECURITY")
    (one,) = found(database, "leads-row-security-off")
    assert "does not bind the owner" in one.what


# --- who asks, and where


def test_a_login_without_rights_is_told_what_it_could_not_ask_and_all_that_it_could(database: Database) -> None:
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    diagnosis = diagnosed(database, "outsider")
    assert "danger" == diagnosis.verdict
    assert "row-security-off" in {one.check for one in diagnosis.findings}
    hidden = {
        "version-table-rows",
        "version-stamped",
        "undo-changed",
        "territory-list-stale",
        "upgrade-pending",
        "seals-old",
        "chain-short",
        "anchor-missing",
        "handover-standing",
        "shadow-left-over",
    }
    assert hidden | {"host-unreadable", "leads-unprotected", "leads-unowned"} == {
        one.check for one in diagnosis.not_judged
    }


def test_nothing_of_danger_for_a_login_without_rights_is_not_judged(database: Database) -> None:
    diagnosis = diagnosed(database, "outsider")
    assert ("not judged", []) == (diagnosis.verdict, dangers(diagnosis))
    assert "sound" == diagnosed(database, "operator").verdict


def test_a_lock_hides_one_check_and_no_other(database: Database) -> None:
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    with database.connect() as holder, database.connect(autocommit=True) as conn:
        database.query(holder, "LOCK {leads} IN ACCESS EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '100ms'")
        diagnosis = examine(conn, settings=database.settings)
    assert {"a lock was not to be had in time"} == {one.reason for one in diagnosis.not_judged}
    assert "leads-unprotected" in {one.check for one in diagnosis.not_judged}
    assert "row-security-off" in {one.check for one in diagnosis.findings}


def test_doctor_can_not_write(database: Database) -> None:
    def writing(conn: psycopg.Connection[Any], _: object) -> list[Any]:
        conn.execute("CREATE TABLE public.written ()")
        return []

    check = replace(KNOWN["row-security-off"], ask=writing)
    with database.connect(autocommit=True) as conn:
        (refused,) = examine(conn, settings=database.settings, checks=[check]).not_judged
        assert "cannot execute CREATE TABLE in a read-only transaction" == refused.reason
        conn.execute("CREATE TABLE public.written ()")  # the control: afterwards the session is as before


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_says_the_verdict_first_and_exits_by_it(database: Database) -> None:
    assert (0, f"sound: revision {REVISIONS[-1]}; {len(CHECKS)} checks asked, nothing found\n") == doctor()
    run(database, database.text("ALTER TABLE {schema}.territories NO FORCE ROW LEVEL SECURITY"))
    code, text = doctor()
    assert 1 == code
    assert text.startswith(f"danger: revision {REVISIONS[-1]}; {len(CHECKS)} checks asked, 1 of danger\n")
    lines = [line.strip() for line in text.splitlines()]
    assert f"danger  row-security-off  {database.settings.schema}.territories" in lines
    assert (
        database.text('ALTER TABLE {schema}."territories" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;')
        in lines
    )


def test_as_json_it_is_one_object(database: Database) -> None:
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    code, text = doctor("--json")
    answer = json.loads(text)
    assert (1, "danger", "installed") == (code, answer["verdict"], answer["state"])
    (one,) = answer["findings"]
    assert {"check", "level", "where", "what", "why", "mends"} == one.keys()


def test_a_database_without_us_is_not_judged(host: Database) -> None:
    code, text = doctor()
    assert (2, True) == (code, text.startswith("not judged: there is no leadprotect in schema"))
    assert (2, "absent") == (doctor("--json")[0], json.loads(doctor("--json")[1])["state"])
    assert host.revision() is None


def test_after_a_downgrade_the_quarantine_is_judged(database: Database) -> None:
    database.downgrade("base")
    code, text = doctor()
    assert (0, True) == (code, text.startswith("sound: rolled back: its tables are in"))
    run(database, database.text("GRANT SELECT ON {quarantine}.lead_access_audit TO PUBLIC"))
    assert 1 == doctor()[0]


def test_a_newer_release_is_judged_without_its_texts(database: Database) -> None:
    database.sql("UPDATE {versions} SET version_num = 'lp_0099_contract_more'")
    code, text = doctor()
    assert (2, True) == (code, "lp_0099_contract_more is of a newer version" in text.splitlines()[0])
    assert "function-changed: a newer version of leadprotect was installed" in text
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    assert 1 == doctor()[0]


@pytest.mark.profiles("pg18")
def test_a_standby_answers_like_its_primary(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with replica(database.server) as standby:
        monkeypatch.setenv("DATABASE_URL", standby.url(database.name))
        current.cache_clear()
        code, text = doctor()
    assert (0, True) == (code, f", on a standby; {len(CHECKS)} checks asked" in text)


@pytest.mark.profiles("pg18")
def test_behind_a_pooler_of_transactions_it_says_where_to_ask(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = database.profile.login("operator")
    with pooler(database.server, "transaction", logins=(login,), size=2) as front:
        monkeypatch.setenv("DATABASE_URL", front.url(database.name, login))
        current.cache_clear()
        code, text = doctor()
    assert code in {0, 2}
    assert ("transaction pooler" in text) == (code == 2)


def test_a_server_that_is_away_is_not_judged(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    current.cache_clear()
    assert (2, True) == (doctor()[0], doctor()[1].startswith("not judged: no connection to the database"))
    assert database.revision() == REVISIONS[-1]


@pytest.mark.profiles("pg18")
def test_a_backfill_that_is_through_is_no_remedy_for_leads_without_an_owner(
    make_database: Callable[..., Database],
) -> None:
    database = make_database("expanded")
    database.lead("DE")
    assert "leadprotect backfill --all" == found(database, "leads-unowned")[0].mends
    assert 0 == CliRunner().invoke(main, ["backfill", "--all"]).exit_code
    assert found(database, "leads-unowned")[0].mends is None


# --- repair

REPAIRED = [planted for planted in PLANTED if planted.check in OWN and not planted.mends and not planted.overrides]


def repaired(*arguments: str, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["repair", *arguments], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_repair_puts_back_all_that_is_ours_at_once(database: Database, logins: str) -> None:
    owner = database.user(1)
    lead = database.lead("DE", owner=owner)
    once = {planted.check: planted for planted in REPAIRED}
    for planted in once.values():
        run(database, filled(database, logins, planted.faults))
    broken = {one.check for one in diagnosed(database).findings}
    assert once.keys() <= broken
    code, text = repaired("--yes")
    assert (0, True) == (code, "\nrepaired\n" in text), text
    assert set() == {one.check for one in diagnosed(database).findings} & {*OWN}
    assert owner == database.owner(lead)


def test_repair_shows_its_sql_and_does_nothing_without_a_yes(database: Database) -> None:
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    code, text = repaired(answer="n\n")
    assert (1, True) == (code, "nothing was changed" in text)
    assert "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;" in text
    assert 1 == len(found(database, "row-security-off"))


def test_what_is_not_ours_is_named_and_left(database: Database) -> None:
    run(database, database.text("CREATE TABLE {schema}.notes (note text); GRANT SELECT ON {schema}.notes TO PUBLIC"))
    run(database, "CREATE RULE r AS ON DELETE TO {leads} DO ALSO SELECT 1".replace("{leads}", database.text("{leads}")))
    code, text = repaired("--yes")
    assert "only a DBA can judge: danger  table-without-policies" in text
    assert "only a DBA can judge: warning  rule-on-leads" in text
    assert 1 == len(found(database, "table-without-policies"))
    assert 0 == code


def test_what_a_repair_has_put_back_is_left_to_nobody(database: Database) -> None:
    """Of a policy that is gone two checks tell: one puts it back, and the other names what is to be restored."""
    run(database, database.text("DROP POLICY {border_policy} ON {leads}"))
    before, (code, text) = {one.check for one in diagnosed(database).findings}, repaired("--yes")
    assert {"policy-missing", "contract-not-standing"} <= before
    assert (0, True) == (code, "\nrepaired\n" in text), text
    assert "contract-not-standing" not in text


def test_repair_without_the_rights_changes_nothing_and_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database, database.text("ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY"))
    run(database, database.text("DROP POLICY lp_border ON {schema}.user_lead_assignments"))
    monkeypatch.setenv("DATABASE_URL", database.login_url("operator"))
    current.cache_clear()
    code, text = repaired("--yes")
    assert (1, True) == (code, "the login lacks the role for this call" in text)
    assert 1 == len(found(database, "row-security-off"))
    assert 1 == len(found(database, "policy-missing"))


@pytest.mark.profiles("pg18")
def test_who_migrates_can_repair(make_host: Callable[..., Host]) -> None:
    host = make_host(PLAIN)
    host.expand()
    host.grant()
    host.backfill()
    host.contract()
    for fault in (
        "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY",
        "DROP TRIGGER {audit_edit} ON {leads}",
        "DROP POLICY lp_border ON {schema}.user_lead_assignments",
        "DROP FUNCTION {schema}.audit_number_gaps(date, date)",
        "ALTER TABLE {schema}.lead_access_audit_default DISABLE TRIGGER lp_append_only",
    ):
        run(host, host.text(fault))
    with psycopg.connect(host.url_of("owner"), autocommit=True) as conn:
        todo = plan(conn, settings=host.settings)
        assert () == repair(conn, todo, settings=host.settings)
    assert [] == dangers(diagnosed(host))
