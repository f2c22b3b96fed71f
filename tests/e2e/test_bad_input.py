"""Bad input gets one clear line and exit 1 or 2, and loses nothing."""
import gzip
import os
import resource
import shutil
import struct
import subprocess
import unittest

import harness
from harness import Case

SYNTHETIC = "synthetic:3x8x8:4:64"


class BadData(Case):
    """Every case goes through `train` and through `eval`; neither leaves anything behind."""

    def setUp(self):
        super().setUp()
        self.data, self.out = self.base / "data", self.base / "out"

    def refuse_data(self, spec, words, status=1):
        self.refuse(status, words, "train", "--model", "resnet8", "--batch", 8, "--epochs", 1, "--data", spec,
                    "--out", self.out)
        self.assertFalse(self.out.exists())
        weights = self.base / "weights.safetensors"
        if not weights.exists():
            self.succeed("init", "--model", "resnet8", "--out", weights)
        self.refuse(status, words, "eval", "--checkpoint", weights, "--data", spec, "--predictions", self.out)
        self.assertFalse(self.out.exists())

    def test_no_such_data(self):
        for kind in ("cifar10", "cifar100", "mnist"):
            self.refuse_data(f"{kind}:{self.base}/none", f"{self.base}/none")
            file = self.base / "file"
            file.write_text("x")
            self.refuse_data(f"{kind}:{file}", str(file))

    def test_specifications_that_do_not_parse(self):
        for spec in ("cifar", "cifar10", "cifar10:", "imagenet:/tmp", "synthetic:", "synthetic:3x8x8:4", "synthetic:3x8:4:9",
                     "synthetic:3x8x8:4:0", "synthetic:0x8x8:4:9", "synthetic:3x8x8:0:9", "synthetic:3x8x8:4:9 ",
                     "synthetic:3x8x8:4:-9", "synthetic:3x8x8:4:9999999999", "\n", ""):
            self.refuse_data(spec, ["data"], status=2)

    def test_cifar_files(self):
        def change(name, content, words):
            with self.subTest(name=name, words=words):
                spec = make()
                path = self.data / name
                path.write_bytes(content(path.read_bytes()))
                self.refuse_data(spec, [str(path), *words])
                shutil.rmtree(self.data)

        for make, classes in ((lambda: harness.make_cifar10(self.data), 10),
                              (lambda: harness.make_cifar100(self.data), 100)):
            train, test = ("data_batch_1.bin", "test_batch.bin") if classes == 10 else ("train.bin", "test.bin")
            at = 0 if classes == 10 else 1  # of the label in a record
            size = 3073 + at
            for name in (train, test):
                change(name, lambda data: data[:-1], ["cut short"])
                change(name, lambda data: data + b"\0", ["cut short"])
                change(name, lambda data: b"", [])
                change(name, lambda data: data[:5 * size + at] + bytes([classes]) + data[5 * size + at + 1:],
                       ["record 5", f"label {classes}"])
            for name in (train, test):
                with self.subTest(missing=name):
                    spec = make()
                    (self.data / name).unlink()
                    self.refuse_data(spec, name)
                    shutil.rmtree(self.data)
        # One of the five training files missing in the middle.
        spec = harness.make_cifar10(self.data)
        shutil.copy(self.data / "data_batch_1.bin", self.data / "data_batch_3.bin")
        self.refuse_data(spec, "data_batch_2.bin")

    def test_mnist_files(self):
        images, labels = harness.IDX_NAMES["train", "images-idx3"], harness.IDX_NAMES["t10k", "labels-idx1"]
        cases = [(images, lambda d: d[:-1], []), (images, lambda d: d + b"\0", []), (images, lambda d: d[:9], ["early"]),
                 (images, lambda d: b"", ["early"]), (images, lambda d: b"\0\0\x08\x01" + d[4:], ["00 00 08 01"]),
                 (images, lambda d: b"\0\0\x0d\x03" + d[4:], ["00 00 0d 03"]), (images, lambda d: b"<html>" + d, ["IDX"]),
                 (images, lambda d: d[:4] + struct.pack(">I", 0) + d[8:], ["0 samples"]),
                 (images, lambda d: d[:4] + struct.pack(">III", 1 << 31, 28, 28) + d[16:], ["dimension"]),
                 (images, lambda d: d[:4] + struct.pack(">III", 1 << 30, 4096, 4096) + d[16:], []),
                 (images, lambda d: d[:4] + struct.pack(">I", 63) + d[8:], []),
                 (labels, lambda d: d[:12] + b"\x0a" + d[13:], ["record 4", "label 10"]),
                 (labels, lambda d: d[:4] + struct.pack(">I", 31) + d[8:-1], ["31 labels", "32 images"])]
        for compress in (False, True):
            for name, change, words in cases:
                name += ".gz" if compress else ""
                with self.subTest(name=name, words=words):
                    spec, path = harness.make_mnist(self.data, compress=compress), self.data / name
                    data = gzip.decompress(path.read_bytes()) if compress else path.read_bytes()
                    path.write_bytes(gzip.compress(change(data)) if compress else change(data))
                    self.refuse_data(spec, [str(path), *words])
                    shutil.rmtree(self.data)

    def test_gzip(self):
        name = harness.IDX_NAMES["train", "images-idx3"] + ".gz"
        for change in (lambda d: d[:-1], lambda d: d[:-8], lambda d: d[:len(d) // 2], lambda d: d[:12], lambda d: d + b"\0",
                       lambda d: d[:100] + bytes([d[100] ^ 255]) + d[101:], lambda d: d[:-6] + bytes([d[-6] ^ 1]) + d[-5:]):
            spec = harness.make_mnist(self.data)
            path = self.data / name
            path.write_bytes(change(path.read_bytes()))
            self.refuse_data(spec, [str(path), "at byte "])
            shutil.rmtree(self.data)

    def test_mnist_files_that_do_not_match(self):
        spec = harness.make_mnist(self.data)
        for split, part in harness.IDX_NAMES:
            with self.subTest(missing=(split, part)):
                path = self.data / (harness.IDX_NAMES[split, part] + ".gz")
                kept = path.read_bytes()
                path.unlink()
                self.refuse_data(spec, harness.IDX_NAMES[split, part])
                path.write_bytes(kept)
        name = harness.IDX_NAMES["t10k", "images-idx3"] + ".gz"
        (self.data / name).write_bytes(gzip.compress(harness.idx((32, 28, 14), bytes(32 * 28 * 14))))
        self.refuse_data(spec, ["28x28", "28x14"])

    def test_a_line_break_in_a_name(self):
        self.refuse_data(f"cifar10:{self.base}/no\nsuch\nfolder", "such")

    def test_batch_larger_than_the_data(self):
        self.refuse(2, ["65", "64"], "train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 65, "--out", self.out)
        self.assertFalse(self.out.exists())
        self.succeed("train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 64, "--steps", 1, "--out", self.out)

    def test_data_of_another_shape_than_the_model(self):
        self.succeed("train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 64, "--steps", 1, "--out", self.out)
        for spec, words in (("synthetic:3x8x9:4:64", ["3x8x8", "3x8x9"]), ("synthetic:3x8x8:5:64", ["4", "5"]),
                            ("synthetic:1x8x8:4:64", ["1x8x8"])):
            self.refuse(1, words, "eval", "--checkpoint", self.out / "last.safetensors", "--data", spec)


class BadCheckpoints(Case):
    def setUp(self):
        super().setUp()
        self.good, self.bad = self.base / "good.safetensors", self.base / "bad.safetensors"
        self.succeed("init", "--model", "resnet8", "--input", "3x8x8", "--classes", 4, "--out", self.good)

    def refuse_checkpoint(self, words, *more):
        """By eval, and by train, which takes the model's name from its own options."""
        self.refuse(1, words, "eval", "--checkpoint", self.bad, "--data", SYNTHETIC, *more)
        self.refuse(1, words, "train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 64, "--init", self.bad,
                    "--out", self.base / "out", *more)
        self.assertFalse((self.base / "out").exists())

    def test_missing(self):
        self.refuse_checkpoint([str(self.bad), "No such file"])
        self.bad.mkdir()
        self.refuse_checkpoint([str(self.bad)])

    def test_damaged(self):
        data = self.good.read_bytes()
        size = struct.unpack_from("<Q", data)[0]
        for content in (b"", data[:7], data[:8], data[:8 + size], data[:-1], data + b"\0", data[:-4] + b"\0" * 8,
                        struct.pack("<Q", 1 << 62) + data[8:], struct.pack("<Q", size + 8) + data[8:], data[:9] + data[10:],
                        data.replace(b'"F32"', b'"F16"', 1), data.replace(b'"F32"', b'"Q32"', 1),
                        data.replace(b"[16,3,3,3]", b"[16,3,3,4]", 1), data.replace(b"conv1.weight", b"conv1.weigh\xff", 1),
                        b"PK\x03\x04" + data):
            self.assertNotEqual(content, data)
            self.bad.write_bytes(content)
            self.refuse_checkpoint(str(self.bad))
        # The sum over the data finds a single bit.
        at = len(data) - 1001
        self.bad.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        self.refuse_checkpoint([str(self.bad), "xxh64"])

    def test_another_model(self):
        """The message says which tensor differs, and how."""
        for options, words in ((["--model", "resnet14"], ["layer1.1"]), (["--variant", "bn"], ["bn"]),
                               (["--variant", "fixup"], ["fixup"]), (["--tau-sharing", "per-block"], ["tau"])):
            with self.subTest(options):
                self.succeed("init", "--model", "resnet8", "--input", "3x8x8", "--classes", 4, *options, "--out", self.bad)
                self.refuse_checkpoint([str(self.bad), "tensor", "resnet8", "tau", *words], "--variant", "tau",
                                       *(["--model", "resnet8"] if "--model" in options else []),
                                       *(["--tau-sharing", "shared"] if "--tau-sharing" in options else []))
        metadata, tensors = harness.read_safetensors(self.good)
        dtype, shape, data = tensors["fc.weight"]
        for change, words in ((("F32", [10, 64], data + bytes(4 * 64 * 6)), ["fc.weight", "[10, 64]", "[4, 64]"]),
                              (("F32", [4, 8, 8], data), ["fc.weight", "[4, 8, 8]", "[4, 64]"]),
                              (("I32", shape, data), ["fc.weight", "I32", "F32"])):
            with self.subTest(words):
                harness.write_safetensors(self.bad, metadata, tensors | {"fc.weight": change})
                self.refuse_checkpoint([str(self.bad), *words])
        harness.write_safetensors(self.bad, metadata, {k: v for k, v in tensors.items() if k != "layer2.0.conv1.weight"})
        self.refuse_checkpoint([str(self.bad), "layer2.0.conv1.weight"])
        harness.write_safetensors(self.bad, metadata, tensors | {"layer9.weight": ("F32", [1], bytes(4))})
        self.refuse_checkpoint([str(self.bad), "layer9.weight"])
        harness.write_safetensors(self.bad, metadata, tensors | {"layer1.0.tau": ("F32", [1], bytes(4))})
        self.refuse_checkpoint([str(self.bad), "layer1.0.tau"])

    def test_damaged_metadata(self):
        metadata, tensors = harness.read_safetensors(self.good)
        for key, value in (("model", "resnet9"), ("variant", "none"), ("input", "3x8"), ("classes", "ten"), ("tau", "1/"),
                           ("input", "0x0x0")):
            with self.subTest(key):
                harness.write_safetensors(self.bad, metadata | {key: value}, tensors)
                self.refuse(1, str(self.bad), "eval", "--checkpoint", self.bad, "--data", SYNTHETIC)

    def test_a_torn_last_checkpoint(self):
        """Cannot come from this program; should something else tear it, the run does not start from nothing."""
        out = self.base / "out"
        run = ["train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 32, "--epochs", 2, "--out", out]
        self.succeed(*run)
        last = out / "last.safetensors"
        last.write_bytes(last.read_bytes()[:1000])
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        self.refuse(1, str(last), *run, "--resume")
        self.assertEqual({p.name: p.read_bytes() for p in out.iterdir()}, before)


class BadOptions(Case):
    def refuse_option(self, words, *options, status=2):
        self.refuse(status, words, "train", "--data", SYNTHETIC, "--batch", 8, "--steps", 1, "--out", self.base / "out",
                    *options)
        self.assertFalse((self.base / "out").exists())

    def test_unknown(self):
        self.refuse_option(["--bacth", "--batch"], "--bacth", 8)
        self.refuse_option(["--weight_decy", "--weight-decay"], "--weight_decy", 8)
        self.refuse_option(["--xyzzy", "help train"], "--xyzzy")
        self.refuse_option(["resnet20"], "resnet20")
        self.refuse_option(["-b"], "-b", 8)
        self.refuse_option(["--checkpoint", "eval"], "--checkpoint", "x")

    def test_values(self):
        for option, values in {"batch": ["0", "-1", "1.5", "x", "", "99999999999", "1048577"], "lr": ["-1", "x", "nan", "1e999"],
                               "momentum": ["1", "-0.1"], "threads": ["0.5", "-1", "1025"], "mixup": ["-1", "inf"],
                               "label-smoothing": ["1"], "shuffle": ["maybe"], "variant": ["batchnorm"], "augment": ["all"],
                               "schedule": ["step", "step:a:0.1", "linear"], "device": ["tpu", "cuda:x"], "seed": ["-1", "1.5"],
                               "precision": ["fp16"], "mean": ["1,x"], "std": ["0"], "epochs": ["0"], "save-every": ["0"],
                               "log-every": ["0"], "keep": ["-1"], "warmup": ["-1"]}.items():
            for value in values:
                with self.subTest(option=option, value=value):
                    self.refuse_option([f"--{option}"], f"--{option}", value)
        self.refuse_option(["--batch", "needs a value"], "--batch")
        self.refuse_option(["--mean", "3"], "--mean", "0.5,0.5")
        self.refuse_option(["--mean", "--std"], "--mean", "0.5,0.5,0.5", "--std", "1,1")

    def test_tau(self):
        for value in ("1/", "sqrt(L", "1/M", "L L", "2**L", "1/0", "0/0", "exp(L)", "L^L^L^L", ")", "1e999", "sqrt(-L)", " "):
            with self.subTest(value):
                self.refuse_option(["--tau"], "--tau", value)
        self.refuse_option(["--tau", "alpha"], "--variant", "alpha", "--tau", "1/L")
        for value in ("1/sqrt(L)", "2/sqrt(L)", "1/L", "L^-0.25", "0.136"):
            self.succeed("info", "--model", "resnet8", "--tau", value)

    def test_models(self):
        for name, near in (("resnet21", ["resnet20", "resnet26"]), ("resnet51", ["resnet44", "resnet56"]),
                           ("resnet2", ["resnet8"]), ("resnet", ["6n+2"]), ("vgg16", ["resnet"]), ("resnet-20", []),
                           ("resnet99999999", [])):
            with self.subTest(name):
                self.refuse_option(["--model", name, *near], "--model", name)
                self.refuse(2, ["--model", name, *near], "info", "--model", name)
                self.refuse(2, ["--model", name, *near], "init", "--model", name, "--out", self.base / "w")
                self.assertFalse((self.base / "w").exists())

    def test_device(self):
        for device in ("cuda", "cuda:1"):
            self.refuse_option(["--device", device, "cpu"], "--device", device, status=1)
        self.refuse_option(["--precision", "bf16", "fp32"], "--precision", "bf16")

    def test_required(self):
        self.refuse(2, "--data", "train", "--out", self.base / "out")
        self.refuse(2, "--out", "train", "--data", SYNTHETIC)
        self.refuse(2, "--checkpoint", "eval", "--data", SYNTHETIC)
        self.refuse(2, "--data", "eval", "--checkpoint", "x")
        self.refuse(2, "--out", "init")

    def test_configuration_files(self):
        file = self.base / "c.toml"
        for text, words in (("bacth = 3\n", ["bacth", "batch", ":1:"]), ("\nbatch = 0\n", [":2:", "batch"]),
                            ("batch = 3\nbatch = 4\n", [":2:", "batch"]), ("batch 3\n", [":1:"]), ("resume = true\n", ["resume"]),
                            ("model = \"resnet20\n", [":1:"]), ("batch = \xff\n", [":1:"]), ("[train]\n", [":1:"])):
            with self.subTest(text):
                file.write_text(text, encoding="latin-1")
                result = harness.taunet("train", "--config", file, "--data", SYNTHETIC, "--out", self.base / "out")
                self.assert_refused(result, result.returncode, [str(file), *words])
                self.assertIn(result.returncode, (1, 2))
        self.refuse(1, "none.toml", "train", "--config", self.base / "none.toml")


class BadPlaces(Case):
    """Disks that are full, folders that may not be written, files that may not grow."""

    def run_to_save(self, out, *more, **options):
        return harness.taunet("train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 32, "--log-every", 1,
                              "--out", out, *more, **options)

    def assert_previous_is_whole(self, out, saved):
        self.assertEqual((out / "last.safetensors").read_bytes(), saved)
        self.assert_no_temporary_files(out)
        self.succeed("eval", "--checkpoint", out / "last.safetensors", "--data", SYNTHETIC)

    def test_limit_on_file_size(self):
        """ulimit -f: a write beyond it fails, and must not end the process by its signal."""
        out = self.base / "out"
        self.assertEqual(self.run_to_save(out, "--epochs", 1).returncode, 0)
        saved = (out / "last.safetensors").read_bytes()
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(saved) // 2, len(saved) // 2))
        result = self.run_to_save(out, "--epochs", 3, "--resume", preexec_fn=limit)
        self.assert_refused(result, 1, ["safetensors", "File too large"])
        self.assert_previous_is_whole(out, saved)
        self.assertEqual(self.run_to_save(out, "--epochs", 3, "--resume").returncode, 0)
        for command in (["init", "--model", "resnet8", "--out", self.base / "w"],
                        ["train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 8, "--steps", 5, "--profile",
                         self.base / "w", "--out", self.base / "profiled"]):
            small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
            self.refuse(1, "File too large", *command, preexec_fn=small)
            self.assertFalse((self.base / "w").exists())

    def test_a_full_disk(self):
        disk = self.base / "disk"
        disk.mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
        if mount.returncode != 0:
            self.skipTest("no right to mount a small disk")
        self.addCleanup(subprocess.run, ["umount", str(disk)], check=True)
        out = disk / "out"
        self.assertEqual(self.run_to_save(out, "--epochs", 1).returncode, 0)
        saved = (out / "last.safetensors").read_bytes()
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file, self.assertRaises(OSError):
            while True:
                file.write(bytes(4096))
        result = self.run_to_save(out, "--epochs", 3, "--resume")
        self.assert_refused(result, 1, ["No space left on device", "free some space"])
        self.assert_previous_is_whole(out, saved)
        os.truncate(filler, filler.stat().st_size - 200_000)  # room for logs, not for a checkpoint
        result = self.run_to_save(out, "--epochs", 3, "--resume")
        self.assert_refused(result, 1, ["safetensors", "No space left on device"])
        self.assert_previous_is_whole(out, saved)
        filler.unlink()
        self.assertEqual(self.run_to_save(out, "--epochs", 3, "--resume").returncode, 0)
        self.assertEqual(self.run_to_save(self.base / "straight", "--epochs", 3).returncode, 0)
        self.assert_same_run(self.base / "straight", out, but=("steps",))

    def test_a_folder_that_may_not_be_written(self):
        """As another user where the tests run as root, whom nothing can refuse."""
        prefix = []
        if os.geteuid() == 0:
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            if not shutil.which("setpriv") or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
                self.skipTest("no way to become another user")
        self.base.chmod(0o755)
        program, out = self.base / "taunet", self.base / "out"
        shutil.copy(harness.PROGRAM, program)
        program.chmod(0o755)
        self.assertEqual(self.run_to_save(out, "--epochs", 1).returncode, 0)
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        out.chmod(0o555)
        self.addCleanup(out.chmod, 0o755)
        for path in out.iterdir():
            path.chmod(0o444)

        def refuse(*args):
            command = [*prefix, program, *map(str, args)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=harness.TIMEOUT,
                                    env=harness.environment())
            self.assert_refused(result, 1, "Permission denied")
            self.assertEqual({p.name: p.read_bytes() for p in out.iterdir()}, before)

        if prefix:
            self.base.chmod(0o555)  # root's own folder: others may not make anything in it
        else:
            self.addCleanup(self.base.chmod, 0o755)
            self.base.chmod(0o555)
        train = ["train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 32, "--epochs", 2]
        refuse(*train, "--out", out, "--resume")
        refuse(*train, "--out", out, "--overwrite")
        refuse(*train, "--out", self.base / "new")
        refuse(*train, "--out", out / "new")
        refuse("init", "--model", "resnet8", "--out", self.base / "w.safetensors")
        refuse("eval", "--checkpoint", out / "last.safetensors", "--data", SYNTHETIC, "--predictions", out / "logits.npy")

    def test_special_files(self):
        self.refuse(1, "/dev/full", "init", "--model", "resnet8", "--out", "/dev/full")
        self.refuse(1, str(self.base), "init", "--model", "resnet8", "--out", self.base)
        with open("/dev/full", "w") as full:
            result = subprocess.run([harness.PROGRAM, "help"], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assert_refused(result, 1, "standard output")
        with open("/dev/full", "w") as full:  # a run goes on without its display, and says so at the end
            result = subprocess.run([harness.PROGRAM, "train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", "32",
                                     "--epochs", "1", "--out", str(self.base / "run")], stdout=full,
                                    stderr=subprocess.PIPE, text=True)
        self.assert_refused(result, 1, "standard output")
        self.assertEqual(harness.log(self.base / "run")[-1]["status"], "done")

    def test_outputs_are_tried_before_the_work(self):
        """Hours of training or evaluation must not end with a name that cannot be written."""
        out = self.base / "out"
        self.refuse(1, "none", "train", "--model", "resnet8", "--data", SYNTHETIC, "--batch", 8, "--epochs", 3,
                    "--profile", self.base / "none" / "trace.json", "--out", out)
        self.assertFalse(out.exists())
        self.assertEqual(self.run_to_save(out, "--steps", 1).returncode, 0)
        self.refuse(1, "none", "eval", "--checkpoint", out / "last.safetensors", "--data", SYNTHETIC, "--predictions",
                    self.base / "none" / "logits.npy")


@unittest.skipIf(harness.SANITIZED, "sanitizers need more memory than this leaves")
class TooLittleMemory(Case):
    def limited(self, megabytes, *args):
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
        return harness.taunet(*args, preexec_fn=limit, timeout=30)

    def test_any_limit(self):
        """One line, whichever allocation is the one too many; or the run succeeds."""
        seen, ends = set(), []
        least = next(m for m in range(100, 2000, 20) if self.limited(m, "help").returncode == 0)
        for variant in ("tau", "bn"):
            for megabytes in [*range(least, least + 100, 10), *range(least + 100, least + 900, 80)]:
                out = self.base / f"{variant}-{megabytes}"
                result = self.limited(megabytes, "train", "--model", "resnet20", "--variant", variant, "--data",
                                      "synthetic:3x32x32:4:256", "--batch", 256, "--threads", 2, "--steps", 1, "--out", out)
                with self.subTest(variant=variant, megabytes=megabytes):
                    ends.append(result.returncode)
                    if result.returncode != 0:
                        self.assert_refused(result, 1, "")
                        self.assertRegex(result.stderr, "memory|thread")
                        seen.add(result.stderr)
                        self.assertFalse(list(out.glob("*.tn-tmp")))
        self.assertEqual(ends[-1], 0)
        self.assertGreater(len(seen), 3)

    def test_more_than_the_machine_has(self):
        """Refused before the memory is used; were it not, this process is the first that the kernel ends."""
        out = self.base / "out"

        def first_to_go():
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")

        for command in (["bench", "--model", "resnet110", "--variant", "bn", "--batch", 65536],
                        ["train", "--model", "resnet1202", "--variant", "bn", "--batch", 2048, "--data",
                         "synthetic:3x32x32:4:2048", "--out", out],
                        ["train", "--data", "synthetic:16x4096x4096:4:100000", "--out", out]):
            self.refuse(1, ["out of memory", "GiB", "the machine has"], *command, preexec_fn=first_to_go)
            self.assertFalse(out.exists())
