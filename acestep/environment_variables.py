"""The environment variables of the engine, for programs that take their settings from the environment.

No function of the engine reads them: a program calls ``EnvironmentSettings.read`` and passes on the values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from acestep.errors import InvalidRequest
from acestep.renderer.decode_fallbacks import SHORTEST_TILE, DecodeSettings

CUDA_MEMORY: Final = "MAX_CUDA_VRAM"
"""GiB that decide the tier instead of the card's own memory, and that may be used at most: simulates a tier on another
card."""
MPS_MEMORY: Final = "MAX_MPS_VRAM"
"""GiB that decide the tier if ``MAX_CUDA_VRAM`` is not set."""
COMPILE_MODEL: Final = "ACESTEP_COMPILE_MODEL"
"""Compile the models even if nothing is quantised."""
LM_FUSED: Final = "ACESTEP_LM_FUSED"
"""``0`` turns off the fused Triton kernels of the pt backend (CUDA, bfloat16)."""
RENDERER_FUSED: Final = "ACESTEP_RENDERER_FUSED"
"""``0`` turns off the renderer's Triton kernels and recorded CUDA graphs (CUDA)."""
VAE_ON_CPU: Final = "ACESTEP_VAE_ON_CPU"
"""Decode on the host from the start."""
VAE_TILE_LENGTH: Final = "ACESTEP_VAE_DECODE_CHUNK_SIZE"
"""Latent frames of the first tile length tried."""

_YES: Final = frozenset({"1", "true", "yes", "y", "on"})
_NO: Final = frozenset({"0", "false", "no", "n", "off"})


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """Values of the variables.

    Attributes:
        memory_limit: GiB that the process may use of a CUDA card; ``None`` for all of it.
        gpu_memory: GiB that decide the tier; ``None`` for the device's own.
        compile: compile the models.
        fused_decode: use the fused kernels of the pt and vllm backends.
        fused_render: use the renderer's kernels and recorded CUDA graphs.
        decode: how the VAE decodes.
    """

    memory_limit: float | None = None
    gpu_memory: float | None = None
    compile: bool = False
    fused_decode: bool = True
    fused_render: bool = True
    decode: DecodeSettings = DecodeSettings()  # noqa: RUF009 (immutable)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Read every variable.

        Args:
            environment: for example ``os.environ``.

        Raises:
            InvalidRequest: the value of a variable is invalid; the message names it.
        """
        memory_limit = _memory(environment, CUDA_MEMORY)
        mps_memory = _memory(environment, MPS_MEMORY)
        return cls(
            memory_limit=memory_limit,
            gpu_memory=mps_memory if memory_limit is None else memory_limit,
            compile=_says_yes(environment, COMPILE_MODEL, default=False),
            fused_decode=_says_yes(environment, LM_FUSED, default=True),
            fused_render=_says_yes(environment, RENDERER_FUSED, default=True),
            decode=DecodeSettings(
                on_cpu=_says_yes(environment, VAE_ON_CPU, default=False), tile_length=_tile_length(environment)
            ),
        )


def _says_yes(environment: Mapping[str, str], variable: str, *, default: bool) -> bool:
    word = environment.get(variable, "").strip().lower()
    if not word:
        return default
    if word not in _YES | _NO:
        raise InvalidRequest(f"{variable}={word!r} is not a boolean: give 1 or 0")
    return word in _YES


def _memory(environment: Mapping[str, str], variable: str) -> float | None:
    word = environment.get(variable, "").strip()
    if not word:
        return None
    try:
        size = float(word)
    except ValueError:
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise InvalidRequest(f"{variable}={word!r} is not a size: give GiB above 0, for example 8 or 15.5")
    return size


def _tile_length(environment: Mapping[str, str]) -> int | None:
    word = environment.get(VAE_TILE_LENGTH, "").strip()
    if not word:
        return None
    if not re.fullmatch("[0-9]{1,9}", word) or int(word) < SHORTEST_TILE:
        raise InvalidRequest(
            f"{VAE_TILE_LENGTH}={word!r} is not a tile length: give latent frames (25 per second), "
            f"{SHORTEST_TILE} or more"
        )
    return int(word)
