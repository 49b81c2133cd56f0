"""Every class of SQLSTATE is decided."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from storage.postgres.faults import Denied, Unavailable, Unfit
from storage.postgres.sqlstates import VERDICTS, Verdict, fault_of, verdict

_KNOWN = sorted(
    error.sqlstate
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
)


def test_the_driver_knows_hundreds_of_states_and_each_of_their_classes_stands_in_the_table() -> None:
    assert len(_KNOWN) > 250
    assert {state[:2] for state in _KNOWN} - set(VERDICTS) == set()


def test_each_single_state_of_the_table_exists() -> None:
    assert {state for state in VERDICTS if len(state) == 5} - set(_KNOWN) == set()
    assert all(why for _, why in VERDICTS.values())


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("08006", Verdict.OUTAGE),
        ("08P01", Verdict.OUTAGE),
        ("0A000", Verdict.UNFIT),
        ("22021", Verdict.BUG),
        ("23505", Verdict.BUG),
        ("25006", Verdict.OUTAGE),
        ("25P02", Verdict.BUG),
        ("25P03", Verdict.OUTAGE),
        ("25P04", Verdict.OUTAGE),
        ("26000", Verdict.UNFIT),
        ("28000", Verdict.DENIED),
        ("28P01", Verdict.DENIED),
        ("3D000", Verdict.DENIED),
        ("3F000", Verdict.UNFIT),
        ("40001", Verdict.OUTAGE),
        ("40003", Verdict.OUTAGE),
        ("42501", Verdict.UNFIT),
        ("42601", Verdict.BUG),
        ("42P01", Verdict.UNFIT),
        ("42P05", Verdict.UNFIT),
        ("53100", Verdict.OUTAGE),
        ("53300", Verdict.OUTAGE),
        ("55000", Verdict.OUTAGE),
        ("55P02", Verdict.UNFIT),
        ("55P03", Verdict.OUTAGE),
        ("57014", Verdict.OUTAGE),
        ("57P01", Verdict.OUTAGE),
        ("57P03", Verdict.OUTAGE),
        ("58030", Verdict.OUTAGE),
        ("58P01", Verdict.UNFIT),
        ("72000", Verdict.OUTAGE),
        ("XX000", Verdict.UNFIT),
        ("XX001", Verdict.UNFIT),
        ("ZZ999", Verdict.BUG),
    ],
)
def test_a_state_means(state: str, found: Verdict) -> None:
    assert verdict(state)[0] is found


@pytest.mark.parametrize(
    ("state", "fault"),
    [("57P01", Unavailable), ("28P01", Denied), ("42501", Unfit), ("42P05", Unfit), ("0A000", Unfit), ("42601", None)],
)
def test_an_error_becomes_what_it_means(state: str, fault: type[Exception] | None) -> None:
    found = fault_of(errors.lookup(state)("the server's own words"))
    assert type(found) is (fault or type(None))
    assert found is None or "the server's own words" in str(found)


def test_an_error_on_a_broken_connection_is_an_outage_whatever_it_says() -> None:
    assert isinstance(fault_of(errors.SyntaxError("x"), broken=True), Unavailable)
    assert isinstance(fault_of(errors.DataCorrupted("x"), broken=True), Unfit)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ('connection failed: FATAL:  password authentication failed for user "me"', Denied),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "me"', Denied),
        ('FATAL:  database "d" does not exist', Denied),
        ('FATAL:  role "me" is not permitted to log in', Denied),
        ("FATAL:  unsupported startup parameter: options", Denied),
        ("SSL error: certificate verify failed", Denied),
        ('FATAL:  too many connections for role "me"', Unavailable),
        ("FATAL:  the database system is starting up", Unavailable),
        ("connection timeout expired", Unavailable),
        ("could not translate host name", Unavailable),
        ("server closed the connection unexpectedly", Unavailable),
    ],
)
def test_what_a_server_says_before_a_session_is_told_apart(said: str, fault: type[Exception]) -> None:
    assert type(fault_of(psycopg.OperationalError(said))) is fault
