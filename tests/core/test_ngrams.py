"""Hashes of pieces of a text."""

import numpy as np
import pytest

from modint_guard.chat.ngrams import BUCKETS, MAX_CHARACTERS, buckets, hashed, words_of


def hashes_of_words(text: str) -> list[int]:
    return [int(value) for value in hashed(text).hashes(*words_of(text))]


def test_a_piece_has_the_same_hash_wherever_it_stands() -> None:
    first, _, third = hashes_of_words("ball and ball")
    assert first == third
    assert hashes_of_words("a red ball")[2] == first


def test_case_and_digits_do_not_matter_but_letters_do() -> None:
    assert hashes_of_words("İstanbul 1987") == hashes_of_words("iSTANBUL 2025")
    assert len(set(hashes_of_words("ball bell lab bal"))) == 4


def test_character_ngrams_stay_within_their_group() -> None:
    text = "abc de"
    group = np.array([0, 0, 0, -1, 1, 1])
    rows, found = hashed(text).ngrams(2, group)
    assert rows.tolist() == [0, 0, 1]
    expected = hashed(text).hashes(np.array([0, 1, 4]), np.array([2, 3, 6]))
    assert found.tolist() == expected.tolist()


def test_buckets_lie_in_the_table_and_differ_by_salt() -> None:
    hashes = hashed("one two three four five").hashes(*words_of("one two three four five"))
    first, second = buckets(hashes, 1), buckets(hashes, 2)
    assert ((first >= 0) & (first < BUCKETS)).all()
    assert (first != second).any()


def test_lone_surrogates_and_empty_texts_are_hashed() -> None:
    assert len(hashed("\ud800x").sums) == 3
    assert hashed("").ngrams(3, np.zeros(0, np.int64))[0].tolist() == []


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 24000 characters, this one has 24001"):
        hashed("a" * (MAX_CHARACTERS + 1))
