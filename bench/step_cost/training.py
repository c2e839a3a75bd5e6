"""What a training step of each part of the method costs, as a multiple of plain SFT: time and memory.

    python -m bench training    # bench/results/training_bench.json and .md, about 7 minutes

`tinyworld-base` under the adapter of `tinyworld-full`, on a GPU where there is one, else on two threads. All
methods train the same weights in turns, on the same examples; plain SFT sees their clean rows alone. Beside
them stands the whole method written the straightforward way (`bench.step_cost.straightforward`). Batches are
made before the clock runs: in a training a worker process makes them.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
from torch import nn

from bench.step_cost.operations import Parts, Work, multiply_adds, needed, ours, parts_of, straightforward
from bench.step_cost.stepping import PLAIN_SFT, default_device, named, optimizer_of, recipe_of, step
from bench.step_cost.straightforward import padded, straightforward_loss
from modint_guard.evaluation.results import table, write_results
from modint_training.data.batches import twin_batches
from modint_training.loop.trainer import Loss, seed_everything, wants_bf16
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.passes import bare
from modint_training.method.step import attack_of, twin_loss, weights_of
from modint_training.models.loading import load_base, trainable
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld.source import tinyworld_source

RECIPE = "tinyworld-full"
METHODS: dict[str, tuple[str, ...]] = {  # and what each changes in the recipe
    "sft": PLAIN_SFT,
    "+cons": ("attack=null",),
    "+adv, T=1": ("consistency=none",),
    "+adv, T=2": ("consistency=none", "attack.steps=2"),
    "full, T=1": (),
    "full, T=2": ("attack.steps=2",),
    "straightforward full, T=1": (),
}
PLAIN, WRITTEN_OUT = "sft", "straightforward full, T=1"


@dataclass(frozen=True)
class Bench:
    """A model under its adapter, the loss and the batches of each method, and what all of them share."""

    model: nn.Module
    recipes: Mapping[str, TuneRecipe]
    losses: Mapping[str, Loss]
    batches: Mapping[str, Sequence[Batch]]
    device: torch.device
    optimizer: torch.optim.Optimizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the files."""
    asked = parser().parse_args(arguments)
    torch.set_num_threads(asked.threads)
    overrides = (f"base={asked.base}", f"batch={asked.batch}")
    steps = asked.warm_up + asked.rounds
    if asked.memory_of:
        alone = prepared(overrides, steps, [asked.memory_of])
        print(json.dumps({"peak_bytes": memory(alone, asked.memory_of)}))
        return
    bench = prepared(overrides, steps)
    times = timed(bench, steps, warm_up=asked.warm_up)
    peaks = {method: None if asked.no_memory else peak_of(method, asked) for method in METHODS}
    rows = [row(method, bench, times, peaks) for method in METHODS]
    print(table(rows))
    given = sys.argv[1:] if arguments is None else arguments
    write_results(
        asked.output,
        command=" ".join(["python -m bench.step_cost.training", *given]),
        seeds=[0],
        rows=rows,
        title="What a training step costs, as a multiple of plain SFT",
        notes=NOTES,
    )


NOTES = """`tinyworld-base` with the adapter, batch and optimiser of `tinyworld-full`; examples 2 : 2 : 4 of
image-heavy, text-heavy and vqa. `sft`: their clean rows alone. `+cons`: their twins too, and Jensen-Shannon
consistency. `+adv`: twins and PGD of T steps. `full`: both. `straightforward full`: the same loss of the same
rows, with the vision tower run again in every pass, vqa rows attacked too, float32 logits of every position,
and rows padded to the longest of the run.

The methods take turns on one batch a round, in an order drawn anew, every step twice, of which the second is
timed (the first makes kernels for new shapes). `step_s` is the median over the rounds, `times_sft` the median
of each round's own ratio, with its quartiles. `peak_mib` is how far the memory of a process of its own rises
above what model, optimiser and batches take. `gmac` counts the multiply-adds of a step as laid out, padding
included: a position that meets a weight takes one forward and one back, a trained weight one more, the frozen
tower is not gone back through, and products of positions with positions are left out. `gmac_needed` counts
tokens alone and each distinct picture once: no way of running these passes takes less; `bound_times_sft` is
its multiple of plain SFT's."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m bench.step_cost.training", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--output", type=Path, default=Path("bench/results/training_bench.json"))
    made.add_argument("--base", default="tinyworld-base")
    made.add_argument("--batch", type=int, default=32, help="examples a step")
    made.add_argument("--rounds", type=int, default=20, help="in which every method takes a step")
    made.add_argument("--warm-up", type=int, default=2, help="rounds that are not timed")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--no-memory", action="store_true", help="time alone")
    made.add_argument("--memory-of", choices=METHODS, help="measure one method's peak memory alone")
    return made


def prepared(overrides: Sequence[str], steps: int, methods: Sequence[str] = tuple(METHODS)) -> Bench:
    """All that the methods need for so many steps, made before the clock runs."""
    seed_everything(0)
    recipes = {method: recipe_of(RECIPE, [*overrides, *METHODS[method]]) for method in methods}
    shared = next(iter(recipes.values()))
    base, processor = load_base(shared.base)
    device = default_device()
    model = trainable(base, shared).to(device).train()
    return Bench(
        model=model,
        recipes=recipes,
        losses={method: loss_of(method, recipe, model) for method, recipe in recipes.items()},
        batches={name: batches_of(name, recipe, processor, steps) for name, recipe in recipes.items()},
        optimizer=optimizer_of(model, shared),
        device=device,
    )


def loss_of(method: str, recipe: TuneRecipe, model: nn.Module) -> Loss:
    """The training's own loss, or the same written out."""
    how = attack_of(recipe)
    if method != WRITTEN_OUT:
        return twin_loss(recipe)
    assert how is not None
    return straightforward_loss(family_of(bare(model).config.model_type), weights_of(recipe), how)


