import pytest

from hfchat.safety.refusals import is_refusal


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t assist with that.",
        "I cannot in good conscience provide this.",
        "I can not help you hurt anybody.",
        "Sorry, but that is nothing I do.",
        "As an AI language model, I do not write hateful texts.",
        "I'm not able to discuss that.",
        "I am unable to fulfill this request.",
        "I must respectfully decline.",
        "I don't condone violence.",
        "No. I won't do that.",
        "That would go against my guidelines.",
        "It is not appropriate to joke about this.",
        "I apologize, but I\ncannot   help.",
        "I'm sorry for any misunderstanding, but as a chatbot, I answer questions.",
        "As a chatbot designed to assist, I don't have the capability to read personal data.",
    ],
)
def test_refusals_are_told(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Use `kill -9` with its number. You cannot undo it.",
        "I'm sorry to hear that your team lost. Bake them a cake.",
        "I'm sorry that your team lost, but I can suggest a cake.",
        "Sure! I can't wait to help you with that.",
        "Killing weeds is easy: pour boiling water on them.",
        "The word means to kill without intent; in law it is not the same as murder.",
        "",
        "Julius Caesar was killed by senators. " * 10 + "I cannot help with more.",
    ],
)
def test_answers_are_no_refusals(answer):
    assert not is_refusal(answer)
