"""Every family at small width with random weights, from a folder in the hub's layout, through the real ones' path.

`docs/reference/families.md` has one row for each family of `NAMES`; `test_presets.py` compares them.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tdrs import DC, RE, TDRS, Stock, backbones, benchmarks, intervene
from tdrs.attention.block import IMAGE, Block
from tdrs.attention.call import Call
from tdrs.attention.core import blocked
from tdrs.attention.method import Method
from tdrs.attention.second_pass import PictureChange, SecondPass
from tdrs.backbones import Backbone, BackboneSettings, token_budget
from tdrs.backbones.two_passes import ChangedPicture
from tdrs.benchmarks.benchmark import Picture, PictureSet, Sample
from tdrs.evaluation import evaluate
from tdrs.interventions.cca import CCA
from tdrs.interventions.sid import SID
from tdrs.settings import SettingError
from tests.backbones.folders import write
from tests.backbones.small import SMALL, WINDOW
from tests.interventions import calls as oracle

NAMES = ["llava", "internvl", "qwen2_5_vl", *SMALL]
NEEDS = {"smolvlm": "num2words"}
WITHOUT_TILES = {"llava_onevision"}  # it encodes several pictures of a prompt otherwise than each alone
METHOD = TDRS(dc=DC(0.3, 0.7, "absolute"), re=RE(0.4, 1.3, "absolute"), distance="position", pairs="text_to_image")
ROWS = replace(METHOD, stats_scope="row", distance="index", pairs="all")
STEPS = 3
GRADIENTS = (Image.radial_gradient, Image.linear_gradient)
ROWS_TESTED = 14  # by the oracle's plain loops


@dataclass
class Run:
    """An edited generation of `STEPS` tokens for two prompts, the first one padded.

    Attributes:
        calls: the edited calls, by step and layer.
        before: queries and keys before rotation, from the layers' own modules, by layer, then by step.
    """

    backbone: Backbone
    inputs: dict[str, Any]
    said: Any
    calls: list[list[Call]]
    before: list[dict[str, list[torch.Tensor]]]

    @property
    def ids(self) -> torch.Tensor:
        return self.inputs["input_ids"]


def samples() -> list[Sample]:
    """Two prompts about two small pictures; the first one is shorter."""
    pictures = [Picture.of(make("L").resize((32, 16)).convert("RGB")) for make in GRADIENTS]
    short, long = "What color?", "What color is the circle?"
    return [
        Sample(text, text, picture, text, text, "red") for text, picture in zip((short, long), pictures, strict=True)
    ]


def generate(backbone: Backbone, inputs: dict[str, Any]) -> Any:
    asked = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    return backbone.model.generate(**inputs, **asked, output_logits=True, return_dict_in_generate=True)


def listen(attention: Any, found: dict[str, list[torch.Tensor]]) -> list[Any]:
    """Hooks that keep what a layer rotates: the output of the norms of queries and keys, or of their projections."""

    def keep(part: str, heads: int) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            by_head = output if output.dim() == 4 else output.unflatten(-1, (heads, -1))
            found[part].append(by_head if by_head.shape[1] == heads else by_head.transpose(1, 2))

        name = f"{part}_norm" if hasattr(attention, f"{part}_norm") else f"{part}_proj"
        return getattr(attention, name).register_forward_hook(hook)

    return [keep("q", 4), keep("k", 2)]


@pytest.fixture(scope="module", params=NAMES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    name = request.param
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name}'s processor needs {NEEDS[name]}")
    folder = write(name, tmp_path_factory.mktemp(name))
    attention = "eager" if name == "paligemma" else "sdpa"
    backbone = backbones.load(BackboneSettings(name, str(folder), device="cpu", max_new_tokens=2, attention=attention))
    inputs = backbone.model_inputs(samples())
    layers = backbone.model.get_decoder().layers
    before: list[dict[str, list[torch.Tensor]]] = [{"q": [], "k": []} for _ in layers]
    calls: list[Call] = []
    with torch.inference_mode(), intervene(backbone.model, METHOD) as session:
        backbone.model(**inputs)
        hooks = [hook for layer, found in zip(layers, before, strict=True) for hook in listen(layer.self_attn, found)]
        execute = session.execute

        def record(call: Call, method: Any) -> torch.Tensor:
            calls.append(call)
            return execute(call, method)

        session.execute = record
        said = generate(backbone, inputs)
        for hook in hooks:
            hook.remove()
    steps = [calls[start : start + len(layers)] for start in range(0, len(calls), len(layers))]
    return Run(backbone, inputs, said, steps, before)


def visible(run: Run, step: int, layer: int) -> torch.Tensor:
    """V of a call, from what the family's architecture says, (B, Q, K)."""
    length = run.ids.shape[1]
    total = length + step
    row = torch.arange(total)[:, None] if step == 0 else torch.tensor([[total - 1]])
    key = torch.arange(total)
    seen = (key <= row).expand(2, -1, -1)
    config = run.backbone.model.config.get_text_config()
    sliding = getattr(config, "layer_types", ["full_attention"] * 2)[layer] == "sliding_attention"
    near = row - key < WINDOW if sliding else torch.ones_like(row == key)
    kind = SMALL[run.backbone.settings.name].both_ways if run.backbone.settings.name in SMALL else ""
    if kind == "prompt":
        seen = (seen & near) | ((row < length) & (key < length))
    elif kind == "image" and step == 0:
        image = run.ids == run.backbone.model.config.image_token_id
        seen = (seen | (image[:, :, None] & image[:, None])) & near
    else:
        seen = seen & near
    real = torch.cat((run.inputs["attention_mask"].bool(), torch.ones(2, step, dtype=torch.bool)), dim=1)
    seen = seen & real[:, None] & (real[:, :, None] if step == 0 else True)
    return seen[..., -run.calls[step][layer].key.shape[2] :]


