"""Two result files side by side: how much longer the second took, cell by cell and column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from acestep_otel.profiler.benchmark.matrix import COLUMNS, Cell, Figures
from acestep_otel.profiler.report.results import NotAResultFile, read_document

COMPARISON_VERSION: Final = 1
"""Counts up when a reader of the old comparison file would misread the new one."""

_ASKED_FOR: Final = (
    "task_type", "example", "seed", "use_cot_metas", "use_cot_caption", "use_cot_language", "use_constrained_decoding",
    "lm_temperature", "lm_cfg_scale", "no_warmup", "detail",
)  # fmt: skip
_RAN: Final = ("device", "dtype", "weights", "dit_model", "lm_model", "lm_backend", "shift", "guidance_scale")
_PLACED: Final = ("offload_to_cpu", "offload_dit_to_cpu", "quantization", "compile")


class IncomparableResults(ValueError):
    """A file that is no result file, or two that have nothing to compare; the message is one line."""


@dataclass(frozen=True, slots=True)
class ResultFile:
    """What a comparison reads from a result file.

    Attributes:
        name: of the file.
        mode: that wrote it.
        environment: what it ran on, in words.
        cells: figures of every cell; ``None`` where it failed.
        settings: what else decides how long a cell takes, by name; none of a cell that failed.
        planned: cells that the run was to have; more than ``cells`` when it was stopped.
    """

    name: str
    mode: str
    environment: str
    cells: Mapping[Cell, Figures | None]
    settings: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)
    planned: int = 0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of mode ``profile`` or ``benchmark``.

        Raises:
            IncomparableResults: it cannot be read, or is something else.
        """
        try:
            document = read_document(path)
        except NotAResultFile as error:
            raise IncomparableResults(str(error)) from error
        if document.get("mode") == "tier-test":
            raise IncomparableResults(f"{path} is a tier test: its rows are verdicts, only times can be compared")
        try:
            mode = document["mode"]
            if mode not in _CELLS_OF:
                raise IncomparableResults(f"{path} is of mode {mode}: compare takes {' and '.join(_CELLS_OF)}")
            read = list(_CELLS_OF[mode](document))
            return cls(
                name=str(path),
                mode=mode,
                environment=_environment(document["environment"]),
                cells={cell: figures for cell, figures, _ in read},
                settings={cell: settings for cell, _, settings in read},
                planned=document["benchmark"]["cells"] if mode == "benchmark" else len(read),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise IncomparableResults(f"{path} has no cells to compare: {error!r}") from error


_ReadCell = tuple[Cell, Figures | None, dict[str, Any]]


def _benchmark_cells(document: Mapping[str, Any]) -> Iterator[_ReadCell]:
    for row in document["results"]:
        cell = Cell(**row["config"])
        if row["status"] != "ok":
            yield cell, None, {}
            continue
        figures = Figures(**{column: row[column] for column in COLUMNS})
        yield cell, figures, _settings(document["arguments"], row["runs"][0]["effective_settings"])


def _profile_cells(document: Mapping[str, Any]) -> Iterator[_ReadCell]:
    for result in document["results"]:
        effective, measurement = result["effective_settings"], result["measurement"]
        if effective is None or measurement is None:
            # The run failed, or was not traced: there is nothing to compare.
            continue
        cell = Cell(
            duration=effective["duration"],
            batch_size=effective["batch_size"],
            thinking=document["arguments"]["thinking"],
            inference_steps=effective["steps"],
        )
        stages = measurement["stages"]
        yield (
            cell,
            Figures(
                wall_time=measurement["wall"],
                lm_time=stages["llm_planning"]["total"],
                dit_time=stages["dit_diffusion"]["total"],
                vae_time=stages["vae_decode"]["total"],
            ),
            _settings(document["arguments"], effective),
        )


def _settings(arguments: Mapping[str, Any], effective: Mapping[str, Any]) -> dict[str, Any]:
    # A file that was written before there was such a setting says nothing about it.
    sources = ((arguments, _ASKED_FOR), (effective, _RAN), (effective["placement"], _PLACED))
    return {name: source[name] for source, names in sources for name in names if name in source}


_CELLS_OF: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[_ReadCell]]]] = {
    "benchmark": _benchmark_cells,
    "profile": _profile_cells,
}
"""Modes whose result files can be compared, and how their cells are read."""


def _environment(environment: Mapping[str, Any]) -> str:
    accelerators = [accelerator["name"] for accelerator in environment["accelerators"]]
    revision = environment["git_revision"]
    return ", ".join(
        [
            *(accelerators or [environment["cpu"]]),
            f"torch {environment['packages']['torch']}",
            *([revision[:12]] if revision else []),
        ]
    )


