"""The renderer: conditions, diffusion loop and VAE decode, each stage a separate method.

The stages are methods that are looked up when they are called, so an observer can wrap them. Nothing between the first
denoising step and the copy of the audio to the host waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from acestep.audio import normalise_peak, prevent_clipping
from acestep.errors import InvalidOutput, stage_errors
from acestep.offloading import ModelOffloader
from acestep.renderer.adapters import AdapterSet
from acestep.renderer.conditioning import (
    Conditions,
    ConditionSwitch,
    encode_conditions,
    encode_prompt,
    timbre_excerpt,
)
from acestep.renderer.context import context_latents, padded_source, silence_latents, task_context
from acestep.renderer.decode_fallbacks import DecodeSettings
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.diffusion import (
    DenoisingStep,
    Guidance,
    Projection,
    Schedule,
    custom_schedule,
    make_schedule,
)
from acestep.renderer.encoders import Encoders
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import TEXT_INSTRUCTION
from acestep.renderer.render_request import Rendering, RenderRequest
from acestep.renderer.sampling import Repaint, RepaintSettings, Sampler, retaken, step_noise
from acestep.renderer.vae import TilePlan, encode, plan_encoding
from acestep.renderer.velocity import Velocity
from acestep.types import Placement, Progress, ProgressCallback, SamplerSettings

__all__ = ["RenderRequest", "Renderer", "Rendering"]


class Renderer:
    """Renders songs with one set of models.

    Args:
        models: loaded models; they are only read.
        offloader: decides where they are between uses; on their device when not given.
        decoding: the user's settings of the VAE decode.
        fuse: on CUDA in bfloat16, use the engine's kernels and record repeated work as graphs, where both work.
    """

    def __init__(
        self,
        models: RendererModels,
        offloader: ModelOffloader | None = None,
        decoding: DecodeSettings | None = None,
        *,
        fuse: bool = True,
    ) -> None:
        self.models = models
        self.offloader = offloader or ModelOffloader(models.device, Placement())
        self.decoder = VaeDecoder(models, self.offloader, decoding or DecodeSettings(), fuse=fuse)
        self.velocity = Velocity(models, self.offloader, fuse=fuse)
        self.encoders = Encoders(models, self.offloader, record=fuse)
        quantization = self.offloader.placement.quantization
        merged = f"the weights are quantised ({quantization}), and hold the adapters that were loaded with them"
        self.adapters = AdapterSet(
            models.transformer, models.device, models.adapters, merged=merged if quantization else None
        )

    def render(self, request: RenderRequest, progress: ProgressCallback | None = None) -> Rendering:
        """Render one song per seed. A song depends on its seed and codes, not on its place in the batch.

        Args:
            request: what to render.
            progress: called after every denoising step and every tile.

        Raises:
            InvalidRequest: more frames than the model renders.
            OutOfMemory: with the stage that ran out.
            InvalidOutput: a stage produced NaN or infinity; names the stage.
        """
        schedule = self.schedule(request)
        request = replace(request, steps=len(schedule.timesteps))
        guidance = self.guidance(request)
        try:
            conditions = self.condition(request)
            noise = self.noise(request.seeds, conditions.context_latents.shape[1])
            if request.retake_seeds:
                noise = retaken(noise, self.noise(request.retake_seeds, noise.shape[1]), request.retake_variance)
            start = self._start(request, conditions, schedule, noise)
            sampler = self._sampler(request, conditions, noise)
            with (
                self.adapters.applied(request.adapters),
                self.offloader.on_device(transformer=self.models.transformer),
            ):
                latents = self.denoise(conditions, schedule, guidance, start, progress, sampler)
            latents = latents[:, : request.frames]
            with self.decoder.on_device():
                decoded = self.decoder.decode(
                    latents, self.decoder.fallbacks(request.frames), progress, partial(at_level, request=request)
                )
        finally:
            self.offloader.empty_cache()
        require_finite(latents, decoded.extremes)
        return Rendering(
            spliced(decoded.audio, request),
            steps=len(schedule.timesteps),
            guidance_scale=guidance.scale if guidance else 1.0,
            vae_decode=decoded.decoding,
        )

    def schedule(self, request: RenderRequest) -> Schedule:
        """The times to evaluate: the user's own, or uniform ones; from the source's noise level on, if one is given."""
        if request.timesteps:
            schedule = custom_schedule(request.timesteps, request.shift, is_turbo=self.models.is_turbo)
        else:
            schedule = make_schedule(request.steps, request.shift)
        strength = request.cover_noise_strength
        return schedule.from_level(1.0 - strength) if strength > 0 else schedule

    def _start(
        self, request: RenderRequest, conditions: Conditions, schedule: Schedule, noise: torch.Tensor
    ) -> torch.Tensor:
        """Where the diffusion starts: noise, or the source at the noise of the first time."""
        if not request.cover_noise_strength or conditions.source_latents is None:
            return noise
        level = schedule.timesteps[0]
        return level * noise.to(self.models.device) + (1.0 - level) * conditions.source_latents.float()

    def _sampler(self, request: RenderRequest, conditions: Conditions, noise: torch.Tensor) -> Sampler:
        repaint = None
        if request.task == "repaint" and request.source is not None and conditions.source_latents is not None:
            repaint = Repaint(
                conditions.source_latents.float(),
                request.source.frame_window,
                noise.to(self.models.device),
                RepaintSettings.of(request.repaint_mode, request.repaint_strength),
            )
        settings, is_turbo = request.sampler, self.models.is_turbo
        correct = is_turbo if settings.dcw_enabled is None else settings.dcw_enabled
        return Sampler(
            replace(settings, dcw_enabled=correct),
            request.steps,
            is_turbo=is_turbo,
            noise=step_noise(request.seeds, noise.shape[1:]) if request.sampler.infer_method == "sde" else None,
            repaint=repaint,
        )

    def guidance(self, request: RenderRequest) -> Guidance | None:
        """The guidance to apply: ``None`` on turbo models, whose weights contain it, and for a scale of 1 or less."""
        guidance = Guidance(request.guidance_scale, request.guidance_interval, request.use_adg)
        return guidance if guidance.scale > 1.0 and not self.models.is_turbo else None

    @stage_errors("condition")
    @torch.inference_mode()
    def condition(self, request: RenderRequest) -> Conditions:
        """Encode the conditions of the transformer: once per request, whatever the number of songs.

        Below full cover strength there is a switch to the conditions of text2music.

        Returns:
            Conditions of one song for all, or of each song if there are audio codes, for at least 128 frames.
        """
        models = self.models
        source, timbre = self._encode_recordings(request)
        follows_text_later = request.cover_steps < request.steps
        instructions = (request.instruction, *((TEXT_INSTRUCTION,) if follows_text_later else ()))
        with self.offloader.on_device(text_encoder=models.text_encoder):
            prompts = [encode_prompt(models, request, instruction, self.encoders) for instruction in instructions]
        with self.offloader.on_device(condition_encoder=models.condition_encoder, **self._code_models(request)):
            encoded = [
                encode_conditions(models, text, lyrics, timbre, encoders=self.encoders) for text, lyrics in prompts
            ]
            context = task_context(models, request, source)
            clean = padded_source(models, source, context.shape[1])
            conditions = Conditions(encoded[0], context, source_latents=clean)
            if not follows_text_later:
                return conditions
            text_alone = Conditions(encoded[1], context_latents(models, silence_latents(models, request.frames)))
        return replace(conditions, switch=ConditionSwitch(request.cover_steps, text_alone))

    def _encode_recordings(self, request: RenderRequest) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Latents of the source and of the reference's excerpt; ``None`` for one that is not given."""
        recordings = (
            None if request.source is None else request.source.audio,
            None if request.reference is None else timbre_excerpt(request.reference),
        )
        if recordings == (None, None):
            return None, None
        with self.offloader.on_device(vae=self.models.vae):
            source, timbre = (None if audio is None else self._encode_whole(audio) for audio in recordings)
        return source, timbre

    def _code_models(self, request: RenderRequest) -> dict[str, Any]:
        """The models that the request's context needs besides the condition encoder."""
        if not (request.has_codes or request.task == "cover"):
            return {}
        return {name: getattr(self.models, name) for name in ("audio_tokenizer", "audio_token_detokenizer")}

    def _encode_whole(self, audio: torch.Tensor) -> torch.Tensor:
        return self.encode(audio, plan_encoding(self.models.vae, audio.shape[-1]))

    @torch.inference_mode()
    def encode(self, audio: torch.Tensor, plan: TilePlan) -> torch.Tensor:
        """Audio to latents (``acestep.renderer.vae.encode``), shape ``[1, frames, channels]``."""
        return encode(self.models, audio, plan)

    def noise(self, seeds: Sequence[int], frames: int) -> torch.Tensor:
        """Where the diffusion starts, float32 on the host, shape ``[songs, frames, channels]``.

        Each seed has a generator of its own on the CPU, so a seed gives the same noise on every device, in every
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
        sampler: Sampler | None = None,
    ) -> torch.Tensor:
        """Follow the velocity from noise to latents.

        The latents stay in float32 between the steps; only the transformer works in its own dtype. In bfloat16 the
        small late updates would otherwise be rounded away.

        Args:
            conditions: for one song, or for every song of the batch.
            schedule: the times.
            guidance: ``None`` for one conditional prediction per step.
            noise: shape ``[songs, frames, channels]``.
            progress: called after the work of every step has been submitted to the device.
            sampler: how to step; Euler's method when not given.

        Returns:
            Latents, float32 on the device, the shape of ``noise``.
        """
        sampler = sampler or Sampler(SamplerSettings(), len(schedule.timesteps), is_turbo=self.models.is_turbo)
        latents = noise.to(self.models.device, torch.float32)
        switch = conditions.switch
        projection = None if guidance is None else guidance.begin()
        plain, guided_too = self._for_batch(conditions, latents.shape[0], guidance)
        for step in schedule.steps:
            if switch is not None and step.index == switch.step:
                plain, guided_too = self._for_batch(switch.conditions, latents.shape[0], guidance)
            guided = guidance is not None and guidance.applies_at(step.timestep)
            guided_at_end = guidance is not None and guidance.applies_at(step.next_timestep)
            latents = self.denoise_step(
                latents,
                guided_too if guided else plain,
                step=step,
                projection=projection if guided else None,
                sampler=sampler,
                end=(guided_too, projection) if guided_at_end else (plain, None),
            )
            if progress is not None:
                progress(Progress("dit", step.index + 1, len(schedule.timesteps)))
        return sampler.finish(latents)

    def _for_batch(
        self, conditions: Conditions, songs: int, guidance: Guidance | None
    ) -> tuple[Conditions, Conditions]:
        """Conditions for a step without guidance and for one with it."""
        plain = conditions.expanded(songs)
        if guidance is None:
            return plain, plain
        null_condition = self.models.condition_encoder.null_condition_emb
        return plain, plain.with_unconditional(null_condition.to(self.models.device, non_blocking=True))

    def denoise_step(
        self,
        latents: torch.Tensor,
        conditions: Conditions,
        *,
        step: DenoisingStep,
        projection: Projection | None = None,
        sampler: Sampler,
        end: tuple[Conditions, Projection | None],
    ) -> torch.Tensor:
        """One forward of the transformer, or two, guidance and the sampler's update. Never waits for the device.

        Args:
            latents: float32, shape ``[songs, frames, channels]``.
            conditions: for the songs; with ``projection``, for the songs followed by their unconditional counterparts.
            step: where it starts and where it ends.
            projection: state of the guidance, or ``None`` to take the conditional velocity as it is.
            sampler: computes the step.
            end: conditions and guidance at the end of the step, for a sampler that evaluates there too.

        Returns:
            The latents at ``step.next_timestep``, float32.
        """

        def evaluate(predicted: torch.Tensor) -> torch.Tensor:
            conditions_at_end, guided = end
            if guided is None:
                return self.predict_velocity(predicted, conditions_at_end, step.next_timestep)
            both = self.predict_velocity(predicted.repeat(2, 1, 1), conditions_at_end, step.next_timestep)
            conditional, unconditional = both.chunk(2)
            return guided.combine_again(conditional, unconditional, predicted, step.next_timestep)

        if projection is None:
            velocity = self.predict_velocity(latents, conditions, step.timestep)
        else:
            both = self.predict_velocity(latents.repeat(2, 1, 1), conditions, step.timestep)
            conditional, unconditional = both.chunk(2)
            velocity = projection.combine(conditional, unconditional, latents, step.timestep)
        return sampler.advance(latents, velocity, step, evaluate)

    def predict_velocity(self, latents: torch.Tensor, conditions: Conditions, timestep: float) -> torch.Tensor:
        """The transformer's velocity at time t, float32, the shape of ``latents``."""
        return self.velocity(latents, conditions, timestep)