def test_all_off_is_stock_bit_for_bit_and_an_edit_is_not(run: Run) -> None:
    model = run.backbone.model
    real = run.inputs["attention_mask"].bool()
    with torch.inference_mode():
        stock = model(**run.inputs).logits
        with intervene(model, TDRS(sd=False, dc=None, re=None)):
            assert torch.equal(model(**run.inputs).logits, stock)
        with intervene(model, METHOD):
            edited = model(**run.inputs).logits
        assert torch.equal(model(**run.inputs).logits, stock)
    assert edited[real].isfinite().all()
    assert not torch.allclose(edited[real], stock[real], atol=1e-3)


def test_roles_follow_the_input_ids(run: Run) -> None:
    """Also with left padding and a sliding window's cache; a token of the answer is not an image token."""
    assert (run.inputs["attention_mask"][0] == 0).any()
    image = run.ids == run.backbone.model.config.image_token_id
    assert (image.sum(dim=1) > 0).all()
    for step, calls in enumerate(run.calls):
        expected = torch.cat((image, torch.zeros(2, step, dtype=torch.bool)), dim=1)
        for call in calls:
            assert torch.equal(call.roles == IMAGE, expected[:, -call.key.shape[2] :])


def test_vectors_before_rotation_are_recovered(run: Run) -> None:
    """In every layer and step, the cache's past included."""
    for step, calls in enumerate(run.calls):
        for call, found in zip(calls, run.before, strict=True):
            rows, keys = call.query.shape[2], call.key.shape[2]
            key = torch.cat(found["k"][: step + 1], dim=2)[:, :, -keys:]
            torch.testing.assert_close(
                Block(call, 0, rows, keys).unrotated_query, found["q"][step], atol=1e-4, rtol=1e-4
            )
            seen = call.without_padding(key.clone())
            torch.testing.assert_close(call.unrotated_key, seen, atol=1e-4, rtol=1e-4)


