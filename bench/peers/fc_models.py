"""The fully connected networks of the theory in plain PyTorch: peer of the benchmarks (models as in "Stability and
Convergence Theory for Learning ResNet", section 2).

    h_0 = ReLU(A x),  h_l = ReLU(h_{l-1} + tau W_l h_{l-1}) for l = 1..L-1,  h_L = ReLU(W_L h_{L-1}),  y = B h_L

`feedforward` has no skips. A and B stay fixed. Names of parameters are those of this project's checkpoints.
"""
import math

import torch.nn.functional as F
from torch import nn


class FullyConnected(nn.Module):
    def __init__(self, model, depth, width, pixels, classes, tau):
        super().__init__()
        self.residual, self.tau = model == "fcresnet", tau
        self.A = nn.Linear(pixels, width, bias=False)
        self.W = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.B = nn.Linear(width, classes, bias=False)
        for layer in (self.A, *self.W):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / width))
        nn.init.normal_(self.B.weight, 0, math.sqrt(2 / classes))
        self.A.weight.requires_grad_(False)
        self.B.weight.requires_grad_(False)

    def forward(self, images):
        h = F.relu(self.A(images.flatten(1)))
        for layer in self.W[:-1]:
            h = F.relu(h + self.tau * layer(h) if self.residual else layer(h))
        return self.B(F.relu(self.W[-1](h)))


def build(model="fcresnet", depth=1000, width=128, pixels=784, classes=10, tau=None):
    """A freshly initialised network; tau None means 1/sqrt(depth)."""
    if model not in ("fcresnet", "feedforward"):
        raise ValueError("%s: expected fcresnet or feedforward" % model)
    return FullyConnected(model, depth, width, pixels, classes, 1 / math.sqrt(depth) if tau is None else tau)
