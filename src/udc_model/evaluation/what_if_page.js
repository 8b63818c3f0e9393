"use strict";
// The controls of the page and what it shows: reads settings from the fields, writes results into the tables.

const LARGEST_EDITED_MATRIX = 10; // classes; costs of more are edited one by one
const SHOWN_PAIRS = 12;
const LARGEST_COST = 1e9;
const DECISIONS = { min_expected_cost: "the least expected cost", argmax: "the most probable class (argmax)",
  recall_floor: "the least expected cost with the recorded recall floor",
  cost_ceiling: "the least expected cost under the recorded ceiling of the cost" };

const element = id => document.getElementById(id);
const model = openModel(JSON.parse(element("what-if-data").textContent), element("what-if-roots").textContent);
const recorded = model.recorded;
let settings = structuredClone(recorded), waiting = 0, resting = 0;

// --- numbers and parts of the page

function costText(value) {
  if (!Number.isFinite(value)) return "–";
  const rounded = Number(value.toPrecision(3));
  return Math.abs(rounded) >= 1000 ? Math.round(value).toLocaleString("en") : String(rounded);
}
const percent = value => Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–";
const withInterval = (text, value, ends) =>
  text(value) + (ends && Number.isFinite(ends[0]) ? ` (${text(ends[0])} to ${text(ends[1])})` : "");
const isSame = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function options(select, names, indices = names.map((_, k) => k)) {
  select.replaceChildren(...indices.map(k => make("option", { value: k, textContent: names[k] })));
}

// A field and its logarithmic slider, from `low` to `high`.
function pair(id, low, high, change) {
  const field = element(id), slider = element(`${id}-slider`);
  field.addEventListener("input", () => change(field.value === "" ? null : Number(field.value)));
  slider.addEventListener("input", () => {
    const [from, to] = [low(), high()];
    change(Number((from * (to / from) ** (slider.value / 1000)).toPrecision(2)));
  });
  return (value, shown = value) => { // the slider shows a value that the field leaves open
    if (document.activeElement !== field) field.value = value ?? "";
    const [from, to] = [low(), high()], place = shown > 0 ? 1000 * Math.log(shown / from) / Math.log(to / from) : 0;
    if (document.activeElement !== slider) slider.value = Math.max(0, Math.min(1000, place));
    slider.setAttribute("aria-valuetext", String(shown ?? "not set"));
  };
}

// --- costs of missing a class

const mistakesOf = (y, costs) => costs[y].filter((cost, j) => j !== y && cost > 0);
const alarmsOf = (y, costs) => costs.filter((row, x) => x !== y && row[y] > 0).map(row => row[y]);
const least = values => values.length ? Math.min(...values) : 1;
const leastText = values => costText(least(values)) + (new Set(values).size > 1 ? " or more" : "");
const cheapestMistake = costs => least(costs.flatMap((row, y) => mistakesOf(y, costs)));

// The cheapest way to miss the class, in units of its cheapest false alarm.
const timesOf = y => least(mistakesOf(y, settings.costs)) / least(alarmsOf(y, settings.costs));

// All mistakes on the class cost the same factor more, so that the costliest one still is.
function setTimes(y, times) {
  if (!(times > 0)) return;
  const before = mistakesOf(y, settings.costs), target = times * least(alarmsOf(y, settings.costs));
  settings.costs[y] = settings.costs[y].map((cost, j) => {
    if (j === y) return cost;
    return Number((before.length ? cost * target / least(before) : target).toPrecision(10));
  });
}

// --- what is wrong with the settings, as config/costs.py and decisions/matrix.py refuse them

function problemOf() {
  const outcomes = outcomeNames(model, settings), costs = outcomeCosts(settings);
  for (const [y, row] of costs.entries()) {
    const name = model.classes[y], bad = row.findIndex(cost => !Number.isFinite(cost) || Math.abs(cost) > LARGEST_COST);
    if (bad >= 0) return `The cost of deciding ${outcomes[bad]} for ${name} is not a number up to 1,000,000,000.`;
    const cheap = row.slice(0, model.k).findIndex(cost => cost < row[y]);
    if (cheap >= 0) return `Deciding ${outcomes[cheap]} for ${name} costs less than the right decision; is a sign wrong?`;
  }
  if (settings.refer !== null && settings.refer < 0) return "The cost of referral must be 0 or more.";
  if (settings.costs.every(row => row.every(cost => cost === row[0])))
    return "All decisions cost the same, so there is nothing to decide.";
  return (isFitted() ? problemOfGuarantee() : null) ?? problemOfShares();
}

