"""Published sizes of the models that configs/ names.

Each: the number of parameters (millions, tied matrices counted once), and the shapes of the edited
matrices in every block.
"""


def _mlp(width, inner, *roles):
    return {f"mlp/{r}": (inner, width) if r == "down" else (width, inner) for r in roles}


SIZES = {
    "distilgpt2": (81.9, _mlp(768, 3072, "up", "down")),
    "gpt2": (124.4, _mlp(768, 3072, "up", "down")),
    "gpt2_medium": (354.8, _mlp(1024, 4096, "up", "down")),
    "gpt2_large": (774.0, _mlp(1280, 5120, "up", "down")),
    "gpt2_xl": (1557.6, _mlp(1600, 6400, "up", "down")),
    "gpt_neo_2b7": (2651.3, _mlp(2560, 10240, "up", "down")),
    "gptj": (6050.9, _mlp(4096, 16384, "up", "down")),
    "t5_small": (77.0, _mlp(512, 1024, "gate", "down")),
    "t5_large": (783.2, _mlp(1024, 2816, "gate", "down")),
    "t5_xl": (2849.8, _mlp(2048, 5120, "gate", "down")),
    "t5_xxl": (11135.3, _mlp(4096, 10240, "gate", "down")),
    "bert_base": (109.5, _mlp(768, 3072, "up", "down")),
    "bart_base": (139.5, _mlp(768, 3072, "up", "down")),
    "smollm2": (134.5, _mlp(576, 1536, "gate", "up", "down")),
    "llama3_8b": (8030.3, _mlp(4096, 14336, "gate", "up", "down")),
    "qwen2_5_7b": (7615.6, _mlp(3584, 18944, "gate", "up", "down")),
}
