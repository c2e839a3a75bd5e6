"""Class folders as questions: what they ask, what the seed fixes, and folders that cannot be used."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from modint_guard.cli import GROUP, main
from modint_guard.data import problems, read_data
from modint_guard.data.class_folders import TEMPLATES, Questions, write_questions
from modint_guard.errors import ConfigError, DataError
from tests.core.items import RED
from tests.core.pages import DOCS, text

DATA = EntryPoint("data", "modint_guard.data.validate:app", GROUP)
CLASSES = ("002.Sea_horse", "ant", "wild-cat", "cup", "pizza")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of three pictures."""
    made = tmp_path_factory.mktemp("classes") / "pictures"
    for name in CLASSES:
        (made / name).mkdir(parents=True)
        for number in range(3):
            RED.save(made / name / f"{number}.jpg")
        (made / name / "notes.txt").write_text("not a picture")
    return made


def test_every_picture_becomes_a_question_that_can_be_read(folder: Path) -> None:
    file = folder.parent / "questions.json"
    assert write_questions(folder, file, Questions()) == 15
    assert json.loads(file.read_text())[0]["image"] == "pictures/002.Sea_horse/0.jpg"
    data = read_data(file)
    assert data.format == "multiple-choice" and list(problems(data)) == []
    items = [data[number] for number in range(len(data))]
    assert {item.answer for item in items} == {"sea horse", "ant", "wild cat", "cup", "pizza"}
    for item in items:
        assert (item.family, item.form, item.question) == ("image-heavy", "letter", TEMPLATES["shown"])
        assert len(item.choices) == 4 and item.answer in item.choices
        assert item.wrong in item.choices and item.wrong != item.answer
    assert items[0].answer == "sea horse"  # the class of its folder
    assert len({item.choices.index(item.answer) for item in items}) == 4  # no letter is always right


def test_pictures_whose_names_run_together_are_told_apart_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("wild/cat-1.png", "wild-cat/1.png"):
        (tmp_path / name).parent.mkdir()
        RED.save(tmp_path / name)
    (tmp_path / "wild" / "._cat-1.png").write_bytes(b"of macOS")
    assert write_questions(tmp_path, tmp_path / "questions.json", Questions(options=2)) == 2
    data = read_data(tmp_path / "questions.json")
    assert [data[number].answer for number in range(len(data))] == ["wild", "wild cat"]


def test_pictures_elsewhere_have_whole_paths(folder: Path, tmp_path: Path) -> None:
    write_questions(folder, tmp_path / "questions.json", Questions())
    assert len(read_data(tmp_path / "questions.json")) == 15


def test_the_seed_fixes_options_and_pictures_and_a_template_changes_words_alone(folder: Path) -> None:
    once, again, other = (Questions(seed=seed, per_class=2).rows(folder) for seed in (0, 0, 1))
    assert once == again != other
    assert len(once) == len(other) == 10
    assert [row["image"] for row in once] != [row["image"] for row in other]
    reworded = Questions("which", per_class=2).rows(folder)
    assert [{**row, "question": TEMPLATES["shown"]} for row in reworded] == once
    assert len(TEMPLATES) == len(set(TEMPLATES.values())) == 3


def test_a_picture_keeps_its_options_whatever_other_pictures_there_are(folder: Path) -> None:
    few = {row["id"]: row for row in Questions(per_class=1).rows(folder)}
    assert all(row == few[row["id"]] for row in Questions().rows(folder) if row["id"] in few)


def test_classes_are_named_and_left_out(folder: Path) -> None:
    rows = Questions(options=2, names={"ant": "Formica"}, left_out=("cup", "pizza")).rows(folder)
    assert {name for row in rows for name in row["choices"]} == {"sea horse", "Formica", "wild cat"}


@pytest.mark.parametrize(
    ("made", "how", "said"),
    [
        (["a/1.jpg", "b/1.jpg"], {"options": 3}, "holds 2 classes, too few for questions of 3 options"),
        (["a/1.jpg", "b/1.txt"], {"options": 2}, "b holds no picture: leave it out with --leave-out"),
        (["a/1.jpg", "A/1.jpg"], {"options": 2}, "a is called 'a' as another class is: name it with --names"),
        (["n02119789/1.jpg"], {}, "n02119789 is a number of WordNet and no word"),
        (["a/1.jpg"], {"left_out": ("b",)}, "holds no folder b to leave out: correct --leave-out"),
        ([], {"template": "x"}, "no template 'x': name one of shown, which, subject"),
        ([], {"options": 9}, "9 options cannot be asked: give 2 to 8"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    tmp_path: Path, made: list[str], how: dict[str, Any], said: str
) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        RED.save(tmp_path / name, "png")
    with pytest.raises((ConfigError, DataError), match=said) as refused:
        Questions(**how).rows(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_command_writes_them_and_says_what_it_cannot_use(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit):
            main(["data", "questions", *arguments], [DATA])
        printed = capsys.readouterr()
        return printed.out, printed.err

    names = tmp_path / "names.json"
    names.write_text('{"ant": "Formica"}')
    arguments = (str(folder), "--names", str(names), "--leave-out", "cup", "--template", "subject")
    out, _ = run(*arguments, "--output", str(tmp_path / "mine.json"))
    assert out == f"wrote 12 questions to {tmp_path / 'mine.json'}\n"
    assert "Formica" in (tmp_path / "mine.json").read_text()
    names.write_text("{")
    _, err = run(*arguments, "--output", str(tmp_path / "mine.json"))
    assert "names.json cannot be read as JSON: give an object of folders and names" in err
    names.write_text("[]")
    _, err = run(*arguments, "--output", str(tmp_path / "mine.json"))
    assert "names.json must be an object with a name for each folder" in err
    _, err = run(str(folder), "--output", str(tmp_path / "none" / "mine.json"))
    assert "cannot be written (No such file or directory): name another file" in err
    assert "gone is no folder" in run(str(tmp_path / "gone"), "--output", "mine.json")[1]


def test_the_page_names_every_template_and_its_words() -> None:
    page = text(DOCS / "data-formats.md")
    assert [name for name, words in TEMPLATES.items() if f'`{name}` ("{words}")' not in page] == []
