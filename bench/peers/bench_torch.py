#!/usr/bin/env python3
"""Throughput of PyTorch on the networks of models.py: forward, backward and SGD step on a batch resident in memory.

    bench_torch.py --model resnet20 --variant tau --batch 128 --threads 2 --layout both --seconds 5
    bench_torch.py ... --json       one JSON object a line instead of text
    bench_torch.py ... --serve      for compare.py: after warm-up prints a JSON object, then for each line read from
                                    standard input (a number of seconds) measures that long and prints another

Images per second are the batch over the median time of a step. Compiling and warming up are not timed.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time

MIN_STEPS = 3


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--variant", default="tau")
    parser.add_argument("--depth", type=int, default=1000, help="of fcresnet and feedforward")
    parser.add_argument("--width", type=int, default=128, help="of fcresnet and feedforward")
    parser.add_argument("--input", metavar="CxHxW", help="image (what the network is made for)")
    parser.add_argument("--classes", type=int, help="outputs (what the network is made for)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--layout", choices=("nchw", "channels_last", "both"), default="both")
    parser.add_argument("--compile", choices=("yes", "no"), default="no", help="torch.compile (PyTorch 2 and later)")
    parser.add_argument("--optimizer", choices=("fastest", "loop", "foreach", "fused"), default="fastest",
                        help="implementation of the SGD step (fastest: fused where there is one, else foreach)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a measurement")
    parser.add_argument("--steps", type=int, help="length in steps, instead of --seconds")
    parser.add_argument("--warm-up", type=int, default=3, metavar="STEPS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    for name in ("batch", "threads", "seconds", "steps", "warm_up"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error("--%s: expected a positive number" % name.replace("_", "-"))
    if options.serve and options.layout == "both":
        parser.error("--serve: needs one --layout, nchw or channels_last")
    return options


def make_optimizer(torch, groups, kind, lr):
    """SGD of the CIFAR recipe; the update is the same for every kind, only its speed differs."""
    recipe = dict(lr=lr, momentum=0.9, weight_decay=1e-4)  # a small lr: thousands of steps on one batch stay finite
    for name in ("fused", "foreach") if kind == "fastest" else (kind,):
        try:
            flags = {} if name == "loop" else {name: True}
            return torch.optim.SGD(groups, **recipe, **flags), name
        except (TypeError, RuntimeError):
            if name == kind or name == "foreach":
                raise
    raise AssertionError("unreachable")


class Training:
    """A network, a batch and an optimizer in one memory layout."""

    def __init__(self, torch, models, options, layout):
        torch.manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        connected = options.model in ("fcresnet", "feedforward")
        if connected:
            import fc_models
            self.net = fc_models.build(options.model, options.depth, options.width).train()
            groups = [p for p in self.net.parameters() if p.requires_grad]
            shape, classes, lr = (1, 28, 28), 10, 1e-5
        else:
            shape, classes = models.input_of(options.model)
            lr = 1e-4 if classes == 1000 else 0.01
        if options.input:
            shape = tuple(int(size) for size in options.input.split("x"))
        classes = options.classes or classes
        if not connected:
            net = models.build(options.model, options.variant, channels=shape[0], classes=classes)
            self.net = net.to(memory_format=memory_format).train()
            groups = models.parameter_groups(self.net, lr=lr)
        images = torch.randn(options.batch, *shape)
        self.images = images.contiguous(memory_format=memory_format)
        self.labels = torch.randint(0, classes, (options.batch,))
        self.optimizer, self.optimizer_kind = make_optimizer(torch, groups, options.optimizer, lr)
        self.average_tau_gradient = (lambda net: None) if connected else models.average_tau_gradient

        def loss_of(images, labels):
            return torch.nn.functional.cross_entropy(self.net(images), labels)

        self.loss_of = torch.compile(loss_of) if options.compile == "yes" else loss_of

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(self.images, self.labels)
        loss.backward()
        self.average_tau_gradient(self.net)
        self.optimizer.step()
        return loss

    def measure(self, seconds, steps):
        """Seconds of each step, for `steps` steps or until `seconds` have passed (at least MIN_STEPS)."""
        times, start = [], time.perf_counter()
        while len(times) < steps if steps else len(times) < MIN_STEPS or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            loss = self.step()
            times.append(time.perf_counter() - before)
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is %s after %d steps: the timing means nothing" % (loss.item(), len(times)))
        return times


def describe(torch, options, layout, training, times):
    rates = [options.batch / seconds for seconds in times]
    return {"framework": "PyTorch", "version": torch.__version__, "python": sys.executable, "model": options.model,
            "variant": options.variant, "batch": options.batch, "threads": torch.get_num_threads(), "layout": layout,
            "depth": options.depth, "width": options.width,
            "mode": "compile" if options.compile == "yes" else "eager", "optimizer": training.optimizer_kind,
            "steps": len(times), "images_per_second": statistics.median(rates), "min": min(rates), "max": max(rates)}


def serve(torch, options, training):
    times = training.measure(0, MIN_STEPS)
    print(json.dumps(describe(torch, options, options.layout, training, times)), flush=True)
    for line in sys.stdin:
        times = training.measure(float(line), None)
        print(json.dumps(describe(torch, options, options.layout, training, times)), flush=True)


def main():
    options = parse_options()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when the libraries are loaded
        os.environ[name] = str(options.threads)
    import torch
    import models
    torch.set_num_threads(options.threads)
    if options.compile == "yes" and not hasattr(torch, "compile"):
        sys.exit("bench_torch.py: PyTorch %s has no torch.compile: use --compile no" % torch.__version__)
    for layout in ("nchw", "channels_last") if options.layout == "both" else (options.layout,):
        try:
            training = Training(torch, models, options, layout)
        except ValueError as error:
            sys.exit("bench_torch.py: %s" % error)
        for _ in range(options.warm_up):
            training.step()
        if options.serve:
            return serve(torch, options, training)
        result = describe(torch, options, layout, training, training.measure(options.seconds, options.steps))
        print(json.dumps(result) if options.json else
              "%(model)s %(variant)s batch %(batch)d, PyTorch %(version)s, %(layout)s, %(mode)s, SGD %(optimizer)s, "
              "%(threads)d threads: %(images_per_second).1f images/s (min %(min).1f, max %(max).1f, %(steps)d steps)"
              % result, flush=True)
    return None


if __name__ == "__main__":
    main()
