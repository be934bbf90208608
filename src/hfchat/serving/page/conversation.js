// The conversation is a tree: an edited question and a retried answer stand beside what they replace.

class Turn {
  constructor(parent, role, content) {
    this.parent = parent;
    this.role = role; // "user" and "assistant" alternate from the root on
    this.content = content;
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
 * What the server gets to answer a question: [{role, content}]. A question without an answer, and one that a guard
 * did not let through, are left out together with what came of them: they would be in the way of all that follow.
 */
export function messagesTo(question) {
  const turns = [];
  for (let turn = question; turn.parent; turn = turn.parent) turns.unshift(turn);
  return turns
    .filter((turn, index) => {
      const answer = turn.role === "user" ? turns[index + 1] : turn;
      return turn === question || (answer.content && !answer.isWithheld);
    })
    .map(({ role, content }) => ({ role, content }));
}

/** The complete answer that the person gave up for this one by asking again, null if there is none. */
export function discardedFor(answer) {
  const complete = answer.versions.filter((other) => other !== answer && other.finishReason === "stop");
  return answer.finishReason === "stop" ? (complete.at(-1) ?? null) : null;
}
