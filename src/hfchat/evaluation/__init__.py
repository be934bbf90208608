"""Evaluation: answers of chat models on held-out conversations, metrics with signatures and intervals, the report."""
