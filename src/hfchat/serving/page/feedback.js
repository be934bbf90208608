// What a person says of an answer: a thumb, and if they like a corrected text, reasons and a comment.

import { sendFeedback } from "./api.js";
import { discardedFor } from "./conversation.js";
import { $, opened } from "./dom.js";

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
  $("feedback-correction").value = correction ?? answer.content;
  $("feedback-comment").value = comment ?? "";
  for (const set of $("feedback").querySelectorAll("fieldset")) {
    set.hidden = set.dataset.rating !== rating;
    for (const box of set.querySelectorAll("input")) box.checked = tags.includes(box.value);
  }
  if ((await opened($("feedback"))) !== "send") return false;
  const corrected = $("feedback-correction").value.trim();
  const checked = $("feedback").querySelectorAll("fieldset:not([hidden]) input:checked");
  await say(answer, {
    ...answer.feedback,
    correction: corrected && corrected !== answer.content.trim() ? corrected : null,
    comment: $("feedback-comment").value.trim() || null,
    tags: [...checked].map(({ value }) => value),
  });
  return true;
}

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
