"""Texts of strangers (captions, file names, labels, settings) on a page: only ever text, and never out of their place.

A text may hold markup, control characters, or a U+202E that nobody closes and that would turn round what follows. HTML
has elements that keep a text's direction to itself; attributes, titles and the script's data have none, so there
Unicode's own isolates do it (Unicode Standard Annex 9).
"""

import unicodedata
from html import escape

_FIRST_STRONG_ISOLATE, _POP_ISOLATE, _POP_EMBEDDING = "\u2068", "\u2069", "\u202c"
_ISOLATES = frozenset("\u2066\u2067\u2068")
_EMBEDDINGS = frozenset("\u202a\u202b\u202d\u202e")
_TURNS = frozenset({"R", "AL", "AN", "RLE", "RLO", "LRE", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"})
_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")
_TAIL = 0.45  # of what is kept of a long name: its end, where numbers and suffixes are

EMPTY = '<span class="quiet">(empty)</span>'


def clean(text: str) -> str:
    """The text in one line, without what a page can't hold, and with its bidirectional controls closed.

    Line breaks become spaces, control characters their pictures (NUL is shown as U+2400), halves of characters U+FFFD.
    """
    return _closed("".join(map(_shown, str(text))))


def foreign(text: str) -> str:
    """The text as HTML that keeps its direction to itself."""
    shown = clean(text)
    if not shown.strip():
        return EMPTY
    return escape(shown) if shown.isascii() else f"<bdi>{escape(shown)}</bdi>"


def isolated(text: str) -> str:
    """The text for a place without markup (an attribute, a title), not escaped."""
    shown = clean(text)
    if any(unicodedata.bidirectional(each) in _TURNS for each in shown):
        return f"{_FIRST_STRONG_ISOLATE}{shown}{_POP_ISOLATE}"
    return shown


def attribute(text: str) -> str:
    """The text as the value of an attribute."""
    return escape(isolated(text))


def sentence(text: str, tag: str = "span", *, quoted: bool = False) -> str:
    """A caption as HTML, from right to left where its first letter is so."""
    shown = clean(text)
    if not shown.strip():
        return f'<{tag} class="sentence quiet">(empty caption)</{tag}>'
    before, after = ("\u201c", "\u201d") if quoted else ("", "")
    return f'<{tag} class="sentence" dir="auto">{before}{escape(shown)}{after}</{tag}>'


def shortened(name: str, most: int = 20) -> str:
    """A name as HTML, of which a long one's middle is hidden: to be read on hovering, and copied as a whole."""
    shown = clean(name)
    if len(shown) <= most or not shown.strip():
        return foreign(name)
    tail = _boundary(shown, len(shown) - round(most * _TAIL))
    head = _boundary(shown, most - (len(shown) - tail))
    parts = f'{escape(shown[:head])}<span class="cut">{escape(shown[head:tail])}</span>{escape(shown[tail:])}'
    return f'<bdi title="{attribute(name)}">{parts}</bdi>'


def _shown(character: str) -> str:
    code = ord(character)
    if character in _SPACES:
        return " "
    if code < 0x20 or code == 0x7F:
        return chr(0x2421 if code == 0x7F else 0x2400 + code)
    if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE:
        return "\ufffd"
    return character


def _closed(text: str) -> str:
    """The text without stray ends of isolates, and with an end for every beginning."""
    if text.isascii():
        return text
    kept: list[str] = []
    opened: list[str] = []  # what will close what is open
    for character in text:
        if character == _POP_ISOLATE:
            if _POP_ISOLATE not in opened:
                continue
            while opened.pop() != _POP_ISOLATE:
                pass
        elif character == _POP_EMBEDDING:
            if not opened or opened[-1] != _POP_EMBEDDING:
                continue
            opened.pop()
        elif character in _ISOLATES or character in _EMBEDDINGS:
            opened.append(_POP_ISOLATE if character in _ISOLATES else _POP_EMBEDDING)
        kept.append(character)
    return "".join([*kept, *reversed(opened)])


def _boundary(text: str, place: int) -> int:
    """The nearest place at or before this one that cuts no letter off its accents, nor an emoji in two."""
    while place > 0 and (_joins(text[place]) or text[place - 1] == "\u200d"):
        place -= 1
    return place


def _joins(character: str) -> bool:
    skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return skin_tone or character == "\u200d" or unicodedata.category(character).startswith("M")
