"""A random InternVL2 in its authors' layout, converted: the native model computes what the original's formulas say."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, silu

from tdrs import TDRS, backbones, benchmarks
from tdrs.backbones import BackboneSettings, convert_internvl2
from tdrs.backbones.convert_internvl2 import CHAT_TEMPLATE, SYSTEM, convert
from tdrs.evaluation import evaluate
from tdrs.settings import SettingError
from tests.backbones.folders import tokenizer

WIDTH, HEADS, GROUPS, HEAD, LAYERS, EPS = 48, 6, 2, 8, 2, 1e-5  # of the decoder
SEEN, TOWER_LAYERS, TOWER_HEADS, SIDE, PATCH = 16, 2, 2, 32, 4  # of the tower
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def native_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer("internvl").save_pretrained(folder)
    return folder


def original(folder: Path) -> Weights:
    """Write it, in two files; returns its weights."""
    made = tokenizer("internvl")
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights = {
        "vision_model.embeddings.class_embedding": random(1, 1, SEEN),
        "vision_model.embeddings.position_embedding": random(1, 65, SEEN),
        "vision_model.embeddings.patch_embedding.weight": random(SEEN, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": random(SEEN),
    }
    for n in range(TOWER_LAYERS):
        at = f"vision_model.encoder.layers.{n}"
        shapes = {"attn.qkv": (48, SEEN), "attn.proj": (SEEN, SEEN), "mlp.fc1": (24, SEEN), "mlp.fc2": (SEEN, 24)}
        for name, shape in shapes.items():
            weights |= {f"{at}.{name}.weight": random(*shape), f"{at}.{name}.bias": random(shape[0])}
        for name in ("norm1", "norm2"):
            weights |= {f"{at}.{name}.weight": 1 + random(SEEN), f"{at}.{name}.bias": random(SEEN)}
        weights |= {f"{at}.ls1": random(SEEN), f"{at}.ls2": random(SEEN)}
    weights |= {"mlp1.0.weight": 1 + random(4 * SEEN), "mlp1.0.bias": random(4 * SEEN)}
    weights |= {"mlp1.1.weight": random(WIDTH, 4 * SEEN), "mlp1.1.bias": random(WIDTH)}
    weights |= {"mlp1.3.weight": random(WIDTH, WIDTH), "mlp1.3.bias": random(WIDTH)}
    weights |= {"language_model.model.tok_embeddings.weight": random(len(made), WIDTH)}
    for n in range(LAYERS):
        at = f"language_model.model.layers.{n}"
        weights |= {f"{at}.attention.wqkv.weight": random((HEADS + 2 * GROUPS) * HEAD, WIDTH)}
        weights |= {f"{at}.attention.wo.weight": random(WIDTH, HEADS * HEAD)}
        for name, shape in (("w1", (72, WIDTH)), ("w2", (WIDTH, 72)), ("w3", (72, WIDTH))):
            weights |= {f"{at}.feed_forward.{name}.weight": random(*shape)}
        weights |= {f"{at}.{name}.weight": 1 + random(WIDTH) for name in ("attention_norm", "ffn_norm")}
    weights |= {"language_model.model.norm.weight": 1 + random(WIDTH)}
    weights |= {"language_model.output.weight": random(len(made), WIDTH)}
    config = {
        "model_type": "internvl_chat", "ps_version": "v2", "select_layer": -1, "downsample_ratio": 0.5,
        "force_image_size": SIDE, "dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 4,
        "min_dynamic_patch": 1, "template": "internlm2-chat", "pad2square": False,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"], "bias": False, "hidden_act": "silu", "vocab_size": len(made),
            "hidden_size": WIDTH, "intermediate_size": 72, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS, "max_position_embeddings": 512, "rms_norm_eps": EPS, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "rope_theta": 1000000,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "tie_word_embeddings": False,
        },
        "vision_config": {
            "hidden_size": SEEN, "intermediate_size": 24, "num_hidden_layers": TOWER_LAYERS, "hidden_act": "gelu",
            "num_attention_heads": TOWER_HEADS, "image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6,
            "norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False,
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    special = {str(number): {"content": token.content} for number, token in made.added_tokens_decoder.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": special}))
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({name: weights[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """One head, (L, D) each."""
    logits = query @ key.T / math.sqrt(query.shape[-1])
    if causal:
        logits = logits + torch.full_like(logits, -torch.inf).triu(1)
    return logits.softmax(-1) @ value


def tower(w: Weights, tiles: torch.Tensor) -> torch.Tensor:
    """InternViT, pixel shuffle, projector, on (tiles, 3, side, side): (tiles × 16, width)."""
    out = []
    for tile in tiles.double():
        at = "vision_model.embeddings"
        patches = tile.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(64, -1)
        x = patches @ w[f"{at}.patch_embedding.weight"].reshape(SEEN, -1).T + w[f"{at}.patch_embedding.bias"]
        x = torch.cat((w[f"{at}.class_embedding"][0], x)) + w[f"{at}.position_embedding"][0]
        for n in range(TOWER_LAYERS):
            at = f"vision_model.encoder.layers.{n}"
            y = layer_norm(x, (SEEN,), w[f"{at}.norm1.weight"], w[f"{at}.norm1.bias"], 1e-6)
            y = y @ w[f"{at}.attn.qkv.weight"].T + w[f"{at}.attn.qkv.bias"]
            q, k, v = y.view(65, 3, TOWER_HEADS, SEEN // TOWER_HEADS).unbind(1)
            heads = [attend(q[:, h], k[:, h], v[:, h], causal=False) for h in range(TOWER_HEADS)]
            y = torch.cat(heads, dim=-1) @ w[f"{at}.attn.proj.weight"].T + w[f"{at}.attn.proj.bias"]
            x = x + y * w[f"{at}.ls1"]
            y = layer_norm(x, (SEEN,), w[f"{at}.norm2.weight"], w[f"{at}.norm2.bias"], 1e-6)
            y = gelu(y @ w[f"{at}.mlp.fc1.weight"].T + w[f"{at}.mlp.fc1.bias"])
            x = x + (y @ w[f"{at}.mlp.fc2.weight"].T + w[f"{at}.mlp.fc2.bias"]) * w[f"{at}.ls2"]
        grid = x[1:].view(8, 8, SEEN)
        for row in range(0, 8, 2):  # four neighbours make a token
            for column in range(0, 8, 2):
                four = torch.cat([grid[row + i, column + j] for i in (0, 1) for j in (0, 1)])
                y = layer_norm(four, (4 * SEEN,), w["mlp1.0.weight"], w["mlp1.0.bias"])
                y = gelu(y @ w["mlp1.1.weight"].T + w["mlp1.1.bias"])
                out.append(y @ w["mlp1.3.weight"].T + w["mlp1.3.bias"])
    return torch.stack(out)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """RoPE of (L, D): the first half of the dimensions is paired with the second."""
    angles = torch.arange(len(x)).double()[:, None] / 1e6 ** (torch.arange(0, HEAD, 2).double() / HEAD)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def forward(weights: Weights, ids: torch.Tensor, tiles: torch.Tensor, image: int) -> torch.Tensor:
    """InternVL2's logits of one prompt, (L, vocabulary), in float64 from the weights as published."""
    w = {name: weight.double() for name, weight in weights.items()}
    x = w["language_model.model.tok_embeddings.weight"][ids].clone()
    x[ids == image] = tower(w, tiles)
    for n in range(LAYERS):
        at = f"language_model.model.layers.{n}"
        fused = norm(x, w[f"{at}.attention_norm.weight"]) @ w[f"{at}.attention.wqkv.weight"].T
        groups = fused.view(len(ids), GROUPS, HEADS // GROUPS + 2, HEAD)
        heads = [
            attend(rotate(groups[:, g, h]), rotate(groups[:, g, -2]), groups[:, g, -1], causal=True)
            for g in range(GROUPS)
            for h in range(HEADS // GROUPS)
        ]
        x = x + torch.cat(heads, dim=-1) @ w[f"{at}.attention.wo.weight"].T
        y = norm(x, w[f"{at}.ffn_norm.weight"])
        w1, w2, w3 = (w[f"{at}.feed_forward.w{number}.weight"] for number in (1, 2, 3))
        x = x + (silu(y @ w1.T) * (y @ w3.T)) @ w2.T
    return norm(x, w["language_model.model.norm.weight"]) @ w["language_model.output.weight"].T


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, native_tokenizer: Path) -> tuple[Weights, Path]:
    folder = tmp_path_factory.mktemp("internvl2")
    weights = original(folder / "original")
    return weights, convert(folder / "original", folder / "native", str(native_tokenizer))


def test_the_native_model_computes_what_the_original_does(converted: tuple[Weights, Path]) -> None:
    weights, folder = converted
    backbone = backbones.load(BackboneSettings("x", str(folder), device="cpu", image={"max_patches": 2}))
    twin = benchmarks.from_settings({"name": "mini_gqa"})
    (sample,) = benchmarks.load(twin, "tuning", 1)
    wide = Image.effect_noise((64, 32), 90).convert("RGB")
    text = backbone.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}],
        add_generation_prompt=True,
    )
    inputs = backbone.processor(text=[text], images=[wide], return_tensors="pt", **backbone.prompts.image_kwargs)
    assert len(inputs["pixel_values"]) == 3  # two tiles and the thumbnail
    with torch.inference_mode():
        native = backbone.model(**inputs).logits[0].double()
    image = backbone.model.config.image_token_id
    assert int((inputs["input_ids"] == image).sum()) == 48
    expected = forward(weights, inputs["input_ids"][0], inputs["pixel_values"], image)
    torch.testing.assert_close(native, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_it_runs_as_any_backbone_does(converted: tuple[Weights, Path]) -> None:
    backbone = backbones.load(BackboneSettings("x", str(converted[1]), device="cpu", max_new_tokens=3))
    twin = benchmarks.from_settings({"name": "mini_pope"})
    samples = benchmarks.load(twin, "tuning", 3)
    assert len(evaluate(backbone, twin, samples, TDRS(), batch_size=2).records) == 3
    end = backbone.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert backbone.model.generation_config.eos_token_id == [end]


def test_the_conversation_is_that_of_internvl2s_own_evaluation(converted: tuple[Weights, Path]) -> None:
    """Its separator has no line break, its system sentence stands first; both to the letter."""
    processor = backbones.load(BackboneSettings("x", str(converted[1]), device="cpu")).processor
    assert processor.chat_template == CHAT_TEMPLATE
    turn: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    said = processor.apply_chat_template([turn], add_generation_prompt=True)
    body = "<|im_start|>user\n<IMG_CONTEXT>\nWhy?<|im_end|><|im_start|>assistant\n"
    assert said == f"<|im_start|>system\n{SYSTEM}<|im_end|>{body}"
    given = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    said = processor.apply_chat_template([given, turn], add_generation_prompt=True)
    assert said == f"<|im_start|>system\nBe short.<|im_end|>{body}"


def test_shards_keep_to_their_bound_and_hold_every_weight(
    tmp_path: Path, native_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, converted: tuple[Weights, Path]
) -> None:
    monkeypatch.setattr(convert_internvl2, "SHARD_BYTES", 20_000)
    original(tmp_path / "original")
    folder = convert(tmp_path / "original", tmp_path / "native", str(native_tokenizer))
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    assert len(shards) > 3
    for shard in shards:
        assert len(shard) == 1 or sum(weight.nbytes for weight in shard.values()) <= 20_000
    (whole,) = [load_file(path) for path in converted[1].glob("*.safetensors")]
    together = {name: weight for shard in shards for name, weight in shard.items()}
    assert together.keys() == whole.keys()
    assert all(torch.equal(whole[name], together[name]) for name in whole)


def alter(folder: Path, weights: Weights | None = None, **config: Any) -> None:
    """Change a copy of the original."""
    if weights is not None:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        save_file(weights, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        group, _, last = name.rpartition("__")
        (values[group] if group else values)[last] = value
    (folder / "config.json").write_text(json.dumps(values))


OUTPUT, WQKV = "language_model.output.weight", "language_model.model.layers.1.attention.wqkv.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f, w: alter(f, w | {"mlp2.0.weight": torch.ones(2)}), "SOURCE = 'mlp2.0.weight': is a weight"),
        (lambda f, w: alter(f, w | {"vision_model.encoder.layers.0.attn.q_norm.weight": torch.ones(16)}),
         r"q_norm.weight': is a weight that this conversion does not know"),
        (lambda f, w: alter(f, {k: v for k, v in w.items() if k != OUTPUT}), "SOURCE = 'lm_head.weight': is made of"),
        (lambda f, w: alter(f, w | {WQKV: w[WQKV][:-8]}), f"SOURCE = '{WQKV}': has shape"),
        (lambda f, w: alter(f, ps_version="v1"), "ps_version = 'v1': can be converted if it is \"v2\""),
        (lambda f, w: alter(f, llm_config__bias=True), "llm_config.bias = True: can be converted if it is false"),
        (lambda f, w: alter(f, llm_config__architectures=["Qwen2ForCausalLM"]), "llm_config.architectures = "),
        (lambda f, w: (f / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002-of-00002.safetensors"),
        (lambda f, w: (f / "tokenizer_config.json").write_text(
            '{"added_tokens_decoder": {"9": {"content": "<IMG_CONTEXT>"}}}'), r"<IMG_CONTEXT>': is \d+ there, and 9"),
    ],
)  # fmt: skip
def test_anything_unexpected_is_named_and_nothing_is_written(
    change: Any, said: str, tmp_path: Path, native_tokenizer: Path
) -> None:
    weights = original(tmp_path / "original")
    change(tmp_path / "original", weights)
    with pytest.raises(SettingError, match=said):
        convert(tmp_path / "original", tmp_path / "native", str(native_tokenizer))
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_conversion_that_is_stopped_leaves_nothing(
    tmp_path: Path, native_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original(tmp_path / "original")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(convert_internvl2, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        convert(tmp_path / "original", tmp_path / "native", str(native_tokenizer))
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_the_command_says_what_it_wrote(
    tmp_path: Path, native_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original(tmp_path / "original")
    words = [str(tmp_path / "original"), str(tmp_path / "native"), f"tokenizer={native_tokenizer}"]
    assert convert_internvl2.main(words) == 0
    assert f"backbone.source={tmp_path / 'native'}" in capsys.readouterr().out
    assert convert_internvl2.main(words) == 2
    assert "TARGET = " in capsys.readouterr().err
    shutil.rmtree(tmp_path / "native")
    assert convert_internvl2.main([*words[:2], "tokenizer=/nowhere"]) == 2
    assert "tokenizer = '/nowhere': must be a folder" in capsys.readouterr().err
