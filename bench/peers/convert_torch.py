#!/usr/bin/env python3
"""Checkpoints of PyTorch programs to safetensors and back.

    convert_torch.py model.pth weights.safetensors --meta model=resnet20 --meta variant=bn
    taunet eval --checkpoint weights.safetensors --data cifar10:DIR
    convert_torch.py runs/first/best.safetensors model.pth [--key state_dict] [--prefix module.]

Which way follows from the names: .safetensors on one side, anything else (.pth, .pt, .ckpt, .th, .tar) on the other.

From PyTorch: a state dict, or a dictionary that holds one under "state_dict", "model", "net" or "ema" (or --key). The
prefix "module." of parallel training is taken off. Tensors are read, never code (weights_only), unless --trust is
given; PyTorch 1.13 needs it for files that hold plain numbers such as an accuracy. --meta names what taunet wants to know and the file does not say: model, variant, tau, classes; all may also be given to
`taunet eval` and `taunet train --init`.
To PyTorch: parameters and buffers; the momentum of a run's last.safetensors is left out.
"""
import argparse
import json
import os
import struct
import sys
import tempfile

PLACES = ("state_dict", "model_state_dict", "model", "net", "ema")
HEADER_MAX = 100_000_000


class Failed(Exception):
    """What is wrong with a file, in one line."""


def types(torch):
    """Names of safetensors and types of PyTorch."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
             "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
    return {name: getattr(torch, kind) for name, kind in names.items()}


def replace_file(path, write):
    """Writes a file beside `path` and moves it there when it is whole."""
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".convert-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# ---- safetensors ----

def write_safetensors(torch, path, tensors, metadata):
    kinds = {kind: name for name, kind in types(torch).items()}
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype not in kinds:
            raise Failed("%s: tensors of type %s have no place in safetensors" % (name, tensor.dtype))
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file):
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            raw = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
            file.write(bytes(raw.numpy()))

    replace_file(path, write)


def read_safetensors(torch, path):
    """(tensors, metadata); the offsets are checked, so that a damaged file is not taken for weights."""
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
    if not 2 <= size <= min(HEADER_MAX, len(data) - 8):
        raise Failed("%s: not a safetensors file" % path)
    try:
        header = json.loads(data[8:8 + size])
    except ValueError:
        raise Failed("%s: the header is not JSON" % path)
    metadata, tensors, end = header.pop("__metadata__", {}), {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind = types(torch).get(entry["dtype"])
        if kind is None:
            raise Failed("%s: %s: type %s is not known here" % (path, name, entry["dtype"]))
        count = 1
        for extent in entry["shape"]:
            count *= extent
        begin, end_here = entry["data_offsets"]
        if begin != end or end_here - begin != count * torch.empty(0, dtype=kind).element_size():
            raise Failed("%s: %s: offsets do not fit the shape" % (path, name))
        end = end_here
        part = data[8 + size + begin:8 + size + end]
        if len(part) != end - begin:
            raise Failed("%s: the file ends inside %s" % (path, name))
        tensor = torch.frombuffer(bytearray(part), dtype=kind) if part else torch.empty(0, dtype=kind)
        tensors[name] = tensor.reshape(entry["shape"])
    if 8 + size + end != len(data):
        raise Failed("%s: the file does not end where its tensors do" % path)
    return tensors, metadata


# ---- PyTorch ----

def is_state(torch, value):
    return isinstance(value, dict) and len(value) > 0 and all(torch.is_tensor(v) for v in value.values())


def find_state(torch, content, key, path):
    """The state dict inside what torch.load gave."""
    if key:
        if not isinstance(content, dict) or not is_state(torch, content.get(key)):
            raise Failed("%s: no state dict under \"%s\"" % (path, key))
        return content[key]
    if is_state(torch, content):
        return content
    found = [place for place in PLACES if isinstance(content, dict) and is_state(torch, content.get(place))]
    if not found:
        keys = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else type(content).__name__
        raise Failed("%s: no state dict found; name its place with --key (there is: %s)" % (path, keys))
    return content[found[0]]


def from_torch(torch, options, source, target):
    try:
        content = torch.load(source, map_location="cpu", weights_only=not options.trust)
    except Exception as error:  # torch.load raises many kinds
        advice = "" if options.trust else "; --trust reads files of a source that you trust with your account"
        raise Failed("%s: PyTorch %s cannot read it: %s%s" % (source, torch.__version__, str(error).split("\n")[0], advice))
    state = find_state(torch, content, options.key, source)
    if all(name.startswith("module.") for name in state):
        state = {name[len("module."):]: tensor for name, tensor in state.items()}
    metadata = {"format": "pt"}
    for pair in options.meta:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Failed("--meta %s: expected NAME=VALUE" % pair)
        metadata[name] = value
    write_safetensors(torch, target, {name: tensor.detach() for name, tensor in state.items()}, metadata)
    return len(state)


def to_torch(torch, options, source, target):
    tensors, _ = read_safetensors(torch, source)
    state = {options.prefix + name: tensor for name, tensor in tensors.items() if not name.startswith("momentum.")}
    content = {options.key: state} if options.key else state
    replace_file(target, lambda file: torch.save(content, file))
    return len(state)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--key", help="where the state dict stands, or is to stand, in a dictionary")
    parser.add_argument("--prefix", default="", help="to PyTorch: put in front of every name, such as module.")
    parser.add_argument("--trust", action="store_true", help="let PyTorch run what the file tells it to")
    parser.add_argument("--meta", action="append", default=[], metavar="NAME=VALUE", help="from PyTorch: metadata")
    options = parser.parse_args()
    ends = [name.endswith(".safetensors") for name in (options.source, options.target)]
    if sum(ends) != 1:
        parser.error("one of the two files is to end in .safetensors")
    if options.prefix and not ends[0]:
        parser.error("--prefix is for the way to PyTorch")
    if options.meta and ends[0]:
        parser.error("--meta is for the way from PyTorch")
    import torch
    try:
        count = (to_torch if ends[0] else from_torch)(torch, options, options.source, options.target)
    except (Failed, OSError) as error:
        sys.exit("convert_torch.py: %s" % error)
    print("%s: %d tensors" % (options.target, count))


if __name__ == "__main__":
    main()
