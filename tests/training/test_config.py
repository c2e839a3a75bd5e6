"""Recipes: the bundled ones load; what is wrong in one is named, with its line, before anything starts."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from modint_guard.errors import ConfigError
from modint_training.data.twins import check_kinds
from modint_training.recipe import ReadingConfig, TuneRecipe
from modint_training.recipe_files import load_recipe, preset_names, recipe_names, recipe_schema
from modint_training.tinyworld.recipe import PretrainRecipe
from modint_training.tinyworld.suite import Mixture

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "recipe.schema.json"


def text_of(name: str, folder: str = "recipes") -> str:
    return (resources.files("modint_training") / folder / f"{name}.yaml").read_text("utf-8")


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_recipe(name, overrides)
    said = str(refused.value)
    assert said and "\n" not in said
    return said


KINDS = "pretrain, picturebook, lora, qlora, full"


def line_of(text: str, key: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if line.startswith(f"{key}:"))


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_loads_under_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_bundled_recipes_train_bases_adapters_ablations_and_real_models() -> None:
    ablations = ("sft", "aug", "cons-kl", "cons-js", "gaussian", "adv", "full", "full-nomask", "paper")
    remedies = ("pcgrad", "progressive", "reverse")
    templates = ("llava-1.5-7b", "llava-1.5-13b", "qwen2.5-vl-3b", "qwen2.5-vl-7b", "instructblip-7b")
    bases = ("tinyworld-base", "picturebook-base")
    adapters = ("robust-lora", "picturebook-lora")
    expected = {*adapters, *bases, *templates, *(f"tinyworld-{name}" for name in (*ablations, *remedies))}
    assert set(recipe_names()) == expected
    assert isinstance(load_recipe("tinyworld-base"), PretrainRecipe)
    assert isinstance(load_recipe("robust-lora"), TuneRecipe)


def comments_of(text: str) -> dict[str, str]:
    """The comment behind each line that sets something."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {line: line.partition(" #")[2].strip() for line in lines}


@pytest.mark.parametrize("name", recipe_names())
def test_every_option_of_a_bundled_recipe_has_a_comment(name: str) -> None:
    assert [line for line, comment in comments_of(text_of(name)).items() if not comment] == []


@pytest.mark.parametrize("name", preset_names())
def test_every_option_of_a_preset_has_a_comment(name: str) -> None:
    assert [line for line, comment in comments_of(text_of(name, "presets")).items() if not comment] == []


def test_the_papers_preset_says_of_every_value_whether_it_is_the_papers() -> None:
    said = comments_of(text_of("paper", "presets"))
    assert [line for line, comment in said.items() if not {"paper", "our"} & words_of(comment)] == [
        line for line in said if line.startswith("attack:")
    ]


def words_of(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[a-z]+", text)}


@pytest.mark.parametrize("name", recipe_names())
def test_every_option_of_a_bundled_recipe_is_written_out_in_it_or_in_its_preset(name: str) -> None:
    written = yaml.safe_load(text_of(name))
    preset = written.get("preset")
    known = written.keys() | (yaml.safe_load(text_of(preset, "presets")).keys() if preset else set())
    fields = type(load_recipe(name)).model_fields.items()
    assert {key for key, field in fields if field.is_required() or field.default is not None} <= known


def test_the_bundled_mixture_is_the_suites_own() -> None:
    recipe = load_recipe("tinyworld-base")
    assert isinstance(recipe, PretrainRecipe)
    assert Mixture(**recipe.mixture.model_dump()) == Mixture()


@pytest.mark.parametrize("name", ["robust-lora", "picturebook-lora"])
def test_a_bundled_adapter_trains_on_nothing_that_is_held_out(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, TuneRecipe)
    check_kinds(recipe.perturbations, controls=False)
    check_kinds(recipe.controls, controls=True)


def test_overrides_reach_into_sections_and_keep_their_types() -> None:
    recipe = load_recipe("tinyworld-base", ["steps=7", "mixture.captioned=0.25", "lr=1e-4", "name=mine"])
    assert isinstance(recipe, PretrainRecipe)
    assert (recipe.steps, recipe.mixture.captioned, recipe.lr, recipe.name) == (7, 0.25, 1e-4, "mine")
    adapter = load_recipe("robust-lora", ["perturbations=[noise, black]", "quotas=[1, 0, 2]"])
    assert isinstance(adapter, TuneRecipe)
    assert (adapter.perturbations, adapter.quotas) == (("noise", "black"), (1, 0, 2))


def test_a_recipe_can_be_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, text_of("robust-lora").replace("seed: 0", "seed: 5"))
    assert load_recipe(path).seed == 5


