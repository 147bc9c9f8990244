"""Writes the shipped model as a GGUF file, for llama.cpp and whatever is built on it.

    python tools/export_gguf.py OUT.gguf [MODEL_DIR]        default: the demonstration model

Needs `pip install gguf safetensors`. Takes models of the Llama family with tied embeddings and a byte-level
BPE. Weights keep their precision, norms in float32. The vocabulary and its merges are exact, so that ids mean
the same text; how llama.cpp cuts text before it merges is not, since it knows only the rules of published
models: give it token ids where they must be those of the model's own tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from retrieval_spec.demo_model import demo_model_dir

_CLOSEST_RULE = "gpt-2"

_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OF_THE_MODEL = {"embed_tokens": "token_embd", "norm": "output_norm"}


def write_gguf(model_dir: Path, out: Path) -> None:
    """Writes the model of a Hugging Face folder, its tokenizer included."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or not config["tie_word_embeddings"]:
        raise SystemExit("only models of the Llama family with tied embeddings")
    writer = gguf.GGUFWriter(out, "llama")
    _add_shape(writer, config)
    _add_tokenizer(writer, config, model_dir)
    for name, weight in load_file(model_dir / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), _as_llamacpp_has_it(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name("retrieval_spec demonstration model")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_tokenizer(writer: Any, config: dict[str, Any], model_dir: Path) -> None:
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{token_id}]" for token_id in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * config["vocab_size"]
    for token, token_id in tokenizer["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_CLOSEST_RULE)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    """Returns what GGUF calls a weight: `model.layers.2.mlp.up_proj.weight` is `blk.2.ffn_up.weight`."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if name in _OF_THE_MODEL:
        return f"{_OF_THE_MODEL[name]}.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{_OF_A_LAYER[part]}.weight"


def _as_llamacpp_has_it(name: str, weight: NDArray[Any], config: dict[str, Any]) -> NDArray[Any]:
    if weight.ndim == 1:
        return weight.astype(np.float32)
    for part, num_heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if part in name:
            return interleaved(weight, config[num_heads])
    return weight


def interleaved(weight: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Returns the rows of each head so that rotated pairs are neighbours: 0, h/2, 1, h/2 + 1, ...

    Hugging Face rotates row i with row i + h/2, llama.cpp row 2i with row 2i + 1.
    """
    heads = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weight.shape)


def main() -> None:
    """Writes the file that the arguments name."""
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    write_gguf(Path(sys.argv[2]) if len(sys.argv) == 3 else demo_model_dir(), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
