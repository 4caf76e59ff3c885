// An answer whose tokens are shaded by their probability, and candidates with bars. One module without dependencies or a
// build step, for a page, a notebook and a report. A document is what Result.to_dict() or Scores.to_dict() gives; `images`
// beside it may hold data: URLs. Whatever a model wrote is put in as text, never as HTML.
//
//   showAnswer(element, document, {onSelect, onAlternative, lang, legend = true})
//   showScores(element, document, {onSelect, lang})
//
// Both return {append(rows), update(document), select(index, part), selected, destroy()}; the element needs the style of
// style.css and answer.css. append() is for an answer that is being generated: nothing stands below the text until
// update() gets the whole. update() keeps what is selected, and the elements of tokens that stay. `selected` is
// {part, index, row} or null: part is "output" or "prompt", and of candidates "candidates"; index counts from 0; row is
// the document's own. onSelect(index, row, part) follows a click or the keys, not select(), and gets (null, null, part)
// where nothing is selected any more. onAlternative(tokenIndex, alternative) follows a click or Enter on another token
// than the one that was said; without it alternatives are only shown.

export const LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.03]; // level n holds the probabilities from LEVELS[n] up to LEVELS[n - 1]
const DASH = "–", PIECE = "◌";
const FIRST_CANDIDATES = 25;
const LONG = 20; // tokens of an answer from which on several of its least sure ones are named
const MOST_SHOWN = 400; // characters of one token, since a single one may hold a million
const MOST_LINES = 12; // of the panel; it scrolls if there are more
const HOVER = 80; // milliseconds that the pointer rests on a token before it is shown: it may be on its way to the panel
const ROW = 28, ROWS_SEEN = 12, SPARE = 10; // of the prompt: pixels of a row, rows in sight, rows drawn beyond them
const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]/gu;

// --- Words, which the static report takes from here too ---
const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const WORDS = {
  en: {
    answer: "answer, token by token",
    alternatives: "What else it could have said",
    hint: "Point at a token, tap it, or move with the arrow keys, for what else it could have said.",
    hintBranch: "An alternative can be chosen: the answer continues from there.",
    branch: "continue from here with",
    rank: "rank", entropy: "entropy", logprob: "logprob", sampled: "sampled at", nats: "nats",
    first: "no distribution before this token", unknown: "its probability is not known", piece: "no text of its own",
    others: "all others", atLeast: "at least",
    confidence: "confidence", confidenceMeans: "probability of the whole answer given the prompt",
    perToken: "per token", perTokenMeans: "mean probability of a token (geometric)",
    perplexity: "perplexity", perplexityMeans: "exp of the mean negative log-probability per token",
    meanEntropy: "mean entropy", meanEntropyMeans: "of the distributions that the tokens were drawn from",
    leastSure: "least sure", leastSureMeans: "tokens of least probability",
    tokens: "tokens", tokensMean: "generated, the end token included",
    finish: "finish", finishMeans: "stop: an end; length: cut at the limit",
    legend: "probability of a token", details: "Details", prompt: "Prompt", image: "image", positions: "positions", runs: "runs",
    question: "Question", ask: "Ask", stop: "Stop", back: "Back",
    token: "token", probability: "probability", likelier: "likeliest others",
    candidate: "candidate", among: "probability among these", mean: "per token", perByte: "per byte",
    together: "Together the candidates hold", of: "of what the model would say.", inNats: "Log-probabilities in nats.",
    raw: "Every number is of the model's raw logits, in nats.", rightAnswer: "right answer",
    more: "more candidates", candidates: "candidates", tokensOf: "Tokens of",
    countTokens: (n) => counted(n, "token"), countImages: (n) => counted(n, "image"), countResults: (n) => counted(n, "result"),
  },
  zh: {
    answer: "回答（逐个 token）",
    alternatives: "此处其他可能的 token",
    hint: "将鼠标移到某个 token 上、点按它或用方向键移动，即可查看此处其他可能的 token。",
    hintBranch: "选择其中一个，回答就会从那里继续生成。",
    branch: "从这里改用并继续生成：",
    rank: "排名", entropy: "熵", logprob: "logprob", sampled: "采样时", nats: "nats",
    first: "该 token 之前没有分布", unknown: "概率未知", piece: "自身没有文本",
    others: "其余全部", atLeast: "至少",
    confidence: "置信度", confidenceMeans: "给定提示词时整个回答的概率",
    perToken: "每个 token", perTokenMeans: "单个 token 的平均概率（几何平均）",
    perplexity: "困惑度", perplexityMeans: "每个 token 负对数概率均值的指数",
    meanEntropy: "平均熵", meanEntropyMeans: "各 token 所在分布的熵的均值",
    leastSure: "最不确定", leastSureMeans: "概率最低的 token",
    tokens: "token 数", tokensMean: "生成的 token 数，含结束 token",
    finish: "结束方式", finishMeans: "stop：正常结束；length：达到长度上限",
    legend: "token 的概率", details: "详细信息", prompt: "提示词", image: "图像", positions: "个位置", runs: "段",
    question: "问题", ask: "提问", stop: "停止", back: "返回",
    token: "token", probability: "概率", likelier: "其他最可能的 token",
    candidate: "候选", among: "在候选中的概率", mean: "每 token", perByte: "每字节",
    together: "这些候选合计占模型输出概率的", of: "。", inNats: "对数概率单位为 nats。",
    raw: "所有数值均由模型的原始 logits 计算，单位为 nats。", rightAnswer: "正确答案",
    more: "个其余候选", candidates: "候选", tokensOf: "候选的 token：",
    countTokens: (n) => `${n.toLocaleString("en")} 个 token`, countImages: (n) => `${n.toLocaleString("en")} 张图像`,
    countResults: (n) => `${n.toLocaleString("en")} 个结果`,
  },
};

