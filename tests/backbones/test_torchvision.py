"""With torchvision or without it, the same tensors: processors are built for images alone in both cases.

torch's CPU build has no torchvision that matches, and the operators of its CUDA build do not load here. Its Python
part, which is all that processors use, does, once those operators have names; so the comparison runs in a process of
its own. `make test` puts it where this test looks for it.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_torchvision_available

from tdrs import backbones, benchmarks
from tdrs.configuration import choice

TORCHVISION = Path(sys.prefix) / "torchvision"  # see the Makefile
MODELS = ("mini_llava", "mini_internvl", "mini_qwen2_5_vl")
SIZES = ((64, 64), (130, 50), (33, 90))

NAME_ITS_OPERATORS = """
import importlib.util, pathlib, re, torch
text = (pathlib.Path(importlib.util.find_spec("torchvision").origin).parent / "_meta_registrations.py").read_text()
library = torch.library.Library("torchvision", "DEF")
for name in set(re.findall(r"torchvision::(\\w+)", text)) | set(re.findall(r'register_meta."(\\w+)"', text)):
    library.define(name + "(Tensor x) -> Tensor")
"""


def digests(name: str) -> dict[str, Any]:
    """The kinds of a model's processors, and hashes of its inputs for pictures of three shapes."""
    backbone = backbones.load(backbones.from_settings(choice("backbone", name)))
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa"}), "tuning", 3)
    found: dict[str, Any] = {}
    for number, (sample, size) in enumerate(zip(samples, SIZES, strict=True)):
        picture = sample.image.resize(size)
        text = backbone.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}],
            add_generation_prompt=True,
        )
        inputs = backbone.processor(text=[text], images=[picture], return_tensors="pt")
        for key, tensor in inputs.items():
            found[f"{number} {key}"] = [list(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest()]
    return {"video": getattr(backbone.processor, "video_processor", None) is not None, "inputs": found}


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is part of this installation")
@pytest.mark.skipif(not TORCHVISION.exists(), reason="torchvision's Python part was not put into .venv/torchvision")
def test_both_ways_give_the_same_tensors() -> None:
    script = f"{NAME_ITS_OPERATORS}\nimport json\nfrom tests.backbones.test_torchvision import MODELS, digests\n"
    script += "print(json.dumps({name: digests(name) for name in MODELS}))"
    paths = [str(Path(__file__).parents[2]), str(TORCHVISION)]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    present = json.loads(done.stdout.splitlines()[-1])
    for name in MODELS:
        absent = digests(name)
        assert present[name]["inputs"] == absent["inputs"]
        assert not absent["video"]
        assert not present[name]["video"]
