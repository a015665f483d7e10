"""Small modules that the tests export."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Two convolutions with batch norms (of equal initial statistics), dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.more(self.stem(x)).mean((2, 3))))


class Several(nn.Module):
    """Several inputs, one unused and one of no tensor; a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, pair: Sequence[Tensor], unused: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Any:
        y = self.fc(x) * scale + pair[0] - pair[1]
        if mask is not None:
            y = y * mask
        return {"sum": y.sum(-1), "parts": (y, y + 1)}


class Tied(nn.Module):
    """One matrix as embedding and as head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(ids)))


class Baked(nn.Module):
    """A size that becomes a Python number in a trace."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.shape[0])


class Random(nn.Module):
    """Dropout that evaluation mode does not end."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Stubborn(nn.Module):
    """A batch norm that stays in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> "Stubborn":
        super().train(mode)
        self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Broken(nn.Module):
    """Two layers that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Halves(nn.Module):
    """Two graphs, with a break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.relu(self.a(x))
        torch._dynamo.graph_break()
        return self.b(y), y, x
