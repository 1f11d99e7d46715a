from pathlib import Path


class AudioSaver:
    def __init__(self, default_format="flac"):
        self.default_format = default_format

    def save_audio(self, audio_data, output_path, sample_rate=48_000, format=None):
        Path(output_path).write_bytes(b"audio")
        return output_path
