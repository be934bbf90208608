// What a person says of an answer: a thumb, and if they like a corrected text, reasons and a comment.

import { sendFeedback } from "./api.js";
import { discardedFor } from "./conversation.js";
import { $, opened } from "./dom.js";
import { pretty } from "./json.js";
import { checked as check, readCalls } from "./tools.js";

/** Tells people apart while the page is open, so that one cannot pass for many; it is kept nowhere in the browser. */
const PERSON = `page-${Array.from(crypto.getRandomValues(new Uint32Array(2)), (n) => n.toString(16)).join("")}`;

/** Replaces all that was said of the answer before. */
function send(answer, said) {
  const { rating = null, correction = null, comment = null, tags = [], preferredOver = null } = said;
  return sendFeedback({
    answer_id: answer.id, choice: 0, rating, correction, comment, tags, preferred_over: preferredOver, user: PERSON,
  });
}

/** Set or take back (null) the thumb; the rest of what was said belonged to the thumb before. Throws ServerError. */
export async function rate(answer, rating) {
  await say(answer, { rating, preferredOver: answer.feedback.preferredOver });
}

/** Ask for more about an answer that has a thumb; false if the person would rather not. Throws ServerError. */
export async function sayMore(answer) {
  const { rating, correction, comment, tags = [] } = answer.feedback;
  const before = callsAsJson(answer.calls.map(({ name, arguments: written }) => [name, written]));
  showCorrection(answer, correction, before);
  $("feedback-comment").value = comment ?? "";
  for (const set of $("feedback").querySelectorAll("fieldset")) {
    set.hidden = set.dataset.rating !== rating;
    for (const box of set.querySelectorAll("input")) box.checked = tags.includes(box.value);
  }
  if ((await opened($("feedback"))) !== "send") return false;
  const checked = $("feedback").querySelectorAll("fieldset:not([hidden]) input:checked");
  await say(answer, {
    ...answer.feedback,
    correction: readCorrection(answer, before),
    comment: $("feedback-comment").value.trim() || null,
    tags: [...checked].map(({ value }) => value),
  });
  return true;
}

/** Show what the answer should have been, or else what it was. */
function showCorrection(answer, correction, before) {
  const { content, tool_calls: calls } = typeof correction === "object" ? (correction ?? {}) : { content: correction };
  $("feedback-correction").value = content ?? answer.content;
  $("feedback-calls-row").hidden = !answer.offered.length;
  const corrected = (calls ?? []).map((call) => [call.function.name, JSON.stringify(call.function.arguments)]);
  $("feedback-calls").value = correction == null ? before : callsAsJson(corrected);
  names = answer.offered;
  $("feedback-calls").dispatchEvent(new Event("input"));
}

/** What the answer should have been, if that is something else: a text, or {content, tool_calls}. */
function readCorrection(answer, before) {
  const content = $("feedback-correction").value.trim();
  const written = $("feedback-calls").value;
  if (content === answer.content.trim() && written === before) return null;
  const { calls = [] } = answer.offered.length ? readCalls(written, answer.offered) : {};
  return calls.length ? { content, tool_calls: calls } : content || null;
}

function callsAsJson(calls) {
  const written = calls.map(([name, given]) => `{"name": ${JSON.stringify(name)}, "arguments": ${given || "{}"}}`);
  return calls.length ? pretty(`[${written.join(", ")}]`) : "";
}

let names = []; // of the functions that the answer could call
check($("feedback-calls"), $("feedback-calls-problem"), (text) => readCalls(text, names));

/**
 * Who asks for another answer and goes on from it prefers it to the one before, which is worth as much as a thumb.
 * Nobody waits for this, and a failure is nothing that the person could do anything about.
 */
export function keptOn(answer) {
  const discarded = discardedFor(answer);
  const { rating, preferredOver } = answer.feedback;
  if (!answer.canBeRated || !discarded?.canBeRated || rating === "down" || preferredOver) return;
  say(answer, { ...answer.feedback, preferredOver: discarded.id }).catch(() => {});
}

async function say(answer, said) {
  await send(answer, said);
  answer.feedback = said;
}
