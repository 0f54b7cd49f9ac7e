"""Measuring rankers: public data sets, baselines, the evaluator, paired comparisons and reports."""

from .comparison import Comparison, assert_no_regression, compare, compare_means
from .evaluator import RerankingEvaluator
from .records import EvaluationRun, Record, load_run
from .report import Report, build_report
from .rowsets import RowSet, read_task

__all__ = [
    "Comparison",
    "EvaluationRun",
    "Record",
    "Report",
    "RerankingEvaluator",
    "RowSet",
    "assert_no_regression",
    "build_report",
    "compare",
    "compare_means",
    "load_run",
    "read_task",
]
