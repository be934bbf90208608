"""The `hfchat` command. Each subcommand imports what it needs when it runs, so that `--help` answers at once."""

import argparse
import sys

from hfchat import __version__
from hfchat.doctor.command import add_arguments as add_doctor_arguments
from hfchat.errors import UserError, run
from hfchat.feedback.command import add_arguments as add_feedback_arguments
from hfchat.probe.command import add_arguments as add_probe_arguments
from hfchat.registry.command import add_arguments as add_models_arguments


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
    serve.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="a folder or a Hub id, e.g. outputs/demo/assistant/merged; or servers with an OpenAI-compatible API that "
        "have it, e.g. http://host:8000/v1",
    )
    serve.add_argument("--upstream-model", metavar="NAME", help="the model's name at these URLs (the only one there)")
    serve.add_argument("--upstream-api-key-env", metavar="VARIABLE", help="where the environment has their API key")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind; other machines cannot reach %(default)s")
    serve.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    serve.add_argument("--served-model-name", help="the model's name in the API (its folder's name)")
    serve.add_argument(
        "--max-concurrent-requests", type=int, default=8, help="answers generated at a time (%(default)s)"
    )
    serve.add_argument(
        "--max-waiting-requests",
        type=int,
        default=32,
        help="answers of each API key that may wait; more get 429 (%(default)s)",
    )
    serve.add_argument(
        "--max-wait-seconds", type=float, default=60, help="how long; then a request gets 503 (%(default)s)"
    )
    serve.add_argument(
        "--max-generation-seconds", type=float, default=600, help="after which an answer is cut (%(default)s)"
    )
    serve.add_argument(
        "--default-max-tokens", type=int, default=1024, help="of an answer, if its request says none (%(default)s)"
    )
    serve.add_argument(
        "--drain-seconds", type=float, default=30, help="for running answers after Ctrl-C or SIGTERM (%(default)s)"
    )
    serve.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter of the model that answers beside it, under this name; repeatable",
    )
    serve.add_argument("--guards", metavar="FILE.yaml", help="guards of prompts and answers, or `default` (none)")
    serve.add_argument(
        "--api-keys",
        metavar="FILE",
        help="answer only who shows one of these keys, lines of `hfchat api-key`; also read from HFCHAT_API_KEYS",
    )
    serve.add_argument(
        "--requests-per-minute",
        type=int,
        metavar="N",
        help="limit of each API key; a request for several answers counts as many times (none)",
    )
    serve.add_argument(
        "--tokens-per-minute",
        type=int,
        metavar="N",
        help="limit of the tokens of each API key, of prompts and answers together (none)",
    )
    serve.add_argument("--allow-anyone", action="store_true", help="serve other machines without API keys")
    serve.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may use it; repeatable"
    )
    serve.add_argument(
        "--allow-frame", action="append", default=[], metavar="URL", help="a site that may frame the page; repeatable"
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server, such as chat.example.org; repeatable. Without API keys, requests that were "
        "addressed to a name that is not its own are refused",
    )
    serve.add_argument(
        "--metrics-key",
        action="append",
        default=[],
        metavar="NAME",
        help="the API key of this name may read /metrics; repeatable (all may)",
    )
    serve.add_argument("--log-content", action="store_true", help="log what is asked and answered, not only how much")
    serve.add_argument(
        "--feedback", metavar="DATABASE", help="store feedback with its conversations: an SQLite file or a URL (no)"
    )
    serve.add_argument(
        "--keep-conversations", action="store_true", help="also store the chats of which nobody says anything"
    )
    serve.add_argument(
        "--feedback-redact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take personal data, such as addresses, out of what is stored (yes)",
    )
    serve.add_argument(
        "--feedback-retention-days", type=float, metavar="DAYS", help="delete what is stored after that (never)"
    )
    serve.add_argument(
        "--feedback-max-gib",
        type=float,
        default=10,
        metavar="GIB",
        help="size to which the SQLite file may grow; then nothing more is stored (%(default)s)",
    )
    serve.add_argument(
        "--trusted-keys",
        action="append",
        default=[],
        metavar="NAME",
        help="an API key of a front end that knows its users: each `user` that it names may say something of an "
        "answer, while of other keys one opinion of each answer holds; repeatable",
    )
    serve.add_argument("--graphql", action="store_true", help="also answer GraphQL, at /graphql")
    serve.add_argument(
        "--weights",
        default="auto",
        metavar="TYPE",
        help="float32, bfloat16 or, for CPUs, int8: faster, but not quite the model that was evaluated (%(default)s)",
    )
    serve.add_argument(
        "--allow-template-mismatch",
        action="store_true",
        help="serve although the chat template is not the trained one",
    )
    serve.set_defaults(handler=_serve)

    api_key = commands.add_parser("api-key", help="make an API key for `hfchat serve`, which keeps only its hash")
    api_key.add_argument("name", metavar="NAME", help="who will use it, as the log will say: letters, digits, `._-`")
    api_key.set_defaults(handler=_api_key)

    models = commands.add_parser("models", help="versions of a model: add, promote, try on a share, roll back")
    add_models_arguments(models)

    improve = commands.add_parser("improve", help="learn from feedback, and promote the result if it is better")
    improve.add_argument("registry", metavar="REGISTRY", help="folder of the model's versions, e.g. models/assistant")
    improve.add_argument("--feedback", required=True, metavar="DATABASE", help="that of `hfchat serve --feedback`")
    improve.add_argument("--output-dir", default="outputs/improve", help="where it all goes (%(default)s)")
    improve.add_argument(
        "--configs", default="recipes/configs/improve", help="folder with a YAML for each recipe (%(default)s)"
    )
    improve.add_argument("--no-promote", action="store_true", help="only make a version of what passes the gates")
    improve.set_defaults(handler=_improve)

    certify = commands.add_parser(
        "certify", help="merge an adapter, or take a model, and prove that it is what was trained"
    )
    certify.add_argument("folder", metavar="FOLDER", help="an adapter or a model, e.g. outputs/demo/assistant/adapter")
    certify.add_argument("--base", help="folder or Hub id of the adapter's base (where the adapter says)")
    certify.add_argument("--revision", help="revision of the base (the one the adapter says)")
    certify.add_argument("--prompts", metavar="FILE.jsonl", help="conversations to compare on (a few neutral ones)")
    certify.add_argument("--output-dir", help="where an adapter's merged model goes (`merged` beside it)")
    certify.add_argument("--gguf", action="store_true", help="also export for llama.cpp, certified by its answers")
    certify.set_defaults(handler=_certify)

    resources = commands.add_parser("resources", help="fetch data that metrics use where it is there: WordNet")
    resources.add_argument("--wordnet", metavar="FOLDER", help="take it from here instead of downloading it")
    resources.add_argument("--list", action="store_true", help="only say what is there")
    resources.set_defaults(handler=_resources)

    feedback = commands.add_parser("feedback", help="export, delete, redact or count what people said of answers")
    add_feedback_arguments(feedback)
    feedback.set_defaults(handler=_feedback)

    doctor = commands.add_parser("doctor", help="say before a run whether it will go well here", allow_abbrev=False)
    add_doctor_arguments(doctor)
    doctor.set_defaults(handler=_doctor, takes_recipe_arguments=True)

    probe = commands.add_parser("probe", help="test an OpenAI-compatible server: how it conforms, and what it bears")
    add_probe_arguments(probe)
    probe.set_defaults(handler=_probe)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from hfchat.demo import demo

    demo(output_dir=args.output_dir, quick=args.quick, serve=not args.no_serve, port=args.port)


