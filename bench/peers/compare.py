#!/usr/bin/env python3
"""Compares taunet with PyTorch on this machine: whole training steps, measured in turn, as a Markdown table.

    compare.py                                   Debian's /usr/bin/python3 alone
    compare.py --python ~/torch/bin/python       and another installation; may be repeated
    compare.py --quick                           one network, three short rounds

Every row alternates the peer and taunet (peer, taunet, peer, taunet, ...) and divides each taunet measurement by the
peer's just before it, so that a slow drift of the machine cancels. Ratios above 1 mean taunet is faster. The table
goes to standard output, progress to standard error. The exit status is 1 when something could not be measured.
"""
import argparse
import json
import os
import re
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
NETWORKS = ["resnet20:tau", "resnet20:bn", "resnet110:tau"]
DISTURBED = 0.05  # share of the CPUs other processes may use during a round
PEER_TIMEOUT = 1800  # seconds for one answer; compiling a deep network takes minutes


class Failed(Exception):
    """A measurement that could not be made; the text says why."""


class PeerFailed(Failed):
    """The same on the peer's side: the other rows can still be measured."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def last_words(text):
    """The line of a program's standard error that says most: Python's last exception, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["no message"])[-1][:200]


def connected(network):
    return network[0] in ("fcresnet", "feedforward")


def is_imagenet(network):
    return network[0] in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def model_options(network):
    """What names the network on both command lines. MODEL:DEPTH for the fully connected ones, width 128. Networks
    for ImageNet take its images."""
    names = ["--model", network[0], "--depth" if connected(network) else "--variant", network[1]]
    return names + (["--input", "3x224x224", "--classes", "1000"] if is_imagenet(network) else [])


