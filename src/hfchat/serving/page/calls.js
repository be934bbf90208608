// The calls of an answer, a card each, and the form in which a person types what the functions give back.

import { element } from "./dom.js";
import { pretty } from "./json.js";

/** Add what a chunk says of the calls to those that are there, as OpenAI's API sends them. */
export function addCalls(calls, parts) {
  for (const { index, id, function: called } of parts) {
    calls[index] ??= { id: "", name: "", arguments: "" };
    calls[index].id ||= id ?? "";
    calls[index].name ||= called?.name ?? "";
    calls[index].arguments += called?.arguments ?? "";
  }
}

/** Show the calls of a turn below its text. Cards that are there stay, so that one that is open stays open. */
export function showCalls(item, turn) {
  if (!turn.calls.length) return;
  let list = item.querySelector(".calls");
  if (!list) {
    list = element("div", { className: "calls", role: "group", ariaLabel: "Calls of functions" });
    item.querySelector(".text").after(list);
  }
  for (const [index, call] of turn.calls.entries()) {
    const card = list.children[index] ?? list.appendChild(cardOf());
    card.querySelector("summary code").textContent = call.name;
    card.querySelector("pre code").textContent = pretty(call.arguments);
  }
}

function cardOf() {
  const summary = element("summary", {}, "Calls ", element("code"));
  const shown = element("pre", { tabIndex: 0, role: "group", ariaLabel: "Arguments" }, element("code"));
  return element("details", { className: "call" }, summary, shown);
}

/**
 * Ask for the results of all calls of a turn: `send` gets them, a text for each. A turn has results already where the
 * person changes them.
 */
export function askForResults(item, turn, send, known = []) {
  item.querySelector(".results")?.remove();
  const fields = turn.calls.map((call, index) => {
    const field = element("textarea", { rows: 2, value: known[index] ?? "", spellcheck: false });
    return [element("label", {}, "Result of ", element("code", { textContent: call.name }), field), field];
  });
  const button = element("button", { type: "submit", className: "primary changing", textContent: "Send" });
  const form = element("form", { className: "results editor" }, fields.map(([label]) => label),
    element("p", { className: "row" }, button));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (button.disabled) return;
    form.remove();
    send(fields.map(([, field]) => field.value));
  });
  item.querySelector(".calls").after(form);
  return fields[0][1];
}
