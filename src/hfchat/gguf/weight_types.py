"""The types of weights that a GGUF file can have, by llama.cpp's names in lower case."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from hfchat.errors import UserError


@dataclass(frozen=True)
class WeightType:
    """A type of weights.

    Attributes:
        bits: Per weight, with the scales of its blocks; some tensors of a file are kept in more.
        converted: Whether the converter writes it. What it does not write, llama.cpp's quantizer makes of its files.
    """

    bits: float
    converted: bool = False

    @property
    def max_drift(self) -> float:
        """The mean KL divergence, in nats per token, beyond which a file in this type is not taken for the model."""
        return next(limit for bits, limit in _MAX_DRIFT if self.bits >= bits)


# From so many bits on, so many nats per token. In brackets, what SmolLM2-135M-Instruct pays (docs/guides/serving.md);
# a larger model pays less for the same bits.
_MAX_DRIFT = (
    (16, 0.005),  # (f32 2e-6, bf16 2e-4)
    (8, 0.03),  # (0.007)
    (6.5, 0.1),  # (0.02)
    (0, 0.3),  # (0.005 to 0.15; q4_0 with 0.56 is refused: of 6 refusals, it has lost 5)
)

WeightName = Literal[
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_1",
    "q5_0",
    "q5_k_m",
    "q5_k_s",
    "q4_1",
    "q4_0",
    "q4_k_m",
    "q4_k_s",
    "iq4_nl",
    "iq4_xs",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "q2_k",
]  # by llama.cpp's names in lower case

# PyTorch's types by llama.cpp's names.
TORCH_TYPES: Mapping[str, str] = MappingProxyType({"float32": "f32", "float16": "f16", "bfloat16": "bf16"})

WEIGHT_TYPES: Mapping[str, WeightType] = MappingProxyType(
    {
        "f32": WeightType(32, converted=True),
        "f16": WeightType(16, converted=True),
        "bf16": WeightType(16, converted=True),
        "q8_0": WeightType(8.5, converted=True),
        "q6_k": WeightType(6.6),
        "q5_1": WeightType(6),
        "q5_0": WeightType(5.5),
        "q5_k_m": WeightType(5.7),
        "q5_k_s": WeightType(5.5),
        "q4_1": WeightType(5),
        "q4_0": WeightType(4.5),
        "q4_k_m": WeightType(4.9),
        "q4_k_s": WeightType(4.6),
        "iq4_nl": WeightType(4.5),
        "iq4_xs": WeightType(4.3),
        "q3_k_l": WeightType(4.3),
        "q3_k_m": WeightType(3.9),
        "q3_k_s": WeightType(3.5),
        "q2_k": WeightType(3.2),
    }
)


def weight_type(name: str) -> WeightType:
    """The type of that name.

    Raises:
        UserError: If it is not the name of a type.
    """
    if name not in WEIGHT_TYPES:
        raise UserError(f"{name}: is not a type of weights of GGUF files; choose one of {', '.join(WEIGHT_TYPES)}")
    return WEIGHT_TYPES[name]
