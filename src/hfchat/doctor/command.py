"""The command `hfchat doctor`."""

import argparse
import sys
import warnings
from typing import TYPE_CHECKING

from hfchat.errors import UserError

if TYPE_CHECKING:
    from hfchat.doctor.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The doctor's own options; all others are the recipe's."""
    parser.add_argument("--config", help="the YAML of the run, of any recipe")
    parser.add_argument("--recipe", help="which recipe it is for, where its name does not say it")
    parser.add_argument("--no-calibration", action="store_true", help="only estimate; run no steps")
    elsewhere = parser.add_argument_group("GPUs that are not here (computed from the settings, nothing is run)")
    elsewhere.add_argument("--gpu", metavar="NAME", help="kind of the GPUs, e.g. H100; --config may then be a folder")
    elsewhere.add_argument("--gpus", type=int, default=1, metavar="N", help="how many (%(default)s)")
    elsewhere.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE", help="of their peak that is reached (%(default)s)"
    )
    elsewhere.add_argument("--price-per-hour", type=float, metavar="DOLLARS", help="of one GPU")
    parser.add_argument("--json", action="store_true", help="print JSON")


def handler(args: argparse.Namespace, recipe_arguments: list[str]) -> None:
    """Print what was found. Ends with status 0 if all is well, 1 if the run will not fit or a check fails.

    Args:
        args: The doctor's own options.
        recipe_arguments: The recipe's, as on its command line.
    """
    warnings.simplefilter("ignore", FutureWarning)  # of what the libraries call in each other
    report = _elsewhere(args, recipe_arguments) if args.gpu else _here(args, recipe_arguments)
    print(report.as_json() if args.json else report)
    sys.exit(0 if report.ok else 1)


def _here(args: argparse.Namespace, recipe_arguments: list[str]) -> "Report":
    from hfchat.doctor.examination import examine

    return examine(recipe_arguments, config=args.config, recipe=args.recipe, calibration=not args.no_calibration)


def _elsewhere(args: argparse.Namespace, recipe_arguments: list[str]) -> "Report":
    from hfchat.doctor.elsewhere import Gpus, examine_elsewhere

    if recipe_arguments or args.config is None:
        said = f"{recipe_arguments[0]}: cannot be given" if recipe_arguments else "--config: must be given"
        raise UserError(f"{said} with --gpu, which computes what a YAML, or a folder of them, says")
    return examine_elsewhere(args.config, Gpus.parse(args.gpu, args.gpus, args.mfu, args.price_per_hour))
