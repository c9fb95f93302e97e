"""Networks that a CPU trains within minutes: a perceptron, a small CNN and a small transformer.

They have no dropout, so that a training run on p ranks equals one on p shards in one process.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.networks.case import Case, cross_entropy


def mlp(features: int = 64, hidden: int = 256, depth: int = 3, classes: int = 10) -> Case:
    """Return a perceptron of *depth* hidden layers; with its defaults it takes scikit-learn's digits, flattened."""
    widths = [features] + [hidden] * depth
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    module = nn.Sequential(*layers, nn.Linear(hidden, classes))

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, features), torch.randint(classes, (batch,))

    return Case(module=module, inputs=inputs, loss=cross_entropy, batch=64, description="multi-layer perceptron")


class DigitsCnn(nn.Module):
    """Two convolutions and two linear layers for images of 8 x 8."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        x = functional.max_pool2d(functional.relu(self.conv2(functional.relu(self.conv1(x)))), 2)
        return self.fc2(functional.relu(self.fc1(torch.flatten(x, 1))))  # type: ignore[no-any-return]


def digits_cnn(classes: int = 10) -> Case:
    """Return a small CNN for scikit-learn's digits: grey images of 8 x 8."""

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 1, 8, 8), torch.randint(classes, (batch,))

    return Case(
        module=DigitsCnn(classes),
        inputs=inputs,
        loss=cross_entropy,
        batch=64,
        sample="image",
        description="small CNN for scikit-learn's digits",
    )


class Block(nn.Module):
    """Causal self-attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for (batch, tokens, width)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class CharTransformer(nn.Module):
    """A decoder over characters with learned positions."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, max_tokens: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits (batch, tokens, vocabulary) of the character that follows each one of *text*."""
        x = self.characters(text) + self.positions(torch.arange(text.shape[1], device=text.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def char_transformer(
    vocabulary: int = 128, width: int = 128, depth: int = 4, heads: int = 4, max_tokens: int = 256
) -> Case:
    """Return a small decoder that learns to continue text, one token a character (ASCII)."""

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        text = torch.randint(vocabulary, (batch, tokens + 1))
        return text[:, :-1], text[:, 1:]

    def loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        text, following = inputs
        return functional.cross_entropy(module(text).flatten(0, 1), following.flatten())

    return Case(
        module=CharTransformer(vocabulary, width, depth, heads, max_tokens),
        inputs=inputs,
        loss=loss,
        batch=32,
        sample="sequence",
        tokens=min(128, max_tokens),
        max_tokens=max_tokens,
        description="small causal transformer over characters",
    )
