"""Audits of preference data, and the named cleaning that training applies."""

from afzal.quality.audit import Audit, audit
from afzal.quality.clean import clean
from afzal.quality.findings import Finding, contradictions
from afzal.quality.stats import wilson

__all__ = ["Audit", "Finding", "audit", "clean", "contradictions", "wilson"]
