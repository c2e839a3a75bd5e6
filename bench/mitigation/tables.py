"""From answers to the tables of mitigation: a row for each policy and setting, a verdict for each goal. Pure
functions."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from bench.detection.inputs import World
from bench.mitigation.answers import CONTROLS, ItemAnswers, ServedAnswer
from bench.mitigation.settings import AUTO, PAIR, SETTINGS, Setting
from modint_guard.evaluation import results
from modint_guard.evaluation.results import table
from modint_guard.evaluation.statistics import mcnemar, paired_interval, percentile_interval
from modint_guard.models import BASE

NOTES = """\
Greedy answers through vLLM; the client names `relevant` unless the setting says `relevant auto`. The same
items for every policy, balanced over their labels; every lettered item is asked in two orders of its
options. `gap_closed`: of the distance between greedy accuracy on the setting and on its clean twins; a dash
where that is below 0.02. `clean_accuracy` is the same policy's on the clean twins; a needed input
(`poor_print`, `vqa`) has none and is its own. Abstentions count as not right in `accuracy`, and not as
`changed_right_to_wrong`, a share of all items. `extra_tokens`: mean beyond the model's own answer, prompts
included, cached or not; the ratios are of all tokens to those of that answer. `ms_p50`: single requests
through the gateway. The policies are those that ship (`modint_guard.mitigation.fitted`), their limits on
tokens and time lifted; only `constant_bias` has constants for each model."""
WORLD_NOTES: dict[World, str] = {
    "tinyworld": "TinyWorld's answers are short\nand adapters are served: `rerank` never applies.",
    "picturebook": """\
In the picture-book items are as its suite draws them, each once, and the rungs are those that TinyWorld's
validation chose; `constant_bias` and `plausibility_only` leave answers in words of their own as they are.""",
}
GOAL_NOTES = """\
Of the policy `ladder` on the base model. `gap_closed` is of all items of the settings; intervals: 95 %,
bootstrap of whole sources. Clean and needed: accuracy less that of greedy decoding, on the same items.
Tokens: means of `mitigation_tokens.json`, weighed by requests; `computed` leaves out what the engine took
from its cache. Against controls: accuracy less theirs on all lying settings, p by McNemar's exact test."""
OPERATORS_NOTES = """\
Accuracies over all settings in which the other input lies, is absent (clean), or is needed and the client
says so; shares of all items. Weigh the first column against the next three, and these against tokens and
time."""
SMALLEST_GAP = 0.02  # with a smaller one between interfered and clean accuracy, a share of it means little
DRIVEN = {"text-driven": "image-heavy", "image-driven": "text-heavy"}
CLOSED, CLEAN_LOSS, NEEDED_LOSS, UNFLAGGED, FLAGGED = 0.8, -0.005, -0.01, 1.5, 3.0  # the goals
RESAMPLES = 2000
SHOWN = ("model", "policy", "accuracy", "clean_accuracy", "gap_closed", "changed_right_to_wrong", "abstained")
AnswersBySetting = Mapping[str, Sequence[ItemAnswers]]  # of one model


def table_rows(
    model: str, setting: Setting, answers: AnswersBySetting, ms: Mapping[str, float | None]
) -> Iterator[dict[str, Any]]:
    """A row for each policy, with the accuracy of the same policy on the clean twins."""
    items, twins = answers[setting.name], answers[setting.clean.name]
    flags = [one.flagged for one in items]
    greedy = [one.served["greedy"] for one in items]
    before, ceiling = _share(greedy, "right"), _share([twin.served["greedy"] for twin in twins], "right")
    gap = ceiling - before
    for policy in items[0].served:
        served = [one.served[policy] for one in items]
        yield {
            "model": model,
            "policy": policy,
            "setting": setting.name,
            "held_out": setting.held_out,
            "n": len(served),
            "accuracy": _share(served, "right"),
            "clean_accuracy": _share([twin.served[policy] for twin in twins], "right"),
            "gap_closed": (_share(served, "right") - before) / gap if gap >= SMALLEST_GAP else None,
            "changed_right_to_wrong": sum(
                was.right and not now.right and not now.abstained
                for was, now in zip(greedy, served, strict=True)
            )
            / len(served),
            "abstained": _share(served, "abstained"),
            "flagged": sum(flags) / len(flags),
            "extra_tokens": statistics.fmean(one.tokens - one.main_tokens for one in served),
            "ratio_flagged": _ratio([one for one, flag in zip(served, flags, strict=True) if flag]),
            "ratio_unflagged": _ratio([one for one, flag in zip(served, flags, strict=True) if not flag]),
            "ms_p50": ms.get(policy),
        }


