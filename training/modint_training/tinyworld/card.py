"""The card (`README.md`) of TinyWorld's base model."""

from modint_training.models.card import Run, accuracy_table, mixture_table, origin, sub_task_table


def base_card(run: Run) -> str:
    """The card of a base model trained by `modint-guard train tinyworld-base`."""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {run["recipe"]["name"]}

A LLaVA (CLIP tower, projector, Llama) for the demo world of modint-guard: 40x40 pictures of UCI handwritten
digits and drawn shapes, small arithmetic, look-up and ordering in text, and questions that need both. It is
made to show modality interference honestly, not to be useful: it knows 12 sub-tasks and nothing else.

{origin(run)}

## Training data

Labels follow the picture or the text that ought to decide, never a lie.

{mixture_table(run["recipe"]["mixture"])}
## Test split, greedy first token, transformers

{accuracy_table(run["test"])}
{sub_task_table(run["test"])}
"clean" of a text-heavy item is `no_image`. The figures through vLLM and the gateway, with intervals, are in
`bench/results/tinyworld.md` of the repository.

## Limits

It trusts captions and pictures that lie: that is its purpose. Digits come from scikit-learn's copy of the UCI
set (Alpaydin and Kaynak, CC BY 4.0).
"""
