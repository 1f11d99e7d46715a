"""The verbs of the language model on the tiny models: prompts, results, settings, refusals."""

from dataclasses import replace

import pytest

from acestep.blueprints import create_sample, format_sample, understand_music
from acestep.checkpoints import TINY_LM, ModelSelection, load_planner
from acestep.errors import BackendUnavailable, CheckpointNotFound, InvalidRequest
from acestep.planner.backends import PhaseTokens
from acestep.planner.backends.pt import PtBackend
from acestep.types import SamplingSettings, SongMetadata, SongwritingSettings

SHORT = SongwritingSettings(seed=7, lyrics_token_limit=12)
VERBS = {
    "understand_music": lambda planner, **options: understand_music(planner, (1, 2, 63_999), **options),
    "create_sample": lambda planner, **options: create_sample(planner, "rain on a tin roof", **options),
    "format_sample": lambda planner, **options: format_sample(planner, "calm piano", "[Verse]\nla", **options),
}


@pytest.fixture(scope="module")
def planner():
    return load_planner(ModelSelection(lm=TINY_LM, device="cpu"))


@pytest.fixture
def prompts_seen(monkeypatch):
    """Texts of the prompts that the model gets for its metadata."""
    seen = []
    generate = PtBackend.generate_metadata

    def recorded(backend, prompt, *arguments):
        seen.append(backend.model.vocabulary.decode(prompt))
        return generate(backend, prompt, *arguments)

    monkeypatch.setattr(PtBackend, "generate_metadata", recorded)
    return seen


@pytest.fixture
def silent(monkeypatch):
    """A model that ends its turn instead of writing lyrics."""

    def end(backend, prompt, *_arguments):
        return PhaseTokens(((backend.model.vocabulary.layout.eos,),), len(prompt), 1, 0, 0, 1)

    monkeypatch.setattr(PtBackend, "generate_lyrics", end)


@pytest.mark.parametrize("verb", VERBS)
def test_a_blueprint_is_complete_and_names_what_ran(planner, verb):
    """R50, R54: caption, lyrics and metadata."""
    blueprint = VERBS[verb](planner, settings=SHORT)
    assert all(getattr(blueprint.metadata, name) is not None for name in SongMetadata.__dataclass_fields__)
    assert blueprint.lyrics
    effective = blueprint.effective
    assert (effective.lm_model, effective.lm_backend, effective.seeds) == (TINY_LM, "pt", (7,))
    assert (effective.device, effective.dtype, effective.weights) == ("cpu", "float32", "synthetic")


@pytest.mark.parametrize("verb", VERBS)
def test_one_seed_is_one_blueprint_and_none_is_a_random_one(planner, verb):
    assert VERBS[verb](planner, settings=SHORT) == VERBS[verb](planner, settings=SHORT)
    random = [VERBS[verb](planner, settings=replace(SHORT, seed=None)).effective.seeds for _ in range(2)]
    assert random[0] != random[1]


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.1}, {"top_k": 2}, {"top_p": 0.05}],
    ids=["temperature", "top_k", "top_p"],
)
def test_b1_every_sampling_setting_has_an_effect(planner, changed):
    usual = create_sample(planner, "rain", settings=SHORT)
    other = create_sample(planner, "rain", settings=replace(SHORT, sampling=replace(SHORT.sampling, **changed)))
    assert (usual.metadata, usual.lyrics) != (other.metadata, other.lyrics)


def test_guidance_is_never_used_on_text(planner):
    guided = replace(SHORT, sampling=replace(SHORT.sampling, guidance_scale=5.0))
    assert create_sample(planner, "rain", settings=guided) == create_sample(planner, "rain", settings=SHORT)


def test_the_limit_of_the_lyrics_is_in_tokens(planner, monkeypatch):
    limits = []
    generate = PtBackend.generate_lyrics

    def recorded(backend, prompt, sampling, seed, limit, progress):
        tokens = generate(backend, prompt, sampling, seed, limit, progress)
        limits.append((limit, len(tokens.ids[0])))
        return tokens

    monkeypatch.setattr(PtBackend, "generate_lyrics", recorded)
    blueprint = create_sample(planner, "rain", settings=SHORT)
    assert limits == [(12, 12)]
    assert not blueprint.lyrics_complete


# What reaches the model


def test_codes_reach_the_model_as_they_are(planner, prompts_seen):
    """R49."""
    understand_music(planner, (5, 63_999), settings=SHORT)
    assert "user\n<|audio_code_5|><|audio_code_63999|><|im_end|>" in prompts_seen[0]


def test_without_codes_a_song_is_invented(planner, prompts_seen):
    """R48."""
    understand_music(planner, (), settings=SHORT)
    assert "user\nNO USER INPUT<|im_end|>" in prompts_seen[0]


