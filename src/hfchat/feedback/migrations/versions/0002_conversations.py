"""A conversation is stored once for all answers of a request, not with each of them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("answer_id", sa.Text(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("answer_id", name="pk_conversations"),
    )
    op.execute(
        "INSERT INTO conversations (answer_id, messages) SELECT answer_id, messages FROM answers "
        "WHERE id IN (SELECT min(id) FROM answers GROUP BY answer_id)"
    )
    op.drop_column("answers", "messages")


def downgrade() -> None:
    op.add_column("answers", sa.Column("messages", sa.JSON(), nullable=False, server_default="[]"))
    op.execute(
        "UPDATE answers SET messages = "
        "(SELECT messages FROM conversations WHERE conversations.answer_id = answers.answer_id)"
    )
    op.drop_table("conversations")
