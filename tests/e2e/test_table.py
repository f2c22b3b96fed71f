"""taunet table: recipes to runs, runs to results, what is continued, shared and left out."""
import csv
import json
import math
import shlex
import signal
import statistics
import subprocess
import xml.etree.ElementTree

from harness import Case, PROGRAM, ROOT, environment, events, start, taunet, wait_until

T95 = {1: 12.7062, 2: 4.30265, 3: 3.18245}  # two-sided 95 % points of Student's t, from printed tables

RECIPE = """
title = "A small table"
source = "nowhere"
rows = "width of noise"
metric = "val_error"
[all]
model = "resnet8"
batch = 16
lr = 0.02
[full]
seeds = 3
epochs = 2
log-every = 1
[smoke]
note = "one step"
steps = 1
[[row]]
name = "noise"
x = 1
data = "synthetic:3x8x8:4:64"
paper = "50, 25, -"
[[row]]
name = "CIFAR-100"
x = 2
scales = "full"
data = "cifar100:nowhere"
[[column]]
name = "tau"
variant = "tau"
[[column]]
name = "exploding"
variant = "plain"
lr = 1e30
[[column]]
name = "bn, \\"|\\""
variant = "bn"
[[claim]]
text = "tau ends, the other does not"
lower = "tau"
higher = "exploding"
[[claim]]
text = "tau is below bn"
lower = "tau"
higher = "bn, \\"|\\""
[[plot]]
id = "curves"
kind = "curves"
metrics = "val_error, step_loss"
[[plot]]
id = "rows"
kind = "rows"
"""


