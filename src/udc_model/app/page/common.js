// What both tabs use: requests to this server, elements, numbers.

export const byId = (id) => document.getElementById(id);

/** An element with attributes, properties that begin with "on", and children (elements or text, never HTML). */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** The answer to a request; an Error with one sentence if it is refused or the server is gone. */
export async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is udc app still running?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error || `The server refused the request (${response.status}).`);
  }
  return response;
}

export const get = async (path) => (await send(path)).json();

export const post = (path, values) => send(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
});

/** A cost or a probability with at most four digits after the point. */
export const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 4 });

export const image = (source, text, className) => {
  const made = element("img", { src: source, alt: text, class: className });
  made.addEventListener("load", () => { if (made.naturalWidth <= 64) made.classList.add("pixels"); });
  return made;
};
