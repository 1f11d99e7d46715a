"""The patch of ``diffusers.AceStepPipeline`` used directly: its call, and the calls that it makes.

Only ``__call__`` is patched. It runs on a proxy of the pipeline, which forwards everything and marks stages around
calls of the pipeline's components. No object of the application is changed, two threads do not interfere, and nothing
is recorded inside code that the application has compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import wrapt

from acestep_otel import semconv
from acestep_otel.patches.patcher import Patch, Wrapper, device_named
from acestep_otel.patches.song_settings import adapter_attributes, sampler_attributes
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart, StageDefinition
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import Attributes, AttributeValue, never_raises
from acestep_otel.settings import Detail

if TYPE_CHECKING:
    _Proxy = wrapt.ObjectProxy[Any]
else:
    _Proxy = wrapt.ObjectProxy


_CONDITION: Final = StageDefinition(semconv.CONDITION, tracks_memory=True)
_VAE_ENCODE: Final = StageDefinition(semconv.VAE_ENCODE)
_DIT: Final = StageDefinition(semconv.DIT, tracks_memory=True)
_DIT_STEP: Final = StageDefinition(semconv.DIT_STEP, detail=Detail.STEP)
_VAE_TILE: Final = StageDefinition(semconv.VAE_TILE, detail=Detail.STEP)


def patches(tracer: RequestTracer) -> list[Patch]:
    """The one patch, bound to a tracer."""
    return [Patch("diffusers.pipelines.ace_step.pipeline_ace_step", "AceStepPipeline.__call__", _request(tracer))]


def _request(tracer: RequestTracer) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(wrapped, instance, args, kwargs)
        start = _request_start(call, tracer.settings.capture_content)
        if start is None:
            return call.run()
        song = _Song(
            steps=call.arguments["num_inference_steps"],
            songs=int(start.attributes[semconv.BATCH_SIZE]),
            sampler=_sampler(instance.scheduler) or {},
        )
        pipeline = _Pipeline(instance, tracer, song)
        definition = RequestDefinition(
            semconv.GENERATE_MUSIC,
            start=lambda _call, _capture_content: start,
            attributes_after=lambda _call, result: song.made(instance, result),
        )
        return tracer.request(definition, Call(getattr(wrapped, "__func__", wrapped), None, (pipeline, *args), kwargs))

    return wrapper


@never_raises
def _request_start(call: Call, capture_content: bool) -> RequestStart:
    arguments, pipeline = call.arguments, call.instance
    captions, lyrics = _texts(arguments["prompt"]), _texts(arguments["lyrics"])
    instructions = _texts(arguments["instruction"] or "")
    songs = len(captions)
    attributes: dict[str, AttributeValue] = {
        semconv.OPERATION_NAME: "generate_content",
        semconv.PROVIDER_NAME: "ace_step",
        semconv.REQUEST_MODEL: f"acestep-v15-{pipeline.transformer.config.model_version}",
        semconv.OUTPUT_TYPE: "music",
        semconv.REQUEST_CHOICE_COUNT: songs,
        semconv.TASK: arguments["task_type"],
        semconv.THINKING: False,
        semconv.BATCH_SIZE: songs,
        semconv.DIT_STEPS_REQUESTED: arguments["num_inference_steps"],
        semconv.CAPTION_LENGTH: sum(map(len, captions)),
        semconv.LYRICS_LENGTH: sum(map(len, lyrics)),
        semconv.DEVICE: str(pipeline._execution_device),
        semconv.DTYPE: str(pipeline.transformer.dtype).removeprefix("torch."),
        semconv.WEIGHTS: "checkpoint",
        **(_adapters(pipeline) or {}),
    }
    if arguments["audio_duration"]:
        attributes[semconv.AUDIO_DURATION_REQUESTED] = float(arguments["audio_duration"])
    if capture_content:
        attributes[semconv.CAPTION], attributes[semconv.LYRICS] = "\n".join(captions), "\n".join(lyrics)
    return RequestStart(device_named(str(pipeline._execution_device)), attributes, (*captions, *lyrics, *instructions))


@never_raises
def _sampler(scheduler: Any) -> Attributes:
    """The method of a diffusers scheduler, in the released package's terms; the pipeline corrects no latents."""
    name = type(scheduler).__name__
    solver = next((solver for solver in ("euler", "heun") if solver in name.lower()), None)
    stochastic = scheduler.config.get("stochastic_sampling", False)
    return sampler_attributes("sde" if stochastic else "ode", solver, False)


@never_raises
def _adapters(pipeline: Any) -> Attributes:
    """Active LoRA adapters, and their scales as they were set; PEFT's layers keep them times alpha over rank."""
    scales: dict[str, float] = {}
    for layer in pipeline.transformer.modules():
        if not getattr(layer, "scaling", None) or getattr(layer, "disable_adapters", True):
            continue
        for name in layer.active_adapters:
            if name in layer.scaling and name not in scales:
                rank = layer.r[name] ** (0.5 if layer.use_rslora.get(name) else 1.0)
                scales[name] = layer.scaling[name] * rank / layer.lora_alpha[name]
    return adapter_attributes(scales.items())


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


