"""The theory of Ra-DPO (arXiv 2505.20359) on token trees small enough to enumerate.

Notation. rho is the lower tail of a reward X, Phi the upper tail of a loss L, both at the same level:
rho(X) = -Phi(-X). States s, tokens z, reference pi_ref, and the nested recursion of Definition 3.2,

    Q(s, z) = R(s, z) + V([s, z]),   V(s) = rho over z ~ pi_ref of Q(s, z),   V(end) = 0,   A = Q - V.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from torch import Tensor

from pipeline.risk.head import Head, HiddenReference
from pipeline.risk.law import Law
from pipeline.risk.losses import pair_form, preference_loss
from pipeline.risk.measures import Measure
from pipeline.risk.pair_head import PairScores, pair_loss

sys.path.insert(0, str(Path(__file__).parent))
from trees import (
    END,
    PlainRisk,
    TensorRisk,
    Tree,
    Values,
    evaluate,
    lower_tail,
    plain_values,
    random_policy,
    random_tree,
)

HOMOGENEOUS = [
    Measure("mean"),
    Measure("cvar", 0.1),
    Measure("cvar", 0.5),
    Measure("cvar", 0.9),
    Measure("worst_case"),
    Measure("mean_cvar", 0.2, 0.3),
    Measure("evar", 0.1),
    Measure("evar", 0.6),
    Measure("wang", 0.5),
    Measure("wang", 1.5),
    Measure("proportional_hazard", 0.3),
    Measure("proportional_hazard", 0.7),
]
ENTROPIC = [Measure("erm", 0.5), Measure("erm", 3.0)]
ALL = HOMOGENEOUS + ENTROPIC
BETAS = [0.2, 1.0, 2.5]

every_measure = pytest.mark.parametrize("measure", ALL, ids=lambda m: m.label)
every_homogeneous = pytest.mark.parametrize("measure", HOMOGENEOUS, ids=lambda m: m.label)
every_entropic = pytest.mark.parametrize("measure", ENTROPIC, ids=lambda m: m.label)
seeds = given(seed=st.integers(0, 10**6))
quick = settings(max_examples=8, deadline=None, derandomize=True)

close = partial(torch.allclose, rtol=1e-8, atol=1e-8)


def lower(measure: Measure) -> TensorRisk:
    """rho of the package: minus the upper tail of minus the reward."""
    return lambda rewards, log_p: -measure.of(Law(-rewards, log_p)).value


def definition(measure: Measure) -> PlainRisk:
    """rho written out in plain Python."""
    return partial(lower_tail, measure.name, measure.level, measure.weight)


def optimal_policy(tree: Tree, values: Values, beta: float) -> Tensor:
    """log pi* ``[N, V]``, pi*(z|s) proportional to pi_ref(z|s) exp(Q(s, z) / beta)."""
    return (tree.log_ref + values.q / beta).log_softmax(-1)


def of_the_ratio(measure: Measure, beta: float) -> Measure:
    """The measure of L = log pi_ref / pi* that belongs to ``measure`` of the reward.

    L is -Q / beta plus a constant, so a positively homogeneous measure keeps its level. The entropic one has
    Phi^(beta mu)(-Q / beta) = Phi^mu(-Q) / beta: its level becomes beta * mu.
    """
    return replace(measure, level=beta * measure.level) if measure.name == "erm" else measure


def advantage_from_policy(tree: Tree, log_star: Tensor, beta: float, measure: Measure) -> Tensor:
    """beta * (log pi*/pi_ref + D_s) ``[N, V]`` with D_s = Phi(log pi_ref/pi*) under ``measure``."""
    risk = measure(tree.log_ref, log_star).value
    return beta * ((log_star - tree.log_ref).masked_fill(~tree.available, 0.0) + risk.unsqueeze(-1))


def largest_gap(tree: Tree, one: Tensor, two: Tensor) -> float:
    return (one - two)[tree.available].abs().max().item()


def random_laws(seed: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    """log pi_ref and log pi ``[rows, V]``, peaked or flat, near or far apart; half with a masked entry."""
    rng = np.random.default_rng(seed)
    vocab = int(rng.integers(3, 40))
    ref = torch.from_numpy(rng.normal(size=(rows, vocab)) * rng.uniform(0, 5))
    pi = ref + torch.from_numpy(rng.normal(size=(rows, vocab)) * 10 ** rng.uniform(-3, 0.6))
    if rng.random() < 0.5:
        ref[:, int(rng.integers(vocab))] = -torch.inf
    return ref.log_softmax(-1), pi.log_softmax(-1)


# ---- The measures: what the theorems assume of them.


@every_measure
@quick
@seeds
def test_what_the_theorems_assume_of_a_measure(measure: Measure, seed: int) -> None:
    """Phi(L + c) = Phi(L) + c (cash additivity), L <= M gives Phi(L) <= Phi(M), Phi is convex, and
    Phi(k L) = k Phi(L) for k > 0 (positive homogeneity); for the entropic measure Phi^mu(k L) = k Phi^(k mu)(L)."""
    log_p, other = random_laws(seed)
    generator = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(log_p.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def phi(values: Tensor, m: Measure = measure) -> Tensor:
        return m.of(Law(values, log_p)).value

    assert close(phi(one + 1.7), phi(one) + 1.7)
    assert (phi(one + other.exp()) >= phi(one) - 1e-9).all()
    assert (phi(0.3 * one + 0.7 * two) <= 0.3 * phi(one) + 0.7 * phi(two) + 1e-8).all()
    assert close(phi(2.5 * one), 2.5 * phi(one, of_the_ratio(measure, 2.5)))


@every_measure
@quick
@seeds
def test_gradient_is_policy_minus_distorted_reference(measure: Measure, seed: int) -> None:
    """d Phi(log pi_ref - log pi) / d logits = pi - q, q a probability vector (away from kinks).

    The derivative is a central difference of the definition, so that value and q answer to the same outsider.
    """
    rng = np.random.default_rng(seed)
    while True:  # no ties, and no tail that begins between two atoms
        ref, logits = torch.from_numpy(rng.normal(size=(2, 1, int(rng.integers(2, 7))))).unbind(0)
        log_ref = ref.log_softmax(-1)
        ratio, order = (log_ref - logits.log_softmax(-1))[0].sort(descending=True)
        mass = log_ref[0].exp()[order].cumsum(0)
        if ratio.diff().abs().min() > 1e-2 and (mass[:-1] - measure.level).abs().min() > 1e-3:
            break

    def phi(moved: Tensor) -> float:
        loss = (log_ref - moved.log_softmax(-1))[0].tolist()
        return -definition(measure)([-x for x in loss], log_ref[0].exp().tolist())

    value, q = measure(log_ref, logits.log_softmax(-1))
    assert value.item() == pytest.approx(phi(logits), abs=1e-9)
    assert (q >= 0).all()
    assert q.sum().item() == pytest.approx(1.0, abs=1e-9)
    steps = 1e-5 * torch.eye(logits.shape[-1], dtype=torch.float64)
    slope = torch.tensor([(phi(logits + step) - phi(logits - step)) / 2e-5 for step in steps], dtype=torch.float64)
    assert torch.allclose((logits.softmax(-1) - q)[0], slope, atol=1e-7)


@quick
@given(seed=st.integers(0, 10**6), mu=st.floats(0.01, 8.0))
def test_entropic_risk_is_a_renyi_divergence(seed: int, mu: float) -> None:
    """ERM at mu is the Renyi divergence of order a = 1 + mu of pi_ref from pi, log(sum p^a q^(1 - a)) / (a - 1)."""
    log_ref, log_pi = random_laws(seed)
    order = 1 + mu
    renyi = np.logaddexp.reduce(order * log_ref.numpy() + (1 - order) * log_pi.numpy(), axis=-1) / (order - 1)
    assert np.allclose(Measure("erm", mu)(log_ref, log_pi).value.numpy(), renyi, rtol=1e-7, atol=1e-9)


CHAINS = {
    "cvar": [Measure("cvar", level) for level in (1.0, 0.97, 0.5, 0.1, 0.01)],
    "erm": [Measure("erm", level) for level in (1e-7, 0.1, 1.0, 5.0, 50.0)],
    "evar": [Measure("evar", level) for level in (1.0, 0.97, 0.5, 0.1, 0.01)],
    "wang": [Measure("wang", level) for level in (0.0, 0.1, 0.5, 2.0)],
    "proportional_hazard": [Measure("proportional_hazard", level) for level in (1.0, 0.9, 0.5, 0.1)],
    "mean_cvar by level": [Measure("mean_cvar", level, 0.4) for level in (1.0, 0.9, 0.3, 0.02)],
    "mean_cvar by weight": [Measure("mean_cvar", 0.3, weight) for weight in (0.0, 0.2, 0.8, 1.0)],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@quick
@seeds
def test_every_measure_grows_from_kl_with_aversion(chain: list[Measure], seed: int) -> None:
    """0 <= KL(pi_ref || pi) = Phi at the neutral level <= ... <= Phi at more averse levels <= the worst case."""
    log_ref, log_pi = random_laws(seed)
    kl = torch.where(log_ref > -torch.inf, log_ref.exp() * (log_ref - log_pi), 0.0).sum(-1)
    values = [measure(log_ref, log_pi).value for measure in chain]
    assert (kl >= -1e-12).all()
    assert torch.allclose(values[0], kl, rtol=1e-5, atol=1e-9)
    for one, two in pairwise([*values, Measure("worst_case")(log_ref, log_pi).value]):
        assert (one <= two + 1e-9 * (1 + two.abs())).all()
    # The order must come from the level: where the distributions differ, so do the ends of the chain.
    assert (values[-1] > values[0])[kl > 1e-6].all()


@pytest.mark.parametrize("level", [0.9, 0.4, 0.05])
@quick
@seeds
def test_entropic_value_at_risk_bounds_the_tail_mean(level: float, seed: int) -> None:
    """CVaR <= EVaR at the same tail mass, and EVaR is no more than any of the entropic risks it is the infimum of:
    EVaR_level <= ERM_t - log(level) / t for every t."""
    log_ref, log_pi = random_laws(seed)
    evar = Measure("evar", level)(log_ref, log_pi).value
    assert (Measure("cvar", level)(log_ref, log_pi).value <= evar + 1e-9 * (1 + evar)).all()
    for t in (0.1, 1.0, 10.0):
        assert (evar <= Measure("erm", t)(log_ref, log_pi).value - math.log(level) / t + 1e-9).all()


@every_measure
@settings(max_examples=16, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_grouping_rare_tokens_gives_a_lower_bound(measure: Measure, seed: int, share: float) -> None:
    """One symbol for all tokens outside the reference's top k: Phi can only fall.

    The symbol's L is log(sum pi_ref / sum pi) = -log E[exp(-L) | rest] <= E[L | rest] (Jensen), and a law-invariant
    convex measure does not rise when values are replaced by their conditional mean. Nothing is lost where L is
    constant on the rest.
    """
    log_ref, log_pi = random_laws(seed)
    k = 1 + int(share * (log_ref.shape[-1] - 2))
    ids = log_ref.argsort(-1, descending=True)

    def grouped(log_prob: Tensor) -> Tensor:
        ranked = log_prob.gather(-1, ids)
        return torch.cat([ranked[:, :k], ranked[:, k:].logsumexp(-1, keepdim=True)], -1)

    full = measure(log_ref, log_pi).value
    assert (measure(grouped(log_ref), grouped(log_pi)).value <= full + 1e-9 * (1 + full.abs())).all()

    rest = torch.zeros_like(log_ref, dtype=torch.bool).scatter_(-1, ids[:, k:], True)
    constant = torch.where(rest, log_ref + 0.8, log_pi).log_softmax(-1)
    assert close(measure(grouped(log_ref), grouped(constant)).value, measure(log_ref, constant).value)


@every_measure
def test_grouping_can_lose_everything(measure: Measure) -> None:
    """pi_ref = (1/2, 1/4, 1/4), pi = (1/2, 9/20, 1/20): grouped after the first token L is 0 everywhere and so is
    Phi, while KL alone is (log(5/9) + log 5) / 4 = 0.255."""
    log_ref, log_pi = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.25, 0.25], [0.5, 0.45, 0.05]))
    grouped = [torch.stack([x[:, 0], x[:, 1:].logsumexp(-1)], -1) for x in (log_ref, log_pi)]
    assert measure(*grouped).value.item() == pytest.approx(0.0, abs=1e-9)
    assert measure(log_ref, log_pi).value.item() > 0.255


# ---- The nested recursion.


@every_measure
@quick
@seeds
def test_nested_values_follow_the_definition(measure: Measure, seed: int) -> None:
    """Definition 3.2: V(s) = rho over z ~ pi of R(s, z) + V([s, z]), at every state, for reference and policy."""
    tree = random_tree(seed)
    for log_p in (tree.log_ref, random_policy(tree, seed)):
        ours = evaluate(tree, log_p, lower(measure)).v
        theirs = torch.tensor(plain_values(tree, log_p, definition(measure)), dtype=torch.float64)
        assert close(ours, theirs)


@every_measure
@quick
@seeds
def test_advantages_telescope_along_a_response(measure: Measure, seed: int) -> None:
    """rho of A(s, .) is 0 at every state (cash additivity), and the advantages of a response sum to its total
    reward less V(root): the value of what remains cancels between neighbouring tokens."""
    tree = random_tree(seed)
    values = evaluate(tree, tree.log_ref, lower(measure))
    assert lower(measure)(values.advantage, tree.log_ref).abs().max() < 1e-8
    assert close(tree.total(values.advantage), tree.total(tree.reward) - values.v[0])


@pytest.mark.parametrize("measure", [Measure("mean"), Measure("worst_case"), *ENTROPIC], ids=lambda m: m.label)
@quick
@seeds
def test_time_consistent_measures_nest_to_themselves(measure: Measure, seed: int) -> None:
    """For the mean, the worst case and the entropic measure (and only for them, Kupper & Schachermayer 2009) the
    nested value is the measure of the total reward."""
    tree = random_tree(seed)
    nested = evaluate(tree, tree.log_ref, lower(measure)).v[0]
    assert close(nested, static_value(tree, tree.log_ref, measure))


def static_value(tree: Tree, log_p: Tensor, measure: Measure) -> Tensor:
    """rho of the total reward of a whole response (scalar)."""
    totals, log_probs = tree.total(tree.reward), tree.total(log_p)
    return lower(measure)(totals.unsqueeze(0), log_probs.unsqueeze(0))[0]


# ---- The optimal policy and the identity that the losses rest on.


@every_measure
@quick
@given(seed=st.integers(0, 10**6), beta=st.sampled_from(BETAS))
def test_closed_form_policy_is_optimal(measure: Measure, beta: float, seed: int) -> None:
    """Lemma 3.4: pi* maximises J(pi) = E over pi of A(s, .) - beta KL(pi || pi_ref) at every state.

    Any other policy falls short by exactly beta KL(pi || pi*), and the maximum is beta log E_ref exp(A / beta).
    """
    tree = random_tree(seed)
    values = evaluate(tree, tree.log_ref, lower(measure))
    advantage, log_star = values.advantage, optimal_policy(tree, values, beta)
    best = objective(tree, advantage, log_star, beta)
    assert close(best, beta * (tree.log_ref + advantage / beta).logsumexp(-1))
    for spread in (0.01, 1.0, 3.0):
        for log_pi in (random_policy(tree, seed, spread), perturbed(tree, log_star, seed, spread)):
            shortfall = best - objective(tree, advantage, log_pi, beta)
            assert (shortfall >= -1e-12).all()
            assert close(shortfall, beta * divergence(tree, log_pi, log_star))


@pytest.mark.parametrize("measure", [Measure("cvar", 0.5), Measure("erm", 3.0)], ids=lambda m: m.label)
def test_an_optimiser_finds_the_closed_form_policy(measure: Measure) -> None:
    """Lemma 3.4 again, by numerical maximisation from a uniform start that knows nothing of the closed form."""
    beta, tree = 0.7, random_tree(11)
    values = evaluate(tree, tree.log_ref, lower(measure))
    expected = optimal_policy(tree, values, beta).exp()
    for state in range(len(tree.depth)):
        tokens = tree.available[state]
        ref, gain = tree.log_ref[state][tokens].numpy(), values.advantage[state][tokens].numpy()

        def loss(logits: np.ndarray, ref: np.ndarray = ref, gain: np.ndarray = gain) -> float:
            log_pi = logits - np.logaddexp.reduce(logits)
            return -float(np.exp(log_pi) @ (gain - beta * (log_pi - ref)))

        found = minimize(loss, np.zeros(len(ref)), method="BFGS", options={"gtol": 1e-8}).x
        assert np.allclose(np.exp(found - np.logaddexp.reduce(found)), expected[state][tokens].numpy(), atol=1e-5)


def objective(tree: Tree, advantage: Tensor, log_pi: Tensor, beta: float) -> Tensor:
    """J ``[N]``: expected advantage less beta times the divergence from the reference."""
    return (log_pi.exp() * advantage).sum(-1) - beta * divergence(tree, log_pi, tree.log_ref)


def divergence(tree: Tree, log_one: Tensor, log_two: Tensor) -> Tensor:
    """KL(one || two) ``[N]``."""
    return (log_one.exp() * (log_one - log_two).masked_fill(~tree.available, 0.0)).sum(-1)


def perturbed(tree: Tree, log_p: Tensor, seed: int, spread: float) -> Tensor:
    """``log_p`` with other logits, ``spread`` nats away."""
    return random_policy(replace(tree, log_ref=log_p), seed, spread)


@every_measure
@quick
@given(seed=st.integers(0, 10**6), beta=st.sampled_from(BETAS))
def test_advantage_is_written_in_the_optimal_policy(measure: Measure, beta: float, seed: int) -> None:
    """A(s, z) = beta * (log pi*(z|s) / pi_ref(z|s) + D_s), D_s = Phi of log pi_ref/pi* at that state.

    From log pi*/pi_ref = Q / beta - log Z and Phi(log Z - Q / beta) = log Z - V / beta. The last step is positive
    homogeneity: the level stays; for the entropic measure it becomes beta * mu.
    """
    tree = random_tree(seed)
    values = evaluate(tree, tree.log_ref, lower(measure))
    log_star = optimal_policy(tree, values, beta)
    from_policy = advantage_from_policy(tree, log_star, beta, of_the_ratio(measure, beta))
    assert largest_gap(tree, values.advantage, from_policy) < 1e-8


@every_entropic
@pytest.mark.parametrize("seed", range(5))
def test_entropic_level_is_beta_times_mu(measure: Measure, seed: int) -> None:
    """With level mu instead of beta * mu the identity of the entropic measure is wrong unless beta = 1."""
    tree = random_tree(seed)
    values = evaluate(tree, tree.log_ref, lower(measure))
    for beta in BETAS:
        from_policy = advantage_from_policy(tree, optimal_policy(tree, values, beta), beta, measure)
        gap = largest_gap(tree, values.advantage, from_policy)
        assert gap < 1e-8 if beta == 1.0 else gap > 0.05


@pytest.mark.parametrize("name", ["vocab_quantile", "vocab_quantile_halves"])
@pytest.mark.parametrize("seed", range(5))
def test_the_published_rule_is_outside_the_theory(name: str, seed: int) -> None:
    """The published code's rule is not cash additive, so the identity does not hold for it."""
    measure, tree = Measure(name, 0.5), random_tree(seed)
    values = evaluate(tree, tree.log_ref, lower(measure))
    from_policy = advantage_from_policy(tree, optimal_policy(tree, values, 1.0), 1.0, measure)
    assert largest_gap(tree, values.advantage, from_policy) > 0.05


