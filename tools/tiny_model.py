"""Make a tiny llama of random weights, in seconds: for tests of the engine's life cycle, where the words do not matter.

With `--labels N` it ends in a classifier of N labels in place of words.

The weights come from a fixed seed and the tokenizer is trained on the docstrings of this Python's standard library, so
one environment makes the same bytes on every run; another Python may make others, and no digest is pinned.

Run with the engine environment: `.venv-engine/bin/python -m tools.tiny_model`
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tools import model_files

NAME = "tiny-random-llama"
SEED = 20_261_121
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN, LAYERS, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT = 128, 2, 352, 4, 2, 32, 1024, 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                yield text


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - slow to import

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    model_files.write_tokenizer(
        directory,
        tokenizer,
        CONTEXT,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHAT_TEMPLATE,
    )


def write_weights(path: Path, labels: int) -> None:
    import torch  # noqa: PLC0415 - slow to import
    from safetensors.torch import save_file  # noqa: PLC0415

    generator = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> Any:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    head, rows = ("score.weight", labels) if labels else ("lm_head.weight", VOCAB)
    tensors = {"model.embed_tokens.weight": random(VOCAB, HIDDEN), head: random(rows, HIDDEN)}
    tensors["model.norm.weight"] = ones.clone()
    for layer in range(LAYERS):
        tensors |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": ones.clone(),
                "self_attn.q_proj": random(HEADS * HEAD_DIM, HIDDEN),
                "self_attn.k_proj": random(KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.v_proj": random(KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.o_proj": random(HIDDEN, HEADS * HEAD_DIM),
                "post_attention_layernorm": ones.clone(),
                "mlp.gate_proj": random(FFN, HIDDEN),
                "mlp.up_proj": random(FFN, HIDDEN),
                "mlp.down_proj": random(HIDDEN, FFN),
            }.items()
        }
    save_file(tensors, path, metadata={"format": "pt"})


def write(directory: Path, labels: int = 0) -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    names = {str(number): f"label-{number}" for number in range(labels)}
    task = {"architectures": ["LlamaForSequenceClassification"], "id2label": names} if labels else {}
    config = model_files.llama_config(
        head_dim=HEAD_DIM,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        max_position_embeddings=CONTEXT,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        vocab_size=VOCAB,
        **ends,
        **task,
    )
    model_files.write_json(directory / "config.json", config)
    model_files.write_json(directory / "generation_config.json", ends)
    write_tokenizer(directory)
    write_weights(directory / "model.safetensors", labels)


def verify(directory: Path) -> None:
    if found := set(model_files.FILES) ^ {path.name for path in directory.iterdir()}:
        raise model_files.ModelError(
            f"expected exactly {', '.join(model_files.FILES)}; differs in {sorted(found)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a tiny random model for tests.")
    parser.add_argument(
        "--out", type=Path, default=model_files.CACHE / NAME, help="the model directory to make"
    )
    parser.add_argument(
        "--labels", type=int, default=0, help="classes of a classifier; 0 for a model of words"
    )
    given = parser.parse_args()
    out: Path = given.out
    if out.is_dir():
        return 0
    print("→ tiny test model: random weights, about 10 s, first time only", flush=True)
    start = time.monotonic()
    try:
        model_files.publish(out, partial(write, labels=given.labels), verify)
    except model_files.ModelError as error:
        print(f"tiny test model: {error}", file=sys.stderr)
        return 1
    print(f"  tiny test model: ready in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
