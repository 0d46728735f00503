"""Errors on their way from one process to another."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from uuid import UUID

import pytest

from leadprotect import Decision
from leadprotect.errors import BackfillIncomplete, LeadAccessDenied, LeadProtectError, PreflightError

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
