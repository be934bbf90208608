"""Give a trained or imported tokenizer special tokens, template and size, and save it so that any server reads it."""

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from hfchat.chat_template import END_OF_TEXT, SPECIAL_TOKENS, record_fingerprint, set_chat_template
from hfchat.models import VOCABULARY_MULTIPLE


def as_chat_tokenizer(tokenizer: Tokenizer, vocab_multiple: int = VOCABULARY_MULTIPLE) -> PreTrainedTokenizerFast:
    """Give a tokenizer the project's special tokens and template.

    Args:
        tokenizer: Any; special tokens that it lacks get the next ids.
        vocab_multiple: The vocabulary is filled up to a multiple of it with `<|reserved_0|>`, `<|reserved_1|>`, ...,
            special tokens that a later stage can give a meaning without a change of the embeddings' shape.
    """
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    missing = -tokenizer.get_vocab_size(with_added_tokens=True) % vocab_multiple
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(missing)])
    # A base model has never seen a document that does not open with this token.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    set_chat_template(wrapped)
    record_fingerprint(wrapped)
    return wrapped


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: str | Path, *, sentencepiece_model: str | Path | None = None
) -> None:
    """`save_pretrained`, and what other programs look for.

    transformers 5 keeps the template in `chat_template.jinja` and the added tokens in `tokenizer.json` alone, and
    names a class that transformers 4 does not have. TGI and older llama.cpp and vLLM read the template from
    `tokenizer_config.json`, llama.cpp's converter the added tokens of a SentencePiece model, and what runs on
    transformers 4 needs a class of its own. transformers 5 reads both forms.

    Args:
        tokenizer: From `as_chat_tokenizer`.
        folder: Where to.
        sentencepiece_model: The file that it was imported from; llama.cpp's converter looks for it.
    """
    tokenizer.save_pretrained(folder)
    file = Path(folder) / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": tokenizer.chat_template,
        "added_tokens_decoder": {
            str(id): {
                name: getattr(token, name)
                for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            }
            for id, token in sorted(tokenizer.added_tokens_decoder.items())
        },
    }
    if sentencepiece_model is not None:
        shutil.copyfile(sentencepiece_model, Path(folder) / "tokenizer.model")
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
