"""The result file: its form, and that it is written whole or not at all (R159)."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from acestep.errors import OutOfMemory
from acestep.types import EffectiveSettings, Placement, VaeDecoding
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.results import SCHEMA_VERSION, RunResult, result_document, write_result
from tests.profiler.report.recorded import guide_spans, run_of
from tests.profiler.report.schema import violations

SCHEMA: dict[str, Any] = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
EFFECTIVE = EffectiveSettings(
    device="cpu", dtype="float32", dit_model="acestep-v15-turbo", lm_model=None, lm_backend=None, steps=8, shift=3.0,
    guidance_scale=1.0, batch_size=1, duration=30.0, seeds=(42,), weights="synthetic",
    placement=Placement(quantization="int8_weight_only", compile=True),
    vae_decode=VaeDecoding("gpu+cpu buffer", tile_length=64, overlap=9, tiles=17, attempts=6),
)  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> Environment:
    return Environment.current()


def document(environment: Environment, *results: RunResult) -> dict[str, Any]:
    built = result_document(
        mode="profile", environment=environment, arguments={"output_dir": Path("out")}, results=results
    )
    return json.loads(json.dumps(built, default=str))


def test_a_finished_run_keeps_to_the_schema(environment: Environment) -> None:
    run = run_of(guide_spans())
    built = document(environment, RunResult(run, EFFECTIVE, songs=(Path("out/song.flac"),)))
    assert violations(built, SCHEMA) == []
    (result,) = built["results"]
    assert result["status"] == "ok"
    assert result["songs"] == ["song.flac"]
    assert result["effective_settings"]["seeds"] == [42]
    assert result["effective_settings"]["placement"]["quantization"] == "int8_weight_only"
    assert result["effective_settings"]["vae_decode"]["rung"] == "gpu+cpu buffer"
    measurement = result["measurement"]
    assert measurement["trace_id"] == run.root.trace_id
    stages = measurement["stages"]
    assert stages["dit_diffusion"]["steps"] == 8
    assert len(stages["dit_diffusion"]["step_times"]) == 8
    assert sum(stage["total"] for stage in stages.values()) == pytest.approx(measurement["wall"])
    assert [phase["phase"] for phase in measurement["token_statistics"]] == ["lm.cot", "lm.codes"]


def test_a_failed_run_keeps_what_was_measured(environment: Environment) -> None:
    error = OutOfMemory("out of memory in stage 'dit'", stage="dit")
    built = document(environment, RunResult(run_of(guide_spans()), None, error))
    assert violations(built, SCHEMA) == []
    (result,) = built["results"]
    assert result["status"] == "error"
    assert result["error"] == {"type": "OutOfMemory", "message": "out of memory in stage 'dit'", "stage": "dit"}
    assert result["measurement"]["stages"]["llm_planning"]["total"] > 0


def test_an_untraced_run_has_no_measurement(environment: Environment) -> None:
    built = document(environment, RunResult(None, EFFECTIVE))
    assert violations(built, SCHEMA) == []
    assert built["results"][0]["measurement"] is None


def test_the_checker_finds_what_is_wrong(environment: Environment) -> None:
    built = document(environment, RunResult(run_of(guide_spans()), EFFECTIVE))
    built["schema_version"] = SCHEMA_VERSION + 1
    del built["results"][0]["measurement"]["wall"]
    built["results"][0]["measurement"]["stages"]["dit_diffusion"]["steps"] = "8"
    built["surprise"] = 1
    assert len(violations(built, SCHEMA)) == 4


def test_the_environment_names_hardware_and_versions(environment: Environment) -> None:
    assert environment.cpu_cores >= 1
    assert environment.cpu
    assert environment.memory_bytes is None or environment.memory_bytes > 1 << 20
    assert {"acestep-otel", "torch", "diffusers", "transformers"} <= set(environment.packages)


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old", encoding="utf-8")
    write_result(path, {"caption": "蝉", "path": Path("a/b")})
    assert path.read_text("utf-8") == '{\n  "caption": "蝉",\n  "path": "a/b"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(path, {"first": 1, "wall": float("nan")})
    with pytest.raises(TypeError, match="cannot be stored in a result file"):
        write_result(path, {"first": 1, "object": object()})
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
