"""Every command does what its help says; what it prints for programs can be parsed and holds what was promised."""
import json
import math
import re
import struct

import harness
from harness import Case

VARIANTS = ["bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"]
DATA = "synthetic:3x16x16:7:60"
SMALL = ["--model", "resnet8", "--input", "3x16x16", "--classes", 7]


def options_of(command):
    """Names in the configuration that a command prints."""
    text = harness.taunet(command, "--print-config").stdout
    return re.findall(r"^([a-z-]+) = ", text, re.M)


class Help(Case):
    def commands(self):
        overview = self.succeed("help").stdout
        names = re.findall(r"^  ([a-z]+) {2,}\S", overview, re.M)
        self.assertLessEqual({"train", "eval", "init", "info", "bench", "help"}, set(names))
        return [name for name in names if name != "help"]

    def test_version(self):
        self.assertRegex(self.succeed("--version").stdout, r"\Ataunet \d+\.\d+\.\d+\n\Z")

    def test_overview(self):
        overview = self.succeed("help").stdout
        for words in ([], ["--help"], ["-h"]):
            self.assertEqual(self.succeed(*words).stdout, overview)

    def test_each_command(self):
        """Help and configuration come from one table: each option stands in both, with its default."""
        for command in self.commands():
            with self.subTest(command):
                text = self.succeed("help", command).stdout
                self.assertEqual(self.succeed(command, "--help").stdout, text)
                self.assertLessEqual(max(map(len, text.splitlines())), 100)
                names = re.findall(r"^  --([a-z-]+)\b", text, re.M)
                self.assertEqual(len(set(names)), len(names))
                self.assertEqual(set(options_of(command)) - set(names), set())
                self.assertLessEqual({"config", "print-config", "help"}, set(names))
                for option in names:
                    self.assertRegex(text, rf"(?s)--{option}\b.*?\((?:[^()]|\([^()]*\))*(?:default [^)]+|required)\)")

    def test_unknown_names(self):
        self.refuse(2, ["trian", "train"], "trian")
        self.refuse(2, ["trian", "train"], "help", "trian")
        self.refuse(2, ["frobnicate", "help"], "frobnicate")
        for command in self.commands():
            self.refuse(2, ["--frobnicate", f"taunet help {command}"], command, "--frobnicate")
            self.refuse(2, ["--confg", "--config"], command, "--confg", "x")

    def test_configuration_can_be_read_back(self):
        file = self.base / "c.toml"
        for command in self.commands():
            with self.subTest(command):
                given = ["--tau", "2/sqrt(L)", "--batch", 7] if "tau" in options_of(command) and command != "init" else []
                first = self.succeed(command, *given, "--print-config").stdout
                file.write_text(first)
                self.assertEqual(self.succeed(command, "--config", file, "--print-config").stdout, first)

    def test_the_later_wins(self):
        file = self.base / "c.toml"
        file.write_text("batch = 7\nlr = 0.5\n")
        printed = self.succeed("train", "--batch", 3, "--config", file, "--lr=0.25", "--print-config").stdout
        self.assertIn("\nbatch = 7\n", printed)
        self.assertIn("\nlr = 0.25\n", printed)


