"""Image embeddings on disk: computed once, equal to what the whole model computes, limited in size, safe to lose."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tdrs import Stock, backbones, benchmarks
from tdrs.backbones import Backbone, prompt_encoder
from tdrs.backbones.image_embeddings import EmbeddingStore, ImageEncoder
from tdrs.backbones.prompt_encoder import PromptEncoder, TokenCache
from tdrs.benchmarks.benchmark import Sample
from tdrs.configuration import compose, plain
from tdrs.evaluation import evaluate

MODELS = ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"]


def load(name: str, store: EmbeddingStore | None = None) -> Backbone:
    config = plain(compose("evaluate", [f"backbone={name}"]))
    return backbones.load(backbones.from_settings(config["backbone"]), store)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_in_place_of_pixels_give_the_same_logits(name: str) -> None:
    backbone = load(name)
    benchmark = benchmarks.from_settings({"name": "mini_pope", "gap": 3})
    samples = benchmarks.load(benchmark, "tuning", 8, backbone.settings.prompt_style)
    inputs = backbone.inputs(samples)
    with torch.inference_mode():
        whole = backbone.model(**inputs).logits
        del inputs["pixel_values"]
        seen = backbone.images.model_inputs([sample.picture for sample in samples])
        parts = backbone.model(**inputs, mm_encoder_outputs=seen).logits
    torch.testing.assert_close(parts, whole, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_records_do_not_depend_on_what_was_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 3})
    plain_one, kept = load(name), load(name, EmbeddingStore(tmp_path, 1 << 30))
    samples = benchmarks.load(benchmark, "tuning", 10, kept.settings.prompt_style)
    expected = evaluate(plain_one, benchmark, samples, Stock(), batch_size=4).records
    assert evaluate(kept, benchmark, samples[:4], Stock(), batch_size=4).records == expected[:4]
    assert evaluate(kept, benchmark, samples, Stock(), batch_size=4).records == expected
    assert len(list(tmp_path.glob("*/*.safetensors"))) == len({sample.picture.digest for sample in samples})

    again = load(name, EmbeddingStore(tmp_path, 1 << 30))
    monkeypatch.setattr(ImageEncoder, "encode", lambda *_: pytest.fail("computed again"))
    assert evaluate(again, benchmark, samples, Stock(), batch_size=4).records == expected
    monkeypatch.setattr(EmbeddingStore, "get", lambda *_: pytest.fail("read again"))
    assert evaluate(again, benchmark, samples, Stock(), batch_size=4).records == expected


def test_no_model_can_change_what_is_kept(tmp_path: Path) -> None:
    backbone = load("mini_llava", EmbeddingStore(tmp_path, 1 << 30))
    picture = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa"}), "tuning", 1)[0].picture
    first = backbone.image_embeddings(picture).clone()
    for _ in range(2):
        with torch.inference_mode():
            backbone.image_embeddings(picture).zero_()
        assert torch.equal(backbone.image_embeddings(picture), first)


def test_a_picture_from_memory_counts_as_used(tmp_path: Path) -> None:
    backbone = load("mini_llava", EmbeddingStore(tmp_path, 1 << 30))
    picture = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa"}), "tuning", 1)[0].picture
    backbone.image_embeddings(picture)
    (path,) = tmp_path.glob("*/*.safetensors")
    os.utime(path, (1, 1))
    backbone.image_embeddings(picture)
    assert path.stat().st_mtime > 1
    path.unlink()  # another process needed the room
    backbone.image_embeddings(picture)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, 5000).of({"weights": "a"})
    assert store is not None
    for number in range(4):  # some 1100 bytes each
        store.put(str(number), torch.full((16, 16), float(number)))
        os.utime(store._path(str(number)), (number, number))
    assert store.get("0") is not None  # used now
    store.put("4", torch.zeros(16, 16))
    assert store.get("1") is None
    assert torch.equal(store.get("0"), torch.zeros(16, 16))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 5000


def test_models_and_dtypes_share_nothing(tmp_path: Path) -> None:
    first, second = (
        EmbeddingStore(tmp_path, 1 << 20).of({"weights": "a", "dtype": d}) for d in ("float32", "bfloat16")
    )
    first.put("p", torch.ones(2, 2))
    assert second.get("p") is None
    assert first.get("p") is not None


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, 1 << 20).of({"weights": "a"})
    store.put("p", torch.ones(2, 2))
    store._path("p").write_bytes(b"torn")
    assert store.get("p") is None


def test_nothing_is_kept_with_a_bound_of_0(tmp_path: Path) -> None:
    assert EmbeddingStore(tmp_path, 0).of({}) is None


def test_tokens_of_a_batch_are_prepared_once(mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial asks the same batches; another prompt, or another picture, is another batch."""
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 9}), "tuning", 4)
    asked: list[int] = []
    tokens = PromptEncoder.tokens

    def count(self: PromptEncoder, samples: Sequence[Sample]) -> Any:
        asked.append(len(samples))
        return tokens(self, samples)

    monkeypatch.setattr(PromptEncoder, "tokens", count)
    fresh = replace(mini_llava, tokens=TokenCache())
    first, second = (fresh.answer(samples, "scienceqa") for _ in range(2))
    assert first == second
    assert asked == [4]
    fresh.answer([replace(samples[0], prompt=samples[1].prompt), *samples[1:]], "scienceqa")
    blank = replace(samples[0], picture=samples[0].picture.blank())
    fresh.answer([blank, *samples[1:]], "scienceqa")
    assert asked == [4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "damage",
    ["bit", "zeros", "dtype", "shape", "cut", "empty", "nul", "another picture", "another model", "no checksum"],
)
def test_damaged_embeddings_are_set_aside(
    damage: str, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other = (EmbeddingStore(tmp_path, 1 << 30).of({"weights": name}) for name in "ab")
    assert model is not None
    assert other is not None
    tensor = torch.arange(24, dtype=dtype).reshape(4, 6)
    model.put("picture", tensor)
    assert torch.equal(model.get("picture"), tensor)
    path = model._path("picture")
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if damage == "bit":
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    elif damage == "zeros":
        save_file({"features": torch.zeros_like(tensor)}, path, metadata)
    elif damage == "dtype":
        save_file({"features": tensor.to(torch.float16)}, path, metadata)
    elif damage == "shape":
        save_file({"features": tensor.reshape(6, 4)}, path, metadata)
    elif damage in ("cut", "empty", "nul"):
        path.write_bytes({"cut": whole[:-5], "empty": b"", "nul": bytes(len(whole))}[damage])
    elif damage == "another picture":
        model.put("other", tensor + 1)
        path.write_bytes(model._path("other").read_bytes())
    elif damage == "another model":
        other.put("picture", tensor + 1)
        path.write_bytes(other._path("picture").read_bytes())
    else:
        save_file({"features": tensor}, path)
    assert model.get("picture") is None
    assert "it is now picture.safetensors.damaged-1" in capsys.readouterr().err
    assert not path.exists()
    model.put("picture", tensor)
    assert torch.equal(model.get("picture"), tensor)
    assert capsys.readouterr().err == ""


def test_the_cache_of_tokens_forgets_the_oldest_batch(mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa"}), "tuning", 3)
    asked: list[str] = []

    def inputs(some: Any) -> Any:
        asked.append(some[0].id)
        return mini_llava.prompts.tokens(some)

    largest = max(2 * mini_llava.inputs([sample])["input_ids"].nbytes for sample in samples)  # with its mask
    monkeypatch.setattr(prompt_encoder, "CACHED_BYTES", 2 * largest)
    tokens = TokenCache()
    first, second, third = ([sample] for sample in samples)
    for one in (first, second, second, third, first, third):
        assert torch.equal(tokens.get(one, inputs)["input_ids"], mini_llava.inputs(one)["input_ids"])
    assert asked == [one[0].id for one in (first, second, third, first)]
    assert not [name for name in tokens.get(first, inputs) if name.startswith("pixel_")]
