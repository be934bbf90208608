// What the person sets for the answers to come. It is forgotten with the page.

import { ServerError } from "./api.js";
import { $ } from "./dom.js";
import { checked, readSchema, readTools } from "./tools.js";

// A second answer to the same question is another one only if the words are drawn with some freedom.
const RETRY_TEMPERATURE = 0.7;

export function isPrivate() {
  return $("private").checked;
}

/** The names of the functions that the model is offered. */
export function offered() {
  return (readTools($("tools").value).tools ?? []).map((tool) => tool.function.name);
}

/** The fields of a request for an answer to `messages`. */
export function requestFields(model, messages, { isRetry }) {
  const system = $("system").value.trim();
  const temperature = $("temperature").valueAsNumber || 0;
  const maxTokens = $("max-tokens").valueAsNumber;
  const { tools, problem: ofTools } = readTools($("tools").value);
  const { format, problem: ofSchema } = readSchema($("schema").value);
  if (ofTools || ofSchema) throw new ServerError(`Look at the settings. ${ofTools ?? ofSchema}`);
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: isRetry ? Math.max(temperature, RETRY_TEMPERATURE) : temperature,
    ...(maxTokens ? { max_tokens: maxTokens } : {}),
    ...(tools.length ? { tools } : {}),
    ...(format ? { response_format: format } : {}),
    ...(isPrivate() ? { store: false } : {}),
  };
}

/** Look at what is pasted into the settings as soon as it is. */
export function checkSettings() {
  checked($("tools"), $("tools-problem"), readTools);
  checked($("schema"), $("schema-problem"), readSchema);
}