// Settings under which a recall floor or a ceiling of the cost cannot be proved.
function problemOfGuarantee() {
  const isCeiling = settings.decision === "cost_ceiling";
  if (isCeiling && (settings.refer === null || settings.prior !== null))
    return "A ceiling of the cost needs referral, and class frequencies as in training; choose another decision.";
  if (settings.refersUnfamiliar) return `A ${isCeiling ? "ceiling of the cost" : "recall floor"} is not proved if unfamiliar `
    + "images are referred too; choose another decision, or do not refer them.";
  if (!isCeiling && settings.prior !== null && model.fitted.floors.some(([classes]) => classes.length > 1))
    return "A recall floor of several classes needs class frequencies as in training; choose another decision.";
  return null;
}

function problemOfShares() {
  const shares = Object.values(settings.prior ?? {}), isComplete = shares.length === model.k;
  if (shares.some(share => !(share > 0 && share < 1))) return "A share must be above 0% and below 100%.";
  if (isComplete ? Math.abs(sum(shares) - 1) > 1e-6 : sum(shares) > 1 - 1e-6)
    return isComplete ? "The shares must add up to 100%; leave the field of one class empty."
      : "The shares add up to 100% or more, which leaves nothing for the other classes.";
  return null;
}

// --- results

// All numbers of some settings. Without intervals it is fast enough for each movement of a slider.
function compute(of, hasIntervals = true) {
  const decided = decide(model, of), measured = measure(model, of, decided);
  return { decided, measured, intervals: hasIntervals ? measureIntervals(model, of, decided, measured) : null };
}

const atStart = compute(recorded, false);
const roundedAway = atStart.decided.reduce((count, decision, i) => count + (decision !== model.decided[i]), 0);
const isExact = roundedAway === 0 && !model.isSample;
const recordedRates = new Map(model.rates);
const recordedRecall = new Map(model.order.map((y, place) => [y, model.recalls[place]]));

function show(hasIntervals) {
  const problem = problemOf();
  element("what-if-problem").hidden = problem === null;
  element("what-if-problem").textContent = problem ?? "";
  if (problem !== null) return;
  const result = compute(settings, hasIntervals), isRecorded = isSame(settings, recorded);
  if (isRecorded && isExact) // the same decisions and costs, so the same intervals
    result.intervals = { meanCost: model.meanCost.slice(1),
      rates: actionNames(recorded).map(name => recordedRates.get(name).slice(1)),
      recalls: model.classes.map((_, y) => recordedRecall.get(y).slice(1)) };
  showAnswer(result, isRecorded);
  showMeasures(result);
  showConfusion(result.measured);
  element("recalls").replaceChildren(...model.order.map(y => make("tr", {},
    make("th", { scope: "row", textContent: model.classes[y] }),
    ...cells(withInterval(percent, recordedRecall.get(y)[0] ?? NaN, recordedRecall.get(y).slice(1)),
      withInterval(percent, result.measured.recalls[y], result.intervals?.recalls[y])))));
  showCards(result.decided);
}

function cells(before, now) {
  return [make("td", { className: "n", textContent: before }),
    make("td", { className: before === now ? "n" : "n changed", textContent: now })];
}

function showAnswer({ decided, measured, intervals }, isRecorded) {
  const names = outcomeNames(model, settings), before = outcomeNames(model, recorded);
  const changes = decided.reduce((count, d, i) => count + (names[d] !== before[atStart.decided[i]]), 0);
  const places = before.map(name => names.indexOf(name)); // -1: a decision that is no longer available
  const arePossible = atStart.decided.every(d => places[d] >= 0);
  const unchanged = arePossible ? measure(model, settings, atStart.decided.map(d => places[d])) : null;
  const cost = withInterval(costText, measured.meanCost, intervals?.meanCost);
  element("what-if-answer").textContent = isRecorded ? `The recorded costs: ${cost} per image.`
    : `Cost ${cost} per image${intervals ? ` (${percent(model.confidence).replace(".0", "")} interval)` : ""}. `
      + `${changes.toLocaleString("en")} of ${model.n.toLocaleString("en")} decisions differ from the recorded ones`
      + (unchanged ? `, which would cost ${costText(unchanged.meanCost)} under these costs.` : ".");
}

