"""The public surface: small, listed once, and free to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import r1_rerank
from r1_rerank import errors

PACKAGE = Path(r1_rerank.__file__).parent

# Each layer may import itself and what stands above it in this list.
LAYERS = [
    {"errors"},
    {"documents", "rows", "metrics", "voting"},
    {"tasks", "strategies", "budget", "prompts", "parsing", "prefilter"},
    {"engines"},
    {"options"},
    {"fitting", "checkpoint"},
    {"ranking"},
    {"query"},
    {"driving"},
    {"reranker"},
    {"evaluation"},
    {"cli"},
]
# Modules of the pure layer, lowest first: imports point downward among them too.
PURE = ["errors", "documents", "rows", "metrics", "tasks", "strategies", "budget", "prompts", "parsing"]
HEAVY = {"torch", "transformers", "peft", "pydantic", "accelerate", "safetensors", "huggingface_hub", "typer", "rich"}


def imports_of(path: Path, *, top_level: bool) -> set[str]:
    """Modules that a file imports: `.name` for ours, at module level only or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    nodes = tree.body if top_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.add((node.module or "").split(".")[0])
            elif node.level == depth:
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                found |= {f".{name}" for name in names}
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_name_resolves_and_all_is_true():
    assert 1 <= len(r1_rerank.__all__) <= 16
    assert r1_rerank.__all__ == sorted(r1_rerank.__all__)
    assert set(r1_rerank.__all__) == set(r1_rerank._HOME)
    for name in r1_rerank.__all__:
        assert getattr(r1_rerank, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Reranker'"):
        _ = r1_rerank.Reranker


def test_importing_loads_nothing_heavy():
    code = f"import sys, r1_rerank; print(*sorted({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_the_pure_layer_and_the_reranker_run_without_torch_or_pydantic():
    code = (
        "import sys; from r1_rerank import R1Reranker, ScriptedEngine;"
        "r = R1Reranker(ScriptedEngine(['<answer>[A]</answer>'])).rerank('q', ['a', 'b']);"
        "assert [hit.index for hit in r] == [1, 0];"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_imports_point_downward():
    place = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py" and path.parent == PACKAGE:
            continue
        assert "r1_rerank" not in imports_of(path, top_level=False), f"{path} imports itself by its full name"
        own = layer_of(path)
        assert own in place, f"{own} has no layer: add it to LAYERS"
        for name in imports_of(path, top_level=False):
            if name.startswith(".") and name[1:] in place:
                seen += 1
                assert place[name[1:]] <= place[own], f"{path.name} imports {name}"
                if own in PURE and name[1:] in PURE and name[1:] != own:
                    assert PURE.index(name[1:]) < PURE.index(own), f"{path.name} imports {name}"
    assert seen > 30, "the check found no imports to check"


def test_only_the_command_line_knows_the_integrations_and_only_inside_functions():
    users = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if ".integrations" in text:
            users.add(layer_of(path))
        tree = ast.parse(text)
        modules = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not any(module.startswith("integrations") for module in modules), path
    assert users == {"cli"}


def test_frameworks_are_imported_inside_functions():
    for path in PACKAGE.rglob("*.py"):
        # Themselves imported only where weights are loaded.
        if path in (PACKAGE / name for name in ("checkpoint.py", "engines/attention.py", "engines/growing.py")):
            continue
        heavy = imports_of(path, top_level=True) & HEAVY
        assert not (heavy - {"typer", "rich"}), f"{path} imports {heavy}"
        assert layer_of(path) == "cli" or not heavy, f"{path} imports {heavy}"


def test_errors_form_one_tree_and_all_are_drawn_in_it():
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert len(classes) > 8
    for error in classes:
        assert issubclass(error, errors.R1RerankError)
        assert error.__name__ in errors.__doc__
    missing = errors.MissingExtraError("vllm", "vllm")
    assert isinstance(missing, ImportError)
    assert 'pip install "r1-rerank[vllm]"' in str(missing)
