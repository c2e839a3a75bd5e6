"""The pages tell the truth: what they name exists, their tables are complete; all are short and linked."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from PIL import Image
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from deploy.dashboards.catalogue import rewritten
from modint_guard.chat.images import ImageLimits
from modint_guard.cli import GROUP, build_app
from modint_guard.config import GuardConfig
from modint_guard.data.perturb import REGISTRY
from modint_guard.judging.risk import Thresholds
from modint_guard.models.picturebook import CACHE_VARIABLE
from modint_guard.schema import ModintObject, ProbeObject
from modint_guard.types import CELLS, SKIPPED_REASONS, UNSCORED_REASONS, Cause, ProbeOutcome, State
from modint_server.request.intake import STRIPPED, STRIPPED_PREFIXES
from modint_server.settings import ENV_PREFIX, Settings
from tests.core.pages import (
    CHANGELOG,
    DOCS,
    INDEX,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    code,
    linked_pages,
    links,
    name_of,
    section,
    spans,
    table_rows,
    text,
    tracked,
    words_of,
)

ARCHITECTURE, CONFIGURATION = DOCS / "architecture.md", DOCS / "configuration.md"
PACKAGES = (
    "modint_guard/",
    "server/modint_server/",
    "training/modint_training/",
    "bench/",
    "deploy/dashboards/",
)
MOST_WORDS = 2500
BANNED = (
    r"learnt|mends?|mended|mending|cures?|cured|obituary|sureness|besides|whereof|thrifty",
    r"dealt out|taken up|takes up|took up|laid out|told of|of one's own|in silence|for want of",
    r"stands? (?:in|on|under|beside|above|below|there|alone|as it is)|stood (?:in|on)",
)
pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def unnamed(names: Iterable[str], where: str) -> list[str]:
    return [name for name in names if f"`{name}`" not in where]


# -- short, plain, linked ----------------------------------------------------------------------------


def test_the_readme_is_read_in_five_minutes() -> None:
    assert 150 <= len(text(README).splitlines()) <= 200


@pages
def test_a_page_is_not_too_long(page: Path) -> None:
    assert len(text(page).split()) <= MOST_WORDS


@pages
def test_a_page_is_written_in_plain_words(page: Path) -> None:
    found = [match for words in BANNED for match in re.findall(rf"\b(?:{words})\b", words_of(page), re.I)]
    assert found == []


def test_every_page_is_reached_from_the_index() -> None:
    reached, waiting = set[Path](), [INDEX]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += [each for each in linked_pages(page) if each not in reached and each.is_file()]
    assert [name_of(page) for page in PAGES if page not in reached] == []


def test_the_index_has_one_line_for_each_page_of_its_folder() -> None:
    listed = re.findall(r"^- \[([\w.-]+)\]\([\w./-]+\): \S", text(INDEX), re.MULTILINE)
    assert sorted(listed) == sorted(
        [*(page.name for page in DOCS.glob("*.md") if page != INDEX), "CONTRIBUTING.md", "CHANGELOG.md"]
    )


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# -- what is named exists ----------------------------------------------------------------------------


def exists(dotted: str) -> bool:
    """A module, or a name that a module defines. A module itself is not imported: some need torch."""
    try:
        if find_spec(dotted) is not None:
            return True
    except ModuleNotFoundError:  # what is before the last dot is no package
        pass
    try:
        resolve_name(dotted)
    except (AttributeError, ImportError):
        return False
    return True


@pages
def test_every_module_named_exists(page: Path) -> None:
    named = set(re.findall(r"\bmodint_(?:guard|server|training)(?:\.\w+)+", text(page)))
    groups = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["entry-points"]
    assert [name for name in sorted(named) if name not in groups and not exists(name)] == []


@pages
def test_every_file_named_exists(page: Path) -> None:
    named = re.compile(
        r"(?:modint_guard|server|training|bench|tests|deploy|docs)/[\w./-]*|[\w-]+\.(?:txt|toml)"
    )
    missing = [span for span in spans(page) if named.fullmatch(span) and not (ROOT / span).exists()]
    assert [span for span in missing if "NAME" not in span and span not in ("dataset_info.json",)] == []


@cache
def guard_command() -> TyperGroup:
    """`modint-guard` with the commands that pyproject.toml names."""
    points = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["entry-points"][GROUP]
    found = {name: EntryPoint(name, value, GROUP) for name, value in points.items()}
    command = get_command(build_app(found, None))
    assert isinstance(command, TyperGroup)
    return command


@cache
def bench_command() -> TyperGroup:
    from bench.__main__ import app

    command = get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def named_calls(page: Path, program: str) -> list[tuple[str, str]]:
    """Command and the rest of its line, without what follows a comment sign or belongs to vLLM."""
    called = re.findall(rf"(?:{program}) ([a-z][\w-]*)(?!\S*\.)([^\n]*)", code(page))
    return [(command, re.split(r" #| -- |;|\|", rest)[0]) for command, rest in called]


def unknown_in(command: Any, rest: str) -> list[str]:
    """The subcommand or the options of a call that the command does not know."""
    word = (rest.split() or [""])[0].strip("`")
    if isinstance(command, TyperGroup):
        if not re.fullmatch(r"[a-z][\w-]*", word):
            return []
        return unknown_in(command.commands[word], rest) if word in command.commands else [word]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return [name for name in re.findall(r"(?<!\S)\[?(--[a-z][\w-]*)", rest) if name not in {*known, "--help"}]


@pages
def test_every_command_named_exists_with_its_options(page: Path) -> None:
    for program, group in ((r"\bmodint-guard", guard_command()), (r"\bpython -m bench", bench_command())):
        for name, rest in named_calls(page, program):
            assert name in group.commands, f"{program} {name}"
            assert unknown_in(group.commands[name], rest) == [], f"{program} {name}{rest}"


def test_an_option_that_a_command_does_not_know_is_found() -> None:
    serve, adapters = (guard_command().commands[name] for name in ("serve", "adapters"))
    assert unknown_in(serve, " --model FOLDER [--adaptor NAME]") == ["--adaptor"]
    assert unknown_in(adapters, " doctor NAME --fix --mend") == ["--mend"]
    assert unknown_in(adapters, " heal NAME") == ["heal"]


@pages
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", text(ROOT / "Makefile"), re.MULTILINE))
    tables = {f"bench-{name}" for name in bench_command().commands}
    named = re.findall(r"\bmake ((?:[a-z][a-z-]*)(?: bench-[a-z-]+)*)", code(page))
    assert {word for words in named for word in words.split()} <= targets | tables


@pages
def test_every_recipe_named_exists(page: Path) -> None:
    from modint_training.recipe_files import recipe_names

    called = [
        rest.split()[0]
        for name, rest in named_calls(page, r"\bmodint-guard")
        if name == "train" and rest.split()
    ]
    assert [
        word for word in called if re.fullmatch(r"[a-z][\w-]*", word) and word not in recipe_names()
    ] == []


@pages
def test_every_setting_and_metric_named_exists(page: Path) -> None:
    settings = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CACHE_VARIABLE}
    assert set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+\b", text(page))) <= settings
    named = set(
        re.findall(r"\bmodint_\w+_(?:total|seconds|ratio|flight|up|ok|depth|info|modules)\b", text(page))
    )
    assert unnamed(sorted(named), text(DOCS / "metrics.md")) == []


@pages
def test_python_examples_compile(page: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            compile(block, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


# -- the file tree and the lives ---------------------------------------------------------------------


@cache
def tree() -> dict[str, str]:
    """Path -> comment of the file tree; folders end with a slash."""
    (block,) = (content for _, content in blocks(ARCHITECTURE))
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in block.splitlines():
        name, _, comment = line.strip().partition("  ")
        depth = len(line) - len(line.lstrip())
        above = [(at, folder) for at, folder in above if at < depth]
        path = "".join(folder for _, folder in above) + name
        if name.endswith("/"):
            above.append((depth, name))
        found[path] = comment.strip()
    return found


@cache
def modules() -> dict[str, set[str]]:
    """Folder of our packages -> the names of its modules, `__init__` and `__main__` left out."""
    found: dict[str, set[str]] = {}
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(PACKAGES) and not name.startswith("bench/results/"):
            folder = found.setdefault(f"{name.rpartition('/')[0]}/", set())
            folder |= {path.stem} if path.suffix == ".py" and not path.stem.startswith("__") else set()
    return found


def test_the_file_tree_holds_every_folder_and_every_module_of_the_packages() -> None:
    shown = tree()
    missing = [folder for folder in modules() if folder not in shown]
    for folder, names in modules().items():
        listed = set(shown.get(folder, "").rpartition(": ")[2].split(", "))
        missing += [
            f"{folder}{name}.py" for name in names if f"{folder}{name}.py" not in shown and name not in listed
        ]
    assert missing == []


def test_the_file_tree_holds_nothing_that_does_not_exist() -> None:
    gone = [path for path in tree() if not (ROOT / path).exists()]
    for folder, comment in tree().items():
        listed = comment.rpartition(": ")[2].split(", ") if folder in modules() and ": " in comment else []
        if listed and any(name in modules()[folder] for name in listed):
            gone += [f"{folder}{name}.py" for name in listed if name not in modules()[folder]]
    assert gone == []


def test_every_line_of_the_file_tree_says_what_it_is() -> None:
    assert [path for path, comment in tree().items() if not comment] == []


@pytest.mark.parametrize(
    ("title", "least"), [("The life of a request", 20), ("The life of a training run", 12)]
)
def test_a_life_names_the_module_of_each_step(title: str, least: int) -> None:
    named = set(re.findall(r"`(modint_\w+(?:\.\w+)+)`", section(ARCHITECTURE, title)))
    assert len(named) >= least
    assert [name for name in sorted(named) if find_spec(name) is None] == []


# -- tables are complete -----------------------------------------------------------------------------


def shown(value: object) -> str:
    """A default as the page's tables write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return "none" if value is None else str(value)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = table_rows(section(CONFIGURATION, "Environment"))
    assert {name.strip("`"): default.strip("`") for name, default, _ in rows} == {
        ENV_PREFIX + name.upper(): shown(field.default) for name, field in Settings.model_fields.items()
    }


