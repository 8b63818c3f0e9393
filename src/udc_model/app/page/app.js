// The page: loads what does not change, and switches between the tabs.

import { byId, get } from "./common.js";
import { startDecide } from "./decide.js";
import { startReview, openReview } from "./review.js";

const tabs = [byId("tab-decide"), byId("tab-review")];

function select(tab, hasFocus) {
  for (const each of tabs) {
    const isSelected = each === tab;
    each.setAttribute("aria-selected", String(isSelected));
    each.tabIndex = isSelected ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !isSelected;
  }
  if (hasFocus) tab.focus();
}

async function start() {
  let state;
  try {
    state = await get("api/state");
  } catch (error) {
    byId("decide-status").textContent = error.message;
    return;
  }
  byId("project").textContent = state.project;
  document.title = `${state.project}: UDC-Model`;
  startDecide(state);
  startReview(state);
  for (const [position, tab] of tabs.entries()) {
    tab.addEventListener("click", () => {
      select(tab, false);
      if (tab.id === "tab-review") openReview();
    });
    tab.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") select(tabs[1 - position], true);
    });
  }
  document.body.dataset.ready = "true";
}

start();
