"""The commands as functions of the same names, from Python's own objects.

``afzal import`` is :func:`import_config`; ``afzal chat`` is a conversation and has no function.

The functions live here and not in ``afzal`` itself, since many of their names (``judge``, ``compare``, ``report``, ...)
are also the names of Afzal's packages: ``afzal.judge`` would be one thing before a submodule is imported and another
after. ``afzal.fit`` alone is there under both names. Nothing heavy is imported before a function is called.

    import afzal

    run = afzal.fit("dpo", model="my-model", data=rows, out="runs/dpo")
    afzal.api.judge(run, against="runs/sft", prompts=["How are you?"])
"""

from afzal.api.aggregating import aggregate
from afzal.api.answers import export, generate, push, revise, score
from afzal.api.asking import annotate, ask
from afzal.api.checking import check
from afzal.api.inputs import Model, RewardFunction, Rows
from afzal.api.judging import judge
from afzal.api.looking import board, convert, env, import_config, objectives, open_run, report, runs
from afzal.api.planning import plan
from afzal.api.ranking import leaderboard
from afzal.api.results import Plot, Result, Run
from afzal.api.training import compare, demo, fit, iterate, ladder, sweep, train

__all__ = [
    "Model",
    "Plot",
    "Result",
    "RewardFunction",
    "Rows",
    "Run",
    "aggregate",
    "annotate",
    "ask",
    "board",
    "check",
    "compare",
    "convert",
    "demo",
    "env",
    "export",
    "fit",
    "generate",
    "import_config",
    "iterate",
    "judge",
    "ladder",
    "leaderboard",
    "objectives",
    "open_run",
    "plan",
    "push",
    "report",
    "revise",
    "runs",
    "score",
    "sweep",
    "train",
]
