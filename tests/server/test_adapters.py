"""Adapters are found by name or path, and what vLLM would not load is refused with the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modint_guard.errors import AdapterError
from modint_guard.models import ADAPTER, bundled
from modint_server.adapters.folders import (
    ALLOWED_RANKS,
    NAME,
    Adapter,
    bundled_names,
    card,
    max_lora_rank,
    read,
    record_modules,
    resolve,
    resolve_all,
    revision,
)
from modint_server.metrics import Card
from tests.server.adapter_folders import LANGUAGE, PROJECTOR, TOWER, pair
from tests.server.adapter_folders import adapter as adapter_folder


def make(folder: Path, **config: Any) -> Path:
    """The smallest folder that passes for a PEFT adapter."""
    folder.mkdir(parents=True)
    whole = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "base_model_name_or_path": "tinyworld-base",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(whole), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter folder of the user's and a bundled one, both with `mine`, only the second with `robust`."""
    make(tmp_path / "adapters" / "mine", r=4)
    make(tmp_path / "bundled" / "mine", r=8)
    make(tmp_path / "bundled" / "robust")
    return tmp_path / "adapters", tmp_path / "bundled"


def test_a_name_is_looked_up_in_the_users_folder_first(places: tuple[Path, Path]) -> None:
    assert resolve("mine", *places) == Adapter("mine", places[0] / "mine", 4, "tinyworld-base")


def test_a_name_the_user_does_not_have_is_a_bundled_one(places: tuple[Path, Path]) -> None:
    assert resolve("robust", *places).path == places[1] / "robust"


def test_a_path_can_be_named(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "elsewhere", base_model_name_or_path="")
    assert resolve(f"other={folder}", *places) == Adapter("other", folder, 16, None)


def test_the_bundled_names_are_listed(places: tuple[Path, Path]) -> None:
    assert bundled_names(places[1]) == ["mine", "robust"]


def refuse(wanted: str, places: tuple[Path, Path], *parts: str) -> None:
    with pytest.raises(AdapterError) as refused:
        resolve(wanted, *places)
    for part in parts:
        assert part in str(refused.value)


def test_an_unknown_name_says_where_it_was_looked_for(places: tuple[Path, Path]) -> None:
    refuse("nobody", places, "'nobody'", str(places[0]), "nobody=PATH", "mine, robust")


def test_a_path_that_is_no_folder_is_refused(places: tuple[Path, Path]) -> None:
    refuse("other=/no/such/folder", places, "/no/such/folder")
    refuse("other=", places, "''")


@pytest.mark.parametrize("name", ["", ".hidden", "../mine", "a/b", "a b", "-x", "é", "x" * 65, "mine\n"])
def test_a_name_outside_the_pattern_is_refused(name: str, places: tuple[Path, Path]) -> None:
    refuse(name, places, "not allowed")


@pytest.mark.parametrize("wanted", ["text", "image", "audio", "video", "input=/tmp"])
def test_a_name_by_which_vllm_would_take_over_the_bases_requests_is_refused(
    wanted: str, places: tuple[Path, Path]
) -> None:
    refuse(wanted, places, "not allowed", "from it: give it another")


def test_a_link_that_leads_out_of_the_folder_is_refused(places: tuple[Path, Path], tmp_path: Path) -> None:
    make(tmp_path / "secret")
    (places[0] / "sneaky").symlink_to(tmp_path / "secret")
    refuse("sneaky", places, "leads out of", "sneaky=PATH")


def test_a_folder_without_a_config_is_no_adapter(places: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(f"other={tmp_path / 'empty'}", places, "adapter_config.json", "not a PEFT folder")


def test_a_folder_without_safetensors_is_refused(places: tuple[Path, Path], tmp_path: Path) -> None:
    (make(tmp_path / "pickled") / "adapter_model.safetensors").rename(
        tmp_path / "pickled" / "adapter_model.bin"
    )
    refuse(f"other={tmp_path / 'pickled'}", places, "adapter_model.safetensors")


def test_a_config_that_is_no_json_is_refused(places: tuple[Path, Path]) -> None:
    (places[0] / "mine" / "adapter_config.json").write_text("{", "utf-8")
    refuse("mine", places, "cannot read")


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"use_dora": True}, "use_dora=False"),
        ({"bias": "all"}, "bias='none'"),
        ({"lora_bias": True}, "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "target_modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=True"),
        ({"use_qalora": True}, "use_qalora=False"),
        ({"layer_replication": [[0, 2]]}, "without layer_replication"),
        ({"alora_invocation_tokens": [1]}, "plain LoRA"),
        ({"use_bdlora": {"a": 1}}, "without use_bdlora"),
        ({"peft_type": "IA3"}, "only PEFT's LORA"),
        ({"r": 0}, "export it again"),
        ({"rank_pattern": {"q_proj": "8"}}, "export it again"),
        ({"r": 1024}, "train one below"),
    ],
)
def test_what_vllm_does_not_load_is_refused_with_the_way_out(
    config: dict[str, Any], remedy: str, places: tuple[Path, Path], tmp_path: Path
) -> None:
    refuse(f"other={make(tmp_path / 'odd', **config)}", places, "'other'", remedy)


