"""Answers, and what people say of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "answers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("answer_id", sa.Text(), nullable=False),
        sa.Column("choice", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text()),
        sa.Column("template_fingerprint", sa.Text()),
        sa.Column("prompt_hash", sa.Text(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text()),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_answers"),
        sa.UniqueConstraint("answer_id", "choice", name="uq_answers_answer_id_choice"),
    )
    for column in ("created_at", "prompt_hash", "user_id"):
        op.create_index(f"ix_answers_{column}", "answers", [column])
    op.create_table(
        "feedback",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("answer_key", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("replaced_at", moment),
        sa.Column("rating", sa.Text()),
        sa.Column("correction", sa.Text()),
        sa.Column("comment", sa.Text()),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("preferred_over_key", sa.Integer()),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=False),
        sa.CheckConstraint("rating IN ('up', 'down')", name="ck_feedback_rating"),
        sa.ForeignKeyConstraint(["answer_key"], ["answers.id"], name="fk_feedback_answer_key", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["preferred_over_key"], ["answers.id"], name="fk_feedback_preferred_over_key", ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
    )
    for column in ("answer_key", "created_at", "preferred_over_key", "user_id"):
        op.create_index(f"ix_feedback_{column}", "feedback", [column])
    current = sa.text("replaced_at IS NULL")
    op.create_index(
        "uq_feedback_current",
        "feedback",
        ["answer_key", "api_key", "user_id"],
        unique=True,
        sqlite_where=current,
        postgresql_where=current,
    )


def downgrade() -> None:
    op.drop_table("feedback")
    op.drop_table("answers")
