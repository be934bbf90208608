// The server's API, as this page needs it: the model's name, and an answer as a stream of text.

export class ServerError extends Error {}

const UNREACHABLE = "The server cannot be reached. Is `hfchat serve` still running?";

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ServerError(body?.error?.message ?? `The server answered with status ${response.status}.`);
}

export async function modelName() {
  const response = await request("/v1/models");
  return (await response.json()).data[0].id;
}

/** Yields {text, finishReason} until the answer ends. Throws ServerError, or AbortError once the signal aborts. */
export async function* answer(model, messages, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    // 0: a small model is at its most reliable when it takes the likeliest words.
    body: JSON.stringify({ model, messages, stream: true, temperature: 0 }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    const [choice] = chunk.choices;
    yield { text: choice.delta.content ?? "", finishReason: choice.finish_reason };
  }
  throw new ServerError("The connection was lost before the answer was complete.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerError("The connection was lost.");
    }
    if (part.done) return;
    buffer += part.value;
    const complete = buffer.split("\n\n");
    buffer = complete.pop();
    for (const event of complete) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
