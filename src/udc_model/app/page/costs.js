// The costs of the session: a matrix of few classes, single cells of many, and referral.

import { byId, element } from "./common.js";

const LARGEST_MATRIX = 10;

/** Connects the fields; `changed` is called after each change. */
export function sessionCosts(state, changed) {
  const { classes } = state;
  const decisions = [...classes, ...state.actions];
  const cells = new Map(); // "true class number,decision number": cost
  const inputs = new Map(); // the same: field
  const refer = byId("refer");

  const stored = (i, j) => j < classes.length ? state.class_costs[i][j]
    : state.action_costs[decisions[j]][i];
  const current = (i, j) => cells.get(`${i},${j}`) ?? stored(i, j);

  function set(i, j, cost) {
    const key = `${i},${j}`;
    if (cost === stored(i, j)) cells.delete(key);
    else cells.set(key, cost);
    const field = inputs.get(key);
    if (!field) return;
    field.value = cost;
    field.classList.toggle("changed", cells.has(key));
  }

  function show() {
    const value = refer.value === "" ? null : refer.valueAsNumber;
    const count = cells.size + (value !== state.refer ? 1 : 0);
    byId("costs-state").textContent = count ? `${count} changed for this session` : "as stored";
    changed();
  }

  function fillMatrix() {
    const head = element("tr", {}, element("th", { scope: "col" }, "true"),
      ...decisions.map((name) => element("th", { scope: "col" }, name)));
    const rows = classes.map((name, i) => element("tr", {}, element("th", { scope: "row" }, name),
      ...decisions.map((decision, j) => {
        const field = element("input", {
          type: "number", step: "any", value: stored(i, j), "aria-label": `true ${name}, decided ${decision}`,
          onchange: () => {
            if (field.value !== "" && field.validity.valid) set(i, j, field.valueAsNumber);
            field.value = current(i, j);
            show();
          },
        });
        inputs.set(`${i},${j}`, field);
        return element("td", {}, field);
      })));
    byId("matrix").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  const options = (names) => names.map((name, i) => element("option", { value: i }, name));
  byId("missing-class").append(...options(classes));
  byId("missing").addEventListener("submit", (event) => {
    event.preventDefault();
    const i = Number(byId("missing-class").value);
    classes.forEach((_, j) => { if (j !== i) set(i, j, byId("missing-cost").valueAsNumber); });
    show();
  });
  if (classes.length <= LARGEST_MATRIX) {
    fillMatrix();
  } else {
    byId("matrix").hidden = true;
    byId("cell").hidden = false;
    byId("cell-true").append(...options(classes));
    byId("cell-decided").append(...options(decisions));
    byId("cell").addEventListener("submit", (event) => {
      event.preventDefault();
      set(Number(byId("cell-true").value), Number(byId("cell-decided").value), byId("cell-cost").valueAsNumber);
      show();
    });
  }
  refer.value = state.refer ?? "";
  refer.addEventListener("change", () => {
    if (!refer.validity.valid) refer.value = state.refer ?? "";
    show();
  });
  byId("costs-reset").addEventListener("click", () => {
    for (const key of [...cells.keys()]) {
      const [i, j] = key.split(",").map(Number);
      set(i, j, stored(i, j));
    }
    refer.value = state.refer ?? "";
    show();
  });
  if (state.guarantee) {
    byId("guarantee").hidden = false;
    byId("guarantee").textContent = `The decisions keep a guarantee: ${state.guarantee}. With other costs it is fitted again.`;
  }

  return {
    /** What the server takes. */
    values: () => ({
      cells: [...cells].map(([key, cost]) => {
        const [i, j] = key.split(",").map(Number);
        return { true: classes[i], decided: decisions[j], cost };
      }),
      refer: refer.value === "" ? null : refer.valueAsNumber,
    }),
  };
}
