"""What differs between model families, as one small record each."""

from dataclasses import dataclass

from modint_guard.errors import ConfigError

LINEAR = "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True)
class ModelFamily:
    """`lora_targets` names the language model: a bare list of suffixes would hit the vision tower too."""

    model_type: str
    lora_targets: str
    servable: bool  # by vLLM


FAMILIES = {
    family.model_type: family
    for family in (ModelFamily("llava", rf".*\.language_model\..*\.{LINEAR}", servable=True),)
}


def family_of(model_type: str) -> ModelFamily:
    """The record of a `config.model_type`; ConfigError names the known ones."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ConfigError(
            f"cannot train a model of type {model_type!r}; known: {', '.join(FAMILIES)}"
        ) from None
