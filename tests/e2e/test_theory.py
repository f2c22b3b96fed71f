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
