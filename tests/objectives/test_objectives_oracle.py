"""Every loss and its gradient in float32 against an independently written oracle in float64.

The oracle loops over responses and pairs, sums tokens by slices and uses the formulas as printed: sigma as
1 / (1 + e^-x), no log-sigmoid, no scatter, no masks. Inputs are exact in float32, so the test measures the loss's own
arithmetic. Errors are relative to the norm over a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
from helpers_objectives import EVERY, F64, fill, random_case
from torch import Tensor

from afzal import objectives
from afzal.objectives import Pairs, Scored, join_pairs, join_scored


class World:
    """One batch, token by token, in float64."""

    def __init__(self, policy: Scored, reference: Scored, given: Pairs) -> None:
        ends = torch.cumsum(torch.bincount(policy.response_of, minlength=policy.n_responses), 0).tolist()
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self.tokens = [policy.token_logps[a:b] for a, b in self.spans]
        self.ref = [reference.token_logps[a:b] for a, b in self.spans]
        self.extras = {k: [v[a:b] for a, b in self.spans] for k, v in policy.extras.items()}
        self.lp, self.rlp = [t.sum() for t in self.tokens], [t.sum() for t in self.ref]
        self.n = [b - a for a, b in self.spans]
        self.rho = [x - y for x, y in zip(self.lp, self.rlp, strict=True)]
        self.given = given
        self.t = list(zip(*(x.tolist() for x in (given.yw_idxs, given.yl_idxs, given.p, given.margin)), strict=True))

    def pairs(self, loss: Callable[[int, int, float], Tensor]) -> Tensor:
        """The label's expectation of ``loss(better, worse, margin of the better one)`` for every pair."""
        return torch.stack([p * loss(w, l, m) + (1 - p) * loss(l, w, -m) for w, l, p, m in self.t])  # noqa: E741

    def groups(self) -> list[list[int]]:
        """Rated responses of each prompt."""
        score, of = self.given.score.tolist(), self.given.group_of.tolist()
        return [[b for b in range(len(of)) if of[b] == g and score[b] == score[b]] for g in range(max(of) + 1)]

    def score(self, b: int) -> float:
        return float(self.given.score[b])

    def mean(self, b: int) -> Tensor:
        return self.lp[b] / self.n[b]

    def total(self, name: str, b: int) -> Tensor:
        return self.extras[name][b].sum()


def above(x: Tensor) -> Tensor:
    """max(0, x)."""
    return x if float(x) > 0 else x * 0


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def nls(x: Tensor) -> Tensor:
    """-log sigma(x), as printed."""
    return (1 + (-x).exp()).log()


def constant(x: Tensor) -> Tensor:
    return x.detach()


def plackett_luce(w: World, value: Callable[[int], Tensor]) -> Tensor:
    """The mean over all orders that the scores allow, one place after another."""
    losses = []
    for group in w.groups():
        levels = [[b for b in group if w.score(b) == s] for s in sorted({w.score(b) for b in group}, reverse=True)]
        orders = [[b for level in chosen for b in level] for chosen in product(*map(permutations, levels))]
        each = [
            sum(sum(value(j).exp() for j in order[k:]).log() - value(order[k]) for k in range(len(order)))
            for order in orders
        ]
        losses.append(sum(each) / len(each))
    return torch.stack(losses)


def shares(w: World, group: list[int], temperature: float) -> list[float]:
    powers = [math.exp(w.score(b) / temperature) for b in group]
    return [x / sum(powers) for x in powers]


def choices(w: World, group: list[int], beta: float) -> list[Tensor]:
    powers = [(beta * w.rho[b]).exp() for b in group]
    return [x / sum(powers) for x in powers]


def exo_k(w: World, beta: float, temperature: float) -> Tensor:
    losses = []
    for g in w.groups():
        pairs = zip(choices(w, g, beta), shares(w, g, temperature), strict=True)
        losses.append(sum(q * (q / p).log() for q, p in pairs))
    return torch.stack(losses)


def infonca(w: World, beta: float, temperature: float) -> Tensor:
    losses = []
    for g in w.groups():
        losses.append(-sum(p * q.log() for q, p in zip(choices(w, g, beta), shares(w, g, temperature), strict=True)))
    return torch.stack(losses)


