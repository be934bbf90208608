"""A server that speaks as llama.cpp's does and does what a file says: `python scripted_llamacpp.py PORT FOLDER`.

The folder's `script.json` is read again for each request, and whatever happens is a line in its `seen.jsonl`. The
script has `pieces` of text, the `ids` of each (a token each without them), the `stop_type` that the answer ends with,
and what happens `after` so many pieces: `then` is "hold" (as long as it is so), "die", "break", "rubbish" or "error".
`status` answers otherwise than with a stream, `start` is "die", "hang" or "deaf" (it listens, and nobody answers).
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(sys.argv[2])


def script():
    while True:
        try:
            return json.loads((FOLDER / "script.json").read_text(encoding="utf-8"))
        except ValueError:  # it is being written
            time.sleep(0.002)


def saw(**event):
    with (FOLDER / "seen.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"pid": os.getpid(), **event}) + "\n")


def answer(connection):
    with connection, connection.makefile("rb") as read:
        path = read.readline().split()[1].decode()
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(read.readline, b"\r\n"))
        body = read.read(int(headers.get("content-length", 0)))
        if path == "/health":
            return say(connection, 503 if script().get("start") == "hang" else 200, b"{}")
        authorized = headers.get("authorization") == f"bearer {os.environ['HFCHAT_ENGINE_KEY']}".lower()
        asked = json.loads(body)
        # The answer of one token with which an engine shows that it can.
        is_a_try = asked["n_predict"] == 1
        saw(path=path, body=asked, authorized=authorized, is_a_try=is_a_try)
        if is_a_try:
            return stream(connection, {"pieces": ["a"], "stop_type": "limit"})
        now = script()
        if now.get("status"):
            return say(connection, now["status"], b'{"error": {"message": "no room"}}')
        return stream(connection, now)


def say(connection, status, body):
    connection.sendall(
        b"HTTP/1.1 %d x\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body)
    )


def stream(connection, now):
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    pieces = now["pieces"]
    ids = now.get("ids") or [[5]] * len(pieces)
    try:
        for index, text in enumerate(pieces):
            if index == now.get("after") and not happens(connection, now["then"]):
                return
            count = sum(map(len, ids[: index + 1]))
            event = {"content": text, "tokens": ids[index][-1:], "tokens_predicted": count}
            connection.sendall(b"data: " + json.dumps(event).encode() + b"\n\n")
            time.sleep(0.001)
        count = sum(map(len, ids))
        end = {"content": "", "tokens": [], "stop_type": now["stop_type"], "tokens_predicted": count}
        connection.sendall(b"data: " + json.dumps(end).encode() + b"\n\n")
    except OSError:
        saw(closed=True)


def happens(connection, what):
    """Whether the answer goes on."""
    if what == "hold":
        while script().get("then") == "hold":
            if select.select([connection], [], [], 0.01)[0] and not connection.recv(1):
                saw(closed=True)
                return False
        return True
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "error":
        connection.sendall(b'data: {"error": {"message": "the cache is full"}}\n\n')
    if what == "rubbish":
        connection.sendall(b"data: {rubbish\n\n")
    return False  # "break"


if script().get("start") == "die":
    print("error: no such model", flush=True)
    sys.exit(3)
saw(started=True)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        accepted = listener.accept()[0]
        if script().get("start") != "deaf":
            threading.Thread(target=answer, args=(accepted,), daemon=True).start()
        else:
            deaf = [*globals().get("deaf", []), accepted]  # it stays open
