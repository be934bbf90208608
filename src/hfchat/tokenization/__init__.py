"""The tokenizer stage: a corpus in, a tokenizer that `AutoTokenizer` opens out."""
