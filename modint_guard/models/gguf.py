"""A GGUF file by the library `gguf`: its metadata, and its tensors as float32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modint_guard.errors import ConfigError
from modint_guard.models.weights import Floats


class Gguf:
    """A file's content. `metadata`: values by key. `names`: those of the tensors, in the file's order.

    Raises ConfigError if the library is missing, or if the file is no GGUF, damaged or cut off.
    """

    def __init__(self, file: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as exc:
            raise ConfigError(
                "a model that is fetched needs the library gguf: pip install 'modint-guard[cpu]' "
                "(or [gpu], [train])"
            ) from exc
        self.name = file.name
        try:
            reader = GGUFReader(file)
            self.metadata: Mapping[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        except (ValueError, IndexError, TypeError, KeyError) as exc:  # whatever the bytes made of it
            raise ConfigError(f"{self.name} is no GGUF file, damaged or cut off: fetch it again") from exc
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in the file's order."""
        return list(self._tensors)

    def tensor(self, name: str) -> Floats:
        """One tensor as float32, in numpy's shape (last dimension contiguous).

        Raises ConfigError if the file holds none of that name, or in a form that the library cannot decode.
        """
        from gguf import dequantize

        if name not in self._tensors:
            raise ConfigError(f"{self.name} holds no tensor {name!r}: it is another model than expected")
        stored = self._tensors[name]
        try:
            return np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        except NotImplementedError as exc:
            kind = stored.tensor_type.name
            raise ConfigError(f"{self.name}: {name} has the type {kind}, unread here") from exc
