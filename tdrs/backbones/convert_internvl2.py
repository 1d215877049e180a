"""Convert InternVL2's original checkpoint to transformers' native form, without running the code that comes with it.

    python -m tdrs.backbones.convert_internvl2 /path/to/InternVL2-8B /path/to/InternVL2-8B-native
    python -m tdrs.evaluate backbone=internvl2_8b backbone.source=/path/to/InternVL2-8B-native dataset=scienceqa

The checkpoint's language model is an InternLM2: a Llama with one matrix `wqkv` for query, key and value, ordered by
groups (the query heads of a group, then its key head, then its value head). The vision tower is the native one, with
query, key and value in one matrix. Everything else differs only in name. All names and shapes are checked before
anything is written, and weights pass through memory one shard at a time. The tokenizer is the native one of the
successor model (`tokenizer=`, a folder or a hub id); its special tokens must be those of the original.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tdrs import commands
from tdrs.backbones.processors import images_only, save_processor
from tdrs.entry_point import run_command
from tdrs.settings import SettingError

TOKENIZER = "OpenGVLab/InternVL2_5-8B-MPO-hf"  # same vocabulary; its weights are not needed
SHARD_BYTES = 1 << 30  # the largest file
IMAGE, END = "<IMG_CONTEXT>", "<|im_end|>"
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# The conversation of InternVL2's own evaluation: its system sentence, and no line break after the end of a turn.
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Split = Callable[[torch.Tensor], torch.Tensor]


class Part(NamedTuple):
    """A native weight: its name, and the function that cuts it out of the original weight."""

    name: str
    cut: Split


# Original names and native names; {} is the number of a layer, * is weight or bias. The fused matrices are below.
VISION, TEXT = "model.vision_tower", "model.language_model"
RENAMES = {
    "vision_model.embeddings.class_embedding": f"{VISION}.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": f"{VISION}.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding.*": f"{VISION}.embeddings.patch_embeddings.projection.*",
    "vision_model.encoder.layers.{}.ls1": f"{VISION}.encoder.layer.{{}}.lambda_1",
    "vision_model.encoder.layers.{}.ls2": f"{VISION}.encoder.layer.{{}}.lambda_2",
    "vision_model.encoder.layers.{}.norm1.*": f"{VISION}.encoder.layer.{{}}.layernorm_before.*",
    "vision_model.encoder.layers.{}.norm2.*": f"{VISION}.encoder.layer.{{}}.layernorm_after.*",
    "vision_model.encoder.layers.{}.attn.proj.*": f"{VISION}.encoder.layer.{{}}.attention.projection_layer.*",
    "vision_model.encoder.layers.{}.attn.q_norm.*": f"{VISION}.encoder.layer.{{}}.attention.q_norm.*",
    "vision_model.encoder.layers.{}.attn.k_norm.*": f"{VISION}.encoder.layer.{{}}.attention.k_norm.*",
    "vision_model.encoder.layers.{}.mlp.fc1.*": f"{VISION}.encoder.layer.{{}}.mlp.fc1.*",
    "vision_model.encoder.layers.{}.mlp.fc2.*": f"{VISION}.encoder.layer.{{}}.mlp.fc2.*",
    "mlp1.0.*": "model.multi_modal_projector.layer_norm.*",
    "mlp1.1.*": "model.multi_modal_projector.linear_1.*",
    "mlp1.3.*": "model.multi_modal_projector.linear_2.*",
    "language_model.model.tok_embeddings.*": f"{TEXT}.embed_tokens.*",
    "language_model.model.norm.*": f"{TEXT}.norm.*",
    "language_model.model.layers.{}.attention_norm.*": f"{TEXT}.layers.{{}}.input_layernorm.*",
    "language_model.model.layers.{}.ffn_norm.*": f"{TEXT}.layers.{{}}.post_attention_layernorm.*",
    "language_model.model.layers.{}.attention.wo.*": f"{TEXT}.layers.{{}}.self_attn.o_proj.*",
    "language_model.model.layers.{}.feed_forward.w1.*": f"{TEXT}.layers.{{}}.mlp.gate_proj.*",
    "language_model.model.layers.{}.feed_forward.w2.*": f"{TEXT}.layers.{{}}.mlp.down_proj.*",
    "language_model.model.layers.{}.feed_forward.w3.*": f"{TEXT}.layers.{{}}.mlp.up_proj.*",
    "language_model.output.*": "lm_head.*",
}
VISION_FUSED = "vision_model.encoder.layers.{}.attn.qkv.*", f"{VISION}.encoder.layer.{{}}.attention"
TEXT_FUSED = "language_model.model.layers.{}.attention.wqkv.*", f"{TEXT}.layers.{{}}.self_attn"


def _matches(pattern: str, name: str) -> tuple[str, str] | None:
    """The layer's number, and weight or bias, if a pattern fits a name; else None."""
    text = re.escape(pattern).replace(r"\{\}", r"(?P<layer>\d+)").replace(r"\*", r"(?P<kind>weight|bias)")
    found = re.fullmatch(text, name)
    groups = found.groupdict() if found else {}
    return (groups.get("layer", ""), groups.get("kind", "")) if found else None


