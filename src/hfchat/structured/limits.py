"""How much work one grammar may be for llguidance, and what it says where that is not enough."""

import re

from llguidance import LLParserLimits

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")  # in the grammar

# Who makes a mask makes those of others next: what takes longer than these let it ends its own answer.
# A step of the largest schemas of jsonschemabench takes more than 100,000 of the lexer's, and 20 ms.
LIMITS = LLParserLimits(
    step_lexer_fuel=1_000_000, step_max_items=20_000, max_lexer_states=100_000, verbose_errors=False
)


def first_line(message: str) -> str:
    """llguidance's message without the grammar that it shows below."""
    return _PLACE.sub("", message.strip().split("\n")[0])[:300]
