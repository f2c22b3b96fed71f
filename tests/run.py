#!/usr/bin/env python3
"""Runs the tests of a build: unit tests, fuzz corpora, end to end. The last line is "N passed, N failed".

    tests/run.py BUILD [PATTERN]     BUILD: the build folder; PATTERN: only what has it in its name
"""
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUMMARY = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)


def run(command, timeout, build):
    environment = dict(os.environ, TAUNET=str(build / "taunet"), TAUNET_BUILD=str(build))
    # Some tests ask for impossible blocks on purpose.
    environment.setdefault("ASAN_OPTIONS", "allocator_may_return_null=1")
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=timeout, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, output = 1, (error.stdout or b"").decode(errors="replace") + f"\nstopped after {timeout} s\n"
    return code, output, time.monotonic() - start


def counts(code, output):
    """Tests passed, failed and skipped, from cmocka's lines or a closing summary."""
    summary = SUMMARY.findall(output)
    if summary:
        passed, failed, skipped = (int(n or 0) for n in summary[-1])
    else:
        # cmocka names each failed and skipped test where it ends and again in its summary.
        passed = output.count("[       OK ]")
        failed, skipped = (len(re.findall(rf"^\[  {mark} *\] (?!\d+ test)", output, re.M)) // 2
                           for mark in ("FAILED", "SKIPPED"))
    if code != 0 and failed == 0 or passed + failed + skipped == 0:
        failed += 1
    return passed, failed, skipped


def suites(build):
    for binary in sorted((build / "unit").glob("test_*")):
        if binary.suffix == "":
            yield f"unit/{binary.name}", [binary]
    for binary in sorted((build / "fuzz").glob("replay_*")):
        if binary.suffix == "":
            name = binary.name[len("replay_"):]
            yield f"fuzz/{name}", [binary, *sorted((ROOT / "tests/fuzz/corpus" / name).iterdir())]
    yield "e2e", [sys.executable, "tests/e2e/run.py"]


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    pattern = sys.argv[2] if len(sys.argv) > 2 else ""
    total = [0, 0, 0]
    for name, command in suites(build):
        if pattern not in name:
            continue
        code, output, seconds = run([str(part) for part in command], 1500, build)
        result = counts(code, output)
        total = [a + b for a, b in zip(total, result)]
        print(f"{'FAIL' if result[1] else 'ok  '}  {name:28s} {result[0]:4d} passed {result[1]:3d} failed "
              f"{result[2]:3d} skipped  {seconds:6.1f} s", flush=True)
        if result[1]:
            print(output[-8000:], flush=True)
    print(f"{total[0]} passed, {total[1]} failed" + (f", {total[2]} skipped" if total[2] else ""))
    return 1 if total[1] or not total[0] else 0


if __name__ == "__main__":
    sys.exit(main())