def nca_k(w: World, beta: float, temperature: float) -> Tensor:
    losses = []
    for g in w.groups():
        parts = zip(g, shares(w, g, temperature), strict=True)
        losses.append(sum(p * nls(beta * w.rho[b]) + nls(-beta * w.rho[b]) / len(g) for b, p in parts))
    return torch.stack(losses)


def head(tokens: Tensor, other: int, alpha: float) -> Tensor:
    return tokens[:other].sum() + alpha * tokens[other:].sum()


def ld(w: World, beta: float, alpha: float) -> Tensor:
    def loss(a: int, b: int, _: float) -> Tensor:
        m = min(w.n[a], w.n[b])
        mine, theirs = (head(w.tokens[k], m, alpha) - head(w.ref[k], m, alpha) for k in (a, b))
        return nls(beta * (mine - theirs))

    return w.pairs(loss)


def dense(w: World, beta: float, gamma: float, reduction: str) -> Tensor:
    def worth(b: int) -> Tensor:
        weights = [gamma if c else 1.0 for c in w.extras["changed"][b].tolist()]
        whole = sum(g * (x - y) for g, x, y in zip(weights, w.tokens[b], w.ref[b], strict=True))
        return whole / sum(weights) if reduction == "mean" else whole

    return w.pairs(lambda a, b, _: nls(beta * (worth(a) - worth(b))))


def mdpo(w: World, beta: float, delta: float) -> Tensor:
    def loss(a: int, b: int, _: float) -> Tensor:
        conditional = nls(beta * (w.rho[a] - w.total("piece_log_ratio", a)))
        return nls(beta * (w.rho[a] - w.rho[b])) + conditional + nls(beta * w.rho[a] - delta)

    return w.pairs(loss)


def wpo(w: World, beta: float) -> Tensor:
    weight = lambda k: constant((w.tokens[k] - w.extras["log_sum_p2"][k]).mean().exp())  # noqa: E731
    return w.pairs(
        lambda a, b, _: torch.minimum(torch.tensor(1.0), weight(a) * weight(b)) * nls(beta * (w.rho[a] - w.rho[b]))
    )


def tdpo(w: World, beta: float, alpha: float, hold: Callable[[Tensor], Tensor]) -> Tensor:
    s = lambda k: w.total("kl_ref_policy", k)  # noqa: E731
    return w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b] - alpha * (s(b) - hold(s(a))))))


def epsilon(w: World, beta: float, epsilon: float, state: Any) -> Tensor:
    def loss(a: int, b: int, _: float) -> Tensor:
        up, down = (float(w.total(k, a) - w.total(k, b)) for k in ("logp_away", "logp_towards"))
        here = float(w.lp[a] - w.lp[b])
        s = 1 if up > here > down else -1 if up < here < down else 0
        return nls(state["beta"] / (1 + epsilon * s) * (w.rho[a] - w.rho[b]))

    return w.pairs(loss)


def dr(w: World, beta: float, beta_prime: float) -> Tensor:
    each = w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b])))
    weight = w.given.weight
    return -beta_prime * ((weight * (-each / beta_prime).exp()).sum() / weight.sum()).log() * torch.ones_like(each)


def aot(w: World, beta: float, label_smoothing: float) -> Tensor:
    ours, theirs = ([lp[a] - lp[b] for a, b, _, _ in w.t] for lp in (w.lp, w.rlp))
    gaps = [beta * (x - y) for x, y in zip(sorted(ours, key=float), sorted(theirs, key=float), strict=True)]
    return torch.stack([(1 - label_smoothing) * nls(u) + label_smoothing * nls(-u) for u in gaps])


def aot_unpaired(w: World, beta: float, label_smoothing: float) -> Tensor:
    good, bad = (sorted((w.rho[pair[k]] for pair in w.t), key=float) for k in (0, 1))
    gaps = [beta * (x - y) for x, y in zip(good, bad, strict=True)]
    return torch.stack([(1 - label_smoothing) * nls(u) + label_smoothing * nls(-u) for u in gaps])


