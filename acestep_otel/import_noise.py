"""Messages that torchao causes in four libraries, about kernels and formats that are not used here."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Final

_NOISE: Final = {
    "torchao": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
"""Logger to words of the message that it should not tell."""


def silence() -> None:
    """Drop these messages, and no others; transformers and diffusers import torchao wherever it is installed."""
    for name, words in _NOISE.items():
        logging.getLogger(name).addFilter(partial(_says_something_else, words))
    # PyTorch then hashes a quantised weight in another way; nothing is lost.
    warnings.filterwarnings("ignore", message=".*does not implement _stable_hash_for_caching.*")


def _says_something_else(words: str, record: logging.LogRecord) -> bool:
    return words not in str(record.msg)
