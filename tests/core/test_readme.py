"""README and docs tell the truth: modules, files, targets, commands, links, settings and names exist."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from typer.main import get_command

from deploy.dashboards.catalogue import rewritten
from modint_guard.judging.risk import Thresholds
from modint_guard.schema import ModintObject, ProbeObject
from modint_guard.types import CELLS, SKIPPED_REASONS, UNSCORED_REASONS, Cause, ProbeOutcome, State
from modint_server.request.intake import STRIPPED, STRIPPED_PREFIXES
from modint_server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/runbooks").glob("*.md")))
PACKAGES = ("modint_guard", "server/modint_server", "training/modint_training")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))


def text(page: Path) -> str:
    return page.read_text("utf-8")


def section(page: Path, title: str) -> str:
    """The lines under one heading, down to the next of the same or a higher level."""
    heading = re.search(rf"^(#+) {re.escape(title)}$", text(page), re.MULTILINE)
    assert heading, f"{page.name} has no section {title!r}"
    below = text(page)[heading.end() :]
    following = re.search(rf"^#{{1,{len(heading[1])}}} ", below, re.MULTILINE)
    return below[: following.start()] if following else below


def code(page: Path) -> str:
    """Everything set as code: fenced, indented or between backticks."""
    fenced = [match[2] for match in FENCE.finditer(text(page))]
    rest = FENCE.sub("", text(page))
    indented = [line for line in rest.splitlines() if line.startswith("    ")]
    return "\n".join([*fenced, *indented, *re.findall(r"`([^`\n]+)`", rest)])


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def tree() -> dict[str, str]:
    """Path -> comment of the file tree; folders end with a slash."""
    (block,) = (match[2] for match in FENCE.finditer(section(README, "The files")))
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


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def modules_named(page: Path) -> set[str]:
    return set(re.findall(r"\bmodint_(?:guard|server|training)(?:\.\w+)+", text(page)))


def exists(dotted: str) -> bool:
    """A module, or a name that a module defines. A module of its own is not imported: some need torch."""
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


def commands_named(page: Path) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"\bmodint-guard ([a-z][\w-]*)(?: ([a-z][\w-]*))?", code(page))


def unnamed(names: Iterable[str], where: str) -> list[str]:
    return [name for name in names if f"`{name}`" not in where]


def test_the_life_of_a_request_names_modules_that_exist() -> None:
    life = section(README, "The life of a request")
    named = set(re.findall(r"`(modint_\w+(?:\.\w+)+)`", life))
    assert len(named) >= 15
    assert [name for name in named if find_spec(name) is None] == []


@pages
def test_every_module_named_exists(page: Path) -> None:
    assert [name for name in modules_named(page) if not exists(name)] == []


def test_the_file_tree_holds_every_file_of_the_packages() -> None:
    shown = tree()
    leaves = {
        path
        for path in shown
        if path.endswith("/") and not any(p != path and p.startswith(path) for p in shown)
    }
    ours = [path.relative_to(ROOT).as_posix() for path in tracked()]
    missing = [
        name
        for name in ours
        if name.startswith(PACKAGES) and name not in shown and not name.startswith(tuple(leaves))
    ]
    assert missing == []


def test_the_file_tree_holds_no_file_that_does_not_exist() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_line_of_the_file_tree_says_what_it_is() -> None:
    assert [path for path, comment in tree().items() if not comment] == []


@pages
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code(page)))
    assert {name for name in named if not name.startswith("bench-")} <= targets


@pages
def test_every_command_named_exists(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = set(project["entry-points"]["modint_guard.commands"])
    assert {command for command, _ in commands_named(page)} <= known


@pages
def test_every_recipe_and_result_named_exists(page: Path) -> None:
    from bench.__main__ import app
    from modint_training.recipe import recipe_names

    for command, word in commands_named(page):
        assert not word or command != "train" or word in recipe_names(), f"modint-guard {command} {word}"
    named = set(re.findall(r"\bpython -m bench ([a-z][\w-]*)|\bmake bench-([a-z][\w-]*)", code(page)))
    assert {table or target for table, target in named} <= set(getattr(get_command(app), "commands", {}))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.name))
def test_relative_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(page))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_python_examples_compile(page: Path) -> None:
    for language, block in FENCE.findall(text(page)):
        if language == "python":
            compile(block, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_the_example_of_a_verdict_is_one() -> None:
    (shown,) = (json.loads(block) for language, block in FENCE.findall(text(README)) if language == "json")
    assert ModintObject.model_validate(shown).verdict == "flagged"
    assert set(shown) == {field.alias or name for name, field in ModintObject.model_fields.items()}
    assert {key for probe in shown["probes"] for key in probe} == set(ProbeObject.model_fields)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| `(MODINT_\w+)` \| `?([^`|]+?)`? \|", section(README, "Configuration"), re.M)
    defaults = {
        ENV_PREFIX + name.upper(): f"{field.default:g}"
        if isinstance(field.default, float)
        else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert dict(rows) == {
        name: {"None": "none", "()": "none"}.get(value, value) for name, value in defaults.items()
    }


def test_the_table_of_metrics_is_what_the_code_makes() -> None:
    page = text(ROOT / "docs" / "metrics.md")
    assert rewritten(page) == page, "run `make generated`"


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        rewritten("# Metrics")


def test_the_readme_names_no_metric_that_does_not_exist() -> None:
    families = text(ROOT / "docs" / "metrics.md")
    named = set(re.findall(r"`(modint_\w+_(?:total|seconds|ratio|flight|up))`", text(README)))
    assert named and unnamed(sorted(named), families) == []


def test_every_reason_verdict_and_probe_is_explained() -> None:
    page = ROOT / "docs" / "probes.md"
    assert unnamed([*UNSCORED_REASONS], section(page, "Why an answer is `unscored`")) == []
    assert unnamed([*SKIPPED_REASONS], section(page, "Why an answer is `skipped`")) == []
    assert unnamed([*CELLS, *State, *Cause, *ProbeOutcome], text(page)) == []


def test_every_threshold_is_stated_as_it_is() -> None:
    said = text(ROOT / "docs" / "probes.md")
    pairs = [*re.findall(r"`(\w+)` \((0\.\d+)\)", said)]
    pairs += [(name, value) for value, name in re.findall(r"(0\.\d+) \(`(\w+)`\)", said)]
    assert {name: float(value) for name, value in pairs} == {
        name: getattr(Thresholds(), name) for name in ("flip_margin", "confident", "flag_at")
    }


def test_every_field_of_the_object_is_explained() -> None:
    said = section(ROOT / "docs" / "probes.md", "The object")
    fields = {field.alias or name for name, field in ModintObject.model_fields.items()}
    assert unnamed([*fields, *ProbeObject.model_fields], said) == []


def test_every_stripped_field_is_named() -> None:
    said = section(ROOT / "docs" / "gateway.md", "Fields that are stripped")
    assert unnamed([*STRIPPED, *STRIPPED_PREFIXES, "uuid"], said) == []


def test_no_tracked_text_names_a_registry_or_a_folder_of_some_machine() -> None:
    registry = re.compile(
        r"\b(?:py" + r"pi\.org|python" + r"hosted|ana" + r"conda\.org|npm" + r"js\.org)|/sim" + r"ple\b"
    )
    folder = re.compile(r"(?<![\w.:/$}-])/(?:home|root|work|Users|mnt|srv|tmp)/\w")
    found = []
    for path in tracked():
        try:
            held = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {match[0]}"
            for match in (registry.search(held), folder.search(held))
            if match
        ]
    assert found == []


def test_the_cpu_index_of_torch_stands_in_the_makefile_alone() -> None:
    index = "download." + "pytorch.org"
    holding = [
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        for _ in range(path.read_bytes().count(index.encode()))
    ]
    assert holding == ["Makefile"]


def test_the_measured_table_is_the_result_file() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    rows = json.loads((ROOT / "bench/results/tinyworld.json").read_text("utf-8"))["rows"]
    chosen = [row for row in rows if row["form"] == "all" and row["task"] == "all"]
    assert chosen
    for row in chosen:
        start = f"| {row['family']} | {row['perturbation']} | {row['held_out']} |"
        (line,) = (line for line in text.splitlines() if line.startswith(start))
        assert f"{row['accuracy']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in line
        assert f"| {row['flagged_rate']:.3f} |" in line


def test_the_training_page_shows_the_bases_figures_of_the_result_file() -> None:
    from bench.tinyworld import PAGE, PAGE_BY, base_table
    from modint_guard.evaluation.results import rewritten as with_blocks

    rows = json.loads((ROOT / "bench/results/base.json").read_text("utf-8"))["rows"]
    page = text(ROOT / PAGE)
    assert with_blocks(page, {"base": base_table(rows)}, PAGE_BY) == page, "run `make bench-base`"


# Figures in prose


def measured(name: str, /, **wanted: object) -> dict[str, Any]:
    """The one row of a result file that holds these values."""
    rows: list[dict[str, Any]] = json.loads((ROOT / f"bench/results/{name}.json").read_text("utf-8"))["rows"]
    (row,) = (row for row in rows if wanted.items() <= row.items())
    return row


def prose(page: Path) -> str:
    """A page with every run of blanks as one."""
    return " ".join(text(page).split())


@pytest.mark.parametrize("views", ["early stop", "all at once", "one"])
def test_the_page_on_probes_quotes_the_ratios_of_the_latency_table(views: str) -> None:
    shown = []
    for prompts in ("short", "padded"):
        asked = {"views": views, "prompts": prompts, "answers": "32 tokens", "judged_at": "first token"}
        row = measured("latency", load="open", **asked)
        shown.append(f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]")
    page = prose(ROOT / "docs/probes.md")
    assert f"| {' | '.join(shown)} |" in page
    if views == "early stop":
        _, low, high = re.findall(r"[\d.]+", shown[0])
        ratio = shown[0].split()[0]
        assert f"take {ratio} times as long with the guard (median, 95 % interval {low} to {high})" in page


def test_the_training_page_quotes_what_a_step_of_the_whole_method_takes() -> None:
    full = measured("training_bench", method="full, T=1")
    plain = measured("training_bench", method="straightforward full, T=1")
    page = prose(ROOT / "docs/training.md")
    for quoted in (
        f"takes {full['times_sft']:.2f} times one of plain SFT (quartiles {full['times_sft_q1']:.2f} and "
        f"{full['times_sft_q3']:.2f}; counted operations allow {full['bound_times_sft']:.2f})",
        f"is {full['faster_than_straightforward']:.2f} times as fast as the straightforward one, and wants "
        f"{full['peak_times_sft']:.1f} times the memory where that wants {plain['peak_times_sft']:.1f}",
        f"{full['gmac_times_sft']:.2f} times the multiply-adds of plain SFT",
    ):
        assert quoted in page


def test_the_limits_quote_what_the_adapter_makes_of_needed_captions() -> None:
    setting = {"setting": "text-driven", "held_out": "no", "kind": "needed"}
    adapter = measured("detection_flags", model="robust-lora", **setting)
    base = measured("detection_flags", model="tinyworld-base", **setting)
    assert base["wrong"] == 0
    quoted = (
        f"{adapter['wrong']} of its {adapter['n']} answers were wrong, and none of the base's {base['n']}"
    )
    assert quoted in prose(README)


def test_the_page_on_mitigation_quotes_what_it_says_of_tokens_and_needed_captions() -> None:
    def tokens(goal: str) -> float:
        return float(measured("mitigation_goals", goal=goal)["value"])

    needed = {"model": "tinyworld-base", "setting": "image-heavy/poor_print/relevant auto", "held_out": "no"}
    trusting, greedy = (
        measured("mitigation", policy=policy, **needed)["accuracy"]
        for policy in ("ladder_trusting", "greedy")
    )
    page = prose(ROOT / "docs/mitigation.md")
    for quoted in (
        f"{tokens('tokens, unflagged, short prompts'):.2f} over these settings",
        f"and {tokens('computed tokens, unflagged, short prompts'):.2f} with what the engine's cache saves",
        f"computes {tokens('computed tokens, unflagged, padded prompts'):.2f} times as many tokens",
        f"take {tokens('tokens, flagged, padded prompts'):.1f} (computed: "
        f"{tokens('computed tokens, flagged, padded prompts'):.1f})",
        f"was right in {trusting:.2f} of these answers in place of {greedy:.2f}",
    ):
        assert quoted in page


def test_the_page_on_mitigation_quotes_how_often_flagged_answers_went_on_to_the_adapter() -> None:
    rows = json.loads((ROOT / "bench/results/mitigation_tokens.json").read_text("utf-8"))["rows"]
    ways: dict[str, list[tuple[str, int]]] = {"short": [], "padded": []}
    for row in rows:
        for way in filter(None, (row["rungs"] or "").split("; ")):
            rungs, often = way.split(": ")
            ways[row["prompt"]].append((rungs, int(often)))
    went_on = sum(often for rungs, often in ways["padded"] if "escalate" in rungs)
    settled = sum(often for rungs, often in ways["short"] if rungs.startswith("neutralise mended"))
    padded, short = (sum(often for _, often in ways[prompt]) for prompt in ("padded", "short"))
    page = prose(ROOT / "docs/mitigation.md")
    assert f"for {went_on} of these {padded} the ladder went on to the adapter" in page
    assert settled == short and f"prompts `neutralise` settled all {short}." in page


def ablation(name: str, *cells: tuple[str, str]) -> float:
    """Mean accuracy of one recipe over its seeds in these cells: perturbation, what is held out."""
    rows = json.loads((ROOT / "bench/results/ablation.json").read_text("utf-8"))["rows"]
    own = [row for row in rows if row["name"] == name and (row["perturbation"], row["held_out"]) in cells]
    return float(sum(row["accuracy"] for row in own) / len(own))


def test_the_training_page_quotes_what_each_part_of_the_method_came_to() -> None:
    lies, pictures = ("misleading_description", "no"), ("contradicting_image", "no")
    reworded = tuple((name, "wording") for name, _ in (lies, pictures))
    sft, aug, full, unmasked = (
        ablation(f"tinyworld-{n}", lies) for n in ("sft", "aug", "full", "full-nomask")
    )
    twins, attacked, noisy = (ablation(f"tinyworld-{n}", *reworded) for n in ("aug", "adv", "gaussian"))
    parts = ("aug", "cons-kl", "cons-js", "gaussian", "adv", "full", "full-nomask", "paper", "sft")
    beside = [ablation(f"tinyworld-{name}", pictures) for name in parts]
    base, shipped = (ablation(name, pictures) for name in ("tinyworld-base", "robust-lora"))
    page = prose(ROOT / "docs/training.md")
    for quoted in (
        f"lying captions as they were ({sft:.3f} right), perturbed twins bring {aug:.3f}.",
        f"twins come to {twins:.3f}, with the adversarial loss to {attacked:.3f}, with Gaussian noise in its "
        f"place to {noisy:.3f}",
        f"the whole method loses {100 * (full - unmasked):.1f} points under lying captions",
        f"all stay at {min(beside):.3f} to {max(beside):.3f}, where the base is at {base:.3f}",
        f"is at {shipped:.3f}.",
    ):
        assert quoted in page


def test_the_limits_quote_by_how_much_the_adapter_misses_its_goals() -> None:
    own = {"name": "robust-lora", "seed": 0}
    pictures = measured("ablation", **own, perturbation="contradicting_image", held_out="no")
    lies = measured("ablation", **own, perturbation="misleading_description", held_out="wording")
    vqa = [
        measured("ablation", name=name, family="vqa", held_out="wording")["accuracy"]
        for name in ("tinyworld-base", "robust-lora")
    ]
    page = prose(README)
    for quoted in (
        f"it is right {-100 * pictures['change']:.1f} points less often than without one",
        f"held-out wordings {-100 * lies['change']:.1f} points (goal: 3) with "
        f"{100 * lies['harmful_flip']:.1f} % harmful flips",
        f"its vqa is up to {100 * (vqa[0] - vqa[1]):.1f} points below the base's",
    ):
        assert quoted in page
