"""`modint-guard diagnose` before scripted endpoints: what is asked, resumed, refused, and reported."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from modint_guard.data import write_items
from modint_guard.data.item import Item
from modint_guard.data.perturb import seeded
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.diagnose import (
    ask_all,
    ask_each_variant,
    differing_from_usual,
    paced,
    top_logprobs_of,
)
from modint_guard.evaluation.diagnosis import diagnosis_of
from modint_guard.evaluation.extensions import LOCAL, load
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.tables import Answer, compared, rows_of
from modint_guard.evaluation.targets import Target, local_reach
from modint_guard.evaluation.variants import CONDITION, Variant, variants_of
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR, Complete
from tests.core.fakes import called, completion, serving
from tests.core.items import BOTH, DIGIT, LETTERED, SUM
from tests.core.test_calibrate import misled

MADE_BY = {"run": "diagnose"}
EVALUATED = Path(__file__).parent / "evaluated_rows.json"
AGAINST = ("gain", "gain_low", "gain_high", "only_this", "only_other", "mcnemar_p")


def items(count: int) -> list[Item]:
    return [DIGIT.replace(id=f"digit-{index}", source=f"source-{index}") for index in range(count)]


async def silent(body: JSON) -> JSON:
    """The same model without log-probabilities."""
    told = await misled(body)
    return {**told, "choices": [{**told["choices"][0], "logprobs": None}]}


# Asking


async def test_a_model_that_believes_lies(tmp_path: Path) -> None:
    variants = variants_of(items(2), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        answers = await ask_each_variant("m", misled, variants, journal)
    assert [answer.text for answer in answers] == ["3", "7", "3", "7"]
    assert answers[1].cells[NEUTRAL_IMAGE] == "7"
    assert (answers[1].influence["text"] or 0) > 1 > (answers[1].influence["image"] or 0)
    assert answers[0].options == {"3": pytest.approx(0.96 / 0.98), "7": pytest.approx(0.02 / 0.98)}


async def test_another_order_of_the_options_is_tried_on_clean_lettered_items(tmp_path: Path) -> None:
    variants = variants_of([LETTERED], ["neutral_text"], [5], 0)

    async def stubborn(body: JSON) -> JSON:
        return completion("C", [{"A": 0.01, "B": 0.01, "C": 0.97, "D": 0.01}])

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, other = await ask_each_variant("m", stubborn, variants, journal)
    assert clean.reordered is True  # the letter stays, so that the answer moves
    assert other.reordered is None


async def test_another_order_of_question_and_context_is_tried_where_both_say_the_same(tmp_path: Path) -> None:
    variants = variants_of(items(1), ["true_description", "misleading_description"], [5], 0)

    async def hasty(body: JSON) -> JSON:
        texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
        said = "7" if texts[0].startswith("What") and len(texts) > 1 else "3"
        return completion(said, [dict.fromkeys(("3", "7"), 0.01) | {said: 0.98}])

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        answers = await ask_each_variant("m", hasty, variants, journal)
    told = {each.variant.perturbation: each.reordered for each in answers}
    assert told == {"clean": None, "misleading_description": None, "true_description": True}


async def test_without_log_probabilities_views_are_told_by_their_words(tmp_path: Path) -> None:
    variants = variants_of(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, lied = await ask_each_variant("m", silent, variants, journal)
    assert (lied.method, lied.cells[NEUTRAL_IMAGE], lied.options) == ("regenerated", "7", None)
    assert lied.influence["text"] is None and clean.right


async def test_another_order_is_told_by_the_words_as_well(tmp_path: Path) -> None:
    async def stubborn(body: JSON) -> JSON:
        return completion("C")

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, _ = await ask_each_variant(
            "m", stubborn, variants_of([LETTERED], ["neutral_text"], [5], 0), journal
        )
    assert (clean.method, clean.reordered) == ("regenerated", True)


async def test_fewer_log_probabilities_are_taken_where_the_endpoint_gives_no_more() -> None:
    async def five(body: JSON) -> JSON:
        if body.get("top_logprobs", 0) > 5:
            raise EndpointError("at most 5", status=400)
        return await misled(body)

    assert await top_logprobs_of(five, "m", DIGIT) == 5
    assert await top_logprobs_of(silent, "m", DIGIT) == 0

    async def closed(body: JSON) -> JSON:
        raise EndpointError("no such key", status=401)

    with pytest.raises(EndpointError, match="no such key"):
        await top_logprobs_of(closed, "m", DIGIT)


@pytest.mark.parametrize(
    ("answer", "skip"),
    [
        (completion("", [{"": 1.0}]), "empty_answer"),
        (completion("", [{"": 1.0}], refusal="I cannot help with that."), "refusal"),
        ({**completion(""), "choices": [{"message": {"refusal": "No."}}]}, "refusal"),
    ],
    ids=["empty", "refused", "refused without a text"],
)
async def test_refusals_and_empty_answers_count_as_wrong_and_are_named(
    tmp_path: Path, answer: JSON, skip: str
) -> None:
    async def model(body: JSON) -> JSON:
        return answer

    variants = variants_of(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        answers = await ask_each_variant("m", model, variants, journal)
    assert [(answer.skip, answer.right) for answer in answers] == [(skip, False)] * 2
    said = diagnosis_of({"m": answers}, data="d").notes[-1]
    assert "2 of 2 answers of m were empty, refusals or of another kind" in said


async def test_an_endpoint_that_fails_half_way_is_gone_on_with(tmp_path: Path) -> None:
    variants = variants_of(items(4), ["misleading_description"], [5], 0)
    calls: list[JSON] = []

    async def counted(body: JSON) -> JSON:
        calls.append(body)
        return await misled(body)

    async def dying(body: JSON) -> JSON:
        if len(calls) > 11:  # the last view of an answer that is there itself
            raise EndpointError("the engine is gone", status=503)
        return await counted(body)

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal, pytest.raises(EndpointError):
        await ask_each_variant("m", dying, variants, journal, concurrency=1)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        kept = len(journal.records)
        assert 0 < kept < len(variants)
        before = len(calls)
        answers = await ask_each_variant("m", counted, variants, journal, concurrency=1)
        assert len(answers) == 8 and len(calls) - before < 1 + 4 * (8 - kept) + 1
        again = len(calls)
        assert await ask_each_variant("m", counted, variants, journal) == answers
    assert len(calls) == again  # all there: nothing is asked
    assert answers == await undisturbed(variants, tmp_path)


async def test_an_answer_whose_views_are_refused_is_not_kept_and_asked_again(tmp_path: Path) -> None:
    variants = variants_of(items(4), ["misleading_description"], [5], 0)
    views = 0

    async def limited(body: JSON) -> JSON:
        nonlocal views
        views += body["max_tokens"] == 2  # a view is asked for two tokens, a question for eight
        if views > 6 and body["max_tokens"] == 2:
            raise EndpointError("slow down", status=429)
        return await misled(body)

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        with pytest.raises(EndpointError, match=r"the view \w+ of digit-\d/.+ got no answer"):
            await ask_each_variant("m", limited, variants, journal, concurrency=1)
        assert 0 < len(journal.records) < len(variants)
        answers = await ask_each_variant("m", misled, variants, journal)
    assert answers == await undisturbed(variants, tmp_path)
    assert all(a.cells.keys() == {NEUTRAL_IMAGE, NO_CONTEXT, PRIOR} for a in answers if a.variant.severity)


async def undisturbed(variants: list[Variant], folder: Path) -> list[Answer]:
    """What a well endpoint answers in one run."""
    with Journal(folder / "undisturbed.jsonl", MADE_BY) as journal:
        return await ask_each_variant("m", misled, variants, journal)


async def test_an_endpoint_may_be_asked_without_log_probabilities(tmp_path: Path) -> None:
    bodies: list[JSON] = []

    async def model(body: JSON) -> JSON:
        bodies.append(body)
        return await silent(body)

    variants = variants_of(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        await ask_each_variant("m", model, variants, journal, tried=())
    assert not any("logprobs" in body or "modint" in body for body in bodies)
    assert {"model", "messages", "temperature", "max_tokens"} == set(bodies[0])


async def test_local_models_are_loaded_one_at_a_time_as_they_were_told_to(tmp_path: Path) -> None:
    loaded: list[tuple[str, str | None, float]] = []
    there: list[str] = []

    @contextmanager
    def local_model(model: str, adapter: str | None, *, image_attention: float) -> Iterator[Complete]:
        assert not there
        there.append(model)
        loaded.append((model, adapter, image_attention))
        yield misled
        there.clear()

    variants = variants_of(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        targets = [Target("base", "adapter"), Target("base")]
        answers = await ask_all(targets, variants, journal, reach=local_reach(local_model, 2.0))
    assert loaded == [("base", "adapter", 2.0), ("base", None, 2.0)]
    assert [[answer.text for answer in each] for each in answers] == [["3", "7"]] * 2


async def test_a_local_model_lists_all_that_it_is_asked_for(tmp_path: Path) -> None:
    wanted: set[int] = set()

    @contextmanager
    def local_model(model: str, adapter: str | None, *, image_attention: float) -> Iterator[Complete]:
        async def complete(body: JSON) -> JSON:
            wanted.add(body["top_logprobs"] if body["max_tokens"] == 8 else 0)
            return await misled(body)

        yield complete

    variants = variants_of(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        await ask_all([Target("base")], variants, journal, reach=local_reach(local_model, 1.0))
    assert wanted == {0, 128, 1000}  # views, and answers that are asked once more, for fewer


async def test_calls_begin_no_faster_than_allowed() -> None:
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def noted(body: JSON) -> JSON:
        begun.append(loop.time())
        return {}

    slow = paced(noted, 100)
    await asyncio.gather(*(slow({}) for _ in range(6)))
    assert begun[-1] - begun[0] >= 0.05 - 0.005
    assert paced(noted, None) is noted


# The figures


def mixed_items() -> list[Item]:
    """Items of all families, some of them in held-out wordings, several to a source."""
    mixed = []
    for n in range(12):
        mixed.append(
            DIGIT.replace(id=f"digit-{n}", question=f"Which digit is number {n}?", source=f"source-{n // 2}")
        )
        mixed.append(SUM.replace(id=f"sum-{n}", question=f"Sum {n}: what is 1 plus 2?"))
        if n % 2:
            reworded = DIGIT.replace(id=f"reworded-{n}", question=f"Name digit {n}.", source=f"source-{n}")
            mixed.append(reworded.replace(held_out_wording=True))
        if n % 3 == 0:
            mixed.append(BOTH.replace(id=f"both-{n}", question=f"Digit {n} plus one?"))
    return mixed


async def wavering(body: JSON) -> JSON:
    """Answers that depend on model and messages alone: right, wrong, unreadable, at times without an option
    in the list.
    """
    rng = seeded(body["model"], json.dumps(body["messages"]))
    text = rng.choice(("3", "3", "3", "7", "3 or 7"))
    rest = rng.uniform(0.05, 0.4)
    listed = {"3": rest, "7": rest / 3, "5": rest / 9} | {text.split()[0]: 1 - 2 * rest}
    if rng.random() < 0.2:
        del listed["7" if text[0] == "3" else "3"]
    return completion(text, [listed])


async def test_the_figures_are_those_that_modint_guard_evaluate_gave(tmp_path: Path) -> None:
    """EVALUATED holds the rows that `modint-guard evaluate`, which this command replaced, computed for these
    items and answers at commit 263c0cd.
    """
    names = ["misleading_description", "ocr_noise", "contradicting_image", "grey"]
    variants = variants_of(mixed_items(), names, [2, 5], 3)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        one, two = [
            await ask_each_variant(model, wavering, variants, journal, name=model) for model in ("one", "two")
        ]
    rows = {place(row): row for row in (*rows_of("one", one), *rows_of("two", two))}
    pairs = {place({**row, "model": "one"}): row for row in compared(("one", "two"), one, two)}
    evaluated = json.loads(EVALUATED.read_text("utf-8"))
    assert rows.keys() == {place(row) for row in evaluated}
    for expected in evaluated:
        row = rows[place(expected)]
        against = {name: expected.pop(name) for name in AGAINST}
        assert row | expected == pytest.approx(row), place(row)
        if row["model"] == "one":  # a gain is what the first has more than the second
            pair = pairs[place(row)]
            assert against == pytest.approx(
                {
                    "gain": -pair["difference"],
                    "gain_low": -pair["difference_high"],
                    "gain_high": -pair["difference_low"],
                    "only_this": pair["only_first_right"],
                    "only_other": pair["only_second_right"],
                    "mcnemar_p": pair["p"],
                }
            )


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", *CONDITION))


# The command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_items(items(4), tmp_path / "items")
    return tmp_path / "items" / "items.jsonl"


def run(*arguments: str) -> int:
    return called("diagnose", *arguments)


async def two_models(body: JSON) -> JSON:
    """`robust`, and any other model misled."""
    return completion("3", [{"3": 0.9, "7": 0.1}]) if body["model"] == "robust" else await misled(body)


async def test_the_command_reports_two_models_side_by_side(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with serving(two_models) as (url, modes):
        code = await asyncio.to_thread(
            run,
            str(data),
            *("--model", "base", "--against", "robust", "--url", url),
            *("--perturbation", "misleading_description", "--output", str(output)),
        )
    assert code == 0 and modes == {"off"}
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["models"] == ["base", "robust"]
    assert "base is right in 100% of 4 clean image-heavy questions, and in 0%" in report["finding"][0]
    assert "robust is right in 100% there, a difference of +100%" in report["finding"][1]
    assert "<svg" in (output / "report.html").read_text("utf-8")
    assert "## Side by side" in (output / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    "given",
    [
        "--model base --seed 0",
        "--model base --against robust --perturbation misleading_description --perturbation neutral_text"
        " --severity 1 --severity 5 --limit 2 --format items --family vqa --seed 3",
    ],
)
async def test_the_report_holds_the_command_that_was_typed(data: Path, tmp_path: Path, given: str) -> None:
    async with serving(two_models) as (url, _):
        options = [*given.split(), "--url", url, "--output", str(tmp_path / "out")]
        assert await asyncio.to_thread(run, str(data), *options) == 0
    command = f"modint-guard diagnose items.jsonl {given}"
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["command"] == command
    assert f"<code>{command}</code>" in (tmp_path / "out" / "report.html").read_text("utf-8")


async def test_addresses_are_recorded_where_nothing_else_tells_two_models_apart(
    data: Path, tmp_path: Path
) -> None:
    async with serving(misled) as (one, _), serving(misled) as (two, _):
        secret = two.replace("http://", "http://me:secret@")
        options = ["--model", "base", "--url", one, "--against", "base", "--against-url", secret]
        assert await asyncio.to_thread(run, str(data), *options, "--output", str(tmp_path / "out")) == 0
    made_by = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["command"]
    assert f"--model base --url {one} --against base --against-url {two} --seed 0" in made_by


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--against m", "--against m compares m with itself: name another model, adapter or endpoint"),
        ("--adapter a --against a", "--against a compares a with itself"),
        (
            "--against-url http://127.0.0.1:9",
            "--against-url names the endpoint of a second model: name it with",
        ),
        ("--local --url http://127.0.0.1:9", "--local runs the models here: drop --url"),
        ("--local --against n --against-url http://127.0.0.1:9", "runs the models here: drop --against-url"),
        ("--local --api-key-file key", "--local runs the models here: drop --api-key-file"),
        ("--local --against nobody", "--against nobody names no second model: neither a model or adapter"),
        (
            "--image-attention 2",
            "--image-attention 2 scales a model that runs here: add --local; of a served one",
        ),
        ("--url http://127.0.0.1:9", "is the server running there?"),
        ("--api-key-file none", "name a file that holds the key"),
        ("--column question", "--column 'question' is not name=column, as in prompt=question"),
        ("--column questions=ask", "no column 'questions': did you mean"),
        ("--family image", "unknown family 'image': name one of image-heavy, text-heavy, vqa"),
        ("--format csv", "no format 'csv': name one of llava, "),
        ("--split test", "is a file and has no splits: leave out --split test"),
        ("--perturbation lies", "'lies' is no perturbation: name one of misleading_description, "),
    ],
)
def test_a_wrong_call_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    assert run(str(data), "--model", "m", "--output", str(tmp_path / "out"), *options.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.splitlines()[-1:] == [line for line in error.splitlines() if said in line]


async def test_a_run_goes_on_only_with_what_its_answers_depend_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(data), "--model", "m", "--output", str(tmp_path / "out"), "--limit", "1"]
    async with serving(misled) as (url, _):
        assert await asyncio.to_thread(run, *call, "--url", url) == 0
    elsewhere = ("--url", "http://127.0.0.1:9")
    assert (
        await asyncio.to_thread(run, *call, *elsewhere) == 0
    )  # the endpoint moved, and nothing is asked again
    for option, differing in (
        (("--no-logprobs",), "no_logprobs"),
        (("--seed", "1"), "data, seed"),
        (("--adapter", "a"), "models"),
    ):
        assert await asyncio.to_thread(run, *call, *elsewhere, *option) == 2
        assert f"holds another run ({differing} differ)" in capsys.readouterr().err


def test_what_depends_on_a_local_model_names_base_and_gain() -> None:
    local = [Target("base", "adapter")]
    assert differing_from_usual(local, 0.0, True) == {"bases": ["base"], "image_attention": 0.0}
    assert differing_from_usual([Target("m", url="u")], 1.0, True) == {}


def test_a_file_is_no_place_for_a_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert run(str(data), "--model", "m", "--output", str(tmp_path / "report.json")) == 2
    said = f"{tmp_path / 'report.json'} is a file: --output names the folder of answers and report\n"
    assert capsys.readouterr().err == said


def test_severities_and_gains_lie_in_their_ranges(data: Path, tmp_path: Path) -> None:
    call = (str(data), "--model", "m", "--output", str(tmp_path / "out"))
    for option, value in (("--severity", "6"), ("--image-attention", "11"), ("--limit", "0")):
        assert run(*call, option, value) == 2


def test_a_model_of_ones_own_needs_the_training_extra() -> None:
    for points in ([], [EntryPoint("t", "a_library_nobody_has:local_model", LOCAL)]):
        with pytest.raises(ConfigError, match=r"^--local needs: pip install 'modint-guard\[train\]'$"):
            load(points, "--local")
