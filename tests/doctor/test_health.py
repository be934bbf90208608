from hfchat.doctor.health import empty_rows, find_duplicates, lengths


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_duplicates_are_found_after_normalization():
    train = [chat("What is  it?", "A café."), chat("what is it?", "A cafe\u0301."), chat("Why?", "So.")]
    evaluation = [chat("WHAT IS IT?", "a café."), chat("Why?", "Because."), chat("How?", "Thus.")]
    found = find_duplicates(train, evaluation, None)
    assert (found.within, found.shared, found.same_prompt) == (1, 1, 1)


def test_documents_have_duplicates_but_no_prompts():
    train, evaluation = [{"text": "one"}, {"text": "two"}, {"text": " One\n"}], [{"text": "TWO"}, {"text": "three"}]
    found = find_duplicates(train, evaluation, "text")
    assert (found.within, found.shared, found.same_prompt) == (1, 1, None)


def test_pairs_differ_by_their_answers():
    prompt = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": prompt, "chosen": [{"role": "assistant", "content": answer}], "rejected": []} for answer in "ab"
    ]
    assert find_duplicates(rows[:1], rows[1:], None).shared == 0
    assert find_duplicates(rows[:1], rows[1:], None).same_prompt == 1


def test_empty_turns_are_found_but_a_call_of_a_tool_is_none():
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    rows = [chat("a", "b"), chat("a", " \n"), chat("", "b"), {"messages": []}, {"messages": [calls]}]
    assert empty_rows(rows, None) == [1, 2, 3]
    assert empty_rows([{"text": "a"}, {"text": " "}, {"text": None}], "text") == [1, 2]


def test_lengths_are_counted():
    found = lengths([1, 2, 3, 4, 100], limit=4)
    assert found.over_limit == 0.2
    assert found.quantiles[0.5] == 3
    assert found.quantiles[1.0] == 100
    assert found.histogram == [(1, 1), (2, 2), (4, 1), (64, 1)]
    assert len(found.bars()) == 4
