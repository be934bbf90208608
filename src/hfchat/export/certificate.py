"""Export with a certificate: what was trained, merged, saved and loaded again in a fresh process is one model.

Three steps can change a model: merging, rounding to the dtype of the base, and saving. Each is compared by itself, so
that the rounding of one does not hide a fault of another:

- trained -> adapter as saved, on the base as stored and in float32;
- adapter on base -> merged, both in float32: the same function, so only the order of sums may differ;
- merged in float32 -> rounded to the stored dtype: the only step that may change anything;
- rounded in memory -> loaded in a fresh process: every weight is the same to the bit.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError

from hfchat.adapters import (
    is_quantized,
    load_base,
    load_base_of,
    new_tokens,
    put_adapter,
    read_base,
    round_weights,
    weight_digests,
)
from hfchat.behaviour import (
    Behaviour,
    Prompts,
    behaviour,
    compare,
    context_length,
    default_conversations,
    kl_divergence,
    logits,
)
from hfchat.certificates import MAX_DRIFT, Certificate, NotCertifiedError, files_sha256
from hfchat.chat_template import check_end_of_turn
from hfchat.errors import UserError
from hfchat.export.checks import (
    MAX_MERGE_DRIFT,
    MAX_QUANTIZATION_DRIFT,
    MAX_RELOAD_DRIFT,
    MAX_ROUNDING_DRIFT,
    check_files,
    check_tokens,
)
from hfchat.export.gguf import export_gguf, export_quantized
from hfchat.export.merging import changed_base_weights, prepare_to_save, save_adapter
from hfchat.export.reloading import reload
from hfchat.gguf.conversion import check_installed
from hfchat.gguf.weight_types import weight_type
from hfchat.lineage import CERTIFICATE
from hfchat.models import load_config, load_model, load_tokenizer
from hfchat.token_ids import Messages

if TYPE_CHECKING:
    import argparse

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(
    model: "PeftModel | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    conversations: Sequence[Messages],
    *,
    base: str,
    revision: str | None = None,
) -> Certificate:
    """Save a trained model so that it is certain to be the same when it is loaded again.

    An adapter is written to `folder/adapter`, and merged into its base in `folder/merged`; a model of which all
    weights were trained is written to `folder/model`. Weights are stored in the dtypes of the base.

    Args:
        model: As trained, unwrapped; left as it is.
        tokenizer: The model's, with the chat template that it was trained with.
        folder: Where to write.
        conversations: Some held-out ones, to compare on.
        base: What it started from, as the user named it.
        revision: Revision of a Hub id.

    Returns:
        The certificate, which is also in `certificate.json` beside the merged or whole model.

    Raises:
        UserError: If what was saved is not what was trained, or will not behave so.
    """
    folder = Path(folder)
    _check_tokenizer(tokenizer)
    # A model of which all weights were trained has nothing to merge.
    if not hasattr(model, "peft_config"):
        return _export_model(model, tokenizer, folder / "model", conversations, base, revision)
    stored = load_base(base, revision)
    certificate = Certificate(
        folder / "merged", Prompts.render(conversations, tokenizer, context_length(stored.config))
    )
    trained = behaviour(model, certificate.prompts, tokenizer)
    save_adapter(model, tokenizer, folder / "adapter", base, revision, stored)
    # Weights in 4 or 8 bits cannot be compared with the stored ones; the drift of the answers is reported instead.
    if not is_quantized(model):
        known = len(tokenizer) - len(new_tokens(model.active_peft_config))
        changed = changed_base_weights(model, stored, known)
        certificate.check(
            "base",
            not changed,
            f"{len(changed)} weights differ from those trained on ({', '.join(changed[:2])})"
            if changed
            else "the same",
            "the same",
            f"{base} is not what was trained on: name the same base and revision as in the training",
        )
    merged, before = _merge(certificate, stored, folder / "adapter", tokenizer, trained, is_quantized(model))
    _save_and_certify(certificate, merged, tokenizer, before)
    return certificate


def certify_adapter(
    adapter: str | Path,
    output_dir: str | Path,
    conversations: Sequence[Messages],
    *,
    base: str | None = None,
    revision: str | None = None,
) -> Certificate:
    """Merge a saved adapter into its base, and save the result in `output_dir`, which appears when it is certified.

    Args:
        adapter: Folder with an adapter and its tokenizer.
        output_dir: Must not exist.
        conversations: To compare on.
        base: Where its base is, by default where the adapter says.
        revision: Revision of a Hub id, by default the one that the adapter names.

    Raises:
        UserError: If the base is not the one trained on, or if what was saved is not what was merged.
    """
    adapter, output_dir = Path(adapter), Path(output_dir)
    if output_dir.exists():
        raise UserError(
            f"--output-dir {output_dir}: already exists; certify it as it is with `hfchat certify {output_dir}`, "
            "or choose another"
        )
    tokenizer = _load_tokenizer(adapter)
    stored = load_base_of(adapter, base, revision)
    partial = output_dir.with_name(f"{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    certificate = Certificate(partial, Prompts.render(conversations, tokenizer, context_length(stored.config)))
    merged, before = _merge(certificate, stored, adapter, tokenizer)
    _save_and_certify(certificate, merged, tokenizer, before)
    partial.rename(output_dir)
    certificate.folder = output_dir
    return certificate


def certify_model(
    folder: str | Path,
    conversations: Sequence[Messages],
    *,
    base: str | None = None,
    revision: str | None = None,
) -> Certificate:
    """Certify a saved model as it is: against the adapter beside it, merged anew, if it has one.

    Args:
        folder: The model and its tokenizer.
        conversations: To compare on.
        base: Where the adapter's base is, by default where the adapter says.
        revision: Revision of a Hub id.

    Raises:
        UserError: If it does not load, or is not what it should be.
    """
    folder = Path(folder)
    tokenizer = _load_tokenizer(folder)
    _check_files_unchanged(folder)

    # With the adapter beside it, the model can be made again and compared; alone, only with itself.
    adapter = folder.parent / "adapter"
    if (adapter / "adapter_config.json").is_file():
        stored = load_base_of(adapter, base, revision)
        trained_with = _load_tokenizer(adapter)
        certificate = Certificate(folder, Prompts.render(conversations, trained_with, context_length(stored.config)))
        tokenizer = trained_with
        model, before = _merge(certificate, stored, adapter, tokenizer)
    elif base is not None:
        raise UserError(f"--base {base}: {folder} is a whole model with no adapter beside it; leave --base out")
    else:
        try:
            model = load_model(str(folder), dtype="auto")
        except SafetensorError as error:
            raise UserError(f"{folder}: its weights cannot be read ({error}); export it again") from error
        certificate = Certificate(folder, Prompts.render(conversations, tokenizer, context_length(model.config)))
        before = None
    _certify_saved(certificate, model.to(_device(model)), tokenizer, before)
    certificate.issue()
    return certificate


def handler(args: "argparse.Namespace") -> None:
    """`hfchat certify FOLDER`: an adapter or a whole model. Prints the checks, those that fail too."""
    try:
        for certificate in _certify(args):
            print(f"{certificate.table()}\n{certificate.folder / CERTIFICATE}")
    except NotCertifiedError as error:
        print(error.certificate.table())
        raise


def _certify(args: "argparse.Namespace") -> Iterator[Certificate]:
    folder = Path(args.folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name an adapter or a model, e.g. outputs/demo/assistant/adapter")
    if args.prompts:
        from hfchat.dataset import load_split

        conversations = [row["messages"] for row in load_split(args.prompts, "train", "messages").to_list()]
    else:
        conversations = default_conversations()
    for weights in args.quantize:
        weight_type(weights)
    if args.gguf or args.quantize:
        check_installed()
    options = {"base": args.base, "revision": args.revision}
    if (folder / "adapter_config.json").is_file():
        output_dir = Path(args.output_dir) if args.output_dir else folder.resolve().with_name("merged")
        certificate = certify_adapter(folder, output_dir, conversations, **options)
    elif args.output_dir:
        raise UserError(f"--output-dir {args.output_dir}: {folder} is a whole model, which is certified in its place")
    else:
        certificate = certify_model(folder, conversations, **options)
    yield certificate
    if args.quantize:
        yield from export_quantized(certificate.folder, args.quantize, conversations, args.max_drift)
    elif args.gguf:
        yield export_gguf(certificate.folder, conversations)


def _export_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    conversations: Sequence[Messages],
    base: str,
    revision: str | None,
) -> Certificate:
    certificate = Certificate(folder, Prompts.render(conversations, tokenizer, context_length(model.config)))
    trained = behaviour(model, certificate.prompts, tokenizer)
    stored_dtype = load_config(base, revision=revision or "main").dtype or model.dtype
    # Accelerate has given the model a `forward` of its own, which a copy is to be without.
    rounded = extract_model_from_parallel(copy.deepcopy(model), keep_fp32_wrapper=False).eval()
    round_weights(rounded, {}, stored_dtype)
    prepare_to_save(rounded, tokenizer)
    _save_and_certify(certificate, rounded, tokenizer, trained)
    return certificate


def _merge(
    certificate: Certificate,
    stored: "PreTrainedModel",
    adapter: Path,
    tokenizer: "PreTrainedTokenizerBase",
    trained: Behaviour | None = None,
    quantized: bool = False,
) -> tuple["PreTrainedModel", Behaviour]:
    """An adapter merged in memory, rounded to the dtypes of its base, and what it said on its base before."""
    certificate.base = read_base(adapter)
    dtypes, stored_dtype = {name: weight.dtype for name, weight in stored.named_parameters()}, stored.dtype
    on_base = put_adapter(stored.to(_device(stored)), adapter, tokenizer)
    before = behaviour(on_base, certificate.prompts, tokenizer)
    if trained is not None:
        certificate.check_difference(
            "trained",
            compare(trained, before, certificate.prompts, on_base, tokenizer),
            MAX_QUANTIZATION_DRIFT if quantized else MAX_DRIFT,
            "on its base, the saved adapter is not what was trained: name the base and the revision of the training",
        )

    # In float32, merging gives the same function; rounding comes after it, so that neither hides a fault of the other.
    merged = on_base.merge_and_unload().eval()
    certificate.merge_kl_nats = kl_divergence(before.logits, logits(merged, certificate.prompts)).mean().item()
    certificate.check(
        "merged: logits",
        certificate.merge_kl_nats <= MAX_MERGE_DRIFT,
        f"{certificate.merge_kl_nats:.1e} nats",
        MAX_MERGE_DRIFT,
        "PEFT merged this kind of adapter wrongly: serve the adapter on its base, and report it",
    )
    prepare_to_save(merged, tokenizer)
    round_weights(merged, dtypes, stored_dtype)
    return merged, before


def _save_and_certify(
    certificate: Certificate, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", before: Behaviour
) -> None:
    model.save_pretrained(certificate.folder)
    tokenizer.save_pretrained(certificate.folder)
    _certify_saved(certificate, model, tokenizer, before)
    certificate.issue()


def _certify_saved(
    certificate: Certificate,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    before: Behaviour | None,
) -> None:
    """What a fresh process finds in the folder, against the model in memory, and that against what was trained.

    All compute in float32: in bfloat16, the rounding of each layer would hide that of the weights, which is 30 times
    smaller on SmolLM2-135M.
    """
    folder = certificate.folder
    check_files(certificate)

    # The digests are of the weights as they will be stored, and so come before the model is cast to float32.
    expected = weight_digests(model)
    rounded_to, rounded = model.dtype, behaviour(model.float(), certificate.prompts, tokenizer)
    if before is not None:
        certificate.check_difference(
            "rounded",
            compare(before, rounded, certificate.prompts, model, tokenizer),
            MAX_ROUNDING_DRIFT,
            f"rounding to {rounded_to} changes the answers: start from a base that is stored in float32",
        )

    # The file: another process reads it, which has nothing of this one to go by.
    after, report = reload(folder, certificate.prompts, model.device)
    found = report.weights
    changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    again = "the file is not what was merged: delete it and export again"
    certificate.check(
        "saved: weights",
        not changed,
        f"{len(changed)} of {len(expected)} differ ({', '.join(changed[:2])})"
        if changed
        else f"{len(found)} the same",
        "the same",
        again,
    )
    certificate.check("saved: loading", not report.loading, report.loading or "complete", "complete", again)
    check_tokens(certificate, report, tokenizer, model)
    if not all(check.ok for check in certificate.checks):
        return  # what it says is then no longer of interest, and the prompts may be others
    certificate.check_difference(
        "saved", compare(rounded, after, certificate.prompts, model, tokenizer), MAX_RELOAD_DRIFT, again
    )


def _check_files_unchanged(folder: Path) -> None:
    path = folder / CERTIFICATE
    if not path.is_file():
        return
    recorded, found = json.loads(path.read_text(encoding="utf-8"))["files"], files_sha256(folder)
    changed = sorted(name for name, sha256 in recorded.items() if found.get(name) != sha256)
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} changed since the certificate was issued; restore the model, "
            f"or delete {CERTIFICATE} to certify what is there now"
        )


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path
        raise UserError(f"{name}: has no chat template, so that it cannot chat; fine-tune it with recipes/finetune.py")
    check_end_of_turn(tokenizer)


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder}: has no tokenizer (tokenizer_config.json); put the one of the training beside it")
    tokenizer = load_tokenizer(str(folder))
    _check_tokenizer(tokenizer)
    return tokenizer


def _device(model: "PreTrainedModel") -> torch.device:
    """The accelerator if it has room for the model in float32 and its logits, else the CPU."""
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 12 * model.num_parameters():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
