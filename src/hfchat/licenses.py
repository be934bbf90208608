"""Licences as sources state them, and as the Hub's cards name them."""

import re
from collections.abc import Iterable

# The Hub's names of licences, https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENSES = {
    "apache-2.0", "mit", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc",
    "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense",
    "zlib", "pddl", "lgpl-lr", "unknown",
}  # fmt: skip
# What SPDX and the classifiers of Python packages call them.
_OTHER_NAMES = {
    "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl", "gfdl-1.2": "gfdl", "gfdl-1.3": "gfdl",
    "mit license": "mit", "bsd license": "bsd", "isc license (iscl)": "isc",
    "mozilla public license 2.0 (mpl 2.0)": "mpl-2.0",
}  # fmt: skip


def license_entry(licenses: Iterable[str]) -> dict[str, str | list[str]]:
    """The Hub's entry for licences: its own names if it has one for each, or `other` with a name."""
    known = sorted({_hub_license(license) or "" for license in licenses})
    if "" not in known:
        return {"license": known[0] if len(known) == 1 else known or "unknown"}
    only = next(iter(licenses)) if len(list(licenses)) == 1 else "several"
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", only.lower()).strip("-") or "unnamed"}


def _hub_license(license: str) -> str | None:
    name = re.sub(r"-(only|or-later)$", "", license.strip().lower())
    name = _OTHER_NAMES.get(name, name)
    return name if name in _HUB_LICENSES else None
