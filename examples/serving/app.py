"""The service's HTTP interface."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from acestep import GenerationRequest, InvalidRequest, validate
from acestep_otel import QueueTelemetry, ServiceTelemetry
from examples.serving.errors import ContainErrors
from examples.serving.jobs import Events, Job
from examples.serving.makers import Maker
from examples.serving.telemetry import Together, instrument
from examples.serving.worker import Closed, QueueFull, Workers

PATHS: Final = re.compile(r"/songs(/[0-9a-f]{32}(/events|/audio/[1-8])?)?|/healthz|/metrics|/docs|/openapi\.json")
"""Every path of the service."""
CAPTION_CHARACTERS: Final = 4_096
LYRICS_CHARACTERS: Final = 16_384
"""More than the models read: the rest would be cut."""
FOLLOWERS: Final = 128
"""Maximum number of clients that follow songs at the same time; each uses a connection."""
RETRY_SECONDS: Final = 2
"""``Retry-After``: when a rejected caller should try again."""


def _text(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("a lone surrogate is not valid text")
    return value


Text = Annotated[str, AfterValidator(_text)]


class SongRequest(BaseModel):
    """What a caller may request."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    caption: Annotated[Text, Field(max_length=CAPTION_CHARACTERS)] = ""
    lyrics: Annotated[Text, Field(max_length=LYRICS_CHARACTERS)] = "[Instrumental]"
    duration: Annotated[float, Field(ge=10, le=600)] = 30.0
    inference_steps: Annotated[int, Field(ge=1, le=100)] = 8
    songs: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    thinking: bool = False

    def to_engine(self) -> GenerationRequest:
        """The same as a request of the engine.

        Raises:
            InvalidRequest: a value is out of range.
        """
        request = GenerationRequest(
            caption=self.caption,
            lyrics=self.lyrics,
            duration=self.duration,
            inference_steps=self.inference_steps,
            batch_size=self.songs,
            seeds=() if self.seed is None else (self.seed,),
            thinking=self.thinking,
        )
        validate(request)
        return request


def create_app(makers: Sequence[Maker], telemetry: ServiceTelemetry, *, capacity: int = 16, kept: int = 16) -> FastAPI:
    """The service around the makers of songs.

    Args:
        makers: one for each song that is generated at the same time.
        telemetry: closed with the service.
        capacity: maximum number of waiting requests.
        kept: maximum number of finished songs on disk.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="songs-") as folder:
            queue = QueueTelemetry(
                capacity, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
            )
            app.state.queue = queue
            app.state.workers = Workers(makers, Path(folder), queue=queue, capacity=capacity, kept=kept)
            app.state.followers = 0
            yield
            app.state.workers.stop()
            await asyncio.to_thread(app.state.workers.join, 10)
        await asyncio.to_thread(telemetry.close)

    app = FastAPI(title="ACE-Step", lifespan=lifespan, redoc_url=None)
    app.add_middleware(ContainErrors)
    app.add_exception_handler(RequestValidationError, _refuse)
    instrument(app, telemetry)
    _add_routes(app, makers)
    return app


def _refuse(_request: Request, error: Exception) -> Response:
    """What is wrong with a body, and where; without its content, which may be private, or not JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    known = {"body", *SongRequest.model_fields}
    faults = [
        {
            "field": ".".join(str(part) for part in fault["loc"] if part in known),
            "message": fault["msg"],
        }
        for fault in error.errors()
    ]
    if any(fault["type"] == "extra_forbidden" for fault in error.errors()):
        faults.append({"field": "body", "message": f"The fields are {', '.join(SongRequest.model_fields)}"})
    return JSONResponse({"detail": faults}, 422)


def _add_routes(app: FastAPI, makers: Sequence[Maker]) -> None:
    def known(job_id: str) -> Job:
        job: Job | None = app.state.workers.find(job_id)
        if job is None:
            raise HTTPException(404, "no such song: the id is unknown, or the song was deleted")
        return job

    @app.post("/songs", status_code=202)
    async def submit(asked: SongRequest, response: Response) -> dict[str, str]:
        try:
            request = asked.to_engine()
            app.state.workers.require_room()
            job = Job(request, app.state.queue.enter(), Events(asyncio.get_running_loop()))
            app.state.workers.submit(job)
        except InvalidRequest as error:
            raise HTTPException(422, str(error)) from error
        except QueueFull as error:
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise HTTPException(429, "the queue is full: try again later", headers=headers) from error
        except Closed as error:
            raise HTTPException(503, "the service is shutting down") from error
        response.headers["Location"] = f"/songs/{job.id}"
        return {"id": job.id}

    @app.get("/songs/{job_id}")
    async def state(job_id: str) -> dict[str, str | int | None]:
        job = known(job_id)
        return {"id": job.id, "state": job.state, "error": job.error, "songs": len(job.files), "worker": job.worker}

    @app.get("/songs/{job_id}/events")
    async def events(job_id: str) -> StreamingResponse:
        job = known(job_id)
        if app.state.followers >= FOLLOWERS:
            raise HTTPException(
                503, "too many clients follow songs: query its state", {"Retry-After": str(RETRY_SECONDS)}
            )

        async def stream() -> AsyncIterator[str]:
            app.state.followers += 1
            try:
                async for event in job.events.follow():
                    yield f"data: {json.dumps(event)}\n\n"
            finally:
                app.state.followers -= 1

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/songs/{job_id}/audio/{number}")
    async def audio(job_id: str, number: int) -> FileResponse:
        files = known(job_id).files
        if not 1 <= number <= len(files):
            raise HTTPException(404, f"there is no song {number} of {len(files)}")
        return FileResponse(files[number - 1])

    @app.delete("/songs/{job_id}", status_code=202)
    async def cancel(job_id: str) -> dict[str, str]:
        job = known(job_id)
        app.state.workers.cancel(job)
        return {"id": job.id, "state": job.state}

    @app.get("/healthz")
    async def health(response: Response) -> dict[str, bool | int]:
        workers: Workers = app.state.workers
        if not workers.alive:
            response.status_code = 503
        return {"alive": workers.alive, "waiting": workers.waiting, "workers": workers.ready}

    def collected() -> bytes:
        workers = [(maker.label, maker.metrics()) for maker in makers]
        return generate_latest(Together(REGISTRY.collect(), workers))

    @app.get("/metrics")
    async def metrics() -> Response:
        # Collecting takes milliseconds, and nothing else is answered on the event loop meanwhile.
        return Response(await asyncio.to_thread(collected), media_type=CONTENT_TYPE_LATEST)
