"""Readers: every format by a small file of its kind, and every row that is refused, with its place."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modint_guard.chat.images import png_data_url
from modint_guard.data import FORMATS, DataSet, check_length, problems, read_data, write_llava
from modint_guard.data.item import FAMILIES, FORMS, Family, Item, Turn, normalised, prompt, reply_for
from modint_guard.data.perturb import perturb
from modint_guard.errors import ConfigError, DataError
from tests.core.items import BLUE, BOTH, DIGIT, GREEN, LETTERED, RED, SUM

JSON = dict[str, Any]
COLOURS = "What colour is shown?\nA. red\nB. blue\nC. green"


def chat(*said: str) -> list[JSON]:
    """LLaVA's turns: human and gpt in turn."""
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]


def messages(*said: Any) -> list[JSON]:
    """OpenAI's turns: user and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


def written(folder: Path, *rows: Any, name: str = "mine.json") -> Path:
    """A JSON array with one row a line, and the pictures red.png and blue.png beside it."""
    RED.save(folder / "red.png")
    BLUE.save(folder / "blue.png")
    (folder / name).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", "utf-8")
    return folder / name


def one(folder: Path, row: JSON, **options: Any) -> Item:
    (item,) = read_data(written(folder, row), **options)
    return item


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        list(read_data(path, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def pixels(image: Image.Image | None) -> bytes | None:
    return None if image is None else image.tobytes()


# -- LLaVA and ShareGPT


def test_a_llava_row_is_a_question_with_its_picture_and_answer(tmp_path: Path) -> None:
    row = {"id": 7, "image": "red.png", "conversations": chat("<image>\nWhat is it?", "A red card.")}
    data = read_data(written(tmp_path, row))
    assert data.format == "llava"
    (item,) = data
    assert item == Item(
        id="7",
        family="unknown",
        task="",
        form="free",
        question="What is it?",
        answer="A red card.",
        source="red.png",
    )
    assert pixels(item.image) == RED.tobytes()


@pytest.mark.parametrize("asked", ["<image>\nWhat?", "What?\n<image>", "<image>What?", "What?"])
def test_the_image_mark_is_taken_out_wherever_it_stands(tmp_path: Path, asked: str) -> None:
    item = one(tmp_path, {"image": "red.png", "conversations": chat(asked, "A card.")})
    assert item.question == "What?" and item.image


def test_the_last_question_is_asked_and_the_turns_before_it_are_kept(tmp_path: Path) -> None:
    said = ("<image>\nWhat is it?", "A card.", "Which colour?", "Red.")
    item = one(tmp_path, {"image": "red.png", "conversations": chat(*said)})
    assert item.turns == (Turn("user", "What is it?", has_image=True), Turn("assistant", "A card."))
    assert (item.question, item.answer) == ("Which colour?", "Red.")


def test_a_row_that_ends_with_its_question_has_no_label(tmp_path: Path) -> None:
    item = one(tmp_path, {"conversations": chat(COLOURS), "image": "red.png"})
    assert (item.form, item.choices) == ("letter", ("red", "blue", "green"))
    assert not item.labelled and item.wrong == ""


def test_sharegpt_has_a_list_of_pictures_and_a_system_text(tmp_path: Path) -> None:
    row = {"conversations": chat("<image>What?", "Red."), "images": ["red.png"], "system": "Be brief."}
    data = read_data(written(tmp_path, row))
    assert data.format == "sharegpt"
    assert (data[0].system, data[0].answer) == ("Be brief.", "Red.")
    assert pixels(data[0].image) == RED.tobytes()


def test_a_system_turn_begins_a_chat(tmp_path: Path) -> None:
    said = [{"from": "system", "value": "Be brief."}, *chat("Hello?", "Hello.")]
    item = one(tmp_path, {"conversations": said})
    assert (item.system, item.question, item.turns) == ("Be brief.", "Hello?", ())


def test_a_greeting_of_the_assistants_is_left_out(tmp_path: Path) -> None:
    said = [{"from": "gpt", "value": "Hello, how can I help?"}, *chat("<image>What is it?", "A card.")]
    item = one(tmp_path, {"conversations": said, "image": "red.png"})
    assert (item.question, item.answer, item.turns) == ("What is it?", "A card.", ()) and item.image


def test_qwens_paths_in_the_text_are_the_rows_picture(tmp_path: Path) -> None:
    said = [
        {"from": "user", "value": "Picture 1: <img>red.png</img>\nWhat is it?"},
        {"from": "assistant", "value": "A card."},
    ]
    item = one(tmp_path, {"id": "identity_0", "conversations": said})
    assert (item.question, item.source) == ("What is it?", "red.png")
    assert pixels(item.image) == RED.tobytes()


def test_whole_numbers_that_pandas_wrote_as_fractions_are_ids(tmp_path: Path) -> None:
    assert one(tmp_path, {"id": 17.0, "conversations": chat("What?", "Red.")}).id == "17"


# -- OpenAI messages


def test_several_user_messages_in_a_row_are_one_turn(tmp_path: Path) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "red.png"}}]
    asked = {"role": "user", "content": "What is it?"}
    row = {"messages": [asked, {"role": "user", "content": picture}, *messages("?", "A card.")[1:]]}
    item = one(tmp_path, row)
    assert (item.question.strip(), item.answer) == ("What is it?", "A card.") and item.image


def test_openai_messages_may_be_plain_text(tmp_path: Path) -> None:
    row = {"messages": [{"role": "developer", "content": "Be brief."}, *messages("1 + 2?", "3")]}
    data = read_data(written(tmp_path, row))
    assert data.format == "openai"
    assert (data[0].system, data[0].question, data[0].answer) == ("Be brief.", "1 + 2?", "3")


def test_openai_parts_tell_context_from_question_as_the_gateway_does(tmp_path: Path) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": png_data_url(RED)}},
        {"type": "text", "text": "Caption: a blue card."},
        {"type": "text", "text": "What colour is the card?"},
    ]
    item = one(tmp_path, {"messages": messages(content, "red")}, family="image-heavy")
    assert (item.context, item.question) == ("Caption: a blue card.", "What colour is the card?")
    assert prompt(item) == "Caption: a blue card.\nWhat colour is the card?"
    assert pixels(item.image) == RED.tobytes()


def test_openai_messages_may_point_to_a_list_of_pictures(tmp_path: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    marked = {"messages": messages("<image>What?", "Red."), "images": ["red.png"]}
    pointed = {"messages": messages(parts, "Red."), "images": ["red.png"]}
    inline = {"messages": messages([{**parts[0], "image": "red.png"}, parts[1]], "Red.")}
    items = list(read_data(written(tmp_path, marked, pointed, inline)))
    assert [(item.question, pixels(item.image)) for item in items] == [("What?", RED.tobytes())] * 3


# -- LLaMA-Factory


def test_llama_factorys_own_column_names_need_no_description(tmp_path: Path) -> None:
    row = {
        "instruction": "<image>Name the colour.",
        "input": "One word.",
        "output": "red",
        "system": "Be brief.",
        "history": [["Hello?", "Hello."]],
        "images": ["red.png"],
    }
    data = read_data(written(tmp_path, row))
    assert data.format == "llama-factory"
    assert data[0].question == "Name the colour.\nOne word."
    assert data[0].turns == (Turn("user", "Hello?"), Turn("assistant", "Hello."))
    assert (data[0].answer, data[0].system) == ("red", "Be brief.") and data[0].image


def test_dataset_info_beside_the_file_names_the_columns(tmp_path: Path) -> None:
    columns = {"prompt": "ask", "response": "say", "images": "shots"}
    described = {"mine": {"file_name": "mine.json", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    item = one(tmp_path, {"ask": "<image>What?", "say": "Red.", "shots": ["red.png"]})
    assert (item.question, item.answer) == ("What?", "Red.") and item.image


def test_dataset_info_may_describe_chats_with_tags_of_their_own(tmp_path: Path) -> None:
    described = {
        "file_name": "mine.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "images"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": described}))
    talk = [{"who": "me", "what": "<image>What?"}, {"who": "it", "what": "Red."}]
    item = one(tmp_path, {"talk": talk, "images": ["red.png"]})
    assert (item.question, item.answer) == ("What?", "Red.")


def test_dataset_info_may_describe_openais_messages_and_lie_in_a_folder_above(tmp_path: Path) -> None:
    described = {
        "file_name": "sub/mine.json",
        "formatting": "openai",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": described}))
    (tmp_path / "sub").mkdir()
    item = one(tmp_path / "sub", {"messages": messages("<image>What?", "Red."), "images": ["red.png"]})
    assert (item.question, item.answer) == ("What?", "Red.") and item.image


@pytest.mark.parametrize("column", ["videos", "audios"])
def test_dataset_info_that_names_clips_is_refused(tmp_path: Path, column: str) -> None:
    described = {"mine": {"file_name": "mine.json", "columns": {column: "clips"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    message = refused(written(tmp_path, {"instruction": "What?", "output": "Red.", "clips": ["a.mp4"]}))
    assert f"mine.json holds {column}, which are not read" in message


def test_columns_can_be_named_by_hand(tmp_path: Path) -> None:
    row = {"ask": "What?", "say": "Red."}
    item = one(tmp_path, row, columns={"prompt": "ask", "response": "say"})
    assert (item.question, item.answer) == ("What?", "Red.")


def test_an_unknown_column_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'promt': did you mean 'prompt'"):
        one(tmp_path, {"ask": "What?"}, columns={"promt": "ask"})


@pytest.mark.parametrize("more", [{"ranking": True}, {"columns": {"chosen": "good", "rejected": "bad"}}])
def test_preferences_are_refused(tmp_path: Path, more: JSON) -> None:
    described = {"mine": {"file_name": "mine.json", **more}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    said = refused(written(tmp_path, {"instruction": "What?", "output": "Red."}))
    assert "dataset_info.json: mine.json holds preferences, which are not read" in said


# -- the paper's multiple choice

PAPERS: JSON = {
    "id": "caltech-1",
    "type": "image_heavy",
    "image": "red.png",
    "question": "What is shown?\nA: dog\nB: platypus\nC: cat",
    "answer": "A",
    "facts": {"platypus": "The picture seems to describe a platypus. It lays eggs."},
}


def test_the_papers_row_names_family_options_and_lie(tmp_path: Path) -> None:
    data = read_data(written(tmp_path, PAPERS))
    assert data.format == "multiple-choice"
    (item,) = data
    assert (item.family, item.form) == ("image-heavy", "letter")
    assert (item.choices, item.answer, item.wrong) == (("dog", "platypus", "cat"), "dog", "platypus")
    assert prompt(item) == PAPERS["question"] and reply_for(item, "cat") == "C"
    assert perturb(item, "misleading_description").context == PAPERS["facts"]["platypus"]


@pytest.mark.parametrize(
    ("answer", "form", "replies"),
    [
        ("A", "letter", ("A", "B", "C")),
        ("A.", "letter", ("A.", "B.", "C.")),
        ("(A)", "letter", ("(A)", "(B)", "(C)")),
        ("A: dog", "letter", ("A: dog", "B: platypus", "C: cat")),
        ("Dog", "word", ("Dog", "platypus", "cat")),
        ("dog.", "word", ("dog.", "platypus.", "cat.")),
    ],
)
def test_an_answer_stays_as_it_is_written_whatever_its_style(
    tmp_path: Path, answer: str, form: str, replies: tuple[str, ...]
) -> None:
    item = one(tmp_path, {**PAPERS, "answer": answer})
    assert item.answer == "dog" and item.replies == replies
    assert reply_for(item, item.answer) == answer


@pytest.mark.parametrize("named", ["image_heavy", "image-heavy", "Image Heavy"])
def test_a_family_may_be_spelt_in_several_ways(tmp_path: Path, named: str) -> None:
    assert one(tmp_path, {**PAPERS, "type": named}).family == "image-heavy"


@pytest.mark.parametrize("name", ["multiple_choices", "choices", "options"])
def test_options_in_a_column_are_listed_below_the_question(tmp_path: Path, name: str) -> None:
    row = {"question": "What is shown?", "answer": 2, name: ["dog", "owl", "cat"]}
    item = one(tmp_path, row)
    assert (item.form, item.answer, item.replies) == ("letter", "cat", ())
    assert prompt(item) == "What is shown?\nA. dog\nB. owl\nC. cat"


@pytest.mark.parametrize("name", ["hint", "context", "passage"])
def test_a_passage_before_the_question_is_its_context(tmp_path: Path, name: str) -> None:
    row = {"question": "Which animal can fly?", "choices": ["the cat", "the owl"], "answer": 1}
    item = one(tmp_path, {**row, name: "The owl flies at night."}, family="text-heavy")
    assert (item.context, item.answer) == ("The owl flies at night.", "the owl")
    assert prompt(item).startswith("The owl flies at night.\nWhich animal can fly?")


@pytest.mark.parametrize(
    ("asked", "question"),
    [("<image 1>\nWhat is it?", "What is it?"), ("What is in <image 1>?", "What is in image 1?")],
)
def test_a_numbered_picture_is_the_rows_picture(tmp_path: Path, asked: str, question: str) -> None:
    row = {"question": asked, "options": ["a card", "a dog"], "answer": "A", "image_1": "red.png"}
    item = one(tmp_path, {**row, "image_2": None})
    assert item.question.splitlines()[0] == question
    assert pixels(item.image) == RED.tobytes()


def test_options_may_have_labels_of_their_own(tmp_path: Path) -> None:
    row = {
        "question": "What?",
        "multiple_choices": {"1": "dog", "2": "owl"},
        "multiple_choices_answer": "2",
        "type": "VQA",
        "image": "red.png",
    }
    item = one(tmp_path, row)
    assert (item.family, item.answer) == ("vqa", "owl")
    assert prompt(item) == "What?\n1. dog\n2. owl" and reply_for(item, "owl") == "2"


def test_more_options_than_letters_of_ours_keep_theirs(tmp_path: Path) -> None:
    row = {"question": "Which?", "choices": [f"thing {n}" for n in range(12)], "answer": "L"}
    item = one(tmp_path, row)
    assert item.answer == "thing 11" and prompt(item).endswith("\nL. thing 11")
    assert reply_for(item, "thing 10") == "K"


def test_a_question_without_options_has_a_free_answer(tmp_path: Path) -> None:
    item = one(tmp_path, {"question": "Who is it?", "answer": "Ada", "image": "red.png"})
    assert (item.form, item.answer, item.wrong) == ("free", "Ada", "")


def test_a_lie_is_planted_by_the_id_alone_and_is_never_the_truth(tmp_path: Path) -> None:
    rows = [{**PAPERS, "id": f"x{n}", "facts": {}, "answer": "ABC"[n % 3]} for n in range(30)]
    items = list(read_data(written(tmp_path, *rows)))
    assert all(item.wrong in item.choices and item.wrong != item.answer for item in items)
    assert {item.wrong for item in items} == {"dog", "platypus", "cat"}
    again = {item.id: item.wrong for item in read_data(written(tmp_path, *reversed(rows)))}
    assert again == {item.id: item.wrong for item in items}


def test_a_planted_lie_is_no_other_spelling_of_the_truth(tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": "Which?", "choices": ["Aa", "aa", "aa.", "AB"], "answer": 0} for n in range(9)
    ]
    assert {item.wrong for item in read_data(written(tmp_path, *rows))} == {"AB"}


def test_a_lie_may_name_both_and_its_option_letters_are_no_words(tmp_path: Path) -> None:
    both = {"platypus": "A platypus, not a dog."}
    assert one(tmp_path, {**PAPERS, "facts": both}).lie == both["platypus"]
    letters = {"question": "Which?\nA: A\nB: B", "answer": "A", "facts": {"B": "A note says so."}}
    assert one(tmp_path, letters).lie == "A note says so."


# -- options and lies that any format may have


def test_options_in_a_chat_are_found_where_the_answer_names_one(tmp_path: Path) -> None:
    row = {"image": "red.png", "conversations": chat(f"<image>\n{COLOURS}", "A")}
    item = one(tmp_path, row)
    assert (item.form, item.choices, item.answer) == ("letter", ("red", "blue", "green"), "red")
    assert item.question == "What colour is shown?" and item.replies == ()


def test_a_list_that_the_answer_does_not_refer_to_is_no_list_of_options(tmp_path: Path) -> None:
    steps = "How do I go on?\n1. Open it.\n2. Close it."
    item = one(tmp_path, {"conversations": chat(steps, "With the lid.")})
    assert (item.form, item.choices, item.question) == ("free", (), steps)


def test_a_row_says_what_its_format_has_no_word_for_under_modint(tmp_path: Path) -> None:
    own = {
        "family": "text-heavy",
        "task": "colour",
        "choices": ["red", "blue"],
        "wrong": "blue",
        "lie": "It is blue, I say.",
        "claim": "the colour {}",
        "context": "Ann has a red card.",
        "source": "ann",
        "held_out_wording": True,
        "contradicting": "blue.png",
    }
    item = one(tmp_path, {"conversations": chat("Ann has a red card.\nWhich colour?", "red"), "modint": own})
    assert item == Item(
        id="mine-0",
        family="text-heavy",
        task="colour",
        form="word",
        question="Which colour?",
        choices=("red", "blue"),
        answer="red",
        wrong="blue",
        lie="It is blue, I say.",
        claim="the colour {}",
        context="Ann has a red card.",
        source="ann",
        held_out_wording=True,
    )
    assert pixels(perturb(item, "contradicting_image").image) == BLUE.tobytes()


def test_a_free_answer_may_have_a_lie_too(tmp_path: Path) -> None:
    own = {"family": "image-heavy", "wrong": "a blue bus"}
    said = chat("<image>\nWhat is it?", "a red bus")
    item = one(tmp_path, {"image": "red.png", "conversations": said, "modint": own})
    assert "a blue bus" in (perturb(item, "misleading_description").context or "")


def test_the_callers_family_is_for_rows_that_name_none(tmp_path: Path) -> None:
    said = {"image": "red.png", "conversations": chat("<image>What?", "Red.")}
    path = written(tmp_path, {"id": 1, **said, "modint": {"family": "vqa"}}, {"id": 2, **said})
    assert [item.family for item in read_data(path, family="image_heavy")] == ["vqa", "image-heavy"]


def test_a_word_among_named_choices_is_no_label(tmp_path: Path) -> None:
    row = {"conversations": chat("Which vitamin?", "a"), "modint": {"choices": ["b", "a"]}}
    assert one(tmp_path, row).answer == "a"


# -- telling the format

ROWS: dict[str, JSON] = {
    "llava": {"conversations": chat("What?", "Red."), "image": "red.png"},
    "sharegpt": {"conversations": chat("What?", "Red.")},
    "openai": {"messages": messages("What?", "Red.")},
    "llama-factory": {"instruction": "What?", "output": "Red."},
    "multiple-choice": {"question": "What?", "answer": "Red."},
    "items": {
        "id": "x",
        "family": "text-heavy",
        "task": "",
        "form": "free",
        "question": "What?",
        "answer": "Red.",
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_told_by_its_keys_and_can_be_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, ROWS[name])
    told, named = read_data(path), read_data(path, format=name)
    assert told.format == named.format == name
    assert [(item.question, item.answer) for item in (*told, *named)] == [("What?", "Red.")] * 2


def test_the_format_is_told_by_all_rows_and_not_by_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": 0, "conversations": chat("Hi?", "Hi.")}, {"id": 1, **ROWS["llava"]})
    assert read_data(path).format == "llava"


def test_rows_that_fit_two_formats_are_refused(tmp_path: Path) -> None:
    said = refused(written(tmp_path, {**ROWS["openai"], **ROWS["llava"]}))
    assert "fits 2 formats, llava and openai: its rows have the keys conversations, image, messages" in said
    assert "say which with --format" in said
    assert one(tmp_path, {**ROWS["openai"], **ROWS["llava"]}, format="openai").question == "What?"


def test_rows_that_fit_no_format_are_refused_with_what_was_seen(tmp_path: Path) -> None:
    said = refused(written(tmp_path, {"prompt": "What?", "completion": "Red."}))
    assert "mine.json: fits no format: its rows have the keys completion, prompt; rename them" in said


@pytest.mark.parametrize(
    ("row", "format", "said"),
    [
        ({"conversations": chat("What?"), "images": []}, "llava", "has `images`, which ShareGPT rows have"),
        ({"conversations": chat("What?"), "image": "red.png"}, "sharegpt", "has `image`, which LLaVA rows"),
    ],
)
def test_a_row_of_the_sister_format_is_refused(tmp_path: Path, row: JSON, format: str, said: str) -> None:
    assert said in refused(written(tmp_path, row), format=format)


def test_an_unknown_format_or_family_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS["openai"])
    with pytest.raises(ConfigError, match="no format 'alpaca': name one of llava, sharegpt"):
        read_data(path, format="alpaca")
    with pytest.raises(ConfigError, match="unknown family 'images': name one of image-heavy"):
        read_data(path, family="images")


# -- rows that are refused

GOOD = {"id": "good", "image": "red.png", "conversations": chat("<image>\nWhat?", "Red.")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conversations": None}, "`conversations` must be a list of turns, and is missing"),
        ({"conversations": "What?"}, "`conversations` must be a list of turns, not 'What?'"),
        ({"conversations": []}, "has no user turn"),
        ({"conversations": chat("<image>", "Red.")}, "asks nothing"),
        ({"conversations": [{"from": "gpt", "value": "Red."}]}, "turn 1 is the assistant's"),
        (
            {"conversations": chat("<image>?", "a", "b", "c") + chat("d", "e")[1:]},
            "turn 5 is the assistant's",
        ),
        ({"conversations": chat("<video>What?", "Red.")}, "holds <video>, and only pictures are read"),
        ({"conversations": chat("What?", "<audio>")}, "holds <audio>, and only pictures are read"),
        ({"videos": ["a.mp4"]}, "has `videos`, and only pictures are read: leave such rows out"),
        ({"audio": "a.wav"}, "has `audio`, and only pictures are read"),
        ({"tools": "[{}]"}, "has `tools`, and calls of tools are not read"),
        ({"weight": 0.5}, "has `weight` '0.5', and every row counts the same"),
        ({"image": None, "photo": "red.png"}, "seems to have a picture in `photo`, which is not read"),
        ({"image": None, "shot": png_data_url(RED)}, "seems to have a picture in `shot`"),
        ({"image": None, "shot": {"bytes": None, "path": "red.png"}}, "seems to have a picture in `shot`"),
        ({"image_2": "blue.png"}, "has pictures in several columns"),
        ({"image": None, "image_1": "red.png", "image_2": "blue.png"}, "has 2 pictures: only one per row"),
        ({"id": 17.5}, "`id` must be a text or a whole number, not '17.5'"),
        ({"conversations": [{"from": "tool", "value": "Red."}]}, "the role 'tool' is not read"),
        ({"conversations": [{"from": "human"}]}, "`value` must be a text, and is missing"),
        ({"conversations": [{"from": "human", "value": 3}]}, "`value` must be a text, not '3'"),
        ({"conversations": chat("<image><image>What?", "Red.")}, "has 2 <image> in its texts and 1 pictures"),
        ({"image": None}, "has 1 <image> in its texts and 0 pictures"),
        ({"conversations": chat("<image>?", "An <image>.")}, "an answer or system text holds <image>"),
        ({"image": ["red.png", "blue.png"]}, "has 2 pictures: only one per row is read"),
        ({"id": True}, "`id` must be a text or a whole number"),
        ({"modint": []}, "`modint` must be an object"),
        ({"modint": {"famly": "vqa"}}, "`modint.famly` is not a key of `modint`: did you mean `family`?"),
        ({"modint": {"family": "pictures"}}, "unknown family 'pictures': name one of image-heavy"),
        ({"modint": {"choices": ["Blue.", "Green."]}}, "the answer 'Red.' is not among the choices"),
        ({"modint": {"choices": ["Red.", 3]}}, "`modint.choices` must be a list of texts"),
        ({"modint": {"choices": "Red."}}, "`modint.choices` must be a list"),
        ({"modint": {"choices": ["Red.", "Red."]}}, "a choice appears twice"),
        (
            {"modint": {"choices": ["Red.", "Blue."], "wrong": "Grey."}},
            "the lie claims 'Grey.', which is not",
        ),
        ({"modint": {"wrong": "Red."}}, "the lie 'Red.' equals the truth"),
        ({"modint": {"wrong": "red"}}, "the lie 'red' equals the truth"),
        (
            {"modint": {"wrong": "blue", "lie": "A red wall."}},
            "its lie names the truth 'Red.' and not 'blue', which it is to claim: name that in it, or leave",
        ),
        ({"modint": {"wrong": 3}}, "`modint.wrong` must be a text"),
        ({"modint": {"lie": "It is blue."}}, "does not say which answer it claims"),
        ({"modint": {"claim": "a card"}}, "`modint.claim` must hold one {} for the choice"),
        ({"modint": {"context": "A caption."}}, "`modint.context` does not begin the last user turn"),
        ({"modint": {"held_out_wording": "no"}}, "`modint.held_out_wording` must be true or false"),
        ({"modint": {"agreeing": "none.png"}}, "the picture 'none.png' is not in"),
        ({"image": "none.png"}, "the picture 'none.png' is not in"),
        ({"image": "../" * 3000}, "is not in"),
        ({"image": "https://example.org/a.png"}, "is an address, and nothing is fetched"),
        ({"image": "file:///a.png"}, "is an address, and nothing is fetched"),
        ({"image": {"nothing": 3}}, "is not a picture: give a path, a data URL or bytes"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: JSON, said: str) -> None:
    path = written(tmp_path, {**GOOD, "id": "first"}, {**GOOD, **change})
    message = refused(path)
    assert message.startswith(f"{path}:3: sample ")
    assert said in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "`question` must be a text, and is missing"),
        ({"choices": ["dog", "cat"], "answer": 2}, "`answer` is 2, and the choices are numbered 0 to 1"),
        (
            {"choices": ["dog", "cat"], "answer": "owl"},
            "the answer 'owl' is not among the choices 'dog', 'cat'",
        ),
        ({"choices": 5}, "`choices` must be a list of texts or an object"),
        ({"choices": "dog, cat"}, "`choices` must be a list of texts or an object"),
        ({"answer": 3.5}, "`answer` must be a text, not '3.5'"),
        ({"facts": {"dog": "A dog."}}, "the lie 'dog' equals the truth"),
        (
            {"facts": {"platypus": "The picture shows a dog."}},
            "its lie names the truth 'dog' and not 'platyp",
        ),
        ({"facts": {"owl": "An owl."}}, "the lie claims 'owl', which is not among the choices"),
        ({"facts": "A cat."}, "`facts` must be an object of wrong choices and texts"),
        ({"type": "audio"}, "unknown family 'audio'"),
    ],
)
def test_a_multiple_choice_row_that_cannot_be_used_is_named(tmp_path: Path, change: JSON, said: str) -> None:
    message = refused(written(tmp_path, {**PAPERS, "id": "first"}, {**PAPERS, **change}))
    assert "mine.json:3: sample 'caltech-1': " in message
    assert said in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": messages([{"type": "video_url"}])}, "content parts are text, image_url or image, not"),
        (
            {"messages": [*messages("What?"), {"role": "assistant", "content": "Red.", "weight": 0}]},
            "has `weight` '0'",
        ),
        ({"messages": messages(None)}, "`content` must be text or a list of parts"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}], "content": ""}]}, "calls tools"),
        (
            {"messages": messages([{"type": "image", "image": "red.png"}]), "images": ["red.png"]},
            "has pictures both in its messages and in `images`",
        ),
        (
            {"messages": messages("<image>?"), "images": ["red.png"], "image": "red.png"},
            "has pictures in several columns (`image`, `images`, `image_1` …): keep one of them",
        ),
        ({"messages": messages([{"type": "image"}])}, "has 1 <image> in its texts and 0 pictures"),
        ({"instruction": "What?", "history": "Hi"}, "`history` must be a list"),
        ({"instruction": "What?", "history": ["Hi"]}, "`history` must hold pairs of prompt and answer"),
        ({"conversations": chat("What?"), "images": [3]}, "is not a picture"),
    ],
)
def test_other_rows_that_cannot_be_used_are_named(tmp_path: Path, row: JSON, said: str) -> None:
    message = refused(written(tmp_path, row))
    assert message.startswith(f"{tmp_path / 'mine.json'}:2: sample 'mine-0': ")
    assert said in message


@pytest.mark.parametrize("family", ["image-heavy", "vqa"])
def test_a_family_that_needs_the_picture_is_refused_without_one(tmp_path: Path, family: str) -> None:
    path = written(tmp_path, ROWS["sharegpt"])
    said = refused(path, family=family)
    assert f"mine.json:2: sample 'mine-0': has no picture, which the family {family} needs" in said
    assert [item.family for item in read_data(path, family="text-heavy")] == ["text-heavy"]


def test_ids_on_one_line_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps([{"id": 1, **ROWS["openai"]}] * 2))
    assert "its id is that of line 1 of mine.json too" in refused(tmp_path / "mine.json")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
NESTED = st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=3)
HELD = PLAIN | NESTED | st.lists(NESTED, max_size=2)  # `st.recursive` warns now and then of itself
TURN = st.dictionaries(
    st.sampled_from(["from", "value", "role", "content"]),
    st.sampled_from(["human", "gpt", "user", "assistant", "<image>What?\nA. a\nB. b", "A"]) | HELD,
)
KEYS = (
    *("id", "image", "images", "conversations", "messages", "system", "instruction", "input", "output"),
    *("history", "question", "answer", "choices", "multiple_choices", "facts", "type", "modint"),
    *("family", "task", "form", "wrong", "turns", "replies", "context"),
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(
    row=st.dictionaries(st.sampled_from(KEYS), HELD, max_size=6),
    turns=st.lists(TURN, max_size=3),
    chats=st.booleans(),
)
def test_whatever_a_row_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, row: JSON, turns: list[JSON], chats: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "mine.json"
    held = {**row, "conversations": turns, "messages": turns, "turns": turns} if chats else row
    path.write_text(json.dumps([held]))
    try:
        assert len(list(read_data(path, format=name))) == 1
    except DataError as error:
        refusal = str(error)
        assert refusal.startswith(f"{path}:1: ") and "\n" not in refusal


def test_an_id_that_stands_twice_is_refused_unless_rows_are_numbered(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "id": "other"}, GOOD)
    said = refused(path)
    assert said.startswith(f"{path}:4: sample 'good': its id is that of line 2 of mine.json too")
    assert [item.id for item in read_data(path, number_rows=True)] == ["mine-0", "mine-1", "mine-2"]


# -- pictures


def test_pictures_lie_beside_the_file_or_below_the_image_root_or_at_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    GREEN.save(tmp_path / "pictures" / "green.png")
    (tmp_path / "data").mkdir()
    rooted = written(tmp_path / "data", {**GOOD, "image": "green.png"})
    (item,) = read_data(rooted, image_root=tmp_path / "pictures")
    assert pixels(item.image) == GREEN.tobytes()
    (item,) = read_data(written(tmp_path, {**GOOD, "image": str(tmp_path / "pictures" / "green.png")}))
    assert pixels(item.image) == GREEN.tobytes()


def test_a_picture_is_decoded_only_when_its_item_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    data = read_data(path)
    (sample,) = data.samples()
    assert sample.item.image is None and set(sample.pictures) == {"image"}
    (tmp_path / "red.png").write_bytes(b"no picture at all")
    assert [held.item.answer for held in data.samples()] == ["Red."]
    with pytest.raises(DataError, match=r"mine.json:2: sample 'good': the picture 'red.png' cannot be used"):
        sample.load()


def test_the_size_of_a_picture_is_read_from_its_header_alone(tmp_path: Path) -> None:
    Image.effect_noise((64, 48), 90).save(tmp_path / "wide.png")
    cut_off = (tmp_path / "wide.png").read_bytes()[:100]
    (tmp_path / "wide.png").write_bytes(cut_off)
    told = "data:image/png;base64," + base64.b64encode(cut_off).decode()
    rows = [{**GOOD, "id": name, "image": name} for name in ("wide.png", told)]
    for sample in read_data(written(tmp_path, *rows)).samples():
        assert sample.pictures["image"].size() == (64, 48)
    (tmp_path / "wide.png").write_bytes(b"no picture at all")
    with pytest.raises(
        DataError, match=r"mine.json:2: sample 'wide.png': the picture 'wide.png' cannot be used"
    ):
        read_data(tmp_path / "mine.json").sample(0).pictures["image"].size()


@pytest.mark.parametrize("value", ["bad.png", "data:image/png;base64,AAAA"])
def test_a_damaged_picture_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    data = read_data(written(tmp_path, {**GOOD, "image": value}))
    (problem,) = problems(data)
    assert "mine.json:2: sample 'good': the picture" in str(problem) and "cannot be used" in str(problem)


def test_a_picture_of_16_bits_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"image": "scan.png", "conversations": chat("<image>What?", "Red.")})
    Image.new("I;16", (4, 3), 40_000).save(tmp_path / "scan.png")
    assert "the picture 'scan.png' cannot be used: it has more than 8 bits a pixel" in refused(path)


def test_a_picture_that_lies_on_its_side_is_read_upright(tmp_path: Path) -> None:
    path = written(tmp_path, {"image": "phone.jpg", "conversations": chat("<image>What?", "Red.")})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    data = read_data(path)
    assert data[0].image is not None and data[0].image.size == (20, 40)


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    Image.effect_noise((64, 64), 90).save(tmp_path / "red.png")
    (tmp_path / "red.png").write_bytes((tmp_path / "red.png").read_bytes()[:-200])
    assert "truncated or damaged" in refused(path)


# -- the length of a sample


def fake_tokens(item: Item) -> list[int]:
    return [1] * len(item.question.split()) + [7] * (4 if item.image else 0)


def test_a_sample_that_is_too_long_is_refused_and_never_cut() -> None:
    check_length(DIGIT, fake_tokens, 7, 8)
    said = r"sample 'digit-0': it takes 8 tokens, 4 of them its picture's, and 7 are allowed"
    with pytest.raises(DataError, match=said):
        check_length(DIGIT, fake_tokens, 7, 7)


def test_too_long_samples_are_listed_with_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "id": "long", "conversations": chat("<image>\na b c d", "x")})
    found = list(problems(read_data(path), checks=[lambda item: check_length(item, fake_tokens, 7, 6)]))
    assert [str(problem).partition(": it takes 8 tokens")[0] for problem in found] == [
        f"{path}:3: sample 'long'"
    ]


# -- as a sequence


def test_a_data_set_is_a_sequence(tmp_path: Path) -> None:
    data = read_data(written(tmp_path, *({**GOOD, "id": n} for n in range(5))))
    assert isinstance(data, DataSet) and len(data) == 5
    assert [data[-1].id, *(item.id for item in data[1:3])] == ["4", "1", "2"]
    with pytest.raises(IndexError):
        data[5]


def test_the_digest_is_that_of_the_rows(tmp_path: Path) -> None:
    one_way = read_data(written(tmp_path, GOOD)).digest()
    assert read_data(written(tmp_path, GOOD)).digest() == one_way
    assert read_data(written(tmp_path, {**GOOD, "id": "x"})).digest() != one_way


# -- LLaVA JSON as it is written

UNKNOWN: Family = "unknown"
TEXT_HEAVY: Family = "text-heavy"
WORDS = st.text("abcXYZ 0123.,?é“\n", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
LIES = st.text("defUVW 456;!ü”\n", min_size=1, max_size=12)  # they name none of the words
IDS = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)


@st.composite
def items(draw: st.DrawFn) -> Item:
    form = draw(st.sampled_from(FORMS))
    texts = draw(st.lists(WORDS, min_size=2, max_size=5, unique_by=normalised))
    labelled = draw(st.booleans())
    image = draw(st.sampled_from([None, RED, GREEN]))
    turns = (Turn("user", draw(WORDS), has_image=image is not None), Turn("assistant", draw(WORDS)))
    family = draw(st.sampled_from([*FAMILIES, UNKNOWN] if image else [TEXT_HEAVY, UNKNOWN]))
    return Item(
        id=draw(IDS),
        family=family,
        task=draw(WORDS),
        form=form,
        question=draw(WORDS),
        choices=() if form == "free" else tuple(texts),
        answer=texts[0] if labelled else "",
        wrong=texts[1] if labelled else "",
        context=draw(st.none() | WORDS),
        claim=draw(st.sampled_from(["{}", "the {} one"])),
        image=image,
        agreeing=draw(st.sampled_from([None, BLUE])),
        held_out_wording=draw(st.booleans()),
        source=draw(st.just("") | WORDS),
        lie=draw(st.just("") | LIES) if labelled else "",
        system=draw(st.just("") | WORDS),
        turns=draw(st.sampled_from([(), turns])),
    )


@settings(max_examples=40)
@given(st.lists(items(), min_size=1, max_size=4, unique_by=lambda item: item.id))
def test_what_is_written_as_llava_json_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, made: list[Item]
) -> None:
    path = write_llava(made, tmp_path_factory.mktemp("made"))
    found = read_data(path, format="llava")
    assert list(found) == made
    for name in ("image", "agreeing", "contradicting"):
        assert [pixels(getattr(item, name)) for item in found] == [
            pixels(getattr(item, name)) for item in made
        ]


def test_hand_made_items_read_back_equal(tmp_path: Path) -> None:
    named = DIGIT.replace(
        id="named",
        form="free",
        choices=(),
        answer="three",
        wrong="four",
        replies=("It is three.",),
        accepted=("three", "3"),
        rejected=("four",),
        truth="A three.",
    )
    made = [DIGIT, LETTERED, SUM, BOTH, named]
    made = [item.replace(source=item.id) for item in made]
    assert list(read_data(write_llava(made, tmp_path))) == made


def test_a_folder_of_one_data_file_is_read_as_that_file(tmp_path: Path) -> None:
    write_llava([DIGIT], tmp_path)
    assert [item.id for item in read_data(tmp_path)] == ["digit-0"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (DIGIT.replace(question="What is <image>?"), "a text holds <image>"),
        (DIGIT.replace(id="../digit"), "the id cannot be the name of a file"),
    ],
)
def test_what_would_not_read_back_is_not_written(tmp_path: Path, item: Item, said: str) -> None:
    with pytest.raises(DataError, match=said):
        write_llava([item], tmp_path)