class _Song:
    """Attributes that become known while a song is generated."""

    def __init__(self, *, steps: int, songs: int, sampler: Attributes) -> None:
        self.steps = steps
        self.sampler = sampler
        self.songs = songs
        self.steps_done = 0
        self.timesteps: list[float] = []
        self.frames = 0

    def made(self, pipeline: Any, result: Any) -> Attributes:
        """Attributes of the request, from its result."""
        audio = result[0]
        attributes: dict[str, AttributeValue] = {semconv.DIT_STEPS: self.steps_done}
        # The middle dimension is the channel in audio, and time in latents (``output_type="latent"``).
        if audio.shape[-2] == 2:
            attributes[semconv.AUDIO_DURATION] = audio.shape[-1] / float(pipeline.sample_rate)
        return attributes

    def schedule(self, sigmas: Any, count: int) -> Attributes:
        """Attributes of the diffusion loop; ``sigmas`` is what the scheduler was given, on the host."""
        self.steps = count
        self.timesteps = [float(sigma) for sigma in sigmas or ()]
        return {semconv.DIT_STEPS_REQUESTED: count, semconv.BATCH_SIZE: self.songs, **self.sampler}

    def step(self, latents: Any) -> Attributes:
        """Attributes of the step that is about to run."""
        self.frames = latents.shape[1]
        attributes: dict[str, AttributeValue] = {
            semconv.DIT_STEP_INDEX: self.steps_done,
            semconv.DIT_STEP_GUIDED: latents.shape[0] > self.songs,
        }
        if self.steps_done < len(self.timesteps):
            attributes[semconv.DIT_STEP_TIMESTEP] = self.timesteps[self.steps_done]
        return attributes

    def loop(self) -> Attributes:
        """Attributes of the diffusion loop once it has ended."""
        return {semconv.DIT_STEPS: self.steps_done, semconv.LATENT_FRAMES: self.frames}


class _Part(_Proxy):
    """A proxy of an object, which forwards everything and marks the calls that a subclass defines."""

    def __init__(self, wrapped: Any, tracer: RequestTracer, song: _Song) -> None:
        super().__init__(wrapped)
        self._self_tracer = tracer
        self._self_song = song

    def _self_run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of the object's class on the proxy, so that calls inside it are seen as well.

        A method that the application has replaced on the object, by a compiled one for example, is called as it is.
        """
        method = getattr(type(self.__wrapped__), name, None)
        if method is None or name in vars(self.__wrapped__):
            return getattr(self.__wrapped__, name)(*args, **kwargs)
        return method(self, *args, **kwargs)


class _Pipeline(_Part):
    @property
    def transformer(self) -> Any:
        return _Transformer(self.__wrapped__.transformer, self._self_tracer, self._self_song)

    @property
    def scheduler(self) -> Any:
        return _Scheduler(self.__wrapped__.scheduler, self._self_tracer, self._self_song)

    @property
    def vae(self) -> Any:
        return _Vae(self.__wrapped__.vae, self._self_tracer, self._self_song)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """The start of conditioning, which ends when the schedule is set."""
        self._self_tracer.begin(_CONDITION)
        return self._self_run("encode_prompt", *args, **kwargs)

    def prepare_src_latents(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_run("prepare_src_latents", *args, **kwargs)

    def prepare_reference_audio_latents(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_run("prepare_reference_audio_latents", *args, **kwargs)


class _Transformer(_Part):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The start of a step; a second pass in a step (cover strength) continues it."""
        self._self_tracer.begin(_DIT_STEP, lambda: self._self_song.step(kwargs["hidden_states"]))
        return self.__wrapped__(*args, **kwargs)


class _Scheduler(_Part):
    def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        """The start of the diffusion loop."""
        tracer, song = self._self_tracer, self._self_song
        result = self.__wrapped__.set_timesteps(*args, **kwargs)
        tracer.end(semconv.CONDITION)
        count = len(self.__wrapped__.timesteps)
        tracer.begin(_DIT, lambda: song.schedule(kwargs.get("sigmas"), count))
        return result

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """The end of a step; with the last step, also the end of the loop."""
        song = self._self_song
        result = self.__wrapped__.step(*args, **kwargs)
        song.steps_done += 1
        self._self_tracer.end(semconv.DIT_STEP)
        if song.steps_done == song.steps:
            self._self_tracer.end(semconv.DIT, lambda _: song.loop())
        return result


class _Vae(_Part):
    def __init__(self, wrapped: Any, tracer: RequestTracer, song: _Song) -> None:
        super().__init__(wrapped, tracer, song)
        self._self_tiles = 0

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(self.__wrapped__.encode, None, args, kwargs)
        return self._self_tracer.stage(_VAE_ENCODE, call)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The decode; also the end of a loop that the caller interrupted."""
        tracer, song = self._self_tracer, self._self_song
        tracer.end(semconv.DIT, lambda _: song.loop())
        definition = StageDefinition(
            semconv.VAE_DECODE,
            tracks_memory=True,
            attributes_before=lambda _call: {
                semconv.BATCH_SIZE: song.songs,
                semconv.VAE_RUNG: "cpu" if self.__wrapped__.device.type == "cpu" else "gpu",
            },
            attributes_after=lambda _call, _stage, _audio: {
                semconv.VAE_TILES: max(1, self._self_tiles),
                semconv.LATENT_FRAMES: song.frames,
            },
        )
        return tracer.stage(definition, Call(self._self_run, None, ("decode", *args), kwargs))

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_run("_decode", *args, **kwargs)

    def _tiled_decode(self, *args: Any, **kwargs: Any) -> Any:
        return self._self_run("_tiled_decode", *args, **kwargs)

    def decoder(self, latents: Any) -> Any:
        """One tile."""
        attributes = {semconv.VAE_TILE_INDEX: self._self_tiles, semconv.VAE_TILE_FRAMES: latents.shape[-1]}
        self._self_tiles += 1
        definition = replace(_VAE_TILE, attributes_before=lambda _call: attributes)
        return self._self_tracer.stage(definition, Call(self.__wrapped__.decoder, None, (latents,), {}))
