#!/usr/bin/env python3
"""Throughput of training steps on a CUDA device, as a share of what the device can do, beside PyTorch.

    gpu_bench.py --out DIR                        all networks and precisions on --device cuda
    gpu_bench.py --out DIR --device cpu --dry-run the same with small batches and few steps, to try the script

Each row alternates taunet with PyTorch where a PyTorch for the device can be imported (one long-lived process, the
same network, batch and precision), so that clocks and temperature drift for both. Leaves gpu-bench.md and
gpu-bench.json in DIR, and prints the table. The exit status is 1 when something could not be measured.

Two shares are given: of cuBLAS's rate for large matrices in the same precision, and of the rate of copies within
device memory. The second takes the least traffic a step can have without fusing layers: every activation is written
and read once forward, and once more read backward, its gradient written and read once.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
import compare  # noqa: E402
import gpu_device  # noqa: E402

NETWORKS = ["resnet20:tau:1024", "resnet20:bn:1024", "resnet110:tau:1024", "resnet110:bn:1024", "resnet50:tau:256",
            "resnet50:bn:256"]
PRECISIONS = ["fp32", "tf32", "bf16"]
TOUCHES = 5  # of each activation, see above
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command):
    """The output of a program, or compare.Failed with its last words."""
    try:
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise compare.Failed("%s: %s" % (command[0], error.strerror))
    if done.returncode != 0:
        raise compare.Failed("%s: exit status %d: %s" % (" ".join(map(str, command)), done.returncode,
                                                         compare.last_words(done.stderr.decode(errors="replace"))))
    return done.stdout.decode(errors="replace")


def activation_values(network, options):
    """Values that all layers of a network put out for one image, from the table of `taunet info`."""
    text = run([options.taunet, "info", *compare.model_options(network)])
    total = 0
    for line in text.splitlines():
        row = re.match(r"\s*(\d+)  \S+ +(\S+) +(\d+)x(\d+)x(\d+) ", line)
        if row and row.group(2) != "loss":
            times, _, *sizes = row.groups()
            total += int(times) * int(sizes[0]) * int(sizes[1]) * int(sizes[2])
    if not total:
        raise compare.Failed("%s info lists no layers of %s" % (options.taunet, network[0]))
    return total


def device_peak(options):
    """What bench/device_peak measured, or None on the CPU."""
    if not options.peak:
        return None
    number = options.device.partition(":")[2] or "0"
    return json.loads(run([options.peak, number, *options.peak_sizes.split()]))


def pythons_for(options):
    """Interpreters with a PyTorch that can use the device."""
    found = []
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    for path, version, compiles in compare.find_pythons(options):
        if options.device != "cpu" and subprocess.run([path, "-c", code], stderr=subprocess.DEVNULL).returncode != 0:
            say("%s: PyTorch %s without CUDA: left out" % (path, version))
            continue
        found.append((path, version, compiles))
    return found


def bench_once(network, precision, batch, steps, options):
    command = [options.taunet, "bench", *compare.model_options(network), "--batch", batch, "--steps", steps,
               "--device", options.device, "--precision", precision, "--json"]
    result = json.loads(run(command))
    if not result["images_per_second"] > 0:
        raise compare.Failed("%s: images_per_second is not positive" % " ".join(map(str, command)))
    return result


def steps_for(network, precision, batch, options):
    """How many steps fill a round."""
    if options.dry_run:
        return 2
    rate = bench_once(network, precision, batch, 5, options)["images_per_second"]
    return max(5, round(options.seconds * rate / batch))


def measure(network, precision, batch, python, options):
    """A row: rates of taunet and, in turn, of a peer (or None)."""
    row = {"network": ":".join(network), "precision": precision, "batch": batch, "rates": [], "peer": []}
    steps = steps_for(network, precision, batch, options)
    peer_options = argparse.Namespace(batch=batch, threads=os.cpu_count() or 1,
                                      peer_options=["--device", options.device, "--precision", precision])
    peer = compare.Peer(python[0], network, "channels_last", options.mode, peer_options) if python else None
    try:
        if peer:
            peer.__enter__()
            row["torch"] = peer.answer()["version"]
        for _ in range(options.rounds):
            if peer:
                row["peer"].append(peer.measure(options.seconds)["images_per_second"])
            row["taunet"] = bench_once(network, precision, batch, steps, options)
            row["rates"].append(row["taunet"]["images_per_second"])
    finally:
        if peer:
            peer.__exit__()
    return row


def add_shares(row, values, peak):
    """Shares of the device's peaks."""
    rate = row["images_per_second"] = statistics.median(row["rates"])
    if row["peer"]:
        row["peer_images_per_second"] = statistics.median(row["peer"])
        row["ratio"] = statistics.median(own / other for own, other in zip(row["rates"], row["peer"]))
    if peak:
        flops = row["taunet"]["gflops"] * 1e9 / row["taunet"]["images_per_second"] * rate
        row["matmul_share"] = flops / peak["matmul_flops"][row["precision"]]
        row["copy_share"] = TOUCHES * values * BYTES[row["precision"]] * rate / peak["copy_bytes_per_second"]
    elif "peak_fraction" in row["taunet"]:
        row["matmul_share"] = row["taunet"]["peak_fraction"]
    return row


