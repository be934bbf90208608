"""The serving stage: a chat model behind OpenAI's API, with a chat page for people.

`server` starts it, `app` wires the routes, `chat` answers a request, `engine` says what an engine is, and
`transformers_engine` is the one that runs in this process.
"""
