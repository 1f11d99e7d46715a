from transformers import PretrainedConfig


class MiniatureConfig(PretrainedConfig):
    model_type = "acestep_miniature"