def test_every_flag_of_serve_is_in_the_table() -> None:
    rows = table_rows(section(CONFIGURATION, "Flags of `modint-guard serve`"))
    named = {re.split(r"[ =]", name.strip("`"))[0] for name, *_ in rows}
    assert named - {"--"} == {
        option.opts[0]
        for option in guard_command().commands["serve"].params
        if isinstance(option, TyperOption)
    }


def test_every_number_of_the_guard_is_in_the_table_with_its_default() -> None:
    rows = table_rows(section(CONFIGURATION, "The library: `GuardConfig`"))
    given = {name: default for names, default, _ in rows for name in re.findall(r"`(\w+)`", names)}
    config, thresholds = GuardConfig(), Thresholds()
    assert set(given) == {field.name for kind in (config, thresholds) for field in fields(kind)}
    for record in (config, thresholds):
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, str | float | int) and not given[field.name].count(","):
                assert given[field.name].strip("`") == shown(value), field.name
    limits = {f"`{field.name}` {getattr(ImageLimits(), field.name)}" for field in fields(ImageLimits)}
    assert [
        each for each in sorted(limits) if each not in section(CONFIGURATION, "The library: `GuardConfig`")
    ] == []


def test_every_perturbation_is_in_the_table_with_its_role() -> None:
    rows = table_rows(text(DOCS / "perturbations.md"))
    assert [(name.strip("`"), changes, role.replace(" ", "_")) for name, changes, role, *_ in rows] == [
        (kind.name, kind.modality, kind.role) for kind in REGISTRY.values()
    ]


