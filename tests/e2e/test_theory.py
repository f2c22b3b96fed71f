"""taunet theory: what it prints, what it leaves, and what it refuses."""
import csv
import re
import xml.etree.ElementTree

from harness import Case

SMALL = ("--width", 16, "--depths", "6,12,24", "--trials", 3)


class Theory(Case):
    def test_list_names_the_experiments(self):
        names = [line.split()[0] for line in self.succeed("theory", "list").stdout.splitlines()]
        for name in ("forward", "spectral", "backward", "smoothness", "lower", "perturbation", "convergence", "nf",
                     "jacobian"):
            self.assertIn(name, names)

    def test_an_experiment_prints_and_writes_its_verdicts(self):
        out = self.base / "result"
        result = self.succeed("theory", "forward", "--out", out, *SMALL)
        with open(out / "verdicts.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertGreater(len(rows), 5)
        for row in rows:
            self.assertIn(row["verdict"], ("holds", "does not hold", "inconclusive"))
        printed = re.findall(r"^(holds|does not hold|inconclusive)  ", result.stdout, re.M)
        self.assertEqual(printed, [row["verdict"] for row in rows])
        with open(out / "forward.csv", newline="") as file:
            self.assertEqual({row["L"] for row in csv.DictReader(file)}, {"6", "12", "24"})
        self.assertTrue(xml.etree.ElementTree.parse(out / "forward.svg").getroot().tag.endswith("svg"))
        section = (out / "section.html").read_text()
        self.assertIn("<svg", section)
        self.assertNotRegex(section, r"(src|href)=")  # nothing from outside
        xml.etree.ElementTree.fromstring(section)  # closed and nested as it should be
        self.assert_no_temporary_files(out)

        self.refuse(2, "--overwrite", "theory", "forward", "--out", out, *SMALL)
        self.succeed("theory", "forward", "--out", out, "--overwrite", *SMALL)

    def test_bad_input_is_refused(self):
        self.refuse(2, "did you mean 'spectral'", "theory", "spectrl", "--out", self.base / "a")
        self.refuse(2, "taunet theory list", "theory", "--out", self.base / "a")
        self.refuse(2, "--out", "theory", "forward")
        self.refuse(2, "takes one", "theory", "forward", "spectral", "--out", self.base / "a")
        self.refuse(2, "--depths", "theory", "forward", "--depths", "2.5", "--out", self.base / "a")
        blocked = self.base / "file"
        blocked.write_text("")
        self.refuse(1, "cannot make the folder", "theory", "forward", "--out", blocked / "a", *SMALL)
        self.refuse(2, "--steps has no effect on the experiment forward", "theory", "forward", "--steps", 3, "--out",
                    self.base / "a")

    def test_batch_norm_over_the_epochs_of_runs(self):
        out, runs = self.base / "result", [self.base / variant for variant in ("bn", "bn-tau")]
        for run in runs:
            self.succeed("train", "--model", "resnet8", "--variant", run.name, "--data", "synthetic:3x8x8:4:32", "--batch",
                         8, "--epochs", 2, "--lr", 0.01, "--probe", "norms", "--out", run)
        result = self.succeed("theory", "bn", "--runs", runs[0], "--runs", runs[1], "--out", out)
        self.assertIn("after epochs 1 to 2", result.stdout)
        with open(out / "blocks.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for number, run in enumerate(runs, 1):
            with open(run / "probes.csv", newline="") as file:
                probes = [row for row in csv.DictReader(file) if row["layer"].startswith("layer")]
            own = [row for row in rows if row["run"] == str(number)]
            self.assertEqual(len(own), 9)  # three blocks, before the first step and after two epochs
            for row, probe in zip(own, probes):
                self.assertEqual((row["epoch"], row["block"]), (probe["epoch"], probe["block"]))
                self.assertEqual(float(row["output_norm"]), float(probe["output_norm"]))
                self.assertEqual(float(row["gradient_norm"]), float(probe["gradient_norm"]))
        self.assertIn("--runs " + str(runs[1]), (out / "section.html").read_text())
        self.refuse(2, "--runs and --depths", "theory", "bn", "--runs", runs[0], "--depths", "20", "--out", self.base / "a")
        self.refuse(1, "--probe norms", "theory", "bn", "--runs", self.base, "--out", self.base / "b")
