"""Temporary patches of single objects: shared between users and restored after the last."""

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
