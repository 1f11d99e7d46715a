"""A row as the result file has it, and the comparison of our peak with the driver's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.results import result_document, write_result
from acestep_otel.profiler.tier_test.trials import GIB, Observation, TierResult, Trial
from benchmarks import tiers
from tests.profiler.report.schema import violations
from tests.profiler.tier_test.tier_rows import memory_use, observation, row, trial

SCHEMA = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
ROW = SCHEMA["$defs"]["tier_row"]


@pytest.mark.parametrize(
    "result",
    [
        row(8, lm_model="acestep-5Hz-lm-0.6B"),
        row(8, "batch-LM", "skipped", batch_size=4),
        row(8, status="killed"),
        TierResult(trial(4), "failed", None, Observation("cpu", None, initialised=False)),
    ],
)
def test_every_row_keeps_to_the_schema(result: TierResult) -> None:
    assert violations(json.loads(json.dumps(result.to_json())), ROW, SCHEMA) == []


def test_a_row_has_what_was_asked_for_beside_what_was_seen() -> None:
    found = row(12, peak=10.8, lm_model="acestep-5Hz-lm-1.7B").to_json()
    asked = ("tier_gb", "tier", "test_variant", "use_lm", "offload", "offload_dit", "quantization", "batch_size")
    assert [found[name] for name in asked] == [12, "tier5", "default", True, True, False, "int8_weight_only", 1]
    assert (found["lm_backend"], found["peak_vram_gb"], found["wall_time"]) == ("pt", 10.8, 3.2)
    assert (found["init_success"], found["gen_success"], found["cap_enforced"]) == (True, True, True)


def test_trials_and_observations_come_back_from_json() -> None:
    asked = trial(8, "batch-LM", lm_model="acestep-5Hz-lm-0.6B", batch_size=2)
    seen = observation(asked, 6.0)
    assert Trial.from_json(json.loads(json.dumps(asdict(asked)))) == asked
    assert Observation.from_json(json.loads(json.dumps(asdict(seen)))) == seen


@pytest.mark.parametrize(
    ("driver", "agrees"),
    [(10 * GIB, True), (int(10.19 * GIB), True), (int(10.3 * GIB), False), (int(9.7 * GIB), False)],
)
def test_our_peak_is_compared_with_the_drivers(
    driver: int, agrees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = replace(observation(trial(12), 10.0), memory=memory_use(10.0, driver=driver))
    rows = [TierResult(trial(12), "ok", None, seen), row(8, status="killed")]
    write_result(tmp_path / "tiers.json", tier_document(rows))
    monkeypatch.setattr(sys, "argv", ["tiers", str(tmp_path / "tiers.json")])
    assert tiers.main() == (0 if agrees else 1)
    assert ("DISAGREES" in capsys.readouterr().out) == (not agrees)


def tier_document(rows: Sequence[TierResult]) -> dict[str, Any]:
    """A result file of a tier test with these rows."""
    return result_document(
        mode="tier-test",
        environment=Environment.current(),
        arguments={},
        results=rows,
        tier_test={"rows": len(rows), "boundary": None, "batch_boundary": None},
    )


def test_without_a_figure_of_the_drivers_nothing_is_shown_to_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_result(tmp_path / "tiers.json", tier_document([]))
    monkeypatch.setattr(sys, "argv", ["tiers", str(tmp_path / "tiers.json")])
    assert tiers.main() == 1


def test_a_file_of_another_mode_has_no_such_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    document = result_document(mode="profile", environment=Environment.current(), arguments={}, results=[])
    write_result(path, document)
    monkeypatch.setattr(sys, "argv", ["tiers", str(path)])
    with pytest.raises(SystemExit) as ended:
        tiers.main()
    assert ended.value.code == 2
    assert f"{path} is of mode profile, not tier-test" in capsys.readouterr().err