def beta_dpo(w: World, beta: float, a: float, rho: float, state: Any) -> Tensor:
    h = [float(w.rho[i] - w.rho[j]) for i, j, _, _ in w.t]
    weight = w.given.weight.tolist()
    mean = sum(x * y for x, y in zip(h, weight, strict=True)) / sum(weight)
    each = max(1e-3, beta * (1 + a * (mean - state["mean"])))
    noise = torch.rand(len(h), generator=torch.Generator().manual_seed(int(state["updates"])), dtype=F64).tolist()
    rank = {k: r for r, k in enumerate(sorted(range(len(h)), key=lambda k: h[k]))}
    gumbel = {k: -math.log(-math.log(max(noise[rank[k]], 1e-12))) for k in rank}
    merit = {k: -((h[k] - state["mean"]) ** 2) / (2 * state["std"] ** 2) + gumbel[k] for k in rank}
    kept = set(sorted(merit, key=lambda k: -merit[k])[: math.ceil((1 - rho) * len(h))])
    scale = sum(weight) / sum(weight[k] for k in kept)
    losses = w.pairs(lambda i, j, _: nls(each * (w.rho[i] - w.rho[j])))
    return losses * torch.tensor([scale if k in kept else 0.0 for k in range(len(h))])


def group_dpo(w: World, beta: float, step: float, state: Any) -> Tensor:
    """Each group's mean loss times the group's weight, spread over its pairs."""
    groups = [int(w.given.task_of[i]) for i, _, _, _ in w.t]
    share = [float(x) / float(w.given.weight.sum()) for x in w.given.weight]
    size = {g: sum(s for s, own in zip(share, groups, strict=True) if own == g) for g in set(groups)}
    alpha = {g: math.exp(state.get(str(g), 0.0)) for g in size}
    each = w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b])))
    return each * torch.tensor([alpha[g] / sum(alpha.values()) / size[g] for g in groups], dtype=F64)


def signed(w: World, loss: Callable[[int, float], Tensor]) -> Tensor:
    """Per response; unlabelled ones are treated as bad, with weight 0."""
    labels = w.given.desirable.tolist()
    return torch.stack([loss(b, 1.0 if labels[b] == 1 else -1.0) for b in range(len(labels))])


def kto(w: World, beta: float, desirable_weight: float, undesirable_weight: float, statistic: Tensor) -> Tensor:
    z0 = max(0.0, float(statistic))
    weight = {1.0: desirable_weight, -1.0: undesirable_weight}
    return signed(w, lambda b, s: weight[s] * (1 - sigma(beta * s * (w.rho[b] - z0))))


def ties_rao(w: World, beta: float, nu: float) -> Tensor:
    out = []
    for a, b, p, _ in w.t:
        ratio = (beta * (w.rho[a] - w.rho[b])).exp()
        win, loss = ratio / (ratio + nu), 1 / (1 + nu * ratio)
        tie = ratio * (nu**2 - 1) / ((ratio + nu) * (1 + nu * ratio))
        out.append(-tie.log() if p == 0.5 else -p * win.log() - (1 - p) * loss.log())
    return torch.stack(out)


def ties_davidson(w: World, beta: float, nu: float) -> Tensor:
    out = []
    for a, b, p, _ in w.t:
        x, y = (beta * w.rho[a]).exp(), (beta * w.rho[b]).exp()
        z = x + y + 2 * nu * (x * y).sqrt()
        out.append(-(2 * nu * (x * y).sqrt() / z).log() if p == 0.5 else -p * (x / z).log() - (1 - p) * (y / z).log())
    return torch.stack(out)


def log_odds(q: Tensor) -> Tensor:
    return (q / (1 - q)).log()


def top1(w: World) -> Tensor:
    losses = []
    for g in w.groups():
        best = [b for b in g if w.score(b) == max(w.score(k) for k in g)]
        z = sum(w.lp[b].exp() for b in g)
        losses.append(-sum((w.lp[b].exp() / z).log() for b in best) / len(best))
    return torch.stack(losses)


def shown_and_drawn(w: World, group: list[int]) -> tuple[list[int], list[int]]:
    """Demonstrations of a prompt, which have its best score, and samples."""
    best = max(w.score(b) for b in group)
    return [b for b in group if w.score(b) == best], [b for b in group if w.score(b) < best]


def maxent_irl(w: World, beta: float) -> Tensor:
    losses = []
    for g in w.groups():
        shown, drawn = shown_and_drawn(w, g)
        z = sum((w.lp[k] / beta).exp() for k in drawn) / max(1, len(drawn))
        loss = sum(z.log() - w.lp[b] / beta for b in shown) / len(shown) if drawn else 0 * w.lp[g[0]]
        losses.append(loss)
    return torch.stack(losses)