def test_v_is_what_the_architecture_shows(run: Run) -> None:
    """Windows hide distant keys, and attention in both directions shows later ones."""
    for step, calls in enumerate(run.calls):
        for layer, call in enumerate(calls):
            hidden = Block(call, 0, call.query.shape[2], call.key.shape[2]).hidden.expand(2, -1, -1, -1)[:, 0]
            assert torch.equal(~hidden, visible(run, step, layer)), (step, layer)


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_t_drs_equals_the_oracle(run: Run, step: int) -> None:
    """The core's output on the model's own calls, against float64 and plain loops; last rows of the padded prompt."""
    for layer, (call, found) in enumerate(zip(run.calls[step], run.before, strict=True)):
        keys = call.key.shape[2]
        of_tokens = {name: getattr(call, name)[:1] for name in ("key", "value", "roles", "positions")}
        query, mask = call.query[:1, :, -ROWS_TESTED:], None if call.mask is None else call.mask[:1, :, -ROWS_TESTED:]
        rotation = tuple(x[:1] for x in call.rotation)
        one = replace(call, query=query, mask=mask, rotation=rotation, **of_tokens, wanted=0, block_elements=150)
        key = torch.cat(found["k"][: step + 1], dim=2)[:1, :, -keys:]
        seen = visible(run, step, layer)[:1, -ROWS_TESTED:].numpy()
        sample = oracle.Sample(one, found["q"][step][:1, :, -ROWS_TESTED:], key, seen, one.positions[..., 0])
        expected = oracle.oracle_output(sample, one, "tdrs", METHOD, frozenset(range(4)))
        output = blocked(one, METHOD).double().numpy()
        assert np.abs(output - expected).max() < 2e-5 * float(call.value.abs().max()), layer


def test_a_sample_does_not_depend_on_its_neighbour_or_on_padding(run: Run) -> None:
    alone = run.backbone.model_inputs(samples()[:1])
    with torch.inference_mode(), intervene(run.backbone.model, ROWS):
        batch, single = (run.backbone.model(**inputs).logits for inputs in (run.inputs, alone))
    torch.testing.assert_close(batch[0, -1], single[0, -1], atol=2e-3, rtol=1e-3)


def test_decoding_with_a_cache_equals_reading_the_whole(run: Run) -> None:
    """With row statistics, the logits of each step are those of one pass over prompt and answer."""
    with torch.inference_mode(), intervene(run.backbone.model, ROWS):
        said = generate(run.backbone, run.inputs)
        whole = dict(run.inputs)
        whole["input_ids"] = said.sequences
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in whole:
                new = name == "attention_mask" or run.backbone.settings.name == "paligemma"
                whole[name] = torch.cat((whole[name], torch.full((2, STEPS), int(new))), dim=1)
        logits = run.backbone.model(**whole).logits
    for step, found in enumerate(said.logits):
        torch.testing.assert_close(found, logits[:, run.ids.shape[1] - 1 + step], atol=2e-3, rtol=1e-3)


def test_an_evaluation_end_to_end(run: Run) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 5})
    asked = benchmarks.load(benchmark, "tuning", 2)
    stock, off, edited = (
        evaluate(run.backbone, benchmark, asked, method, batch_size=2)
        for method in (Stock(), TDRS(sd=False, dc=None, re=None), TDRS())
    )
    assert off.records == stock.records
    assert [r.margin for r in edited.records] != [r.margin for r in stock.records]


@dataclass(frozen=True, kw_only=True)
class Second(Method):
    """The logits of the second pass alone."""

    sees: Any

    @property
    def second_pass(self) -> SecondPass:
        return SecondPass(combine=lambda first, second, step: second, **self.sees)


