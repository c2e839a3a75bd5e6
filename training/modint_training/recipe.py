"""The recipe of a fine-tuning run: every option, its range, and which options contradict each other."""

from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from modint_guard.data import FORMATS, Columns
from modint_guard.data.item import Family
from modint_guard.data.samples import family_named

AttackKind = Literal["pgd", "freelb", "smart", "gaussian"]
StepKind = Literal["raw", "normalised", "sign"]
AttackMask = Literal["span", "modality", "none"]
AttackRows = Literal["twins", "twins_and_vqa", "all"]
Consistency = Literal["none", "kl", "reverse_kl", "js", "symmetric_kl", "mse"]
StopGradient = Literal["clean", "none"]
Balance = Literal["sum", "pcgrad"]
Order = Literal["joint", "progressive", "reverse"]
Scope = Literal["language", "connector", "vision"]
Targets = Literal["linear", "attention"]

STEPS = get_args(StepKind)
WORLDS = "modint_training.worlds"  # the entry-point group under which generated worlds are found
MAX_RANK = 512  # the highest --max-lora-rank of vLLM


@cache
def names_world(data: str) -> bool:
    """Whether `data:` names a generated world; otherwise it is the path of a data set."""
    return bool(entry_points(group=WORLDS, name=data))


class StrictModel(BaseModel):
    """A frozen section of a recipe that refuses unknown keys and infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _not_all_zero(quotas: tuple[int, int, int]) -> tuple[int, int, int]:
    if not sum(quotas):
        raise ValueError("quotas must not all be 0")
    return quotas


def _each_once(names: tuple[Any, ...]) -> tuple[Any, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("name at least one, and each once")
    return names


def _known_format(name: str | None) -> str | None:
    if name is not None and name not in FORMATS:
        raise ValueError(f"no format {name!r}: name one of {', '.join(FORMATS)}")
    return name


def _known_columns(columns: dict[str, str]) -> dict[str, str]:
    Columns().changed(columns)
    return columns


def _known_family(name: object) -> Family | None:
    return None if name is None else family_named(name)


class MixtureConfig(StrictModel):
    """Ratios of a generated world's base data: how often a picture has a caption, a text a picture, and what
    these say."""

    families: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    captioned: float = Field(ge=0, le=1)
    caption_true: float = Field(ge=0, le=1)
    caption_unrelated: float = Field(ge=0, le=1)
    caption_poor: float = Field(ge=0, le=1)
    pictured: float = Field(ge=0, le=1)
    picture_agrees: float = Field(ge=0, le=1)
    picture_other: float = Field(ge=0, le=1)
    self_ask: float = Field(ge=0, le=0.2)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        for first, second in (("caption_true", "caption_unrelated"), ("picture_agrees", "picture_other")):
            if getattr(self, first) + getattr(self, second) > 1:
                raise ValueError(
                    f"{first} and {second} are shares of one whole: their sum must not be above 1"
                )
        if not sum(self.families):
            raise ValueError("families must not all be 0")
        return self


class ReadingConfig(StrictModel):
    """How the rows of a data set are read: the options of `modint-guard data validate`, under their names."""

    format: Annotated[str | None, AfterValidator(_known_format)] = None
    family: Annotated[Family | None, BeforeValidator(_known_family)] = None
    split: str | None = None
    image_root: str | None = None
    columns: Annotated[dict[str, str], AfterValidator(_known_columns)] = Field(default_factory=dict)
    number_rows: bool = False


class AttackConfig(StrictModel):
    """Noise on input embeddings; see `attack.Attack` and `masks.modality_mask`.

    `rows`: the perturbed twins; these and vqa rows, which have none; or every row that has a label. `share`
    of the examples are attacked, drawn by the seed: two further passes for each row are what an attack costs.
    """

    kind: AttackKind
    step: StepKind | None = None
    epsilon: float = Field(gt=0)
    relative: bool
    alpha: float | None = Field(default=None, gt=0)
    steps: int = Field(ge=0, le=32)
    mask: AttackMask
    rows: AttackRows = "twins"
    share: float = Field(default=1.0, gt=0, le=1)
    weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.rows == "twins_and_vqa" and self.mask != "none":
            raise ValueError(
                f"attack.rows: mask: {self.mask} leaves nothing of a vqa row to attack: use rows: twins, or "
                "mask: none"
            )
        if self.kind == "gaussian":
            if self.steps or self.step or self.alpha:
                raise ValueError(
                    "attack.steps: gaussian noise takes no steps: set steps: 0, step and alpha to null"
                )
            return self
        if not self.steps or self.step is None or self.alpha is None:
            raise ValueError(
                f"attack.steps: {self.kind} follows the gradient: give steps of at least 1, step and alpha"
            )
        allowed = {"freelb": ("normalised",), "smart": ("normalised", "sign")}.get(self.kind, STEPS)
        if self.step not in allowed:
            raise ValueError(f"attack.step: {self.kind} takes {' or '.join(allowed)} steps, not {self.step}")
        return self


class ConflictConfig(StrictModel):
    """Gradient conflict (`method.conflict`), measured every so many `steps` on so many `batches`."""

    steps: int = Field(default=50, gt=0)
    batches: int = Field(default=4, gt=0)


class TuneRecipe(StrictModel):
    """An adapter or a whole model, trained against modality interference on clean examples and their
    perturbed twins, with the method's three losses."""

    kind: Literal["lora", "qlora", "full"]
    preset: str | None = None
    name: str
    base: str
    servable: bool = True
    data: str = "tinyworld"
    validation: str | None = None
    reading: ReadingConfig = ReadingConfig()
    seed: int
    scope: Annotated[tuple[Scope, ...], AfterValidator(_each_once)] = ("language",)
    targets: Targets | None = "linear"
    first_layer: int = Field(default=0, ge=0)
    rank: int | None = Field(default=None, gt=0)
    alpha: int | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    weights: Literal["fp32", "bf16"] = "fp32"
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch: int = Field(gt=0)
    micro_batches: int = Field(default=1, gt=0)
    quotas: Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_not_all_zero)]
    order: Order = "joint"
    letter: float | None = Field(default=None, ge=0, le=1)
    max_length: int = Field(default=1024, gt=0)
    perturbations: tuple[str, ...]
    controls: tuple[str, ...]
    control_share: float = Field(ge=0, le=1)
    task_weight: float = Field(ge=0)
    consistency: Consistency
    consistency_weight: float = Field(ge=0)
    temperature: float = Field(default=1.0, gt=0)
    stop_gradient: StopGradient = "clean"
    balance: Balance = "sum"
    attack: AttackConfig | None = None
    lr: float = Field(gt=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    adam_beta2: float = Field(default=0.98, gt=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(gt=0)
    precision: Literal["auto", "bf16", "fp32"]
    gradient_checkpointing: bool = False
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    checkpoint_minutes: float = Field(gt=0)
    evaluate_steps: int = Field(gt=0)
    evaluate_items: int = Field(gt=0)
    conflict: ConflictConfig | None = None

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        for is_wrong, message in self._contradictions():
            if is_wrong:
                raise ValueError(message)
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """For each rule, whether it is broken, and the message for that, which begins with a key."""
        yield from self._of_kind()
        yield from self._of_length()
        yield (
            self.batch % self.micro_batches > 0,
            f"micro_batches: {self.micro_batches} does not divide batch: {self.batch}",
        )
        wants_twins = self.attack is not None or self.consistency != "none" or bool(self.controls)
        yield (
            wants_twins and not self.perturbations,
            "perturbations: attack, consistency and controls work on twins, and without perturbations there "
            "are none",
        )
        yield (
            self.temperature != 1 and self.consistency in ("none", "mse"),
            f"temperature: softens distributions, and consistency: {self.consistency} compares none",
        )

        yield (
            self.conflict is not None and self.kind == "full",
            "conflict: compares gradients module by module of an adapter: leave it out",
        )
        yield (
            self.conflict is not None
            and not (all(self.quotas[:2]) or (self.perturbations and any(self.quotas[:2]))),
            "conflict: compares image-heavy with text-heavy examples, or examples with their twins, and "
            "there is only one kind",
        )
        yield (
            self.conflict is not None and self.steps is not None and self.conflict.steps > self.steps,
            "conflict.steps: is more than the run has, so that nothing would be measured: choose fewer",
        )

        yield (
            self.order != "joint" and not (any(self.quotas[:2]) and self.quotas[2]),
            f"order: {self.order} sorts examples that need both modalities from others, and quotas draws one "
            "kind alone: use joint",
        )
        yield (
            self.balance == "pcgrad" and self.micro_batches > 1,
            "balance: pcgrad compares the gradients of whole batches: use micro_batches: 1",
        )
        yield (
            self.balance == "pcgrad" and self.consistency == "none" and self.attack is None,
            "balance: pcgrad is between L_sft, L_adv and L_cons, and there is L_sft alone: use balance: sum",
        )

    def _of_kind(self) -> Iterator[tuple[bool, str]]:
        is_adapter, lora = self.kind != "full", (self.rank, self.alpha, self.dropout)
        yield is_adapter and None in lora, f"kind: {self.kind} needs rank, alpha and dropout"
        yield (
            not is_adapter and lora != (None, None, None),
            "kind: full trains the weights themselves: leave out rank, alpha and dropout",
        )
        yield (
            self.first_layer > 0 and (not is_adapter or "language" not in self.scope),
            "first_layer: is that of the language model with an adapter: leave it out",
        )
        yield (
            is_adapter != (self.targets is not None),
            "targets: linear or attention for an adapter, null for kind: full",
        )
        yield (
            self.servable and (self.rank or 0) > MAX_RANK,
            f"rank: vLLM serves ranks up to {MAX_RANK}, not {self.rank}; choose a lower one, or say "
            "servable: false",
        )
        yield (
            not is_adapter and self.save_dtype != "fp32",
            "save_dtype: belongs to adapters; kind: full is saved in the type of weights",
        )
        # Between bf16 numbers of 2**-7 or more the distance is at least 6e-5: steps of less than half of
        # that, which AdamW takes at a learning rate of 2e-5, are rounded away. Adapters are fp32 on any base.
        yield (
            not is_adapter and self.weights == "bf16",
            "weights: in bf16 most steps of kind: full are rounded away and nothing is learned; use weights: "
            "fp32 with precision: bf16",
        )
        yield (
            self.kind == "qlora" and self.scope != ("language",),
            "scope: qlora adapts the language model only",
        )
        yield (
            self.targets == "attention" and "language" not in self.scope,
            "targets: selects layers of the language model, which scope leaves out: use targets: linear",
        )

    def _of_length(self) -> Iterator[tuple[bool, str]]:
        yield (self.steps is None) == (self.epochs is None), "steps: give steps or epochs, one of the two"
        yield (
            (self.warmup_steps is None) == (self.warmup_ratio is None),
            "warmup_steps: give warmup_steps or warmup_ratio, one of the two",
        )
        is_world = names_world(self.data)
        yield is_world and self.epochs is not None, f"epochs: {self.data} has no end: give steps"
        yield (
            is_world and self.letter is None,
            f"letter: data: {self.data} needs it: give a share from 0 to 1",
        )
        yield (
            not is_world and self.letter is not None,
            "letter: belongs to generated data, such as data: tinyworld: leave it out",
        )
        yield (
            is_world and self.reading != ReadingConfig(),
            f"reading: says how the rows of a data set are read, and data: {self.data} has none: name yours "
            "with data",
        )
        yield (
            is_world and self.validation is not None,
            f"validation: data: {self.data} is measured on its own validation split: leave it out",
        )