def test_a_recipe_cannot_be_changed() -> None:
    recipe: Any = load_recipe("robust-lora")
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3


# Refusals


def test_an_unknown_recipe_names_the_nearest() -> None:
    assert refusal("robust-laro") == "no recipe 'robust-laro'; did you mean robust-lora?"
    assert refusal("xyz") == f"no recipe 'xyz'; known: {', '.join(recipe_names())}"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known(tmp_path: Path) -> None:
    text = text_of("tinyworld-base").replace("\nwarmup_steps:", "\nwarm_up_steps:")
    line = line_of(text, "warm_up_steps")
    path = written(tmp_path, text)
    assert refusal(path) == f"{path}:{line}: unknown key 'warm_up_steps'; did you mean 'warmup_steps'?"


def test_an_unknown_key_beside_the_known_ones_is_refused(tmp_path: Path) -> None:
    text = text_of("robust-lora") + "warmup_step: 3\n"
    path = written(tmp_path, text)
    line = line_of(text, "warmup_step")
    assert refusal(path) == f"{path}:{line}: unknown key 'warmup_step'; did you mean 'warmup_steps'?"


def test_an_unknown_key_of_a_section_is_named_with_its_section() -> None:
    said = refusal("tinyworld-base", "mixture.captoned=0.5")
    assert said == "tinyworld-base.yaml: unknown key 'mixture.captoned'; did you mean 'captioned'?"


def test_an_unknown_key_like_no_other_is_still_named() -> None:
    assert refusal("robust-lora", "zzz=1") == "robust-lora.yaml: unknown key 'zzz'"


def test_a_value_of_the_wrong_type_is_named_with_its_line() -> None:
    line = line_of(text_of("robust-lora"), "rank")
    assert refusal("robust-lora", "rank=many").startswith(
        f"robust-lora.yaml:{line}: rank: Input should be a valid"
    )


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("robust-lora", "steps=0", "steps"),
        ("robust-lora", "control_share=1.5", "control_share"),
        ("robust-lora", "dropout=1", "dropout"),
        ("robust-lora", "consistency=cosine", "consistency"),
        ("robust-lora", "quotas=[1, 2]", "quotas"),
        ("robust-lora", "quotas=[0, 0, 0]", "quotas"),
        ("robust-lora", "quotas=[1, -1, 0]", "quotas"),
        ("robust-lora", "precision=fp8", "precision"),
        ("robust-lora", "lr=.inf", "lr"),
        ("robust-lora", "lr=.nan", "lr"),
        ("tinyworld-base", "checkpoint_minutes=0", "checkpoint_minutes"),
        ("tinyworld-base", "micro_batches=0", "micro_batches"),
        ("tinyworld-base", "mixture.captioned=0.71", "mixture.captioned"),
        ("tinyworld-base", "mixture.caption_true=0.79", "mixture.caption_true"),
        ("tinyworld-base", "mixture.caption_true=0.96", "mixture.caption_true"),
        ("tinyworld-base", "mixture.caption_unrelated=0.1", "mixture"),
        ("tinyworld-base", "mixture.picture_other=0.2", "mixture"),
        ("tinyworld-base", "mixture.families=[0, 0, 0]", "mixture"),
        ("tinyworld-base", "mixture.families=[-1, 1, 1]", "mixture.families"),
    ],
)
def test_a_value_out_of_its_range_is_named_with_its_line(name: str, override: str, key: str) -> None:
    said = refusal(name, override)
    place, _, rest = said.partition(": ")
    assert place.startswith(f"{name}.yaml:") and place.rpartition(":")[2].isdigit()
    assert rest.startswith(f"{key}: ")
    assert "Value error" not in said


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = text_of("robust-lora").replace("\nrank: 16 ", "\n# ")
    path = written(tmp_path, text)
    assert refusal(path) == f"{path}:3: kind: lora needs rank, alpha and dropout"
    text = text_of("robust-lora").replace("batch: 32", "#")
    path = written(tmp_path, text)
    assert refusal(path) == f"{path}: batch: Field required"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "override 'steps' is not key=value"),
        ("lr.deep=1", "override 'lr.deep=1': 'lr' is not a section of the recipe"),
        ("steps=[1", "override 'steps=[1': '[1' is not a YAML value"),
        (
            "kind=distil",
            "robust-lora.yaml needs `kind:` to be one of pretrain, picturebook, lora, qlora, full",
        ),
    ],
)
def test_a_bad_override_is_named(override: str, said: str) -> None:
    assert refusal("robust-lora", override) == said


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path) == f"{path} needs `key: value` lines"


