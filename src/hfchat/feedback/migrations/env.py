"""Alembic runs this. The connection comes from `hfchat.feedback.database`, in a transaction that holds a lock."""

from alembic import context

from hfchat.feedback.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # of SQLite too: `hfchat.feedback.database` begins its transactions itself
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
