"""The scripts for a machine with a GPU, as far as they go without one: the benchmark's dry run on the CPU beside a
peer that only pretends, and a whole day in which every step says why it did not run."""
import json
import subprocess
import sys
import tarfile

from harness import PROGRAM, ROOT, Case

# Answers as bench_torch.py does, twice as fast at every measurement.
PEER = """#!/usr/bin/env python3
import sys
if "-c" in sys.argv:
    print("2.15.0 True")
else:
    assert sys.argv[sys.argv.index("--precision") + 1] == "fp32" and "--serve" in sys.argv, sys.argv
    rate = 100
    print('{"version": "2.15.0", "images_per_second": %d}' % rate, flush=True)
    for line in sys.stdin:
        rate *= 2
        print('{"version": "2.15.0", "images_per_second": %d}' % rate, flush=True)
"""


class Scripts(Case):
    def run_script(self, name, *args):
        return subprocess.run([sys.executable, ROOT / "bench" / name, *map(str, args)], capture_output=True, text=True,
                              timeout=120, cwd=ROOT)

    def test_dry_run_of_the_benchmark(self):
        peer, out = self.base / "python", self.base / "out"
        peer.write_text(PEER)
        peer.chmod(0o755)
        done = self.run_script("gpu_bench.py", "--out", out, "--device", "cpu", "--dry-run", "--taunet", PROGRAM,
                               "--python", peer, "--network", "resnet8:tau:64", "--network", "resnet7:tau:64")
        self.assertEqual(done.returncode, 1, done.stderr)  # there is no resnet7
        report = json.loads((out / "gpu-bench.json").read_text())
        good, bad = report["rows"]
        self.assertEqual((good["network"], good["batch"], good["precision"]), ("resnet8:tau", 8, "fp32"))
        self.assertEqual(good["peer"], [200])
        self.assertEqual(len(good["rates"]), 1)
        self.assertAlmostEqual(good["ratio"], good["rates"][0] / 200)
        self.assertGreater(good["matmul_share"], 0)
        self.assertTrue(report["dry_run"])
        self.assertIn("resnet7", bad["failed"])
        text = (out / "gpu-bench.md").read_text()
        self.assertEqual(text, done.stdout)
        self.assertIn("| resnet8:tau | 8 | fp32 | %.0f |" % good["rates"][0], text)
        self.assertIn("the figures mean nothing", text)
        self.assertIn("PyTorch 2.15.0", text)

    def test_shares_of_the_peaks(self):
        sys.path.insert(0, str(ROOT / "bench"))
        self.addCleanup(sys.path.remove, str(ROOT / "bench"))
        import gpu_bench
        row = {"precision": "bf16", "rates": [90.0, 100.0, 110.0], "peer": [50.0, 50.0, 50.0],
               "taunet": {"gflops": 30.0, "images_per_second": 90.0}}
        peak = {"matmul_flops": {"bf16": 1e12}, "copy_bytes_per_second": 1e9}
        gpu_bench.add_shares(row, 1000, peak)
        self.assertEqual((row["images_per_second"], row["peer_images_per_second"], row["ratio"]), (100, 50, 2))
        self.assertAlmostEqual(row["matmul_share"], 30e9 / 90 * 100 / 1e12)
        self.assertAlmostEqual(row["copy_share"], 5 * 1000 * 2 * 100 / 1e9)

    def test_activations_are_counted(self):
        sys.path.insert(0, str(ROOT / "bench"))
        self.addCleanup(sys.path.remove, str(ROOT / "bench"))
        import argparse
        import gpu_bench
        # 3 stages of ResNet-8: the first convolution and two in the block, two and the shortcut, then pool and linear.
        count = gpu_bench.activation_values(("resnet8", "tau"), argparse.Namespace(taunet=PROGRAM))
        convolutions = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8
        self.assertGreaterEqual(count, convolutions + 64 + 10)
        self.assertLess(count, 1.6 * convolutions)

    def test_a_day_without_a_compiler(self):
        done = self.run_script("gpu_day.py", "--out", self.base, "--nvcc", "")
        self.assertEqual(done.returncode, 0, done.stderr)
        archive = done.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            names = {name.rpartition("/")[2]: name for name in tar.getnames()}
            summary = json.load(tar.extractfile(names["summary.json"]))
            facts = tar.extractfile(names["hardware.txt"]).read().decode()
        self.assertIn("$ uname -a\nLinux", facts)
        self.assertEqual([step["step"] for step in summary["steps"]],
                         ["build", "cuda-report", "parity", "sanitizer", "bench", "prediction"])
        for step in summary["steps"]:
            self.assertEqual(step["status"], "skipped", step)
            self.assertTrue(step["reason"], step)

    def test_a_failing_step_is_noted_and_not_the_last(self):
        script = ("import pathlib, sys; sys.path.insert(0, %r); import gpu_day; from argparse import Namespace; "
                  "o = Namespace(folder=pathlib.Path(%r), nvcc=''); "
                  "print(gpu_day.run_step(1, 'a', [['false'], ['echo', 'later'], ['/no/such']], 60, o)); "
                  "print(gpu_day.run_step(2, 'b', [['sleep', '60']], 1, o))"
                  % (str(ROOT / "bench"), str(self.base)))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        self.assertIn("2 of 3 commands failed", done.stdout, done.stderr)
        self.assertIn("'exit': 124", done.stdout)
        self.assertIn("later", (self.base / "01-a.log").read_text())
        self.assertIn("over the limit", (self.base / "02-b.log").read_text())
