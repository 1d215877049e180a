"""Random attention calls, and how far an execution of a method lies from the float64 oracle on one."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tdrs import TDRS
from tdrs.attention.block import IMAGE, SYSTEM, TEXT
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, fastest, reference
from tdrs.attention.method import Method
from tdrs.attention.rope import Frequencies
from tdrs.attention.tally import Tally
from tdrs.interventions import METHODS
from tests.interventions.oracle import peer, reweighed, softmax, tdrs_head
from tests.interventions.position_oracle import POSITION_METHODS, position_peer

HEADS, GROUPS, WIDTH = 4, 2, 16
SECTIONS = (0, 0, 1, 1, 1, 2, 2, 2)  # the axis of each pair of coordinates, as M-RoPE divides them


def rotation(positions: torch.Tensor, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin as a Llama computes them, (B, L, width)."""
    frequencies = 1.0 / (10_000 ** (torch.arange(0, width, 2) / width))
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(−x₂, x₁) for the two halves of the last axis, as in transformers."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


@dataclass
class Sample:
    """A call, the vectors before rotation, V, (B, Q, K), and the positions of the rotation, (B, K)."""

    call: Call
    q0: torch.Tensor
    k0: torch.Tensor
    visible: np.ndarray
    ids: torch.Tensor

    @property
    def one_axis(self) -> "Sample":
        """The same with the positions of the rotation as the model's own."""
        assert self.call.frequencies is not None
        frequencies = Frequencies(self.call.frequencies.turns.sum(dim=0, keepdim=True), 1.0)
        return replace(self, call=replace(self.call, positions=self.ids.unsqueeze(-1), frequencies=frequencies))


def make(length: int, past: int = 0, padding: str | None = None, batch: int = 2, seed: int = 0) -> Sample:
    """Random vectors, positions of three axes, roles (system, image, text). Padding shortens sample 0 by a third."""
    generator = torch.Generator().manual_seed(seed * 10_000 + length * 7 + past)
    keys = past + length
    q0 = torch.randn(batch, HEADS, length, WIDTH, generator=generator)
    k0 = torch.randn(batch, GROUPS, keys, WIDTH, generator=generator)
    value = torch.randn(batch, GROUPS, keys, WIDTH, generator=generator)
    real = torch.ones(batch, keys, dtype=torch.bool)
    missing = length // 3 if padding else 0
    if missing:
        real[0, slice(0, missing) if padding == "left" else slice(keys - missing, keys)] = False
    ids = (real.long().cumsum(-1) - 1).clamp_min(0)
    cos, sin = rotation(ids)
    q = q0 * cos[:, None, past:] + rotate_half(q0) * sin[:, None, past:]
    k = k0 * cos[:, None] + rotate_half(k0) * sin[:, None]
    causal = torch.ones(length, keys, dtype=torch.bool).tril(past)
    mask = (causal & real[:, None, :])[:, None] if padding else None
    positions = torch.randint(0, 9, (batch, keys, 3), generator=generator)
    roles = torch.full((batch, keys), TEXT)
    roles[:, : keys // 2] = IMAGE
    roles[1:, : keys // 4] = SYSTEM
    turns = 1.0 / (10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH))
    frequencies = Frequencies(turns * torch.tensor([[axis == own for own in SECTIONS] for axis in range(3)]), 1.0)
    call = Call(q, k, value, WIDTH**-0.5, mask, (cos, sin), positions, roles, frequencies)
    call.states = torch.randn(batch, keys, 512, generator=generator)
    call.states[:, 1::3, 7] = -1e3  # sinks
    visible = (causal & real[:, None, :] & real[:, past:, None]).numpy()
    return Sample(call, q0, k0, visible, ids)


def found_a_min(call: Call, method: TDRS) -> np.ndarray:
    """|A|_min as the software computes it for this call, (B, H, 1); for row statistics, (B, H, Q)."""
    rows = torch.cat([method._smallest(block) for block in call.blocks()], dim=2)
    found = rows.amin(dim=2, keepdim=True) if method.stats_scope == "call" else rows
    return found.expand(-1, HEADS, -1, -1)[..., 0].double().numpy()


def oracle_output(sample: Sample, call: Call, name: str, method: Any, heads: frozenset[int]) -> np.ndarray:
    """The attention output in float64; heads that are not edited keep their logits and weights."""
    result = np.zeros(call.query.shape)
    a_min = found_a_min(call, method) if name == "tdrs" else None
    q, k, v = (x.double().numpy() for x in (call.query, call.key, call.value))
    assert call.positions is not None
    assert call.roles is not None
    for b in range(len(q)):
        positions, roles, visible = call.positions[b].numpy(), call.roles[b].numpy(), sample.visible[b]
        logits = np.stack([q[b, h] @ k[b, h // (HEADS // GROUPS)].T / WIDTH**0.5 for h in range(HEADS)])
        if name in POSITION_METHODS:
            assert call.frequencies is not None
            turns = call.frequencies.turns.double().numpy()
            vectors = sample.q0[b].double().numpy(), sample.k0[b].double().numpy()
            edited = position_peer(name, method, logits, *vectors, visible, positions, roles, turns)
        else:
            edited = logits if name == "tdrs" else peer(name, method, logits, visible, roles)
        weights = np.zeros_like(logits)
        for h, g in ((h, h // (HEADS // GROUPS)) for h in range(HEADS)):
            if h not in heads:
                here = logits[h]
            elif name == "tdrs":
                assert a_min is not None
                q0, k0 = sample.q0[b, h].double().numpy(), sample.k0[b, g].double().numpy()
                if method.features == "post_rope":
                    q0, k0 = q[b, h], k[b, g]
                given = (q[b, h], k[b, g], q0, k0, visible, a_min[b, h], positions, roles, method, call.softcap)
                here = tdrs_head(*given)
            else:
                here = edited[h]
            weights[h] = softmax(np.where(visible, here, np.nan))
        states = None if call.states is None else call.states[b].double().numpy()
        new = reweighed(name, method, weights, logits, visible, roles, states)
        for h in range(HEADS):
            result[b, h] = (new if h in heads else weights)[h] @ v[b, h // (HEADS // GROUPS)]
    return result


def deviation(name: str, method: Any, sample: Sample, heads: frozenset[int] = frozenset(range(HEADS))) -> float:
    """The largest |output − oracle| of each execution; outputs are means of standard normal values."""
    chosen = None
    if len(heads) < HEADS:
        chosen = torch.tensor([h in heads for h in range(HEADS)])[None, :, None, None]
    worst = 0.0
    for execute, size in ((reference, None), (blocked, 97), (fastest, 97)):
        call = replace(sample.call, block_elements=size, heads=chosen, tally=Tally())
        output = execute(call, method).double().numpy()
        assert np.isfinite(output).all()
        worst = max(worst, float(np.abs(output - oracle_output(sample, call, name, method, heads)).max()))
    return worst


def edits() -> dict[str, Method]:
    """Every method that edits attention, with one pass, at settings that edit the short calls of the tests."""
    given: dict[str, Any] = {"pai": {"gamma": 1.0}, "self_extend": {"window": 8}, "cca": {"side": 4}}
    methods = {name: kind(**given.get(name, {})) for name, kind in METHODS.items()}
    return {name: method for name, method in methods.items() if method.edits_attention and not method.second_pass}


def each_padding(length: int) -> list[Sample]:
    """Four calls: unpadded, left-padded, right-padded, and with a filled cache."""
    return [make(length, padding=padding) for padding in (None, "left", "right")] + [make(3, past=length)]
