"""A service with Django: who acts in a request, what an error answers, and the system check.

Django takes its settings once in a process, so each test has one of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.services import EXAMPLES, service_url

if TYPE_CHECKING:
    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

BEGIN = """
import json, sys
from django_service import *
from django.db import transaction
from django.test import Client
from leadprotect.integrations.django import acting
facts = json.loads(sys.argv[1])
client = Client(raise_request_exception=False)

def get(user, territory="DE"):
    answer = client.get("/leads", headers={"X-User": user, "X-Territory": territory})
    return answer.json()["leads"]

def rename(lead, user, territory="DE"):
    answer = client.get(f"/leads/{lead}?company=Neu", headers={"X-User": user, "X-Territory": territory})
    return [answer.status_code, answer.json() if answer.status_code < 500 or "json" in answer["Content-Type"] else None]

def seen():
    with db.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM leads")
        return cursor.fetchone()[0]
"""


def told(database: Database, script: str, *, login: str = "seller_both", **facts: Any) -> Any:
    """What the script answers, run beside the service."""
    command = [sys.executable, "-W", "error", "-c", BEGIN + script, json.dumps(facts, default=str)]
    environment = {"SERVICE_URL": service_url(database, login), "PYTHONPATH": str(EXAMPLES), "PATH": ""}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False, timeout=60)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def test_a_request_acts_as_its_user_and_an_error_answers_with_its_status(database: Database) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    swiss = database.lead("CH")
    script = """
me = facts["me"]
answers = [rename(lead, me) for lead in facts["leads"]]
leadprotect.access.denials.record_denials = lambda *_: (_ for _ in ()).throw(leadprotect.AuditUnavailable("full"))
print(json.dumps([get(me), get(me, "CH"), answers, rename(facts["leads"][1], me)]))
"""
    german, foreign, answers, unrecorded = told(
        database, script, me=database.user(1), leads=[mine, other, swiss, "nonsense"]
    )
    assert ([str(mine), str(other)], [str(swiss)]) == (german, foreign)
    assert [
        [200, {"changed": 1}],
        [403, {"detail": "not_owner"}],
        [404, {"detail": "not_found"}],
        [422, {"detail": "invalid_request"}],
    ] == answers
    assert [503, {"detail": "unavailable"}] == unrecorded
    assert [
        ("EDIT", "ALLOW", "owner"),
        ("EDIT", "DENY", "not_owner"),
        ("EDIT", "DENY", "other_territory"),
    ] == database.audit()


def test_a_context_lasts_through_commits_and_outside_of_a_transaction(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    script = """
found = []
with acting(facts["me"], "DE"):
    found.append(seen())
    for _ in range(2):
        with transaction.atomic():
            found += [seen(), leadprotect.can_edit(connection(), facts["lead"])]
    try:
        connection()
    except leadprotect.ContextMissing:
        found.append("outside")
    with acting(facts["me"], "CH"), transaction.atomic():
        found.append(seen())
    found.append(seen())
found.append(seen())
print(json.dumps(found))
"""
    assert [1, 1, True, 1, True, "outside", 0, 1, 0] == told(database, script, me=database.user(1), lead=lead)


def test_requests_inside_one_transaction_as_in_a_test_act_each_for_themselves(database: Database) -> None:
    for territory, count in (("DE", 1), ("CH", 2)):
        for _ in range(count):
            database.lead(territory)
    script = """
me = facts["me"]
with transaction.atomic():
    found = [len(get(me)), len(get(me, "CH")), seen()]
    try:
        with acting(me, "DE"), transaction.atomic():
            found.append(seen())
            raise KeyError
    except KeyError:
        pass
    found += [seen(), len(get(me, "CH"))]
print(json.dumps(found))
"""
    assert [1, 2, 0, 1, 0, 2] == told(database, script, me=database.user(1))


def test_a_request_of_nobody_sees_no_lead(database: Database) -> None:
    database.lead("DE")
    script = """
import django_service
django_service.who = lambda request: None
print(json.dumps([get("nobody"), rename(facts["lead"], "nobody")[0]]))
"""
    assert [[], 500] == told(database, script, lead=database.new_id())


CHECK = """
from django.core.checks import run_checks
print(json.dumps([[error.id, error.msg.split(":")[0]] for error in run_checks(databases=["default"])]))
"""


def test_the_system_check_asks_what_a_service_asks_before_it_serves(database: Database) -> None:
    assert [] == told(database, CHECK)
    assert [["leadprotect.E001", "no_member"]] == told(database, CHECK, login="outsider")
    database.sql("ALTER TABLE leads DISABLE ROW LEVEL SECURITY")
    assert ["leadprotect.E001", "row_security_off"] in told(database, CHECK)
