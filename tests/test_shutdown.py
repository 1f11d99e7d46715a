"""The end of telemetry without new threads; deadlines are tested with whole processes."""

import threading

from acestep_otel.shutdown import deliver_within


def test_without_threads_everything_is_delivered_one_after_the_other(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    def fail(_):
        raise OSError("no route")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told, reported = [], []
    deliver_within(4.0, [told.append, fail, told.append], [lambda: told.append("aborted")], report=reported.append)
    assert told == [3.5, 3.5]
    assert reported == ["telemetry could not be delivered: no route"]
