"""The recipe of `kind: pretrain`: TinyWorld's base model from scratch."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from modint_training.recipe import MixtureConfig, StrictModel


class TinyMixtureConfig(MixtureConfig):
    """Ratios of the base model's data; see `tinyworld.suite.Mixture`."""

    captioned: float = Field(ge=0, le=0.7)
    caption_true: float = Field(ge=0.8, le=0.95)
    caption_unrelated: float = Field(ge=0, le=0.2)
    letter: float = Field(ge=0, le=1)
    letter_drill: float = Field(ge=0, le=0.2)


class StageConfig(StrictModel):
    """What changes in the base's data from step `start` on: the shares of the families, the share of texts
    with a picture, and whether the sub-tasks that are learned last are drawn more often."""

    start: int = Field(ge=0)
    families: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None = None
    pictured: float | None = Field(default=None, ge=0, le=1)
    late: bool = False


class PretrainRecipe(StrictModel):
    """A base model from scratch: the vision tower on labels, then the whole LLaVA on answers."""

    data: ClassVar[str] = "tinyworld"  # the world it is trained on

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
    mixture: TinyMixtureConfig
    precision: Literal["auto", "bf16", "fp32"]
    checkpoint_minutes: float = Field(gt=0)
    evaluate_steps: int = Field(gt=0)
    evaluate_items: int = Field(gt=0)
