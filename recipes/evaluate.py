"""Models -> answers to held-out conversations, metrics with intervals, a report with the answers side by side.

    python recipes/evaluate.py --config recipes/configs/demo/evaluate.yaml

Your own model on your own conversations (JSON lines with `messages`, the last being the answer to compare with):

    python recipes/evaluate.py --models mine=outputs/mine/assistant/merged --dataset_name my-questions.jsonl \
        --output_dir outputs/mine/evaluation

Interrupted, the same command goes on where it was. The output holds `results.json`, `report.md` and
`predictions/<name>.jsonl`.
"""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.pop(0)  # Python puts recipes/ first on the path; there, this file hides the library `evaluate`

from hfchat.chat_template import check_chat_template, fingerprint
from hfchat.config import StageArguments, parse
from hfchat.errors import run
from hfchat.evaluation.conversations import encode, load_conversations
from hfchat.evaluation.predictions import predict
from hfchat.evaluation.report import report, table, verdict
from hfchat.evaluation.results import device_name, measure, score, tokens_per_second, training_of
from hfchat.lineage import Stage, describe
from hfchat.models import load_tokenizer, resolve, supports_bf16


@dataclass
class EvaluateArguments(StageArguments):
    """Which models, on what, and how."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Entries name=folder or name=Hub id. The first is the baseline of the comparison."},
    )
    dataset_name: str = field(
        default="", metadata={"help": "A folder or Hub id that datasets opens, or a JSON-lines file, with `messages`."}
    )
    dataset_split: str = field(default="validation", metadata={"help": "Split of held-out conversations."})
    max_samples: int | None = field(default=None, metadata={"help": "Take only the first so many conversations."})
    max_new_tokens: int = field(default=96, metadata={"help": "Longest answer, in tokens."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Conversations at a time."})
    dtype: Literal["bfloat16", "float16", "float32"] | None = field(
        default=None, metadata={"help": "Of the weights; by default bfloat16 where the machine computes in it."}
    )
    bootstrap_resamples: int = field(default=1000, metadata={"help": "Resamples for the intervals."})
    seed: int = field(default=42, metadata={"help": "Of the resamples. Answers are greedy and take none."})
    allow_template_mismatch: bool = field(
        default=False, metadata={"help": "Evaluate a model although its chat template is not that of its training."}
    )

    def __post_init__(self):
        names = [entry.partition("=")[0] for entry in self.models]
        for entry, name in zip(self.models, names, strict=True):
            if not entry.partition("=")[2] or not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"models: {entry!r} must be name=folder or name=hub-id, the name a word")
            if names.count(name) > 1:
                raise ValueError(f"models: the name {name!r} is given twice")
        if not self.models or not self.dataset_name:
            raise ValueError(f"{'dataset_name' if self.models else 'models'}: needs a value")
        for key in ("max_samples", "max_new_tokens", "per_device_eval_batch_size", "bootstrap_resamples"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, not {getattr(self, key)}")


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(EvaluateArguments, argv=argv)
    given = {name: path for name, _, path in (entry.partition("=") for entry in args.models)}
    models = {name: resolve(path) for name, path in given.items()}
    conversations = load_conversations(args.dataset_name, args.dataset_split, args.max_samples)
    inputs = {f"model {name}": describe(path) | {"path": given[name]} for name, path in models.items()}
    inputs["dataset"] = args.dataset_name
    stage = Stage("evaluate", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir)
    if stage.complete:
        return stage.report_complete()

    # Every tokenizer and every row first: what is wrong with them is said before minutes of generation.
    tokenizers = {name: load_tokenizer(path) for name, path in models.items()}
    for tokenizer in tokenizers.values():
        check_chat_template(tokenizer, allow_mismatch=args.allow_template_mismatch)
    examples = {name: [encode(row, tokenizer) for row in conversations] for name, tokenizer in tokenizers.items()}

    generation = {
        "dtype": args.dtype or ("bfloat16" if supports_bf16() else "float32"),
        "max_new_tokens": args.max_new_tokens,
        "batch_size": args.per_device_eval_batch_size,
    }
    predictions = {
        name: predict(
            name,
            path,
            tokenizers[name],
            examples[name],
            stage.work_dir / "predictions" / f"{name}.jsonl",
            allow_template_mismatch=args.allow_template_mismatch,
            **generation,
        )
        for name, path in models.items()
    }
    templates = {name: fingerprint(tokenizer) for name, tokenizer in tokenizers.items()}
    statistics = {name: measure(rows, templates[name], generation["dtype"]) for name, rows in predictions.items()}
    scores, comparison = score(statistics, args.bootstrap_resamples, args.seed)
    results = {
        "dataset": {**stage.inputs["dataset"], "split": args.dataset_split, "n": len(conversations)},
        "generation": {**generation, "device": device_name()},
        "bootstrap": {"resamples": args.bootstrap_resamples, "seed": args.seed},
        "models": {
            name: {
                **stage.inputs[f"model {name}"],
                "training": training_of(path),
                "chat_template": templates[name],
                "tokens_per_second": tokens_per_second(predictions[name]),
                "metrics": scores[name],
            }
            for name, path in models.items()
        },
        "comparison": comparison,
    }
    command = shlex.join(["python", *sys.argv])
    (stage.work_dir / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    (stage.work_dir / "report.md").write_text(report(results, predictions, command), encoding="utf-8")
    stage.finish(metrics={name: {metric: value["score"] for metric, value in scores[name].items()} for name in models})
    lines = [f"\n{table(results)}", verdict(results), f"report: {stage.output_dir}/report.md"]
    print(*filter(None, lines), sep="\n\n")


if __name__ == "__main__":
    run(main)
