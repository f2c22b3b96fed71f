"""ImageNet's networks through the program: names, defaults, training and evaluation on small images."""
import json

import harness
from harness import Case

DATA = "synthetic:3x40x33:7:24"


class ImageNet(Case):
    def test_state_dict_of_resnet50(self):
        """As torchvision's: 320 entries, for 224 pixels and 1000 classes unless told otherwise."""
        file = self.base / "resnet50.safetensors"
        self.succeed("init", "--model", "resnet50", "--variant", "bn", "--out", file)
        with open(file, "rb") as opened:
            tensors = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        metadata = tensors.pop("__metadata__")
        self.assertEqual(len(tensors), 320)
        self.assertEqual((metadata["input"], metadata["classes"]), ("3x224x224", "1000"))
        self.assertIn("layer4.0.downsample.1.num_batches_tracked", tensors)

    def test_info(self):
        text = self.succeed("info", "--model", "resnet152", "--variant", "bn", "--batch", 32).stdout
        self.assertRegex(text, r"(?m)^input +3x224x224, 1000 classes$")
        self.assertRegex(text, r"(?m)^parameters +60192808$")
        planned = json.loads(self.succeed("info", "--model", "resnet152", "--variant", "bn", "--batch", 32, "--json",
                                          "yes").stdout)["peak_bytes"]
        self.assertLess(planned, 12 * 2 ** 30)
        less = json.loads(self.succeed("info", "--model", "resnet152", "--variant", "bn", "--batch", 32, "--json", "yes",
                                       "--recompute", "yes").stdout)["peak_bytes"]
        self.assertLess(less, 0.6 * planned)

    def train(self, name, model, variant, *more):
        folder = self.base / name
        self.succeed("train", "--model", model, "--variant", variant, "--data", DATA, "--batch", 8, "--micro-batch", 4,
                     "--lr", 0.01, "--log-every", 1, *more, "--out", folder)
        return folder

    def assert_evaluates(self, folder):
        """`taunet eval` says of the best checkpoint what the run said."""
        told = harness.events(folder, "epoch")[-1]
        seen = json.loads(self.succeed("eval", "--checkpoint", folder / "best.safetensors", "--data", DATA, "--json",
                                       "yes").stdout)
        self.assertAlmostEqual(seen["loss"], told["val_loss"], 6)
        self.assertEqual((seen["top1"], seen["top5"]), (told["val_top1"], told["val_top5"]))

    def test_basic_blocks(self):
        folder = self.train("run", "resnet18", "bn", "--epochs", 1, "--ema", 0.5, "--recompute", "yes")
        self.assert_evaluates(folder)
        # A bare state dict, as PyTorch saves it, says nothing of the network: the options do.
        bare = self.base / "bare.safetensors"
        harness.write_safetensors(bare, {}, harness.read_safetensors(folder / "best.safetensors")[1])
        command = ["eval", "--checkpoint", bare, "--data", DATA, "--json", "yes"]
        self.refuse(1, ["bare.safetensors", "--model"], *command)
        seen = json.loads(self.succeed(*command, "--model", "resnet18", "--variant", "bn").stdout)
        self.assertAlmostEqual(seen["loss"], harness.events(folder, "epoch")[-1]["val_loss"], 6)

    def test_bottlenecks(self):
        self.assert_evaluates(self.train("run", "resnet50", "tau", "--epochs", 1, "--label-smoothing", 0.1))

    def test_nothing_to_recompute(self):
        self.refuse(2, ["--recompute", "fcresnet"], "info", "--model", "fcresnet", "--recompute", "yes")

    def test_no_norm_no_shortcut_norm(self):
        self.refuse(2, ["--bn-shortcut", "tau"], "info", "--model", "resnet50", "--bn-shortcut", "no")
