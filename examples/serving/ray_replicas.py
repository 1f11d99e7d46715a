"""The service on Ray Serve: replicas on the cards of a cluster behind this process's bounded queue.

The queue stays here: callers are accepted into it, and its wait is measured from there to the replica that begins. Ray
Serve starts replicas, scales them by what is running and waiting, drains them, and replaces those that die.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics_core import Metric

from acestep import Cancelled, Progress, ProgressCallback
from examples.serving.card_process import SongFailed, Unusable
from examples.serving.jobs import Job
from examples.serving.makers import WorkerDied
from examples.serving.messages import Failed, Files, Started

APPLICATION: Final = "acestep"
_DRAIN_SECONDS: Final = 20.0
"""What a replica gets for its song when it is taken away."""


class ReplicaMaker:
    """Has one song at a time made by any replica (``examples.serving.makers.Maker``)."""

    label: str | None = None

    def __init__(self, handle: Any) -> None:
        """Use a deployment.

        Args:
            handle: Ray Serve's.
        """
        self._handle = handle
        self._answer: Any = None

    def start(self) -> None:
        """Ray Serve keeps replicas."""

    def make(self, job: Job, folder: Path, report: ProgressCallback) -> Sequence[Path]:
        """Make the songs of a job.

        Raises:
            Cancelled: the job was cancelled.
            SongFailed: the replica could not make them.
            WorkerDied: the replica, or its node, is gone.
        """
        from opentelemetry import propagate
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RequestCancelledError

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        self._answer = self._handle.make.remote(job.request, carrier)
        try:
            for event in self._answer:
                match event:
                    case Started(card):
                        job.begin(card.label)
                    case Progress() as progress:
                        report(progress)
                    case Files(contents):
                        return _written(contents, folder)
                    case Failed(error="Cancelled"):
                        raise Cancelled
                    case Failed() as failed:
                        raise SongFailed(failed)
        except Cancelled:
            self.cancel()
            raise
        except RequestCancelledError:
            raise Cancelled from None
        except (RayError, BackPressureError) as error:
            raise WorkerDied(f"a replica was lost: {type(error).__name__}") from error
        finally:
            self._answer = None
        raise WorkerDied("a replica ended without a message")

    def cancel(self) -> None:
        """Stop what is made or waits for a replica."""
        answer = self._answer
        if answer is not None:
            with suppress(Exception):
                answer.cancel()

    def metrics(self) -> Sequence[Metric]:
        """Nothing: replicas send their metrics by OTLP."""
        return ()

    def close(self) -> None:
        """Replicas end with the application."""


def start_replicas(options: argparse.Namespace) -> list[ReplicaMaker]:
    """Start the application on a cluster; gives one maker for each replica that there may be.

    Raises:
        Unusable: no cluster answers, or the application does not start.
    """
    # Read when Ray is imported: a thread of its router that outlives the application must not start a cluster.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
        from ray import serve
    except ImportError:
        raise Unusable("--ray needs Ray Serve: pip install 'ray[serve]'") from None
    from examples.serving.replica import Replica

    least, _, most = options.replicas.partition("-")
    low, high = int(least), int(most or least)
    on_cpu = options.tiny
    settings = argparse.Namespace(**{**vars(options), "device": "cpu" if on_cpu else "cuda"})
    environment = {name: value for name, value in os.environ.items() if name.startswith(("OTEL_", "ACESTEP_"))}
    try:
        ray.init(address=options.ray, log_to_driver=False, logging_level="CRITICAL", ignore_reinit_error=True)
        # Callers come to this process: Ray Serve's own proxy is not needed.
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            Replica,
            max_ongoing_requests=1,
            max_queued_requests=options.queue + high,
            graceful_shutdown_timeout_s=_DRAIN_SECONDS,
            autoscaling_config={
                "min_replicas": low,
                "max_replicas": high,
                # One song at a time: whatever waits beside it asks for another replica.
                "target_ongoing_requests": 1,
                "upscale_delay_s": options.scale_up,
                "downscale_delay_s": options.scale_down,
            },
            ray_actor_options={
                **({"num_cpus": 1} if on_cpu else {"num_gpus": 1}),
                "runtime_env": {"env_vars": environment},
            },
        )
        handle = serve.run(deployment.bind(settings), name=APPLICATION, route_prefix=None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Unusable(f"--ray {options.ray}: {first}") from error
    streaming = handle.options(stream=True)
    return [ReplicaMaker(streaming) for _ in range(high)]


def stop_replicas() -> None:
    """Take the application down: replicas finish what they make, and deliver their telemetry."""
    import ray
    from ray import serve

    with suppress(Exception):
        serve.delete(APPLICATION)
    ray.shutdown()


def _written(contents: Mapping[str, bytes], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / Path(name).name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths
