from email.message import Message

import pytest

from hfchat.data.installed_docs import InstalledDocsReader, describe_installation, license_of, module_documentation

CODE = '''"""What the module is for."""

import os

class Reader(Base):
    """Reads.

    Example:
        An indented line.
    """

    async def read(self, path: str, *, limit: int = 3) -> list[str]:
        """Read a file."""
        return [path]

    def _quiet(self):
        return 1
'''


def test_docstrings_stand_under_their_signatures():
    assert module_documentation(CODE, "pkg.reader") == (
        "# pkg.reader\n\nWhat the module is for.\n\nclass Reader\n\nReads.\n\nExample:\n    An indented line.\n\n"
        "def read(self, path: str, *, limit: int=3) -> list[str]\n\nRead a file."
    )


@pytest.mark.parametrize("code", ["x = 1", "def f(:\n    '''broken'''", "x = '''not a docstring'''\ny = 2", "\x00'''"])
def test_code_without_documentation_gives_nothing(code):
    assert module_documentation(code, "m") == ""


def test_every_document_says_where_it_is_from():
    documents = []
    for document in InstalledDocsReader(max_bytes_per_package=2_000).run():
        documents.append(document)
        if len(documents) == 40:
            break
    assert all(document.metadata["source"].startswith("pkg:pypi/") for document in documents)
    assert all("@" in document.metadata["source"] for document in documents)
    assert all(document.metadata["license"] for document in documents)
    assert len({document.id for document in documents}) == 40


def test_tasks_share_the_packages_out():
    def sources(rank, world_size):
        reader = InstalledDocsReader(max_bytes_per_package=1)
        return {document.metadata["source"] for document in reader.run(rank=rank, world_size=world_size)}

    first, second = sources(0, 2), sources(1, 2)
    assert first
    assert not first & second
    assert first | second == sources(0, 1)


class Package:
    def __init__(self, *fields):
        self.metadata = Message()
        for key, value in fields:
            self.metadata[key] = value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT"), ("License", "see file")], "MIT"),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "x")], "BSD License"),
        ([("License", "Apache-2.0")], "Apache-2.0"),
        ([("License", "Permission is hereby granted,\nfree of charge")], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_licence_is_what_the_metadata_states(fields, expected):
    assert license_of(Package(*fields)) == expected


def test_the_installation_is_known_by_its_versions(monkeypatch):
    from hfchat.data import installed_docs

    before = describe_installation()
    packages = installed_docs.installed_distributions()
    monkeypatch.setattr(installed_docs, "installed_distributions", lambda: packages[1:])
    assert describe_installation()["sha256"] != before["sha256"]
