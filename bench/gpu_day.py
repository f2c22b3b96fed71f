#!/usr/bin/env python3
"""All that is to be done on a machine with a CUDA device, in one go, packed into gpu-day-DATE.tar.gz.

    gpu_day.py [--out DIR] [--make "make CUDA_HOME=..."] [--python PATH]...

Steps run one after the other, each with a log of its own and a limit of time; one that fails, takes too long or cannot
run here is noted with the reason, and the next one runs. The tarball holds the logs, what the steps left, hardware
and versions, and summary.md. The exit status is 0 when no step failed.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
import gpu_device  # noqa: E402

KERNEL_TESTS = "test_kernels_augment test_kernels_conv test_kernels_elementwise test_kernels_image test_kernels_norm test_kernels_training"
FACTS = ["nvidia-smi -q", "nvidia-smi topo -m", "nvcc --version", "gcc --version", "lscpu", "free -h", "uname -a",
         "git describe --always --dirty", "git log -1 --format=%H", "build/taunet info"]


def no_compiler(options):
    return gpu_device.missing_compiler(options.nvcc)


def no_device(options):
    return no_compiler(options) or gpu_device.missing()


def no_sanitizer(options):
    return no_device(options) or (None if shutil.which("compute-sanitizer", path=search_path(options)) else
                                  "no compute-sanitizer beside nvcc or on PATH")


def search_path(options):
    beside = [str(pathlib.Path(shutil.which(options.nvcc) or "/nonexistent").parent)] if options.nvcc else []
    return os.pathsep.join(beside + [os.environ.get("PATH", "")])


def steps(options):
    """(name, why not here, commands, seconds)"""
    tools = ["memcheck", "initcheck", "racecheck", "synccheck"]
    sanitize = [["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", f"{options.build}/simt/nvcc/{test}"]
                for test in KERNEL_TESTS.split() for tool in tools]
    sanitize += [["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9",
                  f"{options.build}/simt/nvcc/test_cuda_{test}"] for test in ("data", "device", "engine", "steps")]
    bench = [sys.executable, "bench/gpu_bench.py", "--out", str(options.folder), "--taunet",
             f"{options.build}/taunet", "--peak", f"{options.build}/bench/device_peak"]
    bench += [part for path in options.python for part in ("--python", path)]
    make = shlex.split(options.make) + ["--no-print-directory"]
    return [
        ("build", no_compiler, [make + ["gpu-tests"]], 3600),
        ("cuda-report", no_compiler, [make + ["cuda-report"]], 1800),
        ("parity", no_device, [make + ["gpu-test"]], 1800),
        ("sanitizer", no_sanitizer, sanitize, 3600),
        ("bench", no_device, [bench], 7200),
        ("prediction", no_device, [[sys.executable, "bench/gpu_predict.py", "--build", f"{options.build}/simt",
                                    "--measured", str(options.folder / "gpu-bench.json")]], 1800),
    ]


def run_command(command, log, limit, options):
    """Exit status of a command whose output goes to the log; its whole group ends when the time is over."""
    log.write(("$ " + shlex.join(command) + "\n").encode())
    log.flush()
    environment = dict(os.environ, PATH=search_path(options))
    try:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   env=environment, start_new_session=True)
    except OSError as error:
        log.write(f"{command[0]}: {error.strerror}\n".encode())
        return 127
    try:
        return process.wait(timeout=max(1, limit))
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        log.write(f"stopped: over the limit of {limit:.0f} s\n".encode())
        return 124


def run_step(index, name, commands, limit, options):
    """Runs all commands of a step; the first failure is the step's."""
    start, codes = time.monotonic(), []
    path = options.folder / f"{index:02d}-{name}.log"
    with open(path, "wb") as log:
        for command in commands:
            codes.append(run_command(command, log, limit - (time.monotonic() - start), options))
    failed = [code for code in codes if code]
    return {"step": name, "status": "failed" if failed else "done", "exit": failed[0] if failed else 0,
            "seconds": round(time.monotonic() - start, 1), "log": path.name,
            "reason": f"{len(failed)} of {len(codes)} commands failed" if failed else ""}


def write_facts(options):
    with open(options.folder / "hardware.txt", "w") as file:
        file.write(f"{platform.platform()}, Python {platform.python_version()}\n")
        for command in FACTS:
            words = shlex.split(command.replace("build/", f"{options.build}/"))
            try:
                done = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60,
                                      stderr=subprocess.STDOUT, env=dict(os.environ, PATH=search_path(options)))
                text = done.stdout.decode(errors="replace")
            except (OSError, subprocess.TimeoutExpired) as error:
                text = f"not there: {error}\n"
            file.write(f"\n$ {command}\n{text}")


def write_summary(options, results):
    lines = [f"# A day with a GPU, {options.date}", "", "| step | status | seconds | |", "|---|---|---|---|"]
    for r in results:
        lines.append("| %s | %s | %s | %s |" % (r["step"], r["status"], r.get("seconds", "-"), r["reason"]))
    text = "\n".join(lines) + "\n"
    (options.folder / "summary.md").write_text(text)
    (options.folder / "summary.json").write_text(json.dumps({"date": options.date, "steps": results}, indent=1) + "\n")
    print(text, end="")


def pack(options):
    """Written beside its place and renamed, so that there is none or a whole one."""
    path = options.out / f"gpu-day-{options.date}.tar.gz"
    partial = path.with_name(path.name + ".part")
    with tarfile.open(partial, "w:gz") as tar:
        tar.add(options.folder, arcname=options.folder.name)
    os.replace(partial, path)
    print(path)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs", metavar="DIR", help="runs")
    parser.add_argument("--build", default="build")
    parser.add_argument("--make", default="make", help="how to call make")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler; empty: there is none")
    parser.add_argument("--python", action="append", default=[], help="another Python with PyTorch")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.date = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    options.folder = options.out / f"gpu-day-{options.date}"
    return options


def main():
    options = parse_options()
    results = []
    options.folder.mkdir(parents=True)
    for index, (name, reason_against, commands, limit) in enumerate(steps(options), 1):
        reason = reason_against(options)
        print(f"{name}: {'skipped: ' + reason if reason else 'running'}", file=sys.stderr, flush=True)
        results.append({"step": name, "status": "skipped", "reason": reason} if reason else
                       run_step(index, name, commands, limit, options))
    write_facts(options)
    write_summary(options, results)
    pack(options)
    return 1 if any(r["status"] == "failed" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
