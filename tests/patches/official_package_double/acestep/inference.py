from dataclasses import dataclass, field


@dataclass
class GenerationParams:
    caption: str = ""
    lyrics: str = ""
    task_type: str = "text2music"
    reference_audio: str | None = None
    src_audio: str | None = None
    duration: float = -1.0
    inference_steps: int = 8
    thinking: bool = True


@dataclass
class GenerationConfig:
    batch_size: int = 2


@dataclass
class Result:
    audios: list = field(default_factory=list)
    success: bool = True
    error: str | None = None


def generate_music(dit_handler, llm_handler, params, config, save_dir=None, progress=None):
    try:
        if params.thinking:
            llm_handler.generate_with_stop_condition(params.caption, params.lyrics, infer_type="llm_dit")
        audios = dit_handler.generate_music(params.caption, params.lyrics, inference_steps=params.inference_steps)
        return Result(audios=audios)
    except Exception as error:
        return Result(success=False, error=f"Error: {error}")


def understand_music(llm_handler, audio_codes, temperature=0.85):
    llm_handler.understand_audio_from_codes(audio_codes)
    return Result()


def create_sample(llm_handler, query, instrumental=False):
    llm_handler.create_sample_from_query(query, instrumental)
    return Result()


def format_sample(llm_handler, caption, lyrics, user_metadata=None):
    llm_handler.format_sample_from_input(caption, lyrics)
    return Result()
