"""Inception score (Salimans et al. 2016): exp of the mean KL divergence of p(y|x) and p(y), from logits."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from grafting_core.evaluation.metrics.moments import Floats, finite_rows

SPLITS = 10
SHUFFLE_SEED = 2020
ADM_BLOCK = 5_000


def inception_score(
    logits_NK: npt.NDArray[np.floating], splits: int = SPLITS, shuffle_seed: int | None = SHUFFLE_SEED
) -> float:
    """Mean over `splits` equal parts, in float64, between 1 and the number of classes."""
    return float(np.mean(split_scores(logits_NK, splits, shuffle_seed)))


def split_scores(
    logits_NK: npt.NDArray[np.floating], splits: int = SPLITS, shuffle_seed: int | None = SHUFFLE_SEED
) -> list[float]:
    """Score of each of `splits` equal parts.

    Rows are shuffled first: samples sorted by class would score far too low.
    """
    rows = finite_rows(logits_NK)
    if len(rows) < splits:
        raise ValueError(f"an inception score of {splits} splits needs as many samples, not {len(rows)}")
    if shuffle_seed is not None:
        rows = rows[np.random.RandomState(shuffle_seed).permutation(len(rows))]
    edges = [part * len(rows) // splits for part in range(splits + 1)]
    parts = [rows[low:high] for low, high in pairwise(edges)]
    return [_score(part) for part in parts]


def _score(logits_NK: Floats) -> float:
    log_p = log_softmax(logits_NK)
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def log_softmax(logits_NK: Floats) -> Floats:
    """Log-probabilities; finite if the logits are."""
    shifted = logits_NK - logits_NK.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def adm_inception_score(logits_NK: npt.NDArray[np.floating]) -> float:
    """Score as in the guided-diffusion evaluator: blocks of 5,000 in file order, all of equal weight.

    Computed in float32: a probability that underflows to 0 makes the score NaN.
    """
    logits = finite_rows(logits_NK).astype(np.float32)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = [_adm_score(p[at : at + ADM_BLOCK]) for at in range(0, len(p), ADM_BLOCK)]
    return float(np.mean(scores))


def _adm_score(p_NK: npt.NDArray[np.float32]) -> float:
    divergence = p_NK * (np.log(p_NK) - np.log(p_NK.mean(axis=0, keepdims=True)))
    return float(np.exp(np.mean(divergence.sum(axis=1))))
