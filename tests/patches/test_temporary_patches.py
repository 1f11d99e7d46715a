"""Temporary patches of single objects: shared between users and restored after the last."""

import os
import signal
import threading

import pytest

from acestep_otel.patches.patcher import TemporaryPatches


class Decoder:
    def forward(self, x):
        return 2 * x


def plus_one(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs) + 1


@pytest.mark.parametrize("own", [False, True], ids=["of its class", "its own"])
def test_overlapping_patches_wrap_once_and_the_last_one_restores(own):
    decoder, patches = Decoder(), TemporaryPatches()
    if own:
        decoder.forward = lambda x: 3 * x
    before, plain = dict(vars(decoder)), decoder.forward(1)
    with patches.wrapped(decoder, "forward", plus_one):
        with patches.wrapped(decoder, "forward", plus_one):
            assert decoder.forward(1) == plain + 1
        assert decoder.forward(1) == plain + 1
    assert vars(decoder) == before


def test_an_error_gives_the_method_back():
    decoder, patches = Decoder(), TemporaryPatches()
    with pytest.raises(ZeroDivisionError), patches.wrapped(decoder, "forward", plus_one):
        raise ZeroDivisionError
    assert vars(decoder) == {}


@pytest.mark.parametrize("owner", [None, Decoder()])
def test_an_object_without_the_method_is_not_changed(owner):
    with TemporaryPatches().wrapped(owner, "missing", plus_one):
        assert not hasattr(owner, "missing")


def test_a_fork_waits_for_a_change_that_is_under_way():
    begun, over = threading.Event(), threading.Event()

    class SlowDecoder(Decoder):
        def __setattr__(self, name, value):
            begun.set()
            over.wait(10)
            super().__setattr__(name, value)

    decoder, patches = SlowDecoder(), TemporaryPatches()

    def song():
        with patches.wrapped(decoder, "forward", plus_one):
            return decoder.forward(1)

    other = threading.Thread(target=song)
    other.start()
    assert begun.wait(10)
    threading.Timer(0.2, over.set).start()
    child = os.fork()
    if not child:
        signal.alarm(5)
        os._exit(0 if song() == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.join(10)
    assert vars(decoder) == {}