def number(row, key, form):
    return form % row[key] if key in row else "-"


def table(rows):
    lines = ["| network | batch | precision | images/s | of matmul peak | of copy bandwidth | PyTorch images/s | ratio |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        head = "| %(network)s | %(batch)d | %(precision)s | " % row
        if "failed" in row:
            lines.append(head + "failed: %s | | | | |" % row["failed"].replace("|", "/"))
            continue
        lines.append(head + " | ".join([number(row, "images_per_second", "%.0f"), number(row, "matmul_share", "%.3f"),
                                        number(row, "copy_share", "%.3f"),
                                        number(row, "peer_images_per_second", "%.0f"), number(row, "ratio", "%.2f")])
                     + " |")
    return lines


def heading(options, peak, python):
    lines = ["# Throughput on %s" % (peak["device"] if peak else options.device), "",
             "%s, %s%s." % (datetime.date.today().isoformat(), platform.platform(), ", dry run: the figures mean nothing"
                            if options.dry_run else "")]
    if peak:
        lines.append("Copies reach %.0f GB/s (read and written); matrix products of %d x %d: %s." % (
            peak["copy_bytes_per_second"] * 1e-9, peak["matrix_size"], peak["matrix_size"],
            ", ".join("%s %.1f TFLOP/s" % (name, rate * 1e-12) for name, rate in peak["matmul_flops"].items())))
    lines.append("PyTorch %s, %s, channels_last." % (python[1], options.mode) if python else
                 "No PyTorch for this device: taunet alone.")
    return lines + [""]


def bench_all(options):
    peak, rows = device_peak(options), []
    pythons = pythons_for(options)
    python = pythons[-1] if pythons else None
    for name in options.network:
        *network, batch = name.split(":")
        network, batch = tuple(network), 8 if options.dry_run else int(batch)
        for precision in options.precision:
            say("%s %s" % (name, precision))
            try:
                values = activation_values(network, options)
                row = add_shares(measure(network, precision, batch, python, options), values, peak)
            except (compare.Failed, ValueError, KeyError) as error:
                row = {"network": ":".join(network), "precision": precision, "batch": batch, "failed": str(error)}
            rows.append(row)
    return peak, python, rows


def write(options, peak, python, rows):
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(heading(options, peak, python) + table(rows)) + "\n"
    report = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "device": options.device,
              "platform": platform.platform(), "dry_run": options.dry_run, "peak": peak,
              "torch": python[1] if python else None, "rows": rows}
    (out / "gpu-bench.md").write_text(text)
    (out / "gpu-bench.json").write_text(json.dumps(report, indent=1) + "\n")
    print(text, end="")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--taunet", default="build/taunet")
    parser.add_argument("--peak", default="build/bench/device_peak", help="the program device_peak; not used for cpu")
    parser.add_argument("--peak-sizes", default="", help="its further arguments")
    parser.add_argument("--network", action="append", metavar="MODEL:VARIANT:BATCH", help=", ".join(NETWORKS))
    parser.add_argument("--precision", type=lambda text: text.split(","), help="fp32,tf32,bf16 (cpu: fp32)")
    parser.add_argument("--python", action="append", default=[], help="another Python with PyTorch")
    parser.add_argument("--mode", choices=("eager", "compile"), default="eager", help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement")
    parser.add_argument("--dry-run", action="store_true", help="batches of 8, two steps: tries the script")
    options = parser.parse_args()
    options.network = options.network or NETWORKS
    options.precision = options.precision or (["fp32"] if options.device == "cpu" else PRECISIONS)
    if options.device == "cpu":
        options.peak = None
    if options.dry_run:
        options.rounds, options.seconds = 1, 0.1
    if not set(options.precision) <= set(PRECISIONS):
        parser.error("--precision: expected some of %s" % ",".join(PRECISIONS))
    if any(not re.fullmatch(r"\w+:[\w-]+:[1-9]\d*", name) for name in options.network):
        parser.error("--network: expected MODEL:VARIANT:BATCH, such as resnet20:tau:1024")
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds, --seconds: expected positive numbers")
    return options


def main():
    options = parse_options()
    reason = gpu_device.missing() if options.device != "cpu" else None
    if reason:
        say("gpu_bench.py: %s; --device cpu --dry-run tries the script" % reason)
        return 1
    try:
        peak, python, rows = bench_all(options)
        write(options, peak, python, rows)
    except (compare.Failed, OSError, ValueError) as error:
        say("gpu_bench.py: %s" % error)
        return 1
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
