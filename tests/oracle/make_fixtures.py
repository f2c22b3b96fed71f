#!/usr/bin/env python3
"""Writes, verifies and checks the oracle fixtures: short trainings of small networks, computed in float64.

    make_fixtures.py            write fixtures/*.safetensors
    make_fixtures.py --verify   compute them again and compare with the files (--only PREFIX: some of them)
    make_fixtures.py --check    compare the PyTorch models with finite differences and their definitions

Needs PyTorch (1.13 or later) and numpy. The contents of a file and the formula behind every starting value are
described in README.md.
"""
import argparse
import json
import math
import os
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench", "peers"))
import models  # noqa: E402  (found through the path above)

STEPS = 5
MOMENTUM = 0.9
SCALAR_LR = 0.1
SAMPLES = 64
FIRST_IMAGE_STREAM = 1000  # parameters count their streams from 0
CANDIDATES = 60            # image streams to choose from, see choose_images
# What float32 arithmetic may lose against float64, so that a float32 engine has room below 1e-4 and 1e-3.
LOSS_MARGIN, GRADIENT_MARGIN, WEIGHT_MARGIN = 1e-5, 5e-5, 5e-5

DEFAULTS = dict(model="resnet8", variant="tau", tau_sharing="shared", bn_shortcut=True, channels=3, height=32,
                width=32, rows=8, base_width=16, lr=0.1, weight_decay=1e-4, samples=SAMPLES)
# ImageNet's networks, narrow, on small images with odd sides, and with smaller digests.
IMAGENET = dict(base_width=8, height=43, width=54, rows=6, lr=0.02, samples=8)
CASES = {
    "bn": dict(variant="bn"),
    "bn-no-shortcut-norm": dict(variant="bn", bn_shortcut=False),
    "bn-21-rows": dict(variant="bn", rows=21),
    "bn-decay": dict(variant="bn", weight_decay=0.05),
    "bn-tau": dict(variant="bn-tau"),
    "tau": dict(),
    "tau-per-block": dict(tau_sharing="per-block"),
    "tau-decay": dict(weight_decay=0.05),
    "tau-5-rows": dict(rows=5),
    "tau-21-rows": dict(rows=21),
    "tau-1x28x28": dict(channels=1, height=28, width=28),
    "tau-2x15x13": dict(channels=2, height=15, width=13),
    "tau-resnet14": dict(model="resnet14"),
    "fixup": dict(variant="fixup"),
    "fixup-resnet14": dict(variant="fixup", model="resnet14", lr=0.01),
    "alpha": dict(variant="alpha"),
    "skipinit": dict(variant="skipinit"),
    "plain": dict(variant="plain"),
    "imagenet-18-bn": dict(IMAGENET, model="resnet18", variant="bn"),
    "imagenet-18-tau": dict(IMAGENET, model="resnet18", variant="tau", tau_sharing="per-block"),
    "imagenet-18-skipinit": dict(IMAGENET, model="resnet18", variant="skipinit"),
    "imagenet-18-bn-tau": dict(IMAGENET, model="resnet18", variant="bn-tau", bn_shortcut=False),
    "imagenet-50-tau": dict(IMAGENET, model="resnet50", variant="tau"),
    "imagenet-50-fixup": dict(IMAGENET, model="resnet50", variant="fixup", rows=5, lr=0.002),
    "imagenet-50-alpha": dict(IMAGENET, model="resnet50", variant="alpha"),
}


# Starting values -------------------------------------------------------------------------------------------------

def splitmix64(state):
    """First output of splitmix64 for each starting state (array of uint64; arithmetic modulo 2^64)."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(stream, count, offset, halfwidth):
    """offset + (2 u - 1) * halfwidth in float32, u the top 24 bits of splitmix64(stream * 2^32 + i) over 2^24."""
    state = np.arange(count, dtype=np.uint64) + np.uint64(stream << 32)
    u = (splitmix64(state) >> np.uint64(40)).astype(np.float32) * np.float32(2.0 ** -24)
    centred = np.float32(2) * u - np.float32(1)
    return np.float32(offset) + centred * np.float32(halfwidth)


def start_range(name, parameter, net):
    """(offset, halfwidth) in double of a parameter's starting values."""
    leaf = name.rsplit(".", 1)[-1]
    if parameter.dim() == 4:
        return 0.0, math.sqrt(3 * 2 / (parameter.size(2) * parameter.size(3) * parameter.size(0)))
    if name.startswith("fc."):
        return 0.0, 1 / math.sqrt(net.fc.in_features)
    if leaf == "tau":
        return net.default_tau, 0.1 * net.default_tau
    if leaf in ("scale", "alpha") or leaf == "weight":  # weight: gamma of a batch norm
        return 1.0, 0.2
    return 0.0, 0.1  # beta and scalar biases


