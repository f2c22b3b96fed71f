#!/usr/bin/env python3
"""Runs the self-test of the SIMT machine: tests/simt/selftest/run.py BUILD/simt

Correct programs must pass in both builds under every seed, with the same results. Each planted fault must be caught
with its message by the builds that promise it, and the same program without the fault must pass in both."""
import os
import re
import subprocess
import sys

SEEDS = [0, 1, 2, 3, 4, 5]
FAULT_EXIT = 86


def run(command, seed, **more):
    env = dict(os.environ, SIMT_SEED=str(seed), **more)
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None, "", "timed out"
    return done.returncode, done.stdout, done.stderr


def correct(root, name, failures):
    seen = set()
    for build in ("plain", "check"):
        for seed in SEEDS:
            code, out, err = run([f"{root}/{build}/selftest-{name}"], seed)
            seen.add(out)
            if code != 0:
                failures.append(f"{name}, {build}, seed {seed}: exit {code}: {out}{err}")
    if len(seen) != 1:
        failures.append(f"{name}: results differ between seeds or builds: {sorted(seen)}")
    return 2 * len(SEEDS)


def planted(root, failures):
    listing = subprocess.run([f"{root}/plain/selftest-planted"], capture_output=True, text=True, check=True).stdout
    faults = [line.split("\t") for line in listing.splitlines()]
    for name, builds, message in faults:
        for build in ("plain", "check"):
            program = f"{root}/{build}/selftest-planted"
            for seed in SEEDS[:4]:
                code, out, err = run([program, name, "good"], seed)
                if code != 0:
                    failures.append(f"{name} without the fault, {build}, seed {seed}: exit {code}: {out}{err}")
                if builds not in (build, "both"):
                    continue
                code, out, err = run([program, name, "bad"], seed)
                # Without shadow memory, some faults show only as a wrong result; the program says so with exit 3.
                if not (code == FAULT_EXIT and re.search(message, err)) and not (build == "plain" and code == 3):
                    failures.append(f"{name}, {build}, seed {seed}: not caught: exit {code}: {out}{err}")
    return len(faults)


def main():
    root, failures = sys.argv[1], []
    programs = sum(correct(root, name, failures) for name in ("correct", "libraries"))
    faults = planted(root, failures)
    for failure in failures:
        print("FAILED", failure.rstrip())
    print(f"simt selftest: {programs} correct runs, {faults} planted faults, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
