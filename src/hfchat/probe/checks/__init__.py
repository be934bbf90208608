"""The checks: a module for each group. A check returns what it saw, or raises that it failed or does not apply."""

from hfchat.probe.target import Target, text_of


async def afterwards_it_answers(target: Target) -> str:
    """A request that was refused takes nothing away that others need."""
    return repr(text_of(await target.answer())[:40])
