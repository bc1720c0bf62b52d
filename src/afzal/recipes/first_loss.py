"""Check the first loss against its known value, with and without an adapter that makes policy and reference differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from afzal.errors import AfzalError
from afzal.model.probe import gap_to_plain, tolerance
from afzal.model.reference import Cached, Reference
from afzal.recipes.setup import Setup
from afzal.train.episodes import Episodes
from afzal.train.evaluate import evaluate
from afzal.train.feed import Feed
from afzal.train.rollouts import Rollouts
from afzal.train.user_code import is_user_defined

_Measure = Callable[..., dict[str, float]]


def check_first_loss(setup: Setup, say: Callable[[str], None]) -> None:
    """Measure the first loss and compare it with its known value; ``say`` reports both.

    If policy equals reference it is the method's own value (ln 2 for DPO). With a fresh adapter of virtual tokens the
    policy differs from its reference, the model without the adapter: then the loss must have that value with the
    adapter off, and the policy's log-probs must be those of the model's own forward pass.

    Raises:
        AfzalError: the values differ, which means a wrong reference or wrong log-probs.
    """
    method, feed = setup.method, setup.feed
    if method.reference is None or not method.reference.is_start:
        return
    assert not isinstance(feed, Rollouts)  # the loss of a policy that samples its own answers has no reference
    update = feed.update(0)
    measure = partial(evaluate, batches=update.batches, mismatched=update.mismatched)
    if setup.starts_elsewhere:
        _check_with_adapter_off(setup, feed, measure, say)
        return
    expected = method.at_reference()
    if expected is None:
        expected = _loss_of_reference(setup, method.reference, measure)
    loss = None if expected is None else measure(setup.model, method)["loss"]
    if expected is None or loss is None:
        return
    _compare(setup, loss, expected)
    say(f"first loss {loss:.4f}, as it must be where policy equals reference ({expected:.4f})")


def _check_with_adapter_off(setup: Setup, feed: Feed | Episodes, measure: _Measure, say: Callable[[str], None]) -> None:
    method, model = setup.method, setup.model
    tree = min(feed.trees, key=lambda t: t.n_tokens)
    gap = gap_to_plain(model, tree, feed.layout.sharing)
    if not gap <= tolerance(model):
        raise AfzalError(
            f"log-probs with {setup.starts_elsewhere} are off by {gap:.3g} nats",
            where=tree.item_id,
            why="they are not those of the model's own forward pass",
            remedy="report the model type and the adapter, or use adapter=lora",
        )
    with model.disable_adapter():
        loss_without_adapter = measure(model, method).get("loss")
    expected = method.at_reference()
    if loss_without_adapter is not None and expected is not None:
        _compare(setup, loss_without_adapter, expected)
    loss = measure(model, method).get("loss")
    if loss is not None and loss_without_adapter is not None:
        say(
            f"first loss {loss:.4f}, and {loss_without_adapter:.4f} with the adapter off: the reference is the model "
            f"without it, and {setup.starts_elsewhere} is not the identity"
        )


def _compare(setup: Setup, loss: float, expected: float) -> None:
    method = setup.method
    assert method.reference is not None
    if abs(loss - expected) <= 1e-3 * max(1.0, abs(expected)):
        return
    why = f"policy and reference ({method.reference.name}) do not agree before any training"
    remedy = "delete a stale reference cache, or report this as a bug with --debug output"
    if user_defined := [term.name for term in method.terms if is_user_defined(term.objective.fn)]:
        why = f"the at_reference of {user_defined[0]} is not its loss where policy equals reference, or {why}"
        remedy = f"correct at_reference where {user_defined[0]} is defined; None where it depends on the data"
    raise AfzalError(
        f"the first loss is {loss:.4f}, but {method.name} starts at {expected:.4f}", why=why, remedy=remedy
    )


def _loss_of_reference(setup: Setup, reference: Reference, measure: _Measure) -> float | None:
    """The loss with the reference in place of the policy; None if the reference is only a table of log-probs."""
    if isinstance(reference, Cached):
        return None
    with reference.acting() as model:  # pyright: ignore[reportAttributeAccessIssue] - every other one is live
        return measure(model, setup.method)["loss"]
