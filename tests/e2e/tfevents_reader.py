#!/usr/bin/env python3
"""Reads TensorBoard event files, strictly, with nothing but the standard library.

As a program: tfevents_reader.py FILE... prints one JSON object per event and exits with 1 at the first error.
As a module: read(path) returns a list of dictionaries with "wall_time", "step" and one of

    "file_version": str
    "session": int (1 = START)
    "scalars": {tag: float}
    "histograms": {tag: {"min", "max", "num", "sum", "sum_squares": float, "limits", "counts": [float]}}

and scalars(path) the curves, {tag: [(step, value), ...]}. Anything unexpected raises ValueError: a wrong checksum, a
record that is cut short, an unknown field, a wrong wire type.
"""
import json
import struct
import sys


def _make_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    """The payloads of a file's records."""
    at = 0
    while at < len(data):
        if len(data) - at < 12:
            raise ValueError(f"byte {at}: the record's head is cut short")
        (length, crc) = struct.unpack_from("<QI", data, at)
        if masked_crc32c(data[at : at + 8]) != crc:
            raise ValueError(f"byte {at}: the checksum of the record's length is wrong")
        payload = data[at + 12 : at + 12 + length]
        if len(data) - at - 12 < length + 4:
            raise ValueError(f"byte {at}: the record is cut short")
        if masked_crc32c(payload) != struct.unpack_from("<I", data, at + 12 + length)[0]:
            raise ValueError(f"byte {at}: the checksum of the record's data is wrong")
        yield payload
        at += length + 16


def _varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("bad varint")
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


_FIXED = {1: ("<d", 8), 5: ("<f", 4)}


def fields(data):
    """(field number, wire type, value) of a message, fixed-size values as floating-point numbers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            if value >= 1 << 63:
                value -= 1 << 64
        elif wire in _FIXED:
            form, size = _FIXED[wire]
            if len(data) - at < size:
                raise ValueError("a number is cut short")
            value = struct.unpack_from(form, data, at)[0]
            at += size
        elif wire == 2:
            size, at = _varint(data, at)
            if len(data) - at < size:
                raise ValueError("a field is cut short")
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
        yield number, wire, value


def _message(data, known):
    """A message whose fields stand at most once, as a dictionary; known maps (number, wire type) to a name."""
    result = {}
    for number, wire, value in fields(data):
        name = known.get((number, wire))
        if name is None or name in result:
            raise ValueError(f"field {number} with wire type {wire} is unknown or stands twice")
        result[name] = value
    return result


def _doubles(data):
    if len(data) % 8 != 0:
        raise ValueError("packed doubles are cut short")
    return list(struct.unpack(f"<{len(data) // 8}d", data))


_EVENT = {(1, 1): "wall_time", (2, 0): "step", (3, 2): "file_version", (5, 2): "summary", (7, 2): "session"}
_VALUE = {(1, 2): "tag", (2, 5): "scalar", (5, 2): "histogram"}
_HISTOGRAM = {(1, 1): "min", (2, 1): "max", (3, 1): "num", (4, 1): "sum", (5, 1): "sum_squares", (6, 2): "limits", (7, 2): "counts"}


def event(payload):
    result = _message(payload, _EVENT)
    result.setdefault("step", 0)
    if "file_version" in result:
        result["file_version"] = result["file_version"].decode()
    if "session" in result:
        result["session"] = _message(result["session"], {(1, 0): "status"})["status"]
    if "summary" in result:
        result["scalars"], result["histograms"] = {}, {}
        for number, wire, data in fields(result.pop("summary")):
            if (number, wire) != (1, 2):
                raise ValueError(f"field {number} in a summary")
            value = _message(data, _VALUE)
            tag = value["tag"].decode()
            if "histogram" in value:
                histogram = _message(value["histogram"], _HISTOGRAM)
                for name in ("limits", "counts"):
                    histogram[name] = _doubles(histogram[name])
                if len(histogram["limits"]) != len(histogram["counts"]):
                    raise ValueError("a histogram's limits and counts differ in number")
                result["histograms"][tag] = histogram
            else:
                result["scalars"][tag] = value["scalar"]
    return result


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    try:
        events = [event(payload) for payload in records(data)]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not events or events[0].get("file_version") != "brain.Event:2":
        raise ValueError(f"{path}: the first record does not give the version brain.Event:2")
    return events


def scalars(path):
    curves = {}
    for one in read(path):
        for tag, value in one.get("scalars", {}).items():
            curves.setdefault(tag, []).append((one["step"], value))
    return curves


def main(paths):
    if not paths:
        sys.exit("usage: tfevents_reader.py FILE...")
    for path in paths:
        try:
            for one in read(path):
                print(json.dumps(one))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
