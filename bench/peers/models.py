"""The ResNets of this project in plain PyTorch: oracle of the tests and peer of the benchmarks. Those for ImageNet
are in imagenet_models.py, CIFAR's here.

    net = build("resnet20", "tau")
    optimizer = torch.optim.SGD(parameter_groups(net, lr=0.1), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loss = cross_entropy(net(images), labels); loss.backward(); average_tau_gradient(net); optimizer.step()

Images are [N, channels, H, W] of any size. L_all is the number of residual blocks. A block computes
ReLU(shortcut + branch), with (models as in "Stability and Convergence Theory for Learning ResNet", section 4 and its
official code; He et al. 2016; Fixup, Zhang, Dauphin, Ma 2019; SkipInit, De and Smith 2020):

    bn        branch = BN2(conv2(ReLU(BN1(conv1 x))))
    bn-tau    branch = tau * (the same), tau a constant, 1/sqrt(L_all)
    tau       branch = tau * (conv2(ReLU(conv1(x + bias1a) + bias1b) + bias2a) + bias2b), tau learnable
    alpha     the bracket of `tau` times alpha_l / L_all, alpha_l learnable, from 1
    skipinit  the bracket of `tau` times alpha_l, from 0
    plain     the bracket of `tau` times 1
    fixup     branch = scale * conv2(ReLU(conv1(x + bias1a) + bias1b) + bias2a) + bias2b

The shortcut is the identity. At a stage change it is every second row and column (then a batch norm of its own in
the BN variants, unless bn_shortcut is false), with zero channels appended; `fixup` alone sends x + bias1a there.

Runs with PyTorch 1.13 and later.
"""
import math
import os
import re
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import imagenet_models  # noqa: E402  (found through the path above)

VARIANTS = ("bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain")
NORM_VARIANTS = ("bn", "bn-tau")
SCALAR_NAMES = ("tau", "scale", "alpha", "bias1", "bias2", "bias1a", "bias1b", "bias2a", "bias2b", "bias3a", "bias3b")


def conv3x3(c_in, c_out, stride=1):
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)


def scalar(value):
    return nn.Parameter(torch.full((1,), float(value)))


def append_zeros(x, channels):
    """x with zero channels appended until it has `channels` of them."""
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.size(1)))


class Subsample(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::2]


class NormBlock(nn.Module):
    """A block of `bn` (tau = 1) or `bn-tau`."""

    def __init__(self, c_in, c_out, tau, bn_shortcut):
        super().__init__()
        self.stage_change = c_in != c_out
        self.c_out, self.tau = c_out, tau
        self.conv1 = conv3x3(c_in, c_out, 2 if self.stage_change else 1)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        if self.stage_change:
            self.downsample = nn.Sequential(Subsample(), *([nn.BatchNorm2d(c_in)] if bn_shortcut else []))

    def forward(self, x):
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        if self.tau != 1:
            branch = self.tau * branch
        shortcut = append_zeros(self.downsample(x), self.c_out) if self.stage_change else x
        return self.relu(shortcut + branch)


class FreeBlock(nn.Module):
    """A block without normalization: `tau`, `alpha`, `skipinit`, `plain` and `fixup`."""

    def __init__(self, c_in, c_out, variant, blocks, tau):
        super().__init__()
        self.stage_change = c_in != c_out
        self.c_out, self.variant, self.blocks = c_out, variant, blocks
        self.conv1 = conv3x3(c_in, c_out, 2 if self.stage_change else 1)
        self.conv2 = conv3x3(c_out, c_out)
        self.relu = nn.ReLU(inplace=True)
        self.bias1a, self.bias1b = scalar(0), scalar(0)
        self.bias2a, self.bias2b = scalar(0), scalar(0)
        self.downsample = Subsample() if self.stage_change else nn.Identity()
        if variant == "tau":
            self.tau = tau  # a Parameter: one and the same in every block when it is shared
        elif variant == "fixup":
            self.scale = scalar(1)
        elif variant in ("alpha", "skipinit"):
            self.alpha = scalar(1 if variant == "alpha" else 0)

    def branch(self, biased):
        z = self.relu(self.conv1(biased) + self.bias1b)
        z = self.conv2(z + self.bias2a)
        if self.variant == "fixup":
            return self.scale * z + self.bias2b
        z = z + self.bias2b
        if self.variant == "tau":
            return self.tau * z
        if self.variant == "alpha":
            return (self.alpha / self.blocks) * z
        if self.variant == "skipinit":
            return self.alpha * z
        return z

    def forward(self, x):
        biased = x + self.bias1a
        shortcut = x
        if self.stage_change:
            source = biased if self.variant == "fixup" else x
            shortcut = append_zeros(self.downsample(source), self.c_out)
        return self.relu(shortcut + self.branch(biased))