def ranking_nce(w: World, beta: float) -> Tensor:
    losses = []
    for g in w.groups():
        shown, drawn = shown_and_drawn(w, g)
        z = sum((w.lp[k] / beta).exp() for k in drawn)
        powers = [(w.lp[b] / beta).exp() for b in shown]
        losses.append(-sum((x / (x + z)).log() for x in powers) / len(shown))
    return torch.stack(losses)


def f_of(rho: Tensor, divergence: str, alpha: float) -> Tensor:
    u = rho.exp()
    if divergence == "forward_kl":
        return -1 / u
    if divergence == "jensen_shannon":
        return (2 * u / (1 + u)).log()
    return (1 - u**-alpha) / alpha if divergence == "alpha" else u.log() + 1


def sq(x: Tensor) -> Tensor:
    return x * x


def sft_tokens(w: World) -> Tensor:
    return -torch.cat(w.tokens)


def sppo(w: World, beta: float) -> Tensor:
    return torch.stack([(sq(w.rho[a] - (p - 0.5) / beta) + sq(w.rho[b] - (0.5 - p) / beta)) / 2 for a, b, p, _ in w.t])


ORACLE: dict[str, Callable[..., Tensor]] = {
    "dpo": lambda w, beta: w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b]))),
    "cdpo": lambda w, beta, label_smoothing: w.pairs(
        lambda a, b, _: (
            (1 - label_smoothing) * nls(beta * (w.rho[a] - w.rho[b]))
            + label_smoothing * nls(beta * (w.rho[b] - w.rho[a]))
        )
    ),
    "robust": lambda w, beta, label_smoothing: w.pairs(
        lambda a, b, _: (
            (
                (1 - label_smoothing) * nls(beta * (w.rho[a] - w.rho[b]))
                - label_smoothing * nls(beta * (w.rho[b] - w.rho[a]))
            )
            / (1 - 2 * label_smoothing)
        )
    ),
    "hinge": lambda w, beta: w.pairs(lambda a, b, _: above(1 - beta * (w.rho[a] - w.rho[b]))),
    "odpo": lambda w, beta, alpha: w.pairs(
        lambda a, b, m: nls(beta * (w.rho[a] - w.rho[b]) - (alpha * math.log(m) if m > 0 else 0.0))
    ),
    "modpo": lambda x, beta, w: x.pairs(lambda a, b, m: nls((beta * (x.rho[a] - x.rho[b]) - m) / w)),
    "r_dpo": lambda w, beta, alpha: w.pairs(
        lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b]) + alpha * (w.n[a] - w.n[b]))
    ),
    "ln_dpo": lambda w, beta: w.pairs(lambda a, b, _: nls(beta * (w.rho[a] / w.n[a] - w.rho[b] / w.n[b]))),
    "ld_dpo": ld,
    "dpop": lambda w, beta, penalty: w.pairs(
        lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b] - penalty * above(-w.rho[a])))
    ),
    "rpo": lambda w, beta, eta: w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b])) - eta * w.mean(a)),
    "rpo_sum": lambda w, beta, eta: w.pairs(lambda a, b, _: nls(beta * (w.rho[a] - w.rho[b])) - eta * w.lp[a]),
    "discopop": lambda w, beta, tau: w.pairs(
        lambda a, b, _: (
            (1 - sigma(beta * (w.rho[a] - w.rho[b]) / tau)) * nls(beta * (w.rho[a] - w.rho[b]))
            + sigma(beta * (w.rho[a] - w.rho[b]) / tau) * (-beta * (w.rho[a] - w.rho[b])).exp()
        )
    ),
    "f_dpo": lambda w, beta, divergence, alpha: w.pairs(
        lambda a, b, _: nls(beta * (f_of(w.rho[a], divergence, alpha) - f_of(w.rho[b], divergence, alpha)))
    ),
    "wpo": wpo,
    "tdpo1": lambda w, beta: tdpo(w, beta, 1.0, lambda x: x),
    "tdpo2": lambda w, beta, alpha: tdpo(w, beta, alpha, constant),
    "epsilon_dpo": epsilon,
    "mdpo": mdpo,
    "ddpo": dense,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "dr_dpo": dr,
    "beta_dpo": beta_dpo,
    "group_dpo": group_dpo,
    "ipo": lambda w, beta: w.pairs(lambda a, b, _: sq(w.rho[a] - w.rho[b] - 1 / (2 * beta))),
    "ipo_mean": lambda w, beta: w.pairs(lambda a, b, _: sq(w.rho[a] / w.n[a] - w.rho[b] / w.n[b] - 1 / (2 * beta))),
    "exo_pair": lambda w, beta, label_smoothing: w.pairs(
        lambda a, b, _: sum(
            q * (q / e).log()
            for q, e in (
                (sigma(beta * (w.rho[a] - w.rho[b])), 1 - label_smoothing),
                (sigma(beta * (w.rho[b] - w.rho[a])), label_smoothing),
            )
        )
    ),
    "nca_pair": lambda w, beta: w.pairs(
        lambda a, b, _: nls(beta * w.rho[a]) + nls(-beta * w.rho[a]) / 2 + nls(-beta * w.rho[b]) / 2
    ),
    "sppo": sppo,
    "sppo_hard": lambda w, beta: w.pairs(lambda a, b, _: sq(w.rho[a] - 1 / (2 * beta)) + sq(w.rho[b] + 1 / (2 * beta))),
    "cal_dpo": lambda w, beta: w.pairs(
        lambda a, b, _: nls(w.rho[a] - w.rho[b]) + (sq(w.rho[a] - 1 / (2 * beta)) + sq(w.rho[b] + 1 / (2 * beta))) / 2
    ),
    "apo_zero": lambda w, beta: w.pairs(lambda a, b, _: 1 - sigma(beta * w.rho[a]) + sigma(beta * w.rho[b])),
    "apo_down": lambda w, beta: w.pairs(
        lambda a, b, _: sigma(beta * w.rho[a]) + 1 - sigma(beta * (w.rho[a] - w.rho[b]))
    ),
    "kto": kto,
    "bco": lambda w, beta, state: signed(w, lambda b, s: nls(s * (beta * w.rho[b] - state["shift"]))),
    "bco_pair": lambda w, beta, state: w.pairs(
        lambda a, b, _: nls(beta * w.rho[a] - state["shift"]) + nls(state["shift"] - beta * w.rho[b])
    ),
    "slic": lambda w, delta, lam: w.pairs(lambda a, b, _: above(delta - w.lp[a] + w.lp[b]) - lam * w.lp[a]),
    "unlikelihood": lambda w, alpha: w.pairs(
        lambda a, b, _: -w.lp[a] - alpha * sum((1 - t.exp()).log() for t in w.tokens[b])
    ),
    "orpo": lambda w, lam: w.pairs(
        lambda a, b, _: -w.mean(a) + lam * nls(log_odds(w.mean(a).exp()) - log_odds(w.mean(b).exp()))
    ),
    "simpo": lambda w, beta, gamma: w.pairs(lambda a, b, _: nls(beta * w.mean(a) - beta * w.mean(b) - gamma)),
    "cpo": lambda w, beta, alpha: w.pairs(lambda a, b, _: nls(beta * (w.lp[a] - w.lp[b])) - alpha * w.lp[a]),
    "alphapo": lambda w, beta, gamma, alpha: w.pairs(
        lambda a, b, _: nls(beta / alpha * (w.mean(b).exp() ** -alpha - w.mean(a).exp() ** -alpha) - gamma)
    ),
    "plackett_luce": lambda w, beta: plackett_luce(w, lambda b: beta * w.rho[b]),
    "exo": exo_k,
    "infonca": infonca,
    "nca": nca_k,
    "rao_kupper": ties_rao,
    "davidson": ties_davidson,
    "sft": sft_tokens,
    "bradley_terry": lambda w, centering: w.pairs(
        lambda a, b, _: nls(w.lp[a] - w.lp[b]) + centering * sq(w.lp[a] + w.lp[b])
    ),
    "bradley_terry_margin": lambda w, centering: w.pairs(
        lambda a, b, m: nls(w.lp[a] - w.lp[b] - m) + centering * sq(w.lp[a] + w.lp[b])
    ),
    "plackett_luce_reward": lambda w: plackett_luce(w, lambda b: w.lp[b]),
    "top1": top1,
    "maxent_irl": maxent_irl,
    "ranking_nce": ranking_nce,
    "airl": lambda w, beta: torch.stack(
        [nls((1 if w.given.desirable[b] == 1 else -1) * w.lp[b] / beta) for b in range(len(w.lp))]
    ),
    "demonstration_pairs": lambda w, beta: w.pairs(lambda a, b, _: nls((w.lp[a] - w.lp[b]) / beta)),
}

