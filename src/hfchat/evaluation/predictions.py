"""What a model says to held-out conversations, kept as JSON lines while it comes."""

import gc
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from hfchat.chat_template import check_chat_template
from hfchat.errors import UserError
from hfchat.evaluation.conversations import EncodedConversation
from hfchat.evaluation.perplexity import answer_losses
from hfchat.generation import generate_answers, set_greedy
from hfchat.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Prediction:
    """A line of `predictions/<model>.jsonl`: what one model said, and what was measured, on one example.

    Attributes:
        index: Position in the dataset, from 0.
        prompt: Messages up to the answer.
        reference: The dataset's answer.
        prediction: The model's.
        prediction_tokens: Its length, the end-of-turn token included.
        ended: Whether the model ended the turn itself, before `max_new_tokens`.
        reference_loss: Negative log-likelihood of the reference, in nats.
        reference_tokens: Over how many tokens, the end-of-turn token included.
        seconds: Its share of the time in which its batch was generated.
    """

    index: int
    prompt: list[dict[str, str]]
    reference: str
    prediction: str
    prediction_tokens: int
    ended: bool
    reference_loss: float
    reference_tokens: int
    seconds: float


def predict(
    name: str,
    model_path: str,
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[EncodedConversation],
    file: Path,
    *,
    dtype: str,
    max_new_tokens: int,
    batch_size: int,
    allow_template_mismatch: bool = False,
) -> list[Prediction]:
    """Answer every example that `file` does not hold yet, in batches of similar length, and add the answers to it.

    The model is loaded here, unless nothing is left to do, and freed at the end: two models never share the memory.

    Args:
        name: Shown by the progress bar.
        model_path: What `hfchat.models` loads.
        tokenizer: Of the model, with its chat template.
        examples: Encoded with that tokenizer.
        file: JSON lines, one `Prediction` each. What an interrupted run left there is kept.
        dtype: Of the weights, e.g. `"bfloat16"`.
        max_new_tokens: Longest answer.
        batch_size: Examples at a time.
        allow_template_mismatch: See `check_chat_template`.

    Returns:
        One prediction per example, in their order.
    """
    done = {prediction.index: prediction for prediction in read_predictions(file)}
    todo = [index for index in range(len(examples)) if index not in done]
    if todo:
        # The longest first: if memory does not do, it shows at once.
        todo.sort(key=lambda index: len(examples[index].prompt_ids), reverse=True)
        model = load_model(model_path, dtype=getattr(torch, dtype))
        check_chat_template(tokenizer, model, allow_mismatch=allow_template_mismatch)
        _check_context(model, examples, max_new_tokens)
        set_greedy(model, tokenizer, max_new_tokens)
        model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            file.open("a", encoding="utf-8") as output,
            tqdm(desc=name, total=len(examples), initial=len(done), unit="answer") as progress,
        ):
            for start in range(0, len(todo), batch_size):
                batch = _predict_batch(model, tokenizer, examples, todo[start : start + batch_size])
                output.writelines(map(_line, batch))
                output.flush()
                done.update({prediction.index: prediction for prediction in batch})
                progress.update(len(batch))
        del model
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
    predictions = [done[index] for index in range(len(examples))]
    if todo:  # in the dataset's order, so that the files of two models can be read line by line
        ordered = file.with_suffix(".tmp")
        ordered.write_text("".join(map(_line, predictions)), encoding="utf-8")
        ordered.replace(file)
    return predictions


def read_predictions(file: Path) -> list[Prediction]:
    """The predictions that `file` holds. A last line that was not written to its end is cut off the file."""
    if not file.exists():
        return []
    written = file.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if whole != written:
        with file.open("r+b") as torn:
            torn.truncate(len(whole))
    try:
        return [Prediction(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: holds a line that is no prediction; delete the file and run again") from error


def _line(prediction: Prediction) -> str:
    return json.dumps(asdict(prediction), ensure_ascii=False) + "\n"


def _predict_batch(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: list[EncodedConversation],
    indices: list[int],
) -> list[Prediction]:
    batch = [examples[index] for index in indices]
    started = time.perf_counter()
    answers = generate_answers(model, [example.prompt_ids for example in batch])
    seconds = (time.perf_counter() - started) / len(batch)
    return [
        Prediction(
            index=index,
            prompt=example.conversation.prompt,
            reference=example.conversation.reference,
            prediction=tokenizer.decode(answer, skip_special_tokens=True),
            prediction_tokens=len(answer),
            ended=answer[-1] in model.generation_config.eos_token_id,
            reference_loss=loss,
            reference_tokens=len(example.answer_ids),
            seconds=seconds,
        )
        for index, example, answer, loss in zip(indices, batch, answers, answer_losses(model, batch), strict=True)
    ]


def _check_context(model: "PreTrainedModel", examples: list[EncodedConversation], max_new_tokens: int) -> None:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for example in examples:
        needed = len(example.prompt_ids) + max(max_new_tokens, len(example.answer_ids))
        if window is not None and needed > window:
            raise UserError(
                f"{example.conversation.place}: its prompt and answer take {needed} tokens, but "
                f"{model.name_or_path} reads {window}; lower max_new_tokens or remove the row"
            )