def test_plain_variants_are_accepted(places: tuple[Path, Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "rs", use_rslora=True, init_lora_weights="gaussian", rank_pattern={"q_proj": 32})
    assert resolve(f"other={folder}", *places).rank == 32


@pytest.mark.parametrize(
    ("module", "beyond"),
    [
        (LANGUAGE, False),
        (TOWER, True),
        (PROJECTOR, True),
        ("model.visual.blocks.0.attn.qkv", True),
        ("model.visual.merger.mlp.0", True),
    ],
)
def test_weights_beyond_the_language_model_are_told_by_their_names(
    module: str, beyond: bool, tmp_path: Path
) -> None:
    adapter_folder(tmp_path / "mine", pair(module))
    assert resolve("mine", tmp_path, tmp_path).tower is beyond


def test_a_name_given_twice_is_refused(places: tuple[Path, Path]) -> None:
    with pytest.raises(AdapterError, match="'mine' is given twice"):
        resolve_all(["mine", "robust", "mine"], *places)


def test_the_rank_is_rounded_up_to_one_that_vllm_allows(places: tuple[Path, Path]) -> None:
    assert max_lora_rank([]) == 1
    assert max_lora_rank(resolve_all(["mine"], *places)) == 8  # its rank is 4
    assert max_lora_rank(resolve_all(["mine", "robust"], *places)) == 16


@given(st.lists(st.integers(1, 512), min_size=1))
def test_the_rounded_rank_holds_every_adapter(ranks: list[int]) -> None:
    chosen = max_lora_rank([Adapter("a", Path(), rank, None) for rank in ranks])
    assert chosen >= max(ranks) and chosen in ALLOWED_RANKS


@given(st.from_regex(NAME, fullmatch=True))
def test_no_allowed_name_is_a_path(name: str) -> None:
    assert Path(name).name == name and name not in {".", ".."}


def with_baseline(folder: Path, baseline: Any) -> Card:
    (folder / "run.json").write_text(json.dumps({"baseline": baseline}), "utf-8")
    return card(Adapter("mine", folder, 16, None))


def test_a_card_holds_rank_fingerprint_and_baseline(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    assert with_baseline(folder, {"flip_ratio": 0.25}) == Card(16, revision(folder), 0.25)
    other = make(tmp_path / "other")
    (other / "adapter_model.safetensors").write_bytes(b"x")
    assert revision(other) != revision(folder) and len(revision(folder)) == 12


def test_a_card_without_a_baseline_has_none(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    assert card(Adapter("mine", folder, 16, None)).baseline_flip_ratio is None
    assert with_baseline(folder, {}).baseline_flip_ratio is None


@pytest.mark.parametrize("ratio", [-0.1, 1.5, "much", True])
def test_a_baseline_that_is_no_share_is_refused(ratio: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is no share: give 0 to 1"):
        with_baseline(make(tmp_path / "mine"), {"flip_ratio": ratio})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", r"cannot read .*run\.json"), ("[1]", "holds no JSON object: write one, or remove")],
)
def test_a_record_that_is_no_object_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    (folder / "run.json").write_text(text, "utf-8")
    with pytest.raises(AdapterError, match=sentence):
        card(Adapter("mine", folder, 16, None))


@pytest.mark.parametrize(
    ("recipe", "known"), [({"name": "my-recipe"}, "my-recipe"), ({"name": "no name\n"}, None), (3, None)]
)
def test_a_card_names_the_recipe_where_a_label_can_hold_it(
    recipe: Any, known: str | None, tmp_path: Path
) -> None:
    folder = make(tmp_path / "mine")
    (folder / "run.json").write_text(json.dumps({"recipe": recipe}), "utf-8")
    assert card(Adapter("mine", folder, 16, None)).recipe == known


def test_the_shipped_adapter_has_a_baseline_above_which_there_is_room_to_alert() -> None:
    """InterferenceAboveBaseline fires ten points above it: it can for whoever serves what we ship."""
    shipped = card(read(ADAPTER, bundled(ADAPTER)))
    assert shipped.baseline_flip_ratio is not None
    assert shipped.baseline_flip_ratio + 0.1 < 1
    assert shipped.recipe == ADAPTER


def test_the_doctors_record_counts_only_for_the_weights_it_was_made_for(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine")
    record_modules(folder, {"renamed": 35})
    assert card(Adapter("mine", folder, 16, None)).modules == {"renamed": 35}
    (folder / "adapter_model.safetensors").write_bytes(b"other")
    assert card(Adapter("mine", folder, 16, None)).modules is None
