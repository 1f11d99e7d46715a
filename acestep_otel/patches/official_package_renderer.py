"""The renderer of the released package ``ace-step``: conditioning, diffusion, the VAE, and the audio files.

The transformer belongs to the checkpoint's own code and has no class that could be named: it is wrapped on the
loaded object while a request runs. Later versions run diffusion in a thread of their own without the caller's
context; the two are matched by an object that both have.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from acestep_otel import semconv
from acestep_otel.patches.official_package_language_model import base_name, load_failure, remembering
from acestep_otel.patches.patcher import Gaps, TemporaryPatches, device_named
from acestep_otel.patches.song_settings import sampler_attributes
from acestep_otel.patches.tolerant import argument, field, readable
from acestep_otel.recording.call import Call, LoadDefinition, ModelLoad, StageDefinition
from acestep_otel.recording.redaction import file_names
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.trace_tree import (
    Attributes,
    Stage,
    current_recording,
    inside_request,
    never_raises,
    take_over,
)
from acestep_otel.settings import Detail

_MOVED: Final = {"model": "transformer", "vae": "vae", "text_encoder": "text_encoder"}
"""Models that the handler offloads, by the attribute that holds them."""

_SAMPLER: Final[Mapping[str, str | bool]] = {"infer_method": "ode", "sampler_mode": "euler", "dcw_enabled": False}
"""Arguments of ``service_generate``, and how versions without them sample."""

_models: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Models of handlers, by what they were initialized with."""


def renderer_name(handler: Any) -> str | None:
    """The model that a handler was initialized with, or that its weights were read from."""
    known = _models.get(handler) if handler is not None else None
    return known or base_name(
        field(handler, "last_init_params", "config_path") or field(handler, "model", "config", "name_or_path")
    )


@dataclass(frozen=True, slots=True)
class _Solver:
    """How many calls of the transformer make a step.

    Attributes:
        heun: two; of a turbo model's last step one.
        edited: steps of a flow edit that follow the difference of two texts; after them a step is one call.
        calls_per_edit: of each of those steps: for both texts, as often as noise is drawn.
    """

    heun: bool = False
    edited: int = 0
    calls_per_edit: int = 1

    @classmethod
    def of(cls, call: Call) -> _Solver:
        """Read from a call of ``service_generate``."""
        steps, times = argument(call, "infer_steps"), argument(call, "timesteps")
        if argument(call, "flow_edit_morph") is True and isinstance(steps, int):
            if isinstance(times, list | tuple) and times:
                steps = len(times) - (times[-1] == 0)
            first, last = (
                int(steps * argument(call, name, otherwise))
                for name, otherwise in (("flow_edit_n_min", 0.0), ("flow_edit_n_max", 1.0))
            )
            return cls(edited=last - first, calls_per_edit=2 * argument(call, "flow_edit_n_avg", 1))
        return cls(heun=argument(call, "sampler_mode") == "heun" and argument(call, "infer_method") != "sde")

    def place(self, number: int) -> tuple[int, bool, bool]:
        """The step of a call, and whether the call is the first and the last of the step."""
        per_step = 2 if self.heun else self.calls_per_edit if number < self.edited * self.calls_per_edit else 1
        if per_step == 1:
            return number - self.edited * (self.calls_per_edit - 1), True, True
        step, within = divmod(number, per_step)
        return step, within == 0, within == per_step - 1


