"""The choice of heads on the tuning split: scores by hand, the file, what it is refused for, and its use."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdrs import backbones, benchmarks, head_scores
from tdrs.attention import core
from tdrs.attention.block import IMAGE, TEXT
from tdrs.attention.call import Call
from tdrs.backbones import Backbone
from tdrs.benchmarks import Record
from tdrs.calibrate import main_calibrate
from tdrs.configuration import compose, plain, run
from tdrs.evaluation import plan
from tdrs.first_token import compact
from tdrs.heads_file import read_heads
from tdrs.interventions.none import Stock
from tdrs.interventions.temperature import Temperature
from tdrs.records import Records
from tdrs.settings import SettingError

GIVEN = ("dataset=mini_pope", "limit=24", "dataset.gap=4")


def record(score: float, *probabilities: float) -> Record:
    return Record("", "", "", "", "", "", score, 0.0, "", 1.0, first_token=compact(np.log(np.array(probabilities))))


def test_influence_by_hand() -> None:
    """Wrong: the first token's probability falls by .4; right ones: by .1 and −.1, so 0 in the mean."""
    stock = [record(0, 0.7, 0.2, 0.1), record(1, 0.3, 0.6, 0.1), record(1, 0.2, 0.2, 0.6)]
    ablated = [record(1, 0.3, 0.6, 0.1), record(1, 0.4, 0.5, 0.1), record(1, 0.2, 0.1, 0.7)]
    found = head_scores.influence(stock, {(0, 0): stock, (0, 1): ablated}, (1, 2))
    assert found.tolist() == [[pytest.approx(0, abs=1e-9), pytest.approx(0.4)]]
    assert head_scores.ranked(found) == {"L0H1": 0.4, "L0H0": 0}
    assert list(head_scores.ranked(np.zeros((2, 2)))) == ["L0H0", "L0H1", "L1H0", "L1H1"]


@pytest.mark.parametrize(("score", "kind"), [(0.0, "right"), (1.0, "wrong")])
def test_influence_compares_wrong_with_right_answers(score: float, kind: str) -> None:
    with pytest.raises(SettingError, match=f"score = 'influence': .* no answer is {kind} here"):
        head_scores.answers_of([record(score, 0.5, 0.5)])


