#!/usr/bin/env python3
"""Writes what torchvision's own ResNets answer, as fixtures for evaluation: torchvision-MODEL.safetensors.

    make_torchvision.py            write torchvision/*.safetensors
    make_torchvision.py --check    compare the models of bench/peers with torchvision's as well; writes nothing

Needs PyTorch and torchvision. Every entry of the state dict but num_batches_tracked is drawn as README.md says: its
stream is its place among all names in byte order, running means have offset 0 and halfwidth 0.2, running variances
1 and 0.5. num_batches_tracked is the stream's number. Images: stream 1000, halfwidth 1.7. A file holds the float64
network's logits, and in its metadata the list of entries as "name shape" lines.
"""
import argparse
import os

import torch
import torchvision

import make_fixtures as fixtures

SHAPE = (2, 3, 75, 64)  # odd sizes on the way through the network
NAMES = ("resnet18", "resnet50")
STREAM = 1000


class Net:
    """What start_range wants to know of a network that has no tau."""

    def __init__(self, net):
        self.fc = net.fc


def entries_of(net):
    return sorted(net.state_dict().items(), key=lambda item: item[0].encode())


@torch.no_grad()
def set_state(net):
    for stream, (name, values) in enumerate(entries_of(net)):
        if name.endswith("num_batches_tracked"):
            values.fill_(stream)
            continue
        start = fixtures.start_range(name, values, Net(net))
        if name.endswith("running_mean"):
            start = (0.0, 0.2)
        elif name.endswith("running_var"):
            start = (1.0, 0.5)
        values.copy_(torch.from_numpy(fixtures.uniform(stream, values.numel(), *start)).view_as(values))
    return net


@torch.no_grad()
def logits_of(net, dtype):
    images = fixtures.uniform(STREAM, 2 * 3 * SHAPE[2] * SHAPE[3], 0.0, 1.7).reshape(SHAPE)
    return fixtures.array(net.to(dtype).eval()(torch.from_numpy(images).to(dtype)))


def write(name, folder):
    net = set_state(torchvision.models.get_model(name))
    listing = "\n".join("%s %s" % (entry, list(values.shape)) for entry, values in entries_of(net))
    single, double = logits_of(net, torch.float32), logits_of(net, torch.float64)
    path = os.path.join(folder, name + ".safetensors")
    fixtures.write_safetensors(path, {"logits": double.astype("<f4")},
                               {"format": "taunet-torchvision-1", "model": name, "entries": listing,
                                "height": str(SHAPE[2]), "width": str(SHAPE[3]), "image_stream": str(STREAM)})
    print("%-10s %6d bytes, %d entries, norm of logits %.3g, float32 differs by %.1e"
          % (name, os.path.getsize(path), len(listing.split("\n")), (double ** 2).sum() ** 0.5,
             fixtures.relative(single, double)))


def check(name):
    """The models of bench/peers load torchvision's state dict and answer the same, training steps included."""
    theirs = set_state(torchvision.models.get_model(name)).double()
    ours = fixtures.models.build(name, "bn", classes=1000).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(logits_of(ours, torch.float64), logits_of(theirs, torch.float64))
    images, labels = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.tensor([3, 7])
    for net in (ours.train(), theirs.train()):
        torch.nn.functional.cross_entropy(net(images), labels).backward()
    for (one, a), (_, b) in zip(entries_of(ours), entries_of(theirs)):
        torch.testing.assert_close(a, b, msg=one)
    for (one, a), (_, b) in zip(fixtures.named_parameters(ours), fixtures.named_parameters(theirs)):
        torch.testing.assert_close(a.grad, b.grad, msg=one)
    print("%-10s ok" % name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    folder = os.path.join(fixtures.HERE, "torchvision")
    os.makedirs(folder, exist_ok=True)
    for name in torchvision.models.list_models(include="resnet[0-9]*") if options.check else NAMES:
        check(name) if options.check else write(name, folder)


if __name__ == "__main__":
    main()
