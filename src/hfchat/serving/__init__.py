"""The serving stage: a chat model behind OpenAI's API, with a chat page for people.

`settings` says what can be chosen, and `server` starts it. A request passes `http`, `openai` turns it into answers,
`engines` generate them, `versions` decides which engine does, and `collecting` keeps what people say about them.
"""
