"""Attacks on a protected database: what somebody does by a real login, and how it is known that it came to nothing.

He wants a row of another territory, an edit of somebody else's lead, a record that lies, or the rights of
somebody else. Each attack names the defence that stops it: with that one taken out it must succeed, or it
proves nothing.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from tests.support.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

Connection = psycopg.Connection[Any]
Enter = "Callable[[str, int, str | None], AbstractContextManager[Connection]]"


@dataclass
class Scene:
    """A database under attack, and what the attackers have heard from it.

    `words` are the leads and users of the scene as SQL literals; `enter` opens a session of a login that
    declares a user and a territory; whatever it answers, refuses or notes is kept in `heard`.
    """

    database: Database
    words: dict[str, str]
    enter: Callable[[str, int, str | None], AbstractContextManager[Connection]]
    heard: list[str] = field(default_factory=list)

    def text(self, statement: str) -> str:
        """Fill in the words of the scene, and what `Database.text` fills in."""
        return self.database.text(re.sub(r"\{([a-z_]+)\}", lambda found: self.words.get(found[1], found[0]), statement))

    def ask(self, query: str) -> list[Any]:
        """What a superuser reads."""
        return self.database.sql(self.text(query))

    def say(self, conn: Connection, statement: str) -> None:
        """Run a statement of an attacker; a refusal tells something, too."""
        statement = self.text(statement)
        try:
            if statement.startswith("COPY") and statement.endswith("TO STDOUT"):
                with conn.cursor().copy(statement) as copy:
                    self.heard += [str(row) for row in copy.rows()]
                return
            if statement.startswith("COPY"):
                head, _, row = statement.partition("\n")
                with conn.cursor().copy(head) as copy:
                    copy.write(row)
                return
            cursor = conn.execute(statement)
            if cursor.description is not None:
                self.heard += [str(row) for row in cursor.fetchall()]
        except psycopg.Error as refused:
            said = refused.diag
            self.heard.append(f"{said.message_primary} {said.message_detail} {said.message_hint}")

    def listen(self, conn: Connection) -> Connection:
        """Keep what the server notes on the side."""
        conn.add_notice_handler(lambda note: self.heard.append(f"{note.message_primary} {note.message_detail}"))
        return conn


@dataclass(frozen=True)
class Attack:
    """`steps` are run by the login `by`, which declares a user and a territory; a step may be a function of the scene.

    `truth` is what a superuser asks: the attack has succeeded when the answer is another one afterwards.
    Without a truth it has succeeded when the attacker has heard a secret of the other territory that he did
    not name himself, or `tells`; with `oracle`, when the answers to the last two steps differ.
    `given` is what somebody else has done before, `without` takes the defence out.
    `hosts` says that it makes sense on a database of any shape; `since` is the first version that knows the syntax.
    """

    name: str
    steps: tuple[str | Callable[[Scene], None], ...]
    without: str
    truth: str = ""
    tells: str = ""
    oracle: bool = False
    by: str = "seller_de"
    user: int = 1
    where: str | None = "DE"
    given: str = ""
    hosts: bool = False
    since: int = 15

    def __str__(self) -> str:
        return self.name

    @property
    def reads(self) -> bool:
        """Whether it leaves the database as it is, so that others may follow on the same one."""
        changes = r"UPDATE|DELETE|INSERT|MERGE|CREATE VIEW|record|assert_edit|allow_edit|change_|_lead\(|grant_|nextval"
        steps = [step for step in self.steps if isinstance(step, str) and not re.search(changes, step)]
        return not self.truth and not self.given and len(steps) == len(self.steps)

    def attempt(self, scene: Scene) -> bool:
        """Whether it succeeds."""
        scene.heard.clear()
        before = scene.ask(self.truth) if self.truth else []
        secrets = list(self.secrets(scene))
        answers: list[list[str]] = []
        with ExitStack() as stack:
            conn: Connection | None = None
            for step in self.steps:
                known = len(scene.heard)
                if isinstance(step, str):
                    conn = conn or scene.listen(stack.enter_context(scene.enter(self.by, self.user, self.where)))
                    scene.say(conn, step)
                else:
                    step(scene)
                answers.append(scene.heard[known:])
        if self.truth:
            return before != scene.ask(self.truth)
        if self.oracle:
            first, second = (re.sub(r"[0-9a-f]{8}[0-9a-f-]*|\d+", "#", str(answer)) for answer in answers[-2:])
            return first != second
        return any(holds(heard, secret) for heard in scene.heard for secret in secrets)

    def secrets(self, scene: Scene) -> Iterator[str]:
        """Everything of the other territory that he does not name himself."""
        if self.tells:
            yield self.tells
            return
        named = " ".join(scene.text(step) for step in self.steps if isinstance(step, str))
        for secret in scene.ask(SECRETS):
            if not holds(named, secret):
                yield secret


def holds(text: str, secret: str) -> bool:
    """Whether a text tells it; as a word where it is short, as an id of one digit stands in any name of a database."""
    if len(secret) < SHORT and secret.isalnum():
        return re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is not None
    return secret in text


# --- what a superuser asks

SHORT = 8
SECRETS = """
    SELECT {lead_id}::text FROM {leads} WHERE {territory} = 'CH'
    UNION SELECT {text} FROM {leads} WHERE {territory} = 'CH'
    UNION SELECT e.note FROM {schema}.lead_access_audit AS e WHERE e.territory = 'CH' AND e.note <> ''
    UNION SELECT e.correlation_id FROM {schema}.lead_access_audit AS e WHERE e.territory = 'CH' AND e.correlation_id <> ''
    UNION SELECT r.user_id::text FROM {schema}.lead_protection_rules AS r WHERE r.territory = 'CH'
    UNION SELECT encode(s.hash, 'hex') FROM {schema}.lead_access_audit_seals AS s WHERE s.territory = 'CH'
    UNION SELECT encode(s.secret, 'hex') FROM {schema}.denial_secret AS s
    """
OTHERS = """
    SELECT {lead_id}::text, {territory}, {text} FROM {leads}
    WHERE {territory} IS NOT NULL AND {lead_id} NOT IN ({own}, {also_own}) ORDER BY 1
    """
PLACES = "SELECT {lead_id}::text, {territory} FROM {leads} ORDER BY 1"
OWNERS = "SELECT a.lead_id::text, a.territory, a.user_id::text FROM {schema}.user_lead_assignments AS a ORDER BY 1, 2"
RULES = "SELECT r::text FROM {schema}.lead_protection_rules AS r ORDER BY 1"
RECORDED = "SELECT e::text FROM {schema}.lead_access_audit AS e WHERE e.correlation_id = 'swiss request' ORDER BY 1"
SEALED = "SELECT s::text FROM {schema}.lead_access_audit_seals AS s ORDER BY 1"
HISTORY = "SELECT h::text FROM {schema}.user_lead_assignment_history AS h WHERE h.territory = 'CH' ORDER BY 1"
ALLOWED = "SELECT count(*) FROM {schema}.lead_access_audit AS e WHERE e.outcome = 'ALLOW'"
UNRECORDED = """
    SELECT l.{lead_id}::text FROM {leads} AS l WHERE l.{text} = 'edited' AND NOT EXISTS (
      SELECT FROM {schema}.lead_access_audit AS e
      WHERE e.lead_id = l.{lead_id} AND e.action = 'EDIT' AND e.outcome = 'ALLOW' AND e.note IS DISTINCT FROM 'own note')
    """
FOREIGN_ROWS = """
    SELECT count(*) FROM {schema}.lead_access_audit AS e
    WHERE e.login NOT LIKE '%seller_de' AND e.login NOT LIKE '%svc_de' AND e.correlation_id IS DISTINCT FROM 'swiss request'
    """

# --- defences that can be taken out

LEADS_OPEN = "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY"
NO_BORDER = "DROP POLICY {border_policy} ON {leads}"
ASSIGNMENTS_OPEN = "ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY"
VIEW_OPEN = f"{LEADS_OPEN}; {ASSIGNMENTS_OPEN}"
MEMBERS = """
    CREATE OR REPLACE FUNCTION {schema}.is_member(territory text) RETURNS boolean LANGUAGE sql STABLE RETURN true;
    CREATE OR REPLACE FUNCTION {schema}.admitted_territory() RETURNS text
    LANGUAGE sql STABLE RETURN {declared_territory}
    """
NO_TRIGGERS = (
    "DROP TRIGGER {audit_edit} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}; DROP TRIGGER {refuse_move} ON {leads}"
)
UNDECIDED = f"{LEADS_OPEN}; {NO_TRIGGERS}"
NO_POLICY = "DROP POLICY {update_policy} ON {leads}; DROP POLICY {delete_policy} ON {leads}; " + NO_TRIGGERS
NO_MOVE = "DROP TRIGGER {refuse_move} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}; DROP POLICY {border_policy} ON {leads}"
MANAGERS = "CREATE OR REPLACE FUNCTION {schema}.is_manager() RETURNS boolean LANGUAGE sql STABLE RETURN true"
EVERYTHING = "GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO PUBLIC"


def opened(table: str, to: str = "{app}") -> str:
    """The table is readable and its rows are not secured."""
    return f"GRANT SELECT ON {{schema}}.{table} TO {to}; ALTER TABLE {{schema}}.{table} DISABLE ROW LEVEL SECURITY"


def writable(table: str, to: str = "{app}") -> str:
    """The table can be written, its rows are not secured, and no guard refuses."""
    return f"""
        GRANT ALL ON {{schema}}.{table} TO {to}; ALTER TABLE {{schema}}.{table} DISABLE ROW LEVEL SECURITY;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA {{schema}} TO {to};
        ALTER TABLE {{schema}}.{table} DISABLE TRIGGER USER
        """


def executable(function: str) -> str:
    """The inner function may be called."""
    return f"GRANT EXECUTE ON FUNCTION {{schema}}.{function} TO {{app}}"


def anyone(where: str = "DE") -> str:
    """Whoever asks may edit."""
    return (
        "CREATE OR REPLACE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text) "
        f"RETURNS text LANGUAGE sql STABLE RETURN CASE WHEN declared_territory = '{where}' THEN 'owner' END"
    )


LEAK = (
    "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 "
    "AS $$ BEGIN RAISE NOTICE 'leak %', $1; RETURN true; END $$"
)
READ = "SELECT * FROM {leads}"
TO_CH = "SELECT set_config({declared_name}, {declared_value}, false)"
EDIT = "UPDATE {leads} SET {text} = 'edited' WHERE {lead_id} = "

# --- a row of another territory, from the host's leads

LEADS = [
    Attack("declare the other territory", (TO_CH, READ), LEADS_OPEN, hosts=True),
    Attack("declare it with SET", ("SET {declared_ch}", READ), NO_BORDER, hosts=True),
    Attack("declare it for a transaction", ("BEGIN; SET LOCAL {declared_ch}", READ), NO_BORDER, hosts=True),
    Attack("declare it for a login", ("SELECT 1", READ), NO_BORDER, where="CH"),
    Attack(
        "declare it in the list of the query that reads",
        ("SELECT set_config({declared_name}, {declared_value}, false), l.* FROM {leads} AS l",) * 2,
        NO_BORDER,
        hosts=True,
    ),
    Attack(
        "declare it in the FROM of the query that reads",
        ("SELECT * FROM set_config({declared_name}, {declared_value}, false) AS c, {leads} AS l",),
        NO_BORDER,
        hosts=True,
    ),
    Attack(
        "declare it in the WHERE of the query that reads",
        ("SELECT * FROM {leads} AS l WHERE set_config({declared_name}, {declared_value}, false) <> ''",) * 2,
        NO_BORDER,
    ),
    Attack(
        "declare it in a CTE of the query that reads",
        (
            "WITH c AS MATERIALIZED (SELECT set_config({declared_name}, {declared_value}, false)) SELECT * FROM c, {leads}",
        ),
        NO_BORDER,
    ),
    Attack(
        "declare it through our function", ("BEGIN; SELECT {schema}.set_context({me}::text, 'CH')", READ), NO_BORDER
    ),
    Attack("declare it in lower case", (READ,), NO_BORDER, where="ch", hosts=True),
    Attack("declare it with a space", (READ,), NO_BORDER, where="CH "),
    Attack("declare a list of territories", (READ,), NO_BORDER, where="DE,CH"),
    Attack("declare a pattern", (READ,), NO_BORDER, where="%"),
    Attack("declare an office as a territory", (READ,), NO_BORDER, where="app"),
    Attack("declare a name that closes a quote", (READ,), NO_BORDER, where='de" OR "de'),
    Attack("declare the name of PUBLIC", (READ,), NO_BORDER, where="public"),
    Attack("declare no territory", (READ,), NO_BORDER, where=None, hosts=True),
    Attack("declare an empty territory", (READ,), NO_BORDER, where="", hosts=True),
    Attack("switch row security off", ("SET row_security = off", READ), LEADS_OPEN, hosts=True),
    Attack("copy the table", ("COPY {leads} TO STDOUT",), LEADS_OPEN),
    Attack("copy a query", ("COPY (SELECT * FROM {leads}) TO STDOUT",), LEADS_OPEN, hosts=True),
    Attack("read ONLY the table", ("SELECT * FROM ONLY {leads}",), LEADS_OPEN, hosts=True),
    Attack(
        "read by the place of the row",
        (
            "SELECT * FROM {leads} WHERE ctid = ANY (ARRAY(SELECT format('(0,%s)', n)::tid FROM generate_series(1, 60) AS n))",
        ),
        LEADS_OPEN,
        hosts=True,
    ),
    Attack("read a sample", ("SELECT * FROM {leads} TABLESAMPLE SYSTEM (100)",), LEADS_OPEN, hosts=True),
    Attack("read whole rows as text", ("SELECT string_agg(l::text, ' ') FROM {leads} AS l",), LEADS_OPEN, hosts=True),
    Attack("read rows as JSON", ("SELECT to_jsonb(l) FROM {leads} AS l",), LEADS_OPEN),
    Attack("read by the key", ("SELECT * FROM {leads} WHERE {lead_id} = {swiss}",), LEADS_OPEN, hosts=True),
    Attack(
        "tell each row by a function in WHERE",
        (LEAK, "SELECT 1 FROM {leads} WHERE pg_temp.leak({text})"),
        LEADS_OPEN,
        hosts=True,
    ),
    Attack(
        "tell each row by a function in ORDER BY",
        (LEAK, "SELECT 1 FROM {leads} ORDER BY pg_temp.leak({text})"),
        LEADS_OPEN,
    ),
    Attack(
        "tell each row by an operator of one's own",
        (
            LEAK,
            "CREATE FUNCTION pg_temp.leaks(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT pg_temp.leak($1)'",
            "CREATE OPERATOR pg_temp.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leaks)",
            "SELECT 1 FROM {leads} WHERE {text} OPERATOR(pg_temp.===) 'x'",
        ),
        LEADS_OPEN,
    ),
    Attack(
        "tell a value by an error of a cast",
        ("SELECT 1 FROM {leads} WHERE {text} LIKE 'Secret%' AND {text}::integer = 1",),
        LEADS_OPEN,
        hosts=True,
    ),
    Attack(
        "tell a value by a division by zero",
        ("SELECT 1 / CASE WHEN {text} LIKE 'Secret%' THEN 0 ELSE 1 END FROM {leads}",),
        LEADS_OPEN,
        tells="division by zero",
        hosts=True,
    ),
    Attack(
        "tell the rows of an UPDATE",
        (LEAK, "UPDATE {leads} SET {text} = {text} WHERE pg_temp.leak({text})"),
        UNDECIDED,
    ),
    Attack("tell the rows of a DELETE", (LEAK, "BEGIN; DELETE FROM {leads} WHERE pg_temp.leak({text})"), UNDECIDED),
    Attack(
        "tell the row that an INSERT meets",
        (
            LEAK,
            "INSERT INTO {leads} ({lead_id}, {place}) VALUES ({swiss}, 'DE') ON CONFLICT ({lead_id}) DO UPDATE SET {text} = 'x' WHERE pg_temp.leak({leads_row}.{text})",
        ),
        "DROP TRIGGER {refuse_taken} ON {leads}",
    ),
    Attack(
        "tell the row that a MERGE meets",
        (
            LEAK,
            "MERGE INTO {leads} AS l USING (VALUES ({swiss}::{lead_id_type})) AS v (id) ON l.{lead_id} = v.id WHEN MATCHED AND pg_temp.leak(l.{text}) THEN UPDATE SET {text} = 'x'",
        ),
        UNDECIDED,
    ),
    Attack("lock the rows that one reads", ("BEGIN", "SELECT * FROM {leads} FOR UPDATE"), LEADS_OPEN),
    Attack(
        "join them with activities", ("SELECT l.* FROM {leads} AS l LEFT JOIN {activities} AS a ON true",), LEADS_OPEN
    ),
    Attack(
        "hold a cursor and declare the other territory",
        ("BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT * FROM {leads}; COMMIT", TO_CH, "FETCH ALL FROM held"),
        NO_BORDER,
    ),
    Attack(
        "open a cursor and declare the other territory",
        ("BEGIN; DECLARE open CURSOR FOR SELECT * FROM {leads}", TO_CH, "FETCH ALL FROM open"),
        NO_BORDER,
    ),
    Attack(
        "keep a plan and declare the other territory",
        (
            "SET plan_cache_mode = force_generic_plan",
            "PREPARE kept AS SELECT * FROM {leads}",
            "EXECUTE kept",
            TO_CH,
            "EXECUTE kept",
        ),
        NO_BORDER,
        hosts=True,
    ),
    Attack(
        "read in parallel",
        (
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
            TO_CH,
            READ,
        ),
        NO_BORDER,
        hosts=True,
    ),
    Attack(
        "read in a function",
        ("DO $$ DECLARE r record; BEGIN FOR r IN EXECUTE 'TABLE {leads}' LOOP RAISE NOTICE '%', r; END LOOP; END $$",),
        LEADS_OPEN,
    ),
    Attack(
        "read in a function with its owner's rights",
        (
            "CREATE FUNCTION pg_temp.mine() RETURNS SETOF {leads} LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM {leads}'",
            TO_CH,
            "SELECT * FROM pg_temp.mine()",
        ),
        NO_BORDER,
    ),
    Attack(
        "read through a view of one's own",
        ("CREATE TEMP VIEW mine AS SELECT * FROM {leads}", READ + ", mine"),
        LEADS_OPEN,
    ),
    Attack(
        "save the rows in a table of one's own",
        ("CREATE TEMP TABLE mine AS SELECT * FROM {leads}", "SELECT * FROM mine"),
        LEADS_OPEN,
    ),
    Attack(
        "read under a policy that somebody added",
        (TO_CH, READ),
        NO_BORDER,
        given="CREATE POLICY stray ON {leads} USING (true)",
        hosts=True,
    ),
    Attack(
        "read the statistics of a column",
        ("SELECT most_common_vals FROM pg_stats WHERE tablename = {leads_bare}",),
        LEADS_OPEN,
        given="ANALYZE {leads}",
        hosts=True,
    ),
    Attack(
        "read by a privilege for all data",
        (
            TO_CH,
            READ,
            "SELECT * FROM {schema}.lead_access_audit",
            "SELECT encode(secret, 'hex') FROM {schema}.denial_secret",
        ),
        f"{LEADS_OPEN}",
        by="reads_all",
    ),
    Attack(
        "read as a login without any role of ours",
        (READ,),
        NO_BORDER,
        by="outsider",
        given="GRANT USAGE ON SCHEMA crm TO PUBLIC; GRANT SELECT ON {leads} TO PUBLIC",
    ),
    Attack(
        "read as an auditor whose columns were widened",
        (READ,),
        NO_BORDER,
        by="auditor_de",
        where="CH",
        given="GRANT SELECT ON {leads} TO {auditor}",
    ),
    Attack(
        "steal a lead by an UPDATE",
        ("UPDATE {leads} SET {place} = 'DE' WHERE {territory} = 'CH' RETURNING *",),
        UNDECIDED,
    ),
]

# --- a row of another territory, from what is ours

OURS = [
    Attack(
        "read the owners of another territory",
        (TO_CH, "TABLE {schema}.user_lead_assignments"),
        ASSIGNMENTS_OPEN,
        hosts=True,
    ),
    Attack(
        "read owners without a context",
        ("TABLE {schema}.user_lead_assignments",),
        ASSIGNMENTS_OPEN,
        where=None,
        hosts=True,
    ),
    Attack("copy the owners", ("COPY {schema}.user_lead_assignments TO STDOUT",), ASSIGNMENTS_OPEN),
    Attack(
        "tell the owners by a function in WHERE",
        (LEAK, "SELECT 1 FROM {schema}.user_lead_assignments AS a WHERE pg_temp.leak(a.lead_id::text)"),
        ASSIGNMENTS_OPEN,
        hosts=True,
    ),
    Attack(
        "read owners under a policy that somebody added",
        (TO_CH, "TABLE {schema}.user_lead_assignments"),
        "DROP POLICY lp_border ON {schema}.user_lead_assignments",
        given="CREATE POLICY stray ON {schema}.user_lead_assignments USING (true)",
        hosts=True,
    ),
    Attack("read the view of another territory", (TO_CH, "TABLE {schema}.v_lead_protection"), MEMBERS, hosts=True),
    Attack(
        "tell the rows of the view by a function in WHERE",
        (LEAK, "SELECT 1 FROM {schema}.v_lead_protection WHERE pg_temp.leak(territory)"),
        VIEW_OPEN + "; ALTER VIEW {schema}.v_lead_protection SET (security_barrier = false)",
        tells="leak CH",
        hosts=True,
    ),
    Attack(
        "read a page of the view in another territory",
        (TO_CH, "SELECT * FROM {schema}.protection_page(NULL, 50)"),
        MEMBERS,
        hosts=True,
    ),
    Attack(
        "tell the rows of a page of the view by a function in WHERE",
        (LEAK, "SELECT 1 FROM {schema}.protection_page(NULL, 50) AS p WHERE pg_temp.leak(p.territory)"),
        VIEW_OPEN + "; CREATE OR REPLACE FUNCTION {schema}.protection_page(after {lead_id_type}, page_size integer) "
        "RETURNS TABLE (lead {lead_id_type}, territory text, owner {user_id_type}, can_edit boolean, reason text) "
        "LANGUAGE sql STABLE AS "
        "$$ SELECT l.{lead_id}::{lead_id_type}, {territory_of_l}::text, NULL::{user_id_type}, false, '' FROM {leads} AS l $$",
        tells="leak CH",
        hosts=True,
    ),
    Attack(
        "read the view as somebody who made it his own",
        ("CREATE TEMP VIEW mine AS TABLE {schema}.v_lead_protection", TO_CH, "TABLE mine"),
        MEMBERS,
    ),
    Attack(
        "read the owners with the role of the app",
        ("SET ROLE {app}", TO_CH, "TABLE {schema}.user_lead_assignments"),
        MEMBERS,
    ),
    Attack("read the audit", (TO_CH, "TABLE {schema}.lead_access_audit"), opened("lead_access_audit"), hosts=True),
    Attack(
        "read a month of the audit by its name",
        (TO_CH, "DO $$ BEGIN EXECUTE 'TABLE {audit_month}'; END $$", "TABLE {audit_month}"),
        "GRANT SELECT ON {audit_month} TO {app}; ALTER TABLE {audit_month} DISABLE ROW LEVEL SECURITY",
    ),
    Attack(
        "read the history of owners",
        (TO_CH, "TABLE {schema}.user_lead_assignment_history"),
        opened("user_lead_assignment_history"),
    ),
    Attack(
        "read the rules", (TO_CH, "TABLE {schema}.lead_protection_rules"), opened("lead_protection_rules"), hosts=True
    ),
    Attack(
        "read the seals",
        (TO_CH, "SELECT encode(hash, 'hex') FROM {schema}.lead_access_audit_seals"),
        opened("lead_access_audit_seals"),
    ),
    Attack(
        "read the secret of denials",
        ("SELECT encode(secret, 'hex') FROM {schema}.denial_secret",),
        opened("denial_secret"),
    ),
    Attack(
        "read everything after GRANT ALL",
        (
            TO_CH,
            "TABLE {schema}.lead_access_audit",
            "TABLE {schema}.lead_protection_rules",
            "TABLE {schema}.user_lead_assignment_history",
            "SELECT encode(hash, 'hex') FROM {schema}.lead_access_audit_seals",
            "SELECT encode(secret, 'hex') FROM {schema}.denial_secret",
        ),
        "ALTER TABLE {schema}.denial_secret DISABLE ROW LEVEL SECURITY",
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "read the audit of another territory as an auditor of one",
        ("TABLE {schema}.lead_access_audit",),
        "ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY",
        by="auditor_de",
        where="CH",
    ),
    Attack(
        "read seals of another territory as an auditor of one",
        ("SELECT encode(hash, 'hex') FROM {schema}.lead_access_audit_seals",),
        MEMBERS,
        by="auditor_de",
        where="CH",
    ),
    Attack(
        "read rules of another territory as an auditor of one",
        ("TABLE {schema}.lead_protection_rules",),
        MEMBERS,
        by="auditor_de",
        where="CH",
    ),
    Attack(
        "read rules of another territory as a manager of one",
        ("TABLE {schema}.lead_protection_rules",),
        MEMBERS,
        by="manager_de",
        where="CH",
    ),
    Attack(
        "read the audit without a context as an auditor",
        ("TABLE {schema}.lead_access_audit",),
        "DROP POLICY lp_border ON {schema}.lead_access_audit",
        by="auditor_both",
        where=None,
    ),
    Attack(
        "read the statistics of the audit",
        ("SELECT most_common_vals FROM pg_stats WHERE tablename LIKE 'lead_access_audit%'",),
        "GRANT SELECT ON {schema}.lead_access_audit, {audit_month} TO {auditor};"
        "ALTER TABLE {audit_month} DISABLE ROW LEVEL SECURITY; ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY",
        by="auditor_de",
        given="ANALYZE {schema}.lead_access_audit",
    ),
    Attack(
        "ask who could edit a lead of another territory",
        ("SELECT * FROM {schema}.who_could_edit({swiss}, now())",),
        MEMBERS,
        by="manager_de",
        where=None,
    ),
    Attack(
        "ask the same as an auditor",
        ("SELECT * FROM {schema}.who_could_edit({swiss}, now())",),
        MEMBERS,
        by="auditor_de",
        where="CH",
    ),
    Attack(
        "ask with whom a lead of another territory is shared",
        ("SELECT * FROM {schema}.lead_shares({swiss})",),
        MEMBERS,
        by="manager_de",
        where="CH",
    ),
    Attack(
        "read the audit as an operator",
        ("TABLE {schema}.lead_access_audit",),
        opened("lead_access_audit", "{operator}"),
        by="operator",
    ),
    Attack(
        "list the leads that the other territory lets edit",
        ("SELECT * FROM {schema}.editable_leads(NULL, 1000)",),
        MEMBERS,
        where="CH",
    ),
    Attack(
        "ask for a set of leads of the other territory",
        (TO_CH, "SELECT reason FROM {schema}.editable_among(ARRAY[{swiss}, {own}]::{lead_id_type}[])"),
        MEMBERS,
        tells="owner",
    ),
    Attack(
        "call what reads all leads",
        ("SELECT * FROM {schema}.protected_leads()",),
        executable("protected_leads()"),
        hosts=True,
    ),
    Attack(
        "call what reads a lead",
        ("SELECT 'it is in ' || l FROM {schema}.host_lead({swiss}) AS l",),
        executable("host_lead({lead_id_type})"),
        tells="it is in CH",
    ),
    Attack(
        "call what reads some leads",
        ("SELECT 'it is in ' || l.territory FROM {schema}.host_leads(ARRAY[{swiss}]::{lead_id_type}[]) AS l",),
        executable("host_leads({lead_id_type}[])"),
        tells="it is in CH",
    ),
    Attack(
        "call what finds leads without an owner",
        ("SELECT * FROM {schema}.unowned_leads(ARRAY['CH'])",),
        executable("unowned_leads(text[])") + "; GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
        given="INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) SELECT {lead_id}, {me}, 'QUALIFIED_CALL', '2026-01-01' FROM {leads} WHERE {lead_id} = {unowned_swiss}",
    ),
    Attack(
        "call functions without a role of ours",
        ("SELECT 'it is ' || {schema}.explain_edit({swiss})",),
        "GRANT USAGE ON SCHEMA {schema} TO PUBLIC; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO PUBLIC",
        by="outsider",
        tells="it is ",
    ),
    Attack(
        "count what is recorded by the sequence",
        ("SELECT 'drawn ' || last_value FROM {schema}.lead_access_audit_id_seq",),
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {app}",
        tells="drawn ",
    ),
    Attack(
        "count what is recorded by the catalog",
        ("SELECT 'drawn ' || last_value FROM pg_sequences WHERE sequencename = 'lead_access_audit_id_seq'",),
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {app}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
        tells="drawn ",
    ),
]


def tells_apart(name: str, call: str, without: str = MEMBERS, **more: Any) -> Attack:
    """Ask about an unknown lead and about one of the other territory: the answers must be the same."""
    asked = f"SELECT {{schema}}.{call}"
    return Attack(
        name,
        (asked.replace("{lead}", "{unknown}"), asked.replace("{lead}", "{swiss}")),
        without,
        oracle=True,
        **{"where": "CH"} | more,
    )


ORACLES = [
    tells_apart("tell a lead of another territory from none by the decision", "can_edit_lead({lead})", hosts=True),
    tells_apart("tell it by the reason", "explain_edit({lead})", hosts=True),
    tells_apart("tell it by the inner decision", "decide({lead}, {me}, 'CH')", where="DE"),
    tells_apart("tell it by an attempt", "record_edit_attempt({lead})", hosts=True),
    tells_apart("tell it by an assertion", "assert_edit_and_audit({lead})", hosts=True),
    tells_apart("tell it by what the library calls", "allow_edit({lead}, 'EDIT', NULL)"),
    tells_apart("tell it by a claim", "claim_lead({lead})", hosts=True),
    tells_apart("tell it by a release", "release_lead({lead})"),
    tells_apart("tell it by sharing", "share_lead({lead}, {mate})"),
    tells_apart("tell it by the end of sharing", "unshare_lead({lead}, {mate})"),
    tells_apart("tell it by a change of owner", "change_owner({lead}, 'release', NULL, NULL)"),
    tells_apart("tell it by many assertions", "allow_edits(ARRAY[{lead}]::{lead_id_type}[], 'EDIT', NULL)", hosts=True),
    tells_apart(
        "tell it by many changes of owner", "change_owners(ARRAY[{lead}]::{lead_id_type}[], 'release', NULL, NULL)"
    ),
    tells_apart(
        "tell whose it is by handing over all that somebody owns",
        "change_owners(ARRAY[{lead}]::{lead_id_type}[], 'transfer', {mate}, NULL, {me})",
        by="manager_de",
    ),
    tells_apart(
        "tell it by a rule as the library makes it",
        "change_rule({lead}, 'grant', {mate}, 'COLLABORATOR', NULL, NULL, NULL)",
        by="manager_de",
    ),
    tells_apart("tell it by a change of sharing", "change_sharing({lead}, 'share', {mate}, NULL, NULL, NULL)"),
    tells_apart("tell it by an assignment of a manager", "assign_lead({lead}, {mate})", by="manager_de"),
    tells_apart("tell it by a transfer of a manager", "transfer_lead({lead}, {mate})", by="manager_de"),
    tells_apart(
        "tell it by a rule of a manager",
        "grant_protection({mate}, 'DE', 'COLLABORATOR', {lead})",
        "CREATE OR REPLACE FUNCTION {schema}.host_lead(lead {lead_id_type}) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER AS "
        "$$ SELECT 'DE' FROM {leads} AS l WHERE l.{lead_id} = lead $$",
        by="manager_de",
        where="DE",
    ),
    Attack(
        "tell whether somebody has rules in another territory",
        (
            "SELECT {schema}.has_rules() FROM set_config({user_guc}, {mate}::text, false)",
            "SELECT {schema}.has_rules() FROM set_config({user_guc}, {suspect}::text, false)",
        ),
        MEMBERS,
        oracle=True,
        where="CH",
    ),
]

# --- an edit of somebody else's lead

COLLEAGUE = EDIT + "{colleague}"
THEIR_OWN = "{schema}.user_lead_assignments SET user_id = {me}"

EDITS = [
    Attack("edit a lead of a colleague", (COLLEAGUE,), NO_POLICY, truth=OTHERS, hosts=True),
    Attack("edit every lead", ("UPDATE {leads} SET {text} = 'edited'",), NO_POLICY, truth=OTHERS, hosts=True),
    Attack(
        "edit every lead in one's own name elsewhere",
        ("UPDATE {leads} SET {text} = 'edited'",),
        UNDECIDED,
        truth=OTHERS,
        where="CH",
    ),
    Attack("edit as nobody", (EDIT + "{free}",), NO_POLICY, truth=OTHERS, user=0),
    Attack("edit a lead that nobody owns", (EDIT + "{free}",), NO_POLICY, truth=OTHERS),
    Attack(
        "edit as a user that is none",
        ("SELECT set_config({user_guc}, 'no user', false)", COLLEAGUE),
        NO_POLICY,
        truth=OTHERS,
        hosts=True,
    ),
    Attack(
        "edit as all users at once",
        ("SELECT set_config({user_guc}, '{' || {me} || ',' || {mate} || '}', false)", COLLEAGUE),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "delete a lead of a colleague", ("DELETE FROM {leads} WHERE {lead_id} = {colleague}",), NO_POLICY, truth=OTHERS
    ),
    Attack("delete every lead", ("DELETE FROM {leads}",), UNDECIDED, truth=OTHERS),
    Attack(
        "delete with a join",
        ("DELETE FROM {leads} AS l USING {leads} AS o WHERE o.{lead_id} = {own}",),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "edit with a join",
        ("UPDATE {leads} AS l SET {text} = 'edited' FROM {leads} AS o WHERE o.{lead_id} = {own}",),
        NO_POLICY,
        truth=OTHERS,
        hosts=True,
    ),
    Attack(
        "edit in a CTE",
        ("WITH e AS (" + COLLEAGUE + " RETURNING 1) SELECT count(*) FROM e",),
        NO_POLICY,
        truth=OTHERS,
        hosts=True,
    ),
    Attack("edit in a function", ("DO $$ BEGIN " + COLLEAGUE + "; END $$",), NO_POLICY, truth=OTHERS, hosts=True),
    Attack(
        "edit in a function with its owner's rights",
        (
            "CREATE FUNCTION pg_temp.edit() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ " + COLLEAGUE + " $$",
            "SELECT pg_temp.edit()",
        ),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "edit through a view of one's own",
        ("CREATE TEMP VIEW mine AS SELECT * FROM {leads}", "UPDATE mine SET {text} = 'edited'"),
        NO_POLICY,
        truth=OTHERS,
        hosts=True,
    ),
    Attack(
        "edit the row of a cursor",
        (
            "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {leads} WHERE {lead_id} = {colleague}; FETCH c",
            "UPDATE {leads} SET {text} = 'edited' WHERE CURRENT OF c",
            "COMMIT",
        ),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "edit what an INSERT meets",
        (
            "INSERT INTO {leads} ({lead_id}, {place}) VALUES ({colleague}, 'DE') ON CONFLICT ({lead_id}) DO UPDATE SET {text} = 'edited'",
        ),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "edit what an INSERT meets in another territory",
        (
            "INSERT INTO {leads} ({lead_id}, {place}) VALUES ({swiss}, 'DE') ON CONFLICT ({lead_id}) DO UPDATE SET {text} = 'edited'",
        ),
        UNDECIDED + "; DROP TRIGGER {refuse_taken} ON {leads}",
        truth=OTHERS,
    ),
    Attack(
        "edit by MERGE",
        (
            "MERGE INTO {leads} AS l USING (VALUES (1)) AS v (n) ON l.{lead_id} = {colleague} WHEN MATCHED THEN UPDATE SET {text} = 'edited'",
        ),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "delete by MERGE",
        ("MERGE INTO {leads} AS l USING (VALUES (1)) AS v (n) ON l.{lead_id} = {colleague} WHEN MATCHED THEN DELETE",),
        NO_POLICY,
        truth=OTHERS,
    ),
    Attack(
        "keep a plan of the owner and edit as somebody else",
        (
            "SET plan_cache_mode = force_generic_plan",
            "PREPARE kept AS UPDATE {leads} SET {text} = {text} || '!' WHERE {lead_id} = {own}",
            "EXECUTE kept",
            "SELECT set_config({user_guc}, {mate}::text, false)",
            "EXECUTE kept",
        ),
        NO_POLICY,
        truth="SELECT {text} LIKE '%!!' FROM {leads} WHERE {lead_id} = {own}",
    ),
    Attack(
        "change who asks inside the statement",
        (
            "UPDATE {leads} SET {text} = 'edited' WHERE {lead_id} = {own} AND set_config({user_guc}, {suspect}::text, false) <> ''",
            "SELECT set_config({user_guc}, {suspect}::text, false)",
            EDIT + "{own}",
        ),
        NO_POLICY,
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE outcome = 'ALLOW' AND user_id::text = {suspect}"
        " UNION ALL SELECT count(*) FROM {leads} WHERE {lead_id} = {own} AND {text} = 'edited'",
    ),
    Attack(
        "edit by a privilege for all data",
        ("UPDATE {leads} SET {text} = 'edited'",),
        UNDECIDED,
        truth=OTHERS,
        by="writes_all",
        where="CH",
    ),
    Attack(
        "make oneself the owner by a privilege for all data",
        ("UPDATE " + THEIR_OWN,),
        ASSIGNMENTS_OPEN,
        truth=OWNERS,
        by="writes_all",
    ),
    Attack(
        "edit as an auditor who may update",
        (COLLEAGUE,),
        "DROP POLICY {members_update_policy} ON {leads}; DROP POLICY {update_policy} ON {leads}; DROP TRIGGER {audit_edit} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}",
        truth=OTHERS,
        by="auditor_de",
        given="GRANT USAGE ON SCHEMA crm TO {auditor}; GRANT SELECT, UPDATE ON {leads} TO {auditor}",
    ),
    Attack("edit as a manager who does not own it", (COLLEAGUE,), NO_POLICY, truth=OTHERS, by="manager_de"),
    Attack(
        "move one's own lead to another territory",
        ("UPDATE {leads} SET {place} = 'CH' WHERE {lead_id} = {own}",),
        NO_MOVE,
        truth=PLACES,
        hosts=True,
    ),
    Attack(
        "move it out of protection",
        ("UPDATE {leads} SET {place} = NULL WHERE {lead_id} = {own}",),
        NO_MOVE,
        truth=PLACES,
        hosts=True,
    ),
    Attack(
        "move it to a territory that nobody knows",
        ("UPDATE {leads} SET {place} = 'XX' WHERE {lead_id} = {own}",),
        NO_MOVE,
        truth=PLACES,
        hosts=True,
    ),
    Attack(
        "move it to an office",
        ("UPDATE {leads} SET {place} = 'app' WHERE {lead_id} = {own}", "SELECT 1"),
        NO_MOVE,
        truth=PLACES,
        where="DE",
    ),
    Attack(
        "give it another id",
        ("UPDATE {leads} SET {lead_id} = {unknown} WHERE {lead_id} = {own}",),
        "DROP TRIGGER {refuse_move} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}",
        truth=PLACES,
    ),
    Attack(
        "fetch a lead from another territory",
        ("UPDATE {leads} SET {place} = 'DE' WHERE {lead_id} = {swiss}",),
        UNDECIDED,
        truth=PLACES,
        hosts=True,
    ),
    Attack(
        "add a lead to another territory",
        ("INSERT INTO {leads} ({lead_id}, {place}) VALUES ({unknown}, 'CH')",),
        NO_BORDER,
        truth=PLACES,
    ),
    Attack(
        "add it there in its name",
        ("INSERT INTO {leads} ({lead_id}, {place}) VALUES ({unknown}, 'CH')",),
        NO_BORDER,
        truth=PLACES,
        where="CH",
    ),
    Attack(
        "copy a lead to another territory",
        ("COPY {leads} ({lead_id}, {place}) FROM STDIN\n{unknown_bare}\tCH\n",),
        LEADS_OPEN,
        truth=PLACES,
    ),
    Attack(
        "add by MERGE",
        (
            "MERGE INTO {leads} AS l USING (VALUES (1)) AS v (n) ON l.{lead_id} = {unknown} WHEN NOT MATCHED THEN INSERT ({lead_id}, {place}) VALUES ({unknown}, 'CH')",
        ),
        NO_BORDER,
        truth=PLACES,
    ),
    Attack(
        "put an unprotected lead into another territory",
        ("UPDATE {leads} SET {place} = 'CH' WHERE {territory} IS NULL",),
        NO_BORDER,
        truth=PLACES,
        where="CH",
        hosts=True,
    ),
    Attack(
        "truncate the leads",
        ("TRUNCATE {leads} CASCADE",),
        "DROP TRIGGER {audit_truncate} ON {leads}",
        truth=PLACES,
        given="GRANT TRUNCATE ON ALL TABLES IN SCHEMA crm, public TO PUBLIC",
        by="seller_de",
    ),
    Attack(
        "truncate them as no member",
        ("TRUNCATE {leads} CASCADE",),
        "DROP TRIGGER {audit_truncate} ON {leads}",
        truth=PLACES,
        given="GRANT TRUNCATE ON ALL TABLES IN SCHEMA crm, public TO PUBLIC; GRANT USAGE ON SCHEMA crm TO PUBLIC",
        by="outsider",
    ),
    Attack(
        "make oneself the owner", ("UPDATE " + THEIR_OWN,), writable("user_lead_assignments"), truth=OWNERS, hosts=True
    ),
    Attack(
        "make oneself the owner after GRANT ALL",
        ("UPDATE " + THEIR_OWN, "DELETE FROM {schema}.user_lead_assignments"),
        ASSIGNMENTS_OPEN,
        truth=OWNERS,
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "add oneself as an owner after GRANT ALL",
        ("INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id) VALUES ({swiss}, 'DE', {me})",),
        ASSIGNMENTS_OPEN,
        truth=OWNERS,
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "replace the owner by an upsert after GRANT ALL",
        (
            "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id) VALUES ({colleague}, 'DE', {me}) ON CONFLICT (lead_id, territory) DO UPDATE SET user_id = excluded.user_id",
        ),
        ASSIGNMENTS_OPEN,
        truth=OWNERS,
        given=EVERYTHING,
    ),
    Attack(
        "share with oneself after GRANT ALL",
        (
            "INSERT INTO {schema}.lead_protection_rules (user_id, territory, protection) VALUES ({me}, 'DE', 'COLLABORATOR')",
        ),
        "ALTER TABLE {schema}.lead_protection_rules DISABLE ROW LEVEL SECURITY",
        truth=RULES,
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "wake an old rule after GRANT ALL",
        ("UPDATE {schema}.lead_protection_rules SET active = true, effective_to = NULL",),
        "ALTER TABLE {schema}.lead_protection_rules DISABLE ROW LEVEL SECURITY",
        truth=RULES,
        given=EVERYTHING,
    ),
    Attack(
        "add a territory after GRANT ALL",
        ("INSERT INTO {schema}.territories (code, name) VALUES ('app', 'ours')",),
        "ALTER TABLE {schema}.territories DISABLE ROW LEVEL SECURITY",
        truth="SELECT count(*) FROM {schema}.territories",
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "claim a lead of a colleague",
        ("SELECT {schema}.claim_lead({colleague})",),
        "UPDATE {schema}.user_lead_assignments SET user_id = NULL, source = 'release' WHERE lead_id = {colleague}",
        truth="SELECT user_id::text = {me} FROM {schema}.user_lead_assignments WHERE lead_id = {colleague}",
    ),
    Attack(
        "claim a lead of another territory",
        ("SELECT {schema}.claim_lead({unowned_swiss})",),
        MEMBERS,
        truth=OWNERS,
        where="CH",
        hosts=True,
    ),
    Attack(
        "claim while suspended",
        ("SELECT {schema}.claim_lead({free})",),
        "DELETE FROM {schema}.lead_protection_rules WHERE protection = 'VIEW_ONLY'",
        truth=OWNERS,
        user=6,
    ),
    Attack("release a lead of a colleague", ("SELECT {schema}.release_lead({colleague})",), anyone(), truth=OWNERS),
    Attack(
        "release a lead of another territory",
        ("SELECT {schema}.release_lead({swiss})",),
        MEMBERS,
        truth=OWNERS,
        where="CH",
        hosts=True,
    ),
    Attack(
        "assign a lead as a seller",
        ("SELECT {schema}.assign_lead({colleague}, {me})",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {app};" + MANAGERS,
        truth=OWNERS,
    ),
    Attack(
        "transfer a lead as a seller",
        ("SELECT {schema}.transfer_lead({colleague}, {me})",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {app};" + MANAGERS,
        truth=OWNERS,
    ),
    Attack(
        "assign it by what the library calls",
        (
            "SELECT {schema}.change_owner({colleague}, 'assign', {me}, NULL)",
            "SELECT {schema}.change_owner({colleague}, 'transfer', {me}, NULL)",
            "SELECT {schema}.change_owner({colleague}, 'claim', {me}, NULL)",
            "SELECT {schema}.change_owner({colleague}, NULL, {me}, NULL)",
            "SELECT {schema}.change_owner({colleague}, 'ASSIGN', {me}, NULL)",
        ),
        MANAGERS,
        truth=OWNERS,
        hosts=True,
    ),
    Attack(
        "assign many by what the library calls",
        (
            "SELECT {schema}.change_owners(ARRAY[{free}, {colleague}]::{lead_id_type}[], 'assign', {me}, NULL)",
            "SELECT {schema}.change_owners(ARRAY[{colleague}]::{lead_id_type}[], 'transfer', {me}, NULL, {mate})",
            "SELECT {schema}.change_owners(ARRAY[{colleague}]::{lead_id_type}[], 'claim', {me}, NULL, {mate})",
            "SELECT {schema}.change_owners(ARRAY[{colleague}]::{lead_id_type}[], 'release', NULL, NULL)",
        ),
        MANAGERS,
        truth=OWNERS,
        hosts=True,
    ),
    Attack(
        "make oneself a rule by what the library calls",
        (
            "SELECT {schema}.change_rule(NULL, 'grant', {me}, 'COLLABORATOR', NULL, NULL, NULL)",
            "SELECT {schema}.change_rule({colleague}, 'grant', {me}, 'COLLABORATOR', NULL, NULL, NULL)",
            "SELECT {schema}.change_rule(NULL, 'revoke', {suspended}, 'VIEW_ONLY', NULL, NULL, NULL)",
        ),
        MANAGERS,
        truth=RULES,
    ),
    Attack(
        "make a rule in another territory by what the library calls",
        ("SELECT {schema}.change_rule(NULL, 'grant', {me}, 'COLLABORATOR', NULL, NULL, NULL)",),
        MEMBERS,
        truth=RULES,
        by="manager_de",
        where="CH",
    ),
    Attack(
        "share a lead of a colleague with oneself",
        (
            "SELECT {schema}.change_sharing({colleague}, 'share', {me}, NULL, NULL, NULL)",
            "SELECT {schema}.share_lead({colleague}, {me})",
        ),
        MANAGERS,
        truth=RULES,
        hosts=True,
    ),
    Attack(
        "share with oneself before one loses it",
        ("SELECT {schema}.share_lead({own}, {me})",),
        "UPDATE {schema}.user_lead_assignments SET user_id = {mate}; " + MANAGERS,
        truth=RULES,
    ),
    Attack(
        "share on as somebody whom it is shared with",
        ("SELECT {schema}.share_lead({shared}, {suspect})",),
        MANAGERS,
        truth=RULES,
        user=3,
    ),
    Attack(
        "give a shared lead away",
        ("SELECT {schema}.release_lead({shared})", "SELECT {schema}.change_owner({shared}, 'claim', NULL, NULL)"),
        MANAGERS,
        truth=OWNERS,
        user=3,
    ),
    Attack(
        "end somebody's suspension as a seller",
        ("SELECT {schema}.revoke_protection({suspended}, 'DE', 'VIEW_ONLY')",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {app};" + MANAGERS,
        truth=RULES,
    ),
    Attack(
        "grant oneself a territory as a seller",
        ("SELECT {schema}.grant_protection({me}, 'DE', 'COLLABORATOR')",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {app};" + MANAGERS,
        truth=RULES,
    ),
    Attack(
        "assign a lead of another territory as a manager",
        ("SELECT {schema}.assign_lead({swiss}, {mate})",),
        MEMBERS,
        truth=OWNERS,
        by="manager_de",
        where="CH",
    ),
    Attack(
        "assign it without a territory in context",
        ("SELECT {schema}.assign_lead({swiss}, {mate})",),
        MEMBERS,
        truth=OWNERS,
        by="manager_de",
        where=None,
    ),
    Attack(
        "make a rule in another territory as a manager",
        ("SELECT {schema}.grant_protection({me}, 'CH', 'COLLABORATOR')",),
        MEMBERS,
        truth=RULES,
        by="manager_de",
    ),
    Attack(
        "make a rule in no territory as a manager",
        (
            "SELECT {schema}.grant_protection({me}, NULL, 'COLLABORATOR')",
            "SELECT {schema}.grant_protection({me}, 'ch', 'COLLABORATOR')",
            "SELECT {schema}.grant_protection({me}, '', 'COLLABORATOR')",
        ),
        MEMBERS + "; ALTER TABLE {schema}.lead_protection_rules DROP CONSTRAINT lead_protection_rules_territory_fkey",
        truth=RULES,
        by="manager_de",
    ),
    Attack(
        "give a lead to somebody suspended as a manager",
        ("SELECT {schema}.transfer_lead({colleague}, {suspended})",),
        "DELETE FROM {schema}.lead_protection_rules WHERE protection = 'VIEW_ONLY'",
        truth=OWNERS,
        by="manager_de",
    ),
    Attack(
        "edit while suspended",
        (EDIT + "{suspended_lead}",),
        "DELETE FROM {schema}.lead_protection_rules WHERE protection = 'VIEW_ONLY'",
        truth=OTHERS,
        user=6,
    ),
    Attack(
        "edit by a share that is over",
        (COLLEAGUE,),
        "UPDATE {schema}.lead_protection_rules SET active = true, effective_to = NULL",
        truth=OTHERS,
        user=4,
    ),
    Attack(
        "edit by a share that has not begun",
        (EDIT + "{shared}",),
        "UPDATE {schema}.lead_protection_rules SET effective_from = '2020-01-01'",
        truth=OTHERS,
        user=4,
    ),
    Attack(
        "edit by a rule for the territory whose owner shares with nobody",
        (EDIT + "{sole}",),
        "DELETE FROM {schema}.lead_protection_rules WHERE protection = 'SOLE_OWNER'",
        truth=OTHERS,
        user=7,
    ),
    Attack(
        "make an owner by an activity after contract",
        (
            "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) VALUES ({free}, {me}, 'QUALIFIED_CALL', now()), ({free}, {me}, 'QUALIFIED_CALL', 'infinity')",
        ),
        "CREATE TRIGGER back AFTER INSERT ON {activities} FOR EACH ROW EXECUTE FUNCTION {schema}.own_active_lead()",
        truth=OWNERS,
    ),
]


def edit_under_an_old_snapshot(scene: Scene) -> None:
    """He owned it when his transaction began."""
    with scene.enter("seller_de", 1, "DE") as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        scene.say(conn, "SELECT {schema}.can_edit_lead({own})")
        transfer(scene)
        scene.say(conn, EDIT + "{own}")
        conn.execute("COMMIT")


def edit_under_an_exported_snapshot(scene: Scene) -> None:
    """Another session keeps the snapshot for him."""
    with scene.enter("seller_de", 1, "DE") as keeper, scene.enter("seller_de", 1, "DE") as conn:
        keeper.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        row = keeper.execute("SELECT pg_export_snapshot()").fetchone()
        transfer(scene)
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        conn.execute(f"SET TRANSACTION SNAPSHOT '{row[0] if row else ''}'")
        scene.say(conn, EDIT + "{own}")
        conn.execute("COMMIT")


def edit_with_a_recorded_attempt(scene: Scene) -> None:
    """It was recorded that he may, and then he might no more."""
    with scene.enter("seller_de", 1, "DE") as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        scene.say(conn, "SELECT {schema}.record_edit_attempt({own})")
        transfer(scene)
        scene.say(conn, EDIT + "{own}")
        conn.execute("COMMIT")


def edit_under_a_suspension(scene: Scene) -> None:
    """His snapshot is older than the rule that suspends him."""
    with scene.enter("seller_de", 1, "DE") as conn:
        conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        scene.say(conn, "SELECT {schema}.can_edit_lead({own})")
        with scene.enter("manager_de", 9, "DE") as manager:
            scene.say(manager, "SELECT {schema}.grant_protection({me}, 'DE', 'VIEW_ONLY')")
        scene.say(conn, EDIT + "{own}")
        conn.execute("COMMIT")


def transfer(scene: Scene) -> None:
    """A manager takes the lead away, on a session with a limit: what is locked stays."""
    with scene.enter("manager_de", 9, "DE") as manager:
        manager.execute("SET lock_timeout = '200ms'")
        scene.say(manager, "SELECT {schema}.transfer_lead({own}, {mate})")


def edit_as_long_as_a_statement_lasts(scene: Scene) -> None:
    """A share ends by its time while a statement that began before it goes on; what began too late is tried again."""
    for lasts in ("0.3 s", "3 s", "30 s"):
        (ends,) = scene.ask(
            f"UPDATE {{schema}}.lead_protection_rules SET effective_to = clock_timestamp() + interval '{lasts}' "
            "WHERE user_id = {sharer} AND lead_id = {shared} RETURNING effective_to::text"
        )
        with scene.enter("seller_de", 3, "DE") as conn:
            begun = f"IF statement_timestamp() > '{ends}' THEN RAISE 'begun too late'; END IF"
            wait = f"PERFORM pg_sleep_until('{ends}'); PERFORM pg_sleep(0.05)"
            scene.say(conn, f"DO $$ BEGIN {begun}; {wait}; {EDIT}{{shared}}; END $$")
        if not scene.heard or "begun too late" not in scene.heard[-1]:
            return


def two_owners_at_once(scene: Scene) -> None:
    """Two sellers claim the same lead, and each has read that it is free."""
    with scene.enter("seller_de", 1, "DE") as one, scene.enter("seller_de", 8, "DE") as two:
        for conn in (one, two):
            conn.execute("SET lock_timeout = '200ms'")
            conn.execute("BEGIN")
            scene.say(conn, "SELECT {schema}.explain_edit({free})")
        for conn in (one, two):
            scene.say(conn, "SELECT {schema}.claim_lead({free})")
        for conn in (one, two):
            conn.execute("COMMIT")


EDITED = "SELECT {text} = 'edited' FROM {leads} WHERE {lead_id} = {own}"
OLD_SNAPSHOT = """
    CREATE OR REPLACE FUNCTION {schema}.decide_locked(lead {lead_id_type}, OUT reason text, OUT basis text)
    LANGUAGE sql AS $$ SELECT 'owner', NULL::text $$;
    DROP TRIGGER {audit_edits} ON {leads}
    """
RACES = [
    Attack("edit under a snapshot from before a transfer", (edit_under_an_old_snapshot,), OLD_SNAPSHOT, truth=EDITED),
    Attack(
        "edit under a snapshot that somebody exported", (edit_under_an_exported_snapshot,), OLD_SNAPSHOT, truth=EDITED
    ),
    Attack("edit with a recorded attempt as a ticket", (edit_with_a_recorded_attempt,), OLD_SNAPSHOT, truth=EDITED),
    Attack("edit under a snapshot from before a suspension", (edit_under_a_suspension,), OLD_SNAPSHOT, truth=EDITED),
    Attack(
        "edit by a share that ends while the statement lasts",
        (edit_as_long_as_a_statement_lasts,),
        OLD_SNAPSHOT,
        truth="SELECT {text} = 'edited' FROM {leads} WHERE {lead_id} = {shared}",
    ),
    Attack(
        "own a lead twice",
        (two_owners_at_once,),
        "ALTER TABLE {schema}.user_lead_assignments DROP CONSTRAINT ix_ula_lead CASCADE;"
        "CREATE OR REPLACE FUNCTION {schema}.try_change_owner(lead {lead_id_type}, change text, new_owner {user_id_type}, note text) RETURNS text "
        "LANGUAGE sql AS $$ INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id) VALUES (lead, 'DE', "
        "{schema}.parse_user(current_setting({user_guc}, true))); SELECT 'owner' $$",
        truth="SELECT count(*) > 1 FROM {schema}.user_lead_assignments WHERE lead_id = {free}",
    ),
]

# --- a record that lies


def roll_back_to_a_savepoint(scene: Scene) -> None:
    """The assertion is undone, the edit is not."""
    with scene.enter("seller_de", 1, "DE") as conn:
        for step in (
            "BEGIN",
            "SAVEPOINT a",
            "SELECT {schema}.assert_edit_and_audit({own})",
            "ROLLBACK TO a",
            EDIT + "{own}",
            "COMMIT",
        ):
            scene.say(conn, step)


def use_a_ticket_twice(scene: Scene) -> None:
    """One denial, two rows of its number: whoever checks the seals later finds a row that was changed."""
    with scene.enter("seller_de", 1, "DE") as one, scene.enter("seller_de", 1, "DE") as two:
        row = one.execute(scene.text("SELECT {schema}.allow_edit({colleague}, 'EDIT', NULL)")).fetchone()
        reason, _, ticket = str(row[0] if row else "").partition(" ")
        record = f"SELECT {{schema}}.record_denial({{colleague}}, 'EDIT', '{reason}', 'a', '{ticket}')"
        one.execute("BEGIN")
        two.execute("SET lock_timeout = '200ms'")
        scene.say(one, record)
        scene.say(two, record)
        one.execute("COMMIT")
        scene.say(two, record)


def use_a_ticket_of_another_login(scene: Scene) -> None:
    """A number that was drawn for a denial of somebody else."""
    with scene.enter("seller_both", 1, "DE") as other, scene.enter("seller_de", 1, "DE") as conn:
        row = other.execute(scene.text("SELECT {schema}.allow_edit({colleague}, 'EDIT', NULL)")).fetchone()
        reason, _, ticket = str(row[0] if row else "").partition(" ")
        scene.say(conn, f"SELECT {{schema}}.record_denial({{colleague}}, 'EDIT', '{reason}', 'stolen', '{ticket}')")
    tell_a_stolen_number(scene, ticket)


def use_a_ticket_for_another_lead(scene: Scene) -> None:
    """A number that was drawn for another lead."""
    with scene.enter("seller_de", 1, "DE") as conn:
        row = conn.execute(scene.text("SELECT {schema}.allow_edit({colleague}, 'EDIT', NULL)")).fetchone()
        reason, _, ticket = str(row[0] if row else "").partition(" ")
        scene.say(conn, f"SELECT {{schema}}.record_denial({{shared}}, 'EDIT', '{reason}', 'stolen', '{ticket}')")
    tell_a_stolen_number(scene, ticket)


def tell_a_stolen_number(scene: Scene, ticket: str) -> None:
    """A superuser looks whether the row bears the number of the ticket."""
    rows = scene.ask("SELECT id FROM {schema}.lead_access_audit WHERE note = 'stolen'")
    scene.heard += [f"row {number} has the number of the ticket" for number in rows if ticket.startswith(f"{number} ")]


def forged(reason: str) -> str:
    return f"SELECT {{schema}}.record_denial({{colleague}}, 'EDIT', '{reason}')"


def noted(note: str) -> str:
    return f"SELECT {{schema}}.record_edit_attempt({{own}}, 'EDIT', {note})"


ROW = (
    "INSERT INTO {schema}.lead_access_audit (lead_id, user_id, login, role, territory, action, outcome, reason) "
    "VALUES ({colleague}, {mate}, 'somebody', 'none', 'DE', 'EDIT', 'ALLOW', 'owner')"
)
UNBOUNDED = "CREATE OR REPLACE FUNCTION {schema}.bounded(said text) RETURNS text LANGUAGE sql IMMUTABLE RETURN said"
CONTROL = "SELECT count(*) FROM {schema}.lead_access_audit AS e WHERE concat(e.note, e.correlation_id) ~ '[[:cntrl:]]'"
NOBODY_RECORDS = "DROP TRIGGER {audit_edit} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}"
UNGUARDED = """
    DO $$ DECLARE part regclass; BEGIN
      FOR part IN SELECT relid FROM pg_partition_tree('{schema}.lead_access_audit') LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', part);
      END LOOP;
    END $$
    """
WRITABLE = writable("lead_access_audit") + ";" + UNGUARDED

RECORDS = [
    Attack(
        "change what is recorded",
        ("UPDATE {schema}.lead_access_audit SET reason = 'changed'",),
        WRITABLE,
        truth=RECORDED,
        where="CH",
        hosts=True,
    ),
    Attack(
        "change it after GRANT ALL",
        ("UPDATE {schema}.lead_access_audit SET reason = 'changed'",),
        WRITABLE,
        truth=RECORDED,
        given=EVERYTHING,
        hosts=True,
    ),
    Attack(
        "delete it after GRANT ALL",
        ("DELETE FROM {schema}.lead_access_audit",),
        WRITABLE,
        truth=RECORDED,
        given=EVERYTHING,
    ),
    Attack(
        "truncate it after GRANT ALL",
        ("TRUNCATE {schema}.lead_access_audit", "TRUNCATE {audit_month}"),
        UNGUARDED,
        truth=RECORDED,
        given=EVERYTHING,
    ),
    Attack(
        "truncate one month of it",
        ("TRUNCATE {audit_month}",),
        "ALTER TABLE {audit_month} DISABLE TRIGGER USER",
        truth=RECORDED,
        given="GRANT TRUNCATE ON {audit_month} TO {app}",
    ),
    Attack(
        "change it as a superuser",
        ("UPDATE {schema}.lead_access_audit SET reason = 'changed'",),
        UNGUARDED,
        truth=RECORDED,
        by="",
        hosts=True,
    ),
    Attack(
        "delete it as a superuser who replicates",
        (
            "SET session_replication_role = replica",
            "DELETE FROM {schema}.lead_access_audit",
            "DELETE FROM {audit_month}",
        ),
        UNGUARDED,
        truth=RECORDED,
        by="",
        hosts=True,
    ),
    Attack(
        "truncate it as a superuser", ("TRUNCATE {schema}.lead_access_audit CASCADE",), UNGUARDED, truth=RECORDED, by=""
    ),
    Attack(
        "change a row on its way to another month",
        ("UPDATE {schema}.lead_access_audit SET at = at + interval '100 years'",),
        UNGUARDED,
        truth=RECORDED,
        by="",
    ),
    Attack(
        "replace a row by an upsert as a superuser",
        (
            "INSERT INTO {schema}.lead_access_audit SELECT * FROM {schema}.lead_access_audit ON CONFLICT (lead_id, at, id) DO UPDATE SET reason = 'changed'",
        ),
        UNGUARDED,
        truth=RECORDED,
        by="",
    ),
    Attack(
        "delete the seals",
        ("DELETE FROM {schema}.lead_access_audit_seals", "TRUNCATE {schema}.lead_access_audit_seals"),
        "ALTER TABLE {schema}.lead_access_audit_seals DISABLE TRIGGER USER",
        truth=SEALED,
        by="",
    ),
    Attack(
        "change the seals after GRANT ALL",
        ("UPDATE {schema}.lead_access_audit_seals SET content = hash",),
        writable("lead_access_audit_seals"),
        truth=SEALED,
        by="operator",
        given=EVERYTHING + "; GRANT USAGE ON SCHEMA {schema} TO {operator}",
    ),
    Attack(
        "change the history of owners after GRANT ALL",
        ("UPDATE {schema}.user_lead_assignment_history SET user_id = {mate}",),
        writable("user_lead_assignment_history", "PUBLIC"),
        truth=HISTORY,
        by="manager_de",
        where="CH",
        given=EVERYTHING,
    ),
    Attack("write an allowance", (ROW,), WRITABLE, truth=ALLOWED, hosts=True),
    Attack(
        "write an allowance after GRANT ALL",
        (ROW,),
        "ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY",
        truth=ALLOWED,
        given=EVERYTHING + "; GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO PUBLIC",
        hosts=True,
    ),
    Attack(
        "write an allowance as an auditor after GRANT ALL",
        (ROW,),
        "ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY",
        truth=ALLOWED,
        by="auditor_de",
        given=EVERYTHING + "; GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO PUBLIC",
    ),
    Attack(
        "record a denial that is none",
        tuple(forged(reason) for reason in ("owner", "OWNER", "manager", "maintenance", "collaborator", "", "owner\n")),
        "CREATE OR REPLACE FUNCTION {schema}.record_denial(lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL, ticket text DEFAULT NULL) "
        "RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM {schema}.write_audit(lead, action, decision, note); END $$",
        truth=ALLOWED,
    ),
    Attack(
        "record a denial of a reason that only its own territory gives",
        tuple(forged(reason) for reason in ("not_owner", "suspended", "unassigned")),
        MEMBERS,
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE territory = 'CH'",
        where="CH",
    ),
    Attack(
        "use a ticket twice",
        (use_a_ticket_twice,),
        "CREATE OR REPLACE FUNCTION {schema}.record_denial(lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL, ticket text DEFAULT NULL) "
        "RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM {schema}.write_audit(lead, action, decision, note, NULL, NULL, split_part(ticket, ' ', 1)::bigint); END $$",
        truth="SELECT count(*) - count(DISTINCT id) FROM {schema}.lead_access_audit",
    ),
    Attack(
        "use a ticket of another login",
        (use_a_ticket_of_another_login,),
        "CREATE OR REPLACE FUNCTION {schema}.record_denial(lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL, ticket text DEFAULT NULL) "
        "RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM {schema}.write_audit(lead, action, decision, note, NULL, NULL, split_part(ticket, ' ', 1)::bigint); END $$",
        tells="the number of the ticket",
    ),
    Attack(
        "use a ticket for another lead",
        (use_a_ticket_for_another_lead,),
        "CREATE OR REPLACE FUNCTION {schema}.record_denial(lead {lead_id_type}, action {schema}.lead_action, decision text, note text DEFAULT NULL, ticket text DEFAULT NULL) "
        "RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM {schema}.write_audit(lead, action, decision, note, NULL, NULL, split_part(ticket, ' ', 1)::bigint); "
        "END $$",
        tells="the number of the ticket",
    ),
    Attack("edit without an assertion", (EDIT + "{own}",), NOBODY_RECORDS, truth=UNRECORDED, hosts=True),
    Attack("edit after an assertion that was undone", (roll_back_to_a_savepoint,), NOBODY_RECORDS, truth=UNRECORDED),
    Attack(
        "edit after an assertion of another action",
        ("BEGIN", "SELECT {schema}.record_edit_attempt({own}, 'VIEW')", EDIT + "{own}", "COMMIT"),
        NOBODY_RECORDS,
        truth=UNRECORDED,
        hosts=True,
    ),
    Attack(
        "edit after an assertion for another lead",
        ("BEGIN", "SELECT {schema}.record_edit_attempt({also_own})", EDIT + "{own}", "COMMIT"),
        NOBODY_RECORDS,
        truth=UNRECORDED,
    ),
    Attack(
        "edit one's own lead twice in two names",
        (
            "BEGIN",
            EDIT + "{own}",
            "SELECT set_config({user_guc}, {mate}::text, true)",
            "UPDATE {leads} SET {text} = 'edited again' WHERE {lead_id} = {own}",
            "COMMIT",
        ),
        NO_POLICY,
        truth="SELECT {text} = 'edited again' FROM {leads} WHERE {lead_id} = {own}",
    ),
    Attack(
        "delete one's own lead without a trace",
        ("DELETE FROM {leads} WHERE {lead_id} = {also_own}",),
        NOBODY_RECORDS,
        truth="SELECT count(*) FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = {also_own} AND a.territory = 'DE' AND 1 = 0 "
        "UNION ALL SELECT count(*) FROM (SELECT {also_own}::{lead_id_type} AS id EXCEPT SELECT {lead_id} FROM {leads}) AS gone WHERE NOT EXISTS "
        "(SELECT FROM {schema}.lead_access_audit AS e WHERE e.lead_id = gone.id AND e.at > now() - interval '1 minute')",
    ),
    Attack(
        "take the record along with the lead",
        ("DELETE FROM {leads} WHERE {lead_id} = {own}",),
        UNGUARDED + "; CREATE FUNCTION crm.along() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN DELETE FROM {schema}.lead_access_audit WHERE lead_id = OLD.{lead_id}; RETURN NULL; END $$;"
        "CREATE TRIGGER along AFTER DELETE ON {leads} FOR EACH ROW EXECUTE FUNCTION crm.along()",
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE note = 'own note'",
    ),
    Attack(
        "edit under another name of the login",
        ("SET application_name = 'postgres'", "SET ROLE {app}", "RESET ROLE", noted("NULL")),
        "ALTER TABLE {schema}.lead_access_audit ALTER login SET DEFAULT 'postgres'",
        truth=FOREIGN_ROWS,
    ),
    Attack(
        "date a record by one's own clock",
        ("SET TimeZone = '<UTC>-100'", noted("NULL"), "SET TimeZone = 'UTC'"),
        "ALTER TABLE {schema}.lead_access_audit ALTER at SET DEFAULT '2020-01-01'",
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE at NOT BETWEEN now() - interval '1 hour' AND now() + interval '1 hour'",
    ),
    Attack(
        "write a time of one's own zone into a note",
        (
            "SET DateStyle = 'SQL, DMY'; SET TimeZone = '<UTC>-12'",
            "SELECT {schema}.grant_protection({mate}, 'DE', 'COLLABORATOR', {own}, NULL, '2039-01-02 00:00+00')",
        ),
        "CREATE OR REPLACE FUNCTION {schema}.bounded(said text) RETURNS text LANGUAGE sql IMMUTABLE RETURN said || ' until 02/01/2039 12:00:00 UTC'",
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE note LIKE '%12:00:00%'",
        by="manager_de",
    ),
    Attack(
        "write a time of one's own zone into the basis of an edit",
        ("SET DateStyle = 'SQL, DMY'; SET TimeZone = '<UTC>-12'", EDIT + "{shared}"),
        "CREATE OR REPLACE FUNCTION {schema}.collaboration(lead {lead_id_type}, caller {user_id_type}, here text) RETURNS SETOF text LANGUAGE sql STABLE ROWS 1 AS $$ SELECT 'rule since ' || '1999-01-01' $$",
        truth="SELECT count(*) FROM {schema}.lead_access_audit AS e WHERE e.basis LIKE 'rule%' AND NOT EXISTS (SELECT FROM {schema}.lead_protection_rules AS r "
        "WHERE e.basis LIKE '%' || to_char(r.effective_from AT TIME ZONE interval '0', 'YYYY-MM-DD HH24:MI:SS.US') || '%')",
        user=3,
    ),
    Attack(
        "record a note of megabytes",
        (noted("repeat('x', 3000000)"),),
        "ALTER TABLE {schema}.lead_access_audit DROP CONSTRAINT laa_bounded;" + UNBOUNDED,
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE octet_length(note) > 1024",
        hosts=True,
    ),
    Attack(
        "record a note of wide characters",
        (noted("repeat(U&'\\+01F4A9', 1024)"),),
        "ALTER TABLE {schema}.lead_access_audit DROP CONSTRAINT laa_bounded;" + UNBOUNDED,
        truth="SELECT count(*) FROM {schema}.lead_access_audit WHERE octet_length(note) > 1024",
    ),
    Attack(
        "record a note that moves the cursor",
        (noted("E'\\x1b[2J\\x1b[1;1Hnothing happened\\r\\n'"),),
        UNBOUNDED,
        truth=CONTROL,
    ),
    Attack(
        "record a request that moves the cursor",
        ("SELECT set_config({correlation_guc}, E'a\\x1b]0;b\\x07', false)", noted("NULL")),
        UNBOUNDED,
        truth=CONTROL,
    ),
    Attack(
        "record control characters where quotes mean something else",
        (
            "SET standard_conforming_strings = off",
            "SELECT set_config({correlation_guc}, chr(27) || chr(7) || chr(10), false)",
            noted("chr(27)"),
        ),
        UNBOUNDED,
        truth=CONTROL,
    ),
    Attack(
        "make a month of the audit as a service",
        ("SELECT {schema}.create_audit_partitions(60)",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {app}",
        truth="SELECT count(*) FROM {schema}.audit_partitions()",
    ),
    Attack(
        "take a month away that is not sealed",
        ("SELECT {schema}.detach_audit_month(date_trunc('month', now())::date)",),
        "CREATE OR REPLACE FUNCTION {schema}.detach_audit_month(month date) RETURNS TABLE (detached name, row_count bigint) LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN EXECUTE 'ALTER TABLE {schema}.lead_access_audit DETACH PARTITION {audit_month}'; END $$",
        truth="SELECT count(*) FROM {schema}.audit_partitions()",
        by="operator",
    ),
    Attack(
        "seal as an auditor",
        ("SELECT {schema}.seal_audit()",),
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {auditor}",
        truth=SEALED,
        by="auditor_de",
    ),
    Attack(
        "draw numbers that nobody can explain",
        (
            "SELECT nextval('{schema}.lead_access_audit_id_seq')",
            "SELECT setval('{schema}.lead_access_audit_id_seq', 1)",
        ),
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {app}",
        truth="SELECT last_value FROM {schema}.lead_access_audit_id_seq",
        hosts=True,
    ),
    Attack(
        "turn back the number of rule changes",
        ("SELECT setval('{schema}.rule_changes', 5)",),
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {app}",
        truth="SELECT last_value FROM {schema}.rule_changes",
    ),
    Attack(
        "call what writes the audit",
        ("SELECT {schema}.write_audit({colleague}, 'EDIT', 'owner', 'forged')",),
        executable("write_audit({lead_id_type}, {schema}.lead_action, text, text, text, text, bigint)")
        + "; ALTER FUNCTION {schema}.write_audit({lead_id_type}, {schema}.lead_action, text, text, text, text, bigint) SECURITY DEFINER",
        truth=ALLOWED,
        hosts=True,
    ),
    Attack(
        "call what draws a denial",
        ("SELECT 'proof ' || {schema}.draw_denial({colleague}, 'EDIT', 'not_owner', NULL)",),
        executable("draw_denial({lead_id_type}, {schema}.lead_action, text, text)")
        + "; ALTER FUNCTION {schema}.draw_denial({lead_id_type}, {schema}.lead_action, text, text) SECURITY DEFINER",
        tells="proof ",
    ),
    Attack(
        "prove a line of the log that nobody wrote",
        (
            "SELECT 'proved ' || p FROM {schema}.proved_denials(ARRAY[5::bigint], ARRAY['facts'], ARRAY[repeat('0', 32)]) AS p",
        ),
        "CREATE OR REPLACE FUNCTION {schema}.denial_proof(said text) RETURNS text LANGUAGE sql STABLE RETURN repeat('0', 32)",
        tells="proved ",
        by="auditor_de",
    ),
]


# --- somebody else's rights

TRAP = "CREATE TABLE public.sprung (as_whom name); GRANT ALL ON public.sprung TO PUBLIC; GRANT USAGE ON SCHEMA public TO PUBLIC"
SPRUNG = "SELECT DISTINCT as_whom::text FROM public.sprung WHERE as_whom NOT LIKE '%seller%' AND as_whom NOT LIKE '%svc%' AND as_whom NOT LIKE '%authenticat%' AND as_whom NOT LIKE '%portal%'"


def function_in_front(name: str, arguments: str, returns: str) -> tuple[str, ...]:
    """A function of the caller's that stands before PostgreSQL's own, in a schema that everybody may write."""
    return (
        f"CREATE FUNCTION trap.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.sprung VALUES (current_user); RETURN NULL; END $$",
        "SET search_path = trap, pg_catalog",
        "SELECT {schema}.can_edit_lead({own}), {schema}.record_edit_attempt({own})",
        EDIT + "{own}",
        "SELECT {schema}.claim_lead({free})",
    )


def unpinned(called: str) -> str:
    """The function that writes the audit finds its names by the caller's path."""
    return f"""
        CREATE OR REPLACE FUNCTION {{schema}}.write_audit(
          lead {{lead_id_type}}, action {{schema}}.lead_action, decision text, note text,
          basis text DEFAULT NULL, here text DEFAULT NULL, number bigint DEFAULT NULL)
        RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM {called}; END $$;
        ALTER FUNCTION {{schema}}.record_edit_attempt({{lead_id_type}}, {{schema}}.lead_action, text) RESET search_path
        """


