// The chat: keeps the conversation, sends it, and shows the answer while it comes.

import { answer, feedbackSettings, modelNames, ServerError } from "./api.js";
import { showCard } from "./card.js";
import { addCalls, askForResults } from "./calls.js";
import { Conversation, messagesTo } from "./conversation.js";
import { $, element, opened } from "./dom.js";
import { keptOn, rate, sayMore } from "./feedback.js";
import { checkSettings, isPrivate, offered, requestFields } from "./settings.js";
import { addError, addNote, addThumbs, isSend, itemOf, showAnswer, showRating, showVersions } from "./turn.js";

const input = $("input");
const scroll = $("scroll");
const BY_DEFAULT = document.title;

let conversation = new Conversation();
let items = new Map(); // of the turns, those that are not shown included
let running = null; // AbortController of the answer that is coming
let feedback = { enabled: false, keeps_conversations: false, logs_content: false };

// ------------------------------------------------------------------------------------------------ conversation

function ask(content) {
  const { last } = conversation;
  if (last.role === "assistant") keptOn(last);
  reply(conversation.add(last, "user", content));
}

function edit(question, content) {
  if (running) return;
  reply(conversation.add(question.parent, "user", content));
}

/** Go on with what the functions gave back that an answer called. */
function goOn(answer, results) {
  if (running) return;
  keptOn(answer);
  const turn = conversation.add(answer, "tool", "");
  turn.results = results;
  reply(turn);
}

/** Let the person type the results of an answer's calls, or other ones than those that are known. */
function askFor(answer, known) {
  return askForResults(items.get(answer), answer, (results) => goOn(answer, results), known);
}

function change(turn) {
  if (!running) askFor(turn.parent, turn.results).focus();
}

function retry(turn) {
  if (!running) reply(turn.parent, { isRetry: true });
}