# ---- From the identity to the loss.


def pair_losses(tree: Tree, log_pi: Tensor, measure: Measure, method: str, *, beta: float, alpha: float) -> Tensor:
    """Loss of every pair of responses i < j with i chosen, ``[num_pairs]``, from enumerated sequence sums."""
    risk = measure(tree.log_ref, log_pi).value.unsqueeze(-1).expand(log_pi.shape)
    logps, ref_logps, risks = (tree.total(x) for x in (log_pi, tree.log_ref, risk))
    i, j = torch.tensor(list(combinations(range(len(logps)), 2))).T
    columns = (logps[i], logps[j], ref_logps[i], ref_logps[j], risks[i], risks[j])
    return preference_loss(pair_form(method, beta, alpha), *columns).loss


def bradley_terry(tree: Tree) -> Tensor:
    """P(i preferred to j) = sigmoid(total reward of i - total reward of j) for i < j, ``[num_pairs]``."""
    totals = tree.total(tree.reward)
    i, j = torch.tensor(list(combinations(range(len(totals)), 2))).T
    return (totals[i] - totals[j]).sigmoid()


@every_measure
@quick
@given(seed=st.integers(0, 10**6), beta=st.sampled_from(BETAS))
def test_loss_at_the_optimum_is_the_bradley_terry_likelihood(measure: Measure, beta: float, seed: int) -> None:
    """Theorem 3.6: sigmoid(u* - delta*) is the Bradley-Terry probability of the total rewards.

    Summing A = beta * (log pi*/pi_ref + D) along a response: G(y) - V(root) = beta * (log-ratio(y) + D(y)), D(y) the
    sequential risk ratio. V(root) cancels within a pair of the same prompt, so G(yw) - G(yl) =
    beta * (log-ratio(yw) - log-ratio(yl)) - beta * (D(yl) - D(yw)) = u* - delta*. ra_dpo1 is -log of that
    probability, and so is the value of ra_dpo2 with alpha 1.
    """
    tree = random_tree(seed)
    log_star = optimal_policy(tree, evaluate(tree, tree.log_ref, lower(measure)), beta)
    expected = -bradley_terry(tree).log()
    losses = partial(pair_losses, tree, log_star, of_the_ratio(measure, beta), beta=beta)
    assert close(losses("ra_dpo1", alpha=0.5), expected)
    assert close(losses("ra_dpo2", alpha=1.0), expected)


