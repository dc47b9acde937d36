"""DETR's box head."""

import torch
from torch import nn
from torch.nn import functional as F


class BoxHead(nn.Module):
    """The three-layer perceptron that predicts boxes (Carion et al. 2020, section 3.2)."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        widths = [hidden_dim, hidden_dim, 4]
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, width) for width in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) decoder outputs to (..., 4): (cx, cy, w, h) in [0, 1]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).sigmoid()
