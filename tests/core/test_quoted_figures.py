"""Figures in the pages' prose are those of the result files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.soak import slope_kb
from tests.core.pages import DOCS, README, ROOT, prose
from tests.server.soak import Row

RESULTS = DOCS / "results.md"


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / f"bench/results/{name}.json").read_text("utf-8"))["rows"]
    return rows


def measured(name: str, /, **wanted: object) -> dict[str, Any]:
    """The one row of a result file that holds these values."""
    (row,) = (row for row in rows_of(name) if wanted.items() <= row.items())
    return row


def interval(row: dict[str, Any], digits: int = 3) -> str:
    return f"[{row['ci_low']:.{digits}f}, {row['ci_high']:.{digits}f}]"


def captioned(model: str, perturbation: str, held_out: str = "no") -> dict[str, Any]:
    """Image-heavy items under a text perturbation, all forms and sub-tasks."""
    whole = {"family": "image-heavy", "form": "all", "task": "all", "held_out": held_out}
    return measured("tinyworld", model=model, perturbation=perturbation, **whole)


def counted(row: dict[str, Any], key: str) -> int:
    n, share = int(row["n"]), float(row[key])
    return round(n * share)


def test_the_readme_counts_lies_and_true_captions() -> None:
    lie, true = (captioned("tinyworld-base", name) for name in ("misleading_description", "true_description"))
    adapter = captioned("robust-lora", "misleading_description")
    wrong = lie["n"] - counted(lie, "accuracy")
    page = prose(README)
    flagged, kept = counted(lie, "flagged_rate"), counted(true, "accuracy")
    assert (
        f"On {lie['n']} test items with a lying caption the toy model of the picture was wrong {wrong} "
        f"times, and {flagged} of these answers were flagged; on {true['n']} with a true caption it was "
        f"right {kept} times, and {counted(true, 'flagged_rate')} were flagged."
    ) in page
    assert f"is right on {counted(adapter, 'accuracy')} of the {adapter['n']} lies" in page


def cured(perturbation: str, held_out: str) -> int:
    """Right answers of picturebook-lora under a perturbation, of 100 test items of all kinds."""
    rows = json.loads((ROOT / "modint_guard/models/picturebook-lora/run.json").read_text())["test"]
    wanted = {"perturbation": perturbation, "held_out": held_out, "task": "all", "n": 100}
    (share,) = {row["accuracy"] for row in rows if wanted.items() <= row.items()}
    return round(100 * float(share))


def test_the_readme_and_its_page_quote_what_the_picture_books_adapter_cures() -> None:
    lies, beside = (
        cured("misleading_description", "wording+captions"),
        cured("contradicting_image", "wording"),
    )
    texts = cured("no_image", "wording")
    page = prose(README)
    assert f"is right under {lies} of 100 lying captions" in page
    assert f"beside {beside} of 100 pictures that contradict a text" in page
    assert f"and {texts}. " in page
    table = (DOCS / "picturebook-lora.md").read_text()
    for row, found in (
        ("under lying captions, unseen wordings | 30", lies),
        ("beside contradicting pictures, unseen wordings | 35", beside),
        ("texts, unseen wordings | 83", texts),
        ("under lying captions | 25", cured("misleading_description", "no")),
        ("beside contradicting pictures | 31", cured("contradicting_image", "no")),
    ):
        assert f"| {row} | {found} |" in table


def test_the_page_of_results_quotes_what_captions_do() -> None:
    lie, true = (captioned("tinyworld-base", name) for name in ("misleading_description", "true_description"))
    adapter, reworded = (
        captioned("robust-lora", "misleading_description", held) for held in ("no", "wording")
    )
    page = prose(RESULTS)
    for quoted in (
        f"wrong in {lie['n'] - counted(lie, 'accuracy')} of {lie['n']} answers, flagged in "
        f"{counted(lie, 'flagged_rate')} of {lie['n']}",
        f"right in {counted(true, 'accuracy')} of {true['n']}, flagged in {counted(true, 'flagged_rate')} of "
        f"{true['n']}",
        f"right in {adapter['accuracy']:.3f} {interval(adapter)}; in held-out wordings "
        f"{reworded['accuracy']:.3f} {interval(reworded)}",
    ):
        assert quoted in page


def detected(mode: str, model: str = "picturebook-base", **asked: str) -> dict[str, Any]:
    """A row of all answers in held-out wordings, of a model that nobody or somebody told what is relevant."""
    wanted = {"truth": "interference", "setting": "all", "kind": "all", "score": "guard"} | asked
    return measured("detection", model=model, relevance=mode, held_out="wording", placement="all", **wanted)


def found_and_false(row: dict[str, Any]) -> tuple[int, int]:
    """How many positives were flagged, and how many right answers."""
    return round(row["recall"] * row["positives"]), round(row["fpr"] * row["right"])


def test_readme_and_results_quote_what_is_found_and_falsely_flagged_in_unseen_wordings() -> None:
    auto, named = detected("auto"), detected("named")
    (found, false), (found_named, false_named) = map(found_and_false, (auto, named))
    assert (
        f"{found} of {auto['positives']} misled answers were flagged, and {false} of {auto['right']} right "
        f"ones; with the requests saying so {found_named} and {false_named}"
    ) in prose(README)
    by_setting = [detected("auto", setting=setting) for setting in ("text-driven", "image-driven")]
    words, pictures = [(found_and_false(row)[0], row["positives"]) for row in by_setting]
    loss, divergence = detected("auto", score="loss"), detected("named", score="divergence")
    neglect = detected("named", "robust-lora", truth="neglect", score="neglect")
    base, toy = detected("auto", "tinyworld-base"), detected("named", "tinyworld-base")
    prints = detected("auto", "tinyworld-base", setting="text-driven", kind="needed")
    papers = detected("auto", setting="text-driven", kind="document")
    page = prose(RESULTS)
    for quoted in (
        f"{found} of {auto['positives']} flagged, and {false} of {auto['right']} right answers",
        f"{found_named} of {named['positives']} flagged, and {false_named} of {named['right']} right "
        f"answers; AUROC {named['auroc']:.3f} {interval(named)}",
        f"{found} of {auto['positives']} were found and {false} of {auto['right']} right answers flagged "
        f"({auto['fpr']:.1%}".replace("%", " %"),
        f"{words[0]} of {words[1]} that words misled, {pictures[0]} of {pictures[1]} that a picture misled",
        f"(AUROC {auto['auroc']:.3f}; best other, the loss, {loss['auroc']:.3f}, {loss['recall']:.0%} found "
        f"at {loss['fpr']:.1%})".replace("%", " %"),
        f"divergence, has {divergence['auroc']:.3f}, and finds {divergence['recall']:.0%} at "
        f"{divergence['fpr']:.1%}".replace("%", " %"),
        f"only {papers['right']} of {papers['n']} were right, and none was flagged",
        f"all {base['positives']} were found either way",
        f"flags {round(prints['fpr'] * prints['right'])} of {prints['right']} right answers to poor prints",
        f"({base['fpr']:.1%} of all right answers)".replace("%", " %"),
        f"{toy['fpr']:.1%} (base) and {detected('named', 'robust-lora')['fpr']:.1%}".replace("%", " %"),
        f"AUROC of {neglect['auroc']:.3f} {interval(neglect)}",
    ):
        assert quoted in page, quoted
    assert base["recall"] == toy["recall"] == 1.0 and not papers["fpr"]
    by_pictures = found_and_false(detected("named", setting="image-driven"))[0]
    quoted = f"found in {pictures[0]} of {pictures[1]} answers, and in {by_pictures} if requests name"
    assert quoted in prose(DOCS / "limits.md")


def test_the_pages_quote_how_well_a_null_holds() -> None:
    harmless = measured("nulls", inputs="harmless", kind="all", temperature="all", tokens="all")
    planted, captions = (measured("nulls", kind=kind) for kind in ("planted lie", "lying caption"))
    held = f"{harmless['flagged']} of {harmless['n']} right answers flagged"
    lies = f"{planted['flagged'] + captions['flagged']} of {planted['n'] + captions['n']} lies"
    assert f"{held}, {lies}" in prose(RESULTS)
    page = prose(DOCS / "null.md")
    for quoted in (
        f"of {harmless['n']} right answers beside harmless inputs {harmless['flagged']} were flagged, "
        f"{harmless['share']:.3f} [{harmless['low']:.3f}, {harmless['high']:.3f}], and "
        f"{harmless['by rule']} by the rule without a null",
        f"{planted['flagged']} of {planted['n']} planted ones were flagged and {captions['flagged']} of "
        f"{captions['n']} in unseen wordings",
    ):
        assert quoted in page, quoted


def of_spans(rule: str, form: str = "one thing", relevant: str = "named") -> dict[str, Any]:
    """A row of all wordings, whole and streamed."""
    return measured("spans", rule=rule, form=form, relevant=relevant, wording="all", delivery="all")


def test_the_page_of_spans_quotes_which_words_were_found() -> None:
    named, auto = of_spans("spans"), of_spans("spans", relevant="auto")
    rules = [of_spans(rule)["f1"] for rule in ("in context", "differs", "both")]
    forms = ("word", "sentence", "detail", "record")
    scenes, told = of_spans("spans", "scenes"), of_spans("spans", "sentence")
    by_form = ", ".join(f"{form} {of_spans('spans', form)['f1']:.2f}" for form in forms)
    page = prose(DOCS / "spans.md")
    for quoted in (
        f"F1 is {named['f1']:.2f} named and {auto['f1']:.2f} with `auto`: both goals are missed. The word is "
        f"in the caption: {rules[0]:.2f}; it differs from the answer without caption: {rules[1]:.2f}; both: "
        f"{rules[2]:.2f}.",
        f"Precision is {named['precision']:.2f}, recall {named['recall']:.2f}. Of the {named['false']} words "
        f"that are flagged falsely {of_spans('spans', 'record')['false']} are in records",
        f"Of the {named['mentions'] - named['found']} that are missed "
        f"{told['mentions'] - told['found']} are in sentences",
        f"By form, named: {by_form}.",
        f"(both: {of_spans('both', 'word')['f1']:.2f} and {of_spans('both', 'sentence')['f1']:.2f})",
        f"they are worse (both: {of_spans('both', 'record')['f1']:.2f})",
        f"F1 is {scenes['f1']:.2f}: without a caption this base names all the things in {scenes['seen']} of "
        f"{scenes['answers']} answers",
    ):
        assert quoted in page, quoted
    assert named["f1"] > max(rules) and auto["f1"] > max(rules)
    row = f"F1 {named['f1']:.2f} named, {auto['f1']:.2f} `auto`; best rule {max(rules):.2f}"
    assert row in prose(RESULTS)


def test_the_page_of_spans_quotes_what_long_answers_cost() -> None:
    rows = [row for row in rows_of("spans_lengths") if row["delivery"] == "all"]
    answers, turned, whole = (
        sum(row[name] for row in rows) for name in ("answers", "turned", "scored whole")
    )
    longest = max(rows, key=lambda row: int(row["tokens"]))
    lengths = {row["tokens"] for row in rows}
    held = [row for row in rows_of("nulls") if row["inputs"] == "harmless" and row["tokens"] in lengths]
    page = prose(DOCS / "spans.md")
    for quoted in (
        f"of {answers} answers that were made 20, 60 and 150 tokens long beside captions that do no harm, "
        f"{turned} were flagged",
        f"{whole} of them could be scored as a whole",
        f"flagged {sum(row['flagged'] for row in held)} of {sum(row['n'] for row in held)}.",
        f"Answers of {longest['tokens']} tokens cost {longest['tokens ratio']:.2f} times the tokens with "
        f"their verdicts ({longest['computed ratio']:.2f} without what the prefix cache held) and took "
        f"{longest['time ratio']:.2f} times as long",
    ):
        assert quoted in page, quoted


def test_the_page_of_spans_quotes_how_many_long_answers_are_falsely_flagged_without_a_null() -> None:
    adapter, base = (
        measured("spans_tinyworld_lengths", model=model, tokens=150, delivery="all")
        for model in ("robust-lora", "tinyworld-base")
    )
    assert (
        f"{adapter['turned']} of {adapter['answers']} of `robust-lora`'s answers of 150 tokens were "
        f"flagged, and {base['turned']} of {base['answers']} of the base's"
    ) in prose(DOCS / "spans.md")


def test_the_page_of_results_quotes_the_calibrations_misses() -> None:
    image, text = (
        measured("calibration", model="tinyworld-base", relevant=relevant, part="test")
        for relevant in ("image", "text")
    )
    assert image["alpha"] == text["alpha"] == 0.1
    assert (
        f"{image['miss_rate']:.3f} of {image['positives']} positives missed if the image ought to decide, "
        f"{text['miss_rate']:.3f} of {text['positives']} if the text"
    ) in prose(RESULTS)


def test_the_page_of_results_quotes_how_often_relevance_is_told_rightly() -> None:
    score, precision, covered = (
        measured("relevance", set="judging", candidate=candidate, measure=measure)["value"]
        for candidate, measure in (
            ("classifier", "macro_f1"),
            ("default", "precision: text"),
            ("default", "covered"),
        )
    )
    assert (
        f"macro-F1 {score:.3f} if it must guess; by default something is said of {covered:.3f}, "
        f"and `text` is right in {precision:.3f}"
    ) in prose(RESULTS)


def test_the_page_of_results_quotes_how_often_context_is_found() -> None:
    part, before, after, inside, turn, system, false = (
        measured("relevance", candidate="splitting", set="judging", measure=measure)["value"]
        for measure in (
            *(f"context: {place}" for place in ("part", "before", "after", "inside", "turn", "system")),
            "false_context",
        )
    )
    assert (
        f"found in {part:.3f} of own parts, {before:.3f} before, {after:.3f} behind and {inside:.3f} within "
        f"the question, {turn:.3f} in earlier turns, {system:.3f} in system prompts; falsely in {false:.3f}"
    ) in prose(RESULTS)


def spread(tokens: int, sample: float) -> str:
    """The least and the largest ratio of answers of that length in open loop."""
    ratios = [
        row["ratio"]
        for row in rows_of("latency")
        if (row["load"], row["tokens"], row["sample"]) == ("open", tokens, sample)
    ]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


@pytest.mark.parametrize("tokens", [32, 128])
@pytest.mark.parametrize("world", ["tinyworld-base", "picturebook-base"])
def test_the_page_of_results_quotes_the_ratios_of_the_latency_table(world: str, tokens: int) -> None:
    shown = []
    for sample in (1.0, 0.1):
        for delivery in ("whole", "streamed"):
            asked = {"world": world, "tokens": tokens, "sample": sample, "delivery": delivery}
            row = measured("latency", load="open", **asked)
            shown.append(f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]")
    assert f"| `{world}`, {tokens} tokens | {' | '.join(shown)} |" in prose(RESULTS)


def test_the_pages_quote_what_a_verdict_costs_in_time() -> None:
    rows = [row for row in rows_of("latency") if row["load"] == "open"]
    met = sum(row["ratio"] <= {1.0: 1.15, 0.1: 1.03}[row["sample"]] for row in rows)
    for page, quoted in (
        (RESULTS, f"{met} of {len(rows)} goals were met"),
        (RESULTS, f"**Time**: {len(rows) - met} of {len(rows)} goals"),
        (
            RESULTS,
            f"answers of 32 tokens take {spread(32, 1.0)} times as long, of 128 tokens {spread(128, 1.0)}; "
            f"with one in ten judged {spread(32, 0.1)} and {spread(128, 0.1)}",
        ),
        (
            README,
            f"answers of 32 tokens took {spread(32, 1.0)} times as long, of 128 tokens {spread(128, 1.0)}",
        ),
    ):
        assert quoted in prose(page)


def test_the_pages_quote_what_a_step_of_the_whole_method_takes() -> None:
    full = measured("training_bench", method="full, T=1")
    plain = measured("training_bench", method="straightforward full, T=1")
    page = prose(DOCS / "training-at-scale.md")
    for quoted in (
        f"takes {full['times_sft']:.2f} times one of plain SFT (quartiles {full['times_sft_q1']:.2f} and "
        f"{full['times_sft_q3']:.2f}; counted operations allow {full['bound_times_sft']:.2f})",
        f"is {full['faster_than_straightforward']:.2f} times as fast as the straightforward one, and wants "
        f"{full['peak_times_sft']:.1f} times the memory where that wants {plain['peak_times_sft']:.1f}",
        f"{full['gmac_times_sft']:.2f} times the multiply-adds of plain SFT",
    ):
        assert quoted in page
    assert f"{full['times_sft']:.2f} times one of plain SFT" in prose(RESULTS)


def test_the_limits_quote_what_the_adapter_makes_of_needed_captions() -> None:
    adapter, base = (
        detected("named", model, setting="text-driven", kind="needed")
        for model in ("robust-lora", "tinyworld-base")
    )
    quoted = (
        f"{adapter['n'] - adapter['right']} of its {adapter['n']} answers were wrong, and "
        f"{base['n'] - base['right']} of the base's {base['n']}"
    )
    assert quoted in prose(DOCS / "limits.md")


def goal(name: str) -> dict[str, Any]:
    return measured("mitigation_goals", goal=name)


def test_the_page_of_results_quotes_how_much_of_the_gap_the_ladder_closes() -> None:
    text, image = (
        goal(f"gap closed, {driven}, nothing held out") for driven in ("text-driven", "image-driven")
    )
    assert (
        f"{text['value']:.3f} of the gap closed text-driven, {image['value']:.3f} {interval(image)} "
        "image-driven"
    ) in prose(RESULTS)


def test_the_page_of_the_picture_books_adapter_quotes_what_the_ladder_closes_there() -> None:
    page = prose(DOCS / "picturebook-lora.md")

    def closed(driven: str) -> dict[str, Any]:
        return measured("mitigation_picturebook_goals", goal=f"gap closed, {driven}, nothing held out")

    def right(policy: str) -> float:
        names = [f"{family}/{kind}" for family, lie in _LIES for kind in (lie, f"{lie}/held-out wording")]
        rows = [
            row
            for row in rows_of("mitigation_picturebook")
            if (row["model"], row["policy"]) == ("picturebook-base", policy) and row["setting"] in names
        ]
        return float(sum(row["accuracy"] for row in rows) / len(rows))

    text, image = closed("text-driven"), closed("image-driven")
    assert (text["n"], text["verdict"], image["verdict"]) == (18, "missed", "met")
    assert (
        f"{text['value']:.3f} {interval(text)} text-driven (goal 0.8: missed) and {image['value']:.3f} "
        f"{interval(image)} image-driven, with clean and needed inputs as without it"
    ) in page
    unharmed = [
        row["value"]
        for row in rows_of("mitigation_picturebook_goals")
        if row["goal"].startswith(("clean accuracy", "needed input"))
    ]
    assert unharmed == [0.0, 0.0, 0.0]
    always, ladder, base = map(right, ("always_escalate", "ladder", "greedy"))
    assert (
        f"right in {always:.3f} of answers beside lies, the ladder in {ladder:.3f}, the base in {base:.3f}"
    ) in page


_LIES = (("image-heavy", "misleading_description"), ("text-heavy", "contradicting_image"))


def test_the_page_of_results_quotes_what_mitigation_costs_in_tokens_and_needed_captions() -> None:
    needed = {"model": "tinyworld-base", "setting": "image-heavy/poor_print/relevant auto", "held_out": "no"}
    trusting, greedy = (
        measured("mitigation", policy=policy, **needed)["accuracy"]
        for policy in ("ladder_trusting", "greedy")
    )
    page = prose(RESULTS)
    for quoted in (
        f"{goal('tokens, unflagged, short prompts')['value']:.2f} times the tokens over these settings",
        f"and {goal('computed tokens, unflagged, short prompts')['value']:.2f} with what the engine's cache "
        "saves",
        f"computes {goal('computed tokens, unflagged, padded prompts')['value']:.2f} times as many tokens",
        f"take {goal('tokens, flagged, padded prompts')['value']:.1f} (computed: "
        f"{goal('computed tokens, flagged, padded prompts')['value']:.1f})",
        f"was right in {trusting:.2f} of these answers instead of {greedy:.2f}",
    ):
        assert quoted in page
    missed = [
        row for row in rows_of("mitigation_goals") if "tokens" in row["goal"] and row["verdict"] == "missed"
    ]
    assert len(missed) == 4 and "**Tokens** of mitigation: four of eight goals" in page


def test_the_page_of_results_quotes_how_often_flagged_answers_went_on_to_the_adapter() -> None:
    ways: dict[str, list[tuple[str, int]]] = {"short": [], "padded": []}
    for row in rows_of("mitigation_tokens"):
        for way in filter(None, (row["rungs"] or "").split("; ")):
            rungs, often = way.split(": ")
            ways[row["prompt"]].append((rungs, int(often)))
    went_on = sum(often for rungs, often in ways["padded"] if "escalate" in rungs)
    settled = sum(often for rungs, often in ways["short"] if rungs.startswith("neutralise mended"))
    padded, short = (sum(often for _, often in ways[prompt]) for prompt in ("padded", "short"))
    page = prose(RESULTS)
    assert f"for {went_on} of these {padded} the ladder went on to the adapter" in page
    assert settled == short and f"prompts `neutralise` settled all {short}." in page


def ablation(name: str, *cells: tuple[str, str]) -> float:
    """Mean accuracy of one recipe over its seeds in these cells: perturbation, what is held out."""
    chosen = [
        row
        for row in rows_of("ablation")
        if row["name"] == name and (row["perturbation"], row["held_out"]) in cells
    ]
    return float(sum(row["accuracy"] for row in chosen) / len(chosen))


def test_the_page_of_results_quotes_what_each_part_of_the_method_came_to() -> None:
    lies, pictures = ("misleading_description", "no"), ("contradicting_image", "no")
    reworded = tuple((name, "wording") for name, _ in (lies, pictures))
    sft, aug, full, unmasked = (
        ablation(f"tinyworld-{n}", lies) for n in ("sft", "aug", "full", "full-nomask")
    )
    twins, attacked, noisy = (ablation(f"tinyworld-{n}", *reworded) for n in ("aug", "adv", "gaussian"))
    parts = ("aug", "cons-kl", "cons-js", "gaussian", "adv", "full", "full-nomask", "paper", "sft")
    beside = [ablation(f"tinyworld-{name}", pictures) for name in parts]
    base, shipped = (ablation(name, pictures) for name in ("tinyworld-base", "robust-lora"))
    page = prose(RESULTS)
    for quoted in (
        f"lying captions as they were ({sft:.3f} right), perturbed twins bring {aug:.3f}.",
        f"twins come to {twins:.3f}, with the adversarial loss to {attacked:.3f}, with Gaussian noise in its "
        f"place to {noisy:.3f}",
        f"the whole method loses {100 * (full - unmasked):.1f} points under lying captions",
        f"all stay at {min(beside):.3f} to {max(beside):.3f}, the base is at {base:.3f}",
        f"is at {shipped:.3f}.",
    ):
        assert quoted in page


def test_the_page_of_results_quotes_by_how_much_the_adapter_misses_its_goals() -> None:
    shipped = {"name": "robust-lora", "seed": 0}
    pictures = measured("ablation", **shipped, perturbation="contradicting_image", held_out="no")
    lies = measured("ablation", **shipped, perturbation="misleading_description", held_out="wording")
    vqa = [
        measured("ablation", name=name, family="vqa", held_out="wording")["accuracy"]
        for name in ("tinyworld-base", "robust-lora")
    ]
    page = prose(RESULTS)
    for quoted in (
        f"it is right {-100 * pictures['change']:.1f} points less often than without one",
        f"held-out wordings {-100 * lies['change']:.1f} points (goal: 3) with "
        f"{100 * lies['harmful_flip']:.1f} % harmful flips",
        f"its vqa is up to {100 * (vqa[0] - vqa[1]):.1f} points below the base's",
    ):
        assert quoted in page


def test_the_page_of_results_quotes_what_a_contradicting_picture_costs_the_base() -> None:
    whole = {"family": "text-heavy", "task": "all", "form": "all", "held_out": "no"}
    lost = []
    for seed in (0, 1):
        without, beside = (
            measured("base", seed=seed, perturbation=name, **whole)["accuracy"]
            for name in ("no_image", "contradicting_image")
        )
        lost.append(f"{100 * (without - beside):.1f}")
    assert f"loses {lost[0]} and {lost[1]} by seed" in prose(RESULTS)


def test_the_deployment_page_quotes_the_latency_table() -> None:
    asked = {"world": "tinyworld-base", "tokens": 32, "delivery": "whole", "sample": 1.0}
    row = measured("latency", load="open", **asked)
    seconds, probes, capacity = row["unguarded_ms_p50"] / 1000, row["probes"], row["capacity_per_s"]
    quoted = f"{seconds:.2f} s, {probes:.1f} and {capacity:.0f} answers of 32 tokens a second"
    assert quoted in prose(DOCS / "deploy.md")


def test_the_page_of_results_quotes_what_breaks_the_gateway() -> None:
    faults, soak, tenants = rows_of("faults"), rows_of("soak"), rows_of("tenants")
    sides = {
        side: {
            name: sum(row[name] for row in rows_of("fuzz") if row["side"] == side)
            for name in ("requests", "internal_error", "unhandled", "lost", "hung", "damaged_replies")
        }
        for side in ("client", "engine")
    }
    lost = sum(not row["answer_intact"] for row in faults)
    left = sum(row["tasks_left"] + row["sockets_left"] for row in faults)
    slow = [row for row in tenants if row["engine_ms"] == 200]
    worst = max((row for row in tenants if row["engine_ms"] == 20), key=lambda row: row["ratio"])
    page = prose(RESULTS)
    for quoted in (
        f"{lost} answers lost to {len(faults)} faults, {left} tasks or sockets left",
        f"{sides['client']['requests']:,} requests, {sides['engine']['damaged_replies']:,} damaged replies: "
        f"{sum(side['internal_error'] for side in sides.values())} internal errors, "
        f"{sum(side['unhandled'] for side in sides.values())} unhandled, "
        f"{sum(side['lost'] for side in sides.values())} answers lost",
        f"{soak[-1]['requests']:,} requests: {soak[-1]['lost']} lost, {soak[-1]['miscounted']} miscounted, "
        f"{max(0, slope_kb([Row(**row) for row in soak])):.0f} kB for each 10,000",
        f"verdicts the same under {sum(row['same_verdicts'] for row in slow)} of {len(slow)} attacks, p99 "
        f"at most {max(row['ratio'] for row in slow)} times, `/livez` p99.9 at most "
        f"{max(row['livez_p999_ms'] for row in slow):.0f} ms",
        f"they hold under {sum(row['ratio'] <= 1.5 for row in slow)} and "
        f"{sum(row['livez_p999_ms'] <= 100 for row in slow)} of {len(slow)} attacks",
        f"waits at most {worst['ratio']} times as long, "
        f"{worst['p99_ms'] - worst['alone_p99_ms']:.0f} ms more",
    ):
        assert quoted in page, quoted
