"""What a study says: its tables with their headings, sentences that sum it up, and its limits. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modint_guard.evaluation.page import Table, shown
from modint_guard.evaluation.results import ResultRow
from modint_training.locate import tables as made
from modint_training.locate.adapter import least_kept
from modint_training.locate.patching import MIN_GAP
from modint_training.locate.study import Measured

LIAR = {"image-heavy": "a lying caption", "text-heavy": "a lying picture"}
ENOUGH = 0.9  # of an adapter's gain
MAY_LOSE = 0.02  # of the accuracy without a lie, by ablated heads that are named first


@dataclass(frozen=True)
class Located:
    """Where interference sits in a model: tables by name, some of which may be empty."""

    model: str
    data: str
    tables: Mapping[str, Table]
    finding: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> Sequence[ResultRow]:
        """The sites, which are the rows of the report."""
        return self.tables["sites"].rows


def located(measured: Measured, dropped: Counter[str], *, model: str, data: str) -> Located:
    """The report of what was measured. `dropped` counts the items without twins, by reason."""
    tables = _tables(measured)
    finding = [
        sentence for row in tables["twins"].rows for sentence in _of_family(row, tables)
    ] + _of_adapter(tables)
    return Located(model, data, tables, tuple(finding), tuple(_notes(measured, dropped)))


def _tables(measured: Measured) -> dict[str, Table]:
    return {
        "twins": Table(
            "Twins",
            made.twin_rows(measured),
            "accuracy: without caption or picture that might disturb; flipped: right so, and wrong beside the"
            f" lie; moved: the lie costs at least {MIN_GAP:g} nat of log p(true) - log p(lie). Maps are"
            " made of"
            " these.",
        ),
        "sites": Table(
            "Sites",
            made.site_rows(measured),
            "attribution: the recovery to first order, on half of the twins; recovery: the exact one of n"
            " twins of the other half, with its interval.",
            ("family",),
        ),
        "heads": Table(
            "Heads",
            made.head_rows(measured),
            "attribution: over all token groups; ablated, ablated_bare: by how many nats the gap rises"
            " beside a"
            " lie, and without it, if the head writes its mean; image, context: the attention that the"
            " deciding"
            " position gives them beside a lie.",
            ("family",),
        ),
        "edges": Table(
            "Edges cut",
            made.edge_rows(measured),
            "From layer `first` to `last` the second group may not attend to the first: by how many nats"
            " log p(true) and log p(true) - log p(lie) (gap, with its interval) rise beside a lie, and"
            " the share"
            " of flips that are gone. `last` position: the one that decides.",
            ("family", "edge"),
        ),
        "competition": Table(
            "Attention competition",
            made.competition_rows(measured),
            "To what the deciding position attends beside a lie. dominance: attention to a token of the"
            " context"
            " over that to one of the picture; displacement, with its interval: the share of attention that"
            " what ought to decide loses beside the other modality; cut: what cutting the edge in the layers"
            " around does to log p(true). Attention is not use: read the two together.",
            ("family",),
        ),
        "overlap": Table(
            "Feature overlap of picture and context",
            made.overlap_rows(measured),
            "a_distance: 2 if a linear probe tells the modalities apart, 0 if it guesses; mmd: 0 for one"
            " distribution; subspace: the share of the main directions in common; correlation, with its"
            " interval: of the overlap in a prompt with how far the lie moved its answer.",
            ("space",),
        ),
        "consistency": Table(
            "Cross-modal consistency",
            measured.consistency,
            "Linear CKA of a picture's encoding with that of a caption that states the same fact;"
            " shuffled: of"
            " other pairs, which is what so few pairs give by chance.",
            ("space",),
        ),
        "ablation": Table(
            "Heads ablated",
            made.ablation_rows(measured),
            "The heads that do most harm, each alone on half of the twins, ablated together on the other"
            " half."
            " flips_removed: the share of flips that are gone; random: without as many random heads.",
            ("family",),
        ),
        "modules": Table(
            "What each module of the adapter contributes",
            made.module_rows(measured),
            "contribution, with its interval: the share of what the adapter gained beside lies that is"
            " lost if"
            " B of this module is 0. Shares need not add up to 1.",
        ),
        "kept": Table(
            "The adapter with its best modules alone",
            made.kept_rows(measured),
            "restored: the share of what the adapter gained beside lies, of the gap and of the accuracy;"
            " last:"
            " the module that was added.",
        ),
    }


def _rows(tables: Mapping[str, Table], name: str, family: str) -> list[ResultRow]:
    return [row for row in tables[name].rows if row["family"] == family]


def _of_family(row: ResultRow, tables: Mapping[str, Table]) -> list[str]:
    family = row["family"]
    sentences = [
        f"{row['flipped']} of {row['n']} {family} answers flip beside {LIAR[family]}; {row['moved']} move"
        " by at"
        f" least {MIN_GAP:g} nat."
    ]
    exact = [each for each in _rows(tables, "sites", family) if each["recovery"] is not None]
    for kinds in (("residual",), ("attention", "mlp"), ("head",)):
        if of_kinds := [each for each in exact if each["site"] in kinds and not _holds_all(each)]:
            best = max(of_kinds, key=lambda each: each["recovery"])
            sentences.append(
                f"Given the states of its truthful twin, {_site(best)} brings back"
                f" {shown(best['recovery'])} of"
                f" the answer [{shown(best['ci_low'])}, {shown(best['ci_high'])}]."
            )
    if edges := _rows(tables, "edges", family):
        best = max(edges, key=lambda each: each["gap"])
        sentences.append(
            f"Cutting {best['edge']} in {_layers(best)} raises log p(true) - log p(lie) by {best['gap']:.2f}"
            f" nats, the most of all cuts, and {shown(best['flips_removed'])} of the flips are gone."
        )
    return sentences + _of_ablation(_rows(tables, "ablation", family))


def _holds_all(row: ResultRow) -> bool:
    """Whether it is the residual stream of the deciding position, which late in the model holds the whole
    answer."""
    return row["site"] == "residual" and row["group"] == "last"


def _layers(row: ResultRow) -> str:
    return (
        f"layer {row['first']}" if row["first"] == row["last"] else f"layers {row['first']} to {row['last']}"
    )


def _site(row: ResultRow) -> str:
    names = {"residual": "the residual stream", "attention": "attention", "mlp": "the MLP"}
    what = f"head {row['layer']}.{row['head']}" if row["site"] == "head" else names[row["site"]]
    after = "" if row["site"] == "head" else f" of layer {row['layer']}"
    return f"{what}{after} at the group `{row['group']}`"


def _of_ablation(rows: Sequence[ResultRow]) -> list[str]:
    tried = [row for row in rows if row["heads"] and row["flips_removed"] is not None]
    if not tried:
        return []
    before = next(row["accuracy"] for row in rows if not row["heads"])
    harmless = [row for row in tried if row["accuracy"] >= before - MAY_LOSE]
    best = max(harmless or tried, key=lambda row: (row["flips_removed"], -row["heads"]))
    return [
        f"Without head {best['ablated']} ({shown(best['share'])} of all heads) {shown(best['flips_removed'])}"
        f" of the {best['flips']} flips among other items are gone, and {shown(best['random'])} without"
        " as many"
        " random heads;"
        f" accuracy without a lie goes from {shown(before)} to {shown(best['accuracy'])}."
    ]


def _of_adapter(tables: Mapping[str, Table]) -> list[str]:
    kept = tables["kept"].rows
    if not kept:
        return []
    if kept[0]["restored"] is None:
        return ["The adapter gains nothing beside lies on these items, so no module has a share of it."]
    counts = [row["modules"] for row in kept]
    enough = least_kept(counts, [row["restored"] for row in kept], ENOUGH)
    right = least_kept(counts, [_or_zero(row["restored_accuracy"]) for row in kept], ENOUGH)
    return [
        f"{enough} of the adapter's {counts[-1]} modules restore {ENOUGH:.0%} of what it gained of the"
        " gap beside"
        f" lies; {right} restore {ENOUGH:.0%} of the accuracy."
    ]


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _notes(measured: Measured, dropped: Counter[str]) -> list[str]:
    left_out = "; ".join(f"{count} items {reason}" for reason, count in sorted(dropped.items()))
    every = measured.every
    still = len(every.twins) - sum(len(every.moved(family)) for family in made.families_in(measured))
    return [
        f"Left out: {left_out or 'no items'}; {still} twins that the lie moves by less than {MIN_GAP:g} nat,"
        " whose recovery would divide by next to nothing.",
        "Answers are read at their first token. Gaps are log p(true) - log p(lie).",
        "Attribution is a first-order estimate and misleads most on the residual stream: read the exact"
        " recovery. In late layers the residual stream of the deciding position holds the whole answer,"
        " so that"
        " its recovery tends to 1 whatever the model does.",
        "Half of the items chose sites and heads, the other half measured them. Modules are ranked and"
        " measured on"
        " all items.",
        "A probe that tells picture from context may read their positions. CKA of few pairs in many"
        " dimensions"
        " is high by chance: compare with `shuffled`.",
        "What a site carries in these prompts it may not carry in others.",
    ]
