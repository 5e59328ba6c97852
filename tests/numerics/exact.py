"""Risk measures in float64 NumPy, written from their definitions: what the pipeline's own are held against.

Nothing here knows the pipeline. Every function takes many positions at once and sorts without regard to cost.
A measure of ``L`` under ``p`` comes back as its value, its q (the gradient with respect to the policy's logits is
(sum q) * pi - q) and the entries of q that are sure: those that rounding L by ``noise`` and sharing among ties of
relative width `TIE` leave as they are. Elsewhere the gradient has a kink, and only a certificate can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri_exp

TIE = 1e-5
_MASS_NOISE = 2e-5
"""How far, relatively, rounding in float32 moves a cumulated probability of logits that differ by up to 100."""


class Law(NamedTuple):
    """L and log p, ``[N, V]``; where p is 0 (log p = -inf) L is 0 too."""

    ratio: np.ndarray
    log_p: np.ndarray

    @property
    def p(self) -> np.ndarray:
        return np.exp(self.log_p)

    @property
    def support(self) -> np.ndarray:
        return self.log_p > -np.inf


class Exact(NamedTuple):
    value: np.ndarray
    """``[N]``."""
    q: np.ndarray
    """``[N, V]``."""
    sure: np.ndarray
    """``[N, V]`` bool: no kink near this entry."""
    value_sure: np.ndarray
    """``[N]`` bool: the value itself is continuous here; false only for the published code's rule."""
    tie: np.ndarray
    """``[N]``: how far sharing among ties may move <q, L> from the value, nats."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def law_between(ref_logits: np.ndarray, pi_logits: np.ndarray) -> Law:
    log_p = log_softmax(ref_logits)
    with np.errstate(invalid="ignore"):
        ratio = log_p - log_softmax(pi_logits)
    return Law(np.where(log_p == -np.inf, 0.0, ratio), log_p)


def measure(
    name: str, level: float, weight: float, law: Law, noise: np.ndarray, allowed: np.ndarray | float = 1e-12
) -> Exact:
    """The measure ``name`` of the law; ``noise [N, 1]`` is how far L may have been rounded, nats, and ``allowed``
    (``[N, 1]``) how far q may be off."""
    if name == "mean":
        return _smooth((law.p * law.ratio).sum(-1), law.p)
    if name == "erm":
        return entropic(law, level)
    if name == "worst_case":
        return worst_case(law, noise)
    if name == "cvar":
        return cvar(law, level, noise)
    if name == "mean_cvar":
        tail = cvar(law, level, noise)
        value = (1 - weight) * (law.p * law.ratio).sum(-1) + weight * tail.value
        return tail._replace(value=value, q=(1 - weight) * law.p + weight * tail.q)
    if name == "evar":
        return evar(law, level, noise, allowed)
    if name == "wang":
        return distorted(law, lambda log_u: ndtr(ndtri_exp(log_u) + level), noise)
    if name == "proportional_hazard":
        return distorted(law, lambda log_u: np.exp(level * log_u), noise)
    return vocab_quantile(law, level, 2 if name == "vocab_quantile_halves" else 1, noise)


def _smooth(value: np.ndarray, q: np.ndarray) -> Exact:
    return Exact(value, q, np.ones(q.shape, bool), np.ones(value.shape, bool), np.zeros(value.shape))


def entropic(law: Law, level: float) -> Exact:
    """(1/level) log sum p exp(level L), about the mean so that a small level costs no digits."""
    mean = (law.p * law.ratio).sum(-1, keepdims=True)
    scaled = level * (law.ratio - mean)
    small = np.abs(scaled).max(-1) < 1
    near = np.log1p((law.p * np.expm1(np.clip(scaled, -1, 1))).sum(-1))
    far = logsumexp(law.log_p + scaled, axis=-1)
    q = np.exp(log_softmax(law.log_p + scaled))
    return _smooth(mean[:, 0] + np.where(small, near, far) / level, q)


def worst_case(law: Law, noise: np.ndarray) -> Exact:
    """The largest L that has any mass."""
    top = np.where(law.support, law.ratio, -np.inf).max(-1, keepdims=True)
    away = np.where(law.support, top - law.ratio, np.inf)
    tie = TIE * (1 + np.abs(top))
    log_q = np.where(away <= tie, law.log_p, -np.inf)
    near = ~((away == 0) | (away <= 0.5 * tie - noise) | (away >= 2 * tie + noise))
    sure = ~(near.any(-1, keepdims=True) & (away < 2 * tie + noise))
    return Exact(top[:, 0], np.exp(log_softmax(log_q)), sure, _yes(top), tie[:, 0])


def descending(law: Law) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of L from the top with massless entries last, and L and log p in that order."""
    order = np.argsort(-np.where(law.support, law.ratio, -np.inf), axis=-1, kind="stable")
    return order, np.take_along_axis(law.ratio, order, -1), np.take_along_axis(law.log_p, order, -1)


