"""`python -m bench mitigation`: first what validation chooses, then every rung and the ladder on test.

Each distinct call is asked once and kept in a JSONL file; every policy then runs the guard's own code on
these answers, so that all policies judge the same items with the same replies, and a run that was stopped
goes on. Costs in tokens and time are measured through the gateway itself.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from bench.calibrations import weights_of
from bench.mitigation import fit, tables, tokens
from bench.mitigation.answers import (
    CONTROLS,
    Asked,
    Recorded,
    ask_item,
    greedy,
    judging,
    neutral_body,
    shipped,
)
from bench.mitigation.settings import FITTED_ON, SETTINGS, Setting
from modint_guard.data.item import Item
from modint_guard.demo.launch import serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import request_for, without_guard
from modint_guard.guard import Guard
from modint_guard.mitigation.policy import FORMS, TABLE, Policy, table_of
from modint_guard.models import ADAPTER, BASE, bundled
from modint_guard.types import ANNOTATE, JSON, Complete, Reply
from modint_training.tinyworld import suite

T = TypeVar("T")
OUTPUT = Path("bench/results/mitigation.json")  # the committed one: with it code and page are rewritten
PAGE = Path("docs/mitigation.md")
LEARNT = Path("modint_guard/mitigation/fitted.py")
TOKEN_ITEMS = 16  # a setting, kind of prompt and policy, for the table of tokens


@dataclass(frozen=True)
class Run:
    """How a run asks."""

    split: suite.Split
    count: int
    seed: int
    concurrency: int
    timed: int
    raw: Path | None = None  # where every raw answer is kept

    @property
    def kept(self) -> Path:
        """Where every raw answer is kept: apart for each pair of weights, whose answers are their own."""
        weights = "-".join(weights_of(bundled(name))[:8] for name in (BASE, ADAPTER))
        return self.raw or Path("runs") / f"mitigation-{self.split}-{weights}.jsonl"

    @property
    def command(self) -> str:
        """As it is repeated."""
        asked = f"python -m bench mitigation --split {self.split} --count {self.count} --seed {self.seed}"
        return f"{asked} --timed {self.timed}" if self.split == "test" else asked


def measure_mitigation(output: Path, run: Run) -> Path:
    """Fit on validation, or measure on test with what was fitted; returns the file written. ConfigError where
    the test split comes first, or where the code does not hold what validation chose.
    """
    fitted_at = output.with_name(f"{output.stem}_validation.json")
    return _validate(fitted_at, output, run) if run.split == "validation" else _test(fitted_at, output, run)


def _validate(fitted_at: Path, output: Path, run: Run) -> Path:
    with serving(["--adapter", ADAPTER]) as served:
        found, adapted = asyncio.run(_asked_to_fit(served.url, run))
    replies = {BASE: [(one.item, one.reply) for one in found], ADAPTER: adapted}
    bias = (row for model, known in replies.items() for row in fit.bias_rows(model, known))
    rows = [*fit.fit_rows(BASE, found), *bias]
    write_results(
        fitted_at,
        command=run.command,
        seeds=[run.seed],
        rows=rows,
        title="Mitigation: what validation chose",
        notes=fit.NOTES,
    )
    if output == OUTPUT:
        chosen = fit.read_fit(fitted_at, BASE)
        LEARNT.write_text(fit.source(chosen), "utf-8")
        _rewrite_page({"rungs": rungs_table(table_of(chosen.orders)), "chosen": chosen_line(chosen)})
    return fitted_at


def _test(fitted_at: Path, output: Path, run: Run) -> Path:
    chosen = fit.read_fit(fitted_at, BASE)
    if output == OUTPUT and LEARNT.read_text("utf-8") != fit.source(chosen):
        raise ConfigError(f"{LEARNT} does not hold what {fitted_at} chose: run `--split validation` again")
    with serving(["--adapter", ADAPTER]) as served:
        found, rows, costs = asyncio.run(_measured(served.url, run, chosen))
    goals = tables.goal_rows(found[BASE], costs, run.seed)
    made: dict[str, Any] = {"command": run.command, "seeds": [run.seed]}
    title = "Mitigation on the test split"
    write_results(output, rows=rows, title=title, notes=tables.notes(rows, goals), **made)
    at = output.with_name(f"{output.stem}_goals.json")
    write_results(at, rows=goals, title="Goals of mitigation", notes=tables.GOAL_NOTES, **made)
    at = output.with_name(f"{output.stem}_tokens.json")
    write_results(at, rows=costs, title="What mitigation costs in tokens", notes=tokens.NOTES, **made)
    return output


def rungs_table(found: Mapping[Any, Mapping[Any, Sequence[str]]] = TABLE) -> str:
    """The table of rungs as the page shows it."""
    lines = ["| cause | relevant | options | word | free |", "|---|---|---|---|---|"]
    for (cause, relevant), row in found.items():
        cells = [", ".join(f"`{rung}`" for rung in row[form]) or "–" for form in FORMS]
        lines.append(f"| `{cause}` | {relevant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen_line(chosen: fit.Fit) -> str:
    """What validation chose, in a sentence."""
    kinds = ", ".join("/".join(kind) for kind in sorted(chosen.orders)) or "none"
    return (
        f"Fitted on validation: λ = {chosen.debias_lambda:g}, `accept_at` = {chosen.accept_at:g}, and the"
        f" order for these kinds (cause/relevant/form): {kinds}. The other cells of the table are reasoned."
    )


def _rewrite_page(made: Mapping[str, str]) -> None:
    PAGE.write_text(tables.rewritten(PAGE.read_text("utf-8"), made), "utf-8")


# -- asking ----------------------------------------------------------------------------------------


async def _asked_to_fit(url: str, run: Run) -> tuple[list[Asked], list[tuple[Item, Reply]]]:
    """The base's answers with every rung tried, and the adapter's for its control's constants."""
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        complete = _recorded(endpoint, run)
        base = _Asker(complete, BASE, fit.grid(), {}, run, whole=True)
        found = [one for setting in FITTED_ON for one in await base.ask(setting)]
        adapter = _Asker(complete, ADAPTER, {}, {}, run)
        return found, [one for setting in FITTED_ON for one in await adapter.greedy(setting)]


