"""A scripted `vllm serve`: it reads its arguments, streams and dies as vLLM 0.32 does, and has no model.

The folder that `VLLM_SCRIPT` names says what it answers and gets what happened:

- `chunks.json`: the answer, a list of texts and their token ids;
- `die`: while it exists, a stream breaks off after two chunks, because the process kills itself and takes it away;
- `dead`: while it exists, its engine has died: a request fails, and after that the process ends, and takes it away;
- `arguments.json`, `path.json`: what it was started with, and its `PYTHONPATH`;
- `engine.pid`, `requests.jsonl`: its second process, and what it was asked.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCRIPT = Path(os.environ["VLLM_SCRIPT"])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(200 if self.path == "/health" else 404)

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self._answer(401, {"error": "Unauthorized"})
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (SCRIPT / "requests.jsonl").open("a") as log:
            log.write(json.dumps(request) + "\n")
        if request["top_p"] == 0:
            message = "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)"
            error = {"message": message, "type": "BadRequestError", "param": "top_p", "code": 400}
            return self._answer(400, {"error": error})
        if (SCRIPT / "dead").exists():
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            self._answer(500, {"error": {"message": message, "type": "InternalServerError", "code": 500}})
            time.sleep(0.3)
            (SCRIPT / "dead").unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        return self._stream(request)

    def _answer(self, status, body=None):
        content = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, request):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        chunks = json.loads((SCRIPT / "chunks.json").read_text())
        left, reason = request["max_tokens"], None
        for number, (text, ids) in enumerate(chunks):
            left -= len(ids)
            reason = "length" if left <= 0 else "stop" if number == len(chunks) - 1 else None
            choice = {"index": 0, "text": text, "logprobs": _logprobs(request, ids), "finish_reason": reason}
            self._event({"choices": [choice | {"stop_reason": None, "token_ids": ids}], "model": request["model"]})
            if number == 1 and (SCRIPT / "die").exists():
                (SCRIPT / "die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if reason:
                break
        self._send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, body):
        event = {"id": "cmpl-1", "object": "text_completion", "created": int(time.time()), **body}
        self._send(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _send(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format, *arguments): ...


def _logprobs(request, ids):
    """Each token with the log probability -1, and beside it the next ids, less and less likely."""
    if request["logprobs"] is None:
        return None
    names = [f"token_id:{id}" for id in ids]
    top = [{f"token_id:{id + other}": -1.0 - other for other in range(max(request["logprobs"], 1))} for id in ids]
    return {"text_offset": [0] * len(ids), "token_logprobs": [-1.0] * len(ids), "tokens": names, "top_logprobs": top}


def main():
    parser = argparse.ArgumentParser("vllm serve", usage="vllm serve [model_tag] [options]")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model_tag")
    for option in (
        "host",
        "served-model-name",
        "dtype",
        "generation-config",
        "max-lora-rank",
        "structured-outputs-config.backend",
    ):
        parser.add_argument(f"--{option}")
    for option in ("port", "max-num-seqs", "max-model-len", "max-loras", "tensor-parallel-size"):
        parser.add_argument(f"--{option}", type=int)
    for option in ("disable-uvicorn-access-log", "enable-lora"):
        parser.add_argument(f"--{option}", action="store_true")
    parser.add_argument("--lora-modules", nargs="*")
    arguments, unknown = parser.parse_known_args()
    if unknown:
        print(f"vllm: error: unrecognized arguments: {' '.join(unknown)}", file=sys.stderr)
        sys.exit(2)
    (SCRIPT / "arguments.json").write_text(json.dumps(vars(arguments)))
    (SCRIPT / "path.json").write_text(json.dumps(os.environ.get("PYTHONPATH")))

    # vLLM's engine is a process of its own, which outlives the server that is killed.
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (SCRIPT / "engine.pid").write_text(str(engine.pid))
    with ThreadingHTTPServer((arguments.host, arguments.port), Handler) as server:
        print(f"(APIServer pid={os.getpid()}) INFO 11-30 20:13:37 [entry.py:140] Starting vLLM server", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
