"""Every configuration file composes; every bad override is one line that names it, with exit code 2."""

import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from tdrs import environment, interventions
from tdrs.backbones import BackboneSettings
from tdrs.benchmarks import mini_textvqa
from tdrs.configuration import compose, folder, kind_of, plain, run, with_settings
from tdrs.evaluation import plan
from tdrs.interventions import METHODS, TOGETHER
from tdrs.settings import SettingError, defaults
from tdrs.sweeps import protocol

GROUPS = sorted(path.relative_to(folder()) for path in folder().rglob("*.yaml") if path.parent != folder())


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_file_composes(path: Path) -> None:
    group, name = str(path.parent), path.stem
    if name == "lmms_eval":
        pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    name = "[tdrs,temperature]" if name == TOGETHER else name  # a list of methods chooses it
    words = [f"{'+' if group == 'experiment' else ''}{group}={name}"]
    if name in ("internvl2_8b", "hf"):  # the user makes its folder, or names its source
        words.append("backbone.source=embedded:mini_internvl")
    config = plain(compose("sweep", words))
    if str(path) not in (
        "search/compare.yaml",
        "search/grid.yaml",
        "search/points.yaml",
        "search/raced.yaml",
        "search/sampled.yaml",
        "search/tradeoff.yaml",
        "search/transfer.yaml",
    ):  # an experiment has the rest
        protocol.from_settings(config["search"])
    if name in ("language_model", "smollm2", "text"):  # a text is for a language model, whose folder the user makes
        return
    plan({**config, "split": "tuning", "limit": config["preset"]["tuning"]})


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_says_its_defaults(name: str) -> None:
    values = plain(compose("evaluate", [f"intervention={name}"]))["intervention"]
    assert interventions.from_settings(values) == METHODS[name]()
    if name != "none":
        assert {"name", *(field.name for field in fields(METHODS[name]))} == set(values)


def test_each_default_stands_once() -> None:
    """In its dataclass; a file of `conf` says only what differs from it."""
    for path in folder().rglob("*.yaml"):
        group = "" if path.parent == folder() else path.parent.name
        said = yaml.safe_load(path.read_text())
        kind = kind_of(group, str(said.get("name", path.stem)))
        own = defaults(kind) if kind else {}
        assert [key for key, value in said.items() if key in own and value == own[key]] == [], path


def test_every_file_of_a_search_has_its_protocols_defaults() -> None:
    """Protocols stand above the configuration, which cannot ask them: their files repeat the defaults."""
    changed = {
        "sampled": {"trials", "controls"},
        "raced": {"controls"},
        "grid": {"controls"},
        "coordinate": {"start", "controls"},
    }
    for name in protocol.PROTOCOLS:
        values = plain(compose("sweep", [f"search={name}"]))["search"]
        own = defaults(getattr(import_module(f"tdrs.sweeps.{name}"), protocol.PROTOCOLS[name]))
        differs = {key for key, value in values.items() if key in own and value != own[key]}
        assert differs <= changed.get(name, set()), (name, differs)


