"""From what was measured to rows: one function for each table. Pure.

Intervals hold at 95 % and are clustered by source. Gaps are log p(true) - log p(lie), in nats.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modint_guard.evaluation.statistics import cluster_interval, mean
from modint_training.locate.ablation import DRAWS, Head
from modint_training.locate.adapter import contribution, layer_of
from modint_training.locate.attention import displacement, dominance
from modint_training.locate.correlation import spearman, spearman_interval
from modint_training.locate.knockout import EDGES, edge_name, windows
from modint_training.locate.patching import recovery
from modint_training.locate.study import LIED_TO, Answers, Measured, contributions, ranked_modules
from modint_training.locate.subject import Site
from modint_training.locate.twins import CONTEXT, GROUPS, IMAGE, QUESTION, Twins

Row = dict[str, Any]  # of a table, by column
# The token groups that ought to decide, by family.
DECIDING = {"image-heavy": (IMAGE,), "text-heavy": (CONTEXT, QUESTION)}


def families_in(measured: Measured) -> list[str]:
    """The families that have twins."""
    return [family for family in LIED_TO if measured.every.of(family)]


def twin_rows(measured: Measured) -> list[Row]:
    """For each family how its twins are answered, and how many the lie moves far enough to be in the map."""
    every = measured.every
    return [
        {
            "family": family,
            "n": len(indices),
            "accuracy": _share(every, indices, "bare"),
            "beside_truth": _share(every, indices, "clean"),
            "beside_lie": _share(every, indices, "lie"),
            "flipped": len(every.flipped(family)),
            "moved": len(every.moved(family)),
        }
        for family in families_in(measured)
        for indices in [every.of(family)]
    ]


def _share(answers: Answers, indices: Sequence[int], name: str) -> float | None:
    return mean(answers.right[index][name] for index in indices)


def _interval(values: Sequence[float], twins: Sequence[Twins], indices: Sequence[int]) -> dict[str, Any]:
    low, high = (
        cluster_interval(values, [twins[index].source for index in indices]) if values else (None, None)
    )
    return {"ci_low": low, "ci_high": high}


# -- sites ----------------------------------------------------------------------------------------------


def site_rows(measured: Measured) -> list[Row]:
    """Every site: its estimated recovery on the first half's moved twins, and for the chosen ones the exact
    one, with its interval, on the second half's."""
    rows: list[Row] = []
    for family in families_in(measured):
        first, second = measured.first.moved(family), measured.second.moved(family)
        gaps = np.array([measured.first.clean[index] - measured.first.lie[index] for index in first])
        estimates = measured.attribution[first] / gaps[:, None]
        chosen = set(measured.chosen[family])
        for number, site in enumerate(measured.sites):
            exact = [_recovered(measured, site, index) for index in second] if site in chosen else []
            rows.append(
                {
                    "family": family,
                    **{"site": site.kind, "layer": site.layer, "head": site.head, "group": site.group},
                    "attribution": float(estimates[:, number].mean()) if first else None,
                    "n": len(exact),
                    "recovery": mean(exact),
                    **_interval(exact, measured.second.twins, second),
                }
            )
    return rows


def _recovered(measured: Measured, site: Site, index: int) -> float:
    second = measured.second
    return recovery(second.lie[index], measured.exact[index][site.key], second.clean[index])


def head_rows(measured: Measured) -> list[Row]:
    """Every head: its estimated recovery over all token groups; by how much the gap rises beside a lie
    (`ablated`) and without it (`ablated_bare`) if it is ablated alone; the attention that it gives to picture
    and context beside a lie."""
    sites = site_rows(measured)
    sums: dict[tuple[str, int, int], float] = {}
    for row in sites:
        if row["head"] is not None and row["attribution"] is not None:
            key = (row["family"], row["layer"], row["head"])
            sums[key] = sums.get(key, 0.0) + row["attribution"]
    rows: list[Row] = []
    for family in families_in(measured):
        attended = _masses(measured, family, "lie").mean(axis=0)  # (layers, heads, G)
        for layer, of_layer in enumerate(attended):
            rows += [
                {
                    **{"family": family, "layer": layer, "head": head},
                    "attribution": sums.get((family, layer, head)),
                    **_screened(measured, family, (layer, head)),
                    **{"image": float(mass[IMAGE]), "context": float(mass[CONTEXT])},
                }
                for head, mass in enumerate(of_layer)
            ]
    return rows