def require_finite(latents: torch.Tensor, extremes: torch.Tensor) -> None:
    """Reject output with NaN or infinity.

    Args:
        latents: of the songs, on the device.
        extremes: lowest and highest sample of the songs decoded from them, which carry NaN and infinity; on the host.

    Raises:
        InvalidOutput: a stage produced NaN or infinity; names the stage.
    """
    if torch.isfinite(extremes).all():
        return
    # Non-finite latents always reach the audio, so the latents are only read when the audio is already invalid.
    stage = "vae.decode" if torch.isfinite(latents).all() else "dit"
    raise InvalidOutput(f"stage {stage!r} produced NaN or infinity; nothing was saved", stage=stage)


def at_level(audio: torch.Tensor, request: RenderRequest) -> torch.Tensor:
    """Bring a decoded song to its length and level, in place.

    A repainted song is its source outside the window, so its level is not touched: what overshoots full scale inside
    is clipped, since scaling it down would be an audible step at the joins.

    Args:
        audio: float32, shape ``[2, samples]``, on any device.
        request: the request.

    Returns:
        Within -1 ... 1; with a source, as many samples as it has.
    """
    if request.source is not None:
        audio = audio[..., : request.source.samples]
        if request.task == "repaint":
            return audio.clamp_(-1.0, 1.0)
    return prevent_clipping(audio) if request.peak_dbfs is None else normalise_peak(audio, request.peak_dbfs)


def spliced(audio: torch.Tensor, request: RenderRequest) -> torch.Tensor:
    """Songs as they are; repainted ones with their source outside the window (shape ``[songs, 2, samples]``, host)."""
    return request.source.splice(audio) if request.source is not None and request.task == "repaint" else audio
