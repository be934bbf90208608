// The tools that a developer pastes into the settings, and the schema of the answer: read, or said what is wrong.

import { parsed } from "./json.js";

const NAME = /^[a-zA-Z0-9_-]{1,64}$/;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * {tools} as a request has them, none of an empty text, or {problem} in words. A list of tools or of their functions
 * is taken, and one of either.
 */
export function readTools(text) {
  if (!text.trim()) return { tools: [] };
  const value = parsed(text);
  if (value === undefined) return { problem: notJson(text) };
  const tools = [];
  for (const [index, given] of [value].flat().entries()) {
    const place = `Tool ${index + 1}`;
    if (!isObject(given)) return { problem: `${place} must be an object: {"type": "function", "function": {…}}.` };
    const tool = "function" in given ? { type: "function", ...given } : { type: "function", function: given };
    const { name, parameters } = isObject(tool.function) ? tool.function : {};
    if (typeof name !== "string") return { problem: `${place} has no name: {"name": "…", "parameters": {…}}.` };
    if (!NAME.test(name)) return { problem: `${place}: a name is 1 to 64 letters, digits, _ and -, not "${name}".` };
    if (tools.some((other) => other.function.name === name)) return { problem: `Two functions are called ${name}.` };
    if (parameters != null && !isObject(parameters)) {
      return { problem: `${place}, ${name}: "parameters" must be a JSON schema, which is an object.` };
    }
    tools.push(tool);
  }
  return { tools };
}

/** {format} as a request has it, null of an empty text, or {problem}. */
export function readSchema(text) {
  if (!text.trim()) return { format: null };
  const value = parsed(text);
  if (value === undefined) return { problem: notJson(text) };
  if (!isObject(value)) return { problem: "A JSON schema is an object, such as {\"type\": \"object\"}." };
  if (typeof value.type === "string" && /^(text|json_object|json_schema)$/.test(value.type)) return { format: value };
  return { format: { type: "json_schema", json_schema: { name: "answer", schema: value } } };
}

/** {calls} as feedback takes them, or {problem}: a list of {"name", "arguments"}, of functions that were offered. */
export function readCalls(text, names) {
  if (!text.trim()) return { calls: [] };
  const value = parsed(text);
  if (value === undefined) return { problem: notJson(text) };
  const calls = [];
  for (const [index, given] of [value].flat().entries()) {
    const call = isObject(given) ? (given.function ?? given) : {};
    const place = `Call ${index + 1}`;
    if (!names.includes(call.name)) {
      return { problem: `${place} needs a "name" that is one of ${names.join(", ")}.` };
    }
    if (!isObject(call.arguments)) return { problem: `${place}, ${call.name}: "arguments" must be an object.` };
    calls.push({ function: { name: call.name, arguments: call.arguments } });
  }
  return { calls };
}

function notJson(text) {
  try {
    JSON.parse(text);
  } catch (error) {
    return `This is not JSON: ${error.message}.`;
  }
}

/** Say below a field what is wrong with it, as soon as it is; its form cannot be sent until it is right. */
export function checked(field, problem, read) {
  const check = () => {
    const found = read(field.value).problem ?? "";
    field.setCustomValidity(found);
    field.ariaInvalid = String(Boolean(found));
    problem.textContent = found;
    problem.hidden = !found;
  };
  field.addEventListener("input", check);
  field.addEventListener("invalid", () => field.closest("details")?.setAttribute("open", "")); // or nobody would see it
  check();
}
