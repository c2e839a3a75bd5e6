"""The models that ship with the package: `tinyworld-base` and `robust-lora`, each a folder with a card."""

from pathlib import Path

from modint_guard.errors import ConfigError

FOLDER = Path(__file__).parent
BASE = "tinyworld-base"
ADAPTER = "robust-lora"
NOT_SERVED = frozenset({"instructblip"})  # model types that can be trained here and that vLLM has no model of


def bundled(name: str) -> Path:
    """The folder of a bundled model or adapter, whether or not it exists."""
    return FOLDER / name


def check_servable(model_type: str) -> None:
    """ConfigError for a model type that vLLM does not serve, naming what can be done instead."""
    if model_type in NOT_SERVED:
        raise ConfigError(
            f"vLLM does not serve models of type {model_type!r}: train and evaluate one with servable: "
            "false, and serve a LLaVA or Qwen2.5-VL"
        )


def located(name: str) -> Path:
    """A folder of one's own, or that of a bundled model or adapter, whether or not it exists."""
    return Path(name) if Path(name).is_dir() else bundled(name)
