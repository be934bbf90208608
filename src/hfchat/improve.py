"""From a thumb to a better model, or to a report that says why not: `hfchat improve` runs the recipes for it.

Feedback becomes datasets. The version that answers learns from corrections (supervised), then from pairs (DPO). The
candidate is evaluated against that version, put through the gates, and added to the registry; if it passed, it is
promoted. If the command is killed, it goes on where it was when it is run again. Only its owner can read its folder.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfchat.lineage import metrics_of
from hfchat.pipeline import recipe_command, run_recipe
from hfchat.registry.versions import Registry

CONFIGS = "recipes/configs/improve"
_CACHE = "HF_DATASETS_CACHE"  # as `datasets` calls it
_IN_YAML = "outputs/improve"  # where the shipped configurations put things


@dataclass(frozen=True)
class Improvement:
    """What to improve, and how.

    Attributes:
        registry: Folder of the model's versions.
        feedback: The database that `hfchat serve --feedback` writes.
        output_dir: Where the stages' outputs go; a folder of its own for each improvement.
        configs: Folder with a YAML for each of the recipes.
        promote: Let a candidate answer if it passes; otherwise it only becomes a version.
    """

    registry: str
    feedback: str
    output_dir: str
    configs: str = CONFIGS
    promote: bool = True


def improve(settings: Improvement) -> None:
    """Make a candidate from the feedback, and promote it if it passes the gates.

    Raises:
        UserError: If no version answers yet, or a configuration is missing.
    """
    registry = Registry(settings.registry)
    registry.answering()  # before a folder is made
    with _private(Path(settings.output_dir)) as output:
        _improve(settings, registry, output)


@contextmanager
def _private(output: Path) -> Iterator[Path]:
    """Make the folder readable to its owner alone: what people wrote is in the datasets, in the copies that `datasets`
    caches, and in the samples and reports of the training."""
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    output.chmod(0o700)
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(output.resolve() / "cache")
    try:
        yield output
    finally:
        del os.environ[_CACHE]
        if before is not None:
            os.environ[_CACHE] = before


def _improve(settings: Improvement, registry: Registry, output: Path) -> None:
    current = registry.answering()
    model = str(registry.path(current))
    _run(settings, "prepare_feedback", "feedback", feedback=settings.feedback)
    enough = metrics_of(output / "feedback")["enough"]
    if "preferences" not in enough:  # those that are held out are what shows that a candidate is better
        return _end(output, f"Too few pairs are left of the feedback; {current} stays.", ["feedback/report.md"])

    # Corrections are learned first, because the pairs then compare answers that the model could give.
    candidate = model
    if "conversations" in enough:
        _run(settings, "finetune", "corrected", model_name_or_path=candidate)
        candidate = f"{settings.output_dir}/corrected/merged"
    _run(settings, "align", "aligned", model_name_or_path=candidate)
    candidate = f"{settings.output_dir}/aligned/merged"
    _run(settings, "evaluate", "evaluation", models=[f"current={model}", f"candidate={candidate}"])
    _run(settings, "gate", "verdict")

    # Whatever the verdict, the candidate becomes a version: people may want to look at it.
    passed = metrics_of(output / "verdict")["passed"]
    version = registry.add(candidate, reason=f"improved from {current} by {settings.output_dir}")
    reports = ["verdict/verdict.md", "evaluation/report.html", "feedback/report.md"]
    if not passed:
        return _end(output, f"{version} is not promoted: it failed the gates. {current} stays.", reports)
    if not settings.promote:
        return _end(output, f"{version} passed the gates; `hfchat models promote` lets it answer.", reports)
    registry.promote(version, reason=f"passed the gates of {settings.output_dir}")
    return _end(output, f"{version} passed the gates and answers now, in place of {current}.", reports)


def _run(settings: Improvement, recipe: str, output: str, **wanted: Any) -> None:
    wanted["output_dir"] = f"{settings.output_dir}/{output}"
    launched = recipe in ("finetune", "align", "evaluate")
    places = {_IN_YAML: settings.output_dir}
    run_recipe(recipe_command(recipe, Path(settings.configs), wanted, launched=launched, places=places))


def _end(output: Path, outcome: str, reports: Sequence[str]) -> None:
    lines = [f"# {outcome}", "", *(f"- [{report}]({report})" for report in reports)]
    (output / "outcome.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("", outcome, *(f"  {output / report}" for report in reports), sep="\n")
