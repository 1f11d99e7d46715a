"""Which cards ``--gpus`` names, and the environment of a child process on one of them."""

from __future__ import annotations

from typing import Any

import pynvml
import pytest

from acestep import Card, DeviceUnavailable, choose_cards
from acestep.cards import models_of
from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.children.cards import card_attributes, chosen_cards

UUIDS = ("GPU-aaaa0000", "GPU-bbbb1111", "GPU-cccc2222", "GPU-dddd3333")
MODELS = ("NVIDIA H100", "NVIDIA H100", "NVIDIA A100", "NVIDIA H100")


@pytest.fixture(autouse=True)
def host_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver with four GPUs: there is none on the machine that tests run on."""

    def by_index(index: int) -> int:
        if index not in range(4):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def by_uuid(uuid: str) -> int:
        if uuid != "MIG-eeee":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return 9

    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 4,
        "nvmlDeviceGetHandleByIndex": by_index,
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": lambda handle: "MIG-eeee" if handle == 9 else UUIDS[handle],
        "nvmlDeviceGetName": lambda handle: "NVIDIA H100 MIG 1g.10gb" if handle == 9 else MODELS[handle],
    }
    for name, function in functions.items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def chosen(gpus: str, device: str = "auto") -> list[tuple[str, str | None]]:
    return [(card.label, card.uuid) for card in chosen_cards(gpus, device)]


def test_gpus_are_counted_as_nvidia_smi_counts_them() -> None:
    assert chosen("3,0") == [("GPU 3", UUIDS[3]), ("GPU 0", UUIDS[0])]
    assert chosen("all", "cuda") == [(f"GPU {number}", uuid) for number, uuid in enumerate(UUIDS)]


@pytest.mark.parametrize("visible", ["3,1", f"{UUIDS[3]},GPU-bbbb", " 3 , 1 "])
def test_numbers_are_places_in_the_list_of_visible_gpus(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert chosen("all") == [("GPU 0", UUIDS[3]), ("GPU 1", UUIDS[1])]
    assert chosen("1") == [("GPU 1", UUIDS[1])]


def test_a_part_of_a_card_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-eeee")
    (card,) = chosen_cards("all", "auto")
    assert (card.uuid, card.model) == ("MIG-eeee", "NVIDIA H100 MIG 1g.10gb")


def test_only_its_card_is_visible_to_a_child_and_spans_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, card = chosen_cards("0,1", "auto")
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "PATH": "/bin"}
    assert card.environment(inherited, cards=1) == {"CUDA_VISIBLE_DEVICES": UUIDS[1], "PATH": "/bin"}
    assert card.device == "cuda"
    assert card_attributes(card) == {
        semconv.WORKER: "GPU 1",
        semconv.HOST_NAME: card.host,
        semconv.HW_ID: UUIDS[1],
        semconv.HW_MODEL: MODELS[1],
    }


def test_workers_on_gpus_share_the_processors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    _, card = chosen_cards("0,1", "auto")
    assert card.environment({}, cards=4) == {"CUDA_VISIBLE_DEVICES": UUIDS[1], "OMP_NUM_THREADS": "16"}
    assert card.environment({"OMP_NUM_THREADS": "3"}, cards=4)["OMP_NUM_THREADS"] == "3"


def test_workers_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    first, second = chosen_cards("cpu:2", "cpu")
    assert (first.label, second.label, first.uuid, first.device) == ("CPU 0", "CPU 1", None, "cpu")
    assert first.environment({}, cards=2) == {"OMP_NUM_THREADS": "8"}
    assert first.environment({"OMP_NUM_THREADS": "3"}, cards=2) == {"OMP_NUM_THREADS": "3"}
    assert semconv.HW_ID not in card_attributes(first)


def test_models_are_named_once() -> None:
    assert models_of(chosen_cards("all", "auto")) == ("NVIDIA H100", "NVIDIA A100")


def test_a_card_is_named_in_full_above_a_table() -> None:
    assert str(Card("GPU 2", "NVIDIA A100", "GPU-cccc2222", "alpha")) == "GPU 2: NVIDIA A100, GPU-cccc2222 on alpha"
    assert str(Card("CPU 0", "EPYC", None, "alpha")) == "CPU 0: EPYC on alpha"


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        ("two", "auto", "--gpus 'two': choose GPUs by number (0,1,3), all, or cpu:N for N processes on the CPU"),
        ("0,", "auto", "--gpus '0,': choose GPUs by number"),
        ("", "auto", "--gpus '': choose GPUs by number"),
        ("cpu:0", "auto", "--gpus 'cpu:0': choose GPUs by number"),
        ("cpu:99", "auto", "--gpus cpu:99: at most 64 processes"),
        ("4", "auto", "--gpus 4: there is no GPU 4, GPUs 0 to 3"),
        ("1,0,1", "auto", "--gpus 1,0,1 names GPU 1 twice: two processes on one GPU would disturb each other"),
        ("0", "cpu", "--gpus 0 and --device cpu contradict each other: leave out --device"),
        ("0", "cuda:1", "--gpus 0 and --device cuda:1 contradict each other"),
        ("cpu:2", "cuda", "--gpus cpu:2 and --device cuda contradict each other"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(gpus: str, device: str, message: str) -> None:
    with pytest.raises(SetupError) as refused:
        chosen_cards(gpus, device)
    assert str(refused.value).startswith(message)


def test_hidden_gpus_and_a_missing_driver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        DeviceUnavailable, match="`gpus` all: there is no GPU: CUDA_VISIBLE_DEVICES='' hides all; choose"
    ):
        choose_cards("all")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-nowhere")
    with pytest.raises(SetupError, match="--gpus 0: no GPU can be listed, the NVIDIA driver reports: "):
        chosen_cards("0", "auto")
