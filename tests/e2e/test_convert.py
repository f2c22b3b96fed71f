"""bench/peers/convert_torch.py: PyTorch's checkpoints in taunet and back. Skipped without PyTorch."""
import os
import struct
import subprocess
import sys
import unittest

from harness import Case, ROOT, TIMEOUT, make_cifar10, read_safetensors

CONVERT = ROOT / "bench" / "peers" / "convert_torch.py"


def find_torch():
    """A Python with PyTorch: $TORCH_PYTHON, else the system's."""
    for python in (os.environ.get("TORCH_PYTHON"), "/usr/bin/python3", sys.executable):
        if python and subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0:
            return python
    return None


TORCH = find_torch()

# For each variant: a state dict with changed batch norms as official programs save it, the same plain, and its logits
# on the records of a CIFAR file.
MAKE = """
import sys, struct
sys.path.insert(0, {peers!r})
import torch, models
data = open({base!r} + "/data/test_batch.bin", "rb").read()
pixels = torch.tensor([list(data[i + 1:i + 3073]) for i in range(0, len(data), 3073)], dtype=torch.float32)
mean, std = torch.tensor([.4914, .4822, .4465]).view(1, 3, 1, 1), torch.tensor([.2023, .1994, .2010]).view(1, 3, 1, 1)
for variant in ("bn", "tau"):
    torch.manual_seed(1)
    net = models.build("resnet8", variant)
    net.train()(torch.randn(40, 3, 32, 32))
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    net.eval()
    state = {{"module." + k: v for k, v in net.state_dict().items()}}
    extra = {{"best": 90.5}} if variant == "tau" else {{}}
    torch.save({{"epoch": 7, "state_dict": state, **extra}}, {base!r} + "/" + variant + ".pth")
    torch.save(net.state_dict(), {base!r} + "/" + variant + "-plain.pth")
    logits = net((pixels.view(-1, 3, 32, 32) / 255 - mean) / std)
    open({base!r} + "/" + variant + ".logits", "wb").write(struct.pack("<320f", *logits.flatten().tolist()))
torch.save({{"epoch": 1}}, {base!r} + "/empty.pth")
"""

SAME = """
import sys
sys.path.insert(0, {peers!r})
import torch, models
for variant in ("bn", "tau"):
    content = torch.load({base!r} + "/" + variant + "-back.ckpt", weights_only=True)
    state = {{k[len("module."):]: v for k, v in content["net"].items()}}
    models.build("resnet8", variant).load_state_dict(state, strict=True)
    want = torch.load({base!r} + "/" + variant + "-plain.pth", weights_only=True)
    assert set(want) == set(state) and all(torch.equal(want[k], state[k]) for k in want)
models.build("resnet8", "tau").load_state_dict(torch.load({base!r} + "/run.pth", weights_only=True), strict=True)
"""


@unittest.skipUnless(TORCH, "no PyTorch here: tools/deps install peers, or set TORCH_PYTHON")
class Convert(Case):
    def python(self, code):
        code = code.format(peers=str(ROOT / "bench/peers"), base=str(self.base))
        subprocess.run([TORCH, "-c", code], check=True, timeout=TIMEOUT)

    def convert(self, *args):
        return subprocess.run([TORCH, CONVERT, *map(str, args)], capture_output=True, text=True, timeout=TIMEOUT)

    def succeed_converting(self, *args):
        done = self.convert(*args)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_logits_agree_and_weights_come_back(self):
        data, base = make_cifar10(self.base / "data"), self.base
        self.python(MAKE)
        for variant, flags in (("bn", ()), ("tau", ("--trust",))):
            weights, predictions = base / f"{variant}.safetensors", base / f"{variant}.npy"
            self.succeed_converting(base / f"{variant}.pth", weights, "--meta", "model=resnet8", "--meta",
                                    f"variant={variant}", *flags)
            self.assertEqual(read_safetensors(weights)[0]["variant"], variant)
            self.succeed("eval", "--checkpoint", weights, "--data", data, "--predictions", predictions)
            got = struct.unpack("<320f", predictions.read_bytes()[-4 * 320:])
            want = struct.unpack("<320f", (base / f"{variant}.logits").read_bytes())
            self.assertLess(max(abs(a - b) for a, b in zip(got, want)), 1e-4 * max(map(abs, want)))
            self.succeed_converting(weights, base / f"{variant}-back.ckpt", "--key", "net", "--prefix", "module.")
        self.succeed("train", "--model", "resnet8", "--data", data, "--steps", 2, "--batch", 16, "--out", base / "run")
        self.succeed_converting(base / "run" / "last.safetensors", base / "run.pth")
        self.python(SAME)
        self.assert_refused_converting("no state dict", base / "empty.pth", base / "x.safetensors")

    def assert_refused_converting(self, words, *args):
        done = self.convert(*args)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(words, done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_bad_input_is_refused(self):
        bad, out, torn = self.base / "bad.pth", self.base / "out.safetensors", self.base / "torn.safetensors"
        bad.write_bytes(b"nothing of PyTorch's")
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        torn.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
        self.assert_refused_converting("cannot read it", bad, out)
        self.assert_refused_converting("ends inside a", torn, self.base / "x.pth")
        self.assert_refused_converting("one of the two", bad, bad)
        self.assert_refused_converting("--meta is for", torn, self.base / "x.pth", "--meta", "a=b")
        self.assertEqual(sorted(p.name for p in self.base.iterdir()), ["bad.pth", "torn.safetensors"])