def cvar(law: Law, level: float, noise: np.ndarray) -> Exact:
    """Mean of the upper ``level`` of the mass; entries tied with the VaR share what those above leave of it."""
    if level == 1.0:
        return _smooth((law.p * law.ratio).sum(-1), law.p)
    _, ratio, log_p = descending(law)
    p = np.exp(log_p)
    mass = p.cumsum(-1)
    taken = np.clip(level - (mass - p), 0.0, p)
    value = (taken * ratio).sum(-1) / taken.sum(-1)
    num_support = law.support.sum(-1, keepdims=True)
    first, at, last = (
        np.minimum((mass < level * factor).sum(-1, keepdims=True), num_support - 1)
        for factor in (1 - _MASS_NOISE, 1.0, 1 + _MASS_NOISE)
    )
    var = np.take_along_axis(ratio, at, -1)
    tie = TIE * (1 + np.abs(var))
    away = law.ratio - var
    above = ((away > tie) * law.p).sum(-1, keepdims=True)
    pool = (np.abs(away) <= tie) & law.support
    share = (level - above) / (pool * law.p).sum(-1, keepdims=True)
    q = np.where(away > tie, law.p, np.where(pool, share * law.p, 0.0)) / level
    # Which entry is the VaR depends on rounding where the mass meets the level at the end of an atom.
    reach = 2 * tie + noise
    highest, lowest = (np.take_along_axis(ratio, index, -1) for index in (first, last))
    in_band = (law.ratio < highest + reach) & (law.ratio > lowest - reach) & law.support
    surely_tied = (np.abs(away) <= 0.4 * tie - noise) | (in_band.sum(-1, keepdims=True) == 1)
    clear = (first == last) & (~in_band | surely_tied).all(-1, keepdims=True)
    return Exact(value, q, ~in_band | clear, _yes(value), 2 * tie[:, 0])  # ties lie on both sides of the VaR


def distorted(law: Law, distortion: Callable[[np.ndarray], np.ndarray], noise: np.ndarray) -> Exact:
    """sum over entries, worst first, of L * (g(S) - g(S - p)); ``distortion`` is g of the logarithm of a mass."""
    order, ratio, log_p = descending(law)
    weight = np.diff(reached(log_p, distortion), axis=-1, prepend=0.0)
    # Equal values share; entries closer than ties and rounding reach, but not equal, are in doubt.
    gap = clear_gaps(law, noise)
    same = np.concatenate([np.diff(ratio, axis=-1) == 0, np.zeros_like(gap[:, :1])], -1) & (noise == 0)
    first = np.zeros_like(gap[:, :1])
    group = np.cumsum(np.concatenate([first, ~same[:, :-1]], -1), -1)
    group += np.arange(len(group))[:, None] * group.shape[-1]

    def total(column: np.ndarray) -> np.ndarray:
        return np.bincount(group.ravel(), column.ravel(), minlength=group.size)[group]

    most = np.full(group.size, -np.inf)
    np.maximum.at(most, group.ravel(), log_p.ravel())
    has_mass = log_p > -np.inf
    relative = np.exp(np.where(has_mass, log_p - np.where(has_mass, most[group], 0.0), -np.inf))
    shared = np.where(has_mass, total(weight) * relative / np.maximum(total(relative), 1.0), 0.0)
    starts_clear = np.concatenate([~first, (gap | same)[:, :-1]], -1)
    in_doubt = total(~starts_clear) + total(~gap & ~same) > 0
    q, sure = np.empty_like(weight), np.empty(weight.shape, bool)
    np.put_along_axis(q, order, shared, -1)
    np.put_along_axis(sure, order, ~in_doubt, -1)
    value = (weight * ratio).sum(-1)
    return Exact(value, q, sure, _yes(ratio), TIE * (weight * (1 + np.abs(ratio))).sum(-1))