def test_every_experiment_says_how_to_run_it_and_what_to_expect() -> None:
    for path in (folder() / "experiment").glob("*.yaml"):
        head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
        assert f"python -m tdrs.sweep +experiment={path.stem}" in head
        assert "minutes" in head
        assert "Expect" in head


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "backbone=lava",
            "backbone = 'lava': must be one of gemma3_4b, hf, idefics3_8b, internvl2_5_8b_mpo, internvl2_8b, "
            "internvl3_5_8b, internvl3_8b, language_model, llava_1_5_13b, llava_1_5_7b, llava_next_7b, "
            "llava_onevision_7b, mini_internvl, mini_llava, mini_llava_long, mini_llava_seed1, mini_llava_seed2, "
            "mini_qwen2_5_vl, mistral3_24b, paligemma2_3b, pixtral_12b, qwen2_5_vl_7b, qwen2_vl_7b, qwen3_vl_8b, "
            "smollm2, smolvlm2_2b",
        ),
        (
            "dataset=vqa",
            "dataset = 'vqa': must be one of gqa, lmms_eval, mini_gqa, mini_pope, mini_scienceqa, mini_textvqa, own, "
            "pope, scienceqa, text, textvqa",
        ),
        (
            "+experiment=nothing",
            "experiment = 'nothing': must be one of distance, figure3, main_table, peers, pope_ablation, readings, "
            "rivals, search, search_table, sensitivity, smollm2, sqa_ablation, stage_ablation, table1, tradeoff, "
            "transfer, two_passes, zoo_card, zoo_long, zoo_seeds",
        ),
        ("intervention.dc.wmin=2", "intervention.dc.wmin = '2': no such setting; `--cfg` prints all of them"),
        ("bach_size=3", "bach_size = '3': no such setting; `--cfg` prints all of them"),
    ],
)
def test_unknown_names(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def never(config: DictConfig) -> None:
        raise AssertionError("reached")

    assert run("sweep", never, "", [override]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("intervention.dc.weight=-0.5", "intervention.dc.weight = -0.5: must be a finite number of at least 0"),
        ("intervention.re.w_min=0", "intervention.re.w_min = 0.0: must be a finite number above 0"),
        ("intervention.dc.w_min=nan", "intervention.dc.w_min = nan: must be a finite number above 0"),
        ("intervention.gain=both", "intervention.gain = 'both': must be one of logits, weights"),
        ("intervention.sd=2", "intervention.sd = 2: must be true or false"),
        ("intervention.dc=3", "intervention.dc = 3: must be a group of settings or null"),
        ("intervention.layers=[0,4]", "intervention.layers = [0, 4]: must be from 0 to 3 in this model"),
        ("intervention.heads=2-9", "intervention.heads = '2-9': must be from 0 to 3 in this model"),
        (
            "intervention.dc.w_min_as=absolute",
            "intervention.dc.w_min = 3.0: must be above 0 and below 1 with w_min_as=absolute",
        ),
        ("attention.execution=flash", "attention.execution = 'flash': must be one of auto, blocked, reference, triton"),
        ("dataset.gap=1.5", "dataset.gap = 1.5: must be a whole number"),
        ("dataset.gap=-1", "dataset.gap = -1: must be a whole number from 0 to 2048"),
        ("batch_size=0", "batch_size = 0: must be a whole number of at least 1"),
        ("backbone.dtype=int8", "backbone.dtype = 'int8': must be one of auto, float32, bfloat16, float16"),
        (
            "backbone.source=/no/where",
            "backbone.source = '/no/where': no such folder, and not a hub id (owner/name)",
        ),
        (
            "backbone.source=embedded:x",
            "backbone.source = 'embedded:x': must be one of embedded:mini_internvl, embedded:mini_llava, "
            "embedded:mini_llava_long, embedded:mini_llava_seed1, embedded:mini_llava_seed2, "
            "embedded:mini_qwen2_5_vl",
        ),
        ("split=test", "split = 'test': must be one of tuning, held_out"),
        ("limit=0", "limit = 0: must be a whole number of at least 1"),
    ],
)
def test_values_out_of_range(override: str, said: str) -> None:
    config = plain(compose("evaluate", ["intervention=tdrs", override]))
    with pytest.raises(SettingError) as error:
        plan(config)
    assert str(error.value) == said


def test_off_switches() -> None:
    config = plain(compose("evaluate", ["intervention=tdrs", "intervention.dc=null", "intervention.sd=false"]))
    method = plan(config).intervention
    assert method.dc is None
    assert not method.sd
    assert method.re is not None


def cache_key(*overrides: str) -> str:
    planned = plan(plain(compose("evaluate", ["intervention=tdrs", "limit=4", *overrides])))
    return planned.cache_key(planned.load())


