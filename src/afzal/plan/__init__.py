"""Predict a run's memory, arithmetic, traffic and time from shapes and lengths, by closed formulas."""

from afzal.plan.flops import Lengths, lengths
from afzal.plan.hardware import DEVICES, Device, device_named
from afzal.plan.job import METHODS, Job, Layout, Method, trained_parameters
from afzal.plan.memory import Moment, fits, moments, peak
from afzal.plan.planner import LayoutRequest, Plan, does_not_fit, largest_tokens, layouts, plan
from afzal.plan.shapes import SHAPES, Shape, named, parameters, shape_of
from afzal.plan.source import shape_from
from afzal.plan.speed import Assumptions, Times, Traffic, executed_flops, times, traffic, updates, useful_flops
from afzal.plan.table import as_data, lines

__all__ = [
    "DEVICES",
    "METHODS",
    "SHAPES",
    "Assumptions",
    "Device",
    "Job",
    "Layout",
    "LayoutRequest",
    "Lengths",
    "Method",
    "Moment",
    "Plan",
    "Shape",
    "Times",
    "Traffic",
    "as_data",
    "device_named",
    "does_not_fit",
    "executed_flops",
    "fits",
    "largest_tokens",
    "layouts",
    "lengths",
    "lines",
    "moments",
    "named",
    "parameters",
    "peak",
    "plan",
    "shape_from",
    "shape_of",
    "times",
    "traffic",
    "trained_parameters",
    "updates",
    "useful_flops",
]