@dataclass(slots=True)
class _Loop:
    """One diffusion loop, by what ``service_generate`` was given and what the transformer is called with.

    Attributes:
        songs: rows that are songs; with guidance the transformer processes twice as many.
        solver: how many calls make a step.
        guidance_scale: 1 is off.
        interval: flow times in which guidance is applied.
        given: attributes that are known before.
        calls: of the transformer, so far.
        frames: latent frames of each song.
        steps: spans of steps, each with the flow times that its first call was given, on the device.
    """

    songs: int | None
    solver: _Solver
    guidance_scale: float | None
    interval: tuple[float, float]
    given: Attributes
    calls: int = 0
    frames: int | None = None
    doubled: bool = False
    steps: list[tuple[Stage, Any]] = dataclass_field(default_factory=list)

    @classmethod
    def of(cls, call: Call) -> _Loop:
        """Read from a call of ``service_generate``."""
        captions, scale = argument(call, "captions"), argument(call, "guidance_scale")
        songs = len(captions) if isinstance(captions, list | tuple) else 1 if isinstance(captions, str) else None
        return cls(
            songs=songs,
            solver=_Solver.of(call),
            guidance_scale=scale if isinstance(scale, int | float) else None,
            interval=(argument(call, "cfg_interval_start") or 0.0, _or_one(argument(call, "cfg_interval_end"))),
            given={
                **readable(
                    {
                        semconv.DIT_STEPS_REQUESTED: argument(call, "infer_steps"),
                        semconv.DIT_SHIFT: argument(call, "shift"),
                        semconv.BATCH_SIZE: songs,
                    }
                ),
                **_sampler(call),
            },
        )

    @property
    def steps_done(self) -> int:
        return self.solver.place(self.calls - 1)[0] + 1 if self.calls else 0

    def begin(self, latents: Any) -> Attributes:
        """Attributes of the loop, from the first call's latents."""
        rows, self.frames = latents.shape[0], latents.shape[1]
        self.doubled = self.songs is not None and rows >= 2 * self.songs
        scale = self.guidance_scale if self.doubled else 1.0
        return {
            **self.given,
            **readable({semconv.LATENT_FRAMES: self.frames, semconv.DIT_GUIDANCE_SCALE: scale}),
        }

    def done(self) -> Attributes:
        """Attributes of the loop once it has ended."""
        return {semconv.DIT_STEPS: self.steps_done} if self.calls else {}

    def resolve(self) -> None:
        """Read the steps' flow times, after the request's own synchronisation: reading earlier would add one."""
        if not self.steps:
            return
        import torch

        times = torch.stack([times.reshape(-1)[0] for _, times in self.steps]).float().tolist()
        for (stage, _), time in zip(self.steps, times, strict=True):
            stage.attributes[semconv.DIT_STEP_TIMESTEP] = time
            stage.attributes[semconv.DIT_STEP_GUIDED] = self.doubled and self.interval[0] <= time <= self.interval[1]
        self.steps.clear()


def _sampler(call: Call) -> Attributes:
    # A version without the argument does not have the feature.
    if argument(call, "flow_edit_morph") is True:
        # Whatever other arguments are given.
        return sampler_attributes("ode", "euler", False)
    method, solver, corrects = (argument(call, name, otherwise) for name, otherwise in _SAMPLER.items())
    if corrects is None:
        # In the newest versions the model determines it.
        corrects = field(call.instance, "model", "config", "is_turbo")
    return sampler_attributes(method, solver, corrects)


def _or_one(value: Any) -> float:
    return 1.0 if value is None else value


_loop: contextvars.ContextVar[_Loop | None] = contextvars.ContextVar("acestep_otel_released_loop", default=None)
_loops: contextvars.ContextVar[list[_Loop] | None] = contextvars.ContextVar("acestep_otel_released_loops", default=None)
"""The captions of the request. The diffusion thread has a copy of the request's context, with the same list."""