def reached(log_p: np.ndarray, distortion: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """g of the masses cumulated from the left, exactly 1 at the end."""
    log_mass = np.logaddexp.accumulate(log_p, axis=-1)
    return distortion(np.minimum(log_mass - log_mass[:, -1:], 0.0))


def clear_gaps(law: Law, noise: np.ndarray) -> np.ndarray:
    """``[N, V]`` bool: in descending order, is the next entry further below than ties and rounding reach?"""
    _, ratio, log_p = descending(law)
    fall = -np.diff(ratio, axis=-1)
    wide = (fall > 3 * TIE * (1 + np.abs(ratio[:, :-1])) + noise) | (log_p[:, 1:] == -np.inf)
    return np.concatenate([wide, np.ones_like(wide[:, :1])], -1)


def evar(law: Law, level: float, noise: np.ndarray, allowed: np.ndarray | float) -> Exact:
    """inf over t > 0 of (log sum p exp(t L) - log level) / t, where KL(q_t || p) meets -log level, by bisection."""
    if level == 1.0:
        return _smooth((law.p * law.ratio).sum(-1), law.p)
    top = np.where(law.support, law.ratio, -np.inf).max(-1, keepdims=True)
    below = np.where(law.support, law.ratio - top, 0.0)
    log_top = logsumexp(np.where(below == 0, law.log_p, -np.inf), axis=-1, keepdims=True)
    bound = -np.log(level)
    low, high = np.full(top.shape, -60.0), np.full(top.shape, 80.0)  # of log t
    for _ in range(64):
        t = np.exp(0.5 * (low + high))
        short = _divergence(law.log_p, below, t)[0] < bound
        low, high = np.where(short, 0.5 * (low + high), low), np.where(short, high, 0.5 * (low + high))
    t = np.exp(0.5 * (low + high))
    _, log_partition, q = _divergence(law.log_p, below, t)
    at_top = log_top >= np.log(level)
    value = np.where(at_top, top, top + (log_partition + bound) / t)[:, 0]
    # Where nearly all of what the level asks for is at the top, or rounding moves L as far as its spread, q jumps.
    tie = TIE * (1 + np.abs(top))
    log_near = logsumexp(np.where(-below <= 2 * tie + noise, law.log_p, -np.inf), axis=-1, keepdims=True)
    mean = (q * below).sum(-1, keepdims=True)
    deviation = t * np.sqrt((q * (below - mean) ** 2).sum(-1, keepdims=True))
    sure = (log_near < np.log(level) - 1e-3) & (deviation > 1e-3) & (t * noise < 4 * allowed)
    return Exact(value, q, np.broadcast_to(sure, q.shape), _yes(value), tie[:, 0])


def _divergence(log_p: np.ndarray, below: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL(q_t || p) and log sum p exp(t * below), ``[N, 1]``, and q_t ``[N, V]``."""
    tilted = log_p + t * below
    shift = tilted.max(-1, keepdims=True)
    q = np.exp(tilted - shift)
    total = q.sum(-1, keepdims=True)
    q, log_partition = q / total, shift + np.log(total)
    return t * (q * below).sum(-1, keepdims=True) - log_partition, log_partition, q


def vocab_quantile(law: Law, level: float, parts: int, noise: np.ndarray) -> Exact:
    """Per part of the vocabulary axis: p * L summed over the entries above the unweighted quantile at 1 - level."""
    q = np.zeros_like(law.ratio)
    sure = np.ones(len(q), bool)
    middle = q.shape[-1] // 2
    for part in [slice(None)] if parts == 1 else [slice(None, middle), slice(middle, None)]:
        for row in range(len(q)):
            counted = law.support[row, part]
            ratio = law.ratio[row, part]
            if not counted.any():
                continue
            edge = np.quantile(ratio[counted], 1 - level)
            q[row, part] = np.where(counted & (ratio > edge), law.p[row, part], 0.0)
            ordered = np.sort(ratio[counted])
            place = (1 - level) * (len(ordered) - 1)
            lower = ordered[int(place)]
            # The rule jumps where an entry crosses the order statistic at or below the quantile.
            crossing = (np.abs(ordered - lower) <= noise[row]).sum() > 1 and noise[row] > 0
            sure[row] &= not crossing and (place == round(place) or abs(place - round(place)) > 1e-9)
    return Exact((q * law.ratio).sum(-1), q, np.broadcast_to(sure[:, None], q.shape), sure, np.zeros(len(q)))


def _yes(rows: np.ndarray) -> np.ndarray:
    return np.ones(len(rows), bool)