@every_measure
def test_what_is_not_the_bradley_terry_likelihood(measure: Measure) -> None:
    """At pi* neither DPO, which leaves out delta, nor ra_dpo2 with alpha below 1 gives the preference
    probabilities; nor does, for the entropic measure, level mu."""
    beta, tree = 0.2, random_tree(3)
    log_star = optimal_policy(tree, evaluate(tree, tree.log_ref, lower(measure)), beta)
    expected = -bradley_terry(tree).log()
    matching = of_the_ratio(measure, beta)
    wrong = [("dpo", matching, 1.0), ("ra_dpo2", matching, 0.5)]
    if matching != measure:
        wrong.append(("ra_dpo1", measure, 1.0))
    for method, used, alpha in wrong:
        losses = pair_losses(tree, log_star, used, method, beta=beta, alpha=alpha)
        assert (losses - expected).abs().max() > 0.05


def fused_loss(tree: Tree, logits: Tensor, measure: Measure, method: str, beta: float) -> PairScores:
    """Every ordered pair of responses, weighted by its Bradley-Terry probability, through the package's fused head.

    The head is the identity, so that "hidden states" are the logits ``[N, V]`` of each state; every state needs all
    tokens.
    """
    paths = tree.responses()
    longest = max(len(path) for path in paths)
    padded = torch.tensor([path + [(0, 0)] * (longest - len(path)) for path in paths])
    chosen, rejected = torch.tensor(list(permutations(range(len(paths)), 2))).T
    states, labels = padded[torch.cat([chosen, rejected])].unbind(-1)
    lengths = torch.tensor([len(path) for path in paths])[torch.cat([chosen, rejected])]
    mask = torch.arange(longest) < lengths.unsqueeze(-1)
    totals = tree.total(tree.reward)
    head = Head(torch.eye(logits.shape[-1], dtype=torch.float64))
    return pair_loss(
        logits[states],
        head,
        HiddenReference(tree.log_ref[states[mask]], head),
        labels,
        mask,
        measure,
        pair_form(method, beta, 1.0),
        (totals[chosen] - totals[rejected]).sigmoid() / len(chosen),
        block_bytes=20_000,
    )