def _screened(measured: Measured, family: str, head: Head) -> dict[str, float | None]:
    beside, bare = measured.screened[family].get(head, (None, None))
    return {"ablated": beside, "ablated_bare": bare}


def _masses(measured: Measured, family: str, name: str) -> Any:
    indices = measured.every.of(family)
    return np.array([measured.masses[index][name] for index in indices])  # (n, layers, heads, G)


# -- edges and attention --------------------------------------------------------------------------------


def edge_rows(measured: Measured) -> list[Row]:
    """Every cut edge: by how much log p(true) and the gap rise in the lying run, and the share of flips that
    are gone, over the twins that have tokens of both groups."""
    every = measured.every
    rows: list[Row] = []
    for family in families_in(measured):
        flipped = set(every.flipped(family))
        for edge in EDGES:
            indices = [each for each in every.of(family) if all(map(every.twins[each].count, edge))]
            cuts = [measured.knockout[index][edge_name(edge)] for index in indices]
            for layer, window in enumerate(windows(len(cuts[0])) if cuts else []):
                true, gap, right = zip(*(cut[layer] for cut in cuts), strict=True)
                gone = [flag for index, flag in zip(indices, right, strict=True) if index in flipped]
                rows.append(
                    {
                        **{"family": family, "edge": edge_name(edge), "layer": layer},
                        **{"first": window[0], "last": window[-1], "n": len(cuts)},
                        **{"log_p_true": mean(true), "gap": mean(gap)},
                        **_interval(gap, every.twins, indices),
                        "flips_removed": mean(gone),
                    }
                )
    return rows


def competition_rows(measured: Measured) -> list[Row]:
    """Every layer: to what the deciding position attends beside a lie (shares of all heads' attention), how
    much more to a token of the context than to one of the picture, and how much attention what ought to
    decide loses beside the other modality, with the interval of that; then what cut edges did to
    log p(true)."""
    edges = {(row["family"], row["edge"], row["layer"]): row["log_p_true"] for row in edge_rows(measured)}
    every = measured.every
    rows: list[Row] = []
    for family in families_in(measured):
        indices = every.of(family)
        counts = np.array(
            [[every.twins[index].count(group) for group in range(len(GROUPS))] for index in indices]
        )
        beside, alone = (
            _masses(measured, family, name).mean(axis=2) for name in ("lie", "bare")
        )  # (n, layers, G)
        for layer in range(beside.shape[1]):
            rows.append(
                {
                    **{"family": family, "layer": layer, "n": len(indices)},
                    **dict(zip(GROUPS, beside[:, layer].mean(axis=0).tolist(), strict=True)),
                    "dominance": _dominance(beside[:, layer], counts),
                    **_displaced(measured, family, beside[:, layer], alone[:, layer]),
                    **{
                        f"cut_{GROUPS[group]}": edges.get((family, f"{GROUPS[group]} to last", layer))
                        for group in (IMAGE, CONTEXT)
                    },
                }
            )
    return rows


def _dominance(masses: Any, counts: Any) -> float | None:
    """Of mean masses and mean numbers of tokens; None without a context."""
    mass, tokens = masses.mean(axis=0), counts.mean(axis=0)
    if not (tokens[CONTEXT] and tokens[IMAGE] and mass[IMAGE]):
        return None
    return float(dominance(mass[CONTEXT], tokens[CONTEXT], mass[IMAGE], tokens[IMAGE]))


def _displaced(measured: Measured, family: str, beside: Any, alone: Any) -> dict[str, Any]:
    """Of mean masses, as single ones may be next to nothing  # (n, G), (n, G)."""
    deciding = list(DECIDING[family])
    now, before = (masses[:, deciding].sum(-1) for masses in (beside, alone))
    whole = float(before.mean())
    if not whole:
        return {"displacement": None, **_interval([], [], [])}
    every = measured.every
    lost = ((before - now) / whole).tolist()
    share = displacement(float(now.mean()), whole)
    return {"displacement": share, **_interval(lost, every.twins, every.of(family))}


