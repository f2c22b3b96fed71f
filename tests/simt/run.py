#!/usr/bin/env python3
"""Runs test programs on the SIMT machine, in both builds and under several thread orders.

    tests/simt/run.py BUILD/simt NAME...     programs BUILD/simt/plain/NAME and BUILD/simt/check/NAME

Every run must pass, and what a program prints as "checksum of CASE: VALUE" must be the same under all orders.
The last line is "N passed, N failed" and counts test functions."""
import concurrent.futures
import os
import re
import subprocess
import sys
import time

SEEDS = [0, 1, 7, 20261]
CHECKSUM = re.compile(r"^checksum of (.*): (\S+)$", re.M)
JOBS = len(os.sched_getaffinity(0))
# Programs that take long, the longest first; all others take a second or two. They are started in this order, so that
# no long one is left for the end.
LONG = ["cuda_engine", "cuda_device", "cuda_faults", "kernels_wmma", "kernels_conv", "cuda_ranks", "cuda_steps"]


def cost(programs):
    """A number that grows with the time that these programs (names without test_, with spaces between) take."""
    return sum(len(LONG) - LONG.index(name) for name in programs.split() if name in LONG)


def environment(program, seed):
    env = dict(os.environ, SIMT_SEED=str(seed))
    env.setdefault("SIMT_THREADS", "1")  # the programs themselves run side by side
    env.setdefault("SIMT_DEVICE", "sm_80")
    if "/check/" in program:
        env["SIMT_SMALL"] = "1"  # the instrumented build is many times slower
    return env


def run(program, seed, timeout=600):
    start = time.monotonic()
    try:
        done = subprocess.run([program], env=environment(program, seed), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, output = 124, (error.stdout or b"").decode(errors="replace") + f"\nstopped after {timeout} s\n"
    return code, output, time.monotonic() - start


def orders(program):
    """The instrumented build of whole engines takes minutes: one order."""
    return SEEDS[2:3] if program.startswith("check/test_cuda") else SEEDS


def difference(first, other):
    """The first case whose checksum differs, or None. A program may skip cases under some orders, and says so."""
    a, b = CHECKSUM.findall(first), CHECKSUM.findall(other)
    if "[  SKIPPED ]" in other and len(b) < len(a):
        left = iter(a)
        return next((case[0] for case in b if case not in left), None)
    for x, y in zip(a, b):
        if x != y:
            return x[0]
    return None if len(a) == len(b) else "the number of cases"


def judge(name, seed, result, first):
    """What is wrong with a run, or None."""
    code, output, _ = result
    if code != 0:
        lines = [line for line in output.splitlines() if not CHECKSUM.match(line)]
        telling = [line for line in lines if re.search(r"\[ +(ERROR|LINE) +\]|^ERROR:|simt:|stopped after", line)]
        return f"{name}, seed {seed}: exit {code}:\n" + "\n".join(telling[-12:] or lines[-12:])
    if not CHECKSUM.search(output) and "[       OK ]" not in output:
        return f"{name}, seed {seed}: ran no tests"
    case = difference(first, output)
    return f"{name}, seed {seed}: {case}: not bitwise the same as under seed {SEEDS[0]}" if case else None


def main():
    root, names = sys.argv[1], sys.argv[2:]
    jobs = [(f"{build}/{name}", seed) for name in sorted(names, key=lambda name: -cost(name.removeprefix("test_")))
            for build in ("check", "plain") for seed in orders(f"{build}/{name}")]
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(f"{root}/{job[0]}", job[1]), jobs)))
    passed = failed = 0
    for program in dict.fromkeys(job[0] for job in jobs):
        seeds = orders(program)
        first = results[program, seeds[0]][1]
        problems = [p for p in (judge(program, s, results[program, s], first) for s in seeds) if p]
        tests = first.count("[       OK ]")
        seconds = sum(results[program, s][2] for s in seeds)
        print(f"{'FAIL' if problems else 'ok  '}  {program:36s} {tests:3d} tests, {len(seeds)} orders {seconds:7.1f} s",
              flush=True)
        for problem in problems:
            print(problem)
        passed, failed = passed + tests, failed + len(problems)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
