"""A newcomer with the wheel and a database of his own follows the how-tos, word for word, from init to leaving.

One life on each server, by day on the newest: each page finds what the pages before it left. A page that nothing here
or elsewhere runs is run before contract; whoever writes one has to do nothing, unless it needs something that was not
there.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support import servers
from tests.support.chains import Project
from tests.support.database import ROOT
from tests.support.pages import HOW_TO, Block, blocks, not_said
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import Server

pytestmark = [
    pytest.mark.xdist_group("packaging"),
    pytest.mark.timeout(600),
]

LONG = NIGHTLY or "RELEASED_PYTHON" in os.environ
BEFORE_CONTRACT = "every other page"
LEAVING = "leave-without-a-trace"


@dataclass(frozen=True)
class Step:
    """A page, or some of its blocks, and what has to be there: what a DBA runs, or what a shell prepares.

    Where the server can't have the `extension`, it is left out; what is `newest` is done on the newest server alone,
    and what takes long and has a test of its own by night.
    """

    page: str
    blocks: tuple[int, ...] = ()
    sql: str = ""
    prepared: str = ""
    chain: tuple[str, ...] = ()
    newest: bool = False
    by_night: bool = False
    extension: str = ""
    login: str = "migrator"
    after_sql: str = ""
    afterwards: str = ""


NO_KIND_YET = """
    ALTER TABLE activities RENAME TO calls;
    CREATE TABLE activities (LIKE calls INCLUDING ALL);
    ALTER TABLE activities ADD FOREIGN KEY (lead_id) REFERENCES leads;
    ALTER TABLE activities OWNER TO migrator;
"""
CALLS_AGAIN = "DROP TABLE activities; ALTER TABLE calls RENAME TO activities;"
OWN_INI = """
    mkdir own own/mig && cd own && printf '[alembic]\\nscript_location = %%(here)s/mig\\n' > alembic.ini
    leadprotect init --yes
"""
OF_HIS_OWN = ("crm_0001_expand_notes", "crm_0002_contract_drop_notes")
VISITS = "crm_0004_expand_visits"
TWO_BRANCHES = """
    git init -q . && git config user.name newcomer && git config user.email newcomer@example.org
    git add . && git commit -q -m "Add AT"
    sed 's/add_at/add_fr/g' mig/versions/crm_0003_expand_add_at.py > mig/versions/crm_0003_expand_add_fr.py
"""
TENANTS = """
    CREATE TABLE members (org int);
    CREATE FUNCTION my_org() RETURNS int LANGUAGE sql STABLE AS 'SELECT org FROM members';
    ALTER TABLE leads ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON leads AS RESTRICTIVE USING (true);
    CREATE POLICY "members read" ON leads USING (my_org() IS NULL);
"""
GATEWAY = """
    CREATE ROLE web NOLOGIN;
    CREATE ROLE gateway LOGIN NOINHERIT IN ROLE web;
    GRANT SELECT ON leads TO web;
    CREATE POLICY web ON leads TO web USING (true);
"""
NO_SEARCH = """
    DROP FUNCTION leads_with_tag(text);
    ALTER TABLE leads DROP COLUMN email_key;
    DROP INDEX leads_company_idx;
"""
A_COPY = """
    CREATE EXTENSION pgtap;
    CREATE DATABASE a_copy TEMPLATE crm;
    DROP EXTENSION pgtap;
"""
POOL = """
    CREATE ROLE authenticated NOLOGIN;
    CREATE ROLE service_role NOLOGIN BYPASSRLS;
    CREATE ROLE authenticator LOGIN NOINHERIT IN ROLE service_role;
    GRANT SELECT ON leads TO authenticated;
    CREATE SCHEMA api;
"""
NO_POOL = """
    DROP SCHEMA api CASCADE;
    REVOKE ALL ON leads FROM authenticated;
    DROP ROLE authenticated_de, authenticated_ch, authenticated, authenticator, service_role;
"""
OF_2024 = """
    INSERT INTO leadprotect.lead_access_audit (lead_id, at, role, territory, action, outcome, reason)
    VALUES (gen_random_uuid(), '2024-12-09 10:00+00', 'none', 'DE', 'EDIT', 'DENY', 'not_owner')