def parts_of(name: str, config: InternVLConfig) -> list[Part]:
    """The native weights that an original weight contains; none if its name is unknown."""
    for pattern, native in RENAMES.items():
        if (found := _matches(pattern, name)) is not None:
            layer, kind = found
            return [Part(native.replace("{}", layer).replace("*", kind), lambda weight: weight)]
    if (found := _matches(VISION_FUSED[0], name)) is not None:

        def third(number: int) -> Split:
            return lambda weight: weight.chunk(3)[number]

        return _attention(VISION_FUSED[1], *found, [third(number) for number in range(3)])
    if (found := _matches(TEXT_FUSED[0], name)) is not None:
        text: Any = config.text_config
        shared = text.num_attention_heads // text.num_key_value_heads

        def cut(heads: slice) -> Split:
            def of(weight: torch.Tensor) -> torch.Tensor:
                groups = weight.view(text.num_key_value_heads, shared + 2, text.head_dim, *weight.shape[1:])
                return groups[:, heads].flatten(0, 2)

            return of

        cuts = [cut(slice(0, shared)), cut(slice(shared, shared + 1)), cut(slice(shared + 1, shared + 2))]
        return _attention(TEXT_FUSED[1], *found, cuts)
    return []


def _attention(native: str, layer: str, kind: str, cuts: Sequence[Split]) -> list[Part]:
    base = native.replace("{}", layer)
    return [Part(f"{base}.{letter}_proj.{kind}", cut) for letter, cut in zip("qkv", cuts, strict=True)]


