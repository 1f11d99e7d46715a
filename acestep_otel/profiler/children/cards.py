"""Cards in options, rows and spans of the profiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from acestep.cards import Card, choose_cards
from acestep.errors import DeviceUnavailable
from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.flags import in_flags


def chosen_cards(gpus: str, device: str) -> tuple[Card, ...]:
    """The cards that ``--gpus`` names.

    Raises:
        SetupError: the value is invalid, a card does not exist, or ``--device`` contradicts it.
    """
    try:
        return choose_cards(gpus, device)
    except DeviceUnavailable as error:
        raise SetupError(in_flags(error)) from error


def card_attributes(card: Card) -> dict[str, str]:
    """Attributes of the card, for spans of its requests."""
    hardware = {} if card.uuid is None else {semconv.HW_ID: card.uuid, semconv.HW_MODEL: card.model}
    return {semconv.WORKER: card.label, semconv.HOST_NAME: card.host, **hardware}


def card_lines(cards: Sequence[Card]) -> list[str]:
    """Full descriptions of the cards, for the head of a table with short names."""
    return [str(card) for card in cards]


def card_json(card: Card | None) -> dict[str, Any] | None:
    """The entry of a row; ``None`` if the run had the machine's only card."""
    return None if card is None else asdict(card)
