"""The data stage: sources of text in, a corpus of clean, deduplicated documents with provenance out."""
