import json

import pytest


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    """Conversations as JSON lines in the two splits of a folder."""
    folder = tmp_path_factory.mktemp("conversations")
    for split, numbers in (("train", range(16)), ("validation", range(16, 20))):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"Question {i}?"},
                    {"role": "assistant", "content": f"The answer is {i}."},
                ]
            }
            for i in numbers
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
