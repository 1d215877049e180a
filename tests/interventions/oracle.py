"""T-DRS in float64, plain loops over i and j, straight from the paper's formulas; shares no code with the package."""

import math
from typing import Any

import numpy as np


def clamp(w: float) -> float:
    return min(max(w, 1e-12), 1 - 1e-6)


def tdrs_head(
    q: np.ndarray,
    k: np.ndarray,
    q0: np.ndarray,
    k0: np.ndarray,
    visible: np.ndarray,
    a_min: np.ndarray | None,
    method: Any,
) -> np.ndarray:
    """Edited logits of one head, (Q, K), nan where a pair is not visible.

    q, k are rotated, q0, k0 the vectors of the cosine. `a_min`: |A|_min of the map, or of each row, as the software
    found it (its own test compares it with float64).
    """
    rows, keys, width = len(q), len(k), q.shape[1]
    past = keys - rows
    pairs = [(i, j) for i in range(rows) for j in range(keys) if visible[i, j]]
    distances = [abs(past + i - j) for i, j in pairs]
    result = np.full((rows, keys), np.nan)
    for i in range(rows):
        row = [j for j in range(keys) if visible[i, j]]
        if not row:
            continue
        if method.stats_scope == "call":
            d_max, smallest = max(distances), float(a_min.flat[0])
        else:
            d_max, smallest = max(abs(past + i - j) for j in row), float(a_min[i, 0])
        smallest = max(smallest, 1e-6)
        sem = {}
        for j in row:
            norm = math.sqrt(q0[i] @ q0[i]) * math.sqrt(k0[j] @ k0[j])
            sem[j] = ((q0[i] @ k0[j]) / norm + 1) / 2 if norm > 0 else 0.5
        mean, top = sum(sem.values()) / len(row), max(sem.values())
        for j in row:
            a = (q[i] @ k[j]) / math.sqrt(width)
            d = abs(past + i - j)
            scale = {
                "mean": sem[j] / max(mean, 1e-6),
                "max": sem[j] / max(top, 1e-6),
                "one_plus": 1 + sem[j],
                "none": 1.0,
            }[method.scale]
            scale = max(scale, 1e-6)
            gain = 0.0
            if method.dc is not None:
                w = clamp(method.dc.w_min * smallest)
                sigma0 = d_max / math.sqrt(-2 * math.log(w))
                r = math.exp(-0.5 * (d / scale / sigma0) ** 2) if d_max else 1.0
                gain += method.dc.weight * r
            if method.re is not None:
                w = clamp(method.re.w_min * smallest)
                sigma = d_max / math.sqrt(-2 * math.log(w))
                if d_max:
                    alpha = -math.log(w) / math.log(1 + d_max**2 / (2 * sigma**2))
                    r = (1 + d**2 / (2 * (sigma * scale) ** 2)) ** -alpha
                else:
                    r = 1.0
                gain += method.re.weight * r
            value = a
            if method.sd:
                value += sem[j] + (a if method.sd_form == "full" else 0.0)
            value += a * gain if method.gain == "logits" else math.log(1 + gain)
            result[i, j] = value
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Weights over the visible keys (not nan) of each row; a row without any is all 0."""
    weights = np.zeros_like(logits)
    for i, row in enumerate(logits):
        seen = ~np.isnan(row)
        if seen.any():
            e = np.exp(row[seen] - row[seen].max())
            weights[i, seen] = e / e.sum()
    return weights
