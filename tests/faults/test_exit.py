"""How a process ends: what is delivered, and that telemetry adds less than five seconds (a whole process each)."""

import signal
import sys

import pytest

from acestep_otel import semconv
from acestep_otel.shutdown import SHUTDOWN_SECONDS
from tests.receivers import grpc_receiver, http_receiver, refusing_endpoint, silent_endpoint
from tests.services import service

MARGIN_SECONDS = 2.0
"""What a busy machine may add to a bound."""
SONG_SPANS = 1 + 3 + 1 + 5 + 4
"""Root; planner and two phases; conditions; diffusion and four steps; decode and three tiles."""


def test_the_end_of_the_program_delivers_everything(tmp_path):
    with grpc_receiver() as received, service(tmp_path, "song(); say('done')", received.endpoint) as running:
        done = running.wait_for("done")
        code, moment = running.end()
        assert (code, len(received.span_names())) == (0, SONG_SPANS)
        assert moment - done < MARGIN_SECONDS
        assert "acestep.requests" in received.metric_names()


@pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3),
    reason="exit handlers of these versions start no threads: an exit takes as long as the SDK's does",
)
@pytest.mark.parametrize("endpoint", [refusing_endpoint, silent_endpoint])
def test_a_collector_that_takes_nothing_delays_the_exit_by_less_than_five_seconds(tmp_path, endpoint):
    with endpoint() as url, service(tmp_path, "song(); say('done')", url) as running:
        done = running.wait_for("done")
        code, moment = running.end()
        assert code == 0
        assert moment - done < SHUTDOWN_SECONDS + MARGIN_SECONDS
        assert "Traceback" not in running.errors()


@pytest.mark.parametrize(
    ("number", "code", "error"), [(signal.SIGTERM, 143, "SystemExit"), (signal.SIGINT, -2, "KeyboardInterrupt")]
)
def test_a_signal_in_the_middle_of_a_song_delivers_its_trace(tmp_path, number, code, error):
    program = "dit.vae.decode = lambda latents: (say('decoding'), time.sleep(60)); song()"
    with grpc_receiver() as received, service(tmp_path, program, received.endpoint) as running:
        running.wait_for("decoding")
        running.process.send_signal(number)
        assert running.end()[0] == code
        root = spans(received)["generate_music"]
        assert attribute(root, semconv.ERROR_TYPE) == error
        assert {"acestep.lm", "acestep.dit", "acestep.vae.decode"} <= set(received.span_names())


def test_a_song_in_a_thread_that_the_exit_cuts_off_is_marked(tmp_path):
    program = (
        "dit.vae.decode = lambda latents: (say('decoding'), time.sleep(60))\n"
        "threading.Thread(target=song, daemon=True).start(); time.sleep(60)"
    )
    with grpc_receiver() as received, service(tmp_path, program, received.endpoint) as running:
        running.wait_for("decoding")
        running.process.send_signal(signal.SIGTERM)
        assert running.end()[0] == 143
        root = spans(received)["generate_music"]
        assert attribute(root, semconv.TRUNCATED) is True
        assert {"acestep.lm", "acestep.dit", "acestep.vae.decode"} <= set(received.span_names())


def test_a_hard_exit_loses_no_more_than_the_last_batch(tmp_path):
    program = "song(); time.sleep(2); say('leaving'); song(); os._exit(3)"
    with grpc_receiver() as received, service(tmp_path, program, received.endpoint) as running:
        leaving = running.wait_for("leaving")
        code, moment = running.end()
        assert code == 3
        assert moment - leaving < MARGIN_SECONDS
        assert len(received.span_names()) >= SONG_SPANS


def test_forked_workers_trace_under_their_own_run(tmp_path):
    program = (
        "import multiprocessing\n"
        "song()\n"
        "workers = [multiprocessing.get_context('fork').Process(target=song) for _ in range(2)]\n"
        "[worker.start() for worker in workers]; [worker.join(20) for worker in workers]\n"
        "assert [worker.exitcode for worker in workers] == [0, 0]"
    )
    # gRPC aborts a child that was forked while a call was under way, and the parent is exporting by then.
    protocol = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with http_receiver() as received, service(tmp_path, program, received.endpoint, **protocol) as running:
        code, _ = running.end()
        errors = running.errors()
        assert code == 0, errors
        roots = [span for span in all_spans(received) if span.name == "generate_music"]
        assert len({attribute(root, semconv.RUN_ID) for root in roots}) == 3, errors
        assert len(all_spans(received)) == 3 * SONG_SPANS
        assert lost_parents(received) == []


def test_spawned_workers_join_the_trace_that_they_are_given(tmp_path):
    program = (
        "import multiprocessing, worker\n"
        "from opentelemetry import propagate, trace\n"
        "if __name__ == '__main__':\n"
        "    with trace.get_tracer('studio').start_as_current_span('album'):\n"
        "        carrier = {}; propagate.inject(carrier)\n"
        "        process = multiprocessing.get_context('spawn').Process(target=worker.main, args=(carrier,))\n"
        "        process.start(); process.join(30)\n"
        "        assert process.exitcode == 0\n"
    )
    worker = (
        "def main(carrier):\n"
        "    from opentelemetry.instrumentation.auto_instrumentation import initialize\n"
        "    initialize()\n"
        "    from opentelemetry import context, propagate\n"
        "    context.attach(propagate.extract(carrier))\n"
        "    import __mp_main__\n"
        "    __mp_main__.song()\n"
    )
    (tmp_path / "worker.py").write_text(worker)
    with grpc_receiver() as received, service(tmp_path, program, received.endpoint) as running:
        code, _ = running.end()
        assert code == 0, running.errors()
        found = spans(received)
        assert found["generate_music"].parent_span_id == found["album"].span_id
        assert len(all_spans(received)) == SONG_SPANS + 1
        assert lost_parents(received) == []


def all_spans(received):
    return [
        span
        for request in received.traces
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def spans(received):
    return {span.name: span for span in all_spans(received)}


def lost_parents(received):
    known = {span.span_id for span in all_spans(received)}
    return [span.name for span in all_spans(received) if span.parent_span_id and span.parent_span_id not in known]


def attribute(span, name):
    (value,) = [pair.value for pair in span.attributes if pair.key == name]
    return getattr(value, value.WhichOneof("value"))
