// What panels share.

import { words } from "../strings.js";

export const idsOf = (version) => version.document.output.map((row) => row.id);

// Why a panel about the tokens of an answer cannot be shown; empty if it can.
export function needsIds(version) {
  const output = version.document.output;
  return output?.length && output.every((row) => row.id !== null) ? "" : words.unavailable;
}