def _share(served: Sequence[ServedAnswer], what: str) -> float:
    return sum(bool(getattr(one, what)) for one in served) / len(served)


def _ratio(served: Sequence[ServedAnswer]) -> float | None:
    main = sum(one.main_tokens for one in served)
    return sum(one.tokens for one in served) / main if main else None


# -- goals -----------------------------------------------------------------------------------------


def goal_rows(
    answers: AnswersBySetting, tokens: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """A row for each goal with the figure reached; `answers` and `tokens` are the base model's."""
    rows = [_gap_row(driven, held_out, answers, seed) for driven in DRIVEN for held_out in ("no", "wording")]
    clean = [each for each in SETTINGS if each.kind == "clean" or each.name == "vqa/clean"]
    rows.append(_loss_row("clean accuracy", "ladder − greedy", clean, answers, CLEAN_LOSS, seed))
    for who, auto in (("the client says both", False), ("nobody says", True)):
        needed = [each for each in SETTINGS if each.kind == "needed" and (each.named == AUTO) == auto]
        rows.append(_loss_row(f"needed input, {who}", "ladder − greedy", needed, answers, NEEDED_LOSS, seed))
    rows += _token_goals(tokens)
    rows += [_control_row(driven, control, answers, seed) for driven in DRIVEN for control in CONTROLS]
    return rows


def _lying(driven: str, held_out: str) -> list[Setting]:
    return [
        each
        for each in SETTINGS
        if each.kind == "lying" and each.family == DRIVEN[driven] and each.held_out == held_out
    ]


def _gap_row(driven: str, held_out: str, answers: AnswersBySetting, seed: int) -> dict[str, Any]:
    settings = _lying(driven, held_out)
    items = [one for each in settings for one in answers[each.name]]
    twins = [one for each in settings for one in answers[each.clean.name]]
    after = [one.served["ladder"].right for one in items]
    before = [one.served["greedy"].right for one in items]
    ceiling = [one.served["greedy"].right for one in twins]
    closed = _closed(before, after, ceiling)
    low, high = closed_interval(before, after, ceiling, [one.item.source for one in items], seed)
    part = "nothing held out" if held_out == "no" else "held-out wording"
    return _goal(f"gap closed, {driven}, {part}", "gap_closed", len(items), closed, low, high, CLOSED)


def _closed(before: Sequence[bool], after: Sequence[bool], ceiling: Sequence[bool]) -> float | None:
    gap = sum(ceiling) - sum(before)
    return (sum(after) - sum(before)) / gap if gap >= SMALLEST_GAP * len(before) else None


def closed_interval(
    before: Sequence[bool],
    after: Sequence[bool],
    ceiling: Sequence[bool],
    sources: Sequence[str],
    seed: int,
) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of the share of the gap that is closed, resampling the sources of the items."""
    names = {name: index for index, name in enumerate(dict.fromkeys(sources))}
    sums = np.zeros((len(names), 2))  # for each source: what was gained, and what there was to gain
    for b, a, c, source in zip(before, after, ceiling, sources, strict=True):
        sums[names[source]] += (int(a) - int(b), int(c) - int(b))
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    gained, gap = np.moveaxis(sums[drawn].sum(axis=1), -1, 0)  # (RESAMPLES,) each
    if not (gap > 0).any():
        return None, None
    return percentile_interval(np.where(gap > 0, gained / np.where(gap > 0, gap, 1), np.nan))


def _loss_row(
    goal: str, what: str, settings: Sequence[Setting], answers: AnswersBySetting, bar: float, seed: int
) -> dict[str, Any]:
    items = [one for each in settings for one in answers[each.name]]
    before = [float(one.served["greedy"].right) for one in items]
    after = [float(one.served["ladder"].right) for one in items]
    value = statistics.fmean(after) - statistics.fmean(before)
    low, high = paired_interval(before, after, [one.item.source for one in items], seed=seed)
    return _goal(goal, what, len(items), value, low, high, bar)


def _token_goals(tokens: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for flagged, most in ((False, UNFLAGGED), (True, FLAGGED)):
        for prompt, key in product(("short", "padded"), ("ratio", "computed")):
            group = [
                row
                for row in tokens
                if row["policy"] == "ladder" and row["prompt"] == prompt and row["flagged"] == flagged
            ]
            n = sum(row["n"] for row in group)
            main = sum(row["n"] * row["main_tokens"] for row in group)
            value = sum(row["n"] * row["main_tokens"] * row[key] for row in group) / main if n else None
            which = "flagged" if flagged else "unflagged"
            what = "tokens" if key == "ratio" else "computed tokens"
            yield _goal(f"{what}, {which}, {prompt} prompts", key, n, value, None, None, most, at_most=True)


def _control_row(driven: str, control: str, answers: AnswersBySetting, seed: int) -> dict[str, Any]:
    settings = [*_lying(driven, "no"), *_lying(driven, "wording")]
    items = [one for each in settings for one in answers[each.name]]
    ours = [one.served["ladder"].right for one in items]
    theirs = [one.served[control].right for one in items]
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    low, high = paired_interval(
        list(map(float, theirs)), list(map(float, ours)), [one.item.source for one in items], seed=seed
    )
    row = _goal(f"against {control}, {driven}", f"ladder − {control}", len(items), value, low, high, None)
    return {**row, "p": mcnemar(ours, theirs).p}


def _goal(
    goal: str,
    what: str,
    n: int,
    value: float | None,
    low: float | None,
    high: float | None,
    bar: float | None,
    *,
    at_most: bool = False,
) -> dict[str, Any]:
    met = None if value is None or bar is None else value <= bar if at_most else value >= bar
    return {
        "goal": goal,
        "measure": what,
        "n": n,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "bar": bar,
        "verdict": "not measured" if value is None else "–" if met is None else "met" if met else "missed",
        "p": None,
    }


# -- the page --------------------------------------------------------------------------------------


def notes(
    rows: Sequence[Mapping[str, Any]], goals: Sequence[Mapping[str, Any]], world: World = "tinyworld"
) -> str:
    """The text above the rows of a test run: policies side by side, goals, how to read all rows."""
    parts = (
        "## What each policy does to the base's answers",
        OPERATORS_NOTES,
        operators(rows, PAIR[world][0]),
        "## Means over the settings in which interference costs accuracy",
        shown(rows),
        "## The goals, base model",
        table(goals),
        GOAL_NOTES,
        "## All settings",
        f"{NOTES} {WORLD_NOTES[world]}",
    )
    return "\n\n".join(part.rstrip() for part in parts)


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of each policy's means over the settings with a gap, with its costs in tokens and time."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["gap_closed"] is not None:
            groups.setdefault((row["model"], row["policy"]), []).append(row)
    means = [
        {
            "model": model,
            "policy": policy,
            **{key: _mean(group, key) for key in (*SHOWN[2:], "extra_tokens", "ms_p50")},
        }
        for (model, policy), group in groups.items()
    ]
    return table(means) if means else "No setting has a gap.\n"


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.fmean(values) if values else None


def operators(rows: Sequence[Mapping[str, Any]], base: str = BASE) -> str:
    """The operator's table: the effect of each policy on the base model's answers, by role of the other
    input."""
    kinds = {each.name: each.kind for each in SETTINGS if each.named != AUTO}
    of_base = [row for row in rows if row["model"] == base and row["setting"] in kinds]

    def of(policy: str, *wanted: str) -> list[Mapping[str, Any]]:
        return [row for row in of_base if row["policy"] == policy and kinds[row["setting"]] in wanted]

    def weighted(group: Sequence[Mapping[str, Any]], key: str) -> float:
        return sum(row[key] * row["n"] for row in group) / sum(row["n"] for row in group)

    greedy = {kind: weighted(of("greedy", kind), "accuracy") for kind in ("clean", "needed")}
    table_rows = []
    for policy in dict.fromkeys(row["policy"] for row in of_base):
        every = of(policy, *dict.fromkeys(kinds.values()))
        table_rows.append(
            {
                "policy": policy,
                "right where the other input lies": weighted(of(policy, "lying"), "accuracy"),
                "clean, less greedy": weighted(of(policy, "clean"), "accuracy") - greedy["clean"],
                "needed, less greedy": weighted(of(policy, "needed"), "accuracy") - greedy["needed"],
                "right made wrong": weighted(every, "changed_right_to_wrong"),
                "no answer": weighted(every, "abstained"),
                "more tokens a request": weighted(every, "extra_tokens"),
                "ms": _mean(every, "ms_p50"),
            }
        )
    return table(table_rows)


def rewritten(page: str, blocks: Mapping[str, str]) -> str:
    """The page with each named block rewritten: see `results.rewritten`."""
    return results.rewritten(page, blocks, "make bench-mitigation")
