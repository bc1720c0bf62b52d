"""Audits of preference data, and the named cleaning that training applies."""

from afzal.quality.audit import Audit, audit
from afzal.quality.clean import clean
from afzal.quality.findings import Finding, contradictions

__all__ = ["Audit", "Finding", "audit", "clean", "contradictions"]