def loss_and_gradient(tree: Tree, logits: Tensor, measure: Measure, method: str, beta: float) -> tuple[float, Tensor]:
    """Expected loss over Bradley-Terry preferences, and its gradient ``[N, V]``."""
    leaf = logits.detach().requires_grad_()
    loss = fused_loss(tree, leaf, measure, method, beta).loss
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


@every_measure
def test_optimal_policy_is_stationary_for_the_fused_loss(measure: Measure) -> None:
    """The expected ra_dpo1 loss over Bradley-Terry preferences is at pi* their entropy, and its gradient is zero:
    each pair's cross-entropy is least where sigmoid(u - delta) is the preference probability. DPO's is not zero."""
    beta, tree = 0.5, random_tree(0, same_width=True)
    log_star = optimal_policy(tree, evaluate(tree, tree.log_ref, lower(measure)), beta)
    used = of_the_ratio(measure, beta)
    loss, gradient = loss_and_gradient(tree, log_star, used, "ra_dpo1", beta)
    p = bradley_terry(tree)
    assert loss == pytest.approx(-(p.xlogy(p) + (1 - p).xlogy(1 - p)).mean().item() / 2, abs=1e-8)
    assert gradient.abs().max() < 1e-9
    assert loss_and_gradient(tree, log_star, used, "dpo", beta)[1].abs().max() > 1e-4


