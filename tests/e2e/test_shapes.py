"""Images of other sizes, numbers of channels and numbers of classes than CIFAR's train and are evaluated."""
import json
import pathlib
import unittest

import harness
from harness import Case

PACKAGED = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Shapes(Case):
    def train_and_evaluate(self, spec, *more, steps=24, lr=0.05, learns=True):
        out = self.base / "out"
        self.succeed("train", "--model", "resnet8", "--data", spec, "--steps", steps, "--lr", lr, "--log-every", 1,
                     "--out", out, "--overwrite", *more)
        losses = [e["loss"] for e in harness.events(out, "step")]
        if learns:
            self.assertLess(min(losses[len(losses) // 2:]), losses[0], "it does not learn")
        last = harness.events(out, "epoch")[-1]
        found = json.loads(self.succeed("eval", "--checkpoint", out / "last.safetensors", "--data", spec, "--json").stdout)
        self.assertEqual((found["loss"], found["top1"]), (last["val_loss"], last["val_top1"]))
        return harness.log(out)[0], harness.read_safetensors(out / "last.safetensors")

    def test_mnist_files(self):
        for compress in (True, False):
            spec = harness.make_mnist(self.base / f"data-{compress}", train=200, test=100, compress=compress)
            start, (metadata, tensors) = self.train_and_evaluate(spec, "--batch", 50)
            self.assertEqual((start["dataset"], start["train_images"], start["classes"]), ("mnist", 200, 10))
            self.assertEqual(tensors["conv1.weight"][1], [16, 1, 3, 3])
            self.assertEqual(metadata["input"], "1x28x28")

    @unittest.skipUnless((PACKAGED / "train-images-idx3-ubyte.gz").exists(), "dataset-fashion-mnist is not installed")
    def test_fashion_mnist(self):
        out = self.base / "out"
        self.succeed("train", "--model", "resnet8", "--data", f"mnist:{PACKAGED}", "--batch", 128, "--limit-batches", 40,
                     "--epochs", 1, "--out", out)
        self.assertEqual(harness.log(out)[0]["dataset"], "fashion-mnist")
        self.assertGreater(harness.events(out, "epoch")[0]["val_top1"], 30)

    def test_cifar_files(self):
        start, _ = self.train_and_evaluate(harness.make_cifar10(self.base / "ten", 100, 50), "--batch", 25)
        self.assertEqual((start["dataset"], start["steps_per_epoch"]), ("cifar10", 4))
        start, (_, tensors) = self.train_and_evaluate(harness.make_cifar100(self.base / "hundred", 100, 50), "--batch", 25,
                                                       steps=5, learns=False)
        self.assertEqual((start["dataset"], start["classes"]), ("cifar100", 100))
        self.assertEqual(tensors["fc.weight"][1], [100, 64])

    def test_odd_sizes(self):
        for variant in ("tau", "bn", "fixup"):
            with self.subTest(variant):
                # fixup starts with branches that are zero, and takes its time.
                _, (metadata, _) = self.train_and_evaluate("synthetic:2x15x13:5:100", "--variant", variant, "--batch", 24,
                                                           steps=120 if variant == "fixup" else 30)
                self.assertEqual((metadata["input"], metadata["classes"]), ("2x15x13", "5"))
        for spec in ("synthetic:1x1x1:2:40", "synthetic:5x3x40:3:40", "synthetic:16x9x4:2:40"):
            with self.subTest(spec):
                self.train_and_evaluate(spec, "--batch", 20)

    def test_a_last_batch_of_one(self):
        for variant in ("tau", "bn"):
            start, _ = self.train_and_evaluate("synthetic:3x8x8:2:41", "--variant", variant, "--batch", 20, learns=False)
            self.assertEqual(start["steps_per_epoch"], 3)
            rows = harness.events(self.base / "out", "epoch")
            self.assertEqual({round(e["train_top1"] * 41 / 100, 4) % 1 for e in rows}, {0})

    def test_own_normalisation(self):
        spec = "synthetic:3x8x8:2:40"
        _, (one, _) = self.train_and_evaluate(spec, "--batch", 20, "--mean", "0.25", "--std", "0.5")
        self.assertEqual((one["mean"], one["std"]), ("0.25,0.25,0.25", "0.5,0.5,0.5"))
