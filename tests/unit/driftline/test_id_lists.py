"""Lists of ids are read to the letter: nothing that an id may hold cuts, trims or unwraps it."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records import MAX_ID_CHARS
from driftline.id_lists import IdList, check_ids, meant, read_ids
from runtime.lifecycle import ConfigurationError

IDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"), min_size=1, max_size=8).filter(
        lambda text: not text.endswith("\r")
    ),
    max_size=20,
    unique=True,
)


def listed(folder: Path, content: bytes) -> IdList:
    file = folder / "asked.txt"
    file.write_bytes(content)
    return read_ids(file)


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (codecs.BOM_UTF8 + b"anna\r\nben\r\n", ("anna", "ben")),
        (b"anna\nben", ("anna", "ben")),
        ("a\u2028b\nc\u2029d\ne\x85f\ng\x0bh\ni\x0cj\nk\x1cl\nm\rn\n".encode(),
         ("a\u2028b", "c\u2029d", "e\x85f", "g\x0bh", "i\x0cj", "k\x1cl", "m\rn")),
        (b' anna\nben \n"carl"\n\n', (" anna", "ben ", '"carl"')),
        (b"\xef\xbb\xbf\xef\xbb\xbfanna\n", ("\ufeffanna",)),
        (b"anna\nanna\n", ("anna",)),
        (b"#anna\na,b\n \n", ("#anna", "a,b", " ")),
    ],
)  # fmt: skip
def test_an_id_is_what_stands_in_its_line(tmp_path: Path, content: bytes, ids: tuple[str, ...]) -> None:
    assert listed(tmp_path, content).ids == ids


def test_empty_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    assert listed(tmp_path, b"\nanna\r\n\r\n\nben\n") == IdList(ids=("anna", "ben"), empty_lines=3)
    assert listed(tmp_path, b"anna\n").empty_lines == 0
    assert listed(tmp_path, b"anna").empty_lines == 0
    assert listed(tmp_path, b"") == IdList(ids=(), empty_lines=0)


@given(ids=IDS, end=st.sampled_from(["\n", "\r\n"]), mark=st.sampled_from([b"", codecs.BOM_UTF8]))
def test_every_list_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], end: str, mark: bytes
) -> None:
    written = mark + "".join(name + end for name in ids).encode()
    if not mark and written.startswith(codecs.BOM_UTF8):  # an id that begins with one needs another before it
        written = codecs.BOM_UTF8 + written
    assert listed(tmp_path_factory.mktemp("lists"), written).ids == tuple(ids)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"anna\nb\xe9n\n", ("line 2", "byte 0xe9 at place 2", "UTF-8")),
        ("anna\nben\n".encode("utf-16"), ("line 1", "0xff")),
        ("anna\nben\n".encode("utf-16-le"), ("line 1", "U+0000", "UTF-16")),
        (b"anna\n\n" + b"x" * (MAX_ID_CHARS + 1), ("line 3", f"{MAX_ID_CHARS + 1} characters")),
        (b"\xed\xa0\x80\n", ("line 1", "UTF-8")),
    ],
)
def test_a_line_that_can_be_no_id_is_refused_with_its_number(
    tmp_path: Path, content: bytes, said: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        listed(tmp_path, content)
    for part in said:
        assert part in str(refused.value)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * (MAX_ID_CHARS + 1), "b\udce9n"])
def test_the_command_line_is_read_as_strictly(name: str) -> None:
    with pytest.raises(ConfigurationError):
        check_ids(["anna", name], where="here")
    assert check_ids([" anna", " anna"], where="here") == [" anna"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (" anna", "anna"), ("anna\t", "anna"), ('"anna"', "anna"), ("'anna',", "anna"), ("\u201canna\u201d", "anna"),
        ("\ufeffanna", "anna"),
        ("anna\u200b", "anna"), ("anna\r", "anna"), ("rene\u0301", "ren\u00e9"), ("anna;", "anna"),
    ],
)  # fmt: skip
def test_what_may_have_been_meant_is_guessed_to_be_asked_about(name: str, form: str) -> None:
    assert form in meant(name)
    assert name not in meant(name)


def test_a_plain_id_means_itself() -> None:
    assert meant("anna") == []
    assert meant('"') == []
