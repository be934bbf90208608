"""Models and a suite of tasks -> results, a report that people like to read, and the model card's evaluation.

    python recipes/evaluate.py --config recipes/configs/demo/evaluate.yaml

Your own model on your own conversations (JSON lines with `messages`, the last being the answer to compare with):

    python recipes/evaluate.py --models mine=outputs/mine/assistant/merged --dataset_name my-questions.jsonl \
        --output_dir outputs/mine/evaluation

A model is a folder, an adapter, a Hub id, or a server: `gpt=https://api.openai.com/v1#gpt-4o`. Several processes share
the work: `accelerate launch --num_processes 2 recipes/evaluate.py --config ...`. Interrupted, the same command goes on
where it was. The output holds `results.json`, `report.html`, `report.md`, a card per model in `cards/`, and every
prompt, answer and score in `records/<task>/<model>.jsonl`. `hfchat.evaluation.tasks` says which kinds there are.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.pop(0)  # Python puts recipes/ first on the path; there, this file hides the library `evaluate`

from hfchat.config import StageArguments, parse
from hfchat.errors import run
from hfchat.evaluation.engine_model import EngineChoice
from hfchat.evaluation.report import table, verdict, write_report
from hfchat.evaluation.suite import TaskEntry, open_model, prepare_suite, run_suite
from hfchat.hub.model_card import Footprint, write_cards
from hfchat.models import supports_bf16
from hfchat.results import Bootstrap
from hfchat.stage import Stage


@dataclass
class EvaluateArguments(StageArguments):
    """Which models, on what, and how."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Entries name=folder, name=Hub id or name=URL. The first is the baseline of comparisons."},
    )
    tasks: list[TaskEntry] = field(
        default_factory=list, metadata={"help": "What they are asked: mappings with `kind`, `name` and its keys."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "In place of tasks: a folder, JSON-lines file or Hub id with `messages`.",
            "identity": False,
        },
    )
    dataset_split: str = field(default="validation", metadata={"help": "Its split of held-out conversations."})
    max_samples: int | None = field(default=None, metadata={"help": "Take only the first so many conversations."})
    max_new_tokens: int = field(default=96, metadata={"help": "Longest answer to them, in tokens."})
    per_device_eval_batch_size: int = field(
        default=32, metadata={"help": "Examples at a time; an out-of-memory halves it."}
    )
    dtype: Literal["bfloat16", "float16", "float32"] | None = field(
        default=None, metadata={"help": "Type of the weights; by default bfloat16 where the machine supports it."}
    )
    engine: Literal["transformers", "llamacpp", "vllm"] = field(
        default="transformers",
        metadata={"help": "What generates the answers; likelihoods are always measured with transformers."},
    )
    weights: str | None = field(
        default=None,
        metadata={"help": "Type of the weights that llamacpp or vllm answers with, e.g. q8_0; by default `dtype`."},
    )
    engine_args: str | None = field(default=None, metadata={"help": "Further arguments of `vllm serve`."})
    bootstrap_resamples: int = field(
        default=1000,
        metadata={"help": "Random exchanges of the tests, and resamples of intervals that have no formula."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the resamples. Answers are greedy, so they need none."})
    training_watts: float | None = field(
        default=None,
        metadata={"help": "Power that the training machine drew, for the energy and carbon in the cards."},
    )
    training_watts_source: str = field(default="", metadata={"help": "Where the power is from, e.g. a data sheet."})
    training_price_per_hour: float | None = field(
        default=None, metadata={"help": "Price of the training machine in US dollars."}
    )
    allow_template_mismatch: bool = field(
        default=False, metadata={"help": "Evaluate a model although its chat template is not that of its training."}
    )

    def __post_init__(self):
        names = [entry.partition("=")[0] for entry in self.models]
        for entry, name in zip(self.models, names, strict=True):
            if not entry.partition("=")[2] or not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"models: {entry!r} must be name=folder, name=hub-id or name=URL, the name a word")
            if names.count(name) > 1:
                raise ValueError(f"models: the name {name!r} is given twice")
        for key in ("max_samples", "max_new_tokens", "per_device_eval_batch_size", "bootstrap_resamples"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}: must be at least 1, not {getattr(self, key)}")
        for key in ("weights", "engine_args"):
            if getattr(self, key) is not None and self.engine == "transformers":
                raise ValueError(f"{key}: is for the engines llamacpp and vllm; for transformers there is `dtype`")
        if self.tasks and self.dataset_name:
            raise ValueError("dataset_name: stands in place of tasks; set one of them")
        if not self.models or not (self.tasks or self.dataset_name):
            raise ValueError(f"{'tasks' if self.models else 'models'}: needs a value")
        keys = ("dataset_name", "max_samples", "max_new_tokens")
        single = {key: getattr(self, key) for key in keys} | {"split": self.dataset_split, "name": "conversations"}
        self.tasks = [TaskEntry.parse(entry) for entry in self.tasks or [single]]
        names = [entry.name for entry in self.tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"tasks: the name {twice!r} is given twice; set another `name`")


ARGUMENTS = (EvaluateArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    dtype = args.dtype or ("bfloat16" if supports_bf16() else "float32")
    engine = None if args.engine == "transformers" else EngineChoice(args.engine, args.weights, args.engine_args)
    models = [
        open_model(name, path, args.per_device_eval_batch_size, dtype, args.allow_template_mismatch, engine)
        for name, _, path in (entry.partition("=") for entry in args.models)
    ]
    tasks = [entry.build() for entry in args.tasks]
    prepare_suite(tasks, models)  # whatever is wrong with them is said before minutes of generation
    inputs = {f"model {model.name}": vars(model.describe()) for model in models}
    inputs |= {f"data of {task.name}": task.source for task in tasks if task.source is not None}
    stage = Stage.begin("evaluate", args.output_dir, config=[args], inputs=inputs, overwrite=args.overwrite_output_dir)
    if stage.complete:
        return stage.report_complete()

    bootstrap = Bootstrap(args.bootstrap_resamples, args.seed)
    results = run_suite(tasks, models, stage.work_dir, bootstrap)
    if results is None:  # of a launch, only the main process has them
        return None
    results.write(stage.work_dir)
    write_report(results, stage.work_dir)
    footprint = Footprint(args.training_watts, args.training_watts_source, price_per_hour=args.training_price_per_hour)
    write_cards(results, stage.work_dir / "cards", footprint)
    stage.finish(metrics=results.metrics())
    print("", table(results), verdict(results), f"report: {stage.output_dir}/report.html", sep="\n\n")
    return None


if __name__ == "__main__":
    run(main)
