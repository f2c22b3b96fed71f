"""What the end-to-end tests share: the program, fresh folders, small data sets, and readers for what a run leaves."""
import csv
import gzip
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib

import tfevents_reader

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = str(pathlib.Path(os.environ.get("TAUNET") or ROOT / "build" / "taunet").resolve())
TIMES = {"images_per_second", "seconds", "data_wait"}  # what may differ between two equal runs
TIMEOUT = 120
SANITIZED = os.path.exists(PROGRAM) and b"__asan_init" in pathlib.Path(PROGRAM).read_bytes()


def environment(**changes):
    return {**os.environ, "LC_ALL": "C", **changes}


def taunet(*args, timeout=TIMEOUT, env=None, **options):
    """Runs the program to its end."""
    return subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, timeout=timeout,
                          env=env or environment(), stdin=subprocess.DEVNULL, **options)


def start(*args, **options):
    """Starts the program and returns at once."""
    return subprocess.Popen([PROGRAM, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment(), stdin=subprocess.DEVNULL, **options)


def build_faults(case):
    """Compiles faults.c for the tests of a class; gives the path of the library."""
    folder = tempfile.TemporaryDirectory(prefix="taunet-e2e-")
    case.addClassCleanup(folder.cleanup)
    library = pathlib.Path(folder.name) / "faults.so"
    subprocess.run([os.environ.get("CC", "cc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror",
                    "-shared", "-fPIC", "-o", library, ROOT / "tests" / "e2e" / "faults.c", "-ldl"], check=True,
                   timeout=TIMEOUT)
    return str(library)


def wait_until(condition, what, timeout=60, pause=0.001):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s for {what}")
        time.sleep(pause)


class Case(unittest.TestCase):
    """A test with a folder of its own, self.base."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="taunet-e2e-")
        self.addCleanup(folder.cleanup)
        self.base = pathlib.Path(folder.name)

    def succeed(self, *args, **options):
        result = taunet(*args, **options)
        self.assertEqual(result.returncode, 0, f"{args}: {result.stderr}")
        self.assertEqual(result.stderr, "", args)
        return result

    def refuse(self, status, words, *args, **options):
        """The program ends with this status and one line on stderr that holds all the words."""
        result = taunet(*args, **options)
        self.assert_refused(result, status, words)
        return result

    def assert_refused(self, result, status, words):
        self.assertEqual(result.returncode, status, f"{result.args}: {result.stderr}")
        self.assertRegex(result.stderr, r"\Ataunet: [^\n]+\n\Z")
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, result.stderr)

    def assert_same_run(self, one, other, but=()):
        """Logs, metrics and checkpoints of two run folders are equal, times aside. `but` names keys of the start line
        that may differ."""
        self.assertEqual(log(one, but), log(other, but))
        self.assertEqual(metrics(one), metrics(other))
        names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in (one, other)]
        self.assertEqual(*names)
        for name in names[0]:
            self.assert_same_checkpoint(one / name, other / name)

    def assert_same_checkpoint(self, one, other):
        first, second = read_safetensors(one), read_safetensors(other)
        self.assertEqual(position(first[0]), position(second[0]), f"{one}, {other}")
        self.assertEqual(list(first[1]), list(second[1]))
        for name, tensor in first[1].items():
            self.assertEqual(tensor, second[1][name], f"{name} in {one} and {other}")

    def assert_no_temporary_files(self, folder):
        self.assertEqual([p.name for p in folder.iterdir() if p.name.endswith(".tn-tmp")], [])


# What a run leaves -----------------------------------------------------------------------------------------------

def log(folder, but=()):
    """log.jsonl without times, as a list of dictionaries."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    drop = [TIMES | set(but) if line["event"] == "start" else TIMES for line in lines]
    return [{key: line[key] for key in line if key not in d} for line, d in zip(lines, drop)]


def events(folder, kind):
    return [line for line in log(folder) if line["event"] == kind]


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def read_safetensors(path):
    """(metadata, {name: (dtype, shape, bytes)}) of a file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[8 + size + begin:8 + size + end])
    return metadata, tensors


def write_safetensors(path, metadata, tensors):
    """Writes what read_safetensors gives; without the hash, which would be that of other data."""
    header, at = {"__metadata__": {k: v for k, v in metadata.items() if k != "xxh64"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def position(metadata):
    """Metadata that two equal runs share: the logs' lengths hang on how long the times in them are, and the hash is
    that of tensors which are compared anyway."""
    return {key: value for key, value in metadata.items() if key not in ("log_bytes", "metrics_bytes")}


def curves(folder, torn=False):
    """The curves that TensorBoard shows, {tag: [(step, value), ...]}: a session start drops what was said before about
    its step and later ones. `torn`: files but the last may end with a record that is cut short."""
    result = {}
    paths = sorted(folder.glob("events.out.tfevents.*"))
    for path in paths:
        for one in torn_events(path) if torn and path != paths[-1] else tfevents_reader.read(path):
            if one.get("session") == 1:
                result = {tag: [p for p in points if p[0] < one["step"]] for tag, points in result.items()}
            for tag, value in one.get("scalars", {}).items():
                result.setdefault(tag, []).append((one["step"], value))
    return {tag: points for tag, points in result.items() if points}


def torn_events(path):
    found = []
    try:
        for payload in tfevents_reader.records(path.read_bytes()):
            found.append(tfevents_reader.event(payload))
    except ValueError as error:
        if "cut short" not in str(error):
            raise
    return found


# Data sets -------------------------------------------------------------------------------------------------------

def cifar_records(count, seed, classes=10, label_bytes=1):
    """Records whose images are easy to tell apart: a patch of the label's own in noise."""
    rng, records = random.Random(seed), []
    for i in range(count):
        label, image = i % classes, bytearray(rng.randbytes(3072))
        for at in range(label * 64, label * 64 + 256):
            image[at % 3072] = image[(at + 1024) % 3072] = 255
        records.append(bytes([label % 20] * (label_bytes - 1) + [label]) + bytes(image))
    return b"".join(records)


def make_cifar10(folder, train=64, test=32):
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(cifar_records(train, 1))
    (folder / "test_batch.bin").write_bytes(cifar_records(test, 2))
    return f"cifar10:{folder}"


def make_cifar100(folder, train=64, test=32):
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(cifar_records(train, 1, 100, 2))
    (folder / "test.bin").write_bytes(cifar_records(test, 2, 100, 2))
    return f"cifar100:{folder}"


def idx(dims, data):
    return bytes([0, 0, 8, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + data


IDX_NAMES = {(split, part): f"{split}-{part}-ubyte"
             for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")}


def make_mnist(folder, train=64, test=32, height=28, width=28, compress=True):
    """A set in MNIST's files: bright stripes, placed by the label."""
    folder.mkdir(parents=True)
    for split, count, seed in (("train", train, 3), ("t10k", test, 4)):
        rng, images = random.Random(seed), []
        for i in range(count):
            image = bytearray(v // 4 for v in rng.randbytes(height * width))
            row = i % 10 * height // 10
            image[row * width:(row + 2) * width] = b"\xff" * (2 * width)
            images.append(bytes(image[:height * width]))
        parts = {"images-idx3": idx((count, height, width), b"".join(images)),
                 "labels-idx1": idx((count,), bytes(i % 10 for i in range(count)))}
        for part, data in parts.items():
            name = IDX_NAMES[split, part] + (".gz" if compress else "")
            (folder / name).write_bytes(gzip.compress(data) if compress else data)
    return f"mnist:{folder}"


def png(width, height, pixels):
    """An RGB PNG; pixels: bytes, row by row."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[y * width * 3:(y + 1) * width * 3] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def class_image(label, rng):
    """A PNG of some size whose colour tells its class, with noise."""
    width, height = rng.randrange(20, 40), rng.randrange(20, 40)
    base = (60 + 130 * (label & 1), 60 + 130 * (label >> 1 & 1), 60 + 130 * (label >> 2 & 1))
    return png(width, height, bytes(base[i % 3] + rng.randrange(60) for i in range(3 * width * height)))


def make_folder(folder, train=12, val=4, classes=4):
    """A folder of images, `train` and `val` of each class. Gives the specification."""
    for split, count, seed in (("train", train, 5), ("val", val, 6)):
        rng = random.Random(seed)
        for label in range(classes):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                (folder / split / f"class{label}" / f"{i}.png").write_bytes(class_image(label, rng))
    return f"folder:{folder}"


if __name__ == "__main__":
    sys.exit("this module is imported by the tests; run.py runs them")