function showMeasures({ measured, intervals }) {
  const now = actionNames(settings), before = actionNames(recorded), start = atStart.measured;
  const rows = [
    ["mean cost, each under its own costs", withInterval(costText, model.meanCost[0], model.meanCost.slice(1)),
      withInterval(costText, measured.meanCost, intervals?.meanCost)],
    ["best constant decision", `${costText(start.constantCost)}, ${start.constantName}`,
      `${costText(measured.constantCost)}, ${measured.constantName}`],
    ["decided right", start.right.toLocaleString("en"), measured.right.toLocaleString("en")],
    ["mistakes", start.mistakes.toLocaleString("en"), measured.mistakes.toLocaleString("en")],
    ...[...new Set([...before, ...now])].map(name => {
      const a = now.indexOf(name), [rate, ...ends] = recordedRates.get(name) ?? [NaN];
      return [name === "refer" ? "referred" : name, withInterval(percent, rate, ends),
        a < 0 ? "–" : withInterval(percent, measured.rates[a], intervals?.rates[a])];
    }),
  ];
  element("measures").replaceChildren(...rows.map(([name, ...values]) =>
    make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells(...values))));
}

function showConfusion({ counts, weights }) {
  const names = outcomeNames(model, settings), costs = outcomeCosts(settings);
  const columns = [...model.order, ...names.keys()].filter((j, i) => i < model.k || j >= model.k);
  if (model.k <= LARGEST_EDITED_MATRIX) {
    element("confusion").replaceChildren(table(["true \\ decided", ...columns.map(j => names[j])],
      model.order.map(y => [model.classes[y], ...columns.map(j => counts[y][j].toLocaleString("en"))])));
    return;
  }
  const pairs = counts.flatMap((row, y) => row.flatMap((count, j) => count && j !== y
    ? [[model.classes[y], names[j], count, weights[y] * count * costs[y][j]]] : []));
  pairs.sort((a, b) => b[3] - a[3] || b[2] - a[2]);
  element("confusion").replaceChildren(table(["true", "decided", "images", "cost"], pairs.slice(0, SHOWN_PAIRS)
    .map(([y, j, count, cost]) => [y, j, count.toLocaleString("en"), costText(cost)])));
}

function table(head, rows) {
  const row = values => make("tr", {}, make("th", { scope: "row", textContent: values[0] }),
    ...values.slice(1).map(text => make("td", { className: "n" }, text)));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head.map(text => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...rows.map(row)));
}

// Below the images of this report: the decision with these costs, if it is another one.
function showCards(decided) {
  const names = outcomeNames(model, settings), costs = outcomeCosts(settings), before = outcomeNames(model, recorded);
  for (const card of document.querySelectorAll("[data-test-row]")) {
    card.querySelector(".now")?.remove();
    const row = Number(card.dataset.testRow), i = model.isSample ? model.rows.indexOf(row) : row;
    if (i < 0 || names[decided[i]] === before[atStart.decided[i]]) continue;
    const cost = costText(costs[model.targets[i]][decided[i]]);
    card.append(make("span", { className: "now", textContent: `with the costs below: ${names[decided[i]]}, cost ${cost}` }));
  }
}

// --- controls

const setTimesField = pair("times", () => 0.1, () => 1000, value => { setTimes(missed(), value); update(); });
const setReferField = pair("refer", () => 0.001 * cheapestMistake(recorded.costs),
  () => 10 * Math.max(...recorded.costs.map(row => Math.max(...row))), value => { settings.refer = value ?? NaN; update(); });
const setShareField = pair("share", () => 0.01, () => 99, value => {
  const others = Object.entries(settings.prior ?? {}).filter(([name]) => name !== frequent());
  const prior = Object.fromEntries(value === null ? others : [...others, [frequent(), Number((value / 100).toPrecision(6))]]);
  settings.prior = Object.keys(prior).length ? prior : null;
  update();
});
const isFitted = () => settings.decision === "recall_floor" || settings.decision === "cost_ceiling";
const missed = () => element("missed").value === "" ? null : Number(element("missed").value);
const frequent = () => model.classes[Number(element("frequent").value)];

