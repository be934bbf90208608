"""Examine a run before anything is spent: `hfchat doctor --config <any recipe's yaml>`."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfchat.doctor import health
from hfchat.doctor.calibration import calibrate
from hfchat.doctor.disk import Disk
from hfchat.doctor.duration import Duration
from hfchat.doctor.inputs import examine_inputs
from hfchat.doctor.machine import Machine, free_disk_bytes, resident_bytes, write_speed
from hfchat.doctor.memory import Memory
from hfchat.doctor.plan import RunPlan, Texts, plan_pretraining, plan_tuning
from hfchat.doctor.recipes import Recipe, find_recipe
from hfchat.doctor.report import Report, Section, Verdict, size, time
from hfchat.doctor.trial import Calibration
from hfchat.errors import UserError
from hfchat.models import add_special_tokens, load_tokenizer
from hfchat.token_ids import encode_conversation, encode_texts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_ROOMY = 0.9  # of what is free: beyond, other processes decide
_SAMPLED_ROWS = 2000
_STREAMED_ROWS = 500
_CLOSING_BYTES = 4 * 2**30  # models up to this size are also merged and saved by the calibration
_TEXT_CHARACTERS = 900


def examine(
    argv: Sequence[str], *, config: str | None = None, recipe: str | None = None, calibration: bool = True
) -> Report:
    """Say whether a run will go well on this machine.

    Args:
        argv: The recipe's command line, without `--config`.
        config: YAML of the run.
        recipe: Name of the recipe, if the YAML's name and folder do not say it.
        calibration: Whether to run a few steps if the estimate fits.

    Raises:
        UserError: If the recipe itself refuses its settings or inputs before any work.
    """
    if config is not None and not Path(config).is_file():
        raise UserError(f"--config {config}: no such file")
    found = find_recipe(config, recipe)
    argv = [*(["--config", config] if config else []), *argv]
    arguments = found.parse(argv)
    examination = {"pretraining": _Pretraining, "tuning": _Tuning}.get(found.kind)
    if examination is None:
        return examine_inputs(found, arguments[0])
    return examination(found, arguments, argv).report(calibration)


class _Training:
    """A recipe that trains; subclasses know its data."""

    text_column: str | None = None

    def __init__(self, recipe: Recipe, arguments: tuple[Any, ...], argv: Sequence[str]):
        self.recipe, self.arguments, self.argv = recipe, arguments, argv
        self.args = arguments[0]
        self.machine = Machine.here(self.args.use_cpu)
        self.result = Report(recipe.name, f"{self.machine.device}, {size(self.machine.memory_bytes)} free")
        # On a CPU, a process of the recipe holds as much before its first tensor as this one, with the same imports.
        self.libraries = 0 if self.machine.has_gpu else resident_bytes()

    def report(self, calibration: bool) -> Report:
        report = self.result
        tokenizer, texts = self.examine_data()
        plan = self.plan(tokenizer, texts)
        memory, disk = plan.memory(self.libraries), plan.disk()
        available = self.machine.memory_bytes
        fits = memory.peak <= available and disk.total <= self._free_disk()

        # A run that cannot fit might take the memory of other programs, so that it is not even begun.
        measured: Calibration | str = "left out"
        if not fits:
            measured = "left out: the run will not fit"
        elif not report.ok:
            measured = "left out: a check fails"
        elif calibration:
            close = memory.weights <= _CLOSING_BYTES and disk.total < self._free_disk() // 2
            measured = calibrate(self.recipe, self.argv, self.args, close=close)
        self._report_memory(plan, memory, measured, available)
        self._report_disk(disk)
        self._report_time(plan, disk, measured)
        report.verdict = self._verdict(memory.peak, measured, available)
        return report

    def examine_data(self) -> tuple["PreTrainedTokenizerBase", Texts]:
        raise NotImplementedError

    def plan(self, tokenizer: "PreTrainedTokenizerBase", texts: Texts) -> RunPlan:
        raise NotImplementedError

    def examine_health(
        self, train: "Sequence[Dataset]", evaluation: "Sequence[Dataset]", tokens: Sequence[int], limit: int | None
    ) -> None:
        """Report duplicates, empty rows, languages and lengths.

        Args:
            train: Rows to train on, of one dataset or several.
            evaluation: Rows to evaluate on.
            tokens: Tokens of some of the rows to train on.
            limit: Tokens that a row may have; None where longer ones are cut into blocks.
        """
        section = self.result.section("Data")
        trained, evaluated = sum(map(len, train)), sum(map(len, evaluation))
        duplicates = health.find_duplicates(chain(*train), chain(*evaluation), self.text_column)
        empty = health.empty_rows(chain(*train), self.text_column)
        lengths = health.lengths(tokens, limit)

        # Rows that are there more than once: learned by heart, or measured on what was learned.
        section.add("rows", f"{trained:,} to train on, {evaluated:,} to evaluate on")
        again, shared = duplicates.within / trained, duplicates.shared / evaluated
        advice = "prepare the data again: it removes them"
        section.judge("duplicates in train", f"{duplicates.within:,} ({again:.1%})", again <= 0.01, advice)
        section.judge(
            "evaluation rows that are trained on",
            f"{duplicates.shared:,} ({shared:.1%})",
            shared == 0,
            "take them out of one of the splits: the evaluation would measure what was learned by heart",
            "warning" if getattr(self.args, "allow_leakage", False) else "fails",
        )
        if duplicates.same_prompt is not None:
            few = duplicates.same_prompt <= 0.01 * evaluated
            advice = "split by the first user turn, as recipes/prepare_conversations.py does"
            section.judge("others with the same first user turn", f"{duplicates.same_prompt:,}", few, advice)

        # What the rows hold: all of them for emptiness, a sample for their languages and lengths.
        section.judge(
            "empty documents" if self.text_column else "conversations with an empty turn",
            f"{len(empty):,}" + (f", row {empty[0]} first" if empty else ""),
            not empty,
            "take them out",
            "warning" if self.text_column else "fails",
        )
        languages = health.languages([health.text_of(row, self.text_column) for row in _sampled(train)])
        shares = ", ".join(f"{code} {share:.0%}" for code, share in (languages or [])[:5])
        section.add("languages", "not identified: install hfchat[data]" if languages is None else shares)
        quantiles = ", ".join(f"{share:.0%} {count:,}" for share, count in lengths.quantiles.items())
        section.add("tokens per row, quantiles", quantiles)
        if limit is not None:
            few, advice = lengths.over_limit <= 0.05, "they are left out; raise max_length"
            section.judge(f"longer than max_length {limit}", f"{lengths.over_limit:.1%}", few, advice)
        section.text = "\n".join(lengths.bars())

        self.result.figures["data"] = {
            "train_rows": trained,
            "evaluation_rows": evaluated,
            "duplicates": asdict(duplicates),
            "empty_rows": len(empty),
            "languages": languages,
            "lengths": asdict(lengths),
        }

    def _report_memory(self, plan: RunPlan, memory: Memory, measured: Calibration | str, available: int) -> None:
        # Each part that all processes hold, and then the largest of the moments that add to them.
        section = self.result.section("Memory, of one process")
        section.add("libraries", size(memory.libraries))
        section.add("weights", size(memory.weights))
        section.add("gradients", size(memory.gradients))
        section.add("optimizer", f"{size(memory.optimizer)} ({plan.optimizer})")
        section.add("activations and logits, about", size(memory.activations))
        if memory.slack:
            section.add("kept by the allocator", size(memory.slack))
        section.add("an evaluation, at its peak", size(memory.kept + memory.evaluation))
        if plan.merges:
            section.add("merging and the certificate, at their peak", size(memory.kept + memory.export))
        section.add("peak by these", size(memory.peak), _fits(memory.peak, available), self._advice(plan, memory.peak))
        if isinstance(measured, Calibration):
            section.add("peak of the calibration", size(measured.peak_bytes), _fits(measured.peak_bytes, available))
        section.add("free", size(available))
        if self.args.world_size > 1 or self.args.fsdp or self.args.deepspeed:
            section.add("several processes", "estimated without sharding; FSDP and DeepSpeed take less")
        self.result.figures["memory"] = asdict(memory) | {
            "peak": memory.peak,
            "calibrated_peak": getattr(measured, "peak_bytes", None),
            "available": available,
        }

    def _advice(self, plan: RunPlan, peak: int) -> str:
        available = self.machine.memory_bytes
        if peak <= available:
            return ""
        others = [*plan.alternatives(self.libraries, available), *self.other_plans()]
        takes = [(name, other.memory(self.libraries).peak) for name, other in others]
        fitting = [f"{name} ({size(bytes)})" for name, bytes in takes if bytes <= available]
        if fitting:
            return f"it fits with {', or '.join(fitting[:4])}"
        name, least = min(takes, key=lambda pair: pair[1], default=("a smaller model", 0))
        return (
            f"no one setting is enough; {name} takes it to {size(least)}; choose a smaller model or a larger machine"
        )

    def other_plans(self) -> Iterable[tuple[str, RunPlan]]:
        """Plans with other arguments than the run's that take less memory, and the settings that make them."""
        return ()

    def _free_disk(self) -> int:
        return free_disk_bytes(Path(self.args.output_dir))

    def _report_disk(self, disk: Disk) -> None:
        free = self._free_disk()
        section = self.result.section("Disk")
        section.add("checkpoints", f"{size(disk.checkpoints)} ({size(disk.checkpoint)} each)")
        section.add("finished outputs", size(disk.outputs))
        if disk.tokens:
            section.add("tokenized corpus", size(disk.tokens))
        least = disk.total - disk.checkpoints + 2 * disk.checkpoint
        advice = f"save_total_limit 1 takes it to {size(least)}" if least < disk.total else ""
        verdict = _fits(disk.total, free)
        section.add("in all", size(disk.total), verdict, advice if verdict != "ok" else "")
        section.add("free", size(free))
        self.result.figures["disk"] = asdict(disk) | {"total": disk.total, "free": free}

    def _report_time(self, plan: RunPlan, disk: Disk, measured: Calibration | str) -> None:
        section = self.result.section("Time")
        if isinstance(measured, str):
            left_out = measured.startswith("left out")
            section.judge("calibration", measured, left_out, "the run would stop there too", "fails")
            self.result.figures["time"] = None
            return
        duration = Duration(
            startup=measured.startup_seconds,
            training=measured.warm_up_seconds + measured.max_steps * measured.step_seconds,
            evaluation=plan.evaluations * measured.evaluation_seconds,
            samples=2 * measured.samples_seconds,
            saving=plan.saves * disk.checkpoint / write_speed(Path(self.args.output_dir)),
            closing=measured.closing_seconds or 0.0,
        )
        steps = measured.max_steps
        section.add("start-up", time(duration.startup))
        section.add("training", f"{time(duration.training)} ({steps:,} steps of {measured.step_seconds:.2f} s)")
        section.add("evaluations", f"{time(duration.evaluation)} ({plan.evaluations})")
        if duration.samples:
            section.add("answers before and after", time(duration.samples))
        section.add("checkpoints", f"{time(duration.saving)} ({plan.saves})")
        section.add("closing", time(duration.closing) if measured.closing_seconds is not None else "not estimated")
        section.add("in all", time(duration.total))
        self.result.figures["time"] = asdict(duration) | {"total": duration.total, "calibration": asdict(measured)}

    def _verdict(self, estimate: int, measured: Calibration | str, available: int) -> str:
        report = self.result
        if faults := report.faults():
            return f"will not go well: {'; '.join(line.name for line in faults)}"
        # The first steps hold no more than all of them, so the calibration can only raise the estimate.
        peak = max(estimate, measured.peak_bytes) if isinstance(measured, Calibration) else estimate
        taken = f"will fit: {size(peak)} of {size(available)}"
        total = (report.figures["time"] or {}).get("total")
        return f"{taken}, about {time(total)}" if total else f"{taken}; time unknown without the calibration"


