"""The recipe of `kind: picturebook`: a vision tower and a LoRA that make SmolLM2 see."""

from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from modint_training.recipe import MixtureConfig, StrictModel


class PagesConfig(MixtureConfig):
    """Ratios of the base model's data; see `picturebook.suite.Mixture`."""

    text_missing: float = Field(ge=0, le=1)
    placements: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]

    @model_validator(mode="after")
    def _some_placement(self) -> Self:
        if not sum(self.placements):
            raise ValueError("placements must not all be 0")
        return self


class PicturebookRecipe(StrictModel):
    """Three stages: the tower on drawings, its projector onto words, the language model on answers."""

    data: ClassVar[str] = "picturebook"  # the world it is trained on

    kind: Literal["picturebook"]
    name: str
    seed: int
    tower_steps: int = Field(gt=0)
    tower_batch: int = Field(gt=0)
    tower_lr: float = Field(gt=0)
    align_steps: int = Field(gt=0)
    align_batch: int = Field(gt=0)
    align_lr: float = Field(gt=0)
    steps: int = Field(gt=0)
    pages: int = Field(gt=0)
    questions: int = Field(gt=0)
    lr: float = Field(gt=0)
    first_layer: int = Field(ge=0, lt=30)
    rank: int = Field(gt=0, le=64)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    mixture: PagesConfig
    precision: Literal["auto", "bf16", "fp32"]
    checkpoint_minutes: float = Field(gt=0)
