"""Conversations have tools, answers and corrections have calls of them, and answers have what the model thought."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ADDED: dict[tuple[str, str], tuple[sa.JSON | sa.Text, str]] = {  # each with what it is in the rows that are there
    ("conversations", "tools"): (sa.JSON(), "[]"),
    ("answers", "tool_calls"): (sa.JSON(), "[]"),
    ("answers", "reasoning"): (sa.Text(), ""),
    ("feedback", "corrected_calls"): (sa.JSON(), "[]"),
}


def upgrade() -> None:
    for (table, column), (type, value) in _ADDED.items():
        op.add_column(table, sa.Column(column, type, nullable=False, server_default=value))


def downgrade() -> None:
    for table, column in _ADDED:
        op.drop_column(table, column)
