"""Defaults from ``.env``: values, precedence, and errors with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.profiler.cli import command, main
from acestep_otel.profiler.dotenv import VARIABLES, read_defaults


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def write(content: str) -> Path:
    path = Path(".env")
    path.write_text(content, encoding="utf-8")
    return path


def values_of(*arguments: str) -> dict[str, object]:
    return command.make_context("test", list(arguments)).params


def test_defaults_of_the_models_are_read() -> None:
    write(
        "# models\nACESTEP_CONFIG_PATH=acestep-v15-base\n\nACESTEP_LM_MODEL_PATH=acestep-5Hz-lm-4B\n"
        "ACESTEP_DEVICE=cuda:1 # the second\nACESTEP_LM_BACKEND=pt\nACESTEP_INIT_LLM=auto\n"
    )
    values = values_of()
    assert (values["config_path"], values["lm_model"]) == ("acestep-v15-base", "acestep-5Hz-lm-4B")
    assert (values["device"], values["lm_backend"]) == ("cuda:1", "pt")


ENVIRONMENT_OF_THE_PACKAGE = """
# Model storage
ACESTEP_CONFIG_PATH=acestep-v15-turbo
ACESTEP_LM_MODEL_PATH=acestep-5Hz-lm-1.7B
ACESTEP_DEVICE=auto
ACESTEP_LM_BACKEND=vllm
ACESTEP_INIT_LLM=auto
ACESTEP_FORCE_FLAC_EXPORT=1
ACESTEP_CHECKPOINTS_DIR=~/ace-step-models
# ACESTEP_DOWNLOAD_SOURCE=auto
# ACESTEP_API_KEY=
ACESTEP_NO_INIT=true
"""
"""Every variable that the file shipped with the released package sets or offers to set (2026)."""


def test_the_file_of_the_released_package_is_read_and_what_is_for_its_servers_is_passed_over() -> None:
    found = read_defaults(write(ENVIRONMENT_OF_THE_PACKAGE))
    assert found.problem is None
    assert set(found.values) == set(VARIABLES)
    assert values_of()["checkpoint_dir"] == Path.home() / "ace-step-models"


def test_models_are_downloaded_to_the_folder_that_they_are_loaded_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    monkeypatch.setattr(
        "acestep_otel.profiler.run.weights.download_models", lambda names, root: folders.append((names, root))
    )
    write("ACESTEP_CHECKPOINTS_DIR=shared\n")
    assert main(["download", "acestep-v15-turbo"]) == 0
    assert main(["download", "acestep-v15-turbo", "--checkpoint-dir", "own"]) == 0
    monkeypatch.setenv("ACESTEP_CHECKPOINTS_DIR", "of-the-environment")
    assert main(["download", "acestep-v15-turbo"]) == 0
    assert [root for _, root in folders] == [Path("shared"), Path("own"), Path("of-the-environment")]


def test_without_a_file_the_defaults_are_those_of_the_reference() -> None:
    assert values_of()["config_path"] == "acestep-v15-turbo"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("ACESTEP_DEVICE=mps\nACESTEP_LM_BACKEND=mlx\n")
    monkeypatch.setenv("ACESTEP_DEVICE", "cuda")
    assert values_of()["device"] == "cuda"
    assert values_of("--device", "cpu")["device"] == "cpu"
    assert values_of("--lm-backend", "pt")["lm_backend"] == "pt"
    assert values_of()["lm_backend"] == "mlx"


def test_an_empty_value_is_as_good_as_none() -> None:
    assert read_defaults(write("ACESTEP_DEVICE=\nACESTEP_LM_MODEL_PATH\n")).values == {}


def test_a_byte_order_mark_is_no_part_of_a_key() -> None:
    assert read_defaults(write("\ufeffACESTEP_DEVICE=cpu\n")).values == {"device": "cpu"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# first\nACESTEP_DEVICE=tpu\n", ".env, line 2: ACESTEP_DEVICE='tpu': choose auto, cuda, cuda:N, mps or cpu"),
        ("\n\n\nACESTEP_LM_BACKEND=fast\n", ".env, line 4: ACESTEP_LM_BACKEND='fast': choose auto, vllm, pt or mlx"),
        ("ACESTEP_DEVICE=cpu\nnot a setting\n", ".env, line 2: the line is not of the form KEY=VALUE"),
        ("OTHER='open\nACESTEP_DEVICE=cpu\n", ".env, line 1: "),
    ],
)
def test_a_bad_line_is_one_error_with_file_and_line(
    content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(content)
    assert main(["--tiny"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1


@given(st.lists(st.sampled_from(["", "# note", "OTHER=1", "  ", "B = 2"])))
def test_the_line_number_is_that_of_the_file(before: list[str]) -> None:
    path = write("".join(f"{line}\n" for line in [*before, "ACESTEP_DEVICE=tpu"]))
    assert read_defaults(path).places == {"device": f".env, line {len(before) + 1}: ACESTEP_DEVICE"}


@pytest.mark.parametrize(
    "content", [b"ACESTEP_DEVICE=tpu\n", b"not a setting\n", b"ACESTEP_DEVICE=\xff\xfe\n", b"\xff\xfe\x00"]
)
@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["compare", "none.json", "none.json"]])
def test_a_value_is_an_error_where_it_is_used(
    content: bytes, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """N12: help and subcommands have no use for it."""
    Path(".env").write_bytes(content)
    main(arguments)
    assert ".env" not in capsys.readouterr().err
    assert main(["--tiny"]) == 2
    assert ".env" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["ACESTEP_DEVICE", "ACESTEP_LM_BACKEND"])
def test_and_so_it_is_in_the_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "tpu")
    main(["compare", "none.json", "none.json"])
    assert variable not in capsys.readouterr().err
    assert main(["--tiny"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {variable}='tpu': choose auto, ")


def test_a_file_that_is_no_text_is_refused() -> None:
    Path(".env").write_bytes(b"ACESTEP_DEVICE=\xff\xfe\n")
    assert read_defaults(Path(".env")).problem == ".env is neither UTF-8 nor UTF-16 text (byte 15)"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_every_encoding_of_an_editor_is_read(encoding: str) -> None:
    Path(".env").write_bytes("ACESTEP_DEVICE=cpu\n".encode(encoding))
    assert read_defaults(Path(".env")).values == {"device": "cpu"}


def test_tiny_models_do_not_mind_the_names_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    write("ACESTEP_CONFIG_PATH=acestep-v15-base\n")
    assert main(["--tiny", "--no-warmup", "--duration", "10", "--inference-steps", "1"]) == 0
    assert "acestep-v15-tiny" in capsys.readouterr().out
