"""Lists of ids in files, read to the letter: an id is what stands in a line, and nothing guesses what was meant.

* A line ends at "\\n" or "\\r\\n", at no other character: U+2028, U+0085 and a form feed belong to the id.
* A byte order mark at the beginning of the file is dropped; everything must be UTF-8.
* Blanks and quotes belong to the id too, since ids may hold them. There is no quoting and no comment.
* Empty lines are skipped, and counted.
"""

from __future__ import annotations

import sys
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts.records import MAX_ID_CHARS
from runtime.lifecycle import ConfigurationError

STDIN: Final = Path("-")
_QUOTES: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "`": "`"}
_UNSEEN: Final = ("Cf", "Cc", "Zl", "Zp", "Zs")
"""Categories of characters that nobody sees: marks, controls, separators."""


@dataclass(frozen=True, kw_only=True)
class IdList:
    """What a file lists."""

    ids: tuple[str, ...]
    """In the order of the file, each once."""
    empty_lines: int


def read_ids(file: Path) -> IdList:
    """Ids, one a line; `STDIN` reads standard input.

    :raises Usage: unreadable, not UTF-8, or a line that no record could hold as an id; the line is named.
    """
    try:
        content = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"unreadable: {error}", where=str(file), hint="give one id a line, as UTF-8") from None
    lines = content.removeprefix(BOM_UTF8).split(b"\n")
    ids = []
    for number, line in enumerate(lines, 1):
        if line := line.removesuffix(b"\r"):
            ids.append(_id_of(line, where=f"{file}, line {number:,}"))
    empty = len(lines) - len(ids) - (not lines[-1])  # what follows the last line end is no line
    return IdList(ids=tuple(dict.fromkeys(ids)), empty_lines=empty)


def check_ids(ids: Iterable[str], *, where: str) -> list[str]:
    """Ids given as text, each once, in their order.

    :raises Usage: one that no record could hold as an id.
    """
    return [_checked(given, where=where) for given in dict.fromkeys(ids)]


def _id_of(line: bytes, *, where: str) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ConfigurationError(
            f"not UTF-8: byte 0x{byte:02x} at place {error.start + 1}", where=where, hint="save the list as UTF-8"
        ) from None
    return _checked(text, where=where)


def _checked(text: str, *, where: str) -> str:
    todo = "give one id a line, exactly as the records spell it"
    if not text:
        raise ConfigurationError("an empty id", where=where, hint=todo)
    if len(text) > MAX_ID_CHARS:
        raise ConfigurationError(
            f"{len(text):,} characters, and no id has more than {MAX_ID_CHARS}", where=where, hint=todo
        )
    if "\0" in text:
        raise ConfigurationError("the character U+0000, which no id holds (is it UTF-16?)", where=where, hint=todo)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigurationError("bytes that are not UTF-8", where=where, hint=todo)
    return text


def meant(text: str) -> list[str]:
    """What somebody may have meant by an id: without blanks, quotes and unseen characters round it or a separator
    behind it, or composed as Unicode's NFC has it. Never the id itself; only to be asked about."""
    plain = _stripped(text)
    forms = [plain, _unquoted(plain), _unquoted(_stripped(plain.rstrip(",;")))]
    forms += [unicodedata.normalize("NFC", form) for form in forms]
    return [form for form in dict.fromkeys(forms) if form not in ("", text)]


def _stripped(text: str) -> str:
    unseen = {character for character in text if unicodedata.category(character) in _UNSEEN}
    return text.strip("".join(unseen)) if unseen else text


def _unquoted(text: str) -> str:
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        return _stripped(text[1:-1])
    return text
