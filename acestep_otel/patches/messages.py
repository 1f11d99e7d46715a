"""Texts in the JSON of the GenAI conventions, as trace viewers show conversations."""

from __future__ import annotations

import json


def input_messages(*texts: str) -> str:
    """The user's texts (``gen_ai.input.messages``): one message, with a part for each text that is not empty."""
    return json.dumps([{"role": "user", "parts": _parts(texts)}], ensure_ascii=False)


def output_messages(finish_reason: str, *texts: str) -> str:
    """The model's output (``gen_ai.output.messages``).

    Args:
        finish_reason: ``stop``, or ``length`` where a limit ended it.
        texts: in order.
    """
    message = {"role": "assistant", "parts": _parts(texts), "finish_reason": finish_reason}
    return json.dumps([message], ensure_ascii=False)


def _parts(texts: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"type": "text", "content": text} for text in texts if text]
