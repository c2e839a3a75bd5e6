"""Models by name: `tinyworld-base`, `robust-lora` and `picturebook-lora` are bundled, `picturebook-base` is
fetched."""

import json
from pathlib import Path

from modint_guard.errors import ConfigError
from modint_guard.models import picturebook

FOLDER = Path(__file__).parent
BASE = "tinyworld-base"
ADAPTER = "robust-lora"
NOT_SERVED = frozenset({"instructblip"})  # model types that can be trained here but not served by vLLM


def bundled(name: str) -> Path:
    """The folder of the bundled or fetched model or adapter of this name; it need not exist."""
    return picturebook.fetched_folder() if name == picturebook.NAME else FOLDER / name


def check_servable(model_type: str) -> None:
    """Raises ConfigError, with a remedy, for a model type that vLLM does not serve."""
    if model_type in NOT_SERVED:
        raise ConfigError(
            f"vLLM does not serve models of type {model_type!r}: train and evaluate one with servable: "
            "false, and serve a LLaVA or Qwen2.5-VL"
        )


def check_tower_servable(folder: Path) -> None:
    """Raises ConfigError if vLLM would crash on the first picture with an adapter on this model's vision
    tower or connector: a LLaVA that leaves out CLIP's class token (`vision_feature_select_strategy`
    "default").
    """
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    strategy = config.get("vision_feature_select_strategy", "default")
    if config.get("model_type") == "llava" and strategy == "default":
        raise ConfigError(
            "vLLM crashes on the first picture if an adapter is on vision tower or connector and the model's "
            "vision_feature_select_strategy is 'default': train with scope: [language], or with kind: full"
        )


def located(name: str) -> Path:
    """The folder with this path if there is one, else that of the bundled model or adapter of this name."""
    return Path(name) if Path(name).is_dir() else bundled(name)


def is_adapter(name: str) -> bool:
    """Whether this is a bundled adapter's name or a folder with PEFT's `adapter_config.json`."""
    return (located(name) / "adapter_config.json").is_file()


def is_model(name: str) -> bool:
    """Whether this is a bundled model's name or a model folder, and no adapter's."""
    return (located(name) / "config.json").is_file() and not is_adapter(name)
