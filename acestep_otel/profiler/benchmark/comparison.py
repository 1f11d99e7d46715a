"""Two result files side by side: how much longer the second took, cell by cell and column by column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from acestep_otel.profiler.benchmark.matrix import COLUMNS, Cell, Figures
from acestep_otel.profiler.report.results import NotAResultFile, read_result

COMPARISON_VERSION: Final = 1
"""Increased when a reader of the old comparison file would misread the new one."""

NO_SPREAD: Final = Figures(0.0, 0.0, 0.0, 0.0)
"""The spread of a cell that was run once: unknown, so zero."""
_ASKED_FOR: Final = (
    "task_type", "example", "seed", "use_cot_metas", "use_cot_caption", "use_cot_language", "use_constrained_decoding",
    "lm_temperature", "lm_cfg_scale", "no_warmup", "detail",
)  # fmt: skip
_RAN: Final = (
    "device",
    "dtype",
    "weights",
    "dit_model",
    "lm_model",
    "lm_backend",
    "lm_device",
    "shift",
    "guidance_scale",
)
_PLACED: Final = ("offload_to_cpu", "offload_dit_to_cpu", "quantization", "compile")


class IncomparableResults(ValueError):
    """A file is not a result file, or two files have nothing to compare; the message is one line."""


@dataclass(frozen=True, slots=True)
class ResultFile:
    """The data of a result file that a comparison reads.

    Attributes:
        name: of the file.
        mode: mode that wrote it.
        environment: description of the hardware.
        cells: figures of every cell; ``None`` where it failed.
        spreads: of a cell that was run several times, the largest less the smallest of each figure.
        settings: other settings that affect the time of a cell, by name; none for a failed cell.
        planned: number of planned cells; more than ``cells`` if the run was stopped.
        energies: joules of a cell's run, the median of several; none on cards without a counter.
    """

    name: str
    mode: str
    environment: str
    cells: Mapping[Cell, Figures | None]
    settings: Mapping[Cell, Mapping[str, Any]] = field(default_factory=dict)
    planned: int = 0
    spreads: Mapping[Cell, Figures] = field(default_factory=dict)
    energies: Mapping[Cell, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of mode ``profile`` or ``benchmark``.

        Raises:
            IncomparableResults: it cannot be read, or is of another kind.
        """
        try:
            document = read_result(path)
        except NotAResultFile as error:
            raise IncomparableResults(str(error)) from error
        if document.get("mode") == "tier-test":
            raise IncomparableResults(
                f"{path} is a tier test: its rows are pass/fail results, and only times can be compared"
            )
        try:
            mode = document["mode"]
            if mode not in _CELLS_OF:
                raise IncomparableResults(f"{path} is of mode {mode}: compare takes {' and '.join(_CELLS_OF)}")
            _require_like_cards(path, document["results"])
            read = list(_CELLS_OF[mode](document))
            planned = document["benchmark"]["cells"] if mode == "benchmark" else len(document["results"])
            if not document["results"]:
                raise IncomparableResults(f"{path} has no cells to compare")
            for cell, figures, *_ in read:
                _require_times(path, cell, figures)
            return cls(
                name=str(path),
                mode=mode,
                environment=_environment(document["environment"]),
                cells={cell: figures for cell, figures, *_ in read},
                settings={cell: settings for cell, _, settings, _ in read},
                spreads={cell: spread for cell, *_, spread in read if spread is not None},
                planned=planned,
                energies=_energies(document, [cell for cell, *_ in read]),
            )
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            if isinstance(error, IncomparableResults):
                raise
            raise IncomparableResults(f"{path} has no cells to compare: {error!r}") from error


def _energies(document: Mapping[str, Any], cells: Sequence[Cell]) -> dict[Cell, float]:
    """Joules of each cell if all of its runs have them; a file of an earlier version has none."""
    rows = document["results"]
    if document["mode"] == "profile":
        rows = [{"runs": [result]} for result in rows if result["measurement"] is not None]
    found: dict[Cell, float] = {}
    for cell, row in zip(cells, rows, strict=False):
        known = [(run["measurement"] or {}).get("energy") for run in row["runs"]]
        joules = [float(energy["joules"]) for energy in known if energy is not None]
        if joules and len(joules) == len(known):
            found[cell] = median(joules)
    return found