class Init(Case):
    def test_a_function_of_the_seed(self):
        for variant in VARIANTS:
            with self.subTest(variant):
                files = [self.base / f"{variant}-{n}" for n in range(3)]
                for file, seed in zip(files, (3, 3, 4)):
                    out = self.succeed("init", *SMALL, "--variant", variant, "--seed", seed, "--out", file).stdout
                    self.assertIn(variant, out)
                one, same, other = [file.read_bytes() for file in files]
                self.assertEqual(one, same)
                self.assertNotEqual(one, other)

    def test_a_run_starts_from_it(self):
        """--init with the weights of a seed is a run with that seed's weights."""
        for variant in VARIANTS:
            with self.subTest(variant):
                start, common = self.base / f"{variant}.safetensors", ["--data", DATA, "--batch", 20, "--variant", variant,
                                                                       "--model", "resnet8", "--log-every", 1]
                self.succeed("init", *SMALL, "--variant", variant, "--seed", 9, "--out", start)
                # The seed also orders the images, so the two runs share it.
                self.succeed("train", *common, "--seed", 9, "--epochs", 1, "--out", self.base / f"{variant}-seed")
                self.succeed("train", *common, "--seed", 9, "--epochs", 1, "--out", self.base / f"{variant}-init",
                             "--init", start)
                self.assert_same_run(self.base / f"{variant}-seed", self.base / f"{variant}-init")
                self.succeed("train", *common, "--seed", 8, "--steps", 1, "--out", self.base / f"{variant}-other",
                             "--init", start)

    def test_parameters_by_name(self):
        """The names of models.md, shared ones also under their aliases."""
        expected = {"bn": {"conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "layer2.0.downsample.1.weight",
                           "layer3.0.bn2.bias", "fc.weight", "fc.bias"},
                    "tau": {"tau", "layer1.0.tau", "layer2.0.bias1a", "layer3.0.bias2b", "layer1.0.conv2.weight"},
                    "fixup": {"bias1", "bias2", "layer1.0.scale", "layer2.0.bias1b"},
                    "alpha": {"layer1.0.alpha"}, "skipinit": {"layer3.0.alpha"}}
        for variant, names in expected.items():
            self.succeed("init", *SMALL, "--variant", variant, "--out", self.base / variant)
            metadata, tensors = harness.read_safetensors(self.base / variant)
            self.assertLessEqual(names, set(tensors), variant)
            self.assertEqual((metadata["variant"], metadata["model"], metadata["seed"]), (variant, "resnet8", "0"))
            self.assertNotIn("step", metadata)

    def test_replaces_its_file(self):
        self.succeed("init", *SMALL, "--out", self.base / "w")
        before = (self.base / "w").read_bytes()
        self.succeed("init", *SMALL, "--seed", 1, "--out", self.base / "w")
        self.assertNotEqual((self.base / "w").read_bytes(), before)
        self.refuse(2, ["resnet21"], "init", "--model", "resnet21", "--out", self.base / "w")


class Info(Case):
    def test_plan(self):
        self.refuse(2, ["--json", "--plan"], "info", "--plan", "sm_90", "--json")
        self.refuse(2, ["--precision", "--plan"], "info", "--precision", "bf16")
        self.refuse(2, ["sm_70", "sm_90"], "info", "--plan", "sm_70")
        if "no cuda: this build" in self.succeed("info", *SMALL).stdout:
            self.refuse(2, ["no CUDA backend"], "info", "--plan", "sm_90")
            return
        text = self.succeed("info", "--model", "resnet110", "--plan", "sm_90", "--precision", "bf16").stdout
        rows = re.findall(r"^ *(\d+)  (\S+) +(\w+) +([0-9.]+) +([0-9.]+) +(\d+) +([0-9.]+)", text, re.M)
        self.assertEqual([row[0] for row in rows if row[2] == "stage"], ["36", "38", "38"])
        self.assertEqual(sum(int(row[0]) for row in rows), 116)
        total = re.search(r"(?m)^ *116  all +([0-9.]+) +([0-9.]+) +(\d+)", text)
        added = re.search(r"parts of gradients added +[0-9.]+ +[0-9.]+ +(\d+)", text)
        self.assertEqual(sum(int(row[5]) for row in rows) + int(added[1]), int(total[3]))
        # Forward and two products backward, of which the first convolution needs one.
        adds = 9 * 1024 * (3 * 16 + 36 * 16 * 16 + 2 * (8 * 16 + 35 * 16 * 16)) + 640
        self.assertAlmostEqual(float(total[2]), 2 * 128 * (3 * adds - 9 * 1024 * 3 * 16) * 1e-9, delta=0.1)

    def test_text(self):
        text = self.succeed("info", "--model", "resnet110", "--variant", "tau", "--batch", 8).stdout
        # By hand: 109 convolutions of 3x3, the linear layer, four scalars a block, tau.
        weights = 9 * (3 * 16 + 36 * 16 * 16 + 16 * 32 + 35 * 32 * 32 + 32 * 64 + 35 * 64 * 64) + 650
        adds = 9 * 1024 * (3 * 16 + 36 * 16 * 16 + 2 * (8 * 16 + 35 * 16 * 16)) + 640
        self.assertRegex(text, rf"(?m)^parameters +{weights + 4 * 54 + 1}$")
        self.assertRegex(text, rf"(?m)^multiply-adds +{adds} an image")
        self.assertRegex(text, r"(?m)^planned peak +\d+ bytes")
        for words in ("layer1.0.conv1", "layer3.0.conv2", "avgpool", "fc", "oneDNN", "zlib"):
            self.assertIn(words, text)
        rows = re.findall(r"^ *(\d+)  (\S+) +(\w+) +\d+x\d+x\d+ +(\d+) +(\d+)", text, re.M)
        self.assertEqual(sum(int(times) for times, *_ in rows), 116)  # 110 layers, 2 x 2 for shortcuts, pool and loss
        self.assertEqual(sum(int(times) * int(each) for times, _, _, _, each in rows), adds)

    def test_json(self):
        for variant in VARIANTS:
            fields = json.loads(self.succeed("info", *SMALL, "--variant", variant, "--json").stdout)
            for key in ("version", "device", "threads", "model", "variant", "parameters", "multiply_adds", "peak_bytes",
                        "chunk", "layers"):
                self.assertIn(key, fields)
            self.assertEqual(fields["variant"], variant)
            self.assertGreater(fields["peak_bytes"], 4 * fields["parameters"])

    def test_parameters_are_those_of_the_file(self):
        for variant in VARIANTS:
            self.succeed("init", *SMALL, "--variant", variant, "--out", self.base / variant)
            tensors = harness.read_safetensors(self.base / variant)[1]
            stored = sum(len(data) // 4 for name, (_, _, data) in tensors.items()
                         if not re.search(r"running_|num_batches|^layer.*\.tau$", name))
            fields = json.loads(self.succeed("info", *SMALL, "--variant", variant, "--json").stdout)
            self.assertEqual(fields["parameters"], stored, variant)


