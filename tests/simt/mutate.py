#!/usr/bin/env python3
"""Plants faults in copies of the sources (mutations.py), one at a time, and runs the tests that must notice.

    tests/simt/mutate.py BUILD [PATTERN]     BUILD: the build folder, with simt/ built; PATTERN: only those whose
                                             "FILE: WHAT" it matches
    tests/simt/mutate.py --check             only looks whether every text stands once in its file

A fault is caught when a test fails, the machine stops the program, or results differ between thread orders. Exit 0
when all are caught."""
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run as runner  # noqa: E402
from mutations import MUTATIONS  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COPIED = ["Makefile", "bench/gpu.mk", "kernels", "tests/simt", "tests/support", "src", "include"]
BUILT = ["simt/plain", "simt/check", "src", "tests/support", "libtaunet.a"]
ARCHIVES = ["simt/plain/libtested.a", "simt/check/libtested.a", "libtaunet.a"]


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


class Tree:
    """A copy of what the tests are built from, objects included."""

    def __init__(self, folder, build):
        self.root = folder
        for name in COPIED:
            copy(ROOT / name, folder / name)
        for name in BUILT:
            if (build / name).exists():
                copy(build / name, folder / "build" / name)

    def saved(self, sources):
        """Everything that compiling these sources replaces."""
        files = [self.root / "build" / name for name in ARCHIVES if (self.root / "build" / name).exists()]
        for source in sources:
            files += [self.root / source]
            for folder in ("build/simt/plain", "build/simt/check", "build"):
                files += (self.root / folder).glob(str(pathlib.PurePath(source).with_suffix(".*")))
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def make(self, targets):
        command = ["make", "--no-print-directory", "-s", "SIMT_WARN=-w", "CUDA=no", *targets]
        done = subprocess.run(command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        return None if done.returncode == 0 else done.stdout

    def tests(self, programs):
        """Runs the programs until one notices; returns how, or None. The build that is quick and finds wrong results
        comes first, that which finds races and accesses out of bounds second."""
        for build in ("plain", "check"):
            for name in programs:
                first = None
                for seed in runner.orders(f"{build}/{name}"):
                    result = runner.run(str(self.root / f"build/simt/{build}/{name}"), seed, timeout=200)
                    first = first or result[1]
                    problem = runner.judge(f"{build}/{name}", seed, result, first)
                    if problem:
                        return f"{build}, seed {seed}: {shorten(problem)}"
        return None

    def try_one(self, mutation):
        file, text, replacement, _, programs = mutation[:5]
        sources = mutation[5] if len(mutation) > 5 else [file]
        saved = self.saved(sources)
        path = self.root / file
        original, times = path.read_text(), path.stat()
        programs = ["test_" + name for name in programs.split()]
        try:
            path.write_text(original.replace(text, replacement))
            if file not in sources:  # a header: only the named sources see it
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            for source in sources:
                os.utime(self.root / source)
            targets = [f"build/simt/{build}/{name}" for build in ("plain", "check") for name in programs]
            output = self.make(targets)
            if output is not None:
                raise RuntimeError(f"does not compile:\n{output[-2000:]}")
            return self.tests(programs)
        finally:
            path.write_text(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            for name, (content, time) in saved.items():
                name.write_bytes(content)
                os.utime(name, ns=(time, time))


def shorten(problem):
    """The line that says what went wrong."""
    lines = problem.splitlines()
    line = next((line for line in lines[1:] if line.strip()), lines[0])
    return re.sub(r"^(\[.*?\] --- |ERROR: |simt: )", "", line)[:150]


def check():
    """Texts that do not stand exactly once in their file."""
    wrong = 0
    for file, text, *_ in MUTATIONS:
        count = (ROOT / file).read_text().count(text)
        if count != 1:
            print(f"{file}: {count} times in the file: {text!r}")
            wrong += 1
    return wrong


def main():
    if check():
        print("tests/simt/mutations.py does not fit the sources any more: change its texts")
        return 1
    if sys.argv[1] == "--check":
        return 0
    build, pattern = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""
    chosen = [m for m in MUTATIONS if re.search(pattern, m[0] + ": " + m[3])]
    caught = 0
    with tempfile.TemporaryDirectory(prefix="taunet-mutate-") as folder:
        jobs = min(runner.JOBS, len(chosen)) or 1
        trees = queue.Queue()
        for number in range(jobs):
            trees.put(Tree(pathlib.Path(folder) / str(number), build))

        def one(mutation):
            tree = trees.get()
            try:
                return tree.try_one(mutation)
            except RuntimeError as error:
                return error
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for mutation, how in zip(chosen, pool.map(one, chosen)):
                broken = isinstance(how, RuntimeError)
                caught += how is not None and not broken
                print(f"{'BROKEN  ' if broken else 'caught  ' if how else 'SURVIVED'}  {mutation[0]}: {mutation[3]}",
                      flush=True)
                if how:
                    print(f"            {how}", flush=True)
    print(f"{caught} of {len(chosen)} faults caught")
    return 0 if caught == len(chosen) and chosen else 1


if __name__ == "__main__":
    sys.exit(main())
