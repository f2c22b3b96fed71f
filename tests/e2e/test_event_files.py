"""TensorBoard's files say what log.jsonl says: tags, steps and values; checked by an independent reader."""
import math

import harness
import tfevents_reader
from harness import Case

TIMED = [f"epoch/{name}" for name in harness.TIMES]


def train(variant, *more):
    return ["train", "--model", "resnet8", "--variant", variant, "--data", "synthetic:3x8x8:4:70", "--batch", 10,
            "--log-every", 2, *more]


class EventFiles(Case):
    def assert_equal_to_log(self, folder, batches=7):
        """Every value of log.jsonl is a point of a curve, and there are no others. Gives the curves."""
        expected = {}
        with open(folder / "log.jsonl") as file:
            lines = [harness.json.loads(line) for line in file]
        last = 0
        for line in lines:
            if line["event"] == "step":
                last = line["step"]
                for key in ("loss", "lr", "tau"):
                    expected.setdefault(f"step/{key}", []).append((line["step"], line[key]))
            elif line["event"] == "epoch":
                step = min(batches * (line["epoch"] + 1), lines[-1]["step"])
                for key, value in line.items():
                    if key not in ("event", "epoch"):
                        expected.setdefault(f"epoch/{key}", []).append((step, value))
        self.assertGreater(last, 0)
        expected = {tag: [p for p in points if p[1] is not None] for tag, points in expected.items()}
        expected = {tag: points for tag, points in expected.items() if points}
        shown = harness.curves(folder)
        self.assertEqual(set(shown), set(expected))
        for tag, points in expected.items():
            self.assertEqual([s for s, _ in points], [s for s, _ in shown[tag]], tag)
            for (step, value), (_, seen) in zip(points, shown[tag]):
                self.assertTrue(math.isclose(value, seen, rel_tol=1e-6), f"{tag} at {step}: {value} and {seen}")
        return shown

    def test_one_run(self):
        for variant in ("tau", "bn", "bn-tau"):
            with self.subTest(variant):
                folder = self.base / variant
                self.succeed(*train(variant, "--epochs", 2, "--out", folder))
                curves = self.assert_equal_to_log(folder)
                self.assertEqual([s for s, _ in curves["step/loss"]], [2, 4, 6, 8, 10, 12, 14])
                self.assertEqual([s for s, _ in curves["epoch/val_top1"]], [7, 14])
                self.assertEqual("step/tau" in curves, variant != "bn")
                files = list(folder.glob("events.out.tfevents.*"))
                self.assertEqual(len(files), 1)
                events = tfevents_reader.read(files[0])
                times = [e["wall_time"] for e in events]
                self.assertEqual(times, sorted(times))
                self.assertLess(abs(times[-1] - (folder / "log.jsonl").stat().st_mtime), 60)

    def test_seldom_evaluated(self):
        self.succeed(*train("tau", "--epochs", 5, "--eval-every", 2, "--out", self.base / "run"))
        curves = self.assert_equal_to_log(self.base / "run")
        self.assertEqual([s for s, _ in curves["epoch/val_loss"]], [14, 28, 35])
        self.assertEqual([s for s, _ in curves["epoch/train_loss"]], [7, 14, 21, 28, 35])

    def test_after_a_resume(self):
        """At the end of an epoch, within one, and again of what was finished."""
        folder = self.base / "run"
        for files, steps in enumerate((7, 10, 11, 18, 18, 21, 30), 1):
            self.succeed(*train("bn-tau", "--steps", steps, "--out", folder, "--resume"))
            with self.subTest(steps=steps):
                self.assertEqual(len(list(folder.glob("events.out.tfevents.*"))), files)
                self.assert_equal_to_log(folder)
        sessions = [e["step"] for path in sorted(folder.glob("events.*")) for e in tfevents_reader.read(path)
                    if e.get("session") == 1]
        self.assertEqual(sessions, [8, 10, 11, 18, 18, 22])

    def test_after_a_resume_with_a_schedule_that_changed(self):
        """What the log keeps of the shorter run, the curves keep too."""
        for steps in (10, 20):
            self.succeed(*train("tau", "--schedule", "cosine", "--steps", steps, "--out", self.base / "run", "--resume"))
        self.assert_equal_to_log(self.base / "run")

    def test_the_reader_notices_damage(self):
        self.succeed(*train("tau", "--epochs", 1, "--out", self.base / "run"))
        path = next((self.base / "run").glob("events.*"))
        data = path.read_bytes()
        for at in range(0, len(data), 37):
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1:])
            with self.assertRaises(ValueError):
                tfevents_reader.read(path)