class Peer:
    """A PyTorch process that keeps its network between measurements, as bench_torch.py --serve."""

    def __init__(self, python, network, layout, mode, options):
        command = [python, os.path.join(HERE, "bench_torch.py"), "--serve", *model_options(network),
                   "--batch", str(options.batch), "--threads", str(options.threads), "--layout", layout,
                   "--compile", "yes" if mode == "compile" else "no"]
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        bufsize=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def answer(self):
        """The next JSON object, skipping whatever else a library prints."""
        while True:
            if not select.select([self.process.stdout], [], [], PEER_TIMEOUT)[0]:
                self.process.kill()
                raise PeerFailed("no answer within %d s" % PEER_TIMEOUT)
            line = self.process.stdout.readline().decode(errors="replace")
            if not line:
                self.errors.seek(0)
                raise PeerFailed(last_words(self.errors.read().decode(errors="replace")))
            if line.startswith("{"):
                return json.loads(line)

    def measure(self, seconds):
        try:
            self.process.stdin.write(b"%g\n" % seconds)
        except BrokenPipeError:
            pass  # the peer has ended: answer() finds its last words
        return self.answer()

    def peak_bytes(self):
        """The largest resident set of the peer so far."""
        with open("/proc/%d/status" % self.process.pid) as file:
            return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", file.read(), re.M).group(1))

    def cpu_seconds(self):
        with open("/proc/%d/stat" % self.process.pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_taunet(network, steps, options):
    shape = ["--input", "1x28x28"] if connected(network) else []
    command = [options.taunet, "bench", *model_options(network), *shape,
               "--batch", str(options.batch), "--steps", str(steps), "--threads", str(options.threads), "--json"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Failed("%s: %s: build it first, or name it with --taunet" % (options.taunet, error.strerror))
    if done.returncode != 0:
        raise Failed("%s: exit status %d: %s" % (" ".join(command), done.returncode,
                                                 last_words(done.stderr.decode(errors="replace"))))
    try:
        result = json.loads(done.stdout)
        result["images_per_second"] = float(result["images_per_second"])
        if not result["images_per_second"] > 0:
            raise ValueError("images_per_second is not positive")
    except (ValueError, KeyError, TypeError) as error:
        raise Failed("%s: no usable JSON object: %s" % (" ".join(command), error))
    return result


class Interference:
    """Share of all CPUs that processes other than the two compared ones used since start()."""

    def __init__(self, peer):
        self.peer = peer
        self.start = self.read()

    def read(self):
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft = (int(v) for v in file.readline().split()[1:8])
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = children.ru_utime + children.ru_stime + self.peer.cpu_seconds()
        return time.monotonic(), (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK"), own

    def share(self):
        seconds, busy, own = (now - then for now, then in zip(self.read(), self.start))
        return max(0.0, (busy - own) / (seconds * (os.cpu_count() or 1)))


def compare_one(python, network, layout, mode, steps, options):
    """Rounds of peer, taunet; returns the row of the table. A round that other processes disturbed is repeated."""
    rounds = []  # (share of the CPUs that others took, the peer's images/s, taunet's result)
    with Peer(python, network, layout, mode, options) as peer:
        version = peer.answer()["version"]
        while sum(busy <= DISTURBED for busy, _, _ in rounds) < options.rounds and len(rounds) < 3 * options.rounds:
            interference = Interference(peer)
            rate = peer.measure(options.seconds)["images_per_second"]
            result = run_taunet(network, steps, options)
            rounds.append((interference.share(), rate, result))
        peer_bytes = peer.peak_bytes()
    quiet = [one for one in rounds if one[0] <= DISTURBED]
    kept = quiet if len(quiet) == options.rounds else rounds
    rates = [result["images_per_second"] for _, _, result in kept]
    return {"network": network, "version": version, "layout": layout, "mode": mode, "busy": max(o[0] for o in kept),
            "peer": [rate for _, rate, _ in kept], "peer_bytes": peer_bytes, "rates": rates,
            "taunet": [result for _, _, result in kept],
            "ratios": [own / rate for own, (_, rate, _) in zip(rates, kept)]}


def find_pythons(options):
    """[(path, version, can compile)] of the interpreters that have PyTorch."""
    found, seen = [], set()
    code = "import torch; print(torch.__version__, hasattr(torch, 'compile'))"
    for path in ["/usr/bin/python3"] + options.python:
        if path in seen:
            continue
        seen.add(path)
        try:
            done = subprocess.run([path, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            say("%s: %s: left out" % (path, error.strerror))
            continue
        if done.returncode != 0:
            say("%s: %s: left out" % (path, last_words(done.stderr.decode(errors="replace"))))
            continue
        version, compiles = done.stdout.decode().split()[-2:]
        found.append((path, version, compiles == "True"))
    return found


def configurations(pythons, options):
    """(python, version, layout, mode) to measure; torch.compile needs PyTorch 2 and a C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if "compile" in options.modes and not compiler:
        say("no C++ compiler: torch.compile left out")
    for python, version, compiles in pythons:
        for layout in options.layouts:
            for mode in options.modes:
                if mode == "eager" or compiles and compiler:
                    yield python, version, layout, mode


def format_row(row):
    name = "%s %s" % row["network"]
    if "failed" in row:
        return "| %s | %s | %s | %s | failed: %s | | |" % (name, row["version"], row["layout"], row["mode"],
                                                          row["failed"].replace("|", "/"))
    return "| %s | %s | %s | %s | %.1f | %.1f | %.2f (%.2f-%.2f)%s |" % (
        name, row["version"], row["layout"], row["mode"], statistics.median(row["peer"]),
        statistics.median(row["rates"]), statistics.median(row["ratios"]), min(row["ratios"]), max(row["ratios"]),
        " disturbed" if row["busy"] > DISTURBED else "")


def summary(network, rows):
    """One line: the ratio to the fastest peer, and how near taunet came to the machine's peak."""
    measured = [row for row in rows if row["network"] == network and "failed" not in row]
    if not measured:
        return "%s %s: nothing measured" % network
    measured = [row for row in measured if row["busy"] <= DISTURBED] or measured
    best = max(measured, key=lambda row: statistics.median(row["peer"]))
    line = "%s %s: %.2f times the fastest peer (PyTorch %s, %s, %s)" % (
        network + (statistics.median(best["ratios"]), best["version"], best["layout"], best["mode"]))
    runs = [run for row in measured for run in row["taunet"]]
    for key, text in (("gflops", "; %.0f GFLOP/s"), ("peak_fraction", ", %.2f of the measured peak")):
        values = [run[key] for run in runs if isinstance(run.get(key), (int, float))]
        line += text % statistics.median(values) if values else ""
    return line


def compare_all(options):
    pythons = find_pythons(options)
    if not pythons:
        raise Failed("no Python with PyTorch: install python3-torch or name one with --python")
    rows, networks = [], [tuple(name.split(":")) for name in options.network]
    print("Batch %d, %d threads, %d rounds of %g s; images/s are medians; ratio = taunet / peer: median (min-max)\n"
          % (options.batch, options.threads, options.rounds, options.seconds))
    print("| network | PyTorch | layout | mode | PyTorch img/s | taunet img/s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for network in networks:
        first = run_taunet(network, 2, options)  # how many of its steps fill the same time
        steps = max(3, round(options.seconds * first["images_per_second"] / options.batch))
        for python, version, layout, mode in configurations(pythons, options):
            if connected(network) and layout != options.layouts[0]:
                continue  # nothing in them has a layout
            say("%s %s: PyTorch %s, %s, %s" % (network + (version, layout, mode)))
            row = {"network": network, "version": version, "layout": layout, "mode": mode}
            try:
                row = compare_one(python, network, layout, mode, steps, options)
            except PeerFailed as error:
                row["failed"] = str(error)
            rows.append(row)
            print(format_row(row), flush=True)
    print()
    for network in networks:
        print(summary(network, rows))
    busy = max((row.get("busy", 0) for row in rows), default=0)
    if busy > DISTURBED:
        print("\nRows marked disturbed mean little: other processes used up to %.0f %% of the CPUs." % (100 * busy))
    return 1 if not rows or any("failed" in row for row in rows) else 0


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="another Python with PyTorch")
    parser.add_argument("--network", action="append", metavar="MODEL:VARIANT",
                        help="default %s; fcresnet:DEPTH and feedforward:DEPTH take images of 1x28x28"
                        % ", ".join(NETWORKS))
    parser.add_argument("--taunet", default="build/taunet", help="the program to compare (build/taunet)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, help="pairs of measurements in each row (5)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (5)")
    parser.add_argument("--layouts", default="nchw,channels_last", type=lambda text: text.split(","))
    parser.add_argument("--modes", type=lambda text: text.split(","),
                        help="eager,compile (with --quick: eager)")
    parser.add_argument("--quick", action="store_true", help="resnet20:tau, eager, 3 rounds of 2 s")
    options = parser.parse_args()
    options.network = options.network or NETWORKS[:1 if options.quick else None]
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (2 if options.quick else 5)
    options.modes = options.modes or (["eager"] if options.quick else ["eager", "compile"])
    if any(name.count(":") != 1 for name in options.network):
        parser.error("--network: expected MODEL:VARIANT, such as resnet20:tau")
    for given, allowed in ((options.layouts, {"nchw", "channels_last"}), (options.modes, {"eager", "compile"})):
        if not set(given) <= allowed:
            parser.error("%s: expected some of %s" % (",".join(given), ",".join(sorted(allowed))))
    if min(options.batch, options.threads, options.rounds, options.seconds) <= 0:
        parser.error("--batch, --threads, --rounds, --seconds: expected positive numbers")
    return options


def main():
    options = parse_options()
    try:
        return compare_all(options)
    except Failed as error:
        say("compare.py: %s" % error)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
