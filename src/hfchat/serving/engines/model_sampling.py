"""What a model's generation config says about sampling, and which of its fields this engine cannot obey."""

from dataclasses import dataclass

from transformers import GenerationConfig

from hfchat.errors import UserError

_TOP_K = 50  # what `generate` takes where a configuration that samples does not say
# What `generate` would obey and this engine cannot, with the values that change nothing beside None; the second group
# matters only where the model is sampled from.
_UNSUPPORTED = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "no_repeat_ngram_size": 0,
    "sequence_bias": {},
    "bad_words_ids": [],
    "force_words_ids": [],
    "constraints": [],
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "watermarking_config": None,
    "stop_strings": [],
    "dola_layers": None,
}
_UNSUPPORTED_SAMPLING = {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "top_h": None}


@dataclass(frozen=True)
class ModelSampling:
    """How a model's generation config has it sampled, where a request does not say otherwise.

    Attributes:
        temperature: 0 where it does not sample.
        top_p: In [0, 1].
        top_k: How many of the likeliest tokens may be drawn; 0 is all.
        min_p: Share of the likeliest token's probability that a token must have to be drawn.
        repetition_penalty: Divides the positive logits of the tokens that the prompt and the answer have, and
            multiplies their negative ones (https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: GenerationConfig, name: str) -> "ModelSampling":
        """What `generate` would do by a generation config.

        Args:
            config: The model's.
            name: The model's name, for the message.

        Raises:
            UserError: If it asks for something that this engine cannot do. Names the field.
        """
        # To leave a field out in silence would give other answers than the model's own.
        refused = _UNSUPPORTED | (_UNSUPPORTED_SAMPLING if config.do_sample else {})
        for field_, harmless in refused.items():
            value = getattr(config, field_, None)
            if value is not None and value != harmless:
                raise UserError(
                    f"{name}: its generation_config.json has {field_}: {value}, which this server cannot do; "
                    "take that line out, or serve the model with another engine"
                )
        penalty = _number(config, "repetition_penalty", 1.0, name)
        if penalty <= 0:
            raise UserError(
                f"{name}: its generation_config.json has repetition_penalty: {penalty}; it must be above 0"
            )
        if not config.do_sample:
            return cls(repetition_penalty=penalty)
        return cls(
            temperature=_number(config, "temperature", 1.0, name),
            top_p=_number(config, "top_p", 1.0, name),
            top_k=int(_number(config, "top_k", _TOP_K, name)),
            min_p=_number(config, "min_p", 0.0, name),
            repetition_penalty=penalty,
        )


def _number(config: GenerationConfig, field_: str, default: float, name: str) -> float:
    value = getattr(config, field_, None)
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise UserError(
            f"{name}: its generation_config.json has {field_}: {value}, which is not a number of its range"
        )
    return value
