"""Conformance and faults of any server that speaks OpenAI's API: `hfchat probe URL`."""