@pytest.mark.parametrize("score", ["text_weight", "image_logits"])
def test_scores_of_attention_are_those_of_its_maps(mini_llava: Backbone, score: str) -> None:
    """The last row of each prompt, of different lengths, in batches of two; nothing of the answers' tokens."""
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 3})
    samples = benchmarks.load(benchmark, "tuning", 3)
    found = head_scores.attention_scores(mini_llava, benchmark, samples, score, 2, (4, 4))
    expected = np.zeros((4, 4))
    for sample in samples:
        calls: list[Call] = []
        with mini_llava.intervene(head_scores._Reader()) as session:
            execute = session.execute

            def keep(call: Call, method: Any, calls: list[Call] = calls, execute: Any = execute) -> torch.Tensor:
                calls.append(call)
                return execute(call, method)

            session.execute = keep
            mini_llava.answer([sample], "gqa")
        for call in calls[:4]:
            assert call.roles is not None
            key = call.key.repeat_interleave(call.query.shape[1] // call.key.shape[1], dim=1)
            logits = (call.query[:, :, -1:] @ key.transpose(-1, -2) * call.scaling)[0, :, 0]
            weights = core.weights(call, Stock())[0, :, -1]
            text, image = (call.roles[0] == role for role in (TEXT, IMAGE))
            value = weights[:, text].sum(-1) if score == "text_weight" else -logits[:, image].sum(-1)
            expected[call.layer] += value.numpy() / len(samples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with mini_llava.intervene(head_scores._Reader()):
        edited = mini_llava.answer(samples, "gqa")
    stock = mini_llava.answer(samples, "gqa")
    assert [one.margin for one in edited] == pytest.approx([one.margin for one in stock], abs=1e-3)


Calibrated = Callable[..., Path]


@pytest.fixture
def calibrated(tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> Calibrated:
    def call(*words: str) -> Path:
        given = [*GIVEN, f"output={tmp_path}", f"file={tmp_path / 'chosen' / 'heads.yaml'}", *words]
        assert run("calibrate", main_calibrate, "", given) == 0, capsys.readouterr().err
        return tmp_path / "chosen" / "heads.yaml"

    return call


@pytest.mark.parametrize("name", ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"])
def test_heads_are_chosen_on_the_tuning_split_and_used(
    calibrated: Calibrated,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = calibrated(f"backbone={name}", "keep=3")
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("use it:")]
    _, module, *words = shlex.split(said.removeprefix("use it:  python"))
    assert module == "tdrs.evaluate"
    pasted = plain(compose("evaluate", words))
    assert (pasted["backbone"]["name"], pasted["intervention"]["heads"]) == (name, str(path))
    assert (pasted["intervention"]["name"], pasted["dataset"]["name"]) == ("ad_hh", "mini_pope")
    found, content = read_heads(path), path.read_bytes()
    shape = (found["backbone"]["layers"], found["backbone"]["heads"])
    assert len(found["scores"]) == shape[0] * shape[1]
    assert found["heads"] == list(found["scores"])[:3]
    assert list(found["scores"].values()) == sorted(found["scores"].values(), reverse=True)
    assert (found["split"], found["score"], found["n"]) == ("tuning", "influence", found["wrong"] + found["right"])

    # what was asked: the stock model and each head, tuning images alone
    values = plain(compose("evaluate", [f"backbone={name}", *GIVEN, "intervention=ad_hh", f"output={tmp_path}"]))
    held_out = {one.image_id for one in plan(values).load()}
    records = Records(tmp_path / "records")
    keys = [folder.name for folder in (tmp_path / "records").iterdir() if records.done(folder.name)]
    assert len(keys) == 1 + shape[0] * shape[1]
    assert not any(one.image_id in held_out for key in keys for one in records.read(key).records)
    changed = {**values, "split": "tuning", "intervention": {"name": "heads_off", "heads": [found["heads"][0]]}}
    assert plan(changed | {"limit": 24}).cache_key(plan(changed).load()) in keys

    # again: the same file, without a model
    monkeypatch.setattr(backbones, "load", None)
    assert calibrated(f"backbone={name}", "keep=3").read_bytes() == content

    # its use
    values["intervention"]["heads"] = str(path)
    used = plan(values)
    assert list(used.intervention.heads) == found["heads"]
    assert used.notes[0].endswith(f"chosen by influence on mini_pope, tuning split, n = {found['n']}")
    plain_ = {**values, "intervention": values["intervention"] | {"heads": found["heads"]}}
    samples = used.load()
    assert used.cache_key(samples) == plan(plain_).cache_key(samples)
    both = {"name": "together", "methods": ["ad_hh", "temperature"], "ad_hh": values["intervention"]}
    both["temperature"] = {"name": "temperature", "tau": 0.5}
    (part, other) = plan({**values, "intervention": both}).intervention.parts
    assert isinstance(part, Temperature)
    assert list(other.heads) == found["heads"]
    with pytest.raises(
        SettingError, match=r"intervention\.heads = .*: its heads were chosen in .*, with other weights"
    ):
        plan({**values, "backbone": plain(compose("evaluate", ["backbone=mini_llava_seed1"]))["backbone"]})


def test_defaults(calibrated: Calibrated, tmp_path: Path) -> None:
    """Choices by other settings do not replace each other; 2 % of 16 heads is one."""
    for gap in (4, 6):
        calibrated("file=null", f"dataset.gap={gap}")
    files = [read_heads(path) for path in (tmp_path / "heads").iterdir()]
    assert sorted(one["dataset"]["gap"] for one in files) == [4, 6]
    assert all(len(one["heads"]) == 1 for one in files)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keep=17"], "keep = 17: must be from 1 to 16 in this model"),
        (["keep=0"], "keep = 0: must be a whole number"),
        (["limit=0"], "limit = 0: must be a whole number"),
        (["score=attention"], "score = 'attention': must be one of influence, text_weight, image_logits"),
        (["intervention=temperature"], "score = None: must be given for temperature: influence, text_weight"),
        (["file=heads.json"], "file = 'heads.json': must end with .yaml"),
        (["file=OTHER.yaml"], "is no file of tdrs.calibrate"),
        (["intervention.heads=OTHER.yaml"], "intervention.heads = "),
        (["intervention.heads=none.yaml"], "intervention.heads = 'none.yaml': no such file"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    other = tmp_path / "OTHER.yaml"
    other.write_text("heads: [L0H0]\n")
    given = [word.replace("OTHER.yaml", str(other)) for word in words]
    assert run("calibrate", main_calibrate, "", [*GIVEN, f"output={tmp_path / 'out'}", *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert other.read_text() == "heads: [L0H0]\n"
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_changed_is_refused(calibrated: Calibrated) -> None:
    path = calibrated()
    text = path.read_text()
    path.write_text(text.replace("keep: 1", "keep: 2"))
    with pytest.raises(SettingError, match="another content than its checksum says"):
        read_heads(path)
    path.write_text(text)
    assert read_heads(path)["heads"]


def test_the_records_of_one_head_are_those_of_its_ablation(mini_llava: Backbone) -> None:
    """`heads_off` changes answers, and the other heads of the layer stay as they are."""
    benchmark = benchmarks.from_settings({"name": "mini_gqa", "gap": 0})
    samples = benchmarks.load(benchmark, "tuning", 2)
    margins = []
    for heads in (["L1H0"], ["L1H3"]):
        planned = plan(
            plain(compose("evaluate", ["intervention=heads_off"]))
            | {"intervention": {"name": "heads_off", "heads": heads}}
        )
        with mini_llava.intervene(planned.intervention):
            margins.append([one.margin for one in mini_llava.answer(samples, "gqa")])
    stock = [one.margin for one in mini_llava.answer(samples, "gqa")]
    assert all(not np.allclose(stock, one, atol=1e-3) for one in margins)
    assert not np.allclose(*margins, atol=1e-3)
    assert replace(planned.intervention, heads="all").active
