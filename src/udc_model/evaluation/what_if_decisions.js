"use strict";
// Decisions and their costs from rounded probabilities, as decisions/policy.py computes them. No access to the page.
//
// Settings: costs (K rows of K numbers, rows true), refer (a number, or null), actions (pairs of a name and K costs),
// refersUnfamiliar, prior (shares of classes by name, or null), decision.

// What is computed with, from what is in the page: probabilities up to a factor of each image, true classes, decisions.
function openModel(data, encodedRoots) {
  const k = data.classes.length, roots = decodeUint16(encodedRoots), n = roots.length / k;
  const p = new Float64Array(roots.length + k); // one image of zeros follows: `expectedCosts` takes two at a time
  for (let i = 0; i < roots.length; i++) p[i] = roots[i] * roots[i];
  const targets = decodeUint16(data.targets), stored = new Float64Array(k);
  for (const y of targets) stored[y]++;
  const total = data.classSizes.reduce((sum, size) => sum + size, 0);
  return { ...data, k, n, p, total, stored, targets, decided: decodeUint16(data.decided), isSample: data.rows !== null };
}

function decodeUint16(text) {
  const bytes = atob(text), values = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) values[i] = bytes.charCodeAt(2 * i) | bytes.charCodeAt(2 * i + 1) << 8;
  return values;
}

const actionNames = settings => [...(settings.refer === null ? [] : ["refer"]), ...settings.actions.map(each => each[0])];
const outcomeNames = (model, settings) => [...model.classes, ...actionNames(settings)];

// Costs of all decisions, K rows of D: the classes, referral, the other actions.
function outcomeCosts(settings, refer = settings.refer) {
  return settings.costs.map((row, y) =>
    [...row, ...(settings.refer === null ? [] : [refer]), ...settings.actions.map(each => each[1][y])]);
}

// The costs whose least expected value is the decision. What a guarantee adds is as it was fitted.
function decisionCosts(model, settings) {
  if (settings.decision === "argmax") return settings.costs.map((row, y) => row.map((_, j) => y === j ? -1 : 0));
  if (settings.decision === "cost_ceiling") return outcomeCosts(settings, model.fitted.threshold);
  const costs = outcomeCosts(settings);
  if (settings.decision === "recall_floor")
    for (const [classes, surcharge] of model.fitted.floors)
      for (const y of classes) costs[y] = costs[y].map((cost, j) => classes.includes(j) ? cost : cost + surcharge);
  return costs;
}

// Class frequencies of deployment, or null: classes that are not named share the rest as in training.
function deploymentPrior(model, settings) {
  if (settings.prior === null) return null;
  const named = model.classes.map(name => Object.hasOwn(settings.prior, name) ? settings.prior[name] : 0);
  const others = named.map((share, y) => share > 0 ? 0 : model.trainingPrior[y]);
  const rest = 1 - sum(named), sumOfOthers = sum(others);
  const prior = named.map((share, y) => sumOfOthers > 0 ? share + rest * others[y] / sumOfOthers : share);
  return prior.map(share => share / sum(prior));
}

const sum = values => values.reduce((total, value) => total + value, 0);

// The decision of each image, an index of the outcomes. Of ties, the first decision is taken.
function decide(model, settings) {
  const prior = deploymentPrior(model, settings);
  const costs = decisionCosts(model, settings).map((row, y) => // the shift of the probabilities, moved to the costs
    prior === null ? row : row.map(cost => cost * (prior[y] / model.trainingPrior[y])));
  const decided = leastExpected(model, costs);
  if (settings.refersUnfamiliar && settings.refer !== null) for (const i of model.unfamiliar) decided[i] = model.k;
  return decided;
}

// The decision of least expected cost. Costs that differ little from simpler ones need few additions: expected costs are
// those of rows of one cost, which decide nothing, or of costs of before, and what the differences add.
function leastExpected(model, costs) {
  const usual = costs.map(mostFrequent);
  const columns = differences(costs, y => usual[y]);
  if (columns !== null) return leastOfSums(model, columns, null);
  const before = model.before?.costs[0].length === costs[0].length ? model.before : null;
  const changes = before && differences(costs, (y, j) => before.costs[y][j]);
  if (changes !== null) return leastOfSums(model, changes, before.expected);
  model.before = { costs, expected: expectedCosts(model, costs) };
  return leastOfSums(model, differences(costs, (y, j) => costs[y][j]), model.before.expected);
}

function mostFrequent(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((most, each) => each[1] > most[1] ? each : most)[0];
}

