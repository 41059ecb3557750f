from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.people.names import NameIndex, fold, read_names

# Folding


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("José-María  O’Neil", "jose maria o neil"),
        ("Jose\u0301", "jose"),
        ("J.R.R._Tolkien, Jr.", "j r r tolkien jr"),
        ("d'Arc d’Arc dʼArc d`Arc d´Arc", "d arc " * 4 + "d arc"),
        ("Straße STRASSE", "strasse strasse"),
        ("İstanbul Yıldız", "istanbul yildiz"),
        ("Søren Łukasz Æsa", "soren lukasz aesa"),
        ("Ｊｏｅ　Ｄｏｅ ﬁ", "joe doe fi"),
        ("Joe\u00a0Doe\t\n(actor)!", "joe doe actor"),
        ("Joe\u200bDoe\u00ad", "joedoe"),
        ("Joe Doe™😀", "joe doe ™ 😀"),
        ("יוֹסֵף כֹּהֵן", "יוסף כהן"),
        ("مُحَمَّد", "محمد"),
        ("山田・太郎", "山田 太郎"),
        ("ガ か\u3099", "ガ が"),
        ("각 가", "각 가"),
        ("कि कु", "कि कु"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_folding_by_example(text, folded):
    assert fold(text) == folded


@given(st.text())
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@given(st.text())
def test_case_and_composition_do_not_matter(text):
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, text)) == fold(text)
    assert fold(fold(text).upper().casefold()) == fold(fold(text).casefold())


@given(st.text(st.characters(max_codepoint=127)))
def test_folded_ascii_has_words_of_letters_and_digits(text):
    assert all(word.isalnum() and word == word.lower() for word in fold(text).split(" ") if word)


# The index of names

SHORT = st.lists(st.sampled_from(["a", "b", "É", "c'd", "-", "ba", "😀"]), max_size=5).map(" ".join)


@settings(max_examples=300)
@given(st.lists(SHORT, max_size=6), SHORT)
def test_the_index_finds_what_a_search_for_each_name_finds(names, caption):
    naive = any(fold(name) and f" {fold(name)} " in f" {fold(caption)} " for name in names)
    assert NameIndex(names).names_anyone(caption) == naive


@settings(max_examples=300)
@given(st.lists(st.text("山田太か\u3099", max_size=3), max_size=6), st.text("山田太か\u3099・ "))
def test_names_without_spaces_are_found_anywhere(names, caption):
    def joined(text: str) -> str:
        return fold(text).replace(" ", "")

    # A mark without its letter is no name.
    names = [name for name in names if not name.startswith("\u3099")]
    caption = caption.lstrip("\u3099")
    naive = any(joined(name) and joined(name) in joined(caption) for name in names)
    assert NameIndex(names).names_anyone(caption) == naive


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a photo of Joe Doe", True),
        ("JOE DOE's dog", True),
        ("joe-doe!", True),
        ("Is it joe  doe? Yes.", True),
        ("#Joe_Doe", True),
        ("Jóe Dóe", True),
        ("<b>Joe Doe</b>", True),
        ("Joe Doe😀", True),
        ("joe does it", False),
        ("banjoe doe", False),
        ("doe joe", False),
        ("joe a doe", False),
        ("joe", False),
        ("joe joe doe", True),
        ("Mary", True),
        ("Rosemary", False),
        ("山田太郎さんの写真", True),
        ("写真: 山田・太郎", True),
        ("山田花子", False),
        ("这是Joe Doe在北京", True),
        ("김철수가 웃는다", True),
        ("", False),
    ],
)
def test_captions_that_name_someone(caption, found):
    index = NameIndex(["Joe Doe", "Mary", "山田 太郎", "김철수", ""])
    assert index.names_anyone(caption) is found
    assert pickle.loads(pickle.dumps(index)).names_anyone(caption) is found


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Conan O&#39;Brien at a gala", True),
        ("Conan O&amp;#39;Brien", True),
        ("Conan O&rsquo;Brien", True),
        ("Conan&nbsp;O'Brien", True),
        ("Jos&eacute; Roe", True),
        ("JosÃ© Roe", True),
        ("Jos&Atilde;&copy; Roe", True),
        ("Simon &amp; Garfunkel", True),
        ("Conan &lt; O'Brien", True),
        ("Conan &amp; Zoe O'Brien", False),
        ("Ein Mädchen läuft über die Straße", False),
    ],
)
def test_who_is_named_as_a_tokenizer_mends_a_caption_is_named(caption, found):
    assert (
        NameIndex(["Conan O'Brien", "José Roe", "Simon & Garfunkel"]).names_anyone(caption) is found
    )


def test_an_index_of_nobody_finds_nobody():
    assert not NameIndex([]).names_anyone("a photo of Joe Doe")


def test_words_that_begin_many_names_name_no_one():
    index = NameIndex(f"{('rose', 'will', 'mark', 'john')[i % 4]} surname{i}" for i in range(5000))
    captions = [f"A photo of Mark {i} who will sit by a rose in town" for i in range(10_000)]
    assert not any(map(index.names_anyone, captions))


def test_a_file_of_names_is_read_without_mark_blank_lines_and_odd_spaces(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffJoe  Doe\r\n\n José\tRoe \n...\n".encode())
    assert read_names(path) == ["Joe Doe", "José Roe"]
    path.write_bytes("José Roe".encode("latin-1"))
    with pytest.raises(ValueError, match=f"names {path} is not UTF-8; save it as UTF-8"):
        read_names(path)
