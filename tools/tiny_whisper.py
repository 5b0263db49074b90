"""Make a tiny Whisper of random weights, in seconds: for tests of the audio routes, where the words do not matter.

The weights come from a fixed seed and the tokenizer is trained on the docstrings of this Python's standard library, as
`tools.tiny_model` does for words alone.

Run with the engine environment: `.venv-engine/bin/python -m tools.tiny_whisper`
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tools import model_files
from tools.tiny_model import SEED, docstrings

NAME = "tiny-random-whisper"
WIDTH, LAYERS, HEADS, FFN, WORDS, CONTEXT, MELS = 64, 2, 2, 128, 512, 448, 80
END, BEGIN = "<|endoftext|>", "<|startoftranscript|>"
TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|prev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = tuple(
    f"<|{step * 0.02:.2f}|>" for step in range(1501)
)  # of half a minute, which one piece of sound is
FILES = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
}


def write_tokenizer(directory: Path) -> dict[str, int]:
    """The vocabulary, with Whisper's own tokens behind the words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - slow to import
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    own = [END, BEGIN, *(f"<|{language}|>" for language in LANGUAGES), *TASKS]
    tokenizer.add_special_tokens(own)
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in TIMES])
    model_files.write_tokenizer(directory, tokenizer, CONTEXT, bos_token=END, eos_token=END, pad_token=END)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary


def write(directory: Path) -> None:
    import torch  # noqa: PLC0415 - slow to import
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration  # noqa: PLC0415

    vocabulary = write_tokenizer(directory)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary[END])
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        num_mel_bins=MELS,
        max_target_positions=CONTEXT,
        decoder_start_token_id=vocabulary[BEGIN],
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **ends,
    )
    torch.manual_seed(SEED)
    model = WhisperForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    extractor = WhisperFeatureExtractor(feature_size=MELS).to_dict()
    model_files.write_json(
        directory / "processor_config.json",
        {"processor_class": "WhisperProcessor", "feature_extractor": extractor},
    )


def verify(directory: Path) -> None:
    if found := FILES ^ {path.name for path in directory.iterdir()}:
        raise model_files.ModelError(f"expected exactly {sorted(FILES)}; differs in {sorted(found)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a tiny random Whisper for tests.")
    parser.add_argument("--out", type=Path, default=model_files.CACHE / NAME, help="the directory to make")
    out: Path = parser.parse_args().out
    if out.is_dir():
        return 0
    print("→ tiny test model of speech: random weights, about 15 s, first time only", flush=True)
    start = time.monotonic()
    model_files.publish(out, write, verify)
    print(f"  tiny test model of speech: ready in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
