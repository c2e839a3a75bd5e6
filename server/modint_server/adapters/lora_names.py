"""A child process that asks the installed vLLM's own code how it reads the names in an adapter.

    python -m modint_server.adapters.lora_names < question.json

The question: {"architectures": [...], "language": the config of the language model inside a multimodal one,
"adapter": [keys], "base": [keys]}. The answer is the last line of the
output: MARK and a JSON object, {"vllm": version, "architecture": name, "adapter": {key: {"module", "side"} |
{"skipped"} | {"refused"}}, "base": {key: the engine's name}, "language": [prefixes], "tower": [prefixes],
"tower_lora": bool, "multimodal": bool, "embeddings": [last names of those that take adapters] or null}, or
{"problem": sentence}.

It is a process of its own because importing vLLM takes seconds, prints, and changes the process. No engine is
started: no weights, no device. Tested with vLLM 0.32; if the inner names of another version have moved, that
is reported as a problem.
"""

import json
import sys
from typing import Any

MARK = "MODINT-LORA-NAMES "


def main() -> None:
    question = json.load(sys.stdin)
    try:
        answer = answered(question)
    except Exception as exc:  # noqa: BLE001 - the process's edge: whatever vLLM's insides do becomes a sentence
        answer = {"problem": f"{type(exc).__name__}: {exc}"}
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def answered(question: dict[str, Any]) -> dict[str, Any]:
    """How vLLM reads every key; raises whatever importing vLLM raises."""
    from vllm import __version__
    from vllm.model_executor.models.registry import ModelRegistry

    name = next((name for name in question["architectures"] if name in ModelRegistry.models), None)
    if name is None:
        return {"problem": f"this vLLM does not know the architecture {question['architectures']}"}
    model: Any = ModelRegistry.models[name].load_model_cls()
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    mapper = mapper.get_rename_mapper() if mapper is not None else None
    skipped = list(getattr(model, "lora_skip_prefixes", None) or ())
    return {
        "vllm": __version__,
        "architecture": name,
        "adapter": {key: _reading(key, mapper, skipped) for key in question["adapter"]},
        "base": {key: mapper.map_name(key) if mapper else key for key in question["base"]},
        "embeddings": _embeddings(model, question["language"]),
        **_places(model),
    }


def _embeddings(model: Any, language: dict[str, Any]) -> list[str] | None:
    """Which embeddings take adapters, as `get_supported_lora_modules` finds them in the model and in the
    language model inside a multimodal one; None if that is not known.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.model_executor.models.registry import ModelRegistry

    models = [model]
    if hasattr(model, "get_mm_mapping"):
        by_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(language.get("model_type"))
        names = [*(language.get("architectures") or ()), *([by_type] if by_type else [])]
        inner = next((name for name in names if name in ModelRegistry.models), None)
        if inner is None:
            return None
        models.append(ModelRegistry.models[inner].load_model_cls())
    return sorted({name for each in models for name in getattr(each, "embedding_modules", None) or {}})


def _reading(key: str, mapper: Any, skipped: list[str]) -> dict[str, Any]:
    """How `LoRAModel.from_local_checkpoint` reads one key."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.utils import is_base_embedding_weights, parse_fine_tuned_lora_name

    if is_base_embedding_weights(key):
        return {"skipped": "weights of the base's own embeddings"}
    if skipped and LoRAModel._should_skip_module(key, skipped):
        return {"skipped": "part of the model that vLLM does not run"}
    try:
        module, is_a = parse_fine_tuned_lora_name(key, mapper)
    except ValueError as exc:
        return {"refused": str(exc)}
    return {"module": module, "side": "A" if is_a else "B"}


def _places(model: Any) -> dict[str, Any]:
    """Where `LoRAModelManager` applies adapters: everywhere, or below the prefixes of a multimodal model."""
    if not hasattr(model, "get_mm_mapping"):
        return {"multimodal": False, "language": [], "tower": [], "tower_lora": False}
    mapping = model.get_mm_mapping(model.__new__(model))  # it reads nothing of the instance
    return {
        "multimodal": True,
        "language": list(mapping.language_model),
        "tower": [*mapping.tower_model, *mapping.connector],
        "tower_lora": bool(getattr(model, "supports_tower_connector_lora", False)),
    }


if __name__ == "__main__":
    main()
