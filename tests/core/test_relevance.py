"""Which modality ought to decide: who says so first, and what the classifier says of small real requests."""

from typing import Any

import pytest

from modint_guard.chat.concepts import concepts_in
from modint_guard.chat.linear import shipped_classifier
from modint_guard.chat.named_modality import by_wording
from modint_guard.chat.relevance import LABELS, believed, decide, guess, label_probabilities
from modint_guard.chat.request import parse
from modint_guard.types import JSON, ModintOptions, Relevant
from tests.core.fakes import ask

LIMITS = (0.8, 0.9, 0.5, 1.0)


def probabilities(body: JSON) -> dict[str, float]:
    found = label_probabilities(parse(body), shipped_classifier().model)
    assert tuple(found) == LABELS and sum(found.values()) == pytest.approx(1.0)
    return found


def likeliest(body: JSON) -> str:
    found = probabilities(body)
    return max(found, key=lambda label: found[label])


def test_the_request_comes_first_then_the_question_and_then_the_classifier() -> None:
    named = decide(parse(ask("What animal is in this picture?")))
    assert (named.relevant, named.source, named.probability) == (Relevant.IMAGE, "rules", None)
    chat = parse(ask("Was steht auf dem Schild?"))
    said = decide(chat)
    assert (said.relevant, said.source) == (Relevant.IMAGE, "classifier")
    assert said.probability is not None and said.probability >= shipped_classifier().limits[0]
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
            "Der Zug fährt montags um 8.12 Uhr und samstags um 9.40 Uhr. Sonntags fährt kein Zug.",
            "Wann fährt laut dem Text am Samstag der Zug?",
        ),
        (
            "Le train part à 8 h 12 le lundi et à 9 h 40 le samedi. Il n'y a pas de train le dimanche.",
            "Selon le texte, à quelle heure part le train le samedi ?",
        ),
    ],
)
def test_what_the_passage_answers_is_one_of_the_text(context: str, question: str) -> None:
    assert likeliest(ask(context, question)) == "text"


@pytest.mark.parametrize(
    "question",
    ["Write a short poem about autumn.", "Wer hat das Telefon erfunden?", "¿Cuál es la capital de Perú?"],
)
def test_knowledge_and_small_talk_are_decided_by_neither(question: str) -> None:
    assert likeliest(ask(question)) == "neither"
    assert decide(parse(ask(question))).relevant is Relevant.UNKNOWN


@pytest.mark.parametrize(
    "question",
    [
        "What does the article say about rain?",
        "What is in the note?",
        "According to the document, who is the sender?",
        "What colour is the car?\nA. red\nB. blue\nAnswer with the letter only.",
    ],
)
def test_text_cannot_decide_where_nothing_but_the_question_is_text(question: str) -> None:
    assert parse(ask(question)).context is None
    assert probabilities(ask(question))["text"] == 0.0


def test_a_sum_within_the_question_can_be_one_of_the_text() -> None:
    assert probabilities(ask("What is 2 plus 3?"))["text"] > 0.0


def test_no_picture_decides_where_there_is_none() -> None:
    found = probabilities(
        {"model": "m", "messages": [{"role": "user", "content": "What is in the picture?"}]}
    )
    assert found["image"] == found["both"] == 0.0


@pytest.mark.parametrize(
    ("found", "label"),
    [
        ({"image": 0.96, "text": 0.02, "both": 0.01, "neither": 0.01}, "image"),
        ({"image": 0.5, "text": 0.3, "both": 0.1, "neither": 0.1}, None),
        ({"image": 0.05, "text": 0.89, "both": 0.05, "neither": 0.01}, None),
        ({"image": 0.0, "text": 0.9, "both": 0.09, "neither": 0.01}, "text"),
        ({"image": 0.2, "text": 0.1, "both": 0.7, "neither": 0.0}, "both"),
        ({"image": 0.0, "text": 0.0, "both": 0.0, "neither": 1.0}, None),
    ],
)
def test_a_label_is_believed_only_from_its_limit_on(found: dict[str, float], label: str | None) -> None:
    assert believed(found, LIMITS) == label


@pytest.mark.parametrize(
    ("context", "question", "relevant"),
    [
        ("The dice belongs to Omar, the lock to Mia.", "Who has the dice?", "unknown"),
        ("The dice belongs to Omar, the lock to Mia.", "Who has the dice in the picture?", "image"),
        ("A photo of a bridge at dawn.", "Which colour are the boats?", "image"),
    ],
)
def test_what_the_context_may_answer_is_not_guessed_to_be_one_of_the_picture(
    context: str, question: str, relevant: str
) -> None:
    sure = {"image": 0.97, "text": 0.01, "both": 0.01, "neither": 0.01}
    assert guess(parse(ask(context, question)), sure, LIMITS).relevant == relevant


