"""One study of a model: every measurement on its twins, each kept as soon as it is there."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from modint_guard.data.item import FAMILIES
from modint_guard.errors import ConfigError
from modint_guard.evaluation.journal import Journal
from modint_guard.types import JSON
from modint_training.locate.ablation import (
    DRAWS,
    SCREENED,
    Head,
    answers_without,
    counts_ablated,
    head_means,
    random_heads,
    vulnerability,
)
from modint_training.locate.adapter import contribution, counts_kept, lora_modules, switched_off
from modint_training.locate.attention import masses
from modint_training.locate.encodings import consistencies, overlaps
from modint_training.locate.knockout import knockouts
from modint_training.locate.patching import attributions, exact_gaps, is_moved, top_sites
from modint_training.locate.scoring import Prepared, answered, answers_to, prepared
from modint_training.locate.subject import Site, Subject, run_of
from modint_training.locate.twins import Twins, in_batches, in_halves

LIED_TO: tuple[str, ...] = FAMILIES[:2]  # the families that have twins
Job = Callable[[], JSON]


@dataclass(frozen=True)
class Answers:
    """Twins with what the model answers to them: log p(true) - log p(lie) beside the truth and beside the
    lie, in nats, and whether the answer is right beside either, and without (`bare`)."""

    twins: list[Twins]
    clean: list[float]
    lie: list[float]
    right: list[dict[str, bool]]

    def of(self, family: str) -> list[int]:
        """The indices of a family's twins."""
        return [index for index, each in enumerate(self.twins) if each.family == family]

    def moved(self, family: str) -> list[int]:
        """The indices of a family's twins whose answer the lie moves far enough."""
        return [index for index in self.of(family) if is_moved(self.lie[index], self.clean[index])]

    def flipped(self, family: str) -> list[int]:
        """The indices of a family's twins that are answered rightly without the lie and wrongly beside it."""
        return [
            index for index in self.of(family) if self.right[index]["bare"] and not self.right[index]["lie"]
        ]


@dataclass(frozen=True)
class Measured:
    """All that was measured. The first half of the twins made the map (`attribution`, of moved twins a share
    of the gap, sites in order), the second half tested it (`exact`, gaps by site; `ablation`)."""

    sites: list[Site]
    first: Answers
    second: Answers
    attribution: NDArray[np.float64]  # (twins of the first half, sites)
    exact: list[dict[str, float]]
    chosen: dict[str, list[Site]]  # by family, the sites that were patched exactly
    screened: dict[
        str, dict[Head, tuple[float, float]]
    ]  # by family, rises of the gap beside a lie, without it
    heads: dict[str, list[Head]]  # by family, those that do most harm first
    knockout: list[JSON]  # for each twin of both halves, as all below
    masses: list[JSON]
    overlap: list[JSON]
    consistency: list[JSON]
    ablation: dict[str, JSON]
    modules: dict[str, JSON]
    kept: dict[int, JSON]

    @property
    def every(self) -> Answers:
        """Both halves together."""
        pairs = zip(*(vars(half).values() for half in (self.first, self.second)), strict=True)
        return Answers(*(first + second for first, second in pairs))


@dataclass(frozen=True)
class Desk:
    """Where a study works: its subject, the journal that keeps each record, the bars that show progress."""

    subject: Subject
    journal: Journal
    progress: Progress

    def each(self, stage: str, jobs: Mapping[str, Job]) -> dict[str, JSON]:
        """The record of each job, in their order; those in the journal are not done again."""
        bar = self.progress.add_task(stage, total=len(jobs))
        for name, job in jobs.items():
            if (key := f"{stage}/{name}") not in self.journal.records:
                self.journal.write(key, job())
            self.progress.advance(bar)
        return {name: self.journal.records[f"{stage}/{name}"] for name in jobs}

    def per_twin(
        self, stage: str, twins: Sequence[Twins], measure: Callable[[list[Twins]], list[Any]]
    ) -> list[Any]:
        """What `measure` gives for each of the twins, which it gets in batches."""
        batches = list(in_batches([len(each.lie.ids) for each in twins]))
        jobs = {
            str(number): partial(_rows, measure, [twins[index] for index in chosen])
            for number, chosen in enumerate(batches)
        }
        records = self.each(stage, jobs).values()
        by_twin = {
            index: row
            for chosen, record in zip(batches, records, strict=True)
            for index, row in zip(chosen, record["rows"], strict=True)
        }
        return [by_twin[index] for index in range(len(twins))]


def _rows(measure: Callable[[list[Twins]], list[Any]], twins: list[Twins]) -> JSON:
    return {"rows": measure(twins)}