# Parameters away from the defaults, so that a default written into a formula would show.
PARAMETERS: dict[str, dict[str, Any]] = {
    "f_dpo": {"divergence": "alpha", "alpha": 0.25},
    "discopop": {"tau": 0.25},  # at 0.05 the inputs' last bits are amplified twentyfold
    "kto": {"statistic": torch.tensor(0.375, dtype=F64), "desirable_weight": 1.5},
    "bco": {"state": {"shift": 0.25}},
    "bco_pair": {"state": {"shift": 0.25}},
    "aot": {"label_smoothing": 0.125},
    "beta_dpo": {"state": {"mean": -4.0, "std": 1.5, "updates": 7.0}},  # beta stays away from 0
    "bradley_terry": {"centering": 0.0625},
    "exo": {"temperature": 2.0},
    "infonca": {"temperature": 2.0},
    "nca": {"temperature": 2.0},
}
EXACT_BETA = 0.125
DIVIDED = ("maxent_irl", "ranking_nce", "airl", "demonstration_pairs")  # by beta: a small one amplifies rounding


def parameters_of(name: str) -> dict[str, Any]:
    parameters = objectives.get(name).parameters | PARAMETERS.get(name, {})
    if "beta" in parameters and name not in ("sppo", "sppo_hard", "cal_dpo"):
        parameters["beta"] = 2.0 if name in DIVIDED else EXACT_BETA
    return parameters


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def in_float32(policy: Scored, reference: Scored, given: Pairs) -> tuple[Scored, Scored, Pairs]:
    single = lambda s: replace(  # noqa: E731
        s, token_logps=s.token_logps.float(), extras={k: v.float() for k, v in s.extras.items()}
    )
    real = {f: x.float() for f in Pairs.__slots__ if (x := getattr(given, f)).is_floating_point()}
    return single(policy), single(reference), replace(given, **real)


