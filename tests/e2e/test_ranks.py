"""Several processes that train together: the same run as one process, and what happens when one of them is lost."""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import unittest

import harness
from harness import Case

RANKS_ONLY = {"ranks", "threads", "peak_bytes"}  # keys of the start line that depend on the number of processes
TIMES = {"comm_wait"}


def environment():
    """Root may run mpirun; what MPI itself leaks is not looked for."""
    return harness.environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                               ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1")


def mpirun(*contexts, **options):
    """Starts processes; each context is (number of processes, extra arguments of mpirun, arguments of taunet)."""
    command = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none"]
    for i, (count, extra, arguments) in enumerate(contexts):
        command += ([":"] if i else []) + ["-np", str(count), *extra, harness.PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
                            stdin=subprocess.DEVNULL, **options)


def rank_processes(launcher):
    """{rank: pid} of the processes that a launcher has started."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or os.readlink(entry / "exe") != harness.PROGRAM:
                continue
            if f"\nPPid:\t{launcher.pid}\n" not in (entry / "status").read_text():
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                found[int(variable.split(b"=")[1])] = int(entry.name)
    return found


def log(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in harness.log(folder, RANKS_ONLY)]


@unittest.skipUnless(shutil.which("mpirun"), "there is no mpirun")
class Ranks(Case):
    def setUp(self):
        super().setUp()
        self.folder, self.straight = self.base / "ranks", self.base / "straight"

    def command(self, *more, folder=None, batch=40):
        return ["train", "--model", "resnet8", "--data", "synthetic:3x16x16:4:150", "--batch", batch, "--micro-batch",
                4, "--threads", 1, "--log-every", 1, "--lr", 0.01, "--epochs", 2, "--out", folder or self.folder, *more]

    def finish(self, process, status=0):
        output, error = process.communicate(timeout=harness.TIMEOUT)
        if status is not None:
            self.assertEqual(process.returncode, status, error)
        return output, error

    def run_ranks(self, ranks, *command, status=0):
        return self.finish(mpirun((ranks, [], command)), status)

    def wait_for_step(self, process, step):
        text = self.folder / "log.jsonl"
        harness.wait_until(lambda: process.poll() is not None or (text.exists() and f'"step":{step},' in text.read_text()),
                           f"step {step}")
        self.assertIsNone(process.poll(), "the run ended too soon")

    def assert_same(self, one, other):
        self.assertEqual(log(one), log(other))
        self.assertEqual(harness.metrics(one), harness.metrics(other))
        for name in ("last.safetensors", "best.safetensors"):
            self.assert_same_checkpoint(one / name, other / name)

    def text(self, path):
        return "".join(line for line in path.read_text().splitlines(True) if not line.startswith("out ="))

    def test_the_same_bits(self):
        """Batches of 10 chunks, the last one of 8 rows; 150 validation images; mixup, smoothing and probes."""
        more = ["--mixup", 0.5, "--label-smoothing", 0.1, "--probe", "norms"]
        self.succeed(*self.command(*more, folder=self.straight))
        for ranks in (1, 2, 3, 4):
            with self.subTest(ranks=ranks):
                output, error = self.run_ranks(ranks, *self.command(*more, "--overwrite"))
                self.assertEqual(error, "")
                self.assertEqual("processes (mpi)" in output, ranks > 1)
                self.assertEqual(output.count("val loss"), 2)
                self.assert_same(self.straight, self.folder)
                for name in ("config.toml", "probes.csv"):
                    self.assertEqual(self.text(self.straight / name), self.text(self.folder / name))
                self.assertEqual(harness.log(self.folder)[0]["ranks"], ranks)

    def test_stored_images(self):
        """Partners of mixup may be the images of another process."""
        data = harness.make_folder(self.base / "images")
        more = ["--data", data, "--image-size", 16, "--resize", 18, "--mixup", 0.5, "--epochs", 1]
        self.succeed(*self.command(*more, folder=self.straight))
        self.run_ranks(3, *self.command(*more))
        self.assert_same(self.straight, self.folder)
        error = self.run_ranks(2, *self.command(*more, "--on-bad-sample", "skip", "--overwrite"), status=2)[1]
        self.assertRegex(error, r"\Ataunet: --on-bad-sample skip works in a single process[^\n]*\n\Z")

    def test_batch_norm(self):
        """--sync-bn is one process again, bit for bit; without it the statistics are those of each share."""
        short = ["--variant", "bn-tau", "--epochs", 1, "--limit-batches", 2]
        self.succeed(*self.command(*short, folder=self.straight))
        for ranks in (2, 3):
            self.run_ranks(ranks, *self.command(*short, "--sync-bn", "--overwrite"))
            self.assert_same(self.straight, self.folder)
        self.run_ranks(3, *self.command(*short, "--overwrite"))
        one, other = harness.events(self.straight, "epoch")[-1], harness.events(self.folder, "epoch")[-1]
        self.assertNotEqual(one["train_loss"], other["train_loss"])
        self.assertLess(abs(one["train_loss"] - other["train_loss"]), 0.2)

    def test_local_batch_norm_resumes(self):
        command = self.command("--variant", "bn")
        self.run_ranks(2, *self.command("--variant", "bn", folder=self.straight))
        self.run_ranks(2, *command, "--epochs", 1)
        self.run_ranks(2, *command, "--resume")
        self.assertEqual(log(self.straight)[1:5], log(self.folder)[1:5])
        self.assert_same_checkpoint(self.straight / "last.safetensors", self.folder / "last.safetensors")

    def test_a_signal_to_any_rank_stops_all(self):
        """USR1 and TERM; then the run goes on with other numbers of processes, and ends like one that did not stop."""
        long = ["--data", "synthetic:3x16x16:4:500"]
        self.succeed(*self.command(*long, folder=self.straight))
        for ranks, rank, number, resumed in ((2, 1, signal.SIGUSR1, 3), (3, 0, signal.SIGTERM, 1)):
            with self.subTest(signal=number.name):
                shutil.rmtree(self.folder, ignore_errors=True)
                process = mpirun((ranks, [], self.command(*long)))
                self.wait_for_step(process, 3)
                os.kill(rank_processes(process)[rank], number)
                _, error = self.finish(process, 128 + number)
                self.assertRegex(error, rf"\Ataunet: stopped by signal {int(number)} at step \d+; [^\n]*\n\Z")
                end = harness.log(self.folder)[-1]
                self.assertEqual((end["event"], end["status"]), ("end", "stopped"))
                self.run_ranks(resumed, *self.command(*long, "--resume"))
                self.assert_same(self.straight, self.folder)

    def lose(self, kill, words, within, *more):
        """Kills rank 1 of 3 in a run; a line about it comes `within` seconds, and all end soon after."""
        process = mpirun((3, [], self.command("--data", "synthetic:3x16x16:4:30000", *more)))
        self.wait_for_step(process, 3)
        time.sleep(1)  # until the ranks have told each other where they are
        pids = rank_processes(process)
        self.assertEqual(sorted(pids), [0, 1, 2])
        begun = time.monotonic()
        os.kill(pids[1], kill)
        line = process.stderr.readline()
        while line and not line.startswith("taunet: "):  # Open MPI may write first: "[host:pid] Read -1, expected ..."
            line = process.stderr.readline()
        told = time.monotonic() - begun
        _, error = self.finish(process, None)
        ended = time.monotonic() - begun
        self.assertNotEqual(process.returncode, 0)
        for word in words:
            self.assertIn(word, line)
        self.assertEqual(re.findall("taunet: .*", error), [], "more than one line")
        self.assertLess(told, within)
        self.assertLess(ended, 30)
        self.assertEqual(rank_processes(process), {})
        self.assertNotIn('"end"', self.text(self.folder / "log.jsonl"))

    def test_a_killed_rank(self):
        self.lose(signal.SIGKILL, ["rank 1 (", "died", "at step", "in training"], 1.0)

    def test_a_stopped_rank(self):
        self.lose(signal.SIGSTOP, ["rank 1 (", "silent", "at step", "in training"], 6.0, "--comm-timeout", 2)

    def test_data_that_one_rank_has_not(self):
        harness.make_cifar10(self.base / "here" / "data")
        (self.base / "there").mkdir()
        command = self.command("--data", "cifar10:data", batch=32)
        error = self.finish(mpirun((1, ["-wdir", self.base / "here"], command),
                                   (1, ["-wdir", self.base / "there"], command)), 1)[1]
        self.assertRegex(error, r"\Ataunet: rank 1 \([^)]*\): [^\n]*data[^\n]*\n\Z")
        self.assertFalse(self.folder.exists())

    def test_options_that_differ(self):
        error = self.finish(mpirun((1, [], self.command("--seed", 1)), (1, [], self.command("--seed", 2))), 2)[1]
        self.assertRegex(error, r'\Ataunet: rank 1 \([^)]*\): an option differs between ranks: "seed = 2", on rank 0 '
                                r'"seed = 1"\n\Z')
        self.assertFalse(self.folder.exists())

    def test_a_failure_of_all_is_told_once(self):
        for status, words, more in ((2, "cifar11", ["--data", "cifar11:x"]), (1, "not finite", ["--lr", 1e30])):
            error = self.run_ranks(3, *self.command(*more, "--overwrite"), status=status)[1]
            self.assertRegex(error, rf"\Ataunet: [^\n]*{words}[^\n]*\n\Z")
        self.assertEqual(harness.log(self.folder)[-1]["status"], "diverged")

    def test_a_failure_of_rank_0(self):
        """The folder cannot be written in the middle of the run: the others end with it."""
        process = mpirun((2, [], self.command("--data", "synthetic:3x16x16:4:1500", "--epochs", 3)))
        self.wait_for_step(process, 3)
        (self.folder / "last.safetensors").mkdir()
        error = self.finish(process, 1)[1]
        self.assertRegex(error, r"\Ataunet: [^\n]*last.safetensors[^\n]*\n\Z")

    def test_gpus_starts_the_processes(self):
        self.succeed(*self.command(folder=self.straight))
        result = harness.taunet(*self.command("--gpus", 2), env=environment())
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertIn("2 processes (mpi)", result.stdout)
        self.assert_same(self.straight, self.folder)
        shutil.rmtree(self.folder)
        long = self.command("--data", "synthetic:3x16x16:4:1500", "--gpus", 2)
        process = subprocess.Popen([harness.PROGRAM, *map(str, long)], stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment())
        self.wait_for_step(process, 3)
        process.send_signal(signal.SIGINT)
        error = self.finish(process, 128 + signal.SIGINT)[1]
        self.assertRegex(error, r"\Ataunet: stopped by signal \d+ at step \d+; [^\n]*\n\Z")
        error = self.run_ranks(2, *self.command("--gpus", 3, "--overwrite"), status=2)[1]
        self.assertRegex(error, r"\Ataunet: --gpus 3: 2 processes[^\n]*\n\Z")
        self.refuse(2, ["--sync-bn", "tau"], *self.command("--sync-bn", "--overwrite"))