// Of each decision, the true classes whose cost differs from `base`, and by how much; null if more than a quarter do.
function differences(costs, base) {
  const columns = costs[0].map(() => ({ rows: [], values: [] }));
  let size = 0;
  costs.forEach((row, y) => row.forEach((cost, j) => {
    if (cost === base(y, j)) return;
    columns[j].rows.push(y);
    columns[j].values.push(cost - base(y, j));
    size++;
  }));
  return size * 4 > costs.length * columns.length ? null : columns;
}

// The decisions of least expected cost: `start`, N rows of D or null, and the sums of the columns.
function leastOfSums({ p, n, k }, columns, start) {
  const decided = new Uint16Array(n), d = columns.length;
  const rows = Uint16Array.from(columns.flatMap(column => column.rows));
  const values = Float64Array.from(columns.flatMap(column => column.values));
  const ends = new Uint32Array(d);
  columns.forEach((column, j) => { ends[j] = (j ? ends[j - 1] : 0) + column.rows.length; });
  for (let i = 0; i < n; i++) {
    let least = Infinity;
    for (let j = 0, c = 0; j < d; j++) {
      let expected = start === null ? 0 : start[i * d + j];
      for (; c < ends[j]; c++) expected += p[i * k + rows[c]] * values[c];
      if (expected < least) { least = expected; decided[i] = j; }
    }
  }
  return decided;
}

// All expected costs, N rows of D, for two images and four decisions at a time: three times as fast as one by one.
function expectedCosts({ p, n, k }, costs) {
  const d = costs[0].length, expected = new Float64Array(n * d), block = new Float64Array(8);
  const byDecision = new Float64Array(Math.ceil(d / 4) * 4 * k);
  costs.forEach((row, y) => row.forEach((cost, j) => { byDecision[j * k + y] = cost; }));
  for (let i = 0; i < n; i += 2)
    for (let j = 0; j < d; j += 4) {
      expectedOfBlock(p, i * k, byDecision, j * k, k, block);
      for (let e = 0; e < 4 && j + e < d; e++) {
        expected[i * d + j + e] = block[e];
        if (i + 1 < n) expected[i * d + d + j + e] = block[4 + e];
      }
    }
  return expected;
}

// Expected costs of four decisions, whose costs begin at q, for the two images whose probabilities begin at a.
function expectedOfBlock(p, a, costs, q, k, expected) {
  const b = a + k, r = q + k, s = r + k, t = s + k;
  let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  for (let y = 0; y < k; y++) {
    const u = p[a + y], v = p[b + y], c0 = costs[q + y], c1 = costs[r + y], c2 = costs[s + y], c3 = costs[t + y];
    a0 += u * c0; a1 += u * c1; a2 += u * c2; a3 += u * c3;
    b0 += v * c0; b1 += v * c1; b2 += v * c2; b3 += v * c3;
  }
  expected[0] = a0; expected[1] = a1; expected[2] = a2; expected[3] = a3;
  expected[4] = b0; expected[5] = b1; expected[6] = b2; expected[7] = b3;
}

// Weight of an image of each class: of classes that are sampled, and of class frequencies that are not those of the split.
function classWeights(model, settings) {
  const prior = deploymentPrior(model, settings);
  return model.classSizes.map((size, y) => {
    if (!model.stored[y]) return 0;
    const ofSample = model.isSample ? size / model.stored[y] : 1;
    return prior === null ? ofSample : ofSample * prior[y] / (size / model.total);
  });
}

// What follows from decisions: counts (K rows of D), mean cost, that of the best constant decision, rates, recalls.
function measure(model, settings, decided) {
  const costs = outcomeCosts(settings), d = costs[0].length, weights = classWeights(model, settings);
  const counts = costs.map(row => row.map(() => 0));
  for (let i = 0; i < model.n; i++) counts[model.targets[i]][decided[i]]++;
  const total = sum(weights.map((weight, y) => weight * model.stored[y]));
  const meanOf = value => sum(counts.map((row, y) => weights[y] * sum(row.map((count, j) => count * value(y, j))))) / total;
  const constant = costs[0].map((_, j) => sum(costs.map((row, y) => row[j] * weights[y] * model.stored[y])) / total);
  const best = constant.indexOf(Math.min(...constant));
  const right = sum(counts.map((row, y) => row[y]));
  return {
    counts, weights, right,
    meanCost: meanOf((y, j) => costs[y][j]),
    constantCost: constant[best],
    constantName: `always ${outcomeNames(model, settings)[best]}`,
    mistakes: sum(counts.map(row => sum(row.slice(0, model.k)))) - right,
    rates: Array.from({ length: d - model.k }, (_, a) => meanOf((y, j) => j === model.k + a ? 1 : 0)),
    recalls: counts.map((row, y) => model.stored[y] ? row[y] / model.stored[y] : NaN),
  };
}
