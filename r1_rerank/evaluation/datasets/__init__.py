"""Readers of public data sets: each gives labelled rows, and says what it left out."""

from .answers import read_insuranceqa, read_squad, read_wikiqa
from .cases import elimination_cases, first_window
from .checking import check_file, row_schema
from .common import Dropped
from .judged import read_beir, read_llmjudge, read_qrels, read_trec, rerank_rows
from .leaks import LeakFilter
from .llmrouter import read_llmrouter
from .msmarco import read_msmarco
from .passages import JudgedQuery, Question, graded_lists, question_lists
from .ranking_bench import read_ranking_bench
from .recommendation import Interactions, read_lastfm, read_recbole, recommendation_lists
from .routerbench import read_routerbench

__all__ = [
    "Dropped",
    "Interactions",
    "JudgedQuery",
    "LeakFilter",
    "Question",
    "check_file",
    "elimination_cases",
    "first_window",
    "graded_lists",
    "question_lists",
    "read_beir",
    "read_insuranceqa",
    "read_lastfm",
    "read_llmjudge",
    "read_llmrouter",
    "read_msmarco",
    "read_qrels",
    "read_ranking_bench",
    "read_recbole",
    "read_routerbench",
    "read_squad",
    "read_trec",
    "read_wikiqa",
    "recommendation_lists",
    "rerank_rows",
    "row_schema",
]
