"""What a training leaves behind: a checkpoint that loads by its folder, with a model card and curves."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import CARD_NAME, RankerCard
from ..engines.loading import load_model, quiet
from ..errors import CheckpointError
from ..reranker import R1Reranker
from .curves import draw_curves
from .folder import DATA_CARD, LOG, RECIPE, WEIGHTS, StageResult, read_validation, stage_folder
from .logs import read_log
from .model_card import model_card
from .places import is_place
from .recipe import read_recipe
from .run import Training
from .settings import published
from .validation import Validation
from .weights import ADAPTER, name_base

if TYPE_CHECKING:
    from .weights import Start

logger = logging.getLogger(__name__)

README, CURVES, MERGED, FINAL = "README.md", "curves.png", "merged", "validation"
_WEIGHTS = "adapter_model.safetensors"
_PUBLISHED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", README, CURVES, LOG)


def write_outputs(training: Training, results: Sequence[StageResult], *, merge: bool = False) -> Validation | None:
    """Writes the checkpoint of a training whose stages are done.

    Args:
        training: Its settings and its folder.
        results: Of all its stages.
        merge: Also write the whole model with the adapter merged into it, in the folder `merged`.

    Returns:
        The validation of the checkpoint as it was written, loaded anew; None where the recipe wants none.
    """
    out, last = training.out, results[-1]
    weights = stage_folder(out, last.number - 1, last.name) / WEIGHTS
    write_checkpoint(weights, out, card=training.card)
    if merge:
        write_merged(out, out / MERGED, start=training.start, card=training.card)
    picture = draw_curves(read_log(out / LOG))
    if picture is not None:
        (out / CURVES).write_bytes(picture)
    validation = None
    if training.validator is not None:
        with R1Reranker.from_pretrained(out) as reranker:
            validation = training.validator(reranker)
        validation.write(out / FINAL)
    page = model_card(
        name=out.resolve().name,
        recipe=published(training.recipe),
        card=training.card,
        data=json.loads((out / DATA_CARD).read_text(encoding="utf-8"))["stages"],
        results=results,
        validations=[read_validation(out, results[0], before=True), *(read_validation(out, one) for one in results)],
        final=validation,
        curves=CURVES if picture is not None else None,
        adapter=(out / ADAPTER).is_file(),
    )
    (out / README).write_text(page, encoding="utf-8")
    return validation


def write_checkpoint(weights: Path, out: Path, *, card: RankerCard) -> None:
    """Writes weights in bfloat16 with their ranker card: an adapter, or a whole model with its tokenizer.

    Args:
        weights: Folder with either.
        out: Folder to write to.
        card: How the model is asked.
    """
    if (weights / ADAPTER).is_file():
        from safetensors.torch import load_file, save

        tensors = {name: _halved(tensor) for name, tensor in load_file(weights / _WEIGHTS).items()}
        # Bytes: a file that safetensors makes itself is for its owner alone.
        (out / _WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        name_base(weights / ADAPTER, out / ADAPTER, card)
    else:
        _save(*load_model(str(weights), None, "cpu", "bfloat16"), out)
    card.write(out)


def write_merged(checkpoint: Path, out: Path, *, start: Start, card: RankerCard) -> None:
    """Writes the whole model of a checkpoint, its adapter merged into it, in bfloat16.

    Args:
        checkpoint: Folder of the checkpoint.
        out: Folder to write to, in place of what is there.
        start: The base of the adapter.
        card: How the model is asked.
    """
    import torch

    if not (checkpoint / ADAPTER).is_file():
        raise CheckpointError(f"{checkpoint} is a whole model: there is nothing to merge")
    # Added up in float32, so that the sum is rounded once.
    model, tokenizer = load_model(str(start.folder), checkpoint, "cpu", "float32")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir()
    _save(model.to(torch.bfloat16), tokenizer, out)
    card.write(out)


def check_publishing(name: str) -> None:
    """Finds what the hub would refuse, before anything is trained.

    Raises:
        CheckpointError: It is no name of a repository, or nobody is logged in.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented there

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(f"{name} cannot be pushed: {' '.join(str(error).split())}") from error
    if huggingface_hub.get_token() is None:
        raise CheckpointError(f"{name} cannot be pushed: no token; set HF_TOKEN, or log in with: hf auth login")


def publish(out: Path, name: str) -> str:
    """Publishes a checkpoint, without what is only for resuming; an adapter whose base is a folder is told.

    Args:
        out: Folder of a finished training.
        name: Of the repository, such as `you/ranker`; it is made if it is not there.

    Returns:
        Its address.

    Raises:
        CheckpointError: The hub refused.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    base = RankerCard.read(out / CARD_NAME).base.name
    if (out / ADAPTER).is_file() and is_place(base):
        logger.warning(
            "the adapter's base is the folder %s, which is named in what is published: nobody else can load it; "
            "publish the base, or what --merge writes",
            base,
        )
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            folder_path=out,
            repo_id=address.repo_id,
            allow_patterns=list(_PUBLISHED),
            ignore_patterns=["stages/*", f"{MERGED}/*", f"{FINAL}/*"],
            commit_message="Train a ranker with r1-rerank",
        )
        # The one here says where rows lie on this machine: --resume reads it.
        api.upload_file(
            path_or_fileobj=published(read_recipe(out / RECIPE)).to_yaml().encode(),
            path_in_repo=RECIPE,
            repo_id=address.repo_id,
            commit_message="Add the recipe",
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be pushed: {' '.join(str(error).split())}") from error
    return str(address)


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _halved(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.bfloat16).contiguous() if tensor.is_floating_point() else tensor
