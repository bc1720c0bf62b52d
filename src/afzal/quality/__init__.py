"""Audit preference data, and apply the named cleaning that training uses."""

from afzal.quality.audit import Audit, audit, audit_stream
from afzal.quality.clean import clean
from afzal.quality.finding import Finding, NotRun
from afzal.quality.overlap import HeldOutPrompts, Overlap
from afzal.quality.relations import contradictions
from afzal.quality.scorer_checks import scored_findings

__all__ = [
    "Audit",
    "Finding",
    "HeldOutPrompts",
    "NotRun",
    "Overlap",
    "audit",
    "audit_stream",
    "clean",
    "contradictions",
    "scored_findings",
]