@pytest.mark.parametrize("text", ["name: x\n", "kind: distil\n", "kind: [lora]\n"])
def test_a_file_without_a_known_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path) == f"{path} needs `kind:` to be one of pretrain, picturebook, lora, qlora, full"


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "kind: [lora\nname: x\n")
    assert refusal(path).startswith(f"{path}:2 is not valid YAML: expected ',' or ']'")


def test_a_key_that_is_no_word_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, text_of("robust-lora") + "7: 3\n")
    line = line_of(text_of("robust-lora") + "7: 3\n", "7")
    assert refusal(path) == f"{path}:{line}: 7: Keys should be strings"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\x80\x81")
    assert refusal(str(path)) == f"{path} is not a text file in UTF-8; give a YAML recipe"


# The method's own keys


def tuned(name: str, *overrides: str) -> TuneRecipe:
    recipe = load_recipe(name, overrides)
    assert isinstance(recipe, TuneRecipe)
    return recipe


def test_the_ablations_differ_in_what_they_are_named_for() -> None:
    ablations = {name: tuned(f"tinyworld-{name}") for name in ("sft", "aug", "cons-kl", "adv", "full")}
    found = {
        name: (bool(recipe.perturbations), recipe.consistency, recipe.attack is not None)
        for name, recipe in ablations.items()
    }
    assert found == {
        "sft": (False, "none", False),
        "aug": (True, "none", False),
        "cons-kl": (True, "kl", False),
        "adv": (True, "none", True),
        "full": (True, "js", True),
    }
    assert {recipe.steps for recipe in ablations.values()} == {300}
    assert {(recipe.rank, recipe.alpha) for recipe in ablations.values()} == {(8, 16)}


def test_without_a_mask_only_the_mask_differs() -> None:
    full, unmasked = (tuned(f"tinyworld-{name}").model_dump() for name in ("full", "full-nomask"))
    assert full.pop("attack") == {**unmasked.pop("attack"), "mask": "span"}
    assert full | {"name": ""} == unmasked | {"name": ""}


def test_the_papers_preset_does_what_its_code_does() -> None:
    recipe = load_recipe("llava-1.5-7b", ["data=mine"])
    assert isinstance(recipe, TuneRecipe) and recipe.preset == "paper" and recipe.attack
    assert (recipe.attack.rows, recipe.attack.mask, recipe.consistency) == ("all", "modality", "reverse_kl")


def test_vqa_rows_are_attacked_only_without_a_mask() -> None:
    assert "attack.rows: mask: span leaves nothing of a vqa row to attack" in refusal(
        "tinyworld-full", "attack.rows=twins_and_vqa"
    )
    recipe = load_recipe("tinyworld-full-nomask", ["attack.rows=twins_and_vqa"])
    assert isinstance(recipe, TuneRecipe) and recipe.attack and recipe.attack.rows == "twins_and_vqa"


def test_the_templates_have_the_papers_noise() -> None:
    noise = {
        name: (recipe.attack.epsilon, recipe.attack.steps, recipe.attack.step, recipe.attack.mask)
        for name in recipe_names()
        if (recipe := load_recipe(name)).name[0] in "lqi" and isinstance(recipe, TuneRecipe) and recipe.attack
    }
    assert noise == {
        "llava-1.5-7b": (1e-3, 2, "raw", "modality"),
        "llava-1.5-13b": (1e-3, 2, "raw", "modality"),
        "qwen2.5-vl-3b": (1e-2, 2, "raw", "modality"),
        "qwen2.5-vl-7b": (1e-3, 2, "raw", "modality"),
        "instructblip-7b": (5e-2, 4, "raw", "modality"),
    }


