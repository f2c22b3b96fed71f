#!/usr/bin/env python3
"""PREDICTS times of training steps on CUDA devices from what the SIMT machine counts. Nothing here is measured.

    gpu_predict.py [--network MODEL:VARIANT:BATCH]... [--precision bf16] [--registers FILE] [--kernels N]
    gpu_predict.py --measured gpu-bench.json     the prediction beside what bench/gpu_bench.py measured

build/simt/check/count_step counts one step of each network at its real size (tests/simt/README.md, samples): of every
launch the grid, bytes and sectors, passes over shared memory, tensor-core operations; of products of cuBLAS the
operations and operands. FILE is what `make cuda-report` prints of registers and resident blocks; without it, occupancy
follows from threads and dynamic shared memory alone. The model and its assumptions are printed with the table.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

NETWORKS = ["resnet20:tau:128", "resnet20:bn:128", "resnet110:tau:128", "resnet1202:tau:128",
            "resnet50:tau:256", "resnet50:bn:256"]
ARCH = "sm_90"  # for which steps are counted
SECTOR = 32
OWN_SHARE = 0.6  # of cuBLAS's rate (of the FMA rate in float32) that kernels of this repository are taken to reach
BUSY_THREADS = 512  # resident threads of a multiprocessor from which memory is taken to run at its full rate
LAUNCH = 1.5e-6  # seconds from the end of one kernel of a graph to the work of the next

# Copy and cuBLAS rates of the H100 as often measured; those of the A100 are the same shares of its data sheet. Data
# sheets: "NVIDIA H100 Tensor Core GPU" (SXM5: 3.35 TB/s, 989.4 bf16 and 494.7 tf32 TFLOP/s dense, 67 TFLOP/s float32,
# 132 multiprocessors), "NVIDIA A100 Tensor Core GPU" (SXM4 80 GB: 2.039 TB/s, 312, 156, 19.5, 108). L2: 5120 bytes a
# clock (A100 architecture whitepaper), of which 60 % are taken to be reached, for both.
DEVICES = {
    "H100": {"arch": "sm_90", "sms": 132, "clock": 1.755e9, "copy": 3.0e12, "l2": 0.6 * 5120 * 1.755e9,
             "fma": 67e12, "tf32": 494.7e12 * 798 / 989.4, "bf16": 798e12, "sm_shared": 228 << 10},
    "A100": {"arch": "sm_80", "sms": 108, "clock": 1.410e9, "copy": 2.039e12 * 3.0 / 3.35, "l2": 0.6 * 5120 * 1.41e9,
             "fma": 19.5e12, "tf32": 156e12 * 798 / 989.4, "bf16": 312e12 * 798 / 989.4, "sm_shared": 164 << 10},
}


class Failed(Exception):
    pass


def read_registers(path):
    """Resident blocks of a multiprocessor by (architecture, kernel), from the table of make cuda-report; a kernel whose
    name stands in two files keeps the smaller number."""
    resident = {}
    for line in pathlib.Path(path).read_text().splitlines():
        row = re.match(r"(sm_\d+) +\w+: (.+?) +(\d+) +(\d+) +(\d+) +\d+ +(\d+) +(\d+) +\d+%", line)
        if row:
            key = (row.group(1), row.group(2))
            resident[key] = min(int(row.group(7)), resident.get(key, 99))
    return resident


def count(network, precision, arch, options):
    """What count_step prints for a network; kept beside the program while that is not newer."""
    program = pathlib.Path(options.count_step)
    kept = pathlib.Path(options.build) / "counts" / f"{network.replace(':', '-')}-{precision}-{arch}.json"
    if not program.exists():
        raise Failed(f"{program} is not built; run: make {program}")
    if not kept.exists() or kept.stat().st_mtime < program.stat().st_mtime:
        done = subprocess.run([str(program), network, precision], env=dict(os.environ, SIMT_DEVICE=arch,
                              SIMT_MEMORY=str(200 << 30)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Failed(f"count_step {network} {precision}: exit {done.returncode}: "
                         + done.stderr.decode(errors="replace").strip()[-300:])
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".part")
        partial.write_bytes(done.stdout)
        partial.replace(kept)
    return json.loads(kept.read_text())


def resident_blocks(op, device, registers):
    by_threads = max(1, 2048 // max(32, op["threads"]))
    limit = registers.get((device["arch"], op["name"]), min(32, by_threads))
    if op["dynamic_shared"]:
        limit = min(limit, max(1, device["sm_shared"] // (op["dynamic_shared"] + 1024)))
    return limit


def is_kernel(op):
    return op["grid"][0] > 0


def terms_of(op, device, registers):
    """Seconds that each resource would need by itself."""
    memory = SECTOR * (op["load_memory_sectors"] + op["store_memory_sectors"])
    if not is_kernel(op):
        own = {name: op[name + "_flops"] / device[name] for name in ("fma", "tf32", "bf16")}
        return dict(own, memory=memory / device["copy"]) if op["name"] in ("cublas", "copy", "fill") else {}
    blocks, sms = op["blocks"], device["sms"]
    # The busiest multiprocessor has this many times its even share.
    uneven = -(-blocks // sms) * sms / blocks
    busy = min(blocks, sms * resident_blocks(op, device, registers)) * op["threads"]
    memory_share = min(1, busy / (BUSY_THREADS * sms))
    terms = {name: uneven * op[name + "_flops"] / (OWN_SHARE * device[name]) for name in ("fma", "tf32", "bf16")}
    terms["memory"] = memory / (device["copy"] * memory_share)
    terms["L2"] = SECTOR * (op["load_sectors"] + op["store_sectors"]) / (device["l2"] * memory_share)
    terms["shared"] = uneven * op["shared_wavefronts"] / (sms * device["clock"])
    return terms


def predict(op, device, registers):
    """(seconds of one, what bounds it). Copies from and to the host run beside the step."""
    terms = terms_of(op, device, registers)
    if not terms:
        return 0.0, "host"
    bound = max(terms, key=terms.get)
    return LAUNCH + terms[bound], bound if terms[bound] > LAUNCH else "launch"


def step(counts, device, registers):
    """Sums of a step."""
    ops = counts["operations"]
    total = {"launches": sum(op["times"] for op in ops if is_kernel(op) or op["name"] == "cublas"), "seconds": 0.0,
             "kernels": {}, "least": sum(counts["least"].values()), "memory": 0, "l2": 0, "fma": 0, "tf32": 0, "bf16": 0}
    for op in ops:
        seconds, bound = predict(op, device, registers)
        if bound == "host":
            continue
        n = op["times"]
        total["seconds"] += n * seconds
        total["memory"] += n * SECTOR * (op["load_memory_sectors"] + op["store_memory_sectors"])
        total["l2"] += n * SECTOR * (op["load_sectors"] + op["store_sectors"])
        for unit in ("fma", "tf32", "bf16"):
            total[unit] += n * op[unit + "_flops"]
        row = total["kernels"].setdefault(op["name"], {"times": 0, "seconds": 0.0, "bounds": {}, "memory": 0, "sectors": 0,
                                                       "ideal": 0, "passes": 0, "ideal_passes": 0, "barriers": 0})
        row["times"] += n
        row["seconds"] += n * seconds
        row["bounds"][bound] = row["bounds"].get(bound, 0) + n * seconds
        row["memory"] += n * SECTOR * (op["load_memory_sectors"] + op["store_memory_sectors"])
        row["sectors"] += n * (op["load_sectors"] + op["store_sectors"])
        row["ideal"] += n * (op["load_ideal_sectors"] + op["store_ideal_sectors"])
        row["passes"] += n * op["shared_wavefronts"]
        row["ideal_passes"] += n * op["shared_ideal_wavefronts"]
        row["barriers"] += n * op["barriers"]
    return total


def assumptions(registers):
    lines = ["All times are PREDICTIONS from counts (SIMT machine); none was measured on a GPU. Assumed:"]
    for name, d in DEVICES.items():
        lines.append("- %s: copies %.2f TB/s, L2 %.1f TB/s, float32 %.1f TFLOP/s, cuBLAS tf32 %.0f and bf16 %.0f TFLOP/s, %d "
                     "multiprocessors at %.2f GHz." % (name, d["copy"] * 1e-12, d["l2"] * 1e-12, d["fma"] * 1e-12,
                                                       d["tf32"] * 1e-12, d["bf16"] * 1e-12, d["sms"], d["clock"] * 1e-9))
    lines += ["- Own kernels reach %.0f %% of these rates of arithmetic; a pass over the 32 banks takes a clock." %
              (100 * OWN_SHARE),
              "- A launch takes the time of its slowest resource, scaled by the blocks of the busiest multiprocessor, and "
              "%.1f us of its own." % (1e6 * LAUNCH),
              "- Memory and L2 run at their full rate from %d resident threads a multiprocessor, below in proportion." %
              BUSY_THREADS,
              "- What a launch touches twice comes from L2; nothing stays there from one launch to the next. At these sizes "
              "much would, so times of memory are rather too long.",
              "- Copies from the host run beside the step. Latencies of barriers and of dependent instructions are not in "
              "the model.",
              "- Steps are counted as planned for %s; the A100 is taken to run the same kernels." % ARCH,
              "- Occupancy: %s." % ("registers and shared memory, by make cuda-report" if registers else
                                    "threads and dynamic shared memory alone (no table of registers)"), ""]
    return lines


def table(results):
    lines = ["| network, precision | launches | least MB | counted MB | of least | L2 MB | GFLOP fma / tf32 / bf16 | "
             "PREDICTED H100 ms (images/s) | PREDICTED A100 ms (images/s) |", "|---|---|---|---|---|---|---|---|---|"]
    for (network, precision), by_device in results.items():
        a, batch = by_device["H100"], int(network.rpartition(":")[2])
        times = " | ".join("%.2f (%.0f)" % (1e3 * r["seconds"], batch / r["seconds"])
                           for r in (by_device["H100"], by_device["A100"]))
        lines.append("| %s %s | %d | %.1f | %.1f | %.2f | %.1f | %.1f / %.1f / %.1f | %s |" % (
            network, precision, a["launches"], a["least"] * 1e-6, a["memory"] * 1e-6, a["memory"] / a["least"],
            a["l2"] * 1e-6, a["fma"] * 1e-9, a["tf32"] * 1e-9, a["bf16"] * 1e-9, times))
    return lines + [""]


def ratio(a, b):
    return "%.2f" % (a / b) if b else "-"


def kernel_table(name, result, most):
    rows = sorted(result["kernels"].items(), key=lambda item: -item[1]["seconds"])[:most]
    lines = ["%s on the H100, the %d longest kernels (PREDICTED):" % (name, len(rows)), "",
             "| kernel | launches | ms | of the step | bound | MB | sectors of ideal | bank passes of ideal | barriers |",
             "|---|---|---|---|---|---|---|---|---|"]
    for kernel, row in rows:
        lines.append("| %s | %d | %.3f | %.0f %% | %s | %.1f | %s | %s | %d |" % (
            kernel, row["times"], 1e3 * row["seconds"], 100 * row["seconds"] / result["seconds"],
            max(row["bounds"], key=row["bounds"].get), row["memory"] * 1e-6, ratio(row["sectors"], row["ideal"]),
            ratio(row["passes"], row["ideal_passes"]), row["barriers"]))
    return lines + [""]


def count_all(options):
    """All counts, as many at a time as there are processors."""
    jobs = [(network, precision, ARCH) for network in options.network for precision in options.precision]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda job: count(*job, options), jobs))


def predict_all(options, registers):
    results = {}
    count_all(options)
    for network in options.network:
        for precision in options.precision:
            results[network, precision] = {
                name: step(count(network, precision, ARCH, options), device, registers)
                for name, device in DEVICES.items()}
    return results


def measured_device(peak):
    """The nearest of DEVICES, with the rates that were measured on the device itself."""
    name = "A100" if peak["compute_capability"] == "8.0" else "H100"
    rates = peak["matmul_flops"]
    return name, dict(DEVICES[name], sms=peak["multiprocessors"], copy=peak["copy_bytes_per_second"], fma=rates["fp32"],
                      tf32=rates["tf32"], bf16=rates["bf16"])


def compare(options, registers):
    """Prediction, with the ceilings that were measured in the same run, beside measurement."""
    report = json.loads(pathlib.Path(options.measured).read_text())
    if not report.get("peak"):
        raise Failed(f"{options.measured} holds no peaks of a device: nothing to compare with")
    name, device = measured_device(report["peak"])
    print("Predictions of the model of %s with the ceilings that were measured on %s, beside measured rates.\n" % (
        name, report["peak"]["device"]))
    print("| network | precision | PREDICTED images/s | measured images/s | predicted / measured |\n|---|---|---|---|---|")
    for row in report["rows"]:
        if "failed" in row:
            continue
        *network, _ = row["network"].split(":") if row["network"].count(":") > 1 else (*row["network"].split(":"), "")
        counts = count("%s:%d" % (":".join(network[:2]), row["batch"]), row["precision"], device["arch"], options)
        rate = row["batch"] / step(counts, device, registers)["seconds"]
        print("| %s | %s | %.0f | %.0f | %.2f |" % (row["network"], row["precision"], rate, row["images_per_second"],
                                                     rate / row["images_per_second"]))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", metavar="MODEL:VARIANT:BATCH", help=", ".join(NETWORKS))
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["bf16"], help="fp32,tf32,bf16")
    parser.add_argument("--build", default="build/simt", help="folder of what is kept")
    parser.add_argument("--count-step", help="the program count_step [BUILD/check/count_step]")
    parser.add_argument("--registers", help="the table of make cuda-report [BUILD/registers.txt, if there]")
    parser.add_argument("--kernels", type=int, default=6, help="rows of the tables of kernels; 0: none")
    parser.add_argument("--measured", metavar="FILE", help="gpu-bench.json")
    options = parser.parse_args()
    options.count_step = options.count_step or f"{options.build}/check/count_step"
    options.registers = options.registers or f"{options.build}/registers.txt"
    options.network = options.network or NETWORKS
    return options


def main():
    options = parse_options()
    try:
        table_of_registers = pathlib.Path(options.registers)
        registers = read_registers(table_of_registers) if table_of_registers.exists() else {}
        if options.measured:
            compare(options, registers)
            return 0
        results = predict_all(options, registers)
    except (Failed, OSError, ValueError, KeyError) as error:
        print("gpu_predict.py: %s" % error, file=sys.stderr)
        return 1
    lines = assumptions(registers) + table(results)
    for (network, precision), by_device in results.items():
        if options.kernels:
            lines += kernel_table("%s %s" % (network, precision), by_device["H100"], options.kernels)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
