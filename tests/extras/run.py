"""Installs each extra alone in an environment of its own, and runs there what the extra is for.

    python tests/extras/run.py [EXTRA ...]

The interpreter that runs this lends what the package needs without extras (torch among it, which would be installed
anew for each otherwise), and nothing more: not even a development environment hides a dependency that an extra lacks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CHECK = Path(__file__).with_name("check.py")
EXTRAS = ("llama-index", "langchain", "haystack", "openai", "eval", "prefilter", "train")
NO_EXTRA = "none"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def main() -> int:
    """Checks the extras that were named, after the package without any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"of {', '.join(EXTRAS)} (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / ".venv" / "extras", help="folder for the environments")
    given = parser.parse_args()
    wanted = given.extras or EXTRAS
    if unknown := [extra for extra in wanted if extra not in EXTRAS]:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(EXTRAS)}")
    work: Path = given.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    lent = lend(work / "lent")
    wheel = build(work)
    failed = [extra for extra in (NO_EXTRA, *wanted) if not holds(extra, wheel, lent, work)]
    if failed:
        print(f"failed: {', '.join(failed)}; the environments stay in {work}")
    else:
        shutil.rmtree(work)
    return bool(failed)


def lend(folder: Path) -> Path:
    """Links to all that the package requires without extras: to whole folders, or to files where others share one."""
    folder.mkdir()
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            owners.setdefault(file.parts[0], set()).add(canonicalize_name(distribution.name))
    names = required("r1-rerank")
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            if ".." in file.parts or file.suffix == ".pth":  # scripts, and hooks into the lender
                continue
            entry = Path(file.parts[0] if len(owners[file.parts[0]]) == 1 else file)
            target = folder / entry
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(distribution.locate_file(entry))).resolve())
    print(f"{len(names)} distributions are lent by {sys.prefix}", flush=True)
    return folder


def required(package: str) -> set[str]:
    """Names of the distributions that a package needs here, theirs included; without its own."""
    found: set[tuple[str, str]] = set()
    waiting = [(package, "")]
    while waiting:
        name, extra = waiting.pop()
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                needed = (canonicalize_name(requirement.name), wanted)
                if needed not in found:
                    found.add(needed)
                    waiting.append(needed)
    return {name for name, _ in found}


def build(work: Path) -> Path:
    """The wheel, built from a copy: a build folder left in the checkout would bring back deleted files."""
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("r1_rerank", "integrations", "training"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*PIP, "wheel", "-qq", "--no-deps", "-w", str(work), str(source)], check=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def holds(extra: str, wheel: Path, lent: Path, work: Path) -> bool:
    """Installs one extra and runs its check."""
    start = time.monotonic()
    home = work / extra
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    what = str(wheel) if extra == NO_EXTRA else f"{wheel}[{extra}]"
    install = [*PIP, "--python", str(python), "install", "-qq", "-c", str(ROOT / "constraints.txt"), what]
    installed = subprocess.run(install, check=False).returncode == 0
    middle = time.monotonic()
    if (site / "torch").exists():
        print(f"{extra}: torch was installed anew, so constraints.txt names another than {sys.prefix} has")
    fine = installed and subprocess.run([str(python), "-I", str(CHECK), extra], cwd=work, check=False).returncode == 0
    took = f"installed in {middle - start:.0f} s, checked in {time.monotonic() - middle:.0f} s"
    print(f"{extra}: {'ok' if fine else 'FAILED'}, {took}", flush=True)
    return fine


if __name__ == "__main__":
    sys.exit(main())
