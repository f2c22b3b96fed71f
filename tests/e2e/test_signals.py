"""SIGINT and SIGTERM end a run after a checkpoint; resumed, it equals one that was left alone."""
import signal
import time

import harness
from harness import Case


def train(data, batch, epochs, *more):
    return ["train", "--model", "resnet8", "--data", data, "--batch", batch, "--micro-batch", 8, "--mixup", 1,
            "--log-every", 1, "--epochs", epochs, *more]


class Signals(Case):
    def stop(self, command, folder, condition, number):
        """Runs the command, sends the signal when the condition holds and checks how the run ends."""
        process = harness.start(*command, "--out", folder)
        harness.wait_until(lambda: process.poll() is not None or condition(self.text(folder)), "the run's log")
        process.send_signal(number)
        output, error = process.communicate(timeout=harness.TIMEOUT)
        self.assertEqual(process.returncode, 128 + number, error)
        self.assertRegex(error, rf"\Ataunet: stopped by signal {int(number)} at step \d+; [^\n]*--resume[^\n]*\n\Z")
        end, metadata = harness.log(folder)[-1], harness.read_safetensors(folder / "last.safetensors")[0]
        self.assertEqual((end["event"], end["status"]), ("end", "stopped"))
        self.assertEqual(str(end["step"]), metadata["step"])
        self.assert_no_temporary_files(folder)
        return metadata

    def text(self, folder):
        return (folder / "log.jsonl").read_text() if (folder / "log.jsonl").exists() else ""

    def test_within_an_epoch(self):
        for number, variant in ((signal.SIGINT, "tau"), (signal.SIGTERM, "bn-tau")):
            with self.subTest(number.name):
                command = train("synthetic:3x32x32:4:400", 40, 2, "--variant", variant)
                straight, folder = self.base / f"{variant}-straight", self.base / variant
                self.succeed(*command, "--out", straight)
                metadata = self.stop(command, folder, lambda text: '"step":3' in text, number)
                self.assertLess(int(metadata["step"]), 10, "the signal came after the epoch; the steps are too fast")
                self.succeed(*command, "--out", folder, "--resume")
                self.assert_same_run(straight, folder)

    def test_during_evaluation(self):
        data = harness.make_cifar10(self.base / "data", train=48, test=1500)
        command = train(data, 16, 2)
        straight, folder = self.base / "straight", self.base / "stopped"
        self.succeed(*command, "--out", straight)
        metadata = self.stop(command, folder, lambda text: '"step":3' in text, signal.SIGINT)
        # All steps of the first epoch are done, and its numbers are not logged: it was being evaluated.
        self.assertEqual((metadata["step"], metadata["epoch_rows"]), ("3", "48"))
        self.assertEqual(harness.events(folder, "epoch"), [])
        self.assertEqual(harness.metrics(folder), [])
        self.succeed(*command, "--out", folder, "--resume")
        self.assert_same_run(straight, folder)

    def test_during_the_last_evaluation(self):
        """Within an epoch, when --steps ends the run there, and at the end of one."""
        data = harness.make_cifar10(self.base / "data", train=48, test=1500)
        for steps in (2, 3):
            with self.subTest(steps=steps):
                command = train(data, 16, 2, "--steps", steps)
                straight, folder = self.base / f"straight{steps}", self.base / f"stopped{steps}"
                self.succeed(*command, "--out", straight)
                self.stop(command, folder, lambda text: f'"step":{steps}' in text, signal.SIGTERM)
                self.succeed(*command, "--out", folder, "--resume")
                self.assert_same_run(straight, folder)

    def test_again_and_again(self):
        command = train("synthetic:3x16x16:4:160", 20, 5)
        straight, folder = self.base / "straight", self.base / "stopped"
        self.succeed(*command, "--out", straight)
        stops = 0
        for wanted in range(2, 40, 5):
            process = harness.start(*command, "--out", folder, "--resume")
            harness.wait_until(lambda: process.poll() is not None or f'"step":{wanted},' in self.text(folder), "a step")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=harness.TIMEOUT)
            self.assertIn(process.returncode, (0, 130))
            stops += process.returncode == 130
        self.assertGreater(stops, 3)
        self.succeed(*command, "--out", folder, "--resume")
        self.assert_same_run(straight, folder)

    def test_at_once(self):
        """A signal before the first step: one step is done, saved and can be resumed. (A signal that comes before the
        program has set its handlers ends it in the ordinary way.)"""
        command = train("synthetic:3x16x16:4:160", 20, 1)
        process = harness.start(*command, "--out", self.base / "run")
        harness.wait_until(lambda: process.poll() is not None or (self.base / "run").exists(), "the folder")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=harness.TIMEOUT)
        self.assertEqual(process.returncode, 143)
        self.succeed(*command, "--out", self.base / "run", "--resume")
        self.succeed(*command, "--out", self.base / "straight")
        self.assert_same_run(self.base / "straight", self.base / "run")

    def test_twice_ends_at_once(self):
        data = harness.make_cifar10(self.base / "data", train=1000, test=100)
        command = train(data, 1000, 1, "--variant", "bn")
        process = harness.start(*command, "--out", self.base / "run")
        harness.wait_until(lambda: process.poll() is not None or '"start"' in self.text(self.base / "run"), "the start")
        while process.poll() is None:  # the kernel merges signals that come too fast
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        process.communicate(timeout=harness.TIMEOUT)
        self.assertEqual(process.returncode, -signal.SIGINT)

    def test_hang_up(self):
        command = train("synthetic:3x32x32:4:600", 40, 2)
        self.stop(command, self.base / "run", lambda text: '"step":2' in text, signal.SIGHUP)