async function reply(question, { isRetry = false } = {}) {
  const turn = conversation.add(question, "assistant", "");
  const abort = new AbortController();
  running = abort;
  const item = draw(turn);
  item.classList.add("waiting");
  follow();
  if (!isAtHand()) $("stop").focus();
  say("The answer is being written.");
  let failure = null;
  try {
    if ($("model").value === "") await connect();
    turn.canBeRated = feedback.enabled && !isPrivate();
    const fields = requestFields($("model").value, messagesTo(question), { isRetry });
    turn.offered = offered();
    for await (const part of answer(fields, abort.signal)) {
      turn.id = part.id;
      turn.content += part.text;
      turn.reasoning += part.reasoning;
      addCalls(turn.calls, part.calls);
      turn.finishReason = part.finishReason ?? turn.finishReason;
      if (part.text || part.reasoning || part.calls.length) paint(item, turn);
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error;
  }
  if (running !== abort) return; // a new chat has begun
  const hadFocus = document.activeElement === $("stop") || !isAtHand();
  running = null;
  item.classList.remove("waiting");
  const following = isAtEnd();
  showAnswer(item, turn, true);
  if (failure) fail(item, turn, failure);
  else conclude(item, turn, abort.signal.aborted);
  const toFill = turn.isCalling ? askFor(turn) : null;
  if (turn.canBeRated && turn.id && turn.saysSomething) addThumbs(item, turn, (...said) => judge(item, ...said));
  if (following) follow();
  update();
  const waits = toFill && document.activeElement === input && !input.value; // for what comes next: the results
  if (hadFocus || waits) focusInput(toFill ?? input);
}

function conclude(item, turn, isStopped) {
  if (isStopped) addNote(item, "You stopped this answer.");
  else if (turn.isWithheld) addNote(item, "The server's filter stepped in. What follows is asked without this message.");
  else if (turn.finishReason === "length") addNote(item, "The answer reached its limit of length and was cut here.");
  else if (!turn.saysSomething) addNote(item, "The model had nothing to say. Try to put it in other words.");
  const names = turn.calls.map(({ name }) => name);
  const called = turn.isCalling ? `The model calls ${names.join(" and ")}. Type what comes back.` : "";
  const text = item.querySelector(".text").textContent;
  say([text, called].filter(Boolean).join(" ") || "The answer is empty.");
}

function fail(item, turn, error) {
  const words = error instanceof ServerError ? error.message : `Something on this page went wrong: ${error.message}`;
  item.classList.toggle("failed", !turn.saysSomething);
  addError(item, words, error.retryAfter ?? 0, () => {
    if (running) return;
    conversation.remove(turn);
    items.delete(turn);
    reply(turn.parent);
  });
  say(`Error: ${words}`);
}

function choose(turn, step) {
  const index = turn.versions.indexOf(turn) + step;
  if (running || !turn.versions[index]) return;
  turn.parent.chosen = index;
  draw(turn.versions[index]).querySelector(`[data-step="${step}"]`).focus();
  say(`Version ${index + 1} of ${turn.versions.length}`);
}

async function judge(item, turn, rating) {
  try {
    await rate(turn, rating);
    showRating(item, turn);
    item.querySelector(".more")?.remove();
    if (rating === null) return say("Your feedback is taken back.");
    const more = element("button", { type: "button", className: "more quiet", textContent: "Say more…" });
    more.addEventListener("click", () => elaborate(more, turn));
    item.querySelector(".buttons").append(more);
    say("Thank you for your feedback.");
    if (rating === "down") await elaborate(more, turn);
  } catch (error) {
    complain(item, error);
  }
}

async function elaborate(button, turn) {
  try {
    if (await sayMore(turn)) say((button.textContent = "Thank you. Change it…"));
  } catch (error) {
    complain(button.closest("li"), error);
  }
  button.focus();
}

function complain(item, error) {
  item.querySelector(".complaint")?.remove();
  addNote(item, `Your feedback was not taken: ${error.message}`).classList.add("complaint");
  say(`Error: ${error.message}`);
}

function reset() {
  running?.abort();
  running = null;
  conversation = new Conversation();
  items = new Map();
  $("conversation").replaceChildren();
  say("A new chat.");
  update();
  focusInput();
}

// ------------------------------------------------------------------------------------------------ what one sees

/** Show the conversation as it is now; returns the item of `turn`. */
function draw(turn) {
  const shown = conversation.shown.map((each) => {
    if (!items.has(each)) items.set(each, itemOf(each, { edit, retry, change }));
    showVersions(items.get(each), each, choose);
    return items.get(each);
  });
  $("conversation").replaceChildren(...shown);
  update();
  return items.get(turn);
}

let painting = null;

/** Show the answer at the next frame: a fast model sends more parts than a screen can draw. */
function paint(item, turn) {
  painting ??= requestAnimationFrame(() => {
    painting = null;
    const following = isAtEnd();
    showAnswer(item, turn);
    if (following) follow();
    $("latest").hidden = isAtEnd();
  });
}

/** For screen readers: an answer is read out once, when it is complete, not word by word. */
function say(words) {
  $("status").textContent = words;
}

/** Whether something that can be used has the focus. */
function isAtHand() {
  const { activeElement } = document;
  return activeElement !== document.body && !activeElement.disabled && activeElement.checkVisibility();
}

function focusInput(field = input) {
  if (matchMedia("(hover: hover)").matches) field.focus(); // on a phone it would bring up the keyboard
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
  $("talk").hidden = empty;
  $("new").hidden = empty;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("send").disabled = !input.value.trim();
  $("latest").hidden = empty || isAtEnd();
  for (const button of $("conversation").querySelectorAll(".changing")) button.disabled = running !== null;
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function showWhatIsKept() {
  $("private-row").hidden = !feedback.enabled;
  if (feedback.logs_content) $("kept").textContent = "The server writes the conversation into its log.";
  else if (!feedback.enabled) $("kept").textContent = "The page forgets the chat when you close it.";
  else if (isPrivate()) $("kept").textContent = "Private: the server keeps nothing of this.";
  else if (feedback.keeps_conversations) $("kept").textContent = "The server keeps the conversation.";
  else $("kept").textContent = "The chat is kept only if you rate an answer, or go on with a second one.";
}

/** Learn from the server which models it has, and what it keeps. */
async function connect() {
  const names = await modelNames();
  feedback = await feedbackSettings();
  $("model").replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
  $("model").hidden = names.length === 1;
  $("model-name").hidden = names.length > 1;
  showModel();
  showWhatIsKept();
}

function showModel() {
  $("model-name").textContent = $("model").value;
  document.title = `${$("model").value} · ${BY_DEFAULT}`;
}

// ------------------------------------------------------------------------------------------------ what one does

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = input.value;
  if (running || !question.trim()) return;
  input.value = "";
  ask(question);
});
input.addEventListener("input", update);
input.addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", reset);
$("latest").addEventListener("click", follow);
$("about").addEventListener("click", () => showCard($("model").value));
$("settings-button").addEventListener("click", () => opened($("settings")));
$("model").addEventListener("change", showModel);
$("private").addEventListener("change", showWhatIsKept);
scroll.addEventListener("scroll", () => { $("latest").hidden = isAtEnd(); });
for (const button of document.querySelectorAll("dialog .cancel")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const button of $("examples").querySelectorAll("button")) {
  button.addEventListener("click", () => ask(button.textContent));
}

checkSettings();
update();
await connect().catch(() => {}); // the first question tries again, and shows the error
