"""ImageNet's ResNets in plain PyTorch, in all variants of this project; made by models.build().

resnet18 and resnet34 have basic blocks, resnet50, 101 and 152 bottlenecks with the stride in the 3x3 conv. `bn` has
the names, shapes and arithmetic of torchvision's models. A block computes ReLU(shortcut + branch); with
inner(z) = ReLU(conv(z + bias_a) + bias_b) for all convs but the last (bias_a of the first alone stands before it):

    bn        branch = BN(conv(... ReLU(BN(conv1 x)))), bn-tau: times tau, a constant
    tau       branch = tau * (conv3(inner2(inner1(x)) + bias3a) + bias3b), tau learnable
    alpha     the bracket of `tau` times alpha_l / L_all; skipinit: times alpha_l; plain: times 1
    fixup     branch = scale * conv3(inner2(inner1(x)) + bias3a) + bias3b

The shortcut is the identity or, where the shape changes, a 1x1 conv (with a batch norm behind it in the BN variants)
of x; of x + bias1a for `fixup`. L in tau is the number of blocks of the longest stage for bottlenecks, else of all.
"""
import math

import torch
from torch import nn

NETWORKS = {  # name: (bottleneck, blocks of each stage)
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
NORM_VARIANTS = ("bn", "bn-tau")


def default_tau(model):
    bottleneck, blocks = NETWORKS[model]
    return 2 / math.sqrt(max(blocks)) if bottleneck else 1 / math.sqrt(sum(blocks))


def scalar(value):
    return nn.Parameter(torch.full((1,), float(value)))


def conv(c_in, c_out, kernel, stride=1):
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


def branch_convs(c_in, width, bottleneck, stride):
    if bottleneck:
        return [conv(c_in, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)]
    return [conv(c_in, width, 3, stride), conv(width, width, 3)]


class NormBlock(nn.Module):
    """A block of `bn` (tau = 1) or `bn-tau`."""

    def __init__(self, c_in, width, bottleneck, stride, tau, bn_shortcut):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        self.tau, self.count = tau, 3 if bottleneck else 2
        for i, layer in enumerate(branch_convs(c_in, width, bottleneck, stride), start=1):
            setattr(self, "conv%d" % i, layer)
            setattr(self, "bn%d" % i, nn.BatchNorm2d(layer.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            norm = [nn.BatchNorm2d(c_out)] if bn_shortcut else []
            self.downsample = nn.Sequential(conv(c_in, c_out, 1, stride), *norm)

    def forward(self, x):
        z = x
        for i in range(1, self.count + 1):
            z = getattr(self, "bn%d" % i)(getattr(self, "conv%d" % i)(z))
            z = self.relu(z) if i < self.count else z
        if self.tau != 1:
            z = self.tau * z
        return self.relu(z + (x if self.downsample is None else self.downsample(x)))


class FreeBlock(nn.Module):
    """A block without normalization: `tau`, `alpha`, `skipinit`, `plain` and `fixup`."""

    def __init__(self, c_in, width, bottleneck, stride, variant, blocks, tau):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        self.variant, self.blocks, self.count = variant, blocks, 3 if bottleneck else 2
        for i, layer in enumerate(branch_convs(c_in, width, bottleneck, stride), start=1):
            setattr(self, "conv%d" % i, layer)
            setattr(self, "bias%da" % i, scalar(0))
            setattr(self, "bias%db" % i, scalar(0))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            projection = conv(c_in, c_out, 1, stride)
            self.downsample = projection if variant == "fixup" else nn.Sequential(projection)
        if variant == "tau":
            self.tau = tau  # a Parameter: one and the same in every block when it is shared
        elif variant == "fixup":
            self.scale = scalar(1)
        elif variant in ("alpha", "skipinit"):
            self.alpha = scalar(1 if variant == "alpha" else 0)

    def forward(self, x):
        biased = z = x + self.bias1a
        for i in range(1, self.count):
            if i > 1:
                z = z + getattr(self, "bias%da" % i)
            z = self.relu(getattr(self, "conv%d" % i)(z) + getattr(self, "bias%db" % i))
        last = "%d" % self.count
        z = getattr(self, "conv" + last)(z + getattr(self, "bias" + last + "a"))
        bias = getattr(self, "bias" + last + "b")
        if self.variant == "fixup":
            z = self.scale * z + bias
        elif self.variant == "tau":
            z = self.tau * (z + bias)
        elif self.variant == "alpha":
            z = (self.alpha / self.blocks) * (z + bias)
        elif self.variant == "skipinit":
            z = self.alpha * (z + bias)
        else:
            z = z + bias
        if self.downsample is None:
            return self.relu(z + x)
        return self.relu(z + self.downsample(biased if self.variant == "fixup" else x))


class ImageNetResNet(nn.Module):
    """Stem, max pool, four stages, global average pool, linear layer."""

    def __init__(self, model, variant, tau, channels, classes, base_width, tau_sharing, bn_shortcut):
        super().__init__()
        bottleneck, depths = NETWORKS[model]
        self.variant, self.blocks, self.bottleneck = variant, sum(depths), bottleneck
        self.default_tau = default_tau(model)
        self.shared_tau = variant == "tau" and tau_sharing == "shared"
        if self.shared_tau:
            self.tau = scalar(tau)
        self.conv1 = conv(channels, base_width, 7, 2)
        if variant in NORM_VARIANTS:
            self.bn1 = nn.BatchNorm2d(base_width)
        if variant == "fixup":
            self.bias1, self.bias2 = scalar(0), scalar(0)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        c_in = base_width
        for stage, depth in enumerate(depths):
            stack, width = [], base_width << stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                if variant in NORM_VARIANTS:
                    stack.append(NormBlock(c_in, width, bottleneck, stride, tau, bn_shortcut))
                else:
                    stack.append(FreeBlock(c_in, width, bottleneck, stride, variant, self.blocks,
                                           self.tau if self.shared_tau else scalar(tau)))
                c_in = 4 * width if bottleneck else width
            setattr(self, "layer%d" % (stage + 1), nn.Sequential(*stack))
        self.fc = nn.Linear(c_in, classes)
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """Convolutions N(0, 2/(k k c_out)); `fixup` as in its paper; BN and scalars as they were constructed."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
        bound = 1 / math.sqrt(self.fc.in_features)
        self.fc.weight.uniform_(-bound, bound)
        self.fc.bias.uniform_(-bound, bound)
        if self.variant != "fixup":
            return
        bound = 1 / math.sqrt(49 * self.conv1.in_channels)
        self.conv1.weight.uniform_(-bound, bound)
        for block in self.modules():
            if isinstance(block, FreeBlock):
                for i in range(1, block.count):
                    getattr(block, "conv%d" % i).weight.mul_(self.blocks ** (-1 / (2 * block.count - 2)))
                getattr(block, "conv%d" % block.count).weight.zero_()
        self.fc.weight.zero_()
        self.fc.bias.zero_()

    def forward(self, x):
        x = self.conv1(x)
        if self.variant in NORM_VARIANTS:
            x = self.bn1(x)
        elif self.variant == "fixup":
            x = x + self.bias1
        x = self.maxpool(self.relu(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = x.mean(dim=(2, 3))
        if self.variant == "fixup":
            x = x + self.bias2
        return self.fc(x)
