"""Which modality ought to decide: who says so first, and what the classifier says of small real requests."""

import pytest

from modint_guard.chat.concepts import concepts_in
from modint_guard.chat.linear import shipped_reader
from modint_guard.chat.relevance import BELIEVED_FROM, LABELS, believed, decide, label_probabilities
from modint_guard.chat.request import parse
from modint_guard.types import JSON, ModintOptions, Relevant
from tests.core.fakes import ask


def likeliest(body: JSON) -> str:
    found = label_probabilities(parse(body), shipped_reader().relevance)
    assert tuple(found) == LABELS and abs(sum(found.values()) - 1) < 1e-9
    return max(found, key=lambda label: found[label])


def test_the_request_comes_first_and_then_the_classifier() -> None:
    chat = parse(ask("What animal is in this picture?"))
    said = decide(chat)
    assert (said.relevant, said.source) == (Relevant.IMAGE, "classifier")
    assert said.probability is not None and said.probability >= BELIEVED_FROM["image"]
    named = decide(chat, ModintOptions(relevant=Relevant.TEXT, relevant_source="header"))
    assert (named.relevant, named.source, named.probability) == (Relevant.TEXT, "header", None)
    assert decide(chat, ModintOptions(relevant=Relevant.BOTH)).source == "request"


@pytest.mark.parametrize(
    "question",
    [
        "What animal is in this picture?",
        "What is the total on this receipt?",
        "What is the date mentioned in the letter?",
        "Was steht auf dem Schild?",
        "Quel est le total de ce ticket ?",
        "¿Qué dice el letrero de la foto?",
        "Quante persone si vedono nella foto?",
        "Какая сумма указана в чеке?",
        "这张照片里有几个人？",
        "この写真には何人写っていますか?",
        "ما المبلغ الظاهر في هذا الإيصال؟",
    ],
)
def test_a_question_alone_about_what_can_be_seen_is_one_of_the_picture(question: str) -> None:
    assert likeliest(ask(question)) == "image"


@pytest.mark.parametrize(
    ("context", "question"),
    [
        (
            "The ferry leaves Tarn at 9:15 and 14:40. On Sundays there is no morning ferry.",
            "According to the passage, when does the ferry leave on Sundays?",
        ),
        (
            "Laut Protokoll wurde die Sitzung von Frau Adler geleitet, Herr Brandt fehlte entschuldigt.",
            "Wer hat laut dem Text die Sitzung geleitet?",
        ),
    ],
)
def test_what_the_passage_answers_is_one_of_the_text(context: str, question: str) -> None:
    assert likeliest(ask(context, question)) == "text"


@pytest.mark.parametrize(
    "question",
    [
        "Write a short poem about autumn.",
        "Wer hat das Telefon erfunden?",
        "¿Cuál es la capital de Perú?",
    ],
)
def test_knowledge_and_small_talk_are_decided_by_neither(question: str) -> None:
    assert likeliest(ask(question)) == "neither"
    assert decide(parse(ask(question))).relevant in (Relevant.UNKNOWN, Relevant.IMAGE)


@pytest.mark.parametrize("question", ["What does the article say about rain?", "What is in the note?"])
def test_text_cannot_decide_where_nothing_but_the_question_is_text(question: str) -> None:
    chat = parse(ask(question))
    assert chat.context is None
    assert label_probabilities(chat, shipped_reader().relevance)["text"] == 0.0


def test_a_sum_within_the_question_can_be_one_of_the_text() -> None:
    chat = parse(ask("What is 2 plus 3?"))
    assert label_probabilities(chat, shipped_reader().relevance)["text"] > 0.0


@pytest.mark.parametrize(
    ("probabilities", "label"),
    [
        ({"image": 0.96, "text": 0.02, "both": 0.01, "neither": 0.01}, "image"),
        ({"image": 0.5, "text": 0.3, "both": 0.1, "neither": 0.1}, None),
        ({"image": 0.05, "text": 0.9, "both": 0.04, "neither": 0.01}, None),
        ({"image": 0.0, "text": 0.985, "both": 0.01, "neither": 0.01}, "text"),
        ({"image": 0.2, "text": 0.1, "both": 0.7, "neither": 0.0}, "both"),
        ({"image": 0.0, "text": 0.0, "both": 0.0, "neither": 1.0}, None),
    ],
)
def test_a_label_is_believed_only_above_its_threshold(
    probabilities: dict[str, float], label: str | None
) -> None:
    assert believed(probabilities) == label


def test_concepts_are_the_same_in_many_languages() -> None:
    for words in ("the picture", "das Foto", "la imagen", "на фото", "这张照片", "写真", "الصورة", "사진"):
        assert "picture" in concepts_in(words)
    assert concepts_in("xyzzy") == []
