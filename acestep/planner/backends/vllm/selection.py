"""Deciding tokens inside the engine: the planner's own sampling, guidance and grammar on its hidden states.

The engine chooses nothing itself, so a seed gives the same result as on the other backends, whatever its random numbers
are. A decode pass copies at most one token id to the host, and never waits for the pass that is running: what the host
needs of a text is read while the next pass runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import numpy as np
import torch

from acestep.cuda_graphs import CapturedCall
from acestep.planner.backends.candidates import Candidates, Chooser, choose, to_device
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.fused_sampling import drawing
from acestep.planner.backends.phases import CodesPhase, TextPhase
from acestep.types import SamplingSettings

PHASE: Final = "acestep_phase"
ROW: Final = "acestep_row"
"""Keys of a request's extra arguments: which row of which phase it is."""
Row = tuple[int, int]
"""Number of a phase in the selector, and number of a row in the phase."""
_LAYOUT_LIMIT: Final = 64
"""Maximum number of batch compositions that are kept: a batch has the same one until a request is added, removed or
moved."""


@dataclass(slots=True)
class CodesSelection:
    """Audio codes of several songs.

    Row ``i`` is conditional; with guidance, row ``songs + i`` is the unconditional one of the same song.

    Attributes:
        phase: what is written.
        number: of the phase in the selector, given when it is added.
        passes: of the engine that rows of the phase took part in.
        keys: of the noise, int64, shape ``[songs, count]``.
        slots: of the songs that have started, in the selector's tables.
        steps: passes of each song.
        in_step: whether both rows of every song have taken part in the same passes.
    """

    phase: CodesPhase
    number: int = -1
    passes: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    keys: np.ndarray = field(init=False)
    steps: list[int] = field(init=False)
    in_step: bool = True

    def __post_init__(self) -> None:
        self.keys = np.ascontiguousarray(self.phase.noise_keys().T.numpy())
        self.steps = [0] * len(self.phase.seeds)

    @property
    def songs(self) -> int:
        """How many."""
        return len(self.steps)

    @property
    def written(self) -> int:
        """Codes of the song that has the fewest."""
        return min(self.steps)


class TextSelection:
    """One text, under a guide.

    The engine cannot process several tokens at once after the prompt, so each forced token takes a pass. A drawn token
    is read when the next one is due: the pass that computes that one has been launched by then.

    Attributes:
        number: of the phase in the selector, given when it is added.
        passes: of the engine that its row took part in.
        written: tokens so far, the opening included.
        sampled: those that were a choice.
    """

    def __init__(self, phase: TextPhase[Candidates], closing: int, device: torch.device) -> None:
        """Set up.

        Args:
            phase: what is written.
            closing: token that ends the engine's request when the guide does; it is not part of the text.
            device: of the logits.
        """
        self.number, self.passes = -1, 0
        self._phase = phase
        self._closing = closing
        self._keys = to_device(phase.noise_keys().numpy(), device)
        self._forced: list[int] = []
        self._unread: _Readback | None = None
        # The guide is moved by the thread that runs the engine, and observed as part of this thread's request.
        self._context = copy_context()
        self.opening = phase.guide.opening()
        self.written = list(self.opening)
        self.sampled = 0

    @property
    def over(self) -> bool:
        """Whether the text is complete."""
        return not self._forced and (self._phase.guide.done or self.sampled == self._phase.token_limit)

    def token(self, hidden: torch.Tensor, chooser: Chooser) -> torch.Tensor:
        """Decide the next token from hidden states of shape ``[1, hidden]``; shape ``[1]``."""
        self.read()
        if self.over:
            return hidden.new_full((1,), self._closing, dtype=torch.long)
        if self._forced:
            return hidden.new_full((1,), self._forced.pop(0), dtype=torch.long)
        candidates = self._context.run(self._phase.guide.candidates)
        drawn = chooser(candidates, self._phase.sampling, hidden, self._keys[self.sampled : self.sampled + 1])
        self.sampled += 1
        self._unread = _Readback(drawn)
        return drawn

    def read(self) -> None:
        """Move the guide over the token that was drawn last, if that was not done yet."""
        if self._unread is not None:
            chunk = self._context.run(self._phase.guide.accept, self._unread.value())
            self._unread = None
            self.written += chunk
            self._forced = chunk[1:]


