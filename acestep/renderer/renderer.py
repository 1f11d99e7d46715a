"""The renderer: conditions, diffusion loop and VAE decode, each stage a method of its own.

The stages call each other through ``self``, so an observer can wrap them from outside. Nothing between the first
denoising step and the copy of the audio to the host waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from acestep.audio import normalise_peak, prevent_clipping
from acestep.errors import InvalidOutput, stage_errors
from acestep.renderer.conditioning import (
    Conditions,
    code_latents,
    context_latents,
    embed_lyrics,
    encode_conditions,
    encode_text,
    silence_latents,
)
from acestep.renderer.guidance import AdaptiveProjectedGuidance, Guidance
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import CODES_INSTRUCTION, TEXT_INSTRUCTION, caption_prompt, lyrics_prompt
from acestep.renderer.request import Rendering, RenderRequest
from acestep.renderer.schedule import Schedule, make_schedule
from acestep.renderer.vae import DEFAULT_TILE_LENGTH, Tile, TilePlan, plan_tiles, receptive_radius
from acestep.types import SAMPLES_PER_FRAME, Progress, ProgressCallback

__all__ = ["RenderRequest", "Renderer", "Rendering"]


class Renderer:
    """Renders songs with one set of models.

    Args:
        models: loaded models; they are only read.
    """

    def __init__(self, models: RendererModels) -> None:
        self.models = models

    def render(self, request: RenderRequest, progress: ProgressCallback | None = None) -> Rendering:
        """Render one song per seed. A song depends on its seed and codes, not on its place in the batch.

        Args:
            request: what to render.
            progress: called after every denoising step and every tile.

        Raises:
            InvalidRequest: a value that the model does not accept.
            OutOfMemory: with the stage that ran out.
            InvalidOutput: NaN or infinity came out, with the stage that made it.
        """
        schedule = make_schedule(request.steps, request.shift)
        guidance = self.guidance(request)
        conditions = self.condition(request)
        noise = self.noise(request.seeds, conditions.context_latents.shape[1])
        latents = self.denoise(conditions, schedule, guidance, noise, progress)[:, : request.frames]
        audio = self.decode(latents, self.tile_plan(request.frames), progress)
        _require_finite(latents, audio)
        peak = request.peak_dbfs
        audio = prevent_clipping(audio) if peak is None else normalise_peak(audio, peak)
        return Rendering(audio, steps=len(schedule.timesteps), guidance_scale=guidance.scale if guidance else 1.0)

    def guidance(self, request: RenderRequest) -> Guidance | None:
        """The guidance to apply: ``None`` on turbo models, whose weights contain it, and for a scale of 1 or less."""
        guidance = Guidance(request.guidance_scale, request.guidance_interval)
        return guidance if guidance.scale > 1.0 and not self.models.is_turbo else None

    def tile_plan(self, frames: int, tile_length: int = DEFAULT_TILE_LENGTH) -> TilePlan:
        """Tiles with just the overlap that the decoder's receptive field needs."""
        return plan_tiles(frames, tile_length, receptive_radius(self.models.vae.upsampling_ratios))

    @stage_errors("condition")
    @torch.inference_mode()
    def condition(self, request: RenderRequest) -> Conditions:
        """Encode what the transformer is told: once per request, however many songs follow.

        Without audio codes the source is silence; with them it is what they stand for.

        Returns:
            Conditions of one song for all, or of each song if there are audio codes, for at least 128 frames.
        """
        instruction = CODES_INSTRUCTION if request.has_codes else TEXT_INSTRUCTION
        caption = caption_prompt(request.caption, request.metadata, request.duration, instruction)
        text = encode_text(self.models, caption)
        lyrics = embed_lyrics(self.models, lyrics_prompt(request.lyrics, request.metadata.language))
        if request.has_codes:
            source = code_latents(self.models, request.codes)
        else:
            source = silence_latents(self.models, request.frames)
        return Conditions(encode_conditions(self.models, text, lyrics), context_latents(self.models, source))

    def noise(self, seeds: Sequence[int], frames: int) -> torch.Tensor:
        """Where the diffusion starts, float32 on the host, shape ``[songs, frames, channels]``.

        Each seed has a generator of its own on the CPU, so a seed means the same noise on every device, in every
        dtype and at every place in a batch. The global generator is not touched.
        """
        channels = self.models.transformer.config.audio_acoustic_hidden_dim
        return torch.stack(
            [torch.randn(frames, channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )

    @stage_errors("dit")
    @torch.inference_mode()
    def denoise(
        self,
        conditions: Conditions,
        schedule: Schedule,
        guidance: Guidance | None,
        noise: torch.Tensor,
        progress: ProgressCallback | None = None,
    ) -> torch.Tensor:
        """Follow the velocity from noise to latents with Euler's method.

        The latents stay in float32 between the steps; only the transformer works in its own dtype. In bfloat16 the
        small late updates would otherwise be rounded away.

        Args:
            conditions: for one song, or for every song of the batch.
            schedule: the times.
            guidance: ``None`` for one conditional prediction per step.
            noise: shape ``[songs, frames, channels]``.
            progress: called after every step has been handed to the device.

        Returns:
            Latents, float32 on the device, the shape of ``noise``.
        """
        latents = noise.to(self.models.device, torch.float32)
        conditions = conditions.expanded(latents.shape[0])
        projection = None
        guided_conditions = conditions
        if guidance is not None:
            projection = AdaptiveProjectedGuidance(guidance.scale)
            guided_conditions = conditions.with_unconditional(self.models.condition_encoder.null_condition_emb)
        for index, (timestep, next_timestep) in enumerate(schedule.intervals):
            guided = guidance is not None and guidance.applies_at(timestep)
            latents = self.denoise_step(
                latents,
                guided_conditions if guided else conditions,
                index=index,
                timestep=timestep,
                next_timestep=next_timestep,
                projection=projection if guided else None,
            )
            if progress is not None:
                progress(Progress("dit", index + 1, len(schedule.timesteps)))
        return latents

    def denoise_step(
        self,
        latents: torch.Tensor,
        conditions: Conditions,
        *,
        index: int,  # noqa: ARG002 - names the step to an observer
        timestep: float,
        next_timestep: float,
        projection: AdaptiveProjectedGuidance | None = None,
    ) -> torch.Tensor:
        """One forward of the transformer, guidance and one Euler update. Never waits for the device.

        Args:
            latents: float32, shape ``[songs, frames, channels]``.
            conditions: for the songs; with ``projection``, for the songs followed by their unconditional twins.
            index: number of the step, from 0; the step itself does not depend on it.
            timestep: t at the start of the step.
            next_timestep: t at its end.
            projection: state of the guidance, or ``None`` to take the conditional velocity as it is.

        Returns:
            The latents at ``next_timestep``, float32.
        """
        if projection is None:
            velocity = self.predict_velocity(latents, conditions, timestep)
        else:
            both = self.predict_velocity(latents.repeat(2, 1, 1), conditions, timestep)
            velocity = projection.combine(*both.chunk(2))
        return latents + (next_timestep - timestep) * velocity

    def predict_velocity(self, latents: torch.Tensor, conditions: Conditions, timestep: float) -> torch.Tensor:
        """The transformer's velocity at time t, float32, the shape of ``latents``."""
        dtype = self.models.dtype
        # A fill, not a copy from the host: a copy could wait for the device.
        times = torch.full((latents.shape[0],), timestep, device=latents.device, dtype=dtype)
        velocity: torch.Tensor
        (velocity,) = self.models.transformer(
            hidden_states=latents.to(dtype),
            timestep=times,
            timestep_r=times,
            encoder_hidden_states=conditions.encoder_hidden_states,
            context_latents=conditions.context_latents,
            return_dict=False,
        )
        return velocity.float()

    @stage_errors("vae.decode")
    @torch.inference_mode()
    def decode(self, latents: torch.Tensor, plan: TilePlan, progress: ProgressCallback | None = None) -> torch.Tensor:
        """Latents to audio: all tiles of all songs on the device, then one copy to the host.

        Songs are decoded one after the other, so memory does not grow with the batch.

        Args:
            latents: shape ``[songs, frames, channels]``.
            plan: for ``frames``.
            progress: called after every tile has been handed to the device.

        Returns:
            float32 on the host, shape ``[songs, 2, samples]``.
        """
        songs = latents.shape[0]
        audio = torch.empty(
            (songs, 2, plan.frames * SAMPLES_PER_FRAME), device=self.models.device, dtype=self.models.dtype
        )
        total = songs * len(plan.tiles)
        for song in range(songs):
            for number, tile in enumerate(plan.tiles):
                index = song * len(plan.tiles) + number
                start, stop = (frame * SAMPLES_PER_FRAME for frame in tile.kept)
                audio[song, :, start:stop] = self.decode_tile(latents[song], tile=tile, index=index)
                if progress is not None:
                    progress(Progress("vae.decode", index + 1, total))
        return audio.cpu().float()

    def decode_tile(
        self,
        latents: torch.Tensor,
        *,
        tile: Tile,
        index: int,  # noqa: ARG002 - names the tile to an observer
    ) -> torch.Tensor:
        """The decoder over one tile.

        Args:
            latents: of the whole song, shape ``[frames, channels]``.
            tile: which frames to decode, and which to keep.
            index: number of the tile in the request, from 0; the result does not depend on it.

        Returns:
            Audio of the kept frames on the device, model dtype, shape ``[2, samples]``.
        """
        window_start, window_stop = tile.window
        window = latents[window_start:window_stop].to(self.models.dtype).T.unsqueeze(0)
        decoded: torch.Tensor = self.models.vae.decode(window, return_dict=False)[0][0]
        start, stop = ((frame - window_start) * SAMPLES_PER_FRAME for frame in tile.kept)
        return decoded[:, start:stop]


def _require_finite(latents: torch.Tensor, audio: torch.Tensor) -> None:
    # The extremes carry NaN and infinity, and are found twenty times as fast as by testing every sample.
    if torch.isfinite(torch.stack(torch.aminmax(audio))).all():
        return
    # Non-finite latents always reach the audio, so the device is only asked when the audio is already lost.
    stage = "vae.decode" if torch.isfinite(latents).all() else "dit"
    raise InvalidOutput(f"NaN or infinity came out of stage {stage!r}; nothing was saved", stage=stage)
