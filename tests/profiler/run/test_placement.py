"""The placement chosen from flags, card and environment, and its description (R80, R81, R99 ... R101)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from acestep.environment_variables import EnvironmentSettings
from acestep.errors import InvalidRequest
from acestep.types import Placement, VaeDecoding
from acestep_otel.profiler.options import DEFAULTS
from acestep_otel.profiler.run.placement import choose_placement, describe_decoding, describe_placement

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
CARD_OF_80 = {"MAX_CUDA_VRAM": "80"}


@pytest.mark.parametrize("memory", ["4", "8", "16", "19.4"])
def test_r80_a_card_of_less_than_20_gb_offloads_by_itself(memory: str) -> None:
    chosen = choose_placement(DEFAULTS, CUDA, EnvironmentSettings.read({"MAX_CUDA_VRAM": memory}))
    assert chosen == Placement(offload_to_cpu=True, automatic_offload=True)


@pytest.mark.parametrize("memory", ["20", "24", "80"])
def test_r81_a_larger_one_does_not(memory: str) -> None:
    assert choose_placement(DEFAULTS, CUDA, EnvironmentSettings.read({"MAX_CUDA_VRAM": memory})) == Placement()


def test_what_was_asked_for_is_not_called_automatic() -> None:
    asked = replace(DEFAULTS, offload_to_cpu=True)
    assert choose_placement(asked, CUDA, EnvironmentSettings.read({"MAX_CUDA_VRAM": "8"})) == Placement(
        offload_to_cpu=True
    )


@pytest.mark.parametrize("device", [CPU, MPS])
def test_a_variable_about_a_card_offloads_nothing_where_there_is_none(device: torch.device) -> None:
    assert choose_placement(DEFAULTS, device, EnvironmentSettings.read({"MAX_CUDA_VRAM": "8"})) == Placement()


def test_flags_are_taken_as_they_are() -> None:
    asked = replace(DEFAULTS, offload_to_cpu=True, offload_dit_to_cpu=True, quantization="w8a8_dynamic")
    assert choose_placement(asked, CUDA, EnvironmentSettings.read(CARD_OF_80)) == Placement(True, True, "w8a8_dynamic")


@pytest.mark.parametrize(("word", "compiles"), [("1", True), ("yes", True), ("On", True), ("0", False), ("", False)])
def test_compilation_is_asked_for_by_a_variable(word: str, compiles: bool) -> None:
    environment = {**CARD_OF_80, "ACESTEP_COMPILE_MODEL": word}
    assert choose_placement(DEFAULTS, CUDA, EnvironmentSettings.read(environment)).compile is compiles


def test_a_word_that_is_neither_yes_nor_no_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="ACESTEP_COMPILE_MODEL='fast'"):
        choose_placement(DEFAULTS, CPU, EnvironmentSettings.read({"ACESTEP_COMPILE_MODEL": "fast"}))


@pytest.mark.parametrize(
    ("placement", "lines"),
    [
        (Placement(), []),
        (
            Placement(True, False, automatic_offload=True),
            [
                "all models but the DiT are kept in host memory while not in use "
                "(automatic: the GPU counts as less than 20 GB)"
            ],
        ),
        (
            Placement(True, True, "int8_weight_only", compile=True),
            ["all models are kept in host memory while not in use; DiT quantised: int8_weight_only; compiled"],
        ),
    ],
)
def test_the_placement_that_took_effect_is_printed(placement: Placement, lines: list[str]) -> None:
    assert list(describe_placement(placement, DEFAULTS)) == lines


def test_a_language_model_on_vllm_is_not_described_as_offloaded() -> None:
    options = replace(DEFAULTS, lm_backend="vllm")
    lines = [
        next(describe_placement(Placement(True, with_dit, automatic_offload=True), options))
        for with_dit in (False, True)
    ]
    assert [line.partition(" are kept")[0] for line in lines] == [
        "all models but the DiT and vLLM's",
        "all models but vLLM's",
    ]


def test_the_rung_of_the_decode_is_printed() -> None:
    assert describe_decoding(VaeDecoding("gpu", 750, 9, 1)) == "VAE on gpu: 1 tile of 750 frames, overlap 9"
    assert describe_decoding(VaeDecoding("gpu+cpu buffer", 64, 9, 17, attempts=6)) == (
        "VAE on gpu+cpu buffer: 17 tiles of 64 frames, overlap 9, after 5 that ran out of memory"
    )
