#!/usr/bin/env python3
"""Runs the end-to-end tests: all of test_*.py in this folder, or with -k PATTERN those whose name holds PATTERN.

The program under test is $TAUNET, else build/taunet. The last line says how many tests passed, failed and were
skipped; the exit status is 0 when all ran and none failed.
"""
import argparse
import pathlib
import sys
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent


class Result(unittest.TextTestResult):
    """Counts tests, not checks: a test with three failed subtests is one failed test."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.passed, self.failed = 0, set()

    def startTest(self, test):
        self.begun = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        self.stream.writeln(f"    {time.monotonic() - self.begun:.1f} s")
        super().stopTest(test)

    def addSuccess(self, test):
        self.passed += 1
        super().addSuccess(test)

    def addFailure(self, test, error):
        self.failed.add(test.id())
        super().addFailure(test, error)

    def addError(self, test, error):
        self.failed.add(test.id())
        super().addError(test, error)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.failed.add(test.id())
        super().addSubTest(test, subtest, error)

    def addUnexpectedSuccess(self, test):
        self.failed.add(test.id())
        super().addUnexpectedSuccess(test)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="PATTERN", action="append", help="run only tests whose name holds PATTERN")
    parser.add_argument("-f", "--failfast", action="store_true", help="stop at the first failure")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    loader = unittest.TestLoader()
    if options.k:
        loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in options.k]
    suite = loader.discover(str(HERE), pattern="test_*.py", top_level_dir=str(HERE))
    if suite.countTestCases() == 0:
        print("no test has such a name")
    begun = time.monotonic()
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result, failfast=options.failfast)
    result = runner.run(suite)
    failed, skipped = len(result.failed), len(result.skipped)
    print(f"{time.monotonic() - begun:.0f} s in all")
    print(f"{result.passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0 if result.passed + skipped > 0 and failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