class RendererPatches:
    """The patches of ``AceStepHandler``, which share the state of running requests."""

    def __init__(self, tracer: RequestTracer, gaps: Gaps) -> None:
        self._tracer = tracer
        self._gaps = gaps
        self._methods = TemporaryPatches()
        self.initialize = remembering(tracer, _LOAD, _models)
        self._callers: dict[int, contextvars.Context] = {}

    def generate_music(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The renderer's part of a request."""
        loops: list[_Loop] = []
        token = _loops.set(loops)
        try:
            with self._methods.wrapped(field(instance, "vae"), "decode", self._decode_call):
                return wrapped(*args, **kwargs)
        finally:
            _loops.reset(token)
            for loop in loops:
                never_raises(loop.resolve)()

    def hand_over(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The start of the diffusion thread in later versions: it receives the batch's own list of captions."""
        captions = field(argument(Call(wrapped, instance, args, kwargs), "service_inputs"), "captions_batch")
        if captions is None or not inside_request():
            return wrapped(*args, **kwargs)
        self._callers[id(captions)] = contextvars.copy_context()
        try:
            return wrapped(*args, **kwargs)
        finally:
            self._callers.pop(id(captions), None)

    def service_generate(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Conditioning, up to the transformer's first call, and the diffusion loop from there on."""
        call = Call(wrapped, instance, args, kwargs)
        if inside_request():
            return self._render(call)
        # The caller waits in its own thread, so its context is entered here once.
        caller = self._callers.pop(id(argument(call, "captions")), None)
        if caller is None:
            self._gaps.met(
                f"{semconv.CONDITION} and {semconv.DIT}",
                "service_generate runs in a thread that belongs to no known request",
            )
            return call.run()

        def run_for_caller() -> Any:
            take_over()
            return self._render(call)

        return caller.run(run_for_caller)

    def _render(self, call: Call) -> Any:
        if current_recording() is None:
            return call.run()
        loop = never_raises(_Loop.of)(call)
        if loop is not None and (loops := _loops.get()) is not None:
            loops.append(loop)
        model = field(call.instance, "model")
        decoder = field(model, "decoder")
        if decoder is None:
            self._gaps.met(semconv.DIT_STEP, "the model has no transformer by the name of decoder")
        token = _loop.set(loop)
        self._tracer.begin(_CONDITION)
        try:
            with (
                self._methods.wrapped(decoder, "forward", self._transformer),
                self._methods.wrapped(model if decoder is None else None, "generate_audio", self._whole_loop),
            ):
                result = call.run()
        except BaseException as error:
            self._end(loop, error)
            raise
        finally:
            _loop.reset(token)
        self._end(loop)
        return result

    def _end(self, loop: _Loop | None, error: BaseException | None = None) -> None:
        self._tracer.end(semconv.CONDITION, error=error)
        self._tracer.end(semconv.DIT, None if loop is None else lambda _: loop.done(), error)

    def _transformer(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call of the transformer: a step, or one of the calls of a step."""
        call = Call(wrapped, instance, args, kwargs)
        loop = _loop.get()
        if loop is None or current_recording() is None:
            return call.run()
        index, is_first, is_last = loop.solver.place(loop.calls)
        if is_first:
            self._tracer.end(semconv.DIT_STEP)
        latents = argument(call, "hidden_states")
        self._tracer.end(semconv.CONDITION, lambda _: {semconv.LATENT_FRAMES: latents.shape[1]})
        self._tracer.begin(_DIT, lambda: loop.begin(latents))
        loop.calls += 1
        if is_first and is_last:
            return self._tracer.stage(_step(loop, index), call)
        if is_first:
            self._tracer.begin(_DIT_STEP, lambda: _step_attributes(loop, index, call))
        result = call.run()
        if is_last:
            self._tracer.end(semconv.DIT_STEP)
        return result

    def _whole_loop(
        self, wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The diffusion of a model whose transformer cannot be seen, with its condition encoder."""
        loop = _loop.get()
        self._tracer.end(semconv.CONDITION)
        self._tracer.begin(_DIT, None if loop is None else lambda: loop.given)
        return wrapped(*args, **kwargs)

    def mlx_diffusion(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The diffusion loop in MLX, whose steps are not visible; how many they were, its result says."""
        loop = _loop.get()
        self._tracer.end(semconv.CONDITION)
        definition = StageDefinition(
            semconv.DIT,
            tracks_memory=True,
            attributes_before=lambda _call: {} if loop is None else loop.given,
            attributes_after=lambda _call, _stage, result: _mlx_steps(result),
        )
        return self._tracer.stage(definition, Call(wrapped, instance, args, kwargs))

    def decode(self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The decode of all tiles; of nested calls only the outermost is recorded."""
        call = Call(wrapped, instance, args, kwargs)
        return call.run() if _running(semconv.VAE_DECODE) is not None else self._tracer.stage(_VAE_DECODE, call)

    def _decode_call(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        definition = _VAE_DECODE if _running(semconv.VAE_DECODE) is None else _VAE_TILE
        return self._tracer.stage(definition, Call(wrapped, instance, args, kwargs))

    def encode(self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A recording to latents, all tiles."""
        with self._methods.wrapped(field(instance, "vae"), "encode", _encode_call):
            return self._tracer.stage(_VAE_ENCODE, Call(wrapped, instance, args, kwargs))

    def move(self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A move of a model to the device, or off it; the transformer is moved off when its loop is over."""
        call = Call(wrapped, instance, args, kwargs)
        if current_recording() is None or _running(semconv.OFFLOAD_MOVE) is not None:
            return call.run()
        if (loop := _loop.get()) is not None:
            self._tracer.end(semconv.DIT, lambda _: loop.done())
        return self._tracer.stage(_MOVE, call)


def _running(name: str) -> Stage | None:
    recording = current_recording()
    return None if recording is None else recording.running(name)


def _step(loop: _Loop, index: int) -> StageDefinition:
    return StageDefinition(
        semconv.DIT_STEP, detail=Detail.STEP, attributes_before=lambda call: _step_attributes(loop, index, call)
    )


def _step_attributes(loop: _Loop, index: int, call: Call) -> Attributes:
    stage, times = _running(semconv.DIT_STEP), argument(call, "timestep")
    if stage is not None and times is not None:
        loop.steps.append((stage, times))
    return {semconv.DIT_STEP_INDEX: index}


def _mlx_steps(result: Any) -> Attributes:
    costs = field(result, "time_costs")
    total, each = field(costs, "diffusion_time_cost"), field(costs, "diffusion_per_step_time_cost")
    return {semconv.DIT_STEPS: round(total / each)} if total and each else {}


def _frames(latents: Any, axis: int) -> Attributes:
    shape: tuple[int, ...] = tuple(getattr(latents, "shape", ()))
    return {semconv.BATCH_SIZE: shape[0], semconv.LATENT_FRAMES: shape[axis]} if len(shape) == 3 else {}


def _decoding(call: Call) -> Attributes:
    # In the loop's latents time is the middle dimension; in the VAE's own layout it is the last.
    latents = argument(call, "pred_latents")
    if latents is not None:
        return _frames(latents, 1)
    return _frames(argument(call, "latents") if argument(call, "latents") is not None else argument(call, "z"), 2)


def _decoded(_call: Call, stage: Stage, _result: Any) -> Attributes:
    tiles = [child for child in stage.children if child.name == semconv.VAE_TILE]
    return {semconv.VAE_TILES: len(tiles)} if tiles else {}


def _tile(call: Call) -> Attributes:
    decode, latents = _running(semconv.VAE_DECODE), call.args[0] if call.args else argument(call, "z")
    if decode is None:
        return {}
    index = sum(child.name == semconv.VAE_TILE for child in decode.children) - 1
    device = field(latents, "device", "type")
    if device is not None:
        decode.attributes[semconv.VAE_RUNG] = "cpu" if device == "cpu" else "gpu"
    return readable({semconv.VAE_TILE_INDEX: index, semconv.VAE_TILE_FRAMES: latents.shape[-1]})


def _encode_call(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if (stage := _running(semconv.VAE_ENCODE)) is not None:
        stage.attributes[semconv.VAE_TILES] = int(stage.attributes.get(semconv.VAE_TILES, 0)) + 1
    return wrapped(*args, **kwargs)


def _encoded(_call: Call, _stage: Stage, latents: Any) -> Attributes:
    return {semconv.LATENT_FRAMES: latents.shape[-1]}


def _moving(call: Call) -> Attributes:
    model, device = argument(call, "model"), argument(call, "device")
    names = [name for held, name in _MOVED.items() if field(call.instance, held) is model]
    return readable(
        {
            semconv.OFFLOAD_MODEL: names[0] if names else None,
            semconv.OFFLOAD_DIRECTION: "to_host" if str(device).startswith("cpu") else "to_device",
            semconv.OFFLOAD_BYTES: sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        }
    )


def _saving(call: Call) -> Attributes:
    return readable({semconv.AUDIO_FORMAT: argument(call, "format") or field(call.instance, "default_format")})


def _saved(_call: Call, _stage: Stage, path: Any) -> Attributes:
    return {semconv.AUDIO_FILES: 1, semconv.AUDIO_BYTES: Path(path).stat().st_size}


def _load(call: Call) -> ModelLoad:
    named, device = argument(call, "config_path"), argument(call, "device")
    # The default of the package, and the device that it chooses.
    model = base_name(named) or "acestep-v15-turbo"
    texts = tuple(file_names(str(named))) if named not in (None, model) else ()
    return ModelLoad(model, device_named("cpu" if device in (None, "auto") else str(device)), texts)


_LOAD: Final = LoadDefinition("renderer", _load, load_failure)
_CONDITION: Final = StageDefinition(semconv.CONDITION, tracks_memory=True)
_DIT: Final = StageDefinition(semconv.DIT, tracks_memory=True)
_DIT_STEP: Final = StageDefinition(semconv.DIT_STEP, detail=Detail.STEP)
_VAE_DECODE: Final = StageDefinition(
    semconv.VAE_DECODE, tracks_memory=True, attributes_before=_decoding, attributes_after=_decoded
)
_VAE_TILE: Final = StageDefinition(semconv.VAE_TILE, detail=Detail.STEP, attributes_before=_tile)
_VAE_ENCODE: Final = StageDefinition(semconv.VAE_ENCODE, attributes_after=_encoded)
_MOVE: Final = StageDefinition(semconv.OFFLOAD_MOVE, attributes_before=_moving)
SAVE: Final = StageDefinition(
    semconv.AUDIO_SAVE, device_clock=False, attributes_before=_saving, attributes_after=_saved
)