_ReadCell = tuple[Cell, Figures | None, dict[str, Any], Figures | None]


def _require_times(path: Path, cell: Cell, figures: Figures | None) -> None:
    if figures is not None and (figures.wall_time <= 0 or min(figures) < 0):
        raise IncomparableResults(f"{path}, {cell}: a time is not above zero, so nothing can be compared with it")


def _require_like_cards(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    models = Counter(card["model"] for row in rows if (card := row.get("card")) is not None)
    if len(models) > 1:
        counted = ", ".join(f"{count} on {model}" for model, count in models.items())
        raise IncomparableResults(
            f"{path} has cells of cards of different models ({counted}): a ratio would compare the cards; run it with "
            "--gpus on cards of one model"
        )


def _benchmark_cells(document: Mapping[str, Any]) -> Iterator[_ReadCell]:
    for row in document["results"]:
        cell = Cell(**row["config"])
        if row["status"] != "ok":
            yield cell, None, {}, None
            continue
        figures = Figures(**{column: row[column] for column in COLUMNS})
        spread = Figures(**row["spread"]) if len(row["runs"]) > 1 and row["spread"] is not None else None
        yield cell, figures, _settings(document["arguments"], row["runs"][0]["effective_settings"]), spread


def _profile_cells(document: Mapping[str, Any]) -> Iterator[_ReadCell]:
    arguments = document["arguments"]
    for result in document["results"]:
        effective, measurement = result["effective_settings"], result["measurement"]
        if effective is None or measurement is None or result["status"] != "ok":
            # It failed, or was not traced: neither its figures nor its cell are known.
            continue
        cell = Cell(
            duration=effective["duration"],
            batch_size=effective["batch_size"],
            thinking=arguments["thinking"],
            inference_steps=effective["steps"],
        )
        stages = measurement["stages"]
        figures = Figures(
            wall_time=measurement["wall"],
            lm_time=stages["llm_planning"]["total"],
            dit_time=stages["dit_diffusion"]["total"],
            vae_time=stages["vae_decode"]["total"],
        )
        yield cell, figures, _settings(arguments, effective), None


def _settings(arguments: Mapping[str, Any], effective: Mapping[str, Any]) -> dict[str, Any]:
    # A file that is older than the setting does not contain it.
    sources = ((arguments, _ASKED_FOR), (effective, _RAN), (effective["placement"], _PLACED))
    settings = {name: source[name] for source, names in sources for name in names if name in source}
    if "adapters" in effective:
        used = (f"{adapter['name']} x {adapter['scale']:g}" for adapter in effective["adapters"])
        settings["adapters"] = " and ".join(used) or None
    return settings


_CELLS_OF: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[_ReadCell]]]] = {
    "benchmark": _benchmark_cells,
    "profile": _profile_cells,
}
"""Modes whose result files can be compared, and how their cells are read."""