def test_a_named_picture_counts_if_the_classifier_does_not_speak_against_it() -> None:
    chat = parse(ask("What animal is in this picture?"))
    for image, relevant in ((0.7, "image"), (0.69, "unknown")):
        doubtful = {"image": image, "text": 0.0, "both": 0.3, "neither": 0.7 - image}
        assert guess(chat, doubtful, (1.0, 1.0, 1.0, 1.0)).relevant == relevant


def test_in_figures_names_no_picture() -> None:
    assert by_wording("How many pages? In figures, please.", "Greta read 6 pages.") is None
    assert by_wording("How many people are in the figure?", None) is Relevant.IMAGE


def test_long_questions_contexts_and_prompts_are_read_at_their_ends() -> None:
    body: dict[str, Any] = ask("A. " * 5_000, "word " * 5_000 + "What is in the picture?")
    body["messages"].insert(0, {"role": "system", "content": "Be brief. " * 5_000})
    assert sum(probabilities(body).values()) == pytest.approx(1.0)


def test_concepts_are_the_same_in_many_languages() -> None:
    for words in ("the picture", "das Foto", "la imagen", "на фото", "这张照片", "写真", "الصورة", "사진"):
        assert "picture" in concepts_in(words)
    assert concepts_in("xyzzy") == []


@pytest.mark.parametrize(
    "question",
    [
        "What does the thing in the picture cost?",
        "Who owns what is shown in the photo?",
        "Where does the item in the image belong?",
        "Is the object you see on our list?",
        "Do text and picture agree?",
        "Look at the picture and the list: what does it cost?",
        "Is the thing in the picture what the label says?",
    ],
)
def test_a_text_is_needed_too_for_what_no_picture_shows_of_the_thing_in_it(question: str) -> None:
    assert by_wording(question, "Price list: kettle 12 euros, lamp 9 euros") is Relevant.BOTH


@pytest.mark.parametrize(
    "question", ["What is the thing in the picture?", "What colour is what you see in the image?"]
)
def test_what_a_picture_shows_of_the_thing_in_it_needs_no_text(question: str) -> None:
    assert by_wording(question, "Price list: kettle 12 euros, lamp 9 euros") is Relevant.IMAGE


@pytest.mark.parametrize(
    ("context", "relevant"),
    [
        ("The scan is badly faded. The label reads: fox", "both"),
        ("Hardly legible print. The label reads: fox", "both"),
        ("The label reads: fox", "image"),
    ],
)
def test_a_context_may_be_needed_beside_a_picture_that_it_says_is_poor(context: str, relevant: str) -> None:
    sure = {"image": 0.97, "text": 0.01, "both": 0.01, "neither": 0.01}
    for question in ("Which animal is in the picture?", "Which animal is this?"):
        assert guess(parse(ask(context, question)), sure, LIMITS).relevant == relevant


@pytest.mark.parametrize(
    ("image", "text", "both", "neither", "supposed"),
    [
        (0.1, 0.71, 0.1, 0.1, "text"),  # 0.81 that the picture does not matter
        (0.11, 0.7, 0.1, 0.09, "unknown"),
        (0.75, 0.1, 0.1, 0.05, "image"),
        (0.1, 0.3, 0.0, 0.6, "unknown"),  # neither matters
        (0.4, 0.4, 0.1, 0.1, "unknown"),
    ],
)
def test_one_modality_is_supposed_to_decide_if_the_other_very_likely_does_not_matter(
    image: float, text: float, both: float, neither: float, supposed: str
) -> None:
    probabilities = {"image": image, "text": text, "both": both, "neither": neither}
    found = guess(parse(ask("It is blue.", "Hm?")), probabilities, (1.0, 1.0, 1.0, 1.0))
    assert (found.relevant, found.supposed) == (Relevant.UNKNOWN, supposed)


def test_the_picture_is_not_supposed_to_decide_what_the_context_may_answer_or_may_have_to() -> None:
    probabilities = {"image": 0.85, "text": 0.05, "both": 0.05, "neither": 0.05}
    for context in ("The dice belongs to Omar.", "Hardly legible print. It reads: fox"):
        found = guess(parse(ask(context, "Who has the dice?")), probabilities, (0.9, 1.0, 1.0, 1.0))
        assert found.supposed is Relevant.UNKNOWN
