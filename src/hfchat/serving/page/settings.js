// What the person sets for the answers to come. It is forgotten with the page.

import { $ } from "./dom.js";

// A second answer to the same question is another one only if the words are drawn with some freedom.
const RETRY_TEMPERATURE = 0.7;

export function isPrivate() {
  return $("private").checked;
}

/** The fields of a request for an answer to `messages`. */
export function requestFields(model, messages, { isRetry }) {
  const system = $("system").value.trim();
  const temperature = $("temperature").valueAsNumber || 0;
  const maxTokens = $("max-tokens").valueAsNumber;
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: isRetry ? Math.max(temperature, RETRY_TEMPERATURE) : temperature,
    ...(maxTokens ? { max_tokens: maxTokens } : {}),
    ...(isPrivate() ? { store: false } : {}),
  };
}
