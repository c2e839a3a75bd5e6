"""The vision tower and projector, taught without the language model: which thing, and the words for it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from modint_training.picturebook.augment import SIZE
from modint_training.picturebook.shown import DrawnBatch

PATCH = 16
GRID = SIZE // PATCH
VISUAL_TOKENS = GRID * GRID + 1  # patches and CLIP's class token
WIDTH = 192
CODED = 160  # channels that patches fill at the start; the others are free, and carry positions


def vision_config() -> CLIPVisionConfig:
    """The tower's configuration: 2.8 M parameters, 17 tokens a picture, heads of 64."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=WIDTH // 64,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        attn_implementation="eager",  # for 17 tokens plain matrix products are faster on a CPU
    )


@dataclass(frozen=True)
class NameTokens:
    """The words that visual tokens are drawn to: each thing's name and a comma, over and over.

    vectors: input embeddings of the language model for each token that occurs in a name  # (V, D)
    targets: a thing's sequence as places in `vectors`  # (things, 17), int64
    """

    vectors: Tensor
    targets: Tensor


def name_tokens(tokenizer: Any, names: list[str], embeddings: Tensor) -> NameTokens:
    """The name tokens of things, by a tokenizer and the input embeddings  # (vocabulary, D)"""
    rows = [(tokenizer.encode(f" {name},", add_special_tokens=False) * VISUAL_TOKENS) for name in names]
    ids, places = torch.tensor([row[:VISUAL_TOKENS] for row in rows]).unique(return_inverse=True)
    return NameTokens(embeddings[ids].float(), places)


class Reader(nn.Module):
    """Tower, projector, and a linear head that names the thing and is dropped afterwards."""

    def __init__(self, names: NameTokens) -> None:
        super().__init__()
        things, width = len(names.targets), names.vectors.shape[1]
        self.tower = CLIPVisionModel(vision_config())
        self.linear_1 = nn.Linear(WIDTH, width)
        self.linear_2 = nn.Linear(width, width)
        self.head = nn.Linear(2 * WIDTH, things)
        self.register_buffer("vectors", names.vectors, persistent=False)
        self.register_buffer("targets", names.targets, persistent=False)
        with torch.no_grad():
            self.linear_2.bias.copy_(names.vectors.mean(dim=0))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels from -1 to 1  # (B, 3, 64, 64), to visual tokens  # (B, 17, D), and a logit for each thing,
        by class token and mean patch  # (B, things)"""
        states = self.tower(pixel_values=pixels).last_hidden_state
        tokens = self.linear_2(F.gelu(self.linear_1(states)))
        logits = self.head(torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=-1))
        return tokens.float(), logits.float()

    def word_losses(self, tokens: Tensor, things: Tensor) -> tuple[Tensor, Tensor]:
        """How far visual tokens are from the words for `things`  # (B,): cross-entropy over all name tokens
        with -squared distance as logit, and the squared distance itself; means over tokens."""
        wanted = self.targets[things]
        logits = 2 * tokens @ self.vectors.T - self.vectors.pow(2).sum(dim=-1)
        nearest = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        return nearest, (tokens - self.vectors[wanted]).pow(2).sum(dim=-1).mean()


def inside(tower: nn.Module) -> Any:
    """The module that holds a CLIP tower's embeddings and encoder, whatever transformers wraps around it."""
    return getattr(tower, "vision_model", tower)


def tower_loss(net: Reader, batch: DrawnBatch) -> Tensor:
    """The first stage's loss: which thing, which words, and how near."""
    tokens, logits = net(batch.pixels)
    nearest, distance = net.word_losses(tokens, batch.things)
    named = F.cross_entropy(logits, batch.things, label_smoothing=0.05)
    return named + 0.3 * nearest + 0.01 * distance


def align_loss(net: Reader, batch: DrawnBatch) -> Tensor:
    """The second stage's: visual tokens on top of the words' embeddings, so that the language model reads
    them as words."""
    tokens, _ = net(batch.pixels)
    nearest, distance = net.word_losses(tokens, batch.things)
    return 0.5 * nearest + distance


@torch.no_grad()
def start_well(net: Reader, pixels: Tensor) -> None:
    """Start from principal components of patches, positions as sines, and attention that at first compares
    tokens and hands on their values ("mimetic", Trockman and Kolter 2023, arXiv 2305.09828): narrow
    transformers then learn several times as fast from few pictures. `pixels`  # (N, 3, 64, 64)"""
    tower = inside(net.tower)
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    patches = patches - patches.mean(dim=0)
    _, strengths, axes = torch.linalg.svd(patches.T @ patches / len(patches))
    weight = tower.embeddings.patch_embedding.weight
    weight.normal_(std=0.02)
    scaled = axes[:CODED] / (strengths[:CODED].sqrt()[:, None] + 0.05) * 0.6
    weight[:CODED] = scaled.view(CODED, 3, PATCH, PATCH)
    _place(tower.embeddings.position_embedding.weight)
    for layer in tower.encoder.layers:
        _make_mimetic(layer.self_attn)


def _place(positions: Tensor) -> None:
    """Sines and cosines of row and column in the channels that patches leave free  # (17, 192)"""
    positions.normal_(std=0.02)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    rates = torch.tensor([math.pi / 3, math.pi / 6])
    angles = [axis.flatten()[:, None] * rates for axis in (rows, columns)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)  # (16, 8)
    positions[1:, CODED:] += 0.5 * waves.repeat(1, (WIDTH - CODED) // waves.shape[1])


def _make_mimetic(attention: nn.Module) -> None:
    """Queries and keys whose product is near the identity; values and output near minus the identity."""
    width, heads = WIDTH, WIDTH // 64
    for head in range(heads):
        rows = slice(64 * head, 64 * head + 64)
        noise = torch.randn(width, width) / width**0.5
        left, strengths, right = torch.linalg.svd(0.7 * noise + 0.7 * torch.eye(width))
        root = strengths[:64].sqrt()
        attention.q_proj.weight[rows] = (left[:, :64] * root).T
        attention.k_proj.weight[rows] = right[:64] * root[:, None]
    left, strengths, right = torch.linalg.svd(
        0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width)
    )
    root = strengths.sqrt()
    attention.v_proj.weight.copy_(right * root[:, None])
    attention.out_proj.weight.copy_(left * root)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        part.bias.zero_()
