"""Locating interference: in a model with a planted head the map finds it; hooks leave nothing behind."""

import json
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from modint_guard.cli import main
from modint_guard.data.perturb import perturb
from modint_guard.errors import ConfigError
from modint_guard.evaluation.journal import Journal
from modint_training.locate.adapter import lora_modules, switched_off
from modint_training.locate.attention import masses
from modint_training.locate.knockout import allowed, cut, knockouts
from modint_training.locate.located import Located, located
from modint_training.locate.page import html, markdown
from modint_training.locate.patching import attributions, exact_gaps
from modint_training.locate.scoring import answered
from modint_training.locate.study import Desk, Measured, studied
from modint_training.locate.subject import (
    Site,
    Subject,
    gaps,
    last_logits,
    recorded_states,
    replaced,
    run_of,
    subject_of,
)
from modint_training.locate.twins import (
    CONTEXT,
    GROUPS,
    IMAGE,
    LAST,
    NO_LIE,
    ONE_TOKEN,
    QUESTION,
    UNEQUAL,
    Twins,
    in_batches,
    in_halves,
    twins_of,
)
from modint_training.models.loading import lora_config
from modint_training.tinyworld import suite
from tests.training.planted import HEAD, LAYER, digit_items, planted
from tests.training.small import lora_recipe
from tests.training.small_families import small_family

LOCATE = [EntryPoint("locate", "modint_training.commands:locate", "modint_guard.commands")]


@pytest.fixture(scope="module")
def subject(processor: Any) -> Subject:
    """The model with the planted head."""
    return subject_of(planted(processor), processor)


@pytest.fixture(scope="module")
def twins(processor: Any) -> list[Twins]:
    made, dropped = twins_of(digit_items(16), processor, seed=0)
    assert not dropped
    return made


def measured_in(folder: Path, subject: Subject, twins: list[Twins], exact: int = 3) -> Measured:
    with Journal(folder / "records.jsonl", {"exact": exact}) as journal, _quiet() as progress:
        return studied(Desk(subject, journal, progress), twins, Counter(), exact=exact)


def _quiet() -> Progress:
    return Progress(console=Console(quiet=True))


