"""Messages and files of them, for the tests of conversations."""

import json

CALL = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content="Why is the sky blue?"):
    return turn("user", content)


def assistant(content="Air scatters blue light the most.", **more):
    return turn("assistant", content, **more)


def write_jsonl(path, *rows) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)
