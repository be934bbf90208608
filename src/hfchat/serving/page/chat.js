// The chat: keeps the conversation, sends it, and shows the answer while it comes.

import { answer, modelName, ServerError } from "./api.js";
import { element, render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const input = $("input");
const scroll = $("scroll");

let messages = []; // what the server gets: [{role, content}]
let model = null;
let running = null; // AbortController of the answer that is coming

// ------------------------------------------------------------------------------------------------ conversation

async function ask(question) {
  if (running || !question.trim()) return;
  messages.push({ role: "user", content: question });
  show("user", question);
  await reply();
}

async function reply() {
  const item = show("assistant", "");
  const text = item.querySelector(".text");
  const conversation = messages;
  const abort = new AbortController();
  running = abort;
  update();
  text.classList.add("waiting");
  say("The answer is being written.");
  let content = "";
  let finishReason = null;
  let failure = null;
  try {
    model ??= await modelName();
    for await (const part of answer(model, conversation, abort.signal)) {
      content += part.text;
      finishReason = part.finishReason ?? finishReason;
      if (part.text) paint(text, content);
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error;
  }
  text.classList.remove("waiting");
  if (running === abort) running = null;
  if (conversation !== messages) return; // a new chat has begun
  paint(text, content);
  if (content) conversation.push({ role: "assistant", content });
  if (failure) {
    fail(item, failure, content);
  } else {
    if (abort.signal.aborted) note(item, "You stopped this answer.");
    else if (finishReason === "length") note(item, "The answer reached its limit of length and was cut here.");
    else if (!content) note(item, "The model had nothing to say. Try to put it in other words.");
    say(content || "The answer is empty.");
  }
  follow();
  update();
  focusInput();
}

function reset() {
  running?.abort();
  running = null;
  messages = [];
  $("conversation").replaceChildren();
  say("");
  update();
  focusInput();
}

// ------------------------------------------------------------------------------------------------ what one sees

function show(role, content) {
  const text = element("div", { className: "text", textContent: content });
  const name = element("span", { className: "visually-hidden", textContent: role === "user" ? "You:" : "Assistant:" });
  const item = element("li", { className: role }, element("div", {}, name, text));
  if (role === "assistant") item.prepend(element("img", { src: "/page/icon.svg", alt: "" }));
  $("conversation").append(item);
  update();
  scroll.scrollTop = scroll.scrollHeight;
  return item;
}

let painting = null;

/** Show the text at the next frame: a fast model sends more parts than a screen can draw. */
function paint(node, content) {
  if (painting?.node === node) {
    painting.content = content;
    return;
  }
  painting = { node, content };
  requestAnimationFrame(() => {
    const { content: latest } = painting;
    painting = null;
    const following = isAtEnd();
    node.replaceChildren(...render(latest));
    if (following) follow();
    update();
  });
}

function note(item, words) {
  item.lastChild.append(element("p", { className: "note", textContent: words }));
}

function fail(item, error, content) {
  const words = error instanceof ServerError ? error.message : `Something on this page went wrong: ${error.message}`;
  const retry = element("button", { type: "button", textContent: "Try again" });
  retry.addEventListener("click", () => {
    if (running) return;
    if (content) messages.pop();
    item.remove();
    reply();
  });
  item.lastChild.append(element("div", { className: "error" }, element("span", { textContent: words }), retry));
  say(`Error: ${words}`);
}

/** For screen readers: an answer is read out once, when it is complete, not word by word. */
function say(words) {
  $("status").textContent = words;
}

function focusInput() {
  if (matchMedia("(hover: hover)").matches) input.focus(); // on a phone it would bring up the keyboard
}

function isAtEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}

function follow() {
  scroll.scrollTop = scroll.scrollHeight;
}

function update() {
  const empty = !$("conversation").hasChildNodes();
  $("welcome").hidden = !empty;
  $("new").hidden = empty;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("send").disabled = !input.value.trim();
  $("latest").hidden = empty || isAtEnd();
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

// ------------------------------------------------------------------------------------------------ what one does

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = input.value;
  if (running || !question.trim()) return;
  input.value = "";
  update();
  ask(question);
});
input.addEventListener("input", update);
input.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", reset);
$("latest").addEventListener("click", follow);
scroll.addEventListener("scroll", () => { $("latest").hidden = isAtEnd(); });
for (const button of $("examples").querySelectorAll("button")) {
  button.addEventListener("click", () => ask(button.textContent));
}

try {
  model = await modelName();
  $("model").textContent = model;
  document.title = `${model} · hfchat`;
} catch {
  model = null; // the first question asks again, and shows the error
}
update();
