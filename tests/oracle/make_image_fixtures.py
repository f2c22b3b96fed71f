#!/usr/bin/env python3
"""Images and what Pillow makes of them, for tests/unit/test_image.c.

    /usr/bin/python3 make_image_fixtures.py            write images/ beside this file
    /usr/bin/python3 make_image_fixtures.py --verify   compare what this Pillow makes with the files

Needs numpy and Pillow 9 or later; the files are those of 9.4 (Debian 12). Up to version 12 Pillow resizes columns
first; 13 begins with rows where that is less work, and its values are then off by at most 1, which --verify allows.
torchvision is not needed: its two transforms are a few lines on top of Pillow's resize, given here. images/manifest.txt lists the cases, a line each:

    decode FILE RESULT                                   Image.open(FILE).convert("RGB")
    centre FILE RESIZE SIZE RESULT                       Resize(RESIZE), CenterCrop(SIZE)
    crop FILE LEFT TOP WIDTH HEIGHT SIZE RESULT          crop, then resize to SIZE x SIZE
    damaged FILE                                         what Pillow refuses to read

RESULT is a binary PPM. Encoded files that are there are kept: encoders may change, decoders may not.
"""
import argparse
import io
import pathlib
import sys

import numpy
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent / "images"


def scene(width, height, seed):
    """Slopes, edges, fine stripes and some noise, in RGB; above 200 pixels only slopes, as in large photographs."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width].astype(float)
    red = 127 + 120 * numpy.sin(x / 7 + y / 19)
    green = 255 * ((x // 9 + y // 6) % 2)
    if width > 200:
        return Image.fromarray(numpy.stack([127 + 120 * numpy.sin(x / 37 + y / 41), 255 * x / width, 255 * (y / height) ** 2],
                                           -1).astype(numpy.uint8))
    blue = 255 * x / width * (1 - y / height) + 40 * ((x + y) % 2)
    pixels = numpy.stack([red, green, blue], -1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(numpy.clip(pixels, 0, 255).astype(numpy.uint8))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ycck(data):
    """A CMYK JPEG declared to be YCCK: the transform flag of its Adobe marker says so."""
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1:]


def with_orientation(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", quality=90, exif=exif)


def files():
    small, wide, tall = scene(61, 45, 1), scene(97, 40, 2), scene(38, 83, 3)
    alpha = Image.fromarray(numpy.tile(numpy.arange(61, dtype=numpy.uint8) * 4, (45, 1)))
    rgba = small.copy()
    rgba.putalpha(alpha)
    grey16 = Image.fromarray((numpy.asarray(small.convert("L")).astype(numpy.uint16) * 257))
    return {
        "420.jpg": encoded(small, "JPEG", quality=92, subsampling=2),
        "422.jpg": encoded(small, "JPEG", quality=85, subsampling=1),
        "444.jpg": encoded(small, "JPEG", quality=75, subsampling=0),
        "progressive.jpg": encoded(small, "JPEG", quality=80, progressive=True),
        "grey.jpg": encoded(small.convert("L"), "JPEG", quality=90),
        "cmyk.jpg": encoded(small.convert("CMYK"), "JPEG", quality=92),
        "ycck.jpg": ycck(encoded(small.convert("CMYK"), "JPEG", quality=92)),
        "turned.jpg": with_orientation(small),
        "restarts.jpg": encoded(wide, "JPEG", quality=80, restart_marker_blocks=3),
        "rgb.png": encoded(tall, "PNG"),
        "rgba.png": encoded(rgba, "PNG"),
        "grey.png": encoded(small.convert("L"), "PNG"),
        "grey-alpha.png": encoded(rgba.convert("LA"), "PNG"),
        "palette.png": encoded(small.quantize(31), "PNG"),
        "bits.png": encoded(small.convert("1"), "PNG"),
        "grey-16.png": encoded(grey16, "PNG"),
        "dot.png": encoded(scene(1, 1, 4), "PNG"),
        "line.jpg": encoded(scene(120, 3, 5), "JPEG", quality=90),
        "large.jpg": encoded(scene(400, 300, 6), "JPEG", quality=60),
        "photo-sized.jpg": encoded(scene(500, 375, 7), "JPEG", quality=30),
    }


def rgb(name, data):
    image = Image.open(io.BytesIO(data))
    if name == "grey-16.png":  # Pillow clips these to 255; taunet keeps the upper byte
        return Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8)).convert("RGB")
    return image.convert("RGB")


def centre(image, resize, size):
    """torchvision.transforms.functional's resize(resize) and center_crop(size) for PIL images."""
    width, height = image.size
    short, long = min(image.size), max(image.size)
    target = (resize, int(resize * long / short)) if width <= height else (int(resize * long / short), resize)
    image = image.resize(target, Image.BILINEAR)
    left, top = round((target[0] - size) / 2.0), round((target[1] - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def cases(data):
    """(line of the manifest without its result, name of the result, image)"""
    skip = {"large.jpg", "photo-sized.jpg"}
    for name, content in data.items():
        image = rgb(name, content)
        if name not in skip:
            yield f"decode {name}", f"{name}.ppm", image
    for name, resize, size in [("420.jpg", 32, 28), ("420.jpg", 80, 70), ("restarts.jpg", 17, 16), ("rgb.png", 24, 21),
                               ("rgb.png", 38, 38), ("dot.png", 8, 7), ("line.jpg", 9, 8), ("large.jpg", 73, 64),
                               ("photo-sized.jpg", 64, 56), ("cmyk.jpg", 20, 15), ("large.jpg", 37, 32)]:
        yield f"centre {name} {resize} {size}", f"{name}.centre-{resize}-{size}.ppm", centre(
            rgb(name, data[name]), resize, size)
    for name, left, top, width, height, size in [("420.jpg", 0, 0, 61, 45, 24), ("420.jpg", 5, 7, 31, 24, 24),
                                                 ("420.jpg", 50, 30, 11, 15, 20), ("restarts.jpg", 41, 3, 50, 37, 16),
                                                 ("rgb.png", 1, 2, 37, 80, 31), ("progressive.jpg", 17, 9, 33, 29, 12),
                                                 ("large.jpg", 203, 101, 150, 120, 64)]:
        image = rgb(name, data[name]).crop((left, top, left + width, top + height)).resize((size, size), Image.BILINEAR)
        yield (f"crop {name} {left} {top} {width} {height} {size}",
               f"{name}.crop-{left}-{top}-{width}-{height}-{size}.ppm", image)


def damaged(data):
    jpeg, png = data["420.jpg"], data["rgb.png"]
    return {"cut.jpg": jpeg[:len(jpeg) * 2 // 3], "cut-header.jpg": jpeg[:100], "cut.png": png[:len(png) // 2],
            "empty.jpg": b"", "text.jpg": b"this is no image\n"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--verify", action="store_true")
    verify = parser.parse_args().verify
    FOLDER.mkdir(exist_ok=True)
    made = files()
    for name, content in (made | damaged(made)).items():
        if not verify and not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(content)
    data = {name: (FOLDER / name).read_bytes() for name in made}
    manifest, wrong = [], 0
    for line, name, image in cases(data):
        manifest.append(f"{line} {name}")
        path = FOLDER / name
        if verify:
            difference = numpy.abs(numpy.asarray(Image.open(path)).astype(int) - numpy.asarray(image)).max()
            allowed = 0 if line.startswith("decode") else 1
            wrong += difference > allowed
            if difference:
                print(f"{name}: this Pillow differs by up to {difference}")
        else:
            image.save(path, "PPM")
    if not verify:
        manifest += [f"damaged {name}" for name in damaged(made)]
        (FOLDER / "manifest.txt").write_text("\n".join(manifest) + "\n")
    print(f"{len(manifest)} cases, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
