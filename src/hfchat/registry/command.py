"""`hfchat models`: the versions of a model, and which of them answers."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfchat.registry.versions import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(
        name: str, handler: Callable[[argparse.Namespace], None], help: str, changes: bool = True
    ) -> argparse.ArgumentParser:
        subparser = actions.add_parser(name, help=help)
        subparser.add_argument("registry", metavar="REGISTRY", help="folder of the versions, e.g. models/assistant")
        if changes:
            subparser.add_argument("--reason", default="", help="why this is done, for the history")
        subparser.set_defaults(handler=handler)
        return subparser

    action("list", _list, "show the versions, and what was done with them", changes=False)
    add = action("add", _add, "copy a model into the registry as its next version")
    add.add_argument("model", metavar="MODEL", help="the model's folder, e.g. outputs/demo/assistant/merged")
    add.add_argument("--promote", action="store_true", help="let the version answer as well")
    promote = action("promote", _promote, "let a version answer; a server that follows the registry switches to it")
    promote.add_argument("version", metavar="VERSION", help="e.g. v2")
    try_out = action("try", _try_out, "let a version answer a share of the requests")
    try_out.add_argument("version", metavar="VERSION", help="e.g. v2")
    try_out.add_argument("--share", type=float, default=0.1, help="its share; 0 ends the trial (%(default)s)")
    action("rollback", _roll_back, "let the version answer again that answered before")


def _open(args: argparse.Namespace) -> "Registry":
    from hfchat.registry.versions import Registry

    return Registry(args.registry)


def _list(args: argparse.Namespace) -> None:
    registry = _open(args)
    deployment = registry.deployment()
    for entry in registry.history():
        share = f"{entry['share']:.0%}" if "share" in entry else ""
        print(f"{entry['time']}  {entry['action']:<9}{entry['version']:<6}{share:<5}{entry['reason']}".rstrip())
    for version in registry.versions():
        marks = ["answers"] if version == deployment.current else []
        if deployment.candidate is not None and deployment.candidate.version == version:
            marks.append(f"answers {deployment.candidate.share:.0%} of the requests")
        print(f"{registry.folder / version}  {''.join(marks)}".rstrip())
    if deployment.problem is not None:
        print(f"warning: {deployment.problem}")
    if not registry.versions():
        print(f"{registry.folder} has no versions yet; `hfchat models add {registry.folder} MODEL` makes one")


def _add(args: argparse.Namespace) -> None:
    registry = _open(args)
    version = registry.add(args.model, args.reason)
    print(f"{args.model} is {registry.folder / version}")
    if args.promote:
        registry.promote(version, args.reason)
        print(f"{version} answers")


def _promote(args: argparse.Namespace) -> None:
    _open(args).promote(args.version, args.reason)
    print(f"{args.version} answers")


def _try_out(args: argparse.Namespace) -> None:
    _open(args).try_out(args.version, args.share, args.reason)
    print(f"{args.version} answers {args.share:.0%} of the requests")


def _roll_back(args: argparse.Namespace) -> None:
    print(f"{_open(args).roll_back(args.reason)} answers again")
