"use strict";
// The table of all rows. They come in scripts that call vlmprobeRows, since a page that is opened from a disk may load a
// script, but not fetch a file. Every text is put in as text, never as HTML.
(() => {
  const section = document.getElementById("table");
  const config = JSON.parse(section.dataset.config);
  const PAGE = 100, AT_ONCE = 4;
  const ROW = 0, ID = 1, QUESTION = 2, ANSWER = 3, LABEL = 4, CONFIDENCE = 5, VERDICT = 6, LINK = 7, OTHER = 8;
  const DIFFER = 9, FLIPPED = 10;
  const WORDS = { 1: "right", 0: "wrong", 2: "failed" };
  const columns = [["row", ROW], ["id", ID], ["question", QUESTION], ["answer", ANSWER]];
  if (config.against) columns.push(["other run", OTHER]);
  if (config.judged) columns.push(["label", LABEL]);
  columns.push(["confidence", CONFIDENCE], ["verdict", VERDICT]);
  const numeric = new Set([ROW, CONFIDENCE]);

  const get = (id) => document.getElementById(id);
  const told = get("told"), body = get("rows"), search = get("search"), kind = get("kind"), low = get("low"), high = get("high");
  const pieces = [], missing = [];
  let all = [], shown = [], texts = [], page = 0, by = -1, down = false, done = 0;

  window.vlmprobeRows = (number, rows) => { pieces[number] = rows; };

  const order = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => {
    const x = all[a][by], y = all[b][by];
    if (x === y) return a - b;
    if (x === null || x === "") return 1; // what is not known stands last, in either direction
    if (y === null || y === "") return -1;
    const found = typeof x === "number" && typeof y === "number" ? x - y : order.compare(String(x), String(y));
    return (down ? -found : found) || a - b;
  };

  function choose() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const from = low.value === "" ? -Infinity : low.value / 100, to = high.value === "" ? Infinity : high.value / 100;
    const bounded = low.value !== "" || high.value !== "";
    const tests = {
      all: () => true,
      right: (row) => row[VERDICT] === 1,
      wrong: (row) => row[VERDICT] === 0,
      failed: (row) => row[VERDICT] === 2,
      differ: (row) => row[DIFFER] === 1,
      flipped: (row) => row[FLIPPED] === 1,
    };
    const fits = tests[kind.value] || tests.all;
    shown = [];
    for (let place = 0; place < all.length; place++) {
      const row = all[place];
      if (!fits(row)) continue;
      if (bounded && (row[CONFIDENCE] === null || row[CONFIDENCE] < from || row[CONFIDENCE] > to)) continue;
      if (words.length) {
        texts[place] ??= [row[ID], row[QUESTION], row[ANSWER], row[LABEL]].join("\n").toLowerCase();
        if (!words.every((word) => texts[place].includes(word))) continue;
      }
      shown.push(place);
    }
    if (by >= 0) shown.sort(compare);
    page = 0;
    draw();
  }

  // As on the other pages: marked as inexact near 0 and 1.
  const percent = (value) => value === null ? "–" : value >= 0.9995 ? ">99.9%" : value < 0.0005 ? "<0.1%" : `${(100 * value).toFixed(1)}%`;

  function cell(row, column) {
    const made = document.createElement("td");
    if (!numeric.has(column)) {
      made.className = "others";
      made.dir = "auto";
    }
    const value = row[column];
    if (column === CONFIDENCE) made.textContent = percent(value);
    else if (column === VERDICT) {
      const mark = document.createElement("span");
      mark.textContent = WORDS[value] || "–";
      if (value === 0 || value === 2) mark.className = WORDS[value];
      made.append(mark);
    } else if (column === ROW && row[LINK] >= 0) {
      const link = document.createElement("a");
      link.href = `row-${row[LINK]}.html`;
      link.textContent = value;
      made.append(link);
    } else made.textContent = value;
    return made;
  }

  function draw() {
    const count = shown.length, last = Math.max(0, Math.ceil(count / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const lines = shown.slice(page * PAGE, (page + 1) * PAGE).map((place) => {
      const line = document.createElement("tr");
      line.append(...columns.map(([, column]) => cell(all[place], column)));
      return line;
    });
    body.replaceChildren(...lines);
    const number = (value) => value.toLocaleString("en");
    let text = count ? `${number(page * PAGE + 1)} to ${number(Math.min(count, (page + 1) * PAGE))} of ${number(count)} rows` : "No row fits";
    if (count < all.length) text += `, out of ${number(all.length)}`;
    if (done < config.pieces) text += `; reading, ${done} of ${config.pieces} files`;
    if (missing.length) text += `; ${missing.length} files are not there, such as rows-${missing[0]}.js`;
    told.textContent = text;
    for (const button of section.querySelectorAll("[data-go]")) {
      button.disabled = ["first", "before"].includes(button.dataset.go) ? page === 0 : page >= last;
    }
    for (const head of get("columns").children) {
      if (+head.dataset.column === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  for (const [name, column] of columns) {
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "col";
    head.dataset.column = column;
    if (!numeric.has(column)) head.className = "others";
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      down = by === column && !down;
      by = column;
      choose();
    });
    head.append(button);
    get("columns").append(head);
  }
  let waiting;
  for (const field of [search, kind, low, high]) {
    for (const event of ["input", "change"]) {
      field.addEventListener(event, () => {
        clearTimeout(waiting);
        waiting = setTimeout(choose, field === kind ? 0 : 150);
      });
    }
  }
  for (const button of section.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => {
      page = { first: 0, before: page - 1, after: page + 1, last: Infinity }[button.dataset.go];
      draw();
    });
  }

  let next = 0;
  function read() {
    if (next >= config.pieces) return;
    const number = next++, script = document.createElement("script");
    const ended = () => {
      done++;
      if (!pieces[number]) missing.push(number);
      script.remove();
      if (done === 1 || done === config.pieces) {
        all = [].concat(...pieces.filter(Boolean));
        texts = [];
        choose();
      } else draw();
      read();
    };
    script.onload = ended;
    script.onerror = ended;
    script.src = `rows-${number}.js`;
    document.head.append(script);
  }
  for (let count = 0; count < AT_ONCE; count++) read();
})();