class Bench(Case):
    def test_json(self):
        for variant in ("tau", "bn"):
            fields = json.loads(self.succeed("bench", *SMALL, "--variant", variant, "--batch", 32, "--steps", 3,
                                             "--warmup-steps", 1, "--threads", 2, "--json").stdout)
            for key in ("images_per_second", "gflops", "peak_fraction", "peak_bytes", "minimum", "maximum", "peak_gflops"):
                self.assertGreater(fields[key], 0, key)
            self.assertLessEqual(fields["minimum"], fields["images_per_second"])
            self.assertLessEqual(fields["images_per_second"], fields["maximum"])
            self.assertAlmostEqual(fields["peak_fraction"], fields["gflops"] / fields["peak_gflops"], places=3)
            self.assertEqual((fields["steps"], fields["batch"], fields["threads"]), (3, 32, 2))
            info = json.loads(self.succeed("info", *SMALL, "--variant", variant, "--json").stdout)
            self.assertAlmostEqual(fields["gflops"] / (6e-9 * info["multiply_adds"] * fields["images_per_second"]), 1, 3)

    def test_text(self):
        text = self.succeed("bench", *SMALL, "--batch", 8, "--steps", 1, "--warmup-steps", 0).stdout
        for words in ("images/s", "GFLOP/s", "measured peak", "MiB planned"):
            self.assertIn(words, text)


def read_npy(path):
    """(shape, rows of floats) of a float32 .npy file."""
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    size = struct.unpack_from("<H", data, 8)[0]
    header = data[10:10 + size].decode()
    assert (10 + size) % 64 == 0 and header.endswith("\n"), header
    fields = eval(header, {"__builtins__": {}})  # a literal, as the format asks for
    assert fields["descr"] == "<f4" and fields["fortran_order"] is False, header
    rows, columns = fields["shape"]
    assert len(data) == 10 + size + 4 * rows * columns
    values = struct.unpack_from(f"<{rows * columns}f", data, 10 + size)
    return fields["shape"], [values[i * columns:(i + 1) * columns] for i in range(rows)]


