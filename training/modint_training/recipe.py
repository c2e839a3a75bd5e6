"""Recipes: one YAML file a training run, checked before anything is loaded."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from modint_guard.data import FORMATS, Columns
from modint_guard.data.item import Family
from modint_guard.data.samples import family_named
from modint_guard.errors import ConfigError

AttackKind = Literal["pgd", "freelb", "smart", "gaussian"]
StepKind = Literal["raw", "normalised", "sign"]
AttackMask = Literal["span", "modality", "none"]
Consistency = Literal["none", "kl", "js", "symmetric_kl", "mse"]
StopGradient = Literal["clean", "none"]
Scope = Literal["language", "connector", "vision"]
Targets = Literal["linear", "attention"]

STEPS = get_args(StepKind)
TINYWORLD = "tinyworld"  # `data:` of the generated suite; any other is a path
MAX_RANK = 512  # the highest --max-lora-rank of vLLM


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _some(quotas: tuple[int, int, int]) -> tuple[int, int, int]:
    if not sum(quotas):
        raise ValueError("quotas must not all be 0")
    return quotas


def _each_once(names: tuple[Any, ...]) -> tuple[Any, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("name at least one, and each once")
    return names


class MixtureConfig(_Strict):
    """Ratios of the base model's data; see `tinyworld.suite.Mixture`."""

    families: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    captioned: float = Field(ge=0, le=0.7)
    caption_true: float = Field(ge=0.8, le=0.95)
    caption_unrelated: float = Field(ge=0, le=0.2)
    caption_poor: float = Field(ge=0, le=1)
    pictured: float = Field(ge=0, le=1)
    picture_agrees: float = Field(ge=0, le=1)
    picture_other: float = Field(ge=0, le=1)
    letter: float = Field(ge=0, le=1)
    self_ask: float = Field(ge=0, le=0.2)
    letter_drill: float = Field(ge=0, le=0.2)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        for first, second in (("caption_true", "caption_unrelated"), ("picture_agrees", "picture_other")):
            if getattr(self, first) + getattr(self, second) > 1:
                raise ValueError(f"{first} and {second} are shares of one whole: their sum must not pass 1")
        if not sum(self.families):
            raise ValueError("families must not all be 0")
        return self


class StageConfig(_Strict):
    """What changes in the base's data from a step on: the families, the pictures beside texts, and whether
    sub-tasks that are learnt last are drawn more often."""

    start: int = Field(ge=0)
    families: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    pictured: float | None = Field(default=None, ge=0, le=1)
    late: bool = False


class PretrainRecipe(_Strict):
    """A base model from scratch: tower on labels, then the whole LLaVA on answers."""

    kind: Literal["pretrain"]
    name: str
    seed: int
    tower_steps: int = Field(ge=0)
    tower_batch: int = Field(gt=0)
    tower_lr: float = Field(gt=0)
    language_steps: int = Field(ge=0)
    language_batch: int = Field(gt=0)
    language_lr: float = Field(gt=0)
    language_pictures: float = Field(ge=0, le=1)
    language_drill: float = Field(ge=0, le=1)
    language_look_up: float = Field(ge=0, le=1)
    steps: int = Field(gt=0)
    tower_frozen_steps: int = Field(ge=0)
    stages: tuple[StageConfig, ...]
    batch: int = Field(gt=0)
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    micro_batches: int = Field(gt=0)
    guide: float = Field(ge=0)
    mixture: MixtureConfig
    precision: Literal["auto", "bf16", "fp32"]
    checkpoint_minutes: float = Field(gt=0)
    evaluate_steps: int = Field(gt=0)
    evaluate_items: int = Field(gt=0)


def _known_format(name: str | None) -> str | None:
    if name is not None and name not in FORMATS:
        raise ValueError(f"no format {name!r}: name one of {', '.join(FORMATS)}")
    return name


def _known_columns(named: dict[str, str]) -> dict[str, str]:
    Columns().changed(named)
    return named


class ReadingConfig(_Strict):
    """How rows of one's own are read: the options of `modint-guard data validate`, under their names."""

    format: Annotated[str | None, AfterValidator(_known_format)] = None
    family: Annotated[
        Family | None, BeforeValidator(lambda named: None if named is None else family_named(named))
    ] = None
    split: str | None = None
    image_root: str | None = None
    columns: Annotated[dict[str, str], AfterValidator(_known_columns)] = Field(default_factory=dict)
    number_rows: bool = False


