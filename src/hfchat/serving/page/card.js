// What is known about a model: its card, and first of all what the card says about its limits.

import { modelCard } from "./api.js";
import { $, appended, element, opened } from "./dom.js";
import { render } from "./markdown.js";

const NO_CARD =
  "This model comes without a card: nobody has written down what it was trained on, what it is for and where it " +
  "fails. Do not rely on it for anything that matters.";
const NO_LIMITS = "The card does not say what this model is for and where it fails.";

export async function showCard(model) {
  $("card-title").textContent = model ?? "The model";
  $("card-body").replaceChildren(paragraph("Loading…"));
  const closed = opened($("card"));
  const shown = await sections(model);
  $("card-body").replaceChildren();
  appended($("card-body"), shown);
  await closed;
}

async function sections(model) {
  let card;
  try {
    card = await modelCard(model);
  } catch (error) {
    return [paragraph(error.message)];
  }
  if (card.text === null) return [paragraph(NO_CARD)];
  const whole = element("details", {}, element("summary", { textContent: "The whole card" }), render(card.text));
  return card.limits === null ? [paragraph(NO_LIMITS), whole] : [render(card.limits), whole].flat();
}

function paragraph(textContent) {
  return element("p", { textContent });
}
