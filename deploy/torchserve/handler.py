"""A chat model in TorchServe: a batch of conversations in, an answer for each out.

A request is JSON, `{"messages": [{"role": "user", "content": "..."}], "max_new_tokens": 64}`, of which only `messages`
is needed. An answer is `{"answer": "...", "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 12}`; the
reason is `length` if it was cut. What is wrong with a request is said to its client alone, with status 400.

The archive's other files are a model's, as `save_pretrained` writes them, with a chat template; `handler` in
model-config.yaml has the limits. The handler needs torch and transformers, nothing of hfchat.
"""

import json
import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

_KEYS = {"messages", "max_new_tokens"}
_ROLES = {"system", "user", "assistant"}


class ChatHandler:
    """Answers greedily, so that an answer does not depend on what else is in its batch (but for rounding)."""

    def initialize(self, context: Any) -> None:
        """Load the model from the folder where TorchServe has unpacked the archive.

        Raises:
            ValueError: If it has no chat template, or nothing ends its answers.
        """
        folder = context.system_properties["model_dir"]
        gpu = context.system_properties.get("gpu_id")
        device = f"cuda:{gpu}" if torch.cuda.is_available() and gpu is not None else "cpu"
        limits = (context.model_yaml_config or {}).get("handler", {})
        self._default_tokens = int(limits.get("default_new_tokens", 128))
        self._most_tokens = int(limits.get("max_new_tokens", 512))

        safely = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **safely, padding_side="left")
        dtype = torch.bfloat16 if device != "cpu" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, **safely, use_safetensors=True, dtype=dtype)
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{folder}: has no chat template, so it is no chat model")
        configured = model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self._stop = sorted({id for id in (*ends, self._tokenizer.eos_token_id) if id is not None})
        if not self._stop:
            raise ValueError(f"{folder}: has no end-of-turn token")
        if self._tokenizer.pad_token_id is None:  # the mask hides it, so any token will do
            self._tokenizer.pad_token_id = self._stop[0]
        # Not the model's own settings with some replaced: a repetition penalty of theirs, say, would go on.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self._stop, pad_token_id=self._tokenizer.pad_token_id
        )
        self._model = model.to(device).eval()
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Answer a batch.

        Args:
            data: The requests, each with its JSON as `body` (or `data`), parsed or as bytes.
            context: Takes the status of those that are refused.

        Returns:
            For each request an answer, or `{"error": "..."}`.
        """
        answers: list[dict[str, Any]] = [{} for _ in data]
        prompts: dict[int, list[int]] = {}
        lengths: dict[int, int] = {}
        for index, request in enumerate(data):
            try:
                prompts[index], lengths[index] = self._read(request)
            except ValueError as error:
                context.set_response_status(code=400, phrase="Bad Request", idx=index)
                answers[index] = {"error": str(error)}
        for batch in self._batches(prompts, lengths):
            written = self._generate([prompts[index] for index in batch], max(lengths[index] for index in batch))
            for index, ids in zip(batch, written, strict=True):
                answers[index] = self._answer(ids[: lengths[index]], len(prompts[index]))
        return answers

    def _batches(self, prompts: dict[int, list[int]], lengths: dict[int, int]) -> list[list[int]]:
        """All in one, unless the longest prompt would be continued beyond the context while others are at work."""
        if prompts and max(map(len, prompts.values())) + max(lengths.values()) <= self._context:
            return [list(prompts)]
        return [[index] for index in prompts]

    def _read(self, request: dict[str, Any]) -> tuple[list[int], int]:
        """The prompt's tokens, and how many may follow."""
        body = request.get("body", request.get("data"))
        if isinstance(body, bytes | bytearray | str):
            try:
                body = json.loads(body)
            except ValueError as error:
                raise ValueError("the body must be JSON, sent as application/json") from error
        if not isinstance(body, dict):
            raise ValueError("the body must be an object with `messages`")
        if unknown := sorted(body.keys() - _KEYS):
            raise ValueError(f"{unknown[0]}: unknown; a request has `messages` and `max_new_tokens`")
        tokens = body.get("max_new_tokens", self._default_tokens)
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= self._most_tokens:
            raise ValueError(f"max_new_tokens: must be a whole number from 1 to {self._most_tokens}")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            roles = ", ".join(sorted(_ROLES))
            raise ValueError(f"messages: must be a list of {{role, content}}, with texts, and roles of {roles}")
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if len(prompt) + tokens > self._context:
            raise ValueError(
                f"messages: {len(prompt)} tokens and {tokens} of the answer are more than the model's {self._context}"
            )
        return prompt, tokens

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Continue each prompt, of any length, up to and including its end-of-turn token."""
        batch = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._model.device)
        output = self._model.generate(**batch, max_new_tokens=max_new_tokens)
        written = output[:, batch["input_ids"].shape[1] :].tolist()
        ends = [next((i + 1 for i, id in enumerate(ids) if id in self._stop), len(ids)) for ids in written]
        return [ids[:end] for ids, end in zip(written, ends, strict=True)]

    def _answer(self, ids: list[int], prompt_tokens: int) -> dict[str, Any]:
        return {
            "answer": self._tokenizer.decode(ids, skip_special_tokens=True),
            "finish_reason": "stop" if ids[-1] in self._stop else "length",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(ids),
        }


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in _ROLES
        and isinstance(message["content"], str)
    )
