"""The `hfchat` command. Each subcommand imports what it needs when it runs, so that `--help` answers at once.

A subcommand has two functions here, or a module `command` in its package: one adds its options, the other runs it.
"""

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

import hfchat.doctor.command
import hfchat.feedback.command
import hfchat.probe.command
import hfchat.registry.command
import hfchat.terminal.command
from hfchat import __version__
from hfchat.errors import UserError, run

if TYPE_CHECKING:
    from hfchat.config import CommandParser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hfchat", description="From raw text to a chat model that you serve, watch and improve.")
    parser.add_argument("--version", action="version", version=f"hfchat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    # Making and serving models.
    run_stages = commands.add_parser("run", help="run the stages of a folder of YAMLs, then chat with the result")
    _add_run_arguments(run_stages)
    demo = commands.add_parser("demo", help="run every stage on this machine, then chat with the result")
    _add_demo_arguments(demo)
    serve = commands.add_parser(
        "serve", help="serve a model as an OpenAI-compatible chat endpoint with a chat page", add_help=False
    )
    serve.set_defaults(handler=_serve, takes_other_arguments=True)
    chat = commands.add_parser("chat", help="chat with a model or a server in the terminal", allow_abbrev=False)
    hfchat.terminal.command.add_arguments(chat)
    chat.set_defaults(handler=_chat, takes_other_arguments=True)
    api_key = commands.add_parser("api-key", help="make an API key for `hfchat serve`, which keeps only its hash")
    api_key.add_argument("name", metavar="NAME", help="who will use it, as the log will say: letters, digits, `._-`")
    api_key.set_defaults(handler=_api_key)
    # Versions of a model, and better ones from feedback.
    models = commands.add_parser("models", help="versions of a model: add, promote, try on a share, roll back")
    hfchat.registry.command.add_arguments(models)
    improve = commands.add_parser("improve", help="learn from feedback, and promote the result if it is better")
    _add_improve_arguments(improve)
    certify = commands.add_parser(
        "certify", help="merge an adapter, or take a model, and prove that it is what was trained"
    )
    _add_certify_arguments(certify)
    resources = commands.add_parser("resources", help="fetch data that metrics use if it is there: WordNet")
    _add_resources_arguments(resources)
    feedback = commands.add_parser("feedback", help="export, delete, redact or count the feedback on answers")
    hfchat.feedback.command.add_arguments(feedback)
    feedback.set_defaults(handler=hfchat.feedback.command.handler)
    # What examines runs and servers.
    doctor = commands.add_parser("doctor", help="say before a run whether it will go well here", allow_abbrev=False)
    hfchat.doctor.command.add_arguments(doctor)
    doctor.set_defaults(handler=_doctor, takes_other_arguments=True)
    probe = commands.add_parser("probe", help="test an OpenAI-compatible server: how it conforms, and what it bears")
    hfchat.probe.command.add_arguments(probe)
    probe.set_defaults(handler=hfchat.probe.command.handler)
    return parser


def _add_run_arguments(run_stages: argparse.ArgumentParser) -> None:
    run_stages.add_argument("folder", metavar="FOLDER", help="folder of YAMLs, e.g. recipes/configs/own-small")
    run_stages.add_argument("--output-dir", help="in place of the folder of all outputs that the YAMLs name")
    run_stages.add_argument("--toy", action="store_true", help="every stage at toy size, offline: proves the path")
    run_stages.add_argument("--publish", action="store_true", help="run publish.yaml too")
    run_stages.add_argument(
        "--accelerate-config", metavar="FILE", help="how to launch what trains (by default: for what the machine has)"
    )
    run_stages.add_argument("--price-per-hour", type=float, metavar="DOLLARS", help="of the machine, or of one GPU")
    _add_chat_arguments(run_stages)
    run_stages.set_defaults(handler=_run)


def _add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-serve", action="store_true", help="end after the report")
    parser.add_argument("--port", type=int, default=8000, help="port of the chat (%(default)s)")


def _run(args: argparse.Namespace) -> None:
    from hfchat.run import RunOptions
    from hfchat.run import run as run_stages

    names = ("folder", "output_dir", "toy", "port", "price_per_hour", "publish", "accelerate_config")
    run_stages(RunOptions(**{name: getattr(args, name) for name in names}, serve=not args.no_serve))


def _add_demo_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--output-dir", default="outputs/demo", help="where the stages' outputs go (%(default)s)")
    demo.add_argument("--quick", action="store_true", help="at toy size: proves the path, not the model")
    _add_chat_arguments(demo)
    demo.set_defaults(handler=_demo)


def _demo(args: argparse.Namespace) -> None:
    from hfchat.run import RunOptions
    from hfchat.run import run as run_stages

    options = RunOptions(
        "recipes/configs/demo",
        args.output_dir,
        toy=args.quick,
        serve=not args.no_serve,
        port=args.port,
        served_model_name="hfchat-assistant",
    )
    run_stages(options)


def serve_parser() -> "CommandParser":
    """The parser of `hfchat serve`, which fills `ServerSettings`."""
    from hfchat.config import CommandParser
    from hfchat.serving.settings import ServerSettings

    return CommandParser(ServerSettings, program="hfchat serve", positional="model")


def _serve(args: argparse.Namespace) -> None:
    from hfchat.serving.server import serve

    serve(*serve_parser().fill(args.other_arguments))


def _chat(args: argparse.Namespace) -> None:
    hfchat.terminal.command.handler(args, args.other_arguments)


def _api_key(args: argparse.Namespace) -> None:
    from hfchat.serving.http.auth import new_key

    key, entry = new_key(args.name)
    print(f"key, for {args.name}, shown only now:  {key}")
    print(f"entry, for HFCHAT_API_KEYS or a file for --api-keys:  {entry}")


def _add_improve_arguments(improve: argparse.ArgumentParser) -> None:
    improve.add_argument("registry", metavar="REGISTRY", help="folder of the model's versions, e.g. models/assistant")
    improve.add_argument("--feedback", required=True, metavar="DATABASE", help="that of `hfchat serve --feedback`")
    improve.add_argument("--output-dir", default="outputs/improve", help="folder of all outputs (%(default)s)")
    improve.add_argument(
        "--configs", default="recipes/configs/improve", help="folder with a YAML for each recipe (%(default)s)"
    )
    improve.add_argument(
        "--no-promote", action="store_true", help="make a version of what passes the gates, and do not promote it"
    )
    improve.set_defaults(handler=_improve)


def _improve(args: argparse.Namespace) -> None:
    from hfchat.improve import Improvement, improve

    improve(
        Improvement(
            registry=args.registry,
            feedback=args.feedback,
            output_dir=args.output_dir,
            configs=args.configs,
            promote=not args.no_promote,
        )
    )


def _add_certify_arguments(certify: argparse.ArgumentParser) -> None:
    certify.add_argument("folder", metavar="FOLDER", help="an adapter or a model, e.g. outputs/demo/assistant/adapter")
    certify.add_argument("--base", help="folder or Hub id of the adapter's base (default: what the adapter says)")
    certify.add_argument("--revision", help="revision of the base (default: what the adapter says)")
    certify.add_argument(
        "--prompts", metavar="FILE.jsonl", help="conversations to compare on (default: a few neutral ones)"
    )
    certify.add_argument("--output-dir", help="folder of an adapter's merged model (default: `merged` beside it)")
    certify.add_argument("--gguf", action="store_true", help="also export for llama.cpp, certified by its answers")
    certify.add_argument(
        "--quantize",
        nargs="+",
        action="extend",
        default=[],
        metavar="TYPE",
        help="export for llama.cpp in these types, such as q8_0 or q4_k_m, each with its price and a Modelfile for "
        "Ollama",
    )
    certify.add_argument(
        "--max-drift",
        type=float,
        metavar="NATS",
        help="most that a quantized file may be from the model, as mean KL divergence per token (default: by type)",
    )
    certify.set_defaults(handler=_certify)


def _certify(args: argparse.Namespace) -> None:
    from hfchat.export.certificate import handler

    handler(args)


def _add_resources_arguments(resources: argparse.ArgumentParser) -> None:
    resources.add_argument("--wordnet", metavar="FOLDER", help="take WordNet from this folder; do not download it")
    resources.add_argument("--list", action="store_true", help="only say what is there")
    resources.set_defaults(handler=_resources)


def _resources(args: argparse.Namespace) -> None:
    from hfchat.evaluation.resources import handler

    handler(args)


def _doctor(args: argparse.Namespace) -> None:
    hfchat.doctor.command.handler(args, args.other_arguments)


def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv`, by default that of the process."""

    def body() -> None:
        args, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        if rest and not hasattr(args, "takes_other_arguments"):
            raise UserError(f"unrecognized arguments: {' '.join(rest)} (see `hfchat --help`)")
        args.other_arguments = rest
        args.handler(args)

    run(body)


if __name__ == "__main__":
    main()