TRAINED = [
    Measure("mean"),
    Measure("cvar", 0.1),
    Measure("mean_cvar", 0.2, 0.3),
    Measure("evar", 0.6),
    Measure("proportional_hazard", 0.3),
    Measure("erm", 3.0),
]


@pytest.mark.parametrize("measure", TRAINED, ids=lambda m: m.label)
def test_training_finds_the_optimal_policy(measure: Measure) -> None:
    """From the reference, minimising the expected ra_dpo1 loss leads to pi* of the nested measure.

    Nothing else has the Bradley-Terry probabilities of Theorem 3.6: the log-ratios at the last state of a response
    follow from the pairs that part there, with them its D, then the log-ratios at the state before, and so on.
    """
    beta, tree = 0.5, random_tree(0, same_width=True)
    log_star = optimal_policy(tree, evaluate(tree, tree.log_ref, lower(measure)), beta)
    assert (log_star.exp() - tree.log_ref.exp()).abs().max() > 0.5, "there must be a way to go"
    trained = train(tree, of_the_ratio(measure, beta), "ra_dpo1", beta)
    assert torch.allclose(trained.exp(), log_star.exp(), atol=1e-5)


def test_training_with_dpo_finds_another_policy() -> None:
    """DPO leads to pi(y) proportional to pi_ref(y) exp(G(y) / beta) over whole responses (arXiv 2305.18290, eq. 4),
    which knows no risk along the way."""
    beta, tree = 0.5, random_tree(0, same_width=True)
    trained = train(tree, Measure("mean"), "dpo", beta)
    expected = (tree.total(tree.log_ref) + tree.total(tree.reward) / beta).softmax(-1)
    assert torch.allclose(tree.total(trained).exp(), expected, atol=1e-5)
    averse = optimal_policy(tree, evaluate(tree, tree.log_ref, lower(Measure("cvar", 0.1))), beta)
    assert (trained.exp() - averse.exp()).abs().max() > 0.05


