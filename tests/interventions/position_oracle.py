"""The methods that take logits from other positions, in float64, plain loops; shares no code with the package."""

import math
from typing import Any

import numpy as np

from tests.interventions.oracle import IMAGE, softmax

POSITION_METHODS = ("self_extend", "position_interpolation", "ntk", "ms_poe", "cca")


def product(q: np.ndarray, k: np.ndarray, at: np.ndarray, to: np.ndarray, turns: np.ndarray) -> float:
    """q·k/√D after each pair (n, n + D/2) is turned by its angle at a position, as complex numbers."""
    half = len(q) // 2
    turned = (q[:half] + 1j * q[half:]) * np.exp(1j * ((at - to) @ turns))
    return float((turned * (k[:half] - 1j * k[half:])).real.sum()) / math.sqrt(len(q))


def concentric(positions: np.ndarray, roles: np.ndarray, form: str, side: int | None) -> np.ndarray:
    """CCA's positions of one sample, (K, axes)."""
    result = positions.astype(float)
    start = 0
    while start < len(roles):
        if roles[start] != IMAGE:
            start += 1
            continue
        stop = start
        while stop < len(roles) and roles[stop] == IMAGE:
            stop += 1
        run = positions[start:stop]
        offset = float(result[start].min())
        tiles = [run] if run.shape[1] > 1 else np.split(run, len(run) // (side or math.isqrt(len(run))) ** 2)
        at = start
        for tile in tiles:
            if run.shape[1] > 1:
                cells = [(int(p[1] - run[:, 1].min()), int(p[2] - run[:, 2].min())) for p in tile]
            else:
                width = math.isqrt(len(tile))
                cells = [divmod(n, width) for n in range(len(tile))]
            rows, columns = max(r for r, _ in cells), max(c for _, c in cells)
            new = []
            for r, c in cells:
                near, across = min(r, rows - r), min(c, columns - c)
                new.append(min(near, across) if form == "rings" else near + across)
            for n, value in enumerate(new):
                result[at + n] = offset + value
            offset, at = offset + max(new) + 1, at + len(tile)
        result[stop:] = positions[stop:] + offset - (float(run.max()) + 1)
        start = stop
    return result


def ratios(
    method: Any, q0: np.ndarray, k0: np.ndarray, visible: np.ndarray, positions: np.ndarray, turns: np.ndarray
) -> list[float]:
    """Ms-PoE's ratio of each head."""
    heads, rows, _ = q0.shape
    steps = heads if method.ranking == "code" else heads - 1
    numbers = list(range(heads))
    if method.ranking != "none":
        last = max(i for i in range(rows) if visible[i].any())
        shares = []
        for h in range(heads):
            k = k0[h // (heads // len(k0))]
            here = positions[0]
            logits = [product(q0[h, last], k[j], here, here, turns) for j in range(len(k))]
            weights = softmax(np.where(visible[last], logits, np.nan)[None])[0]
            seen = int(visible[last].sum())
            shares.append(sum(weight > method.threshold / seen for weight in weights) / seen)
        order = sorted(range(heads), key=lambda h: -shares[h])
        numbers = order if method.ranking == "code" else [order.index(h) for h in range(heads)]
    return [method.r_min + (method.r_max - method.r_min) * n / steps for n in numbers]


def position_peer(
    name: str,
    method: Any,
    a: np.ndarray,
    q0: np.ndarray,
    k0: np.ndarray,
    visible: np.ndarray,
    positions: np.ndarray,
    roles: np.ndarray,
    turns: np.ndarray,
) -> np.ndarray:
    """Edited logits of one sample, (H, Q, K); hidden pairs are not edited.

    a: the stock logits; q0 (H, Q, D), k0 (Hₖ, K, D): vectors before rotation; positions (K, axes); turns (axes, D/2).
    """
    heads, rows, width = q0.shape
    past = a.shape[2] - rows
    result = a.copy()
    if name == "ntk":
        turns = np.array([[f * method.alpha ** (-2 * n / (width - 2)) for n, f in enumerate(axis)] for axis in turns])
    divided = ratios(method, q0, k0, visible, positions, turns) if name == "ms_poe" else [1.0] * heads
    if name == "position_interpolation":
        divided = [method.factor] * heads
    moved = concentric(positions, roles, method.form, method.side) if name == "cca" else positions.astype(float)
    for h, i, j in np.ndindex(heads, rows, a.shape[2]):
        if not visible[i, j]:
            continue
        at, to = moved[past + i] / divided[h], moved[j] / divided[h]
        if name == "self_extend":
            if max(abs(at - to)) < method.window:
                continue
            share = method.window / method.group
            at = at // method.group + method.window - (math.floor(share) if method.shift == "floor" else share)
            to = to // method.group
        result[h, i, j] = product(q0[h, i], k0[h // (heads // len(k0)), j], at, to, turns)
    return result
