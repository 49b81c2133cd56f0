"""The one reader of Postgres URLs: libpq's own, so that every verb understands the same address.

Read are `postgresql://...` (also with a driver's name, `postgresql+psycopg://`) and `host=... dbname=...`, with
several hosts, `?service=`, `?target_session_attrs=` and whatever else libpq knows. What libpq takes for something
else than was meant, an unencoded `@` or `/` in a password, is refused here: libpq would print it as a host's name.
"""

from __future__ import annotations

import re
import shlex
from difflib import get_close_matches

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from storage.postgres.faults import BadAddress

_URI = re.compile(r"postgres(?:ql)?(?:\+\w+)?://", re.IGNORECASE)
_ENCODE = "write it as postgresql://user:password@host:port/database, with @ : / ? # % and blanks in user and "
_ENCODE += "password percent-encoded (@ is %40, / is %2F, % is %25)"
_TODO = f"correct DRIFTLINE_POSTGRES_URL: {_ENCODE}"


def parameters(url: str) -> dict[str, str]:
    """libpq's parameters (host, port, user, dbname, ...) of an address.

    Blanks and line ends around it do not count: files with secrets end with one.

    :raises BadAddress: it cannot be read, or libpq would read a piece of the password as something else.
    """
    url = url.strip()
    if not url:
        raise BadAddress("the address of Postgres is empty", hint=_TODO)
    if not url.isprintable():
        raise BadAddress("the address of Postgres holds a line end or another control character", hint=_TODO)
    scheme = _URI.match(url)
    if scheme is not None:
        rest = url[scheme.end() :]
        _refuse_stray(rest)
        url = f"postgresql://{rest.replace(' ', '%20')}"
    elif "://" in url or "=" not in url:
        raise BadAddress("the address of Postgres does not begin with postgresql://", hint=_TODO)
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error as error:
        raise BadAddress(f"the address of Postgres cannot be read: {_reason(error)}", hint=_TODO) from None
    ports = found.get("port", "").split(",")
    if not all(port == "" or (port.isdecimal() and 0 < int(port) < 65_536) for port in ports):
        raise BadAddress("the port in the address of Postgres is not a number from 1 to 65535", hint=_TODO)
    return found


def conninfo(url: str, **given: str | int) -> str:
    """The address as one string for `psycopg.connect`, with parameters replaced.

    :raises BadAddress: see `parameters`.
    """
    return make_conninfo("", **{**parameters(url), **given})


def server_settings(options: str) -> dict[str, str]:
    """The settings named in libpq's `options` (`-c name=value`, `-cname=value`, `--name=value`), by name."""
    try:
        words = shlex.split(options)
    except ValueError:
        return {}
    found, rest = {}, iter(words)
    for word in rest:
        if word == "-c":
            word = next(rest, "")
        elif word.startswith(("-c", "--")):
            word = word[2:]
        else:
            continue
        name, is_given, value = word.partition("=")
        if is_given:
            found[name.strip().lower().replace("-", "_")] = value
    return found


def _refuse_stray(rest: str) -> None:
    """`rest` is what follows the `://`. libpq ends user and password at the first `@`, unless a `/` comes before it."""
    inside = re.match(r"[^@/]*@", rest)
    place = rest[inside.end() :] if inside else rest
    place, asked, query = place.partition("?")
    if "@" in place or "#" in place or (asked and not inside and "@" in query and "=" not in query.partition("@")[0]):
        raise BadAddress(
            "the address of Postgres has an @, / or # where none belongs: its user or password is not percent-encoded",
            hint=_TODO,
        )


def _reason(error: psycopg.Error) -> str:
    """libpq's sentence. What it quotes may be a secret, unless it is nearly the name of a parameter."""
    known = [option.keyword.decode() for option in Conninfo.get_defaults()]

    def shown(quoted: re.Match[str]) -> str:
        word = quoted[1]
        near = get_close_matches(word, known, n=1) if word.isidentifier() else []
        return f'"{word}" (meant: {near[0]}?)' if near else '"..."'

    return re.sub(r'"([^"]*)"', shown, " ".join(str(error).split()))
