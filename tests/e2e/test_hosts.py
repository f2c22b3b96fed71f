"""Two hosts: network namespaces with names of their own, joined by a virtual cable. Needs root."""
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

import harness
from harness import Case
from test_ranks import environment, log

# What mpirun calls to start its daemon on a host: `agent HOST COMMAND...`.
AGENT = """#!/bin/sh
host=$1; shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
"""


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=harness.TIMEOUT).stdout


def missing():
    """Why there can be no hosts here, or None."""
    for tool in ("mpirun", "ip", "unshare"):
        if not shutil.which(tool):
            return f"there is no {tool}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"tn-try-{os.getpid()}"
    for command in (["ip", "netns", "add", name],
                    ["ip", "netns", "exec", name, "unshare", "--uts", "hostname", "x"],
                    ["ip", "-n", name, "link", "add", "tn0", "type", "veth", "peer", "name", "tn1"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            break
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"{' '.join(command[:3])}: {done.stderr.strip()}" if done.returncode else None


REASON = missing()


@unittest.skipIf(REASON, REASON)
class Hosts(Case):
    def setUp(self):
        super().setUp()
        self.names = [f"tn{letter}{os.getpid()}" for letter in "ab"]
        for name in self.names:
            run("ip", "netns", "add", name)
            self.addCleanup(self.remove, name)
        first, second = self.names
        run("ip", "link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for i, name in enumerate(self.names):
            run("ip", "-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            for link in ("lo", "cable"):
                run("ip", "-n", name, "link", "set", link, "up")
        self.agent = self.base / "agent"
        self.agent.write_text(AGENT)
        self.agent.chmod(0o755)
        self.folder = self.base / "run"

    def processes(self, name):
        return [int(pid) for pid in run("ip", "netns", "pids", name).split()]

    def kill(self, name):
        for pid in self.processes(name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def remove(self, name):
        self.kill(name)
        run("ip", "netns", "del", name)

    def ranks(self, name):
        """Processes of the program on a host."""
        found = []
        for pid in self.processes(name):
            try:
                if os.readlink(f"/proc/{pid}/exe") == harness.PROGRAM:
                    found.append(pid)
            except OSError:
                pass
        return found

    def command(self, *more, folder=None):
        return ["train", "--device", "cpu", "--model", "resnet8", "--data", "synthetic:3x16x16:4:150", "--batch", 40,
                "--micro-batch", 4, "--threads", 1, "--log-every", 1, "--lr", 0.01, "--epochs", 1, "--out",
                folder or self.folder, *more]

    def start(self, command):
        """Two ranks on each host."""
        first, second = self.names
        net = "10.77.0.0/24"
        launch = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "--mca", "plm_rsh_agent", str(self.agent),
                  "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", net, "--mca", "oob_tcp_if_include", net,
                  "-H", f"{first}:2,{second}:2", "-np", "4", harness.PROGRAM, *map(str, command)]
        return subprocess.Popen(["ip", "netns", "exec", first, "unshare", "--uts", "sh", "-c",
                                 f'hostname {first}; exec "$@"', "-", *launch], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, env=environment(), stdin=subprocess.DEVNULL)

    def wait_for_step(self, process, step):
        text = self.folder / "log.jsonl"
        harness.wait_until(lambda: process.poll() is not None or (text.exists() and f'"step":{step},' in text.read_text()),
                           f"step {step}")
        self.assertIsNone(process.poll(), "the run ended too soon")

    def test_the_same_bits_on_two_hosts(self):
        straight = self.base / "straight"
        for more in ([], ["--variant", "bn-tau", "--sync-bn"]):
            alone = [option for option in more if option != "--sync-bn"]
            self.succeed(*self.command(*alone, "--overwrite", folder=straight))
            process = self.start(self.command(*more, "--overwrite"))
            output, error = process.communicate(timeout=harness.TIMEOUT)
            self.assertEqual(process.returncode, 0, error)
            self.assertIn("4 processes (mpi)", output)
            self.assertEqual(log(straight), log(self.folder))
            self.assert_same_checkpoint(straight / "last.safetensors", self.folder / "last.safetensors")

    def test_a_killed_rank_of_the_other_host(self):
        process = self.start(self.command("--data", "synthetic:3x16x16:4:1500", "--epochs", 50))
        self.wait_for_step(process, 3)
        here, there = map(self.ranks, self.names)
        self.assertEqual((len(here), len(there)), (2, 2))
        begun = time.monotonic()
        os.kill(there[0], signal.SIGKILL)
        _, error = process.communicate(timeout=harness.TIMEOUT)
        self.assertNotEqual(process.returncode, 0)
        self.assertLess(time.monotonic() - begun, 30)
        self.assertRegex(error, rf"taunet: rank [23] \({self.names[1]}\) died: [^\n]*at step \d+ in training")
        self.assertEqual(len(re.findall("taunet: ", error)), 1, error)
        self.assertEqual([self.ranks(name) for name in self.names], [[], []])

    def test_a_cable_is_pulled(self):
        """Each host names a rank of the other one that it no longer hears, and all processes end."""
        process = self.start(self.command("--data", "synthetic:3x16x16:4:1500", "--epochs", 50, "--comm-timeout", 2))
        self.wait_for_step(process, 3)
        begun = time.monotonic()
        run("ip", "-n", self.names[1], "link", "set", "cable", "down")
        line = process.stderr.readline()
        while line and not line.startswith("taunet: "):
            line = process.stderr.readline()
        self.assertRegex(line, rf"taunet: rank [23] \({self.names[1]}\) is silent[^\n]*at step \d+ in training")
        harness.wait_until(lambda: not any(map(self.ranks, self.names)), "the end of all ranks", 30)
        self.assertLess(time.monotonic() - begun, 30)
        # mpirun and its daemon behind the cable may wait for each other.
        for name in self.names:
            self.kill(name)
        process.communicate(timeout=harness.TIMEOUT)
