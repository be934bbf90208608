// A turn as an item of the list: its text, the buttons under it, and notes on what became of it.

import { showCalls } from "./calls.js";
import { appended, copy, element, iconButton, setIcon } from "./dom.js";
import { jsonAnswer } from "./json.js";
import { codeBlock, render } from "./markdown.js";

const SPEAKERS = { user: "You:", tool: "Results that you typed:", assistant: "Assistant:" };

/** `does` has what the buttons do: edit(turn, text) a question, change(turn) the results of calls, retry(turn). */
export function itemOf(turn, does) {
  const name = element("span", { className: "visually-hidden", textContent: SPEAKERS[turn.role] });
  const text = element("div", { className: "text" });
  const buttons = element("div", { className: "buttons" });
  const item = element("li", { className: turn.role }, element("div", {}, name, text, buttons));
  if (turn.role === "tool") {
    appended(text, turn.results.map((result, index) => element(
      "div", {}, element("code", { textContent: turn.parent.calls[index].name }), element("span", { textContent: result }),
    )));
    buttons.append(changing(iconButton("edit", "Change the results", () => does.change(turn))));
  } else if (turn.role === "user") {
    text.textContent = turn.content;
    const editButton = changing(iconButton("edit", "Edit this message", () => edit(item, turn, does, editButton)));
    buttons.append(editButton);
  } else {
    item.prepend(element("img", { src: "/page/icon.svg", alt: "" }));
    const copyButton = iconButton("copy", "Copy the answer", () => copy(said(turn), (done) => {
      setIcon(copyButton, done ? "done" : "copy");
      const labels = { true: "Copied", false: "Copying failed; select the text instead", null: "Copy the answer" };
      copyButton.ariaLabel = copyButton.title = labels[done];
    }));
    buttons.append(copyButton, changing(iconButton("retry", "Another answer", () => does.retry(turn))));
  }
  return item;
}

function said({ content, calls }) {
  return [content, ...calls.map((call) => `${call.name}(${call.arguments})`)].filter(Boolean).join("\n");
}

/** A button that must wait while an answer is coming. */
function changing(button) {
  button.classList.add("changing");
  return button;
}

/** The thumbs, once the answer has an id that feedback can name. */
export function addThumbs(item, turn, rate) {
  const thumbs = ["up", "down"].map((rating) => {
    const label = rating === "up" ? "Good answer" : "Bad answer";
    const button = iconButton(rating, label, () => rate(turn, turn.feedback.rating === rating ? null : rating));
    button.dataset.rating = rating;
    return button;
  });
  item.querySelector(".buttons").append(...thumbs);
  showRating(item, turn);
}

export function showRating(item, turn) {
  for (const button of item.querySelectorAll("[data-rating]")) {
    button.ariaPressed = String(button.dataset.rating === turn.feedback.rating);
  }
}

/** Arrows to the other versions of the turn, if there are any. */
export function showVersions(item, turn, choose) {
  item.querySelector(".versions")?.remove();
  const { versions } = turn;
  if (versions.length < 2) return;
  const index = versions.indexOf(turn);
  const arrow = (name, label, step) => {
    const button = changing(iconButton(name, label, () => choose(turn, step)));
    button.dataset.step = step;
    button.ariaDisabled = String(!versions[index + step]);
    return button;
  };
  const count = element("span", { textContent: `${index + 1}/${versions.length}` });
  count.prepend(element("span", { className: "visually-hidden", textContent: "Version " }));
  item.querySelector(".buttons").prepend(element(
    "span", { className: "versions" },
    arrow("previous", "Previous version", -1), count, arrow("next", "Next version", 1),
  ));
}

/** Show an answer as far as it has come: its reasoning, folded, its text or JSON, and its calls. */
export function showAnswer(item, turn, isWhole = false) {
  showThoughts(item, turn, isWhole);
  const json = jsonAnswer(turn.content);
  showNodes(item.querySelector(".text"), json === null ? render(turn.content) : [codeBlock(json, "json")]);
  showCalls(item, turn);
}

function showThoughts(item, { reasoning, saysSomething }, isWhole) {
  if (!reasoning) return;
  let thoughts = item.querySelector(".thoughts");
  if (!thoughts) {
    thoughts = element("details", { className: "thoughts" }, element("summary"), element("div"));
    item.querySelector(".text").before(thoughts);
  }
  thoughts.firstChild.textContent = isWhole || saysSomething ? "Thoughts" : "Thinking…";
  thoughts.lastChild.textContent = reasoning;
}

/** What has not changed since the last time stays as it is, so that a selection, or the focus, is not lost. */
function showNodes(text, nodes) {
  let same = 0;
  while (same < nodes.length && text.childNodes[same]?.isEqualNode(nodes[same])) same++;
  while (text.childNodes.length > same) text.lastChild.remove();
  appended(text, nodes.slice(same));
}

export function addNote(item, words) {
  const note = element("p", { className: "note", textContent: words });
  item.querySelector(".buttons").before(note);
  return note;
}

/** Say what went wrong, with a button to try again; it waits as long as the server asked to. */
export function addError(item, words, retryAfter, retry) {
  const button = changing(element("button", { type: "button" }));
  button.addEventListener("click", () => { if (button.ariaDisabled !== "true") retry(); });
  item.querySelector(".buttons").before(
    element("div", { className: "error" }, element("span", { textContent: words }), button),
  );
  const until = performance.now() + retryAfter * 1000;
  const tick = () => {
    const seconds = Math.ceil((until - performance.now()) / 1000);
    button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    button.ariaDisabled = String(seconds > 0);
    if (seconds > 0 && item.isConnected) setTimeout(tick, 250);
  };
  tick();
}

function edit(item, turn, does, editButton) {
  const text = item.querySelector(".text");
  const buttons = item.querySelector(".buttons");
  const field = element("textarea", { value: turn.content, rows: 3, ariaLabel: "Edit your message" });
  const cancel = element("button", { type: "button", className: "quiet", textContent: "Cancel" });
  const send = changing(element("button", { type: "submit", className: "primary", textContent: "Send" }));
  const form = element("form", { className: "editor" }, field, element("p", { className: "row" }, cancel, send));
  const end = () => {
    form.replaceWith(text);
    buttons.hidden = false;
    item.classList.remove("editing");
    editButton.focus();
  };
  cancel.addEventListener("click", end);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim() || send.disabled) return;
    end();
    does.edit(turn, field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // it would stop a running answer
      end();
    } else if (isSend(event)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  text.replaceWith(form);
  buttons.hidden = true;
  item.classList.add("editing");
  field.focus();
}

/** Whether a key press means "send". While an input method composes a character, Enter belongs to it. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}
