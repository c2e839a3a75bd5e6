"""The models that ship with the package: `tinyworld-base` and `robust-lora`, each a folder with a card."""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE = "tinyworld-base"
ADAPTER = "robust-lora"


def bundled(name: str) -> Path:
    """The folder of a bundled model or adapter, whether or not it exists."""
    return FOLDER / name


def located(name: str) -> Path:
    """A folder of one's own, or that of a bundled model or adapter, whether or not it exists."""
    return Path(name) if Path(name).is_dir() else bundled(name)
