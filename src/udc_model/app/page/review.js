// The tab "Review": a queue of labels that the keyboard works through.

import { byId, element, get, image, post } from "./common.js";

const DONE = { relabel: "relabelled", drop: "dropped", keep: "confirmed" };

let classByKey = new Map(); // digit: class
let items = []; // of the queue; `answer` after a correction: {action, value}
let position = 0;
let earlier = 0; // images reviewed before the page was loaded
let isOpen = false;
let isSending = false;

export function startReview(state) {
  const { classes } = state;
  byId("classes").append(...classes.map((name) => element("option", { value: name })));
  // classes that are called 0 to 9 have these keys, whatever their order
  if (classes.every((name) => /^[0-9]$/.test(name))) classByKey = new Map(classes.map((name) => [name, name]));
  else if (classes.length <= 9) classByKey = new Map(classes.map((name, i) => [String(i + 1), name]));
  byId("item").addEventListener("keydown", onKey);
  byId("choice").addEventListener("keydown", (event) => {
    if (event.key === "Enter") relabel(byId("choice").value);
    if (event.key === "Escape") show();
  });
  for (const id of ["reason", "author"]) {
    byId(id).addEventListener("keydown", (event) => { if (["Enter", "Escape"].includes(event.key)) focusItem(); });
  }
}

/** Load the queue when the tab is opened first. */
export async function openReview() {
  if (isOpen) { focusItem(); return; }
  byId("review-status").textContent = "Loading the queue";
  try {
    const queue = await get("api/review");
    items = queue.items;
    isOpen = true;
    byId("author").value = queue.author;
    byId("review-command").textContent = queue.command;
    byId("review-end").dataset.file = queue.file;
    earlier = queue.reviewed;
    show();
    if (!queue.author) byId("author").focus();
  } catch (error) {
    byId("review-status").textContent = "";
    problem(error.message);
  }
}

function problem(text) {
  byId("review-problem").hidden = !text;
  byId("review-problem").textContent = text;
}

const focusItem = () => { if (!byId("item").hidden) byId("item").focus(); };
const answered = () => items.filter((each) => each.answer).length;
const source = (place) => `api/images/${encodeURIComponent(place[0])}/${place[1]}`;

/** Show the item at the position, and give it the focus. */
function show() {
  showProgress();
  const item = items[position];
  byId("item").hidden = !item;
  if (!item) return;
  byId("item-title").textContent =
    `${position + 1} of ${items.length}: ${item.path} (${item.place[0]}), labelled ${item.label}`;
  byId("item-findings").replaceChildren(...item.findings.map((text) => element("li", {}, text)));
  byId("item-images").replaceChildren(
    figure(item.place, item.path, `labelled ${item.label}`, "first"),
    ...item.related.map((each) => figure(each.place, each.path, `${each.path}: ${each.label}`, "")),
  );
  byId("item-buttons").replaceChildren(...buttons(item));
  byId("item-done").hidden = !item.answer;
  byId("item-done").textContent = item.answer ? `${DONE[item.answer.action]} ${item.answer.value}`.trim() : "";
  byId("choice").value = "";
  focusItem();
}

const figure = (place, path, text, className) => element("figure", { class: className },
  image(source(place), path), element("figcaption", {}, text));

function buttons(item) {
  const key = (name) => element("kbd", {}, name);
  const make = (name, text, action, className) =>
    element("button", { type: "button", class: className, onclick: action }, key(name), ` ${text}`);
  const others = [...classByKey].filter(([, name]) => name !== item.label && name !== item.suggestion);
  return [
    ...(item.suggestion ? [make("r", `relabel ${item.suggestion}`, () => relabel(item.suggestion), "main")] : []),
    make("k", `keep ${item.label}`, () => answer("keep", ""), null),
    make("d", "drop", () => answer("drop", ""), null),
    ...others.map(([digit, name]) => make(digit, name, () => relabel(name), null)),
    make("s", "skip", () => move(1), null),
    make("u", "undo", undo, null),
  ];
}

function showProgress() {
  const count = answered();
  const bar = byId("progress");
  bar.hidden = !items.length;
  bar.max = items.length || 1;
  bar.value = count;
  byId("review-status").textContent = (items.length ? `${count} of ${items.length} reviewed`
    : "Nothing to review: no suspicious label, near-duplicate with another label, or costly mistake is left")
    + (earlier ? `; ${earlier} reviewed earlier` : "");
  byId("review-end").hidden = !count;
  const reviewed = count === items.length ? `All ${count} are reviewed.` : `${count} of ${items.length} are reviewed.`;
  byId("review-count").textContent = `${reviewed} The corrections are in ${byId("review-end").dataset.file}.`;
}

function move(step) {
  problem("");
  position = Math.min(Math.max(position + step, 0), items.length - 1);
  show();
}

function relabel(value) {
  if (!value) { problem("Choose a class first: no class is suggested."); return; }
  answer("relabel", value);
}

async function answer(action, value) {
  const item = items[position];
  if (!item || isSending) return;
  isSending = true;
  try {
    await post("api/review/answer", {
      path: item.path, action, value, author: byId("author").value, reason: byId("reason").value,
    });
    item.answer = { action, value };
    problem("");
    const next = items.findIndex((each, i) => i > position && !each.answer);
    const first = items.findIndex((each) => !each.answer);
    position = next >= 0 ? next : first >= 0 ? first : position;
    show();
  } catch (error) {
    problem(error.message);
    if (!byId("author").value.trim()) byId("author").focus();
  }
  isSending = false;
}

async function undo() {
  if (isSending) return;
  isSending = true;
  try {
    const { path, former } = await (await post("api/review/undo", {})).json();
    const undone = items.findIndex((each) => each.path === path);
    problem("");
    if (undone < 0) { // corrected before the page was loaded again
      isOpen = false;
      await openReview();
    } else {
      items[undone].answer = former;
      position = undone;
      show();
    }
  } catch (error) {
    problem(error.message);
  }
  isSending = false;
}

/** The keys work while the item or one of its buttons has the focus. */
function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !items[position]) return;
  const item = items[position];
  const actions = {
    r: () => relabel(item.suggestion), k: () => answer("keep", ""), d: () => answer("drop", ""),
    s: () => move(1), ArrowRight: () => move(1), ArrowLeft: () => move(-1), u: undo,
    c: () => byId("choice").focus(), w: () => byId("reason").select(),
  };
  const name = classByKey.get(event.key);
  const action = name === undefined ? actions[event.key] : () => relabel(name);
  if (!action) return;
  event.preventDefault();
  action();
}