def train(tree: Tree, measure: Measure, method: str, beta: float) -> Tensor:
    """log pi ``[N, V]`` that minimises the expected loss, from pi_ref."""

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        logits = torch.from_numpy(flat).view_as(tree.log_ref)
        value, gradient = loss_and_gradient(tree, logits, measure, method, beta)
        return value, gradient.flatten().numpy()

    start = tree.log_ref.flatten().numpy()
    options = {"ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return torch.from_numpy(found).view_as(tree.log_ref).log_softmax(-1)


# ---- Policy improvement.


@every_measure
@quick
@seeds
def test_policy_improvement(measure: Measure, seed: int) -> None:
    """Lemma 3.3, with the condition it needs: if rho over z ~ pi' of A_pi(s, z) = c(s) >= 0 at every state, then
    V_pi' >= V_pi + c at every state.

    pi' takes a random candidate's choice where the condition allows it, and pi's elsewhere (where c = 0).
    """
    tree = random_tree(seed)
    log_pi, candidate = random_policy(tree, seed), random_policy(tree, seed + 1, spread=2.0)
    before = evaluate(tree, log_pi, lower(measure))
    gain = lower(measure)(before.advantage, candidate)
    log_new = torch.where((gain >= 0).unsqueeze(-1), candidate, log_pi)
    after = evaluate(tree, log_new, lower(measure))
    assert (after.v >= before.v + gain.clamp_min(0.0) - 1e-8).all()

    # Changed at the root alone, the value changes by exactly c(root), up or down.
    at_root = (tree.depth == 0).unsqueeze(-1)
    moved = evaluate(tree, torch.where(at_root, candidate, log_pi), lower(measure)).v - before.v
    assert close(moved[0], gain[0])


@every_measure
@quick
@seeds
def test_optimal_policy_improves_on_the_reference(measure: Measure, seed: int) -> None:
    """pi* shifts mass toward larger Q, hence dominates pi_ref to first order at every state: the condition of
    Lemma 3.3 holds, the nested value rises at every state, and again when pi* takes the place of the reference."""
    tree = random_tree(seed)
    log_p = tree.log_ref
    values = evaluate(tree, log_p, lower(measure))
    for _ in range(3):
        log_new = (log_p + values.q / 0.5).log_softmax(-1)
        assert (lower(measure)(values.advantage, log_new) >= -1e-8).all()
        after = evaluate(tree, log_new, lower(measure))
        assert (after.v >= values.v - 1e-8).all()
        log_p, values = log_new, after


def test_expected_advantage_is_not_enough() -> None:
    """The paper's condition E over pi' of A >= 0 does not do: a sure 1 against 0 or 2.5 at one half each.

    Under CVaR at 0.5, V = 1 and A = (0, -1, 1.5); the gamble has E[A] = 0.25, but rho(A) = -1 and a value of 0.
    """
    tree = Tree(
        reward=torch.tensor([[1.0, 0.0, 2.5]], dtype=torch.float64),
        log_ref=torch.full((1, 3), 1 / 3, dtype=torch.float64).log(),
        child=torch.full((1, 3), END),
        depth=torch.tensor([0]),
    )
    sure, gamble = (torch.tensor([p], dtype=torch.float64).log() for p in ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]))
    risk = lower(Measure("cvar", 0.5))
    values = evaluate(tree, sure, risk)
    assert values.v.item() == 1.0
    assert (gamble.exp() * values.advantage).sum().item() == 0.25
    assert risk(values.advantage, gamble).item() == pytest.approx(-1.0, abs=1e-12)
    assert evaluate(tree, gamble, risk).v.item() == pytest.approx(0.0, abs=1e-12)


