"""The engine's environment variables: read in one place, and by no function of the engine."""

from __future__ import annotations

import pytest

from acestep.environment_variables import EnvironmentSettings
from acestep.errors import InvalidRequest
from acestep.renderer.decode_fallbacks import DecodeSettings
from tests.services import ROOT


def test_an_empty_environment_leaves_everything_as_it_is() -> None:
    assert EnvironmentSettings.read({}) == EnvironmentSettings()


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({"ACESTEP_VAE_ON_CPU": "1"}, DecodeSettings(on_cpu=True)),
        ({"ACESTEP_VAE_ON_CPU": "True", "ACESTEP_VAE_DECODE_CHUNK_SIZE": " 256 "}, DecodeSettings(True, 256)),
        ({"ACESTEP_VAE_ON_CPU": "0", "ACESTEP_VAE_DECODE_CHUNK_SIZE": ""}, DecodeSettings()),
    ],
)
def test_how_the_vae_decodes(environment: dict[str, str], settings: DecodeSettings) -> None:
    assert EnvironmentSettings.read(environment).decode == settings


@pytest.mark.parametrize(
    ("environment", "limit", "memory"),
    [
        ({"MAX_CUDA_VRAM": "8", "MAX_MPS_VRAM": "16"}, 8, 8),
        ({"MAX_CUDA_VRAM": " ", "MAX_MPS_VRAM": "15.5"}, None, 15.5),
    ],
)
def test_memory_decides_the_tier_on_any_device_and_limits_cuda(
    environment: dict[str, str], limit: float | None, memory: float
) -> None:
    settings = EnvironmentSettings.read(environment)
    assert (settings.memory_limit, settings.gpu_memory) == (limit, memory)


@pytest.mark.parametrize(("word", "used"), [("", True), ("1", True), ("0", False)])
def test_the_kernels_of_the_language_model_can_be_switched_off(word: str, used: bool) -> None:
    assert EnvironmentSettings.read({"ACESTEP_LM_FUSED": word}).fused_decode is used


@pytest.mark.parametrize(("word", "used"), [("", True), ("1", True), ("0", False)])
def test_the_kernels_and_graphs_of_the_renderer_can_be_switched_off(word: str, used: bool) -> None:
    assert EnvironmentSettings.read({"ACESTEP_RENDERER_FUSED": word}).fused_render is used


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("MAX_CUDA_VRAM", ["8GB", "0", "-4", "nan", "inf", "1e400"]),
        ("MAX_MPS_VRAM", ["large"]),
        ("ACESTEP_VAE_DECODE_CHUNK_SIZE", ["0", "31", "-64", "many", "64.5"]),
        ("ACESTEP_VAE_ON_CPU", ["maybe"]),
        ("ACESTEP_LM_FUSED", ["maybe"]),
        ("ACESTEP_RENDERER_FUSED", ["maybe"]),
        ("ACESTEP_COMPILE_MODEL", ["maybe"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(variable: str, words: list[str]) -> None:
    for word in words:
        with pytest.raises(InvalidRequest, match=f"{variable}='{word}'"):
            EnvironmentSettings.read({variable: word})


def test_no_function_of_the_engine_reads_an_environment_variable() -> None:
    """Others' variables are read where their library reads them: CUDA's, the C++ compiler's, vLLM's."""
    readers = {
        str(path.relative_to(ROOT / "acestep"))
        for path in (ROOT / "acestep").rglob("*.py")
        if "os.environ" in path.read_text("utf-8") or "getenv" in path.read_text("utf-8")
    }
    assert readers - {"environment_variables.py"} == {"cards.py", "devices.py", "planner/backends/vllm/engine.py"}
    names = ("MAX_CUDA_VRAM", "MAX_MPS_VRAM", "ACESTEP_")
    named = {
        path.name
        for path in (ROOT / "acestep").rglob("*.py")
        if any(f'"{name}' in path.read_text("utf-8") for name in names)
    }
    assert named == {"environment_variables.py"}
