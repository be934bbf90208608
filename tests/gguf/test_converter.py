from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from hfchat.gguf.converter import splitter


def test_the_project_s_ways_to_split_have_names(tokenizer, tmp_path):
    from hfchat.tokenization.bpe import byte_level_splitter

    tokenizer.save_pretrained(tmp_path)
    changed = AutoTokenizer.from_pretrained(tmp_path)
    assert splitter(changed) == "gpt-2"
    changed.backend_tokenizer.pre_tokenizer = byte_level_splitter("gpt4")
    assert splitter(changed) == "dbrx"
    changed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("x"), behavior="isolated")
    assert splitter(changed) is None
