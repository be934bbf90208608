from transformers import AutoTokenizer, GenerationConfig

from hfchat.chat_template import set_chat_template
from hfchat.gguf.modelfile import modelfile

MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "?"},
]


def of(tokenizer, **generation):
    return modelfile("model.gguf", tokenizer, GenerationConfig(**generation), 100_000)


def rendered(text, messages):
    """What Ollama makes of messages: the part of the template between `range` and `end`, for each."""
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    turn, end = template.removeprefix("{{- range .Messages }}").split("{{ end }}")
    turns = [turn.replace("{{ .Role }}", one["role"]).replace("{{ .Content }}", one["content"]) for one in messages]
    return "".join(turns) + end


def test_the_template_says_what_the_model_s_own_says(tokenizer):
    text = of(tokenizer, temperature=0.6, do_sample=True)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered(text, MESSAGES) == expected
    assert text.splitlines()[0] == "FROM ./model.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER temperature 0.6" in text
    assert "PARAMETER num_ctx 8192" in text
    assert "SYSTEM" not in text


def test_what_the_template_says_as_the_system_is_said_there_too(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    set_chat_template(own, system_message="You are Ada.")
    assert 'SYSTEM """You are Ada."""' in of(own)
    # With a system message, which Ollama puts there, it is ChatML.
    assert 'TEMPLATE """' in of(own)


def test_another_template_is_left_to_ollama(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    own.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    assert "TEMPLATE" not in of(own)
    assert "# The chat template is not ChatML" in of(own)
