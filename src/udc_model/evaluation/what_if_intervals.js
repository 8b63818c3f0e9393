"use strict";
// Intervals of means and shares, as evaluation/intervals.py computes them. No access to the page.
//
// Of independent images, shares have the interval of Clopper and Pearson, to all digits that of `evaluate`. Other
// intervals are quantiles of random draws, and the draws are not those of `evaluate`: ends differ by a few percent of
// the width. Equal groups have one weight, the sum of theirs, which has a gamma distribution.

const MOST_DRAWS = 10000, FEWEST_DRAWS = 1000, MOST_WEIGHTS = 4e6;

function measureIntervals(model, settings, decided, measured) {
  const costs = outcomeCosts(settings), weights = measured.weights, all = costs.flat();
  const units = value => unitsOf(model, measured, decided, value, y => weights[y]);
  const isEven = model.groups === null && weights.every(weight => weight === 1);
  const rates = measured.rates.map((rate, a) => {
    const isAction = (y, j) => j === model.k + a ? 1 : 0;
    return isEven ? shareInterval(Math.round(rate * model.n), model.n, model.confidence)
      : meanInterval(units(isAction), 0, 1, model.confidence);
  });
  const recalls = measured.counts.map((row, y) => {
    if (!model.stored[y]) return [NaN, NaN];
    if (model.groups === null) return shareInterval(row[y], model.stored[y], model.confidence);
    const ofClass = unitsOf(model, measured, decided, (_, j) => j === y ? 1 : 0, each => each === y ? 1 : 0);
    return meanInterval(ofClass, 0, 1, model.confidence, 2000);
  });
  const least = all.reduce((a, b) => Math.min(a, b)), most = all.reduce((a, b) => Math.max(a, b));
  return { meanCost: meanInterval(units((y, j) => costs[y][j]), least, most, model.confidence), rates, recalls };
}

// The independent units, groups or images: sum of weighted values, sum of weights, and how many units are equal.
function unitsOf(model, measured, decided, value, weight) {
  const units = new Map(), add = (total, size, count) => {
    if (size === 0) return;
    const key = `${total},${size}`, unit = units.get(key);
    if (unit) unit.count += count; else units.set(key, { total, size, count });
  };
  if (model.groups === null) {
    measured.counts.forEach((row, y) => row.forEach((count, j) => count && add(weight(y) * value(y, j), weight(y), count)));
    return [...units.values()];
  }
  const groups = model.groups.reduce((a, b) => Math.max(a, b)) + 1;
  const totals = new Float64Array(groups), sizes = new Float64Array(groups);
  model.groups.forEach((group, i) => {
    const y = model.targets[i];
    totals[group] += weight(y) * value(y, decided[i]);
    sizes[group] += weight(y);
  });
  totals.forEach((total, group) => add(total, sizes[group], 1));
  return [...units.values()];
}

// The interval of a mean of values from lowest to highest, with one unseen unit as large as the largest one.
function meanInterval(units, lowest, highest, confidence, mostDraws = MOST_DRAWS) {
  const draws = Math.max(FEWEST_DRAWS, Math.min(mostDraws, Math.floor(MOST_WEIGHTS / units.length)));
  const largest = units.reduce((most, unit) => Math.max(most, unit.size), 0), random = randomNumbers(1);
  const low = new Float64Array(draws), high = new Float64Array(draws);
  for (let i = 0; i < draws; i++) {
    let total = 0, size = 0;
    for (const unit of units) {
      const weight = randomGamma(unit.count, random);
      total += weight * unit.total;
      size += weight * unit.size;
    }
    const unseen = randomGamma(1, random) * largest;
    low[i] = (total + unseen * lowest) / (size + unseen);
    high[i] = (total + unseen * highest) / (size + unseen);
  }
  return [quantile(low, (1 - confidence) / 2), quantile(high, (1 + confidence) / 2)];
}

function quantile(values, share) {
  const sorted = values.sort(), place = (sorted.length - 1) * share, below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

// Numbers above 0 and below 1, always the same ones: mulberry32.
function randomNumbers(seed) {
  return () => {
    seed = seed + 0x6D2B79F5 | 0;
    let bits = Math.imul(seed ^ seed >>> 15, 1 | seed);
    bits = bits + Math.imul(bits ^ bits >>> 7, 61 | bits) ^ bits;
    return ((bits ^ bits >>> 14) >>> 0) / 2 ** 32 + 2 ** -33;
  };
}

// A draw of the gamma distribution of a shape of 1 or more (Marsaglia and Tsang 2000).
function randomGamma(shape, random) {
  if (shape === 1) return -Math.log(random());
  const d = shape - 1 / 3, c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const normal = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random()), v = (1 + c * normal) ** 3;
    if (v > 0 && Math.log(random()) < normal * normal / 2 + d - d * v + d * Math.log(v)) return d * v;
  }
}

// The interval of Clopper and Pearson (1934) of a share, of which `hits` of `size` were observed.
function shareInterval(hits, size, confidence) {
  const tail = (1 - confidence) / 2;
  return [lowerBound(hits, size, tail), 1 - lowerBound(size - hits, size, tail)];
}

// The share at which `hits` or more of `size` have the probability `tail`.
function lowerBound(hits, size, tail) {
  if (hits === 0) return 0;
  let low = 0, high = 1;
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (incompleteBeta(middle, hits, size - hits + 1) < tail) low = middle; else high = middle;
  }
  return low;
}

// The regularised incomplete beta function of whole a and b, by its continued fraction (Press et al. 2007, 6.4).
function incompleteBeta(x, a, b) {
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(logFactorial(a + b - 1) - logFactorial(a - 1) - logFactorial(b - 1)
    + a * Math.log(x) + b * Math.log1p(-x)) / a;
  let c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), value = d;
  for (let m = 1; m < 1000; m++) {
    const even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / (1 + even * d); c = 1 + even / c; value *= d * c;
    const odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / (1 + odd * d); c = 1 + odd / c; value *= d * c;
    if (Math.abs(d * c - 1) < 1e-14) break;
  }
  return front * value;
}

const logFactorials = [0];
function logFactorial(n) {
  while (logFactorials.length <= n) logFactorials.push(logFactorials.at(-1) + Math.log(logFactorials.length));
  return logFactorials[n];
}
