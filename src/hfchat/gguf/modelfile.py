"""A Modelfile for Ollama beside a GGUF file: `ollama create NAME -f Modelfile`."""

from typing import TYPE_CHECKING

from hfchat.chat_template import TURN_END, TURN_START, default_system_message
from hfchat.token_ids import Messages

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_MAX_CONTEXT = 8192  # Ollama takes memory for all of it when it loads the model
# ChatML in the syntax of Go's text/template. Ollama puts what SYSTEM says before the messages.
CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
_PROBE: Messages = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "v"},
]


def modelfile(
    file_name: str, tokenizer: "PreTrainedTokenizerBase", generation: "GenerationConfig", context: int
) -> str:
    """What a Modelfile says about a model: its template, where a turn ends, how to sample and how it begins.

    The template is written out where it is ChatML, without its tools. Another one is left to Ollama, which looks in
    the file for one that it knows.

    Args:
        file_name: The name of the GGUF file beside it.
        tokenizer: The model's.
        generation: The model's.
        context: Tokens that the model can take.
    """
    lines = [f"FROM ./{file_name}"]
    if speaks_chatml(tokenizer):
        lines.append(f'TEMPLATE """{CHATML}"""')
    else:
        lines.append("# The chat template is not ChatML: Ollama looks for one that it knows by that in the GGUF file.")
    if tokenizer.eos_token:
        lines.append(f'PARAMETER stop "{tokenizer.eos_token}"')
    if generation.temperature is not None:
        lines.append(f"PARAMETER temperature {generation.temperature if generation.do_sample is not False else 0}")
    lines.append(f"PARAMETER num_ctx {min(context, _MAX_CONTEXT)}")
    system = default_system_message(tokenizer)
    if system and '"""' not in system:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def speaks_chatml(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a conversation without tools becomes ChatML by the tokenizer's template, to the letter."""
    turns = "".join(f"{TURN_START}{turn['role']}\n{turn['content']}{TURN_END}\n" for turn in _PROBE)
    rendered = tokenizer.apply_chat_template(list(_PROBE), tokenize=False, add_generation_prompt=True)
    return rendered == f"{turns}{TURN_START}assistant\n"
