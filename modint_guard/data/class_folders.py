"""`modint-guard data questions`: pictures in a folder for each class become multiple-choice questions."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from modint_guard.data.item import LETTERS
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError, DataError
from modint_guard.types import JSON

# Wordings of one question, by name. Its options, their order and its answer are the same in all of them.
TEMPLATES: Mapping[str, str] = {
    "shown": "What is shown in the picture?",
    "which": "Which of these does the picture show?",
    "subject": "Look at the picture and name its subject. Answer with the letter of one option.",
}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_NUMBER = re.compile(r"^\d+\.")  # Caltech-256 numbers its classes: 002.american-flag
_SYNSET = re.compile(r"^n\d{8}$")  # ImageNet names them by WordNet's number


@dataclass(frozen=True)
class Questions:
    """How the questions are made; ConfigError for a template that there is not, and for too many options.

    options: how many each has, from 2 to 8, the true one among them. per_class: the most pictures of a class,
    drawn by the seed. names: a class's name by its folder's. left_out: folders that are no classes, such as
    Caltech-101's BACKGROUND_Google."""

    template: str = "shown"
    options: int = 4
    seed: int = 0
    per_class: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    left_out: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ConfigError(f"no template {self.template!r}: name one of {', '.join(TEMPLATES)}")
        if not 2 <= self.options <= len(LETTERS):
            raise ConfigError(f"{self.options} options cannot be asked: give 2 to {len(LETTERS)}")

    def rows(self, folder: Path) -> list[JSON]:
        """A row of the format `multiple-choice` for each picture, with paths below `folder`; by class and
        name. Raises DataError for a folder that does not hold a folder of pictures for each class."""
        classes = self._classes(folder)
        return [
            self._row(picture.relative_to(folder).as_posix(), name, [*classes])
            for name, pictures in classes.items()
            for picture in pictures
        ]

    def _classes(self, folder: Path) -> dict[str, list[Path]]:
        """The pictures of each class, by its name."""
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder")
        for name in self.left_out:
            if not (folder / name).is_dir():
                raise DataError(f"{folder} holds no folder {name} to leave out: correct --leave-out")
        classes: dict[str, list[Path]] = {}
        for of_class in sorted(path for path in folder.iterdir() if path.is_dir()):
            if of_class.name in self.left_out:
                continue
            name = self._name(of_class.name)
            if name in classes:
                raise DataError(f"{of_class} is called {name!r} as another class is: name it with --names")
            classes[name] = self._pictures(of_class)
        if len(classes) < self.options:
            raise DataError(
                f"{folder} holds {len(classes)} classes, too few for questions of {self.options} options: "
                "name the folder with a folder for each class, or ask for fewer with --options"
            )
        return classes

    def _name(self, folder: str) -> str:
        if folder in self.names:
            return self.names[folder]
        if _SYNSET.match(folder):
            raise DataError(f"{folder} is a number of WordNet and no word: name the classes with --names")
        return re.sub(r"[\s_-]+", " ", _NUMBER.sub("", folder)).strip().lower()

    def _pictures(self, of_class: Path) -> list[Path]:
        # macOS leaves a hidden ._NAME beside each file, which is no picture.
        seen = [path for path in of_class.iterdir() if not path.name.startswith(".")]
        found = sorted(path for path in seen if path.suffix.lower() in PICTURES)
        if not found:
            raise DataError(
                f"{of_class} holds no picture: leave it out with --leave-out, or name the folder above the "
                "classes' own"
            )
        if self.per_class is None or len(found) <= self.per_class:
            return found
        return sorted(seeded("class", self.seed, of_class.name).sample(found, self.per_class))

    def _row(self, picture: str, answer: str, classes: Sequence[str]) -> JSON:
        rng = seeded("options", self.seed, picture)
        others = rng.sample([name for name in classes if name != answer], self.options - 1)
        options = rng.sample([answer, *others], self.options)
        return {
            "id": picture,
            "type": "image_heavy",
            "image": picture,
            "question": TEMPLATES[self.template],
            "choices": options,
            "answer": options.index(answer),
        }


def write_questions(folder: Path, output: Path, how: Questions) -> int:
    """Write the questions as a JSON file that `read_data` reads; gives their number. Pictures stay where they
    are: below the file their paths are relative, elsewhere absolute.
    Raises DataError as `Questions.rows` does, and ConfigError for a file that cannot be written."""
    rows, root, beside = how.rows(folder), folder.resolve(), output.resolve().parent
    for row in rows:
        path = root / row["image"]
        row["image"] = (path.relative_to(beside) if path.is_relative_to(beside) else path).as_posix()
    try:
        output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    except OSError as exc:
        raise ConfigError(f"{output} cannot be written ({exc.strerror}): name another file") from exc
    return len(rows)


def questions(
    folder: Annotated[Path, typer.Argument(help="A folder with a folder of pictures for each class.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write.")],
    template: Annotated[str, typer.Option(help=f"The wording: {', '.join(TEMPLATES)}.")] = "shown",
    options: Annotated[int, typer.Option(help="Options of a question, the true one among them.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the wrong options and their order.")] = 0,
    per_class: Annotated[int | None, typer.Option(min=1, help="The most pictures of a class.")] = None,
    names: Annotated[
        Path | None, typer.Option(help="A JSON object with the class's name for a folder's.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="A folder that is no class; repeatable.")
    ] = None,
) -> None:
    """Turn class folders (Caltech-101, Mini-ImageNet, yours) into multiple-choice questions."""
    how = Questions(template, options, seed, per_class, _names_in(names), leave_out or ())
    typer.echo(f"wrote {write_questions(folder, output, how)} questions to {output}")


def _names_in(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        names = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{file} cannot be read as JSON: give an object of folders and names") from exc
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise ConfigError(f"{file} must be an object with a name for each folder")
    return names
