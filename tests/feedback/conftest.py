"""A database of each kind: an SQLite file, and a real PostgreSQL where one is installed."""

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from hfchat.feedback.database import open_database
from hfchat.feedback.exchange import Exchange
from hfchat.feedback.store import Store


def _program(name):
    """Debian keeps the server's programs out of the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


def _unprivileged_user():
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return getpass.getuser()
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


@pytest.fixture(scope="session")
def postgres():
    """The URL of a running PostgreSQL, up to the database's name."""
    initdb, server, user = _program("initdb"), _program("postgres"), _unprivileged_user()
    if not (initdb and server and user):
        pytest.skip("no PostgreSQL is installed (initdb, postgres)")
    folder = tempfile.mkdtemp(prefix="hfchat-pg-", dir="/tmp")  # a short path: it holds a Unix socket
    as_user = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.getuid() == 0:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = f"{folder}/data"
    options = ["--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--username=hfchat"]
    subprocess.run([initdb, "--pgdata", data, *options], check=True, **as_user)
    quiet = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", f"unix_socket_directories={folder}"]
    process = subprocess.Popen([server, "-D", data, *quiet], **as_user)
    try:
        deadline = time.monotonic() + 30
        while not Path(folder, ".s.PGSQL.5432").exists():
            assert process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL did not start in time"
            time.sleep(0.02)
        yield f"postgresql://hfchat@/{{name}}?host={folder}"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The path or URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.db")
    url = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(
        url.format(name="postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} STRATEGY file_copy")
    engine.dispose()
    return url.format(name=name)


def called(name, id=None, **arguments):
    """A tool call as it is kept."""
    return ({} if id is None else {"id": id}) | {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def tool(name, **properties):
    """A tool as a request offers it, all of its arguments required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


# Somebody asks for the weather, a tool was called for it, and now the answer comes.
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "Is it warmer in Rome or in Oslo?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Rome first.",
            "tool_calls": [called("weather", "call_1", city="Rome")],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "18"},
    ],
    "tools": [tool("weather", city={"type": "string"}), tool("time", zone={"type": ["string", "null"]})],
    "text": "",
    "tool_calls": [called("weather", city="Paris")],
    "reasoning": "Now Oslo.",
    "finish_reason": "tool_calls",
}


@pytest.fixture
def open_store(tmp_path):
    """Opens stores: `open_store(database, redact)`; an SQLite file of its own without arguments."""
    stores = []

    def open_(database=None, redact=str):
        stores.append(Store(open_database(database or str(tmp_path / "feedback.db"), create=True), redact))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def exchange():
    """Makes answers: `exchange("chatcmpl-1", text="...", user="alice")`."""

    def make(answer_id, choice=0, prompt="What is the capital of France?", **fields):
        known = {
            "created_at": datetime.now(UTC),
            "model": "assistant",
            "messages": [{"role": "user", "content": prompt}],
            "text": "Paris.",
            "finish_reason": "stop",
            "sampling": {"max_tokens": 100, "temperature": 0.7, "top_p": 1.0, "seed": None, "stop": []},
            "findings": [{"guard": "lexicon", "place": "prompt", "action": "flag", "categories": ("obscene",)}],
        }
        return Exchange(answer_id=answer_id, choice=choice, **(known | fields))

    return make
