"""The last look at the audio: is it sound, is it the right length, is it at the right level?"""

from __future__ import annotations

import torch

from acestep.audio import normalise_peak, prevent_clipping
from acestep.errors import InvalidOutput
from acestep.renderer.request import RenderRequest


def require_finite(latents: torch.Tensor, audio: torch.Tensor) -> None:
    """Refuse to hand on what cannot be played.

    Args:
        latents: of the songs, on the device.
        audio: decoded from them, on the host.

    Raises:
        InvalidOutput: NaN or infinity came out, with the stage that made it.
    """
    # The extremes carry NaN and infinity, and are found twenty times as fast as by testing every sample.
    if torch.isfinite(torch.stack(torch.aminmax(audio))).all():
        return
    # Non-finite latents always reach the audio, so the device is only asked when the audio is already lost.
    stage = "vae.decode" if torch.isfinite(latents).all() else "dit"
    raise InvalidOutput(f"NaN or infinity came out of stage {stage!r}; nothing was saved", stage=stage)


def finished(audio: torch.Tensor, request: RenderRequest) -> torch.Tensor:
    """Bring decoded songs to their length and level.

    A repainted song is its source outside the window, so its level is not touched: what overshoots full scale inside
    is clipped, since scaling it down would be heard as a step at the seams.

    Args:
        audio: float32 on the host, shape ``[songs, 2, samples]``.
        request: what was asked for.

    Returns:
        Within -1 ... 1, with a source as many samples as that has.
    """
    source = request.source
    if source is not None:
        audio = audio[..., : source.samples]
        if request.task == "repaint":
            return source.splice(audio.clamp(-1.0, 1.0))
    return prevent_clipping(audio) if request.peak_dbfs is None else normalise_peak(audio, request.peak_dbfs)
