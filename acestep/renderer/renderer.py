"""The renderer: conditions, diffusion loop and VAE decode, each stage a method of its own.

The stages call each other through ``self``, so an observer can wrap them from outside. Nothing between the first
denoising step and the copy of the audio to the host waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from acestep.errors import stage_errors
from acestep.renderer.conditioning import (
    Conditions,
    ConditionSwitch,
    encode_prompt,
    timbre_excerpt,
)
from acestep.renderer.context import context_latents, silence_latents, task_context
from acestep.renderer.finishing import finished, require_finite
from acestep.renderer.guidance import AdaptiveProjectedGuidance, Guidance
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import TEXT_INSTRUCTION
from acestep.renderer.request import Rendering, RenderRequest
from acestep.renderer.schedule import Schedule, make_schedule
from acestep.renderer.vae import (
    DEFAULT_TILE_LENGTH,
    Tile,
    TilePlan,
    encode,
    plan_encoding,
    plan_tiles,
    receptive_radius,
)
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
        latents = self.denoise(conditions, schedule, guidance, noise, progress)
        if request.task == "repaint":
            latents = conditions.with_source_kept(latents)
        latents = latents[:, : request.frames]
        audio = self.decode(latents, self.tile_plan(request.frames), progress)
        require_finite(latents, audio)
        return Rendering(
            finished(audio, request), steps=len(schedule.timesteps), guidance_scale=guidance.scale if guidance else 1.0
        )

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

        Below full cover strength a switch leads to what text2music would be told.

        Returns:
            Conditions of one song for all, or of each song if there are audio codes, for at least 128 frames.
        """
        models = self.models
        source = None if request.source is None else self._encode_whole(request.source.audio)
        timbre = None if request.reference is None else self._encode_whole(timbre_excerpt(request.reference))
        told = encode_prompt(models, request, request.instruction, timbre)
        conditions = Conditions(told, task_context(models, request, source))
        if request.cover_steps == request.steps:
            return conditions
        text_alone = Conditions(
            encode_prompt(models, request, TEXT_INSTRUCTION, timbre),
            context_latents(models, silence_latents(models, request.frames)),
        )
        return replace(conditions, switch=ConditionSwitch(request.cover_steps, text_alone))

    def _encode_whole(self, audio: torch.Tensor) -> torch.Tensor:
        return self.encode(audio, plan_encoding(self.models.vae, audio.shape[-1]))

    @torch.inference_mode()
    def encode(self, audio: torch.Tensor, plan: TilePlan) -> torch.Tensor:
        """Audio to latents (``acestep.renderer.vae.encode``), shape ``[1, frames, channels]``."""
        return encode(self.models, audio, plan)

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
        switch = conditions.switch
        projection = None if guidance is None else AdaptiveProjectedGuidance(guidance.scale)
        plain, guided_too = self._for_batch(conditions, latents.shape[0], guidance)
        for index, (timestep, next_timestep) in enumerate(schedule.intervals):
            if switch is not None and index == switch.step:
                plain, guided_too = self._for_batch(switch.conditions, latents.shape[0], guidance)
            guided = guidance is not None and guidance.applies_at(timestep)
            latents = self.denoise_step(
                latents,
                guided_too if guided else plain,
                index=index,
                timestep=timestep,
                next_timestep=next_timestep,
                projection=projection if guided else None,
            )
            if progress is not None:
                progress(Progress("dit", index + 1, len(schedule.timesteps)))
        return latents

    def _for_batch(
        self, conditions: Conditions, songs: int, guidance: Guidance | None
    ) -> tuple[Conditions, Conditions]:
        """Conditions for a step without guidance and for one with it."""
        plain = conditions.expanded(songs)
        if guidance is None:
            return plain, plain
        return plain, plain.with_unconditional(self.models.condition_encoder.null_condition_emb)

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
