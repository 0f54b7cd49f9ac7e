"""The public data sets of the recipes: where they lie, where they come from, and under which terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .packages import INSURANCEQA, MOVIELENS, Package


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set.

    Args:
        name: As in rows and cards.
        folder: Its folder under the data folder.
        files: What must lie there.
        licence: Under which terms.
        home: Where it comes from; where the files that are read lie elsewhere, there too.
        package: Package on PyPI that brings the files, if there is one.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    licence: str
    home: str
    package: Package | None = None

    def find(self, data: Path) -> Path | None:
        """The folder of the files: under the data folder, or where they were fetched to."""
        folders = [data / self.folder, *([self.package.folder] if self.package else [])]
        return next((each for each in folders if all(any(each.glob(file)) for file in self.files)), None)

    @property
    def wanted(self) -> str:
        """What to do so that it is found."""
        where = f"put {', '.join(self.files)} into {self.folder}/ of the data folder, from {self.home}"
        return f"pass --fetch (runs: {self.package.command}), or {where}" if self.package else where


_ATOMIC = "(RecBole's files: https://github.com/RUCAIBox/RecSysDatasets)"

MOVIELENS_1M = Source(
    name="MovieLens-1M", folder="rec_movielens1m", files=("ml-1m.inter", "ml-1m.item"),
    licence="research use, no redistribution", home=f"https://grouplens.org/datasets/movielens/1m/ {_ATOMIC}",
)  # fmt: skip
MOVIELENS_100K = Source(
    name="MovieLens-100K", folder="rec_movielens100k", files=MOVIELENS.files, package=MOVIELENS,
    licence="research use, no redistribution", home="https://grouplens.org/datasets/movielens/100k/ (in recbole)",
)  # fmt: skip
AMAZON_CDS = Source(
    name="Amazon-CDs-and-Vinyl", folder="rec_amazon_cds",
    files=("Amazon_CDs_and_Vinyl.inter", "Amazon_CDs_and_Vinyl.item"),
    licence="research use", home=f"https://cseweb.ucsd.edu/~jmcauley/datasets.html#amazon_reviews {_ATOMIC}",
)  # fmt: skip
LASTFM = Source(
    name="Last.FM-HetRec-2011", folder="rec_lastfm", files=("artists.dat", "user_artists.dat"),
    licence="non-commercial use", home="https://grouplens.org/datasets/hetrec-2011/",
)  # fmt: skip
AMAZON_GAMES = Source(
    name="Amazon-Video-Games", folder="rec_amazon_video_games",
    files=("Amazon_Video_Games.inter", "Amazon_Video_Games.item"),
    licence="research use", home=AMAZON_CDS.home,
)  # fmt: skip
GAMES_6K = Source(
    name="Amazon-Games-2018", folder="rec_amazon_games", files=("Games-6k.test.inter", "Games-6k.item"),
    licence="research use (Amazon review data); files from LLMRank, MIT", home="https://github.com/RUCAIBox/LLMRank",
)  # fmt: skip
LLMROUTER = Source(
    name="LLMRouter", folder="router_llmrouter", files=("train.json", "test.json", "default_llm.json"),
    licence="MIT", home="https://github.com/ulab-uiuc/LLMRouter",
)  # fmt: skip
ROUTERBENCH = Source(
    name="RouterBench", folder="router_routerbench", files=("*_train.csv",),
    licence="RouterBench MIT; the subset's repository names none", home="https://github.com/shuhao02/RouterDC",
)  # fmt: skip
MSMARCO = Source(
    name="MS-MARCO-v1.1", folder="passage_msmarco", files=("train*.parquet", "test*.parquet"),
    licence="non-commercial research", home="https://huggingface.co/datasets/microsoft/ms_marco",
)  # fmt: skip
SQUAD = Source(
    name="SQuAD-v1.1-dev", folder="passage_squad", files=("SQUAD.parquet",),
    licence="CC BY-SA 4.0",
    home="https://rajpurkar.github.io/SQuAD-explorer/ (as Parquet: https://github.com/dariushmmz/GraphRouter)",
)  # fmt: skip
INSURANCE = Source(
    name="InsuranceQA", folder="passage_insuranceqa", files=INSURANCEQA.files, package=INSURANCEQA,
    licence="research use; package GPL-3.0", home="https://pypi.org/project/insuranceqa-data/1.0/",
)  # fmt: skip
DL20 = Source(
    name="TREC-DL20", folder="passage_trecdl20",
    files=("4_prompts_dl2020.jsonl.gz", "2020qrels-pass.txt", "run_BM25_dl20_top100.txt"),
    licence="MS MARCO text: non-commercial research; judgments public",
    home="https://microsoft.github.io/msmarco/TREC-Deep-Learning-2020 (passages: "
    "https://github.com/naghmefarzi/llmjudge, run: https://github.com/castorini/rank_llm_data)",
)  # fmt: skip
WIKIQA = Source(
    name="WikiQA", folder="passage_wikiqa", files=("WikiQA-test-gold.tsv",),
    licence="Microsoft Research Data License (research only)",
    home="https://aka.ms/WikiQA (file: https://github.com/yizhongw/WikiQA-Selection)",
)  # fmt: skip