# -- encodings ------------------------------------------------------------------------------------------


def overlap_rows(measured: Measured) -> list[Row]:
    """Feature overlap by layer and space, and how the overlap in a prompt goes with how far the lie moved its
    answer: Spearman's correlation with its interval, whatever its sign."""
    every = measured.every
    both = every.of("image-heavy")
    rows: list[Row] = []
    for row in measured.overlap:
        used = both[: row["n"]]
        moved = [every.clean[index] - every.lie[index] for index in used]
        interval = spearman_interval(row["cosine"], moved, [every.twins[index].source for index in used])
        low, high = interval or (None, None)
        shown = {name: value for name, value in row.items() if name != "cosine"}
        correlation = spearman(row["cosine"], moved)
        rows.append({**shown, "correlation": correlation, "ci_low": low, "ci_high": high})
    return rows


# -- ablation and modules -------------------------------------------------------------------------------


def ablation_rows(measured: Measured) -> list[Row]:
    """For each number of ablated heads: the share of the second half's flips that are gone, and the accuracy
    without a lie and beside the truth; `random` is the share of flips gone without as many random heads."""
    rows, total = [], len({(site.layer, site.head) for site in measured.sites if site.head is not None})
    for key, record in measured.ablation.items():
        family, count, draw = key.rsplit("/", 2)
        if draw != "best":
            continue
        indices = measured.second.of(family)
        flipped = [indices.index(index) for index in measured.second.flipped(family)]
        others = [measured.ablation.get(f"{family}/{count}/{number}") for number in range(DRAWS)]
        rows.append(
            {
                **{"family": family, "heads": int(count), "share": int(count) / total},
                **{"n": len(indices), "flips": len(flipped)},
                "flips_removed": mean(record["lie"][place] for place in flipped),
                "random": mean(other["lie"][place] for other in others if other for place in flipped),
                **{"accuracy": mean(record["bare"]), "beside_truth": mean(record["clean"])},
                "ablated": ", ".join(
                    f"{layer}.{head}" for layer, head in measured.heads[family][: int(count)]
                ),
            }
        )
    return rows


def module_rows(measured: Measured) -> list[Row]:
    """Each module of the adapter, the one that contributes most first: its share of what the adapter gained,
    and the accuracy beside a lie without it."""
    if not measured.modules:
        return []
    every, whole = measured.every, measured.modules[""]
    gained = float(np.mean(whole["gap"])) - float(np.mean(measured.modules["-"]["gap"]))
    rows: list[Row] = []
    for name, share in contributions(measured.modules).items():
        record = measured.modules[name]
        lost = [before - after for before, after in zip(whole["gap"], record["gap"], strict=True)]
        low, high = cluster_interval(lost, [each.source for each in every.twins])
        known = share is not None
        rows.append(
            {
                **{"module": name, "layer": layer_of(name), "projection": name.rpartition(".")[2]},
                "n": len(lost),
                "contribution": share,
                **{"ci_low": low / gained if known else None, "ci_high": high / gained if known else None},
                **{"beside_lie": mean(record["right"]), "accuracy": mean(record["bare"])},
            }
        )
    return rows


def kept_rows(measured: Measured) -> list[Row]:
    """For each number of modules that are kept, best first: the share of the adapter's gain that they
    restore, of the gap (`restored`) and of the accuracy beside a lie (`restored_accuracy`)."""
    if not measured.modules:
        return []
    whole, base = measured.modules[""], measured.modules["-"]
    return [
        {
            "modules": count,
            "restored": _restored(whole["gap"], record["gap"], base["gap"]),
            "restored_accuracy": _restored(whole["right"], record["right"], base["right"]),
            **{"beside_lie": mean(record["right"]), "accuracy": mean(record["bare"])},
            "last": ranked_modules(measured.modules)[count - 1] if count else "",
        }
        for count, record in measured.kept.items()
    ]


def _restored(whole: Sequence[float], kept: Sequence[float], base: Sequence[float]) -> float | None:
    means = [float(np.mean(values)) for values in (whole, kept, base)]
    return 1 - contribution(*means) if means[0] > means[2] else None