@pytest.mark.parametrize(
    "override",
    [
        "dataset.gap=7",
        "dataset.seed=1",
        "dataset.rule=lmms_eval",
        "dataset.prompt=internvl",
        "dataset.blank=true",
        "dataset=mini_pope",
        "split=tuning",
        "limit=3",
        "batch_size=8",
        "attention.execution=reference",
        "backbone=mini_llava_seed1",
        "backbone.dtype=bfloat16",
        "backbone.attention=eager",
        "backbone.max_new_tokens=4",
        "intervention.gain=weights",
        "intervention.phase=prefill",
        "intervention.layers=[0,1]",
        "intervention=none",
    ],
)
def test_cache_key_follows_what_decides_the_records(override: str) -> None:
    assert cache_key(override) != cache_key()


@pytest.mark.parametrize(
    ("some", "others"),
    [
        ([], ["output=elsewhere", "tracking=none", "features_gib=0", "backbone.name=x", "dataset.name=mini_scienceqa"]),
        ([], ["attention.execution=auto", "intervention.layers=0-3", "intervention.heads=0%-100%"]),
        (["intervention.re=null"], ["intervention.re.weight=0", "intervention.re.w_min=7", "intervention.sigma_re=1"]),
        (
            ["intervention.re=null", "intervention.dc=null"],
            ["intervention.re.weight=0", "intervention.dc.weight=0", "intervention.gain=weights",
             "intervention.scale=max", "intervention.a_min_per=layer", "intervention.distance=position"],
        ),
        (["intervention.sd=false"], ["intervention.sd=false", "intervention.sd_form=full"]),
        (
            ["intervention.sd=false", "intervention.scale=none"],
            ["intervention.sd=false", "intervention.scale=none", "intervention.features=post_rope"],
        ),
        (
            ["intervention=none"],
            ["intervention.sd=false", "intervention.dc.weight=0", "intervention.re=null", "intervention.layers=[1]",
             "attention.execution=reference"],
        ),
        (["intervention=none"], ["intervention=temperature", "intervention.tau=1"]),
    ],
)  # fmt: skip
def test_settings_without_effect_decide_nothing(some: list[str], others: list[str]) -> None:
    assert cache_key(*some) == cache_key(*others)


@pytest.mark.parametrize("turned", [False, True])
def test_a_setting_does_not_replace_one_that_is_set_too(turned: bool) -> None:
    given = {"intervention": "tdrs", "intervention.dc.weight": 2, "intervention.dc": None}
    settings = dict(reversed(given.items())) if turned else given
    with pytest.raises(SettingError, match=r"intervention.dc'?: replaces intervention.dc.weight, which is set, too"):
        with_settings(plain(compose("sweep", [])), settings)


def test_cache_key_follows_the_content_not_the_path(tmp_path: Path) -> None:
    rows = mini_textvqa.dataset("held_out", 3)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_parquet(tmp_path / "b.parquet")
    rows.map(lambda row: {"answers": row["answers"][::-1]}).to_parquet(tmp_path / "c.parquet")
    found = []
    for name in "abc":
        given = [f"dataset.source={tmp_path}/{name}.parquet", "dataset.rows=null", "limit=3"]
        found.append(cache_key("dataset=textvqa", *given))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "pillow"])
