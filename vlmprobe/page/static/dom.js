// Elements. Text is always text: nothing here takes HTML.

export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined && each !== false));
  return made;
}

export const byId = (id) => document.getElementById(id);

// Tell a screen reader.
export function tell(text) {
  byId("told").textContent = text;
}

export function field(label, input) {
  return h("label", { class: "field" }, h("span", {}, label), input);
}
