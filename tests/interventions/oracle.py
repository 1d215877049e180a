"""Every method in float64, plain loops over i and j, straight from the formulas; shares no code with the package."""

import math
from typing import Any

import numpy as np

SYSTEM, IMAGE, TEXT = 0, 1, 2


def clamp(w: float) -> float:
    return min(max(w, 1e-12), 1 - 1e-6)


def tdrs_head(
    q: np.ndarray,
    k: np.ndarray,
    q0: np.ndarray,
    k0: np.ndarray,
    visible: np.ndarray,
    a_min: np.ndarray,
    positions: np.ndarray,
    roles: np.ndarray,
    method: Any,
    cap: float | None = None,
) -> np.ndarray:
    """Edited logits of one head, (Q, K), nan where a pair is not visible.

    q, k are rotated, q0, k0 the vectors of the cosine; positions (K, axes), roles (K,). `a_min`: |A|_min of the map,
    (1,), or of each row, (Q,), as the software found it (its own test compares it with float64). `cap`: the bound of a
    model that caps its logits.
    """
    rows, keys, width = len(q), len(k), q.shape[1]
    past = keys - rows

    def distance(i: int, j: int) -> float:
        if method.distance == "index":
            return abs(past + i - j)
        return max(abs(float(a) - float(b)) for a, b in zip(positions[past + i], positions[j], strict=True))

    d_map = max((distance(i, j) for i in range(rows) for j in range(keys) if visible[i, j]), default=0.0)
    result = np.full((rows, keys), np.nan)
    for i in range(rows):
        row = [j for j in range(keys) if visible[i, j]]
        if not row:
            continue
        if method.stats_scope == "call":
            d_max, smallest = d_map, float(a_min[0])
        else:
            d_max, smallest = max(distance(i, j) for j in row), float(a_min[i])
        if method.a_min_of == "logits":
            smallest = max(smallest, 1e-6)
        sem = {}
        for j in row:
            norm = math.sqrt(q0[i] @ q0[i]) * math.sqrt(k0[j] @ k0[j])
            sem[j] = ((q0[i] @ k0[j]) / norm + 1) / 2 if norm > 0 else 0.5
        mean, top = sum(sem.values()) / len(row), max(sem.values())
        for j in row:
            a = (q[i] @ k[j]) / math.sqrt(width)
            a = a if cap is None else cap * math.tanh(a / cap)
            result[i, j] = a
            here, there = roles[past + i] == IMAGE, roles[j] == IMAGE
            if method.pairs == "text_to_image" and not (there and not here):
                continue
            if method.pairs == "cross_modal" and here == there:
                continue
            d = distance(i, j)
            scale = {
                "mean": sem[j] / max(mean, 1e-6),
                "max": sem[j] / max(top, 1e-6),
                "one_plus": 1 + sem[j],
                "none": 1.0,
            }[method.scale]
            scale = max(scale, 1e-6)
            gain = 0.0
            if method.dc is not None:
                w = clamp(method.dc.w_min * (smallest if method.dc.w_min_as == "multiple" else 1))
                sigma0 = d_max / math.sqrt(-2 * math.log(w))
                r = math.exp(-0.5 * (d / scale / sigma0) ** 2) if d_max else 1.0
                gain += method.dc.weight * r
            if method.re is not None:
                w = clamp(method.re.w_min * (smallest if method.re.w_min_as == "multiple" else 1))
                share = 1 / math.sqrt(-2 * math.log(w)) if method.sigma_re == "tied" else method.sigma_re
                if d_max:
                    sigma = share * d_max
                    alpha = -math.log(w) / math.log1p(d_max**2 / (2 * sigma**2))
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


def peer(name: str, method: Any, a: np.ndarray, visible: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Edited logits of one sample by another method, (H, Q, K), from its logits `a`; hidden pairs are not edited."""
    heads, rows, keys = a.shape
    past = keys - rows
    last = max((i for i in range(rows) if visible[i].any()), default=0)
    result = a.copy()
    for i in range(rows):
        for j in range(keys):
            if not visible[i, j]:
                continue
            for h in range(heads):
                if name == "temperature":
                    result[h, i, j] = a[h, i, j] / method.tau
                elif name == "pai" and i == last and roles[j] == IMAGE:
                    result[h, i, j] += method.alpha * abs(a[h, i, j])
                elif name == "scaling_vis" and i == last and roles[j] == IMAGE:
                    result[h, i, j] *= method.weight
                elif name == "middle_layers" and i == last and roles[j] == IMAGE:
                    result[h, i, j] += method.alpha * sum(abs(a[g, i, j]) for g in range(heads)) / heads
                elif name == "vaf" and roles[past + i] == TEXT and roles[j] != TEXT:
                    result[h, i, j] *= method.image if roles[j] == IMAGE else method.system
                elif name == "key_bias" and roles[j] == {"system": SYSTEM, "image": IMAGE, "text": TEXT}[method.keys]:
                    result[h, i, j] += math.log(method.weight)
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Weights over the visible keys (not nan) of each row; 0 in a row without visible keys."""
    weights = np.zeros_like(logits)
    for i, row in enumerate(logits):
        seen = ~np.isnan(row)
        if seen.any():
            e = np.exp(row[seen] - row[seen].max())
            weights[i, seen] = e / e.sum()
    return weights


def reweighed(
    name: str,
    method: Any,
    weights: np.ndarray,
    a: np.ndarray,
    visible: np.ndarray,
    roles: np.ndarray,
    states: np.ndarray | None,
) -> np.ndarray:
    """Edited weights of one sample, (H, Q, K), from its weights and the logits `a` that they come from.

    states: the hidden states that enter the layer, (K, width); None for methods that do not need them.
    """
    heads, rows, keys = a.shape
    last = max((i for i in range(rows) if visible[i].any()), default=0)
    result = np.zeros_like(weights) if name == "heads_off" else weights.copy()
    sinks = set()
    for j in range(keys if name == "var" else 0):
        assert states is not None
        dimensions = range(states.shape[1]) if method.dimensions == "all" else method.dimensions
        rms = math.sqrt(float(states[j] @ states[j]) / states.shape[1])
        if max(abs(states[j, d]) for d in dimensions) / rms > method.tau:
            sinks.add(j)
    for i in range(rows):
        image = [j for j in range(keys) if visible[i, j] and roles[j] == IMAGE]
        text_row = roles[keys - rows + i] == TEXT
        if name == "spin" and image and (i == last if method.rows == "last" else text_row and visible[i].any()):
            sums = [sum(a[h, i, j] for j in image) for h in range(heads)]
            ranked = sorted(range(heads), key=lambda h: -sums[h])
            for h in ranked[math.floor(method.routed_heads * heads) :]:
                result[h, i] *= method.small_num_mask
        text = [j for j in range(keys) if visible[i, j] and roles[j] == TEXT]
        for h in range(heads):
            if name == "ad_hh" and i == last and image and sum(weights[h, i, j] for j in text) >= method.threshold:
                result[h, i, text] = 0
            if name == "var" and roles[keys - rows + i] == TEXT and sinks & set(image):
                mass = sum(weights[h, i, j] for j in image)
                of_sinks = sum(weights[h, i, j] for j in image if j in sinks)
                if mass >= method.summ and of_sinks / mass <= method.rho:
                    freed = (1 - method.p) * sum(weights[h, i, j] for j in sinks)
                    for j in sinks:
                        result[h, i, j] *= method.p
                    for j in set(image) - sinks:
                        result[h, i, j] += freed * weights[h, i, j] / (mass - of_sinks)
    return result
