"""Open the feedback database, SQLite or PostgreSQL, so that what was committed stays; and bring it up to date."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

from hfchat.errors import UserError

try:
    import alembic.command
    import alembic.util
    import sqlalchemy as sa
    from alembic.config import Config
except ImportError as error:
    raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[feedback]'`") from error

_MIGRATIONS = "hfchat.feedback:migrations"
_MIGRATING = 0x68666368  # PostgreSQL's advisory locks have numbers; "hfch" in ASCII
_WAIT_S = 5


def open_database(database: str, *, create: bool = False, max_bytes: int | None = None) -> sa.Engine:
    """Open a database, and bring its tables up to date.

    SQLite runs with a write-ahead log, so that readers and a writer do not stop each other, and with
    `synchronous=FULL`: in that mode each commit is on the disk before it is acknowledged, and survives a loss of power
    as well as `kill -9` (https://www.sqlite.org/pragma.html#pragma_synchronous; with NORMAL, the last commits before a
    loss of power may be gone). What is deleted is overwritten with zeros (`secure_delete`). Its transactions for
    writing take the lock at their beginning; one that read first could find at its first write that it is too late
    (https://www.sqlite.org/isolation.html).

    Args:
        database: The path of an SQLite file, or a URL of SQLAlchemy, `sqlite:///...` or `postgresql://...`.
        create: Make the SQLite file if it is not there, for its owner only.
        max_bytes: Size to which an SQLite file may grow; what would make it larger fails, as on a full disk. It does
            not bound a database of PostgreSQL.

    Returns:
        An engine whose connections may go from thread to thread. Its option `reads` is for those that only read.

    Raises:
        UserError: If it cannot be opened, or a newer version of hfchat made it.
    """
    url = _url(database)
    if url.get_backend_name() == "sqlite":
        _check_file(url, create)
        engine = sa.create_engine(
            url, connect_args={"timeout": _WAIT_S, "check_same_thread": False}, hide_parameters=True
        )
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        # The last one is of TCP, in milliseconds: without it, a network that is gone is noticed after many minutes.
        waits = {"connect_timeout": _WAIT_S, "options": f"-c lock_timeout={_WAIT_S}s", "tcp_user_timeout": 10_000}
        try:
            engine = sa.create_engine(url, pool_pre_ping=True, connect_args=waits, hide_parameters=True)
        except ImportError as error:
            raise UserError(f"{error.name} is not installed; run `pip install 'hfchat[postgres]'`") from error
    try:
        _migrate(engine)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise UserError(f"{_shown(url)}: {reason(error)}") from error
    except alembic.util.CommandError as error:
        engine.dispose()
        raise UserError(f"{_shown(url)}: made by a newer version of hfchat; use that one ({error})") from error
    if max_bytes is not None and engine.dialect.name == "sqlite":
        _bound_sqlite(engine, max_bytes)
    return engine


def reason(error: Exception) -> str:
    """The database's own words: their first line, as PostgreSQL quotes values in the others."""
    words = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
    return next((" ".join(line.split()) for line in words.splitlines() if line.strip()), type(error).__name__)


def forget_deleted(engine: sa.Engine) -> bool:
    """Make sure that what was deleted is nowhere in the database's files.

    SQLite has overwritten it, and the log that may still hold it is emptied. PostgreSQL frees the rows (VACUUM); its
    own log and its backups live on as its administrator has decided.

    Returns:
        Whether it is so; not while somebody reads for long.
    """
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as connection:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM answers, feedback")
    return True


def _url(database: str) -> sa.URL:
    if "://" not in database:
        return sa.URL.create("sqlite", database=database)
    try:
        url = sa.make_url(database)
        backend = url.get_backend_name()
    except sa.exc.ArgumentError as error:
        raise UserError("the database's URL cannot be read; write `postgresql://user@host/name`") from error
    if backend == "sqlite":
        return url
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise UserError(f"{_shown(url)}: feedback is kept in SQLite or PostgreSQL, not {backend}")


def _check_file(url: sa.URL, create: bool) -> None:
    if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
        raise UserError("feedback needs a database in a file; name one, such as `feedback.db`")
    path = Path(url.database)
    if path.exists() or url.database.startswith("file:"):
        return
    if not create:
        raise UserError(f"{path}: there is no such database; `hfchat serve --feedback {path}` makes it")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # conversations are not for all users of a machine
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})") from error


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # or Python's driver would begin transactions, where it thinks they are needed
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}")


def _bound_sqlite(engine: sa.Engine, max_bytes: int) -> None:
    """From now on; the migrations of a database that is larger already must not fail."""

    def bound(connection: Any, record: Any) -> None:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count={max(1, max_bytes // page_bytes)}")

    engine.dispose()  # of the connections that have no bound
    sa.event.listen(engine, "connect", bound)


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


def _migrate(engine: sa.Engine) -> None:
    """`alembic upgrade head`, in one transaction: when several servers start at once, one of them migrates."""
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def _shown(url: sa.URL) -> str:
    return url.database or "" if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
