"""What a version lacks is found in its sources: methods through their mixins, and functions."""

import subprocess
import zipfile

import pytest

from tests.programs import program
from tests.released.versions import all_patches, main, missing, versions
from tests.services import unpack_double

PATCHES = all_patches()


def sources(folder):
    ((_, files),) = versions(folder)
    return files


@pytest.fixture(params=["single", "mixins"])
def double(request, tmp_path):
    return unpack_double(tmp_path, request.param)


def test_a_complete_version_lacks_nothing_that_it_is_expected_to_have(double, capsys):
    assert [patch.path for patch in missing(sources(double), PATCHES) if not patch.optional] == []
    assert main([str(double)]) == 0
    assert "1 versions looked at" in capsys.readouterr().out


def test_a_renamed_method_and_a_removed_function_are_named_with_their_spans(double, capsys):
    parts, inference = double / "acestep" / "parts.py", double / "acestep" / "inference.py"
    parts.write_text(parts.read_text().replace("def tiled_decode", "def decode_in_tiles"))
    inference.write_text(inference.read_text().replace("def format_sample", "def write_sample"))
    assert main([str(double)]) == 1
    printed = capsys.readouterr().out
    assert "no acestep.handler.AceStepHandler.tiled_decode: acestep.vae.decode" in printed
    assert "no acestep.inference.format_sample: format_sample" in printed


def test_a_file_that_cannot_be_parsed_defines_nothing(double):
    (double / "acestep" / "inference.py").write_text("def generate_music(")
    assert "generate_music" in {patch.path for patch in missing(sources(double), PATCHES)}


def test_every_commit_of_a_repository_and_a_wheel_are_versions(double, tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=tester", "-c", "user.email=tester@example.com"]
        subprocess.run([program("git"), *who, *arguments], cwd=double, check=True, capture_output=True)

    git("init")
    git("add", "acestep")
    git("commit", "-m", "first")
    inference = double / "acestep" / "inference.py"
    inference.write_text(inference.read_text().replace("def format_sample", "def write_sample"))
    git("commit", "-am", "second")
    found = list(versions(double))
    assert len(found) == 2
    assert [len(missing(files, PATCHES)) for _, files in found][1] > len(missing(found[0][1], PATCHES))
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.write(inference, "acestep/inference.py")
    ((name, files),) = versions(tmp_path / "package.whl")
    assert (name, set(files)) == ("package.whl", {"acestep/inference.py"})