TRAPPED = TRAP + "; CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO PUBLIC"
RIGHTS = [
    Attack(
        "put a function before lower()",
        function_in_front("lower", "text", "text"),
        unpinned("lower('x')"),
        truth=SPRUNG,
        given=TRAPPED,
        hosts=True,
    ),
    Attack(
        "put a function before current_setting()",
        function_in_front("current_setting", "text, boolean", "text"),
        unpinned("current_setting('x', true)"),
        truth=SPRUNG,
        given=TRAPPED,
    ),
    Attack(
        "put a function before nextval()",
        function_in_front("nextval", "text", "bigint"),
        unpinned("nextval('x'::text)"),
        truth=SPRUNG,
        given=TRAPPED,
    ),
    Attack(
        "put a table before the owners",
        (
            "CREATE TEMP TABLE user_lead_assignments AS SELECT {colleague}::{lead_id_type} AS lead_id, 'DE'::text AS territory, {me}::{user_id_type} AS user_id",
            "GRANT SELECT ON user_lead_assignments TO PUBLIC",
            "SET search_path = pg_temp, pg_catalog",
            "SELECT 'may ' || {schema}.can_edit_lead({colleague})",
        ),
        "CREATE OR REPLACE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text) RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS "
        "$$ BEGIN RETURN (SELECT 'owner' FROM user_lead_assignments AS a WHERE a.lead_id = lead); END $$",
        tells="may true",
        hosts=True,
    ),
    Attack(
        "put a table before the territories",
        (
            "CREATE TEMP TABLE territories AS SELECT 'CH'::text AS code",
            "GRANT SELECT ON territories TO PUBLIC",
            TO_CH,
            "SET search_path = pg_temp",
            "SELECT * FROM {schema}.v_lead_protection",
        ),
        MEMBERS,
    ),
    Attack(
        "put an operator before =",
        (
            "CREATE FUNCTION trap.same({user_id_type}, {user_id_type}) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
            "CREATE OPERATOR trap.= (LEFTARG = {user_id_type}, RIGHTARG = {user_id_type}, FUNCTION = trap.same)",
            "SET search_path = trap, pg_catalog",
            "SELECT 'may ' || {schema}.can_edit_lead({colleague})",
        ),
        "CREATE OR REPLACE FUNCTION {schema}.decide(lead {lead_id_type}, declared_user text, declared_territory text) RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS "
        "$$ BEGIN RETURN CASE WHEN {mate}::{user_id_type} = {me}::{user_id_type} THEN 'owner' END; END $$",
        tells="may true",
        given=TRAPPED,
        hosts=True,
    ),
    Attack(
        "put a type before uuid and text",
        (
            "CREATE FUNCTION trap.check(anyelement) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.sprung VALUES (current_user); RETURN true; END $$",
            "CREATE DOMAIN trap.text AS pg_catalog.text CHECK (trap.check(VALUE))",
            "CREATE DOMAIN trap.uuid AS pg_catalog.uuid CHECK (trap.check(VALUE))",
            "CREATE DOMAIN trap.boolean AS pg_catalog.bool CHECK (trap.check(VALUE))",
            "SET search_path = trap, pg_catalog",
            "SELECT {schema}.record_edit_attempt({own})",
            "SELECT {schema}.claim_lead({free})",
            EDIT + "{own}",
        ),
        unpinned("'x'::text"),
        truth=SPRUNG,
        given=TRAPPED,
    ),
]

ATTACKS = [*LEADS, *OURS, *ORACLES, *EDITS, *RACES, *RECORDS, *RIGHTS]
