"""What lmms-eval reads of tdrs when it starts: the entry point `tdrs` in its group `lmms_eval.models`.

The model itself is in `tdrs.lmms_eval_model`, which is imported when somebody asks for it.
"""

from typing import Any


def manifest() -> Any:
    """The names of the classes for lmms-eval's two forms of requests: messages, and texts with pictures."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "tdrs.lmms_eval_model"
    return ModelManifest("tdrs", simple_class_path=f"{module}.SimpleModel", chat_class_path=f"{module}.ChatModel")
