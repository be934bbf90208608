import math

import pytest
import torch
from datasets import Dataset

from hfchat.dataset import load_split
from hfchat.errors import UserError
from hfchat.training.corpus import Corpus, load_corpus
from hfchat.training.packing import PackedDataset, tokenize_corpus
from hfchat.training.pretrain_arguments import PretrainArguments
from tests.conftest import TEXTS
from tests.training.trainers import losses, trainer_for


def test_bits_per_byte_are_those_of_the_documents_one_by_one(packed, tokenizer, corpus, tmp_path):
    """In one block that holds all documents: what they cost must not depend on their neighbours."""
    documents = load_split(str(corpus), "validation", "text")
    tokenize_corpus(documents, "text", tokenizer, tmp_path / "tokens", "test")
    whole = PackedDataset(tmp_path / "tokens", len(packed["validation"].tokens), tokenizer)
    assert len(whole) == 1
    trainer = trainer_for({"train": packed["train"], "validation": whole}, tokenizer, tmp_path)
    metrics = trainer.evaluate()
    nats, count = 0.0, 0
    for text in documents["text"]:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id]
        ids = torch.tensor([ids])
        log_probs = trainer.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nats -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert metrics["eval_predicted_tokens"] == count
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / whole.num_bytes, 1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nats / count), 1e-5)
    # The loss that is trained on is the one that is reported: of the next token, not of the one after it.
    assert metrics["eval_loss"] == pytest.approx(nats / count, 1e-5)


@pytest.fixture(scope="module")
def eight_at_once(packed, tokenizer, tmp_path_factory):
    trainer = trainer_for(packed, tokenizer, tmp_path_factory.mktemp("eight"), optimizer="adamw")
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 8), (2, 4)])
def test_the_loss_does_not_change_when_a_batch_of_8_is_gathered_in_parts(
    packed, tokenizer, tmp_path, eight_at_once, batch, accumulation
):
    trainer = trainer_for(
        packed,
        tokenizer,
        tmp_path,
        optimizer="adamw",  # Muon's orthogonalisation, in bfloat16, would blow rounding up
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    assert losses(trainer) == pytest.approx(eight_at_once, rel=1e-5)


def test_the_last_metrics_are_those_of_the_model_at_its_end(packed, tokenizer, tmp_path):
    at_end = trainer_for(packed, tokenizer, tmp_path, eval_strategy="steps", eval_steps=3)
    before = trainer_for(packed, tokenizer, tmp_path, eval_strategy="steps", eval_steps=2)
    for trainer, evaluations in ((at_end, 1), (before, 2)):
        trainer.train()
        metrics = trainer.final_metrics()
        assert metrics["eval_bits_per_byte"] == pytest.approx(trainer.evaluate()["eval_bits_per_byte"], rel=1e-6)
        # One more than were made in the training, and than `final_metrics` had to make.
        assert sum("eval_loss" in entry for entry in trainer.state.log_history) == evaluations + 1


def test_deepspeed_and_muon_are_refused(packed, tokenizer, tmp_path):
    trainer = trainer_for(packed, tokenizer, tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(UserError, match=r"optimizer muon: DeepSpeed splits the matrices .* use adamw, or FSDP"):
        trainer.create_optimizer()


@pytest.mark.parametrize("streaming", [False, True])
def test_without_a_split_for_it_validation_is_taken_from_the_front(tokenizer, tmp_path, streaming):
    file = tmp_path / "corpus.jsonl"
    Dataset.from_dict({"text": TEXTS}).to_json(file)
    args = PretrainArguments(
        output_dir=str(tmp_path), tokenizer_name="that of the test", dataset_name=str(file), streaming=streaming,
        validation_documents=5, block_size=32,
    )  # fmt: skip
    corpus = load_corpus(args, tokenizer, tmp_path / "tokens")
    assert corpus.validation.num_bytes == sum(len(text.encode()) for text in TEXTS[:5])
    first = next(iter(corpus.train))["input_ids"].tolist()
    assert tokenizer.decode(first[1:]).startswith(TEXTS[5][:40])
    assert corpus.blocks is None if streaming else corpus.blocks > 0


def test_a_training_that_reads_its_texts_too_often_is_warned(packed):
    corpus = Corpus(packed["train"], packed["validation"])
    once = len(corpus.train.tokens)
    assert "warning" not in corpus.describe(4 * once)
    assert "warning" not in corpus.describe(4 * once + once // 10), "four epochs, with their padding"
    assert "read 12 times, and teaches less and less after 4 times" in corpus.describe(12 * once)


def test_a_corpus_too_small_to_hold_any_out_is_refused(tokenizer, tmp_path):
    file = tmp_path / "corpus.jsonl"
    Dataset.from_dict({"text": TEXTS[:9]}).to_json(file)
    args = PretrainArguments(output_dir=str(tmp_path), tokenizer_name="that of the test", dataset_name=str(file))
    with pytest.raises(UserError, match="no validation split, and fewer than 10 documents"):
        load_corpus(args, tokenizer, tmp_path / "tokens")
