"""LLaVA, InternVL and Qwen2.5-VL from folders in the hub's layout, through the path that the real models take."""

import pytest
import torch
from PIL import Image

from tdrs import TDRS, Stock, backbones, benchmarks
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.evaluation import evaluate
from tests.attention.architectures import ARCHITECTURES
from tests.backbones.folders import write


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = write(request.param, tmp_path_factory.mktemp(request.param))
    return backbones.load(BackboneSettings(request.param, str(folder), device="cpu", max_new_tokens=3))


@pytest.mark.parametrize("name", ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
def test_every_benchmark_runs(backbone: Backbone, name: str) -> None:
    """Unequal lengths in a batch, edited and not; off is stock to the record."""
    benchmark = benchmarks.from_settings({"name": name, "gap": 5})
    samples = benchmarks.load(benchmark, "tuning", 5)
    stock = evaluate(backbone, benchmark, samples, Stock(), batch_size=3)
    off = evaluate(backbone, benchmark, samples, TDRS(sd=False, dc=None, re=None), batch_size=3)
    edited = evaluate(backbone, benchmark, samples, TDRS(), batch_size=3)
    assert off.records == stock.records
    assert [r.margin for r in edited.records] != [r.margin for r in stock.records]


def image_tokens(backbone: Backbone, size: tuple[int, int]) -> tuple[int, int]:
    """How many image tokens the processor puts into a prompt, and how many embeddings the model computes."""
    text = backbone.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the circle?"}]}],
        add_generation_prompt=True,
    )
    inputs = backbone.processor(text=[text], images=[Image.new("RGB", size)], return_tensors="pt")
    model = backbone.model
    given = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
    embeddings = model.get_image_features(**given).pooler_output  # type: ignore[operator]
    count = sum(part.flatten(0, -2).shape[0] for part in embeddings)
    return int((inputs["input_ids"] == model.config.image_token_id).sum()), count


@pytest.mark.parametrize(
    "size", [(64, 64), (64, 32), (32, 64), (100, 40), (40, 100), (8, 8), (17, 31), (63, 65), (128, 16), (200, 200)]
)
def test_image_tokens_are_as_many_as_the_embeddings(backbone: Backbone, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        expanded, embeddings = image_tokens(backbone, size)
    assert expanded == embeddings
    if backbone.settings.name == "llava":
        assert expanded == 16
    else:
        counted = backbone.processor._get_num_multimodal_tokens([(size[1], size[0])])["num_image_tokens"][0]
        assert expanded == counted - (2 if backbone.settings.name == "internvl" else 0)  # its marks around the image


def test_batches_are_padded_on_the_left_and_carry_what_the_model_needs(backbone: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_scienceqa"})
    inputs = backbone.inputs(benchmarks.load(benchmark, "tuning", 4))
    mask = inputs["attention_mask"]
    assert mask[:, -1].all()
    assert (mask == 0).any()
    assert ("mm_token_type_ids" in inputs) == (backbone.settings.name == "qwen2_5_vl")


def test_text_before_the_image_stands_right_before_it(backbone: Backbone) -> None:
    """Before the token that opens the image, in the user's turn, whatever the order of the template."""
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 7, "filler": "before_image"})
    (sample,) = benchmarks.load(benchmark, "tuning", 1)
    ids = backbone.inputs([sample])["input_ids"][0]
    image = backbone.model.config.image_token_id
    first = ids.tolist().index(image)
    decoded = backbone.processor.tokenizer.decode(ids[:first]).replace("<|vision_start|>", "").replace("<img>", "")
    words = sample.before.replace(":", " :").replace(".", " .").split()
    assert decoded.split()[-len(words) :] == words
    assert sample.question.split()[0] in backbone.processor.tokenizer.decode(ids[first:])
