"""The cost of a training step of each part of the method, as a multiple of plain SFT: time and memory.

    python -m bench training    # bench/results/training_bench.json and .md, about 7 minutes

`tinyworld-base` with the adapter of `tinyworld-full`, on a GPU if there is one, otherwise on two threads. All
methods train the same weights in turns, on the same examples; plain SFT gets their clean rows only. They are
compared with the whole method written the straightforward way (`bench.step_cost.straightforward`). Batches
are made before the clock starts: in a training run a worker process makes them.
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

from bench.step_cost.operations import (
    WeightCounts,
    Work,
    minimal_work,
    multiply_adds,
    our_work,
    straightforward_work,
    weight_counts,
)
from bench.step_cost.stepping import PLAIN_SFT, Loss, device_name, optimizer_of, step, tune_recipe
from bench.step_cost.straightforward import padded, straightforward_loss
from modint_guard.evaluation.results import table, write_results
from modint_training.data.batches import twin_batches
from modint_training.loop.trainer import seed_everything, wants_bf16
from modint_training.method.batch import Batch
from modint_training.method.families import family_of
from modint_training.method.passes import unwrap
from modint_training.method.step import attack_of, twin_loss, weights_of
from modint_training.models.loading import fastest_device, load_base, trainable
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld.source import training_source

RECIPE = "tinyworld-full"
METHODS: dict[str, tuple[str, ...]] = {  # with the recipe overrides of each
    "sft": PLAIN_SFT,
    "+cons": ("attack=null",),
    "+adv, T=1": ("consistency=none",),
    "+adv, T=2": ("consistency=none", "attack.steps=2"),
    "full, T=1": (),
    "full, T=2": ("attack.steps=2",),
    "straightforward full, T=1": (),
}
PLAIN, STRAIGHTFORWARD = "sft", "straightforward full, T=1"


@dataclass(frozen=True)
class Bench:
    """A model with its adapter, the recipe, loss and batches of each method, and what all methods share."""

    model: nn.Module
    recipes: Mapping[str, TuneRecipe]
    losses: Mapping[str, Loss]
    batches: Mapping[str, Sequence[Batch]]
    device: torch.device
    optimizer: torch.optim.Optimizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the files."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    overrides = (f"base={options.base}", f"batch={options.batch}")
    steps = options.warm_up + options.rounds
    if options.memory_of:
        alone = prepared(overrides, steps, [options.memory_of])
        print(json.dumps({"peak_bytes": memory(alone, options.memory_of)}))
        return
    bench = prepared(overrides, steps)
    times = timed(bench, steps, warm_up=options.warm_up)
    peaks = {method: None if options.no_memory else peak_of(method, options) for method in METHODS}
    rows = [row(method, bench, times, peaks) for method in METHODS]
    print(table(rows))
    typed = sys.argv[1:] if arguments is None else arguments
    write_results(
        options.output,
        command=" ".join(["python -m bench.step_cost.training", *typed]),
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
    options = argparse.ArgumentParser(prog="python -m bench.step_cost.training", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--output", type=Path, default=Path("bench/results/training_bench.json"))
    options.add_argument("--base", default="tinyworld-base")
    options.add_argument("--batch", type=int, default=32, help="examples in a step")
    options.add_argument("--rounds", type=int, default=20, help="rounds; in each, every method takes a step")
    options.add_argument("--warm-up", type=int, default=2, help="rounds that are not timed")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options.add_argument("--memory-of", choices=METHODS, help="measure the peak memory of one method only")
    return options


def prepared(overrides: Sequence[str], steps: int, methods: Sequence[str] = tuple(METHODS)) -> Bench:
    """All that the methods need for `steps` steps, made before the clock starts."""
    seed_everything(0)
    recipes = {method: tune_recipe(RECIPE, [*overrides, *METHODS[method]]) for method in methods}
    shared = next(iter(recipes.values()))
    base, processor = load_base(shared.base)
    device = fastest_device()
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
    """The loss that training uses, or the same written the straightforward way."""
    attack = attack_of(recipe)
    if method != STRAIGHTFORWARD:
        return twin_loss(recipe)
    assert attack is not None
    return straightforward_loss(family_of(unwrap(model).config.model_type), weights_of(recipe), attack)


def batches_of(method: str, recipe: TuneRecipe, processor: Any, steps: int) -> list[Batch]:
    """The batches of the first steps; the same examples for every method."""
    micro_batches = twin_batches(recipe, processor, training_source(recipe))
    batches = [batch for step in range(steps) for batch in micro_batches(step)]
    if method != STRAIGHTFORWARD:
        return batches
    longest = max(batch.labels.shape[1] for batch in batches)
    return [padded(batch, longest, processor.tokenizer.pad_token_id) for batch in batches]


def timed(bench: Bench, rounds: int, *, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each method's step in each round after the `warm_up` rounds.

    Each round has its own batch, and every step is taken twice: the first time a CPU prepares its kernels for
    new shapes, and methods that share a batch would prepare them for each other.
    """
    times: dict[str, list[float]] = {method: [] for method in bench.recipes}
    order, turns = list(bench.recipes), random.Random(0)
    for number in range(rounds):
        turns.shuffle(order)
        for method in order:
            one_step(bench, method, number)
            seconds, _ = one_step(bench, method, number)
            if number >= warm_up:
                times[method].append(seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return times


def one_step(bench: Bench, method: str, number: int) -> tuple[float, int]:
    """A step on the batch of round `number`: seconds, and a GPU's peak of memory in bytes."""
    batch, loss = bench.batches[method][number], bench.losses[method]
    return step(bench.model, bench.optimizer, loss, batch, bench.recipes[method], bench.device)


def peak_of(method: str, options: argparse.Namespace) -> int:
    """A method's peak memory in bytes, measured in a separate process."""
    command = [sys.executable, "-m", "bench.step_cost.training", "--memory-of", method]
    passed_on = ("base", "batch", "threads", "rounds", "warm_up")
    shared = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in passed_on]
    # Freed tensors return to the system at once, so that resident memory is memory in use.
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([*command, *shared], check=True, stdout=subprocess.PIPE, text=True, env=returning)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def memory(bench: Bench, method: str) -> int:
    """The peak of a step's memory in bytes, beyond model, adapter, optimiser and batches."""
    for _ in range(2):  # on the same batch: what is made only once, kernels included, is made here
        one_step(bench, method, 0)
    gc.collect()
    if bench.device.type == "cuda":
        before = torch.cuda.memory_allocated(bench.device)
        return one_step(bench, method, 0)[1] - before
    before = resident("VmRSS")
    one_step(bench, method, 0)
    return resident("VmHWM") - before


