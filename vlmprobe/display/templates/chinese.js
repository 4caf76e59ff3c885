// A report in Chinese where that is the browser's language: the words of the templates, none that a model or a user wrote.
if (navigator.language.toLowerCase().startsWith("zh")) {
  const PLACES = ".legend .faint, .figures dt, summary, .counts, .card .note, .card .other, .chip, .chip .faint, footer span, "
    + "table:not(.rows) thead th, .mass, .mass b, .mass > .faint";
  const { en, zh } = WORDS;
  const pairs = Object.keys(en).filter((key) => typeof en[key] === "string").map((key) => [en[key], zh[key]]);
  const table = new Map(pairs), byLength = pairs.sort((a, b) => b[0].length - a[0].length);
  const COUNTS = [
    [/^([\d,]+) tokens?$/, (n) => zh.countTokens(n)],
    [/^([\d,]+) images?$/, (n) => zh.countImages(n)],
    [/^([\d,]+) results?$/, (n) => zh.countResults(n)],
    [/^([\d,]+) more candidates$/, (n) => `${n} ${zh.more}`],
    [/^([\d,]+) positions$/, (n) => `${n} ${zh.positions}`],
    [/^([\d,]+) positions in (\d+) runs$/, (n, runs) => `${n} ${zh.positions} · ${runs} ${zh.runs}`],
  ];

  function inChinese(text) {
    if (table.has(text)) return table.get(text);
    for (const [pattern, write] of COUNTS) {
      const found = pattern.exec(text);
      if (found) return write(Number(found[1].replaceAll(",", "")), found[2]);
    }
    const [word, written] = byLength.find(([each]) => text.startsWith(`${each} `)) || ["", ""];
    return written + text.slice(word.length); // such as "rank 0"
  }

  for (const element of document.querySelectorAll(PLACES)) {
    for (const node of element.childNodes) {
      if (node.nodeType !== Node.TEXT_NODE) continue;
      node.data = node.data.replace(/\S(.*\S)?/s, (text) => text.split(" · ").map(inChinese).join(" · ")).replace(/^\s+。/, "。");
    }
  }
  const subtitle = document.querySelector("header > p")?.firstChild; // the count; what follows are names
  if (subtitle) subtitle.data = subtitle.data.replace(/^[\d,]+ results?/, inChinese);
  for (const element of document.querySelectorAll(".figures [title]")) element.title = inChinese(element.title);
  document.documentElement.lang = "zh";
}