function showControls() {
  const y = missed(), unit = cheapestMistake(settings.costs);
  element("times").disabled = element("times-slider").disabled = y === null;
  setTimesField(y === null ? null : Number(timesOf(y).toPrecision(6)));
  element("times-text").textContent = y === null ? "Choose the class that must not be missed."
    : `A false alarm, another class decided ${model.classes[y]}, costs ${leastText(alarmsOf(y, settings.costs))}; `
      + `missing ${model.classes[y]} then costs ${leastText(mistakesOf(y, settings.costs))}.`;
  element("can-refer").checked = settings.refer !== null;
  element("refer").disabled = element("refer-slider").disabled = settings.refer === null;
  element("unfamiliar").disabled = settings.refer === null || isFitted();
  setReferField(settings.refer);
  element("refer-text").textContent = settings.refer === null ? `The cheapest mistake costs ${costText(unit)}.`
    : `That is ${costText(settings.refer / unit)} times the cheapest mistake, which costs ${costText(unit)}. ${referHint()}`;
  element("unfamiliar").checked = settings.refersUnfamiliar;
  const name = frequent(), prior = deploymentPrior(model, settings) ?? model.trainingPrior;
  if (model.trainingPrior !== null) {
    const share = prior[Number(element("frequent").value)];
    const isNamed = settings.prior !== null && Object.hasOwn(settings.prior, name);
    setShareField(isNamed ? Number((100 * settings.prior[name]).toPrecision(6)) : null, 100 * share);
    element("share").placeholder = (100 * share).toPrecision(3);
    const named = Object.entries(settings.prior ?? {}).map(([each, value]) => `${each} ${costText(100 * value)}%`);
    element("share-text").textContent = named.length ? `${named.join(", ")}; other classes share the rest as in training. `
      + "An empty field takes a class out." : "As in the training images.";
  }
  element("decision").value = settings.decision;
  element("decision-text").textContent = decisionHint();
  showMatrix();
  showActions();
}

function decisionHint() {
  const ofDecision = isFitted() ? `${model.guarantee}: proved for the recorded costs and frequencies only. Under others, `
    + "evaluate and udc decide fit it again and can decide otherwise than this page. "
    : settings.decision === "argmax" ? "Costs change no decision then, only what decisions cost. " : "";
  return ofDecision + (model.isReweighted ? "Training has changed the class frequencies, so argmax and other decisions need "
    + "different probabilities, and the page has those of the recorded decision only; udc decide computes both." : "");
}

// argmax keeps the class frequencies that training has taught, other decisions undo them: where they are not those of the
// images, the stored probabilities are those of one of the two only.
const isOffered = name => name === recorded.decision || ["min_expected_cost", "argmax"].includes(name)
  && !(model.isReweighted && [name, recorded.decision].includes("argmax"));

// Why no image is referred: nothing costs so much that a person is cheaper.
function referHint() {
  const costs = settings.costs, worst = costs.map((_, j) => Math.max(...costs.map(row => row[j])));
  const highest = model.k === 2 ? costs[0][1] * costs[1][0] / (costs[0][1] + costs[1][0]) : Math.min(...worst);
  const isSimple = costs.every((row, y) => row[y] === 0) && settings.actions.length === 0;
  return isSimple && settings.refer >= highest
    ? `No image is referred: no decision for a class has an expected cost above ${costText(highest)}, however doubtful the `
      + `image, so referral must cost less.` : "";
}

function showMatrix() {
  const names = outcomeNames(model, settings), isSmall = model.k <= LARGEST_EDITED_MATRIX;
  element("matrix").hidden = !isSmall;
  element("cell").hidden = isSmall;
  if (isSmall) return showFields(names);
  const offered = [...element("cell-decided").options].map(option => option.textContent);
  if (!isSame(offered, names)) options(element("cell-decided"), names);
  const y = Number(element("cell-true").value), j = Number(element("cell-decided").value);
  if (document.activeElement !== element("cell-cost")) element("cell-cost").value = outcomeCosts(settings)[y][j];
  element("cell-cost").disabled = names[j] === "refer" && settings.refer !== null;
}