class CifarResNet(nn.Module):
    """Stem, three stages of n blocks, global average pool, linear layer. Made by build()."""

    def __init__(self, n, variant, tau, channels, classes, base_width, tau_sharing, bn_shortcut):
        super().__init__()
        self.variant, self.blocks = variant, 3 * n
        self.default_tau = 1 / math.sqrt(3 * n)
        self.shared_tau = variant == "tau" and tau_sharing == "shared"
        if self.shared_tau:
            self.tau = scalar(tau)
        self.conv1 = conv3x3(channels, base_width)
        self.relu = nn.ReLU(inplace=True)
        if variant in NORM_VARIANTS:
            self.bn1 = nn.BatchNorm2d(base_width)
        if variant == "fixup":
            self.bias1, self.bias2 = scalar(0), scalar(0)
        c_in = base_width
        for stage, c_out in enumerate((base_width, 2 * base_width, 4 * base_width), start=1):
            stack = []
            for _ in range(n):
                if variant in NORM_VARIANTS:
                    stack.append(NormBlock(c_in, c_out, tau, bn_shortcut))
                else:
                    stack.append(FreeBlock(c_in, c_out, variant, self.blocks,
                                           self.tau if self.shared_tau else scalar(tau)))
                c_in = c_out
            setattr(self, "layer%d" % stage, nn.Sequential(*stack))
        self.fc = nn.Linear(c_in, classes)
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """Convolutions N(0, 2/(k k c_out)); `fixup` as in its paper; BN and scalars as they were constructed."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, math.sqrt(2 / (9 * module.out_channels)))
        bound = 1 / math.sqrt(self.fc.in_features)
        self.fc.weight.uniform_(-bound, bound)
        self.fc.bias.uniform_(-bound, bound)
        if self.variant != "fixup":
            return
        bound = 1 / math.sqrt(9 * self.conv1.in_channels)
        self.conv1.weight.uniform_(-bound, bound)
        for module in self.modules():
            if isinstance(module, FreeBlock):
                module.conv1.weight.mul_(self.blocks ** -0.5)
                module.conv2.weight.zero_()
        self.fc.weight.zero_()
        self.fc.bias.zero_()

    def stem(self, x):
        x = self.conv1(x)
        if self.variant in NORM_VARIANTS:
            x = self.bn1(x)
        elif self.variant == "fixup":
            x = x + self.bias1
        return self.relu(x)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        x = x.mean(dim=(2, 3))
        if self.variant == "fixup":
            x = x + self.bias2
        return self.fc(x)


def depth_of(model):
    """n of "resnet<6n+2>"; 50 and 152 are ImageNet's."""
    match = re.fullmatch(r"resnet(\d+)", model)
    depth = int(match.group(1)) if match else 0
    if depth < 8 or depth % 6 != 2:
        raise ValueError("%s: expected resnet<6n+2> with n >= 1, such as resnet20" % model)
    return (depth - 2) // 6


def default_tau(model):
    """What tau is, or starts at, in `tau` and `bn-tau` unless something else is asked for."""
    if model in imagenet_models.NETWORKS:
        return imagenet_models.default_tau(model)
    return 1 / math.sqrt(3 * depth_of(model))


def input_of(model):
    """(channels, height, width), classes of the data a network is made for."""
    return ((3, 224, 224), 1000) if model in imagenet_models.NETWORKS else ((3, 32, 32), 10)


def build(model="resnet20", variant="tau", tau=None, channels=3, classes=10, base_width=None, tau_sharing="shared",
          bn_shortcut=True):
    """A freshly initialised network. `tau` is a number: the constant of `bn-tau`, the initial value of `tau`;
    None means default_tau. tau_sharing ("shared", "per-block") concerns `tau`, bn_shortcut the BN variants.
    base_width is 16 unless given, 64 for ImageNet's networks."""
    imagenet = model in imagenet_models.NETWORKS
    if not imagenet:
        depth_of(model)
    if variant not in VARIANTS:
        raise ValueError("%s: expected one of %s" % (variant, ", ".join(VARIANTS)))
    if tau_sharing not in ("shared", "per-block"):
        raise ValueError("tau_sharing %s: expected shared or per-block" % tau_sharing)
    if variant in ("tau", "bn-tau"):
        tau = default_tau(model) if tau is None else float(tau)
    elif tau is not None:
        raise ValueError("tau is given, but %s has none: use tau or bn-tau" % variant)
    else:
        tau = 1.0
    if imagenet:
        return imagenet_models.ImageNetResNet(model, variant, tau, channels, classes, base_width or 64, tau_sharing,
                                              bn_shortcut)
    return CifarResNet(depth_of(model), variant, tau, channels, classes, base_width or 16, tau_sharing, bn_shortcut)


def is_scalar(name):
    """Whether the parameter belongs to the optimizer group with the smaller learning rate."""
    return name.rsplit(".", 1)[-1] in SCALAR_NAMES


def parameter_groups(net, lr, scalar_lr=0.1):
    """Optimizer groups: weights (BN and fc.bias included) at lr, scalars at lr * scalar_lr."""
    weights = [p for name, p in net.named_parameters() if not is_scalar(name)]
    scalars = [p for name, p in net.named_parameters() if is_scalar(name)]
    groups = [{"params": weights, "lr": lr}]
    return groups + [{"params": scalars, "lr": lr * scalar_lr}] if scalars else groups


@torch.no_grad()
def average_tau_gradient(net):
    """Call between backward and step: the shared tau moves by the mean of its gradient over the blocks."""
    if net.shared_tau:
        net.tau.grad.div_(net.blocks)