class Eval(Case):
    def train(self, *more):
        folder = self.base / "run"
        self.succeed("train", "--model", "resnet8", "--batch", 20, "--log-every", 5, "--out", folder, *more)
        return folder

    def evaluate(self, checkpoint, data, *more):
        result = self.succeed("eval", "--checkpoint", checkpoint, "--data", data, "--json", *more)
        return json.loads(result.stdout)

    def test_equals_what_was_logged(self):
        for variant in ("tau", "bn", "fixup"):
            with self.subTest(variant):
                folder = self.train("--data", DATA, "--variant", variant, "--epochs", 3, "--lr", 0.02, "--overwrite",
                                    "--keep", 3)
                epochs = harness.events(folder, "epoch")
                best = max(epochs, key=lambda e: (e["val_top1"], -e["epoch"]))
                for name, epoch in [("best", best), ("last", epochs[-1])] + [(f"epoch-{e['epoch']:04d}", e) for e in epochs]:
                    found = self.evaluate(folder / f"{name}.safetensors", DATA)
                    self.assertEqual((found["loss"], found["top1"], found["top5"], found["images"]),
                                     (epoch["val_loss"], epoch["val_top1"], epoch["val_top5"], 60))
                self.assertEqual(harness.log(folder)[-1]["best_top1"], best["val_top1"])

    def test_other_batches_and_threads(self):
        """Each image counts once, whatever the batch; only sums of losses may round differently."""
        folder = self.train("--data", DATA, "--epochs", 1)
        one = self.evaluate(folder / "last.safetensors", DATA)
        for more in (["--batch", 1], ["--batch", 7], ["--batch", 1000], ["--threads", 1], ["--threads", 3]):
            other = self.evaluate(folder / "last.safetensors", DATA, *more)
            self.assertTrue(math.isclose(one["loss"], other["loss"], rel_tol=1e-6), more)
            self.assertEqual((one["top1"], one["top5"], one["images"]), (other["top1"], other["top5"], other["images"]))

    def test_predictions(self):
        data = harness.make_cifar10(self.base / "data", train=40, test=53)
        folder = self.train("--data", data, "--epochs", 2, "--lr", 0.02)
        file = self.base / "logits.npy"
        found = self.evaluate(folder / "last.safetensors", data, "--predictions", file, "--batch", 9)
        shape, logits = read_npy(file)
        self.assertEqual(shape, (53, 10))
        labels = [i % 10 for i in range(53)]  # as make_cifar10 gives them, in the file's order
        hits = sum(row.index(max(row)) == label for row, label in zip(logits, labels))
        self.assertAlmostEqual(found["top1"], 100 * hits / 53, places=5)
        top5 = sum(sum(other > row[label] for other in row) < 5 for row, label in zip(logits, labels))
        self.assertAlmostEqual(found["top5"], 100 * top5 / 53, places=5)
        loss = sum(math.log(sum(math.exp(v - max(row)) for v in row)) + max(row) - row[label]
                   for row, label in zip(logits, labels)) / 53
        self.assertTrue(math.isclose(found["loss"], loss, rel_tol=1e-5), (found["loss"], loss))

    def test_text(self):
        folder = self.train("--data", DATA, "--epochs", 1)
        self.assertRegex(self.succeed("eval", "--checkpoint", folder / "last.safetensors", "--data", DATA).stdout,
                         r"\Aloss \d+\.\d+  top-1 \d+\.\d+ %  top-5 \d+\.\d+ %  \(60 images, \d+\.\d s\)\n\Z")

    def test_file_without_metadata(self):
        """As another program would write it: the model must then be named."""
        folder = self.train("--data", DATA, "--variant", "bn", "--epochs", 1)
        bare = self.base / "bare.safetensors"
        tensors = harness.read_safetensors(folder / "best.safetensors")[1]
        harness.write_safetensors(bare, {}, tensors)
        self.refuse(1, [str(bare), "--model"], "eval", "--checkpoint", bare, "--data", DATA)
        self.refuse(1, [str(bare), "--variant"], "eval", "--checkpoint", bare, "--data", DATA, "--model", "resnet8")
        self.assertEqual(self.evaluate(bare, DATA, "--model", "resnet8", "--variant", "bn")["loss"],
                         self.evaluate(folder / "best.safetensors", DATA)["loss"])


class Profile(Case):
    def test_timeline(self):
        for variant in ("tau", "bn"):
            with self.subTest(variant):
                file = self.base / f"{variant}.json"
                self.succeed("train", "--model", "resnet8", "--variant", variant, "--data", "synthetic:3x32x32:4:512",
                             "--batch", 128, "--micro-batch", 4, "--threads", 2, "--steps", 8, "--profile", file,
                             "--out", self.base / variant)
                trace = json.loads(file.read_text())
                names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
                self.assertEqual(sorted(names.values()), ["trainer", "worker 0", "worker 1"])
                spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
                self.assertTrue(all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans))
                kinds = {name: {e["cat"] for e in spans if names[e["tid"]] == name} for name in names.values()}
                for worker in ("worker 0", "worker 1"):
                    self.assertLessEqual({"forward", "backward"}, kinds[worker])
                self.assertLessEqual({"forward", "backward", "pack", "reduction", "update"},
                                     kinds["worker 0"] | kinds["worker 1"])
                steps = [e for e in spans if names[e["tid"]] == "trainer" and e["name"] == "step"]
                self.assertEqual(len(steps), 3)
                self.assertIn("data wait", {e["name"] for e in spans if names[e["tid"]] == "trainer"})
                layers = {e["name"] for e in spans if e["cat"] == "forward"}
                self.assertLessEqual({"conv1", "layer2.0.conv2", "fc"}, layers)

    def test_short_run(self):
        file = self.base / "trace.json"
        self.succeed("train", "--model", "resnet8", "--data", DATA, "--batch", 20, "--steps", 1, "--profile", file,
                     "--out", self.base / "run")
        self.assertIn("forward", {e.get("cat") for e in json.loads(file.read_text())["traceEvents"]})
