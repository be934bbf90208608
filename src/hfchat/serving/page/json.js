// JSON as it was written: only white space is changed, because a number read and written again may be another one.

/** The value of a text that is JSON, undefined if it is none. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** JSON with a line for each entry; a text that is no JSON stays as it is. */
export function pretty(text) {
  if (parsed(text) === undefined) return text;
  const parts = text.match(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/g);
  let depth = 0;
  let written = "";
  const line = () => `\n${"  ".repeat(Math.min(depth, 40))}`;
  for (const [index, part] of parts.entries()) {
    const isEmpty = "[{".includes(parts[index - 1] ?? " ") && "]}".includes(part);
    if ("]}".includes(part)) depth--;
    if ("]}".includes(part) && !isEmpty) written += line();
    written += part === ":" ? ": " : part;
    if ("[{".includes(part)) depth++;
    if (part === "," || ("[{".includes(part) && !"]}".includes(parts[index + 1]))) written += line();
  }
  return written;
}

/** An answer that is one JSON object or list, made readable; one that begins as an object stays as it has come. */
export function jsonAnswer(text) {
  if (!/^\s*(?:\{\s*["}]|\[\s*[\]{["\d])/.test(text)) return null;
  if (typeof parsed(text) === "object") return pretty(text);
  return /^\s*\{\s*"/.test(text) ? text : null;
}
