"""Messages that torchao causes in four libraries while it is imported, about kernels and formats that are not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

_NOISE: Final = {
    "torchao": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
"""Text of each message, by its logger."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop these messages, and no others, inside the block: transformers and diffusers import torchao if they can."""
    with ExitStack() as stack:
        for name, words in _NOISE.items():
            logger, is_wanted = logging.getLogger(name), partial(_lacks, words)
            logger.addFilter(is_wanted)
            stack.callback(logger.removeFilter, is_wanted)
        yield


def _lacks(words: str, record: logging.LogRecord) -> bool:
    return words not in str(record.msg)