def _serve(args: argparse.Namespace) -> None:
    from hfchat.serving.server import ServerSettings, serve

    are_urls = {model.startswith(("http://", "https://")) for model in args.model}
    if are_urls == {True, False} or (are_urls == {False} and len(args.model) > 1):
        raise UserError("MODEL must be one model, or one or more URLs of servers that have it")
    serve(
        ServerSettings(
            model=args.model[0],
            graphql=args.graphql,
            upstreams=tuple(args.model) if are_urls == {True} else (),
            upstream_model=args.upstream_model,
            upstream_api_key_env=args.upstream_api_key_env,
            host=args.host,
            port=args.port,
            served_model_name=args.served_model_name,
            max_concurrent_requests=args.max_concurrent_requests,
            max_waiting_requests=args.max_waiting_requests,
            max_wait_seconds=args.max_wait_seconds,
            max_generation_seconds=args.max_generation_seconds,
            drain_seconds=args.drain_seconds,
            default_max_tokens=args.default_max_tokens,
            guards=args.guards,
            adapters=tuple(args.adapter),
            api_keys=args.api_keys,
            requests_per_minute=args.requests_per_minute,
            tokens_per_minute=args.tokens_per_minute,
            allow_anyone=args.allow_anyone,
            allow_origins=tuple(args.allow_origin),
            allow_frames=tuple(args.allow_frame),
            allow_hosts=tuple(args.allow_host),
            metrics_keys=tuple(args.metrics_key),
            log_content=args.log_content,
            feedback=args.feedback,
            keep_conversations=args.keep_conversations,
            feedback_redact=args.feedback_redact,
            feedback_retention_days=args.feedback_retention_days,
            feedback_max_gib=args.feedback_max_gib,
            trusted_keys=tuple(args.trusted_keys),
            weights=args.weights,
            allow_template_mismatch=args.allow_template_mismatch,
        )
    )


def _api_key(args: argparse.Namespace) -> None:
    from hfchat.serving.http.auth import new_key

    key, entry = new_key(args.name)
    print(f"key, for {args.name}, shown only now:  {key}")
    print(f"entry, for HFCHAT_API_KEYS or a file for --api-keys:  {entry}")


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


def _certify(args: argparse.Namespace) -> None:
    from hfchat.export.certificate import handler

    handler(args)


def _resources(args: argparse.Namespace) -> None:
    from hfchat.evaluation.resources import handler

    handler(args)


def _feedback(args: argparse.Namespace) -> None:
    from hfchat.feedback.command import handler

    handler(args)


def _doctor(args: argparse.Namespace) -> None:
    from hfchat.doctor.command import handler

    handler(args, args.recipe_arguments)


def _probe(args: argparse.Namespace) -> None:
    from hfchat.probe.command import handler

    handler(args)


def main(argv: list[str] | None = None) -> None:
    def body() -> None:
        args, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        if rest and not hasattr(args, "takes_recipe_arguments"):
            raise UserError(f"unrecognized arguments: {' '.join(rest)} (see `hfchat --help`)")
        args.recipe_arguments = rest
        args.handler(args)

    run(body)


if __name__ == "__main__":
    main()