def test_a_preset_gives_what_a_recipe_leaves_out_and_sections_are_laid_over_key_by_key() -> None:
    recipe = tuned("tinyworld-full", "attack.epsilon=0.5", "lr=0.25")
    assert recipe.attack is not None
    assert (recipe.attack.epsilon, recipe.attack.kind, recipe.lr, recipe.batch) == (0.5, "pgd", 0.25, 32)
    assert tuned("tinyworld-full", "attack=null").attack is None


def test_a_recipe_says_how_rows_of_ones_own_are_read() -> None:
    how = tuned("qwen2.5-vl-7b", "reading.family=VQA", "reading.columns={prompt: ask}").reading
    assert (how.family, how.columns, how.number_rows) == ("vqa", {"prompt": "ask"}, False)
    assert tuned("qwen2.5-vl-7b").reading == ReadingConfig()


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    assert refusal("tinyworld-full", "preset=papers") == (
        "tinyworld-full.yaml: no preset 'papers'; known: modint, paper"
    )


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("tinyworld-full", ["attack.epsilon=0"], "attack.epsilon: Input should be greater than 0"),
        ("tinyworld-full", ["attack.epsilon=.inf"], "attack.epsilon: Input should be a finite number"),
        ("tinyworld-full", ["attack.alpha=.inf"], "attack.alpha: Input should be a finite number"),
        ("tinyworld-full", ["attack.epsilom=1"], "unknown key 'attack.epsilom'; did you mean 'epsilon'?"),
        (
            "tinyworld-full",
            ["attack.steps=0"],
            "attack.steps: pgd follows the gradient: give steps of at least 1, step and",
        ),
        (
            "tinyworld-full",
            ["attack.kind=gaussian"],
            "attack.steps: gaussian noise takes no steps: set steps: 0",
        ),
        ("tinyworld-full", ["attack.kind=freelb", "attack.step=raw"], "attack.step: freelb takes normalised"),
        (
            "tinyworld-full",
            ["perturbations=[]"],
            "perturbations: attack, consistency and controls work on twins",
        ),
        ("tinyworld-full", ["kind=full"], "kind: full trains the weights themselves: leave out rank"),
        (
            "llava-1.5-7b",
            ["kind=full", "rank=null", "alpha=null", "dropout=null", "targets=null"],
            "weights: in bf16 most steps of kind: full are rounded away and nothing is learned; use weights:",
        ),
        (
            "tinyworld-full",
            ["first_layer=2", "scope=[vision]"],
            "first_layer: is that of the language model with an adapter",
        ),
        ("tinyworld-full", ["attack.share=0"], "attack.share: Input should be greater than 0"),
        ("tinyworld-full", ["rank=1024"], "rank: vLLM serves ranks up to 512, not 1024; choose a lower one"),
        ("tinyworld-full", ["temperature=2", "consistency=mse"], "temperature: softens distributions, and"),
        (
            "tinyworld-full",
            ["targets=attention", "scope=[vision]"],
            "targets: selects layers of the language model, which scope leaves out",
        ),
        ("robust-lora", ["validation=mine.json"], "validation: data: tinyworld is measured on its own"),
        (
            "tinyworld-base",
            ["stages=[{start: 1, lat: true}]"],
            "unknown key 'stages.lat'; did you mean 'late'?",
        ),
        (
            "tinyworld-base",
            ["stages=[{start: -1}]"],
            "stages.start: Input should be greater than or equal to",
        ),
        ("tinyworld-full", ["rank=null"], "kind: lora needs rank, alpha and dropout"),
        (
            "tinyworld-full",
            ["kind=qlora", "scope=[language, vision]"],
            "scope: qlora adapts the language model",
        ),
        ("tinyworld-full", ["scope=[]"], "scope: name at least one, and each once"),
        ("tinyworld-full", ["epochs=1"], "steps: give steps or epochs, one of the two"),
        ("tinyworld-full", ["steps=null", "epochs=1"], "epochs: tinyworld has no end: give steps"),
        ("tinyworld-full", ["warmup_steps=3"], "warmup_steps: give warmup_steps or warmup_ratio"),
        ("tinyworld-full", ["letter=null"], "letter: data: tinyworld needs it: give a share from 0 to 1"),
        (
            "qwen2.5-vl-7b",
            ["letter=0.5"],
            "letter: belongs to generated data, such as data: tinyworld: leave",
        ),
        ("tinyworld-full", ["micro_batches=5"], "micro_batches: 5 does not divide batch: 32"),
        (
            "tinyworld-full",
            ["reading.family=vqa"],
            "reading: says how the rows of a data set are read, and data: tinyworld has none",
        ),
        ("qwen2.5-vl-7b", ["reading.famly=vqa"], "unknown key 'reading.famly'; did you mean 'family'?"),
        (
            "qwen2.5-vl-7b",
            ["reading.family=text"],
            "reading.family: unknown family 'text': name one of image-",
        ),
        ("qwen2.5-vl-7b", ["reading.format=csv"], "reading.format: no format 'csv': name one of llava, "),
        (
            "qwen2.5-vl-7b",
            ["reading.columns={prompts: ask}"],
            "reading.columns: no column 'prompts': did you",
        ),
    ],
)
def test_contradictory_keys_are_refused_in_one_sentence(name: str, overrides: list[str], said: str) -> None:
    place, _, rest = refusal(name, *overrides).partition(": ")
    assert place.startswith(f"{name}.yaml")
    assert rest.startswith(said)


