"""What is read back of a session, and waits that last too long."""

from __future__ import annotations

import pytest

from storage.postgres.calls import Calls
from storage.postgres.faults import Unfit
from storage.postgres.sessions import _normal, check

_WANTED = {"DateStyle": "ISO, MDY", "transaction_timeout": "15s"}


def test_a_setting_that_is_not_as_it_was_set_is_refused_by_name() -> None:
    check({**_WANTED, "synchronous_commit": "on"}, _WANTED)
    check({**_WANTED, "synchronous_commit": "remote_apply"}, _WANTED)
    with pytest.raises(Unfit, match=r"DateStyle = 'German, DMY'.*'ISO, MDY'"):
        check({**_WANTED, "DateStyle": "German, DMY", "synchronous_commit": "on"}, _WANTED)
    with pytest.raises(Unfit, match="transaction_timeout = '0'"):
        check({**_WANTED, "transaction_timeout": "0", "synchronous_commit": "on"}, _WANTED)


@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
def test_a_commit_that_may_be_lost_is_refused(value: str) -> None:
    with pytest.raises(Unfit, match=f"synchronous_commit = '{value}'.*could be lost"):
        check({**_WANTED, "synchronous_commit": value}, _WANTED)


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(0, "0"), (15_000, "15s"), (1_500, "1500ms"), (120_000, "2min"), (7_200_000, "2h"), (86_400_000, "1d")],
)
def test_a_time_is_written_as_postgres_shows_it(milliseconds: int, shown: str) -> None:
    assert _normal(milliseconds) == shown


def test_a_wait_is_overdue_after_its_limit_and_over_when_it_ends() -> None:
    now = [0.0]
    calls = Calls(clock=lambda: now[0])
    with calls.waiting(1, limit_s=10, name="driftline-ingest"), calls.waiting(2, limit_s=60, name="driftline-maintain"):
        now[0] = 9.9
        assert calls.overdue() == ""
        now[0] = 12.0
        assert "driftline-ingest for 12 s" in calls.overdue()
        now[0] = 61.0
        assert "for 61 s" in calls.overdue()
    assert calls.overdue() == ""
