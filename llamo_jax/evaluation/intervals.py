"""How much scores depend on which rows there are: bootstrap intervals by percentiles (Efron, 1979), seeded.

Scores are functions of weights, float64[resamples, rows]: how often each row is in each resample.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
SEED = 0
_NUMBERS_AT_A_TIME = 2**23  # of weights: 64 MB

Statistic = Callable[[np.ndarray], np.ndarray]
"""From weights to one value for each resample; NaN where it is not defined."""


def intervals(
    rows: int, scores: Mapping[str, Statistic], groups: Sequence[Hashable] | None = None
) -> dict[str, list[float] | None]:
    """[low, high] of every score; None where there are fewer than two rows, or no resample has the score.

    groups: of each row, such as the molecule that several rows ask about; they are drawn as a whole. The same rows in
    the same order give the same intervals.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(range(rows) if groups is None else groups))}
    if len(numbers) < 2:
        return dict.fromkeys(scores)
    members = np.array([numbers[group] for group in (numbers if groups is None else groups)])
    found: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    for drawn in _weights(len(numbers)):
        weights = drawn[:, members]
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, statistic in scores.items():
                found[name].append(statistic(weights))
    tail = (1 - CONFIDENCE) / 2
    result: dict[str, list[float] | None] = {}
    for name, parts in found.items():
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        result[name] = np.quantile(values, [tail, 1 - tail]).tolist() if len(values) else None
    return result


def _weights(rows: int) -> list[np.ndarray] | map:
    rng = np.random.default_rng(SEED)
    at_a_time = max(1, _NUMBERS_AT_A_TIME // rows)
    counts = [min(at_a_time, RESAMPLES - start) for start in range(0, RESAMPLES, at_a_time)]
    return map(lambda count: rng.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(float), counts)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    """The sum of what rows give over the sum of what they could give."""
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    return lambda weights: (weights @ numerators) / (weights @ denominators)


def mean(values: np.ndarray) -> Statistic:
    """Of a value of every row."""
    return ratio(values, np.ones(len(values)))


def bleu(counts: np.ndarray, order: int) -> Statistic:
    """BLEU of n-grams of 1 … order, uniformly, without smoothing, from `text.bleu_counts`."""
    counts = np.asarray(counts, float)

    def statistic(weights: np.ndarray) -> np.ndarray:
        sums = weights @ counts
        matched, there = sums[:, : 2 * order : 2], sums[:, 1 : 2 * order : 2]
        length, reference = sums[:, -2], sums[:, -1]
        brevity = np.exp(np.minimum(0.0, 1 - reference / length))
        return np.where((matched > 0).all(1), brevity * np.exp(np.log(matched / there).mean(1)), 0.0)

    return statistic


def root_mean_square(errors: np.ndarray, counted: np.ndarray) -> Statistic:
    """Of the errors of the rows that count."""
    inner = ratio(np.square(errors) * counted, counted)
    return lambda weights: np.sqrt(inner(weights))


def r_squared(errors: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> Statistic:
    """The share of the truth's variance that is explained, over the rows that count."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        count, total, squares, left = (
            weights @ (column * counted) for column in (np.ones(len(truth)), truth, truth**2, errors**2)
        )
        spread = squares - total**2 / count
        return np.where(spread > 1e-12 * squares, 1 - left / spread, np.nan)

    return statistic


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """The chance that a positive row scores higher than a negative one; ties count half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(scores)[order], prepend=np.nan) != 0)  # of equal scores
    positive = np.asarray(positive, float)[order]

    def statistic(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        yes = np.add.reduceat(weights * positive, starts, axis=1)
        no = np.add.reduceat(weights * (1 - positive), starts, axis=1)
        below = np.cumsum(no, axis=1) - no
        return (yes * (below + no / 2)).sum(1) / (yes.sum(1) * no.sum(1))

    return statistic