def _expect(where: str, values: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> None:
    """Raises SettingError if a setting of the original has a value that may mean something else natively."""
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            known = " or ".join(json.dumps(choice) for choice in choices)
            raise SettingError(f"{where}{name}", values[name], f"can be converted if it is {known}")


def native_config(original: Mapping[str, Any], image_token: int, end_token: int) -> InternVLConfig:
    """The native configuration of an original `config.json`.

    Raises:
        SettingError: a setting is missing, or the native classes do not know its value.
    """
    _expect("", original, {"model_type": ["internvl_chat"], "ps_version": ["v2"], "select_layer": [-1]})
    _expect("", original, {"use_thumbnail": [True], "dynamic_image_size": [True], "pad2square": [False]})
    try:
        text, vision = original["llm_config"], original["vision_config"]
        _expect("llm_config.", text, {"architectures": [["InternLM2ForCausalLM"]], "hidden_act": ["silu"]})
        _expect("llm_config.", text, {"bias": [False], "tie_word_embeddings": [False]})
        _expect("vision_config.", vision, {"hidden_act": ["gelu"], "norm_type": ["layer_norm", "rms_norm"]})
        scaling = text.get("rope_scaling") or {"type": "default"}
        _expect("llm_config.rope_scaling.", scaling, {"type": ["default", "dynamic"]})
        rope = {"rope_type": scaling["type"], "rope_theta": float(text["rope_theta"])}
        rope |= {"factor": float(scaling["factor"])} if "factor" in scaling else {}
        size, patch = original["force_image_size"], vision["patch_size"]
        if vision["image_size"] != size:
            raise SettingError(
                "force_image_size", size, f"must be the vision tower's image_size, {vision['image_size']}"
            )
        own = {
            name: text[name]
            for name in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id",
            )
        }  # fmt: skip
        llama = LlamaConfig(
            **own,
            rope_parameters=rope,
            eos_token_id=end_token,
            pad_token_id=text["pad_token_id"],
            tie_word_embeddings=False,
        )
        seen = {
            name: vision[name]
            for name in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
                "patch_size", "layer_norm_eps", "hidden_act", "norm_type", "num_channels",
            )
            if name not in ("num_channels", "norm_type") or name in vision
        }  # fmt: skip
        tower = InternVLVisionConfig(**seen, attention_bias=vision["qkv_bias"], use_qk_norm=vision["qk_normalization"])
        ratio = float(original["downsample_ratio"])
    except KeyError as error:
        raise SettingError(error.args[0], None, "is not in the original's config.json") from error
    return InternVLConfig(
        text_config=llama,
        vision_config=tower,
        image_token_id=image_token,
        image_seq_length=int((size // patch * ratio) ** 2),
        downsample_ratio=ratio,
        tie_word_embeddings=False,
        architectures=["InternVLForConditionalGeneration"],
    )


class Original:
    """The weights of a folder of safetensors, read one at a time, so that no file stays mapped into memory."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        files = (
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            if index.exists()
            else ["model.safetensors"]
        )
        self._paths = [folder / name for name in sorted(set(files))]
        missing = [path.name for path in self._paths if not path.exists()]
        if missing:
            raise SettingError("SOURCE", str(folder), f"lacks {', '.join(missing)}")

    def _names(self) -> Iterator[tuple[Path, str]]:
        for path in self._paths:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
            yield from ((path, name) for name in names)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, file by file."""
        for path, name in self._names():
            with safe_open(path, "pt") as file:
                yield name, file.get_tensor(name)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes, from the files' headers.

        Raises:
            SettingError: a dtype is not one of the three in which models are published.
        """
        found = {}
        for path, name in self._names():
            with safe_open(path, "pt") as file:
                piece = file.get_slice(name)
            if piece.get_dtype() not in _DTYPES:
                raise SettingError("SOURCE", name, f"is of type {piece.get_dtype()}, not {', '.join(_DTYPES)}")
            found[name] = tuple(piece.get_shape()), _DTYPES[piece.get_dtype()]
        return found


_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def check_weights(original: Original, config: InternVLConfig) -> dict[str, int]:
    """The native weights and their sizes in bytes.

    Raises:
        SettingError: a weight is unknown or missing, or its shape differs from the configuration.
    """
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
        expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        found: dict[str, int] = {}
        for name, (shape, dtype) in original.shapes().items():
            parts = parts_of(name, config)
            if not parts or not any(part.name in expected for part in parts):
                raise SettingError("SOURCE", name, "is a weight that this conversion does not know")
            whole = torch.empty(shape, dtype=dtype)
            for part in parts:
                try:
                    cut = part.cut(whole)
                except RuntimeError:
                    cut = whole
                if tuple(cut.shape) != expected.get(part.name):
                    raise SettingError("SOURCE", name, f"has shape {list(shape)}, and config.json asks for another one")
                found[part.name] = cut.numel() * dtype.itemsize
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise SettingError("SOURCE", missing[0], f"is made of a weight that the files lack, one of {len(missing)}")
    return found


def check_tokenizer(tokenizer: Any, source: Path) -> None:
    """Raises SettingError unless every special token of the original has the same number in the tokenizer."""
    try:
        known = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    except (OSError, KeyError) as error:
        raise SettingError("SOURCE", str(source), "has no tokenizer_config.json that lists special tokens") from error
    for number, token in known.items():
        given = tokenizer.convert_tokens_to_ids(token["content"])
        if given != int(number):
            raise SettingError("tokenizer", token["content"], f"is {given} there, and {number} in the original")
    for token in (IMAGE, END, "<img>", "</img>"):
        if token not in {value["content"] for value in known.values()}:
            raise SettingError("SOURCE", str(source), f"has no token {token}")


def convert(source: Path, target: Path, tokenizer: str = TOKENIZER) -> Path:
    """Convert the original folder `source` to the native folder `target`. Either all of it is written or nothing.

    Raises:
        SettingError: something is unexpected, and is named; nothing is written.
    """
    if target.exists():
        raise SettingError("TARGET", str(target), "exists already")
    if not (source / "config.json").exists():
        raise SettingError("SOURCE", str(source), "has no config.json")
    try:
        made = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False, add_prefix_space=False)
    except (OSError, ValueError) as error:
        fetch = f"hf download {TOKENIZER} --include '*token*'"
        todo = f"must be a folder, or a hub id that is available: `{fetch}`"
        raise SettingError("tokenizer", tokenizer, todo) from error
    check_tokenizer(made, source)
    original = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ends: list[int] = [made.get_vocab()[token] for token in (IMAGE, END)]
    config = native_config(original, ends[0], ends[1])
    weights = Original(source)
    sizes = check_weights(weights, config)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        config.dtype = next(iter(weights.shapes().values()))[1]
        config.save_pretrained(partial)
        text: Any = config.text_config
        ids = {"bos_token_id": text.bos_token_id, "eos_token_id": ends[1], "pad_token_id": text.pad_token_id}
        GenerationConfig(**ids).save_pretrained(partial)
        _write_processor(original, config, made, partial)
        _write_weights(weights, config, sizes, partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _write_processor(original: Mapping[str, Any], config: InternVLConfig, tokenizer: Any, folder: Path) -> None:
    side = original["force_image_size"]
    tokenizer.chat_template = CHAT_TEMPLATE
    pictures = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        crop_to_patches=True,
        min_patches=original.get("min_dynamic_patch", 1),
        max_patches=original.get("max_dynamic_patch", 12),
        image_mean=MEAN,
        image_std=DEVIATION,
    )
    own: dict[str, Any] = {"image_seq_length": config.image_seq_length, "chat_template": CHAT_TEMPLATE}
    save_processor(images_only(InternVLProcessor)(pictures, tokenizer, None, **own), folder)


def _write_weights(weights: Original, config: InternVLConfig, sizes: Mapping[str, int], folder: Path) -> None:
    """Write shards of at most `SHARD_BYTES`, or of one weight, and their index."""
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    count = 0

    def flush() -> None:
        nonlocal count
        count += 1
        name = f"model-{count:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, name))
        shard.clear()

    with tqdm(total=sum(sizes.values()), desc="weights", unit="B", unit_scale=True, disable=None) as bar:
        for name, weight in weights.weights():
            for part in parts_of(name, config):
                if shard and sum(sizes[known] for known in shard) + sizes[part.name] > SHARD_BYTES:
                    flush()
                shard[part.name] = part.cut(weight).clone(memory_format=torch.contiguous_format)
                bar.update(sizes[part.name])
        flush()
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(files.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code, which is 2 if something is unexpected."""
    folders, given = commands.parse(arguments, ("tokenizer",))
    if len(folders) != 2 or {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0 if {"--help", "-h"} & set(arguments) else 2
    try:
        source, target = (Path(folder).expanduser() for folder in folders)
        convert(source, target, given.get("tokenizer", TOKENIZER))
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 2**30:.1f} GiB")
    words = ["backbone=internvl2_8b", f"backbone.source={commands.value(str(target.absolute()))}", "dataset=scienceqa"]
    print(f"next:  {commands.command('tdrs.doctor', *words)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