def named_parameters(net):
    """Distinct parameters in byte order of their names: a parameter's place is the number of its stream."""
    return sorted(net.named_parameters(), key=lambda item: item[0].encode())


def set_start(net):
    with torch.no_grad():
        for stream, (name, parameter) in enumerate(named_parameters(net)):
            values = uniform(stream, parameter.numel(), *start_range(name, parameter, net))
            parameter.copy_(torch.from_numpy(values).view_as(parameter))


def batch(case, index, dtype):
    shape = (case["rows"], case["channels"], case["height"], case["width"])
    images = uniform(case["image_stream"] + index, int(np.prod(shape)), 0.0, 1.7).reshape(shape)
    labels = torch.tensor([(row * 7 + index * 3) % 10 for row in range(case["rows"])])
    return torch.from_numpy(images).to(dtype), labels


# The training behind a fixture -----------------------------------------------------------------------------------

def build(case):
    return models.build(model=case["model"], variant=case["variant"], channels=case["channels"],
                        base_width=case["base_width"], tau_sharing=case["tau_sharing"],
                        bn_shortcut=case["bn_shortcut"])


class TooClose(Exception):
    """A ReLU's input came nearer to zero than allowed."""


def watch_kinks(net, closest):
    """Collects, for every ReLU of every training forward pass, min |z| / rms(z) over its input z."""
    distances = []

    def watch(module, inputs):
        z = inputs[0].detach()
        if net.training:
            distances.append(float(z.abs().min() / z.pow(2).mean().sqrt()))
            if distances[-1] < closest:
                raise TooClose()

    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(watch)
    return distances


def train(case, dtype, closest=0.0):
    """Trains STEPS steps on two alternating batches; returns losses, gradients, weights, state, logits as float64."""
    net = build(case)
    set_start(net)
    net.to(dtype).train()
    distances = watch_kinks(net, closest)
    optimizer = torch.optim.SGD(models.parameter_groups(net, case["lr"], SCALAR_LR), lr=case["lr"],
                                momentum=MOMENTUM, weight_decay=case["weight_decay"])
    batches = [batch(case, index, dtype) for index in (0, 1)]
    losses = []
    for step in range(STEPS):
        images, labels = batches[step % 2]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        models.average_tau_gradient(net)
        if step == 0:
            gradients = {name: array(p.grad) for name, p in named_parameters(net)}
        optimizer.step()
        losses.append(loss.item())
    net.eval()
    with torch.no_grad():
        logits = array(net(batches[0][0]))
    return {"losses": np.array(losses), "grad": gradients, "logits": logits, "kink": min(distances),
            "after": {name: array(p) for name, p in named_parameters(net)},
            "state": {name: array(b) for name, b in net.named_buffers() if "running" in name}}


def choose_images(case):
    """Adds the image stream whose training stays farthest from ReLU kinks; returns (case, its training).

    An input of a ReLU within rounding distance of zero has a gradient in float64 and none in float32, or the other
    way round: no engine could agree with such a fixture.
    """
    best, closest = None, 0.0
    for candidate in range(CANDIDATES):
        trial = dict(case, image_stream=FIRST_IMAGE_STREAM + 2 * candidate)
        try:
            result = train(trial, torch.float64, closest)
        except TooClose:
            continue
        best, closest = (trial, result), result["kink"]
    return best


def array(tensor):
    return tensor.detach().double().numpy().copy()


