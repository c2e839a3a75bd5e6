"""`python -m bench mitigation`: the choices on the validation split, then every rung and the ladder on test.

Each distinct call is made once and kept in a journal; every policy then runs the guard's own code on these
answers, so that all policies judge the same items with the same replies, and a stopped run can continue.
Costs in tokens and time are measured through the gateway itself.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from bench.calibrations import weights_of
from bench.detection.inputs import World
from bench.mitigation import fit, tables, tokens
from bench.mitigation.answers import (
    CONTROLS,
    ItemAnswers,
    ask_item,
    asked_once,
    greedy,
    neutral_body,
    served_guard,
    shipped_policies,
)
from bench.mitigation.settings import FITTED_ON, PAIR, SETTINGS, Setting, in_world
from modint_guard.data.item import Item
from modint_guard.demo.launch import RunningGateway, serving
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.results import write_results
from modint_guard.evaluation.runner import request_for, without_guard
from modint_guard.guard import Guard
from modint_guard.mitigation.policy import FORMS, TABLE, Policy, table_of
from modint_guard.models import bundled
from modint_guard.types import ANNOTATE, JSON, Complete, Reply
from modint_training.tinyworld import suite

T = TypeVar("T")
# The committed files: writing TinyWorld's also rewrites code and page.
OUTPUT = Path("bench/results/mitigation.json")
OUTPUTS: dict[World, Path] = {
    "tinyworld": OUTPUT,
    "picturebook": Path("bench/results/mitigation_picturebook.json"),
}
PAGE = Path("docs/mitigation.md")
FITTED = Path("modint_guard/mitigation/fitted.py")
TOKEN_ITEMS = 16  # in the table of tokens, for each setting, kind of prompt and policy


@dataclass(frozen=True)
class Run:
    """The options of a run."""

    split: suite.Split
    count: int
    seed: int
    concurrency: int
    timed: int
    raw: Path | None = None  # the journal of raw answers
    world: World = "tinyworld"

    @property
    def base(self) -> str:
        """The name of the world's base."""
        return PAIR[self.world][0]

    @property
    def robust(self) -> str:
        """The name of the adapter that `escalate` asks."""
        return PAIR[self.world][1]

    @property
    def journal(self) -> Path:
        """The file of raw answers: by default another one for each pair of weights."""
        weights = "-".join(digest[:8] for digest in self.made_by["weights"])
        return self.raw or Path("runs") / f"mitigation-{self.split}-{weights}.jsonl"

    @property
    def made_by(self) -> JSON:
        """What the raw answers depend on, besides the bodies that they are kept under."""
        return {"run": "mitigation", "weights": [weights_of(bundled(name)) for name in PAIR[self.world]]}

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        world = "" if self.world == "tinyworld" else f" --world {self.world}"
        drawn = f"--split {self.split} --count {self.count} --seed {self.seed}"
        command = f"python -m bench mitigation{world} {drawn}"
        return f"{command} --timed {self.timed}" if self.split == "test" else command


def measure_mitigation(output: Path, run: Run) -> Path:
    """Make the choices on validation, or measure on test with them; returns the file written.

    Raises ConfigError if the test split comes first, or if the code does not contain the choices.
    """
    fitted_at = output.with_name(f"{output.stem}_validation.json")
    return _validate(fitted_at, output, run) if run.split == "validation" else _test(fitted_at, output, run)


def _validate(fitted_at: Path, output: Path, run: Run) -> Path:
    with _served(run) as served:
        answers, adapter_replies = asyncio.run(_answers_to_fit(served.url, run))
    replies = {run.base: [(one.item, one.reply) for one in answers], run.robust: adapter_replies}
    bias = (row for model, known in replies.items() for row in fit.bias_rows(model, known))
    rows = [*fit.fit_rows(run.base, answers), *bias]
    write_results(
        fitted_at,
        command=run.command,
        seeds=[run.seed],
        rows=rows,
        title="Mitigation: what validation chose",
        notes=fit.NOTES,
    )
    if output == OUTPUT:
        chosen = fit.read_fit(fitted_at, run.base)
        FITTED.write_text(fit.fitted_source(chosen), "utf-8")
        _rewrite_page({"rungs": rungs_table(table_of(chosen.orders)), "chosen": chosen_line(chosen)})
    return fitted_at


