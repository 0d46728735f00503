"""What an analyser of row-level security says about a database at head, and why each of its complaints stands.

`pgrls verify --strict` proves that no path of roles or views leads to the rows. Of what a policy lets through it finds
no leak and proves nothing: each of ours asks a function or current_user, which it can't decide. `pgrls diff` compares
with tests/support/policies.json: whoever means to change a policy runs `make policies`, and the change is read.
pip-audit looks up the versions of the lock file. bandit's rules are ruff's `S`, on for the package and the revisions
(pyproject.toml).
"""

from __future__ import annotations

import json
import re
import subprocess
import warnings
from typing import TYPE_CHECKING

import pytest

from tests.support import policies
from tests.support.database import ROOT
from tests.support.policies import pgrls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.database import Database

# one worker loads what takes most of a second
pytestmark = [pytest.mark.profiles("pg18", "pg15"), pytest.mark.xdist_group("pgrls")]

# rule -> where it may complain, and why that is as it must be
WAIVED = {
    "SEC001": (
        r"leadprotect\.alembic_version|public\.(activities|user_lead_assignments)",
        "Alembic's own table, to which nobody has a grant; tables of the host keep the access that they had",
    ),
    "SEC002": (r"public\.leads", "host_rls = enforce leaves the owner of the table his maintenance access"),
    "SEC003": (r"public\.leads\.leadprotect_rows", "opens nothing: the border beside it is restrictive and PUBLIC's"),
    "SEC005": (
        r"leadprotect\.\w+\.lp_(inside|operator|read|reference|border)|public\.leads\.\w+",
        "rights of our functions and of offices; the border narrows by territory, which it takes for no tenant",
    ),
    "SEC007": (
        r"leadprotect\.(accepted_conditions|contextless_writes|denial_secret|guard_runs|host_row_security|audit_anchors|lead_table_row_security|revision_undo|shadow_notes|shadow_runs|territories|unsettled_leads)",
        "tables without a territory: there is no border to draw",
    ),
    "SEC008": (
        r"leadprotect\.\w+\.lp_(operator|read|reference)|public\.leads\.leadprotect_rows",
        "permissive for an office, and narrowed by the restrictive border",
    ),
    "SEC013": (
        r"leadprotect\.(lead_access_audit\w*\.lp_append_only|lead_handovers\.lp_\w+|user_lead_assignments\.\w+)|public\.leads\.\w+",
        "triggers of ours: test_grants.py, test_attacks.py and test_handovers.py",
    ),
    "SEC014": (r"leadprotect\.\w+", "each asks the acting role: test_attacks.py calls them across the border"),
    "SEC015": (
        r"leadprotect\.(backfill_counts|backfill_outside|territory_terms|unowned_count|unowned_leads|who_could_edit)",
        "bodies in SQL standard form: their names were bound when they were made",
    ),
    "SEC020": (
        r"public\.leads\.leadprotect_(members_)?update",
        "the new row is bound by the border and by refuse_move",
    ),
    "SEC027": (r"leadprotect\.\w+", "rows belong to a territory, not to the user who asks"),
    "SEC028": (r"public\.leads\.leadprotect_rows", "as SEC003"),
    "SEC038": (
        r"leadprotect\.\w+\.lp_(operator|read|reference)|public\.leads\.leadprotect_rows",
        "as SEC003 and SEC008: it looks at one permissive policy without the restrictive one",
    ),
    "PERF003": (r"leadprotect\.\w+\.lp_border|public\.leads\.\w+", "the key begins with the lead: docs/benchmarks"),
    "PERF004": (r"public\.leads\.leadprotect_(update|delete)", "the decision about a row that was found already"),
}


OF_THE_SERVER = {"SEC016", "SEC029"}
"""Rules about roles: those of other tests' hosts bypass row security, and are none of this database's."""


def complaints(database: Database) -> set[tuple[str, str]]:
    """Rule and place of everything that it finds in our schema and the host's, and about roles of ours."""
    done = pgrls("lint", "--format", "json", "--schemas", "leadprotect,public", "--database-url", database.url)
    found = {(each["rule_id"], each["location"]) for each in json.loads(done.stdout)["violations"]}
    return {(rule, place) for rule, place in found if rule not in OF_THE_SERVER or "leadprotect" in place}


def not_waived(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(rule, place) for rule, place in found if rule not in WAIVED or not re.fullmatch(WAIVED[rule][0], place)}


def test_an_analyser_of_row_security_has_no_complaint_that_nobody_answered(database: Database) -> None:
    found = complaints(database)
    assert not_waived(found) == set()
    assert {rule for rule, _ in found} == set(WAIVED), "an answer stands for a complaint that is not made"


# --- what changed since it was last read


