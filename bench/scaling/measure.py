#!/usr/bin/env python3
"""How much faster two processes train than one, beside what the machine itself gives to two processes.

    bench/scaling/measure.py [--repeat N] [--model M] [--variant V] [--batch B] [--steps S]

Alternates, N times: one process with one thread; two processes with one thread each, training together; two that train
independently at the same time, each half the batch; and the ceiling of fused multiply-adds of one process and of two
independent ones at once. The machine's cores may share caches, power and other jobs: the ratios of independent processes
say what scaling could be. Prints medians with ranges.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TAUNET", str(ROOT / "build/taunet"))
ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def start(options, ranks, batch, out):
    launch = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)] if ranks > 1 else []
    return subprocess.Popen([*launch, PROGRAM, "train", "--model", options.model, "--variant", options.variant, "--data",
                             f"synthetic:3x32x32:10:{batch * 4}", "--batch", str(batch), "--threads", "1", "--steps",
                             str(options.steps), "--limit-batches", "4", "--eval-every", "1000", "--lr", "0.001",
                             "--save-every", "1000", "--log-every", "1", "--out", str(out), "--overwrite"],
                            stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def train(options, ranks, copies, folder):
    """Median images/s of the steps behind the first five, summed over independent runs that share the batch, and the
    share of a step that the ranks of a run spend waiting for each other."""
    batch, total, wait = options.batch // copies, 0, 0
    outs = [pathlib.Path(folder) / f"run{ranks}-{copy}" for copy in range(copies)]
    running = [start(options, ranks, batch, out) for out in outs]
    if any(process.wait() for process in running):
        raise SystemExit("a training failed")
    for out in outs:
        steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if '"event":"step"' in line]
        steps = [step for step in steps if step["step"] > 5]
        speed = statistics.median(step["images_per_second"] for step in steps)
        total += speed
        wait = statistics.median(step.get("comm_wait", 0) for step in steps) * speed / batch
    return total, wait


def peaks(count):
    """GFLOP/s of `count` independent processes at the same time, summed."""
    command = [PROGRAM, "bench", "--model", "resnet8", "--batch", "16", "--steps", "3", "--threads", "1", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    return sum(json.loads(process.communicate()[0])["peak_gflops"] for process in running)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--variant", default="tau")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    one, two, apart, waits, ceiling = [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="taunet-scaling-") as folder:
        for _ in range(options.repeat):
            one.append(train(options, 1, 1, folder)[0])
            speed, wait = train(options, 2, 1, folder)
            two.append(speed)
            waits.append(wait)
            apart.append(train(options, 1, 2, folder)[0])
            ceiling.append(peaks(2) / peaks(1))
    scaling = [b / a for a, b in zip(one, two)]
    print(f"{options.model} {options.variant}, batch {options.batch}, median of {options.repeat} (range)")
    rows = (("1 process x 1 thread, images/s", one, 1),
            ("2 processes x 1 thread, images/s", two, 1),
            ("2 independent trainings, images/s", apart, 1),
            ("scaling of training", scaling, 3),
            ("scaling of the FMA ceiling", ceiling, 3),
            ("training / ceiling", [s / c for s, c in zip(scaling, ceiling)], 3),
            ("training / independent trainings", [b / a for a, b in zip(apart, two)], 3),
            ("share of a step spent waiting", waits, 3))
    for name, values, digits in rows:
        print(f"{name:34s} {statistics.median(values):8.{digits}f}  ({min(values):.{digits}f} to {max(values):.{digits}f})")


if __name__ == "__main__":
    main()
