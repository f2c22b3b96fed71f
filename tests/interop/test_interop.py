"""Exchanges files with the Python package safetensors; run.sh starts it and describes the arguments."""
import json
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

COPY = Path(sys.argv[1]).resolve()
TAUNET = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
CORPUS = Path(__file__).resolve().parent.parent / "fuzz" / "corpus" / "safetensors"


def copy(source, target):
    """Reads source with our reader and writes it to target with our writer."""
    done = subprocess.run([COPY, source, target], capture_output=True, text=True)
    assert done.returncode == 0, f"{COPY.name} exits with {done.returncode}: {done.stderr}"
    return target


def header_of(path):
    data = Path(path).read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    assert size % 8 == 0, f"the header of {path} has {size} bytes, not a multiple of 8"
    return json.loads(data[8 : 8 + size])


def metadata_of(path):
    with safetensors.safe_open(path, "np") as file:
        return file.metadata() or {}


def same(a, b):
    """The same names, types, shapes and bits."""
    assert a.keys() == b.keys(), f"{sorted(a)} and {sorted(b)}"
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), f"{name} differs in its bits"


def array(shape, dtype, seed=0):
    """Any bit pattern may appear: NaNs with payloads, infinities, denormals."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    bits = np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)
    return (bits % 2 == 1 if dtype == "bool" else bits.view(dtype)).reshape(shape)


def test_python_file_comes_back_bit_for_bit(folder):
    tensors = {
        "conv1.weight": array((16, 3, 3, 3), np.float32, 1),
        "bn1.num_batches_tracked": np.array(12345678901, np.int64),
        "scalar": np.array(-0.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "vector": array((1,), np.float32, 2),
    }
    metadata = {"format": "pt", "epoch": "17", "text \u20ac \U0001f600": 'a "quoted" \\ line\nand a tab\t', "": ""}
    save_file(tensors, folder / "python", metadata)
    copy(folder / "python", folder / "ours")
    same(tensors, load_file(folder / "ours"))
    read = metadata_of(folder / "ours")
    assert len(read.pop("xxh64")) == 16
    assert read == metadata, read


def test_all_numpy_dtypes(folder):
    types = "float64 float32 float16 int64 uint64 int32 uint32 int16 uint16 int8 uint8 bool complex64".split()
    tensors = {name: array((3, 5), name, i) for i, name in enumerate(types)}
    save_file(tensors, folder / "python")
    same(tensors, load_file(copy(folder / "python", folder / "ours")))


def test_dtypes_that_numpy_lacks(folder):
    """The file is put together by hand; the package only has to understand what becomes of it."""
    bits = {"BF16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
    bits |= {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
    header, data = {}, b""
    for dtype, size in bits.items():
        begin = len(data)
        data += bytes(range(begin, begin + size))
        header[dtype] = {"dtype": dtype, "shape": [2, 4], "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (folder / "made").write_bytes(struct.pack("<Q", len(text)) + text + data)
    before = dict(safetensors.deserialize((folder / "made").read_bytes()))
    after = dict(safetensors.deserialize(copy(folder / "made", folder / "ours").read_bytes()))
    assert before == after and len(before) == len(bits), (before, after)


def test_names_and_order(folder):
    tensors = {name: array((2,), np.float32, i) for i, name in enumerate(["b", "a\u00e9", 'q"\\', "a", "z.0.w", ""])}
    save_file(tensors, folder / "python")
    copy(folder / "python", folder / "once")
    copy(folder / "once", folder / "twice")
    same(tensors, load_file(folder / "twice"))
    assert (folder / "once").read_bytes() == (folder / "twice").read_bytes()


def test_no_tensors(folder):
    save_file({}, folder / "python", {"only": "metadata"})
    assert load_file(copy(folder / "python", folder / "ours")) == {}
    assert metadata_of(folder / "ours")["only"] == "metadata"


def test_large_file(folder):
    tensors = {f"layer{i}.weight": array((64, 64, 3, 3), np.float32, i) for i in range(100)}
    save_file(tensors, folder / "python")
    same(tensors, load_file(copy(folder / "python", folder / "ours")))
    offsets = [entry["data_offsets"] for name, entry in header_of(folder / "ours").items() if name != "__metadata__"]
    assert all(begin % 8 == 0 for begin, _ in offsets)


def test_what_we_accept_python_accepts(folder):
    files = sorted(CORPUS.iterdir())
    accepted = 0
    for file in files:
        done = subprocess.run([COPY, file, folder / "copy"], capture_output=True, text=True)
        assert done.returncode in (0, 1), f"{file.name}: exit status {done.returncode}"
        assert done.returncode == 0 or (done.stderr.startswith("error: ") and done.stderr.count("\n") == 1), done.stderr
        assert (done.returncode == 0) == file.name.startswith("valid-"), f"{file.name}: {done.stderr or 'accepted'}"
        if done.returncode == 0:
            accepted += 1
            before = dict(safetensors.deserialize(file.read_bytes()))
            assert before == dict(safetensors.deserialize((folder / "copy").read_bytes())), file.name
    assert 0 < accepted < len(files)


def test_truncated_and_changed_files_are_refused(folder):
    save_file({"w": array((8, 8), np.float32)}, folder / "python")
    whole = copy(folder / "python", folder / "ours").read_bytes()
    for name, data in {"cut": whole[:-1], "longer": whole + b"x", "flipped": whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:]}.items():
        (folder / name).write_bytes(data)
        done = subprocess.run([COPY, folder / name, folder / "copy"], capture_output=True, text=True)
        assert done.returncode == 1 and name in done.stderr, f"{name}: {done}"
        assert not (folder / "copy").exists()


def test_taunet_init(folder):
    ours = folder / "X.safetensors"
    command = [TAUNET, "init", "--model", "resnet8", "--variant", "tau", "--seed", "1", "--out", ours]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tensors = load_file(ours)
    weight = tensors["conv1.weight"]
    assert weight.shape == (16, 3, 3, 3) and weight.dtype == np.float32, (weight.shape, weight.dtype)
    for name, tensor in tensors.items():
        assert tensor.dtype in (np.float32, np.int64), f"{name} is {tensor.dtype}"
        assert np.isfinite(tensor).all(), f"{name} is not finite"
    assert weight.std() > 0
    convolutions = [tensor.shape for tensor in tensors.values() if tensor.ndim == 4 and tensor.shape[2:] == (3, 3)]
    assert len(convolutions) == 7, convolutions
    assert {shape[0] for shape in convolutions} == {16, 32, 64}, convolutions
    assert any(tensor.shape == (10, 64) for tensor in tensors.values()), "there is no layer from 64 features to 10 classes"
    same(tensors, load_file(copy(ours, folder / "ours again")))
    save_file(tensors, folder / "python")
    same(tensors, load_file(copy(folder / "python", folder / "back")))


def main():
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    if TAUNET is None:
        tests = [(name, test) for name, test in tests if name != "test_taunet_init"]
    print(f"safetensors {safetensors.__version__}, numpy {np.__version__}")
    failed = 0
    for name, test in tests:
        with tempfile.TemporaryDirectory(prefix="taunet-interop-") as folder:
            try:
                test(Path(folder))
                print(f"ok     {name}")
            except Exception:
                failed += 1
                print(f"FAILED {name}")
                traceback.print_exc(file=sys.stdout)
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
