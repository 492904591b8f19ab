"""Metrics of held-out evaluation. Each file's docstring states its protocol."""

from .facts import FactScore, fact_score, report_fact_f1
from .grounding import GroundingScores, grounding_scores
from .intervals import Interval, mean_interval, paired_interval
from .retrieval import RetrievalScores, retrieval_ranks, retrieval_scores
from .vqa import vqa_correct

__all__ = [
    "FactScore",
    "GroundingScores",
    "Interval",
    "RetrievalScores",
    "fact_score",
    "grounding_scores",
    "mean_interval",
    "paired_interval",
    "report_fact_f1",
    "retrieval_ranks",
    "retrieval_scores",
    "vqa_correct",
]
