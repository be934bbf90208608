"""Results of an evaluation + thresholds -> the verdict whether a candidate may take the place of the current model.

    python recipes/evaluate.py --config recipes/configs/improve/evaluate.yaml
    python recipes/gate.py --config recipes/configs/improve/gate.yaml

The evaluation's first model is the current one, its second the candidate. `verdict.md` says of each gate what was
asked and what was measured; `hfchat.evaluation.gate` says what a gate can be. The exit status is 0 whatever the
verdict: `passed` in the metrics of `lineage.json` is it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hfchat.config import StageArguments, parse
from hfchat.errors import run
from hfchat.evaluation.gate import MIN_N, PromotionGate, judge, write_verdict
from hfchat.results import Results
from hfchat.stage import Stage


@dataclass
class GateArguments(StageArguments):
    """What was measured, and what is asked of it."""

    results: str = field(
        default="", metadata={"help": "Evaluation of the current model and a candidate.", "identity": False}
    )
    gates: list[PromotionGate] = field(
        default_factory=list,
        metadata={"help": "Mappings with `task`, `metric` and a condition (see hfchat.evaluation.gate)."},
    )
    min_n: int = field(
        default=MIN_N, metadata={"help": "Examples without which a gate fails that sets no `min_n` of its own."}
    )

    def __post_init__(self):
        if not self.results or not self.gates:
            raise ValueError(f"{'gates' if self.results else 'results'}: needs a value")
        if self.min_n < 1:
            raise ValueError(f"min_n: must be at least 1, not {self.min_n}")


ARGUMENTS = (GateArguments,)  # `hfchat doctor` reads them, too


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = parse(*ARGUMENTS, argv=argv)
    verdict = judge(Results.read("results", args.results), args.gates, args.min_n)
    stage = Stage.begin(
        "gate", args.output_dir, config=[args], inputs={"results": args.results}, overwrite=args.overwrite_output_dir
    )
    if stage.complete:
        return stage.report_complete()
    write_verdict(verdict, stage.work_dir)
    stage.finish(metrics={"passed": verdict.passed, "failed": [one.subject for one in verdict.failed]})
    print(verdict, f"verdict: {stage.output_dir}/verdict.md", sep="\n")
    return None


if __name__ == "__main__":
    run(main)