class AttackConfig(_Strict):
    """Noise on the input embeddings of the perturbed twins; see `attack.Attack` and `masks.modality_mask`."""

    kind: AttackKind
    step: StepKind | None = None
    epsilon: float = Field(gt=0)
    relative: bool
    alpha: float | None = Field(default=None, gt=0)
    steps: int = Field(ge=0, le=32)
    mask: AttackMask
    weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "gaussian":
            if self.steps or self.step or self.alpha:
                raise ValueError(
                    "attack.steps: gaussian noise takes no steps: set steps: 0, step and alpha to null"
                )
            return self
        if not self.steps or self.step is None or self.alpha is None:
            raise ValueError(f"attack.steps: {self.kind} climbs: give steps of at least 1, step and alpha")
        allowed = {"freelb": ("normalised",), "smart": ("normalised", "sign")}.get(self.kind, STEPS)
        if self.step not in allowed:
            raise ValueError(f"attack.step: {self.kind} takes {' or '.join(allowed)} steps, not {self.step}")
        return self


class TuneRecipe(_Strict):
    """An adapter or a whole model against interference: clean and perturbed twins, and the method's three
    losses."""

    kind: Literal["lora", "qlora", "full"]
    preset: str | None = None
    name: str
    base: str
    servable: bool = True
    data: str = TINYWORLD
    validation: str | None = None
    reading: ReadingConfig = ReadingConfig()
    seed: int
    scope: Annotated[tuple[Scope, ...], AfterValidator(_each_once)] = ("language",)
    targets: Targets | None = "linear"
    rank: int | None = Field(default=None, gt=0)
    alpha: int | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    weights: Literal["fp32", "bf16"] = "fp32"
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch: int = Field(gt=0)
    micro_batches: int = Field(default=1, gt=0)
    quotas: Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_some)]
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

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        for wrong, said in self._contradictions():
            if wrong:
                raise ValueError(said)
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """Whether keys contradict one another, and what to say then, beginning with the key."""
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

    def _of_kind(self) -> Iterator[tuple[bool, str]]:
        adapter, given = self.kind != "full", (self.rank, self.alpha, self.dropout)
        yield adapter and None in given, f"kind: {self.kind} needs rank, alpha and dropout"
        yield (
            not adapter and given != (None, None, None),
            "kind: full trains the weights themselves: leave out rank, alpha and dropout",
        )
        yield (
            adapter != (self.targets is not None),
            "targets: linear or attention for an adapter, null for kind: full",
        )
        yield (
            self.servable and (self.rank or 0) > MAX_RANK,
            f"rank: vLLM serves ranks up to {MAX_RANK}, not {self.rank}; choose a lower one, or say "
            "servable: false",
        )
        yield (
            not adapter and self.save_dtype != "fp32",
            "save_dtype: of an adapter; kind: full is saved in the type of weights",
        )
        # From a weight of at least 2**-7 the next in bf16 is 6e-5 away or more: steps of less than half of
        # that, as AdamW takes them at a rate of 2e-5, are rounded away. Adapters are fp32 on any base.
        yield (
            not adapter and self.weights == "bf16",
            "weights: in bf16 most steps of kind: full round away and nothing is learnt; use weights: fp32 "
            "with precision: bf16",
        )
        yield (
            self.kind == "qlora" and self.scope != ("language",),
            "scope: qlora adapts the language model only",
        )
        yield (
            self.targets == "attention" and "language" not in self.scope,
            "targets: chooses among the language model's layers, and scope leaves it out: targets: linear",
        )

    def _of_length(self) -> Iterator[tuple[bool, str]]:
        yield (self.steps is None) == (self.epochs is None), "steps: give steps or epochs, one of the two"
        yield (
            (self.warmup_steps is None) == (self.warmup_ratio is None),
            "warmup_steps: give warmup_steps or warmup_ratio, one of the two",
        )
        endless = self.data == TINYWORLD
        yield endless and self.epochs is not None, "epochs: tinyworld has no end: give steps"
        yield (
            endless != (self.letter is not None),
            "letter: belongs to data: tinyworld, and to no other data",
        )
        yield (
            endless and self.reading != ReadingConfig(),
            "reading: says how rows of your own are read, and data: tinyworld has none: name yours with data",
        )
        yield (
            endless and self.validation is not None,
            "validation: data: tinyworld is measured on its own validation split: leave it out",
        )


Recipe = PretrainRecipe | TuneRecipe
_KINDS: dict[str, type[PretrainRecipe] | type[TuneRecipe]] = {
    "pretrain": PretrainRecipe,
    "lora": TuneRecipe,
    "qlora": TuneRecipe,
    "full": TuneRecipe,
}
_SECTIONS: dict[str, type[BaseModel]] = {
    "mixture": MixtureConfig,
    "stages": StageConfig,
    "reading": ReadingConfig,
    "attack": AttackConfig,
}


def recipe_names() -> list[str]:
    """The bundled recipes."""
    return _bundled("recipes")


def recipe_summary(name: str) -> str:
    """What a bundled recipe is for: the first line of its file."""
    return _read(name)[0].partition("\n")[0].removeprefix("# ")


def preset_names() -> list[str]:
    """The bundled sets of defaults that a recipe's `preset:` may name."""
    return _bundled("presets")


def accelerate_config(name: str) -> Path:
    """The bundled configuration of that name for `accelerate launch --config_file`."""
    return Path(str(resources.files("modint_training") / "accelerate" / f"{name}.yaml"))


