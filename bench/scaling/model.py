#!/usr/bin/env python3
"""A model of how data-parallel training would scale on GPUs; nothing of it is measured. README.md says what is assumed.

    bench/scaling/model.py      prints the table of README.md
"""
import math

# name: (parameters, images in a process's share of the batch, seconds of forward and backward for them: assumed)
NETWORKS = {"ResNet-50, 224x224": (25_557_032, 256, 0.100), "ResNet-1202, 32x32": (19_334_043, 128, 0.450)}
PER_MACHINE = 8
INSIDE, BETWEEN = 300e9, 50e9  # bytes/s of each GPU to its neighbours in the machine; of its network link
LATENCY_INSIDE, LATENCY_BETWEEN = 3e-6, 10e-6  # seconds of one step of a ring or tree
BUCKETS, BUCKET_LEAST = 8, 262144  # as src/engine/device_sums.c cuts them; bytes
BACKWARD = 2 / 3  # of the step; reductions run beside it


def ring(gpus, bytes_):
    """2 (N - 1) steps, each of bytes / N; the slowest link decides."""
    many = gpus > PER_MACHINE
    rate, latency = (BETWEEN, LATENCY_BETWEEN) if many else (INSIDE, LATENCY_INSIDE)
    return 2 * (gpus - 1) * (latency + bytes_ / gpus / rate)


def tree(gpus, bytes_):
    """Reduce-scatter and all-gather in the machine, a double binary tree between machines on one slice per GPU."""
    machines = max(1, gpus // PER_MACHINE)
    local = min(gpus, PER_MACHINE)
    inside = 2 * (local - 1) * (LATENCY_INSIDE + bytes_ / local / INSIDE)
    if machines == 1:
        return inside
    return inside + 2 * (math.log2(machines) * LATENCY_BETWEEN + bytes_ / local / BETWEEN)


def exposed(gpus, parameters, compute, reduce_one):
    """Seconds of reduction that backward does not hide: buckets become ready evenly over backward, one follows another
    on the wire, and the last is ready at its end."""
    total = 4 * parameters
    count = max(1, min(BUCKETS, math.ceil(total / BUCKET_LEAST)))
    cost = reduce_one(gpus, total / count)
    free = 0.0
    for bucket in range(1, count + 1):
        free = max(free, compute * (1 - BACKWARD) + compute * BACKWARD * bucket / count) + cost
    return free - compute


def main():
    print("| network | gradients | GPUs | ring, exposed | tree, exposed | efficiency (better of the two) |")
    print("|---|---|---|---|---|---|")
    for name, (parameters, images, compute) in NETWORKS.items():
        for gpus in (8, 64, 1024):
            costs = [exposed(gpus, parameters, compute, way) for way in (ring, tree)]
            print(f"| {name} | {4e-6 * parameters:.0f} MB | {gpus} | {1e3 * costs[0]:.2f} ms | {1e3 * costs[1]:.2f} ms | "
                  f"{100 * compute / (compute + min(costs)):.1f} % |")


if __name__ == "__main__":
    main()