def test_a_second_pass_equals_a_pass_of_its_own(run: Run) -> None:
    """Without a picture, with another prompt, with a picture that is changed, or changed into itself."""

    def answers(sees: Any) -> list[float]:
        with run.backbone.intervene(Second(sees=sees)):
            found = run.backbone.answer(samples(), "gqa")
        return [json.loads(answer.first_token)[1] for answer in found]

    backbone = run.backbone
    itself, other = (PictureChange(f"times {n}", lambda pixels, _, n=n: n * pixels) for n in (1, -9))  # type: ignore[misc]
    stock = [json.loads(answer.first_token)[1] for answer in backbone.answer(samples(), "gqa")]
    assert answers({"change": itself}) == [pytest.approx(logs, abs=2e-3) for logs in stock]
    picture = samples()[0].picture
    changed = backbone.image_embeddings(ChangedPicture.by(picture, other))
    if changed.any():  # the random Gemma 3 has embeddings of 0
        assert not torch.equal(changed, backbone.image_embeddings(picture))
    assert changed.shape == backbone.image_embeddings(picture).shape
    longer = [replace(sample, prompt=f"Quickly: {sample.prompt}") for sample in samples()]
    expected = [json.loads(answer.first_token)[1] for answer in backbone.answer(longer, "gqa")]
    assert answers({"preface": "Quickly: "}) == [pytest.approx(logs, abs=2e-3) for logs in expected]
    for sample, found in zip(samples(), answers({"picture": False}), strict=True):
        given = backbone.processor.tokenizer([backbone.prompts.conversation(sample.prompt, 0)], return_tensors="pt")
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
        if "token_type_ids" in run.inputs:  # of text
            given["token_type_ids"] = torch.zeros_like(given["input_ids"])
        with torch.inference_mode():
            logs = backbone.model(**given).logits[0, -1].log_softmax(dim=-1)
        assert found == pytest.approx(logs.topk(len(found)).values.tolist(), abs=2e-3)


def test_an_edit_of_the_second_pass_depends_on_no_neighbour(run: Run) -> None:
    """Also where a sliding window's cache has dropped keys that were ranked."""
    backbone = run.backbone
    with backbone.intervene(SID(keep=0.3, alpha=3.0, layers="all", beta=0)) as session:
        together = backbone.answer(samples(), "gqa")
        alone = [backbone.answer([sample], "gqa")[0] for sample in samples()]
        assert session.edited == frozenset({0, 1})
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.margin for one in together] == pytest.approx([one.margin for one in alone], abs=5e-3)
    assert np.isfinite([one.margin for one in together]).all()


def test_common_beginnings_change_no_answer(run: Run) -> None:
    """Where a family's prompts are read in pieces, and where they are not."""
    (first, _) = samples()
    asked = [replace(first, id=word, prompt=f"{first.prompt} {word}") for word in ("yes", "no")]
    with intervene(run.backbone.model, ROWS):
        shared, whole = (replace(run.backbone, share_prefixes=share).answer(asked, "gqa") for share in (True, False))
    assert [a.text for a in shared] == [a.text for a in whole]
    assert [a.margin for a in shared] == pytest.approx([a.margin for a in whole], abs=2e-3)


def parts_of_the_tensors(backbone: Backbone, some: list[Sample]) -> None:
    """The tensors of a part of a batch are those that the processor gives for its prompts alone."""
    whole = backbone.prompts.tokens(some)
    for numbers in ([1], [2, 0], [0, 1, 2]):
        expected = backbone.prompts.tokens([some[number] for number in numbers])
        found = token_budget.part(whole, some, numbers)
        assert found is not None
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in expected.items()
        }


def test_a_part_of_a_batch_has_the_tensors_of_its_prompts_alone(run: Run) -> None:
    wide = Picture.of(Image.radial_gradient("L").resize((96, 32)).convert("RGB"))
    first, second = samples()[:2]
    longer = replace(first, prompt=f"{first.prompt} {second.prompt}", picture=wide)
    parts_of_the_tensors(run.backbone, [first, longer, second])


