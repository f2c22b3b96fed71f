"""What a person sees: a bar that is redrawn on a terminal, plain lines elsewhere."""
import os
import pty
import re
import select
import signal
import subprocess
import time

import harness
from harness import Case


def on_terminal(arguments, stop_at=None):
    """Runs the program with a terminal as its standard output. `stop_at`: text at which it gets SIGINT. Gives its exit
    status, what the terminal saw, and standard error."""
    master, slave = pty.openpty()
    process = subprocess.Popen([harness.PROGRAM, *map(str, arguments)], stdin=slave, stdout=slave, stderr=subprocess.PIPE,
                               env=harness.environment(TERM="xterm"))
    os.close(slave)
    seen, end = b"", time.monotonic() + harness.TIMEOUT
    while time.monotonic() < end:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        seen += part
        if stop_at and stop_at in seen:
            process.send_signal(signal.SIGINT)
            stop_at = None
    os.close(master)
    error = process.communicate(timeout=harness.TIMEOUT)[1]
    return process.returncode, seen.decode(), error.decode()


class Terminal(Case):
    def command(self, *more):
        return ["train", "--model", "resnet8", "--data", "synthetic:3x32x32:4:400", "--batch", 20, "--epochs", 2,
                "--log-every", 5, "--out", self.base / "run", *more]

    def test_bar(self):
        status, seen, error = on_terminal(self.command())
        self.assertEqual((status, error), (0, ""))
        bars = re.findall(r"\r\x1b\[Kepoch (\d+) \[([#.]+)\] (\d+)/20  loss \d+\.\d{4}  \d+ img/s  left [\d:]+  "
                          r"wait \d+\.\d s", seen)
        self.assertGreaterEqual(len(bars), 2)
        self.assertEqual({epoch for epoch, _, _ in bars}, {"1", "2"})
        for _, bar, done in bars:
            self.assertEqual(bar.count("#"), len(bar) * int(done) // 20)
        self.assertIn("20", {done for _, _, done in bars})
        # What stays on the screen are whole lines, the bar wiped before each.
        lines = [line.split("\x1b[K")[-1] for line in seen.split("\r\n")]
        self.assertEqual(sum(line.startswith("epoch ") and "val loss" in line for line in lines), 2)
        self.assertFalse(any(line.startswith("step ") for line in lines))
        self.assertTrue(seen.endswith("\r\n") or seen.endswith("\x1b[K"), repr(seen[-40:]))

    def test_plain_lines(self):
        result = self.succeed(*self.command())
        self.assertNotIn("\x1b", result.stdout)
        self.assertNotIn("\r", result.stdout)
        lines = result.stdout.splitlines()
        steps = [line for line in lines if line.startswith("step ")]
        self.assertEqual(len(steps), 8)
        self.assertRegex(steps[1], r"^step 10/40  epoch 1  loss \d+\.\d+  lr 0\.1  tau \d\.\d+  \d+ img/s  left [\d:]+  "
                                   r"wait \d+\.\d+ s$")
        self.assertEqual(sum(line.startswith("epoch ") for line in lines), 2)
        self.assertIn("MiB planned", lines[0])

    def test_interrupted(self):
        """The message stands on a line of its own, after the bar is wiped."""
        status, seen, error = on_terminal(self.command(), stop_at=b"img/s")
        self.assertEqual(status, 130)
        self.assertRegex(error, r"\Ataunet: stopped by signal 2 at step \d+; [^\n]*\n\Z")
        self.assertTrue(seen.endswith("\x1b[K") or seen.endswith("\n"), repr(seen[-40:]))

    def test_a_reader_that_goes_away(self):
        """`taunet train | head -1` still trains to the end."""
        process = harness.start(*self.command())
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        process.stderr.close()
        self.assertEqual(process.wait(timeout=harness.TIMEOUT), 1)
        self.assertRegex(error, r"\Ataunet: [^\n]*standard output[^\n]*\n\Z")
        self.assertEqual(harness.log(self.base / "run")[-1]["status"], "done")