def test_the_glossary_defines_each_word_once() -> None:
    terms = [
        term.strip()
        for cells in table_rows(text(DOCS / "glossary.md"))
        for term in re.split(r", (?=\w)", cells[0])
    ]
    assert [term for term in terms if terms.count(term) > 1] == []
    wanted = (
        "probe view cell action rung ladder policy influence risk verdict cause relevance calibration twin"
    )
    assert {*wanted.split(), "modality interference", "perturbation", "held-out wording", "world"} <= set(
        terms
    )


def test_the_table_of_metrics_is_what_the_code_makes() -> None:
    page = text(DOCS / "metrics.md")
    assert rewritten(page) == page, "run `make generated`"


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        rewritten("# Metrics")


def test_every_reason_verdict_and_probe_is_explained() -> None:
    page = DOCS / "verdicts.md"
    assert unnamed([*UNSCORED_REASONS], section(page, "Why an answer is `unscored`")) == []
    assert unnamed([*SKIPPED_REASONS], section(page, "Why an answer is `skipped`")) == []
    assert unnamed([*CELLS, *State, *Cause, *ProbeOutcome], text(page)) == []


def test_every_threshold_is_stated_as_it_is() -> None:
    said = text(DOCS / "verdicts.md") + text(DOCS / "scores.md")
    pairs = [*re.findall(r"`(\w+)` \((0\.\d+)\)", said)]
    pairs += [(name, value) for value, name in re.findall(r"(0\.\d+) \(`(\w+)`\)", said)]
    assert {name: float(value) for name, value in pairs} == {
        name: getattr(Thresholds(), name) for name in ("flip_margin", "sure", "certain")
    }