def test_cache_key_follows_the_versions_that_decide_numbers(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = cache_key(), environment.version
    monkeypatch.setattr(environment, "version", lambda name: "9.9" if name == package else version(name))
    assert cache_key() != before


def test_cache_key_follows_whose_prompt_is_asked() -> None:
    """POPE's prompts of two toolkits are alike; how long an answer may be is not."""
    asked = [
        cache_key("dataset=mini_pope", "backbone.max_new_tokens=null", f"dataset.prompt={p}")
        for p in ("llava", "internvl")
    ]
    assert asked[0] != asked[1]
    assert cache_key("dataset.prompt=llava") == cache_key() == cache_key("dataset.rule=llava")
    assert cache_key("backbone.transparency=white") != cache_key()


def test_cache_key_follows_the_weights(tmp_path: Path) -> None:
    found = []
    for name, byte in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(byte)
        found.append(BackboneSettings("x", str(tmp_path / name)).fingerprint)
    assert found[0] == found[2] != found[1]


def test_help_and_cfg(capsys: pytest.CaptureFixture[str]) -> None:
    def never(config: DictConfig) -> None:
        raise AssertionError("reached")

    assert run("sweep", never, "usage line", ["--help"]) == 0
    assert "mini_llava" in capsys.readouterr().out
    assert run("sweep", never, "", ["--cfg", "dataset.gap=77"]) == 0
    assert "gap: 77" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "left"),
    [
        ("search.controls={}", {}),
        ("search.controls=null", {}),
        ("~search.controls", None),
        ("++search.controls={}", {}),
        ("search.controls={mine: {intervention: pai}}", {"mine": {"intervention": "pai"}}),
        ("search.series={weights: {intervention.gain: weights}}", None),
    ],
)
def test_a_mapping_of_search_replaces(override: str, left: object) -> None:
    """Hydra would merge it into the one that is there, and an empty one would change nothing."""
    config = plain(compose("sweep", [override]))["search"]
    if "series" in override:
        assert config["series"] == {"weights": {"intervention.gain": "weights"}}
    else:
        assert config.get("controls") == left
        assert len(protocol.from_settings(config).reported()) == len(left or {})


def test_an_axis_is_added_or_all_are_replaced() -> None:
    given = ["+experiment=peers", "search.axes={dataset: [mini_gqa, mini_pope]}"]
    assert plain(compose("sweep", given))["search"]["axes"] == {"dataset": ["mini_gqa", "mini_pope"]}
    given = ["+experiment=peers", "+search.axes={batch_size: [8, 16]}"]
    assert list(plain(compose("sweep", given))["search"]["axes"]) == ["data", "batch_size"]
    given = ["search=grid", "search.axes={batch_size: [8]}", "+search.axes.backbone=[mini_llava]"]
    assert list(plain(compose("sweep", given))["search"]["axes"]) == ["batch_size", "backbone"]


@pytest.mark.parametrize("override", ["intervention.dc={}", "backbone.image={}", "+search.axes={}", "study={}"])
def test_an_empty_mapping_is_refused_where_it_would_change_nothing(override: str) -> None:
    key = override.strip("+").partition("=")[0]
    with pytest.raises(SettingError, match=f"^{key} = {{}}: an empty mapping changes nothing; give settings"):
        compose("sweep", [override])


@pytest.mark.parametrize(
    "override",
    [
        "dataset.source=ckpt/epoch=3-step=900",
        "dataset.source=/data/x(1).parquet",
        "dataset.source=/data/x[1].parquet",
        "dataset.source=/data/a,b.parquet",
        "dataset.source=/data/#1/x",
        "backbone.system=It's fine",
        "backbone.system=Réponds !",
        "intervention.tau=0,5",
    ],
)
def test_what_hydras_grammar_does_not_take_is_shown_in_quotes(override: str) -> None:
    given = ["dataset=scienceqa", "intervention=temperature"]
    name, _, value = override.partition("=")
    with pytest.raises(SettingError) as error:
        compose("evaluate", [*given, override])
    assert str(error.value).startswith(f"{name} = {value!r}: ")
    (word,) = shlex.split(str(error.value).rpartition(":  ")[2])
    group, _, key = name.partition(".")
    assert plain(compose("evaluate", [*given, word]))[group][key] == value


def test_a_broken_mapping_is_no_text() -> None:
    with pytest.raises(
        SettingError, match=r"^search\.space = '\{a: \[1\}': is no mapping or list in Hydra's grammar: "
    ):
        compose("sweep", ["++search.space={a: [1}"])


@pytest.mark.parametrize("override", ["backbone", "backbone = mini_llava", "=3", "a b=3"])
def test_what_is_no_override_is_said(override: str) -> None:
    with pytest.raises(SettingError, match=r"command line = .*: must be SETTING=VALUE"):
        compose("evaluate", [override])
