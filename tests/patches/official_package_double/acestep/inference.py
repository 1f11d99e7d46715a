from dataclasses import dataclass, field
from pathlib import Path

from acestep.audio_utils import AudioSaver


@dataclass
class GenerationParams:
    caption: str = ""
    lyrics: str = ""
    task_type: str = "text2music"
    reference_audio: str | None = None
    src_audio: str | None = None
    audio_codes: str = ""
    duration: float = -1.0
    inference_steps: int = 8
    shift: float = 1.0
    thinking: bool = True


@dataclass
class GenerationConfig:
    batch_size: int | None = 2


@dataclass
class Result:
    audios: list = field(default_factory=list)
    success: bool = True
    error: str | None = None


def generate_music(dit_handler, llm_handler, params, config, save_dir=None, progress=None):
    try:
        songs = config.batch_size or 1
        if params.thinking and llm_handler is not None and params.task_type == "text2music":
            plan = llm_handler.generate_with_stop_condition(
                params.caption or "", params.lyrics or "", infer_type="llm_dit", batch_size=songs
            )
            if not plan["success"]:
                return Result(success=False, error=plan["error"])
        made = dit_handler.generate_music(
            params.caption,
            params.lyrics,
            inference_steps=params.inference_steps,
            batch_size=songs,
            task_type=params.task_type,
        )
        if not made["success"]:
            return Result(success=False, error=made["error"])
        if save_dir is not None:
            for number, audio in enumerate(made["audios"]):
                AudioSaver().save_audio(audio["tensor"], Path(save_dir) / f"{number}.flac")
        return Result(audios=made["audios"])
    except Exception as error:
        return Result(success=False, error=f"Error: {error}")


def understand_music(llm_handler, audio_codes, temperature=0.85):
    return _written(llm_handler.understand_audio_from_codes(audio_codes))


def create_sample(llm_handler, query, instrumental=False):
    return _written(llm_handler.create_sample_from_query(query, instrumental))


def format_sample(llm_handler, caption, lyrics, user_metadata=None):
    return _written(llm_handler.format_sample_from_input(caption, lyrics))


def _written(pair):
    metadata, status = pair
    return Result() if metadata else Result(success=False, error=status)
