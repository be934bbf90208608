// The conversation is a tree: an edited question and a retried answer stand beside what they replace.

class Turn {
  constructor(parent, role, content) {
    this.parent = parent;
    this.role = role; // "user" or "tool", and "assistant" by turns from the root on
    this.content = content;
    this.reasoning = ""; // what the model thought before it answered
    this.calls = []; // of an answer: {id, name, arguments}
    this.offered = []; // names of the functions that it could call
    this.results = []; // of the functions that the answer before called, a text for each call
    this.id = null; // of an answer, from the server
    this.finishReason = null; // null also for an answer that was stopped or has failed
    this.feedback = {}; // what was said of an answer
    this.following = []; // versions of the next turn
    this.chosen = -1; // which of them is shown
  }

  get versions() {
    return this.parent.following;
  }

  get isWithheld() {
    return this.finishReason === "content_filter";
  }

  get saysSomething() {
    return Boolean(this.content || this.calls.length);
  }

  /** Whether it waits for the results of its calls. */
  get isCalling() {
    return this.calls.length > 0 && ["tool_calls", "stop"].includes(this.finishReason);
  }
}

export class Conversation {
  constructor() {
    this.root = new Turn(null, "root", "");
  }

  /** A new version of the turn after `parent`, which is shown from now on. */
  add(parent, role, content) {
    const turn = new Turn(parent, role, content);
    parent.chosen = parent.following.push(turn) - 1;
    return turn;
  }

  remove(turn) {
    turn.versions.splice(turn.versions.indexOf(turn), 1);
    turn.parent.chosen = turn.versions.length - 1;
  }

  /** The turns that are shown, from the first to the last. */
  get shown() {
    const turns = [];
    for (let turn = this.root.following[this.root.chosen]; turn; turn = turn.following[turn.chosen]) turns.push(turn);
    return turns;
  }

  get last() {
    return this.shown.at(-1) ?? this.root;
  }
}

/**
 * What the server gets to answer a question, or to go on with the results of calls: messages of OpenAI's API. A question
 * without an answer, and one that a guard did not let through, are left out together with what came of them: they would
 * be in the way of all that follow.
 */
export function messagesTo(question) {
  const rounds = []; // each begins with a question
  for (let turn = question; turn.parent; turn = turn.parent) {
    if (turn === question || rounds[0][0].role === "user") rounds.unshift([]);
    rounds[0].unshift(turn);
  }
  const isOfUse = (round) => {
    const answers = round.filter(({ role }) => role === "assistant");
    const last = round.at(-1);
    const isAnswered = last === question || (last.role === "assistant" && Boolean(last.content));
    return isAnswered && answers.every((turn) => turn.saysSomething && !turn.isWithheld);
  };
  return rounds.filter(isOfUse).flatMap((round) => round.flatMap(messagesOf));
}

function messagesOf({ role, content, reasoning, calls, results, parent }, index, round) {
  if (role === "tool") {
    return parent.calls.map(({ id }, call) => ({ role, tool_call_id: id, content: results[call] }));
  }
  const message = { role, content };
  if (reasoning) message.reasoning_content = reasoning;
  // Calls without results would be in the way, too.
  if (calls.length && round[index + 1]?.role === "tool") {
    message.tool_calls = calls.map(({ id, name, arguments: written }) => (
      { id, type: "function", function: { name, arguments: written } }
    ));
  }
  return [message];
}

/** The complete answer that the person gave up for this one by asking again, null if there is none. */
export function discardedFor(answer) {
  const isComplete = ({ finishReason }) => finishReason === "stop" || finishReason === "tool_calls";
  const complete = answer.versions.filter((other) => other !== answer && isComplete(other));
  return isComplete(answer) ? (complete.at(-1) ?? null) : null;
}
