"""Audits of preference data, and the named cleaning that training applies."""

from afzal.quality.audit import Audit, audit, audit_stream
from afzal.quality.clean import clean
from afzal.quality.finding import Finding
from afzal.quality.relations import contradictions

__all__ = ["Audit", "Finding", "audit", "audit_stream", "clean", "contradictions"]