def changes(database: Database, folder: Path) -> str:
    """What `pgrls diff` says of a database and the snapshot; empty when nothing changed."""
    now = folder / "now.json"
    now.write_text(policies.snapshot(database), encoding="utf-8")
    done = pgrls("diff", str(policies.FILE), str(now), "--fail-on", "safe")
    return done.stdout if done.exit_code else ""


@pytest.mark.profiles("pg18")
def test_no_policy_changed_without_somebody_s_word(database: Database, tmp_path: Path) -> None:
    assert "" == changes(database, tmp_path), "make policies, and read what it changed"


DAMAGES = {
    "CREATE POLICY stray ON {schema}.lead_access_audit USING (true)": "stray",
    "DROP POLICY {border_policy} ON {leads}": "leadprotect_border",
    "ALTER POLICY lp_border ON {schema}.user_lead_assignments USING (true)": "user_lead_assignments",
    "ALTER TABLE {schema}.territories NO FORCE ROW LEVEL SECURITY": "territories",
    "GRANT DELETE ON {schema}.denial_secret TO PUBLIC": "denial_secret",
}
"""Statement -> what the report names of it."""


@pytest.mark.profiles("pg18")
def test_control_each_change_is_told(database: Database, tmp_path: Path) -> None:
    for damage in DAMAGES:
        database.sql(damage)
    said = changes(database, tmp_path)
    assert [] == [damage for damage, name in DAMAGES.items() if name not in said]


HOLES = {
    "ALTER TABLE {schema}.denial_secret DISABLE ROW LEVEL SECURITY": "SEC032",
    "ALTER TABLE {schema}.lead_access_audit NO FORCE ROW LEVEL SECURITY": "SEC002",
    "CREATE POLICY stray ON {schema}.lead_access_audit USING (true)": "SEC003",
    "ALTER FUNCTION {schema}.claim_lead(uuid, text) RESET search_path": "SEC015",
}
"""Statement -> the rule that complains about it, and about nothing else in that place."""


def test_control_each_hole_is_complained_about(database: Database) -> None:
    for hole in HOLES:
        database.sql(hole)
    assert {*HOLES.values()} <= {rule for rule, _ in not_waived(complaints(database))}


# --- proofs


def verified(database: Database, mode: str, *options: str) -> tuple[int, str]:
    """Exit code and report of `pgrls verify`."""
    command = ("verify", "--mode", mode, "--schemas", "leadprotect,public", "--database-url", database.url)
    done = pgrls(*command, *options)
    return done.exit_code, done.stdout


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("mode", ["escalation", "reachability"])
def test_no_path_leads_to_the_rows_past_their_policies(database: Database, mode: str) -> None:
    assert 0 == verified(database, mode, "--strict")[0]


@pytest.mark.profiles("pg18")
def test_control_a_view_with_its_owners_rights_is_a_path(database: Database) -> None:
    database.sql("CREATE VIEW public.every_lead AS SELECT * FROM {leads}; GRANT SELECT ON public.every_lead TO PUBLIC")
    assert 1 == verified(database, "reachability", "--strict")[0]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("mode", ["anon", "cross-tenant", "write"])
def test_no_policy_is_found_to_leak(database: Database, mode: str) -> None:
    code, report = verified(database, mode)
    assert (0, "0 leaking") == (code, re.findall(r"\d+ leaking", report)[-1])


@pytest.mark.profiles("pg18")
def test_control_a_policy_that_leaks_is_found(database: Database) -> None:
    database.sql("CREATE POLICY stray ON {schema}.denial_secret USING (true)")
    assert 1 == verified(database, "anon")[0]


# --- what others found in what we build on


def vulnerable(lock: Path) -> tuple[list[str], int, int]:
    """Versions with a known vulnerability, how many could be looked up, and how many could not."""
    command = ["pip-audit", "--disable-pip", "--require-hashes", "--requirement", str(lock), "--format", "json"]
    nothing: tuple[list[str], int, int] = [], 0, lock.read_text(encoding="utf-8").count("==")
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return nothing
    try:
        found = json.loads(done.stdout)["dependencies"]
    except json.JSONDecodeError:
        assert "requests.exceptions." in done.stderr, done.stderr
        return nothing
    known = [one for one in found if "vulns" in one]
    return [f"{one['name']} {one['version']}" for one in known if one["vulns"]], len(known), len(found) - len(known)


@pytest.mark.filterwarnings("default")
@pytest.mark.profiles("pg18")
def test_no_locked_version_has_a_known_vulnerability() -> None:
    found, looked_up, unknown = vulnerable(ROOT / "requirements.lock")
    assert [] == found
    assert looked_up + unknown > 100
    if unknown:  # an index without advisories, or no network: said in the summary, and no failure of ours
        warnings.warn(f"pip-audit could look up {looked_up} of {looked_up + unknown} locked versions", stacklevel=1)