@dataclass(frozen=True, slots=True)
class ComparedCell:
    """One cell that both files have.

    Attributes:
        cell: the configuration.
        baseline: figures of the first file; ``None`` where it failed.
        candidate: figures of the second.
    """

    cell: Cell
    baseline: Figures | None
    candidate: Figures | None

    @property
    def ratios(self) -> dict[str, float | None]:
        """Second over first by column; ``None`` where a cell failed, or the first took no time."""
        if self.baseline is None or self.candidate is None:
            return dict.fromkeys(COLUMNS)
        pairs = zip(COLUMNS, self.baseline, self.candidate, strict=True)
        return {column: after / before if before else None for column, before, after in pairs}

    @property
    def broke(self) -> bool:
        """Whether the second file fails what the first one did."""
        return self.baseline is not None and self.candidate is None

    def slower(self, threshold: float, noise_floor: float = 0.0) -> list[str]:
        """Columns whose ratio is above a threshold, and whose difference is above a number of seconds."""
        if self.baseline is None or self.candidate is None:
            return []
        lost = dict(zip(COLUMNS, (b - a for a, b in zip(self.baseline, self.candidate, strict=True)), strict=True))
        return [
            column
            for column, ratio in self.ratios.items()
            if ratio is not None and ratio > threshold and lost[column] > noise_floor
        ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two result files, cell by cell.

    Attributes:
        baseline: the file compared with.
        candidate: the file judged.
        threshold: largest ratio that passes.
        noise_floor: seconds that a figure may lose whatever its ratio is.
        cells: those that both have, in the first file's order.
        only_in_baseline: cells that the second lacks.
        only_in_candidate: cells that the first lacks.
    """

    baseline: ResultFile
    candidate: ResultFile
    threshold: float
    noise_floor: float
    cells: tuple[ComparedCell, ...]
    only_in_baseline: tuple[Cell, ...]
    only_in_candidate: tuple[Cell, ...]

    @classmethod
    def of(cls, baseline: ResultFile, candidate: ResultFile, threshold: float, noise_floor: float = 0.0) -> Self:
        """Pair the cells up.

        Raises:
            IncomparableResults: files of two modes, or without a cell in common.
        """
        if baseline.mode != candidate.mode:
            raise IncomparableResults(
                f"{baseline.name} is of mode {baseline.mode} and {candidate.name} of mode {candidate.mode}"
            )
        common = [cell for cell in baseline.cells if cell in candidate.cells]
        if not common:
            raise IncomparableResults(f"{baseline.name} and {candidate.name} have no configuration in common")
        return cls(
            baseline,
            candidate,
            threshold,
            noise_floor,
            cells=tuple(ComparedCell(cell, baseline.cells[cell], candidate.cells[cell]) for cell in common),
            only_in_baseline=tuple(cell for cell in baseline.cells if cell not in candidate.cells),
            only_in_candidate=tuple(cell for cell in candidate.cells if cell not in baseline.cells),
        )

    def slower(self, compared: ComparedCell) -> list[str]:
        """Columns of a cell that do not pass."""
        return compared.slower(self.threshold, self.noise_floor)

    @property
    def differences(self) -> dict[str, list[list[Any]]]:
        """Settings that the files do not share: by name, each pair of values that a cell of both has."""
        found: dict[str, list[list[Any]]] = {}
        for compared in self.cells:
            before, after = (file.settings.get(compared.cell, {}) for file in (self.baseline, self.candidate))
            for name in before:
                if name in after and before[name] != after[name]:
                    pairs = found.setdefault(name, [])
                    if (pair := [before[name], after[name]]) not in pairs:
                        pairs.append(pair)
        return found

    @property
    def regressions(self) -> list[str]:
        """What does not pass, a line each."""
        lines = []
        for compared in self.cells:
            if compared.broke:
                lines.append(f"{compared.cell}: failed")
            lines += [f"{compared.cell}: {column} x {compared.ratios[column]:.2f}" for column in self.slower(compared)]
        if self.candidate.planned > (ran := len(self.candidate.cells)):
            lines.append(f"{self.candidate.name}: stopped after {ran} of {self.candidate.planned} cells")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The comparison file: ratios are null where a cell failed or a column took no time."""
        return {
            "comparison_version": COMPARISON_VERSION,
            "baseline": self.baseline.name,
            "candidate": self.candidate.name,
            "threshold": self.threshold,
            "noise_floor": self.noise_floor,
            "differences": self.differences,
            "cells": [
                {
                    "config": asdict(compared.cell),
                    "baseline": None if compared.baseline is None else asdict(compared.baseline),
                    "candidate": None if compared.candidate is None else asdict(compared.candidate),
                    "ratios": compared.ratios,
                    "slower": self.slower(compared),
                    "broke": compared.broke,
                }
                for compared in self.cells
            ],
            "only_in_baseline": [asdict(cell) for cell in self.only_in_baseline],
            "only_in_candidate": [asdict(cell) for cell in self.only_in_candidate],
        }