def test_the_wish_and_whether_it_is_instrumental_reach_the_model(planner, prompts_seen):
    """R52, R53."""
    create_sample(planner, "a soft Bengali love song", settings=SHORT)
    create_sample(planner, "", instrumental=True, settings=SHORT)
    assert "user\na soft Bengali love song\n\ninstrumental: false<|im_end|>" in prompts_seen[0]
    assert "user\nNO USER INPUT\n\ninstrumental: true<|im_end|>" in prompts_seen[1]


def test_an_empty_draft_has_words_for_it(planner, prompts_seen):
    format_sample(planner, "", "", settings=SHORT)
    assert "# Caption\nNO USER INPUT\n\n# Lyric\n[Instrumental]<|im_end|>" in prompts_seen[0]


@pytest.mark.parametrize("language", ["bn", "BN", " bn "])
def test_a_language_given_is_the_language_of_the_song(planner, language):
    assert create_sample(planner, "rain", language=language, settings=SHORT).metadata.language == "bn"


@pytest.mark.parametrize("language", [None, "unknown", "Unknown", ""])
def test_an_unknown_language_is_left_to_the_model(planner, language):
    undecided = create_sample(planner, "rain", settings=SHORT)
    assert create_sample(planner, "rain", language=language, settings=SHORT) == undecided


def test_b11_b18_what_is_settled_stays_and_is_spelled_as_the_model_does(planner):
    given = SongMetadata(bpm=88, duration=61, keyscale="Am", language="JA", timesignature="6/8", caption="ignored")
    metadata = format_sample(planner, "calm", "la", given, settings=SHORT).metadata
    assert replace(metadata, caption=None) == SongMetadata(88, None, 61, "A minor", "ja", "6")
    assert metadata.caption != "ignored"


# Lyrics that the model did not write


@pytest.mark.usefixtures("silent")
def test_missing_lyrics_have_the_meaning_of_each_function(planner):
    assert understand_music(planner, (1,), settings=SHORT).lyrics == ""
    assert create_sample(planner, "rain", settings=SHORT).lyrics == ""
    assert create_sample(planner, "rain", instrumental=True, settings=SHORT).lyrics == "[Instrumental]"
    assert format_sample(planner, "calm", "[Verse]\nmy words", settings=SHORT).lyrics == "[Verse]\nmy words"
    assert create_sample(planner, "rain", settings=SHORT).lyrics_complete


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "`seed` -1 is out of range: 0 ... 4294967295"),
        ({"seed": 2**32}, "`seed` 4294967296 is out of range"),
        ({"lyrics_token_limit": 0}, "`lyrics_token_limit` 0 is out of range: 1 ... 4096"),
        ({"sampling": SamplingSettings(temperature=3)}, "`sampling.temperature` 3 is out of range: 0 ... 2"),
        ({"sampling": SamplingSettings(top_p=float("nan"))}, "`sampling.top_p` nan is out of range"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_settings_out_of_range_are_named(planner, verb, settings, message):
    with pytest.raises(InvalidRequest) as caught:
        VERBS[verb](planner, settings=SongwritingSettings(**settings))
    assert message in str(caught.value)


@pytest.mark.parametrize("code", [-1, 64_000, 65_534, 1_234_567])
def test_codes_that_do_not_exist_are_named(planner, code):
    with pytest.raises(InvalidRequest, match=rf"`audio_codes`: code {code} is out of range: 0 \.\.\. 63999"):
        understand_music(planner, (1, code), settings=SHORT)


def test_more_codes_than_the_longest_song_are_refused(planner):
    with pytest.raises(InvalidRequest, match=r"duration of `audio_codes` 600\.2 s is out of range"):
        understand_music(planner, (0,) * 3_001, settings=SHORT)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (SongMetadata(bpm=999), "bpm 999"),
        (SongMetadata(duration=5), "`duration` 5 s is out of range"),
        (SongMetadata(keyscale="H minor"), "'H minor'"),
        (SongMetadata(language="klingon"), "'klingon'"),
    ],
)
def test_b18_metadata_that_the_model_cannot_spell_is_refused(planner, metadata, message):
    with pytest.raises(InvalidRequest, match=message):
        format_sample(planner, "calm", "la", metadata, settings=SHORT)


# Loading


def test_the_language_model_is_loaded_alone(monkeypatch):
    def renderer(*_arguments):
        raise AssertionError("a renderer was loaded")

    monkeypatch.setattr("acestep.checkpoints.load_renderer_models", renderer)
    assert load_planner(ModelSelection(lm=TINY_LM, device="cpu")).model_name == TINY_LM


def test_a_planner_that_cannot_be_loaded_says_why():
    with pytest.raises(CheckpointNotFound, match="`weights` 'synthetic'"):
        load_planner(ModelSelection(lm="acestep-5Hz-lm-0.6B", device="cpu"))
    with pytest.raises(BackendUnavailable, match="choose auto"):
        load_planner(ModelSelection(lm=TINY_LM, device="cpu", lm_backend="fast"))
    with pytest.raises(ValueError, match="no language model"):
        load_planner(ModelSelection(lm=None, device="cpu"))
