"""Judges, people included: their verdicts, read from files or made, and how good they are.

A verdict is a vote. Verdicts on models, from other tools' files (:mod:`.formats`) and from Afzal's rows, become
leaderboards in :mod:`.model_board`.
"""

from afzal.judge.formats import FORMATS, knows, read
from afzal.judge.judge_board import JudgeBoard, JudgeLine, judges_as_plain, of_judges
from afzal.judge.labelled import read_labelled
from afzal.judge.model_board import (
    ModelBoard,
    at_equal_lengths,
    lengths_as_plain,
    models_as_plain,
    of_models,
    rank_correlation,
)
from afzal.judge.reliability import weighed_as_plain
from afzal.judge.verdict_files import is_own, on_models, on_truth, read_own
from afzal.judge.verdicts import Verdict, Verdicts

__all__ = [
    "FORMATS",
    "JudgeBoard",
    "JudgeLine",
    "ModelBoard",
    "Verdict",
    "Verdicts",
    "at_equal_lengths",
    "is_own",
    "judges_as_plain",
    "knows",
    "lengths_as_plain",
    "models_as_plain",
    "of_judges",
    "of_models",
    "on_models",
    "on_truth",
    "rank_correlation",
    "read",
    "read_labelled",
    "read_own",
    "weighed_as_plain",
]
