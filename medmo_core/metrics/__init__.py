"""Metrics of held-out evaluation. Each file's docstring states its protocol."""

from .bootstrap import Interval, bootstrap_ci, paired_bootstrap
from .facts import FactScore, fact_score, report_fact_f1
from .grounding import GroundingScores, grounding_scores
from .retrieval import RetrievalScores, retrieval_ranks, retrieval_scores
from .vqa import vqa_correct

__all__ = [
    "FactScore",
    "GroundingScores",
    "Interval",
    "RetrievalScores",
    "bootstrap_ci",
    "fact_score",
    "grounding_scores",
    "paired_bootstrap",
    "report_fact_f1",
    "retrieval_ranks",
    "retrieval_scores",
    "vqa_correct",
]