def errors(name: str, seed: int, groups: int) -> tuple[float, float]:
    """Relative errors of losses and gradient on one batch."""
    policy, reference, given = random_case(name, 1000 + seed, groups=groups)
    parameters = fill(name, policy, **parameters_of(name))
    exact = replace(policy, token_logps=policy.token_logps.clone().requires_grad_())
    expected = ORACLE[name](World(exact, reference, given), **parameters)
    (slope,) = torch.autograd.grad(expected.sum(), exact.token_logps)
    near, near_ref, near_given = in_float32(policy, reference, given)
    near = replace(near, token_logps=near.token_logps.requires_grad_())
    single = {k: v.float() if isinstance(v, Tensor) else v for k, v in parameters.items()}
    needed = near_ref if objectives.get(name).needs_reference else None
    loss, _ = objectives.get(name).fn(near, needed, near_given, **single)
    (gradient,) = torch.autograd.grad(loss.sum(), near.token_logps)
    return relative_error(loss, expected.detach()), relative_error(gradient, slope)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("batches", [250, pytest.param(10_000, marks=pytest.mark.slow)])
def test_loss_and_gradient_equal_the_oracle(name, batches):
    """Each prompt with its pairs is one batch, except for objectives that couple prompts: their batches have three.

    Objectives that couple get a tenth as many batches. The fast batches are the first of the slow ones.
    """
    couples = objectives.get(name).couples_batch
    cases, groups = (batches // 10, 3) if couples else (batches // 50, 50)
    worst = [max(each) for each in zip(*(errors(name, seed, groups) for seed in range(cases)), strict=True)]
    assert max(worst) <= 1e-6, worst


def test_the_oracle_knows_every_objective():
    assert set(ORACLE) == set(EVERY)


def test_the_oracle_would_see_a_slip():
    """A beta that is off by 0.1% fails the same comparison."""
    policy, reference, given = random_case("dpo", 1)
    losses, _ = objectives.dpo(policy, reference, given, beta=0.1001)
    assert relative_error(losses, ORACLE["dpo"](World(policy, reference, given), beta=0.1)) > 1e-6


def test_joining_is_what_the_oracle_sees_too():
    parts = [random_case("plackett_luce", seed) for seed in (1, 2)]
    joined = World(
        join_scored([p for p, _, _ in parts]),
        join_scored([r for _, r, _ in parts]),
        join_pairs([g for _, _, g in parts], [p.n_responses for p, _, _ in parts]),
    )
    apart = torch.cat([ORACLE["plackett_luce"](World(*part), beta=0.5) for part in parts])
    torch.testing.assert_close(ORACLE["plackett_luce"](joined, beta=0.5), apart)
