"""Reports: a self-contained HTML page per run, the same facts as JSON, a model card, and a verdict in words."""

from afzal.health import Diagnosis, Verdict, diagnose, verdict
from afzal.report.board import write_board
from afzal.report.card import model_card, write_card
from afzal.report.comparison import write_comparison
from afzal.report.frontier import PolicyPoint, frontier_svg
from afzal.report.page import build
from afzal.report.raster import require_png, write_png
from afzal.report.sections import FrontierChart, LineChart, Section, Table
from afzal.report.shortened import shortened
from afzal.report.svg import Rule, Series, line_chart, standalone
from afzal.report.sweep import write_sweep

__all__ = [
    "Diagnosis",
    "FrontierChart",
    "LineChart",
    "PolicyPoint",
    "Rule",
    "Section",
    "Series",
    "Table",
    "Verdict",
    "build",
    "diagnose",
    "frontier_svg",
    "line_chart",
    "model_card",
    "require_png",
    "shortened",
    "standalone",
    "verdict",
    "write_board",
    "write_card",
    "write_comparison",
    "write_png",
    "write_sweep",
]
