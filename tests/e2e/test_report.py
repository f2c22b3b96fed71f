"""taunet report: the page, and what it looks like in Chromium."""
import html.parser
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib

from harness import Case, TIMEOUT, make_cifar10

CHROMIUM = shutil.which("chromium")
BLUE, ORANGE = (0x3b, 0x7d, 0xd8), (0xd9, 0x7a, 0x22)  # of the first two runs


class Tags(html.parser.HTMLParser):
    """Checks that elements are closed in order and that nothing comes from elsewhere."""
    EMPTY = {"meta", "input"}

    def __init__(self, case):
        super().__init__()
        self.case, self.open, self.seen = case, [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        for name, value in attributes:
            self.case.assertNotIn(name, ("src", "href", "srcset", "onload", "onclick"))
            self.case.assertNotIn("url(", value or "")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.case.assertEqual(self.open.pop(), tag)


def read_png(path):
    """(width, height, rows of RGB or RGBA bytes, bytes a pixel) of an 8-bit picture without interlacing."""
    data = pathlib.Path(path).read_bytes()
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8:at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", body)
            assert depth == 8 and colour in (2, 6)
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    step = 3 if colour == 2 else 4
    raw, rows, above = zlib.decompress(packed), [], bytes(width * step)
    for y in range(height):
        kind = raw[y * (width * step + 1)]
        row = bytearray(raw[y * (width * step + 1) + 1:(y + 1) * (width * step + 1)])
        for i in range(len(row) if kind else 0):
            a, b = row[i - step] if i >= step else 0, above[i]
            if kind == 1:
                predicted = a
            elif kind == 2:
                predicted = b
            elif kind == 3:
                predicted = (a + b) // 2
            else:
                c = above[i - step] if i >= step else 0
                distances = abs(b - c), abs(a - c), abs(a + b - 2 * c)
                predicted = (a, b, c)[distances.index(min(distances))]
            row[i] = (row[i] + predicted) & 255
        rows.append(bytes(row))
        above = row
    return width, height, rows, step


def browse(page, width, height, *flags):
    """What Chromium prints of a page in a window of that size."""
    with tempfile.TemporaryDirectory(prefix="taunet-e2e-") as profile:
        return subprocess.run([CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                               "--force-device-scale-factor=1", f"--user-data-dir={profile}",
                               f"--window-size={width},{height}", *flags, page.as_uri()],
                              check=True, timeout=TIMEOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


class Screen:
    """A page as Chromium shows it."""

    def __init__(self, page, width, height, *flags):
        with tempfile.TemporaryDirectory(prefix="taunet-e2e-") as folder:
            shot = os.path.join(folder, "shot.png")
            browse(page, width, height, f"--screenshot={shot}", *flags)
            self.width, self.height, self.rows, self.step = read_png(shot)

    def pixel(self, x, y):
        return tuple(self.rows[y][x * self.step:x * self.step + 3])

    def count(self, colour, slack=24):
        """Pixels about as coloured."""
        wanted, found = bytes(colour), 0
        for row in self.rows:
            reds, greens, blues = row[0::self.step], row[1::self.step], row[2::self.step]
            found += sum(abs(r - wanted[0]) <= slack and abs(g - wanted[1]) <= slack and abs(b - wanted[2]) <= slack
                         for r, g, b in zip(reds, greens, blues))
        return found


class Report(Case):
    def make_runs(self):
        data = make_cifar10(self.base / "data")
        for variant, extra in (("tau", ()), ("bn", ("--lr", 0.02))):
            self.succeed("train", "--model", "resnet8", "--variant", variant, "--data", data, "--epochs", 3, "--batch", 16,
                         "--log-every", 1, "--probe", "norms", "--out", self.base / "runs" / f"<{variant}>", *extra)
        return self.base / "runs"

    def test_the_page_holds_everything(self):
        runs = self.make_runs()
        self.assertIn('class="run-0"', (runs / "<tau>" / "report.html").read_text())  # written by train
        self.succeed("theory", "forward", "--width", 8, "--depths", "4,6", "--trials", 2, "--out", runs / "theory")
        self.succeed("report", runs)
        text = (runs / "report.html").read_text()
        tags = Tags(self)
        tags.feed(text)
        tags.close()
        self.assertEqual(tags.open, [])
        self.assertNotIn("<bn>", text)
        self.assertIn("&#60;bn&#62;", text)
        boxes = [a for tag, a in tags.seen if tag == "input"]
        self.assertEqual([b["data-run"] for b in boxes], ["0", "1"])
        for box in boxes:
            self.assertGreaterEqual(text.count(f'<g class="run-{box["data-run"]}">'), 10)
        self.assertGreaterEqual(sum(tag == "svg" for tag, _ in tags.seen), 12)
        self.assertIn("<th>lr</th>", text)       # differs
        self.assertNotIn("<th>epochs</th>", text)  # does not
        self.assertIn("oneDNN", text)
        self.assertIn('id="theory-forward"', text)
        self.assertIn("2 runs", text)

        one = self.base / "one.html"
        self.succeed("report", runs / "<tau>", runs / "<tau>" / ".." / "<bn>", "--out", one)
        self.assertIn("2 runs", one.read_text())

    def test_bad_input_is_refused(self):
        (self.base / "empty").mkdir()
        self.refuse(2, "no run in it", "report", self.base / "empty")
        self.refuse(1, "nowhere", "report", self.base / "nowhere")
        self.refuse(2, "--out FILE", "report", self.base / "empty", self.base)
        self.refuse(2, "report needs --run DIR", "report")
        run = self.base / "run"
        run.mkdir()
        for log, words in (("no JSON\n", "log.jsonl:1: not a JSON object"),
                           ('{"event":"start"}\n[]\n', "log.jsonl:2: not a JSON object"),
                           ('{"event":"step","step":1}\n', "log.jsonl:1: the log does not begin")):
            (run / "log.jsonl").write_text(log)
            self.refuse(1, words, "report", run)
        (run / "log.jsonl").write_text('{"event":"start"}\n{"event":"ep')  # a run that is being written
        self.succeed("report", run)
        (run / "probes.csv").write_text("epoch,step,block,layer,output_norm,gradient_norm\n0,1,2,x,1\n")
        self.refuse(1, "probes.csv:2", "report", run)

    @unittest.skipUnless(CHROMIUM, "no Chromium here: tools/deps install browser")
    def test_the_page_is_no_wider_than_the_window(self):
        runs = self.make_runs()
        self.succeed("theory", "forward", "--width", 8, "--depths", "4,6", "--trials", 2, "--out", runs / "theory")
        self.succeed("report", runs)
        page = self.base / "measured.html"
        page.write_text((runs / "report.html").read_text().replace(
            "</body>", "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"))
        for width in (500, 1300):  # 500 is the least that headless Chromium makes
            needed, there = re.search(r"<title>(\d+) of (\d+)</title>", browse(page, width, 900, "--dump-dom")).groups()
            self.assertLessEqual(int(needed), int(there))
            self.assertEqual(int(there), width)

    @unittest.skipUnless(CHROMIUM, "no Chromium here: tools/deps install browser")
    def test_curves_are_drawn_shown_and_hidden(self):
        runs = self.make_runs()
        self.succeed("report", runs)
        page = runs / "report.html"
        wide = Screen(page, 900, 1200)
        self.assertGreater(wide.count(BLUE), 700)
        self.assertGreater(wide.count(ORANGE), 700)
        self.assertEqual(wide.pixel(2, 2), (255, 255, 255))
        narrow = Screen(page, 400, 1200)
        self.assertGreater(narrow.count(BLUE), 300)
        dark = Screen(page, 900, 1200, "--blink-settings=preferredColorScheme=0")
        self.assertLess(max(dark.pixel(2, 2)), 40)
        self.assertGreater(dark.count(BLUE), 700)
        # A click on the first box hides the first run; its swatch stays.
        clicked = self.base / "clicked.html"
        clicked.write_text(page.read_text().replace(
            "</body>", "<script>document.querySelector('input[data-run]').click()</script></body>"))
        hidden = Screen(clicked, 900, 1200)
        self.assertLess(hidden.count(BLUE), 150)
        self.assertGreater(hidden.count(ORANGE), 700)
