#!/usr/bin/env python3
"""Checks what compilers do not: the dependency law, sizes of files and functions, names that are unique.

    tools/lint.py      prints each breach as FILE:LINE: TEXT and exits 1 when there is one
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The dependency law (docs/architecture.md): a layer may include itself and what is listed, nothing else.
LAYERS = {
    "base": set(),
    "io": {"base"},
    "data": {"base", "io"},
    "model": {"base"},
    "backend": {"base", "model", "kernels"},
    "engine": {"base", "io", "model", "backend"},
    "train": {"base", "io", "data", "model", "backend", "engine"},
    "plot": {"base"},
    "theory": {"base", "io", "data", "model", "backend", "engine", "plot"},
    "report": {"base", "io", "plot"},
    "cli": set(),
}
MAX_FILE, MAX_FUNCTION = 600, 60


def sources():
    for folder in ("src", "include", "tests", "bench", "examples"):
        yield from sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".c", ".h"))


def layer_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "src" else None


def check_includes(path, lines):
    layer = layer_of(path)
    if layer is None:
        return
    for number, line in enumerate(lines, 1):
        found = re.match(r'\s*#include "([^"/]+)/', line)
        if not found:
            continue
        target = found.group(1)
        if target in ("taunet", layer):
            continue
        if target not in LAYERS.get(layer, set()):
            yield number, f"layer '{layer}' may not include '{target}/' (the dependency law)"


def check_sizes(lines):
    if len(lines) > MAX_FILE:
        yield len(lines), f"{len(lines)} lines, more than {MAX_FILE}"
    start = None
    for number, line in enumerate(lines, 1):
        # With our clang-format style a function body opens on a line that starts in column one and ends with '{'.
        if re.match(r"[A-Za-z_].*\) *\{$", line) or (re.match(r" +\S.*\) \{$", line) and start is None and number > 1
                                                     and re.match(r"[A-Za-z_].*[(,]$", lines[number - 2])):
            start = number
        elif line == "}" and start is not None:
            if number - start + 1 > MAX_FUNCTION:
                yield start, f"a function of {number - start + 1} lines, more than {MAX_FUNCTION}"
            start = None


def main():
    breaches, names = [], {}
    for path in sources():
        lines = path.read_text().split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        for number, text in list(check_includes(path, lines)) + list(check_sizes(lines)):
            breaches.append(f"{path.relative_to(ROOT)}:{number}: {text}")
        if layer_of(path):
            other = names.setdefault(path.name, path)
            if other != path:
                breaches.append(f"{path.relative_to(ROOT)}:1: same file name as {other.relative_to(ROOT)}")
    print("\n".join(breaches) if breaches else "tools/lint.py: nothing to say")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
