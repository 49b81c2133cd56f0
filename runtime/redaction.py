"""What of a text may be shown: no control characters, no secrets, and of an error's text what names no person."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "**********"
SHORTEST_SECRET: Final = 4
"""Characters. A shorter secret stands in too many words by chance to be looked for."""
OURS: Final = frozenset({"contracts", "storage", "learners", "runtime", "streams", "scoring", "driftline"})

_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: ESC and BEL among them
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # breaks, bidi, unseen
    "\ud800-\udfff\U000e0000-\U000e007f]"  # lone surrogates and tags
)
_PASSWORDS = re.compile(r"""(://[^/@:\s]*:)[^\s"'`]*(?=@)|(\b(?:ssl)?password=)[^&\s"'`]+""", re.I)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|(?<=unknown field )`[^`]*`|(?<=Invalid value )-?\d+")


def escaped(text: str, *, keep: str = "") -> str:
    """Fit for one line of a terminal or a log: what moves the cursor, rings, turns the direction of writing or is not
    seen stands as an escape (`\\x1b`, `\\u202e`).

    :param keep: characters to leave as they are, "\\n" where lines are meant.
    """
    return _UNFIT.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def escaped_json(text: str) -> str:
    """JSON whose strings hold those characters as JSON's own escapes; the value stays the same."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in "\n\r\t" else json.dumps(found[0])[1:-1], text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, most: int) -> str:
    """A text of at most so many bytes of UTF-8; of a longer one the beginning, with a mark."""
    plain = text.encode(errors="replace")
    if len(plain) <= most:
        return text
    mark = "...[cut]"
    return plain[: most - len(mark)].decode(errors="ignore") + mark


class Secrets:
    """Values that no line may hold."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        long = {spelt for value in values if len(value) >= SHORTEST_SECRET for spelt in _spellings(value)}
        self._any = re.compile("|".join(map(re.escape, sorted(long, key=len, reverse=True)))) if long else None

    def hide(self, text: str) -> str:
        """The text with stars where a secret, or the password of any URL or connection string, stands."""
        if "://" in text or "assword=" in text:
            text = _PASSWORDS.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)
        return text if self._any is None else self._any.sub(HIDDEN, text)


def _spellings(value: str) -> set[str]:
    """How a value may stand in a text: as it is, in a URL, in JSON, in Python, in an HTTP header."""
    plain = value.encode(errors="surrogatepass")
    return {
        *(value, quote(value, safe="", errors="replace"), quote_plus(value, errors="replace")),
        *(json.dumps(value)[1:-1], repr(value)[1:-1], escaped(value)),
        base64.b64encode(plain).decode(),
    }


def said(error: BaseException) -> str:
    """An error as a log may hold it. Of our own errors, of the brokers', the disk's and the server's, what they say;
    of any other only the type, since its text may hold a record: `KeyError('anna')`.

    What Postgres calls DETAIL and CONTEXT holds rows and is left out, as is the text of a hidden error in the text of
    the one that it caused.
    """
    text = " ".join(_own_words(error).split())
    for cause in _behind(error):
        words = _own_words(cause)
        for hidden in _texts_of(cause):
            if hidden and hidden not in words:
                text = text.replace(hidden, words or "(hidden)")
    return text


def masked(text: str) -> str:
    """A text of others without what it quotes."""
    return _QUOTED.sub("(hidden)", text)


def names_person(error: BaseException) -> Iterator[str]:
    """What of the texts of an error, and of those behind it, must not be shown."""
    for one in (error, *_behind(error)):
        words = _own_words(one)
        yield from (text for text in _texts_of(one) if text not in words)


def _own_words(error: BaseException) -> str:
    kind = type(error)
    package = kind.__module__.partition(".")[0]
    if package in OURS and kind.__name__ not in _HOLD_RECORDS:
        return _text(error)
    if package == "sqlalchemy":
        cause = getattr(error, "orig", None)
        return _own_words(cause) if isinstance(cause, BaseException) else kind.__name__
    words = _trusted(error, package)
    return f"{kind.__name__}: {words}" if words else kind.__name__


_HOLD_RECORDS = frozenset({"Malformed"})
_SHORTEST_TEXT = 3
_OF_CLIENTS = frozenset({"aiokafka", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "safetensors"})
_SERVER = ("08", "0A", "23", "25", "28", "3D", "40", "42", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE whose first sentence names tables, roles and addresses, but no value of a row."""


def _trusted(error: BaseException, package: str) -> str:
    """What an error of others says, "" where it may say anything."""
    if package == "psycopg":
        return _of_postgres(error)
    if package == "msgspec":
        return masked(_text(error))
    if package in ("cimpl", "confluent_kafka"):
        reason = error.args[0] if error.args else error
        return str(reason.str()) if hasattr(reason, "str") else ""
    if package == "faust":
        return "" if "Decode" in type(error).__name__ else _text(error)
    if package in _OF_CLIENTS or isinstance(error, OSError | ImportError | MemoryError | json.JSONDecodeError):
        return _text(error)
    return _text(error) if isinstance(error, UnicodeDecodeError) else ""


def _of_postgres(error: BaseException) -> str:
    """The server's first sentence with its SQLSTATE; of the client's own errors those of a connection."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        lost = any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(error).__mro__)
        return _text(error) if lost else ""
    first = str(getattr(getattr(error, "diag", None), "message_primary", None) or "")
    if getattr(error.diag, "source_function", None) == "exec_stmt_raise":  # type: ignore[attr-defined]
        return f"({state})"  # a function's own words
    if state.startswith("22"):
        return f"{masked(first)} ({state})"
    return f"{first} ({state})" if state.startswith(_SERVER) else f"({state})"


def _behind(error: BaseException) -> Iterator[BaseException]:
    """What caused an error, and what was being handled, each once."""
    seen, todo = {id(error)}, [error]
    while todo:
        one = todo.pop()
        parts = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for cause in (one.__cause__, one.__context__, getattr(one, "orig", None), *parts):
            if isinstance(cause, BaseException) and id(cause) not in seen:
                seen.add(id(cause))
                todo.append(cause)
                yield cause


def _texts_of(error: BaseException) -> list[str]:
    """How an error's text may stand in another's, the longest first."""
    told = [_text(error), _text(error, repr), *(arg for arg in error.args if isinstance(arg, str))]
    flat = [" ".join(text.split()) for text in told]
    found = {text for text in (*told, *flat, *(text[:300] for text in flat)) if len(text) >= _SHORTEST_TEXT}
    return sorted(found, key=len, reverse=True)


def _text(error: BaseException, how: Callable[[object], str] = str) -> str:
    try:
        return how(error)
    except Exception:  # its __str__ is wrong
        return type(error).__name__
