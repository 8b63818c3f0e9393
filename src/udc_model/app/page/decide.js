// The tab "Decide": images and archives to decisions, under costs that can be changed.

import { byId, element, image, number, post, send } from "./common.js";
import { sessionCosts } from "./costs.js";

const MEBI = 2 ** 20;
const MOST_CLASSES = 10; // of an image, in its table
const MOST_ROWS = 500; // of the table of an archive that are shown

let state, costs;
let images = []; // decided images: {name, outputs, image, file, frame, parts}
let members = []; // images of archives: {name, outputs}
let isBusy = false;
let calls = 0; // of decideAgain

export function startDecide(loaded) {
  state = loaded;
  costs = sessionCosts(state, decideAgain);
  const files = byId("files");
  files.addEventListener("change", async () => { await add([...files.files]); files.value = ""; });
  connectDrop(byId("drop"));
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (pasted.length && !byId("decide").hidden) { event.preventDefault(); add(pasted); }
  });
  byId("clear").addEventListener("click", () => { images = []; members = []; problems([]); decideAgain(); say(""); });
  byId("csv").addEventListener("click", download);
  connectCamera();
}

function connectDrop(target) {
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (name !== "dragleave") event.preventDefault(); // a missed drop would open the file instead of the page
      target.classList.toggle("over", name === "dragover");
      if (name === "drop" && !byId("decide").hidden) add([...event.dataTransfer.files]);
    });
  }
}

const say = (text) => { byId("decide-status").textContent = text; };
const problems = (texts) => { byId("decide-problems").replaceChildren(...texts.map((text) => element("li", {}, text))); };
const addProblem = (text) => byId("decide-problems").append(element("li", {}, text));
function costsProblem(text) {
  byId("costs-problem").hidden = !text;
  byId("costs-problem").textContent = text;
}

const isArchive = (file) => file.name.toLowerCase().endsWith(".zip") || file.type === "application/zip";

/** Decide files one after the other; what cannot be used is one sentence each. */
async function add(files) {
  if (isBusy) { addProblem("The files before are still decided; add these again afterwards."); return; }
  problems([]);
  const most = state.limits.images;
  if (files.length > most) {
    addProblem(`${files.length} files: at most ${most} at once are decided; put them into a zip archive, or use udc predict.`);
    return;
  }
  isBusy = true;
  let count = 0;
  for (const [position, file] of files.entries()) {
    say(`Deciding ${file.name} (${position + 1} of ${files.length})`);
    try {
      count += isArchive(file) ? await addArchive(file) : await addImage(file);
    } catch (error) {
      addProblem(`${file.name}: ${error.message}`);
    }
  }
  isBusy = false;
  if (await decideAgain()) say(`${count} image${count === 1 ? "" : "s"} decided`);
}

function checkSize(file, mebibytes) {
  if (file.size > mebibytes * MEBI) throw new Error(`has more than ${mebibytes.toLocaleString("en")} MiB`);
}

const isFull = (count) => images.length + members.length + count > state.limits.kept;
const noRoom = () => new Error(`is left out: with it there would be more than ${state.limits.kept.toLocaleString("en")} ` +
  "images on this page; choose Remove all before it, or decide its folder with udc predict");

async function addImage(file) {
  checkSize(file, state.limits.image_mebibytes);
  const path = `api/outputs?name=${encodeURIComponent(file.name)}`;
  const answer = await (await send(path, { method: "POST", body: file })).json();
  answer.problems.forEach((text) => addProblem(`${file.name}: ${text}`));
  if (isFull(answer.images.length)) throw noRoom();
  answer.images.forEach((each, i) => images.unshift({ ...each, file, frame: i + 1 }));
  return answer.images.length;
}

/** Read the lines of the answer as they come. */
async function addArchive(file) {
  checkSize(file, state.limits.archive_mebibytes);
  const response = await send("api/archive", { method: "POST", body: file });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const added = new Set();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const answer = JSON.parse(line);
      if (answer.error) throw new Error(answer.error);
      answer.problems.forEach((each) => addProblem(`${each.name}: ${each.reason}`));
      if (isFull(answer.images.length)) {
        members = members.filter((each) => !added.has(each));
        reader.cancel().catch(() => {}); // what is left of the answer
        throw noRoom();
      }
      members.push(...answer.images);
      answer.images.forEach((each) => added.add(each));
    }
    say(`Deciding ${file.name}: ${added.size} images`);
    if (done) return added.size;
  }
}