class Table(Case):
    def setUp(self):
        super().setUp()
        self.recipe = self.base / "small.toml"
        self.recipe.write_text(RECIPE)

    def table(self, *args, env=None):
        result = taunet("table", self.recipe, *args, env=env)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def results(self, out):
        return json.loads((out / "small.json").read_text())

    def test_results_are_those_of_the_logs(self):
        out = self.base / "out"
        self.table("--out", out, "--jobs", 2)
        results = self.results(out)
        self.assertFalse(results["reduced"])
        cells = {(c["row"], c["column"]): c for c in results["cells"]}
        self.assertEqual(len(cells), 6)
        for column, paper in (("tau", 50), ('bn, "|"', None)):
            cell = cells["noise", column]
            folders = [out / "runs" / f"noise-{'tau' if column == 'tau' else 'bn'}-s{seed}" for seed in range(3)]
            curves = [[100 - e["val_top1"] for e in events(folder, "epoch")] for folder in folders]
            for which, values in (("last", [c[-1] for c in curves]), ("best", [min(c) for c in curves])):
                mean, sd = statistics.mean(values), statistics.stdev(values)
                self.assertAlmostEqual(cell[which]["mean"], mean, places=6)
                self.assertAlmostEqual(cell[which]["sd"], sd, places=6)
                self.assertAlmostEqual(cell[which]["high95"] - mean, T95[2] * sd / math.sqrt(3), places=3)
                self.assertAlmostEqual(mean - cell[which]["low95"], T95[2] * sd / math.sqrt(3), places=3)
            self.assertAlmostEqual(cell["best_epoch"], statistics.mean(c.index(min(c)) + 1 for c in curves), places=6)
            self.assertEqual(cell["paper"], paper)
            if paper:
                self.assertAlmostEqual(cell["last_less_paper"], cell["last"]["mean"] - paper, places=6)
        self.assertEqual(len({r["seed"] for r in results["runs"]}), 3)

        exploding = cells["noise", "exploding"]
        self.assertEqual((exploding["finished"], exploding["diverged"], exploding["missing"]), (0, 3, 0))
        self.assertIsNone(exploding["last"]["mean"])
        absent = cells["CIFAR-100", "tau"]
        self.assertEqual((absent["finished"], absent["missing"]), (0, 3))
        self.assertIn("nowhere", absent["reason"])
        verdicts = {(c["text"], c["row"]): c["verdict"] for c in results["claims"]}
        self.assertEqual(verdicts["tau ends, the other does not", "noise"], "holds")
        self.assertEqual(verdicts["tau ends, the other does not", "CIFAR-100"], "inconclusive")

        pooled = next(c for c in results["claims"] if c["row"] is None and c["text"] == "tau is below bn")
        last = {(r["column"], r["seed"]): r["last"] for r in results["runs"] if r["row"] == "noise"}
        pairs = [last['bn, "|"', seed] - last["tau", seed] for seed in range(3)]
        self.assertEqual(pooled["pairs"], 3)
        self.assertAlmostEqual(pooled["difference"], statistics.mean(pairs), places=6)
        if statistics.stdev(pairs) > 0:
            self.assertAlmostEqual(pooled["half_width95"], T95[2] * statistics.stdev(pairs) / math.sqrt(3), places=3)

        with open(out / "small.csv", newline="") as file:
            rows = {(r["row"], r["column"]): r for r in csv.DictReader(file)}
        self.assertAlmostEqual(float(rows["noise", "tau"]["last_mean"]), cells["noise", "tau"]["last"]["mean"], 6)
        self.assertEqual(rows["noise", "exploding"]["diverged"], "3")
        text = (out / "small.md").read_text()
        self.assertNotIn("educed", text)
        self.assertIn('bn, "\\|"', text)
        self.assertIn("diverged: step", text)
        for name in ("small-curves.svg", "small-rows.svg"):
            self.assertIn(name, text)
            drawing = xml.etree.ElementTree.parse(out / name).getroot()
            self.assertTrue(any("L" in p.get("d", "") for p in drawing.iter("{http://www.w3.org/2000/svg}path")
                                if p.get("class") == "line") or name == "small-rows.svg")
        self.assertIn("exploding: diverged", (out / "small-curves.svg").read_text())
        self.assert_no_temporary_files(out)

        # Finished runs are kept; those that could not start are tried again.
        before = {p: p.stat().st_mtime_ns for p in (out / "runs").glob("noise-*/log.jsonl")}
        again = self.table("--out", out)
        self.assertIn("18 runs, 9 to do", again.stderr)
        self.assertEqual(before, {p: p.stat().st_mtime_ns for p in before})
        self.assertEqual(self.results(out)["cells"], results["cells"])

    def test_an_interrupted_table_goes_on(self):
        self.recipe.write_text(RECIPE.replace("epochs = 2", "epochs = 25"))
        whole, cut = self.base / "whole", self.base / "cut"
        args = ("--train-options", "limit-batches=4")
        process = start("table", self.recipe, "--out", cut, *args)
        log = cut / "runs" / "noise-tau-s1" / "log.jsonl"
        wait_until(lambda: log.exists() and '"epoch":2' in log.read_text(), "the second run")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 143, err)
        self.assertIn("the same command goes on", err.splitlines()[-1])
        self.assertEqual(events(cut / "runs" / "noise-tau-s1", "end")[-1]["status"], "stopped")
        self.recipe.write_text(RECIPE.replace("epochs = 2", "epochs = 25").replace("seeds = 3", "seeds = 2"))
        self.table("--out", cut, *args)
        self.table("--out", whole, *args)
        for seed in range(2):
            self.assert_same_run(cut / "runs" / f"noise-tau-s{seed}", whole / "runs" / f"noise-tau-s{seed}")
        self.assertEqual(self.results(cut)["cells"], self.results(whole)["cells"])

    def test_tasks_of_an_array_share_the_runs(self):
        out = self.base / "out"
        tasks = []
        for task in (7, 5, 3):  # --array=3-7:2
            env = environment(SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT="3", SLURM_ARRAY_TASK_MIN="3",
                              SLURM_ARRAY_TASK_STEP="2")
            before = {p.name for p in (out / "runs").glob("*.output")}
            self.table("--out", out, "--train-options", "steps=2 ", env=env)
            tasks.append({p.name for p in (out / "runs").glob("*.output")} - before)
        self.assertEqual([len(t) for t in tasks], [6, 6, 6])
        self.assertEqual({c["finished"] + c["diverged"] + c["missing"] for c in self.results(out)["cells"]}, {3})
        self.assertEqual(sum(c["finished"] for c in self.results(out)["cells"]), 6)

    def test_listed_commands_are_the_runs(self):
        out = self.base / "out"
        listed = self.table("--out", out, "--scale", "smoke", "--list").stdout.splitlines()
        self.assertEqual(len(listed), 3)
        self.assertFalse(out.exists())
        self.table("--out", out, "--scale", "smoke")
        self.assertTrue(all(line.endswith("# done") for line in
                            self.table("--out", out, "--scale", "smoke", "--list").stdout.splitlines()))
        words = shlex.split(listed[0], comments=True)
        self.assertEqual(words[:2], ["taunet", "train"])
        other = self.base / "by hand"
        words[-1] = f"--out={other}"
        subprocess.run([PROGRAM, *words[1:]], check=True, stdout=subprocess.DEVNULL)
        self.assert_same_run(out / "runs" / "noise-tau-s0", other)
        text = (out / "small.md").read_text()
        self.assertIn("(reduced)", text.splitlines()[0])
        self.assertIn("one step", text)
        self.assertTrue(self.results(out)["reduced"])

    def test_other_settings_in_the_folder_are_refused(self):
        out = self.base / "out"
        self.table("--out", out, "--scale", "smoke")
        self.refuse(2, ["noise-tau-s0", 'lr = "0.02"', '"0.03"'], "table", self.recipe, "--out", out, "--scale",
                    "smoke", "--train-options=--lr=0.03")
        self.recipe.write_text(RECIPE.replace("steps = 1", "steps = 2"))
        self.refuse(2, "steps", "table", self.recipe, "--out", out, "--scale", "smoke")

    def test_bad_input_is_refused(self):
        out = ("--out", self.base / "out")
        self.refuse(2, "taunet table list", "table", "tabel1", *out)
        self.refuse(2, "--recipe", "table", *out)
        self.refuse(2, "quick", "table", self.recipe, "--scale", "quick", *out)
        self.refuse(2, "mnist:x", "table", self.recipe, "--data", "mnist:x", *out)
        self.refuse(2, "seed is for the table", "table", self.recipe, "--train-options", "seed=3", *out)
        self.refuse(2, "NAME=VALUE", "table", self.recipe, "--train-options", "lr 3", *out)
        self.refuse(2, "did you mean --lr", "table", self.recipe, "--train-options", "lt=3", *out)
        for old, new, words in (('lr = 0.02', 'lt = 0.02', ":9:1: unknown option --lt"),
                                ('x = 1\n', 'x = "a"\n', "not a number"),
                                ('paper = "50, 25, -"', 'paper = "50, 25"', ":21: fewer numbers"),
                                ('paper = "50, 25, -"', 'paper = "50, 25, -, -"', "more numbers"),
                                ('[[column]]\nname = "tau"', '[column]\nname = "tau"', "write [[column]]"),
                                ('name = "exploding"', 'name = "Tau"', "the same in names of files"),
                                ('lower = "tau"\nhigher = "expl', 'lower = "t"\nhigher = "expl', "no column \"t\""),
                                ('note = "one step"', '', "needs a note"),
                                ('kind = "rows"', 'kind = "row"', "not known"),
                                ('[all]', '[al]', "no section 'al'")):
            with self.subTest(new):
                self.assertIn(old, RECIPE)
                self.recipe.write_text(RECIPE.replace(old, new, 1))
                self.refuse(2, words, "table", self.recipe, "--scale", "smoke", "--collect", *out)

    def test_a_table_without_its_data_fails(self):
        self.recipe.write_text(RECIPE.replace("synthetic:3x8x8:4:64", "cifar10:nowhere"))
        result = taunet("table", self.recipe, "--scale", "smoke", "--out", self.base / "out")
        self.assertEqual(result.returncode, 1)
        self.assertIn("no run of small could start", result.stderr)
        self.assertIn("nowhere", (self.base / "out" / "small.md").read_text())

    def test_the_recipes_of_the_repository(self):
        names = [line.split()[0] for line in self.succeed("table", "list", cwd=self.base).stdout.splitlines()]
        self.assertEqual(names, sorted(p.stem for p in (ROOT / "bench/tables").glob("*.toml")))
        for name in ("table1", "table2", "fig1", "fig2", "fig3", "fig4", "norm-free", "ablation-tau"):
            self.assertIn(name, names)
        for name in names:
            for scale in ("full", "quick", "smoke"):
                with self.subTest(f"{name} {scale}"):
                    out = self.base / f"{name}-{scale}"
                    self.assertTrue(self.succeed("table", name, "--scale", scale, "--list", "--out", out).stdout)
                    self.succeed("table", name, "--scale", scale, "--collect", "--out", out)
                    self.assertIn("Nothing of this has been run", (out / f"{name}.md").read_text())
