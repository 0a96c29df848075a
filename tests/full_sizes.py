"""The published sizes of the models that configs/ names, in Hugging Face terms.

Each: the config, how many parameters it has (millions, with tied matrices once), and the shapes of
the matrices that are edited in every block.
"""


def _gpt2(layers, width, heads):
    return dict(
        model_type="gpt2", vocab_size=50257, n_positions=1024, n_layer=layers, n_embd=width,
        n_head=heads,
    )  # fmt: skip


def _t5(width, inner, layers, heads, head_width=64):
    return dict(
        model_type="t5", vocab_size=32128, d_model=width, d_ff=inner, num_layers=layers,
        num_decoder_layers=layers, num_heads=heads, d_kv=head_width,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        pad_token_id=0, relative_attention_num_buckets=32, relative_attention_max_distance=128,
    )  # fmt: skip


def _mlp(width, inner, *roles):
    return {f"mlp/{r}": (inner, width) if r == "down" else (width, inner) for r in roles}


SIZES = {
    "distilgpt2": (_gpt2(6, 768, 12), 81.9, _mlp(768, 3072, "up", "down")),
    "gpt2": (_gpt2(12, 768, 12), 124.4, _mlp(768, 3072, "up", "down")),
    "gpt2_medium": (_gpt2(24, 1024, 16), 354.8, _mlp(1024, 4096, "up", "down")),
    "gpt2_large": (_gpt2(36, 1280, 20), 774.0, _mlp(1280, 5120, "up", "down")),
    "gpt2_xl": (_gpt2(48, 1600, 25), 1557.6, _mlp(1600, 6400, "up", "down")),
    "gpt_neo_2b7": (
        dict(
            model_type="gpt_neo", vocab_size=50257, max_position_embeddings=2048, num_layers=32,
            hidden_size=2560, num_heads=20, intermediate_size=None, window_size=256,
            attention_types=[[["global", "local"], 16]], activation_function="gelu_new",
        ),
        2651.3,
        _mlp(2560, 10240, "up", "down"),
    ),
    "gptj": (
        dict(
            model_type="gptj", vocab_size=50400, n_positions=2048, n_layer=28, n_embd=4096,
            n_head=16, rotary_dim=64, activation_function="gelu_new", tie_word_embeddings=False,
        ),
        6050.9,
        _mlp(4096, 16384, "up", "down"),
    ),
    "t5_small": (_t5(512, 1024, 8, 6), 77.0, _mlp(512, 1024, "gate", "down")),
    "t5_large": (_t5(1024, 2816, 24, 16), 783.2, _mlp(1024, 2816, "gate", "down")),
    "t5_xl": (_t5(2048, 5120, 24, 32), 2849.8, _mlp(2048, 5120, "gate", "down")),
    "t5_xxl": (_t5(4096, 10240, 24, 64), 11135.3, _mlp(4096, 10240, "gate", "down")),
    "bert_base": (
        dict(
            model_type="bert", vocab_size=30522, max_position_embeddings=512, num_hidden_layers=12,
            hidden_size=768, num_attention_heads=12, intermediate_size=3072, type_vocab_size=2,
            num_labels=1,
        ),
        109.5,
        _mlp(768, 3072, "up", "down"),
    ),
    "bart_base": (
        dict(
            model_type="bart", vocab_size=50265, max_position_embeddings=1024, encoder_layers=6,
            decoder_layers=6, d_model=768, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072, activation_function="gelu",
            decoder_start_token_id=2, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        ),
        139.5,
        _mlp(768, 3072, "up", "down"),
    ),
    "smollm2": (
        dict(
            model_type="llama", vocab_size=49152, max_position_embeddings=8192,
            num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
            intermediate_size=1536, rms_norm_eps=1e-5, rope_theta=100000.0,
            tie_word_embeddings=True,
        ),
        134.5,
        _mlp(576, 1536, "gate", "up", "down"),
    ),
    "llama3_8b": (
        dict(
            model_type="llama", vocab_size=128256, max_position_embeddings=8192,
            num_hidden_layers=32, hidden_size=4096, num_attention_heads=32,
            num_key_value_heads=8, intermediate_size=14336, rms_norm_eps=1e-5,
            rope_theta=500000.0, tie_word_embeddings=False,
        ),
        8030.3,
        _mlp(4096, 14336, "gate", "up", "down"),
    ),
    "qwen2_5_7b": (
        dict(
            model_type="qwen2", vocab_size=152064, max_position_embeddings=32768,
            num_hidden_layers=28, hidden_size=3584, num_attention_heads=28,
            num_key_value_heads=4, intermediate_size=18944, rms_norm_eps=1e-6,
            rope_theta=1000000.0, tie_word_embeddings=False,
        ),
        7615.6,
        _mlp(3584, 18944, "gate", "up", "down"),
    ),
}  # fmt: skip