/** Decide what is shown again, under the costs of the session; whether that was possible. */
async function decideAgain() {
  const call = ++calls, asked = costs.values();
  const shown = [...images], listed = [...members]; // more can come meanwhile, and all can go
  try {
    const [ofImages, ofMembers] = await Promise.all([decisions(shown, asked, false), decisions(listed, asked, true)]);
    if (call !== calls) return true; // changed meanwhile: a later answer comes
    costsProblem("");
    byId("params").hidden = !ofImages.params;
    byId("params-text").textContent = ofImages.params;
    showImages(shown, ofImages.rows);
    showTable(listed, ofMembers.rows);
    return true;
  } catch (error) {
    if (call !== calls) return true;
    costsProblem(`${error.message} (The decisions shown are those before the change.)`);
    return false;
  }
}

const decisions = async (of, asked, isBrief) => (await post("api/decisions", {
  outputs: of.map((each) => each.outputs), costs: asked, is_brief: isBrief,
})).json();

function showImages(shown, rows) {
  byId("results-buttons").hidden = !(images.length || members.length);
  byId("results").replaceChildren(...shown.map((each, i) => {
    if (!each.parts) each.parts = card(each);
    fill(each, rows[i]);
    return each.parts.card;
  }));
}

/** The parts of an image that stay when costs change. */
function card(each) {
  const text = element("div");
  const why = element("div", { class: "images" });
  const made = element("article", { class: "result", "aria-label": each.name },
    element("div", {}, image(each.image, `${each.name} as the network gets it`)), element("div", {}, text, why));
  return { card: made, text, why };
}

function fill(each, row) {
  const before = each.decision;
  each.decision = row.class;
  const isClass = state.classes.includes(row.class);
  const explained = isClass ? row.class : mostProbable(row);
  const button = element("button", { type: "button", onclick: () => explain(each, explained, button) }, "Why?");
  each.parts.text.replaceChildren(
    element("h2", {}, each.name),
    element("p", { class: "decision" }, "Decision: ", element("strong", {}, row.class),
      `, expected cost ${number(row.expected_cost)}`,
      before && before !== row.class ? ` (before: ${before})` : ""),
    ...(row.familiarity == null ? [] : [familiarity(row)]),
    element("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `Probabilities of ${each.name}` },
      probabilities(row)),
    element("p", {}, button),
  );
}

const mostProbable = (row) => state.classes.reduce((a, b) => row.probabilities[b] > row.probabilities[a] ? b : a);

function familiarity(row) {
  const share = Math.max(1, Math.round(100 * row.familiarity));
  const text = `Familiarity ${number(row.familiarity)}: ${share} in 100 images like your own differ as much from the ` +
    `training images.`;
  return row.unfamiliar ? element("p", { class: "note" }, element("strong", {}, "Unfamiliar image. "), text)
    : element("p", { class: "muted" }, text);
}

/** Probability and expected cost by decision: the decision, then the most probable classes, then actions. */
function probabilities(row) {
  const classes = [...state.classes].sort((a, b) => row.probabilities[b] - row.probabilities[a]);
  const shown = new Set([row.class, ...classes.slice(0, MOST_CLASSES), ...Object.keys(row.costs)
    .filter((name) => !(name in row.probabilities))]);
  const order = [...classes, ...Object.keys(row.costs).filter((name) => !(name in row.probabilities))];
  const lines = order.filter((name) => shown.has(name)).map((name) => {
    const p = row.probabilities[name];
    const bar = element("span");
    bar.style.width = `${100 * (p ?? 0)}%`;
    return element("tr", { class: name === row.class ? "decided" : null },
      element("th", { scope: "row" }, name), element("td", { class: "n" }, p == null ? "–" : number(p)),
      element("td", { "aria-hidden": "true" }, element("span", { class: "bar" }, bar)),
      element("td", { class: "n" }, number(row.costs[name])));
  });
  const rest = order.length - lines.length;
  return element("table", {}, element("caption", { class: "muted" }, rest ? `The ${rest} least probable classes are left out.` : ""),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "decision"),
      element("th", { scope: "col", class: "n" }, "probability"), element("td"),
      element("th", { scope: "col", class: "n" }, "expected cost"))),
    element("tbody", {}, ...lines));
}