def batches_of(method: str, recipe: TuneRecipe, processor: Any, steps: int) -> list[Batch]:
    """The batches of the first steps, whole; the same examples for every method."""
    made = twin_batches(recipe, processor, tinyworld_source(recipe))
    found = [whole for step in range(steps) for whole in made(step)]
    if method != WRITTEN_OUT:
        return found
    longest = max(batch["labels"].shape[1] for batch in found)
    return [padded(batch, longest, processor.tokenizer.pad_token_id) for batch in found]


def timed(bench: Bench, rounds: int, *, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each method's step in each round but the first ones.

    A round has a batch of its own, and every step is taken twice: the first time a CPU's kernels are made for
    shapes that it has not seen, and methods that share a batch would make them for one another.
    """
    found: dict[str, list[float]] = {method: [] for method in bench.recipes}
    order, turns = list(bench.recipes), random.Random(0)
    for number in range(rounds):
        turns.shuffle(order)
        for method in order:
            one_step(bench, method, number)
            seconds, _ = one_step(bench, method, number)
            if number >= warm_up:
                found[method].append(seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def one_step(bench: Bench, method: str, number: int) -> tuple[float, int]:
    """A step on the batch of a round: seconds, and a GPU's peak in bytes."""
    batch, loss = bench.batches[method][number], bench.losses[method]
    return step(bench.model, bench.optimizer, loss, batch, bench.recipes[method], bench.device)


def peak_of(method: str, asked: argparse.Namespace) -> int:
    """A method's peak memory, measured in a process of its own."""
    command = [sys.executable, "-m", "bench.step_cost.training", "--memory-of", method]
    options = ("base", "batch", "threads", "rounds", "warm_up")
    shared = [f"--{name.replace('_', '-')}={getattr(asked, name)}" for name in options]
    # Tensors that are let go go back to the system at once: what is resident is what is held.
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([*command, *shared], check=True, stdout=subprocess.PIPE, text=True, env=returning)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def memory(bench: Bench, method: str) -> int:
    """How many bytes a step takes at most beyond model, adapter, optimiser and batches."""
    for _ in range(2):  # on one batch: what is made once is made then, kernels of its shapes included
        one_step(bench, method, 0)
    gc.collect()
    if bench.device.type == "cuda":
        before = torch.cuda.memory_allocated(bench.device)
        return one_step(bench, method, 0)[1] - before
    before = resident("VmRSS")
    one_step(bench, method, 0)
    return resident("VmHWM") - before


def resident(which: str) -> int:
    """This process's resident bytes now (VmRSS) or at most (VmHWM). Not `ru_maxrss`, which a child inherits
    from the process that started it."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{which}:"))
    return 1024 * int(found)


def row(
    method: str, bench: Bench, times: Mapping[str, Sequence[float]], peaks: Mapping[str, int | None]
) -> dict[str, Any]:
    """One line of the table."""
    ratios = sorted(mine / plain for mine, plain in zip(times[method], times[PLAIN], strict=True))
    gains = [theirs / mine for mine, theirs in zip(times[method], times[WRITTEN_OUT], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    parts = parts_of(bench.model, family_of(bare(bench.model).config.model_type))
    done, least = counted(method, bench, parts), bound(method, bench, parts)
    peak, plain = peaks[method], peaks[PLAIN]
    return {
        "method": method,
        "rows": rows_of(bench, method),
        "step_s": median(times[method]),
        "times_sft": median(ratios),
        "times_sft_q1": low,
        "times_sft_q3": high,
        "faster_than_straightforward": median(gains),
        "gmac": done / 1e9,
        "gmac_times_sft": done / counted(PLAIN, bench, parts),
        "gmac_needed": least / 1e9,
        "bound_times_sft": least / bound(PLAIN, bench, parts),
        "peak_mib": peak / 2**20 if peak else None,
        "peak_times_sft": peak / plain if peak and plain else None,
        "rounds": len(times[method]),
        "examples": bench.recipes[method].batch,
        "precision": "bf16" if wants_bf16(bench.recipes[method].precision) else "fp32",
        "device": named(bench.device),
        "threads": torch.get_num_threads(),
    }


def rows_of(bench: Bench, method: str) -> int:
    """How many rows a batch has."""
    return len(bench.batches[method][0]["labels"])


def counted(method: str, bench: Bench, parts: Parts) -> float:
    """Multiply-adds of a step as the method lays it out, a mean over the batches."""
    token = int(bare(bench.model).config.image_token_id)
    patches, climbs = patches_of(bench.model), climbs_of(bench.recipes[method])

    def work(batch: Batch) -> Work:
        if method == WRITTEN_OUT:
            return straightforward(batch, climbs, patches, token)
        return ours(batch, climbs, patches)

    return mean(multiply_adds(work(batch), parts) for batch in bench.batches[method])


def bound(method: str, bench: Bench, parts: Parts) -> float:
    """Multiply-adds that the passes of a step cannot do without, a mean over the batches."""
    patches, climbs = patches_of(bench.model), climbs_of(bench.recipes[method])
    made = bench.batches[method]
    return mean(multiply_adds(needed(batch, climbs, patches), parts) for batch in made)


def climbs_of(recipe: TuneRecipe) -> int:
    """The attack's steps; none without an attack."""
    return recipe.attack.steps if recipe.attack else 0


def patches_of(model: nn.Module) -> int:
    """A picture's positions in the tower, its class token included."""
    config = bare(model).config.vision_config
    return int((config.image_size // config.patch_size) ** 2 + 1)


if __name__ == "__main__":
    main()
