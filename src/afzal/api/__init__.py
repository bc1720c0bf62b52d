"""The commands as Python functions of the same names, for objects in memory.

``afzal import`` is :func:`import_config`; ``afzal chat`` is interactive and has no function.

The functions are here and not in ``afzal`` itself because many of their names (``judge``, ``compare``, ``report``, ...)
are also names of Afzal's packages: ``afzal.judge`` would change its meaning once the submodule is imported. Only
``afzal.fit`` exists under both names. Nothing heavy is imported before a function is called.

    import afzal

    run = afzal.fit("dpo", model="my-model", data=rows, out="runs/dpo")
    afzal.api.judge(run, against="runs/sft", prompts=["How are you?"])
"""

from afzal.api.aggregating import aggregate
from afzal.api.answers import export, generate, push, revise, score
from afzal.api.asking import annotate, ask
from afzal.api.checking import check
from afzal.api.inputs import Model, RewardFunction, Rows
from afzal.api.inspecting import board, convert, env, import_config, objectives, open_run, report, runs
from afzal.api.judging import judge
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