# ---- The numerical example of the paper's supplement.

EXAMPLE = Tree(
    reward=torch.tensor([[0.1, 0.2, 0.0], [0.2, 0.3, 0.6], [0.2, 0.4, 0.5]], dtype=torch.float64),
    log_ref=torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3, [1 / 3] * 3], dtype=torch.float64).log(),
    child=torch.tensor([[1, 2, END], [END] * 3, [END] * 3]),
    depth=torch.tensor([0, 1, 1]),
)
POLICY_A = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64).log()
POLICY_B = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.0, 0.9], [0.9, 0.1, 0.0]], dtype=torch.float64).log()


def nested_example(measure: Measure) -> tuple[float, float]:
    """V(root) of policies A and B."""
    value_a, value_b = (evaluate(EXAMPLE, log_p, lower(measure)).v[0].item() for log_p in (POLICY_A, POLICY_B))
    return value_a, value_b


@pytest.mark.parametrize(
    ("level", "value_a", "value_b"),
    [
        (1.0, 0.540000, 0.540000),
        (0.9, 0.522222, 0.513580),
        (0.8, 0.500000, 0.493750),
        (0.7, 0.471429, 0.469388),
        (0.6, 0.433333, 0.438889),
        (0.5, 0.380000, 0.400000),
    ],
)
def test_nested_cvar_of_the_example(level: float, value_a: float, value_b: float) -> None:
    """The supplement's two-step tree, e.g. at 0.5: A's nodes are worth 0.1 + 0.28 and 0.2 + 0.48, B's 0.1 + 0.52 and
    0.2 + 0.2, and the root keeps the worse one: 0.38 and 0.40. At 1 both are the mean."""
    assert nested_example(Measure("cvar", level)) == pytest.approx((value_a, value_b), abs=5e-7)


