"""A music service over HTTP. Example without a GPU or weights: python -m examples.serving --tiny."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from acestep import AceStepError, choose_cards
from acestep_otel import ServiceTelemetry, SetupError
from examples.serving.arguments import duration, replicas, whole_number
from examples.serving.card_process import CardMaker, Unusable
from examples.serving.makers import Maker, OwnMaker, WorkerDied
from examples.serving.models import freeze_objects, load
from examples.serving.ray_replicas import start_replicas, stop_replicas
from examples.serving.telemetry import set_up

WRONG_USAGE = 2
"""Exit code for a wrong flag or variable, as for the profiler."""
SWITCH_SECONDS = 0.0005
"""Longest wait of a thread for the interpreter, a tenth of Python's default: a card is idle until its thread has handed
over the next song, and the event loop is always busy with the events of the others."""


def main() -> None:
    """Load the models and serve."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.serving",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="tiny built-in models with random weights")
    parser.add_argument(
        "--weights",
        choices=["checkpoint", "synthetic"],
        default="checkpoint",
        help="synthetic: the named models at true size with random weights",
    )
    parser.add_argument("--dit", default="acestep-v15-turbo", help="diffusion model")
    parser.add_argument("--lm", help="language model, for requests with thinking")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--gpus", help="one process on each of these cards: 0,1,3, all, or cpu:N for N on the CPU")
    parser.add_argument("--ray", metavar="ADDRESS|auto", help="replicas on the cards of this Ray cluster")
    parser.add_argument("--replicas", type=replicas, default="1", metavar="N|N-M", help="number of replicas on Ray")
    parser.add_argument(
        "--scale-up",
        type=duration(86_400),
        default=10.0,
        help="seconds that a song waits until another replica is started",
    )
    parser.add_argument(
        "--scale-down", type=duration(86_400), default=600.0, help="seconds that a replica is idle until it is removed"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; ::1 for IPv6")
    parser.add_argument(
        "--port", type=whole_number(0, 65_535), default=8000, help="port to listen on; 0 selects a free one"
    )
    parser.add_argument("--queue", type=whole_number(1, 10_000), default=16, help="maximum number of waiting requests")
    parser.add_argument(
        "--kept", type=whole_number(1, 10_000), default=16, help="maximum number of finished songs on disk"
    )
    parser.add_argument(
        "--drain", type=whole_number(0, 86_400), default=0, help="seconds for accepted songs after SIGTERM"
    )
    options = parser.parse_args()
    try:
        telemetry = set_up()
        makers = makers_of(options)
    except (SetupError, AceStepError, Unusable, WorkerDied) as error:
        refuse(str(error))
    serve(options, makers, telemetry)


def makers_of(options: argparse.Namespace) -> list[Maker]:
    """The workers: this process, or one process on each card; all with their models loaded.

    Raises:
        AceStepError: a card does not exist, or the models cannot be loaded.
        Unusable, WorkerDied: a process could not be started.
    """
    if options.ray is not None:
        return [*start_replicas(options)]
    if options.gpus is None:
        return [OwnMaker(load(options))]
    cards = choose_cards(options.gpus, options.device)
    makers = [CardMaker(card, options, len(cards)) for card in cards]
    with ThreadPoolExecutor(len(makers)) as starting:
        started = [starting.submit(maker.start) for maker in makers]
    try:
        for start in started:
            start.result()
    except BaseException:
        for maker in makers:
            maker.close()
        raise
    return [*makers]


def serve(options: argparse.Namespace, makers: Sequence[Maker], telemetry: ServiceTelemetry) -> None:
    """Serve requests until a signal arrives."""
    # Propagators and the web framework read the environment while they are imported: only now has it been checked.
    from examples.serving.app import PATHS, create_app
    from examples.serving.door import Door
    from examples.serving.server import Server

    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(makers, telemetry, capacity=options.queue, kept=options.kept)
    freeze_objects()
    server = Server(
        Door(app, PATHS),
        stop=lambda: app.state.workers.stop(),
        host=options.host,
        port=options.port,
        drain=(lambda: app.state.workers.drain(options.drain)) if options.drain else None,
    )
    try:
        server.run()
    finally:
        # Libraries of native code report objects that the last collection leaves behind.
        gc.unfreeze()
        if options.ray is not None:
            stop_replicas()


def refuse(message: str) -> NoReturn:
    """One line, and the exit code of a wrong usage."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(WRONG_USAGE)


if __name__ == "__main__":
    main()
