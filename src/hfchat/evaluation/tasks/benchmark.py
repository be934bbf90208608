"""Benchmarks: tasks of lm-eval (github.com/EleutherAI/lm-evaluation-harness), from the Hub or a file at hand."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from tqdm.auto import tqdm

from hfchat.errors import UserError
from hfchat.evaluation.bootstrap import Statistics
from hfchat.evaluation.engine_model import EngineModel
from hfchat.evaluation.harness import (
    EngineHarness,
    Harness,
    LocalHarness,
    RemoteHarness,
    find_caches,
    is_plainly_greedy,
    max_new_tokens,
    pool_caches,
    quiet,
)
from hfchat.evaluation.harness_scores import GENERATE, example, make_records, metrics_of, statistics
from hfchat.evaluation.local_model import LocalModel
from hfchat.evaluation.model import EvaluatedModel
from hfchat.evaluation.records import by_group, read_records, write_records
from hfchat.evaluation.task import Example, Measured, Record, Task
from hfchat.lineage import describe
from hfchat.processes import launched
from hfchat.results import AskedData, Metric

LOCAL_TASKS = Path(__file__).parents[1] / "benchmarks"


@dataclass
class Benchmark(Task):
    """Tasks of lm-eval, whose figures are those of its command line.

    A metric is named as there, `exact_match,strict-match` for one with a filter. Where several names are asked, its
    column begins with the name; where a name stands for several tasks (`mmlu`), its score is over all their documents,
    and each task is a group.

    Attributes:
        tasks: Names, groups, tags or patterns of lm-eval's tasks, of those in `hfchat/evaluation/benchmarks`
            (`gsm8k_local`, `crows_pairs_local`, its categories `crows_pairs_local_<bias_type>`, and all of these,
            `crows_pairs_local_categories`), or of `include_path`.
        data: File of the rows of local tasks.
        limit: Ask only the first so many documents of each task.
        num_fewshot: Worked examples before each question, by default as many as a task says.
        batch_size: Requests at a time, by default as many as of other tasks.
        apply_chat_template: Ask in the turns of the model's chat template. A server takes nothing else.
        system_instruction: Before each question.
        gen_kwargs: Settings of generation in place of a task's own: `{max_gen_toks: 64}`.
        include_path: Folder with task files of your own.
    """

    kind = "benchmark"
    group_label = "lm-eval task"

    name: str
    tasks: list[str]
    data: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] | None = None
    include_path: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks: needs a value; `lm_eval ls tasks` lists the names")
        self.require_at_least(1, "limit", "batch_size")
        self.require_at_least(0, "num_fewshot")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"include_path {self.include_path}: no such folder")

    def prepare(self) -> None:
        with quiet():
            self._manager = self._index()
            self._asked = {name: self._load(name) for name in self.tasks}
            self._check()
            self.examples = list(chain.from_iterable(map(self._examples_of, self._leaves)))
        columns: dict[str, Metric] = {}
        for name, tasks in self._asked.items():
            for task in tasks:
                columns |= {self._column(name, key): self._metric(name, task, key) for key in metrics_of(task)}
        self.columns, self.headline = columns, next(iter(columns), None)
        self.needs_weights = () if self._an_engine_can else columns
        notes = chain.from_iterable((task.config.metadata or {}).get("limits", ()) for task in self._leaves)
        self.limits = (
            "A figure compares only with others of the same lm-eval task and version, with as many worked examples "
            "and the same use of a chat template.",
            *dict.fromkeys(notes),
        )

    def _examples_of(self, task: ConfigurableTask) -> list[Example]:
        documents = enumerate(task.doc_iterator(limit=get_sample_size(task, self.limit)), start=1)
        return [example(task, doc, f"{task.task_name} document {number}") for number, (_, doc) in documents]

    @property
    def _leaves(self) -> list[ConfigurableTask]:
        return list(chain.from_iterable(self._asked.values()))

    @property
    def _an_engine_can(self) -> bool:
        """Whether all that it asks is to generate the likeliest answers."""
        return all(
            task.OUTPUT_TYPE == GENERATE and is_plainly_greedy(task.config.generation_kwargs) for task in self._leaves
        )

    def _index(self) -> TaskManager:
        folders = [LOCAL_TASKS] if self.include_path is None else [LOCAL_TASKS, self.include_path]
        settings = {} if self.data is None else {"data": self.data}
        manager = TaskManager(include_path=folders, include_defaults=False, metadata=settings)
        if all(manager.match_tasks([name]) for name in self.tasks):
            return manager
        # lm-eval has more than ten thousand files, and reads them all to know its tasks.
        return TaskManager(include_path=folders, metadata=settings)

    def _load(self, name: str) -> list[ConfigurableTask]:
        names = self._manager.match_tasks([name])
        if not names:
            close = difflib.get_close_matches(name, self._manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm_eval ls tasks` lists them"
            raise UserError(f"tasks: {self.name}: lm-eval has no task '{name}'; {hint}")
        try:
            return list(self._manager.load(names)["tasks"].values())
        except UserError as error:
            raise UserError(f"tasks: {self.name}: {error}") from error
        except IndexError as error:  # lm-eval looks at the first document
            raise UserError(f"tasks: {self.name}: '{name}' has no documents in its data") from error
        except Exception as error:  # those of datasets and of the tasks' own code have no common base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"tasks: {self.name}: lm-eval cannot load '{name}': {reason}. Its data must be in reach on the Hub, "
                "or in the local cache of an earlier run; gsm8k_local and crows_pairs_local read a file instead"
            ) from error

    def _check(self) -> None:
        seen = set()
        for task in self._leaves:
            place = f"tasks: {self.name}: {task.task_name}"
            if task.task_name in seen:
                raise UserError(f"{place}: is asked twice; leave out one of the names that stand for it")
            seen.add(task.task_name)
            if getattr(task, "UNSAFE_CODE", False):
                raise UserError(f"{place}: runs programs that the model writes, which hfchat does not")
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"{place}: shows pictures or plays sounds, and these models read text")
            if self.gen_kwargs and task.OUTPUT_TYPE == GENERATE:
                task.set_config("generation_kwargs", self.gen_kwargs, update=True)
        if self.data is not None and not any(task.config.custom_dataset for task in self._leaves):
            raise UserError(f"tasks: {self.name}: data: none of the tasks reads a file; leave it out")

    def _column(self, name: str, key: str) -> str:
        return key if len(self.tasks) == 1 else f"{name} {key}"

    def _metric(self, name: str, task: ConfigurableTask, key: str) -> Metric:
        metric, _, filter = key.rpartition(",")
        label = metric if filter == "none" else f"{metric} ({filter})"
        directions: dict[object, Literal["higher", "lower"]] = {True: "higher", False: "lower"}
        better = directions.get(task.higher_is_better().get(metric))
        form = ".2f" if "perplexity" in metric else ".3f"
        return Metric(label if len(self.tasks) == 1 else f"{name} {label}", better, form)

    @property
    def source(self) -> str | None:
        return self.data

    def dataset(self) -> AskedData:
        hub = ", ".join(sorted({task.config.dataset_path for task in self._leaves if task.config.dataset_path}))
        splits = sorted({task.config.test_split or task.config.validation_split for task in self._leaves})
        if hub:
            return AskedData(hub, f"hub:{hub}", ["see the Hub"], len(self.examples), ", ".join(splits))
        return AskedData(**describe(self.data or ""), n=len(self.examples), split=", ".join(splits))

    def refusal(self, model: EvaluatedModel) -> str | None:
        if model.gives_losses:
            return None
        if task := next((task for task in self._leaves if task.OUTPUT_TYPE != GENERATE), None):
            return f"a server gives no likelihoods of given texts, which {task.task_name} compares"
        if not self.apply_chat_template:
            return "a server takes only turns: set apply_chat_template"
        if task := next((task for task in self._leaves if task.config.generation_kwargs.get("do_sample")), None):
            return f"{task.task_name} draws answers at random, and a server is asked for the likeliest"
        return None

    def check(self, model: EvaluatedModel) -> None:
        if self.apply_chat_template:
            model.check([{"role": "user", "content": "?"}], (), 0, self.name)
        for task in self._leaves:
            if task.OUTPUT_TYPE == GENERATE and model.context is not None:
                longest = max_new_tokens(task.config.generation_kwargs)
                if longest >= model.context:
                    raise UserError(
                        f"tasks: {self.name}: {task.task_name} takes answers of up to {longest} tokens, but "
                        f"{model.path} reads {model.context} with the question; set gen_kwargs: {{max_gen_toks: ...}}"
                    )
        for one in self.examples:  # a question that is too long is cut, but a choice is not
            if model.gives_losses and one.targets:
                model.check("", [target for target in one.targets if target], 0, f"{self.name}: {one.place}")

    def collect(self, model: EvaluatedModel, folder: Path) -> None:
        state = launched()
        finished = (folder / f"{model.name}.jsonl").exists()
        state.wait_for_everyone()  # before the main process writes it
        if finished:
            return
        usual = model.batch_size
        model.batch_size = given = self.batch_size or usual
        if state.is_main_process:
            tqdm.write(f"{self.name}: {model.name}")  # lm-eval's progress bars do not say it
        with quiet():
            harness = self._harness(model)
            results = self._evaluate(harness, pool_caches(folder, model.name))
        model.batch_size = usual if model.batch_size == given else min(usual, model.batch_size)

        # Every process has all answers, and one of them keeps them.
        if state.is_main_process and results is not None:
            self._keep(results, harness, folder)
        state.wait_for_everyone()
        if state.is_main_process:
            for file in find_caches(folder, model.name):
                file.unlink()

    def _harness(self, model: EvaluatedModel) -> Harness:
        if isinstance(model, EngineModel) and self._an_engine_can:
            return EngineHarness(model)
        return LocalHarness(model) if isinstance(model, LocalModel) else RemoteHarness(model)

    def _evaluate(self, harness: Harness, cache: str) -> dict[str, Any] | None:
        """As lm-eval's command line does (`lm_eval/_cli/run.py`), without its bootstrap."""
        return lm_eval.simple_evaluate(
            harness,
            tasks=self._leaves,
            use_cache=cache,
            task_manager=self._manager,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            system_instruction=self.system_instruction,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.apply_chat_template,
            bootstrap_iters=0,
        )

    def _keep(self, results: Mapping[str, Any], harness: Harness, folder: Path) -> None:
        model = harness.evaluated
        records = make_records(self._leaves, results["samples"], harness)
        kept = {name: results[name] for name in ("results", "versions", "n-shot", "n-samples", "configs")}
        kept["lm_eval"] = metadata.version("lm-eval")
        text = json.dumps(kept, default=handle_non_serializable, ensure_ascii=False, indent=1)
        _results_file(folder, model.name).write_text(text, encoding="utf-8")
        write_records(folder / f"{model.name}.jsonl", records)

    def measure(self, model: str, folder: Path) -> Measured:
        records = read_records(folder / f"{model}.jsonl")
        results = _read_results(folder, model)
        overall: dict[str, Statistics] = {}
        groups: dict[str, dict[str, Statistics]] = {}
        of_tasks = by_group(records)
        for name, tasks in self._asked.items():
            own = {task.task_name: of_tasks.get(task.task_name, []) for task in tasks}
            overall |= self._measure(name, tasks, list(chain.from_iterable(own.values())), results)
            if len(tasks) > 1:
                groups |= {task.task_name: self._measure(name, [task], own[task.task_name], results) for task in tasks}
        return Measured(overall, groups)

    def _measure(
        self, name: str, tasks: Sequence[ConfigurableTask], records: Sequence[Record], results: Mapping[str, Any]
    ) -> dict[str, Statistics]:
        """The metrics that all of the tasks have."""
        versions, shots = (
            ",".join(sorted({str(results[key][task.task_name]) for task in tasks})) for key in ("versions", "n-shot")
        )
        signature = (
            f"lm-eval:{results['lm_eval']}|task:{name}|version:{versions}|num_fewshot:{shots}|limit:{self.limit}|"
            f"chat_template:{self.apply_chat_template}"
        )
        return {
            self._column(name, key): statistics(tasks[0], key, records, signature)
            for key in metrics_of(tasks[0])
            if all(key in metrics_of(task) for task in tasks)
        }

    def details(self, models: Sequence[str], folder: Path) -> dict[str, Any]:
        """For each model lm-eval's own results, with metrics that no sums make (F1), and how many documents were cut.

        A document is cut where it does not fit into the model's context: lm-eval drops what is on the left.
        """
        return {
            model: {
                "results": _read_results(folder, model)["results"],
                "cut": sum(one.info["cut"] for one in read_records(folder / f"{model}.jsonl")),
            }
            for model in models
        }


def _results_file(folder: Path, model: str) -> Path:
    return folder / f"{model}.lm_eval.json"


def _read_results(folder: Path, model: str) -> dict[str, Any]:
    return json.loads(_results_file(folder, model).read_text(encoding="utf-8"))
