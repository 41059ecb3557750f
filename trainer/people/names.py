"""When two names are the same, and whether a caption names someone."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from ftfy import fix_encoding

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: controls, surrogates, line breaks
# Letters that Unicode does not take apart, though their bearers are often written without.
_STROKED = dict(zip("øłđðþæœıħŧ", ("o", "l", "d", "d", "th", "ae", "oe", "i", "h", "t")))
_APOSTROPHES = "ʹʺʻʼʽʾʿˈˊˋ"  # those that Unicode counts as letters
_LETTERS_OWN = (0, 8, 9)  # combining classes: none, kana voicing, virama
# Thai, Lao, Burmese, Khmer, kana, Han, Hangul.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)

# UTF-8's first byte and one more, read as Latin-1 or Windows-1252.
_READ_WRONGLY = re.compile("[\u00c2-\u00f4][^\x00-\x7f]")
_ONE_WORD = re.compile(rf"{_UNSPACED.pattern}|(?:(?!{_UNSPACED.pattern})\S)+")


def fold(text: str) -> str:
    """How names are compared: without case, accents, punctuation; words by single spaces.

    "José-María  O’Neil" gives "jose maria o neil". Compatibility forms are resolved (NFKD), points
    and invisible characters dropped; a pictograph is a word. Letters of all scripts stay, and
    marks that make another letter: kana voicing, the vowels of Indic scripts. Idempotent.
    """
    return " ".join(_words(text))


def is_control(character: str) -> bool:
    """Or a line break, or half of a character."""
    return unicodedata.category(character) in _CONTROLS


def _words(text: str) -> list[str]:
    words = text.translate(_FOLDED)
    if not words.isascii():
        words = unicodedata.normalize("NFC", words)  # the marks that stayed go in order
    return words.split()


class _FoldedCharacters(dict):
    """What becomes of a character, for str.translate; worked out when first met."""

    def __missing__(self, code: int) -> str:
        plain = chr(code)
        # A pictograph stays one: the letters of a trademark sign would glue to the name.
        form: Literal["NFD", "NFKD"] = "NFD" if unicodedata.category(plain) == "So" else "NFKD"
        plain = unicodedata.normalize(form, unicodedata.normalize(form, plain).casefold())
        self[code] = folded = "".join(map(_folded, plain))
        return folded


def _folded(character: str) -> str:
    if character in _STROKED:
        return _STROKED[character]
    category = unicodedata.category(character)
    if category == "So":
        return f" {character} "
    if category[0] in "PSZ" or category in _CONTROLS or character in _APOSTROPHES:
        return " "
    if category in ("Cf", "Me") or unicodedata.combining(character) not in _LETTERS_OWN:
        return ""
    return "" if unicodedata.name(character, "").startswith("VARIATION SELECTOR") else character


class NameIndex:
    """Whether a caption names any of many people: as whole words, folded.

    In scripts written without spaces a character is a word, and in Korean, where particles
    follow a name without a space.
    """

    def __init__(self, names: Iterable[str]):
        self._phrases = {tuple(_words_apart(name)) for name in names} - {()}
        lengths: dict[str, set[int]] = {}
        for phrase in self._phrases:
            lengths.setdefault(phrase[0], set()).add(len(phrase))
        self._lengths = {first: tuple(sorted(each)) for first, each in lengths.items()}

    def names_anyone(self, caption: str) -> bool:
        """As it is written, or as tokenizers mend it."""
        if caption.isascii() and "&" not in caption:  # nothing to mend in most
            return self._names_anyone(caption)
        return self._names_anyone(caption) or any(map(self._names_anyone, mended(caption)))

    def _names_anyone(self, caption: str) -> bool:
        words = _words_apart(caption)
        if self._lengths.keys().isdisjoint(words):  # most captions end here
            return False
        return any(
            tuple(words[i : i + length]) in self._phrases
            for i, first in enumerate(words)
            for length in self._lengths.get(first, ())
        )


def mended(text: str) -> Iterator[str]:
    """What CLIP's tokenizer makes of HTML's entities and of UTF-8 once decoded as something else.

    Captions of the web are full of both: "Conan O&#39;Brien", "BeyoncÃ©".
    """
    if "&" in text:
        yield (text := html.unescape(html.unescape(text)))
    if _READ_WRONGLY.search(text):  # mending takes far longer
        yield html.unescape(html.unescape(fix_encoding(text)))


def _words_apart(text: str) -> list[str]:
    words = _words(text)
    if text.isascii():
        return words
    return _UNSPACED.sub(r" \g<0> ", " ".join(words)).split()


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends; of scripts without spaces each character."""
    words = re.finditer(r"\S+", text) if text.isascii() else _ONE_WORD.finditer(text)
    return [found.span() for found in words]


_FOLDED = _FoldedCharacters()


def read_names(path: str | Path) -> list[str]:
    """A file's, one a line, with single spaces. Raises ValueError where it is not UTF-8."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"names {path} is not UTF-8; save it as UTF-8") from None
    return [" ".join(line.split()) for line in lines if fold(line)]
