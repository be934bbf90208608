"""The kinds of tasks that a suite can have; the keys of each are the fields of its class.

- `answers`: answers to held-out prompts, compared with references: chat, translation, summarization, any dataset.
- `facts`: the same, of questions whose right answers are known by patterns, and of some that have none.
- `perplexity`: perplexity and bits per byte of texts.
- `benchmark`: tasks of lm-eval, from the Hub or from files at hand.
- `crows_pairs`: which of two sentences, more and less of a stereotype, is the likelier.
- `continuations`: toxicity or regard of what follows matched prompts about groups of people.
- `refusal`: what is refused, of requests that ought to be, and of harmless ones that only look so.
- `judge`: what another model says of the answers of a task, in pairs or one by one.
- `tools`: whether functions are called when they should be, by their names and with the right arguments.
- `json`: whether answers are valid by their schemas, and their fields right.
"""
