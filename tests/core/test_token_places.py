"""Where the tokens of an answer stand in its text, characters of several bytes included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.reply import answer_positions, reply_of
from modint_guard.chat.token_places import bytes_of, holding, places_of
from modint_guard.types import Position
from tests.core.fakes import completion


def tokens(*pieces: bytes) -> tuple[Position, ...]:
    """Tokens as OpenAI reports them: the bytes are the truth, the text of a part of a character is not."""
    return tuple(Position(piece.decode(errors="backslashreplace"), -0.1, {}, raw=piece) for piece in pieces)


def test_tokens_of_plain_text_stand_where_they_are_written() -> None:
    positions = tuple(Position(token, -0.1, {}) for token in ("It", " is", " red", "."))
    assert places_of(positions, "It is red.") == [(0, 2), (2, 5), (5, 9), (9, 10)]


def test_tokens_that_share_a_character_both_have_a_part_in_it() -> None:
    smile = "🙂".encode()
    positions = tokens(b"a ", smile[:1], smile[1:3], smile[3:] + b" b")
    assert places_of(positions, "a 🙂 b") == [(0, 2), (2, 3), (2, 3), (2, 5)]


def test_a_token_that_vllm_gives_no_text_stands_before_its_character() -> None:
    positions = tuple(Position(token, -0.1, {}, raw=token.encode()) for token in ("a", "", "é", "!"))
    assert places_of(positions, "aé!") == [(0, 1), (1, 1), (1, 2), (2, 3)]


def test_white_space_around_the_answer_may_differ() -> None:
    positions = tuple(Position(token, -0.1, {}) for token in (" ", "red", "\n"))
    assert places_of(positions, "red") == [(0, 0), (0, 3), (3, 3)]
    assert places_of(positions[1:2], "  red ") == [(2, 5)]


def test_other_tokens_than_those_of_the_text_stand_nowhere() -> None:
    assert places_of(tokens(b"blue"), "red") is None


@given(st.text(min_size=1, max_size=30).filter(str.strip), st.data())
def test_however_the_bytes_are_cut_the_tokens_cover_the_text_in_order(text: str, data: st.DataObject) -> None:
    spelled = text.encode(errors="replace")
    text = spelled.decode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(spelled) - 1)), max_size=8)))
    pieces = [spelled[a:b] for a, b in zip([0, *cuts], [*cuts, len(spelled)], strict=True)]
    places = places_of(tokens(*pieces), text)
    assert places is not None
    covered = {at for start, end in places for at in range(start, end)}
    start = len(text) - len(text.lstrip())
    assert covered == set(range(start, start + len(text.strip())))
    assert all(0 <= a <= b <= len(text) for a, b in places) and places == sorted(places)


def test_a_token_belongs_to_the_first_piece_that_it_has_a_part_in() -> None:
    pieces = [(0, 2), (3, 6)]
    assert [holding(pieces, place) for place in ((0, 1), (1, 4), (2, 3), (2, 4), (3, 3), (6, 7))] == [
        0,
        0,
        None,
        1,
        1,
        None,
    ]


@pytest.mark.parametrize("listed", [[300], ["a"], "red", None])
def test_bytes_that_are_none_are_those_of_the_text(listed: object) -> None:
    said = completion("red", [{"red": 0.9}])
    said["choices"][0]["logprobs"]["content"][0]["bytes"] = listed
    (position,) = reply_of(said).positions
    assert position.raw is None and bytes_of(position) == b"red"


def test_an_answer_whose_tokens_are_parts_of_characters_is_known_by_their_bytes() -> None:
    said = completion("né", [{"n": 0.9}, {"\\xc3": 0.9}, {"\\xa9": 0.9}])
    entries = said["choices"][0]["logprobs"]["content"]
    for entry, piece in zip(entries, (b"n", b"\xc3", b"\xa9"), strict=True):
        entry["bytes"] = list(piece)
    answer = reply_of(said)
    assert [position.raw for position in answer_positions(answer)] == [b"n", b"\xc3", b"\xa9"]
    assert places_of(answer_positions(answer), answer.text) == [(0, 1), (1, 2), (1, 2)]
