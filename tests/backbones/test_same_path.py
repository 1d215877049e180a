"""The real benchmarks, on fixture rows in their own schema, asked of each architecture as the full-size models are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tdrs import DC, RE, TDRS, VAF, Stock, backbones, benchmarks, intervene
from tdrs.attention.block import IMAGE
from tdrs.attention.call import Call
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.benchmarks import mini_gqa, mini_pope, mini_scienceqa, mini_textvqa
from tdrs.benchmarks.benchmark import Samples
from tdrs.benchmarks.prompts import OPTION_LETTER, SINGLE_WORD
from tdrs.evaluation import evaluate
from tests.attention.architectures import ARCHITECTURES
from tests.backbones.folders import write

STYLE = {"llava": "llava", "internvl": "internvl", "qwen2_5_vl": "vlmevalkit"}
ROWS: dict[str, Callable[[], datasets.Dataset]] = {
    "scienceqa": lambda: mini_scienceqa.dataset("held_out", 6, 0),
    "textvqa": lambda: mini_textvqa.dataset("held_out", 6),
    "pope": lambda: mini_pope.dataset("held_out", 2),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = write(request.param, tmp_path_factory.mktemp(request.param))
    settings = BackboneSettings(
        request.param, str(folder), device="cpu", max_new_tokens=3, prompt_style=STYLE[request.param]
    )
    return backbones.load(settings)


def rows(name: str, folder: Path, style: str) -> tuple[Any, Samples]:
    """A real benchmark on fixture rows in Parquet files."""
    values: dict[str, Any] = {"name": name, "source": str(folder / "rows.parquet")}
    if name == "gqa":
        questions, images = mini_gqa.tables("held_out", 6)
        questions.to_parquet(folder / "rows.parquet")
        images.to_parquet(folder / "images.parquet")
        values["images"] = str(folder / "images.parquet")
    else:
        ROWS[name]().to_parquet(folder / "rows.parquet")
    if name == "pope":
        values["tuning_share"] = 0
    benchmark = benchmarks.from_settings(values)
    return benchmark, benchmarks.load(benchmark, "held_out", None, style)


ENDS = {"scienceqa": OPTION_LETTER, "gqa": SINGLE_WORD, "textvqa": SINGLE_WORD, "pope": SINGLE_WORD}


@pytest.mark.parametrize("name", ["scienceqa", "gqa", "textvqa", "pope"])
def test_every_real_benchmark_runs(backbone: Backbone, name: str, tmp_path: Path) -> None:
    """In the model's own style, with samples of unequal length. With all stages off, records are the stock model's."""
    benchmark, samples = rows(name, tmp_path, backbone.settings.prompt_style)
    qwen = backbone.settings.name == "qwen2_5_vl"
    own = qwen and name in ("scienceqa", "pope")
    assert all(own or sample.prompt.endswith(ENDS[name]) for sample in samples)
    stock = evaluate(backbone, benchmark, samples, Stock(), batch_size=4)
    off = evaluate(backbone, benchmark, samples, TDRS(sd=False, dc=None, re=None), batch_size=4)
    edited = evaluate(backbone, benchmark, samples, TDRS(), batch_size=4)
    assert len(stock.records) == len(samples) >= 6
    assert off.records == stock.records
    assert [r.margin for r in edited.records] != [r.margin for r in stock.records]
    assert benchmark.metrics(edited.records)["accuracy"] == pytest.approx(edited.metrics["accuracy"])


def test_key_positions_of_the_image_follow_the_input_ids(backbone: Backbone, calls: list[Call]) -> None:
    """Also with left padding; a decoded token is not an image token. With image embeddings, as in a study."""
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 9}), "tuning", 4)
    inputs = backbone.model_inputs(samples)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (mask == 0).any()
    with intervene(backbone.model, TDRS(dc=DC(), re=RE(), pairs="text_to_image", distance="position", layers=[0])):
        backbone.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    image = ids == backbone.model.config.image_token_id
    assert (image.sum(dim=1) > 0).all()
    assert torch.equal(calls[0].roles == IMAGE, image)
    for step, call in enumerate(calls):
        added = torch.zeros(4, step, dtype=torch.bool)
        assert torch.equal(call.roles == IMAGE, torch.cat((image, added), dim=1))
    axes = 3 if backbone.settings.name == "qwen2_5_vl" else 1
    assert calls[0].positions.shape[-1] == axes
    if axes == 3:  # rows and columns of the picture differ; without mm_token_type_ids all three axes would be alike
        places = calls[0].positions[0][image[0]]
        assert not torch.equal(places[:, 1], places[:, 2])
        assert len(set(places[:, 0].tolist())) == 1


def forced(backbone: Backbone, tokens: list[int]) -> Any:
    """A hook that makes the model say these tokens."""
    said: list[int] = []

    def choose(module: Any, args: Any, output: Any) -> Any:
        output.logits[..., tokens[min(len(said), len(tokens) - 1)]] = 1e4
        said.append(0)
        return output

    return backbone.model.register_forward_hook(choose), said


def test_an_answer_ends_at_the_stop_token(backbone: Backbone) -> None:
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_pope"}), "tuning", 2)
    tokenizer = backbone.processor.tokenizer
    yes = tokenizer.convert_tokens_to_ids("yes")
    hook, said = forced(backbone, [yes, tokenizer.eos_token_id, yes])
    try:
        answers = replace(backbone, share_prefixes=False).answer(samples, "pope")
    finally:
        hook.remove()
    assert [answer.text for answer in answers] == ["yes", "yes"]
    assert len(said) == 2  # the third token was not asked for


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_hubs_folder_says_of_generation_does_not_count(name: str, tmp_path: Path) -> None:
    """Qwen's has sampling and a repetition penalty, which would suppress an answer that is in the prompt."""
    folder = write(name, tmp_path / name)
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa"}), "tuning", 4)
    said = []
    for hub in (False, True):
        if hub:
            path = folder / "generation_config.json"
            values = json.loads(path.read_text()) if path.exists() else {}
            values |= {"repetition_penalty": 50.0, "do_sample": True, "temperature": 3.0, "top_k": 1, "num_beams": 3}
            path.write_text(json.dumps(values))
        backbone = backbones.load(BackboneSettings(name, str(folder), device="cpu", max_new_tokens=5))
        with intervene(backbone.model, VAF()):
            said.append(backbone.answer(samples, "gqa"))
    assert said[0] == said[1]
