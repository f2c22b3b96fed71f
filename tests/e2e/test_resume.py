"""A run that was ended and resumed equals one that went straight through, bit for bit."""
import json

import harness
from harness import Case

STEPS = 10


def options(variant="tau", count=160, batch=32):
    """Everything that draws random numbers or changes along the way is on."""
    return ["--model", "resnet8", "--variant", variant, "--data", f"synthetic:3x16x16:4:{count}", "--batch", batch,
            "--micro-batch", 8, "--mixup", 0.7, "--label-smoothing", 0.1, "--log-every", 1, "--seed", 5,
            "--warmup", 0.5, "--schedule", "step:1:0.5"]


class Resume(Case):
    def halves(self, name, common, threads=(2, 2)):
        """The straight run, and one that ends after five steps and is then resumed."""
        straight, resumed = self.base / f"{name}-straight", self.base / f"{name}-resumed"
        self.succeed("train", *common, "--steps", STEPS, "--threads", threads[0], "--out", straight)
        self.succeed("train", *common, "--steps", 5, "--threads", threads[0], "--out", resumed)
        self.succeed("train", *common, "--steps", STEPS, "--threads", threads[1], "--out", resumed, "--resume")
        self.assertEqual([e["step"] for e in harness.events(straight, "step")], list(range(1, STEPS + 1)))
        self.assert_same_run(straight, resumed, but=("steps",))
        return resumed

    def test_at_the_end_of_an_epoch(self):
        for variant in ("tau", "bn-tau"):
            with self.subTest(variant):
                self.halves(variant, options(variant))

    def test_within_an_epoch(self):
        for variant in ("tau", "bn-tau"):
            with self.subTest(variant):
                resumed = self.halves(variant, options(variant, count=140, batch=20))  # 7 batches an epoch
                metadata = harness.read_safetensors(resumed / "last.safetensors")[0]
                self.assertEqual((metadata["step"], metadata["epoch_rows"]), ("10", "60"))

    def test_with_other_threads(self):
        for variant in ("tau", "bn-tau"):
            for threads in ((1, 3), (4, 2)):
                with self.subTest(variant=variant, threads=threads):
                    self.halves(f"{variant}-{threads[0]}", options(variant, count=148, batch=20), threads)

    def test_the_random_parts_are_on(self):
        """Else the tests above would show less than they seem to."""
        losses = []
        for name, change in (("as-is", []), ("no-mixup", ["--mixup", 0]), ("plain", ["--augment", "none"]),
                             ("seed", ["--seed", 6]), ("order", ["--shuffle", "no"])):
            self.succeed("train", *options(), *change, "--steps", 1, "--out", self.base / name)
            losses.append(harness.events(self.base / name, "step")[0]["loss"])
        self.assertEqual(len(set(losses)), len(losses), losses)

    def test_step_by_step(self):
        """Ten processes of one step each."""
        common, one, many = options(count=140, batch=20), self.base / "one", self.base / "many"
        self.succeed("train", *common, "--steps", STEPS, "--out", one)
        for step in range(1, STEPS + 1):
            self.succeed("train", *common, "--steps", step, "--out", many, "--resume")
        self.assert_same_run(one, many, but=("steps",))

    def test_a_finished_run(self):
        """Resuming it changes nothing, wherever its last step lies."""
        for count in (160, 140):
            with self.subTest(count=count):
                common = [*options(count=count, batch=20), "--steps", 8, "--out", self.base / str(count)]
                self.succeed("train", *common)
                before = harness.log(self.base / str(count)), harness.metrics(self.base / str(count))
                self.assertEqual(before[0][-1]["status"], "done")
                self.succeed("train", *common, "--resume")
                self.assertEqual(before, (harness.log(self.base / str(count)), harness.metrics(self.base / str(count))))

    def test_more_epochs(self):
        common = options()
        short, straight = self.base / "short", self.base / "straight"
        self.succeed("train", *common, "--epochs", 3, "--out", straight)
        self.succeed("train", *common, "--epochs", 1, "--out", short)
        self.succeed("train", "--resume", "--epochs", 3, "--out", short)  # the rest is in config.toml
        self.assert_same_run(straight, short, but=("steps",))
        self.assertIn("epochs = 3", (short / "config.toml").read_text())

    def test_kept_epochs(self):
        common = [*options(), "--keep", 2]
        straight, resumed = self.base / "straight", self.base / "resumed"
        self.succeed("train", *common, "--epochs", 4, "--out", straight)
        self.succeed("train", *common, "--epochs", 2, "--out", resumed)
        self.succeed("train", *common, "--epochs", 4, "--out", resumed, "--resume")
        self.assertEqual(sorted(p.name for p in straight.glob("epoch-*")),
                         ["epoch-0002.safetensors", "epoch-0003.safetensors"])
        self.assert_same_run(straight, resumed, but=("steps",))

    def test_average_of_weights(self):
        """--ema: the averages are part of the state, and what is evaluated and kept as best."""
        for variant in ("tau", "bn"):
            common = [*options(variant, count=140, batch=20), "--ema", 0.9]
            resumed = self.halves(variant, common)
            last = harness.read_safetensors(resumed / "last.safetensors")
            names = {name[4:] for name in last[1] if name.startswith("ema.")}
            self.assertLessEqual({"conv1.weight", "fc.bias"}, names)
            self.assertEqual("layer1.0.bn1.running_var" in names, variant == "bn")
            self.assertNotEqual(last[1]["ema.conv1.weight"], last[1]["conv1.weight"])
            plain = self.base / f"{variant}-plain"
            self.succeed("train", *common, "--ema", 0, "--steps", STEPS, "--out", plain)
            for ours, other in zip(harness.events(resumed, "step"), harness.events(plain, "step"), strict=True):
                self.assertEqual(ours["loss"], other["loss"])  # training does not see them
            self.assertNotEqual(harness.events(resumed, "epoch")[0]["val_loss"],
                                harness.events(plain, "epoch")[0]["val_loss"])
            evaluated = json.loads(self.succeed("eval", "--checkpoint", resumed / "best.safetensors", "--data",
                                                "synthetic:3x16x16:4:140", "--json", "yes").stdout)
            best = int(last[0]["best_epoch"])
            self.assertAlmostEqual(evaluated["loss"], harness.events(resumed, "epoch")[best]["val_loss"], 6)

    def test_config_says_all(self):
        """config.toml alone repeats the run."""
        first, second = self.base / "first", self.base / "second"
        self.succeed("train", *options("bn-tau"), "--tau", "2/sqrt(L)", "--steps", 3, "--out", first)
        self.succeed("train", "--config", first / "config.toml", "--out", second)
        self.assert_same_run(first, second)


class Determinism(Case):
    def test_threads(self):
        for variant in ("tau", "bn-tau"):
            for threads in (1, 2, 3, 4):
                folder = self.base / f"{variant}-{threads}"
                self.succeed("train", *options(variant, count=148, batch=52), "--steps", 5, "--threads", threads,
                             "--out", folder)
                with self.subTest(variant=variant, threads=threads):
                    self.assert_same_run(self.base / f"{variant}-1", folder, but=("threads", "peak_bytes"))

    def test_twice(self):
        for name in ("one", "two"):
            self.succeed("train", *options(), "--steps", 3, "--out", self.base / name)
        self.assert_same_run(self.base / "one", self.base / "two")
