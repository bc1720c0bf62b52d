"""The training of flat_dpo.py with Afzal: the same numbers on rows in the same order, and everything it leaves out.

python examples/with_afzal.py MODEL PAIRS.jsonl OUT
"""

import sys

import afzal


def main(model, pairs, out):
    """Train on every pair once and return the loss before each update, in nats."""
    run = afzal.fit(
        "dpo",
        model=model,
        data=pairs,
        out=out,
        beta=0.1,
        lr=3e-4,
        batch_size=8,
        epochs=1,
        lr_schedule="constant",
        warmup=0,
        eval_fraction=0.0,
    )
    return [step["loss"] for step in run.metrics("train")]


if __name__ == "__main__":
    main(*sys.argv[1:])