def _bundled(folder: str) -> list[str]:
    entries = (resources.files("modint_training") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name or a YAML file by path, over the preset it names, and apply `key=value`
    overrides (dots go deeper).

    Raises ConfigError for an unknown recipe, key or value, naming the line and the nearest known one, and for
    keys that contradict one another.
    """
    text, where = _read(name)
    values = _mapping(text, where)
    for override in overrides:
        _override(values, override)
    values = _over_preset(values, where)
    if str(values.get("kind")) not in _KINDS:
        raise ConfigError(f"{where} needs `kind:` to be one of {', '.join(_KINDS)}")
    schema = _KINDS[values["kind"]]
    try:
        return schema.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, where, text, schema)) from exc


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's readers keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where}{_what_yaml_says(exc)}") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{where} needs `key: value` lines")
    return values


def _over_preset(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The recipe's own keys laid over those of its preset, sections key by key."""
    preset = values.get("preset")
    if preset is None:
        return values
    if preset not in preset_names():
        raise ConfigError(f"{where}: no preset {preset!r}; known: {', '.join(preset_names())}")
    file = resources.files("modint_training") / "presets" / f"{preset}.yaml"
    return _laid_over(_mapping(file.read_text("utf-8"), f"{preset}.yaml"), values)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **below,
        **{
            key: _laid_over(below[key], value)
            if isinstance(value, dict) and isinstance(below.get(key), dict)
            else value
            for key, value in above.items()
        },
    }


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors. A preset may bring keys that a file leaves out, so few
    are required."""
    schema = TypeAdapter(Annotated[PretrainRecipe | TuneRecipe, Field(discriminator="kind")]).json_schema()
    schema["$defs"]["TuneRecipe"]["required"] = ["kind", "name"]
    schema["$defs"]["AttackConfig"]["required"] = []
    schema["$defs"]["TuneRecipe"]["properties"]["preset"]["enum"] = [*preset_names(), None]
    schema["$defs"]["ReadingConfig"]["properties"]["format"]["enum"] = [*FORMATS, None]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "modint-guard recipe",
        **schema,
    }


def _read(name: str) -> tuple[str, str]:
    bundled = resources.files("modint_training") / "recipes" / f"{name}.yaml"
    if bundled.is_file():
        return bundled.read_text("utf-8"), f"{name}.yaml"
    path = Path(name)
    if not path.is_file():
        nearest = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(recipe_names())}"
        raise ConfigError(f"no recipe {name!r}{hint}")
    try:
        return path.read_text("utf-8"), str(path)
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not a text file in UTF-8; give a YAML recipe") from exc


def _what_yaml_says(exc: yaml.YAMLError) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark:
        return f":{exc.problem_mark.line + 1} is not valid YAML: {exc.problem}"
    return " is not valid YAML"


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} is not key=value")
    *parents, last = key.split(".")
    for parent in parents:
        # A section that the preset brings need not be in the file.
        inner = values.setdefault(parent, {}) if parent in _SECTIONS else values.get(parent)
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section of the recipe")
        values = inner
    try:
        values[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as exc:
        raise ConfigError(f"override {override!r}: {value!r} is not a YAML value") from exc


def _explain(exc: ValidationError, where: str, text: str, schema: type[BaseModel]) -> str:
    """One sentence on the most telling mistake, with its line where it stands in the file."""
    errors = exc.errors(include_url=False)
    # A mistyped key is also a missing one: the mistake is the more telling of the two.
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    said = error["msg"].removeprefix("Value error, ")
    path: Sequence[str | int] = error["loc"]
    keys = [str(part) for part in path if isinstance(part, str) or part == path[0]]
    if not path or said.startswith(f"{path[0]}."):
        # Keys that contradict one another: the sentence names the first.
        named, _, said = said.partition(": ")
        path = keys = named.split(".")
    line = _line(text, path)
    place = f"{where}:{line}" if line else where
    if error["type"] == "extra_forbidden":
        known = (schema if len(keys) == 1 else _SECTIONS[keys[0]]).model_fields
        nearest = difflib.get_close_matches(keys[-1], list(known), n=1)
        return f"{place}: unknown key {'.'.join(keys)!r}" + (
            f"; did you mean {nearest[0]!r}?" if nearest else ""
        )
    return f"{place}: {'.'.join(keys)}: {said}"


def _line(text: str, path: Sequence[str | int]) -> int | None:
    """The line of a key, found by its path of sections and places in lists; None where the file does not hold
    it."""
    node: Any = yaml.compose(text)
    line = None
    for name in path:
        if isinstance(name, int) and isinstance(node, yaml.SequenceNode):
            if name >= len(node.value):  # an override's, not the file's
                return None
            node = node.value[name]
            line = node.start_mark.line + 1
            continue
        held = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in held if key.value == str(name)), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line
