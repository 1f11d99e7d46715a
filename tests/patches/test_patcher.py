"""Patching: applied once, on import if necessary, and removed completely."""

import logging
import sys
import types

import pytest

from acestep_otel.patches.patcher import Patch, Patcher
from acestep_otel.profiler.run.profilers import ProfilerRanges


@pytest.fixture
def module():
    module = types.ModuleType("patched_test_module")
    exec(
        "def double(x): return 2 * x\nclass Base:\n    def greet(self): return 'base'\nclass Child(Base): pass\n",
        module.__dict__,
    )
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def plus_one(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs) + 1


def shout(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs).upper()


def test_functions_and_methods_are_wrapped_and_restored(module):
    originals = module.double, vars(module.Base)["greet"]
    patcher = Patcher(ProfilerRanges())
    patcher.apply([Patch("patched_test_module", "double", plus_one), Patch("patched_test_module", "Base.greet", shout)])
    assert (module.double(3), module.Base().greet()) == (7, "BASE")
    patcher.remove()
    assert module.double is originals[0]
    assert vars(module.Base)["greet"] is originals[1]


def test_an_inherited_method_is_wrapped_on_the_class_named_and_removed_from_it(module):
    patcher = Patcher(ProfilerRanges())
    patcher.apply([Patch("patched_test_module", "Child.greet", shout)])
    assert (module.Child().greet(), module.Base().greet()) == ("BASE", "base")
    patcher.remove()
    assert "greet" not in vars(module.Child)


def test_a_missing_name_turns_off_one_patch_with_a_warning(module, caplog):
    patcher = Patcher(ProfilerRanges())
    with caplog.at_level(logging.WARNING):
        patcher.apply(
            [Patch("patched_test_module", "gone", plus_one), Patch("patched_test_module", "double", plus_one)]
        )
    assert module.double(1) == 3
    assert "patched_test_module.gone" in caplog.text
    patcher.remove()


def test_a_module_that_is_not_imported_yet_is_patched_when_it_is(tmp_path, monkeypatch):
    (tmp_path / "patched_late_module.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    patcher = Patcher(ProfilerRanges())
    patcher.apply([Patch("patched_late_module", "double", plus_one)])
    assert "patched_late_module" not in sys.modules
    import patched_late_module

    assert patched_late_module.double(3) == 7
    patcher.remove()
    assert patched_late_module.double(3) == 6


def test_removed_before_the_import_means_never_patched(tmp_path, monkeypatch):
    (tmp_path / "patched_never_module.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    patcher = Patcher(ProfilerRanges())
    patcher.apply([Patch("patched_never_module", "double", plus_one)])
    patcher.remove()
    import patched_never_module

    assert patched_never_module.double(3) == 6


def test_what_others_have_put_in_the_place_of_a_wrapper_stays(module):
    """A replacement that ended before the patches did must not come back with them."""
    original = module.double
    module.double = lambda x: 3 * x
    patcher = Patcher(ProfilerRanges())
    patcher.apply([Patch("patched_test_module", "double", plus_one)])
    assert module.double(3) == 10
    module.double = original
    patcher.remove()
    assert module.double is original