def studied(desk: Desk, twins: Sequence[Twins], dropped: Counter[str], *, exact: int) -> Measured:
    """Measure everything on the twins. `exact`: how many sites of each kind are patched exactly.

    Raises ConfigError if there are too few twins.
    """
    halves = in_halves(twins)
    if not all(halves):
        reasons = "".join(f"; {count} {reason}" for reason, count in dropped.items())
        raise ConfigError(
            f"only {len(twins)} items have twins, and at least two of different sources are needed:"
            " image-heavy "
            "ones with a false answer, or text-heavy ones with an agreeing and a contradicting"
            f" picture{reasons}"
        )
    subject, (mapping, trying) = desk.subject, halves
    rows = desk.per_twin("attribution", mapping, partial(_attributed, subject))
    first = _answers(mapping, rows)
    second = _answers(trying, desk.per_twin("answers", trying, partial(_answered, subject)))
    sites = subject.sites()
    attribution = np.array([row["attribution"] for row in rows])
    chosen = {family: _chosen(sites, _shares(first, attribution, family), exact) for family in LIED_TO}
    effects = {family: _head_effects(desk, mapping, family) for family in LIED_TO}
    heads = {family: sorted(of, key=lambda head: -vulnerability(*of[head])) for family, of in effects.items()}
    every = [*mapping, *trying]
    modules = _modules(desk, every)
    captioned = [each for each in every if each.family == "image-heavy"]
    return Measured(
        sites,
        first,
        second,
        attribution,
        desk.per_twin("exact patching", trying, partial(_patched, subject, chosen)),
        chosen,
        {family: {head: _mean_rises(rises) for head, rises in of.items()} for family, of in effects.items()},
        heads,
        desk.per_twin("edges", every, partial(_cut, subject)),
        desk.per_twin("attention", every, partial(_attended, subject)),
        desk.each("overlap", {"all": lambda: {"rows": overlaps(subject, captioned)}})["all"]["rows"],
        desk.each("consistency", {"all": lambda: {"rows": consistencies(subject, every)}})["all"]["rows"],
        _ablations(desk, mapping, trying, heads),
        modules,
        _kept(desk, every, modules),
    )


# -- the map --------------------------------------------------------------------------------------------


def _attributed(subject: Subject, twins: list[Twins]) -> list[JSON]:
    clean, lie = _pair(subject, twins)
    estimates = attributions(subject, clean, lie, twins).tolist()
    rows = _answered(subject, twins)
    return [{**row, "attribution": values} for row, values in zip(rows, estimates, strict=True)]


def _pair(subject: Subject, twins: Sequence[Twins]) -> Any:
    return (run_of(subject, [getattr(each, name) for each in twins]) for name in ("clean", "lie"))


def _answered(subject: Subject, twins: list[Twins]) -> list[JSON]:
    given = {
        name: answered(subject, run_of(subject, [getattr(each, name) for each in twins]), twins)
        for name in ("clean", "lie", "bare")
    }
    return [
        {
            "clean": given["clean"][0][row],
            "lie": given["lie"][0][row],
            "right": {name: right[row] for name, (_, right) in given.items()},
        }
        for row in range(len(twins))
    ]


def _answers(twins: list[Twins], rows: Sequence[JSON]) -> Answers:
    return Answers(twins, *([row[name] for row in rows] for name in ("clean", "lie", "right")))


def _shares(answers: Answers, attribution: NDArray[np.float64], family: str) -> NDArray[np.float64]:
    """The mean estimate of each site's recovery over a family's moved twins  # (sites,); 0 without any."""
    moved = answers.moved(family)
    if not moved:
        return np.zeros(attribution.shape[1])
    gaps = np.array([answers.clean[index] - answers.lie[index] for index in moved])
    means: NDArray[np.float64] = (attribution[moved] / gaps[:, None]).mean(axis=0)
    return means


def _chosen(sites: Sequence[Site], shares: NDArray[np.float64], exact: int) -> list[Site]:
    means = {site.key: float(share) for site, share in zip(sites, shares, strict=True)}
    return top_sites(sites, means, exact) if any(means.values()) else []


def _patched(subject: Subject, chosen: Mapping[str, Sequence[Site]], twins: list[Twins]) -> list[JSON]:
    sites = list(dict.fromkeys(site for family in {each.family for each in twins} for site in chosen[family]))
    clean, lie = _pair(subject, twins)
    by_site = exact_gaps(subject, clean, lie, twins, sites)
    return [{key: values[row] for key, values in by_site.items()} for row in range(len(twins))]


# -- what else is measured ------------------------------------------------------------------------------


def _cut(subject: Subject, twins: list[Twins]) -> list[Any]:
    return knockouts(subject, run_of(subject, [each.lie for each in twins]), twins)


def _attended(subject: Subject, twins: list[Twins]) -> list[JSON]:
    lie, bare = (
        masses(subject, run_of(subject, [getattr(each, name) for each in twins])).tolist()
        for name in ("lie", "bare")
    )
    return [{"lie": beside, "bare": alone} for beside, alone in zip(lie, bare, strict=True)]


