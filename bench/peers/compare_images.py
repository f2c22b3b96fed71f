#!/usr/bin/env python3
"""Compares the image loader with Pillow and torchvision on this machine, per core, as a Markdown table.

    make build/bench/loader
    ~/torch/bin/python bench/peers/compare_images.py FOLDER [--rounds 7] [--seconds 4]

FOLDER is an image folder (train/CLASS/*.jpg). Both sides read the files, decode them, cut a random part, resize it to
224x224, mirror half of them, normalise, and put 32 into a batch: taunet with one decoding thread, the peers in one
thread of this process. They are run in turn (peer, taunet, peer, taunet, ...) and each taunet rate is divided by the
peer's just before it. Rates are images per second of processor time, so that other work on the machine does not count.

Peers, of which the fastest is the one to beat:
    pil       Image.open, RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize: the usual recipe
    draft     the same, with Image.draft: the scaled decoding that Pillow offers, where twice the view is left
    tensor    torchvision.io.decode_image and transforms.v2 on uint8 tensors
"""
import argparse
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

import PIL
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE, BATCH = 224, 32
MEAN, STD = (.485, .456, .406), (.229, .224, .225)


def pil_peer(draft):
    tail = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(),
                               transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def load(path):
        with open(path, "rb") as file:
            image = Image.open(file)
            if draft:
                image.draft("RGB", (2 * SIZE, 2 * SIZE))
            return tail(image.convert("RGB"))
    return load


def tensor_peer():
    tail = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(),
                       v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def load(path):
        return tail(torchvision.io.decode_image(str(path), torchvision.io.ImageReadMode.RGB))
    return load


def measure_peer(load, paths, seconds):
    order, done, begin = [], 0, time.process_time()
    while time.process_time() - begin < seconds:
        if len(order) < BATCH:
            order = random.sample(paths, len(paths))
        torch.stack([load(order.pop()) for _ in range(min(BATCH, len(order)))])
        done += BATCH
    return done / (time.process_time() - begin)


def measure_taunet(program, folder, seconds):
    command = [program, f"folder:{folder}", str(BATCH), str(seconds), "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"([\d.]+) per second of processor time", output).group(1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--program", default=ROOT / "build" / "bench" / "loader")
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = [p for p in (options.folder / "train").rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if len(paths) < BATCH:
        sys.exit(f"{options.folder}/train has {len(paths)} images; give a folder with at least {BATCH}")
    print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}, {len(paths)} images\n")
    print("| peer | images/s of the peer | of taunet | ratio: median (least - most) |\n|---|---|---|---|")
    for name, load in (("pil", pil_peer(False)), ("draft", pil_peer(True)), ("tensor", tensor_peer())):
        measure_peer(load, paths, 1)
        peer, ours, ratios = [], [], []
        for _ in range(options.rounds):
            peer.append(measure_peer(load, paths, options.seconds))
            ours.append(measure_taunet(options.program, options.folder, options.seconds))
            ratios.append(ours[-1] / peer[-1])
        print(f"| {name} | {statistics.median(peer):.0f} | {statistics.median(ours):.0f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |", flush=True)


if __name__ == "__main__":
    main()