def _test(fitted_at: Path, output: Path, run: Run) -> Path:
    chosen = fit.read_fit(fitted_at, run.base)
    if output == OUTPUT and FITTED.read_text("utf-8") != fit.fitted_source(chosen):
        raise ConfigError(
            f"{FITTED} does not contain the choices in {fitted_at}: run `--split validation` again"
        )
    with _served(run) as served:
        answers, rows, costs = asyncio.run(_measure(served.url, run, chosen))
    goals = tables.goal_rows(answers[run.base], costs, run.seed)
    made_by: dict[str, Any] = {"command": run.command, "seeds": [run.seed]}
    title = "Mitigation on the test split"
    write_results(output, rows=rows, title=title, notes=tables.notes(rows, goals, run.world), **made_by)
    at = output.with_name(f"{output.stem}_goals.json")
    write_results(at, rows=goals, title="Goals of mitigation", notes=tables.GOAL_NOTES, **made_by)
    at = output.with_name(f"{output.stem}_tokens.json")
    write_results(at, rows=costs, title="What mitigation costs in tokens", notes=tokens.NOTES, **made_by)
    return output


@contextlib.contextmanager
def _served(run: Run) -> Iterator[RunningGateway]:
    """The world's base and adapter behind a gateway whose `escalate` asks that adapter."""
    with tempfile.TemporaryDirectory() as folder:
        policies = Path(folder) / "policies.toml"
        policies.write_text(f'[[policy]]\nrobust = "{run.robust}"\n', "utf-8")
        arguments = ["--model", run.base, "--adapter", run.robust]
        with serving(arguments, environment={"MODINT_POLICIES_FILE": str(policies)}) as served:
            yield served


