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

    def predictor(self):
        sys.path.insert(0, str(ROOT / "bench"))
        self.addCleanup(sys.path.remove, str(ROOT / "bench"))
        import gpu_predict
        return gpu_predict

    OPERATION = {"name": "k<1>", "times": 2, "grid": [132, 1, 1], "threads": 512, "dynamic_shared": 0, "blocks": 132,
                 "barriers": 3, "load_sectors": 1000, "store_sectors": 1000, "load_ideal_sectors": 500,
                 "store_ideal_sectors": 500, "load_memory_sectors": 93750, "store_memory_sectors": 0,
                 "shared_wavefronts": 0, "shared_ideal_wavefronts": 0, "fma_flops": 0, "tf32_flops": 0, "bf16_flops": 0}

    def test_a_launch_takes_its_slowest_resource(self):
        p = self.predictor()
        h100 = p.DEVICES["H100"]

        def time_of(**changes):
            seconds, bound = p.predict(dict(self.OPERATION, **changes), h100, {})
            return round((seconds - p.LAUNCH) * 1e6, 6), bound

        self.assertEqual(time_of(), (1.0, "launch"))  # 3 MB at 3 TB/s, less than the launch itself
        self.assertEqual(time_of(load_memory_sectors=937500), (10.0, "memory"))
        # Half the threads that memory needs: half its rate. 133 blocks: the busiest of 132 has two.
        self.assertEqual(time_of(load_memory_sectors=937500, threads=256), (20.0, "memory"))
        work = int(0.6 * 798e12 * 1e-5)
        self.assertEqual(time_of(bf16_flops=work)[1], "bf16")
        self.assertAlmostEqual(time_of(bf16_flops=work)[0], 10, 3)
        self.assertAlmostEqual(time_of(bf16_flops=work, blocks=133)[0], 10 * 264 / 133, 3)
        self.assertAlmostEqual(time_of(shared_wavefronts=132 * 17550)[0], 10, 3)
        self.assertEqual(p.predict(dict(self.OPERATION, name="copy from host", grid=[0, 0, 0]), h100, {})[0], 0)

    def test_resident_blocks_come_from_the_report(self):
        p = self.predictor()
        report = self.base / "registers.txt"
        report.write_text("sm_90  file: k<1>    512    128    1024      0      0      1       25%\n"
                          "268 compiled kernels, 0 with spilled registers\n")
        registers = p.read_registers(report)
        self.assertEqual(registers, {("sm_90", "k<1>"): 1})
        self.assertEqual(p.resident_blocks(self.OPERATION, p.DEVICES["H100"], registers), 1)
        self.assertEqual(p.resident_blocks(self.OPERATION, p.DEVICES["H100"], {}), 4)
        self.assertEqual(p.resident_blocks(dict(self.OPERATION, dynamic_shared=100 << 10), p.DEVICES["A100"], {}), 1)

    def test_predictions_stand_beside_measurements(self):
        counts = {"operations": [self.OPERATION], "least": {"forward_read": 1.0}}
        program = self.base / "count_step"
        program.write_text("#!/bin/sh\necho '%s'\n" % json.dumps(counts))
        program.chmod(0o755)
        measured = self.base / "gpu-bench.json"
        peak = {"device": "Some H100", "compute_capability": "9.0", "multiprocessors": 132,
                "copy_bytes_per_second": 3e12, "matmul_flops": {"fp32": 5e13, "tf32": 4e14, "bf16": 8e14}}
        rows = [{"network": "resnet20:tau", "precision": "bf16", "batch": 10, "images_per_second": 1e6},
                {"network": "resnet20:bn", "precision": "bf16", "batch": 10, "failed": "why"}]
        measured.write_text(json.dumps({"peak": peak, "rows": rows}))
        common = ["--build", self.base, "--count-step", program]
        done = self.run_script("gpu_predict.py", *common, "--measured", measured)
        self.assertEqual(done.returncode, 0, done.stderr)
        # Two launches of 1 us and 1.5 us of their own: 10 images in 5 us.
        self.assertIn("| resnet20:tau | bf16 | 2000000 | 1000000 | 2.00 |", done.stdout)
        done = self.run_script("gpu_predict.py", *common, "--network", "resnet20:tau:10")
        self.assertIn("PREDICTED", done.stdout)
        self.assertIn("| resnet20:tau:10 bf16 | 2 |", done.stdout)
        measured.write_text(json.dumps({"peak": None, "rows": []}))
        done = self.run_script("gpu_predict.py", *common, "--measured", measured)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no peaks of a device", done.stderr)

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
