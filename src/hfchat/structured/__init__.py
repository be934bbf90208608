"""Answers with a structure: JSON by a schema, and tool calls; how they are enforced, and how they are read."""
