"""Errors on their way from one process to another."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from uuid import UUID

import psycopg
import pytest

from leadprotect import Decision
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import (
    BackfillIncomplete,
    ConnectionUnusable,
    LeadAccessDenied,
    LeadProtectError,
    PreflightError,
)

DENIED = LeadAccessDenied(Decision(UUID(int=1), "not_owner"))
ERRORS = [DENIED, PreflightError(["no role"], ["CREATE ROLE r"]), BackfillIncomplete("2 leads have no owner", ())]


def pickled(error: LeadProtectError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_that_was_pickled_or_copied_says_and_carries_the_same(error: LeadProtectError) -> None:
    for other in (pickled(error), copy.copy(error), copy.deepcopy(error)):
        assert (type(error), str(error), vars(error)) == (type(other), str(other), vars(other))


def test_a_denial_carries_its_decision_into_another_process() -> None:
    assert Decision(UUID(int=1), "not_owner") == pickled(DENIED).decision


CAUSED = {
    "57014": "the statement was cancelled, by statement_timeout or by somebody; raise that",
    "57P01": "the server ended the session; connect anew",
    "57P03": "the server is starting or shutting down; try again in a moment",
    "53300": "the server has no connection left; end one, or raise max_connections",
    "53100": "the server's disk is full; free some of it",
}


@pytest.mark.parametrize("state", CAUSED)
def test_what_a_user_can_cause_has_a_sentence_with_what_helps(state: str) -> None:
    with pytest.raises(ConnectionUnusable) as caught, mapped_errors():
        raise psycopg.errors.lookup(state)
    assert str(caught.value).startswith(f"the database gave no answer: {CAUSED[state]}")
    assert str(caught.value).endswith(f" (SQLSTATE {state})")


def test_a_connection_that_is_gone_is_told_in_words() -> None:
    with pytest.raises(ConnectionUnusable, match=r"closed, or was lost; connect anew$"), mapped_errors():
        raise psycopg.OperationalError


def test_a_state_that_nobody_has_described_is_told_as_it_is() -> None:
    with pytest.raises(ConnectionUnusable, match=r"^the database gave no answer \(SQLSTATE 22012\)$"), mapped_errors():
        raise psycopg.errors.DivisionByZero
