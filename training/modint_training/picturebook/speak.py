"""The language model in the loop: LoRA on its upper layers, while tower and projector stay as they are."""

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

from modint_training.method.labels import IGNORED
from modint_training.picturebook.pages import PageBatch, page_mask, turn_losses

LINEAR = "(self_attn.(q|k|v|o)_proj|mlp.(gate|up|down)_proj)"
SCALE = 2.0  # alpha / rank


class Speaker(nn.Module):
    """Tower, projector and a language model with LoRA on the layers from `first` on. Only the LoRA is trained
    and saved."""

    def __init__(
        self, reader: nn.Module, language: nn.Module, *, first: int, rank: int, image_token: int
    ) -> None:
        super().__init__()
        self.reader = reader.requires_grad_(False)
        self.language = language.requires_grad_(False)
        self.image_token = image_token
        layers = "|".join(str(layer) for layer in range(first, len(language.layers)))
        targets = rf"layers\.({layers})\.{LINEAR}"
        config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=targets, lora_dropout=0.0)
        inject_adapter_in_model(config, language)

    def forward(self, batch: PageBatch) -> Tensor:
        """Logits at the tokens before each answer token  # (N, vocabulary)"""
        words = self.language.embed_tokens(batch.input_ids)
        if len(batch.pixels):
            visual, _ = self.reader(batch.pixels)
            places = (batch.input_ids == self.image_token)[..., None].expand_as(words)
            words = words.masked_scatter(places, visual.to(words.dtype))
        states = self.language(
            inputs_embeds=words,
            attention_mask=page_mask(batch.pages, batch.segments).to(words.dtype),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        return F.linear(states[_before_answers(batch.labels)], self.language.embed_tokens.weight)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The LoRA alone: the frozen language model is fetched, not saved."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the LoRA; the frozen language model, which is not in a checkpoint, is not missed."""
        loaded = super().load_state_dict(state_dict, strict=False, assign=assign)
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        loaded.missing_keys[:] = [name for name in loaded.missing_keys if name in trained]
        return loaded


def _before_answers(labels: Tensor) -> Tensor:
    """The tokens whose successor is an answer token  # (B, L), bool. No turn begins with its answer."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


def speak_loss(net: Speaker, batch: PageBatch) -> Tensor:
    """Cross-entropy of answer tokens, a mean over questions of each question's mean."""
    logits = net(batch).float()
    wanted = batch.labels != IGNORED
    rows = wanted.nonzero()[:, 0]
    losses = F.cross_entropy(logits, batch.labels[wanted], reduction="none")
    return turn_losses(losses, batch.segments[wanted], rows)


def lora_weights(net: Speaker) -> dict[str, Tensor]:
    """The LoRA's factors by layer name: `layers.20.mlp.up_proj.lora_A` and `.lora_B`."""
    return {
        name.removeprefix("language.").replace(".default.weight", ""): value.detach()
        for name, value in net.named_parameters()
        if value.requires_grad
    }
