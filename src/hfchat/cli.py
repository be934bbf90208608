"""The `hfchat` command. Each subcommand imports what it needs when it runs, so that `--help` answers at once."""

import argparse
import sys

from hfchat import __version__
from hfchat.errors import UserError, run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hfchat", description="From raw text to a chat model that you serve, watch and improve.")
    parser.add_argument("--version", action="version", version=f"hfchat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="run every stage on this machine, then chat with the result")
    demo.add_argument("--output-dir", default="outputs/demo", help="where the stages' outputs go (%(default)s)")
    demo.add_argument("--quick", action="store_true", help="a reduced setting that proves the path, not the model")
    demo.add_argument("--no-serve", action="store_true", help="end after the report")
    demo.add_argument("--port", type=int, default=8000, help="port of the chat (%(default)s)")
    demo.set_defaults(handler=_demo)

    serve = commands.add_parser("serve", help="serve a model as an OpenAI-compatible chat endpoint with a chat page")
    serve.add_argument("model", metavar="MODEL", help="a folder or a Hub id, e.g. outputs/demo/assistant/merged")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind; other machines cannot reach %(default)s")
    serve.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    serve.add_argument("--served-model-name", help="the model's name in the API (its folder's name)")
    serve.add_argument(
        "--max-concurrent-requests", type=int, default=8, help="answers generated at a time (%(default)s)"
    )
    serve.add_argument(
        "--max-waiting-requests", type=int, default=32, help="requests that may wait; more get 429 (%(default)s)"
    )
    serve.add_argument(
        "--allow-template-mismatch",
        action="store_true",
        help="serve although the chat template is not the trained one",
    )
    serve.set_defaults(handler=_serve)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from hfchat.demo import demo

    demo(output_dir=args.output_dir, quick=args.quick, serve=not args.no_serve, port=args.port)


def _serve(args: argparse.Namespace) -> None:
    from hfchat.serving.server import ServerSettings, serve

    serve(
        ServerSettings(
            model=args.model,
            host=args.host,
            port=args.port,
            served_model_name=args.served_model_name,
            max_concurrent_requests=args.max_concurrent_requests,
            max_waiting_requests=args.max_waiting_requests,
            allow_template_mismatch=args.allow_template_mismatch,
        )
    )


def main(argv: list[str] | None = None) -> None:
    def body() -> None:
        args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
        args.handler(args)

    run(body)


if __name__ == "__main__":
    main()