"""

LIFE = (
    # in a hurry, in two languages
    Step("schnellstart", prepared="mkdir de && cd de", newest=True),
    Step("README", prepared="mkdir ../en && cd ../en", newest=True, by_night=True),
    # nothing is there yet
    Step("start-with-init", (0,), prepared="cd ~ && leadprotect purge --yes || true"),
    Step(
        "start-with-init",
        (1,),
        sql=NO_KIND_YET,
        prepared="mkdir none && cd none",
        after_sql=CALLS_AGAIN,
        afterwards="cd ..",
    ),
    Step("install-without-superuser", after_sql="GRANT leadprotect_owner, leadprotect_reader TO migrator"),
    Step("start-with-init", (2,), prepared=OWN_INI, afterwards="cd .."),
    Step("plan-a-deploy"),
    # expand and migrate
    Step("deploy-to-production", (0, 1, 2)),
    Step("run-the-backfill"),
    Step("slow-the-backfill-down"),
    Step("find-leads-without-an-owner"),
    Step("deploy-to-production", (3, 4, 5)),
    Step(
        "add-a-territory",
        sql="CREATE ROLE crm_service_at LOGIN; INSERT INTO leads (territory) VALUES ('AT')",
    ),
    Step(BEFORE_CONTRACT),
    # his own revisions
    Step("write-a-revision", (0,), prepared="mkdir project && cd project", chain=OF_HIS_OWN),
    Step("write-a-revision", (1,), prepared=TWO_BRANCHES, afterwards="cd ~"),
    Step(
        "validate-revisions-in-ci",
        (0,),
        prepared="mkdir other && cd other",
        chain=(*OF_HIS_OWN, "crm_0003_expand_add_at", VISITS),
        by_night=True,
    ),
    Step("validate-revisions-in-ci", (1,), prepared=f"rm mig/versions/{VISITS}.py", afterwards="cd ~", by_night=True),
    # contract
    Step("deploy-to-production", (6, 7, 8)),
    Step("attack-your-own-database", login="crm_service"),
    Step("run-the-pgtap-suite", (0,), sql=A_COPY, extension="pgtap"),
    Step("run-the-pgtap-suite", (2,), after_sql="DROP DATABASE a_copy", afterwards="cd ~", extension="pgtap"),
    Step("run-the-pgtap-suite", (3,), login="crm_service"),
    Step("use-with-postgrest-and-supabase", (1, 2, 3, 4), sql=POOL, after_sql=NO_POOL),
    Step(
        "change-a-setting-after-contract",
        sql="CREATE ROLE crm_reports LOGIN; GRANT SELECT ON leads TO crm_reports",
        prepared="sed -i 's/^leads_table/exempt_roles = crm_reports\\n&/' alembic.ini",
        after_sql="REVOKE SELECT ON leads FROM crm_reports",
    ),
    Step(
        "find-who-could-edit",
        login="auditor",
        sql="GRANT leadprotect_auditor, leadprotect_operator TO auditor;"
        "GRANT leadprotect_de, leadprotect_ch, leadprotect_at TO auditor",
    ),
    Step("seal-and-verify-the-audit", login="auditor"),
    Step("keep-and-detach-audit-months", login="auditor", sql=OF_2024),
    Step("search-under-row-security", after_sql=NO_SEARCH),
    Step("back-up-and-restore"),
    Step(
        "change-a-column-that-leadprotect-holds",
        prepared="echo 'ALTER TABLE leads ALTER territory TYPE varchar(20)' > change.sql && cp alembic.ini old.ini"
        " && sed 's/^territory_column = .*/territory_column = region/' alembic.ini > new.ini",
        afterwards="leadprotect host-change -- sh -c "
        "'psql $DATABASE_URL -c \"ALTER TABLE leads RENAME region TO territory\" && cp old.ini alembic.ini'",
        by_night=True,
    ),
    # and back
    Step("roll-back", (0,), afterwards="alembic upgrade head"),
    Step("roll-back", (1,)),
    Step(LEAVING),
    # and again, with row security of his own
    Step(
        "adopt-a-host-with-row-security",
        (0, 1, 2),
        sql=TENANTS + "GRANT SELECT ON leads TO crm_reports;",
        afterwards="alembic upgrade head",
    ),
    Step("adopt-a-host-with-row-security", (3, 4, 5, 6), sql=GATEWAY),
)

THE_WAY = {
    "start-with-init", "install-without-superuser", "plan-a-deploy", "deploy-to-production", "run-the-backfill",
    "find-leads-without-an-owner", "run-the-pgtap-suite", "roll-back", LEAVING,
}  # fmt: skip
"""What is followed on another server than the newest, beside every page that nobody placed; and by day."""

ELSEWHERE = {
    "cover-a-holiday": "integration/test_howtos.py",
    "derive-owners-from-your-data": "unit/test_pages.py",
    "hand-over-the-leads-of-a-seller": "integration/test_howtos.py",
    "live-beside-your-own-alembic": "e2e/test_host_project.py",
    "share-a-lead": "integration/test_howtos.py",
    "suspend-somebody": "integration/test_howtos.py",
}

NOT_RUN = {
    ("README", 0): "the demo and this suite: integration/test_demo.py",
    ("gate-a-rollout", 1): "ten seconds of promtool: unit/test_gate_rules.py does",
    ("gate-a-rollout", 2): "names somebody's Prometheus",
    ("gate-a-rollout", 3): "asks a Prometheus that has watched a service: integration/test_gates.py does",
    ("guard-a-rollout", 0): "waits eleven minutes for a Prometheus: e2e/test_guard.py does, with shorter windows",
    ("guard-a-rollout", 1): "asks a Prometheus that has watched a service: e2e/test_guard.py does",
    ("rehearse-on-a-copy", 0): "a minute of traffic: e2e/test_rehearsal.py does",
    ("run-the-pgtap-suite", 1): "another schema with other ids: pgtap/test_pgtap.py does, on such a database",
    ("use-with-django", 0): "a project of Django's: integration/test_django.py does",
}
"""Block -> why it is not run here, and what runs the same."""

AS_AN_EXAMPLE = {
    "find-who-could-edit": "a history of weeks",
    "plan-a-deploy": "a host with more logins, views and rows",
    "see-who-would-be-denied": "what ten minutes of other people's work told",
}
"""Page -> what its answers show that a life of a minute has not: they are run and not compared."""

OTHER_CODES = {
    "plan-a-deploy": {0, 3},  # it would stop at the gate
    "deploy-to-production": {0, 3},  # the same, the first time
    "attack-your-own-database": {0, 1},  # it may tell of activities, which keep the access that they had
}
REFUSED = ("FAILED: ", "Error: ", " problems: ")
ADDRESS = re.compile(r"postgresql://(\w+)@[a-z]+\.example/(\w+)")
DBA = "\nA DBA can run:\n"
LEFT = "\nleft, for a DBA to take back:\n"


@dataclass
class Life:
    """One newcomer: a folder, a shell, and a server that has never heard of leadprotect."""

    folder: Path
    server: Server
    programs: list[Path]
    login: str = "migrator"
    followed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LEADPROTECT_", "PG"))}
        kept.pop("DATABASE_URL", None)
        kept.pop("PYTHONPATH", None)
        path = os.pathsep.join([*map(str, self.programs), os.environ["PATH"]])
        # the window is over, and it is night where the server asks for the time
        night = "UTC-12" if 6 <= datetime.now(UTC).hour < 20 else "UTC"
        given = {
            "PATH": path, "PGHOST": self.server.host, "PGUSER": "postgres", "PGDATABASE": "crm", "PGTZ": night,
            "LEADPROTECT_OBSERVATION_WINDOW": "0",
        }  # fmt: skip
        self.environment = kept | given
        (self.folder / "vault").mkdir()
        self.typed("pwd > ../cwd; export -p > ../exported")

    def dba(self, statements: str) -> None:
        """What a superuser runs, each statement by itself."""
        with psycopg.connect(self.server.url("crm"), autocommit=True) as conn:
            for statement in Block("", 0, "sql", statements).statements:
                conn.execute(statement.encode())

    def can_have(self, extension: str) -> bool:
        with psycopg.connect(self.server.url("crm")) as conn:
            query = "SELECT FROM pg_available_extensions WHERE name = %s"
            return not extension or conn.execute(query, (extension,)).fetchone() is not None

    def typed(self, command: str) -> subprocess.CompletedProcess[str]:
        """A command of the shell that the one before it was typed into: a question gets a y, a new password two."""
        command = (
            ADDRESS.sub(lambda found: self.server.url(found[2], found[1]), command)
            .replace("/mnt/vault", "$HOME/vault")
            .replace("--for 10min", "--for 1s")
        )
        kept = f"{self.folder.parent}/exported", f"{self.folder.parent}/cwd"
        script = f'[ ! -e {kept[0]} ] || . {kept[0]}; [ ! -e {kept[1]} ] || cd "$(cat {kept[1]})"\n{command}\n'
        script += f"code=$?; export -p > {kept[0]}; pwd > {kept[1]}; exit $code"
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", script], env=self.environment | {"HOME": str(self.folder)},
            cwd=self.folder, input="y\ny\n", capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def follow(self, step: Step) -> None:
        """The blocks of a page in order; what a DBA has to run between them, he runs."""
        if (step.newest and self.server.major in servers.installed()) or not self.can_have(step.extension):
            return
        if step.sql:
            self.dba(step.sql)
        if step.login != self.login or not self.followed:
            self.login = step.login
            self.typed(f"export DATABASE_URL={self.server.url('crm', self.login)!r}")
        if step.prepared:
            self.succeeds(step.prepared)
        if step.chain:
            self.chain(*step.chain)
        for block in blocks(file_of(step.page)):
            if (block.page, block.number) not in NOT_RUN and (not step.blocks or block.number in step.blocks):
                self.do(block)
        if step.after_sql:
            self.dba(step.after_sql)
        if step.afterwards:
            self.succeeds(step.afterwards)
        self.followed.add(step.page)

    def do(self, block: Block) -> None:
        if block.kind in ("sql", "postgresql"):
            self.dba(block.text)
            return
        for command, shown in block.commands:
            refused = any(word in shown for word in REFUSED)
            code, said = self.run(command, again=not refused)
            told = f"{block}: {command}\n{said}"
            assert (code in OTHER_CODES.get(block.page, {0})) != refused, told
            if block.page not in AS_AN_EXAMPLE:
                assert [] == not_said(shown, said), told

    def run(self, command: str, *, again: bool = True) -> tuple[int, str]:
        """Type a command; what it prints for a DBA, a DBA runs, and then it may be typed `again`."""
        done = self.typed(command)
        said = done.stdout + done.stderr
        if DBA in said:
            printed = said.partition(DBA)[2].splitlines(keepends=True)
            self.dba("".join(takewhile(lambda line: line.startswith("    "), printed)))
            if again:
                return self.run(command, again=False)
        if LEFT in said:
            self.dba("\n".join(line for line in said.partition(LEFT)[2].splitlines() if line.endswith(";")))
        return done.returncode, said

    def chain(self, *revisions: str) -> None:
        """Revisions of his own where the shell is, one behind the other; the last of them takes what has its name."""
        made, below = Project(Path((self.folder.parent / "cwd").read_text(encoding="utf-8").strip())), None
        for revision in revisions:
            taken = "CREATE TABLE IF NOT EXISTS public.visits (id bigint)" if revision == VISITS else ""
            made.add(revision, below, up=taken, down="DROP TABLE public.visits" if taken else "")
            below = revision

    def succeeds(self, command: str) -> None:
        code, said = self.run(command)
        assert 0 == code, f"{command}\n{said}"


# by day the newest server alone: what differs between servers has tests of its own, and a release is tried on each
@pytest.fixture(params=[18, *(major for major in servers.installed()[:1] if major != 18 and LONG)])
def life(request: pytest.FixtureRequest, python: Path, tmp_path: Path) -> Iterator[Life]:
    """A server of its own, so that roles, too, are those of nobody."""
    major: int = request.param
    start = servers.embedded() if major not in servers.installed() else servers.system(major)
    with start as server:
        server.create_database("crm")
        (tmp_path / "here").mkdir()
        found = Life(tmp_path / "here", server, [python.parent, server.programs])
        found.dba((ROOT / "tests/hosts/crm.sql").read_text(encoding="utf-8"))
        yield found


def file_of(page: str) -> Path:
    return {"README": ROOT / "README.md", "schnellstart": ROOT / "docs/de/schnellstart.md"}.get(
        page, HOW_TO / f"{page}.md"
    )


def pages() -> list[str]:
    return [path.stem for path in sorted(HOW_TO.glob("*.md")) if blocks(path)]


def steps(*, whole: bool = True) -> Iterator[Step]:
    """The life, with the pages that nobody placed; or the way from init to leaving, without what lies beside it."""
    placed = {step.page for step in LIFE}
    for step in LIFE:
        if step.page == BEFORE_CONTRACT:
            beside = pages() if LONG else []
            yield from (Step(page) for page in beside if page not in placed | {*ELSEWHERE})
        elif (whole and (NIGHTLY or not step.by_night)) or step.page in THE_WAY:
            yield step


def test_a_newcomer_follows_the_how_tos_from_init_to_leaving(life: Life) -> None:
    """By day the way alone, by night and before a release every page."""
    whole = NIGHTLY or (LONG and life.server.major not in servers.installed())
    before = "\n".join(dumped(life.server))
    for step in steps(whole=whole):
        life.follow(step)
        if step.page == LEAVING:
            # one page changed the type of a column
            after = before.replace("varying(2)", "varying(20)") if NIGHTLY else before
            assert after.split("\n") == dumped(life.server)
    assert life.followed <= {*pages(), "README", "schnellstart"}


def test_no_how_to_has_a_block_that_nothing_runs() -> None:
    told = {(step.page, number) for step in LIFE for number in step.blocks or range(99)}
    told |= {*NOT_RUN} | {(page, number) for page in ELSEWHERE for number in range(99)}
    placed = {step.page for step in LIFE} | {*ELSEWHERE}
    assert [] == [
        f"{block}: {block.text}"
        for page in pages()
        for block in blocks(file_of(page))
        if page in placed and (page, block.number) not in told and block.kind != "ini"
    ]


def test_what_runs_a_block_elsewhere_is_there() -> None:
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8"), page
    for (page, number), why in NOT_RUN.items():
        assert number < len(blocks(file_of(page))), page
        assert all((ROOT / "tests" / file).is_file() for file in re.findall(r"\S+\.py", why)), page


def dumped(server: Server) -> list[str]:
    """What pg_dump of this server says that the schema is, without the key of its restricted mode."""
    command = [str(server.programs / "pg_dump"), "--schema-only", "--dbname", server.url("crm")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
