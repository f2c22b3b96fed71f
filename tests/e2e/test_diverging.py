"""Values that are not finite stop a run with the layer where they appeared, and cost no checkpoint."""
import math
import re
import struct

import harness
from harness import Case

DATA = "synthetic:3x16x16:4:64"
TRAIN = ["train", "--model", "resnet8", "--data", DATA, "--batch", 32, "--micro-batch", 8, "--log-every", 1]


def poison(source, target, name, value=math.nan):
    """Copies a safetensors file with one value of a tensor replaced."""
    metadata, tensors = harness.read_safetensors(source)
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, data[:-4] + struct.pack("<f", value)
    harness.write_safetensors(target, metadata, tensors)


class Diverging(Case):
    def test_a_huge_learning_rate(self):
        """Two sound epochs, then a rate beyond all measure."""
        folder = self.base / "run"
        command = [*TRAIN, "--variant", "plain", "--lr", 0.01, "--schedule", "step:2:1e30", "--out", folder]
        result = harness.taunet(*command, "--epochs", 4)
        self.assert_refused(result, 1, ["step", "layer"])
        found = re.search(r"step (\d+): .* layer (\S+)$", result.stderr.strip())
        self.assertTrue(found, result.stderr)
        step, layer = int(found[1]), found[2]
        self.assertIn(step, (5, 6))
        info = harness.taunet("info", "--model", "resnet8", "--variant", "plain", "--input", "3x16x16").stdout
        self.assertRegex(layer, r"^(conv1|layer\d\.0\.conv\d|fc|loss)$")
        self.assertIn(layer.split(".")[-1], info)

        end = harness.log(folder)[-1]
        self.assertEqual((end["event"], end["status"], end["step"]), ("end", "diverged", step - 1))
        self.assertIn(layer, end["message"])
        self.assertEqual(harness.read_safetensors(folder / "last.safetensors")[0]["step"], "4")
        self.assertEqual(len(harness.events(folder, "epoch")), 2)
        for name in ("last", "best"):
            self.succeed("eval", "--checkpoint", folder / f"{name}.safetensors", "--data", DATA)

        # Resumed, it goes the same way; the log says so once.
        lines = harness.log(folder)
        again = harness.taunet(*command, "--epochs", 4, "--resume")
        self.assertEqual((again.returncode, again.stderr), (1, result.stderr))
        self.assertEqual(harness.log(folder), lines)

    def test_weights_that_are_not_finite(self):
        """A ReLU would hide many of them; a run that is to be replaced must not go for them."""
        folder = self.base / "run"
        self.succeed(*TRAIN, "--steps", 1, "--out", folder)
        for variant, names in (("tau", ["conv1.weight", "layer2.0.conv1.weight", "layer3.0.bias2b", "tau", "fc.weight"]),
                               ("bn", ["layer1.0.bn1.weight", "layer1.0.bn2.running_var", "fc.bias"])):
            start, bad = self.base / f"{variant}.safetensors", self.base / "bad.safetensors"
            self.succeed("init", "--model", "resnet8", "--variant", variant, "--input", "3x16x16", "--classes", 4,
                         "--out", start)
            for name in names:
                for value in (math.nan, math.inf):
                    with self.subTest(variant=variant, name=name, value=value):
                        poison(start, bad, name, value)
                        self.refuse(1, [str(bad), name, "not finite"], *TRAIN, "--variant", variant, "--init", bad,
                                    "--out", folder, "--overwrite")
                        self.refuse(1, [str(bad), name, "not finite"], "eval", "--checkpoint", bad, "--data", DATA,
                                    "--predictions", self.base / "logits.npy")
                        self.assertFalse((self.base / "logits.npy").exists())
        self.assertEqual(harness.log(folder)[-1]["status"], "done")

    def test_weights_that_overflow(self):
        """Finite, but not for long."""
        start, bad = self.base / "start.safetensors", self.base / "bad.safetensors"
        self.succeed("init", "--model", "resnet8", "--input", "3x16x16", "--classes", 4, "--out", start)
        metadata, tensors = harness.read_safetensors(start)
        for name in ("conv1.weight", "layer2.0.conv1.weight", "fc.weight"):
            with self.subTest(name):
                dtype, shape, data = tensors[name]
                huge = struct.pack("<f", 1e38) * (len(data) // 4)
                harness.write_safetensors(bad, metadata, tensors | {name: (dtype, shape, huge)})
                result = harness.taunet(*TRAIN, "--init", bad, "--out", self.base / "run", "--overwrite")
                self.assert_refused(result, 1, ["step 1", "layer"])
                self.assertTrue(result.stderr.strip().endswith("layer " + name.rsplit(".", 1)[0]), result.stderr)
                self.assertEqual(harness.log(self.base / "run")[-1]["status"], "diverged")

    def test_a_diverged_first_epoch(self):
        """Nothing was saved yet: the log tells, and the run can be started anew with a smaller rate."""
        folder = self.base / "run"
        self.refuse(1, "step", *TRAIN, "--variant", "plain", "--lr", 1e30, "--epochs", 1, "--out", folder)
        self.assertEqual(harness.log(folder)[-1]["status"], "diverged")
        self.assertEqual(list(folder.glob("*.safetensors")), [])
        self.refuse(2, ["--lr", "1e+30"], *TRAIN, "--lr", 0.01, "--epochs", 1, "--out", folder, "--resume")
        self.succeed(*TRAIN, "--lr", 0.01, "--epochs", 1, "--out", folder, "--overwrite")