def rungs_table(rungs: Mapping[Any, Mapping[Any, Sequence[str]]] = TABLE) -> str:
    """The table of rungs as the page shows it."""
    lines = ["| cause | relevant | options | word | free |", "|---|---|---|---|---|"]
    for (cause, relevant), row in rungs.items():
        cells = [", ".join(f"`{rung}`" for rung in row[form]) or "–" for form in FORMS]
        lines.append(f"| `{cause}` | {relevant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen_line(chosen: fit.Fit) -> str:
    """The choices of validation, in a sentence."""
    kinds = ", ".join("/".join(kind) for kind in sorted(chosen.orders)) or "none"
    return (
        f"Fitted on validation: λ = {chosen.debias_lambda:g}, `accept_at` = {chosen.accept_at:g}, and the"
        f" order for these kinds (cause/relevant/form): {kinds}. The other cells of the table are reasoned."
    )


def _rewrite_page(blocks: Mapping[str, str]) -> None:
    PAGE.write_text(tables.rewritten(PAGE.read_text("utf-8"), blocks), "utf-8")


# -- asking ----------------------------------------------------------------------------------------


async def _answers_to_fit(url: str, run: Run) -> tuple[list[ItemAnswers], list[tuple[Item, Reply]]]:
    """The base's answers with every rung tried, and the adapter's greedy replies for its control's
    constants."""
    with Journal(run.journal, run.made_by) as journal:
        async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
            complete = asked_once(without_guard(endpoint.complete), journal)
            settings = in_world(run.world, FITTED_ON)
            base = _Asker(complete, run.base, fit.grid(run.robust), {}, run, whole=True)
            answers = [one for setting in settings for one in await base.ask(setting)]
            adapter = _Asker(complete, run.robust, {}, {}, run)
            return answers, [one for setting in settings for one in await adapter.greedy(setting)]


async def _measure(
    url: str, run: Run, chosen: fit.Fit
) -> tuple[dict[str, dict[str, list[ItemAnswers]]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The answers by model and setting, the rows of the table, and the rows of the table of tokens."""
    settings = in_world(run.world, SETTINGS)
    async with Endpoint(f"{url}/v1", timeout_s=300) as endpoint:
        answers: dict[str, dict[str, list[ItemAnswers]]] = {}
        with Journal(run.journal, run.made_by) as journal:
            complete = asked_once(without_guard(endpoint.complete), journal)
            for model in PAIR[run.world]:
                policies = shipped_policies(run.robust)
                asker = _Asker(complete, model, policies, chosen.bias.get(model, {}), run)
                answers[model] = {setting.name: await asker.ask(setting) for setting in settings}
        rows: list[dict[str, Any]] = []
        for model, setting in product(PAIR[run.world], settings):
            timed = [one.item for one in answers[model][setting.name][: run.timed]]
            ms = await timings(endpoint.complete, timed, setting, model)
            rows += tables.table_rows(model, setting, answers[model], ms)
        costs = await tokens.token_rows(
            endpoint.complete,
            (run.base,),
            in_world(run.world, FITTED_ON),
            split=run.split,
            count=min(TOKEN_ITEMS, run.count),
            seed=run.seed,
            concurrency=run.concurrency,
        )
        return answers, rows, costs


class _Asker:
    """Asks a model the items of a setting, several at the same time."""

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
        self._complete, self._slots, self._guard = (
            complete,
            asyncio.Semaphore(run.concurrency),
            served_guard(PAIR[run.world]),
        )
        self._model, self._policies, self._bias, self._run, self._whole = model, policies, bias, run, whole

    async def ask(self, setting: Setting) -> list[ItemAnswers]:
        """Every item of a setting under every policy, in order."""

        async def one(item: Item) -> ItemAnswers:
            return await ask_item(
                item,
                setting.relevant,
                self._model,
                self._complete,
                self._policies,
                self._guard,
                bias=self._bias,
                robust=self._run.robust,
                whole=self._whole,
            )

        return await self._each(setting, one)

    async def greedy(self, setting: Setting) -> list[tuple[Item, Reply]]:
        """Every item of a setting with the model's greedy reply, in order."""

        async def one(item: Item) -> tuple[Item, Reply]:
            return item, await greedy(self._guard.plan(request_for(item, self._model)), self._complete)

        return await self._each(setting, one)

    async def _each(self, setting: Setting, ask: Callable[[Item], Awaitable[T]]) -> list[T]:
        items = setting.items(self._run.split, self._run.count, self._run.seed)
        with tqdm(total=len(items), desc=f"{self._model} {setting.name}", unit="item") as bar:

            async def one(item: Item) -> T:
                async with self._slots:
                    answer = await ask(item)
                bar.update()
                return answer

            return list(await asyncio.gather(*map(one, items)))


# -- time ------------------------------------------------------------------------------------------


async def timings(
    complete: Complete, items: Sequence[Item], setting: Setting, model: str
) -> dict[str, float | None]:
    """The median time in ms of each policy's and control's single requests, sent one after another; None
    without items."""
    names = (ANNOTATE, *shipped_policies(), *CONTROLS)
    times: dict[str, list[float]] = {name: [] for name in names}
    for item in items:
        for name in ("escalate", "greedy"):  # so that no policy pays for an empty prefix cache
            await complete(timed_body(item, setting, model, name))
        for name in names:
            body = timed_body(item, setting, model, name)
            began = time.perf_counter()
            await complete(body)
            times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(ms) if ms else None for name, ms in times.items()}


def timed_body(item: Item, setting: Setting, model: str, name: str) -> JSON:
    """The request by which a policy is timed. Variants of the ladder are timed as the ladder."""
    body = request_for(item, model, modint={"relevant": setting.relevant})
    if name not in CONTROLS:
        action = name.partition("_")[0]
        return {**body, "modint": {**body["modint"], "action": action}}
    plain = {**body, "modint": {"mode": "off"}}
    if name == "always_escalate":
        return {**plain, "model": PAIR[setting.world][1]}
    neutral = neutral_body(Guard().plan(body)) if name == "always_neutralise" else None
    return {**(neutral or body), "modint": {"mode": "off"}}
