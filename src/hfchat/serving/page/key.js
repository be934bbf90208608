// The API key, where the server wants one. It stays in this page's memory and is gone with it.

import { $, opened } from "./dom.js";

let key = null;
let asking = null;

export function authorization() {
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/** Ask for a key; false if the person would rather not. Who asks meanwhile waits for the same answer. */
export function askForKey() {
  asking ??= ask().finally(() => { asking = null; });
  return asking;
}

async function ask() {
  $("key-wrong").hidden = key === null;
  $("key-input").value = "";
  const given = (await opened($("key"))) === "use";
  if (given) key = $("key-input").value.trim();
  $("key-input").value = "";
  return given;
}
