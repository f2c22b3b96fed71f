"""Killed at any moment, or out of disk space at any moment, a run loses nothing: resumed, it ends like one that went
straight through."""
import concurrent.futures
import os
import random
import shutil
import signal
import subprocess
import time

import harness
from harness import Case

# Epochs of two steps, so that a run spends most of its time between and in saves.
TRAIN = ["train", "--model", "resnet8", "--data", "synthetic:1x8x8:4:16", "--batch", 8, "--micro-batch", 4, "--mixup",
         1, "--log-every", 1, "--save-every", 1, "--keep", 1]


def by_epoch(folder):
    """The logged epochs as TensorBoard's curves should show them."""
    curves = {}
    for line in harness.log(folder):
        prefix, step = ("step/", line["step"]) if line["event"] == "step" else ("epoch/", 2 * (line.get("epoch", 0) + 1))
        if line["event"] in ("step", "epoch"):
            for key, value in line.items():
                if key not in ("event", "step", "epoch") and value is not None:
                    curves.setdefault(prefix + key, []).append((step, value))
    return curves


class Crash(Case):
    @classmethod
    def setUpClass(cls):
        cls.faults = harness.build_faults(cls)

    def with_fault(self, fault, folder, *args):
        return harness.taunet(*TRAIN, *args, "--out", folder,
                              env=harness.environment(LD_PRELOAD=self.faults, FAULT=fault,
                                                      ASAN_OPTIONS="verify_asan_link_order=0"))

    def reference(self, folder, *args):
        """A run that nothing happens to. Gives the numbers of its calls that change files, without most of the writes
        within a checkpoint, where one is like the next."""
        path = self.base / "calls"
        result = self.with_fault(f"list:{path}", folder, *args)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        calls = path.read_text().split("\n")[:-1]
        self.assertEqual({call.split()[0] for call in calls}, {"mkdir", "openat", "write", "fsync", "renameat", "unlink"})
        return [n for n, call in enumerate(calls, 1)
                if n % 11 == 0 or n in (1, len(calls)) or not calls[n - 2] == call == calls[n]]

    def assert_as_if_nothing_had_happened(self, reference, folder, torn=False):
        self.assert_same_run(reference, folder)
        self.assert_no_temporary_files(folder)
        self.assertEqual({p.name for p in folder.iterdir() if "tfevents" not in p.name},
                         {p.name for p in reference.iterdir() if "tfevents" not in p.name})
        self.assert_curves(folder, torn)

    def assert_curves(self, folder, torn):
        shown, logged = harness.curves(folder, torn), by_epoch(folder)
        for tag, points in logged.items():
            self.assertEqual([step for step, _ in points], [step for step, _ in shown[tag]], tag)
            for (step, value), (_, seen) in zip(points, shown[tag]):
                self.assertAlmostEqual(value, seen, delta=1e-6 * abs(value), msg=f"{tag} at {step}")
        self.assertEqual({tag for tag in shown if tag.rsplit("/")[-1] not in harness.TIMES}, set(logged))

    def each(self, trial, calls):
        """trial(n) for the calls, two at a time; the first failure is raised."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(trial, n) for n in calls]:
                done.result()

    def test_killed_at_each_change_of_a_file(self):
        length = ["--epochs", 2, "--threads", 1]
        reference = self.base / "reference"
        calls = self.reference(reference, *length)
        self.assertGreater(len(calls), 50)

        def trial(n):
            folder = self.base / str(n)
            result = self.with_fault(f"kill:{n}", folder, *length)
            self.assertEqual(result.returncode, -signal.SIGKILL, f"call {n}: {result.stderr}")
            if (folder / "last.safetensors").exists():
                harness.read_safetensors(folder / "last.safetensors")
            self.succeed(*TRAIN, *length, "--out", folder, "--resume")
            self.assert_as_if_nothing_had_happened(reference, folder, torn=True)

        self.each(trial, calls)

    def test_disk_full_at_each_change_of_a_file(self):
        length = ["--epochs", 2, "--threads", 1]
        reference = self.base / "reference"
        calls = self.reference(reference, *length)

        def trial(n):
            folder = self.base / str(n)
            result = self.with_fault(f"full:{n}", folder, *length)
            if result.returncode == 0:  # only calls that need no space followed
                self.assertGreater(n, calls[-1] - 4)
            else:
                self.assert_refused(result, 1, "No space left on device")
            saved = folder / "last.safetensors"
            if saved.exists():
                self.assert_loads(saved)
            if folder.exists():
                self.assert_no_temporary_files(folder)
            self.succeed(*TRAIN, *length, "--out", folder, "--resume")
            self.assert_as_if_nothing_had_happened(reference, folder)

        self.each(trial, calls)

    def assert_loads(self, checkpoint):
        self.succeed("eval", "--checkpoint", checkpoint, "--data", TRAIN[4])

    def test_killed_at_random_moments(self):
        rng, length = random.Random(1), ["--epochs", 60, "--threads", 2]
        straight, folder = self.base / "straight", self.base / "killed"
        begun = time.monotonic()
        self.succeed(*TRAIN, *length, "--out", straight)
        duration = time.monotonic() - begun
        kills = 0
        for attempt in range(24):
            # Some at once, the others after up to a quarter of a run: also the last ones find one that is not done.
            delay = rng.uniform(0, 0.03 if attempt % 4 == 0 else duration / 4)
            process = subprocess.Popen([harness.PROGRAM, *map(str, TRAIN + length), "--out", str(folder), "--resume"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
            kills += process.wait() == -signal.SIGKILL
            self.assertIn(process.returncode, (0, -signal.SIGKILL), process.stderr.read())
            process.stderr.close()
        self.assertGreaterEqual(kills, 6)
        self.succeed(*TRAIN, *length, "--out", folder, "--resume")
        self.assert_as_if_nothing_had_happened(straight, folder, torn=True)

    def test_killed_while_a_temporary_file_stands(self):
        rng, length = random.Random(2), ["--epochs", 30, "--threads", 2]
        straight, folder = self.base / "straight", self.base / "killed"
        self.succeed(*TRAIN, *length, "--out", straight)
        left = 0
        for _ in range(12):
            process = harness.start(*TRAIN, *length, "--out", folder, "--resume")
            skip = rng.randrange(1, 8)
            seen = set()
            while process.poll() is None and len(seen) < skip:
                names = os.listdir(folder) if folder.exists() else []
                seen.update(name for name in names if name.endswith(".tn-tmp"))
            process.kill()
            process.communicate()
            left += any(name.endswith(".tn-tmp") for name in os.listdir(folder))
        self.assertGreater(left, 0, "no kill fell into a save")
        self.succeed(*TRAIN, *length, "--out", folder, "--resume")
        self.assert_as_if_nothing_had_happened(straight, folder, torn=True)

    def test_overwriting_killed_at_each_change_of_a_file(self):
        """A run that is being replaced can be replaced again, or resumed from nothing."""
        length = ["--epochs", 1, "--threads", 1]
        reference, old = self.base / "reference", self.base / "old"
        self.succeed(*TRAIN, *length, "--out", old)
        shutil.copytree(old, reference)
        calls = self.reference(reference, *length, "--seed", 3, "--overwrite")

        def trial(n):
            for again in ("--overwrite", "--resume"):
                folder = self.base / f"{n}{again}"
                shutil.copytree(old, folder)
                result = self.with_fault(f"kill:{n}", folder, *length, "--seed", 3, "--overwrite")
                self.assertEqual(result.returncode, -signal.SIGKILL)
                if again == "--resume" and (folder / "config.toml").exists():
                    if "seed = 3" not in (folder / "config.toml").read_text():
                        continue  # still the old run
                self.succeed(*TRAIN, *length, "--seed", 3, "--out", folder, again)
                self.assert_as_if_nothing_had_happened(reference, folder, torn=True)

        self.each(trial, [n for n in calls if n <= 24])  # the rest is as in any new run
