"""Corpus -> a byte-level BPE tokenizer that `AutoTokenizer` opens, with the project's chat template.

    python recipes/train_tokenizer.py --config recipes/configs/demo/train_tokenizer.yaml

On your own corpus:

    python recipes/train_tokenizer.py --dataset_name outputs/mine/corpus --vocab_size 32768 \
        --output_dir outputs/mine/tokenizer
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hfchat.config import StageArguments, parse
from hfchat.dataset import load_split
from hfchat.errors import run
from hfchat.lineage import Stage


@dataclass
class TrainTokenizerArguments(StageArguments):
    """What to train on, and how large a vocabulary."""

    dataset_name: str = field(default="outputs/demo/corpus", metadata={"help": "Corpus: a folder, file or Hub id."})
    text_column: str = field(default="text", metadata={"help": "Its column of text."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    sample_bytes: int = field(default=1_000_000_000, metadata={"help": "Bytes of text to train on, at most."})
    seed: int = field(default=42, metadata={"help": "Seed of the sample."})

    def __post_init__(self):
        if self.vocab_size < 512:
            raise ValueError(
                f"vocab_size must be at least 512 (256 bytes and the special tokens), not {self.vocab_size}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(TrainTokenizerArguments, argv=argv)
    stage = Stage(
        "train_tokenizer",
        args.output_dir,
        config=[args],
        inputs={"corpus": args.dataset_name},
        overwrite=args.overwrite_output_dir,
    )
    if stage.complete:
        return stage.report_complete()
    from hfchat.tokenization.bpe import sample_text, train_bpe
    from hfchat.tokenization.check import bytes_per_token, check_saved_tokenizer

    train = load_split(args.dataset_name, "train", args.text_column)
    validation = load_split(args.dataset_name, "validation", args.text_column)

    tokenizer = train_bpe(sample_text(train, args.text_column, args.sample_bytes, args.seed), args.vocab_size)
    tokenizer.save_pretrained(stage.work_dir)
    check_saved_tokenizer(stage.work_dir, tokenizer)

    compression = bytes_per_token(tokenizer, validation[:1000][args.text_column])
    stage.finish(metrics={"vocab_size": len(tokenizer), "validation_bytes_per_token": compression})
    print(f"{len(tokenizer):,} tokens, {compression:.2f} bytes per token on the validation split")
    print(f"reloaded with AutoTokenizer: identical ids, exact round trip\ntokenizer: {args.output_dir}")


if __name__ == "__main__":
    run(main)