def test_a_rank_that_vllm_does_not_serve_is_taken_where_nothing_is_to_be_served() -> None:
    assert tuned("tinyworld-full", "rank=1024", "servable=false").rank == 1024


def test_a_key_that_is_given_twice_is_refused_with_its_second_line(tmp_path: Path) -> None:
    text = text_of("tinyworld-full")
    path = written(tmp_path, text + "lr: 5.0\nattack:\n  steps: 1\nlr: 6.0\n")
    line = text.count("\n") + 4
    assert refusal(path) == f"{path}:{line} is not valid YAML: 'lr' is given twice"
    path = written(tmp_path, text + "attack:\n  steps: 1\n  steps: 2\n")
    assert refusal(path) == f"{path}:{line - 1} is not valid YAML: 'steps' is given twice"


def test_a_key_that_is_a_list_or_a_section_is_no_recipe_s(tmp_path: Path) -> None:
    text = text_of("tinyworld-full")
    line = text.count("\n") + 1
    for key in ("{{ name }}: 1", "? [a, b]\n: 1"):
        assert refusal(written(tmp_path, f"{text}{key}\n")).endswith(
            f":{line} is not valid YAML: found unhashable key"
        )
    assert refusal("robust-lora", "name={{x}}") == "override 'name={{x}}': '{{x}}' is not a YAML value"


def test_a_key_inside_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    text = text_of("tinyworld-base")
    line = next(n for n, each in enumerate(text.split("\n"), 1) if "start:" in each)
    path = written(tmp_path, text.replace("start:", "strt:", 1))
    assert refusal(path).startswith(f"{path}:{line}: unknown key 'stages.strt'; did you mean 'start'?")


def test_a_contradiction_is_named_with_the_line_of_its_own_section(tmp_path: Path) -> None:
    section = (
        "attack:\n  kind: gaussian\n  epsilon: 0.1\n  relative: true\n  steps: 3\n  mask: span\n  weight: 1\n"
    )
    text = text_of("tinyworld-full") + section
    path = written(tmp_path, text)
    line = text.split("\n").index("  steps: 3") + 1  # and not that of the recipe's own steps
    assert refusal(path).startswith(f"{path}:{line}: attack.steps: gaussian noise takes no steps")


def test_regenerating_the_committed_schema_changes_nothing() -> None:
    assert SCHEMA.read_text("utf-8") == json.dumps(recipe_schema(), indent=2) + "\n"


@pytest.mark.parametrize("name", recipe_names())
def test_the_schema_takes_every_bundled_recipe(name: str) -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(text_of(name)), schema)


def test_the_schema_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(text_of("robust-lora")), "stepz": 3}, recipe_schema())
