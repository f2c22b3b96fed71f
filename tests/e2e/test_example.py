"""examples/train.c builds against the library with its public headers alone, and what it trains learns."""
import os
import pathlib
import re
import subprocess

import harness
from harness import Case

BUILD = pathlib.Path(os.environ.get("TAUNET_BUILD") or pathlib.Path(harness.PROGRAM).parent)
SANITIZE = ["-fsanitize=address,undefined"] if harness.SANITIZED else []


def libraries():
    """What a program links with beside the library; the Makefile knows."""
    return subprocess.run(["make", "-s", "link-flags"], cwd=harness.ROOT, capture_output=True, text=True, check=True,
                          timeout=harness.TIMEOUT).stdout.split()


class Example(Case):
    def build(self, source, *flags):
        program = self.base / "example"
        subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-Wall", "-Wextra", "-Werror", *flags, *SANITIZE,
                        f"-I{harness.ROOT / 'include'}", source, BUILD / "libtaunet.a", *libraries(), "-o", program],
                       check=True, timeout=harness.TIMEOUT)
        return program

    def run_example(self, program, *args):
        return subprocess.run([program, *args], capture_output=True, text=True, timeout=harness.TIMEOUT,
                              env=harness.environment())

    def test_it_learns(self):
        program = self.build(harness.ROOT / "examples" / "train.c")
        result = self.run_example(program)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        losses = [float(x) for x in re.findall(r"^train loss ([\d.]+), top-1 [\d.]+ %$", result.stdout, re.M)]
        hits = [float(x) for x in re.findall(r"^val loss [\d.]+, top-1 ([\d.]+) %$", result.stdout, re.M)]
        self.assertEqual((len(losses), len(hits)), (8, 8))
        self.assertLess(losses[-1], losses[0])
        self.assertGreater(hits[-1], 60)  # chance is 25

        other = self.run_example(program, "synthetic:1x9x7:2:60")
        self.assertEqual(other.returncode, 0, other.stderr)
        for spec in ("nothing", f"cifar10:{self.base}/none", "synthetic:3x8x8:2:20"):
            failed = self.run_example(program, spec)
            self.assertEqual(failed.returncode, 1)
            self.assertRegex(failed.stderr, r"\Atrain: [^\n]+\n\Z")

    def test_public_headers_stand_alone(self):
        """Each header can be included first, alone and twice, also from C++ where there is a compiler for it."""
        source = (harness.ROOT / "examples" / "train.c").read_text()
        self.assertEqual({m.split("/")[0] for m in re.findall(r'#include "([^"]+)"', source)}, {"taunet"})
        for header in sorted((harness.ROOT / "include" / "taunet").glob("*.h")):
            for compiler, language in ((os.environ.get("CC", "cc"), "c"), ("c++", "c++")):
                text = f'#include "taunet/{header.name}"\n' * 2
                standard = "-std=c11" if language == "c" else "-std=c++17"
                try:
                    subprocess.run([compiler, "-x", language, standard, "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                                    f"-I{harness.ROOT / 'include'}", "-"], input=text, text=True, check=True, timeout=60)
                except FileNotFoundError:
                    self.assertEqual(language, "c++")
