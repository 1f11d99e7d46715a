"""Expected tokens of every backend: the phases without cache, batch, padding or engine, on logits of all tokens."""

from collections.abc import Sequence

import numpy as np
import torch

from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import GrammarCursor
from acestep.planner.sampling import item_keys, sample
from acestep.types import SamplingSettings


def logits_after(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return (
            model.body(input_ids=torch.tensor([list(ids)], device=model.device)).last_hidden_state[:, -1].float()
            @ model.head.T.float()
        )


def guided_code_logits(model: LanguageModel, conditional, unconditional, written, scale: float) -> torch.Tensor:
    logits = logits_after(model, [*conditional, *written])
    if unconditional is not None:
        base = logits_after(model, [*unconditional, *written])
        logits = base + scale * (logits - base)
    layout = model.vocabulary.layout
    return logits[:, layout.code_base : layout.code_base + layout.code_count]


def codes(model: LanguageModel, conditional, unconditional, count: int, settings: SamplingSettings, seed: int):
    keys, written = item_keys(seed, "lm.codes", count).to(model.device), []
    for step in range(count):
        logits = guided_code_logits(model, conditional, unconditional, written, settings.guidance_scale)
        written.append(model.vocabulary.layout.code_base + int(sample(logits, settings, keys[step : step + 1])))
    return tuple(written)


def metadata(model: LanguageModel, prompt, cursor: GrammarCursor, settings: SamplingSettings, seed: int):
    written, keys = cursor.forced(), iter(item_keys(seed, "lm.cot", 640).to(model.device))
    while not cursor.done:
        ids = cursor.allowed().ids
        # Few candidates are numbered among themselves, many by their place among the text tokens.
        few = len(ids) <= 256
        drawn = _draw(model, [*prompt, *written], ids, few, settings, next(keys))
        cursor.accept(drawn)
        written += [drawn, *cursor.forced()]
    return tuple(written)


def free_text(model: LanguageModel, prompt, allowed, ends, stage: str, count: int, settings: SamplingSettings, seed):
    keys, written = item_keys(seed, stage, count).to(model.device), []
    for key in keys:
        written.append(_draw(model, [*prompt, *written], allowed, False, settings, key))
        if written[-1] in ends:
            break
    return tuple(written)


def _draw(model: LanguageModel, ids, allowed: np.ndarray, renumbered: bool, settings, key: torch.Tensor) -> int:
    logits, allowed = logits_after(model, ids), torch.from_numpy(allowed).to(model.device)
    if renumbered:
        return int(allowed[sample(logits[:, allowed], settings, key.unsqueeze(0))])
    text = logits[:, : model.vocabulary.layout.text_size]
    mask = torch.full_like(text, -torch.inf).index_fill(1, allowed, 0)
    return int(sample(text + mask, settings, key.unsqueeze(0)))
