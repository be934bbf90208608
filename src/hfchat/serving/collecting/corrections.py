"""Answers with calls as they should have been: held against the tools of their conversation, and written again."""

from collections.abc import Sequence

from hfchat.chat import Json
from hfchat.feedback.exchange import Call, Opinion, functions_of
from hfchat.messages import arguments_as_text
from hfchat.serving.openai.errors import ApiError
from hfchat.serving.openai.protocol import CalledFunction, CorrectedAnswer, CorrectedCall
from hfchat.structured.validity import fault_by_schema


def check_corrected_calls(calls: Sequence[Call], tools: Sequence[Json]) -> None:
    """Hold calls against what the model was offered. It blocks while a schema is read.

    Raises:
        ApiError: 400 if a function was not offered, or is not called as its schema wants it.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    for position, function in enumerate(functions_of(calls)):
        field = f"correction.tool_calls[{position}].function"
        if function["name"] not in schemas:
            offered = f"those are {', '.join(schemas)}" if schemas else "there were none"
            message = f"{field}.name: {function['name']} is no function that the conversation offers; {offered}."
            raise ApiError(400, message, param=f"{field}.name")
        # A call that no function takes would be learned as an answer.
        schema = schemas[function["name"]]
        if schema is not None and (fault := fault_by_schema(function["arguments"], schema)):
            message = f"{field}.arguments: they are not valid by the schema of {function['name']}: {fault}."
            raise ApiError(400, message, param=f"{field}.arguments")


def written_correction(opinion: Opinion) -> str | CorrectedAnswer | None:
    """What should have been said, as the API writes it."""
    if opinion.correction is None or not opinion.corrected_calls:
        return opinion.correction
    calls = []
    for function in functions_of(opinion.corrected_calls):
        arguments = arguments_as_text(function["arguments"])
        calls.append(CorrectedCall(function=CalledFunction(name=function["name"], arguments=arguments)))
    return CorrectedAnswer(content=opinion.correction, tool_calls=calls)
