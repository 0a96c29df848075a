"""The header of a small GGUF file, as a converter writes it."""

import gguf


def begin_gguf(path, arch="llama", *, width, hidden, heads, kv_heads):
    """Return a writer with settings of one block and a tokenizer of eight tokens, no tensors."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|end|>", "a", "b", "Ġ", "ab", "1", "é", "<u>"])
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 4])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    return writer
