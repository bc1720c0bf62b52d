import numpy as np
import pytest
import torch

from afzal.lab import exact, language

PROMPT = np.array([[4, 1, 3], [0, 5, 5], [2, 2, 2]])


@pytest.fixture(scope="module")
def model():
    """A model whose weights are large enough for its policy to be far from uniform."""
    made = language.new_model(seed=1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return made


@pytest.fixture(scope="module")
def reference():
    """``[X, Y]`` log-probs of the demonstrations' own distribution."""
    return np.log(language.sft_policy(PROMPT))


@pytest.fixture(scope="module")
def rewards():
    return language.reward(PROMPT)


def random_policies(n, seed=0):
    rng = np.random.default_rng(seed)
    return [exact.normalise(rng.normal(size=(3, 1555)) * rng.uniform(0.1, 6)) for _ in range(n)]


def naive_log_prob(model, prompt, response):
    """One sequence, token by token; after four tokens the end is forced."""
    ids, total = [*prompt, language.SEP], 0.0
    for token in [*response, *([language.EOS] if len(response) < 4 else [])]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += logits.log_softmax(-1)[token].item()
        ids.append(token)
    return total


def test_log_policy_is_the_naive_score_of_each_sequence(model):
    log_pi = exact.log_policy(model, PROMPT)
    picks = [0, 1, 6, 7, 30, 42, 43, 100, 258, 259, 700, 1554]
    for x, k in [(0, k) for k in picks] + [(2, 5), (1, 1000)]:
        response = [int(t) for t in language.RESPONSES[k] if t >= 0]
        assert log_pi[x, k] == pytest.approx(naive_log_prob(model, PROMPT[x].tolist(), response), abs=1e-5)


def test_every_distribution_sums_to_one(model, reference, rewards):
    for policy in (
        exact.log_policy(model, PROMPT),
        exact.optimum(reference, rewards, 0.3),
        exact.best_of(reference, rewards, 7),
    ):
        assert np.abs(np.exp(policy).sum(1) - 1).max() < 1e-10


def test_scoring_leaves_the_model_in_its_mode(model):
    model.train()
    exact.log_policy(model, PROMPT[:1])
    assert model.training
    model.eval()


def test_a_model_that_leaves_the_language_is_refused(model, rewards):
    """If the separator is not barred it takes probability: the sum is below 1 and nothing is reported."""
    import copy

    free = copy.deepcopy(model)
    with torch.no_grad():
        free.lm_head.bias[language.SEP] = 0.0
    kept, lost = exact.log_policy(model, PROMPT), exact.log_policy(free, PROMPT)
    assert np.exp(lost).sum(1).max() < 0.99
    with pytest.raises(ValueError, match="leaves the language"):
        exact.evaluate(lost, kept, rewards)
    with pytest.raises(ValueError, match="leaves the language"):
        exact.evaluate(kept, lost, rewards)


def test_kl_is_positive_and_zero_only_against_itself(reference):
    assert exact.kl(reference, reference) == 0
    assert min(exact.kl(p, reference) for p in random_policies(20)) > 0.1


def test_entropy_of_the_uniform_policy():
    assert exact.entropy(np.full((2, 1555), -np.log(1555))) == pytest.approx(np.log(1555))


def test_win_rate_counts_ties_half(reference, rewards):
    assert exact.win_rate(reference, reference, rewards) == pytest.approx(0.5, abs=1e-12)
    (policy,) = random_policies(1)
    rate = exact.win_rate(policy, reference, rewards)
    better = (rewards[:, :, None] > rewards[:, None, :]) + 0.5 * (rewards[:, :, None] == rewards[:, None, :])
    brute = np.einsum("xi,xij,xj->x", np.exp(policy), better, np.exp(reference)).mean()
    assert rate == pytest.approx(brute, abs=1e-12)
    assert rate + exact.win_rate(reference, policy, rewards) == pytest.approx(1, abs=1e-12)


def test_optimum_reaches_the_dual_bound_and_nothing_beats_it(reference, rewards):
    """E[r] - beta KL <= beta E log Z for every policy, with equality at the optimum (no interpolation involved)."""
    for beta in (0.05, 0.5, 8.0):
        bound = beta * exact.log_partition(reference, rewards, beta).mean()
        best = exact.optimum(reference, rewards, beta)
        assert exact.expected(best, rewards) - beta * exact.kl(best, reference) == pytest.approx(bound, abs=1e-10)
        for policy in random_policies(10):
            assert exact.expected(policy, rewards) - beta * exact.kl(policy, reference) < bound


def test_frontier_dominates_every_policy(reference, rewards):
    edge = exact.frontier(reference, rewards)
    assert edge.reward[0] == pytest.approx(exact.expected(reference, rewards))
    assert edge.reward[-1] == pytest.approx(rewards.max(1).mean())
    assert (np.diff(edge.kl) > 0).all()
    assert (np.diff(edge.reward) > 0).all()
    slopes = np.diff(edge.reward) / np.diff(edge.kl)
    assert (np.diff(slopes) < 1e-9).all()  # concave
    policies = [*random_policies(20), *(exact.best_of(reference, rewards, n) for n in (2, 4, 16, 64))]
    for policy in policies:
        assert edge.regret(exact.kl(policy, reference), exact.expected(policy, rewards)) > 0


def test_interpolation_between_the_betas_is_close(reference, rewards):
    edge = exact.frontier(reference, rewards)
    for beta in np.geomspace(7.9, 0.051, 37):
        policy = exact.optimum(reference, rewards, beta)
        at, gain = exact.kl(policy, reference), exact.expected(policy, rewards)
        assert 0 <= edge.regret(at, gain) + 1e-3 <= 2e-3
        assert edge.share(at, gain) == pytest.approx(1, abs=2e-3)
    assert edge.at(1e9) == edge.reward[-1]


def test_best_of_one_is_the_reference(reference, rewards):
    assert np.allclose(exact.best_of(reference, rewards, 1), reference, atol=1e-9)


def test_best_of_n_is_what_sampling_gives(reference, rewards):
    """Expected reward of the best of five from 20,000 draws, within five standard errors."""
    rng = np.random.default_rng(0)
    draws = language.sample(np.exp(reference[:1]), np.zeros(100_000, dtype=int), rng).reshape(-1, 5)
    best = rewards[0][draws].max(1)
    mean = exact.expected(exact.best_of(reference, rewards, 5)[:1], rewards[:1])
    assert abs(mean - best.mean()) < 5 * best.std() / np.sqrt(len(best))


def test_best_of_n_stays_below_its_kl_bound(reference, rewards):
    """KL <= log n - (n - 1) / n, with near equality when the score has no ties (Beirami et al. 2024, 2401.01879)."""
    for n in (2, 4, 16):
        bound = np.log(n) - (n - 1) / n
        assert exact.kl(exact.best_of(reference, rewards, n), reference) < bound
    rng = np.random.default_rng(0)
    flat, untied = np.full((1, 1555), -np.log(1555)), rng.permutation(1555)[None]
    assert exact.kl(exact.best_of(flat, untied, 4), flat) == pytest.approx(np.log(4) - 0.75, abs=1e-3)


def test_evaluate_gathers_the_same_figures(model, rewards):
    log_pi = exact.log_policy(model, PROMPT)
    start = exact.evaluate(log_pi, log_pi, rewards)
    assert (start.kl, start.win_rate, start.share) == pytest.approx((0, 0.5, 1), abs=1e-9)
    assert start.reward == pytest.approx(exact.expected(log_pi, rewards))
    assert start.optimal == pytest.approx(start.reward, abs=1e-9)
    best = exact.evaluate(exact.optimum(log_pi, rewards, 0.7), log_pi, rewards)
    assert best.reward == pytest.approx(best.optimal, abs=1e-3)
    assert best.share == pytest.approx(1, abs=2e-3)
    half = exact.evaluate(exact.normalise(log_pi - rewards), log_pi, rewards)
    assert half.reward < start.reward
    assert half.share < 0
    assert half.win_rate < 0.5 < best.win_rate


def test_the_constrained_optimum_keeps_its_bound_and_nothing_better_does():
    log_ref = exact.normalise(np.log(language.sft_policy(language.prompts()[1])))
    rewards = language.reward(language.prompts()[1])
    costs = np.broadcast_to((language.RESPONSES == 5).any(1).astype(float), rewards.shape)
    beta = 0.3
    free = exact.optimum(log_ref, rewards, beta)
    bound = 0.25 * exact.expected(free, costs)
    best = exact.constrained_optimum(log_ref, rewards, costs, beta, bound)
    assert exact.expected(best.log_pi, costs) == pytest.approx(bound, abs=1e-9)

    def worth(log_pi: np.ndarray) -> float:
        return exact.expected(log_pi, rewards) - beta * exact.kl(log_pi, log_ref)

    stricter = exact.optimum(log_ref, rewards - 1.2 * best.multiplier * costs, beta)
    assert exact.expected(stricter, costs) < bound
    assert worth(stricter) < worth(best.log_pi) < worth(free)
    # it gains nothing from a mixture with a policy that keeps the bound by chance
    rescaled = exact.normalise(best.log_pi + 0.3 * np.random.default_rng(0).normal(size=rewards.shape))
    held = exact.constrained_optimum(log_ref, beta * (rescaled - log_ref), costs, beta, bound)
    assert worth(held.log_pi) < worth(best.log_pi)
    idle = exact.constrained_optimum(log_ref, rewards, costs, beta, 1.0)
    assert idle.multiplier == 0
    np.testing.assert_array_equal(idle.log_pi, free)
    with pytest.raises(ValueError, match="no policy"):
        exact.constrained_optimum(log_ref, rewards, costs, beta, -0.1)
