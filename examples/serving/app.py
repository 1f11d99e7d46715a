"""The service's HTTP interface."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from acestep.checkpoints import Models
from acestep.errors import InvalidRequest
from acestep.types import GenerationRequest
from acestep.validation import validate
from acestep_otel import QueueTelemetry, ServiceTelemetry
from examples.serving.jobs import Events, Job
from examples.serving.telemetry import instrument
from examples.serving.worker import Closed, QueueFull, Worker

RETRY_SECONDS = 2
"""When a caller that was turned away should come again."""


class SongRequest(BaseModel):
    """What a caller may ask for."""

    caption: str = ""
    lyrics: str = "[Instrumental]"
    duration: Annotated[float, Field(ge=10, le=600)] = 30.0
    inference_steps: Annotated[int, Field(ge=1, le=100)] = 8
    songs: Annotated[int, Field(ge=1, le=8)] = 1
    seed: int | None = None
    thinking: bool = False

    def to_engine(self) -> GenerationRequest:
        """The same as the engine takes it.

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


def create_app(models: Models, telemetry: ServiceTelemetry, *, capacity: int = 16, kept: int = 16) -> FastAPI:
    """The service around loaded models.

    Args:
        models: what songs are made with.
        telemetry: closed with the service.
        capacity: requests that may wait at most.
        kept: finished songs that stay on disk.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="songs-") as folder:
            queue = QueueTelemetry(
                capacity, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
            )
            app.state.queue = queue
            app.state.worker = Worker(models, Path(folder), queue=queue, capacity=capacity, kept=kept)
            yield
            await asyncio.to_thread(app.state.worker.close, 10)
        await asyncio.to_thread(telemetry.close)

    app = FastAPI(title="ACE-Step", lifespan=lifespan)
    instrument(app, telemetry)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    def known(job_id: str) -> Job:
        job: Job | None = app.state.worker.find(job_id)
        if job is None:
            raise HTTPException(404, f"no song {job_id}: it was never asked for, or is gone by now")
        return job

    @app.post("/songs", status_code=202)
    async def submit(asked: SongRequest, response: Response) -> dict[str, str]:
        try:
            request = asked.to_engine()
            app.state.worker.require_room()
            job = Job(request, app.state.queue.enter(), Events(asyncio.get_running_loop()))
            app.state.worker.submit(job)
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
        return {"id": job.id, "state": job.state, "error": job.error, "songs": len(job.files)}

    @app.get("/songs/{job_id}/events")
    async def events(job_id: str) -> StreamingResponse:
        job = known(job_id)

        async def stream() -> AsyncIterator[str]:
            async for event in job.events.follow():
                yield f"data: {json.dumps(event)}\n\n"

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
        app.state.worker.cancel(job)
        return {"id": job.id, "state": job.state}

    @app.get("/healthz")
    async def health(response: Response) -> dict[str, bool | int]:
        worker: Worker = app.state.worker
        if not worker.alive:
            response.status_code = 503
        return {"alive": worker.alive, "waiting": worker.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
