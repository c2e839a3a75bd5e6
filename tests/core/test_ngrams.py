"""Hashes of pieces of a text."""

import numpy as np
import pytest

from modint_guard.chat.ngrams import BUCKETS, MAX_CHARACTERS, buckets, text_hashes


def words(text: str) -> list[int]:
    return [int(value) for value in text_hashes(text).words]


def test_a_piece_has_the_same_hash_wherever_it_stands() -> None:
    first, _, third = words("ball and ball")
    assert first == third
    assert words("a red ball")[2] == first


def test_case_and_digits_do_not_matter_but_letters_do() -> None:
    assert words("İstanbul 1987") == words("iSTANBUL 2025")
    assert len(set(words("ball bell lab bal"))) == 4


def test_a_text_has_its_ngrams_words_and_pairs() -> None:
    hashes = text_hashes("a red ball")
    assert [len(grams) for grams in hashes.grams] == [8, 7, 6]
    assert hashes.lengths.tolist() == [1, 3, 4]
    assert len(hashes.pairs) == 2
    assert hashes.pairs[1] == text_hashes("red ball").pairs[0]


def test_buckets_lie_in_the_table_and_differ_by_salt() -> None:
    hashes = text_hashes("one two three four five").words
    first, second = buckets(hashes, 1), buckets(hashes, 2)
    assert ((first >= 0) & (first < BUCKETS)).all()
    assert (first != second).any()


def test_lone_surrogates_and_empty_texts_are_hashed() -> None:
    assert len(text_hashes("\ud800xy").grams[0]) == 1
    empty = text_hashes("")
    assert [len(grams) for grams in empty.grams] == [0, 0, 0]
    assert len(empty.words) == len(empty.pairs) == 0 and empty.words.dtype == np.uint64


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 8000 characters, this one has 8001"):
        text_hashes("a" * (MAX_CHARACTERS + 1))
