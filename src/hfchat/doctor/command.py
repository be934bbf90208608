"""The command `hfchat doctor`."""

import argparse
import sys
import warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The doctor's own options; all others are the recipe's."""
    parser.add_argument("--config", help="the YAML of the run, of any recipe")
    parser.add_argument("--recipe", help="which recipe it is for, where its name does not say it")
    parser.add_argument("--no-calibration", action="store_true", help="only estimate; run no steps")
    parser.add_argument("--json", action="store_true", help="print JSON")


def handler(args: argparse.Namespace, recipe_arguments: list[str]) -> None:
    """Print what was found. Ends with status 0 if all is well, 1 if the run will not fit or a check fails.

    Args:
        args: The doctor's own options.
        recipe_arguments: The recipe's, as on its command line.
    """
    from hfchat.doctor.examination import examine

    warnings.simplefilter("ignore", FutureWarning)  # of what the libraries call in each other
    report = examine(recipe_arguments, config=args.config, recipe=args.recipe, calibration=not args.no_calibration)
    print(report.as_json() if args.json else report)
    sys.exit(0 if report.ok else 1)
