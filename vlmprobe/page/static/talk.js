// A conversation whose answers can have branches. A turn is a question; its versions are its answers; what was asked
// after an answer stays with that answer, so that to walk back to a version brings back what followed.

export class Talk {
  constructor() {
    this.next = null; // the first turn
  }

  // The turns that are on the screen, from the first one.
  path() {
    const turns = [];
    for (let turn = this.next; turn; turn = turn.current?.next) turns.push(turn);
    return turns;
  }

  // Ask after the last answer.
  ask(question) {
    const turns = this.path(), last = turns.at(-1);
    const turn = { ...question, before: turns.map((each) => ({ turn: each, version: each.current })), versions: [], current: null };
    if (last) last.current.next = turn;
    else this.next = turn;
    return turn;
  }

  // Give up a question that has no answer.
  drop(turn) {
    const holder = turn.before.at(-1)?.version || this;
    if (holder.next === turn) holder.next = null;
  }
}

// One more answer to a turn; `from` is {version, index, alternative} of a branch.
export function addVersion(turn, from = null) {
  const version = { from, document: null, key: null, next: null, panels: {} };
  if (from) {
    const said = from.version.document.output;
    version.begin = [...said.slice(0, from.index).map((row) => row.id), from.alternative.id];
    version.instead = said[from.index].token;
  }
  turn.versions.push(version);
  turn.current = version;
  return version;
}

export function dropVersion(turn, version) {
  turn.versions = turn.versions.filter((each) => each !== version);
  turn.current = version.from?.version || turn.versions.at(-1) || null;
}

// Branches as a tree: [version, depth], each below the one that it came from.
export function outline(turn) {
  const listed = [];
  const add = (version, depth) => {
    listed.push([version, depth]);
    for (const each of turn.versions) if (each.from?.version === version) add(each, depth + 1);
  };
  for (const each of turn.versions) if (!each.from) add(each, 0);
  return listed;
}

export function textOf(document) {
  return document.candidates ? document.best || "" : document.text;
}

// What the server is asked for a turn: the conversation so far, and the question.
export function specOf(turn, version) {
  const messages = [];
  for (const { turn: each, version: answer } of turn.before) {
    messages.push(message(each), { role: "assistant", text: textOf(answer.document) || "…" });
  }
  messages.push(message(turn));
  const spec = { messages, options: turn.options, model: turn.model };
  if (turn.kind !== "answer") Object.assign(spec, { kind: turn.kind, texts: turn.texts });
  if (version?.begin) spec.begin = version.begin;
  return spec;
}

const message = (turn) => ({ role: "user", text: turn.text, images: turn.images });

export const keysOf = (spec) => [...new Set(spec.messages.flatMap((each) => each.images || []))];