function showFields(names) {
  const columns = names.map((name, j) => ({ name, j })).filter(({ j }) => j < model.k || j >= model.k + (settings.refer !== null));
  const ordered = [...model.order.map(y => columns[y]), ...columns.slice(model.k)];
  if (!isSame(element("matrix").dataset.names, JSON.stringify(ordered))) {
    element("matrix").dataset.names = JSON.stringify(ordered);
    const filled = table(["true \\ decided", ...ordered.map(each => each.name)],
      model.order.map(y => [model.classes[y], ...ordered.map(({ name, j }) => {
        const field = make("input", { type: "number", step: "any", ariaLabel: `Cost of ${name} if ${model.classes[y]} is true` });
        field.addEventListener("input", () => { setCost(y, j, Number(field.value || NaN)); update(); });
        field.dataset.cell = `${y},${j}`;
        return field;
      })]));
    element("matrix").replaceChildren(filled);
  }
  const costs = outcomeCosts(settings);
  for (const field of element("matrix").querySelectorAll("input")) {
    const [y, j] = field.dataset.cell.split(",");
    if (field !== document.activeElement) field.value = costs[y][j];
  }
}

function setCost(y, j, cost) {
  if (j < model.k) settings.costs[y][j] = cost;
  else settings.actions[j - model.k - (settings.refer !== null)][1][y] = cost;
}

function showActions() {
  const names = JSON.stringify(settings.actions.map(each => each[0]));
  if (element("actions").dataset.names !== names) {
    element("actions").dataset.names = names;
    element("actions").replaceChildren(...settings.actions.map(([name], a) => actionRow(name, a)));
  }
  for (const [a, field] of element("actions").querySelectorAll("input").entries()) {
    const costs = settings.actions[a][1];
    if (field !== document.activeElement) field.value = costs.every(cost => cost === costs[0]) ? costs[0] : "";
  }
}

function actionRow(name, a) {
  const field = make("input", { type: "number", step: "any", placeholder: "by class",
    ariaLabel: `Cost of ${name} for every class` });
  field.addEventListener("input", () => {
    if (field.value === "") return;
    settings.actions[a][1].fill(Number(field.value));
    update();
  });
  const button = make("button", { type: "button", textContent: `Remove ${name}` });
  button.addEventListener("click", () => { settings.actions.splice(a, 1); update(); element("action-name").focus(); });
  return make("li", { className: "row" }, `${name} costs `, field, button);
}

function addAction() {
  const name = element("action-name").value.trim(), cost = Number(element("action-cost").value);
  const isTaken = [...model.classes, "refer", ...actionNames(settings)].includes(name);
  if (!name || isTaken || !(cost >= 0) || settings.actions.length >= 16) {
    element("what-if-problem").hidden = false;
    element("what-if-problem").textContent = !name ? "Give the action a name." : isTaken ? `The name ${name} is taken.`
      : "An action needs a cost of 0 or more, and there can be 16 actions.";
    return;
  }
  settings.actions.push([name, model.classes.map(() => cost)]);
  element("action-name").value = "";
  update();
}

// --- lines for params.yaml

const isPlain = name => /^[A-Za-z][\w-]*( [\w-]+)*$/.test(name) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(name);
const quoted = name => isPlain(name) ? name : JSON.stringify(name);

function changedLines() {
  const lines = [], mapping = pairs => `{${pairs.map(([name, value]) => `${quoted(name)}: ${value}`).join(", ")}}`;
  if (!isSame(settings.costs, recorded.costs)) lines.push("  entries:", ...entries());
  if (settings.refer !== recorded.refer) lines.push(`  refer: ${settings.refer ?? "null"}`);
  if (!isSame(settings.actions, recorded.actions)) lines.push(settings.actions.length ? "  actions:" : "  actions: null",
    ...settings.actions.map(([name, costs]) => `    ${quoted(name)}: ${costs.every(cost => cost === costs[0] && cost >= 0)
      ? costs[0] : mapping(costs.map((cost, y) => [model.classes[y], cost]))}`));
  if (settings.refersUnfamiliar !== recorded.refersUnfamiliar)
    lines.push(`  unfamiliar: ${settings.refersUnfamiliar ? "refer" : "warn"}`);
  if (!isSame(settings.prior, recorded.prior))
    lines.push(`  prior: ${settings.prior === null ? "null" : mapping(Object.entries(settings.prior))}`);
  if (lines.length) lines.unshift("costs:");
  if (settings.decision !== recorded.decision) lines.push("evaluate:", `  decision: ${settings.decision}`);
  return lines;
}

