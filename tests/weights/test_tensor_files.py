"""Safetensors files: read in bounded pieces, and one clear error for everything that is not as it should be."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from acestep.errors import CheckpointInvalid
from acestep.weights import tensor_files
from acestep.weights.tensor_files import WEIGHT_DTYPES, StoredTensor, TensorFiles
from tests.weights.miniature import shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {
        "matrix": torch.randn(37, 5, generator=generator),
        "half": torch.randn(4, 3, 2, generator=generator).to(torch.bfloat16),
        "vector": torch.randn(11, generator=generator).half(),
        "scalar": torch.tensor(3.0),
    }
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def read(files: TensorFiles, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    targets = {name: torch.full(stored.shape, torch.nan, dtype=dtype) for name, stored in files.tensors.items()}
    files.read_into(targets)
    return targets


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapped_bytes", [1, 64, 2**27])
def test_tensors_are_read_whole_however_little_is_mapped_at_a_time(folder, dtype, mapped_bytes, monkeypatch):
    monkeypatch.setattr(tensor_files, "MAPPED_BYTES", mapped_bytes)
    expected = load_file(folder / "model.safetensors")
    assert_equal(read(TensorFiles.open(folder, "model"), dtype), expected, dtype)


def test_shards_are_one_checkpoint(folder):
    expected = load_file(folder / "model.safetensors")
    shard(folder / "model.safetensors", 3)
    files = TensorFiles.open(folder, "model")
    assert len({stored.file for stored in files.tensors.values()}) == 3
    assert_equal(read(files, torch.float32), expected, torch.float32)
    mapped = files.mapped(["vector", "half"])
    assert mapped.keys() == {"vector", "half"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in mapped.items())


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=6),
    dtype=st.sampled_from(sorted(WEIGHT_DTYPES)),
    limit=st.integers(1, 4_000),
)
def test_pieces_cover_every_row_once_and_batches_stay_within_the_limit(shapes, dtype, limit):
    tensors = {str(number): StoredTensor(Path("x"), tuple(shape), dtype) for number, shape in enumerate(shapes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "MAPPED_BYTES", limit)
        pieces = [piece for name, stored in tensors.items() for piece in tensor_files._pieces(name, stored)]
        batches = list(tensor_files._batches(iter(pieces)))
    assert [piece for batch in batches for piece in batch] == pieces
    for name, stored in tensors.items():
        rows = [piece.rows for piece in pieces if piece.name == name]
        if rows != [None]:
            covered = [row for part in rows for row in range(part.start, part.stop)]
            assert covered == list(range(stored.shape[0]))
    for batch in batches:
        # One row is the least that can be read.
        assert len(batch) == 1 or sum(piece.bytes for piece in batch) <= limit


def message(folder: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        TensorFiles.open(folder, "model")
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def test_a_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    assert "model.safetensors is corrupt or incomplete" in message(folder)
    assert "download it again" in message(folder)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a safetensors file at all", b"\xff" * 64])
def test_a_file_of_something_else_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is corrupt or incomplete" in message(folder)


@given(st.binary(max_size=200))
def test_no_content_of_a_file_is_anything_but_a_checkpoint_or_an_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("random") / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid):
        TensorFiles([path])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float64, torch.bool])
def test_a_number_type_that_is_no_weights_is_named_with_its_tensor(folder, dtype):
    save_file({"good": torch.zeros(2), "odd": torch.zeros(2, dtype=dtype)}, folder / "model.safetensors")
    assert re.search(r"odd in .* is stored as [A-Z0-9]+", message(folder))


def test_weights_in_a_pickle_alone_are_refused_unread(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    text = message(folder)
    assert "pytorch_model.bin only" in text
    assert "can execute code" in text


def test_a_folder_without_weights_lists_the_expected_files(folder):
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in message(folder)


def test_a_link_to_itself_is_no_endless_loop(folder):
    file = folder / "model.safetensors"
    file.unlink()
    file.symlink_to(file)
    assert "is a broken symbolic link" in message(folder)


def test_a_missing_shard_is_named(folder):
    shards = shard(folder / "model.safetensors", 2)
    shards[1].unlink()
    assert f"names {shards[1].name}, which does not exist" in message(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_cannot_point_out_of_its_folder(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "a shard must be next to its index" in message(folder)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": [1]}}'])
def test_an_index_of_something_else_is_named(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in message(folder)


def test_an_empty_index_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "lists no shards" in message(folder)


def test_a_tensor_in_two_shards_is_named(folder):
    shards = shard(folder / "model.safetensors", 2)
    save_file({"matrix": torch.zeros(2), "vector": torch.zeros(2), "half": torch.zeros(1)}, shards[0])
    save_file({"matrix": torch.zeros(2)}, shards[1])
    assert "matrix is stored twice" in message(folder)


def test_a_file_that_disappears_between_the_look_and_the_read_is_named(folder):
    files = TensorFiles.open(folder, "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointInvalid, match=r"there is no file .*model\.safetensors"):
        read(files, torch.float32)