async function explain(each, name, button) {
  button.disabled = true;
  button.textContent = "Computing";
  try {
    const path = `api/explanation?class=${encodeURIComponent(name)}&name=${encodeURIComponent(each.name)}&frame=${each.frame}`;
    const answer = await (await send(path, { method: "POST", body: each.file })).json();
    each.parts.why.replaceChildren(
      element("figure", {}, image(answer.saliency, `Places of ${each.name} that matter for ${name}`),
        element("figcaption", {}, `What matters for ${name}`)),
      ...answer.similar.map((other) => element("figure", {}, image(other.image, `Training image ${other.path}`),
        element("figcaption", {}, `Similar training image: ${other.label}, distance ${number(other.distance)}`))),
      ...(answer.note ? [element("p", { class: "muted" }, answer.note)] : []),
    );
  } catch (error) {
    each.parts.why.replaceChildren(element("p", { class: "problem", role: "alert" }, error.message));
  }
  button.disabled = false;
  button.textContent = "Why?";
}

function showTable(listed, rows) {
  const place = byId("table");
  place.hidden = !rows.length;
  if (!rows.length) { place.replaceChildren(); return; }
  const hasFamiliarity = rows[0].familiarity != null;
  const head = ["image", "decision", "probability", "expected cost", ...(hasFamiliarity ? ["familiarity"] : [])];
  const lines = rows.slice(0, MOST_ROWS).map((row, i) => element("tr", {},
    element("th", { scope: "row" }, listed[i].name), element("td", {}, row.class),
    element("td", { class: "n" }, row.probability == null ? "–" : number(row.probability)),
    element("td", { class: "n" }, number(row.expected_cost)),
    ...(hasFamiliarity ? [element("td", { class: "n" },
      number(row.familiarity) + (row.unfamiliar ? " unfamiliar" : ""))] : [])));
  const more = rows.length > MOST_ROWS ? `; the table to download has all, here are the first ${MOST_ROWS}` : "";
  place.replaceChildren(element("table", {}, element("caption", { class: "muted" }, `${rows.length} images of archives${more}`),
    element("thead", {}, element("tr", {}, ...head.map((name, i) => element("th", { scope: "col", class: i > 1 ? "n" : null }, name)))),
    element("tbody", {}, ...lines)));
}

async function download() {
  const all = [...images, ...members];
  try {
    const answer = await post("api/table", {
      names: all.map((each) => each.name), outputs: all.map((each) => each.outputs), costs: costs.values(),
    });
    const address = URL.createObjectURL(await answer.blob());
    element("a", { href: address, download: "decisions.csv" }).click();
    URL.revokeObjectURL(address);
  } catch (error) {
    addProblem(error.message);
  }
}

function connectCamera() {
  const video = byId("camera-video");
  let stream = null;
  const stop = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    byId("camera").hidden = true;
  };
  byId("camera-start").addEventListener("click", async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      problems([navigator.mediaDevices ? `The camera cannot be used: ${error.message}.`
        : "The camera can be used on this machine only (127.0.0.1), or over HTTPS."]);
      return;
    }
    byId("camera-take").disabled = true; // until there is an image
    video.srcObject = stream;
    byId("camera").hidden = false;
  });
  video.addEventListener("loadeddata", () => {
    byId("camera-take").disabled = false;
    byId("camera-take").focus();
  });
  byId("camera-take").addEventListener("click", async () => {
    const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    await add([new File([blob], "camera.png", { type: "image/png" })]);
  });
  byId("camera-stop").addEventListener("click", () => { stop(); byId("camera-start").focus(); });
}
