"""Texts of strangers on a page: shown as they are, escaped, and kept from moving what stands beside them."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspair.report.text import attribute, clean, foreign, isolated, sentence, shortened

OVERRIDE, POP = "\u202e", "\u202c"
ISOLATE, POP_ISOLATE = "\u2067", "\u2069"
CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def left_open(text: str) -> list[str]:
    """What closes the controls of a text that are still open at its end, by Unicode Standard Annex 9."""
    opened: list[str] = []
    for character in text:
        if character in "\u2066\u2067\u2068":
            opened.append(POP_ISOLATE)
        elif character in "\u202a\u202b\u202d\u202e":
            opened.append(POP)
        elif character == POP_ISOLATE:
            assert POP_ISOLATE in opened, "it ends an isolate that is not its own"
            while opened.pop() != POP_ISOLATE:
                pass
        elif character == POP:
            assert opened[-1:] == [POP], "it ends an embedding that is not its own"
            opened.pop()
    return opened


@given(st.text(alphabet=st.sampled_from(CONTROLS + "aא ")))
def test_every_direction_that_a_text_begins_ends_with_it(text):
    assert left_open(clean(text)) == []
    assert left_open(isolated(text)) == []
    assert [each for each in clean(text) if each not in CONTROLS] == [each for each in text if each not in CONTROLS]


@given(st.text())
def test_a_page_can_hold_any_text(text):
    shown = clean(text)
    shown.encode()
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")]
    assert clean(shown) == shown


def test_what_can_not_be_seen_is_shown():
    assert clean("a\0b\nc\x1bd\ud800e\u2029f\x7f") == "a␀b c␛d\ufffde f␡"
    assert "(empty)" in foreign(" \n")
    assert "(empty caption)" in sentence("")


def test_markup_is_only_text():
    evil = "<b title='x'>\"&"
    for shown in (foreign(evil), f'<i title="{attribute(evil)}">', sentence(evil), shortened(evil * 9)):
        tags = re.findall(r"<(\w+)((?: \w+=\"[^\"]*\")*)>", shown)
        assert {tag for tag, _ in tags} <= {"bdi", "span", "i"}
        assert shown.count("<") == shown.count(">") == len(tags) + shown.count("</")


def test_an_attribute_isolates_what_runs_from_right_to_left_and_leaves_the_rest():
    assert attribute("plain café") == "plain café"
    assert attribute(f"turned{OVERRIDE}") == f"\u2068turned{OVERRIDE}{POP}\u2069"
    assert attribute("كلب") == "\u2068كلب\u2069"


@pytest.mark.parametrize(
    "name",
    [
        "3050606344_af711c726c.jpg",
        "👩‍👩‍👧‍👦" * 9,
        "e\u0301" * 40,
        "👍🏽" * 20,
        "長い名前" * 9,
        OVERRIDE + "gpj.exe" * 9,
    ],
)
def test_a_long_name_loses_its_middle_alone_and_no_letter_in_two(name):
    shown = shortened(name)
    head, rest = shown.split('<span class="cut">')
    middle, tail = rest.split("</span>")
    head, tail = head.partition(">")[2], tail.removesuffix("</bdi>")
    assert head + middle + tail == clean(name)
    assert f'title="{attribute(name)}"' in shown
    for part in (middle, tail):
        assert not unicodedata.category(part[0]).startswith("M")
        assert part[0] not in "\u200d🏽"
    assert not head.endswith("\u200d")
    assert len(head) + len(tail) <= 20 + 12


def test_a_short_name_stays_whole():
    assert shortened("image-3.jpg") == "image-3.jpg"