def resident(which: str) -> int:
    """This process's resident bytes now (VmRSS) or at their peak (VmHWM). Not `ru_maxrss`, which a child
    inherits from the process that started it."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{which}:"))
    return 1024 * int(kibibytes)


def row(
    method: str, bench: Bench, times: Mapping[str, Sequence[float]], peaks: Mapping[str, int | None]
) -> dict[str, Any]:
    """One row of the table."""
    ratios = sorted(seconds / plain for seconds, plain in zip(times[method], times[PLAIN], strict=True))
    pairs = zip(times[method], times[STRAIGHTFORWARD], strict=True)
    gains = [straightforward / seconds for seconds, straightforward in pairs]
    low, _, high = quantiles(ratios, n=4)
    weights = weight_counts(bench.model, family_of(unwrap(bench.model).config.model_type))
    done, least = counted(method, bench, weights), bound(method, bench, weights)
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
        "gmac_times_sft": done / counted(PLAIN, bench, weights),
        "gmac_needed": least / 1e9,
        "bound_times_sft": least / bound(PLAIN, bench, weights),
        "peak_mib": peak / 2**20 if peak else None,
        "peak_times_sft": peak / plain if peak and plain else None,
        "rounds": len(times[method]),
        "examples": bench.recipes[method].batch,
        "precision": "bf16" if wants_bf16(bench.recipes[method].precision) else "fp32",
        "device": device_name(bench.device),
        "threads": torch.get_num_threads(),
    }


def rows_of(bench: Bench, method: str) -> int:
    """The number of rows in a batch."""
    return len(bench.batches[method][0].labels)


def counted(method: str, bench: Bench, weights: WeightCounts) -> float:
    """Multiply-adds of a step as the method runs it, as a mean over the batches."""
    token = int(unwrap(bench.model).config.image_token_id)
    patches, steps = patches_of(bench.model), attack_steps(bench.recipes[method])

    def work(batch: Batch) -> Work:
        if method == STRAIGHTFORWARD:
            return straightforward_work(batch, steps, patches, token)
        return our_work(batch, steps, patches)

    return mean(multiply_adds(work(batch), weights) for batch in bench.batches[method])


def bound(method: str, bench: Bench, weights: WeightCounts) -> float:
    """Multiply-adds that the passes of a step need at least, as a mean over the batches."""
    patches, steps = patches_of(bench.model), attack_steps(bench.recipes[method])
    batches = bench.batches[method]
    return mean(multiply_adds(minimal_work(batch, steps, patches), weights) for batch in batches)


def attack_steps(recipe: TuneRecipe) -> int:
    """The attack's steps; 0 without an attack."""
    return recipe.attack.steps if recipe.attack else 0


def patches_of(model: nn.Module) -> int:
    """A picture's positions in the vision tower, the class token included."""
    config = unwrap(model).config.vision_config
    return int((config.image_size // config.patch_size) ** 2 + 1)


if __name__ == "__main__":
    main()