class _Readback:
    """A number that is being copied to the host."""

    def __init__(self, number: torch.Tensor) -> None:
        self._event: torch.Event | None = None
        self._host = number
        if number.is_cuda:
            self._host = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
            self._host.copy_(number, non_blocking=True)
            self._event = torch.Event(number.device)
            self._event.record()

    def value(self) -> int:
        """The number; waits for the copy, and for nothing after it."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._host)


@dataclass(frozen=True, slots=True)
class _SongGroup:
    """Songs of a batch that are sampled alike, of whatever phase.

    Attributes:
        sampling: how.
        guided: whether every song has two rows.
        order: places of the conditional rows in the batch, then those of the unconditional ones; both filled up.
        slots: of the songs in the selector's tables, filled up with the spare one.
        places: in the batch, of all rows.
        songs: index into ``slots`` of each of the places.
    """

    sampling: SamplingSettings
    guided: bool
    order: torch.Tensor
    slots: torch.Tensor
    places: torch.Tensor
    songs: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Layout:
    """The selection's view of a batch composition.

    Attributes:
        groups: of songs.
        texts: place and selection of each text.
        codes: phases with songs that take part, and which of them do.
    """

    groups: tuple[_SongGroup, ...]
    texts: tuple[tuple[int, TextSelection], ...]
    codes: tuple[tuple[CodesSelection, list[int]], ...]


class TokenSelector:
    """Decides the tokens of all phases that run in one engine.

    Songs have slots in tables on the device: their noise, their step, and whether their hidden states were finite. One
    recorded function reads and writes these, so a pass of songs alone needs nothing from the host.

    Attributes:
        fuses: whether the engine runs small decode passes in the kernels of the PyTorch backend.
        seen: where it is not ``None``, receives the hidden states of each row at each pass.

    Args:
        songs: most songs that run together.
        length: most codes of a song.
        codes: the audio codes.
        device: of the engine.
    """

    def __init__(self, songs: int, length: int, codes: TokenChoice, device: torch.device) -> None:
        self._codes = codes
        self._device = device
        self._numbers = count()
        self._selections: dict[int, CodesSelection | TextSelection] = {}
        self._free = list(range(songs))
        self._songs, self._length = songs, length
        self._text_finite: dict[int, torch.Tensor] = {}
        self._layouts: dict[tuple[Row | None, ...], _Layout] = {}
        self._chooser = Chooser()
        self._head: torch.Tensor | None = None
        self.fuses = False
        self.seen: dict[Row, torch.Tensor] | None = None

    @property
    def head(self) -> torch.Tensor:
        """The engine's own head, shape ``[vocabulary, hidden]``."""
        if self._head is None:
            raise RuntimeError("the engine has no weights yet")
        return self._head

    def bind(self, head: torch.Tensor) -> None:
        """Take the head of an engine that has loaded its weights, and set the tables up."""
        self._head = head
        songs, device = self._songs, self._device
        # One more than there are: the spare slot, which batches are filled up with.
        self._keys = torch.zeros(songs + 1, self._length, dtype=torch.long, device=device)
        self._steps = torch.zeros(songs + 1, dtype=torch.long, device=device)
        # Over all hidden states of a song: NaN and infinity persist once they occur.
        self._sums = torch.zeros(songs + 1, dtype=torch.float32, device=device)
        self._ones = torch.ones(1 << songs.bit_length(), dtype=torch.long, device=device)
        self._spares = torch.full((1 << songs.bit_length(),), songs, dtype=torch.long, device=device)

    def release(self) -> None:
        """Release everything on the device."""
        if self._head is None:
            return
        self._head = None
        self._chooser.clear()
        self._layouts.clear()
        del self._keys, self._steps, self._sums, self._ones, self._spares

    def add(self, selection: CodesSelection | TextSelection) -> None:
        """Start a phase."""
        selection.number = next(self._numbers)
        self._selections[selection.number] = selection
        if isinstance(selection, TextSelection):
            self._text_finite[selection.number] = torch.ones((), dtype=torch.bool, device=self._device)

    def start_song(self, selection: CodesSelection, song: int) -> None:
        """Start a song of a phase; there must be a free slot."""
        slot = selection.slots[song] = self._free.pop()
        self._keys[slot, : selection.phase.count] = to_device(selection.keys[song], self._device)
        self._steps[slot : slot + 1].zero_()
        self._sums[slot : slot + 1].zero_()

    def remove(self, selection: CodesSelection | TextSelection) -> bool:
        """End a phase that was added; returns whether its hidden states were finite, and waits for the device."""
        del self._selections[selection.number]
        self._layouts = {rows: layout for rows, layout in self._layouts.items() if not _holds(rows, selection.number)}
        if isinstance(selection, TextSelection):
            return bool(self._text_finite.pop(selection.number))
        slots = list(selection.slots.values())
        self._free += slots
        return bool(self._sums[slots].isfinite().all())

    def select(self, hidden: torch.Tensor, rows: tuple[Row | None, ...]) -> torch.Tensor:
        """Decide the next token of every row of a batch.

        Args:
            hidden: shape ``[batch, hidden]``.
            rows: which rows these are; ``None`` where a row belongs to no phase (the engine's own trials).

        Returns:
            Token ids, int64, shape ``[batch]``.
        """
        if self.seen is not None:
            self.seen |= {
                row: state.float() for row, state in zip(rows, hidden.clone(), strict=True) if row is not None
            }
        layout = self._layouts.get(rows)
        if layout is None:
            if len(self._layouts) >= _LAYOUT_LIMIT:
                self._layouts.clear()
            layout = self._layouts[rows] = self._lay_out(rows)
        for selection, songs in layout.codes:
            selection.passes += 1
            for song in songs:
                selection.steps[song] += 1
        if len(layout.groups) == 1 and len(layout.groups[0].places) == len(rows):
            return self._codes_of(hidden, layout.groups[0])
        tokens = hidden.new_full((len(rows),), self._codes.first, dtype=torch.long)
        for group in layout.groups:
            tokens.index_copy_(0, group.places, self._codes_of(hidden, group))
        for place, text in layout.texts:
            text.passes += 1
            row = hidden[place : place + 1]
            self._text_finite[text.number].logical_and_(row.isfinite().all())
            tokens[place : place + 1] = text.token(row, self._chooser)
        return tokens

    def _codes_of(self, hidden: torch.Tensor, group: _SongGroup) -> torch.Tensor:
        """Next code of each song of a group, once for each of its places."""

        def advance(hidden: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
            steps = self._steps[slots]
            # The step of the spare slot increases without limit.
            keys = self._keys[slots, steps.clamp(max=self._length - 1)]
            drawn = choose(Candidates.of(self._codes, self.head), group.sampling, hidden, keys, drawing(hidden.device))
            sums = hidden.view(-1, len(slots), hidden.shape[1]).sum(dim=(0, 2), dtype=torch.float32)
            self._sums.index_add_(0, slots, sums)
            self._steps.index_add_(0, slots, self._ones[: len(slots)])
            return drawn

        kind = ("codes", group.sampling, group.guided, len(group.slots))
        run = self._chooser.find(kind)
        if run is None:
            # Recording runs the function once: on the spare slot.
            rows, spares = hidden.index_select(0, group.order), self._spares[: len(group.slots)]
            run = self._chooser.recorded(kind, advance, rows, spares)
        if isinstance(run, CapturedCall):
            torch.index_select(hidden, 0, group.order, out=run.inputs[0])
            if run.holds is not group:
                # Songs stay for many passes.
                run.inputs[1].copy_(group.slots)
                run.holds = group
            drawn = run.replay()
        else:
            drawn = run(hidden.index_select(0, group.order), group.slots)
        return drawn.index_select(0, group.songs)

    def _lay_out(self, rows: tuple[Row | None, ...]) -> _Layout:
        places = {row: place for place, row in enumerate(rows) if row is not None}
        texts, songs = [], []
        for number in dict.fromkeys(number for number, _ in places):
            selection = self._selections.get(number)
            if selection is None:
                # Stopped while a pass with its rows was running.
                continue
            if isinstance(selection, TextSelection):
                texts.append((places[number, 0], selection))
            else:
                songs.append((selection, self._songs_present(selection, places)))
        alike: dict[tuple[SamplingSettings, bool], list[tuple[int, int, int | None]]] = {}
        for selection, present in songs:
            guided = selection.phase.unconditional is not None
            entries = alike.setdefault((selection.phase.sampling, guided), [])
            for song in present:
                pair = places.get((selection.number, song + selection.songs)) if guided else None
                entries.append((selection.slots[song], places[selection.number, song], pair))
        groups = (self._group(*kind, entries) for kind, entries in alike.items() if entries)
        return _Layout(tuple(groups), tuple(texts), tuple(songs))

    @staticmethod
    def _songs_present(selection: CodesSelection, places: dict[Row, int]) -> list[int]:
        """Songs of a phase all of whose rows are in the batch."""
        songs = range(selection.songs)
        conditional = {song for song in songs if (selection.number, song) in places}
        if selection.phase.unconditional is None:
            return sorted(conditional)
        unconditional = {song for song in songs if (selection.number, song + len(songs)) in places}
        selection.in_step = selection.in_step and conditional == unconditional
        return sorted(conditional & unconditional)

    def _group(
        self, sampling: SamplingSettings, guided: bool, entries: Sequence[tuple[int, int, int | None]]
    ) -> _SongGroup:
        """Songs as index tensors, filled up to a power of two so that few functions are recorded."""
        filling = (1 << (len(entries) - 1).bit_length()) - len(entries)
        slots = [slot for slot, _, _ in entries] + [self._songs] * filling
        order = [place for _, place, _ in entries] + [entries[0][1]] * filling
        places, songs = [place for _, place, _ in entries], list(range(len(entries)))
        if guided:
            pairs = [pair for _, _, pair in entries if pair is not None]
            order += pairs + [pairs[0]] * filling
            places, songs = places + pairs, songs * 2
        if len(places) == max(places) + 1:
            # All of a batch: in its own order the songs' codes are the batch's tokens.
            places, songs = sorted(places), [song for _, song in sorted(zip(places, songs, strict=True))]
        packed = to_device(np.array([*order, *slots, *places, *songs]), self._device)
        parts = torch.split(packed, [len(order), len(slots), len(places), len(songs)])
        return _SongGroup(sampling, guided, *parts)


def _holds(rows: tuple[Row | None, ...], number: int) -> bool:
    return any(row is not None and row[0] == number for row in rows)