@pytest.fixture(scope="module")
def measured(subject: Subject, twins: list[Twins], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measured_in(tmp_path_factory.mktemp("planted"), subject, twins)


@pytest.fixture(scope="module")
def report(measured: Measured) -> Located:
    return located(measured, Counter({UNEQUAL: 2}), model="planted", data="digits")


# -- twins ----------------------------------------------------------------------------------------------


def test_twins_differ_in_what_the_caption_claims_and_in_nothing_else(processor: Any) -> None:
    (item,) = digit_items(1)
    (twin,), _ = twins_of([item], processor, seed=0)
    differing = [
        place for place, ids in enumerate(zip(twin.clean.ids, twin.lie.ids, strict=True)) if len({*ids}) > 1
    ]
    assert {twin.groups[place] for place in differing} == {CONTEXT}
    texts = [processor.tokenizer.decode([row.ids[differing[0]]]).strip() for row in (twin.clean, twin.lie)]
    assert texts == [item.answer, item.wrong]
    assert twin.groups[-1] == LAST and twin.groups.count(LAST) == 1
    assert CONTEXT not in {*twin.groups} - {CONTEXT} and len(twin.bare.ids) < len(twin.lie.ids)
    assert [processor.tokenizer.decode([each]) for each in (twin.true, twin.false)] == [
        item.answer,
        item.wrong,
    ]


def test_a_text_heavy_item_is_lied_to_by_its_picture(processor: Any) -> None:
    (item,) = suite.items("text-heavy", "test", 1)
    (twin,), _ = twins_of([item], processor, seed=0)
    assert twin.clean.ids == twin.lie.ids and twin.told is None
    assert twin.clean.image == item.agreeing and twin.lie.image == item.contradicting
    assert twin.bare.image is None


def test_what_has_no_twins_is_counted_by_reason(processor: Any) -> None:
    (item,) = digit_items(1)
    long = item.replace(lie="A rather long text of its own says the digit 3 is seen.", truth="Short.")
    alike = item.replace(replies=tuple(f"number {choice}" for choice in item.choices))
    items = [
        item.replace(wrong=""),
        long.replace(wrong="3", answer="7"),
        alike,
        suite.items("vqa", "test", 1)[0],
    ]
    twins, dropped = twins_of(items, processor, seed=0)
    assert twins == [] and dropped == {NO_LIE: 1, UNEQUAL: 1, ONE_TOKEN: 1}


def test_batches_hold_rows_of_similar_length_and_each_row_once() -> None:
    assert list(in_batches([10, 2000, 12, 11])) == [[0, 3, 2], [1]]


def test_halves_share_no_source(twins: list[Twins]) -> None:
    first, second = in_halves(twins)
    assert len(first) + len(second) == len(twins) and abs(len(first) - len(second)) <= 6
    assert not {each.source for each in first} & {each.source for each in second}


# -- the planted head -----------------------------------------------------------------------------------


def test_the_planted_model_says_what_the_caption_claims(measured: Measured) -> None:
    every = measured.every
    assert all(right["clean"] and not right["lie"] for right in every.right)
    assert len(every.moved("image-heavy")) == len(every.twins) == 16


def test_the_map_finds_the_planted_head(report: Located) -> None:
    heads = [row for row in report.rows if row["site"] == "head"]
    found, *others = sorted(heads, key=lambda row: -row["attribution"])
    assert (found["layer"], found["head"], found["group"]) == (LAYER, HEAD, "last")
    assert found["recovery"] == pytest.approx(1, abs=0.05)
    assert max(abs(row["attribution"]) for row in others) < 0.05


def test_ablated_alone_the_planted_head_does_most_harm(measured: Measured) -> None:
    assert measured.heads["image-heavy"][0] == (LAYER, HEAD)
    beside, bare = measured.screened["image-heavy"][LAYER, HEAD]
    assert beside > 1 and abs(bare) < beside


def test_only_the_edge_from_the_context_carries_the_lie(report: Located) -> None:
    gained = {(row["edge"], row["layer"]): row["gap"] for row in report.tables["edges"].rows}
    assert max(gained, key=lambda key: gained[key]) == ("context to last", LAYER)
    others = [abs(value) for key, value in gained.items() if key != ("context to last", LAYER)]
    assert max(others) < 0.05 * gained["context to last", LAYER]


def test_the_deciding_position_attends_to_the_context_where_the_head_is(report: Located) -> None:
    rows = {(row["layer"], row["head"]): row["context"] for row in report.tables["heads"].rows}
    assert max(rows, key=lambda key: rows[key]) == (LAYER, HEAD) and rows[LAYER, HEAD] > 0.9


def test_the_report_names_it_in_words_and_pictures(report: Located) -> None:
    assert any(f"head {LAYER}.{HEAD} at the group `last`" in sentence for sentence in report.finding)
    assert "2 items of unequal length as truth and as lie" in report.notes[0]
    record = {"command": "made", "seeds": [0], "commit": "c", "rows": report.rows}
    page = html(record, report)
    assert page.count("<svg") >= 5 and "http:" not in page and "https:" not in page and "<script" not in page
    assert "## Edges cut" in markdown(record, report)


# -- patching -------------------------------------------------------------------------------------------


def test_nothing_patched_is_the_lying_run_and_every_position_is_the_clean_one(
    subject: Subject, twins: list[Twins]
) -> None:
    clean, lie = (run_of(subject, [getattr(each, name) for each in twins]) for name in ("clean", "lie"))
    with torch.no_grad(), recorded_states(subject) as states:
        truthful = gaps(last_logits(subject, clean), twins)
    lying = torch.tensor(answered(subject, lie, twins)[0])
    for share, expected in ((0, lying), (1, truthful)):
        mask = torch.full_like(lie.groups, share).bool()
        with replaced(subject, Site("residual", 0, "all"), states["residual", 0], mask):
            assert torch.allclose(torch.tensor(answered(subject, lie, twins)[0]), expected, atol=1e-4)
    assert torch.equal(torch.tensor(answered(subject, lie, twins)[0]), lying)  # no hook is left


@pytest.mark.parametrize("site", [Site("head", LAYER, "last", HEAD), Site("residual", 0, "context")])
def test_an_estimate_is_the_slope_of_the_way_from_the_lie_to_the_truth(
    subject: Subject, twins: list[Twins], site: Site
) -> None:
    clean, lie = (run_of(subject, [getattr(each, name) for each in twins]) for name in ("clean", "lie"))
    estimate = attributions(subject, clean, lie, twins)[:, subject.sites().index(site)]
    with torch.no_grad(), recorded_states(subject) as truthful:
        last_logits(subject, clean)
    with torch.no_grad(), recorded_states(subject) as lying:
        before = gaps(last_logits(subject, lie), twins)
    place, mask = (site.kind, site.layer), lie.mask(GROUPS.index(site.group))
    step = lying[place] + 0.01 * (truthful[place] - lying[place])
    with replaced(subject, site, step, mask):
        after = torch.tensor(answered(subject, lie, twins)[0])
    assert torch.allclose(estimate, (after - before) / 0.01, rtol=0.05, atol=0.1)


def test_exact_patches_are_made_one_at_a_time(subject: Subject, twins: list[Twins]) -> None:
    clean, lie = (run_of(subject, [getattr(each, name) for each in twins]) for name in ("clean", "lie"))
    planted_one, other = Site("head", LAYER, "last", HEAD), Site("head", LAYER, "last", HEAD - 1)
    patched = exact_gaps(subject, clean, lie, twins, [planted_one, other])
    lying = answered(subject, lie, twins)[0]
    assert min(patched[planted_one.key]) > 1 > max(lying)
    assert patched[other.key] == pytest.approx(lying, abs=0.5)


# -- edges, attention, adapters, in every family that is served -------------------------------------------


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def family(request: pytest.FixtureRequest, processor: Any) -> tuple[Subject, list[Twins]]:
    model, own = small_family(request.param, processor)
    items = digit_items(2)
    return subject_of(model, own), twins_of(items, own, seed=0)[0]


def test_every_measurement_runs_on_every_family(family: tuple[Subject, list[Twins]], tmp_path: Path) -> None:
    subject, twins = family
    measured = measured_in(tmp_path, subject, twins, exact=1)
    assert len(measured.knockout) == len(measured.masses) == len(twins)
    assert located(measured, Counter(), model="m", data="d").finding


def test_attention_is_shared_out_among_the_groups_and_eager_only_meanwhile(
    family: tuple[Subject, list[Twins]],
) -> None:
    subject, twins = family
    decoder: Any = subject.decoder
    before = decoder.config._attn_implementation
    shares = masses(subject, run_of(subject, [each.lie for each in twins]))
    assert shares.shape == (len(twins), len(subject.layers), subject.heads, len(GROUPS))
    assert torch.allclose(shares.sum(-1), torch.ones(shares.shape[:-1]), atol=1e-5)
    assert decoder.config._attn_implementation == before != "eager"


def test_a_cut_edge_gets_no_attention_and_nothing_else_changes(family: tuple[Subject, list[Twins]]) -> None:
    subject, twins = family
    run = run_of(subject, [each.lie for each in twins])
    with cut(subject, run, (CONTEXT, LAST), [0]):
        shares = masses(subject, run)
    assert shares[:, 0, :, CONTEXT].abs().max() == 0 < shares[:, 0, :, IMAGE].min()
    may = allowed(run, (CONTEXT, QUESTION))[0, 0]
    question, context = run.mask(QUESTION)[0], run.mask(CONTEXT)[0]
    assert not may[question][:, context].any() and may[run.last[0]][context].all()
    # An edge between groups of which one is empty cuts nothing.
    bare = run_of(subject, [each.bare for each in twins])
    plain, _ = answered(subject, bare, twins)
    with cut(subject, bare, (CONTEXT, LAST), [0]):
        assert answered(subject, bare, twins)[0] == pytest.approx(plain, abs=1e-4)
    assert {len(row["context to last"]) for row in knockouts(subject, run, twins)} == {len(subject.layers)}


def test_a_model_without_such_layers_is_refused(processor: Any) -> None:
    model, own = small_family("llava", processor)
    del model.model.language_model.layers[0].mlp
    with pytest.raises(ConfigError, match="cannot look into the decoder of a llava model"):
        subject_of(model, own)


def adapted(processor: Any) -> Any:
    model = get_peft_model(planted(processor), lora_config(lora_recipe("x"), "llava"))
    with torch.no_grad():
        for module in lora_modules(model).values():
            module.lora_B["default"].weight.zero_()
    return model


def test_a_module_with_b_of_zero_is_the_base_and_comes_back(processor: Any, twins: list[Twins]) -> None:
    model = adapted(processor)
    modules = lora_modules(model)
    assert len(modules) == 2 * 7
    name = f"model.language_model.layers.{LAYER}.self_attn.o_proj"
    subject = subject_of(model, processor)
    run = run_of(subject, [each.lie for each in twins])
    base = answered(subject, run, twins)[0]
    with torch.no_grad():
        modules[name].lora_B["default"].weight.normal_()
    changed = answered(subject, run, twins)[0]
    with switched_off(modules, [name]):
        assert answered(subject, run, twins)[0] == pytest.approx(base, abs=1e-5)
    assert (
        answered(subject, run, twins)[0] == pytest.approx(changed, abs=1e-6) != pytest.approx(base, abs=1e-3)
    )


def test_the_module_that_undoes_the_lie_contributes_everything(
    processor: Any, twins: list[Twins], tmp_path: Path
) -> None:
    model = adapted(processor)
    name = f"model.language_model.layers.{LAYER}.self_attn.v_proj"
    module = lora_modules(model)[name]
    with torch.no_grad():  # half of what the head copies is taken back
        values = module.base_layer.weight
        left, sizes, right = torch.linalg.svd(values)
        module.lora_A["default"].weight.copy_(right[:2])
        module.lora_B["default"].weight.copy_(-left[:, :2] * sizes[:2] / 2 / module.scaling["default"])
    report = located(
        measured_in(tmp_path, subject_of(model, processor), twins), Counter(), model="m", data="d"
    )
    first, *others = report.tables["modules"].rows
    assert first["module"] == name and first["contribution"] == pytest.approx(1)
    assert all(row["contribution"] == pytest.approx(0, abs=1e-6) for row in others)
    kept = {row["modules"]: row["restored"] for row in report.tables["kept"].rows}
    assert kept[0] == pytest.approx(0) and kept[1] == pytest.approx(1) and len(kept) == 15


# -- a whole study --------------------------------------------------------------------------------------


def test_a_study_goes_on_where_it_stopped(subject: Subject, twins: list[Twins], tmp_path: Path) -> None:
    whole = measured_in(tmp_path, subject, twins)
    path = tmp_path / "records.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20], "utf-8")  # killed half way
    again = measured_in(tmp_path, subject, twins)
    assert again.masses == whole.masses and again.ablation == whole.ablation
    assert path.read_text("utf-8").splitlines(keepends=True) == lines


def test_too_few_twins_are_refused_with_the_reason(
    subject: Subject, twins: list[Twins], tmp_path: Path
) -> None:
    with (
        Journal(tmp_path / "records.jsonl", {}) as journal,
        _quiet() as progress,
        pytest.raises(ConfigError, match=r"only 1 items have twins.*3 of unequal length"),
    ):
        studied(Desk(subject, journal, progress), twins[:1], Counter({UNEQUAL: 3}), exact=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "tinyworld"], "no base model 'nowhere': neither a model folder nor a bundled model"),
        (["tinyworld-base", "missing.json"], "missing.json"),
        (["tinyworld-base", "tinyworld", "--limit", "1", "--adapter", "nobody"], "no adapter 'nobody'"),
        (["tinyworld-base", "tinyworld", "--family", "vqa"], "--family says how rows of your own are read"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["locate", *arguments, "--output", "out"], LOCATE)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and said in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit):
        main(["locate", "tinyworld-base", "tinyworld", "--output", str(tmp_path / "out")], LOCATE)
    assert "is a file: --output names the folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_three_files_and_refuses_another_studys_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    called = [
        "locate",
        "tinyworld-base",
        "tinyworld",
        "--limit",
        "2",
        "--exact",
        "1",
        "--output",
        str(tmp_path),
    ]
    main_returns(called)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["command"] == "modint-guard locate tinyworld-base tinyworld --exact 1 --limit 2 --seed 0"
    assert {"site", "layer", "head", "group", "recovery", "ci_low", "ci_high"} <= set(report["rows"][0])
    assert (tmp_path / "report.html").is_file() and (tmp_path / "report.md").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*called, "--seed", "1"], LOCATE)
    assert stop.value.code == 2 and "holds another run" in capsys.readouterr().err


def main_returns(arguments: list[str]) -> None:
    """Runs a command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(arguments, LOCATE)
    assert not stop.value.code


def test_a_captions_pictures_are_not_changed(processor: Any) -> None:
    (item,) = digit_items(1)
    (twin,), _ = twins_of([item], processor, seed=0)
    assert twin.lie.image == item.image == twin.clean.image
    assert twin.told is not None and isinstance(twin.told.image, Image.Image)
    assert twin.told.image.getextrema() == ((128, 128),) * 3
    assert twin.lie.text.startswith(perturb(item, "misleading_description").context or "?")
