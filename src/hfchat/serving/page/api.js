// The server's API, as this page needs it.

import { askForKey, authorization } from "./key.js";

/** What the person should read. `code` is OpenAI's, `retryAfter` the seconds that the server wants to be left alone. */
export class ServerError extends Error {
  constructor(message, code = null, retryAfter = 0) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running, and is this machine on the network?";
const CUT = "The connection was lost before the answer was complete.";
// A map, as an upstream's code may be any word, such as that of a property that every object has.
const IN_OTHER_WORDS = new Map([
  [
    "context_length_exceeded",
    "This conversation is longer than the model can read. Start a new chat, edit an earlier message, " +
      "or allow fewer tokens for the answer under Settings.",
  ],
  ["answer_not_found", "The server does not have this answer any more, so it cannot take feedback on it."],
]);

async function request(path, { body, signal } = {}) {
  for (;;) {
    const response = await send(path, body, signal);
    if (response.ok) return response;
    if (response.status === 401 && (await askForKey())) continue;
    const { error } = (await response.json().catch(() => null)) ?? {};
    const known = IN_OTHER_WORDS.get(error?.code) ?? error?.message;
    const words = known ?? `The server answered with status ${response.status}.`;
    throw new ServerError(words, error?.code, Number(response.headers.get("Retry-After")) || 0);
  }
}

async function send(path, body, signal) {
  const json = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const headers = { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...authorization() };
  try {
    return await fetch(path, { ...json, headers, signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
  }
}

async function get(path) {
  return (await request(path)).json();
}

/** The names of the models, the main one first. */
export async function modelNames() {
  return (await get("/v1/models")).data.map(({ id }) => id);
}

/** {text, limits}: Markdown, or null for what there is not. */
export function modelCard(model) {
  return get(`/v1/models/${encodeURIComponent(model)}/card`);
}

/** {enabled, keeps_conversations, logs_content}: whether the server takes feedback, keeps what nobody rated, and logs all. */
export async function feedbackSettings() {
  try {
    return await get("/v1/feedback/settings");
  } catch {
    return { enabled: false, keeps_conversations: false, logs_content: false };
  }
}

export async function sendFeedback(feedback) {
  await request("/v1/feedback", { body: feedback });
}

/**
 * Yields {id, text, reasoning, calls, finishReason} until the answer to a request (its fields are OpenAI's) ends; the
 * calls are what the API says of them (`addCalls`).
 * Throws ServerError, or AbortError once the signal aborts.
 */
export async function* answer(fields, signal) {
  const response = await request("/v1/chat/completions", { body: { ...fields, stream: true }, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
    const [choice] = chunk.choices;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
    yield {
      id: chunk.id, text: content ?? "", reasoning: reasoning ?? "", calls: calls ?? [],
      finishReason: choice.finish_reason,
    };
  }
  throw new ServerError(CUT);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerError(CUT);
    }
    if (part.done) return;
    buffer += part.value;
    const complete = buffer.split("\n\n");
    buffer = complete.pop();
    for (const event of complete) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