@every_measure
def test_static_measures_cannot_tell_the_example_apart(measure: Measure) -> None:
    """Total rewards are 0.3 (0.05), 0.4 (0.45), 0.6 (0.05), 0.7 (0.45) under both policies, so every law-invariant
    measure of the total ties. Nested ones do not, but for those that nest to themselves."""
    static = [static_value(EXAMPLE, log_p, measure).item() for log_p in (POLICY_A, POLICY_B)]
    assert static[0] == pytest.approx(static[1], abs=1e-9)
    value_a, value_b = nested_example(measure)
    if measure.name in ("mean", "worst_case", "erm"):
        assert value_a == pytest.approx(value_b, abs=1e-9)
    elif measure.name in ("cvar", "evar") and measure.level == 0.1:  # the mass of either policy's worst leaf
        assert (value_a, value_b) == pytest.approx((0.3, 0.3), abs=1e-9)
    else:
        assert abs(value_a - value_b) > 5e-5


def test_where_the_order_of_the_example_flips() -> None:
    """For levels in [0.5, 0.9], A is worth 0.7 - 0.16/mu and B 0.7 - 0.19/mu + 0.02/mu^2: equal at mu = 2/3.

    A is better above, up to 1; B below, down to 0.1, from where both are worth their worst leaf's 0.3.
    """

    def lead(level: float) -> float:
        value_a, value_b = nested_example(Measure("cvar", level))
        return value_a - value_b

    for level in (0.5, 0.55, 0.7, 0.85, 0.9):
        expected = (0.7 - 0.16 / level, 0.7 - 0.19 / level + 0.02 / level**2)
        assert nested_example(Measure("cvar", level)) == pytest.approx(expected, abs=1e-9)
    assert brentq(lead, 0.5, 0.9) == pytest.approx(2 / 3, abs=1e-7)
    assert all(lead(level) > 1e-4 for level in (0.68, 0.8, 0.95, 0.99))
    assert all(lead(level) < -1e-4 for level in (0.11, 0.3, 0.5, 0.65))
    assert all(abs(lead(level)) < 1e-9 for level in (0.02, 0.1, 1.0))