async def _measured(
    url: str, run: Run, chosen: fit.Fit
) -> tuple[dict[str, dict[str, list[Asked]]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers by model and setting, the rows of the table, and those of tokens."""
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        complete, found = _recorded(endpoint, run), dict[str, dict[str, list[Asked]]]()
        rows: list[dict[str, Any]] = []
        for model in (BASE, ADAPTER):
            asker = _Asker(complete, model, shipped(), chosen.bias.get(model, {}), run)
            found[model] = {setting.name: await asker.ask(setting) for setting in SETTINGS}
            for setting in SETTINGS:
                own = [one.item for one in found[model][setting.name][: run.timed]]
                ms = await timings(endpoint.complete, own, setting, model)
                rows += tables.table_rows(model, setting, found[model], ms)
        costs = await tokens.token_rows(
            endpoint.complete,
            (BASE,),
            FITTED_ON,
            split=run.split,
            count=min(TOKEN_ITEMS, run.count),
            seed=run.seed,
            concurrency=run.concurrency,
        )
        return found, rows, costs


def _recorded(endpoint: Endpoint, run: Run) -> Complete:
    """The gateway with its guard off, each body asked once."""
    return Recorded(without_guard(endpoint.complete), run.kept)


class _Asker:
    """Asks a model the items of a setting, some at once."""

    def __init__(
        self,
        complete: Complete,
        model: str,
        policies: Mapping[str, Policy],
        bias: Mapping[str, float],
        run: Run,
        *,
        whole: bool = False,
    ) -> None:
        self._complete, self._slots, self._guard = complete, asyncio.Semaphore(run.concurrency), judging()
        self._model, self._policies, self._bias, self._run, self._whole = model, policies, bias, run, whole

    async def ask(self, setting: Setting) -> list[Asked]:
        """Every item of a setting under every policy, in their order."""

        async def one(item: Item) -> Asked:
            return await ask_item(
                item,
                setting.relevant,
                self._model,
                self._complete,
                self._policies,
                self._guard,
                bias=self._bias,
                whole=self._whole,
            )

        return await self._each(setting, one)

    async def greedy(self, setting: Setting) -> list[tuple[Item, Reply]]:
        """Every item of a setting with the model's own answer, in their order."""

        async def one(item: Item) -> tuple[Item, Reply]:
            return item, await greedy(self._guard.plan(request_for(item, self._model)), self._complete)

        return await self._each(setting, one)

    async def _each(self, setting: Setting, ask: Callable[[Item], Awaitable[T]]) -> list[T]:
        items = setting.items(self._run.split, self._run.count, self._run.seed)
        with tqdm(total=len(items), desc=f"{self._model} {setting.name}", unit="item") as bar:

            async def one(item: Item) -> T:
                async with self._slots:
                    found = await ask(item)
                bar.update()
                return found

            return list(await asyncio.gather(*map(one, items)))


# -- time ------------------------------------------------------------------------------------------


async def timings(
    complete: Complete, items: Sequence[Item], setting: Setting, model: str
) -> dict[str, float | None]:
    """The median of each policy's and control's single requests, one after another; None without any."""
    names = (ANNOTATE, *shipped(), *CONTROLS)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for item in items:
        for name in ("escalate", "greedy"):  # so that no policy pays for an empty prefix cache
            await complete(timed_body(item, setting, model, name))
        for name in names:
            body = timed_body(item, setting, model, name)
            since = time.perf_counter()
            await complete(body)
            taken[name].append((time.perf_counter() - since) * 1000)
    return {name: statistics.median(each) if each else None for name, each in taken.items()}


def timed_body(item: Item, setting: Setting, model: str, name: str) -> JSON:
    """What the gateway is sent for a policy's time. Other ladders take the ladder's."""
    body = request_for(item, model, modint={"relevant": setting.relevant})
    if name not in CONTROLS:
        action = name.partition("_")[0]
        return {**body, "modint": {**body["modint"], "action": action}}
    plain = {**body, "modint": {"mode": "off"}}
    if name == "always_escalate":
        return {**plain, "model": ADAPTER}
    other = neutral_body(Guard().plan(body)) if name == "always_neutralise" else None
    return {**(other or body), "modint": {"mode": "off"}}
