"""--probe norms: probes.csv and the histograms of each epoch; resumed and killed runs; nothing else changes."""
import csv
import unittest

import harness
import tfevents_reader
from harness import Case

FCRESNET = ["--model", "fcresnet", "--depth", 5, "--width", 16, "--lr", 0.01]


def options(model=("--model", "resnet8"), count=140):
    return [*model, "--data", f"synthetic:3x8x8:4:{count}", "--batch", 20, "--micro-batch", 8, "--mixup", 0.7,
            "--log-every", 1, "--seed", 5]


def rows(folder):
    with open(folder / "probes.csv") as file:
        return list(csv.DictReader(file))


class Probe(Case):
    def test_rows_and_histograms(self):
        out = self.base / "run"
        self.succeed("train", *options(FCRESNET), "--epochs", 2, "--probe", "norms", "--out", out)
        names = ["A", "W.0", "W.1", "W.2", "W.3", "W.4"]
        expected = [(str(epoch), str(step), str(block), name) for epoch, step in ((-1, 0), (0, 7), (1, 14))
                    for block, name in enumerate(names)]
        self.assertEqual([(r["epoch"], r["step"], r["block"], r["layer"]) for r in rows(out)], expected)
        for row in rows(out):
            self.assertGreater(float(row["output_norm"]), 0)
            self.assertGreater(float(row["gradient_norm"]), 0)
        self.assertNotEqual(rows(out)[1]["output_norm"], rows(out)[7]["output_norm"])
        # A does not move: the output of the first layer stays.
        self.assertEqual(rows(out)[0]["output_norm"], rows(out)[6]["output_norm"])
        path, = out.glob("events.out.tfevents.*")
        found = [(tag, one["step"]) for one in tfevents_reader.read(path) for tag in one.get("histograms", {})]
        self.assertEqual(sorted(found), sorted((f"probe/{what}_norm", step) for step in (0, 7, 14)
                                               for what in ("output", "gradient")))

    def test_it_changes_nothing(self):
        for variant in ("tau", "bn"):
            with self.subTest(variant):
                with_probe, without = self.base / f"{variant}-with", self.base / f"{variant}-without"
                common = [*options(("--model", "resnet8", "--variant", variant)), "--epochs", 2]
                self.succeed("train", *common, "--probe", "norms", "--out", with_probe)
                self.succeed("train", *common, "--out", without)
                self.assert_same_run(with_probe, without)
                self.assertEqual([r["layer"] for r in rows(with_probe)[:4]],
                                 ["bn1" if variant == "bn" else "conv1"] +
                                 [f"layer{i}.0.{'bn2' if variant == 'bn' else 'conv2'}" for i in (1, 2, 3)])

    def test_resumed(self):
        """At the end of an epoch (7 steps), within one, and one step at a time; with other threads."""
        common, straight = [*options(), "--probe", "norms"], self.base / "straight"
        self.succeed("train", *common, "--steps", 16, "--out", straight)
        for name, ends in (("epoch", (7, 16)), ("within", (10, 16)), ("often", (1, 6, 7, 8, 14, 15, 16))):
            with self.subTest(name):
                out = self.base / name
                for end in ends:
                    self.succeed("train", *common, "--steps", end, "--out", out, "--resume",
                                 "--threads", 1 + end % 3)
                self.assertEqual((out / "probes.csv").read_text(), (straight / "probes.csv").read_text())
                self.assert_same_run(straight, out, but=("steps", "threads", "peak_bytes"))

    def test_rows_behind_the_checkpoint_go(self):
        """A process that is killed leaves rows, and perhaps half a row, that no checkpoint knows of."""
        common, straight, out = [*options(), "--probe", "norms"], self.base / "straight", self.base / "out"
        self.succeed("train", *common, "--epochs", 3, "--out", straight)
        self.succeed("train", *common, "--epochs", 1, "--out", out)
        with open(out / "probes.csv", "a") as file:
            file.write("1,14,0,conv1,1,1\n1,14,1,lay")
        self.succeed("train", *common, "--epochs", 3, "--out", out, "--resume")
        self.assertEqual((out / "probes.csv").read_text(), (straight / "probes.csv").read_text())

    def test_a_new_run_starts_anew(self):
        out = self.base / "out"
        for overwrite in ([], ["--overwrite"]):
            self.succeed("train", *options(), "--probe", "norms", "--epochs", 1, "--out", out, *overwrite)
            self.assertEqual(len(rows(out)), 8)
        self.succeed("train", *options(), "--epochs", 1, "--out", out, "--overwrite")
        self.assertFalse((out / "probes.csv").exists())

    def test_refused(self):
        self.refuse(2, ["--probe", "norms"], "train", *options(), "--probe", "norm", "--out", self.base / "out")


class FullyConnected(Case):
    def test_a_checkpoint_rebuilds_the_network(self):
        for name, extra in (("plain", []), ("squared", ["--loss", "squared", "--train-ends", "--tau", "1/L"])):
            with self.subTest(name):
                out = self.base / name
                self.succeed("train", *options(FCRESNET), *extra, "--epochs", 1, "--out", out)
                metadata, tensors = harness.read_safetensors(out / "best.safetensors")
                self.assertEqual(list(tensors), ["A.weight"] + [f"W.{i}.weight" for i in range(5)] + ["B.weight"])
                self.assertEqual((metadata["width"], metadata["depth"], metadata["loss"]),
                                 ("16", "5", "squared" if extra else "cross-entropy"))
                result = self.succeed("eval", "--checkpoint", out / "best.safetensors", "--data",
                                      "synthetic:3x8x8:4:140", "--json")
                loss = harness.events(out, "epoch")[0]["val_loss"]
                self.assertIn(f'"loss": {loss:.9g}'[:14], result.stdout)

    def test_resumed(self):
        for ends in ([], ["--train-ends"]):
            with self.subTest(ends=ends):
                name = "trained" if ends else "fixed"
                common, straight, out = [*options(FCRESNET), *ends], self.base / f"{name}-a", self.base / f"{name}-b"
                self.succeed("train", *common, "--steps", 10, "--out", straight)
                self.succeed("train", *common, "--steps", 5, "--out", out)
                self.succeed("train", *common, "--steps", 10, "--out", out, "--resume", "--threads", 3)
                self.assert_same_run(straight, out, but=("steps", "threads", "peak_bytes"))
                first = self.base / f"{name}.safetensors"
                self.succeed("init", *FCRESNET[:6], *ends, "--input", "3x8x8", "--classes", 4, "--seed", 5,
                             "--out", first)
                before = harness.read_safetensors(first)[1]
                after = harness.read_safetensors(straight / "last.safetensors")[1]
                for end in ("A.weight", "B.weight"):
                    self.assertEqual(before[end] == after[end], not ends)
                self.assertNotEqual(before["W.0.weight"], after["W.0.weight"])

    def test_refused(self):
        for words, extra in (("--depth", ["--model", "resnet8", "--depth", 9]),
                             ("feedforward has no tau", ["--model", "feedforward", "--tau", "0.5"]),
                             ("--variant", ["--model", "fcresnet", "--variant", "bn"])):
            with self.subTest(words):
                self.refuse(2, [words], "train", "--data", "synthetic:1x4x4:3:64", "--batch", 32, *extra, "--out",
                            self.base / "out")


if __name__ == "__main__":
    unittest.main()
