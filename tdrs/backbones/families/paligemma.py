"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555)."""

from typing import Any

from tdrs.backbones.families.family import Family


class PaliGemma(Family):
    """All tokens of a prompt attend to each other. PaliGemma 2 caps its logits, which needs `attention=eager`."""

    model_type = "paligemma"
    windows_hide = False  # within a prompt
    # The hub's folders have none: the model was trained on a picture, one text and a line break.
    chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('PaliGemma takes no system prompt') }}{% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}{{ '\n' if message['role'] == 'user' else '<eos>' }}{% endfor %}"
    )

    def processor_text(self, text: str) -> str:
        return text.removesuffix("\n")  # the processor adds one

    def tile_side(self, config: Any) -> int:
        return int(config.vision_config.image_size // config.vision_config.patch_size)