class _Pretraining(_Training):
    def __init__(self, *args: Any):
        super().__init__(*args)
        self.text_column = self.args.text_column

    def examine_data(self) -> tuple["PreTrainedTokenizerBase", Texts]:
        from hfchat.dataset import load_split
        from hfchat.training.corpus import load_documents

        args, column = self.args, self.args.text_column
        tokenizer = load_tokenizer(args.tokenizer_name or args.model_name_or_path)
        add_special_tokens(tokenizer, args.add_tokens)
        if args.streaming:
            train = load_split(
                args.dataset_name, "train", column, config_name=args.dataset_config_name, streaming=True
            )
            texts = [row[column] for row in train.take(_STREAMED_ROWS)]
            section = self.result.section("Data")
            section.add("rows", f"a stream; its first {len(texts):,} documents were looked at")
            section.text = "\n".join(health.lengths(_token_counts(texts, tokenizer), None).bars())
            return tokenizer, Texts(None, args.block_size)

        # How many tokens the corpus has follows from a sample, with the two that stand around each document.
        train, evaluation = load_documents(args)
        train = train.select_columns([column])
        step = max(1, len(train) // _SAMPLED_ROWS)
        sample = train.select(range(0, len(train), step))[column]
        counts = _token_counts(sample, tokenizer)
        self.examine_health([train], [evaluation], counts, None)
        tokens = round((sum(counts) + 2 * len(counts)) / len(counts) * len(train))
        return tokenizer, Texts(-(-tokens // args.block_size), args.block_size, tokens=tokens)

    def plan(self, tokenizer: "PreTrainedTokenizerBase", texts: Texts) -> RunPlan:
        return plan_pretraining(self.args, tokenizer, texts)


class _Tuning(_Training):
    """Fine-tuning and preference tuning."""

    def examine_data(self) -> tuple["PreTrainedTokenizerBase", Texts]:
        from hfchat.models import resolve
        from hfchat.training.conversations import datasets_of, load_rows
        from hfchat.training.supervision import load_chat_tokenizer

        args, model_args = self.arguments
        preferences = self.recipe.name == "align"
        tokenizer, new_tokens = load_chat_tokenizer(
            resolve(model_args.model_name_or_path),
            model_args.model_revision,
            allow_mismatch=args.allow_template_mismatch,
            system_message=None if preferences else args.system_message,
        )
        splits = (args.dataset_train_split, args.dataset_test_split)
        if preferences:
            loaded = [_load_preference_splits(args.dataset_name, splits, args.dataset_config_name)]
        else:
            loaded = [load_rows(args, entry) for entry in datasets_of(args)]
        train, evaluation = zip(*loaded, strict=True)
        texts = self._examine_labels(tokenizer, new_tokens, preferences)
        counts = [_conversation_tokens(row, tokenizer) for row in _sampled(train)]
        self.examine_health(train, evaluation, counts, args.max_length)
        if texts is None:
            texts = Texts(None, min(max(counts), args.max_length))
        return tokenizer, texts

    def _examine_labels(
        self, tokenizer: "PreTrainedTokenizerBase", new_tokens: Sequence[int], preferences: bool
    ) -> Texts | None:
        """Report what the recipe would print before its first step; None where its functions refuse the data."""
        from hfchat.chat_template import fingerprint

        section = self.result.section("Template and labels")
        section.add("chat template", fingerprint(tokenizer), "ok")
        if new_tokens:
            section.add("new tokens", f"{len(new_tokens)}; their embeddings are trained")
        try:
            shown, texts = (self._preferences if preferences else self._conversations)(tokenizer, section)
        except UserError as error:
            section.add("labels", "refused", "fails", str(error))
            return None
        section.text = shown if len(shown) <= _TEXT_CHARACTERS else f"{shown[:_TEXT_CHARACTERS]}…"
        return texts

    def _preferences(self, tokenizer: "PreTrainedTokenizerBase", section: Section) -> tuple[str, Texts]:
        from hfchat.training.preferences import load_preferences

        loaded = load_preferences(self.args, tokenizer)
        learned = sum(map(len, loaded.held_out["completion_ids"]))
        share = learned / (learned + sum(map(len, loaded.held_out["prompt_ids"])))
        section.add("scored", f"{loaded.counts.scored_tokens:,} tokens", "ok")
        longest = min(loaded.counts.longest, self.args.max_length)
        return loaded.describe(tokenizer), Texts(len(loaded.train), longest, share)

    def _conversations(self, tokenizer: "PreTrainedTokenizerBase", section: Section) -> tuple[str, Texts]:
        from hfchat.training.conversations import load_conversations

        loaded = load_conversations(self.args, tokenizer)
        counts, limit = loaded.supervision, self.args.max_length
        section.add("supervised", f"{counts.supervised_tokens:,} of {counts.tokens:,} tokens", "ok")
        share = counts.supervised_tokens / counts.tokens
        return loaded.describe(tokenizer), Texts(loaded.sequences, min(counts.longest, limit), share)

    def plan(self, tokenizer: "PreTrainedTokenizerBase", texts: Texts) -> RunPlan:
        self._tokenizer, self._texts = tokenizer, texts
        return plan_tuning(self.args, self.arguments[1], tokenizer, texts)

    def other_plans(self) -> Iterable[tuple[str, RunPlan]]:
        given = self.arguments[1]
        adapted = copy.copy(given)
        adapted.use_peft = True
        if not given.use_peft:
            adapted.dtype = "bfloat16" if self.args.bf16 else "float32"
            yield "use_peft true", plan_tuning(self.args, adapted, self._tokenizer, self._texts)
        if not given.load_in_4bit and not self.args.use_cpu:
            adapted.load_in_4bit, adapted.load_in_8bit = True, False
            yield "load_in_4bit true", plan_tuning(self.args, adapted, self._tokenizer, self._texts)


def _sampled(datasets: "Sequence[Dataset]") -> "Iterator[health.Row]":
    """Rows from all over the datasets."""
    step = max(1, sum(map(len, datasets)) // _SAMPLED_ROWS)
    return chain.from_iterable(dataset.select(range(0, len(dataset), step)) for dataset in datasets)


def _load_preference_splits(
    name: str, splits: tuple[str, str], config_name: str | None
) -> tuple["Dataset", "Dataset"]:
    from hfchat.dataset import load_split

    try:
        train, evaluation = (load_split(name, split, "chosen", config_name=config_name) for split in splits)
    except UserError:  # thumbs have none; what else is wrong, the next line says
        train, evaluation = (load_split(name, split, "label", config_name=config_name) for split in splits)
    return train, evaluation


def _fits(needed: int, available: int) -> Verdict:
    if needed > available:
        return "fails"
    return "ok" if needed <= _ROOMY * available else "warning"


def _token_counts(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return list(map(len, encode_texts(tokenizer, texts)))


def _conversation_tokens(row: "health.Row", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens of a conversation as the template writes it, or of a prompt with the longer of its answers."""
    prompt, *others = (health.turns_of(row, [column]) for column in health.CONVERSATION_COLUMNS)
    return max((len(encode_conversation(tokenizer, prompt + turns)) for turns in others if turns), default=0)
