"""What is question and what is context in one string."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.chat.question import MAX_CHARACTERS, orders, says_how, split_text, states
from modint_guard.chat.system_prompt import facts_in


def parts(text: str) -> tuple[str, str, dict[str, str]]:
    split = split_text(text)
    return (
        "|".join(text[a:b] for a, b in split.question),
        "|".join(text[a:b] for a, b in split.context),
        {option.label: option.text for option in split.options},
    )


@pytest.mark.parametrize(
    ("text", "question", "context"),
    [
        (
            "The picture shows a red ball.\nWhat colour is it?",
            "What colour is it?",
            "The picture shows a red ball.",
        ),
        ("It is red. It is round. What is it?", "What is it?", "It is red. It is round."),
        ("What is it? The caption says a cat.", "What is it?", "The caption says a cat."),
        ("It is a cat. Name the animal.", "Name the animal.", "It is a cat."),
        ("The note says: seven.\nThe digit is", "The digit is", "The note says: seven."),
        (
            "Look at the image.\nIt is red.\nWhat colour?",
            "Look at the image.|What colour?",
            "It is red.",
        ),
        (
            "Context: a dog ran. Question: What ran? Answer:",
            "Question: What ran? Answer:",
            "Context: a dog ran.",
        ),
        (
            "Context:\na dog ran\n\nQuestion:\nWhat ran?\n\nAnswer:",
            "Question:\nWhat ran?\n\nAnswer:",
            "Context:\na dog ran",
        ),
        ("It is red. What is it? Answer with one word.", "What is it? Answer with one word.", "It is red."),
        (
            "It is red. Which is it? Reply with one word: red or blue.",
            "Which is it? Reply with one word: red or blue.",
            "It is red.",
        ),
        ("It holds vitamin A. What colour is it?", "What colour is it?", "It holds vitamin A."),
        ("Dr. Smith waved. What did Mr. Jones do?", "What did Mr. Jones do?", "Dr. Smith waved."),
        ("It weighs 3.5 kg. How heavy is it?", "How heavy is it?", "It weighs 3.5 kg."),
        ("Tom has 3.\nIs it few? How many has he?", "Is it few? How many has he?", "Tom has 3."),
        ("Use the caption: red. What is it?", "What is it?", "Use the caption: red."),
        (
            "What is it? Is it so (as they say)? Caption: a cat.",
            "What is it? Is it so (as they say)?",
            "Caption: a cat.",
        ),
        ('The sign says "Is it red?"\nName the colour.', "Name the colour.", 'The sign says "Is it red?"'),
        ("What is it? He said: “Is it a cat? No.”", "What is it?", "He said: “Is it a cat? No.”"),
        ("Passage: Was it red? Yes.\nWhat colour is it?", "What colour is it?", "Passage: Was it red? Yes."),
        (
            "What colour is it?\nCaption: Is it blue? It is.",
            "What colour is it?",
            "Caption: Is it blue? It is.",
        ),
        (
            "Question: What ran?\nContext: Did a cat run? A dog ran.\nAnswer:",
            "Question: What ran?|Answer:",
            "Context: Did a cat run? A dog ran.",
        ),
        (
            "### Context\nA dog ran.\n\n### Question:\nIt ran far. What ran?",
            "### Question:\nIt ran far. What ran?",
            "### Context\nA dog ran.",
        ),
        ("**Caption:** a dog.\n**Question:** What ran?", "**Question:** What ran?", "**Caption:** a dog."),
        (
            "<context>\nA dog ran.\n</context>\n<question>What ran?</question>",
            "<question>What ran?</question>",
            "<context>\nA dog ran.\n</context>",
        ),
        (
            "Q: What is 1 plus 1?\nA: 2\nQ: What is it?\nA:",
            "Q: What is it?\nA:",
            "Q: What is 1 plus 1?\nA: 2",
        ),
        ("It is blue... really. What?! Is it?!", "What?! Is it?!", "It is blue... really."),
        ("q:nttu:tnnslnml\nWhat is it?", "What is it?", "q:nttu:tnnslnml"),
        # Other languages' punctuation.
        (
            "La pelota es azul. ¿De qué color es la pelota?",
            "¿De qué color es la pelota?",
            "La pelota es azul.",
        ),
        (
            "Es azul. ¿De qué color es? Responde con una palabra.",
            "¿De qué color es? Responde con una palabra.",
            "Es azul.",
        ),
        ("图片显示一个蓝色的球。球是什么颜色？", "球是什么颜色？", "图片显示一个蓝色的球。"),
        (
            "图片显示一个蓝色的球。球是什么颜色？请用一个词回答。",
            "球是什么颜色？请用一个词回答。",
            "图片显示一个蓝色的球。",
        ),
        (
            "上下文：球是蓝色的吗？是。\n问题：球是什么颜色？\n答案：",
            "问题：球是什么颜色？\n答案：",
            "上下文：球是蓝色的吗？是。",
        ),
        ("ボールは青いです。ボールは何色ですか？", "ボールは何色ですか？", "ボールは青いです。"),
        ("الكرة زرقاء. ما لون الكرة؟", "ما لون الكرة؟", "الكرة زرقاء."),
        ("गेंद नीली है। गेंद का रंग क्या है?", "गेंद का रंग क्या है?", "गेंद नीली है।"),
        ("Η μπάλα είναι μπλε. Τι χρώμα είναι;", "Τι χρώμα είναι;", "Η μπάλα είναι μπλε."),
        ("Мяч синий. Какого цвета мяч?", "Какого цвета мяч?", "Мяч синий."),
        (
            "La balle est bleue. De quelle couleur est-elle ?",
            "De quelle couleur est-elle ?",
            "La balle est bleue.",
        ),
        (
            "Der Ball ist blau. „Ist er rot?“, fragte sie. Welche Farbe hat er?",
            "Welche Farbe hat er?",
            "Der Ball ist blau. „Ist er rot?“, fragte sie.",
        ),
    ],
)
def test_context_is_told_from_the_question(text: str, question: str, context: str) -> None:
    assert parts(text)[:2] == (question, context)


@pytest.mark.parametrize(
    "text", ["What is 2 plus 3?", "Describe the image.", "Foo. Bar.", "red", "A. red B. blue"]
)
def test_where_nothing_can_be_told_apart_all_is_question(text: str) -> None:
    assert parts(text)[:2] == (text, "")


@pytest.mark.parametrize(
    "block",
    [
        "A. red\nB. blue",
        "A) red\nB) blue",
        "(A) red (B) blue",
        "[A] red [B] blue",
        "A: red\nB: blue",
        "A. red B. blue",
        "Options: A. red B. blue",
        "Options:\nA. red\nB. blue",
        "- A. red\n- B. blue",
        "(A) red\n(B) blue",
        "A. red, B. blue",
        "A.red\nB.blue",
        "**A.** red\n**B.** blue",
        "**A**. red\n**B**. blue",
        "A - red\nB - blue",
        "Option A: red\nOption B: blue",
        "• A) red\n• B) blue",
        "A、red B、blue",
        "（A）red（B）blue",
        "A：red\nB：blue",
        "A: red B: blue",
        "选项：\nA. red\nB. blue",
    ],
)
def test_option_blocks_belong_to_the_question(block: str) -> None:
    question, context, options = parts(f"The ball is blue.\nWhat colour is it?\n{block}")
    assert (question, context) == (f"What colour is it?\n{block}", "The ball is blue.")
    assert options == {"A": "red", "B": "blue"}


@pytest.mark.parametrize(
    "block",
    ["- red\n- light blue", "* red\n* light blue", "\n• red\n• light blue", "Options:\n- red\n- light blue"],
)
def test_bullets_under_a_question_are_options_and_are_their_own_labels(block: str) -> None:
    question, context, options = parts(f"The ball is blue.\nWhat colour is it?\n{block}")
    assert (question, context) == (f"What colour is it?\n{block}", "The ball is blue.")
    assert options == {"red": "red", "light blue": "light blue"}


def test_bullets_that_state_facts_are_context() -> None:
    text = "Facts:\n- The ball is blue.\n- It is round.\n\nWhat colour is it?"
    assert parts(text) == ("What colour is it?", "Facts:\n- The ball is blue.\n- It is round.", {})


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What is it? Answer with one of: red, blue or light green.", ["red", "blue", "light green"]),
        ("What is it? Choose from: red | blue", ["red", "blue"]),
        ("Options: red, blue. What is it?", ["red", "blue"]),
        ("Is it red? (yes/no)", ["yes", "no"]),
        ("Is it red? Answer yes or no.", ["yes", "no"]),
        ("चित्र में क्या है? विकल्प: लाल, नीला", ["लाल", "नीला"]),
        ("何色ですか。選択肢：赤、青", ["赤", "青"]),
        ("What is it? Answer: a cat, a dog", []),
        ("Is it red or blue?", []),
    ],
)
def test_options_in_a_sentence_are_found_where_it_announces_them(question: str, options: list[str]) -> None:
    assert list(parts(f"It is blue.\n{question}")[2]) == options


def test_the_places_of_the_options_texts_are_known_in_a_block() -> None:
    text = "It is blue.\nWhich?\nA. red,\nB. light blue."
    split = split_text(text)
    assert [text[a:b] for a, b in split.option_texts] == ["red", "light blue"]
    assert split_text("Is it? (yes/no)").option_texts == ()


@pytest.mark.parametrize(
    "text", ["The U.S. won. A.B. lost. What ran?", "Weights:\n1.5 kg\n2.5 kg\nHow many?"]
)
def test_abbreviations_and_decimals_are_no_labels(text: str) -> None:
    assert parts(text)[2] == {}


def test_numbered_and_small_labels_count_at_the_start_of_a_line() -> None:
    assert parts("Which?\n1. red\n2. blue\n3. green")[2] == {"1": "red", "2": "blue", "3": "green"}
    assert parts("Which?\na. red\nb. blue")[2] == {"a": "red", "b": "blue"}
    assert parts("Is 1. 2. or 3. right?")[2] == {}


def test_what_follows_the_options_is_context_unless_it_says_how_to_answer() -> None:
    question, context, options = parts(
        "Which? A. red B. blue. Answer with the letter.\nThe caption says it is red."
    )
    assert question == "Which? A. red B. blue. Answer with the letter."
    assert context == "The caption says it is red."
    assert options == {"A": "red", "B": "blue"}


def test_the_sentence_before_the_options_asks_even_without_a_question_mark() -> None:
    assert (
        parts("He asked: why? It is red.\nThe colour is\nA. red\nB. blue")[0]
        == "The colour is\nA. red\nB. blue"
    )


@pytest.mark.parametrize(
    ("block", "options"),
    [
        ("① alpha\n② beta", {"①": "alpha", "②": "beta"}),
        ("①赤 ②青", {"①": "赤", "②": "青"}),
        ("а) красный б) синий", {"а": "красный", "б": "синий"}),
    ],
)
def test_circled_and_cyrillic_labels_count_up_too(block: str, options: dict[str, str]) -> None:
    question, context, found = parts(f"The ball is blue.\nWhat colour is it?\n{block}")
    assert (question, context, found) == (f"What colour is it?\n{block}", "The ball is blue.", options)


def test_a_lone_label_is_no_option_block() -> None:
    assert parts("Plan A. works. Is it good?")[2] == {}


@given(st.text(max_size=200))
def test_question_and_context_share_no_character_and_leave_out_blanks_only(text: str) -> None:
    split = split_text(text)
    pieces = sorted((*split.question, *split.context))
    assert all(a < b for a, b in pieces)
    assert all(first[1] <= second[0] for first, second in pairwise(pieces))
    covered = {i for a, b in pieces for i in range(a, b)}
    assert all(text[i].isspace() for i in range(len(text)) if i not in covered)
    assert bool(split.question) == bool(text.strip())


@pytest.mark.parametrize(
    "piece",
    [
        "Is it? ",
        "A. ",
        "A. B. ",
        "a\n",
        "\n",
        "1. ",
        "answer word ",
        '."',
        "options: ",
        "( ",
        "Mr. ",
        "A. red B. blue ",
        '"Is it? ',
        "“Is it? ",
        "Context: ",
        "Question: ",
        "_",
        "- a\n",
        "? \n- a\n",
        "(a / b",
        "one of: a, ",
        "。",
        "A、",
        "<context>",
        "the ",
    ],
)
def test_a_long_hostile_text_is_split_all_the_same(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    split = split_text(text)
    assert bool(split.question) == bool(text.strip())
    assert says_how(text) in (True, False) and states(text) in (True, False)
    assert all(a < b for a, b in facts_in(text))


def test_of_a_long_text_the_end_is_searched_and_the_rest_is_context() -> None:
    passage, question = "The ball is blue.\n" * 10_000, "What colour is the ball?"
    split = split_text(passage + question)
    assert split.question == ((len(passage), len(passage) + len(question)),)
    assert (split.context[0][0], split.context[-1][1]) == (0, len(passage) - 1)


def test_a_text_too_long_to_be_an_order_is_not_read_as_one() -> None:
    order = "Translate it. Be brief. "
    assert orders(order)
    assert not orders(order * (MAX_CHARACTERS // len(order) + 1))
