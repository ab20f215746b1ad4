"""What of foreign text reaches a shell."""

import io
import time

import pytest
from rich.console import Console

from persyn_hf.text import markup, tame, tame_lines

KEY = "sk-canary-0123456789"
#: What a terminal obeys, and what stays of it.
OBEYED = {
    "colour": ("a\x1b[31mb\x1b[0m", "ab"),
    "title": ("a\x1b]0;title\x07b", "ab"),
    "title, ended by ST": ("a\x1b]0;title\x1b\\b", "ab"),
    "title without an end": ("a\x1b]0;title", "a0;title"),
    "clipboard": ("a\x1b]52;c;aGk=\x07b", "ab"),
    "link": ("\x1b]8;;http://x\x1b\\a\x1b]8;;\x1b\\b", "ab"),
    "device string": ("a\x1bP1;2|x\x1b\\b", "ab"),
    "clear": ("a\x1b[2J\x1b[Hb", "ab"),
    "reset": ("a\x1bcb", "ab"),
    "character set": ("a\x1b(0b", "ab"),
    "C1": ("a\x9b31mb\x9d0;title\x9cc", "abc"),
    "sequence in a sequence": ("a\x1b\x1b[0m[2Jb", "a[2Jb"),
    "controls": ("a\x00\x07\x08\x7fb", "ab"),
    "carriage return": ("good\rbad", "good bad"),
    "line breaks": ("a\n\r\n b\x0b\x85\u2028c", "a b c"),
    "direction": ("a\u202eb\u2066c\u200e", "abc"),
    "zero width": ("a\u200bb\ufeffc", "abc"),
    "half a pair": ("a\ud800b", "ab"),
}


@pytest.mark.parametrize(("text", "left"), OBEYED.values(), ids=OBEYED)
def test_nothing_is_left_that_a_terminal_obeys(text, left):
    assert tame(text) == left
    assert tame(text).isprintable()
    assert all(line.isprintable() for line in tame_lines(text).split("\n"))


def test_other_letters_stay():
    assert tame("Größe 模型 – naïve 😀 ½") == "Größe 模型 – naïve 😀 ½"


def test_lines_and_indents_stay_where_several_are_meant():
    assert tame_lines("two:\n\t\x1b[1mone\n  \rtwo") == "two:\n one\n  two"


@pytest.mark.parametrize(
    "text", [f"bad {KEY}!", f"bad {KEY}", f"{KEY}{KEY}", f"a{KEY[:9]}\x00{KEY[9:]}b", f"{KEY[:9]}\x1b[0m{KEY[9:]}"]
)
def test_a_key_is_blotted_out(text):
    said = tame(text, 200, KEY)
    assert "***" in said and "canary" not in said


def test_what_is_cut_shows_no_piece_of_a_key():
    assert tame("x" * 8 + KEY, 12, KEY) == "x" * 8 + "***"
    assert tame(" " * 100 + "bad " + KEY[:-1], 200, KEY) == "bad ***"  # the body itself was cut
    assert tame("x" * 300, 200) == "x" * 200 + "…"


def test_a_long_text_takes_no_time():
    began = time.monotonic()
    for unit in ("\x9d", "\x1b]", "\x1b[0", "\x9b0", "\x1b "):
        tame(unit * (2**20 // len(unit)), 200, KEY)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["a[/red]", "[bold]b[/bold]", "[link=http://x]c[/link]", "\\[d]", "[/]"])
def test_a_name_is_printed_as_it_is(name):
    out = io.StringIO()
    Console(file=out, width=80).print(markup(name), end="|")
    assert out.getvalue() == f"{name}|"
