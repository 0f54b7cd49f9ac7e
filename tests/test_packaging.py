"""What users install: the wheel holds all code and data, types check from it, and the public surface is as listed."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Folder in the repository -> package in the wheel.
MAPPED = {"r1_rerank": "r1_rerank", "integrations": "r1_rerank/integrations", "training": "r1_rerank/training"}

packaging = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build folder left in the checkout would bring back deleted files."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in MAPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(pip, check=True)
    (built,) = out.glob("*.whl")
    return built


def repository_files() -> set[str]:
    files = set()
    for folder, package in MAPPED.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return files


@packaging
def test_the_wheel_holds_all_code_and_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == repository_files()
    assert {"r1_rerank/py.typed", "r1_rerank/templates/passage.yaml", "r1_rerank/embedded/r1_rerank.json"} <= packed


@packaging
def test_the_installed_wheel_is_typed_and_runs(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    check = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "-p", "r1_rerank"]
    environment = {**os.environ, "MYPYPATH": str(site)}
    typed = subprocess.run(check, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert typed.returncode == 0, typed.stdout
    code = (
        "import r1_rerank, r1_rerank.prompts as p; print(r1_rerank.__file__, p.PromptTemplate.builtin('passage').task)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == [str(site / "r1_rerank" / "__init__.py"), "passage"]


def test_the_version_stands_once():
    import r1_rerank

    assert r1_rerank.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("r1-rerank")


def test_constraints_pin_every_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    names = {line.split(">")[0].split("=")[0].split("[")[0].strip().lower().replace("_", "-") for line in wanted}
    assert names - {"r1-rerank"} <= pinned
