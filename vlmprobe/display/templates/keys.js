"use strict";
// One tab stop a text; the arrow keys move from token to token, Escape puts the card away.
for (const text of document.querySelectorAll(".tokens")) {
  const tokens = [...text.querySelectorAll("[tabindex]")];
  tokens.forEach((token, place) => { token.tabIndex = place ? -1 : 0; });
  text.addEventListener("keydown", (event) => {
    const place = tokens.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (place < 0) return;
    if (event.key === "Escape") tokens[place].blur();
    if (step === undefined) return;
    event.preventDefault();
    const next = tokens[Math.min(tokens.length - 1, Math.max(0, place + step))];
    tokens[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
