"""llama.cpp's own server, as it comes, for `benchmarks.serving`: FILE PORT SLOTS CONTEXT (tokens of a slot)."""

import signal
import sys

import xllamacpp


def main() -> None:
    file, *numbers = sys.argv[1:]
    port, slots, context = map(int, numbers)
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.model_alias = {"model"}
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
