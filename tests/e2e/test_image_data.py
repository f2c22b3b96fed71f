"""Folders of images and tar shards: training, evaluation, resuming, damaged images, and datasets/pack."""
import io
import json
import os
import pathlib
import signal
import subprocess
import tarfile
import time
import unittest

import harness
from harness import Case

PACK = harness.ROOT / "datasets" / "pack"
SMALL = ["--model", "resnet8", "--image-size", "16", "--batch", "8", "--lr", "0.02", "--log-every", "1"]


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in log(folder) if line["event"] == "step"]


def shard(path, samples, **options):
    """samples: [(key, label, extension, bytes)]"""
    with tarfile.open(path, "w", **options) as tar:
        for key, label, extension, content in samples:
            for name, data in ((f"{key}.cls", str(label).encode()), (f"{key}.{extension}", content)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


class ImageData(Case):
    def setUp(self):
        super().setUp()
        self.data = self.base / "images"

    def train(self, spec, out, *more):
        return self.succeed("train", *SMALL, "--data", spec, "--out", self.base / out, *more)

    def test_a_folder_trains_and_evaluates(self):
        spec = harness.make_folder(self.data)
        self.train(spec, "run", "--epochs", 6, "--resize", 18)
        epochs = [line for line in log(self.base / "run") if line["event"] == "epoch"]
        self.assertEqual(len(epochs), 6)
        self.assertGreater(epochs[-1]["val_top1"], 60)  # chance is 25
        start = log(self.base / "run")[0]
        self.assertEqual((start["train_images"], start["val_images"], start["classes"]), (48, 16, 4))
        # Without sizes: those of training.
        result = json.loads(self.succeed("eval", "--checkpoint", self.base / "run" / "last.safetensors", "--data", spec,
                                         "--json").stdout)
        self.assertAlmostEqual(result["loss"], epochs[-1]["val_loss"], places=5)
        self.assertEqual((result["top1"], result["images"]), (epochs[-1]["val_top1"], 16))
        other = json.loads(self.succeed("eval", "--checkpoint", self.base / "run" / "last.safetensors", "--data", spec,
                                        "--json", "--resize", 30).stdout)
        self.assertNotEqual(other["loss"], result["loss"])
        self.refuse(1, ["3x16x16", "3x17x17"], "eval", "--checkpoint", self.base / "run" / "last.safetensors", "--data",
                    spec, "--image-size", 17)

    def test_threads_and_resuming_change_nothing(self):
        spec = harness.make_folder(self.data)
        self.train(spec, "one", "--epochs", 3, "--threads", 1)
        self.train(spec, "three", "--epochs", 3, "--threads", 3)
        self.train(spec, "two", "--steps", 7)
        self.succeed("train", "--resume", "--out", self.base / "two", "--steps", 0, "--epochs", 3)
        whole = losses(self.base / "one")
        self.assertEqual(len(whole), 18)
        self.assertEqual(whole, losses(self.base / "three"))
        self.assertEqual(whole, losses(self.base / "two"))
        self.train(spec, "seed", "--epochs", 3, "--seed", 1)
        self.assertNotEqual(whole, losses(self.base / "seed"))

    def test_shards_of_python(self):
        harness.make_folder(self.data)
        for form, name in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax"), (tarfile.USTAR_FORMAT, "ustar")):
            with self.subTest(form=name):
                out = self.base / name
                out.mkdir()
                for split in ("train", "val"):
                    files = sorted((self.data / split).rglob("*.png"))
                    prefix = "x" * 70 + "/" + "y" * (70 if name != "ustar" else 10) + "/"
                    samples = [(f"{prefix}{i:04d}", f.parent.name[-1], "png", f.read_bytes()) for i, f in enumerate(files)]
                    half = len(samples) // 2
                    shard(out / f"my-{split}-0.tar", samples[:half], format=form)
                    shard(out / f"my-{split}-1.tar", samples[half:], format=form)
                self.train(f"webdataset:{out}", f"run-{name}", "--epochs", 1)
                self.assertEqual(sorted(p.name for p in out.glob("*.index")),
                                 [f"my-{split}-{i}.tar.index" for split in ("train", "val") for i in (0, 1)])
                # Kept: with another number in it the run has another length.
                before = (out / "my-train-0.tar.index").stat().st_mtime_ns
                self.train(f"webdataset:{out}", f"again-{name}", "--epochs", 1)
                self.assertEqual((out / "my-train-0.tar.index").stat().st_mtime_ns, before)
                self.assertEqual(losses(self.base / f"run-{name}"), losses(self.base / f"again-{name}"))
        self.assertEqual(losses(self.base / "run-gnu"), losses(self.base / "run-pax"))
        # Validation goes through the files in order: the same images as in the folder.
        checkpoint = self.base / "run-gnu" / "last.safetensors"
        outputs = []
        for spec in (f"folder:{self.data}", f"webdataset:{self.base / 'ustar'}"):
            self.succeed("eval", "--checkpoint", checkpoint, "--data", spec, "--predictions", self.base / "p.npy")
            outputs.append((self.base / "p.npy").read_bytes())
        self.assertEqual(*outputs)

    def test_a_damaged_image(self):
        spec = harness.make_folder(self.data)
        victim = self.data / "train" / "class2" / "7.png"
        victim.write_bytes(victim.read_bytes()[:200])
        (self.data / "val" / "class0" / "1.png").write_bytes(b"")
        self.refuse(1, [str(victim), "PNG"], "train", *SMALL, "--data", spec, "--out", self.base / "run", "--epochs", 1)
        result = self.train(spec, "skipped", "--epochs", 2, "--on-bad-sample", "skip")
        end = log(self.base / "skipped")[-1]
        self.assertEqual((end["event"], end["status"], end["bad_samples"]), ("end", "done", 2))
        self.assertEqual(sum(str(victim) in m for m in end["bad_sample_messages"]), 1)
        self.assertEqual(sum("val/class0/1.png" in m for m in end["bad_sample_messages"]), 1)
        self.assertIn("2 images left out", result.stdout + result.stderr)
        # The damaged sample is missing from its batch, and only there.
        clean = self.base / "clean"
        harness.make_folder(clean)
        self.train(f"folder:{clean}", "whole", "--epochs", 2)
        a, b = losses(self.base / "skipped"), losses(self.base / "whole")
        self.assertEqual(len(a), len(b))
        self.assertNotEqual(a, b)
        # A run that stopped at the image can go on without it.
        self.succeed("train", "--resume", "--out", self.base / "run", "--on-bad-sample", "skip", *SMALL, "--data", spec,
                     "--epochs", 2)
        self.assertEqual(losses(self.base / "run"), a)
        checkpoint = self.base / "skipped" / "last.safetensors"
        self.refuse(1, ["val/class0/1.png", "empty"], "eval", "--checkpoint", checkpoint, "--data", spec)
        result = harness.taunet("eval", "--checkpoint", checkpoint, "--data", spec, "--on-bad-sample", "skip", "--json")
        self.assertEqual(result.returncode, 0)
        answer = json.loads(result.stdout)
        self.assertEqual((answer["images"], answer["bad_samples"]), (15, 1))
        self.assertIn("val/class0/1.png", result.stderr)

    def test_what_has_no_effect_is_refused(self):
        data = "synthetic:3x8x8:4:64"
        for option in (["--image-size", 8], ["--resize", 9], ["--on-bad-sample", "skip"]):
            self.refuse(2, [option[0]], "train", "--model", "resnet8", "--batch", 8, "--epochs", 1, "--data", data,
                        "--out", self.base / "run", *option)
        spec = harness.make_folder(self.data, 1, 1)
        self.refuse(2, ["--resize 15"], "train", *SMALL, "--data", spec, "--out", self.base / "run", "--resize", 15)
        for kind in ("folder", "webdataset"):
            self.refuse(1, [f"{self.base}/none"], "train", *SMALL, "--data", f"{kind}:{self.base}/none", "--out",
                        self.base / "run")

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_a_folder_that_cannot_be_written_to(self):
        self.data.mkdir()
        shard(self.data / "train.tar", [("a", 0, "png", harness.png(20, 20, bytes(1200)))])
        self.data.chmod(0o555)
        self.addCleanup(self.data.chmod, 0o755)
        self.train(f"webdataset:{self.data}", "run", "--batch", 1, "--steps", 1)


class Packing(Case):
    def pack(self, *args, status=0):
        environment = dict(os.environ, TAUNET_BUILD=str(pathlib.Path(harness.PROGRAM).parent))
        result = subprocess.run([PACK, *map(str, args)], capture_output=True, text=True, timeout=120, env=environment)
        self.assertEqual(result.returncode, status, result.stderr)
        return result

    def contents(self, folder):
        return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".index")}

    def test_packed_data_trains_alike(self):
        harness.make_folder(self.base / "images")
        first = self.pack("--samples", 10, self.base / "images", self.base / "jpeg")
        self.assertIn("64 samples in 7 shards", first.stdout)
        self.pack("--samples", 10, "--decoded", self.base / "images", self.base / "pixels")
        for kind in ("jpeg", "pixels"):
            self.succeed("train", *SMALL, "--data", f"webdataset:{self.base / kind}", "--out", self.base / f"run-{kind}",
                         "--epochs", 2)
        self.assertEqual(losses(self.base / "run-jpeg"), losses(self.base / "run-pixels"))
        with tarfile.open(self.base / "pixels" / "train-000000.tar") as tar:
            names = tar.getnames()
            self.assertEqual(len(names), 20)
            self.assertTrue(tar.extractfile(names[1]).read().startswith(b"P6\n"))
        self.assertEqual((self.base / "jpeg" / "classes.txt").read_text(), "class0\nclass1\nclass2\nclass3\n")
        lines = (self.base / "jpeg" / "checksums.xxh64").read_text().splitlines()
        self.assertEqual(len(lines), 7)

    def test_a_killed_packing_goes_on(self):
        harness.make_folder(self.base / "images", train=60)
        self.pack("--samples", 3, "--resize", 16, self.base / "images", self.base / "whole")
        environment = dict(os.environ, TAUNET_BUILD=str(pathlib.Path(harness.PROGRAM).parent))
        command = [PACK, "--samples", "3", "--resize", "16", "--threads", "1", self.base / "images", self.base / "killed"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 60
        while len(list((self.base / "killed").glob("*.tar"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = len(list((self.base / "killed").glob("*.tar")))
        result = self.pack("--samples", 3, "--resize", 16, self.base / "images", self.base / "killed")
        self.assertGreater(left, 1)
        self.assertNotIn(" 0 of them there already", result.stdout)
        self.assertEqual(self.contents(self.base / "killed"), self.contents(self.base / "whole"))

    def test_wrong_usage(self):
        self.assertIn("--resize", self.pack("--help").stdout)
        self.pack("--samples", "x", "a", "b", status=2)
        self.pack("a", status=2)
        self.pack("--frobnicate", "a", "b", status=2)
        self.assertIn("none", self.pack(self.base / "none", self.base / "out", status=1).stderr)
        harness.make_folder(self.base / "images", 1, 1)
        self.pack(self.base / "images", self.base / "out")
        self.assertIn("other options", self.pack("--decoded", self.base / "images", self.base / "out", status=2).stderr)


if __name__ == "__main__":
    unittest.main()
