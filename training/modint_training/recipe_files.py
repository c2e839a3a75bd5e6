"""Recipe files: one YAML file a training run, over a preset and under overrides, checked before anything is
loaded."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from modint_guard.data import FORMATS
from modint_guard.errors import ConfigError
from modint_training.picturebook.recipe import PicturebookRecipe
from modint_training.recipe import TuneRecipe
from modint_training.tinyworld.recipe import PretrainRecipe

Recipe = PretrainRecipe | PicturebookRecipe | TuneRecipe
_KINDS: dict[str, type[PretrainRecipe] | type[PicturebookRecipe] | type[TuneRecipe]] = {
    "pretrain": PretrainRecipe,
    "picturebook": PicturebookRecipe,
    "lora": TuneRecipe,
    "qlora": TuneRecipe,
    "full": TuneRecipe,
}


def recipe_names() -> list[str]:
    """The names of the bundled recipes."""
    return _bundled("recipes")


def recipe_summary(name: str) -> str:
    """The purpose of a bundled recipe: the first line of its file."""
    return _read(name)[0].partition("\n")[0].removeprefix("# ")


def preset_names() -> list[str]:
    """The names of the bundled presets: sets of defaults that a recipe's `preset:` may name."""
    return _bundled("presets")


def accelerate_config(name: str) -> Path:
    """The bundled configuration of that name for `accelerate launch --config_file`."""
    return Path(str(resources.files("modint_training") / "accelerate" / f"{name}.yaml"))


def _bundled(folder: str) -> list[str]:
    entries = (resources.files("modint_training") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name or a YAML file by path, fill in the preset it names, and apply
    `key=value` overrides (dots lead into sections).

    Raises ConfigError for an unknown recipe, key or value, with the line and the nearest known name, and for
    keys that contradict each other.
    """
    text, file = _read(name)
    values = _mapping(text, file)
    for override in overrides:
        _override(values, override)
    values = _with_preset(values, file)
    if str(values.get("kind")) not in _KINDS:
        raise ConfigError(f"{file} needs `kind:` to be one of {', '.join(_KINDS)}")
    schema = _KINDS[values["kind"]]
    try:
        return schema.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(_explain(exc, file, text, schema)) from exc


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; other YAML readers silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(text: str, file: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{file}{_yaml_error(exc)}") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{file} needs `key: value` lines")
    return values


def _with_preset(values: dict[str, Any], file: str) -> dict[str, Any]:
    """The recipe's own keys, and those of its preset that it leaves out; sections are merged key by key."""
    preset = values.get("preset")
    if preset is None:
        return values
    if preset not in preset_names():
        raise ConfigError(f"{file}: no preset {preset!r}; known: {', '.join(preset_names())}")
    defaults = resources.files("modint_training") / "presets" / f"{preset}.yaml"
    return _merged(_mapping(defaults.read_text("utf-8"), f"{preset}.yaml"), values)


def _merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **defaults,
        **{
            key: _merged(defaults[key], value)
            if isinstance(value, dict) and isinstance(defaults.get(key), dict)
            else value
            for key, value in values.items()
        },
    }


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors. Few keys are required, since a preset may supply those
    that a file leaves out."""
    schema = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")]).json_schema()
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


def _yaml_error(exc: yaml.YAMLError) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark:
        return f":{exc.problem_mark.line + 1} is not valid YAML: {exc.problem}"
    return " is not valid YAML"


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} is not key=value")
    *parents, last = key.split(".")
    for parent in parents:
        # A section that the preset supplies need not be in the file.
        known = any(parent in _sections(schema) for schema in _KINDS.values())
        section = values.setdefault(parent, {}) if known else values.get(parent)
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section of the recipe")
        values = section
    try:
        values[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as exc:
        raise ConfigError(f"override {override!r}: {value!r} is not a YAML value") from exc


def _explain(exc: ValidationError, file: str, text: str, schema: type[BaseModel]) -> str:
    """One sentence on the most telling mistake, with its line if it is in the file."""
    errors = exc.errors(include_url=False)
    # A mistyped key is also a missing one: the mistyped name tells more.
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    message = error["msg"].removeprefix("Value error, ")
    path: Sequence[str | int] = error["loc"]
    keys = [str(part) for part in path if isinstance(part, str) or part == path[0]]
    if not path or message.startswith(f"{path[0]}."):
        # Keys that contradict each other: the message begins with the key to name.
        key, _, message = message.partition(": ")
        path = keys = key.split(".")
    line = _line(text, path)
    place = f"{file}:{line}" if line else file
    if error["type"] == "extra_forbidden":
        known = (schema if len(keys) == 1 else _sections(schema)[keys[0]]).model_fields
        nearest = difflib.get_close_matches(keys[-1], list(known), n=1)
        return f"{place}: unknown key {'.'.join(keys)!r}" + (
            f"; did you mean {nearest[0]!r}?" if nearest else ""
        )
    return f"{place}: {'.'.join(keys)}: {message}"


def _sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The keys of a recipe that hold keys in turn, alone or in a list, each with the schema of these."""
    return {
        name: part
        for name, field in schema.model_fields.items()
        for part in (field.annotation, *get_args(field.annotation))
        if isinstance(part, type) and issubclass(part, BaseModel)
    }


def _line(text: str, path: Sequence[str | int]) -> int | None:
    """The line of a key, found by its path of section names and indices; None if the file does not contain
    it."""
    node: Any = yaml.compose(text)
    line = None
    for name in path:
        if isinstance(name, int) and isinstance(node, yaml.SequenceNode):
            if name >= len(node.value):  # it comes from an override, not from the file
                return None
            node = node.value[name]
            line = node.start_mark.line + 1
            continue
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        entry = next(((key, value) for key, value in entries if key.value == str(name)), None)
        if entry is None:
            return None
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line