// The recorded costs.entries and the cells that were changed.
function entries() {
  const cells = new Map(model.entries.map(([y, j, cost]) => [JSON.stringify([y, j]), cost]));
  settings.costs.forEach((row, y) => row.forEach((cost, j) => {
    const key = JSON.stringify([model.classes[y], model.classes[j]]);
    if (cost !== recorded.costs[y][j] || cells.has(key)) cells.set(key, cost);
  }));
  return [...cells].map(([key, cost]) => {
    const [y, j] = JSON.parse(key);
    return `  - {actual: ${quoted(y)}, predicted: ${quoted(j)}, cost: ${cost}}`;
  });
}

function giveLines() {
  const lines = problemOf() === null ? changedLines() : [];
  element("lines-part").hidden = false;
  element("lines").hidden = lines.length === 0;
  element("lines").value = lines.length ? lines.join("\n") + "\n" : "";
  element("lines").rows = Math.min(20, lines.length + 1);
  element("lines-text").textContent = lines.length === 0 ? problemOf() ?? "Nothing differs from the recorded parameters."
    : "In params.yaml, replace the lines of the same names by these, and leave the others as they are. Then run dvc repro; "
      + "only evaluate runs, unless the loss or the monitor uses costs.";
  if (lines.length) element("lines").select();
  navigator.clipboard?.writeText(element("lines").value).catch(() => {}); // not allowed everywhere; the text is selected
}

// --- one change: results with the next frame, intervals when nothing has changed for a while

function update() {
  element("lines-part").hidden = true;
  if (problemOf() === null) showControls();
  else { showMatrix(); showActions(); } // their fields are places in the settings, and decisions can come and go
  cancelAnimationFrame(waiting);
  clearTimeout(resting);
  waiting = requestAnimationFrame(() => show(false));
  resting = setTimeout(() => show(true), 250);
}

function reset() {
  settings = structuredClone(recorded);
  update();
}

function start() {
  const times = recorded.costs.map((_, y) => timesOf(y)), costliest = times.indexOf(Math.max(...times));
  for (const id of ["missed", "frequent", "cell-true"]) options(element(id), model.classes, model.order);
  element("missed").prepend(make("option", { value: "", textContent: "(choose a class)" }));
  options(element("cell-decided"), outcomeNames(model, settings));
  element("missed").value = new Set(times).size > 1 ? costliest : ""; // nobody sets the costs of a class unawares
  element("frequent").value = element("cell-true").value = costliest;
  const offered = Object.keys(DECISIONS).filter(isOffered);
  element("decision").replaceChildren(...offered.map(value => make("option", { value, textContent: DECISIONS[value] })));
  element("frequencies").hidden = model.trainingPrior === null;
  element("unfamiliar-row").hidden = !model.canReferUnfamiliar;
  element("what-if-sample").hidden = !model.isSample;
  element("what-if-sample").textContent = `These are ${model.n.toLocaleString("en")} of the ${model.total.toLocaleString("en")} test `
    + "images, sampled by class and weighted, so results differ from the recorded ones, and intervals are wider.";
  element("what-if-rounding").textContent = roundedAway === 0 ? "Rounding changes no recorded decision."
    : `Rounding changes ${roundedAway} of the recorded decisions.`;
  for (const id of ["missed", "frequent", "cell-true", "cell-decided"]) element(id).addEventListener("change", update);
  element("can-refer").addEventListener("change", event => {
    settings.refer = event.target.checked ? recorded.refer ?? cheapestMistake(settings.costs) / 2 : null;
    if (settings.refer === null) settings.refersUnfamiliar = false;
    update();
  });
  element("unfamiliar").addEventListener("change", event => { settings.refersUnfamiliar = event.target.checked; update(); });
  element("cell-cost").addEventListener("input", event => {
    setCost(Number(element("cell-true").value), Number(element("cell-decided").value), Number(event.target.value || NaN));
    update();
  });
  element("decision").addEventListener("change", event => { settings.decision = event.target.value; update(); });
  element("action-add").addEventListener("click", addAction);
  element("reset").addEventListener("click", reset);
  element("give-lines").addEventListener("click", giveLines);
  element("what-if-form").addEventListener("submit", event => event.preventDefault());
  element("what-if").hidden = false;
  showControls();
  show(true);
}

start();