// --- End of the words ---

// The words of a language, as "zh-CN" or a list of them by preference; English where there are none.
export function wordsOf(lang) {
  for (const each of [lang].flat()) {
    const found = WORDS[String(each || "").toLowerCase().split("-")[0]];
    if (found) return found;
  }
  return WORDS.en;
}

// --- Numbers and texts as the static report writes them (vlmprobe/display/view.py) ---

const known = (value) => typeof value === "number" && !Number.isNaN(value);

function visible(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "␡" : `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
}

// Text with control characters, bidirectional overrides and lone surrogates visible; breaks and tabs stay.
export function plain(text) {
  return text.replace(UNSAFE, visible);
}

// One line that names a token: outer spaces, line breaks and tabs made visible, never empty.
export function label(text) {
  if (!text) return PIECE;
  const lead = text.length - text.replace(/^ +/, "").length, inner = text.replace(/^ +| +$/g, "");
  const shown = "␣".repeat(lead) + inner + "␣".repeat(text.length - lead - inner.length);
  return plain(shown.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
}

export function level(probability) {
  if (!known(probability)) return null;
  const place = LEVELS.findIndex((bound) => probability >= bound);
  return place < 0 ? LEVELS.length : place;
}

export function percent(probability) {
  if (!known(probability)) return DASH;
  if (probability >= 0.9995 && probability <= 1.0005) return ">99.9%";
  return probability < 0.0005 ? "<0.1%" : `${(100 * probability).toFixed(1)}%`;
}

export function nats(value) {
  if (!known(value)) return DASH;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = value.toFixed(Math.abs(value) < 10 ? 3 : Math.abs(value) < 100 ? 2 : 1);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

// The probability exp(logprob) however small it is: in percent, or else as a power of ten.
export function tiny(logprob) {
  if (!known(logprob) || logprob >= Math.log(0.0005)) return percent(known(logprob) ? Math.exp(Math.min(logprob, 0)) : null);
  if (!Number.isFinite(logprob)) return "0";
  let exponent = Math.floor(logprob / Math.LN10);
  let mantissa = (10 ** (logprob / Math.LN10 - exponent)).toFixed(1);
  if (mantissa === "10.0") [mantissa, exponent] = ["1.0", exponent + 1];
  const raised = [...String(exponent)].map((digit) => digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("");
  return `${mantissa} × 10${raised}`;
}

// A positive number in three digits, or whole with separators from 1,000 on.
export function short(value) {
  if (!known(value)) return DASH;
  if (!Number.isFinite(value)) return "∞";
  return value >= 999.5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

const cut = (text) => text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text;
const bounded = (row) => !known(row.logprob) && known(row.logprob_at_most);
const logprobOf = (row) => known(row.logprob) ? row.logprob : bounded(row) ? row.logprob_at_most : null;
const probabilityOf = (row) => known(logprobOf(row)) ? Math.exp(logprobOf(row)) : null;
const atMost = (probability) => probability >= 0.9995 ? "≤ 100%" : `≤ ${percent(probability).replace("<", "")}`;
const shareOf = (row) => bounded(row) ? atMost(probabilityOf(row)) : percent(probabilityOf(row));

// The alternatives of a row, likeliest first, the token that was said among them; and what all others hold.
function choicesOf(row) {
  const given = row.alternatives || [];
  const found = given.map((each, place) => ({
    each,
    probability: Math.exp(each.logprob),
    chosen: known(row.id) ? each.id === row.id : row.rank === place,
  }));
  if (found.length && known(row.logprob) && !found.some(({ chosen }) => chosen)) {
    found.push({ each: { id: row.id, token: row.token, logprob: row.logprob }, probability: Math.exp(row.logprob), chosen: true });
  }
  const rest = found.length ? Math.max(0, 1 - found.reduce((sum, { probability }) => sum + probability, 0)) : null;
  return { choices: found, rest };
}

// --- Elements ---

let views = 0;

// A maker of elements in one page: tag, classes, text, attributes.
function maker(page) {
  return (tag, classes = "", text = "", attributes = {}) => {
    const made = page.createElement(tag);
    if (classes) made.className = classes;
    if (text !== "") made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
}

function bar(make, tag, classes, name, share, probability) {
  const made = make(tag, classes);
  if (name !== null) made.append(make("span", "", cut(name), { dir: "auto" }));
  made.append(make("b", "", share));
  made.style.setProperty("--w", known(probability) ? Math.min(1, Math.max(0, probability)).toFixed(3) : "0");
  return made;
}

function pictures(make, words, urls) {
  const figure = make("figure");
  for (const [place, url] of urls.entries()) {
    if (!/^data:image\//.test(url)) continue; // nothing is fetched
    const image = make("img", "", "", { alt: `${words.image} ${place + 1}` });
    image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 96));
    image.src = url;
    figure.append(image);
  }
  return figure;
}

// The panel beside a text: the numbers of one row and what else could have been said there.
function panel(make, words, id, onAlternative, back) {
  const root = make("div", "panel", "", { id, role: "group", "aria-label": words.alternatives });
  const list = make("ul", "choices");
  let shown = null;

  function show(row, index, part) {
    if (row === shown?.row && index === shown.index) return;
    shown = row ? { row, index } : null;
    root.classList.toggle("empty", !row);
    if (!row) {
      root.replaceChildren(make("p", "note", onAlternative ? `${words.hint} ${words.hintBranch}` : words.hint));
      return;
    }
    const head = make("p", "head");
    head.append(make("b", "", cut(label(row.token)), { dir: "auto" }), make("b", "", shareOf(row)));
    const facts = [];
    if (bounded(row)) facts.push(`${words.logprob} ≤ ${nats(row.logprob_at_most)}`);
    else if (!known(row.logprob)) facts.push(row.position === 0 ? words.first : words.unknown);
    else {
      if (known(row.rank)) facts.push(`${words.rank} ${row.rank}`);
      if (known(row.entropy)) facts.push(`${words.entropy} ${nats(row.entropy)} ${words.nats}`);
      else if (known(row.entropy_at_least)) facts.push(`${words.entropy} ≥ ${nats(row.entropy_at_least)} ${words.nats}`);
      facts.push(`${words.logprob} ${nats(row.logprob)}`);
      if (known(row.score)) facts.push(`${words.sampled} ${nats(row.score)}`);
    }
    if (!row.token) facts.push(words.piece);
    const { choices, rest } = choicesOf(row);
    list.replaceChildren(...choices.map(({ each, probability, chosen }) => {
      const line = make("li");
      const open = onAlternative && part === "output" && !chosen;
      const shownBar = bar(make, open ? "button" : "div", `choice${chosen ? " own" : ""}`, label(each.token), percent(probability), probability);
      if (open) {
        shownBar.type = "button";
        shownBar.title = `${words.branch} ${cut(label(each.token))}`;
        shownBar.addEventListener("click", () => onAlternative(index, each));
      }
      line.append(shownBar);
      return line;
    }));
    if (rest >= 0.0005) {
      const line = make("li");
      line.append(bar(make, "div", "choice other", words.others, percent(rest), rest));
      list.append(line);
    }
    const told = make("p", "note");
    for (const [place, fact] of facts.entries()) told.append(place ? " · " : "", make("span", "fact", fact));
    root.replaceChildren(head, told, list);
    list.hidden = !choices.length;
  }

  root.addEventListener("keydown", (event) => {
    const buttons = [...root.querySelectorAll("button")], place = buttons.indexOf(event.target);
    if (event.key === "Escape" || (event.key === "ArrowUp" && place === 0)) back();
    else if (event.key === "ArrowUp") buttons[place - 1]?.focus();
    else if (event.key === "ArrowDown") buttons[place + 1]?.focus();
    else return;
    event.preventDefault();
  });
  show(null);
  return { root, show, enter: () => { const first = root.querySelector("button"); first?.focus(); return Boolean(first); } };
}

// As many lines as the panel will need, so that it is as high before anything is pointed at.
function reserve(root, rows) {
  const most = rows.reduce((found, row) => Math.max(found, (row.alternatives || []).length), 0);
  const now = Number(root.style.getPropertyValue("--choices"));
  if (most + 1 > now) root.style.setProperty("--choices", Math.min(most + 1, MOST_LINES));
}

const looksAlike = (a, b) => a.token === b.token && a.kind === b.kind && logprobOf(a) === logprobOf(b) && bounded(a) === bounded(b);

// Tokens as running text with one tab stop. Nothing is put between them: the text keeps its own white space.
function tokenText(make, words, name, describedBy, { look, choose, enter }) {
  const root = make("div", "tokens", "", { role: "listbox", "aria-label": name, "aria-orientation": "horizontal", dir: "auto" });
  let rows = [], spans = [], selected = null, waiting;

  function append(more) {
    const pieces = [];
    for (const row of more) {
      const text = plain(row.token || ""), shade = level(probabilityOf(row));
      const lead = text[0] === " " && text.trim() && row.kind === "text" ? " " : "";
      const kind = row.kind === "special" ? " special" : !text ? " piece" : !text.trim() && text.includes("\n") ? " break" : "";
      const span = make("span", `t${shade === null ? "" : ` l${shade}`}${kind}`, cut(text.slice(lead.length)), {
        role: "option",
        tabindex: rows.length ? "-1" : "0",
        "aria-selected": "false",
        "aria-describedby": describedBy,
        "aria-label": `${cut(label(row.token)).replaceAll("␣", " ").trim() || label(row.token)} ${shareOf(row)}`,
      });
      span.dataset.index = rows.length;
      rows.push(row);
      spans.push(span);
      if (lead) pieces.push(lead);
      pieces.push(span);
    }
    root.append(...pieces);
  }

  function select(index, focus = false) {
    const before = spans[selected ?? 0], next = spans[index];
    before?.setAttribute("aria-selected", "false");
    selected = next ? index : null;
    if (!next) return;
    before?.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.setAttribute("aria-selected", "true");
    if (focus) next.focus();
  }

  const indexOf = (event) => {
    const span = event.target.closest?.(".t");
    return span && root.contains(span) ? Number(span.dataset.index) : null;
  };
  root.addEventListener("pointerover", (event) => {
    const index = indexOf(event);
    clearTimeout(waiting);
    if (index !== null && event.pointerType !== "touch") waiting = setTimeout(() => look(rows[index], index), HOVER);
  });
  root.addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    if (selected !== null) look(rows[selected], selected);
  });
  root.addEventListener("click", (event) => {
    const index = indexOf(event);
    if (index !== null) choose(index, true);
  });
  root.addEventListener("keydown", (event) => {
    const index = indexOf(event);
    if (index === null) return;
    const moved = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (moved !== undefined) choose(Math.min(rows.length - 1, Math.max(0, moved)), true);
    else if (event.key === "Enter" || event.key === " ") choose(index, true);
    else if (event.key === "ArrowDown") { choose(index, true); if (!enter()) return; }
    else if (event.key === "Escape") choose(null);
    else return;
    event.preventDefault();
  });
  // A tab stop that the keyboard reaches is looked at, though not yet selected.
  root.addEventListener("focusin", (event) => { const index = indexOf(event); if (index !== null) look(rows[index], index); });

  return {
    root,
    append,
    select,
    focus: () => spans[selected ?? 0]?.focus(),
    replace(next) {
      clearTimeout(waiting);
      const stays = next.length >= rows.length && rows.every((row, place) => looksAlike(row, next[place]));
      if (stays) { // such as the whole answer after its streamed tokens: who reads them keeps their place
        const more = next.slice(rows.length);
        rows = next.slice(0, rows.length);
        append(more);
        return;
      }
      [rows, spans, selected] = [[], [], null];
      root.replaceChildren();
      append(next);
    },
    stop: () => clearTimeout(waiting),
  };
}

// The rows of a prompt in a box of their own: only those in sight exist, however many there are.
function promptRows(make, words, id, images, { look, choose }) {
  const whole = make("div", "prompt", "", { role: "grid", tabindex: "0", "aria-label": words.prompt });
  const root = make("div", "prompt-rows", "", { role: "presentation" });
  const head = make("div", "prompt-head", "", { role: "row", "aria-rowindex": "1" });
  for (const name of ["#", words.token, words.probability, words.logprob, words.rank, words.likelier]) {
    head.append(make("span", "", name, { role: "columnheader" }));
  }
  const space = make("div", "prompt-space", "", { role: "rowgroup" }), window_ = make("div", "prompt-window", "", { role: "presentation" });
  space.append(window_);
  root.append(space);
  whole.append(head, root);
  const drawn = new Map(); // index: element
  let rows = [], spans = [], selected = null, asked = 0;

  function line(row, index) {
    const made = make("div", "prompt-row", "", {
      role: "row", id: `${id}-${index}`, "aria-rowindex": index + 2, "aria-selected": String(index === selected),
    });
    made.dataset.index = index;
    const cell = (classes, text) => make("span", classes, text, { role: "gridcell" });
    const token = cell("name", "");
    if (row.kind === "image") {
      const start = spans.find((span) => span.start === row.position);
      const number = start ? start.image : rows.slice(0, index).filter(({ kind }) => kind === "image").length;
      const runs = spans.filter((span) => span.image === number);
      const chip = make("span", "chip");
      if (/^data:image\//.test(images[number] || "")) {
        const image = make("img", "", "", { alt: "" });
        image.src = images[number];
        chip.append(image);
      }
      const count = runs.reduce((sum, span) => sum + span.stop - span.start, 0);
      chip.append(`${words.image} ${number + 1} `);
      if (runs.length) chip.append(make("span", "faint", `${count.toLocaleString("en")} ${words.positions}${runs.length > 1 ? ` · ${runs.length} ${words.runs}` : ""}`));
      token.append(chip);
    } else {
      const shade = level(probabilityOf(row));
      token.append(make("bdi", `${shade === null ? "" : `l${shade}`}${row.kind === "special" ? " special" : ""}`, cut(label(row.token))));
    }
    const share = cell("share", "");
    share.append(bar(make, "span", "bar", null, row.kind === "image" ? "" : shareOf(row), probabilityOf(row)));
    const logprob = bounded(row) ? `≤ ${nats(row.logprob_at_most)}` : nats(row.logprob);
    const others = cell("likelier", "");
    for (const { each, probability, chosen } of choicesOf(row).choices.slice(0, 4)) {
      if (!chosen) others.append(make("bdi", "", cut(label(each.token))), " ", make("span", "faint", percent(probability)), "  ");
    }
    const number = (text) => cell("number", row.kind === "image" ? "" : text);
    made.append(cell("number faint", String(index)), token, share, number(logprob), number(known(row.rank) ? String(row.rank) : DASH), others);
    return made;
  }

  function draw() {
    asked = 0;
    const first = Math.max(0, Math.floor(root.scrollTop / ROW) - SPARE);
    const end = Math.min(rows.length, first + ROWS_SEEN + 2 * SPARE);
    for (const [index, element] of drawn) {
      if (index >= first && index < end) continue;
      element.remove();
      drawn.delete(index);
    }
    let next = null;
    for (let index = end - 1; index >= first; index--) {
      if (!drawn.has(index)) {
        drawn.set(index, line(rows[index], index));
        window_.insertBefore(drawn.get(index), next);
      }
      next = drawn.get(index);
    }
    window_.style.transform = `translateY(${first * ROW}px)`;
  }

  function select(index, scroll = true) {
    drawn.get(selected)?.setAttribute("aria-selected", "false");
    selected = index;
    if (index === null) whole.removeAttribute("aria-activedescendant");
    else {
      const seen = root.clientHeight || ROW * ROWS_SEEN;
      if (scroll && index * ROW < root.scrollTop) root.scrollTop = index * ROW;
      else if (scroll && (index + 1) * ROW > root.scrollTop + seen) root.scrollTop = (index + 1) * ROW - seen;
      whole.setAttribute("aria-activedescendant", `${id}-${index}`);
    }
    draw();
    drawn.get(selected)?.setAttribute("aria-selected", "true");
  }

  root.addEventListener("scroll", () => { asked ||= requestAnimationFrame(draw); }, { passive: true });
  const indexOf = (event) => { const found = event.target.closest?.(".prompt-row"); return found ? Number(found.dataset.index) : null; };
  root.addEventListener("click", (event) => { const index = indexOf(event); if (index !== null) choose(index); });
  root.addEventListener("pointerover", (event) => {
    const index = indexOf(event);
    if (index !== null && event.pointerType !== "touch") look(rows[index], index);
  });
  root.addEventListener("pointerleave", () => { if (selected !== null) look(rows[selected], selected); });
  whole.addEventListener("keydown", (event) => {
    const last = rows.length - 1, at = selected ?? -1;
    const moved = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + ROWS_SEEN, PageUp: at - ROWS_SEEN, Home: 0, End: last }[event.key];
    if (moved !== undefined) choose(Math.min(last, Math.max(0, moved)));
    else if (event.key === "Escape") choose(null);
    else return;
    event.preventDefault();
  });
  return {
    root: whole,
    select,
    draw,
    focus: () => whole.focus(),
    replace(next, imageSpans) {
      [rows, spans, selected] = [next, imageSpans || [], null];
      drawn.clear();
      window_.replaceChildren();
      root.scrollTop = 0;
      whole.setAttribute("aria-rowcount", rows.length + 1);
      space.style.height = `${rows.length * ROW}px`;
      draw();
    },
    stop: () => { if (asked) cancelAnimationFrame(asked); },
  };
}

function legendOf(make, words) {
  const made = make("p", "legend");
  made.append(make("span", "faint", words.legend));
  LEVELS.forEach((bound, place) => made.append(" ", make("span", `l${place}`, `${place ? "" : "≥ "}${bound}`)));
  made.append(" ", make("span", `l${LEVELS.length}`, `< ${LEVELS.at(-1)}`));
  return made;
}

// Of all rows together: the log-probability, and its mean as a perplexity; null if one is only bounded, or none known.
function together(rows) {
  const given = rows.filter((row) => known(row.logprob));
  if (!given.length || rows.some(bounded)) return { logprob: null, perplexity: null };
  const logprob = given.reduce((sum, row) => sum + row.logprob, 0);
  return { logprob, perplexity: Math.exp(-logprob / given.length) };
}

// Name, value and meaning of an answer's summary metrics. Those of all tokens together are a dash where one is not known.
function figuresOf(document, words) {
  const rows = document.output, unknown = { logprob: null, perplexity: null };
  const { logprob, perplexity } = document.confidence === null ? unknown : together(rows); // null: tokens may be missing
  const entropies = rows.map((row) => row.entropy).filter(known);
  const mean = entropies.length ? entropies.reduce((sum, each) => sum + each, 0) / entropies.length : null;
  const worst = rows
    .map((row, place) => ({ row, place, logprob: logprobOf(row) }))
    .filter((each) => known(each.logprob))
    .sort((a, b) => a.logprob - b.logprob || a.place - b.place)
    .slice(0, rows.length < LONG ? 1 : 3);
  const found = [
    [words.confidence, tiny(logprob), words.confidenceMeans],
    [words.perToken, percent(perplexity === null ? null : 1 / perplexity), words.perTokenMeans],
    [words.perplexity, short(perplexity), words.perplexityMeans],
    [words.meanEntropy, mean === null ? DASH : `${nats(mean)} ${words.nats}`, words.meanEntropyMeans],
  ];
  found.push([words.tokens, rows.length.toLocaleString("en"), words.tokensMean]);
  if (document.finish_reason) found.push([words.finish, label(String(document.finish_reason)), words.finishMeans]);
  if (worst.length) {
    const shown = worst.map(({ row, logprob: value }) =>
      `${cut(label(row.token.trim() || row.token))} ${bounded(row) ? "≤ " : ""}${tiny(value)}`);
    found.push([words.leastSure, shown.join(" · "), words.leastSureMeans]);
  }
  return found;
}

// Where the numbers come from: name and value of everything in `meta`, and the model with its precision in one line.
function details(make, words, meta) {
  const written = (value) => plain(typeof value === "string" ? value : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : JSON.stringify(value));
  const made = make("details"), summary = make("summary", "", words.details), list = make("dl", "meta");
  const where = ["model", "adapter", "dtype", "device"].map((name) => meta[name]).filter(Boolean).map((each) => label(String(each)));
  summary.append(" ", make("span", "faint", where.join(" · ")));
  for (const [name, value] of Object.entries(meta)) {
    if (name !== "question") list.append(make("dt", "", label(name)), make("dd", "", written(value), { dir: "auto" }));
  }
  made.append(summary, list);
  made.hidden = !list.childElementCount;
  return made;
}

// The places of a view: pictures, the text with what stands below it, and the panel.
function frame(element, document, words) {
  const make = maker(element.ownerDocument);
  const root = make("div", "vlmprobe answer-view", "", { lang: words === WORDS.zh ? "zh" : "en" });
  const article = make("article"), body = make("div", "body"), main = make("div", "main");
  article.append(body);
  root.append(article);
  element.append(root);
  let figure = null, shownImages = null;
  return {
    make, root, body, main,
    images(urls) {
      if (String(urls) === shownImages) return;
      shownImages = String(urls);
      figure?.remove();
      figure = urls.length ? pictures(make, words, urls) : null;
      if (figure) article.prepend(figure);
    },
  };
}

export function showAnswer(element, document, { onSelect, onAlternative, lang, legend = true } = {}) {
  const words = wordsOf(lang), id = `vlmprobe-view-${++views}`;
  const { make, root, body, main, images } = frame(element, document, words);
  let shown, rows = { output: [], prompt: [] }, selected = null;

  const side = panel(make, words, `${id}-panel`, onAlternative, () => places[selected?.part || "output"].focus());
  const act = (part) => ({
    look: (row, index) => side.show(row, index, part),
    choose: (index, focus) => { pick(index, part, focus); onSelect?.(index, index === null ? null : rows[part][index], part); },
    enter: () => side.enter(),
  });
  const text = tokenText(make, words, words.answer, `${id}-panel`, act("output"));
  const asked = make("p", "question", "", { dir: "auto" }), figures = make("dl", "figures"), answer = make("div", "answer");
  const unfold = make("details"), summary = make("summary", "", words.prompt), told = make("span", "faint");
  let prompt = null;
  const places = { output: text, get prompt() { return prompt; } };
  summary.append(" ", told);
  unfold.append(summary);
  unfold.addEventListener("toggle", () => { if (unfold.open) openPrompt(); });
  const below = make("div"), shades = legend ? [legendOf(make, words)] : [];
  let meta = details(make, words, {});
  below.append(figures, ...shades, unfold, meta);
  answer.append(text.root);
  main.append(asked, answer, below);
  body.append(main, side.root);

  function pick(index, part, focus = false) {
    if (index !== null && !rows[part][index]) index = null;
    if (selected && (selected.part !== part || index === null)) places[selected.part]?.select(null);
    selected = index === null ? null : { part, index, row: rows[part][index] };
    root.classList.toggle("chosen", Boolean(selected));
    if (part === "prompt" && selected) openPrompt();
    places[part]?.select(index, part === "output" ? focus : true);
    side.show(selected ? selected.row : null, index, part);
  }

  function openPrompt() {
    if (!rows.prompt.length) return;
    if (!prompt) {
      prompt = promptRows(make, words, `${id}-prompt`, shown.images || [], act("prompt"));
      unfold.append(prompt.root);
      prompt.replace(rows.prompt, shown.image_spans);
    }
    unfold.open = true;
    prompt.draw();
  }

  function settle() { // what stands below the text
    below.hidden = false;
    const next = details(make, words, shown.meta || {});
    next.open = meta.open;
    meta.replaceWith(next);
    meta = next;
    figures.replaceChildren(...figuresOf({ ...shown, output: rows.output }, words).map(([name, value, meaning]) => {
      const made = make("div", "", "", { title: meaning });
      made.append(make("dt", "", name), make("dd", "", value, { dir: "auto" }));
      return made;
    }));
    for (const each of [figures, ...shades]) each.hidden = !rows.output.length;
    const count = rows.prompt.filter(({ kind }) => kind === "image").length;
    unfold.hidden = !rows.prompt.length;
    const parts = [words.countTokens(rows.prompt.length - count), count ? words.countImages(count) : ""];
    const { perplexity } = together(rows.prompt);
    if (perplexity !== null) parts.push(`${words.perplexity} ${short(perplexity)}`);
    told.textContent = parts.filter(Boolean).join(" · ");
  }

  function update(next) {
    const before = selected;
    shown = next;
    rows = { output: [...next.output || []], prompt: next.prompt || [] };
    images(next.images || []);
    asked.textContent = next.question ? plain(String(next.question)) : "";
    asked.hidden = !next.question;
    reserve(side.root, rows.output);
    text.replace(rows.output);
    prompt?.root.remove();
    prompt = null;
    selected = null;
    settle();
    if (unfold.open) openPrompt();
    pick(before ? before.index : null, before?.part || "output");
  }

  update(document);
  return {
    append(more) {
      reserve(side.root, more);
      text.append(more);
      rows.output.push(...more);
      below.hidden = true; // while the text grows it would be pushed down
    },
    update,
    select: (index, part = "output") => pick(index ?? null, part),
    get selected() { return selected; },
    destroy() {
      text.stop();
      prompt?.stop();
      root.remove();
    },
  };
}

export function showScores(element, document, { onSelect, lang } = {}) {
  const words = wordsOf(lang), id = `vlmprobe-view-${++views}`;
  const { make, root, body, main, images } = frame(element, document, words);
  const asked = make("p", "question", "", { dir: "auto" }), tables = make("div"), mass = make("p", "mass");
  const said = make("div", "answer"), name = make("p", "note");
  const side = panel(make, words, `${id}-panel`, null, () => text.focus());
  const look = (row, index) => side.show(row, index, "candidates");
  let shown, selected = null, buttons = [];
  const text = tokenText(make, words, words.candidates, `${id}-panel`, {
    look,
    choose: (index, focus) => { text.select(index, focus); look(index === null ? null : shown.candidates[selected.index].tokens[index], index); },
    enter: () => false,
  });
  said.append(name, text.root);
  let meta = details(make, words, {});
  const typed = make("p", "said", "", { dir: "auto" }), note = make("p", "note", "", { dir: "auto" });
  main.append(asked, typed, tables, mass, note, said, meta);
  body.append(main, side.root);

  const most = (each) => !known(each.logprob) && known(each.logprob_at_most);
  function line(each, index, best) {
    const made = make("tr", best ? "best" : ""), head = make("th", "", "", { scope: "row" });
    const button = make("button", "candidate", cut(label(each.text)), { type: "button", dir: "auto", "aria-pressed": "false" });
    button.addEventListener("click", () => { pick(index); onSelect?.(index, each, "candidates"); });
    buttons[index] = button;
    head.append(button);
    if (each.boundary) head.append(make("span", "note", plain(each.boundary)));
    const share = make("td", "share");
    const upper = !known(each.probability) && each.probability_bounds ? each.probability_bounds[1] : null;
    share.append(bar(make, "span", "bar", null, known(upper) ? atMost(upper) : percent(each.probability), each.probability));
    made.append(head, share, make("td", "", most(each) ? `≤ ${nats(each.logprob_at_most)}` : nats(each.logprob)));
    if (rates()) made.append(make("td", "", nats(each.mean)), make("td", "", nats(each.per_byte)));
    return made;
  }
  const rates = () => shown.candidates.some(({ mean }) => known(mean));

  function table(order, offset) {
    const scroll = make("div", "scroll");
    const made = make("table"), head = make("thead"), row = make("tr"), lines = make("tbody");
    const names = [words.candidate, words.among, words.logprob, ...rates() ? [words.mean, words.perByte] : []];
    names.forEach((each, place) => row.append(make("th", place === 1 ? "others" : "", each, { scope: "col" })));
    head.append(row);
    lines.append(...order.map((index, place) => line(shown.candidates[index], index, !offset && !place)));
    made.append(head, lines);
    scroll.append(made);
    return scroll;
  }

  function pick(index) {
    const each = index === null || index === undefined ? null : shown.candidates[index];
    if (selected) buttons[selected.index]?.setAttribute("aria-pressed", "false");
    selected = each ? { part: "candidates", index, row: each } : null;
    root.classList.toggle("chosen", Boolean(each));
    said.hidden = !each;
    text.replace(each ? each.tokens : []);
    side.root.hidden = !each;
    side.show(null);
    if (!each) return;
    buttons[index].setAttribute("aria-pressed", "true");
    name.textContent = `${words.tokensOf} ${cut(label(each.text))}`;
  }

  function update(next) {
    const before = selected;
    shown = next;
    selected = null;
    buttons = [];
    images(next.images || []);
    asked.textContent = next.question ? plain(String(next.question)) : "";
    asked.hidden = !next.question;
    for (const [place, text] of [[typed, next.answer], [note, next.note]]) { // of a typed answer
      place.textContent = text ? plain(String(text)) : "";
      place.hidden = !text;
    }
    const value = ({ logprob }) => known(logprob) ? logprob : -Infinity;
    const order = next.candidates.map((_, place) => place).sort((a, b) => value(next.candidates[b]) - value(next.candidates[a]) || a - b);
    tables.replaceChildren(table(order.slice(0, FIRST_CANDIDATES), 0));
    if (order.length > FIRST_CANDIDATES) {
      const rest = make("details"), summary = make("summary", "", `${(order.length - FIRST_CANDIDATES).toLocaleString("en")} ${words.more}`);
      rest.append(summary);
      rest.addEventListener("toggle", () => { if (rest.children.length === 1) rest.append(table(order.slice(FIRST_CANDIDATES), FIRST_CANDIDATES)); });
      tables.append(rest);
    }
    const bound = next.candidates.some(most) ? `${words.atLeast} ` : "";
    mass.replaceChildren(`${words.together} `, make("b", "", `${bound}${percent(next.mass)}`), words === WORDS.zh ? words.of : ` ${words.of}`, " ", make("span", "faint", words.inNats));
    const told = details(make, words, next.meta || {});
    told.open = meta.open;
    meta.replaceWith(told);
    meta = told;
    pick(before && next.candidates[before.index]?.text === before.row.text ? before.index : null);
  }

  update(document);
  return {
    append() {}, // candidates come all at once
    update,
    select: (index) => pick(index ?? null),
    get selected() { return selected; },
    destroy() { text.stop(); root.remove(); },
  };
}