def test_every_field_of_the_object_is_explained() -> None:
    said = section(DOCS / "verdicts.md", "The object")
    named = {field.alias or name for name, field in ModintObject.model_fields.items()}
    assert unnamed([*named, *ProbeObject.model_fields], said) == []


def test_every_stripped_field_is_named() -> None:
    said = section(DOCS / "gateway.md", "Fields that are stripped")
    assert unnamed([*STRIPPED, *STRIPPED_PREFIXES, "uuid"], said) == []


# -- the examples ------------------------------------------------------------------------------------


def example(page: Path) -> dict[str, Any]:
    (found,) = (json.loads(block) for language, block in blocks(page) if language == "json")
    return dict(found)


def of_the_picture(key: str, name: str = "flagged") -> str:
    """What a picture of the README says about itself."""
    with Image.open(DOCS / f"{name}.png") as picture:
        return str(picture.info[key])


def test_the_whole_example_of_a_verdict_is_one() -> None:
    whole = example(DOCS / "verdicts.md")
    assert ModintObject.model_validate(whole).verdict == "flagged"
    assert set(whole) == {field.alias or name for name, field in ModintObject.model_fields.items()}
    assert {key for probe in whole["probes"] for key in probe} == set(ProbeObject.model_fields)


def rounded(value: Any) -> Any:
    """The same with numbers of three decimals."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def test_the_examples_are_the_object_of_the_readmes_picture() -> None:
    real, short = rounded(json.loads(of_the_picture("modint"))), example(README)
    shown = example(DOCS / "verdicts.md")
    assert shown == real
    assert short == {key: real[key] for key in short}
    assert unnamed(short, section(README, "What comes back")) == []


@pytest.mark.parametrize(("name", "command"), [("flagged", "picture"), ("coloured", "coloured")])
def test_who_cannot_see_a_picture_reads_what_it_shows(name: str, command: str) -> None:
    assert re.findall(rf"!\[(.*?)\]\(docs/{name}\.png\)", text(README)) == [
        of_the_picture("Description", name)
    ]
    assert of_the_picture("Comment", name).startswith(f"Made by `python -m bench {command}` at commit ")


def test_the_coloured_answer_is_one_of_both_inputs() -> None:
    modint = json.loads(of_the_picture("modint", "coloured"))
    words = {span["text"]: span for span in modint["spans"] if span["kind"] == "word"}
    given = {name: max(span["influence"], key=span["influence"].get) for name, span in words.items()}
    assert (modint["verdict"], modint["cause"]) == ("flagged", "text")
    assert (words["green"]["cause"], given["green"], given["book"]) == ("text", "text", "image")


# -- what no file may say ----------------------------------------------------------------------------


def test_no_tracked_text_names_a_registry_or_a_folder_of_some_machine() -> None:
    registry = re.compile(
        r"\b(?:py" + r"pi\.org|python" + r"hosted|ana" + r"conda\.org|npm" + r"js\.org)|/sim" + r"ple\b"
    )
    folder = re.compile(r"(?<![\w.:/$}-])/(?:home|root|work|Users|mnt|srv|tmp)/\w")
    found = []
    for path in tracked():
        try:
            content = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {match[0]}"
            for match in (registry.search(content), folder.search(content))
            if match
        ]
    assert found == []


def test_the_cpu_index_of_torch_is_in_the_makefile_alone() -> None:
    index = "download." + "pytorch.org"
    holding = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        for _ in range(path.read_bytes().count(index.encode()))
    ]
    assert holding == ["Makefile"]
