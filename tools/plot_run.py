#!/usr/bin/env python3
"""Draws the curve of a run as SVG: training loss over steps, validation top-1 after each epoch.

    tools/plot_run.py RUN_FOLDER OUT.svg
"""
import json
import sys


def polyline(points, colour):
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>{dots}'


def main():
    events = [json.loads(line) for line in open(f"{sys.argv[1]}/log.jsonl")]
    start = next(e for e in events if e["event"] == "start")
    steps = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
    epochs = [((e["epoch"] + 1) * start["steps_per_epoch"], e["val_top1"]) for e in events if e["event"] == "epoch"]
    last, top = steps[-1][0], max(loss for _, loss in steps)
    width, height, left, bottom = 640, 260, 50, 40
    x = lambda step: left + (width - 2 * left) * step / last
    y_loss = lambda loss: height - bottom - (height - bottom - 20) * loss / top
    y_top1 = lambda top1: height - bottom - (height - bottom - 20) * top1 / 100
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
             f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        y = y_top1(20 * i)
        parts.append(f'<line x1="{left}" x2="{width - left}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                     f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#0a5">{20 * i} %</text>'
                     f'<text x="{width - left + 6}" y="{y + 4:.1f}" fill="#06c">{top * i / 5:.2f}</text>')
    for i in range(5):
        parts.append(f'<text x="{x(last * i / 4):.1f}" y="{height - bottom + 16}" text-anchor="middle">{last * i // 4}</text>')
    parts += [polyline([(x(s), y_loss(v)) for s, v in steps], "#06c"), polyline([(x(s), y_top1(v)) for s, v in epochs], "#0a5"),
              f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">step</text>',
              f'<text x="{left}" y="12" fill="#0a5">validation top-1</text>',
              f'<text x="{width - left}" y="12" text-anchor="end" fill="#06c">training loss of a batch</text>',
              f'<text x="{width / 2}" y="12" text-anchor="middle">{start["model"]} {start["variant"]}, {start["dataset"]}</text>',
              "</svg>"]
    with open(sys.argv[2], "w") as out:
        out.write("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
