#!/usr/bin/env python3
"""Plants faults in copies of the sources (mutations.py), one at a time, and runs the tests that must notice.

    tests/simt/mutate.py BUILD [PATTERN]     BUILD: the build folder, with simt/ built; PATTERN: only those whose
                                             "FILE: WHAT" it matches
    tests/simt/mutate.py --check             only looks whether every text stands once in its file

A fault is caught when a test fails, the machine stops the program, or results differ between thread orders. Exit 0
when all are caught. What was caught in one build is not built in the other, and a program ends at its first failure.
Faults are printed as they are done, those with the smallest tests first."""
import concurrent.futures
import os
import pathlib
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run as runner  # noqa: E402
from mutations import MUTATIONS  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COPIED = ["Makefile", "bench/gpu.mk", "kernels", "tests/simt", "tests/support",
          "tests/unit/temp_folder.h", "src", "include"]
BUILT = ["simt/plain", "simt/check", "src", "tests/support", "libtaunet.a", "found"]
ARCHIVES = ["simt/plain/libtested.a", "simt/check/libtested.a", "libtaunet.a"]
# A program has this much of a processor's time (a fault may make it run for ever), and this long on a busy machine.
PROCESSOR_SECONDS, SECONDS = 400, 3000
ENDED = re.compile(rb"^\[  FAILED  \] ", re.M)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)


def link(source, target):
    """Objects and archives are replaced, never written to: a second name will do. Programs are made when needed."""
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        to = target / path.relative_to(source) if source.is_dir() else target
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".o", ".a"):
            os.link(path, to)
        elif path.suffix in (".d", ""):
            if path.suffix or path.name == "found":
                shutil.copy2(path, to)


def run(program, seed):
    """Like runner.run, but ends the program at its first failure."""
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 5))
    process = subprocess.Popen([program], env=runner.environment(program, seed), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                               preexec_fn=limit)
    late = threading.Timer(SECONDS, lambda: os.killpg(process.pid, signal.SIGKILL))
    late.start()
    output = b""
    for line in process.stdout:
        output += line
        if ENDED.match(line):
            os.killpg(process.pid, signal.SIGTERM)
            break
    process.stdout.close()
    code = process.wait()
    late.cancel()
    return code, output.decode(errors="replace"), 0


class Tree:
    """A copy of what the tests are built from, objects included."""

    def __init__(self, folder, build):
        self.root = folder
        for name in COPIED:
            copy(ROOT / name, folder / name)
        for name in BUILT:
            if (build / name).exists():
                link(build / name, folder / "build" / name)

    def built_from(self, sources):
        """Everything that compiling these sources replaces."""
        files = [self.root / "build" / name for name in ARCHIVES]
        for folder in ("build/simt/plain", "build/simt/check", "build"):
            files += [self.root / folder / pathlib.PurePath(source).with_suffix(".o") for source in sources]
        return [path for path in files if path.exists()]

    def make(self, build, programs):
        targets = [f"build/simt/{build}/{name}" for name in programs]
        command = ["make", "--no-print-directory", "-s", "SIMT_WARN=-w", "SIMT_DEBUG=", "CUDA=no", *targets]
        done = subprocess.run(command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"does not compile:\n{done.stdout[-2000:]}")

    def tests(self, build, programs):
        """Runs the programs in one build until one notices; returns how, or None."""
        self.make(build, programs)
        for name in programs:
            first = None
            for seed in runner.orders(f"{build}/{name}"):
                result = run(str(self.root / f"build/simt/{build}/{name}"), seed)
                first = first or result[1]
                problem = runner.judge(f"{build}/{name}", seed, result, first)
                if problem:
                    return f"{build}, seed {seed}: {shorten(problem)}"
        return None

    def try_one(self, mutation):
        file, text, replacement, _, programs = mutation[:5]
        sources = mutation[5] if len(mutation) > 5 else [file]
        aside = {path: path.with_suffix(path.suffix + ".aside") for path in self.built_from(sources)}
        path = self.root / file
        original, times = path.read_text(), path.stat()
        programs = ["test_" + name for name in programs.split()]
        try:
            for name, other in aside.items():
                name.rename(other)
            path.write_text(original.replace(text, replacement))
            # A header: only the objects that are missing now see it.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            # The instrumented build notices more, the other one is quicker for whole engines.
            builds = ("plain", "check") if programs[0].startswith("test_cuda") else ("check", "plain")
            return self.tests(builds[0], programs) or self.tests(builds[1], programs)
        finally:
            path.write_text(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            for name, other in aside.items():
                other.replace(name)


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
    chosen.sort(key=lambda m: runner.cost(m[4]))
    caught = 0
    with tempfile.TemporaryDirectory(prefix="mutate-", dir=build) as folder:
        jobs = min(runner.JOBS, len(chosen)) or 1
        trees = queue.Queue()
        for number in range(jobs):
            trees.put(Tree(pathlib.Path(folder) / str(number), build))

        def one(mutation):
            tree = trees.get()
            try:
                return mutation, tree.try_one(mutation)
            except RuntimeError as error:
                return mutation, error
            finally:
                trees.put(tree)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(one, m) for m in chosen]):
                mutation, how = done.result()
                broken = isinstance(how, RuntimeError)
                caught += how is not None and not broken
                print(f"{'BROKEN  ' if broken else 'caught  ' if how else 'SURVIVED'}  {mutation[0]}: {mutation[3]}")
                if how:
                    print(f"            {how}")
                sys.stdout.flush()
    print(f"{caught} of {len(chosen)} faults caught")
    return 0 if caught == len(chosen) and chosen else 1


if __name__ == "__main__":
    sys.exit(main())