@pytest.mark.parametrize("size", [(64, 64), (17, 31)])
def test_image_tokens_are_as_many_as_the_embeddings(run: Run, size: tuple[int, int]) -> None:
    """And embeddings in place of pixels give the same logits."""
    backbone = run.backbone
    picture = Picture.of(Image.radial_gradient("L").resize(size).convert("RGB"))
    batch = backbone.inputs([replace(samples()[0], picture=picture)])
    image = batch["input_ids"] == backbone.model.config.image_token_id
    assert int(image.sum()) == len(backbone.image_embeddings(picture))
    tokens = {name: x for name, x in batch.items() if not name.startswith("pixel_")}
    with torch.inference_mode():
        whole = backbone.model(**batch).logits
        parts = backbone.model(**tokens, mm_encoder_outputs=backbone.images.model_inputs([picture])).logits
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_concentric_positions_are_those_of_each_tile(run: Run) -> None:
    """Four tiles of InternVL have as many tokens as one square. Where there are no squares, or they are not known, CCA
    is refused."""
    backbone = run.backbone
    picture = Picture.of(Image.radial_gradient("L").resize((96, 32)).convert("RGB"))
    (asked,) = (replace(sample, picture=picture) for sample in samples()[1:])
    side = backbone.prompts.family.tile_side(backbone.model.config)
    calls: list[Call] = []
    with backbone.intervene(CCA(layers=[0])) as session:
        execute = session.execute

        def record(call: Call, method: Any) -> torch.Tensor:
            calls.append(call)
            return execute(call, method)

        session.execute = record
        if not side and run.calls[0][0].positions.shape[2] == 1:
            with pytest.raises(SettingError, match="side = None: "):
                backbone.answer([asked], "gqa")
            return
        backbone.answer([asked], "gqa")
    image = (calls[0].roles == IMAGE)[0]
    moved = CCA()._positions(calls[0])[0, 0, image, 0].int().tolist()
    if side:
        rings = [4 * (size - 1) or 1 for size in range(side, 0, -2)]
        tiles = int(image.sum()) // side**2
        assert tiles == (4 if backbone.settings.name == "internvl" else tiles)
        assert list(Counter(moved).values()) == rings * tiles
    with backbone.intervene(CCA(side=7)):
        if side:
            with pytest.raises(SettingError, match=f"side = 7: must be {side} in this model, or null"):
                backbone.answer([asked], "gqa")


def several() -> list[Sample]:
    """Two questions about two pictures, and one about the first of them alone; the first prompt is padded."""
    one, other = (sample.picture for sample in samples())
    larger = Picture.of(other.open().resize((32, 32)))
    both = PictureSet.of_parts(lambda: [one, larger])
    asked = [("What color?", both), ("What color is the circle?", both), ("What color?", one)]
    return [Sample(f"{n}", "", picture, text, text, "red") for n, (text, picture) in enumerate(asked)]