def _head_effects(
    desk: Desk, mapping: Sequence[Twins], family: str
) -> dict[Head, tuple[list[float], list[float]]]:
    """By how much the gap of each of a family's twins rises beside a lie, and without it, if one head is
    ablated; by the head."""
    subject, shown = desk.subject, [each for each in mapping if each.family == family]
    if not shown:
        return {}
    tried = shown[:SCREENED]
    means = cache(partial(head_means, subject, shown))
    prompts = cache(partial(prepared, subject, tried, ("lie", "bare")))
    every = [(layer, head) for layer in range(len(subject.layers)) for head in range(subject.heads)]
    picked: dict[str, list[Head]] = {
        "none": [],
        **{f"{layer}.{head}": [(layer, head)] for layer, head in every},
    }
    records = desk.each(
        f"heads, {family}",
        {name: partial(_gaps_without, subject, heads, means, prompts) for name, heads in picked.items()},
    )
    before = records.pop("none")
    return {
        head: (_rises(record["lie"], before["lie"]), _rises(record["bare"], before["bare"]))
        for head, record in zip(every, records.values(), strict=True)
    }


def _rises(after: Sequence[float], before: Sequence[float]) -> list[float]:
    return [second - first for first, second in zip(before, after, strict=True)]


def _mean_rises(rises: tuple[list[float], list[float]]) -> tuple[float, float]:
    return float(np.mean(rises[0])), float(np.mean(rises[1]))


def _gaps_without(
    subject: Subject, heads: Sequence[Head], means: Callable[[], Tensor], prompts: Callable[[], Prepared]
) -> JSON:
    given = answers_without(subject, heads, means(), prompts())
    return {name: answers.gap for name, answers in given.items()}


def _ablations(
    desk: Desk, mapping: Sequence[Twins], trying: Sequence[Twins], heads: Mapping[str, Sequence[Head]]
) -> dict[str, JSON]:
    """Whether answers are right without the heads of a family that do most harm, and without random ones, by
    `family/count/draw`; the draw of the former is `best`."""
    subject = desk.subject
    counts = counts_ablated(len(subject.layers) * subject.heads)
    jobs: dict[str, Job] = {}
    for family in LIED_TO:
        tried = [each for each in trying if each.family == family]
        shown = [each for each in mapping if each.family == family]
        if not (tried and shown):
            continue
        means = cache(partial(head_means, subject, shown))
        prompts = cache(partial(prepared, subject, tried, ("lie", "clean", "bare")))
        for count in counts:
            picked = {"best": list(heads[family][:count])}
            picked |= {str(draw): random_heads(subject, count, draw) for draw in range(DRAWS if count else 0)}
            for draw, of_draw in picked.items():
                jobs[f"{family}/{count}/{draw}"] = partial(_rights_without, subject, of_draw, means, prompts)
    return desk.each("heads together", jobs)


def _rights_without(
    subject: Subject, heads: Sequence[Head], means: Callable[[], Tensor], prompts: Callable[[], Prepared]
) -> JSON:
    given = answers_without(subject, heads, means(), prompts())
    return {name: answers.right for name, answers in given.items()}


def _modules(desk: Desk, twins: Sequence[Twins]) -> dict[str, JSON]:
    """Answers with the whole adapter (the name ""), without all of it ("-"), and without each module."""
    modules = lora_modules(desk.subject.model)
    off: dict[str, list[str]] = {"": [], "-": list(modules), **{name: [name] for name in modules}}
    return desk.each("modules", _switched_off(desk.subject, modules, off, twins) if modules else {})


def _kept(desk: Desk, twins: Sequence[Twins], modules: Mapping[str, JSON]) -> dict[int, JSON]:
    """Answers with the n modules alone that contribute most, by n."""
    order = ranked_modules(modules)
    off = {str(count): order[count:] for count in counts_kept(len(order)) if order}
    jobs = _switched_off(desk.subject, lora_modules(desk.subject.model), off, twins)
    return {int(count): record for count, record in desk.each("kept", jobs).items()}


def _switched_off(
    subject: Subject, modules: Mapping[str, Any], off: Mapping[str, Sequence[str]], twins: Sequence[Twins]
) -> dict[str, Job]:
    """A job for each list of modules to be switched off."""
    prompts: Callable[[], Prepared] = partial(prepared, subject, twins, ("lie", "bare"))
    inside = set(subject.decoder.modules())
    if all(module in inside for module in modules.values()):
        prompts = cache(prompts)  # the decoder is given the same by every one
    return {name: partial(_without, subject, modules, names, prompts) for name, names in off.items()}


def _without(
    subject: Subject, modules: Mapping[str, Any], names: Sequence[str], prompts: Callable[[], Prepared]
) -> JSON:
    with switched_off(modules, names):
        given = answers_to(subject, prompts())
    return {"gap": given["lie"].gap, "right": given["lie"].right, "bare": given["bare"].right}


def ranked_modules(modules: Mapping[str, JSON]) -> list[str]:
    """The modules of an adapter, those without which the answers lose most first."""
    gaps = {name: float(np.mean(record["gap"])) for name, record in modules.items() if name not in ("", "-")}
    return sorted(gaps, key=lambda name: gaps[name])


def contributions(modules: Mapping[str, JSON]) -> dict[str, float | None]:
    """What each module contributes to the gap beside the lie, the largest first; None if the adapter gained
    nothing."""
    whole, base = (float(np.mean(modules[name]["gap"])) for name in ("", "-"))
    return {
        name: contribution(whole, float(np.mean(modules[name]["gap"])), base) if whole > base else None
        for name in ranked_modules(modules)
    }