def digest(values, count):
    """[L2 norm, sum, every stride-th element]: enough to recognise a tensor without storing it."""
    flat = values.reshape(-1)
    stride = max(1, flat.size // count)
    samples = flat[::stride][:min(flat.size, count)]
    return np.concatenate([[np.sqrt(np.sum(flat * flat)), np.sum(flat)], samples])


def tensors_of(result, samples):
    tensors = {"losses": result["losses"], "logits": result["logits"]}
    for kind in ("grad", "after"):
        tensors.update({"%s.%s" % (kind, name): digest(v, samples) for name, v in result[kind].items()})
    tensors.update({"state.%s" % name: v for name, v in result["state"].items()})
    return {name: values.astype("<f4") for name, values in tensors.items()}


def metadata_of(case):
    """The case as strings; `tau` is the starting value before the formula is applied, or the constant."""
    tau = "%.17g" % models.default_tau(case["model"])
    values = dict(case, format="taunet-oracle-1", classes=10, steps=STEPS, momentum=MOMENTUM,
                  scalar_lr=SCALAR_LR, tau=tau if case["variant"] in ("tau", "bn-tau") else "")
    if case["samples"] == SAMPLES:
        del values["samples"]
    values["bn_shortcut"] = "yes" if case["bn_shortcut"] else "no"
    return {name: str(values[name]) for name in sorted(values)}


# Files -----------------------------------------------------------------------------------------------------------

def write_safetensors(path, tensors, metadata):
    header, offset = {"__metadata__": metadata}, 0
    for name in sorted(tensors):
        values = tensors[name]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
    os.replace(path + ".tmp", path)


def read_safetensors(path):
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    metadata = header.pop("__metadata__")
    tensors = {name: np.frombuffer(data[slice(*info["data_offsets"])], dtype="<f4").reshape(info["shape"])
               for name, info in header.items()}
    return tensors, metadata


def relative(values, truth):
    return float(np.linalg.norm(values - truth) / max(np.linalg.norm(truth), 1e-30))


def worst(result, truth, kind):
    """Largest relative error over the tensors of a kind, and the tensor."""
    return max(((relative(result[kind][name], truth[kind][name]), name) for name in truth[kind]), default=(0.0, "-"))


def float32_errors(case, truth):
    """Errors of the same training in float32: (loss, gradient, weight, state, logits)."""
    single = train(case, torch.float32)
    loss = float(np.max(np.abs(single["losses"] / truth["losses"] - 1)))
    return (loss, worst(single, truth, "grad"), worst(single, truth, "after"), worst(single, truth, "state"),
            relative(single["logits"], truth["logits"]))


def chosen(prefix):
    return [(name, changes) for name, changes in CASES.items() if name.startswith(prefix)]


def write_all(folder, prefix):
    os.makedirs(folder, exist_ok=True)
    print("%-20s %6s  %-34s  kink     float32 error: loss, gradient, weight, state, logits"
          % ("fixture", "bytes", "losses"))
    for name, changes in chosen(prefix):
        case, truth = choose_images(dict(DEFAULTS, **changes))
        loss, grad, after, state, logits = float32_errors(case, truth)
        if not (loss < LOSS_MARGIN and grad[0] < GRADIENT_MARGIN and after[0] < WEIGHT_MARGIN):
            sys.exit("%s: float32 differs by %.1e (losses), %.1e (gradient of %s), %.1e (%s): lower its lr"
                     % ((name, loss) + grad + after))
        path = os.path.join(folder, name + ".safetensors")
        write_safetensors(path, tensors_of(truth, case["samples"]), metadata_of(case))
        print("%-20s %6d  %-34s  %.0e  %.0e  %.0e (%s)  %.0e (%s)  %.0e  %.0e"
              % ((name, os.path.getsize(path), " ".join("%.4f" % value for value in truth["losses"]), truth["kink"],
                  loss) + grad + after + (state[0], logits)), flush=True)


def verify_all(folder, prefix):
    """Computes every fixture again; float64 rounding may move a stored float32 by a unit in the last place."""
    for name, changes in chosen(prefix):
        stored, metadata = read_safetensors(os.path.join(folder, name + ".safetensors"))
        case = dict(DEFAULTS, image_stream=int(metadata.get("image_stream", FIRST_IMAGE_STREAM)), **changes)
        fresh = tensors_of(train(case, torch.float64), case["samples"])
        if metadata != metadata_of(case) or sorted(stored) != sorted(fresh):
            sys.exit("%s: metadata or tensor names differ: write the fixtures again" % name)
        for key in fresh:
            np.testing.assert_allclose(stored[key], fresh[key], rtol=3e-7, atol=1e-9, err_msg=name + " " + key)
        print("%-20s ok, %d tensors" % (name, len(fresh)))
    extra = {os.path.splitext(file)[0] for file in os.listdir(folder)} - set(CASES)
    if extra:
        sys.exit("%s: files that no case writes: %s" % (folder, ", ".join(sorted(extra))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", action="store_true", help="compare the files with a new computation")
    parser.add_argument("--check", action="store_true", help="check the models themselves; writes nothing")
    parser.add_argument("--only", metavar="PREFIX", default="", help="fixtures whose names begin so")
    parser.add_argument("--out", default=os.path.join(HERE, "fixtures"), help="folder of the fixtures")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if options.check:
        import check_models
        check_models.run()
    elif options.verify:
        verify_all(options.out, options.only)
    else:
        write_all(options.out, options.only)


if __name__ == "__main__":
    main()
