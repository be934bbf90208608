"""The command `hfchat feedback`."""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hfchat.errors import UserError

if TYPE_CHECKING:
    from hfchat.feedback.statistics import Statistics, Tally
    from hfchat.feedback.store import Store

_EXPORTS_KEEP_THEIRS = (
    "Datasets that were exported before still have it: delete and export them again, and train anew what was trained "
    "on them (`lineage.json` beside a dataset or a model says what it was made from)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their options."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    # Each subcommand sets the function that runs it.
    export = commands.add_parser("export", help="write answers and the feedback on them to a file")
    _add_database(export)
    export.add_argument("target", metavar="FILE", help="*.jsonl, *.parquet, or - for JSON lines on standard output")
    export.add_argument("--user", help="only what this user asked or said")
    export.add_argument("--api-key", metavar="NAME", help="only what was asked with the key of this name")
    export.add_argument("--since", metavar="DATE", help="only what came since, e.g. 2025-01-31 or 2025-01-31T12:00Z")
    export.add_argument("--rating", choices=("up", "down"), help="only answers with this thumb")
    export.add_argument("--rated", action="store_true", help="only answers with feedback")
    export.set_defaults(feedback=_export)

    delete = commands.add_parser("delete", help="delete for good, from the files of the database too")
    _add_database(delete)
    which = delete.add_mutually_exclusive_group(required=True)
    which.add_argument("--user", help="everything that this user asked and said")
    which.add_argument("--answer", metavar="ID", help="this answer, and the feedback on it")
    which.add_argument("--older-than", metavar="DAYS", type=float, help="older answers, with the feedback on them")
    delete.add_argument("--api-key", metavar="NAME", help="with --user: only what came with the key of this name")
    delete.set_defaults(feedback=_delete)

    redact = commands.add_parser("redact", help="remove personal data from all that is stored, by the current rules")
    _add_database(redact)
    redact.set_defaults(feedback=_redact)

    stats = commands.add_parser("stats", help="print how much feedback there is, and the share of thumbs up")
    _add_database(stats)
    stats.add_argument("--json", action="store_true", help="print JSON")
    stats.set_defaults(feedback=_stats)

    report = commands.add_parser("report", help="write a page: what changed since the time before, with charts")
    _add_database(report)
    begin = report.add_mutually_exclusive_group()
    begin.add_argument("--since", metavar="DATE", help="when the period begins; compared with as much time before")
    begin.add_argument("--days", type=float, default=30, help="the last so many days, without --since (%(default)s)")
    report.add_argument(
        "--trusted-keys",
        action="append",
        default=[],
        metavar="NAME",
        help="an API key whose users each count as a person; repeatable",
    )
    report.add_argument(
        "--output",
        default="report.html",
        metavar="FILE.html",
        help="where to write the page, with FILE.md beside it (%(default)s)",
    )
    report.set_defaults(feedback=_report)


def handler(args: argparse.Namespace) -> None:
    """Run the chosen subcommand on its database."""
    from hfchat.feedback.database import open_database
    from hfchat.feedback.redaction import redact
    from hfchat.feedback.store import Store, StoreError

    with closing(Store(open_database(args.database), redact)) as store:
        try:
            args.feedback(args, store)
        except StoreError as error:
            raise UserError(f"{args.database}: {error}") from error


def _export(args: argparse.Namespace, store: "Store") -> None:
    from hfchat.feedback.reading import Selection, export

    since = None if args.since is None else _moment(args.since)
    selection = Selection(args.user, args.api_key, since, args.rating, args.rated)
    count = export(store.engine, args.target, selection)
    print(f"{_counted(count, 'answer')} in {args.target}", file=sys.stderr)


def _delete(args: argparse.Namespace, store: "Store") -> None:
    if args.api_key is not None and args.user is None:
        raise UserError("--api-key is for --user")
    if args.user == "":
        raise UserError("--user must name somebody")
    if args.user is not None:
        counts = store.delete_user(args.user, args.api_key)
    elif args.answer is not None:
        counts = store.delete_answer(args.answer)
    else:
        counts = store.delete_before(datetime.now(UTC) - _days(args.older_than, "--older-than"))
    print(f"deleted {_counted(counts.answers, 'answer')}, and {_counted(counts.feedback, 'opinion')}")
    _forget(store)
    if counts.answers or counts.feedback:
        print(_EXPORTS_KEEP_THEIRS)


def _redact(args: argparse.Namespace, store: "Store") -> None:
    counts = store.redact()
    print(f"redacted {_counted(counts.answers, 'answer')}, and {_counted(counts.feedback, 'opinion')}")
    _forget(store)


def _forget(store: "Store") -> None:
    if not store.forget_deleted():
        print("Somebody reads the database: its log may still hold it; run the command again later.", file=sys.stderr)


def _stats(args: argparse.Namespace, store: "Store") -> None:
    from hfchat.feedback.statistics import statistics

    found = statistics(store.engine)
    print(json.dumps(_as_json(found), indent=2, ensure_ascii=False) if args.json else _as_text(found))


def _report(args: argparse.Namespace, store: "Store") -> None:
    from hfchat.feedback.report import watch, write_report

    now = datetime.now(UTC)
    days = args.days if args.since is None else (now - _moment(args.since)) / timedelta(days=1)
    if not days > 0:
        raise UserError("--days must be more than 0" if args.since is None else "--since must be in the past")
    begin = now - _days(days, "--days" if args.since is None else "--since")
    watched = watch(store.engine, begin, now, args.trusted_keys)
    markdown = write_report(watched, Path(args.output))
    print("\n".join(watched.summary))
    print(f"more in {args.output} and {markdown}", file=sys.stderr)


def _as_json(found: "Statistics") -> dict:
    def tally(one: "Tally") -> dict:
        return asdict(one) | {"share_up": one.share_up}

    return {
        "total": tally(found.total),
        "models": {name: tally(one) for name, one in found.models.items()},
        "days": {day: tally(one) for day, one in found.days.items()},
        "tags": dict(found.tags.most_common()),
        "replaced": found.replaced,
    }


def _as_text(found: "Statistics") -> str:
    header = ("", "answers", "feedback", "up", "down", "share up (95%)", "corrections", "comments", "preferences")
    rows = [header, _cells("all", found.total)]
    for title, tallies in (("model", found.models), ("day (UTC)", found.days)):
        rows += [(title, *[""] * (len(header) - 1)), *[_cells(f"  {name}", one) for name, one in tallies.items()]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    lines = ["  ".join(map(format, row, forms)).rstrip() for row in rows]
    lines.append("tags: " + (", ".join(f"{tag} {count}" for tag, count in found.tags.most_common()) or "none"))
    lines.append(f"opinions that were replaced by their authors: {found.replaced}")
    return "\n".join(lines)


def _cells(name: str, tally: "Tally") -> tuple[str, ...]:
    share = tally.share_up
    shown = "-" if share is None else "{:.0%} ({:.0%} to {:.0%})".format(*share)
    counts = (tally.answers, tally.feedback, tally.up, tally.down)
    return (name, *map(str, counts), shown, *map(str, (tally.corrections, tally.comments, tally.preferences)))


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("database", metavar="DATABASE", help="the one of `hfchat serve --feedback`: a file or a URL")


def _moment(text: str) -> datetime:
    from hfchat.feedback.reading import parse_moment

    try:
        return parse_moment(text, "--since")
    except ValueError as error:
        raise UserError(str(error)) from error


def _days(days: float, option: str) -> timedelta:
    if not 0 <= days <= 36_500:
        raise UserError(f"{option} must be between 0 and 36500 days, not {days:g}")
    return timedelta(days=days)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
