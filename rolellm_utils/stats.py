"""Intervals and the verdict whether a difference is more than noise."""

import numpy as np


def clustered(values, clusters):
    """(sums, sizes) of the values by cluster, clusters in sorted order: the units that a bootstrap draws."""
    names = sorted(set(clusters))
    index = np.array([names.index(cluster) for cluster in clusters])
    return np.bincount(index, weights=values, minlength=len(names)), np.bincount(index, minlength=len(names))


def interval(values, clusters, generator, draws=2000):
    """(mean, low, high): the mean of the values with its 95 % bootstrap interval over clusters.

    values: floats (n,); clusters: n names of what varies together (the question: all roles answer the same one).
    A paired difference is the interval of the differences. One cluster or none gives an interval of nan.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    sums, sizes = clustered(values, clusters)
    mean = float(values.mean())
    if len(sums) < 2:
        return mean, float("nan"), float("nan")
    drawn = generator.integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return mean, float(low), float(high)


def verdict(name, difference, low, high, against="untuned student"):
    """One plain sentence: is the tuned student's difference to the one it is set against more than noise?"""
    name = f"{name} against {against}"
    if not np.isfinite(low):
        return f"{name}: {difference:+.3f}, too few questions for an interval, so nothing can be said."
    span = f"{difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"{name}: {span}: the tuned student is better by more than noise."
    if high < 0:
        return f"{name}: {span}: the tuned student is worse by more than noise."
    return f"{name}: {span}: the interval includes 0, so this is no more than noise."
