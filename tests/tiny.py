"""Networks of a few thousand numbers with everything that makes replicas differ if it is done wrong."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.networks.case import Case, cross_entropy


class Convolutional(nn.Module):
    """A convolution with bias before batch norm, dropout, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(6 * 16, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.out(torch.tanh(self.hidden(self.drop(torch.flatten(x, 1)))))


def convolutional() -> Case:
    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 1, 8, 8), torch.randint(4, (batch,))

    return Case(module=Convolutional(), inputs=inputs, loss=cross_entropy, batch=4)


class Attention(nn.Module):
    """One block of attention, and a head that shares its matrix with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)
        self.project = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
        return self.head(self.norm(x + self.drop(self.project(weights @ v))))


def attention() -> Case:
    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        text = torch.randint(11, (batch, tokens + 1))
        return text[:, :-1], text[:, 1:]

    def loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        text, following = inputs
        return functional.cross_entropy(module(text).flatten(0, 1), following.flatten())

    return Case(module=Attention(), inputs=inputs, loss=loss, batch=3, tokens=5, max_tokens=16)


class Forgetful(nn.Module):
    """Leaves its second layer out on the rank that the environment names: a parameter that some rank never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.forgets = "FORGETFUL" in os.environ and os.environ["FORGETFUL"] == os.environ.get("RANK")

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if self.forgets else self.second(self.first(x))


class Stumbling(nn.Module):
    """Raises in its fourth iteration and after."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.device.type != "meta"
        if self.calls > 10:
            raise ArithmeticError("it went\nwrong")
        return self.only(x)


def stumbling() -> Case:
    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4), torch.randint(4, (batch,))

    return Case(module=Stumbling(), inputs=inputs, loss=cross_entropy, batch=4)


def forgetful() -> Case:
    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 4), torch.randint(4, (batch,))

    return Case(module=Forgetful(), inputs=inputs, loss=cross_entropy, batch=4)
