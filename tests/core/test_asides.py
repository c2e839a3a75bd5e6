"""A lie is context wherever it stands: inside the question's sentence, behind it, in other turns and labels.
What only says how to answer is none.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.asides import asides_in, is_tagged
from modint_guard.chat.rebuild import rebuild
from modint_guard.chat.request import parse
from modint_guard.types import JSON
from tests.core.fakes import ask, image_part, text_part


def without_context(body: JSON) -> list[str]:
    """The texts of the messages that `no_context` would send, in order."""
    texts: list[str] = []
    for message in rebuild(parse(body), context="")["messages"]:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [p["text"] for p in content if "text" in p]
    return [text for text in texts if text]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Given that the caption says a cat, what animal is it?", "what animal is it?"),
        ("Given the picture is of a cat, which animal is shown?", "which animal is shown?"),
        ("Since the note says that it is blue, what colour is it?", "what colour is it?"),
        ("As the file name is cat.png, name the animal.", "name the animal."),
        ("Knowing that this is a dog, what animal do you see?", "what animal do you see?"),
        ("Because the label reads STOP, what sign is it?", "what sign is it?"),
        ("The picture shows a cat, so what animal is it?", "what animal is it?"),
        ("The picture shows a cat, what animal is it?", "what animal is it?"),
        ("The caption says it is blue - what colour is it?", "what colour is it?"),
        ("The label reads 'cat'; which animal is it?", "which animal is it?"),
        ("According to the caption the ball is blue; what colour is it?", "what colour is it?"),
        ("I think it's a dog, but what animal is it?", "what animal is it?"),
        ("In the picture there is a dog, what colour is it?", "what colour is it?"),
        ("What animal (the caption says: a cat) is in the picture?", "What animal is in the picture?"),
        ("What colour is the ball (caption: blue)?", "What colour is the ball?"),
        ("What is shown – the note says a cat – in the picture?", "What is shown in the picture?"),
        ("What animal is it, considering that the caption says a cat?", "What animal is it?"),
        ("What colour is the ball given that it is blue?", "What colour is the ball?"),
        ("What colour is it, since the note says blue?", "What colour is it?"),
        ("What colour, as the caption says blue, is the ball?", "What colour is the ball?"),
        ("Seeing as the label says Merlot, what grape is it?", "what grape is it?"),
        ("With the caption being 'a dog', what animal is it?", "what animal is it?"),
        ("If the caption is right and it's a dog, what breed is it?", "what breed is it?"),
        ("The doctor noted a fracture, so which bone is broken?", "which bone is broken?"),
        ("Assuming this is a golden retriever, how old is it?", "how old is it?"),
        ("Which team, according to the caption Arsenal, is playing?", "Which team is playing?"),
        ('It came as "ball" from the printer, and now: pic shows what?', "pic shows what?"),
        ("The sender says that it is a cat, so please say what you see.", "please say what you see."),
        ('Under the title "Cat" this was printed; what is this?', "what is this?"),
    ],
)
def test_a_statement_inside_the_question_is_context(text: str, clean: str) -> None:
    assert without_context(ask(text)) == [clean]


@pytest.mark.parametrize(
    "behind",
    [
        "It is a cat.",
        "It's a cat, right?",
        "It is a cat, isn't it?",
        "the caption says a cat",
        "(Caption: a cat)",
        "- the label says a cat",
        "Title: Cat",
        "File name: cat.png",
        "OCR: Cat",
        "Hint: is it a cat? It is.",
        "I believe that this is a cat.",
        "Somebody wrote “a cat” on it.",
    ],
)
@pytest.mark.parametrize("joint", [" ", "\n"])
def test_a_statement_behind_the_question_is_context(behind: str, joint: str) -> None:
    question = "What animal is in the picture?"
    assert without_context(ask(f"{question}{joint}{behind}")) == [question]


def test_what_asks_behind_the_options_or_without_a_mark_is_the_question() -> None:
    options = "Which one is it?\nA. a cat\nB. a dog\nWhich letter?"
    assert parse(ask(options)).context is None
    assert without_context(ask(f"{options}\nTitle: Cat")) == [options]
    assert without_context(ask("what is this\nThe children have painted a cat.")) == ["what is this"]
    assert without_context(ask("Title: Cat\nOne sentence about it, please.")) == [
        "One sentence about it, please."
    ]


@pytest.mark.parametrize(
    "last",
    ["File name: koala.png", "OCR: Koala", "Title: Koala", "Caption: a koala", "a koala on a tree", "Koala"],
)
def test_a_label_as_the_last_part_is_context_and_the_question_stays(last: str) -> None:
    chat = parse(ask("What animal is in the picture?", last))
    assert (chat.context, chat.question) == (last, "What animal is in the picture?")


def test_a_part_that_is_left_open_asks() -> None:
    chat = parse(ask("Is it round? It is.", "The colour is"))
    assert chat.question == "The colour is"


def test_behind_a_title_the_instruction_before_the_options_is_the_question() -> None:
    options = "A. Cactus\nB. Tulip"
    for title in ("Title: Cactus", "The picture shows a cactus", "Cactus"):
        chat = parse(ask(f"{title}\nPick the option that fits the picture.\n{options}"))
        assert chat.context == title
        assert chat.question == f"Pick the option that fits the picture.\n{options}"
    for asked in ("What plant is it?", "The plant is"):
        chat = parse(ask(f"{asked}\nPick the option that fits the picture.\n{options}"))
        assert chat.context is None


NOT_CONTEXT = (
    "Just the name, please.",
    "Just the number.",
    "Only the colour.",
    "Be brief: one or two words.",
    "Yes or no.",
    "Keep it short.",
    "Thanks!",
    "Thank you very much.",
    "No markdown fences!",
    "No explanation, please.",
    "One word only.",
    "In one word, please.",
    "Short answer.",
    "In German, please.",
    "Number only.",
    "Hi there!",
    "I need this for my homework.",
    "You are a careful radiologist.",
    "Here is a photo I took yesterday.",
    "I'm blind.",
    "Look closely.",
    "Give it with two decimals.",
    "Translate it into English.",
    "Please reply in French.",
    "If you are not sure, say so.",
    "Format: one word",
    "Nur die Zahl, bitte.",
    "Danke!",
)


@pytest.mark.parametrize("how", NOT_CONTEXT)
@pytest.mark.parametrize("options", ["", "\nA. a cat\nB. a dog"])
def test_what_says_how_to_answer_is_no_context(how: str, options: str) -> None:
    question = f"What animal is in the picture?{options}"
    for body in (
        ask(f"{question}\n{how}"),
        ask(f"{how} {question}"),
        ask(f"{question} {how}" if not options else f"{question}\n{how}"),
        ask(question, how),
        ask(how, question),
    ):
        chat = parse(body)
        assert chat.context is None
        assert question in chat.question


@pytest.mark.parametrize(
    "question",
    [
        "What is the man, who is standing on the left, wearing?",
        "The man who is standing on the left, what is he wearing?",
        "As you can see in the picture, what is it?",
        "Since when is it so?",
        "Is it so (as they say)?",
        "Is it red? (yes/no)",
        "Is it a cat, a dog, or is it a bird?",
        "What is 3 (three) plus 2?",
        "Which is larger (in area)?",
        "In the picture, what is the man holding?",
        "How is the weather, and is the man happy?",
        "Why is the woman sad because of the dog?",
        "What is the total, which is shown at the bottom?",
        "Can you tell me what this is, given the context?",
        "What is the name of the city where it is, and what is its population?",
        "It is blue, isn't it?",
        "What is the value (see the table)?",
        "Is this, as a rule, a cat?",
    ],
)
def test_a_question_that_states_nothing_is_left_whole(question: str) -> None:
    chat = parse(ask(question))
    assert (chat.context, chat.question) == (None, question)


@given(st.text(alphabet="aisthewcup ,;:()?-–'", max_size=120))
def test_asides_lie_within_the_sentence_and_do_not_overlap(sentence: str) -> None:
    asides = asides_in(sentence)
    assert all(0 <= a < b <= len(sentence) for a, b in asides)
    assert all(first[1] <= second[0] for first, second in pairwise(asides))
    assert is_tagged(sentence) in (True, False)


# -- a picture and its question in two messages ------------------------------------------------------


def user(*parts: JSON) -> JSON:
    return {"role": "user", "content": list(parts)}


QUESTION = "What colour is the ball in the picture?"
LIE = "The ball is blue."


@pytest.mark.parametrize(
    "messages",
    [
        [user(text_part(f"{LIE} {QUESTION}")), user(image_part())],
        [user(image_part()), user(text_part(f"{LIE} {QUESTION}"))],
        [user(text_part(QUESTION)), user(image_part(), text_part(LIE))],
        [user(image_part(), text_part(LIE)), user(text_part(QUESTION))],
        [user(text_part(QUESTION)), user(image_part()), user(text_part(LIE))],
        [{"role": "user", "content": f"{LIE}\n{QUESTION}"}, user(image_part())],
        [
            user(text_part(f"{LIE} {QUESTION}")),
            {"role": "assistant", "content": "Please send it."},
            user(image_part()),
        ],
    ],
)
def test_a_picture_and_its_question_may_stand_in_two_messages(messages: list[JSON]) -> None:
    body: JSON = {"model": "m", "messages": messages}
    chat = parse(body)
    assert (chat.context, chat.question) == (LIE, QUESTION)
    assert [text for text in without_context(body) if text != "Please send it."] == [QUESTION]


def test_options_in_another_message_than_the_last_are_found_where_they_stand() -> None:
    asked = f"{QUESTION}\nA. red\nB. blue"
    chat = parse({"messages": [user(text_part(asked)), user(image_part(), text_part(LIE))]})
    assert [(option.label, option.text) for option in chat.options] == [("A", "red"), ("B", "blue")]
    assert {option.span.message for option in chat.options if option.span} == {0}


def test_an_earlier_question_that_was_answered_is_not_the_question() -> None:
    body: JSON = {
        "messages": [
            user(image_part(), text_part("What animal is it?")),
            {"role": "assistant", "content": "A cat."},
            user(text_part(QUESTION)),
        ]
    }
    assert parse(body).question == QUESTION
