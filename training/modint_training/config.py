"""Recipes: one YAML file a training run, checked before anything is loaded."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from modint_guard.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _some(quotas: tuple[int, int, int]) -> tuple[int, int, int]:
    if not sum(quotas):
        raise ValueError("quotas must not all be 0")
    return quotas


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
    steps: int = Field(gt=0)
    tower_frozen_steps: int = Field(ge=0)
    stages: tuple[StageConfig, ...]
    batch: int = Field(gt=0)
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    micro_batches: int = Field(gt=0)
    mixture: MixtureConfig
    precision: Literal["auto", "bf16", "fp32"]
    checkpoint_minutes: float = Field(gt=0)
    evaluate_steps: int = Field(gt=0)
    evaluate_items: int = Field(gt=0)


class LoraRecipe(_Strict):
    """A LoRA adapter against interference: clean and perturbed twins, task and consistency losses."""

    kind: Literal["lora"]
    name: str
    base: str
    seed: int
    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    quotas: Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], AfterValidator(_some)]
    perturbations: tuple[str, ...]
    controls: tuple[str, ...]
    control_share: float = Field(ge=0, le=1)
    task_weight: float = Field(ge=0)
    consistency: Literal["none", "kl", "js"]
    consistency_weight: float = Field(ge=0)
    letter: float = Field(ge=0, le=1)
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    precision: Literal["auto", "bf16", "fp32"]
    checkpoint_minutes: float = Field(gt=0)
    evaluate_steps: int = Field(gt=0)
    evaluate_items: int = Field(gt=0)


Recipe = PretrainRecipe | LoraRecipe
_KINDS: dict[str, type[PretrainRecipe] | type[LoraRecipe]] = {"pretrain": PretrainRecipe, "lora": LoraRecipe}


def recipe_names() -> list[str]:
    """The bundled recipes."""
    folder = resources.files("modint_training") / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name or a YAML file by path, and apply `key=value` overrides (dots go deeper).

    Raises ConfigError for an unknown recipe, key or value, naming the nearest known one.
    """
    text, where = _read(name)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where}{_what_yaml_says(exc)}") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{where} needs `key: value` lines")
    for override in overrides:
        _override(values, override)
    if str(values.get("kind")) not in _KINDS:
        raise ConfigError(f"{where} needs `kind:` to be one of {', '.join(_KINDS)}")
    try:
        return _KINDS[values["kind"]].model_validate(values)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, where, text, _KINDS[values["kind"]])) from exc


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
        if not isinstance(values.get(parent), dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section of the recipe")
        values = values[parent]
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise ConfigError(f"override {override!r}: {value!r} is not a YAML value") from exc


def _explain(exc: ValidationError, where: str, text: str, schema: type[BaseModel]) -> str:
    errors = exc.errors(include_url=False)
    # A mistyped key is also a missing one: the mistake is the more telling of the two.
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    first, *deeper = error["loc"]
    path = [str(first), *(part for part in deeper if isinstance(part, str))]  # without places in a list
    line = next(
        (n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"{path[-1]}:")), None
    )
    place = f"{where}:{line}" if line else where
    if error["type"] == "extra_forbidden":
        known = list((schema if len(path) == 1 else MixtureConfig).model_fields)
        nearest = difflib.get_close_matches(path[-1], known, n=1)
        return f"{place}: unknown key {'.'.join(path)!r}" + (
            f"; did you mean {nearest[0]!r}?" if nearest else ""
        )
    return f"{place}: {'.'.join(path)}: {error['msg'].removeprefix('Value error, ')}"