def test_several_pictures_of_a_prompt(run: Run) -> None:
    """Embeddings give the logits of pixels; roles, padding, neighbours and the stages off are as for one picture."""
    backbone = run.backbone
    parts_of_the_tensors(backbone, several())
    pixels, inputs = backbone.inputs(several()), backbone.model_inputs(several())
    mask = pixels["attention_mask"].bool()
    assert not mask.all()
    image = pixels["input_ids"] == backbone.model.config.image_token_id
    counts = [len(backbone.image_embeddings(sample.picture)) for sample in several()]
    assert image.sum(dim=1).tolist() == counts
    roles: list[torch.Tensor] = []
    with torch.inference_mode():
        stock = backbone.model(**inputs).logits
        torch.testing.assert_close(stock[mask], backbone.model(**pixels).logits[mask], atol=1e-4, rtol=1e-4)
        with intervene(backbone.model, TDRS(sd=False, dc=None, re=None)):
            assert torch.equal(backbone.model(**inputs).logits, stock)
        with intervene(backbone.model, METHOD) as session:
            execute = session.execute

            def keep(call: Call, method: Any) -> torch.Tensor:
                roles.append(call.roles)
                return execute(call, method)

            session.execute = keep
            backbone.model(**inputs)
        with intervene(backbone.model, ROWS):
            edited = backbone.model(**inputs).logits
            alone = [backbone.model(**backbone.model_inputs([sample])).logits for sample in several()]
    assert torch.equal(roles[0] == IMAGE, image)
    parts = torch.cat([backbone.image_embeddings(part) for part in several()[0].picture.parts])
    together = backbone.image_embeddings(several()[0].picture)
    alike = parts.shape == together.shape and torch.allclose(parts, together, atol=1e-4)
    assert alike == (backbone.settings.name not in WITHOUT_TILES)
    for row, single in enumerate(alone):
        torch.testing.assert_close(edited[row, -1], single[0, -1], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(edited[:, -1], stock[:, -1], atol=1e-3)
    assert not torch.allclose(stock[0, -1], stock[2, -1], atol=1e-3)  # the second picture is seen


def test_a_second_pass_with_several_pictures(run: Run) -> None:
    """Each picture is changed into itself, or left out."""
    backbone, asked = run.backbone, several()
    stock = backbone.answer(asked, "gqa")
    same = PictureChange("times 1", lambda pixels, _: pixels)
    for sees in ({"change": same}, {}):
        with backbone.intervene(Second(sees=sees)):
            found = backbone.answer(asked, "gqa")
        assert [one.margin for one in found] == pytest.approx([one.margin for one in stock], abs=2e-3)
    with backbone.intervene(Second(sees={"picture": False})):
        assert [one.margin for one in backbone.answer(asked, "gqa")] != [one.margin for one in stock]


def test_common_beginnings_of_several_pictures_change_no_answer(run: Run) -> None:
    with intervene(run.backbone.model, ROWS):
        shared, whole = (
            replace(run.backbone, share_prefixes=share).answer(several(), "gqa") for share in (True, False)
        )
    assert [a.text for a in shared] == [a.text for a in whole]
    assert [a.margin for a in shared] == pytest.approx([a.margin for a in whole], abs=2e-3)


def test_positions_of_several_pictures(run: Run) -> None:
    """M-RoPE: each picture begins after the largest position before it; text continues after its longer side."""
    inputs = run.backbone.model_inputs(several())
    if "image_grid_thw" not in inputs:
        pytest.skip("positions are those of a text")
    config = run.backbone.model.config
    merge = config.vision_config.spatial_merge_size
    found = run.backbone.model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    grids = iter((inputs["image_grid_thw"] // torch.tensor([1, merge, merge])).tolist())
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        real = ids[mask.bool()].tolist()
        expected: list[tuple[int, int, int]] = []
        start = 0
        while len(expected) < len(real):
            if real[len(expected)] != config.image_token_id:
                expected.append((start, start, start))
                start += 1
                continue
            _, height, width = next(grids)
            expected += [(start, start + y, start + x) for y in range(height) for x in range(width)]
            start += max(height, width)
        assert found[-3:, row, mask.bool()].T.tolist() == [list(one) for one in expected]


def test_text_in_front_of_pictures_stands_in_front_of_their_marks(run: Run) -> None:
    """The picture's own marks, which its template or processor writes, stay beside it."""
    tokenizer = run.backbone.processor.tokenizer
    image = run.backbone.model.config.image_token_id
    for sample in several()[1:]:
        pair = [sample, replace(sample, before="no no\n")]
        near, far = (run.backbone.inputs([one])["input_ids"][0].tolist() for one in pair)
        added = tokenizer.encode("no no\n", add_special_tokens=False)
        places = [at for at in range(len(far)) if far[:at] + far[at + len(added) :] == near]
        assert places, tokenizer.decode(far)
        marks = {*tokenizer.added_tokens_decoder, tokenizer.convert_tokens_to_ids("\n")}
        between = far[max(places) + len(added) : far.index(image)]
        assert set(between) <= marks, tokenizer.decode(between)
        in_front = near[: min(places)]
        own = tokenizer.encode(run.backbone.prompts.conversation("?", 0).partition("?")[0], add_special_tokens=False)
        assert [token for token in in_front if token not in own] in ([], [tokenizer.bos_token_id])


def test_a_model_of_one_picture_a_prompt_is_named_before_it_is_loaded(run: Run, tmp_path: Path) -> None:
    settings = run.backbone.settings
    sizes = [(32, 16), (32, 32)]
    assert settings.accepts(sizes) == ""
    folder = tmp_path / "model"
    shutil.copytree(settings.folder, folder)
    (folder / "chat_template.jinja").write_text("<image>")
    limited = replace(settings, source=str(folder))
    assert limited.accepts(sizes) == "the chat template has a place for one"
    assert limited.accepts(sizes[:1]) == ""