def _environment(environment: Mapping[str, Any]) -> str:
    found = Counter(accelerator["name"] for accelerator in environment["accelerators"])
    accelerators = [name if count == 1 else f"{count} x {name}" for name, count in found.items()]
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
        spread: difference between runs of one file; the larger of both files, for cells that ran several times.
    """

    cell: Cell
    baseline: Figures | None
    candidate: Figures | None
    spread: Figures = NO_SPREAD

    @property
    def ratios(self) -> dict[str, float | None]:
        """Second over first by column; ``None`` where a cell failed, or the first took no time."""
        if self.baseline is None or self.candidate is None:
            return dict.fromkeys(COLUMNS)
        pairs = zip(COLUMNS, self.baseline, self.candidate, strict=True)
        return {column: after / before if before else None for column, before, after in pairs}

    @property
    def broke(self) -> bool:
        """Whether the cell failed in the second file only."""
        return self.baseline is not None and self.candidate is None

    def slower(self, threshold: float, noise_floor: float = 0.0) -> list[str]:
        """Columns whose ratio is above a threshold, and whose difference is above noise.

        Noise is a number of seconds, and never less than the spread. A column that took no time has no ratio: any time
        above noise is too much.
        """
        if self.baseline is None or self.candidate is None:
            return []
        noise = {column: max(noise_floor, spread) for column, spread in zip(COLUMNS, self.spread, strict=True)}
        return [
            column
            for column, before, after in zip(COLUMNS, self.baseline, self.candidate, strict=True)
            if (after > before * threshold if before else after > 0) and after - before > noise[column]
        ]

    def verdict(self, slower: Sequence[str]) -> str:
        """The verdict on the cell, in one to three words.

        Args:
            slower: its columns that do not pass.
        """
        if self.baseline is None:
            return "failed in both" if self.candidate is None else "failed in A"
        if self.candidate is None:
            return "failed in B"
        return "SLOWER" if slower else "OK"

    def change(self, column: str, threshold: float) -> str:
        """The ratio of a column, with enough digits to show on which side of the threshold it is."""
        ratio = self.ratios[column]
        if ratio is None:
            return f"from 0 to {getattr(self.candidate, column, 0.0):.3f} s"
        digits = next(
            (digits for digits in range(2, 8) if (round(ratio, digits) > threshold) == (ratio > threshold)), 8
        )
        return f"x {ratio:.{digits}f}"


def _larger(cell: Cell, *files: ResultFile) -> Figures:
    spreads = [file.spreads[cell] for file in files if cell in file.spreads]
    return Figures(*map(max, zip(NO_SPREAD, *spreads, strict=True)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two result files, cell by cell.

    Attributes:
        baseline: the file compared with.
        candidate: the file that is checked.
        threshold: largest ratio that passes.
        noise_floor: smaller increases, in seconds, pass with any ratio.
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
        after = candidate.cells
        if not after and candidate.mode == "profile":
            # Its run failed, so it fails regardless of the first file.
            after = dict.fromkeys(baseline.cells)
        common = [cell for cell in baseline.cells if cell in after]
        if not common:
            raise IncomparableResults(f"{baseline.name} and {candidate.name} have no configuration in common")
        return cls(
            baseline,
            candidate,
            threshold,
            noise_floor,
            cells=tuple(
                ComparedCell(cell, baseline.cells[cell], after[cell], _larger(cell, baseline, candidate))
                for cell in common
            ),
            only_in_baseline=tuple(cell for cell in baseline.cells if cell not in after),
            only_in_candidate=tuple(cell for cell in after if cell not in baseline.cells),
        )

    def slower(self, compared: ComparedCell) -> list[str]:
        """Columns of a cell that do not pass."""
        return compared.slower(self.threshold, self.noise_floor)

    @property
    def differences(self) -> dict[str, list[list[Any]]]:
        """Settings that differ between the files: by name, each pair of values that a cell of both has."""
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
    def energies(self) -> list[str]:
        """Joules of each cell that has them in both files, a line each; not judged: they depend on the card's heat."""
        before, after = self.baseline.energies, self.candidate.energies
        return [
            f"{cell}: {before[cell]:,.0f} J to {after[cell]:,.0f} J, x {after[cell] / before[cell]:.2f}"
            for cell in (compared.cell for compared in self.cells)
            if before.get(cell) and cell in after
        ]

    @property
    def regressions(self) -> list[str]:
        """The cells and columns that do not pass, a line each."""
        lines = []
        for compared in self.cells:
            if compared.broke:
                lines.append(f"{compared.cell}: failed")
            lines += [
                f"{compared.cell}: {column} {compared.change(column, self.threshold)}"
                for column in self.slower(compared)
            ]
        return lines if self.stopped is None else [*lines, self.stopped]

    @property
    def stopped(self) -> str | None:
        """A line if the second file lacks cells that its run had planned; ``None`` if it has all of them."""
        ran, planned = len(self.candidate.cells), self.candidate.planned
        return f"{self.candidate.name}: stopped after {ran} of {planned} cells" if planned > ran else None

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
                    "energy": [file.energies.get(compared.cell) for file in (self.baseline, self.candidate)],
                    "slower": self.slower(compared),
                    "broke": compared.broke,
                }
                for compared in self.cells
            ],
            "only_in_baseline": [asdict(cell) for cell in self.only_in_baseline],
            "only_in_candidate": [asdict(cell) for cell in self.only_in_candidate],
        }
