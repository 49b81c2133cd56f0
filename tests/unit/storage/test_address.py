"""One reader of Postgres URLs, which repeats nothing of a password."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from storage.postgres.address import conninfo, parameters, server_settings
from storage.postgres.faults import BadAddress


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://me:pw@db:5432/d", {"user": "me", "password": "pw", "host": "db", "port": "5432", "dbname": "d"}),
        ("postgresql+psycopg://me@db/d", {"user": "me", "host": "db", "dbname": "d"}),
        ("postgresql://the%20user@db/d", {"user": "the user", "host": "db", "dbname": "d"}),
        ("postgresql://the user@db/d", {"user": "the user", "host": "db", "dbname": "d"}),
        (
            "postgresql://me@one:5432,two:5433/d?target_session_attrs=read-write",
            {"user": "me", "host": "one,two", "port": "5432,5433", "dbname": "d", "target_session_attrs": "read-write"},
        ),
        (" postgresql://me@db/d\r\n", {"user": "me", "host": "db", "dbname": "d"}),
        ("host=db dbname=d password='p w'", {"host": "db", "dbname": "d", "password": "p w"}),
        ("postgresql://me:p%40s%2Fs@db/d", {"user": "me", "password": "p@s/s", "host": "db", "dbname": "d"}),
        ("postgresql://me:p?s#s@db/d", {"user": "me", "password": "p?s#s", "host": "db", "dbname": "d"}),
        ("postgresql://db/d?application_name=a@b", {"host": "db", "dbname": "d", "application_name": "a@b"}),
        ("postgresql:///d?host=/run/pg", {"host": "/run/pg", "dbname": "d"}),
    ],
)
def test_an_address_is_read_as_libpq_reads_it(url: str, found: dict[str, str]) -> None:
    assert parameters(url) == found
    assert conninfo_to_dict(conninfo(url)) == found


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hun@ter2@db/d",
        "postgresql://me:hun/ter2@db/d",
        "postgresql://me:hun/te?r2@db/d",
        "postgresql://me:hun#/ter2@db/d",
        "postgresql://me:hun%ter2@db/d",
        "postgresql://me:x@db:hunter2/d",
        "postgresql://me:x@db/d?hunter2",
        "postgresql://me:x@db/d?hunter2=1&hunter2",
        "postgresql://me:x@db/d\nhunter2",
        "mysql://me:hunter2@db/d",
        "host=db password='hunter2",
        "hunter2",
        "",
        " \n",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(BadAddress, match="DRIFTLINE_POSTGRES_URL") as refused:
        parameters(url)
    assert "hun" not in str(refused.value)
    assert "ter2" not in str(refused.value)


def test_a_misspelt_parameter_is_named() -> None:
    with pytest.raises(BadAddress, match='"sslmod"'):
        parameters("postgresql://me@db/d?sslmod=require")


@pytest.mark.parametrize(
    "options",
    ["-c work_mem=7MB -c statement_timeout=5s", "-cwork_mem=7MB --statement-timeout=5s", "-c 'work_mem=7MB' -x -c"],
)
def test_settings_are_read_out_of_the_options_of_an_address(options: str) -> None:
    assert server_settings(options)["work_mem"] == "7MB"
    assert server_settings(options).get("statement_timeout", "5s") == "5s"
