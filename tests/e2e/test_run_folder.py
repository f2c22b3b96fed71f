"""Whose a run's folder is, and what may change in it."""
import harness
from harness import Case

DATA = "synthetic:3x8x8:4:64"


def train(*more):
    return ["train", "--model", "resnet8", "--data", DATA, "--batch", 16, "--log-every", 1, *more]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class RunFolder(Case):
    def setUp(self):
        super().setUp()
        self.folder = self.base / "run"

    def test_another_run_is_refused(self):
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        before = contents(self.folder)
        self.refuse(2, ["--out", str(self.folder), "another run", "--resume", "--overwrite"],
                    *train("--epochs", 1, "--out", self.folder))
        self.assertEqual(contents(self.folder), before)

    def test_overwrite_replaces(self):
        self.succeed(*train("--epochs", 2, "--keep", 2, "--out", self.folder))
        (self.folder / "notes.txt").write_text("mine")
        self.succeed(*train("--epochs", 1, "--seed", 7, "--out", self.folder, "--overwrite"))
        self.succeed(*train("--epochs", 1, "--seed", 7, "--out", self.base / "fresh"))
        self.assert_same_run(self.base / "fresh", self.folder)
        self.assertEqual((self.folder / "notes.txt").read_text(), "mine")
        self.assertEqual(len(list(self.folder.glob("events.*"))), 1)

    def test_overwrite_deletes_nothing_when_it_cannot_start(self):
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        before = contents(self.folder)
        for what in (["--data", f"cifar10:{self.base}/none"], ["--batch", 65], ["--model", "resnet21"],
                     ["--init", self.base / "none.safetensors"], ["--device", "cuda"], ["--precision", "bf16"],
                     ["--mean", "1,2"], ["--profile", self.base / "none" / "trace.json"],
                     ["--init", self.folder / "config.toml"], ["--resume"]):
            with self.subTest(what):
                result = harness.taunet(*train("--epochs", 1, "--out", self.folder, "--overwrite", *what))
                self.assertIn(result.returncode, (1, 2))
                self.assert_refused(result, result.returncode, "")
                self.assertEqual(contents(self.folder), before)

    def test_resume_of_nothing_starts(self):
        self.succeed(*train("--epochs", 1, "--out", self.base / "fresh"))
        self.succeed(*train("--epochs", 1, "--out", self.folder, "--resume"))
        self.assert_same_run(self.base / "fresh", self.folder)
        empty = self.base / "empty"
        empty.mkdir()
        self.succeed(*train("--epochs", 1, "--out", empty, "--resume"))
        self.assert_same_run(self.base / "fresh", empty)

    def test_resume_needs_what_a_run_needs(self):
        self.refuse(2, "--out", *train("--resume"))
        self.refuse(2, "--data", "train", "--resume", "--out", self.folder)
        self.assertFalse(self.folder.exists())

    def test_a_second_process_is_refused(self):
        first = harness.start("train", "--model", "resnet8", "--data", "synthetic:3x32x32:4:4000", "--batch", 40,
                              "--log-every", 1, "--epochs", 5, "--out", self.folder)
        log = self.folder / "log.jsonl"
        harness.wait_until(lambda: first.poll() is not None or log.exists() and '"step":2' in log.read_text(), "step 2")
        for more in ([], ["--resume"], ["--overwrite"]):
            self.refuse(2, ["--out", str(self.folder), "another process"],
                        *train("--epochs", 1, "--out", self.folder, *more))
        self.assertIsNone(first.poll())
        first.terminate()
        first.communicate(timeout=harness.TIMEOUT)
        self.assertEqual(first.returncode, 143)
        self.assertEqual([e["step"] for e in harness.events(self.folder, "step")],
                         list(range(1, 1 + len(harness.events(self.folder, "step")))))
        self.refuse(2, "another run", *train("--epochs", 1, "--out", self.folder))  # the lock is gone, the run is not

    def test_what_must_stay(self):
        self.succeed(*train("--epochs", 1, "--tau", "1/L", "--out", self.folder))
        before = contents(self.folder)
        for option, old, new in (("batch", 16, 32), ("model", "resnet8", "resnet14"), ("variant", "tau", "bn"),
                                 ("tau", "1/L", "0.25"), ("lr", 0.1, 0.2), ("seed", 0, 1), ("augment", "standard", "none"),
                                 ("mixup", 0, 0.5), ("schedule", "step:100,150:0.1", "cosine"), ("micro-batch", "auto", 4),
                                 ("data", DATA, "synthetic:3x8x8:4:80"), ("shuffle", "yes", "no")):
            with self.subTest(option):
                self.refuse(2, [f"--{option}", str(old), str(new)], "train", "--resume", "--out", self.folder,
                            f"--{option}", new)
                self.assertEqual(contents(self.folder), before)

    def test_what_may_change(self):
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        moved = self.base / "moved"
        self.folder.rename(moved)
        self.succeed("train", "--resume", "--out", moved, "--epochs", 2, "--threads", 1, "--keep", 1, "--eval-every", 1,
                     "--log-every", 1)
        self.succeed(*train("--epochs", 2, "--out", self.base / "straight", "--keep", 1))
        self.assert_same_run(self.base / "straight", moved, but=("steps", "threads", "peak_bytes"))

    def test_moved_data(self):
        spec = harness.make_cifar10(self.base / "data")
        command = ["--model", "resnet8", "--batch", 32, "--micro-batch", 8]
        self.succeed("train", "--data", spec, *command, "--epochs", 1, "--out", self.folder)
        (self.base / "data").rename(self.base / "elsewhere")
        self.refuse(1, str(self.base / "data"), "train", "--resume", "--out", self.folder, "--epochs", 2)
        self.succeed("train", "--resume", "--out", self.folder, "--epochs", 2, "--data", f"cifar10:{self.base}/elsewhere")
        other = harness.make_cifar10(self.base / "other", train=96)
        self.refuse(1, [other, "96", "64"], "train", "--resume", "--out", self.folder, "--epochs", 3, "--data", other)

    def test_checkpoint_without_a_run(self):
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        (self.folder / "config.toml").unlink()
        self.refuse(1, ["last.safetensors", "config.toml"], *train("--epochs", 1, "--out", self.folder, "--resume"))

    def test_lost_lines(self):
        """A log that is shorter than the checkpoint knows is not continued as if nothing were missing."""
        self.succeed(*train("--epochs", 2, "--out", self.folder))
        log = self.folder / "log.jsonl"
        log.write_bytes(log.read_bytes()[:200])
        self.refuse(1, ["log.jsonl", "lines are missing"], *train("--epochs", 3, "--out", self.folder, "--resume"))
        self.assertEqual(log.stat().st_size, 200)

    def test_damaged_position(self):
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        last = self.folder / "last.safetensors"
        metadata, tensors = harness.read_safetensors(last)
        for key, value in (("step", "four"), ("step", "1e400"), ("step", "-4"), ("step", "99999999999999999999"),
                           ("epoch_rows", "1.5"), ("log_bytes", ""), ("best_top1", "nan"), ("step", None)):
            with self.subTest(key=key, value=value):
                changed = {k: v for k, v in metadata.items() if k != key} | ({key: value} if value is not None else {})
                harness.write_safetensors(last, changed, tensors)
                self.refuse(1, ["last.safetensors", ""], *train("--epochs", 2, "--out", self.folder, "--resume"))

    def test_temporary_files_of_others_stay(self):
        self.folder.mkdir()
        stale = self.folder / "last.safetensors.999999.0.tn-tmp"
        stale.write_text("torn")
        mine = self.folder / "report.tn-tmp"  # not a name that the program gives
        mine.write_text("mine")
        self.succeed(*train("--epochs", 1, "--out", self.folder))
        self.assertFalse(stale.exists())
        self.assertTrue(mine.exists())

    def test_nothing_is_left_of_a_run_that_did_not_start(self):
        for out in ("a/b/c", "a/b/c/", "./d"):
            with self.subTest(out):
                self.refuse(1, "none", *train("--epochs", 1, "--data", f"mnist:{self.base}/none", "--out", out),
                            cwd=self.base)
                self.assertEqual(list(self.base.iterdir()), [])
        (self.base / "a" / "b").mkdir(parents=True)
        self.refuse(1, "none", *train("--data", f"mnist:{self.base}/none", "--out", "a/b/c"), cwd=self.base)
        self.assertEqual([p.name for p in self.base.rglob("*")], ["a", "b"])

    def test_out_is_a_file(self):
        file = self.base / "file"
        file.write_text("mine")
        self.refuse(1, ["--out", str(file)], *train("--out", file))
        self.refuse(1, ["--out", str(file)], *train("--out", file / "run"))
        self.assertEqual(file.read_text(), "mine")
