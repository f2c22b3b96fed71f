"""datasets/fetch on small archives made here: verify, unpack, download from this machine, and every refusal."""
import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import struct
import subprocess
import tarfile
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CIFAR10 = [f"data_batch_{b}.bin" for b in range(1, 6)] + ["test_batch.bin"]
PARTS = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def fetch(*args):
    environment = dict(os.environ, no_proxy="127.0.0.1", LC_ALL="C")
    return subprocess.run([str(ROOT / "datasets" / "fetch"), *map(str, args)], capture_output=True, text=True,
                          timeout=120, env=environment)


def record(label, seed):
    return bytes([label]) + bytes((seed + i) % 256 for i in range(3072))


def tar_gz(members):
    """A .tar.gz of {name: bytes}; a name that maps to a str is a symbolic link to it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size, member.mode, member.uid = len(content), 0o700, 12345
                tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def cifar10_members():
    members = {f"cifar-10-batches-bin/{name}": record(i, i) for i, name in enumerate(CIFAR10)}
    return {"cifar-10-batches-bin/readme.html": b"read me", **members}


def idx(dims, data):
    return bytes([0, 0, 8, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + data


def mnist_contents():
    return dict(zip(PARTS, [idx((3, 2, 2), bytes(range(12))), idx((3,), bytes([1, 2, 3])),
                            idx((2, 2, 2), bytes(range(8))), idx((2,), bytes([4, 5]))]))


class Fetch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="taunet-fetch-")
        self.addCleanup(folder.cleanup)
        self.base = pathlib.Path(folder.name)
        self.source, self.out = self.base / "source", self.base / "out"
        self.source.mkdir()

    def write_sums(self, files, algorithm="md5"):
        path = self.base / "sums"
        path.write_text("".join(f"{hashlib.new(algorithm, data).hexdigest()}  {name}\n"
                                for name, data in files.items()))
        return path

    def put_cifar10(self, members=None):
        archive = tar_gz(cifar10_members() if members is None else members)
        (self.source / "cifar-10-binary.tar.gz").write_bytes(archive)
        return self.write_sums({"cifar-10-binary.tar.gz": archive})

    def put_mnist(self):
        contents = mnist_contents()
        for name, data in contents.items():
            (self.source / f"{name}.gz").write_bytes(gzip.compress(data))
        return self.write_sums(contents, "sha256")

    def assert_refused(self, result, *words, status=1):
        """One line that contains the words, and nothing left behind."""
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        for word in ("fetch: ",) + words:
            self.assertIn(word, result.stderr)
        self.assertFalse(self.out.exists())

    def test_cifar10(self):
        sums = self.put_cifar10()
        result = fetch("cifar10", self.out, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(os.listdir(self.out)), CIFAR10)
        for i, name in enumerate(CIFAR10):
            self.assertEqual((self.out / name).read_bytes(), record(i, i))
            self.assertEqual((self.out / name).stat().st_mode & 0o777, 0o644)
            self.assertEqual((self.out / name).stat().st_uid, os.getuid())
        self.assertIn(f"--data cifar10:{self.out}", result.stdout)
        self.assertTrue((self.source / "cifar-10-binary.tar.gz").exists())

    def test_cifar100(self):
        archive = tar_gz({"cifar-100-binary/train.bin": b"\x01" + record(2, 3),
                          "cifar-100-binary/test.bin": b"\x04" + record(5, 6)})
        (self.source / "cifar-100-binary.tar.gz").write_bytes(archive)
        sums = self.write_sums({"cifar-100-binary.tar.gz": archive}, "sha256")
        result = fetch("cifar100", self.out, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(os.listdir(self.out)), ["test.bin", "train.bin"])
        self.assertEqual((self.out / "test.bin").read_bytes(), b"\x04" + record(5, 6))

    def test_mnist_sums_are_those_of_the_contents(self):
        sums = self.put_mnist()
        for name, data in mnist_contents().items():
            (self.source / f"{name}.gz").write_bytes(gzip.compress(data, 1, mtime=5))
        result = fetch("fashion-mnist", self.out, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(f"--data mnist:{self.out}", result.stdout)
        self.assertEqual(sorted(os.listdir(self.out)), sorted(f"{name}.gz" for name in PARTS))
        for name, data in mnist_contents().items():
            self.assertEqual(gzip.decompress((self.out / f"{name}.gz").read_bytes()), data)

    def test_real_mnist_has_the_official_sums(self):
        real = ROOT.parent / "shared" / "data" / "mnist"
        if not (real / f"{PARTS[0]}.gz").exists():
            self.skipTest("no MNIST beside the repository")
        result = fetch("mnist", self.out, "--from", real)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.out.rename(self.base / "done")
        self.assert_refused(fetch("fashion-mnist", self.out, "--from", real), PARTS[0], "another set")

    def test_packaged_fashion_mnist_has_the_official_sums(self):
        packaged = pathlib.Path("/usr/share/datasets/fashion-mnist")
        if not (packaged / f"{PARTS[0]}.gz").exists():
            self.skipTest("dataset-fashion-mnist is not installed")
        result = fetch("fashion-mnist", self.out, "--from", packaged)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_complete_folder_is_left_alone(self):
        sums = self.put_cifar10()
        fetch("cifar10", self.out, "--from", self.source, "--checksums", sums)
        result = fetch("cifar10", self.out, "--mirror", "http://127.0.0.1:9")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("already holds cifar10", result.stdout)

    def test_files_already_there_can_be_verified_in_place(self):
        sums = self.put_mnist()
        result = fetch("mnist", self.source, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        (self.source / f"{PARTS[3]}.gz").write_bytes(gzip.compress(b"other"))
        result = fetch("mnist", self.source, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(len(os.listdir(self.source)), 4)

    def test_a_wrong_sum_is_refused(self):
        sums = self.put_cifar10()
        archive = self.source / "cifar-10-binary.tar.gz"
        archive.write_bytes(archive.read_bytes() + b"x")
        self.assert_refused(fetch("cifar10", self.out, "--from", self.source, "--checksums", sums),
                            "cifar-10-binary.tar.gz has the md5 sum", "instead of")
        self.assert_refused(fetch("cifar10", self.out, "--from", self.source), "c32a1d4ab5d03f1284b67883e8d87530")

    def test_a_wrong_sum_leaves_an_existing_folder_as_it_was(self):
        self.put_cifar10()
        self.out.mkdir()
        (self.out / "notes").write_text("mine")
        result = fetch("cifar10", self.out, "--from", self.source)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(os.listdir(self.out), ["notes"])

    def test_damaged_gzip_is_refused(self):
        sums = self.put_mnist()
        part = self.source / f"{PARTS[2]}.gz"
        part.write_bytes(part.read_bytes()[:-6])
        self.assert_refused(fetch("mnist", self.out, "--from", self.source, "--checksums", sums), PARTS[2],
                            "cannot be decompressed", "unexpected end of file")
        part.write_bytes(b"<html>not found</html>")
        self.assert_refused(fetch("mnist", self.out, "--from", self.source, "--checksums", sums), PARTS[2],
                            "not in gzip format")

    def test_an_archive_cut_short_is_refused(self):
        self.put_cifar10()
        archive = self.source / "cifar-10-binary.tar.gz"
        archive.write_bytes(archive.read_bytes()[:-20])
        sums = self.write_sums({archive.name: archive.read_bytes()})
        self.assert_refused(fetch("cifar10", self.out, "--from", self.source, "--checksums", sums),
                            "cannot unpack cifar-10-binary.tar.gz")

    def test_an_archive_without_a_file_is_refused(self):
        members = cifar10_members()
        del members["cifar-10-batches-bin/data_batch_4.bin"]
        sums = self.put_cifar10(members)
        self.assert_refused(fetch("cifar10", self.out, "--from", self.source, "--checksums", sums),
                            "cannot unpack", "data_batch_4.bin")
        members["cifar-10-batches-bin/data_batch_4.bin"] = "/etc/hostname"
        sums = self.put_cifar10(members)
        self.assert_refused(fetch("cifar10", self.out, "--from", self.source, "--checksums", sums),
                            "does not hold the file cifar-10-batches-bin/data_batch_4.bin")

    def test_only_the_wanted_members_are_unpacked(self):
        sums = self.put_cifar10({**cifar10_members(), "../escaped": b"x", "/tmp/taunet-escaped": b"x"})
        result = fetch("cifar10", self.out, "--from", self.source, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(os.listdir(self.out)), CIFAR10)
        self.assertFalse((self.base / "escaped").exists())
        self.assertFalse(os.path.exists("/tmp/taunet-escaped"))

    def test_missing_archives_and_sums_are_named(self):
        sums = self.put_cifar10()
        self.assert_refused(fetch("cifar100", self.out, "--from", self.source), "no cifar-100-binary.tar.gz in")
        (self.source / "cifar-100-binary.tar.gz").write_bytes(tar_gz({}))
        self.assert_refused(fetch("cifar100", self.out, "--from", self.source, "--checksums", sums),
                            "no md5 or sha256 sum of cifar-100-binary.tar.gz")
        self.assert_refused(fetch("cifar10", self.out, "--checksums", self.base / "none"), "cannot read")

    def test_a_folder_that_cannot_be_made_is_named(self):
        self.put_cifar10()
        (self.base / "file").write_text("")
        result = fetch("cifar10", self.base / "file" / "out", "--from", self.source)
        self.assert_refused(result, "cannot create", "Not a directory")

    def test_wrong_usage(self):
        for args, word in ((["cifar12", self.out], "'cifar12' is not a data set"), ([], "NAME and DIR"),
                           (["cifar10"], "NAME and DIR"), (["mnist", self.out, "more"], "'more'"),
                           (["mnist", self.out, "--form", "x"], "--form"), (["mnist", self.out, "--from"], "value"),
                           (["mnist", self.out, "--from", "x", "--mirror", "y"], "exclude each other")):
            with self.subTest(args=args):
                self.assert_refused(fetch(*args), word, status=2)
        self.assertIn("usage:", fetch("--help").stdout)

    def serve(self):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=self.source))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}/"

    def test_download(self):
        sums, url = self.put_mnist(), self.serve()
        result = fetch("mnist", self.out, "--mirror", url, "--checksums", sums)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(os.listdir(self.out)), sorted(f"{name}.gz" for name in PARTS))

    def test_a_download_that_fails_is_named(self):
        sums, url = self.put_mnist(), self.serve()
        (self.source / f"{PARTS[1]}.gz").unlink()
        result = fetch("mnist", self.out, "--mirror", url, "--checksums", sums)
        self.assertEqual(result.returncode, 1)
        self.assertIn(f"fetch: cannot download {PARTS[1]}.gz", result.stderr.splitlines()[-1])
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
