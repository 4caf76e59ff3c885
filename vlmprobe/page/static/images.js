// Images of this browser tab: their files stay here, so that they can be sent again.

import { addImage } from "./api.js";

const held = new Map(); // key -> {key, name, url, file, width, height}

// Send an image file. Returns what is known of it.
export async function send(file, name) {
  const told = await addImage(file);
  const known = held.get(told.key);
  if (known) return known;
  const image = { ...told, name: name || file.name || "", url: URL.createObjectURL(file), file };
  held.set(told.key, image);
  return image;
}

// An image that the server has opened; there is no file of it here.
export function opened({ key, name, shown }) {
  if (!held.has(key)) held.set(key, { key, name, shown, url: shown, file: null });
  return key;
}

export const again = (keys) => Promise.all(keys.map((key) => held.get(key).file).filter(Boolean).map(addImage));
export const known = (key) => held.get(key);
export const names = (keys) => Object.fromEntries(keys.map((key) => [key, held.get(key)?.name || ""]));
export const filesOf = (transfer) => [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/"));
